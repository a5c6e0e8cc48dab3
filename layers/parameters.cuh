// The parameters of a model: a list of tensors, each with its properties, and the flat memories that have one element
// for every parameter: weights, master weights, gradients.
#ifndef LAYERS_PARAMETERS_CUH
#define LAYERS_PARAMETERS_CUH

#include "adamw.cuh"
#include "common.h"
#include "layers/base/files.h"
#include "philox.h"
#include "profile.h"

typedef enum {
    INIT_ZERO,
    INIT_ONE,
    INIT_EMBEDDING,
    INIT_POSITION,
    INIT_MATRIX,
    INIT_RESIDUAL // matrices that write to the residual stream
} Initialisation;

// Groups of the optimizer: matrices of the blocks; embeddings; biases and norms, which have no weight decay.
typedef enum { GROUP_MATRIX, GROUP_EMBEDDING, GROUP_VECTOR } OptimizerGroup;

// How backward computes a gradient: a product overwrites it in a step's first micro-step, or it is always added to.
typedef enum { GRADIENT_WRITTEN, GRADIENT_ADDED } GradientKind;

// A tensor: its row of the model's table, and where it is stored.
typedef struct {
    const char *member;            // name in the table
    int layer;                     // -1: outside the blocks
    size_t rows, padding, columns; // rows 0: a vector; padding: further rows, which stay zero
    Initialisation init;
    OptimizerGroup group;
    GradientKind gradient;
    Lap lap;            // the lap of the profile in which it is read
    const char *name;   // in checkpoints, within its layer
    size_t used, size;  // number of elements without padding; with padding
    size_t offset;      // in every memory that has one element per parameter
    size_t first_chunk; // index of its first chunk of the optimizer's work
} Parameter;

typedef struct {
    Parameter *tensors; // (num_tensors)
    size_t num_tensors, num_chunks;
    size_t count;        // number of parameters, without padding
    size_t num_elements; // of a memory that has one element per parameter, with padding
    floatX *weights;     // (num_elements)
    float *master;       // fp32 weights, or the part that is owned; where floatX is fp32, the weights
    float *gradients;    // (num_elements), or room for the tensors outside the blocks and for two blocks
    float *gradient_sums; // sums over all processes: the gradients' memory, or the part that is owned
} Parameters;

enum { PARAMETER_ALIGNMENT = 16 }; // elements: every tensor begins on a cache line

// Adds a tensor to the list, which has room for it. `p` has its row of the table; where it is stored is decided here.
static inline void parameters_add(Parameters *parameters, Parameter p) {
    p.used = max_size(p.rows, 1) * p.columns;
    p.size = p.used + p.padding * p.columns;
    p.offset = parameters->num_elements;
    p.first_chunk = parameters->num_chunks;
    parameters->tensors[parameters->num_tensors++] = p;
    parameters->num_elements += round_up(p.size, PARAMETER_ALIGNMENT);
    parameters->count += p.used;
    parameters->num_chunks += divide_up(p.size, ADAMW_CHUNK);
}

// Returns a normally distributed number for one element, by the Box-Muller transform of one Philox call.
static inline double random_normal(uint64_t seed, size_t element, size_t tensor) {
    Philox r = philox(philox_key(seed, RANDOM_INITIALISATION, 0), (uint32_t)element,
                      (uint32_t)(element >> 32), (uint32_t)tensor, 0);
    return sqrt(-2 * log(uniform_from_bits(r.v[0]))) * cos(6.283185307179586 * uniform_from_bits(r.v[1]));
}

// Initialises `host` (num_elements) as GPT-2 does, with normally distributed numbers. `deviations`: standard deviation
// for each kind of initialisation.
static inline void parameters_initialise(const Parameters *parameters, float *host, uint64_t seed,
                                         const double deviations[INIT_RESIDUAL + 1]) {
    for (size_t t = 0; t < parameters->num_tensors; t++) {
        const Parameter *p = &parameters->tensors[t];
        const double deviation = deviations[p->init];
#pragma omp parallel for schedule(static)
        for (size_t i = 0; i < p->used; i++)
            host[p->offset + i] = p->init == INIT_ONE ? 1.0f
                                  : deviation > 0     ? (float)(deviation * random_normal(seed, i, t))
                                                      : 0.0f;
    }
}

#endif
