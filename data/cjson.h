// cJSON's header, from either of the places where systems keep it: include/cjson/ (most) or include/ itself.
#ifndef DATA_CJSON_H
#define DATA_CJSON_H
#if __has_include(<cjson/cJSON.h>)
#include <cjson/cJSON.h>
#else
#include <cJSON.h>
#endif
#endif
