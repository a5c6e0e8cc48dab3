// What attention is: the contract that every implementation in this folder fulfils, and its dropout mask.
//
//     S = scale * Q K^T     P = softmax(S)     A = dropout(P)     O = A V
//     lse_i = ln(sum_j exp(S_ij))
//
// Query head h reads key-value head h / (NH / NKV): NKV = NH is multi-head attention, NKV = 1 multi-query
// (arXiv 1911.02150), in between grouped-query (arXiv 2305.13245). MASK_CAUSAL lets query i see key
// j <= i + Tk - Tq: the last query is aligned to the last key. A query that sees nothing gets O = 0 and
// lse = +inf.
//
// Backward, from dO, Q, K, V, O, lse and the dropout key alone, with mask_ij in {0, 1} and keep the exact rate
// of what is kept; gradients of K and V are sums over their group of query heads:
//     D_i = sum_c dO_ic O_ic        P_ij = exp(S_ij - lse_i)
//     dV_j = sum_i A_ij dO_i        dP_ij = mask_ij / keep * (dO_i . V_j)      dS_ij = P_ij (dP_ij - D_i)
//     dQ_i = scale sum_j dS_ij K_j  dK_j = scale sum_i dS_ij Q_i
//
// Tensors: q, dq (B, Tq, NH, HS); k, v, dk, dv (B, Tk, NKV, HS); out, dout (B, Tq, NH, HS); all with strides,
// HS contiguous, heads next to each other; lse (B, NH, Tq) fp32. All outputs are overwritten. HS is a
// multiple of 8, 8 .. 256; Tq and Tk at least 1; NKV divides NH; scale finite and >= 0.
#ifndef ATTENTION_ATTENTION_H
#define ATTENTION_ATTENTION_H

#include "layers/common.h"
#include "layers/dropout.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum { MASK_NONE, MASK_CAUSAL } AttentionMask;
enum { ATTENTION_LARGEST_HEAD = 256 };

typedef struct {
    size_t B, Tq, Tk, NH, NKV, HS;
    // Elements from one token to the next, and from one sequence to the next; dq, dk, dv are laid out as q,
    // k, v, dout as out.
    size_t q_token, kv_token, out_token;
    size_t q_sequence, kv_sequence, out_sequence;
    AttentionMask mask;
    float scale;
    Dropout dropout; // key of RANDOM_ATTENTION_DROPOUT and the layer
    int atomics;     // flash on a GPU may add up dQ in any order: faster, other roundings each time
} Attention;

// q, k and v packed in one row a token, qkv (B, T, NH + 2 NKV, HS), as the QKV matmul writes it: q at element
// 0, k at NH * HS, v at (NH + NKV) * HS. Causal, scale 1 / sqrt(HS).
static inline Attention attention_packed(size_t B, size_t T, size_t NH, size_t NKV, size_t HS,
                                         Dropout dropout) {
    size_t row = (NH + 2 * NKV) * HS;
    Attention a = {B,      T,       T,       NH,      NKV,         HS,          row,
                   row,    NH * HS, T * row, T * row, T * NH * HS, MASK_CAUSAL, 1.0f / sqrtf((float)HS),
                   dropout, 0};
    return a;
}

// How many of the keys 0 .. Tk - 1 query i sees; they are the first ones.
static inline HOST_DEVICE size_t attention_visible_keys(const Attention *a, size_t query) {
    if (a->mask == MASK_NONE) return a->Tk;
    ptrdiff_t last = (ptrdiff_t)query + (ptrdiff_t)a->Tk - (ptrdiff_t)a->Tq;
    return last < 0 ? 0 : (size_t)last + 1 < a->Tk ? (size_t)last + 1 : a->Tk;
}

// ---- the dropout mask -------------------------------------------------------------------------------------
// The (Tq, Tk) matrix of one head is cut into blocks of 16 queries by 32 keys; a block's decisions are 32 lanes
// of 16 bytes, one Philox call a lane with
//
//     counter = (block row, 32 * block column + lane, sequence * NH + head, step)
//
// Element (q, k) of a block belongs to lane (q mod 8) * 4 + (k mod 8) / 2; there, its byte is
// 8 * (q / 8) + 2 * (k / 8) + k mod 2. This is the accumulator layout of the mma.sync m16n8 instructions with
// queries as rows, so that a GPU's lane needs no other lane's numbers. Independent of tiles, device and batch
// split.

enum { DROPOUT_BLOCK_QUERIES = 16, DROPOUT_BLOCK_KEYS = 32 };

// 1 where element (query, key) is kept: the definition, one element at a time.
static inline HOST_DEVICE int attention_dropout_keeps(const Attention *a, size_t sequence, size_t head,
                                                      size_t query, size_t key) {
    uint32_t q = (uint32_t)(query % DROPOUT_BLOCK_QUERIES), k = (uint32_t)(key % DROPOUT_BLOCK_KEYS);
    uint32_t lane = q % 8 * 4 + k % 8 / 2, byte = 8 * (q / 8) + 2 * (k / 8) + k % 2;
    Philox random = philox(
        a->dropout.key, (uint32_t)(query / DROPOUT_BLOCK_QUERIES),
        (uint32_t)(key / DROPOUT_BLOCK_KEYS) * 32 + lane,
        (a->dropout.first_sequence + (uint32_t)sequence) * (uint32_t)a->NH + (uint32_t)head, a->dropout.step);
    return philox_byte(&random, (int)byte) < a->dropout.threshold;
}

// The random bytes of a whole block: bytes[query][key].
void attention_dropout_block(uint8_t bytes[DROPOUT_BLOCK_QUERIES][DROPOUT_BLOCK_KEYS], const Attention *a,
                             size_t sequence, size_t head, size_t block_row, size_t block_column);

// ---- flash attention on the CPU (flash_cpu.c) -------------------------------------------------------------

// Exact and tiled; nothing of size Tq * Tk is stored.
void attention_flash_forward_cpu(float *out, float *lse, const float *q, const float *k, const float *v,
                                 const Attention *a);
void attention_flash_backward_cpu(float *dq, float *dk, float *dv, const float *dout, const float *q,
                                  const float *k, const float *v, const float *out, const float *lse,
                                  const Attention *a);

#ifdef __cplusplus
}
#endif
#endif
