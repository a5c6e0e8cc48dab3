// See json.h.
#include "json.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_JSON_BYTES = 64 << 20 }; // enough for a large vocabulary

static int compare_text(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

// Returns a key that occurs twice in the object, or NULL.
static const char *find_duplicate(const cJSON *json) {
    const size_t count = (size_t)cJSON_GetArraySize(json);
    const char **keys = (const char **)xmalloc((count + 1) * sizeof(char *)), *found = NULL;
    size_t n = 0;
    for (const cJSON *item = json->child; item != NULL; item = item->next) keys[n++] = item->string;
    qsort(keys, n, sizeof(char *), compare_text);
    for (size_t i = 1; i < n && found == NULL; i++)
        if (strcmp(keys[i - 1], keys[i]) == 0) found = keys[i];
    free(keys);
    return found;
}

cJSON *json_read(const char *path, Error *error) {
    char *text;
    size_t size;
    if (file_read(path, MAX_JSON_BYTES, &text, &size, error) != 0) return NULL;
    cJSON_Hooks hooks = {xmalloc, free}; // running out of memory is not reported as a damaged file
    cJSON_InitHooks(&hooks);
    cJSON *json = strlen(text) == size ? cJSON_ParseWithLengthOpts(text, size + 1, NULL, 1) : NULL;
    free(text);
    const char *twice = cJSON_IsObject(json) ? find_duplicate(json) : NULL;
    if (cJSON_IsObject(json) && twice == NULL) return json;
    if (twice != NULL)
        fail(error, "'%s' has the key %.60s twice", path, twice);
    else
        fail(error, "'%s' is damaged: it is not a JSON object", path);
    cJSON_Delete(json);
    return NULL;
}

int json_integer(const cJSON *json, const char *path, const char *name, int64_t fallback, int64_t *value,
                 Error *error) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(json, name);
    *value = fallback;
    if (item == NULL && fallback >= 0) return 0;
    if (item == NULL) return fail(error, "'%s': %s is missing", path, name);
    if (!cJSON_IsNumber(item) || !(item->valuedouble >= 0 && item->valuedouble < 9e15) ||
        item->valuedouble != floor(item->valuedouble))
        return fail(error, "'%s': %s must be a whole number", path, name);
    *value = (int64_t)item->valuedouble;
    return 0;
}

char *json_text(cJSON *json) {
    char *printed = cJSON_Print(json), *text = format_text("%s\n", printed ? printed : "");
    if (printed == NULL) die("out of memory while writing JSON");
    cJSON_free(printed);
    cJSON_Delete(json);
    return text;
}
