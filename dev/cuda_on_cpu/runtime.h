// The host API: memory, copies, streams, events, launches.
//
// Every call is executed immediately, in host order. Asynchrony is emulated by what the host observes:
//   - device to pinned memory: the target holds 0xff bytes until the host synchronises with the copy (its
//     stream, an event recorded after it, the device); with a seed, about half of the copies complete immediately;
//   - pinned memory to device: the source must not change before the host synchronises with the copy;
//   - cudaEventQuery returns cudaErrorNotReady once after each record.
// Wrong directions, sizes beyond an allocation and host pointers as kernel arguments end the process with a message.
// Conditions that CUDA reports as errors (too much memory, an impossible launch) are returned as these errors.
#pragma once
#include "memory.h"
#include <chrono>
#include <set>

enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorInsufficientDriver = 35,
    cudaErrorNoDevice = 100,
    cudaErrorInvalidDevice = 101,
    cudaErrorInvalidResourceHandle = 400,
    cudaErrorNotReady = 600,
    cudaErrorLaunchFailure = 719,
    cudaErrorUnknown = 999
};
enum cudaMemcpyKind {
    cudaMemcpyHostToHost,
    cudaMemcpyHostToDevice,
    cudaMemcpyDeviceToHost,
    cudaMemcpyDeviceToDevice,
    cudaMemcpyDefault
};
enum cudaFuncAttribute {
    cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
    cudaFuncAttributePreferredSharedMemoryCarveout = 9
};
enum cudaDeviceAttr {
    cudaDevAttrMaxThreadsPerBlock = 1,
    cudaDevAttrMaxSharedMemoryPerBlock = 8,
    cudaDevAttrWarpSize = 10,
    cudaDevAttrClockRate = 13,
    cudaDevAttrMultiProcessorCount = 16,
    cudaDevAttrMemoryClockRate = 36,
    cudaDevAttrGlobalMemoryBusWidth = 37,
    cudaDevAttrL2CacheSize = 38,
    cudaDevAttrMaxThreadsPerMultiProcessor = 39,
    cudaDevAttrComputeCapabilityMajor = 75,
    cudaDevAttrComputeCapabilityMinor = 76,
    cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
    cudaDevAttrMaxSharedMemoryPerBlockOptin = 97
};
enum { cudaStreamDefault = 0, cudaStreamNonBlocking = 1 };
enum { cudaEventDefault = 0, cudaEventBlockingSync = 1, cudaEventDisableTiming = 2 };
enum {
    cudaHostAllocDefault = 0,
    cudaHostAllocPortable = 1,
    cudaHostAllocMapped = 2,
    cudaHostAllocWriteCombined = 4
};

using CUstream_st = struct EmulatedStream;
using CUevent_st = struct EmulatedEvent;
using cudaStream_t = CUstream_st *;
using cudaEvent_t = CUevent_st *;
struct cudaLaunchAttribute; // none is emulated: numAttrs must be 0
struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    size_t dynamicSmemBytes;
    cudaStream_t stream;
    cudaLaunchAttribute *attrs;
    unsigned numAttrs;
};
struct cudaFuncAttributes {
    size_t sharedSizeBytes, constSizeBytes, localSizeBytes;
    int maxThreadsPerBlock, numRegs, ptxVersion, binaryVersion, maxDynamicSharedSizeBytes;
};
struct cudaDeviceProp {
    char name[256];
    size_t totalGlobalMem, sharedMemPerBlock, sharedMemPerBlockOptin, sharedMemPerMultiprocessor;
    int major, minor, warpSize, maxThreadsPerBlock, multiProcessorCount, maxThreadsPerMultiProcessor,
        l2CacheSize;
    int memoryBusWidth;
};

namespace emulation {
using Lock = std::lock_guard<std::recursive_mutex>;

inline cudaError_t last_error = cudaSuccess;
inline cudaError_t result(cudaError_t error) {
    return error ? last_error = error : error;
}

// ---- operations that the host has synchronised with -------------------------------------------------------

// For each stream, by number, the last operation that is known to be complete, with all before it.
using Progress = std::map<unsigned, uint64_t>;

inline void join(Progress &progress, const Progress &other) {
    for (auto &[stream, operation] : other) progress[stream] = std::max(progress[stream], operation);
}
} // namespace emulation

