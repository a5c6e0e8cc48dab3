// Tests single instructions, lane by lane: the wrappers of layers/ptx.h and ptx_hopper.h, shuffles, votes,
// conversions, integer intrinsics, atomics. Emulator and hardware are compared with the same table: expected values are
// literals, or formulas from the PTX ISA and the CUDA programming guide.
//
//     nvcc -std=c++17 -arch=sm_80 -I. test/attention/test_ptx.cu
//     nvcc -std=c++17 -gencode arch=compute_90a,code=sm_90a -DHOPPER -I. test/attention/test_ptx.cu
//
// It compiles with g++ as described in dev/cuda_on_cpu/cuda_on_cpu.h. `--table` prints the values of every lane, for
// diff.
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <math.h>
#include <string.h>

#include <vector>

#include "layers/ptx.h"
#include "test/harness/test.h"
#if defined(HOPPER) || defined(CUDA_EMULATION)
#define TEST_HOPPER
#include "layers/ptx_hopper.h"
#endif

using Words = std::vector<uint32_t>;
static bool print_table = false;

template <class T> static T *to_device(const std::vector<T> &host) {
    T *p;
    if (cudaMalloc(&p, host.size() * sizeof(T)) != cudaSuccess) exit(2);
    cudaMemcpy(p, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice);
    return p;
}

// Runs kernel<<<1, threads, shared>>>(out, arguments...) and compares the words it writes.
template <class... P, class... A>
static void check(const char *name, const Words &want, void (*kernel)(uint32_t *, P...), unsigned threads,
                  size_t shared_bytes, A... arguments) {
    Words got(want.size(), 0xdeadbeef);
    uint32_t *out = to_device(got);
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(1);
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = shared_bytes;
    cudaError_t error = cudaLaunchKernelEx(&config, kernel, out, arguments...);
    if (error == cudaSuccess) error = cudaDeviceSynchronize();
    EXPECT(error == cudaSuccess, "%s: %s", name, cudaGetErrorString(error));
    cudaMemcpy(got.data(), out, got.size() * sizeof(uint32_t), cudaMemcpyDeviceToHost);
    cudaFree(out);
    size_t wrong = 0, first = 0;
    for (size_t i = want.size(); i-- > 0;)
        if (got[i] != want[i]) wrong++, first = i;
    EXPECT(wrong == 0, "%s: %zu of %zu words differ, the first is %zu: %08x, not %08x", name, wrong,
           want.size(), first, got[first], want[first]);
    for (size_t i = 0; print_table && i < got.size(); i++) printf("%s %zu %08x\n", name, i, got[i]);
}

static uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}
// x must be representable in bf16.
static uint32_t bf16_of(float x) {
    return bits_of(x) >> 16;
}

// ---- mma.m16n8k16 -----------------------------------------------------------------------------------------

__global__ void mma_kernel(uint32_t *out, const uint32_t *a, const uint32_t *b, const float *c) {
    uint32_t a_registers[4], b_registers[2];
    float c_registers[4], d[4];
    for (int i = 0; i < 4; i++)
        a_registers[i] = a[threadIdx.x * 4 + i], c_registers[i] = c[threadIdx.x * 4 + i];
    for (int i = 0; i < 2; i++) b_registers[i] = b[threadIdx.x * 2 + i];
    mma_m16n8k16_bf16(d, a_registers, b_registers, c_registers);
    for (int i = 0; i < 4; i++) out[threadIdx.x * 4 + i] = __float_as_uint(d[i]);
}

static int value_a(int row, int k) {
    return (row * 5 + k * 3 + row * k) % 17 - 8;
}
static int value_b(int k, int column) {
    return (k * 7 + column * 4 + k * column) % 13 - 6;
}
static int value_c(int row, int column) {
    return row * 100 - column * 31;
}

// PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type": element i of a lane's fragment.
static void test_mma() {
    Words a(32 * 4), b(32 * 2), want(32 * 4);
    std::vector<float> c(32 * 4);
    for (int lane = 0; lane < 32; lane++) {
        int group = lane >> 2, in_group = lane % 4;
        for (int i = 0; i < 8; i++) {
            int row = i < 2 || (4 <= i && i < 6) ? group : group + 8,
                column = in_group * 2 + (i & 1) + (i >= 4 ? 8 : 0);
            a[lane * 4 + i / 2] |= bf16_of(float(value_a(row, column))) << i % 2 * 16;
        }
        for (int i = 0; i < 4; i++) {
            int k = in_group * 2 + (i & 1) + (i >= 2 ? 8 : 0);
            b[lane * 2 + i / 2] |= bf16_of(float(value_b(k, group))) << i % 2 * 16;
            int row = i < 2 ? group : group + 8, column = in_group * 2 + (i & 1), sum = value_c(row, column);
            c[lane * 4 + i] = float(sum);
            for (int j = 0; j < 16; j++) sum += value_a(row, j) * value_b(j, column);
            want[lane * 4 + i] = bits_of(float(sum));
        }
    }
    uint32_t *da = to_device(a), *db = to_device(b);
    float *dc = to_device(c);
    check("mma.m16n8k16", want, mma_kernel, 32, 0, da, db, dc);
    cudaFree(da);
    cudaFree(db);
    cudaFree(dc);
}

// ---- ldmatrix ---------------------------------------------------------------------------------------------

// Returns the position of row r of matrix m, in units of 16 bytes; rows are deliberately not in order.
__host__ __device__ inline int row_place(int m, int r) {
    return ((m * 8 + r) * 5 + 3) % 32;
}

template <bool transposed> __global__ void ldmatrix_kernel(uint32_t *out) {
    DYNAMIC_SHARED(uint16_t, s);
    int m = threadIdx.x / 8, r = threadIdx.x % 8;
    for (int column = 0; column < 8; column++)
        s[row_place(m, r) * 8 + column] = static_cast<uint16_t>(m * 1000 + r * 10 + column);
    __syncwarp();
    uint32_t registers[4];
    if (transposed)
        ldmatrix_x4_trans(registers, s + row_place(m, r) * 8);
    else
        ldmatrix_x4(registers, s + row_place(m, r) * 8);
    for (int i = 0; i < 4; i++) out[threadIdx.x * 4 + i] = registers[i];
}

// PTX ISA, ldmatrix: thread T holds row T / 4, columns 2 (T % 4) and 2 (T % 4) + 1 of each matrix, or of its transpose
// with .trans.
static void test_ldmatrix() {
    Words want(128), want_transposed(128);
    for (int lane = 0; lane < 32; lane++)
        for (int m = 0; m < 4; m++)
            for (int half = 0; half < 2; half++) {
                uint32_t i = uint32_t(lane / 4), j = uint32_t(lane % 4 * 2 + half), base = uint32_t(m) * 1000;
                want[lane * 4 + m] |= (base + i * 10 + j) << half * 16;
                want_transposed[lane * 4 + m] |= (base + j * 10 + i) << half * 16;
            }
    check("ldmatrix.x4", want, ldmatrix_kernel<false>, 32, 512);
    check("ldmatrix.x4.trans", want_transposed, ldmatrix_kernel<true>, 32, 512);
}

// ---- cp.async ---------------------------------------------------------------------------------------------

// Two groups of copies; lanes 0, 3, 6, ... copy zeros.
__global__ void cp_async_kernel(uint32_t *out, const uint32_t *in) {
    DYNAMIC_SHARED(uint32_t, s);
    for (int group = 0; group < 2; group++) {
        int i = group * 128 + threadIdx.x * 4;
        cp_async_16(s + i, in + 252 - i, threadIdx.x % 3 != 0);
        cp_async_commit();
    }
    cp_async_wait<1>();
    __syncwarp();
    for (int i = 0; i < 4; i++) out[threadIdx.x * 4 + i] = s[threadIdx.x * 4 + i];
    cp_async_wait<0>();
    __syncwarp();
    for (int i = 0; i < 4; i++) out[128 + threadIdx.x * 4 + i] = s[128 + threadIdx.x * 4 + i];
}
static void test_cp_async() {
    Words in(256), want(256);
    for (uint32_t i = 0; i < 256; i++) in[i] = i * 0x01010101u;
    for (uint32_t i = 0; i < 256; i++) want[i] = i / 4 % 32 % 3 == 0 ? 0 : in[252 - i / 4 * 4 + i % 4];
    uint32_t *device = to_device(in);
    check("cp.async", want, cp_async_kernel, 32, 1024, device);
    cudaFree(device);
}

// ---- shuffles and votes -----------------------------------------------------------------------------------

