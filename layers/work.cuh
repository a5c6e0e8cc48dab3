// The work of a model in FLOPs and bytes, as sums over its parameter tensors, from which speeds are computed. A
// multiply-add counts as two FLOPs; backward has twice the products of forward.
#ifndef LAYERS_WORK_CUH
#define LAYERS_WORK_CUH

#include "parameters.cuh"
#include "profile.h"

// The sizes of a model and of its batches that its work depends on.
typedef struct {
    size_t L, C, Q, QKV, F, Vp; // as in the model's Dims
    size_t T;                   // sequence length
} WorkSizes;

// Returns the FLOPs of one layer's causal attention for one token, forward: the scores of half the keys on average,
// and the sum of as many values.
static inline double attention_flop(const WorkSizes *s) {
    return 2 * (double)s->T * (double)s->Q;
}

// Returns the FLOPs of one token's forward pass through layer `layer` (-1: the head), except for the product `except`
// (NUM_LAPS: none).
static inline double layer_flop(const Parameters *parameters, const WorkSizes *s, int layer, Lap except) {
    double flop = layer >= 0 ? attention_flop(s) : 0;
    for (size_t t = 0; t < parameters->num_tensors; t++) {
        const Parameter *p = &parameters->tensors[t];
        if (p->layer == layer && p->gradient == GRADIENT_WRITTEN && p->lap != except)
            flop += 2 * (double)p->used;
    }
    return flop;
}

// Returns the FLOPs of training on one token.
static inline double step_flop(const Parameters *parameters, const WorkSizes *s) {
    return 3 *
           ((double)s->L * layer_flop(parameters, s, 0, NUM_LAPS) + layer_flop(parameters, s, -1, NUM_LAPS));
}

// Sets the work that --profile compares with times: the FLOPs of products and of attention in one step on `tokens`
// tokens, and the bytes of the tensors that are read and written.
static inline void set_work(Profile *p, const Parameters *parameters, const WorkSizes *s, size_t tokens) {
    const double L = (double)s->L, N = (double)tokens, NC = N * (double)s->C, X = sizeof(floatX);
    for (size_t t = 0; t < parameters->num_tensors; t++) {
        const Parameter *w = &parameters->tensors[t];
        const double rows = (double)(w->rows + w->padding), columns = (double)w->columns;
        if (w->gradient == GRADIENT_WRITTEN)
            profile_add_work(p, w->lap, 2, 2 * N * rows * columns,
                             X * (N * (rows + columns) + rows * columns));
    }
    profile_add_work(p, LAP_MLP_UP, 2, 0, X * L * N * (double)s->F); // the result of the activation
    profile_add_work(p, LAP_ATTENTION, 2.5, L * N * attention_flop(s), X * L * N * (double)(s->QKV + s->Q));
    profile_add_bytes(p, LAP_EMBEDDING, PASS_FORWARD, X * 2 * NC);
    profile_add_bytes(p, LAP_EMBEDDING, PASS_BACKWARD, X * 5 * NC);
    profile_add_bytes(p, LAP_NORM, PASS_FORWARD, X * (2 * L + 1) * 4 * NC);
    profile_add_bytes(p, LAP_NORM, PASS_BACKWARD, X * (2 * L + 1) * 5 * NC);
    profile_add_bytes(p, LAP_LOSS, PASS_BACKWARD, X * 2 * N * (double)s->Vp);
    profile_add_bytes(p, LAP_OPTIMIZER, PASS_BACKWARD, 8 * sizeof(float) * (double)parameters->num_elements);
}

#endif
