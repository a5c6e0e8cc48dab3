// Tests the CUDA emulator: correct kernels must run, and a mistake that is planted in a kernel or in host code must be
// found, with a message that names the right source line or thread.
//
// Every mistake is a template parameter of a kernel or host function: <WRONG> has it, <RIGHT> is correct. Both run in
// child processes with several CUDA_EMULATION_SEEDs, and their output is captured. Which builds must find a mistake is
// given by `Finder`. The test is only for g++ and clang++ with dev/cuda_on_cpu; the program reads its own source to
// find the lines that are marked with [name].
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <string>
#include <sys/wait.h>
#include <vector>

#include "layers/ptx.h"
#include "test/harness/test.h"

#ifdef EMU_ASAN
static const bool ASAN = true;
#else
static const bool ASAN = false;
#endif
#ifdef EMU_TSAN
static const bool TSAN = true;
#else
static const bool TSAN = false;
#endif
#ifdef __clang__
static const bool CLANG = true;
#else
static const bool CLANG = false;
#endif
// g++ has no macro for UndefinedBehaviorSanitizer; clang has, and more than one runtime with these functions.
extern "C" void __ubsan_handle_out_of_bounds() __attribute__((weak));
extern "C" void __ubsan_handle_out_of_bounds_abort() __attribute__((weak));
#if __has_feature(undefined_behavior_sanitizer)
static bool ubsan() {
    return true;
}
#elif defined(__clang__)
static bool ubsan() {
    return false;
}
#else
static bool ubsan() {
    return __ubsan_handle_out_of_bounds || __ubsan_handle_out_of_bounds_abort;
}
#endif

enum Version { RIGHT, WRONG };
enum { THREADS = 128 };

// ---- launching and memory ---------------------------------------------------------------------------------

template <class... P, class... A>
static cudaError_t launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes,
                          A &&...arguments) {
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    return cudaLaunchKernelEx(&config, kernel, static_cast<A &&>(arguments)...);
}

template <class T> static T *device_array(size_t n) {
    T *p;
    if (cudaMalloc(&p, n * sizeof(T)) != cudaSuccess) exit(2);
    return p;
}

template <class T> static std::vector<T> download(const T *p, size_t n) {
    std::vector<T> host(n);
    cudaMemcpy(host.data(), p, n * sizeof(T), cudaMemcpyDeviceToHost);
    return host;
}

// in[i] = i + 1, out[i] = 0.
struct Arrays {
    float *in = device_array<float>(THREADS), *out = device_array<float>(THREADS);
    Arrays() {
        std::vector<float> values(THREADS);
        for (int i = 0; i < THREADS; i++) values[i] = float(i + 1);
        cudaMemcpy(in, values.data(), THREADS * sizeof(float), cudaMemcpyHostToDevice);
        cudaMemset(out, 0, THREADS * sizeof(float));
    }
    ~Arrays() {
        cudaFree(in);
        cudaFree(out);
    }
};

// Returns 0, or 1 with a message if any out[i] differs from wanted(i).
template <class Wanted> static int compare(const float *out, Wanted wanted) {
    std::vector<float> got = download(out, THREADS);
    for (int i = 0; i < THREADS; i++)
        if (!(got[i] == wanted(i))) return printf("out[%d] = %g, not %g\n", i, got[i], wanted(i)), 1;
    return 0;
}

using Kernel = void (*)(float *, const float *);
template <class Wanted> static int run(Kernel kernel, dim3 grid, size_t shared_bytes, Wanted wanted) {
    Arrays a;
    if (launch(kernel, grid, THREADS, shared_bytes, a.out, a.in) != cudaSuccess)
        return printf("no launch\n"), 2;
    return compare(a.out, wanted);
}

// ---- mistakes in synchronisation --------------------------------------------------------------------------

template <Version version> __global__ void missing_barrier(float *out, const float *in) {
    __shared__ float s[THREADS];
    s[threadIdx.x] = in[threadIdx.x]; // [missing_barrier write]
    if (version == RIGHT) __syncthreads();
    out[threadIdx.x] = s[(threadIdx.x + 96) % THREADS]; // [missing_barrier read]
}
template <Version version> int case_missing_barrier() {
    return run(missing_barrier<version>, 1, 0, [](int i) { return float((i + 96) % THREADS + 1); });
}

template <Version version> __global__ void missing_syncwarp(float *out, const float *in) {
    __shared__ float s[THREADS];
    s[threadIdx.x] = in[threadIdx.x]; // [missing_syncwarp write]
    if (version == RIGHT) __syncwarp();
    out[threadIdx.x] = s[threadIdx.x ^ 1]; // [missing_syncwarp read]
}
template <Version version> int case_missing_syncwarp() {
    return run(missing_syncwarp<version>, 1, 0, [](int i) { return float((i ^ 1) + 1); });
}

template <Version version> __global__ void shuffle_as_fence(float *out, const float *in) {
    __shared__ float s[THREADS];
    s[threadIdx.x] = in[threadIdx.x]; // [shuffle_as_fence write]
    float x = __shfl_xor_sync(0xffffffffu, in[threadIdx.x], 1);
    if (version == RIGHT) __syncwarp();
    out[threadIdx.x] = x + s[threadIdx.x ^ 1]; // [shuffle_as_fence read]
}
template <Version version> int case_shuffle_as_fence() {
    return run(shuffle_as_fence<version>, 1, 0, [](int i) { return 2 * float((i ^ 1) + 1); });
}

