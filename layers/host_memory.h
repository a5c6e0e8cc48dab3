// How much host memory a process can still allocate.
#ifndef LAYERS_HOST_MEMORY_H
#define LAYERS_HOST_MEMORY_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

// Returns the minimum, in bytes, of
//   - the available memory of the machine (MemAvailable of /proc/meminfo),
//   - the memory left in each control group of the process, from its own up to the root (v2: memory.max minus
//     memory.current; v1: memory.limit_in_bytes minus memory.usage_in_bytes; reclaimable file cache does not count as
//     used), both divided by `sharing`, the number of processes like this one that share them (at least 1),
//   - what the limits of the process leave (ulimit -v and -d).
// `root` is prepended to the paths /proc and /sys/fs/cgroup: "" for this machine, a folder of made-up files for tests.
// A value that cannot be read is not a limit.
size_t host_memory_available(const char *root, int sharing);

// Makes all threads share one heap, so that none reserves 64 MB of address space (which `ulimit -v` counts) of its own.
// Must be called before any thread is started.
void host_memory_share_heap(void);

#ifdef __cplusplus
}
#endif
#endif