struct EmulatedStream {
    unsigned number;
    bool blocking;                 // ordered with the default stream
    emulation::Progress completes; // operations that are complete once the stream's last operation is
};
struct EmulatedEvent {
    bool timed, recorded = false, queried = false;
    emulation::Progress completes;
    std::chrono::steady_clock::time_point time;
};

namespace emulation {
struct Pending { // an asynchronous copy that the host has not synchronised with
    unsigned stream;
    uint64_t operation;
    void *target;               // device to host, else NULL
    std::vector<char> snapshot; // device to host: the data to deliver
    const void *source;         // host to device, else NULL
    size_t bytes;
    uint64_t checksum; // host to device: of the source, which must not change
    Site site;
};

struct Queue {
    uint64_t operations = 0;
    unsigned streams = 0;
    EmulatedStream default_stream{0, false, {}};
    std::set<EmulatedStream *> live;
    std::vector<Pending> pending;
    uint64_t random = seed();
};
inline Queue queue;

inline uint64_t checksum(const void *begin, size_t bytes) {
    uint64_t sum = bytes;
    for (size_t i = 0; i < bytes; i += 8) {
        uint64_t word = 0;
        memcpy(&word, static_cast<const char *>(begin) + i, std::min<size_t>(8, bytes - i));
        sum = (sum ^ word) * 0x9e3779b97f4a7c15ull;
        sum ^= sum >> 29;
    }
    return sum;
}

inline void finish(const Pending &p, Site site) {
    if (p.target)
        memcpy(p.target, p.snapshot.data(), p.bytes);
    else if (checksum(p.source, p.bytes) != p.checksum)
        fail("the host changed the source of an asynchronous copy before synchronising: %zu bytes, %s at "
             "%s:%d, noticed "
             "in %s at %s:%d",
             p.bytes, p.site.what, p.site.file, p.site.line, site.what, site.file, site.line);
}

// Completes all copies that `progress` covers.
inline void synchronize(const Progress &progress, Site site) {
    std::vector<Pending> rest;
    for (Pending &p : queue.pending) {
        auto found = progress.find(p.stream);
        if (found != progress.end() && p.operation <= found->second)
            finish(p, site);
        else
            rest.push_back(std::move(p));
    }
    queue.pending = std::move(rest);
}
inline void synchronize_all(Site site) {
    for (const Pending &p : queue.pending) finish(p, site);
    queue.pending.clear();
}

// Adds an operation to a stream. The default stream and all blocking streams wait for each other.
inline EmulatedStream &enqueue(cudaStream_t handle) {
    EmulatedStream &s = handle ? *handle : queue.default_stream;
    if (!handle)
        for (EmulatedStream *other : queue.live)
            if (other->blocking) join(s.completes, other->completes);
    if (s.blocking) join(s.completes, queue.default_stream.completes);
    s.completes[s.number] = ++queue.operations;
    return s;
}

// ---- copies -----------------------------------------------------------------------------------------------

inline const char *kind_of(const Allocation *a) {
    return !a ? "pageable host" : a->pinned ? "pinned host" : "device";
}

inline void check_range(const Allocation *a, const void *p, size_t bytes, const char *role, Site site) {
    if (a && a->offset(p) + bytes > a->bytes)
        fail("%s at %s:%d: the %s is %zu bytes at offset %td of an allocation of %zu bytes (%s at %s:%d)",
             site.what, site.file, site.line, role, bytes, a->offset(p), a->bytes, a->site.what, a->site.file,
             a->site.line);
}

inline void check_direction(const Allocation *to, const Allocation *from, cudaMemcpyKind kind, Site site) {
    static const char *const kinds[] = {"HostToHost", "HostToDevice", "DeviceToHost", "DeviceToDevice"};
    if (kind == cudaMemcpyDefault) return;
    bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    if (to_device != (to && !to->pinned))
        fail("%s at %s:%d: the target is %s memory, but the kind is %s", site.what, site.file, site.line,
             kind_of(to), kinds[kind]);
    if (from_device != (from && !from->pinned))
        fail("%s at %s:%d: the source is %s memory, but the kind is %s", site.what, site.file, site.line,
             kind_of(from), kinds[kind]);
}

// Copies immediately, after completing pending copies to the source.
inline void copy_now(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, Site site) {
    Allocation *target = find_allocation(to), *source = find_allocation(from);
    check_direction(target, source, kind, site);
    check_range(target, to, bytes, "target", site);
    check_range(source, from, bytes, "source", site);
    for (Pending &p : queue.pending)
        if (p.target && p.target < static_cast<const char *>(from) + bytes &&
            from < static_cast<char *>(p.target) + p.bytes)
            memcpy(p.target, p.snapshot.data(), p.bytes);
    Opened open_target(to), open_source(from);
    memmove(to, from, bytes);
}

inline void copy_later(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, EmulatedStream &stream,
                       Site site) {
    const Allocation *target = find_allocation(to), *source = find_allocation(from);
    bool to_pinned = target && target->pinned && source && !source->pinned;
    bool from_pinned = source && source->pinned && target && !target->pinned;
    copy_now(to, from, bytes, kind, site);
    if (!bytes || (!to_pinned && !from_pinned)) return; // copies of pageable memory are synchronous
    Pending p{stream.number, stream.completes[stream.number], nullptr, {}, nullptr, bytes, 0, site};
    if (from_pinned) {
        p.source = from, p.checksum = checksum(from, bytes);
    } else {
        if (seed() && next_random(queue.random) % 2) return;
        p.target = to, p.snapshot.assign(static_cast<char *>(to), static_cast<char *>(to) + bytes);
        memset(to, 0xff, bytes);
    }
    queue.pending.push_back(std::move(p));
}

inline void set_memory(void *p, int value, size_t bytes, Site site) {
    Allocation *a = find_allocation(p);
    if (!a && bytes)
        fail("%s at %s:%d: the target %p is pageable host memory", site.what, site.file, site.line, p);
    check_range(a, p, bytes, "target", site);
    Opened opened(p);
    if (bytes) memset(p, value, bytes);
}

inline cudaError_t allocate_to(void **p, size_t bytes, bool pinned, Site site) {
    Lock lock(memory.mutex);
    prepare_for_faults();
    *p = nullptr;
    if (bytes == 0) return cudaSuccess;
    *p = allocate(bytes, pinned, site);
    return result(*p ? cudaSuccess : cudaErrorMemoryAllocation);
}
inline cudaError_t free_synchronously(void *p, bool pinned, Site site) {
    Lock lock(memory.mutex);
    synchronize_all(site);
    if (p) release_memory(p, pinned, site);
    return cudaSuccess;
}

// ---- launches ---------------------------------------------------------------------------------------------

constexpr size_t l2_cache_size = 128 << 10; // small, so that small tests too exceed it

// Returns the maximum shared memory of a block. The environment is read each time, so that a program can emulate
// several GPUs.
inline size_t shared_memory_of_block() {
    const char *text = getenv("CUDA_EMULATION_SHARED");
    return text ? std::min(size_t(strtoull(text, nullptr, 10)), max_shared) : max_shared;
}

constexpr size_t default_dynamic_shared = 48 << 10;
inline std::map<const void *, size_t> shared_limits; // set by cudaFuncSetAttribute

inline size_t shared_limit(const void *kernel) {
    auto found = shared_limits.find(kernel);
    return std::min(found == shared_limits.end() ? default_dynamic_shared : found->second,
                    shared_memory_of_block());
}

inline bool launch_is_possible(dim3 grid, dim3 block) {
    if (!grid.x || !grid.y || !grid.z || grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535)
        return false;
    return block.x && block.y && block.z && block.x <= 1024 && block.y <= 1024 && block.z <= 64 &&
           uint64_t(block.x) * block.y * block.z <= max_threads;
}

template <class T> void check_argument(const T &argument, int number, const dim3 &grid, const void *kernel) {
    if constexpr (std::is_pointer_v<T>) {
        const void *p = reinterpret_cast<const void *>(argument);
        Allocation *a = find_allocation(p);
        if (a) open(*a);
        if (!p || a) return;
        complain("argument %d of the kernel launched at %s:%d is host memory, or freed (%p)", number,
                 grid.file, grid.line, p);
        print_source_of(reinterpret_cast<uintptr_t>(kernel));
        abort();
    }
    (void)argument, (void)number, (void)grid, (void)kernel;
}

template <class... P> struct Call {
    void (*kernel)(P...);
    std::tuple<P...> arguments;
    static void run(const void *call) {
        auto *c = static_cast<const Call *>(call);
        std::apply(c->kernel, c->arguments);
    }
    void check(const dim3 &grid) const {
        std::apply(
            [&](const P &...argument) {
                int number = 0;
                (check_argument(argument, ++number, grid, reinterpret_cast<const void *>(kernel)), ...);
                (void)number;
            },
            arguments);
    }
};
} // namespace emulation

