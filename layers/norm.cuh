// Normalisation of the residual stream: dispatches by the kind that the model's description names. Every kind is fused
// with the residual addition and the dropout before it. The contract of these functions is that of layernorm.cuh.
#ifndef LAYERS_NORM_CUH
#define LAYERS_NORM_CUH

#include "kinds.h"
#include "layernorm.cuh"

// Returns the number of floats of scratch that norm_backward needs for C channels.
static inline size_t norm_scratch(NormKind kind, size_t C) {
    switch (kind) {
    case NORM_LAYERNORM:
        return layernorm_scratch(C);
    }
    return 0;
}

static inline void norm_forward(NormKind kind, floatX *residual_out, floatX *out, float *mean, float *rstd,
                                const floatX *residual_in, const floatX *branch, const floatX *weight,
                                const floatX *bias, size_t B, size_t T, size_t C, const Dropout *dropout,
                                Stream stream) {
    switch (kind) {
    case NORM_LAYERNORM:
        layernorm_forward(residual_out, out, mean, rstd, residual_in, branch, weight, bias, B, T, C, dropout,
                          stream);
    }
}

// Recomputes `out`, bit for bit, from the residual stream and the statistics that norm_forward saved.
static inline void norm_recompute(NormKind kind, floatX *out, const floatX *residual, const float *mean,
                                  const float *rstd, const floatX *weight, const floatX *bias, size_t rows,
                                  size_t C, Stream stream) {
    switch (kind) {
    case NORM_LAYERNORM:
        layernorm_normalise(out, residual, mean, rstd, weight, bias, rows, C, stream);
    }
}

static inline void norm_backward(NormKind kind, floatX *dresidual, floatX *dbranch, float *dweight,
                                 float *dbias, float *scratch, const floatX *dout, const floatX *residual,
                                 const float *mean, const float *rstd, const floatX *weight, size_t B,
                                 size_t T, size_t C, const Dropout *dropout, Stream stream) {
    switch (kind) {
    case NORM_LAYERNORM:
        layernorm_backward(dresidual, dbranch, dweight, dbias, scratch, dout, residual, mean, rstd, weight, B,
                           T, C, dropout, stream);
    }
}

#endif
