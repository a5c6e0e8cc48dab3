#include "host_memory.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

enum { PATH_SIZE = 4096, LINE_SIZE = 4608 };

static size_t min_size(size_t a, size_t b) {
    return a < b ? a : b;
}

static size_t remaining(size_t limit, size_t used) {
    return limit > used ? limit - used : 0;
}

// Returns the number after `key` in the first line of the file that begins with it ("": the first line), times `unit`.
// Returns `otherwise` if there is no number ("max") or no such file.
static size_t read_number(const char *path, const char *key, size_t unit, size_t otherwise) {
    FILE *file = fopen(path, "re");
    char line[LINE_SIZE];
    size_t result = otherwise;
    const size_t length = strlen(key);
    while (file != NULL && fgets(line, sizeof(line), file) != NULL) {
        if (strncmp(line, key, length) != 0) continue;
        char *end;
        const unsigned long long number = strtoull(line + length, &end, 10);
        if (end != line + length) result = number > SIZE_MAX / unit ? SIZE_MAX : (size_t)number * unit;
        break;
    }
    if (file != NULL) fclose(file);
    return result;
}

static size_t read_number_in(const char *folder, const char *name, const char *key, size_t otherwise) {
    char path[PATH_SIZE];
    if (snprintf(path, sizeof(path), "%s/%s", folder, name) >= (int)sizeof(path)) return otherwise;
    return read_number(path, key, 1, otherwise);
}

// ---- control groups ---------------------------------------------------------------------------------------

// The files of one version of control groups.
typedef struct {
    const char *mount, *limit, *used;
    const char *reclaimable; // key in memory.stat of the file cache that the kernel can reclaim
} GroupFiles;

static const GroupFiles version1 = {"/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes",
                                    "total_inactive_file "};
static const GroupFiles version2 = {"/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file "};

static size_t remaining_in_group(const GroupFiles *files, const char *folder) {
    const size_t limit = read_number_in(folder, files->limit, "", SIZE_MAX);
    if (limit == SIZE_MAX) return SIZE_MAX;
    const size_t reclaimable = read_number_in(folder, "memory.stat", files->reclaimable, 0);
    return remaining(limit, remaining(read_number_in(folder, files->used, "", 0), reclaimable));
}

// Returns the minimum over the group at `path` below the mount and all its parents. In a container the mount may show
// that group as its root: then the path does not exist, and only the root counts.
static size_t remaining_in_groups(const GroupFiles *files, const char *root, const char *path) {
    char folder[PATH_SIZE];
    size_t left = SIZE_MAX;
    const size_t mount = strlen(root) + strlen(files->mount);
    if (snprintf(folder, sizeof(folder), "%s%s%s", root, files->mount, path) >= (int)sizeof(folder))
        return left;
    for (;;) {
        left = min_size(left, remaining_in_group(files, folder));
        char *slash = strrchr(folder, '/');
        if (strlen(folder) <= mount || slash == NULL || (size_t)(slash - folder) < mount) return left;
        *slash = '\0';
    }
}

// Returns 1 if a list of controllers such as "cpu,memory" contains memory.
static int lists_memory(const char *list) {
    for (; *list != '\0'; list += strcspn(list, ",") + (list[strcspn(list, ",")] == ','))
        if (strcspn(list, ",") == 6 && strncmp(list, "memory", 6) == 0) return 1;
    return 0;
}

// /proc/self/cgroup has a line "number:controllers:path" for each hierarchy; that of version 2 is "0::path".
static size_t remaining_in_control_groups(const char *root) {
    char path[PATH_SIZE], line[LINE_SIZE];
    size_t left = SIZE_MAX;
    snprintf(path, sizeof(path), "%s/proc/self/cgroup", root);
    FILE *file = fopen(path, "re");
    while (file != NULL && fgets(line, sizeof(line), file) != NULL) {
        line[strcspn(line, "\n")] = '\0';
        char *controllers = strchr(line, ':'), *group = controllers ? strchr(controllers + 1, ':') : NULL;
        if (group == NULL) continue;
        *controllers++ = '\0';
        *group++ = '\0';
        if (*controllers == '\0')
            left = min_size(left, remaining_in_groups(&version2, root, group));
        else if (lists_memory(controllers))
            left = min_size(left, remaining_in_groups(&version1, root, group));
    }
    if (file != NULL) fclose(file);
    return left;
}

// ---- limits of the process --------------------------------------------------------------------------------

static size_t remaining_under_limit(int resource, const char *status, const char *key) {
    struct rlimit limit;
    if (getrlimit(resource, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return SIZE_MAX;
    return remaining((size_t)limit.rlim_cur, read_number(status, key, 1024, 0));
}

size_t host_memory_available(const char *root, int sharing) {
    char path[PATH_SIZE];
    snprintf(path, sizeof(path), "%s/proc/meminfo", root);
    const size_t all = (size_t)sysconf(_SC_PHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE);
    size_t available = min_size(read_number(path, "MemAvailable:", 1024, all),
                                remaining_in_control_groups(root));
    if (sharing > 1) available /= (size_t)sharing;
    snprintf(path, sizeof(path), "%s/proc/self/status", root);
    available = min_size(available, remaining_under_limit(RLIMIT_AS, path, "VmSize:"));
    return min_size(available, remaining_under_limit(RLIMIT_DATA, path, "VmData:"));
}

void host_memory_share_heap(void) {
#ifdef M_ARENA_MAX
    mallopt(M_ARENA_MAX, 1);
#endif
}
