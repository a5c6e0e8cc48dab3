// CUDA on the CPU: runs unmodified CUDA C++ kernels as ordinary functions of a C++17 program, for tests,
// sanitizers and race detection on machines without a GPU. Header-only, without dependencies.
//
//     g++ -x c++ -std=c++17 -include dev/cuda_on_cpu/cuda_on_cpu.h -Idev/cuda_on_cpu/include -I.
//         -fno-strict-aliasing -Wno-unknown-pragmas -Wno-psabi ... kernels.cu
//
// CUDA code reinterprets float* as float4*, hence -fno-strict-aliasing. With -fopenmp, blocks use all processors.
// The macro CUDA_EMULATION is defined. Kernels are launched with cudaLaunchKernelEx, since <<<>>> is not C++, and
// declare dynamic shared memory with DYNAMIC_SHARED(type, name).
//
// Files:
//     language.h    keywords, vector types, threadIdx ...   intrinsics.h  atomics, fences, arithmetic
//     scheduler.h   grids, blocks, threads (fibers.h)       sync.h        __syncthreads, warp collectives
//     bf16.h        __nv_bfloat16, __half                   tensor.h      mma.sync, ldmatrix, cp.async
//     memory.h      device memory, out-of-bounds access     hopper.h      mbarrier, TMA, wgmma
//     runtime.h     the host API                            platform.h    compiler and sanitizers
//
// A violation of CUDA's rules ends the process with one message that starts with "cuda emulation:" and names the
// source lines or the CUDA thread involved. Violations are found
//   - always: divergent barriers and warps, deadlocks, shuffles from lanes that do not take part,
//     misaligned or misplaced operands of tensor instructions, asynchronous work that is not waited for,
//     device memory used by the host, host memory passed to a kernel, access beyond an allocation,
//     results of asynchronous copies used before synchronisation;
//   - by wrong values, with some CUDA_EMULATION_SEED: missing barriers, buffers reused too early, data
//     used before it was waited for (fresh memory and data in flight are NaN);
//   - with g++ -fsanitize=thread: every race between threads of a block, or between blocks that ran one directly
//     after the other, with both source lines, even if only __threadfence is missing. All blocks then run on one
//     OS thread. (clang's race detector distinguishes at most 250 threads.);
//   - with -fsanitize=address,undefined: access out of bounds to the byte, including __shared__ arrays;
//     misaligned vector access.
// Not found are uninitialised __shared__ arrays (dynamic shared memory is NaN), host pointers inside structs
// before they are used, use of more registers or static shared memory (48 KB) than a GPU has, and wrong order
// between streams.
//
// Environment:
//     CUDA_EMULATION_SEED=n     0 (default): threads run in index order, asynchronous work as late as allowed;
//                               odd n: threads in uniformly random order; even n: shuffled, one warp runs
//                               ahead; for all n > 0 asynchronous work at random times
//     CUDA_EMULATION_MEMORY=n   bytes of device memory, default 8 GiB
//     CUDA_EMULATION_SHARED=n   bytes of shared memory that a block can have, default and maximum 227 KB, as on
//                               sm_90; 101376 (99 KB) is that of sm_86, sm_89, sm_120; may change during a run
#pragma once
#include "bf16.h"
#include "hopper.h"
#include "intrinsics.h"
#include "language.h"
#include "runtime.h"
#include "sync.h"
#include "tensor.h"
