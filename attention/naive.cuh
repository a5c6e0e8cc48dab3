// Attention as its definition reads (attention.h), one query at a time, with the (Tq, Tk) probabilities
// stored.
//
//     forward     out, lse and the probabilities (B, NH, Tq, Tk), undropped: saved for backward
//     backward    dq, dk, dv, overwritten, from dout, q, k, v, out and the probabilities
//
// Threads share (sequence, head) going forward, (sequence, key-value head) going backward.
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

// A_ij / P_ij: 0 or the inverse keep rate; 1 without dropout.
static inline float attention_dropout_factor(const Attention *a, size_t b, size_t head, size_t query,
                                             size_t key) {
    if (a->dropout.threshold == 256) return 1.0f;
    return attention_dropout_keeps(a, b, head, query, key) ? dropout_scale(&a->dropout) : 0.0f;
}

// One query: p (Tk) its probabilities, out (HS).
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

// One query: dq is overwritten, dk and dv are added to.
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

#endif
