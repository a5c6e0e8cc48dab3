// Helpers for kernels: launching, 16-byte loads and stores, reductions over a warp and a block, dropout of eight
// elements. Included by layer files inside `#ifdef DEVICE_CUDA`.
//
// Eight consecutive elements are the unit of every kernel over rows: in bf16 one 16-byte access, in fp32 two.
// The contiguous dimension of every tensor is a multiple of 8, because head sizes are.
//
// The order of additions in a reduction is fixed by the shape alone, so results repeat bit for bit; floats are never
// added atomically.
#ifndef LAYERS_KERNEL_CUH
#define LAYERS_KERNEL_CUH

#include "ptx.h"
#include "common.h"
#include "dropout.h"

enum { WARP = 32, FULL_WARP = -1 };

// ---- launching --------------------------------------------------------------------------------------------

// Launches a kernel with cudaLaunchKernelEx and checks for errors. More than 48 KB of dynamic shared memory is enabled
// here.
template <class... Parameters, class... Arguments>
static void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, Stream stream,
                   Arguments &&...arguments) {
    if (shared_bytes > 48 * 1024)
        CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared_bytes));
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    CHECK(cudaLaunchKernelEx(&config, kernel, static_cast<Arguments &&>(arguments)...));
    CHECK(cudaGetLastError());
}

// Returns the number of blocks of `per_block` elements that cover n. The x dimension of a grid is at most 2^31 - 1.
static inline unsigned blocks_for(size_t n, size_t per_block) {
    size_t blocks = divide_up(n, per_block);
    CHECK(blocks <= 0x7fffffff);
    return (unsigned)blocks;
}

// ---- numbers and vectors ----------------------------------------------------------------------------------

__device__ __forceinline__ float to_float(float x) {
    return x;
}
__device__ __forceinline__ float to_float(__nv_bfloat16 x) {
    return __bfloat162float(x);
}
template <class T> __device__ __forceinline__ T from_float(float x);
template <> __device__ __forceinline__ float from_float<float>(float x) {
    return x;
}
template <> __device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
    return __float2bfloat16_rn(x);
}

struct Float8 {
    float v[8];
};

__device__ __forceinline__ Float8 load8(const float *p) {
    float4 a = reinterpret_cast<const float4 *>(p)[0], b = reinterpret_cast<const float4 *>(p)[1];
    return {{a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w}};
}
__device__ __forceinline__ void store8(float *p, const Float8 &x) {
    reinterpret_cast<float4 *>(p)[0] = make_float4(x.v[0], x.v[1], x.v[2], x.v[3]);
    reinterpret_cast<float4 *>(p)[1] = make_float4(x.v[4], x.v[5], x.v[6], x.v[7]);
}

__device__ __forceinline__ float low_bf16(uint32_t pair) {
    return __uint_as_float(pair << 16);
}
__device__ __forceinline__ float high_bf16(uint32_t pair) {
    return __uint_as_float(pair & 0xffff0000u);
}
// Returns two floats rounded to bf16, the first in the low half.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
    return (uint32_t)__bfloat16_as_ushort(__float2bfloat16_rn(low)) |
           (uint32_t)__bfloat16_as_ushort(__float2bfloat16_rn(high)) << 16;
}

__device__ __forceinline__ Float8 load8(const __nv_bfloat16 *p) {
    uint4 u = *reinterpret_cast<const uint4 *>(p);
    return {{low_bf16(u.x), high_bf16(u.x), low_bf16(u.y), high_bf16(u.y), low_bf16(u.z), high_bf16(u.z),
             low_bf16(u.w), high_bf16(u.w)}};
}
__device__ __forceinline__ void store8(__nv_bfloat16 *p, const Float8 &x) {
    *reinterpret_cast<uint4 *>(p) = make_uint4(pack_bf16(x.v[0], x.v[1]), pack_bf16(x.v[2], x.v[3]),
                                               pack_bf16(x.v[4], x.v[5]), pack_bf16(x.v[6], x.v[7]));
}

