// Reads JSON files (cJSON) and reports errors as sentences.
#ifndef DATA_JSON_JSON_H
#define DATA_JSON_JSON_H

#include <stdint.h>
#include "cjson.h"
#include "layers/base/files.h"

#ifdef __cplusplus
extern "C" {
#endif

// Parses the whole file, which must be an object without duplicate keys (readers would disagree about them). Returns
// NULL with a sentence for anything else. The caller deletes the object.
cJSON *json_read(const char *path, Error *error);
// Reads a whole number from 0 to 9e15 from the object in the file `path`; `fallback` (if >= 0) is used for a missing
// one. Returns 0, or -1 with a sentence.
int json_integer(const cJSON *json, const char *path, const char *name, int64_t fallback, int64_t *value,
                 Error *error);
// Prints the object as text that ends with a line feed, and deletes the object. The caller frees the text.
char *json_text(cJSON *json);

#ifdef __cplusplus
}
#endif
#endif
