// The device interface: number types, memory, streams, events. There are two implementations: the CUDA runtime (a GPU,
// or the emulator of dev/cuda_on_cpu, which provides the same calls), and the CPU, where device memory is host memory
// and every call is synchronous.
//
//     floatX      weights and activations: bf16 or fp32 on a GPU (PRECISION=), fp32 on the CPU
//     float       master weights, gradients of weights, optimizer state, statistics
//
// Copies and device_zero are queued on the stream; stream_wait or event_wait waits until they are complete. Host memory
// that a queued copy reads or writes must come from host_alloc and must not be touched until then.
#ifndef LAYERS_DEVICE_H
#define LAYERS_DEVICE_H

#include "common.h"

enum { DEVICE_ALIGNMENT = 256 }; // bytes; alignment of allocations by device_alloc and the arena

// Returns the part of `available` bytes of a GPU's memory that allocations may use: a 64th of the total is reserved for
// the runtime and the libraries.
static inline size_t device_memory_left(size_t available, size_t total) {
    return available > total / 64 ? available - total / 64 : 0;
}

#ifdef DEVICE_CUDA
#include <cuda_bf16.h>

#ifdef PRECISION_IS_FP32
typedef float floatX;
enum { DEVICE_IS_BF16 = 0 };
#else
typedef __nv_bfloat16 floatX;
enum { DEVICE_IS_BF16 = 1 };
#endif
typedef cudaStream_t Stream;
typedef cudaEvent_t Event;
enum {
    DEVICE_IS_GPU = 1,
    DEVICE_QUEUES = 1, // the host may be a step ahead of the device
};

// Selects the GPU with index `local_rank`, or GPU 0 if only one is visible, as when a launcher shows each process its
// own. Returns NULL, or a sentence that says why no GPU can be used.
static inline const char *device_open(char **argv, int local_rank) {
    (void)argv;
    int count = 0;
    cudaError_t error = cudaGetDeviceCount(&count);
    if (error == cudaErrorInsufficientDriver)
        return "this build needs an NVIDIA GPU, but no driver that is recent enough for its CUDA version was "
               "found; to train on the CPU, build with make DEVICE=cpu";
    if (error != cudaSuccess || count == 0)
        return "this build needs an NVIDIA GPU, but none was found; to train on the CPU, build with make "
               "DEVICE=cpu";
    if (count > 1 && local_rank >= count)
        return "this host has more processes than GPUs: start at most one process per GPU";
    return cudaSetDevice(count > 1 ? local_rank : 0) == cudaSuccess
               ? NULL
               : "the GPU was found but cannot be used now; nvidia-smi shows its state and who uses it";
}
// A new thread starts on GPU 0: it passes the device_current() of the main thread to device_use().
static inline int device_current(void) {
    int device;
    CHECK(cudaGetDevice(&device));
    return device;
}
static inline void device_use(int device) {
    CHECK(cudaSetDevice(device));
}
// Writes the name and properties of the device, for the banner.
static inline void device_describe(char *text, size_t size) {
    cudaDeviceProp properties;
    int device;
    CHECK(cudaGetDevice(&device));
    CHECK(cudaGetDeviceProperties(&properties, device));
    snprintf(text, size, "%.200s, sm_%d%d, %d multiprocessors", properties.name, properties.major,
             properties.minor, properties.multiProcessorCount);
}
// Sets *available to the bytes of memory that this process may still allocate, and *total to all of it. `sharing` is
// the number of processes on this host; they share its memory, but not that of a GPU.
static inline void device_memory(size_t *available, size_t *total, int sharing) {
    (void)sharing;
    CHECK(cudaMemGetInfo(available, total));
    *available = device_memory_left(*available, *total);
}

// Returns uninitialised memory, or NULL if there is not enough.
static inline void *device_alloc(size_t bytes) {
    void *pointer = NULL;
    if (cudaMalloc(&pointer, bytes > 0 ? bytes : 1) == cudaSuccess) return pointer;
    (void)cudaGetLastError();
    return NULL;
}
static inline void device_free(void *pointer) {
    CHECK(cudaFree(pointer));
}
static inline void *host_alloc(size_t bytes) {
    void *pointer = NULL;
    const cudaError_t error = cudaMallocHost(&pointer, bytes);
    if (error != cudaErrorMemoryAllocation) CHECK(error);
    return bytes > 0 ? allocated(pointer, bytes) : pointer;
}
static inline void host_free(void *pointer) {
    CHECK(cudaFreeHost(pointer));
}

static inline void device_zero(void *pointer, size_t bytes, Stream stream) {
    CHECK(cudaMemsetAsync(pointer, 0, bytes, stream));
}
static inline void copy_to_device(void *device, const void *host, size_t bytes, Stream stream) {
    CHECK(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, stream));
}
static inline void copy_on_device(void *to, const void *from, size_t bytes, Stream stream) {
    CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream));
}
static inline void copy_to_host(void *host, const void *device, size_t bytes, Stream stream) {
    CHECK(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, stream));
}

