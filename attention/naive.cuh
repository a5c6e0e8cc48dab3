// Attention computed directly by its definition (attention.h), one query at a time. The (Tq, Tk) probabilities are
// stored.
//
//     forward     computes out, lse and the probabilities (B, NH, Tq, Tk), fp32, before dropout, saved for backward
//     backward    overwrites dq, dk, dv, from dout, q, k, v, out and the probabilities
//
// On the CPU, threads divide the (sequence, head) pairs in forward and the (sequence, key-value head) pairs in
// backward. On a GPU there is one warp per row, without tensor cores: it is a reference, and slow.
#ifndef ATTENTION_NAIVE_CUH
#define ATTENTION_NAIVE_CUH

#include "attention.h"

static inline float attention_dot(const float *restrict a, const float *restrict b, size_t n) {
    float sum;
    SUM_IN_LANES(sum, n, a[i] * b[i]);
    return sum;
}

static inline void add_scaled(float *restrict to, const float *restrict from, float factor, size_t n) {
    for (size_t i = 0; i < n; i++) to[i] += factor * from[i];
}

// Returns A_ij / P_ij: 0 or the inverse keep rate; 1 without dropout.
static inline float attention_dropout_factor(const Attention *a, size_t b, size_t head, size_t query,
                                             size_t key) {
    if (a->dropout.threshold == DROPOUT_NONE) return 1.0f;
    return attention_dropout_keeps(a, b, head, query, key) ? dropout_scale(&a->dropout) : 0.0f;
}

// Computes p (Tk), the probabilities of one query, and its out (HS) and lse.
static inline void naive_forward_query(float *restrict out, float *lse, float *restrict p, const float *q,
                                       const float *k, const float *v, const Attention *a, size_t b,
                                       size_t head, size_t query) {
    size_t visible = attention_visible_keys(a, query);
    float maximum = -INFINITY, sum;
    for (size_t j = 0; j < visible; j++) {
        p[j] = a->scale * attention_dot(q, k + j * a->kv_token, a->HS);
        maximum = p[j] > maximum ? p[j] : maximum;
    }
    SUM_IN_LANES(sum, visible, (p[i] = fast_exp(p[i] - maximum)));
    for (size_t j = 0; j < visible; j++) p[j] /= sum;
    for (size_t j = visible; j < a->Tk; j++) p[j] = 0.0f;
    *lse = visible == 0 ? INFINITY : maximum + logf(sum);
    for (size_t c = 0; c < a->HS; c++) out[c] = 0.0f;
    for (size_t j = 0; j < visible; j++)
        add_scaled(out, v + j * a->kv_token, p[j] * attention_dropout_factor(a, b, head, query, j), a->HS);
}

static inline void attention_naive_forward_cpu(float *out, float *lse, float *probabilities, const float *q,
                                               const float *k, const float *v, const Attention *a) {
#pragma omp parallel for collapse(2) schedule(dynamic)
    for (size_t b = 0; b < a->B; b++)
        for (size_t head = 0; head < a->NH; head++) {
            size_t kv = b * a->kv_sequence + head / (a->NH / a->NKV) * a->HS;
            for (size_t i = 0; i < a->Tq; i++) {
                size_t row = (b * a->NH + head) * a->Tq + i;
                naive_forward_query(out + b * a->out_sequence + i * a->out_token + head * a->HS, &lse[row],
                                    probabilities + row * a->Tk,
                                    q + b * a->q_sequence + i * a->q_token + head * a->HS, k + kv, v + kv, a,
                                    b, head, i);
            }
        }
}

// For one query: dq =, dk +=, dv +=.
static inline void naive_backward_query(float *restrict dq, float *restrict dk, float *restrict dv,
                                        const float *dout, const float *q, const float *k, const float *v,
                                        const float *out, const float *p, const Attention *a, size_t b,
                                        size_t head, size_t query) {
    float D = attention_dot(dout, out, a->HS);
    for (size_t c = 0; c < a->HS; c++) dq[c] = 0.0f;
    for (size_t j = 0; j < attention_visible_keys(a, query); j++) {
        size_t key = j * a->kv_token;
        float factor = attention_dropout_factor(a, b, head, query, j);
        float ds = a->scale * p[j] * (factor * attention_dot(dout, v + key, a->HS) - D);
        add_scaled(dv + key, dout, p[j] * factor, a->HS);
        add_scaled(dk + key, q, ds, a->HS);
        add_scaled(dq, k + key, ds, a->HS);
    }
}

