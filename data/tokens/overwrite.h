// Protects files of others: a program replaces only files that it has written itself, unless it is told to overwrite
// them.
#ifndef DATA_TOKENS_OVERWRITE_H
#define DATA_TOKENS_OVERWRITE_H

#include "layers/base/files.h"

#ifdef __cplusplus
extern "C" {
#endif

// Checks whether the file `path` may be written: it may if it does not exist, or if it is a regular file and
// `overwrite` is set or `is_ours` returns 1, having proved that this program wrote it (NULL: no proof is possible).
// Returns 0, or -1 with a sentence that names the file and --overwrite. Anything other than a regular file
// (/dev/null, a folder) is never replaced.
int overwrite_check(const char *path, int overwrite, int (*is_ours)(const char *path), Error *error);

#ifdef __cplusplus
}
#endif
#endif
