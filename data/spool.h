// Text that is not a plain file, on the disk for as long as it is read: pipes and compressed files.
#ifndef DATA_SPOOL_H
#define DATA_SPOOL_H

#include "files.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum { NOT_COMPRESSED, GZIP, ZSTANDARD } Compression;

// A file that has no name: it takes room in `folder` until it is closed.
FILE *spool_create(const char *folder, Error *error);
// Of a file, by its name (.gz, .zst).
Compression compression_of_name(const char *path);
// Copies what comes out of `descriptor` into `out`, decompressed; *bytes counts what is written. `path` is for sentences.
// With `guess`, the compression is found out by the first bytes. Errors: what is damaged, truncated or followed by
// something else; a library that this build does not have; a disk that is full.
int spool_copy(int descriptor, const char *path, Compression compression, int guess, FILE *out,
               uint64_t *bytes, Error *error);

#ifdef __cplusplus
}
#endif
#endif