template <Version version> __global__ void reused_too_early(float *out, const float *in) {
    __shared__ float s[THREADS];
    float sum = 0;
    for (int i = 0; i < 4; i++) {
        s[threadIdx.x] = in[threadIdx.x] + i; // [reused_too_early write]
        __syncthreads();
        sum += s[(threadIdx.x + 40) % THREADS]; // [reused_too_early read]
        if (version == RIGHT) __syncthreads();
    }
    out[threadIdx.x] = sum;
}
template <Version version> int case_reused_too_early() {
    return run(reused_too_early<version>, 1, 0, [](int i) { return 4 * float((i + 40) % THREADS + 1) + 6; });
}

template <Version version> __global__ void divergent_barrier(float *out, const float *in) {
    if (version == WRONG && threadIdx.x < 64)
        __syncthreads(); // [divergent_barrier one]
    else
        __syncthreads(); // [divergent_barrier other]
    out[threadIdx.x] = in[threadIdx.x];
}
template <Version version> int case_divergent_barrier() {
    return run(divergent_barrier<version>, 1, 0, [](int i) { return float(i + 1); });
}

template <Version version> __global__ void lost_barrier(float *out, const float *in) {
    if (version == RIGHT || threadIdx.x != 5)
        __syncwarp(); // [lost_barrier many]
    else
        __syncthreads(); // [lost_barrier one]
    out[threadIdx.x] = in[threadIdx.x];
}
template <Version version> int case_lost_barrier() {
    return run(lost_barrier<version>, 1, 0, [](int i) { return float(i + 1); });
}

template <Version version> __global__ void endless_wait(float *out, const float *in) {
    __shared__ int flag;
    if (threadIdx.x == 0) flag = 0;
    __syncthreads();
    if (threadIdx.x == 0 && version == RIGHT) atomicExch(&flag, 1);
    while (atomicAdd(&flag, 0) == 0) __nanosleep(20); // [endless_wait]
    out[threadIdx.x] = in[threadIdx.x];
}
template <Version version> int case_endless_wait() {
    return run(endless_wait<version>, 1, 0, [](int i) { return float(i + 1); });
}

template <Version version> __global__ void inactive_lane(float *out, const float *in) {
    const int source = version == RIGHT ? 12 : 20;
    out[threadIdx.x] = 0;
    if (threadIdx.x % 32 < 16)
        out[threadIdx.x] = __shfl_sync(0x0000ffffu, in[threadIdx.x], source); // [inactive_lane]
}
template <Version version> int case_inactive_lane() {
    return run(inactive_lane<version>, 1, 0,
               [](int i) { return i % 32 < 16 ? float(i / 32 * 32 + 13) : 0.0f; });
}

template <Version version> __global__ void lane_not_in_mask(float *out, const float *in) {
    const unsigned mask = version == RIGHT ? 0xffffffffu : 0x7fffffffu;
    out[threadIdx.x] = in[threadIdx.x] + float(__popc(__ballot_sync(mask, 1))); // [lane_not_in_mask]
}
template <Version version> int case_lane_not_in_mask() {
    return run(lane_not_in_mask<version>, 1, 0, [](int i) { return float(i + 33); });
}

// ---- mistakes between blocks ------------------------------------------------------------------------------

template <Version version> __global__ void race_of_blocks(float *out, const float *in) {
    if (version == WRONG || blockIdx.x == 1)
        out[threadIdx.x] = in[threadIdx.x] + float(blockIdx.x); // [race_of_blocks]
}
template <Version version> int case_race_of_blocks() {
    return run(race_of_blocks<version>, 4, 0, [](int i) { return i + (version == WRONG ? 4.0f : 2.0f); });
}

// Adding to the same counter does not order blocks.
template <Version version> __global__ void race_beside_atomic(float *out, const float *in) {
    if (threadIdx.x != 0) return;
    atomicAdd(out, in[0]);
    if (version == WRONG) out[1 + blockIdx.x / 2] = 1; // [race_beside_atomic]
    if (version == RIGHT) out[1 + blockIdx.x] = 1;
}
template <Version version> int case_race_beside_atomic() {
    return run(race_beside_atomic<version>, 4, 0,
               [](int i) { return i == 0 ? 4.0f : float(i <= (version == WRONG ? 2 : 4)); });
}

// The last block to arrive adds up what all blocks have written.
template <Version version> __global__ void missing_threadfence(float *out, const float *in) {
    __shared__ bool last;
    if (threadIdx.x == 0) {
        out[1 + blockIdx.x] = in[blockIdx.x] * 2; // [missing_threadfence write]
        if (version == RIGHT) __threadfence();
        last = atomicAdd(reinterpret_cast<int *>(out) + 100, 1) == int(gridDim.x) - 1;
    }
    __syncthreads();
    if (!last || threadIdx.x != 0) return;
    float sum = 0;
    for (unsigned i = 0; i < gridDim.x; i++) sum += out[1 + i]; // [missing_threadfence read]
    out[0] = sum;
    reinterpret_cast<int *>(out)[100] = 0;
}
template <Version version> int case_missing_threadfence() {
    return run(missing_threadfence<version>, 4, 0, [](int i) {
        return i == 0 ? 20.0f : i <= 4 ? 2.0f * float(i) : 0.0f;
    });
}

// ---- mistakes with asynchronous copies to shared memory ---------------------------------------------------

template <Version version> __global__ void waited_too_late(float *out, const float *in) {
    DYNAMIC_SHARED(float, s);
    if (threadIdx.x < 32) cp_async_16(s + threadIdx.x * 4, in + threadIdx.x * 4);
    cp_async_commit();
    cp_async_wait<version == RIGHT ? 0 : 1>();
    __syncthreads();
    out[threadIdx.x] = s[threadIdx.x]; // [waited_too_late read]
    cp_async_wait<0>();
}
template <Version version> int case_waited_too_late() {
    return run(waited_too_late<version>, 1, 512, [](int i) { return float(i + 1); });
}

