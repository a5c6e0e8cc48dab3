// Flash attention on a GPU of compute capability 8.0 or later: attention.h's forward and backward, exact and tiled,
// in memory that grows with T, not with its square. Any T, head sizes to 256 in multiples of 8, any number of
// key-value heads that divides the heads; q, k and v where the QKV matmul wrote them.
//
// Two calls with the same arguments give the same bits, unless Attention's `atomics` is set.
#ifndef ATTENTION_FLASH_H
#define ATTENTION_FLASH_H

#include "attention.h"
#include "layers/device.h"

// Columns of the tiles for heads of HS: the smallest there are that suffice.
static inline int attention_flash_columns(size_t HS) {
    return HS <= 32 ? 32 : HS <= 64 ? 64 : HS <= 96 ? 96 : HS <= 128 ? 128 : HS <= 192 ? 192 : 256;
}

// Floats of scratch that backward needs: (B, NH, Tq) sums of dq and statistics of the rows, padded to tiles.
enum { FLASH_LARGEST_QUERY_TILE = 64, FLASH_SMALLEST_QUERY_TILE = 16 };
static inline size_t attention_flash_scratch_size(size_t B, size_t NH, size_t Tq, size_t HS) {
    size_t rows = B * NH * round_up(Tq, FLASH_LARGEST_QUERY_TILE);
    return rows * ((size_t)attention_flash_columns(HS) + 2) +
           round_up(rows / FLASH_SMALLEST_QUERY_TILE + 1, DEVICE_ALIGNMENT);
}

#ifdef DEVICE_CUDA
void attention_flash_forward(floatX *out, float *lse, const floatX *q, const floatX *k, const floatX *v,
                             const Attention *a, Stream stream);
void attention_flash_backward(floatX *dq, floatX *dk, floatX *dv, const floatX *dout, const floatX *q,
                              const floatX *k, const floatX *v, const floatX *out, const float *lse,
                              float *scratch, const Attention *a, Stream stream);
#endif

#endif