enum { SHUFFLE_ARGUMENTS = 6, WIDTHS = 4 };
__global__ void shuffle_kernel(uint32_t *out) {
    const int arguments[SHUFFLE_ARGUMENTS] = {0, 1, 3, 8, 17, 31}, widths[WIDTHS] = {32, 16, 8, 4};
    int lane = threadIdx.x, next = 0;
    for (int w = 0; w < WIDTHS; w++)
        for (int i = 0; i < SHUFFLE_ARGUMENTS; i++) {
            unsigned all = 0xffffffffu, value = 100 + lane, b = arguments[i];
            out[next++ * 32 + lane] = __shfl_sync(all, value, int(b), widths[w]);
            out[next++ * 32 + lane] = __shfl_up_sync(all, value, b, widths[w]);
            out[next++ * 32 + lane] = __shfl_down_sync(all, value, b, widths[w]);
            out[next++ * 32 + lane] = __shfl_xor_sync(all, value, int(b), widths[w]);
        }
}
// PTX ISA, shfl.sync: the segment mask depends on the width; `clamp` is the end of the segment, or 0 for .up.
static int shuffle_source(char mode, int lane, int b, int width) {
    int segment = 32 - width, clamp = mode == 'u' ? 0 : 31;
    int max_lane = (lane & segment) | (clamp & ~segment), min_lane = lane & segment, j = 0;
    bool inside = false;
    if (mode == 'u') j = lane - b, inside = j >= max_lane;
    if (mode == 'd') j = lane + b, inside = j <= max_lane;
    if (mode == 'x') j = lane ^ b, inside = j <= max_lane;
    if (mode == 'i') j = min_lane | (b & ~segment), inside = j <= max_lane;
    return inside ? j : lane;
}
static void test_shuffles() {
    Words want;
    for (int width : {32, 16, 8, 4})
        for (int b : {0, 1, 3, 8, 17, 31})
            for (char mode : {'i', 'u', 'd', 'x'})
                for (int lane = 0; lane < 32; lane++)
                    want.push_back(uint32_t(100 + shuffle_source(mode, lane, b, width)));
    check("shfl.sync", want, shuffle_kernel, 32, 0);
}

__global__ void vote_kernel(uint32_t *out) {
    int lane = threadIdx.x;
    uint32_t votes[6] = {};
    votes[0] = __ballot_sync(0xffffffffu, lane % 3 == 0);
    votes[1] = uint32_t(__any_sync(0xffffffffu, lane == 9)) +
               2 * uint32_t(__all_sync(0xffffffffu, lane != 9));
    votes[2] = uint32_t(__any_sync(0xffffffffu, lane > 31)) +
               2 * uint32_t(__all_sync(0xffffffffu, lane < 32));
    if (lane < 12) { // only these lanes vote
        votes[3] = __ballot_sync(0x00000fffu, lane % 2 == 1);
        votes[4] = uint32_t(__all_sync(0x00000fffu, lane < 12)) +
                   2 * uint32_t(__any_sync(0x00000fffu, lane > 11));
        votes[5] = uint32_t(__shfl_down_sync(0x00000fffu, lane * 7, lane < 10 ? 2 : 0));
    }
    for (int i = 0; i < 6; i++) out[i * 32 + lane] = votes[i];
}
static void test_votes() {
    Words want(6 * 32);
    for (uint32_t lane = 0; lane < 32; lane++) {
        want[lane] = 0x49249249u;
        want[32 + lane] = 1;
        want[64 + lane] = 2;
        want[96 + lane] = lane < 12 ? 0xaaau : 0;
        want[128 + lane] = lane < 12 ? 1 : 0;
        want[160 + lane] = lane < 10 ? (lane + 2) * 7 : lane < 12 ? lane * 7 : 0;
    }
    check("vote.sync", want, vote_kernel, 32, 0);
}

// ---- arithmetic -------------------------------------------------------------------------------------------