template <Version version> __global__ void copied_too_early(float *out, const float *in) {
    DYNAMIC_SHARED(float, s);
    float sum = 0;
    for (int i = 0; i < 2; i++) {
        if (threadIdx.x < 32) cp_async_16(s + threadIdx.x * 4, in + (threadIdx.x * 4 + i * 64) % THREADS);
        cp_async_commit();
        cp_async_wait<0>();
        __syncthreads();
        sum += s[THREADS - 1 - threadIdx.x]; // [copied_too_early read]
        if (version == RIGHT) __syncthreads();
    }
    out[threadIdx.x] = sum;
}
template <Version version> int case_copied_too_early() {
    return run(copied_too_early<version>, 1, 512,
               [](int i) { return float(THREADS - i) + float((THREADS - 1 - i + 64) % THREADS + 1); });
}

template <Version version> __global__ void misaligned_cp_async(float *out, const float *in) {
    DYNAMIC_SHARED(float, s);
    if (threadIdx.x == 0) cp_async_16(s, in + (version == RIGHT ? 4 : 1)); // [misaligned_cp_async]
    cp_async_commit();
    cp_async_wait<0>();
    out[threadIdx.x] = in[threadIdx.x];
}
template <Version version> int case_misaligned_cp_async() {
    return run(misaligned_cp_async<version>, 1, 512, [](int i) { return float(i + 1); });
}

template <Version version> __global__ void misaligned_ldmatrix(float *out, const float *in) {
    DYNAMIC_SHARED(float, s);
    s[threadIdx.x] = in[threadIdx.x];
    __syncthreads();
    uint32_t r[4];
    ldmatrix_x4(r, s + threadIdx.x % 16 * 4 + (version == RIGHT ? 0 : 2)); // [misaligned_ldmatrix]
    out[threadIdx.x] = __uint_as_float(r[0]);
}
template <Version version> int case_misaligned_ldmatrix() {
    return run(misaligned_ldmatrix<version>, 1, 512, [](int i) { return float(i % 32 + 1); });
}

template <Version version> __global__ void ldmatrix_of_global(float *out, const float *in) {
    DYNAMIC_SHARED(float, s);
    s[threadIdx.x] = in[threadIdx.x];
    __syncthreads();
    uint32_t r[4];
    ldmatrix_x4(r, (version == RIGHT ? s : in) + threadIdx.x % 16 * 4); // [ldmatrix_of_global]
    out[threadIdx.x] = __uint_as_float(r[0]);
}
template <Version version> int case_ldmatrix_of_global() {
    return run(ldmatrix_of_global<version>, 1, 512, [](int i) { return float(i % 32 + 1); });
}

template <Version version> __global__ void never_waited(float *out, const float *in) {
    DYNAMIC_SHARED(float, s);
    if (threadIdx.x == 9) cp_async_16(s, in);
    cp_async_commit();
    if (version == RIGHT) cp_async_wait<0>();
    out[threadIdx.x] = in[threadIdx.x];
}
template <Version version> int case_never_waited() {
    return run(never_waited<version>, 1, 512, [](int i) { return float(i + 1); });
}

// ---- access out of bounds ---------------------------------------------------------------------------------

template <Version version> __global__ void static_overflow(float *out, const float *in) {
    __shared__ float s[THREADS];
    const unsigned i = threadIdx.x + (version == WRONG);
    s[i] = in[threadIdx.x]; // [static_overflow]
    out[threadIdx.x] = s[i];
}
template <Version version> int case_static_overflow() {
    return run(static_overflow<version>, 1, 0, [](int i) { return float(i + 1); });
}

template <Version version> __global__ void dynamic_overflow(float *out, const float *in) {
    DYNAMIC_SHARED(float, s);
    s[threadIdx.x + (version == WRONG)] = in[threadIdx.x]; // [dynamic_overflow]
    __syncthreads();
    out[threadIdx.x] = s[threadIdx.x + (version == WRONG)];
}
template <Version version> int case_dynamic_overflow() {
    return run(dynamic_overflow<version>, 1, 512, [](int i) { return float(i + 1); });
}

template <Version version> __global__ void dynamic_far_overflow(float *out, const float *in) {
    DYNAMIC_SHARED(float, s);
    s[threadIdx.x] = in[threadIdx.x];
    if (version == WRONG && threadIdx.x == 77) s[256] = 1; // [dynamic_far_overflow]
    out[threadIdx.x] = s[threadIdx.x];
}
template <Version version> int case_dynamic_far_overflow() {
    return run(dynamic_far_overflow<version>, 1, 512, [](int i) { return float(i + 1); });
}

template <Version version> __global__ void global_overflow(float *out, const float *in) {
    out[threadIdx.x + (version == WRONG)] = in[threadIdx.x]; // [global_overflow]
}
template <Version version> int case_global_overflow() {
    return run(global_overflow<version>, 1, 0, [](int i) { return float(i + 1); });
}

// If a size is not a multiple of CUDA's alignment, the bytes after the end are on an accessible page.
template <Version version> __global__ void tail(float *p, bool write) {
    if (write) p[version == WRONG ? 33 : 32] = 1;     // [tail write]
    if (!write) p[0] = p[version == WRONG ? 33 : 32]; // [tail read]
}
template <Version version> int case_tail_write() {
    float *p = device_array<float>(33); // [tail allocation]
    launch(tail<version>, 1, 1, 0, p, true);
    return 0;
}
template <Version version> int case_tail_read() {
    launch(tail<version>, 1, 1, 0, device_array<float>(33), false);
    return 0;
}

