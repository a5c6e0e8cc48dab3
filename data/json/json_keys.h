// Keys of JSON files that the user has asked to ignore with --ignore-key.
#ifndef DATA_JSON_JSON_KEYS_H
#define DATA_JSON_JSON_KEYS_H

#ifdef __cplusplus
extern "C" {
#endif

// Returns 1 if `key` is one of the names in `list`, which are separated by commas ("rope_scaling,model.unk_token");
// spaces around a name are ignored. Returns 0 if it is not, or if the list is NULL or empty.
int key_is_ignored(const char *list, const char *key);

#ifdef __cplusplus
}
#endif
#endif