template <class... P, class... A>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t *config, void (*kernel)(P...), A &&...arguments) {
    emulation::Lock lock(emulation::memory.mutex);
    const dim3 &grid = config->gridDim, &block = config->blockDim;
    if (emulation::in_kernel()) emulation::fail("a kernel launches a kernel");
    if (config->numAttrs)
        emulation::fail("launch attributes are not emulated (launch at %s:%d)", grid.file, grid.line);
    if (!emulation::launch_is_possible(grid, block)) return emulation::result(cudaErrorInvalidConfiguration);
    if (config->dynamicSmemBytes > emulation::shared_limit(reinterpret_cast<const void *>(kernel)))
        return emulation::result(cudaErrorInvalidValue);
    emulation::Call<P...> call{kernel, std::tuple<P...>(std::forward<A>(arguments)...)};
    emulation::enqueue(config->stream);
    emulation::prepare_for_faults();
    call.check(grid);
    emulation::run_grid(grid, block, config->dynamicSmemBytes, call.run, &call);
    char who[300];
    snprintf(who, sizeof who, "the kernel launched at %s:%d", grid.file, grid.line);
    emulation::close_all(who);
    return cudaSuccess;
}

template <class K> cudaError_t cudaFuncSetAttribute(K *kernel, cudaFuncAttribute attribute, int value) {
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
    if (value < 0 || size_t(value) > emulation::shared_memory_of_block())
        return emulation::result(cudaErrorInvalidValue);
    emulation::Lock lock(emulation::memory.mutex);
    emulation::shared_limits[reinterpret_cast<const void *>(kernel)] = size_t(value);
    return cudaSuccess;
}
template <class K> cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *attributes, K *kernel) {
    size_t dynamic = emulation::shared_limit(reinterpret_cast<const void *>(kernel));
    *attributes = {0, 0, 0, int(emulation::max_threads), 0, 90, 90, int(dynamic)};
    return cudaSuccess;
}
template <class K>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, K *, int threads,
                                                          size_t dynamic_bytes) {
    size_t by_shared = (emulation::shared_memory_of_block() + (1 << 10)) / (dynamic_bytes + (1 << 10)),
           by_threads = 2048 / emulation::round_up(size_t(threads), 32);
    *blocks = int(std::min({by_shared, by_threads, size_t(32)}));
    return cudaSuccess;
}

