// Dropout for all layers. The mask is a closed-form function of (seed, stream, layer, step, sequence, token, channel);
// it is never stored, and backward computes it again.
//
// A decision uses 8 random bits: an element is kept if its random byte is below threshold = round(256 (1 - p)), and
// kept elements are multiplied by 256 / threshold, the inverse of the exact keep rate. So p has a granularity
// of 1/256: p = 0.1 drops 26/256 = 0.1016 of the elements, without bias in the mean. dropout_threshold rejects a p > 0
// that rounds to dropping nothing or everything.
//
// `sequence` is an index into the global batch of the step (all processes, all micro-steps), so that masks do not
// depend on how the batch is split.
#ifndef LAYERS_DROPOUT_H
#define LAYERS_DROPOUT_H

#include <math.h>
#include "philox.h"
#include "common.h"

enum { DROPOUT_NONE = 256 }; // the threshold that keeps everything

typedef struct {
    uint32_t threshold; // 1 .. 256; elements whose random byte is below it are kept
    PhiloxKey key;
    uint32_t step;
    uint32_t first_sequence; // global index of the first sequence of the tensor
} Dropout;

// Returns the threshold 1 .. 256 for p, or 0 if p is not in [0, 1), or p > 0 and the threshold rounds to 0 or 256.
static inline uint32_t dropout_threshold(double p) {
    if (!(p >= 0.0 && p < 1.0)) return 0;
    if (p == 0.0) return DROPOUT_NONE;
    uint32_t threshold = (uint32_t)floor(256.0 * (1.0 - p) + 0.5);
    return threshold == DROPOUT_NONE ? 0 : threshold;
}

static inline Dropout dropout_make(uint32_t threshold, uint64_t seed, RandomStream stream, uint32_t layer,
                                   uint32_t step, uint32_t first_sequence) {
    Dropout dropout = {threshold, philox_key(seed, stream, layer), step, first_sequence};
    return dropout;
}

static inline HOST_DEVICE float dropout_scale(const Dropout *dropout) {
    return 256.0f / (float)dropout->threshold;
}

// Multiplies the C channels of one token by 0 or by 256 / threshold. The random byte of channel c is byte c mod 16 of
// philox(c / 16, token, first_sequence + sequence, step).
static inline void dropout_row(float *row, size_t C, size_t token, size_t sequence, const Dropout *dropout) {
    if (dropout->threshold == DROPOUT_NONE) return;
    const float scale = dropout_scale(dropout);
    for (size_t first = 0; first < C; first += 16 * PHILOX_LANES) {
        uint32_t word[4][PHILOX_LANES];
        for (int i = 0; i < PHILOX_LANES; i++) {
            word[0][i] = (uint32_t)(first / 16) + (uint32_t)i;
            word[1][i] = (uint32_t)token;
            word[2][i] = dropout->first_sequence + (uint32_t)sequence;
            word[3][i] = dropout->step;
        }
        philox_lanes(dropout->key, word[0], word[1], word[2], word[3]);
        size_t count = C - first < 16 * PHILOX_LANES ? C - first : 16 * PHILOX_LANES;
        float factor[16 * PHILOX_LANES];
        for (int i = 0; i < PHILOX_LANES; i++)
            for (int byte = 0; byte < 16; byte++)
                factor[16 * i + byte] = (word[byte / 4][i] >> (8 * (byte % 4)) & 255u) < dropout->threshold
                                            ? scale
                                            : 0.0f;
        for (size_t i = 0; i < count; i++) row[first + i] *= factor[i];
    }
}

#endif