static inline Stream stream_create(void) {
    Stream stream;
    CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    return stream;
}
static inline void stream_destroy(Stream stream) {
    CHECK(cudaStreamDestroy(stream));
}
static inline void stream_wait(Stream stream) {
    CHECK(cudaStreamSynchronize(stream));
}

static inline Event event_create(void) {
    Event event;
    CHECK(cudaEventCreate(&event));
    return event;
}
static inline void event_destroy(Event event) {
    CHECK(cudaEventDestroy(event));
}
static inline void event_record(Event *event, Stream stream) {
    CHECK(cudaEventRecord(*event, stream));
}
static inline void event_wait(Event event) {
    CHECK(cudaEventSynchronize(event));
}
// Seconds between two events that have been waited for.
static inline double event_seconds(Event from, Event to) {
    float milliseconds = 0;
    CHECK(cudaEventElapsedTime(&milliseconds, from, to));
    return milliseconds * 1e-3;
}

// Returns device memory in a form that the host can read and write: a copy, or on the CPU the memory itself.
// host_return releases it and, if `changed`, first copies the contents back to the device.
static inline void *host_borrow(const void *device, size_t bytes) {
    void *host = allocated(malloc(bytes), bytes);
    CHECK(cudaDeviceSynchronize());
    CHECK(cudaMemcpy(host, device, bytes, cudaMemcpyDeviceToHost));
    return host;
}
static inline void host_return(void *host, void *device, size_t bytes, int changed) {
    if (changed) {
        CHECK(cudaMemcpy(device, host, bytes, cudaMemcpyHostToDevice));
        CHECK(cudaDeviceSynchronize()); // the copy may still be in flight, and streams do not wait for it
    }
    free(host);
}
#else

#include <omp.h>
#include <time.h>
#include <unistd.h>
#include "host_memory.h"
#include "simd_cpu.h"

typedef float floatX;
typedef int Stream;
typedef double Event; // seconds
enum { DEVICE_IS_GPU = 0, DEVICE_IS_BF16 = 0, DEVICE_QUEUES = 0 };

// While libgomp's threads wait for each other they spin, by default for milliseconds, which makes a step up to five
// times slower when other programs run on the machine (dev/PERFORMANCE.md). The library reads its limit before main, so
// the program sets the limit and executes itself again. If that fails, it continues with the default.
static inline const char *device_open(char **argv, int local_rank) {
    (void)local_rank;
    if (getenv("GOMP_SPINCOUNT") == NULL && getenv("OMP_WAIT_POLICY") == NULL) {
        setenv("GOMP_SPINCOUNT", "1000", 1);
        execv("/proc/self/exe", argv);
    }
    return NULL;
}
static inline int device_current(void) {
    return 0;
}
static inline void device_use(int device) {
    (void)device;
}
static inline void device_describe(char *text, size_t size) {
    snprintf(text, size, "%d threads, %s", omp_get_max_threads(), SIMD_NAME);
}
static inline void device_memory(size_t *available, size_t *total, int sharing) {
    *total = (size_t)sysconf(_SC_PHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE);
    *available = host_memory_available("", sharing);
}

static inline void *device_alloc(size_t bytes) {
    return aligned_alloc(DEVICE_ALIGNMENT, (bytes + DEVICE_ALIGNMENT) / DEVICE_ALIGNMENT * DEVICE_ALIGNMENT);
}
static inline void device_free(void *pointer) {
    free(pointer);
}
static inline void *host_alloc(size_t bytes) {
    return allocated(malloc(bytes > 0 ? bytes : 1), bytes);
}
static inline void host_free(void *pointer) {
    free(pointer);
}

static inline void device_zero(void *pointer, size_t bytes, Stream stream) {
    (void)stream;
    memset(pointer, 0, bytes);
}
static inline void copy_to_device(void *device, const void *host, size_t bytes, Stream stream) {
    (void)stream;
    memcpy(device, host, bytes);
}
static inline void copy_on_device(void *to, const void *from, size_t bytes, Stream stream) {
    (void)stream;
    memcpy(to, from, bytes);
}
static inline void copy_to_host(void *host, const void *device, size_t bytes, Stream stream) {
    (void)stream;
    memcpy(host, device, bytes);
}

static inline Stream stream_create(void) {
    return 0;
}
static inline void stream_destroy(Stream stream) {
    (void)stream;
}
static inline void stream_wait(Stream stream) {
    (void)stream;
}

static inline Event event_create(void) {
    return 0;
}
static inline void event_destroy(Event event) {
    (void)event;
}
static inline void event_record(Event *event, Stream stream) {
    (void)stream;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    *event = (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}
static inline void event_wait(Event event) {
    (void)event;
}
static inline double event_seconds(Event from, Event to) {
    return to - from;
}

static inline void *host_borrow(const void *device, size_t bytes) {
    (void)bytes;
    return (void *)(uintptr_t)device;
}
static inline void host_return(void *host, void *device, size_t bytes, int changed) {
    (void)host, (void)device, (void)bytes, (void)changed;
}
#endif
#endif