template <Version version> __global__ void null_pointer(float *out, const float *in, const float *bias) {
    out[threadIdx.x] = in[threadIdx.x] + (version == WRONG ? bias[threadIdx.x] : 0); // [null_pointer]
}
template <Version version> int case_null_pointer() {
    Arrays a;
    launch(null_pointer<version>, 1, THREADS, 0, a.out, a.in, nullptr);
    return compare(a.out, [](int i) { return float(i + 1); });
}

template <Version version> __global__ void stack_overflow(float *out, const float *in) {
    volatile char local[version == WRONG ? emulation::stack_bytes + 8192 : 1024];
    local[threadIdx.x] = 1;
    out[threadIdx.x] = in[threadIdx.x] + float(local[threadIdx.x]);
}
template <Version version> int case_stack_overflow() {
    return run(stack_overflow<version>, 1, 0, [](int i) { return float(i + 2); });
}

template <Version version> __global__ void misaligned_vector(float *out, const float *in) {
    const float4 *v = reinterpret_cast<const float4 *>(in + (version == WRONG));
    out[threadIdx.x] = v->x + v->y + v->z + v->w; // [misaligned_vector]
}
template <Version version> int case_misaligned_vector() {
    return run(misaligned_vector<version>, 1, 0, [](int) { return 10.0f; });
}

// ---- mistakes in host code --------------------------------------------------------------------------------

__global__ void copy_kernel(float *out, const float *in) {
    out[threadIdx.x] = in[threadIdx.x];
}

template <Version version> int case_host_reads_device() {
    Arrays a;
    float first = version == WRONG ? a.in[3] : download(a.in, 4)[3]; // [host_reads_device]
    return first != 4;
}

template <Version version> int case_host_writes_device() {
    Arrays a;
    launch(copy_kernel, 1, THREADS, 0, a.out, a.in);
    float value = 7;
    if (version == WRONG) a.out[3] = value; // [host_writes_device]
    cudaMemcpy(a.out + 3, &value, sizeof(float), cudaMemcpyHostToDevice);
    return download(a.out, 4)[3] != 7;
}

template <Version version> int case_host_pointer_to_kernel() {
    Arrays a;
    static float host[THREADS];
    launch(copy_kernel, 1, THREADS, 0, a.out, version == WRONG ? host : a.in); // [host_pointer_to_kernel]
    return compare(a.out, [](int i) { return float(i + 1); });
}

template <Version version> int case_wrong_direction() {
    Arrays a;
    float host[THREADS];
    cudaMemcpyKind kind = version == WRONG ? cudaMemcpyHostToDevice : cudaMemcpyDeviceToHost;
    cudaMemcpy(host, a.in, sizeof host, kind); // [wrong_direction]
    return host[5] != 6;
}

template <Version version> int case_copy_too_long() {
    Arrays a;
    std::vector<float> host(2 * THREADS);
    cudaMemcpy(host.data(), a.in + 1, (version == WRONG ? THREADS : 1) * sizeof(float),
               cudaMemcpyDeviceToHost); // [copy_too_long]
    return host[0] != 2;
}

struct Pinned {
    float *p;
    cudaStream_t stream;
    Pinned() {
        cudaMallocHost(&p, THREADS * sizeof(float));
        cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    }
    ~Pinned() {
        cudaStreamDestroy(stream);
        cudaFreeHost(p);
    }
};

template <Version version> int case_read_too_early() {
    Arrays a;
    Pinned pinned;
    cudaMemcpyAsync(pinned.p, a.in, THREADS * sizeof(float), cudaMemcpyDeviceToHost, pinned.stream);
    if (version == RIGHT) cudaStreamSynchronize(pinned.stream);
    float got = pinned.p[9];
    cudaStreamSynchronize(pinned.stream);
    return got != 10;
}

// Synchronising with another event is not enough.
template <Version version> int case_wrong_event() {
    Arrays a;
    Pinned pinned;
    cudaEvent_t before, after;
    cudaEventCreate(&before);
    cudaEventCreate(&after);
    cudaEventRecord(before, pinned.stream);
    cudaMemcpyAsync(pinned.p, a.in, THREADS * sizeof(float), cudaMemcpyDeviceToHost, pinned.stream);
    cudaEventRecord(after, pinned.stream);
    cudaEventSynchronize(version == WRONG ? before : after);
    float got = pinned.p[9];
    cudaDeviceSynchronize();
    cudaEventDestroy(before);
    cudaEventDestroy(after);
    return got != 10;
}

template <Version version> int case_source_changed() {
    Arrays a;
    Pinned pinned;
    for (int i = 0; i < THREADS; i++) pinned.p[i] = float(2 * i);
    const size_t bytes = THREADS * sizeof(float);
    cudaMemcpyAsync(a.in, pinned.p, bytes, cudaMemcpyHostToDevice, pinned.stream); // [source_changed]
    if (version == RIGHT) cudaStreamSynchronize(pinned.stream);
    pinned.p[100] = -1;
    cudaStreamSynchronize(pinned.stream); // [source_changed noticed]
    return download(a.in, THREADS)[100] != 200;
}

template <Version version> int case_use_after_free() {
    Arrays a;
    float *freed = device_array<float>(THREADS);
    if (version == WRONG) cudaFree(freed);
    launch(copy_kernel, 1, THREADS, 0, freed, a.in); // [use_after_free]
    if (version == RIGHT) cudaFree(freed);
    return 0;
}

template <Version version> int case_freed_twice() {
    float *p = device_array<float>(THREADS);
    if (version == WRONG) cudaFree(p);
    cudaFree(p); // [freed_twice]
    return 0;
}

