// Files that a program is about to write: nothing that others wrote is replaced without being asked.
#ifndef DATA_OVERWRITE_H
#define DATA_OVERWRITE_H

#include "files.h"

#ifdef __cplusplus
extern "C" {
#endif

// May the file `path` be written? Yes if nothing is there; if it is a regular file and either `overwrite` is set or
// `is_ours` (NULL: nothing proves it) returns 1, having proved that this program wrote it. Returns 0, or -1 with
// a sentence that names the file and --overwrite. What is not a regular file (/dev/null, a folder) is never
// replaced.
int overwrite_check(const char *path, int overwrite, int (*is_ours)(const char *path), Error *error);

#ifdef __cplusplus
}
#endif
#endif
