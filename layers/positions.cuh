// Positions of tokens: dispatches by the kind that the model's description names.
#ifndef LAYERS_POSITIONS_CUH
#define LAYERS_POSITIONS_CUH

#include "common.h"
#include "kinds.h"

// Returns the vectors (T, C) that the embedding adds to tokens at positions past .. past + T - 1: rows of the learned
// table wpe.
static inline const floatX *position_vectors(PositionKind kind, const floatX *wpe, size_t past, size_t C) {
    switch (kind) {
    case POSITIONS_LEARNED:
        return wpe + past * C;
    }
    return NULL;
}

#endif
