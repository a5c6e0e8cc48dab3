// See weight_files.h.
#include "weight_files.h"

#include <stdlib.h>
#include <string.h>
#include "data/json/cjson.h"
#include "data/json/json.h"
#include "manifest.h"

void weight_files_free(WeightFiles *files) {
    for (size_t i = 0; i < files->count; i++) free(files->paths[i]);
    free(files->paths);
    memset(files, 0, sizeof(*files));
}

// Adds folder/name unless it was already added.
static void add_file(WeightFiles *files, const char *folder, const char *name) {
    char *path = format_text("%s/%s", folder, name);
    for (size_t i = 0; i < files->count; i++)
        if (strcmp(files->paths[i], path) == 0) {
            free(path);
            return;
        }
    files->paths = (char **)xrealloc(files->paths, (files->count + 1) * sizeof(char *));
    files->paths[files->count++] = path;
}

static int exists_in(const char *folder, const char *name) {
    char *path = format_text("%s/%s", folder, name);
    const int exists = file_exists(path);
    free(path);
    return exists;
}

// Adds the files of an index: {"weight_map": {"wte.weight": "model-00001-of-00002.safetensors", ...}}.
static int add_indexed(WeightFiles *files, const char *folder, const char *index, Error *error) {
    char *path = format_text("%s/%s", folder, index);
    cJSON *json = json_read(path, error);
    const cJSON *map = cJSON_GetObjectItemCaseSensitive(json, "weight_map"), *item;
    int result = json == NULL ? -1 : 0;
    if (result == 0 && (!cJSON_IsObject(map) || map->child == NULL))
        result = fail(error, "'%s' has no weight_map, which names the file of each tensor", path);
    if (result == 0) cJSON_ArrayForEach(item, map) {
            const char *name = cJSON_GetStringValue(item);
            if (name == NULL || *name == '\0' || strchr(name, '/') != NULL)
                result = fail(error,
                              "'%s': the file of tensor %.60s must be the name of a file in the same folder",
                              path, item->string);
            else if (!exists_in(folder, name))
                result = fail(error, "'%s/%s' is missing: '%s' says that it has tensor %.60s", folder, name,
                              path, item->string);
            else
                add_file(files, folder, name);
            if (result != 0) break;
        }
    cJSON_Delete(json);
    free(path);
    return result;
}

// Adds the parts that the manifest of a checkpoint of this trainer lists.
static int add_listed(WeightFiles *files, const char *folder, const char *name, Error *error) {
    Manifest manifest;
    char *start = format_text("%s-", name);
    int result = exists_in(folder, MANIFEST_NAME) ? manifest_read(folder, &manifest, error) : 1;
    for (size_t i = 0; result == 0 && i < manifest.num_files; i++)
        if (strncmp(manifest.files[i].name, start, strlen(start)) == 0)
            add_file(files, folder, manifest.files[i].name);
    if (result != 1) manifest_free(&manifest);
    free(start);
    return result < 0 ? -1 : 0;
}

// Reports missing weights, and names weight files in formats that cannot be read.
static int fail_without(const char *folder, const char *single, const char *index, Error *error) {
    static const char *const others[] = {"pytorch_model.bin", "pytorch_model.bin.index.json", "ckpt.pt"};
    for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++)
        if (exists_in(folder, others[i]))
            return fail(
                error,
                "'%s' has its weights in %s, but only safetensors can be read: in Python, load them with "
                "transformers and write them with save_pretrained(folder, safe_serialization=True)",
                folder, others[i]);
    return fail(error, "'%s' has neither %s nor %s", folder, single, index);
}

int weight_files_find(const char *folder, const char *name, WeightFiles *files, Error *error) {
    char *single = format_text("%s.safetensors", name),
         *index = format_text("%s.safetensors.index.json", name);
    int result = 0;
    memset(files, 0, sizeof(*files));
    if (exists_in(folder, index)) {
        result = add_indexed(files, folder, index, error);
        char *path = format_text("%s/%s", folder, single);
        if (result == 0 && file_exists(path) && (files->count != 1 || strcmp(files->paths[0], path) != 0))
            result = fail(error,
                          "'%s' and '%s', which names other files, contradict each other: remove the one "
                          "that is out of date",
                          path, index);
        free(path);
    } else {
        result = add_listed(files, folder, name, error);
        if (result == 0 && files->count == 0 && exists_in(folder, single)) add_file(files, folder, single);
        if (result == 0 && files->count == 0) result = fail_without(folder, single, index, error);
    }
    free(single);
    free(index);
    return result;
}
