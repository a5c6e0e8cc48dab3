// Token and position embedding (GPT-2), with dropout on their sum:
//
//     forward     out (B, T, C) = dropout(wte[token] + wpe[position])      tokens (B, T), wte (V, C), wpe (T, C)
//     backward    dwte[token] += dropout'(dout), dwpe[position] += dropout'(dout)
//                 dout is overwritten with its product with the mask
//
// Gradients of weights are fp32. Only the tokens are saved for backward. The order of its sums depends on the tokens
// alone: on the CPU it is the order of the tokens (threads divide the channels), on a GPU that of
// embedding_token_kernel. Every token is below V.
#ifndef LAYERS_EMBEDDING_CUH
#define LAYERS_EMBEDDING_CUH

#include "common.h"
#include "dropout.h"

static inline void embedding_forward_cpu(float *out, const int32_t *tokens, const float *wte,
                                         const float *wpe, size_t B, size_t T, size_t C,
                                         const Dropout *dropout) {
#pragma omp parallel for schedule(dynamic, 16)
    for (size_t row = 0; row < B * T; row++) {
        float *restrict o = out + row * C;
        const float *token = wte + (size_t)tokens[row] * C, *position = wpe + row % T * C;
        for (size_t c = 0; c < C; c++) o[c] = token[c] + position[c];
        dropout_row(o, C, row % T, row / T, dropout);
    }
}

static inline void embedding_backward_cpu(float *dwte, float *dwpe, float *dout, const int32_t *tokens,
                                          size_t B, size_t T, size_t C, const Dropout *dropout) {
    enum { COLUMNS = 64 };
#pragma omp parallel
    {
#pragma omp for schedule(dynamic, 16)
        for (size_t row = 0; row < B * T; row++) dropout_row(dout + row * C, C, row % T, row / T, dropout);
#pragma omp for schedule(dynamic)
        for (size_t first = 0; first < C; first += COLUMNS) {
            size_t count = min_size(C - first, COLUMNS);
            for (size_t row = 0; row < B * T; row++) {
                const float *restrict d = dout + row * C + first;
                float *restrict token = dwte + (size_t)tokens[row] * C + first;
                float *restrict position = dwpe + row % T * C + first;
                for (size_t c = 0; c < count; c++) {
                    token[c] += d[c];
                    position[c] += d[c];
                }
            }
        }
    }
}

#ifdef DEVICE_CUDA
#include "kernel.cuh"

// One thread per eight channels of a token.
static __global__ void __launch_bounds__(256)
    embedding_forward_kernel(floatX *out, const int32_t *tokens, const floatX *wte, const floatX *wpe,
                             size_t N, size_t T, size_t C, Dropout dropout) {
    size_t i = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (i >= N * C) return;
    size_t row = i / C, c = i % C;
    Float8 x = load8(wte + (size_t)tokens[row] * C + c), position = load8(wpe + row % T * C + c);
#pragma unroll
    for (int k = 0; k < 8; k++) x.v[k] += position.v[k];
    dropout8(x, c, row % T, row / T, dropout);
    store8(out + i, x);
}

static __global__ void __launch_bounds__(256)
    embedding_dropout_kernel(floatX *dout, size_t N, size_t T, size_t C, Dropout dropout) {
    size_t i = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (i >= N * C) return;
    size_t row = i / C, c = i % C;
    Float8 x = load8(dout + i);
    dropout8(x, c, row % T, row / T, dropout);
    store8(dout + i, x);
}

// dwpe += sum over sequences, in order; one thread per eight channels of a position.
static __global__ void __launch_bounds__(256)
    embedding_position_kernel(float *dwpe, const floatX *dout, size_t B, size_t T, size_t C) {
    size_t i = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (i >= T * C) return;
    Float8 sum = load8(dwpe + i);
    for (size_t b = 0; b < B; b++) {
        Float8 x = load8(dout + b * T * C + i);
#pragma unroll
        for (int k = 0; k < 8; k++) sum.v[k] += x.v[k];
    }
    store8(dwpe + i, sum);
}

// dwte without atomics. Block x owns the token ids x, x + gridDim.x, ... (interleaved, because frequent ids are often
// close together). It processes the tokens in segments. First, all threads list in shared memory, in order, the tokens
// of the segment whose ids the block owns. Then, for one id and 256 channels (eight per lane) at a time, warp w adds
// the w-th, (w + 8)-th, ... row of the id, and the sums of the warps are added in the order of the warps.
enum { EMBEDDING_WARPS = 8, EMBEDDING_IDS = 32, EMBEDDING_SEGMENT = 4096 };

struct EmbeddingHits {
    uint16_t row[EMBEDDING_SEGMENT];         // index within the segment, in the order of the tokens
    uint8_t id[EMBEDDING_SEGMENT];           // token / gridDim.x
    unsigned count_of_warp[EMBEDDING_WARPS]; // hits in the part of the segment that each warp searches
    unsigned has_id;                         // bit i: id i occurs
};