// ---- memory -----------------------------------------------------------------------------------------------

template <class T> cudaError_t cudaMalloc(T **p, size_t bytes, EMU_CALLER) {
    return emulation::allocate_to(reinterpret_cast<void **>(p), bytes, false, EMU_HERE("cudaMalloc"));
}
template <class T> cudaError_t cudaMallocHost(T **p, size_t bytes, unsigned = 0, EMU_CALLER) {
    return emulation::allocate_to(reinterpret_cast<void **>(p), bytes, true, EMU_HERE("cudaMallocHost"));
}
template <class T> cudaError_t cudaHostAlloc(T **p, size_t bytes, unsigned, EMU_CALLER) {
    return emulation::allocate_to(reinterpret_cast<void **>(p), bytes, true, EMU_HERE("cudaHostAlloc"));
}
inline cudaError_t cudaFree(void *p, EMU_CALLER) {
    return emulation::free_synchronously(p, false, EMU_HERE("cudaFree"));
}
inline cudaError_t cudaFreeHost(void *p, EMU_CALLER) {
    return emulation::free_synchronously(p, true, EMU_HERE("cudaFreeHost"));
}
inline cudaError_t cudaMemGetInfo(size_t *free, size_t *total) {
    emulation::Lock lock(emulation::memory.mutex);
    *total = emulation::memory_limit();
    *free = *total - emulation::memory.used;
    return cudaSuccess;
}
inline cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, EMU_CALLER) {
    emulation::Lock lock(emulation::memory.mutex);
    emulation::synchronize(emulation::enqueue(nullptr).completes, EMU_HERE("cudaMemcpy"));
    emulation::copy_now(to, from, bytes, kind, EMU_HERE("cudaMemcpy"));
    return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind,
                                   cudaStream_t stream = nullptr, EMU_CALLER) {
    emulation::Lock lock(emulation::memory.mutex);
    emulation::copy_later(to, from, bytes, kind, emulation::enqueue(stream), EMU_HERE("cudaMemcpyAsync"));
    return cudaSuccess;
}
inline cudaError_t cudaMemset(void *p, int value, size_t bytes, EMU_CALLER) {
    emulation::Lock lock(emulation::memory.mutex);
    emulation::enqueue(nullptr);
    emulation::set_memory(p, value, bytes, EMU_HERE("cudaMemset"));
    return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t stream = nullptr,
                                   EMU_CALLER) {
    emulation::Lock lock(emulation::memory.mutex);
    emulation::enqueue(stream);
    emulation::set_memory(p, value, bytes, EMU_HERE("cudaMemsetAsync"));
    return cudaSuccess;
}
// __device__ and __constant__ variables are ordinary variables here.
template <class T>
cudaError_t cudaMemcpyToSymbol(T &symbol, const void *from, size_t bytes, size_t offset = 0,
                               cudaMemcpyKind = cudaMemcpyHostToDevice) {
    return memcpy(reinterpret_cast<char *>(&symbol) + offset, from, bytes), cudaSuccess;
}
template <class T>
cudaError_t cudaMemcpyFromSymbol(void *to, const T &symbol, size_t bytes, size_t offset = 0,
                                 cudaMemcpyKind = cudaMemcpyDeviceToHost) {
    return memcpy(to, reinterpret_cast<const char *>(&symbol) + offset, bytes), cudaSuccess;
}

