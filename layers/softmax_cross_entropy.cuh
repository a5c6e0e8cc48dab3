// Softmax and cross-entropy over the vocabulary, in one pass over the rows of logits (N, Vp); columns >= V are
// padding: no part of the softmax, gradient 0.
//
//     losses_i  = log(sum_v exp(logits_iv)) - logits_i,target_i      in nats; 0 where target is IGNORE_TARGET
//     gradient:   logits_iv is overwritten with dlogits_iv = scale (softmax(logits_i)_v - [v = target_i]),
//                 rows to ignore with 0
//
// Only the logits are needed; the gradient takes their place, so that there is never a second tensor of this
// size. exp is taken of logits minus the row's maximum. Sums over a row are in a fixed order.
#ifndef LAYERS_SOFTMAX_CROSS_ENTROPY_CUH
#define LAYERS_SOFTMAX_CROSS_ENTROPY_CUH

#include "common.h"

enum { IGNORE_TARGET = -1 };

// The row's maximum and the sum of exp(x - maximum); the latter are written over the row when `keep` is set.
static inline float softmax_row_cpu(float *restrict row, size_t V, int keep, float *maximum_out) {
    float lane[LANES], maximum = row[0], sum;
    for (int j = 0; j < LANES; j++) lane[j] = row[0];
    size_t whole = V / LANES * LANES;
    for (size_t first = 0; first < whole; first += LANES)
        for (int j = 0; j < LANES; j++)
            lane[j] = row[first + (size_t)j] > lane[j] ? row[first + (size_t)j] : lane[j];
    for (int j = 0; j < LANES; j++) maximum = lane[j] > maximum ? lane[j] : maximum;
    for (size_t v = whole; v < V; v++) maximum = row[v] > maximum ? row[v] : maximum;
    if (keep)
        SUM_IN_LANES(sum, V, (row[i] = fast_exp(row[i] - maximum)));
    else
        SUM_IN_LANES(sum, V, fast_exp(row[i] - maximum));
    *maximum_out = maximum;
    return sum;
}

static inline void cross_entropy_forward_cpu(float *losses, float *logits, const int32_t *targets, size_t N,
                                             size_t V, size_t Vp) {
#pragma omp parallel for schedule(dynamic, 4)
    for (size_t i = 0; i < N; i++) {
        losses[i] = 0.0f;
        if (targets[i] == IGNORE_TARGET) continue;
        float *row = logits + i * Vp, maximum, sum = softmax_row_cpu(row, V, 0, &maximum);
        losses[i] = logf(sum) - (row[targets[i]] - maximum);
    }
}

static inline void cross_entropy_backward_cpu(float *losses, float *logits, const int32_t *targets,
                                              float scale, size_t N, size_t V, size_t Vp) {
#pragma omp parallel for schedule(dynamic, 4)
    for (size_t i = 0; i < N; i++) {
        float *row = logits + i * Vp;
        losses[i] = 0.0f;
        if (targets[i] == IGNORE_TARGET) {
            memset(row, 0, Vp * sizeof(float));
            continue;
        }
        float target = row[targets[i]], maximum, sum = softmax_row_cpu(row, V, 1, &maximum);
        losses[i] = logf(sum) - (target - maximum);
        float factor = scale / sum;
        for (size_t v = 0; v < V; v++) row[v] *= factor;
        row[targets[i]] -= scale;
        memset(row + V, 0, (Vp - V) * sizeof(float));
    }
}

static inline void cross_entropy_forward(float *losses, floatX *logits, const int32_t *targets, size_t N,
                                         size_t V, size_t Vp, Stream stream) {
    (void)stream;
    cross_entropy_forward_cpu(losses, logits, targets, N, V, Vp);
}
static inline void cross_entropy_backward(float *losses, floatX *logits, const int32_t *targets, float scale,
                                          size_t N, size_t V, size_t Vp, Stream stream) {
    (void)stream;
    cross_entropy_backward_cpu(losses, logits, targets, scale, N, V, Vp);
}

#endif
