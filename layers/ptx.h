// All inline PTX of sm_80: one function per instruction. Under emulation the same functions are in
// dev/cuda_on_cpu/tensor.h. All of them are executed by whole warps, without divergence.
//
// "Lane" is threadIdx.x % 32. A register of two bf16 holds the element with the lower column (or row) in its
// low half.
#ifndef LAYERS_PTX_H
#define LAYERS_PTX_H

#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <stdint.h>

#ifdef CUDA_EMULATION
#include "dev/cuda_on_cpu/tensor.h"
#else

// Declares `name`, a pointer to the dynamic shared memory of the kernel, aligned for every swizzle.
#define DYNAMIC_SHARED(type, name)                                                                           \
    extern __shared__ __align__(1024) unsigned char dynamic_shared_memory[];                                 \
    type *name = reinterpret_cast<type *>(dynamic_shared_memory)

__device__ __forceinline__ uint32_t shared_address(const void *p) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32: d (16, 8) = a (16, 16) b (16, 8) + c (16, 8).
//   a[r], elements 0 and 1:  row lane / 4 + 8 * (r % 2), columns lane % 4 * 2 + 8 * (r / 2) and the next
//   b[r], elements 0 and 1:  rows lane % 4 * 2 + 8 * r and the next, column lane / 4
//   c[i], d[i]:              row lane / 4 + 8 * (i / 2), column lane % 4 * 2 + i % 2
__device__ __forceinline__ void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4],
                                                  const uint32_t (&b)[2], const float (&c)[4]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
                 : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]),
                   "f"(c[2]), "f"(c[3]));
}

// ldmatrix.sync.aligned.m8n8.x4.shared.b16: loads four 8x8 matrices. Lane i supplies the address of row i % 8 (16
// bytes, aligned) of matrix i / 8; r[m] receives row lane / 4, columns lane % 4 * 2 and the next, of matrix m.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16: loads the transposed matrices; r[m] receives rows lane % 4 * 2 and
// the next, column lane / 4, of matrix m as it is stored in memory.
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// cp.async.cg.shared.global: copies 16 bytes from global to shared memory, both aligned. Unless `valid`, writes zeros
// and does not read the source, which must still be aligned.
__device__ __forceinline__ void cp_async_16(void *target, const void *source, bool valid = true) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(target)), "l"(source),
                 "r"(valid ? 16 : 0)
                 : "memory");
}

// cp.async.commit_group: commits the thread's current group of copies.
__device__ __forceinline__ void cp_async_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// cp.async.wait_group: waits until all but the `allowed` most recent groups of this thread are complete. Other threads
// see the data after a barrier.
template <int allowed> __device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(allowed) : "memory");
}

// ex2.approx.ftz.f32: 2^x to 2 units in the last place; 0 for -inf and where the result is subnormal.
__device__ __forceinline__ float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Returns threadIdx.x, read again: values that a loop computes from it are recomputed each time instead of occupying
// registers in between.
__device__ __forceinline__ unsigned reread_thread_index() {
    unsigned x;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(x));
    return x;
}

// ld.acquire.gpu and st.release.gpu of a number in global memory. After a load that returns the stored number, a thread
// sees everything that the storing thread wrote before the store, and that its block wrote before a barrier that
// precedes the store. Unlike the other functions, they may be called by single threads.
__device__ __forceinline__ unsigned load_acquire(const unsigned *p) {
    unsigned x;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];"
                 : "=r"(x)
                 : "l"(__cvta_generic_to_global(p))
                 : "memory");
    return x;
}
__device__ __forceinline__ void store_release(unsigned *p, unsigned x) {
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(__cvta_generic_to_global(p)), "r"(x) : "memory");
}

#endif
#endif
