#include "overwrite.h"

#include <errno.h>
#include <sys/stat.h>

int overwrite_check(const char *path, int overwrite, int (*is_ours)(const char *path), Error *error) {
    struct stat status;
    if (stat(path, &status) != 0) {
        if (errno == ENOENT || errno == ENOTDIR) return 0; // opening it will report more
        return fail_io(error, "cannot access '%s'", path);
    }
    if (!S_ISREG(status.st_mode)) return fail(error, "cannot write '%s': it is not a regular file", path);
    if (overwrite || (is_ours != NULL && is_ours(path))) return 0;
    return fail(error, "'%s' exists: choose another name, or give --overwrite to replace it", path);
}
