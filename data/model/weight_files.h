// Determines which files of a folder hold its tensors. A name like "model" stands for
//
//     model.safetensors.index.json     if it exists (Hugging Face's weight_map): exactly the files that it names
//     manifest                         else, in a checkpoint of this trainer (data/model/manifest.h): the listed files
//                                      model-00001-of-0000N.safetensors, if any
//     model.safetensors                else
#ifndef DATA_MODEL_WEIGHT_FILES_H
#define DATA_MODEL_WEIGHT_FILES_H

#include <stddef.h>
#include "layers/base/files.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
    char **paths; // (count)
    size_t count;
} WeightFiles;

// Returns 0, or -1 with a sentence that names the file that is missing or contradicts another. The caller frees
// `files` in both cases.
int weight_files_find(const char *folder, const char *name, WeightFiles *files, Error *error);
void weight_files_free(WeightFiles *files);

#ifdef __cplusplus
}
#endif
#endif