static inline void attention_naive_backward_cpu(float *dq, float *dk, float *dv, const float *dout,
                                                const float *q, const float *k, const float *v,
                                                const float *out, const float *probabilities,
                                                const Attention *a) {
    size_t group = a->NH / a->NKV;
#pragma omp parallel for collapse(2) schedule(dynamic)
    for (size_t b = 0; b < a->B; b++)
        for (size_t kv_head = 0; kv_head < a->NKV; kv_head++) {
            size_t kv = b * a->kv_sequence + kv_head * a->HS;
            for (size_t j = 0; j < a->Tk; j++) {
                memset(dk + kv + j * a->kv_token, 0, a->HS * sizeof(float));
                memset(dv + kv + j * a->kv_token, 0, a->HS * sizeof(float));
            }
            for (size_t head = kv_head * group; head < (kv_head + 1) * group; head++)
                for (size_t i = 0; i < a->Tq; i++) {
                    size_t query = b * a->q_sequence + i * a->q_token + head * a->HS;
                    size_t output = b * a->out_sequence + i * a->out_token + head * a->HS;
                    naive_backward_query(
                        dq + query, dk + kv, dv + kv, dout + output, q + query, k + kv, v + kv, out + output,
                        probabilities + ((b * a->NH + head) * a->Tq + i) * a->Tk, a, b, head, i);
                }
        }
}

#ifdef DEVICE_CUDA
#include "layers/kernel.cuh"

// On a GPU, the sign bit of a stored probability is 1 if dropout drops it.
__device__ __forceinline__ float mark_dropped(float p, bool keep) {
    return __uint_as_float(__float_as_uint(p) | (keep ? 0u : 0x80000000u));
}
__device__ __forceinline__ bool is_kept(float p) {
    return __float_as_uint(p) >> 31 == 0;
}

__device__ __forceinline__ float dot_in_lane(const floatX *a, const floatX *b, size_t n) {
    float sum = 0;
    for (size_t c = 0; c < n; c += 8) {
        Float8 x = load8(a + c), y = load8(b + c);
#pragma unroll
        for (int k = 0; k < 8; k++) sum += x.v[k] * y.v[k];
    }
    return sum;
}

__device__ __forceinline__ void add_scaled8(Float8 &sum, const Float8 &x, float factor) {
#pragma unroll
    for (int k = 0; k < 8; k++) sum.v[k] += factor * x.v[k];
}

// Offsets of one query of one head of sequence b.
struct AttentionRow {
    size_t query, output; // in q and in out
    size_t kv;            // of its key-value head in k and v
    size_t row;           // row of lse and of the probabilities
};
__device__ __forceinline__ AttentionRow attention_row(const Attention &a, size_t b, size_t head, size_t i) {
    return {b * a.q_sequence + i * a.q_token + head * a.HS,
            b * a.out_sequence + i * a.out_token + head * a.HS,
            b * a.kv_sequence + head / (a.NH / a.NKV) * a.HS, (b * a.NH + head) * a.Tq + i};
}

enum { NAIVE_WARPS = 4 };

// One warp per query: one lane per key for the scores, then eight channels per lane for the output.
static __global__ void __launch_bounds__(NAIVE_WARPS *WARP, 1)
    attention_naive_forward_kernel(floatX *out, float *lse, float *probabilities, const floatX *q,
                                   const floatX *k, const floatX *v, Attention a) {
    size_t index = (size_t)blockIdx.x * NAIVE_WARPS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (index >= a.B * a.NH * a.Tq) return;
    size_t i = index % a.Tq, head = index / a.Tq % a.NH, b = index / (a.Tq * a.NH);
    AttentionRow at = attention_row(a, b, head, i);
    size_t visible = attention_visible_keys(&a, i);
    float *p = probabilities + at.row * a.Tk, maximum = -INFINITY, sum = 0;
    for (size_t j = lane; j < visible; j += WARP) {
        p[j] = a.scale * dot_in_lane(q + at.query, k + at.kv + j * a.kv_token, a.HS);
        maximum = fmaxf(maximum, p[j]);
    }
    maximum = warp_max(maximum);
    for (size_t j = lane; j < visible; j += WARP) sum += __expf(p[j] - maximum);
    sum = warp_sum(sum);
    for (size_t j = lane; j < a.Tk; j += WARP) {
        float probability = j < visible ? __expf(p[j] - maximum) / sum : 0.0f;
        bool keep = a.dropout.threshold == DROPOUT_NONE || j >= visible ||
                    attention_dropout_keeps(&a, b, head, i, j);
        p[j] = mark_dropped(probability, keep);
    }
    if (lane == 0) lse[at.row] = visible == 0 ? INFINITY : maximum + logf(sum);
    __syncwarp(); // the probabilities of the row are visible to all lanes
    if (lane * 8 >= a.HS) return;
    Float8 o = {};
    for (size_t j = 0; j < visible; j++)
        if (is_kept(p[j]))
            add_scaled8(o, load8(v + at.kv + j * a.kv_token + lane * 8), p[j] * dropout_scale(&a.dropout));
    store8(out + at.output + lane * 8, o);
}

// Returns dS_ij for a visible pair, without the factor scale.
__device__ __forceinline__ float naive_dscore(float p, const floatX *dout, const floatX *v, float D,
                                              const Attention &a) {
    float dp = is_kept(p) ? dropout_scale(&a.dropout) * dot_in_lane(dout, v, a.HS) : 0.0f;
    return fabsf(p) * (dp - D);
}