__global__ void to_bf16_kernel(uint32_t *out, const uint32_t *in) {
    out[threadIdx.x] = __bfloat16_as_ushort(__float2bfloat16_rn(__uint_as_float(in[threadIdx.x])));
}
__global__ void pair_to_bf16_kernel(uint32_t *out, const uint32_t *in) {
    float x = __uint_as_float(in[threadIdx.x]);
    __nv_bfloat162 pair = __floats2bfloat162_rn(x, -x);
    memcpy(out + threadIdx.x, &pair, 4);
}
static void test_conversions() {
    // fp32 bits, bf16 bits: rounding is to nearest, ties to even; every NaN becomes 7fff.
    const uint32_t table[][2] = {
        {0x3f800000, 0x3f80}, {0x3f807fff, 0x3f80}, {0x3f808000, 0x3f80},
        {0x3f808001, 0x3f81}, // 1 and a little
        {0x3f818000, 0x3f82}, {0x3f817fff, 0x3f81}, {0xbf808000, 0xbf80},
        {0xbf818000, 0xbf82}, // ties
        {0x40490fdb, 0x4049}, {0x42f6e979, 0x42f7}, {0x00000000, 0x0000},
        {0x80000000, 0x8000}, // pi, 123.456, zeros
        {0x7f7f7fff, 0x7f7f}, {0x7f7f8000, 0x7f80}, {0x7f7fffff, 0x7f80},
        {0xff7fffff, 0xff80}, // up to infinity
        {0x7f800000, 0x7f80}, {0xff800000, 0xff80}, {0x7fc00000, 0x7fff},
        {0xffc00000, 0x7fff}, // infinities, NaNs
        {0x7f800001, 0x7fff}, {0xff812345, 0x7fff}, {0x00000001, 0x0000},
        {0x00008000, 0x0000}, // signalling; subnormals
        {0x00008001, 0x0001}, {0x00018000, 0x0002}, {0x007fffff, 0x0080},
        {0x80008001, 0x8001}, {0x00800000, 0x0080}, {0x007f7fff, 0x007f},
        {0x807fffff, 0x8080}, {0x33d6bf95, 0x33d7},
    };
    Words in, want, want_pairs;
    for (auto &row : table) {
        in.push_back(row[0]);
        want.push_back(row[1]);
        want_pairs.push_back(row[1] == 0x7fff ? 0x7fff7fff : row[1] | (row[1] ^ 0x8000) << 16);
    }
    uint32_t *device = to_device(in);
    check("cvt.rn.bf16.f32", want, to_bf16_kernel, 32, 0, device);
    check("cvt.rn.bf16x2.f32", want_pairs, pair_to_bf16_kernel, 32, 0, device);
    cudaFree(device);
}

__global__ void integer_kernel(uint32_t *out, const uint32_t *in) {
    uint32_t a = in[threadIdx.x * 2], b = in[threadIdx.x * 2 + 1], *to = out + threadIdx.x * 5;
    to[0] = __umulhi(a, b);
    to[1] = uint32_t(__popc(a));
    to[2] = uint32_t(__ffs(int(a)));
    to[3] = uint32_t(__clz(int(a)));
    to[4] = __brev(a);
}
static void test_integers() {
    // Columns: a, b, __umulhi(a, b), __popc(a), __ffs(a), __clz(a), __brev(a).
    const uint32_t table[][7] = {
        {0, 0xffffffff, 0, 0, 0, 32, 0},
        {1, 0xffffffff, 0, 1, 1, 31, 0x80000000},
        {0xffffffff, 0xffffffff, 0xfffffffe, 32, 1, 0, 0xffffffff},
        {0x80000000, 2, 1, 1, 32, 0, 1},
        {0x12345678, 0x9abcdef0, 0x0b00ea4e, 13, 4, 3, 0x1e6a2c48},
        {0xd2511f53, 0x00010000, 0x0000d251, 16, 1, 0, 0xcaf88a4b},
        {0x00ff0000, 0x00000100, 0, 8, 17, 8, 0x0000ff00},
    };
    Words in, want;
    for (auto &row : table) {
        in.insert(in.end(), row, row + 2);
        want.insert(want.end(), row + 2, row + 7);
    }
    uint32_t *device = to_device(in);
    check("integers", want, integer_kernel, 7, 0, device);
    cudaFree(device);
}

__global__ void fma_kernel(uint32_t *out, const float *in) {
    const float *x = in + threadIdx.x * 3;
    out[threadIdx.x] = __float_as_uint(fmaf(x[0], x[1], x[2]));
}
static void test_fma() {
    const float one = 1.0f + 0x1p-12f, tiny = 0x1p-126f;
    std::vector<float> in = {one,      one,      -(1.0f + 0x1p-11f), // 2^-24: the product is not rounded
                             3.0f,     5.0f,     -15.0f,             // 0
                             0x1p100f, 0x1p100f, -INFINITY, // -infinity: the product does not overflow
                             0x1p100f, 0x1p100f, 1.0f,      // infinity
                             tiny,     0.5f,     0.0f,      // subnormal
                             0.1f,     10.0f,    -1.0f};    // 10 times the rounding error of 0.1f
    Words want = {0x33800000, 0x00000000, 0xff800000, 0x7f800000, 0x00400000, 0x32800000};
    float *device = to_device(in);
    check("fma.rn.f32", want, fma_kernel, 6, 0, device);
    cudaFree(device);
}

