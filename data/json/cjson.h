// Includes cJSON's header from either of its common locations: include/cjson/ (most systems) or include/ itself.
#ifndef DATA_JSON_CJSON_H
#define DATA_JSON_CJSON_H
#if __has_include(<cjson/cJSON.h>)
#include <cjson/cJSON.h>
#else
#include <cJSON.h>
#endif
#endif
