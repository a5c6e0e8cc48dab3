// Temporary storage on disk for text that is not in a plain file: from pipes and compressed files.
#ifndef DATA_CORPUS_SPOOL_H
#define DATA_CORPUS_SPOOL_H

#include "layers/base/files.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum { NOT_COMPRESSED, GZIP, ZSTANDARD } Compression;

// Creates an unnamed file in `folder`; its space is freed when it is closed. Returns NULL with a sentence on error.
FILE *spool_create(const char *folder, Error *error);
// Returns the compression that a file's name implies (.gz, .zst).
Compression compression_of_name(const char *path);
// Copies the decompressed contents of `descriptor` into `out`; *bytes counts what is written. `path` is for messages.
// With `guess`, the compression is detected from the first bytes. Errors: data that is damaged, truncated or followed
// by other data; a library that this build does not have; a full disk.
int spool_copy(int descriptor, const char *path, Compression compression, int guess, FILE *out,
               uint64_t *bytes, Error *error);

#ifdef __cplusplus
}
#endif
#endif