// ---- atomics ----------------------------------------------------------------------------------------------

__global__ void atomic_kernel(uint32_t *out) {
    int i = int(threadIdx.x);
    if (i == 0) {
        for (int j = 0; j < 10; j++) out[j] = 0;
        out[4] = 0xffffffffu, out[9] = 1000;
    }
    __syncthreads();
    atomicAdd(out, unsigned(i));
    atomicAdd(reinterpret_cast<float *>(out + 1), 0.5f);
    atomicMax(reinterpret_cast<int *>(out + 2), i * 37 % 64 - 20);
    atomicOr(out + 3, 1u << i % 32);
    atomicAnd(out + 4, ~(1u << i % 16));
    atomicInc(out + 5, 9);
    atomicXor(out + 6, unsigned(i));
    atomicCAS(out + 7, 0u, 77u);
    unsigned before = atomicExch(out + 8, 5u);
    atomicMin(out + 9, unsigned(100 + i));
    __syncthreads();
    if (before == 0) atomicAdd(out + 8, 100u); // exactly one thread reads the 0
}
static void test_atomics() {
    Words want = {2016, bits_of(32.0f), 43, 0xffffffff, 0xffff0000, 4, 0, 77, 105, 100};
    check("atomics", want, atomic_kernel, 64, 0);
}

// ---- Hopper -----------------------------------------------------------------------------------------------

#ifdef TEST_HOPPER
// Returns the function of the driver's library, which is not linked.
static decltype(&cuTensorMapEncodeTiled) encode_tiled() {
#ifdef CUDA_EMULATION
    return cuTensorMapEncodeTiled;
#else
    void *function = nullptr;
    cudaDriverEntryPointQueryResult found;
#if CUDART_VERSION >= 13000
    cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found);
#else
    cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &found);
#endif
    EXPECT(function != nullptr && found == cudaDriverEntryPointSuccess, "the driver has no tensor maps");
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
#endif
}

// 64 rows of 64 bf16 with the 128-byte swizzle: 16-byte chunk c of row r is at chunk c ^ (r % 8).
__host__ __device__ inline int swizzled(int row, int column) {
    return row * 64 + ((column / 8 ^ row % 8) * 8) + column % 8;
}
__host__ __device__ inline int small_value(int row, int column) {
    return (row * 5 + column * 3 + row * column) % 11 - 5;
}

// d (64, 64) = a (64, 64) b (64, 64), with the elements small_value(row, k) and small_value(k, column + 1).
template <bool b_mn_major> __global__ void wgmma_kernel(uint32_t *out) {
    DYNAMIC_SHARED(__nv_bfloat16, a);
    __nv_bfloat16 *b = a + 64 * 64;
    for (int i = threadIdx.x; i < 64 * 64; i += blockDim.x) {
        int row = i / 64, column = i % 64;
        a[swizzled(row, column)] = __float2bfloat16(float(small_value(row, column)));
        // K-major has a row for each n, MN-major a row for each k.
        int k = b_mn_major ? row : column, n = b_mn_major ? column : row;
        b[swizzled(row, column)] = __float2bfloat16(float(small_value(k, n + 1)));
    }
    fence_proxy_async();
    __syncthreads();
    float d[32];
    for (int i = 0; i < 32; i++) d[i] = 1000; // the first operation ignores it
    wgmma_fence();
    for (int k = 0; k < 64; k += 16) {
        uint64_t b_descriptor = b_mn_major ? descriptor_128b(b + k * 64, 1024, 1024)
                                           : descriptor_128b(b + k, 16, 1024);
        wgmma_bf16<64, false, b_mn_major>(d, descriptor_128b(a + k, 16, 1024), b_descriptor, k > 0);
    }
    wgmma_commit();
    wgmma_wait<0>();
    for (int i = 0; i < 32; i++) out[threadIdx.x * 32 + i] = __float_as_uint(d[i]);
}
// PTX ISA, "Register Fragments for wgmma.mma_async.m64nNk16", matrix D: element i of a thread.
static void test_wgmma() {
    Words want(128 * 32);
    for (int thread = 0; thread < 128; thread++)
        for (int i = 0; i < 32; i++) {
            int row = thread / 32 * 16 + thread % 32 / 4 + (i / 2 % 2 ? 8 : 0),
                column = i / 4 * 8 + thread % 4 * 2 + i % 2;
            int sum = 0;
            for (int k = 0; k < 64; k++) sum += small_value(row, k) * small_value(k, column + 1);
            want[thread * 32 + i] = bits_of(float(sum));
        }
    check("wgmma.m64n64k16", want, wgmma_kernel<false>, 128, 2 * 8192);
    check("wgmma.m64n64k16, B MN-major", want, wgmma_kernel<true>, 128, 2 * 8192);
}

