// How much memory of the host a process can still have.
#ifndef LAYERS_HOST_MEMORY_H
#define LAYERS_HOST_MEMORY_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

// The least, in bytes, of
//   - what the machine has available (MemAvailable of /proc/meminfo),
//   - what each of the process's control groups has left, from its own up to the root (v2: memory.max less memory.current;
//     v1: memory.limit_in_bytes less memory.usage_in_bytes; files that can be dropped from memory do not count as used),
//     both divided by `sharing`, the number of processes like this one that draw on them (at least 1),
//   - what the process's own limits leave (ulimit -v and -d).
// `root` is put before the paths /proc and /sys/fs/cgroup: "" for this machine, a folder of made-up files for tests. What
// cannot be read is no limit.
size_t host_memory_available(const char *root, int sharing);

// Has each thread share one heap, so that none reserves 64 MB of address space (which `ulimit -v` counts) for its own.
// To be called before any thread is started.
void host_memory_share_heap(void);

#ifdef __cplusplus
}
#endif
#endif