// ---- the cases, and what must find each mistake -----------------------------------------------------------

enum Finder {
    ALWAYS,    // every build, with every seed, reports the message `says`
    VALUES,    // wrong values with some seed; ThreadSanitizer reports a race between the marked lines
    STALE,     // wrong values with seed 0, in every build
    RACE,      // only ThreadSanitizer
    BLOCKS,    // only g++'s ThreadSanitizer: clang's supports too few threads
    ADDRESS,   // only AddressSanitizer
    UNDEFINED, // only UndefinedBehaviorSanitizer
};
struct Case {
    const char *name;
    int (*right)(), (*wrong)();
    Finder finder;
    // Parts of the message, separated by '|', and with AddressSanitizer, if it differs; [mark] stands for file and
    // line.
    const char *says, *asan_says;
};
#define CASE(name) #name, case_##name < RIGHT>, case_##name < WRONG>
static const Case cases[] = {
    {CASE(missing_barrier), VALUES, "data race|[missing_barrier write]|[missing_barrier read]", nullptr},
    {CASE(missing_syncwarp), VALUES, "data race|[missing_syncwarp write]|[missing_syncwarp read]", nullptr},
    {CASE(shuffle_as_fence), RACE, "data race|[shuffle_as_fence write]|[shuffle_as_fence read]", nullptr},
    {CASE(reused_too_early), VALUES, "data race|[reused_too_early write]|[reused_too_early read]", nullptr},
    {CASE(divergent_barrier), ALWAYS, "divergent barrier|[divergent_barrier one]|[divergent_barrier other]",
     nullptr},
    {CASE(lost_barrier), ALWAYS,
     "deadlock in block (0,0,0)|31 thread(s), first is 0: __syncwarp|[lost_barrier many]|"
     "1 thread(s), first is 5: __syncthreads|[lost_barrier one]|96 thread(s), first is 32: (exited)",
     nullptr},
    {CASE(endless_wait), ALWAYS, "deadlock (threads spin for ever)|128 thread(s)|[endless_wait]", nullptr},
    {CASE(inactive_lane), ALWAYS,
     "__shfl_sync|[inactive_lane]|lane 0 reads lane 20|in block (0,0,0) thread (", nullptr},
    {CASE(lane_not_in_mask), ALWAYS, "__ballot_sync|[lane_not_in_mask]|lacks the calling lane|thread (",
     nullptr},
    {CASE(race_of_blocks), VALUES, "data race|[race_of_blocks]", nullptr},
    {CASE(race_beside_atomic), BLOCKS, "data race|[race_beside_atomic]", nullptr},
    {CASE(missing_threadfence), BLOCKS, "data race|[missing_threadfence write]|[missing_threadfence read]",
     nullptr},
    {CASE(waited_too_late), VALUES, "data race|[waited_too_late read]", nullptr},
    {CASE(copied_too_early), VALUES, "data race|[copied_too_early read]", nullptr},
    {CASE(misaligned_cp_async), ALWAYS, "cp.async|[misaligned_cp_async]|not aligned|thread (0,0,0)", nullptr},
    {CASE(misaligned_ldmatrix), ALWAYS, "ldmatrix.x4|[misaligned_ldmatrix]|not aligned", nullptr},
    {CASE(ldmatrix_of_global), ALWAYS, "ldmatrix.x4|[ldmatrix_of_global]|not in shared memory", nullptr},
    {CASE(never_waited), ALWAYS, "cp.async copies that it has not waited for|thread (9,0,0)", nullptr},
    {CASE(static_overflow), UNDEFINED, "index 128 out of bounds|[static_overflow]", nullptr},
    {CASE(dynamic_overflow), ALWAYS,
     "wrote out of bounds, at offset 512 of 512 bytes of dynamic|block (0,0,0)",
     "use-after-poison|[dynamic_overflow]|thread (127,0,0)"},
    {CASE(dynamic_far_overflow), ALWAYS, "offset 1024 of 512 bytes of dynamic shared memory|thread (77,0,0)",
     nullptr},
    {CASE(global_overflow), ALWAYS,
     "out of bounds|0 bytes past the end of an allocation of 512 bytes|thread (127,0,0)", nullptr},
    {CASE(tail_write), ALWAYS, "wrote out of bounds, at offset 132 of an allocation of 132 bytes",
     "use-after-poison|[tail write]"},
    {CASE(tail_read), ADDRESS, "use-after-poison|[tail read]", nullptr},
    {CASE(null_pointer), ALWAYS,
     "a kernel touched (nil), which is not device memory|in block (0,0,0) thread (",
     "null pointer|[null_pointer]"},
    {CASE(stack_overflow), ALWAYS, "stack overflow|thread (", nullptr},
    {CASE(misaligned_vector), UNDEFINED, "misaligned address|[misaligned_vector]", nullptr},
    {CASE(host_reads_device), ALWAYS,
     "the host touched device memory|12 bytes into an allocation of 512 bytes", nullptr},
    {CASE(host_writes_device), ALWAYS,
     "the host touched device memory|12 bytes into an allocation of 512 bytes", nullptr},
    {CASE(host_pointer_to_kernel), ALWAYS,
     "argument 2 of the kernel launched at|[host_pointer_to_kernel] is host memory", nullptr},
    {CASE(wrong_direction), ALWAYS, "cudaMemcpy|[wrong_direction]|the target is pageable host memory",
     nullptr},
    {CASE(copy_too_long), ALWAYS,
     "cudaMemcpy|the source is 512 bytes at offset 4 of an allocation of 512 bytes", nullptr},
    {CASE(read_too_early), STALE, "", nullptr},
    {CASE(wrong_event), STALE, "", nullptr},
    {CASE(source_changed), ALWAYS,
     "the host changed the source of an asynchronous copy|[source_changed]|[source_changed noticed]",
     nullptr},
    {CASE(use_after_free), ALWAYS, "argument 1 of the kernel launched at|[use_after_free] is host memory",
     nullptr},
    {CASE(freed_twice), ALWAYS, "cudaFree|[freed_twice]|freed twice", nullptr},
};

