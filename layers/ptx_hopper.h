// All inline PTX of sm_90a: one function per instruction. Under emulation the same functions are in
// dev/cuda_on_cpu/hopper.h. Shared memory here is dynamic shared memory (DYNAMIC_SHARED).
#ifndef LAYERS_PTX_HOPPER_H
#define LAYERS_PTX_HOPPER_H

#include "ptx.h"
#include <cuda.h>

#ifdef CUDA_EMULATION
#include "dev/cuda_on_cpu/hopper.h"
#else

// ---- mbarrier: a phase completes after `count` arrivals and all expected bytes ----------------------------

// mbarrier.init: executed by one thread; fence_mbarrier_init and __syncthreads must follow before any other use.
__device__ __forceinline__ void mbarrier_init(uint64_t *barrier, unsigned count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count)
                 : "memory");
}

// fence.mbarrier_init: makes mbarrier.init visible to the asynchronous proxy.
__device__ __forceinline__ void fence_mbarrier_init() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// fence.proxy.async: required before TMA or wgmma access shared memory that ordinary instructions wrote or read.
__device__ __forceinline__ void fence_proxy_async() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// mbarrier.arrive: arrives once.
__device__ __forceinline__ void mbarrier_arrive(uint64_t *barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// mbarrier.arrive.expect_tx: arrives, and makes the phase wait for this many more bytes.
__device__ __forceinline__ void mbarrier_arrive_expect_tx(uint64_t *barrier, unsigned bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
                 "r"(bytes)
                 : "memory");
}

// mbarrier.try_wait.parity: waits until the phase of this parity (0 for the first) has completed.
__device__ __forceinline__ void mbarrier_wait(uint64_t *barrier, unsigned parity) {
    asm volatile("{\n"
                 ".reg .pred done;\n"
                 "wait:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@!done bra wait;\n"
                 "}" ::"r"(shared_address(barrier)),
                 "r"(parity)
                 : "memory");
}

// ---- TMA --------------------------------------------------------------------------------------------------

// cp.async.bulk.tensor.2d, global to shared: copies the box of the map at (x, y), with zeros outside the tensor.
// Executed by one thread. The bytes of the whole box count for the current phase of the barrier.
__device__ __forceinline__ void tma_load_2d(void *shared, const CUtensorMap *map, uint64_t *barrier, int x,
                                            int y) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%3, %4}], [%2];" ::"r"(shared_address(shared)),
                 "l"(map), "r"(shared_address(barrier)), "r"(x), "r"(y)
                 : "memory");
}

// ---- wgmma: executed by the four warps of a warpgroup -----------------------------------------------------

// wgmma.fence: required before the first wgmma, and whenever its registers were accessed in between.
__device__ __forceinline__ void wgmma_fence() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

// wgmma.commit_group: commits the current group of operations.
__device__ __forceinline__ void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// wgmma.wait_group: waits until all but the `allowed` most recent groups are complete.
template <int allowed> __device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(allowed) : "memory");
}

// wgmma.mma_async.m64n64k16.f32.bf16.bf16: d (64, n) = a (64, 16) b (16, n) + (scale_d ? d : 0). a and b are
// descriptors of operands in shared memory; "MN-major" means transposed: the 64 rows, or n columns, are contiguous
// instead of the 16.
//   d[i]: row warp % 4 * 16 + lane / 4 + 8 * (i / 2 % 2), column i / 4 * 8 + lane % 4 * 2 + i % 2
template <int n, bool a_mn_major = false, bool b_mn_major = false>
__device__ __forceinline__ void wgmma_bf16(float (&d)[n / 2], uint64_t a, uint64_t b, int scale_d) {
    static_assert(n == 64, "each n is another instruction: only this one is implemented");
    asm volatile("{\n"
                 ".reg .pred p;\n"
                 "setp.ne.b32 p, %34, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
                 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
                 "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, "
                 "%32, %33, p, 1, 1, %35, %36;\n"
                 "}"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),
                   "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]),
                   "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]),
                   "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]),
                   "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
                 : "l"(a), "l"(b), "r"(scale_d), "n"(int(a_mn_major)), "n"(int(b_mn_major)));
}

#endif

// Returns the descriptor of a wgmma operand in shared memory: address, leading and stride byte offsets, and a swizzle
// of 128 bytes.
//   K-major:  64 columns of bf16 per row, rows of 128 bytes; stride = 1024 bytes between groups of 8 rows; leading is
//             unused; 16 columns further is 32 bytes further in the address
//   MN-major: 64 rows (of the operand) are contiguous; stride = bytes between groups of 8 along k, leading = bytes
//             between groups of 64 along m or n
__device__ __forceinline__ uint64_t descriptor_128b(const void *shared, unsigned leading, unsigned stride) {
    auto field = [](uint64_t bytes) { return (bytes & 0x3ffff) >> 4; };
    return field(__cvta_generic_to_shared(shared)) | field(leading) << 16 | field(stride) << 32 |
           uint64_t(1) << 62;
}

#endif