// dq, with one warp per query: dS of 32 keys at a time, one per lane, then eight channels per lane.
static __global__ void __launch_bounds__(NAIVE_WARPS *WARP, 1)
    attention_naive_dq_kernel(floatX *dq, const floatX *dout, const floatX *k, const floatX *v,
                              const floatX *out, const float *probabilities, Attention a) {
    size_t index = (size_t)blockIdx.x * NAIVE_WARPS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (index >= a.B * a.NH * a.Tq) return;
    size_t i = index % a.Tq, head = index / a.Tq % a.NH, b = index / (a.Tq * a.NH);
    AttentionRow at = attention_row(a, b, head, i);
    size_t visible = attention_visible_keys(&a, i);
    float D = dot_in_lane(dout + at.output, out + at.output, a.HS);
    Float8 sum = {};
    for (size_t first = 0; first < visible; first += WARP) {
        size_t j = first + lane;
        float ds = j < visible ? naive_dscore(probabilities[at.row * a.Tk + j], dout + at.output,
                                              v + at.kv + j * a.kv_token, D, a)
                               : 0.0f;
        for (int other = 0; other < WARP && first + other < visible; other++) {
            float factor = a.scale * __shfl_sync((unsigned)FULL_WARP, ds, other);
            if (lane * 8 < a.HS)
                add_scaled8(sum, load8(k + at.kv + (first + other) * a.kv_token + lane * 8), factor);
        }
    }
    if (lane * 8 < a.HS) store8(dq + at.query + lane * 8, sum);
}

// dk and dv, with one warp per key: the queries of the key's heads 32 at a time, one per lane, then eight channels per
// lane.
static __global__ void __launch_bounds__(NAIVE_WARPS *WARP, 1)
    attention_naive_dkv_kernel(floatX *dk, floatX *dv, const floatX *dout, const floatX *q, const floatX *v,
                               const floatX *out, const float *probabilities, Attention a) {
    size_t index = (size_t)blockIdx.x * NAIVE_WARPS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (index >= a.B * a.NKV * a.Tk) return;
    size_t j = index % a.Tk, kv_head = index / a.Tk % a.NKV, b = index / (a.Tk * a.NKV);
    size_t group = a.NH / a.NKV, kv = b * a.kv_sequence + j * a.kv_token + kv_head * a.HS;
    Float8 dk_sum = {}, dv_sum = {};
    for (size_t head = kv_head * group; head < (kv_head + 1) * group; head++)
        for (size_t first = 0; first < a.Tq; first += WARP) {
            size_t i = first + lane;
            float ds = 0, factor = 0;
            if (i < a.Tq && j < attention_visible_keys(&a, i)) {
                AttentionRow at = attention_row(a, b, head, i);
                float p = probabilities[at.row * a.Tk + j];
                float D = dot_in_lane(dout + at.output, out + at.output, a.HS);
                ds = a.scale * naive_dscore(p, dout + at.output, v + kv, D, a);
                factor = is_kept(p) ? p * dropout_scale(&a.dropout) : 0.0f;
            }
            for (int other = 0; other < WARP && first + other < a.Tq; other++) {
                float ds_other = __shfl_sync((unsigned)FULL_WARP, ds, other);
                float factor_other = __shfl_sync((unsigned)FULL_WARP, factor, other);
                bool visible = j < attention_visible_keys(&a, first + other); // else a NaN might be added
                if (lane * 8 >= a.HS || !visible) continue;
                AttentionRow at = attention_row(a, b, head, first + other);
                add_scaled8(dk_sum, load8(q + at.query + lane * 8), ds_other);
                add_scaled8(dv_sum, load8(dout + at.output + lane * 8), factor_other);
            }
        }
    if (lane * 8 >= a.HS) return;
    store8(dk + kv + lane * 8, dk_sum);
    store8(dv + kv + lane * 8, dv_sum);
}

static inline void attention_naive_forward(floatX *out, float *lse, float *probabilities, const floatX *q,
                                           const floatX *k, const floatX *v, const Attention *a,
                                           Stream stream) {
    launch(attention_naive_forward_kernel, blocks_for(a->B * a->NH * a->Tq, NAIVE_WARPS), NAIVE_WARPS * WARP,
           0, stream, out, lse, probabilities, q, k, v, *a);
}
static inline void attention_naive_backward(floatX *dq, floatX *dk, floatX *dv, const floatX *dout,
                                            const floatX *q, const floatX *k, const floatX *v,
                                            const floatX *out, const float *probabilities, const Attention *a,
                                            Stream stream) {
    launch(attention_naive_dq_kernel, blocks_for(a->B * a->NH * a->Tq, NAIVE_WARPS), NAIVE_WARPS * WARP, 0,
           stream, dq, dout, k, v, out, probabilities, *a);
    launch(attention_naive_dkv_kernel, blocks_for(a->B * a->NKV * a->Tk, NAIVE_WARPS), NAIVE_WARPS * WARP, 0,
           stream, dk, dv, dout, q, v, out, probabilities, *a);
}
#endif

#endif
