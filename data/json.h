// Reading JSON files (cJSON) with sentences for what is wrong in them.
#ifndef DATA_JSON_H
#define DATA_JSON_H

#include <stdint.h>
#include "cjson.h"
#include "files.h"

#ifdef __cplusplus
extern "C" {
#endif

// The object that the whole file is, no key of which is there twice (readers would disagree about it); NULL, with a
// sentence, for anything else. The caller deletes it.
cJSON *json_read(const char *path, Error *error);
// Reads a whole number from 0 to 9e15 of the object in the file `path`; `fallback` (when >= 0) stands in for one that is
// missing. Returns 0, or -1 with a sentence.
int json_integer(const cJSON *json, const char *path, const char *name, int64_t fallback, int64_t *value,
                 Error *error);
// The object as text that ends with a line feed; deletes the object. The caller frees the text.
char *json_text(cJSON *json);

#ifdef __cplusplus
}
#endif
#endif
