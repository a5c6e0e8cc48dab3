// Flash attention on a GPU of compute capability 8.0 or later: forward and backward of attention.h, exact and tiled, in
// memory that is linear in T. T is arbitrary, head sizes are multiples of 8 up to 256, and the number of key-value
// heads divides the number of heads; q, k and v may be in the layout that the QKV matmul writes.
//
// Two calls with the same arguments give bitwise the same results, unless `atomics` of Attention is set.
#ifndef ATTENTION_FLASH_H
#define ATTENTION_FLASH_H

#include "attention.h"
#include "layers/device.h"

// Returns the number of columns of the tiles for head size HS: the smallest available one that is >= HS.
static inline int attention_flash_columns(size_t HS) {
    return HS <= 32 ? 32 : HS <= 64 ? 64 : HS <= 96 ? 96 : HS <= 128 ? 128 : HS <= 192 ? 192 : 256;
}

// Returns the number of floats of scratch space that backward needs: sums of dq and statistics of the rows, both for
// (B, NH, Tq) padded to tiles, and counters.
enum { FLASH_MAX_QUERY_TILE = 64, FLASH_MIN_QUERY_TILE = 16 };
static inline size_t attention_flash_scratch_size(size_t B, size_t NH, size_t Tq, size_t HS) {
    size_t rows = B * NH * round_up(Tq, FLASH_MAX_QUERY_TILE);
    return rows * ((size_t)attention_flash_columns(HS) + 2) +
           round_up(rows / FLASH_MIN_QUERY_TILE + 1, DEVICE_ALIGNMENT);
}

#ifdef DEVICE_CUDA
void attention_flash_forward(floatX *out, float *lse, const floatX *q, const floatX *k, const floatX *v,
                             const Attention *a, Stream stream);
void attention_flash_backward(floatX *dq, floatX *dk, floatX *dv, const floatX *dout, const floatX *q,
                              const floatX *k, const floatX *v, const floatX *out, const float *lse,
                              float *scratch, const Attention *a, Stream stream);
#endif

#endif