// ---- running them -----------------------------------------------------------------------------------------

struct Outcome {
    bool silent; // exit status 0 and no report of a sanitizer
    std::string output;
};

// Runs this program as a child process: `--case name right|wrong`.
static Outcome run_child(const char *program, const Case &c, Version version, int seed) {
    int ends[2];
    if (pipe(ends)) abort();
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], 1);
        dup2(ends[1], 2);
        close(ends[0]);
        setenv("CUDA_EMULATION_SEED", std::to_string(seed).c_str(), 1);
        setenv("TSAN_OPTIONS", "halt_on_error=1 atexit_sleep_ms=0", 1);
        setenv("ASAN_OPTIONS", "detect_leaks=0", 1);
        alarm(60);
        execl(program, program, "--case", c.name, version == RIGHT ? "right" : "wrong", nullptr);
        _exit(127);
    }
    close(ends[1]);
    Outcome outcome;
    char text[4096];
    for (ssize_t n; (n = read(ends[0], text, sizeof text)) > 0;) outcome.output.append(text, size_t(n));
    close(ends[0]);
    int status;
    waitpid(child, &status, 0);
    outcome.silent = status == 0 && outcome.output.find("runtime error") == std::string::npos;
    return outcome;
}

// Returns "test_cuda_on_cpu.cu:LINE" for the line whose comment is "// [mark]".
static std::string place_of(const std::string &mark) {
    static std::vector<std::string> source;
    if (source.empty()) {
        FILE *file = fopen(__FILE__, "r");
        char line[1000];
        while (file && fgets(line, sizeof line, file)) source.push_back(line);
        if (file) fclose(file);
    }
    for (size_t i = 0; i < source.size(); i++)
        if (source[i].find("// " + mark) != std::string::npos)
            return "test_cuda_on_cpu.cu:" + std::to_string(i + 1);
    return mark;
}

// Returns the first part of the message that the output lacks, or "".
static std::string missing_part(const std::string &output, const std::string &says) {
    for (size_t begin = 0; begin < says.size();) {
        size_t end = std::min(says.find('|', begin), says.size());
        std::string part = says.substr(begin, end - begin);
        size_t open = part.find('['), shut = part.find(']');
        if (open != std::string::npos)
            part = part.substr(0, open) + place_of(part.substr(open, shut + 1 - open)) +
                   part.substr(shut + 1);
        if (output.find(part) == std::string::npos) return part;
        begin = end + 1;
    }
    return "";
}

static bool must_be_found(const Case &c) {
    if (c.finder == RACE) return TSAN;
    if (c.finder == BLOCKS) return TSAN && !CLANG;
    if (c.finder == ADDRESS) return ASAN;
    if (c.finder == UNDEFINED) return ubsan();
    return true;
}

static void test_case(const char *program, const Case &c) {
    for (int seed = 0; seed < (TSAN ? 2 : 5); seed++) {
        Outcome o = run_child(program, c, RIGHT, seed);
        EXPECT(o.silent && o.output.empty(), "%s is right, but with seed %d: %s", c.name, seed,
               o.output.c_str());
    }
    if (!must_be_found(c)) return;
    bool by_values = c.finder == STALE || (c.finder == VALUES && !TSAN);
    const char *says = by_values ? "" : ASAN && c.asan_says ? c.asan_says : c.says;
    int seeds = c.finder == VALUES && !TSAN ? 10 : 1;
    Outcome o;
    for (int seed = 0; seed < seeds; seed++) {
        o = run_child(program, c, WRONG, seed);
        if (!o.silent) break;
    }
    EXPECT(!o.silent, "%s is wrong, and nobody noticed", c.name);
    std::string lacks = missing_part(o.output, says);
    EXPECT(lacks.empty(), "%s: the message lacks '%s':\n%s", c.name, lacks.c_str(), o.output.c_str());
}

// ---- correct kernels --------------------------------------------------------------------------------------

__constant__ float scale[2];
__device__ float scaled(float x) {
    return x * scale[1];
}

// Every instantiation has its own __shared__ array.
template <class T, int n> __global__ void __launch_bounds__(n) reverse_kernel(float *out) {
    __shared__ T s[n];
    __shared__ __align__(16) float one[4];
    s[threadIdx.x] = T(float(threadIdx.x));
    if (threadIdx.x < 4) one[threadIdx.x] = 1;
    __syncthreads();
    out[threadIdx.x] = float(s[n - 1 - threadIdx.x]) * scaled(one[threadIdx.x % 4]);
}
static void test_templates() {
    float *out = device_array<float>(64), two[2] = {0, 2};
    cudaMemcpyToSymbol(scale, two, sizeof two);
    launch(reverse_kernel<float, 32>, 1, 32, 0, out);
    EXPECT(download(out, 1)[0] == 62, "float");
    launch(reverse_kernel<__nv_bfloat16, 64>, 1, 64, 0, out);
    EXPECT(download(out, 64)[3] == 120, "bf16");
    cudaFree(out);
}