// ---- streams and events -----------------------------------------------------------------------------------

inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) {
    emulation::Lock lock(emulation::memory.mutex);
    *stream = new EmulatedStream{++emulation::queue.streams, !(flags & cudaStreamNonBlocking), {}};
    emulation::queue.live.insert(*stream);
    return cudaSuccess;
}
inline cudaError_t cudaStreamCreate(cudaStream_t *stream) {
    return cudaStreamCreateWithFlags(stream, cudaStreamDefault);
}
inline cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    emulation::Lock lock(emulation::memory.mutex);
    if (!emulation::queue.live.erase(stream)) return emulation::result(cudaErrorInvalidResourceHandle);
    delete stream;
    return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t stream, EMU_CALLER) {
    emulation::Lock lock(emulation::memory.mutex);
    emulation::synchronize(emulation::enqueue(stream).completes, EMU_HERE("cudaStreamSynchronize"));
    return cudaSuccess;
}
inline cudaError_t cudaDeviceSynchronize(EMU_CALLER) {
    emulation::Lock lock(emulation::memory.mutex);
    emulation::synchronize_all(EMU_HERE("cudaDeviceSynchronize"));
    return cudaSuccess;
}
inline cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned = 0) {
    emulation::Lock lock(emulation::memory.mutex);
    emulation::join(emulation::enqueue(stream).completes, event->completes);
    return cudaSuccess;
}
inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) {
    *event = new EmulatedEvent{!(flags & cudaEventDisableTiming), false, false, {}, {}};
    return cudaSuccess;
}
inline cudaError_t cudaEventCreate(cudaEvent_t *event) {
    return cudaEventCreateWithFlags(event, cudaEventDefault);
}
inline cudaError_t cudaEventDestroy(cudaEvent_t event) {
    return delete event, cudaSuccess;
}
inline cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream = nullptr) {
    emulation::Lock lock(emulation::memory.mutex);
    event->completes = emulation::enqueue(stream).completes;
    event->recorded = true, event->queried = false;
    event->time = std::chrono::steady_clock::now();
    return cudaSuccess;
}
inline cudaError_t cudaEventSynchronize(cudaEvent_t event, EMU_CALLER) {
    emulation::Lock lock(emulation::memory.mutex);
    emulation::synchronize(event->completes, EMU_HERE("cudaEventSynchronize"));
    return cudaSuccess;
}
// "Not ready" is not an error that cudaGetLastError returns later.
inline cudaError_t cudaEventQuery(cudaEvent_t event, EMU_CALLER) {
    emulation::Lock lock(emulation::memory.mutex);
    if (event->recorded && !std::exchange(event->queried, true)) return cudaErrorNotReady;
    emulation::synchronize(event->completes, EMU_HERE("cudaEventQuery"));
    return cudaSuccess;
}
inline cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t start, cudaEvent_t end) {
    if (!start->recorded || !end->recorded || !start->timed || !end->timed)
        return emulation::result(cudaErrorInvalidResourceHandle);
    *milliseconds = std::chrono::duration<float, std::milli>(end->time - start->time).count();
    return cudaSuccess;
}

