// AdamW (Loshchilov and Hutter, arXiv 1711.05101, algorithm 2) on flat memory, and the global gradient norm.
//
//     g  = clip * gradient
//     m  = beta1 m + (1 - beta1) g              m^ = m / (1 - beta1^step)        step counts from 1
//     v  = beta2 v + (1 - beta2) g^2            v^ = v / (1 - beta2^step)
//     w -= learning_rate (m^ / (sqrt(v^) + epsilon) + decay w)
//
// The norm is sqrt(sum of gradient^2), summed in double within fixed chunks of NORM_CHUNK elements, then over
// the chunks in order: the same bits for any number of threads.
#ifndef LAYERS_ADAMW_CUH
#define LAYERS_ADAMW_CUH

#include "common.h"

typedef struct {
    float learning_rate, beta1, beta2, epsilon, decay;
    float clip;                     // factor on the gradient
    float correction1, correction2; // 1 / (1 - beta^step)
} AdamW;

enum { NORM_CHUNK = 16384 };

static inline AdamW adamw_make(double learning_rate, double beta1, double beta2, double epsilon, double decay,
                               double clip, int64_t step) {
    AdamW a;
    a.learning_rate = (float)learning_rate;
    a.beta1 = (float)beta1;
    a.beta2 = (float)beta2;
    a.epsilon = (float)epsilon;
    a.decay = (float)decay;
    a.clip = (float)clip;
    a.correction1 = (float)(1.0 / (1.0 - pow(beta1, (double)step)));
    a.correction2 = (float)(1.0 / (1.0 - pow(beta2, (double)step)));
    return a;
}

static inline void adamw_update_cpu(float *weight, float *m, float *v, const float *gradient, size_t n,
                                    AdamW a) {
#pragma omp parallel for simd schedule(static)
    for (size_t i = 0; i < n; i++) {
        float g = gradient[i] * a.clip;
        m[i] = a.beta1 * m[i] + (1.0f - a.beta1) * g;
        v[i] = a.beta2 * v[i] + (1.0f - a.beta2) * g * g;
        float change = m[i] * a.correction1 / (sqrtf(v[i] * a.correction2) + a.epsilon);
        weight[i] -= a.learning_rate * (change + a.decay * weight[i]);
    }
}

// Sum of squares of one chunk of at most NORM_CHUNK elements.
static inline double square_sum_chunk_cpu(const float *x, size_t n) {
    double lane[LANES] = {0}, sum = 0;
    size_t whole = n / LANES * LANES;
    for (size_t first = 0; first < whole; first += LANES)
        for (int j = 0; j < LANES; j++)
            lane[j] += (double)x[first + (size_t)j] * (double)x[first + (size_t)j];
    for (size_t i = whole; i < n; i++) lane[i - whole] += (double)x[i] * (double)x[i];
    for (int j = 0; j < LANES; j++) sum += lane[j];
    return sum;
}

static inline size_t global_norm_scratch(size_t n) {
    return (n + NORM_CHUNK - 1) / NORM_CHUNK;
}

// `partial` is scratch of global_norm_scratch(n) doubles.
static inline double global_norm_cpu(const float *gradient, size_t n, double *partial) {
    size_t chunks = global_norm_scratch(n);
#pragma omp parallel for schedule(static)
    for (size_t chunk = 0; chunk < chunks; chunk++) {
        size_t first = chunk * NORM_CHUNK, count = n - first < NORM_CHUNK ? n - first : NORM_CHUNK;
        partial[chunk] = square_sum_chunk_cpu(gradient + first, count);
    }
    double sum = 0;
    for (size_t chunk = 0; chunk < chunks; chunk++) sum += partial[chunk];
    return sqrt(sum);
}

static inline void adamw_update(floatX *weight, float *m, float *v, const floatX *gradient, size_t n, AdamW a,
                                Stream stream) {
    (void)stream;
    adamw_update_cpu(weight, m, v, gradient, n, a);
}
static inline double global_norm(const floatX *gradient, size_t n, double *partial, Stream stream) {
    (void)stream;
    return global_norm_cpu(gradient, n, partial);
}

#endif