__global__ void grid_kernel(int *out) {
    unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    out[block * blockDim.x * blockDim.y * blockDim.z + thread] = int(block * 1000 + thread);
}
static void test_grid() {
    int *out = device_array<int>(768), wrong = 0;
    launch(grid_kernel, dim3(2, 3, 4), dim3(4, 4, 2), 0, out);
    std::vector<int> got = download(out, 768);
    for (int i = 0; i < 768; i++) wrong += got[i] != i / 32 * 1000 + i % 32;
    EXPECT(wrong == 0, "%d threads of a 3D grid are misplaced", wrong);
    cudaFree(out);
}

// Barriers and warp collectives do not wait for threads that have exited.
__global__ void early_return_kernel(int *out, int limit) {
    if (int(threadIdx.x) >= limit) return;
    __shared__ int s[64];
    s[threadIdx.x] = int(threadIdx.x);
    __syncthreads();
    int sum = s[limit - 1 - int(threadIdx.x)];
    if (threadIdx.x / 32 == 0) sum += __shfl_xor_sync(0xffffffffu, 0, 1);
    __syncwarp();
    atomicAdd(out, sum);
}
static void test_early_return() {
    int *out = device_array<int>(1);
    cudaMemset(out, 0, sizeof(int));
    launch(early_return_kernel, 1, 64, 0, out, 40);
    EXPECT(download(out, 1)[0] == 780, "%d", download(out, 1)[0]);
    cudaFree(out);
}

// Two halves of a warp run different collectives at the same time.
__global__ void masks_kernel(int *out) {
    int lane = int(threadIdx.x % 32), v;
    if (lane < 16)
        v = __shfl_xor_sync(0x0000ffffu, lane, 1, 16);
    else
        v = __shfl_down_sync(0xffff0000u, lane, 1, 16);
    unsigned ballot = __ballot_sync(0xffffffffu, lane % 3 == 0);
    out[lane] = v + 1000 * __popc(ballot) + 100000 * __reduce_add_sync(0xffffffffu, 1);
}
static void test_masks() {
    int *out = device_array<int>(32);
    launch(masks_kernel, 1, 32, 0, out);
    std::vector<int> got = download(out, 32);
    EXPECT(got[0] == 3211001 && got[16] == 3211017 && got[31] == 3211031, "%d %d %d", got[0], got[16],
           got[31]);
    cudaFree(out);
}

__global__ void count_kernel(int *out) {
    int count = __syncthreads_count(threadIdx.x % 3 == 0), any = __syncthreads_or(threadIdx.x == 7),
        all = __syncthreads_and(threadIdx.x < 99);
    if (threadIdx.x == 0) out[0] = count, out[1] = any, out[2] = all;
}
static void test_block_votes() {
    int *out = device_array<int>(3);
    launch(count_kernel, 1, 100, 0, out);
    std::vector<int> got = download(out, 3);
    EXPECT(got[0] == 34 && got[1] == 1 && got[2] == 0, "%d %d %d", got[0], got[1], got[2]);
    cudaFree(out);
}

// Fresh device memory, and the dynamic shared memory of every block, is NaN.
__global__ void fresh_kernel(int *nans, const float *global) {
    DYNAMIC_SHARED(float, s);
    atomicAdd(nans, int(s[threadIdx.x] != s[threadIdx.x]) + int(global[threadIdx.x] != global[threadIdx.x]));
    s[threadIdx.x] = 0;
}
static void test_fresh_memory() {
    int *nans = device_array<int>(1);
    float *global = device_array<float>(THREADS);
    cudaMemset(nans, 0, sizeof(int));
    launch(fresh_kernel, 4, THREADS, THREADS * sizeof(float), nans, global);
    EXPECT(download(nans, 1)[0] == 4 * 2 * THREADS, "%d", download(nans, 1)[0]);
    cudaFree(nans);
    cudaFree(global);
}

// Lanes read rows of 64 bf16; without a swizzle, all rows begin in the same bank.
__global__ void banks_kernel(bool swizzled) {
    DYNAMIC_SHARED(__nv_bfloat16, s);
    uint32_t r[4];
    ldmatrix_x4(r, s + threadIdx.x * 64 + (swizzled ? threadIdx.x % 8 * 8 : 0));
}
static void test_bank_conflicts() {
    for (int swizzled = 0; swizzled < 2; swizzled++) {
        uint64_t phases = emulation::ldmatrix_phases, conflicts = emulation::ldmatrix_conflicts;
        launch(banks_kernel, 1, 32, 32 * 128, swizzled == 1);
        phases = emulation::ldmatrix_phases - phases, conflicts = emulation::ldmatrix_conflicts - conflicts;
        EXPECT(phases == 4 && conflicts == (swizzled ? 0 : 28), "%d phases, %d conflicts", int(phases),
               int(conflicts));
    }
}

// A kernel can also access pinned host memory.
static void test_pinned_argument() {
    Arrays a;
    Pinned pinned;
    launch(copy_kernel, 1, THREADS, 0, pinned.p, a.in);
    cudaDeviceSynchronize();
    EXPECT(pinned.p[5] == 6, "%g", pinned.p[5]);
}

// ---- the host API -----------------------------------------------------------------------------------------

