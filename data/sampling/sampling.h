// Samples the next token from logits (V), on the host.
//
//     temperature 0    the most probable token
//     otherwise        a token v with probability proportional to exp(logits_v / temperature), among the top_k
//                      most probable tokens (0: all) and, of those, among the smallest set whose total
//                      probability is >= top_p
//
// The token is a function of the logits and of `uniform`, a random number in (0, 1).
#ifndef DATA_SAMPLING_SAMPLING_H
#define DATA_SAMPLING_SAMPLING_H

#include "layers/base/files.h"
#include "layers/common.h"

typedef struct {
    float probability;
    int32_t token;
} Candidate;

static inline int compare_candidates(const void *a, const void *b) {
    const Candidate *x = (const Candidate *)a, *y = (const Candidate *)b;
    if (x->probability != y->probability) return x->probability < y->probability ? 1 : -1;
    return x->token - y->token;
}

static inline int32_t sample_token(const float *logits, size_t V, double temperature, size_t top_k,
                                   double top_p, double uniform) {
    size_t best = 0;
    for (size_t v = 1; v < V; v++)
        if (logits[v] > logits[best]) best = v;
    if (temperature == 0) return (int32_t)best;
    Candidate *candidates = (Candidate *)xmalloc(V * sizeof(Candidate));
    double total = 0;
    for (size_t v = 0; v < V; v++) {
        candidates[v].probability = (float)exp((double)(logits[v] - logits[best]) / temperature);
        candidates[v].token = (int32_t)v;
        total += (double)candidates[v].probability;
    }
    size_t count = V;
    if ((top_k > 0 && top_k < V) || top_p < 1) {
        qsort(candidates, V, sizeof(Candidate), compare_candidates);
        count = top_k > 0 && top_k < V ? top_k : V;
        double kept = 0, limit = 0;
        for (size_t i = 0; i < count; i++) limit += (double)candidates[i].probability;
        size_t nucleus = 0;
        while (nucleus < count && (nucleus == 0 || kept < top_p * limit))
            kept += (double)candidates[nucleus++].probability;
        count = nucleus;
        total = kept;
    }
    double threshold = uniform * total, sum = 0;
    int32_t token = candidates[count - 1].token;
    for (size_t i = 0; i < count; i++) {
        sum += (double)candidates[i].probability;
        if (sum > threshold) {
            token = candidates[i].token;
            break;
        }
    }
    free(candidates);
    return token;
}

#endif