// Lists those of tokens first .. first + EMBEDDING_SEGMENT - 1 that belong to the block. Returns their number.
__device__ __forceinline__ unsigned list_tokens(EmbeddingHits &list, const int32_t *tokens, size_t first,
                                                size_t N) {
    constexpr unsigned PER_WARP = EMBEDDING_SEGMENT / EMBEDDING_WARPS;
    unsigned warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, count = 0;
    if (threadIdx.x == 0) list.has_id = 0;
    for (int pass = 0; pass < 2; pass++) { // count, then write after the hits of earlier warps
        unsigned place = 0;
        if (pass == 1)
            for (unsigned w = 0; w < warp; w++) place += list.count_of_warp[w];
        for (unsigned i = warp * PER_WARP; i < (warp + 1) * PER_WARP && first + i < N; i += WARP) {
            size_t row = first + i + lane;
            unsigned token = row < N ? (unsigned)tokens[row] : 0;
            bool mine = row < N && token % gridDim.x == blockIdx.x;
            unsigned found = __ballot_sync((unsigned)FULL_WARP, mine);
            if (pass == 1 && mine) {
                unsigned at = place + (unsigned)__popc(found & ((1u << lane) - 1));
                list.row[at] = (uint16_t)(i + lane);
                list.id[at] = (uint8_t)(token / gridDim.x);
                atomicOr(&list.has_id, 1u << (token / gridDim.x));
            }
            place += (unsigned)__popc(found);
        }
        if (pass == 0 && lane == 0) list.count_of_warp[warp] = place;
        __syncthreads(); // pass 0: all counts are written; pass 1: the list is complete
    }
    for (int w = 0; w < EMBEDDING_WARPS; w++) count += list.count_of_warp[w];
    return count;
}

// Returns the sum of this warp's rows of one id, channels c .. c + 7. `total` becomes the number of rows of the id.
__device__ __forceinline__ Float8 sum_rows(const EmbeddingHits &list, unsigned count, unsigned id,
                                           const floatX *dout, size_t C, size_t c, unsigned &total) {
    Float8 sum = {};
    total = 0;
    for (unsigned i = 0; i < count; i++) {
        if (list.id[i] != id || total++ % EMBEDDING_WARPS != threadIdx.x / WARP || c >= C) continue;
        Float8 x = load8(dout + list.row[i] * C + c);
#pragma unroll
        for (int k = 0; k < 8; k++) sum.v[k] += x.v[k];
    }
    return sum;
}

static __global__ void __launch_bounds__(EMBEDDING_WARPS *WARP)
    embedding_token_kernel(float *dwte, const floatX *dout, const int32_t *tokens, size_t N, size_t C) {
    __shared__ EmbeddingHits list;
    __shared__ __align__(16) float sums[EMBEDDING_WARPS][WARP * 8];
    unsigned warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    for (size_t first = 0; first < N; first += EMBEDDING_SEGMENT) {
        unsigned count = list_tokens(list, tokens, first, N);
        for (unsigned ids = list.has_id; ids != 0; ids &= ids - 1) {
            unsigned id = (unsigned)__ffs((int)ids) - 1, rows;
            for (size_t slab = 0; slab < C; slab += WARP * 8) {
                Float8 sum = sum_rows(list, count, id, dout + first * C, C, slab + lane * 8, rows);
                store8(&sums[warp][lane * 8], sum);
                __syncthreads(); // the sums of all warps are written
                size_t c = slab + threadIdx.x;
                if (c < C) {
                    float total = 0;
                    for (unsigned w = 0; w < EMBEDDING_WARPS && w < rows; w++) total += sums[w][threadIdx.x];
                    dwte[((size_t)id * gridDim.x + blockIdx.x) * C + c] += total;
                }
                __syncthreads(); // sums may be written again
            }
        }
        __syncthreads(); // all threads have read the list; it may be written again
    }
}

static inline void embedding_forward(floatX *out, const int32_t *tokens, const floatX *wte, const floatX *wpe,
                                     size_t B, size_t T, size_t C, const Dropout *dropout, Stream stream) {
    CHECK(C % 8 == 0);
    launch(embedding_forward_kernel, blocks_for(B * T * C / 8, 256), 256, 0, stream, out, tokens, wte, wpe,
           B * T, T, C, *dropout);
}

static inline void embedding_backward(float *dwte, float *dwpe, floatX *dout, const int32_t *tokens, size_t B,
                                      size_t T, size_t C, size_t V, const Dropout *dropout, Stream stream) {
    CHECK(C % 8 == 0);
    if (dropout->threshold < DROPOUT_NONE)
        launch(embedding_dropout_kernel, blocks_for(B * T * C / 8, 256), 256, 0, stream, dout, B * T, T, C,
               *dropout);
    launch(embedding_position_kernel, blocks_for(T * C / 8, 256), 256, 0, stream, dwpe, dout, B, T, C);
    launch(embedding_token_kernel, blocks_for(V, EMBEDDING_IDS), EMBEDDING_WARPS * WARP, 0, stream, dwte,
           dout, tokens, B * T, C);
}
#else
static inline void embedding_forward(floatX *out, const int32_t *tokens, const floatX *wte, const floatX *wpe,
                                     size_t B, size_t T, size_t C, const Dropout *dropout, Stream stream) {
    (void)stream;
    embedding_forward_cpu(out, tokens, wte, wpe, B, T, C, dropout);
}
static inline void embedding_backward(float *dwte, float *dwpe, floatX *dout, const int32_t *tokens, size_t B,
                                      size_t T, size_t C, size_t V, const Dropout *dropout, Stream stream) {
    (void)V, (void)stream;
    embedding_backward_cpu(dwte, dwpe, dout, tokens, B, T, C, dropout);
}
#endif

#endif