// Stores two adjacent elements, of which the first has an even index.
__device__ __forceinline__ void store_pair(__nv_bfloat16 *p, float x, float y) {
    *reinterpret_cast<uint32_t *>(p) = pack_bf16(x, y);
}
__device__ __forceinline__ void store_pair(float *p, float x, float y) {
    *reinterpret_cast<float2 *>(p) = make_float2(x, y);
}

// Rounds x to the values that it has when it is stored as floatX.
__device__ __forceinline__ void round_to_floatX(Float8 &x) {
#pragma unroll
    for (int i = 0; i < 8; i++) x.v[i] = to_float(from_float<floatX>(x.v[i]));
}

// ---- reductions -------------------------------------------------------------------------------------------

// Returns the sum, or the maximum, over the warp to every lane.
template <class T> __device__ __forceinline__ T warp_sum(T x) {
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2)
        x += __shfl_xor_sync((unsigned)FULL_WARP, x, distance);
    return x;
}
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2)
        x = fmaxf(x, __shfl_xor_sync((unsigned)FULL_WARP, x, distance));
    return x;
}

// Returns the sum, or the maximum, over a one-dimensional block of whole warps to every thread. `shared` has room for
// one T per warp; it may be written again after the next barrier.
template <class T> __device__ __forceinline__ T block_sum(T x, T *shared) {
    unsigned warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, warps = blockDim.x / WARP;
    x = warp_sum(x);
    if (lane == 0) shared[warp] = x;
    __syncthreads(); // shared is complete
    return warp_sum(lane < warps ? shared[lane] : T(0));
}
__device__ __forceinline__ float block_max(float x, float *shared) {
    unsigned warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, warps = blockDim.x / WARP;
    x = warp_max(x);
    if (lane == 0) shared[warp] = x;
    __syncthreads(); // shared is complete
    return warp_max(lane < warps ? shared[lane] : -INFINITY);
}

// ---- dropout ----------------------------------------------------------------------------------------------

// Does what dropout_row (dropout.h) does, for channels c .. c + 7, where c is a multiple of 8.
__device__ __forceinline__ void dropout8(Float8 &x, size_t c, size_t token, size_t sequence,
                                         const Dropout &dropout) {
    if (dropout.threshold == DROPOUT_NONE) return;
    Philox random = philox(dropout.key, (uint32_t)(c / 16), (uint32_t)token,
                           dropout.first_sequence + (uint32_t)sequence, dropout.step);
    uint32_t low = c % 16 == 0 ? random.v[0] : random.v[2], high = c % 16 == 0 ? random.v[1] : random.v[3];
    const float scale = dropout_scale(&dropout);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        uint32_t byte = (i < 4 ? low : high) >> (8 * (i % 4)) & 255u;
        x.v[i] = byte < dropout.threshold ? x.v[i] * scale : 0.0f;
    }
}

// ---- sums over rows ---------------------------------------------------------------------------------------

// to[c] += sum over r of partial[r * stride + c], 0 <= r < rows, 0 <= c < columns, in a fixed order: first within 32
// groups, each of every 32nd row, then over the groups. Launched with blocks of (32, 32), one per 32 columns.
static __global__ void __launch_bounds__(WARP *WARP)
    add_partial_sums_kernel(float *to, const float *partial, unsigned rows, size_t stride, size_t columns) {
    __shared__ float sums[WARP][WARP + 1];
    size_t c = (size_t)blockIdx.x * WARP + threadIdx.x;
    float sum = 0;
    if (c < columns)
        for (unsigned r = threadIdx.y; r < rows; r += WARP) sum += partial[r * stride + c];
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();                                        // all row groups are summed
    float total = warp_sum(sums[threadIdx.x][threadIdx.y]); // one warp per column, transposed
    c = (size_t)blockIdx.x * WARP + threadIdx.y;
    if (threadIdx.x == 0 && c < columns) to[c] += total;
}

static inline void add_partial_sums(float *to, const float *partial, size_t rows, size_t stride,
                                    size_t columns, Stream stream) {
    launch(add_partial_sums_kernel, blocks_for(columns, WARP), dim3(WARP, WARP), 0, stream, to, partial,
           (unsigned)rows, stride, columns);
}

#endif
