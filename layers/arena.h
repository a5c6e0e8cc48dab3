// One allocation on the device for everything that a model needs, handed out in the order of the requests and counted
// by purpose. While `base` is NULL, bytes are only counted, which is how memory is planned.
#ifndef LAYERS_ARENA_H
#define LAYERS_ARENA_H

#include "common.h"

// What memory is for, as --plan shows it.
typedef enum {
    MEMORY_WEIGHTS,
    MEMORY_MASTER,
    MEMORY_GRADIENTS,
    MEMORY_MOMENTS, // the optimizer's states
    MEMORY_BLOCKS,  // activations of blocks
    MEMORY_LOGITS,
    MEMORY_OTHER,     // other activations, and gradients of activations
    MEMORY_WORKSPACE, // scratch of matrix products and of sums
    NUM_MEMORIES
} Memory;

typedef struct {
    char *base;
    size_t used;                     // bytes handed out
    size_t by_purpose[NUM_MEMORIES]; // bytes handed out for each purpose
    int on_gpu;         // 1: the build that is planned for, or this one if base is not NULL, is for a GPU
    size_t floatX_size; // in that build
} Arena;

// Returns memory for `count` elements of `size` bytes, aligned for every device; NULL while bytes are only counted.
static inline void *arena_take(Arena *arena, Memory memory, size_t count, size_t size) {
    const size_t bytes = round_up(count * size, DEVICE_ALIGNMENT);
    void *pointer = arena->base ? arena->base + arena->used : NULL;
    arena->used += bytes;
    arena->by_purpose[memory] += bytes;
    return pointer;
}

#endif
