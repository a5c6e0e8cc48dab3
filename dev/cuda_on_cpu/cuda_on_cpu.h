// CUDA on the CPU: CUDA C++ kernels, unmodified, as ordinary functions of a C++17 program, for tests,
// sanitizers and race detection on machines without a GPU. Header-only; needs nothing but the system.
//
//     g++ -x c++ -std=c++17 -include dev/cuda_on_cpu/cuda_on_cpu.h -Idev/cuda_on_cpu/include -I.
//         -fno-strict-aliasing -Wno-unknown-pragmas -Wno-psabi ... kernels.cu
//
// CUDA code reinterprets float* as float4* (hence -fno-strict-aliasing). Blocks use all processors with
// -fopenmp. Sources see the macro CUDA_EMULATION. Kernels are launched with cudaLaunchKernelEx, since <<<>>>
// is not C++, and declare dynamic shared memory with DYNAMIC_SHARED(type, name).
//
// Emulated, a file each:
//     language.h    keywords, vector types, threadIdx ...   intrinsics.h  atomics, fences, arithmetic
//     scheduler.h   grids, blocks, threads (fibers.h)       sync.h        __syncthreads, warp collectives
//     bf16.h        __nv_bfloat16, __half                   tensor.h      mma.sync, ldmatrix, cp.async
//     memory.h      device memory, out-of-bounds access     hopper.h      mbarrier, TMA, wgmma
//     runtime.h     the host API                            platform.h    compiler and sanitizers
//
// What CUDA's rules forbid ends the process with one message that starts with "cuda emulation:" and names the
// source lines or the CUDA thread involved. It is found
//   - always: divergent barriers and warps, deadlocks, shuffles from lanes that do not take part,
//     misaligned or misplaced operands of tensor instructions, asynchronous work that nobody waits for,
//     device memory used by the host, host memory passed to a kernel, access beyond an allocation,
//     asynchronous copies used before they are synchronised with;
//   - by wrong values, under some CUDA_EMULATION_SEED: missing barriers, buffers reused too early, data
//     used before it was waited for (fresh memory and data in flight are NaN);
//   - with g++ -fsanitize=thread: every race between threads of a block or between blocks that were
//     neighbours in time, with both source lines, also where only __threadfence is missing. (clang's race
//     detector tells no more than 250 threads apart.) Blocks run on one OS thread then;
//   - with -fsanitize=address,undefined: access out of bounds to the byte, also of __shared__ arrays;
//     misaligned vector access.
// Not found: uninitialised __shared__ arrays (dynamic shared memory is NaN), host pointers inside structs
// before they are used, memory that a GPU's limits forbid (registers, 48 KB of static shared memory), wrong
// order between streams.
//
// Environment:
//     CUDA_EMULATION_SEED=n     0 (default): threads in index order, asynchronous work as late as allowed;
//                               odd n: threads in uniformly random order, even n: shuffled, one warp running
//                               ahead; asynchronous work at random times
//     CUDA_EMULATION_MEMORY=n   bytes of device memory, default 8 GiB
//     CUDA_EMULATION_SHARED=n   bytes of shared memory that a block can have, default (and at most) 227 KB, as on
//                               sm_90; 101376 (99 KB) as on sm_86, sm_89, sm_120. May change while a program runs
#pragma once
#include "bf16.h"
#include "hopper.h"
#include "intrinsics.h"
#include "language.h"
#include "runtime.h"
#include "sync.h"
#include "tensor.h"
