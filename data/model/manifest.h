// The manifest of a checkpoint: which run wrote it, and the size and checksum of each of its files.
//
//     run 0123456789abcdef         the run's id (data/run/run.h); checkpoints of earlier versions have no such line
//     crc32c size name             one line for each file
//     crc32c manifest              the CRC-32C of all lines above
//
// It is written last. A folder with an intact manifest that names a run was written by that run, and the listed files
// are those that it wrote: only these may be removed.
#ifndef DATA_MODEL_MANIFEST_H
#define DATA_MODEL_MANIFEST_H

#include <stdint.h>
#include "layers/base/files.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { RUN_ID_SIZE = 17 }; // 16 hexadecimal digits and a NUL
#define MANIFEST_NAME "manifest"

typedef struct {
    char name[64];
    uint32_t crc;
    uint64_t size;
} CheckpointFile;

typedef struct {
    char run_id[RUN_ID_SIZE]; // empty: unknown
    CheckpointFile *files;    // (num_files)
    size_t num_files;
} Manifest;

// Reads folder/manifest. Returns 0 on success, -1 with a sentence if it is missing or damaged; then the manifest is
// empty. The caller frees it in both cases.
int manifest_read(const char *folder, Manifest *manifest, Error *error);
void manifest_free(Manifest *manifest);
// Compares every file of the folder with the manifest. Returns 0, or -1 with a sentence.
int manifest_verify(const char *folder, const Manifest *manifest, Error *error);
// Returns the text of folder/manifest. The caller frees it.
char *manifest_text(const Manifest *manifest);
// Appends a file.
void manifest_add(Manifest *manifest, const CheckpointFile *file);

#ifdef __cplusplus
}
#endif
#endif