__global__ void large_kernel(float *out) {
    DYNAMIC_SHARED(float, s);
    s[50000] = 3;
    out[0] = s[50000];
}
static void test_launch_errors() {
    Arrays a;
    EXPECT(launch(copy_kernel, 1, 2048, 0, a.out, a.in) == cudaErrorInvalidConfiguration, "2048 threads");
    EXPECT(launch(copy_kernel, 0, 32, 0, a.out, a.in) == cudaErrorInvalidConfiguration, "no block");
    EXPECT(launch(copy_kernel, dim3(1, 70000), 32, 0, a.out, a.in) == cudaErrorInvalidConfiguration,
           "70000 in y");
    EXPECT(cudaPeekAtLastError() == cudaErrorInvalidConfiguration, "peek");
    EXPECT(cudaGetLastError() == cudaErrorInvalidConfiguration, "the last error stays until it is read");
    EXPECT(cudaGetLastError() == cudaSuccess, "and is forgotten then");

    EXPECT(launch(large_kernel, 1, 1, 200100, a.out) == cudaErrorInvalidValue,
           "more than 48 KB without the attribute");
    auto attribute = cudaFuncAttributeMaxDynamicSharedMemorySize;
    EXPECT(cudaFuncSetAttribute(large_kernel, attribute, 228 << 10) == cudaErrorInvalidValue,
           "more than there is");
    EXPECT(cudaFuncSetAttribute(large_kernel, attribute, 200100) == cudaSuccess, "the attribute");
    EXPECT(launch(large_kernel, 1, 1, 200100, a.out) == cudaSuccess && download(a.out, 1)[0] == 3,
           "with the attribute");
    EXPECT(launch(large_kernel, 1, 1, 200104, a.out) == cudaErrorInvalidValue, "more than the attribute");
    cudaGetLastError();
}

static void test_memory_limit() {
    size_t before, after, total;
    cudaMemGetInfo(&before, &total);
    char *p = device_array<char>(5 << 20), *q;
    EXPECT(reinterpret_cast<uintptr_t>(p) % 256 == 0, "aligned");
    cudaMemGetInfo(&after, &total);
    EXPECT(before - after == 5 << 20, "%zu", before - after);
    EXPECT(cudaMalloc(&q, after + 1) == cudaErrorMemoryAllocation && q == nullptr, "one byte too much");
    EXPECT(cudaGetLastError() == cudaErrorMemoryAllocation, "remembered");
    cudaFree(p);
    cudaMemGetInfo(&after, &total);
    EXPECT(before == after, "freed");
    EXPECT(cudaMalloc(&q, 0) == cudaSuccess && q == nullptr && cudaFree(nullptr) == cudaSuccess, "nothing");
}

// Copies are visible to the host after synchronisation by streams and events, directly or through other streams.
static void test_order_of_copies() {
    Arrays a;
    Pinned one, two;
    const size_t bytes = THREADS * sizeof(float);
    cudaEvent_t event;
    cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
    cudaMemcpyAsync(one.p, a.in, bytes, cudaMemcpyDeviceToHost, one.stream);
    cudaEventRecord(event, one.stream);
    cudaStreamWaitEvent(two.stream, event, 0);
    cudaStreamSynchronize(two.stream);
    EXPECT(one.p[7] == 8, "a stream that waited for the event: %g", one.p[7]);

    cudaMemset(a.in, 0, bytes);
    cudaMemcpyAsync(one.p, a.in, bytes, cudaMemcpyDeviceToHost, one.stream);
    cudaEventRecord(event, one.stream);
    EXPECT(cudaEventQuery(event) == cudaErrorNotReady && cudaGetLastError() == cudaSuccess, "at first");
    EXPECT(cudaEventQuery(event) == cudaSuccess && one.p[7] == 0, "then: %g", one.p[7]);

    std::vector<float> pageable(THREADS, 3.0f);
    cudaMemcpyAsync(a.in, pageable.data(), bytes, cudaMemcpyHostToDevice, one.stream);
    pageable[7] = 4; // may be changed immediately
    cudaMemcpyAsync(pageable.data(), a.in, bytes, cudaMemcpyDeviceToHost, one.stream);
    EXPECT(pageable[7] == 3, "pageable memory: %g", pageable[7]);
    cudaEventDestroy(event);
}

static void test_events_and_device() {
    cudaEvent_t start, end;
    cudaEventCreate(&start);
    cudaEventCreate(&end);
    float ms = -1;
    EXPECT(cudaEventElapsedTime(&ms, start, end) == cudaErrorInvalidResourceHandle, "not recorded");
    cudaGetLastError();
    cudaEventRecord(start);
    cudaEventRecord(end);
    EXPECT(cudaEventElapsedTime(&ms, start, end) == cudaSuccess && ms >= 0, "%g ms", ms);
    cudaEventDestroy(start);
    cudaEventDestroy(end);
    int count = 0, value = 0;
    cudaDeviceProp properties;
    EXPECT(cudaGetDeviceCount(&count) == cudaSuccess && count == 1, "%d", count);
    EXPECT(cudaSetDevice(0) == cudaSuccess && cudaSetDevice(1) == cudaErrorInvalidDevice, "one device");
    cudaGetLastError();
    EXPECT(cudaGetDeviceProperties(&properties, 0) == cudaSuccess && properties.major == 9, "%d",
           properties.major);
    EXPECT(cudaDeviceGetAttribute(&value, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0) == cudaSuccess &&
               size_t(value) == properties.sharedMemPerBlockOptin,
           "%d", value);
}

int main(int argc, char **argv) {
    if (argc == 4 && !strcmp(argv[1], "--case")) {
        for (const Case &c : cases)
            if (!strcmp(argv[2], c.name)) return strcmp(argv[3], "wrong") ? c.right() : c.wrong();
        return 3;
    }
    test_templates();
    test_grid();
    test_early_return();
    test_masks();
    test_block_votes();
    test_fresh_memory();
    test_bank_conflicts();
    test_pinned_argument();
    test_launch_errors();
    test_memory_limit();
    test_order_of_copies();
    test_events_and_device();
    for (const Case &c : cases)
        if (argc < 2 || !strcmp(argv[1], c.name)) test_case("/proc/self/exe", c);
    return test_finish();
}
