// The definition of attention that every implementation in this folder follows, including its dropout mask.
//
//     S = scale * Q K^T     P = softmax(S)     A = dropout(P)     O = A V
//     lse_i = ln(sum_j exp(S_ij))
//
// Query head h reads key-value head h / (NH / NKV): NKV = NH is multi-head attention, NKV = 1 multi-query attention
// (arXiv 1911.02150), values in between are grouped-query attention (arXiv 2305.13245). With MASK_CAUSAL, query i
// sees the keys j <= i + Tk - Tq: the last query is aligned to the last key. A query that sees no key has O = 0 and
// lse = +inf.
//
// Backward needs only dO, Q, K, V, O, lse and the dropout key. mask_ij is 0 or 1, and keep is the exact keep rate;
// gradients of K and V are summed over their group of query heads:
//     D_i = sum_c dO_ic O_ic        P_ij = exp(S_ij - lse_i)
//     dV_j = sum_i A_ij dO_i        dP_ij = mask_ij / keep * (dO_i . V_j)      dS_ij = P_ij (dP_ij - D_i)
//     dQ_i = scale sum_j dS_ij K_j  dK_j = scale sum_i dS_ij Q_i
//
// Tensors: q, dq (B, Tq, NH, HS); k, v, dk, dv (B, Tk, NKV, HS); out, dout (B, Tq, NH, HS). B and T have arbitrary
// strides; the heads of a token are adjacent, and HS is contiguous. lse (B, NH, Tq) is fp32. All outputs are
// overwritten. HS is a multiple of 8 in 8 .. 256; Tq and Tk are at least 1; NKV divides NH; scale is finite and >= 0.
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
    // Strides in elements between tokens and between sequences. dq, dk, dv, dout have the strides of q, k, v, out.
    size_t q_token, kv_token, out_token;
    size_t q_sequence, kv_sequence, out_sequence;
    AttentionMask mask;
    float scale;
    Dropout dropout; // its key is that of RANDOM_ATTENTION_DROPOUT and the layer
    int atomics;     // 1: flash on a GPU adds up dQ in any order, which is faster but not reproducible
} Attention;

// Returns causal attention with scale 1 / sqrt(HS), with q, k and v in one row per token, qkv (B, T, NH + 2 NKV, HS),
// as the QKV matmul writes it: q at element 0, k at NH * HS, v at (NH + NKV) * HS.
static inline Attention attention_packed(size_t B, size_t T, size_t NH, size_t NKV, size_t HS,
                                         Dropout dropout) {
    size_t row = (NH + 2 * NKV) * HS;
    Attention a = {B,      T,       T,       NH,      NKV,         HS,          row,
                   row,    NH * HS, T * row, T * row, T * NH * HS, MASK_CAUSAL, 1.0f / sqrtf((float)HS),
                   dropout, 0};
    return a;
}

// Returns the number of keys that a query sees; they are the first ones.
static inline HOST_DEVICE size_t attention_visible_keys(const Attention *a, size_t query) {
    if (a->mask == MASK_NONE) return a->Tk;
    ptrdiff_t last = (ptrdiff_t)query + (ptrdiff_t)a->Tk - (ptrdiff_t)a->Tq;
    return last < 0 ? 0 : (size_t)last + 1 < a->Tk ? (size_t)last + 1 : a->Tk;
}

// ---- the dropout mask -------------------------------------------------------------------------------------
// The (Tq, Tk) matrix of one head is divided into blocks of 16 queries by 32 keys. The random bytes of a block are 32
// lanes of 16 bytes, with one Philox call per lane:
//
//     counter = (block row, 32 * block column + lane, sequence * NH + head, step)
//
// Element (q, k) of a block belongs to lane (q mod 8) * 4 + (k mod 8) / 2, and its byte in that lane is
// 8 * (q / 8) + 2 * (k / 8) + k mod 2. This is the accumulator layout of the mma.sync m16n8 instructions with queries
// as rows, so that a lane of a GPU needs only its own random bytes. The mask does not depend on tiles, device or how
// the batch is split.

enum { DROPOUT_BLOCK_QUERIES = 16, DROPOUT_BLOCK_KEYS = 32 };

// Returns 1 if element (query, key) is kept. This is the definition of the mask, for one element at a time.
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

// Writes the random bytes of a whole block: bytes[query][key].
void attention_dropout_block(uint8_t bytes[DROPOUT_BLOCK_QUERIES][DROPOUT_BLOCK_KEYS], const Attention *a,
                             size_t sequence, size_t head, size_t block_row, size_t block_column);

// ---- flash attention on the CPU (flash_cpu.c) -------------------------------------------------------------

// Exact and tiled; no tensor of size Tq * Tk is stored.
void attention_flash_forward_cpu(float *out, float *lse, const float *q, const float *k, const float *v,
                                 const Attention *a);
void attention_flash_backward_cpu(float *dq, float *dk, float *dv, const float *dout, const float *q,
                                  const float *k, const float *v, const float *out, const float *lse,
                                  const Attention *a);

#ifdef __cplusplus
}
#endif
#endif