// Copies a box of 16 rows and 64 columns of a matrix of 40 rows and 48 columns, partly outside the matrix, into shared
// memory.
__global__ void tma_kernel(uint32_t *out, const __grid_constant__ CUtensorMap map, int x, int y) {
    DYNAMIC_SHARED(uint16_t, box);
    uint64_t *barrier = reinterpret_cast<uint64_t *>(box + 1024);
    if (threadIdx.x == 0) {
        mbarrier_init(barrier, 1);
        fence_mbarrier_init();
        mbarrier_arrive_expect_tx(barrier, 2048);
        tma_load_2d(box, &map, barrier, x, y);
    }
    __syncthreads();
    mbarrier_wait(barrier, 0);
    for (int i = threadIdx.x; i < 1024; i += blockDim.x) out[i] = box[i];
}
static void test_tma() {
    enum { ROWS = 40, COLUMNS = 48 };
    std::vector<uint16_t> matrix(ROWS * COLUMNS);
    for (int i = 0; i < ROWS * COLUMNS; i++) matrix[i] = uint16_t(i + 1);
    uint16_t *device = to_device(matrix);
    CUtensorMap map;
    cuuint64_t size[2] = {COLUMNS, ROWS}, stride[1] = {COLUMNS * 2};
    cuuint32_t box[2] = {64, 16}, ones[2] = {1, 1};
    CUresult error = encode_tiled()(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, device, size, stride,
                                            box, ones, CU_TENSOR_MAP_INTERLEAVE_NONE,
                                            CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                                            CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    EXPECT(error == CUDA_SUCCESS, "%d", int(error));
    const int corners[3][2] = {{0, 0}, {16, 32}, {-8, -4}};
    for (auto &corner : corners) {
        Words want(1024);
        for (int row = 0; row < 16; row++)
            for (int column = 0; column < 64; column++) {
                int x = corner[0] + column, y = corner[1] + row;
                bool inside = x >= 0 && x < COLUMNS && y >= 0 && y < ROWS;
                want[swizzled(row, column)] = inside ? uint32_t(y * COLUMNS + x + 1) : 0;
            }
        check("TMA 2D", want, tma_kernel, 64, 2048 + 8, map, corner[0], corner[1]);
    }
    cudaFree(device);
}

// 32 threads pass data to 32 others through one buffer, eight times.
__global__ void mbarrier_kernel(uint32_t *out) {
    DYNAMIC_SHARED(uint64_t, barriers);
    uint64_t *full = barriers, *empty = barriers + 1;
    uint32_t *buffer = reinterpret_cast<uint32_t *>(barriers + 2), lane = threadIdx.x % 32;
    if (threadIdx.x == 0) mbarrier_init(full, 32), mbarrier_init(empty, 32), fence_mbarrier_init();
    __syncthreads();
    for (uint32_t i = 0; i < 8; i++)
        if (threadIdx.x < 32) {
            if (i > 0) mbarrier_wait(empty, (i - 1) % 2);
            buffer[lane] = i * 100 + lane;
            mbarrier_arrive(full);
        } else {
            mbarrier_wait(full, i % 2);
            out[i * 32 + lane] = buffer[31 - lane];
            mbarrier_arrive(empty);
        }
}
static void test_mbarrier() {
    Words want(256);
    for (uint32_t i = 0; i < 256; i++) want[i] = i / 32 * 100 + 31 - i % 32;
    check("mbarrier", want, mbarrier_kernel, 64, 16 + 128);
}
#endif

int main(int argc, char **argv) {
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) {
        printf("this build needs an NVIDIA GPU, but no driver or no GPU was found\n");
        return 1;
    }
    print_table = argc > 1 && !strcmp(argv[1], "--table");
    test_mma();
    test_ldmatrix();
    test_cp_async();
    test_shuffles();
    test_votes();
    test_conversions();
    test_integers();
    test_fma();
    test_atomics();
#ifdef TEST_HOPPER
    test_wgmma();
    test_tma();
    test_mbarrier();
#endif
    return test_finish();
}