// ---- devices and errors -----------------------------------------------------------------------------------

inline cudaError_t cudaGetDeviceCount(int *count) {
    return *count = 1, cudaSuccess;
}
inline cudaError_t cudaGetDevice(int *device) {
    return *device = 0, cudaSuccess;
}
inline cudaError_t cudaSetDevice(int device) {
    return emulation::result(device ? cudaErrorInvalidDevice : cudaSuccess);
}
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int device) {
    if (device) return emulation::result(cudaErrorInvalidDevice);
    *p = {"CUDA emulation on the CPU",
          emulation::memory_limit(),
          48 << 10,
          emulation::shared_memory_of_block(),
          emulation::shared_memory_of_block() + (1 << 10),
          9,
          0,
          32,
          int(emulation::max_threads),
          2,
          2048,
          int(emulation::l2_cache_size),
          64};
    return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int device) {
    if (device) return emulation::result(cudaErrorInvalidDevice);
    switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
        *value = int(emulation::max_threads);
        break;
    case cudaDevAttrMaxSharedMemoryPerBlock:
        *value = 48 << 10;
        break;
    case cudaDevAttrWarpSize:
        *value = 32;
        break;
    case cudaDevAttrClockRate:
        *value = 1000000;
        break;
    case cudaDevAttrMultiProcessorCount:
        *value = 2;
        break;
    case cudaDevAttrMemoryClockRate:
        *value = 1000000;
        break;
    case cudaDevAttrGlobalMemoryBusWidth:
        *value = 64;
        break;
    case cudaDevAttrL2CacheSize:
        *value = int(emulation::l2_cache_size);
        break;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
        *value = 2048;
        break;
    case cudaDevAttrComputeCapabilityMajor:
        *value = 9;
        break;
    case cudaDevAttrComputeCapabilityMinor:
        *value = 0;
        break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
        *value = int(emulation::shared_memory_of_block()) + (1 << 10);
        break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
        *value = int(emulation::shared_memory_of_block());
        break;
    default:
        return emulation::result(cudaErrorInvalidValue);
    }
    return cudaSuccess;
}
inline cudaError_t cudaRuntimeGetVersion(int *version) {
    return *version = 13000, cudaSuccess;
}
inline cudaError_t cudaDriverGetVersion(int *version) {
    return *version = 13000, cudaSuccess;
}
inline cudaError_t cudaProfilerStart() {
    return cudaSuccess;
}
inline cudaError_t cudaProfilerStop() {
    return cudaSuccess;
}

inline cudaError_t cudaGetLastError() {
    return std::exchange(emulation::last_error, cudaSuccess);
}
inline cudaError_t cudaPeekAtLastError() {
    return emulation::last_error;
}

namespace emulation {
struct ErrorText {
    cudaError_t error;
    const char *name, *text;
};
inline const ErrorText &error_text(cudaError_t error) {
    static const ErrorText texts[] = {
        {cudaSuccess, "cudaSuccess", "no error"},
        {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
        {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
        {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration", "invalid configuration argument"},
        {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
        {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
        {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
    }; // the emulator never returns the other errors, which exist for host code that mentions them
    static const ErrorText other = {cudaErrorUnknown, "cudaErrorUnknown", "unknown error"};
    for (const ErrorText &t : texts)
        if (t.error == error) return t;
    return other;
}
} // namespace emulation
inline const char *cudaGetErrorName(cudaError_t error) {
    return emulation::error_text(error).name;
}
inline const char *cudaGetErrorString(cudaError_t error) {
    return emulation::error_text(error).text;
}
