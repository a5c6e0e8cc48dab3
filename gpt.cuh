// A GPT-2 (Radford et al. 2019): learned positions, pre-layernorm, tanh-GELU, tied output head. Its parameters and
// activations as tables, where each of them stands in memory and which process is in charge of it, forward, backward and
// the optimizer's step. Layers are in layers/, attention in attention/, what processes say to each other in comm/.
//
// Names: B batch, T time, C channels, L layers, NH heads, HS = C / NH head size, V vocabulary, Vp = V rounded
// up to a multiple of 128 (rows V .. Vp - 1 of the embedding stay zero and never reach a softmax), N = B * T
// tokens.
#ifndef GPT_CUH
#define GPT_CUH

#include <omp.h>
#include "attention/attention.cuh"
#include "comm/comm.h"
#include "comm/partition.h"
#include "comm/sum.cuh"
#include "data/checkpoint.h"
#include "data/files.h"
#include "data/threads.h"
#include "layers/adamw.cuh"
#include "layers/embedding.cuh"
#include "layers/activation.cuh"
#include "layers/norm.cuh"
#include "layers/positions.cuh"
#include "layers/profile.h"
#include "layers/softmax_cross_entropy.cuh"

// ---- dimensions -------------------------------------------------------------------------------------------

enum { VOCAB_MULTIPLE = 128, ALIGNMENT = 16 }; // tokens; elements: every tensor begins on a cache line

// The sizes of a model, derived once from its description.
typedef struct {
    size_t L, C;        // layers; channels of the residual stream
    size_t NH, NKV, HS; // heads of queries; heads of keys and values; channels of a head
    size_t Q, KV, QKV;  // NH HS; NKV HS; the width of the fused projection, Q + 2 KV
    size_t F, UP;       // width of the MLP after its activation, and before
    size_t V, Vp;       // tokens; the same, padded
    size_t max_T;       // positions
} Dims;

static Dims dims_of(const GPTConfig *c) {
    Dims d;
    d.L = (size_t)c->num_layers, d.C = (size_t)c->channels;
    d.NH = (size_t)c->num_heads, d.NKV = (size_t)c->num_kv_heads, d.HS = (size_t)c->head_size;
    d.Q = d.NH * d.HS, d.KV = d.NKV * d.HS, d.QKV = d.Q + 2 * d.KV;
    d.F = d.UP = (size_t)c->hidden;
    d.V = (size_t)c->vocab_size, d.Vp = round_up(d.V, VOCAB_MULTIPLE);
    d.max_T = (size_t)c->max_sequence_length;
    return d;
}

// ---- the model: parameters and activations as tables ------------------------------------------------------

// member; whether a model has it; rows (0: a vector), rows of padding (which stay zero), columns; initialisation; group of the
// optimizer; how backward makes its gradient; the work that reads it; its name in each checkpoint format: GPT-2's
#define MODEL_PARAMETERS(X)                                                                                  \
    X(wte, 1, d->V, d->Vp - d->V, d->C, INIT_EMBEDDING, GROUP_EMBEDDING, GRADIENT_WRITTEN, LAP_HEAD,         \
      "wte.weight")                                                                                          \
    X(wpe, config->positions == POSITIONS_LEARNED, d->max_T, 0, d->C, INIT_POSITION, GROUP_EMBEDDING,        \
      GRADIENT_ADDED, LAP_EMBEDDING, "wpe.weight")                                                           \
    X(final_norm_weight, 1, 0, 0, d->C, INIT_ONE, GROUP_VECTOR, GRADIENT_ADDED, LAP_NORM, "ln_f.weight")     \
    X(final_norm_bias, 1, 0, 0, d->C, INIT_ZERO, GROUP_VECTOR, GRADIENT_ADDED, LAP_NORM, "ln_f.bias")
#define BLOCK_PARAMETERS(X)                                                                                  \
    X(norm1_weight, 1, 0, 0, d->C, INIT_ONE, GROUP_VECTOR, GRADIENT_ADDED, LAP_NORM, "ln_1.weight")          \
    X(norm1_bias, 1, 0, 0, d->C, INIT_ZERO, GROUP_VECTOR, GRADIENT_ADDED, LAP_NORM, "ln_1.bias")             \
    X(qkv_weight, 1, d->C, 0, d->QKV, INIT_MATRIX, GROUP_MATRIX, GRADIENT_WRITTEN, LAP_QKV,                  \
      "attn.c_attn.weight")                                                                                  \
    X(qkv_bias, 1, 0, 0, d->QKV, INIT_ZERO, GROUP_VECTOR, GRADIENT_ADDED, LAP_QKV, "attn.c_attn.bias")       \
    X(proj_weight, 1, d->Q, 0, d->C, INIT_RESIDUAL, GROUP_MATRIX, GRADIENT_WRITTEN, LAP_PROJECTION,          \
      "attn.c_proj.weight")                                                                                  \
    X(proj_bias, 1, 0, 0, d->C, INIT_ZERO, GROUP_VECTOR, GRADIENT_ADDED, LAP_PROJECTION, "attn.c_proj.bias") \
    X(norm2_weight, 1, 0, 0, d->C, INIT_ONE, GROUP_VECTOR, GRADIENT_ADDED, LAP_NORM, "ln_2.weight")          \
    X(norm2_bias, 1, 0, 0, d->C, INIT_ZERO, GROUP_VECTOR, GRADIENT_ADDED, LAP_NORM, "ln_2.bias")             \
    X(up_weight, 1, d->C, 0, d->UP, INIT_MATRIX, GROUP_MATRIX, GRADIENT_WRITTEN, LAP_MLP_UP,                 \
      "mlp.c_fc.weight")                                                                                     \
    X(up_bias, 1, 0, 0, d->UP, INIT_ZERO, GROUP_VECTOR, GRADIENT_ADDED, LAP_MLP_UP, "mlp.c_fc.bias")         \
    X(down_weight, 1, d->F, 0, d->C, INIT_RESIDUAL, GROUP_MATRIX, GRADIENT_WRITTEN, LAP_MLP_DOWN,            \
      "mlp.c_proj.weight")                                                                                   \
    X(down_bias, 1, 0, 0, d->C, INIT_ZERO, GROUP_VECTOR, GRADIENT_ADDED, LAP_MLP_DOWN, "mlp.c_proj.bias")

// member, type, elements, what the memory is for
#define MODEL_ACTIVATIONS(X)                                                                                 \
    X(tokens, int32_t, N, MEMORY_OTHER)            /* (B, T) */                                              \
    X(targets, int32_t, training *N, MEMORY_OTHER) /* (B, T) */                                              \
    X(embedded, floatX, N * d->C, MEMORY_OTHER)    /* (N, C) the residual stream before block 0 */           \
    X(final_norm, floatX, N * d->C, MEMORY_OTHER)  /* (N, C) */                                              \
    X(final_norm_mean, float, N, MEMORY_OTHER)     /* (N) */                                                 \
    X(final_norm_rstd, float, N, MEMORY_OTHER)     /* (N) */                                                 \
    X(logits, floatX, logit_rows * d->Vp,                                                                    \
      MEMORY_LOGITS)                          /* (logit_rows, Vp), then their gradient in the same place */  \
    X(losses, float, N, MEMORY_OTHER)         /* (N) nats of each token */                                   \
    X(branch, floatX, N * d->C, MEMORY_OTHER) /* (N, C) a sublayer's output, before it joins the stream */   \
    X(dresidual, floatX, training *N * d->C, MEMORY_OTHER) /* (N, C) gradient of the residual stream */      \
    X(dbranch, floatX, training *N * d->C, MEMORY_OTHER)   /* (N, C) */                                      \
    X(dnormed, floatX, training *N *max_size(d->C, d->Q),                                                    \
      MEMORY_OTHER) /* (N, C) of a norm's output; (N, Q) of attention's */                                   \
    X(dwide, floatX, training *N *max_size(d->UP, d->QKV),                                                   \
      MEMORY_OTHER) /* (N, UP) of the pre-activation; (N, QKV) of qkv */                                     \
    X(norm_partial, float, training *norm_scratch(config->norm, d->C), MEMORY_WORKSPACE)                     \
    X(attention_scratch, float,                                                                              \
      training *attention_scratch_size(attention, arena->on_gpu, B, d->NH, T, d->HS), MEMORY_WORKSPACE)
// member, type, elements; the level of recomputation from which on blocks share one memory for it; whether generating text
// keeps it of every block
#define BLOCK_ACTIVATIONS(X)                                                                                 \
    X(norm1, floatX, N * d->C, RECOMPUTE_NORM, 0)  /* (N, C) */                                              \
    X(norm1_mean, float, N, RECOMPUTE_NEVER, 0)    /* (N) */                                                 \
    X(norm1_rstd, float, N, RECOMPUTE_NEVER, 0)    /* (N) */                                                 \
    X(qkv, floatX, N * d->QKV, RECOMPUTE_BLOCK, 1) /* (N, QKV): NH query, NKV key, NKV value heads of HS */  \
    X(attended, floatX, N * d->Q, RECOMPUTE_BLOCK, 0) /* (N, Q) */                                           \
    X(lse, float, N * d->NH, RECOMPUTE_BLOCK, 0)      /* (B, NH, T) */                                       \
    X(saved, float, attention_saved_size(attention, B, d->NH, T, T), RECOMPUTE_BLOCK, 0)                     \
    X(residual_middle, floatX, N * d->C, RECOMPUTE_BLOCK, 0) /* (N, C) after attention */                    \
    X(norm2, floatX, N * d->C, RECOMPUTE_NORM, 0)            /* (N, C) */                                    \
    X(norm2_mean, float, N, RECOMPUTE_BLOCK, 0)              /* (N) */                                       \
    X(norm2_rstd, float, N, RECOMPUTE_BLOCK, 0)              /* (N) */                                       \
    X(up, floatX, N * d->UP, RECOMPUTE_BLOCK, 0)             /* (N, UP) pre-activation */                    \
    X(activated, floatX, N * d->F, RECOMPUTE_ACTIVATION, 0)  /* (N, F) */                                    \
    X(residual_out, floatX, N * d->C, RECOMPUTE_NEVER, 0)    /* (N, C) after the MLP */

typedef enum {
    INIT_ZERO,
    INIT_ONE,
    INIT_EMBEDDING,
    INIT_POSITION,
    INIT_MATRIX,
    INIT_RESIDUAL
} Initialisation;

// The optimizer's groups: matrices of the blocks; embeddings; biases and norms, which do not decay.
typedef enum { GROUP_MATRIX, GROUP_EMBEDDING, GROUP_VECTOR } OptimizerGroup;

// How backward makes a gradient: by a product, which overwrites it in the step's first micro-step; or always by adding.
typedef enum { GRADIENT_WRITTEN, GRADIENT_ADDED } GradientKind;

// What backward computes again instead of forward's keeping it (--recompute), each level including the ones before.
typedef enum {
    RECOMPUTE_NONE,
    RECOMPUTE_ACTIVATION,
    RECOMPUTE_NORM,
    RECOMPUTE_BLOCK,
    RECOMPUTE_NEVER
} Recompute;

// What processes divide among them rather than each having all of it.
typedef enum { SHARD_NONE, SHARD_OPTIMIZER, SHARD_GRADIENTS } Sharding;

// A tensor of parameters: its row, and where it is stored.
typedef struct {
    const char *member; // in the table
    int layer;          // -1: of the model, not of a block
    size_t rows, padding, columns;
    Initialisation init;
    OptimizerGroup group;
    GradientKind gradient;
    Lap lap;
    const char *name;    // in checkpoints, within its layer
    size_t used, size;   // elements, without and with padding
    size_t offset;       // elements, in every memory that holds one a parameter
    size_t first_chunk;  // of GPT.partition
} Parameter;

#define AS_WEIGHT(member, ...)   floatX *member;
#define AS_GRADIENT(member, ...) float *member;
typedef struct {
    MODEL_PARAMETERS(AS_WEIGHT)
} ModelWeights;
typedef struct {
    BLOCK_PARAMETERS(AS_WEIGHT)
} BlockWeights;
typedef struct {
    MODEL_PARAMETERS(AS_GRADIENT)
} ModelGradients;
typedef struct {
    BLOCK_PARAMETERS(AS_GRADIENT)
} BlockGradients;
#undef AS_WEIGHT
#undef AS_GRADIENT

#define AS_MEMBER(member, type, ...) type *member;
typedef struct {
    MODEL_ACTIVATIONS(AS_MEMBER)
} ModelActivations;
typedef struct {
    BLOCK_ACTIVATIONS(AS_MEMBER)
} BlockActivations;
#undef AS_MEMBER

// The memory of a forward pass over (B, T) tokens.
typedef struct {
    size_t B, T;
    int caching;       // text is generated: only keys and values are kept
    size_t past;       // tokens before these whose keys and values are in qkv
    size_t logit_rows; // tokens whose logits are computed at a time
    Recompute recompute;
    ModelActivations model;
    BlockActivations *block; // (L)
} Activations;

// What decides, beside the model, how much memory is needed.
typedef struct {
    size_t B, T; // B = 0: no training, only generating text
    Recompute recompute;
    size_t logits_bytes; // the most for logits; 0: no limit
    AttentionVariant attention;
    Sharding sharding;
    int processes; // what is divided is divided among so many
    Comm *comm;    // this process and the others
    int sharing;   // processes on this host, which share its memory
} Shape;

// What the memory is for, as --plan shows it.
typedef enum {
    MEMORY_WEIGHTS,
    MEMORY_MASTER,
    MEMORY_GRADIENTS,
    MEMORY_MOMENTS,
    MEMORY_BLOCKS,
    MEMORY_LOGITS,
    MEMORY_OTHER,     // other activations, and gradients of activations
    MEMORY_WORKSPACE, // of products, of sums
    NUM_MEMORIES
} Memory;

// Every allocation on the device comes out of one piece, in the order it is asked for. While `base` is NULL only
// bytes are counted.
typedef struct {
    char *base;
    size_t used;
    size_t of[NUM_MEMORIES];
    int on_gpu;         // of the build that is planned for, this one's where base is not NULL
    size_t floatX_size; // there
} Arena;

// Tensors that are sent together, consecutive in the flat memory.
typedef struct {
    size_t offset, size;              // numbers
    size_t first_tensor, num_tensors; // of GPT.parameters
    size_t first_piece, num_pieces;   // of GPT.owned
    float *gradients;                 // (size)
    Ticket reduced, gathered;         // the last operations on its gradients and its weights
} Bucket;

typedef struct {
    GPTConfig config;
    Dims dims;
    Parameter *parameters;
    size_t num_tensors;
    size_t num_parameters; // without padding
    size_t num_floats;     // with padding
    Shape shape;
    AttentionVariant attention;
    int attention_atomics; // Attention's

    // Who owns what (partition.h). Buckets are what is sent together: the model's tensors, then each block's.
    PartitionChunk *partition; // (num_chunks)
    CommPiece *pieces;         // (num_pieces), to fill in for one operation
    PartitionPiece *owned;     // (num_pieces), bucket after bucket
    size_t num_chunks, num_pieces;
    size_t most_owned; // numbers that a process owns, at most
    Bucket *buckets;   // (L + 1)
    Ticket slots[3];   // the last reductions out of each memory for gradients

    Arena arena;
    ModelWeights weights;
    BlockWeights *block_weights; // (L)
    floatX *weights_memory;      // all of them, num_floats
    float *master;               // the same in fp32; where floatX is fp32, the weights themselves
    ModelGradients gradients;
    BlockGradients *block_gradients; // (L)
    float *gradients_memory;         // num_floats; with SHARD_GRADIENTS of the model's tensors and two blocks
    float *gradient_sums;     // of all processes: the same memory, or with SHARD_GRADIENTS of what is owned
    float *moment1, *moment2; // AdamW's m and v
    AdamWChunk *chunks;       // (num_owned_chunks)
    size_t num_owned_chunks;
    double *totals; // of a step, and of a validation
    StepOutcome *outcome;
    Activations acts;  // of training and validation
    Activations cache; // of generating text; in the same memory

    MatmulContext matmul;
    Stream stream;
    Comm *comm;
    int rank;                   // of this process
    uint32_t dropout_threshold; // while training
    uint64_t seed;
    Profile profile;
} GPT;

static void add_parameter(GPT *m, Parameter p) {
    p.used = (p.rows ? p.rows : 1) * p.columns;
    p.size = p.used + p.padding * p.columns;
    p.offset = m->num_floats;
    p.first_chunk = m->num_chunks;
    m->parameters[m->num_tensors++] = p;
    m->num_floats += round_up(p.size, ALIGNMENT);
    m->num_parameters += p.used;
    m->num_chunks += divide_up(p.size, ADAMW_CHUNK);
}

// Where a process finds a number that it owns: in memories of `most_owned` numbers, if they are divided.
static size_t offset_in(const GPT *m, const PartitionChunk *chunk, int divided) {
    return divided && m->shape.sharding != SHARD_NONE ? chunk->own : chunk->offset;
}

// Cuts the tensors into chunks. A matrix begins a unit that the vectors after it belong to.
static void list_chunks(GPT *m) {
    PartitionChunk *next = m->partition;
    int32_t unit = -1, bucket = -1;
    for (size_t t = 0; t < m->num_tensors; t++) {
        const Parameter *p = &m->parameters[t];
        int begins_bucket = t == 0 || p->layer != p[-1].layer;
        unit += begins_bucket || p->rows > 0;
        bucket += begins_bucket;
        if (begins_bucket) m->buckets[bucket].first_tensor = t;
        m->buckets[bucket].num_tensors++;
        for (size_t done = 0; done < p->size; done += ADAMW_CHUNK, next++) {
            PartitionChunk chunk = {p->offset + done,
                                    round_up(min_size(p->size - done, ADAMW_CHUNK), ALIGNMENT),
                                    unit,
                                    bucket,
                                    0,
                                    0};
            *next = chunk;
        }
    }
}

// Decides who owns what.
static void divide_parameters(GPT *m) {
    m->partition = (PartitionChunk *)xcalloc(m->num_chunks, sizeof(PartitionChunk));
    m->buckets = (Bucket *)xcalloc(m->dims.L + 1, sizeof(Bucket));
    list_chunks(m);
    m->most_owned = partition_make(m->partition, m->num_chunks, m->shape.processes);
    m->num_pieces = partition_pieces(m->partition, m->num_chunks, NULL);
    m->owned = (PartitionPiece *)xcalloc(m->num_pieces, sizeof(PartitionPiece));
    m->pieces = (CommPiece *)xcalloc(m->num_pieces, sizeof(CommPiece));
    partition_pieces(m->partition, m->num_chunks, m->owned);
    for (size_t i = m->num_pieces; i-- > 0;) {
        Bucket *b = &m->buckets[m->owned[i].bucket];
        b->offset = m->owned[i].offset;
        b->first_piece = i;
        b->size += m->owned[i].size;
        b->num_pieces++;
    }
}

// Fills the list of the tensors that this model has: the model's, then block after block.
static void list_parameters(GPT *m) {
    const GPTConfig *config = &m->config;
    const Dims *d = &m->dims;
#define COUNT(...) +1
    const size_t per_model = 0 MODEL_PARAMETERS(COUNT), per_block = 0 BLOCK_PARAMETERS(COUNT);
#undef COUNT
    m->parameters = (Parameter *)xcalloc(per_model + d->L * per_block, sizeof(Parameter));
#define ADD(member, exists, rows, padding, columns, init, group, gradient, lap, name)                        \
    if (exists) {                                                                                            \
        Parameter p = {                                                                                      \
            #member, layer, rows, padding, columns, init, group, gradient, lap, name, 0, 0, 0, 0};           \
        add_parameter(m, p);                                                                                 \
    }
    int layer = -1;
    MODEL_PARAMETERS(ADD)
    for (layer = 0; layer < (int)d->L; layer++) {
        BLOCK_PARAMETERS(ADD)
    }
#undef ADD
}

// Parameters of a model, before anything is made for each of them.
static double count_parameters(const GPTConfig *config) {
    const Dims dims = dims_of(config), *d = &dims;
#define ADD(member, exists, rows, padding, columns, ...)                                                     \
    +(double)(exists) * (double)max_size(rows, 1) * (double)(columns)
    const double of_model = 0 MODEL_PARAMETERS(ADD);
    const double of_block = 0 BLOCK_PARAMETERS(ADD);
#undef ADD
    return of_model + (double)d->L * of_block;
}

// ---- memory -----------------------------------------------------------------------------------------------

static void *arena_take(Arena *arena, Memory memory, size_t count, size_t size) {
    size_t bytes = round_up(count * size, DEVICE_ALIGNMENT);
    void *pointer = arena->base ? arena->base + arena->used : NULL;
    arena->used += bytes;
    arena->of[memory] += bytes;
    return pointer;
}

// Numbers of a memory that processes divide if they divide anything.
static size_t divided_floats(const GPT *m) {
    return m->shape.sharding == SHARD_NONE ? m->num_floats : m->most_owned;
}

static void place_weights(GPT *m, Arena *arena) {
    const Parameter *p = m->parameters;
    m->weights_memory = (floatX *)arena_take(arena, MEMORY_WEIGHTS, m->num_floats, arena->floatX_size);
    m->master = (float *)m->weights_memory;
    if (arena->floatX_size != sizeof(float))
        m->master = (float *)arena_take(arena, MEMORY_MASTER, divided_floats(m), sizeof(float));
    if (arena->base == NULL) return;
    const GPTConfig *config = &m->config;
#define POINT(member, exists, ...) m->weights.member = (exists) ? m->weights_memory + (p++)->offset : NULL;
    MODEL_PARAMETERS(POINT)
#undef POINT
#define POINT(member, exists, ...)                                                                           \
    m->block_weights[l].member = (exists) ? m->weights_memory + (p++)->offset : NULL;
    for (size_t l = 0; l < m->dims.L; l++) {
        BLOCK_PARAMETERS(POINT)
    }
#undef POINT
}

// Where they are divided, a block's gradients leave as soon as they are complete: two blocks take turns.
static void place_gradients(GPT *m, Arena *arena) {
    const Parameter *p = m->parameters;
    const size_t of_model = m->buckets[0].size, of_block = m->buckets[1].size;
    const int divided = m->shape.sharding == SHARD_GRADIENTS;
    const size_t size = divided ? of_model + min_size(m->dims.L, 2) * of_block : m->num_floats;
    m->gradients_memory = (float *)arena_take(arena, MEMORY_GRADIENTS, size, sizeof(float));
    m->gradient_sums = m->gradients_memory;
    if (divided)
        m->gradient_sums = (float *)arena_take(arena, MEMORY_GRADIENTS, m->most_owned, sizeof(float));
    if (arena->base == NULL) return;
    for (size_t b = 0; b <= m->dims.L; b++)
        m->buckets[b].gradients = m->gradients_memory + (divided && b > 0
                                                             ? of_model + b % 2 * of_block * (m->dims.L > 1)
                                                             : m->buckets[b].offset);
    const GPTConfig *config = &m->config;
#define POINT(member, exists, ...)                                                                           \
    m->gradients.member = (exists) ? m->buckets[0].gradients + (p++)->offset : NULL;
    MODEL_PARAMETERS(POINT)
#undef POINT
#define POINT(member, exists, ...)                                                                           \
    m->block_gradients[l].member = (exists) ? m->buckets[l + 1].gradients +                                  \
                                                  ((p++)->offset - m->buckets[l + 1].offset)                 \
                                            : NULL;
    for (size_t l = 0; l < m->dims.L; l++) {
        BLOCK_PARAMETERS(POINT)
    }
#undef POINT
}

static void place_training_state(GPT *m, Arena *arena) {
    place_gradients(m, arena);
    m->moment1 = (float *)arena_take(arena, MEMORY_MOMENTS, divided_floats(m), sizeof(float));
    m->moment2 = (float *)arena_take(arena, MEMORY_MOMENTS, divided_floats(m), sizeof(float));
    m->chunks = (AdamWChunk *)arena_take(arena, MEMORY_WORKSPACE, m->num_chunks, sizeof(AdamWChunk));
    m->totals = (double *)arena_take(arena, MEMORY_WORKSPACE, step_totals(m->num_chunks), sizeof(double));
    m->outcome = (StepOutcome *)arena_take(arena, MEMORY_WORKSPACE, 1, sizeof(StepOutcome));
}

#define SIZE_floatX  arena->floatX_size
#define SIZE_float   sizeof(float)
#define SIZE_int32_t sizeof(int32_t)
static void place_activations(const GPT *m, Activations *x, Arena *arena) {
    const GPTConfig *config = &m->config;
    const Dims *d = &m->dims;
    const size_t B = x->B, T = x->T, N = B * T, logit_rows = x->logit_rows, training = !x->caching;
    const AttentionVariant attention = m->attention;
#define PLACE(member, type, count, memory)                                                                   \
    x->model.member = (type *)arena_take(arena, memory, count, SIZE_##type);
    MODEL_ACTIVATIONS(PLACE)
#undef PLACE
#define PLACE(member, type, count, recomputed_from, cached)                                                  \
    x->block[l].member = l > 0 && (x->caching ? !(cached) : x->recompute >= (recomputed_from))               \
                             ? x->block[0].member                                                            \
                             : (type *)arena_take(arena, MEMORY_BLOCKS, count, SIZE_##type);
    for (size_t l = 0; l < m->dims.L; l++) {
        BLOCK_ACTIVATIONS(PLACE)
    }
#undef PLACE
}

// Gives every tensor its place. Text is generated between steps, so its memory is that of the activations.
static void gpt_place(GPT *m, Arena *arena) {
    size_t workspace = arena->on_gpu ? matmul_gpu_workspace_size(max_size(m->dims.UP, m->dims.QKV)) : 0;
    place_weights(m, arena);
    if (m->acts.B > 0) place_training_state(m, arena);
    void *place = arena_take(arena, MEMORY_WORKSPACE, workspace, 1);
    if (place != NULL) matmul_set_workspace(&m->matmul, place, workspace);
    Arena generation = *arena;
    if (m->acts.B > 0) place_activations(m, &m->acts, arena);
    place_activations(m, &m->cache, &generation);
    if (generation.used > arena->used) {
        arena->of[MEMORY_BLOCKS] += generation.used - arena->used; // keys and values, most of it
        arena->used = generation.used;
    }
}

// The shapes of the activations, as far as memory decides them.
static void set_shapes(GPT *m, size_t B, size_t floatX_size) {
    const Shape *s = &m->shape;
    size_t rows = B * s->T, fit = s->logits_bytes / (m->dims.Vp * floatX_size);
    if (fit >= 64) fit = fit / 64 * 64;
    if (s->logits_bytes > 0) rows = min_size(rows, fit > 0 ? fit : 1);
    m->acts.B = B;
    m->acts.T = s->T;
    m->acts.recompute = s->recompute;
    m->acts.logit_rows = rows;
    m->cache.B = 1;
    m->cache.T = (size_t)m->config.max_sequence_length;
    m->cache.caching = 1;
    m->cache.logit_rows = 1;
}

// Bytes that --batch B takes in a build for the CPU or a GPU; `of` (or NULL): by purpose.
static size_t gpt_memory(const GPT *m, size_t B, int on_gpu, size_t floatX_size, size_t of[NUM_MEMORIES]) {
    CHECK(m->arena.base == NULL); // places are forgotten
    GPT plan = *m;
    Arena arena = {NULL, 0, {0}, on_gpu, floatX_size};
    set_shapes(&plan, B, floatX_size);
    gpt_place(&plan, &arena);
    if (of != NULL) memcpy(of, arena.of, sizeof(arena.of));
    return arena.used;
}

// Bytes of the host's memory that training takes beside the model's, as a bound: the copy of the state that is saved, batches
// on their way (data/loader.c, open_queues), sums of attention's backward pass, stacks and buffers of threads. On a GPU this
// is not the memory that limits the batch.
static size_t memory_beside(const GPT *m, size_t B, int on_gpu) {
    enum { BATCHES = 8, THREADS = 4, FIXED = 24 << 20 };
    const size_t saved = 3 * sizeof(float) * m->num_floats;
    const size_t divided = m->shape.sharding == SHARD_NONE ? 1 : (size_t)m->shape.processes;
    const size_t sums = 2 * m->shape.T * round_up(m->dims.HS, 64) * sizeof(float) *
                        (size_t)omp_get_max_threads();
    if (on_gpu) return 0;
    if (B == 0) return FIXED;
    return saved / divided + BATCHES * B * (m->shape.T + 1) * sizeof(int32_t) + sums +
           THREADS * THREAD_STACK + FIXED;
}

// All that a build for the CPU or a GPU takes with --batch B.
static size_t memory_taken(const GPT *m, size_t B, int on_gpu, size_t floatX_size) {
    return gpt_memory(m, B, on_gpu, floatX_size, NULL) + memory_beside(m, B, on_gpu);
}

// The largest B that fits into `bytes`; 0: none.
static size_t largest_batch(const GPT *m, size_t bytes, int on_gpu, size_t floatX_size) {
    size_t fits = 0, too_much = 1;
    while (too_much < (1 << 20) && memory_taken(m, too_much, on_gpu, floatX_size) <= bytes) {
        fits = too_much;
        too_much *= 2;
    }
    while (too_much - fits > 1) {
        size_t middle = fits + (too_much - fits) / 2;
        if (memory_taken(m, middle, on_gpu, floatX_size) <= bytes)
            fits = middle;
        else
            too_much = middle;
    }
    return fits;
}

// The model's tensors and shapes, without memory.
static void gpt_describe(GPT *m, const GPTConfig *config, const Shape *shape) {
    memset(m, 0, sizeof(*m));
    m->config = *config;
    m->dims = dims_of(config);
    m->shape = *shape;
    m->comm = shape->comm;
    m->rank = comm_rank(m->comm);
    m->attention = attention_choose(shape->attention);
    list_parameters(m);
    divide_parameters(m);
    m->block_weights = (BlockWeights *)xcalloc(m->dims.L, sizeof(BlockWeights));
    m->block_gradients = (BlockGradients *)xcalloc(m->dims.L, sizeof(BlockGradients));
    m->acts.block = (BlockActivations *)xcalloc(m->dims.L, sizeof(BlockActivations));
    m->cache.block = (BlockActivations *)xcalloc(m->dims.L, sizeof(BlockActivations));
    set_shapes(m, shape->B, sizeof(floatX));
}

static int refuse_memory(const GPT *m, size_t asked, size_t available, Error *error) {
    const Shape *s = &m->shape;
    const double takes = (double)asked * 1e-9, has = (double)available * 1e-9;
    if (s->B == 0)
        return fail(error, "generating text takes %.4g GB, but only %.4g GB are available", takes, has);
    size_t fits = largest_batch(m, available, DEVICE_IS_GPU, sizeof(floatX));
    if (fits > 0)
        return fail(
            error,
            "--batch %zu --sequence-length %zu takes %.4g GB, but only %.4g GB are available: the largest "
            "batch that fits is --batch %zu (--accumulate makes up for a smaller one)",
            s->B, s->T, takes, has, fits);
    return fail(error,
                "--batch %zu --sequence-length %zu takes %.4g GB, but only %.4g GB are available, and not "
                "even --batch 1 fits: try "
                "--recompute block, --logits-memory, a shorter sequence or a smaller model",
                s->B, s->T, takes, has);
}

// AdamW's work: the chunks that this process updates, with their decay.
static void send_chunks(GPT *m, double weight_decay) {
    AdamWChunk *chunks = (AdamWChunk *)host_alloc(m->num_chunks * sizeof(AdamWChunk)), *next = chunks;
    const PartitionChunk *c = m->partition;
    for (size_t t = 0; t < m->num_tensors; t++) {
        const Parameter *p = &m->parameters[t];
        for (size_t done = 0; done < p->size; done += ADAMW_CHUNK, c++) {
            if (m->shape.sharding != SHARD_NONE && c->owner != m->rank) continue;
            next->number = (uint64_t)(c - m->partition);
            next->weight = c->offset;
            next->master = offset_in(m, c, sizeof(floatX) != sizeof(float));
            next->gradient = offset_in(m, c, m->gradient_sums != m->gradients_memory);
            next->moment = offset_in(m, c, 1);
            next->size = (uint32_t)min_size(p->size - done, ADAMW_CHUNK);
            next->decay = p->group != GROUP_VECTOR ? (float)weight_decay : 0.0f;
            next++;
        }
    }
    m->num_owned_chunks = (size_t)(next - chunks);
    copy_to_device(m->chunks, chunks, m->num_owned_chunks * sizeof(AdamWChunk), m->stream);
    stream_wait(m->stream);
    host_free(chunks);
}

// Memory for what gpt_describe described, and zeros where a run begins with them.
static int gpt_allocate(GPT *m, MatmulLibrary library, Precision precision, Error *error) {
    size_t available, total, asked = gpt_memory(m, m->shape.B, DEVICE_IS_GPU, sizeof(floatX), NULL);
    const size_t taken = asked + memory_beside(m, m->shape.B, DEVICE_IS_GPU);
    m->stream = stream_create();
    matmul_open(&m->matmul, library, precision);
    device_memory(&available, &total, m->shape.sharing);
    Arena arena = {NULL, 0, {0}, DEVICE_IS_GPU, sizeof(floatX)};
    if (taken <= available) arena.base = (char *)device_alloc(asked);
    if (arena.base == NULL) return refuse_memory(m, taken, min_size(available, taken - 1), error);
    m->arena = arena;
    gpt_place(m, &m->arena);
    device_zero(m->arena.base, m->arena.of[MEMORY_WEIGHTS] + m->arena.of[MEMORY_MASTER], m->stream);
    if (m->shape.B > 0) {
        device_zero(m->gradients_memory, m->arena.of[MEMORY_GRADIENTS] + m->arena.of[MEMORY_MOMENTS],
                    m->stream);
        device_zero(m->outcome, sizeof(StepOutcome), m->stream);
        device_zero(m->totals, step_totals(m->num_chunks) * sizeof(double), m->stream); // no flags
    }
    stream_wait(m->stream);
    return 0;
}

static void gpt_free(GPT *m) {
    if (m->arena.base != NULL) {
        stream_wait(m->stream);
        profile_free(&m->profile);
        matmul_close(&m->matmul);
        stream_destroy(m->stream);
        device_free(m->arena.base);
    }
    free(m->block_weights), free(m->block_gradients), free(m->acts.block), free(m->cache.block);
    free(m->parameters), free(m->partition), free(m->owned), free(m->pieces), free(m->buckets);
}

// ---- state that processes divide ------------------------------------------------------------------------------

static int is_divided(const GPT *m, const float *memory) {
    return m->shape.sharding != SHARD_NONE && memory != (const float *)m->weights_memory;
}

// The pieces of bucket b, in everybody's `data`, which holds the bucket, and in their owners' `own`.
static const CommPiece *pieces_of(GPT *m, size_t b, void *data, void *own, size_t element, int divided) {
    const Bucket *bucket = &m->buckets[b];
    for (size_t i = 0; i < bucket->num_pieces; i++) {
        const PartitionPiece *p = &m->owned[bucket->first_piece + i];
        char *at = (char *)data + (p->offset - bucket->offset) * element;
        CommPiece piece = {at, divided ? (char *)own + p->own * element : at, p->size, p->owner};
        m->pieces[i] = piece;
    }
    return m->pieces;
}

// Everybody gets what each owner made of its weights, a bucket after the other: forward waits for one at a time.
static void gather_weights(GPT *m) {
    for (size_t b = 0; b <= m->dims.L; b++) {
        Bucket *bucket = &m->buckets[b];
        const CommPiece *pieces = pieces_of(m, b, m->weights_memory + bucket->offset, NULL, sizeof(floatX),
                                            0);
        bucket->gathered = comm_all_gather(m->comm, pieces, bucket->num_pieces, sizeof(floatX), m->stream);
    }
}

// Weights from the master weights.
static void gpt_round(GPT *m, int stochastic) {
    if (m->shape.sharding == SHARD_NONE) {
        round_weights(m->weights_memory, m->master, 0, m->num_floats, stochastic, m->seed, m->outcome,
                      m->stream);
        return;
    }
    for (size_t i = 0; i < m->num_pieces && sizeof(floatX) != sizeof(float); i++) {
        const PartitionPiece *p = &m->owned[i];
        if (p->owner == m->rank)
            round_weights(m->weights_memory + p->offset, m->master + p->own, p->offset, p->size, stochastic,
                          m->seed, m->outcome, m->stream);
    }
    gather_weights(m);
}

// Master weights or moments (num_floats) as the host can write them: the memory itself, a copy, or, of what is divided,
// zeros.
static float *state_borrow(GPT *m, float *memory) {
    comm_wait(m->comm, m->buckets[m->dims.L].gathered, m->stream);
    if (!is_divided(m, memory)) return (float *)host_borrow(memory, m->num_floats * sizeof(float));
    return (float *)xcalloc(m->num_floats, sizeof(float));
}

// Takes back what was written; of what is divided, this process's part.
static void state_return(GPT *m, float *host, float *memory) {
    if (!is_divided(m, memory)) {
        host_return(host, memory, m->num_floats * sizeof(float), 1);
        return;
    }
    for (size_t i = 0; i < m->num_pieces; i++) {
        const PartitionPiece *p = &m->owned[i];
        if (p->owner == m->rank)
            copy_to_device(memory + p->own, host + p->offset, p->size * sizeof(float), m->stream);
    }
    stream_wait(m->stream);
    free(host);
}

// Normal number of a parameter's element: Box and Muller's transform of one Philox call.
static double random_normal(uint64_t seed, size_t element, size_t tensor) {
    Philox r = philox(philox_key(seed, RANDOM_INITIALISATION, 0), (uint32_t)element,
                      (uint32_t)(element >> 32), (uint32_t)tensor, 0);
    return sqrt(-2 * log(uniform_from_bits(r.v[0]))) * cos(6.283185307179586 * uniform_from_bits(r.v[1]));
}

// GPT-2's initialisation with 0.02 for `embedding` and `matrices`: normal numbers of that deviation;
// projections into the residual stream get matrices / sqrt(2 L).
static void gpt_initialise(GPT *m, double embedding, double matrices) {
    const double deviations[] = {0, 0, embedding, 0.02, matrices, matrices / sqrt(2.0 * (double)m->dims.L)};
    float *host = state_borrow(m, m->master);
    for (size_t t = 0; t < m->num_tensors; t++) {
        const Parameter *p = &m->parameters[t];
        double deviation = deviations[p->init];
#pragma omp parallel for schedule(static)
        for (size_t i = 0; i < p->used; i++)
            host[p->offset + i] = p->init == INIT_ONE ? 1.0f
                                  : deviation > 0     ? (float)(deviation * random_normal(m->seed, i, t))
                                                      : 0.0f;
    }
    state_return(m, host, m->master);
}

// ---- forward and backward ---------------------------------------------------------------------------------

// Where a micro-step stands: the key of its dropout masks, how gradients are written.
typedef struct {
    uint32_t step;
    uint32_t first_sequence;    // of the micro-step's batch, in the step's global batch
    uint32_t dropout_threshold;
    float loss_scale;           // 1 / number of tokens in the step
    MatmulMode mode;            // of weight gradients: the first micro-step overwrites them, later ones add
    int first;                  // no sums of gradients yet
    int sends;                  // gradients go to the other processes
} MicroStep;

static const MicroStep NO_TRAINING = {0, 0, DROPOUT_NONE, 0, MATMUL_OVERWRITE, 1, 0};

static Dropout dropout_of(const GPT *m, RandomStream stream, size_t layer, const MicroStep *s) {
    return dropout_make(s->dropout_threshold, m->seed, stream, (uint32_t)layer, s->step, s->first_sequence);
}

// Queries are the T newest tokens, keys those and the ones before them.
static Attention attention_of(const GPT *m, const Activations *x, size_t layer, const MicroStep *s) {
    Attention a = attention_packed(x->B, x->T, m->dims.NH, m->dims.NKV, m->dims.HS,
                                   dropout_of(m, RANDOM_ATTENTION_DROPOUT, layer, s));
    a.Tk = x->past + x->T;
    a.atomics = m->attention_atomics;
    return a;
}

// Generating text reads cached keys: fewer queries than keys, which cuDNN does not serve.
static AttentionVariant attention_variant(const GPT *m, const Activations *x) {
    return x->caching && m->attention == ATTENTION_CUDNN ? ATTENTION_FLASH : m->attention;
}

// Names a call of a layer once, for --profile and for nsys.
#define PROFILED(lap, call)                                                                                  \
    do {                                                                                                     \
        profile_enter(&m->profile, lap, m->stream);                                                          \
        call;                                                                                                \
    } while (0)

// Waits for bucket b's weights from the processes that updated them.
static void wait_for_weights(GPT *m, size_t b) {
    if (m->buckets[b].gathered == 0) return;
    PROFILED(LAP_COMMUNICATION, comm_wait(m->comm, m->buckets[b].gathered, m->stream));
    profile_leave(&m->profile, m->stream);
}

// Which of the memories for gradients bucket b has with SHARD_GRADIENTS.
static size_t gradient_slot(size_t b) {
    return b == 0 ? 0 : 1 + b % 2;
}

// Before backward makes the gradients of bucket b: zeroes those that it adds to.
static void bucket_begin(GPT *m, size_t b, const MicroStep *s) {
    const Bucket *bucket = &m->buckets[b];
    if (s->mode == MATMUL_ACCUMULATE) return;
    if (m->shape.sharding == SHARD_GRADIENTS) comm_wait(m->comm, m->slots[gradient_slot(b)], m->stream);
    for (size_t i = 0; i < bucket->num_tensors; i++) {
        const Parameter *p = &m->parameters[bucket->first_tensor + i];
        float *gradients = bucket->gradients + (p->offset - bucket->offset);
        if (p->gradient == GRADIENT_ADDED) device_zero(gradients, p->size * sizeof(float), m->stream);
    }
}

// Backward is done with bucket b: its gradients go to the other processes while it goes on.
static void bucket_end(GPT *m, size_t b, const MicroStep *s) {
    Bucket *bucket = &m->buckets[b];
    const int divided = m->shape.sharding == SHARD_GRADIENTS;
    if (!s->sends) return;
    if (m->shape.sharding == SHARD_NONE) {
        bucket->reduced = comm_all_reduce(m->comm, bucket->gradients, bucket->size, COMM_FLOAT, m->stream);
        return;
    }
    const CommPiece *pieces = pieces_of(m, b, bucket->gradients, m->gradient_sums, sizeof(float), divided);
    for (size_t i = 0; i < bucket->num_pieces && divided && !s->first; i++)
        if (pieces[i].owner == m->rank) // the sums so far go through the reduction once more
            accumulate((float *)pieces[i].data, (const float *)pieces[i].own, pieces[i].count, m->stream);
    bucket->reduced = comm_reduce_scatter(m->comm, pieces, bucket->num_pieces, m->stream);
    m->slots[gradient_slot(b)] = bucket->reduced;
}

// ---- where sublayers meet the residual stream -------------------------------------------------------------

// A sublayer's output joins the stream and the next sublayer's input is normalised, in one pass over memory:
//     r += dropout(branch)     n = norm(r)
typedef struct {
    const floatX *residual_in; // (N, C)
    const floatX *branch;      // (N, C), or NULL: nothing joins the stream
    floatX *residual_out;      // (N, C), or NULL without a branch
    floatX *normed;            // (N, C)
    float *mean, *rstd;        // (N)
    const floatX *weight, *bias;
    float *dweight, *dbias;
    Dropout dropout; // of the branch
} Boundary;

static Boundary boundary_before_attention(const GPT *m, const Activations *x, size_t l, const MicroStep *s) {
    const BlockActivations *b = &x->block[l], *before = l > 0 ? b - 1 : NULL;
    const BlockWeights *w = &m->block_weights[l];
    const BlockGradients *g = &m->block_gradients[l];
    Boundary at = {before ? before->residual_middle : x->model.embedded,
                   before ? x->model.branch : NULL,
                   before ? before->residual_out : NULL,
                   b->norm1,
                   b->norm1_mean,
                   b->norm1_rstd,
                   w->norm1_weight,
                   w->norm1_bias,
                   g->norm1_weight,
                   g->norm1_bias,
                   dropout_of(m, RANDOM_MLP_RESIDUAL, before ? l - 1 : 0, s)};
    return at;
}

static Boundary boundary_before_mlp(const GPT *m, const Activations *x, size_t l, const MicroStep *s) {
    const BlockActivations *b = &x->block[l], *before = l > 0 ? b - 1 : NULL;
    const BlockWeights *w = &m->block_weights[l];
    const BlockGradients *g = &m->block_gradients[l];
    Boundary at = {before ? before->residual_out : x->model.embedded,
                   x->model.branch,
                   b->residual_middle,
                   b->norm2,
                   b->norm2_mean,
                   b->norm2_rstd,
                   w->norm2_weight,
                   w->norm2_bias,
                   g->norm2_weight,
                   g->norm2_bias,
                   dropout_of(m, RANDOM_ATTENTION_RESIDUAL, l, s)};
    return at;
}

static Boundary boundary_before_head(const GPT *m, const Activations *x, const MicroStep *s) {
    const ModelActivations *a = &x->model;
    const BlockActivations *last = &x->block[m->dims.L - 1];
    Boundary at = {last->residual_middle,
                   a->branch,
                   last->residual_out,
                   a->final_norm,
                   a->final_norm_mean,
                   a->final_norm_rstd,
                   m->weights.final_norm_weight,
                   m->weights.final_norm_bias,
                   m->gradients.final_norm_weight,
                   m->gradients.final_norm_bias,
                   dropout_of(m, RANDOM_MLP_RESIDUAL, m->dims.L - 1, s)};
    return at;
}

static void boundary_forward(GPT *m, const Activations *x, const Boundary *at) {
    PROFILED(LAP_NORM,
             norm_forward(m->config.norm, at->residual_out, at->normed, at->mean, at->rstd, at->residual_in,
                          at->branch, at->weight, at->bias, x->B, x->T, m->dims.C, &at->dropout, m->stream));
}

static const floatX *residual_after(const Boundary *at) {
    return at->branch != NULL ? at->residual_out : at->residual_in;
}

static void boundary_recompute(GPT *m, const Activations *x, const Boundary *at) {
    PROFILED(LAP_NORM, norm_recompute(m->config.norm, at->normed, residual_after(at), at->mean, at->rstd,
                                      at->weight, at->bias, x->B * x->T, m->dims.C, m->stream));
}

// From dnormed and the gradient of the stream after the boundary to that before it, and to dbranch.
static void boundary_backward(GPT *m, const Activations *x, const Boundary *at) {
    const ModelActivations *a = &x->model;
    PROFILED(LAP_NORM,
             norm_backward(m->config.norm, a->dresidual, at->branch != NULL ? a->dbranch : NULL, at->dweight,
                           at->dbias, a->norm_partial, a->dnormed, residual_after(at), at->mean, at->rstd,
                           at->weight, x->B, x->T, m->dims.C, &at->dropout, m->stream));
}

// ---- the attention sublayer -------------------------------------------------------------------------------

// branch (N, C) = attention(norm1 W_qkv + b_qkv) W_proj + b_proj
static void attention_from_norm(GPT *m, Activations *x, size_t l, const MicroStep *s) {
    const Dims *d = &m->dims;
    const size_t N = x->B * x->T;
    const BlockWeights *w = &m->block_weights[l];
    BlockActivations *b = &x->block[l];
    floatX *qkv = b->qkv + x->past * d->QKV; // after those of the tokens before
    Attention attention = attention_of(m, x, l, s);
    PROFILED(LAP_QKV, matmul_forward(&m->matmul, qkv, b->norm1, w->qkv_weight, w->qkv_bias, N, d->C, d->QKV,
                                     m->stream));
    PROFILED(LAP_ATTENTION, attention_forward(attention_variant(m, x), b->attended, b->lse, b->saved, qkv,
                                              b->qkv + d->Q, b->qkv + d->Q + d->KV, &attention, m->stream));
    PROFILED(LAP_PROJECTION, matmul_forward(&m->matmul, x->model.branch, b->attended, w->proj_weight,
                                            w->proj_bias, N, d->Q, d->C, m->stream));
}

static void attention_sublayer_forward(GPT *m, Activations *x, size_t l, const MicroStep *s) {
    const Boundary before = boundary_before_attention(m, x, l, s);
    boundary_forward(m, x, &before);
    attention_from_norm(m, x, l, s);
}

// What forward did not keep is computed again by the same calls on the same bits.
static void attention_sublayer_recompute(GPT *m, Activations *x, size_t l, const MicroStep *s) {
    const Boundary before = boundary_before_attention(m, x, l, s);
    if (x->recompute >= RECOMPUTE_NORM) boundary_recompute(m, x, &before);
    if (x->recompute == RECOMPUTE_BLOCK) attention_from_norm(m, x, l, s);
}

static void attention_sublayer_backward(GPT *m, Activations *x, size_t l, const MicroStep *s) {
    const Dims *d = &m->dims;
    const size_t N = x->B * x->T;
    const BlockWeights *w = &m->block_weights[l];
    const BlockGradients *g = &m->block_gradients[l];
    const BlockActivations *b = &x->block[l];
    const ModelActivations *a = &x->model;
    Attention attention = attention_of(m, x, l, s);
    PROFILED(LAP_PROJECTION,
             matmul_backward(&m->matmul, a->dnormed, g->proj_weight, g->proj_bias, a->dbranch, b->attended,
                             w->proj_weight, NULL, N, d->Q, d->C, s->mode, m->stream));
    PROFILED(LAP_ATTENTION,
             attention_backward(m->attention, a->dwide, a->dwide + d->Q, a->dwide + d->Q + d->KV, a->dnormed,
                                b->qkv, b->qkv + d->Q, b->qkv + d->Q + d->KV, b->attended, b->lse, b->saved,
                                a->attention_scratch, &attention, m->stream));
    PROFILED(LAP_QKV, matmul_backward(&m->matmul, a->dnormed, g->qkv_weight, g->qkv_bias, a->dwide, b->norm1,
                                      w->qkv_weight, NULL, N, d->C, d->QKV, s->mode, m->stream));
    const Boundary before = boundary_before_attention(m, x, l, s);
    boundary_backward(m, x, &before);
}

// ---- the MLP sublayer -------------------------------------------------------------------------------------

// up (N, UP) = norm2 W_up + b_up     activated (N, F) = f(up)
static void mlp_up_from_branch(GPT *m, Activations *x, size_t l, const MicroStep *s) {
    const Dims *d = &m->dims;
    const BlockWeights *w = &m->block_weights[l];
    BlockActivations *b = &x->block[l];
    const Boundary before = boundary_before_mlp(m, x, l, s);
    boundary_forward(m, x, &before);
    PROFILED(LAP_MLP_UP,
             matmul_activation_forward(m->config.activation, &m->matmul, b->activated, b->up, b->norm2,
                                       w->up_weight, w->up_bias, x->B * x->T, d->C, d->UP, m->stream));
}

// branch (N, C) = activated W_down + b_down
static void mlp_sublayer_forward(GPT *m, Activations *x, size_t l, const MicroStep *s) {
    const Dims *d = &m->dims;
    const BlockWeights *w = &m->block_weights[l];
    mlp_up_from_branch(m, x, l, s);
    PROFILED(LAP_MLP_DOWN, matmul_forward(&m->matmul, x->model.branch, x->block[l].activated, w->down_weight,
                                          w->down_bias, x->B * x->T, d->F, d->C, m->stream));
}

static void mlp_sublayer_recompute(GPT *m, Activations *x, size_t l, const MicroStep *s) {
    const Boundary before = boundary_before_mlp(m, x, l, s);
    const BlockActivations *b = &x->block[l];
    if (x->recompute == RECOMPUTE_BLOCK) {
        mlp_up_from_branch(m, x, l, s);
        return;
    }
    if (x->recompute >= RECOMPUTE_NORM) boundary_recompute(m, x, &before);
    if (x->recompute >= RECOMPUTE_ACTIVATION)
        PROFILED(LAP_MLP_UP, activation_forward(m->config.activation, b->activated, b->up, x->B * x->T,
                                                m->dims.F, m->stream));
}

static void mlp_sublayer_backward(GPT *m, Activations *x, size_t l, const MicroStep *s) {
    const Dims *d = &m->dims;
    const size_t N = x->B * x->T;
    const BlockWeights *w = &m->block_weights[l];
    const BlockGradients *g = &m->block_gradients[l];
    const BlockActivations *b = &x->block[l];
    const ModelActivations *a = &x->model;
    PROFILED(LAP_MLP_DOWN,
             matmul_activation_backward(m->config.activation, &m->matmul, a->dwide, g->down_weight,
                                        g->down_bias, a->dbranch, b->activated, w->down_weight, b->up, N,
                                        d->F, d->C, s->mode, m->stream));
    PROFILED(LAP_MLP_UP, matmul_backward(&m->matmul, a->dnormed, g->up_weight, g->up_bias, a->dwide, b->norm2,
                                         w->up_weight, NULL, N, d->C, d->UP, s->mode, m->stream));
    const Boundary before = boundary_before_mlp(m, x, l, s);
    boundary_backward(m, x, &before);
}

// ---- blocks -----------------------------------------------------------------------------------------------

static void block_forward(GPT *m, Activations *x, size_t l, const MicroStep *s) {
    range_begin("block forward");
    wait_for_weights(m, l + 1);
    attention_sublayer_forward(m, x, l, s);
    mlp_sublayer_forward(m, x, l, s);
    profile_leave(&m->profile, m->stream);
    range_end();
}

// On entry acts.dbranch is the gradient of the block's MLP branch, acts.dresidual that of its output; on exit
// the same of the block before.
static void block_backward(GPT *m, size_t l, const MicroStep *s) {
    Activations *x = &m->acts;
    range_begin("block backward");
    bucket_begin(m, l + 1, s);
    attention_sublayer_recompute(m, x, l, s);
    mlp_sublayer_recompute(m, x, l, s);
    mlp_sublayer_backward(m, x, l, s);
    attention_sublayer_backward(m, x, l, s);
    profile_leave(&m->profile, m->stream);
    bucket_end(m, l + 1, s);
    range_end();
}

// ---- the model --------------------------------------------------------------------------------------------

// From x->model.tokens, at positions past .. past + T - 1, to x->model.final_norm, the head's input.
static void gpt_forward(GPT *m, Activations *x, const MicroStep *s) {
    const ModelActivations *a = &x->model;
    const Dims *d = &m->dims;
    const floatX *positions = position_vectors(m->config.positions, m->weights.wpe, x->past, d->C);
    Dropout dropout = dropout_of(m, RANDOM_EMBEDDING_DROPOUT, 0, s);
    range_begin("forward");
    profile_begin_pass(&m->profile, PASS_FORWARD);
    wait_for_weights(m, 0);
    PROFILED(LAP_EMBEDDING, embedding_forward(a->embedded, a->tokens, m->weights.wte, positions, x->B, x->T,
                                              d->C, &dropout, m->stream));
    profile_leave(&m->profile, m->stream);
    for (size_t l = 0; l < d->L; l++) block_forward(m, x, l, s);
    const Boundary before = boundary_before_head(m, x, s);
    boundary_forward(m, x, &before);
    profile_leave(&m->profile, m->stream);
    range_end();
}

// Logits of `count` tokens from `first` on; x->model.logits holds logit_rows.
static void gpt_logits(GPT *m, Activations *x, size_t first, size_t count) {
    const Dims *d = &m->dims;
    PROFILED(LAP_HEAD, matmul_head_forward(&m->matmul, x->model.logits, x->model.final_norm + first * d->C,
                                           m->weights.wte, count, d->C, d->Vp, m->stream));
    profile_leave(&m->profile, m->stream);
}

// After gpt_forward: x->model.losses.
static void gpt_losses(GPT *m, Activations *x) {
    const size_t N = x->B * x->T;
    for (size_t first = 0; first < N; first += x->logit_rows) {
        size_t count = min_size(x->logit_rows, N - first);
        gpt_logits(m, x, first, count);
        cross_entropy_forward(x->model.losses + first, x->model.logits, x->model.targets + first, count,
                              m->dims.V, m->dims.Vp, m->stream);
    }
}

// Head and loss, forward and backward, as many tokens at a time as logits have room for: losses, dwte and, in
// dnormed, the gradient of final_norm. The logits are the one product of the forward pass that is computed here.
static void head_backward(GPT *m, const MicroStep *s) {
    const ModelActivations *a = &m->acts.model;
    const Dims *d = &m->dims;
    const size_t N = m->acts.B * m->acts.T;
    for (size_t first = 0; first < N; first += m->acts.logit_rows) {
        size_t count = min_size(m->acts.logit_rows, N - first);
        profile_begin_pass(&m->profile, PASS_FORWARD);
        gpt_logits(m, &m->acts, first, count);
        profile_begin_pass(&m->profile, PASS_BACKWARD);
        PROFILED(LAP_LOSS, cross_entropy_backward(a->losses + first, a->logits, a->targets + first,
                                                  s->loss_scale, count, d->V, d->Vp, m->stream));
        PROFILED(LAP_HEAD,
                 matmul_head_backward(&m->matmul, a->dnormed + first * d->C, m->gradients.wte, a->logits,
                                      a->final_norm + first * d->C, m->weights.wte, count, d->C, d->Vp,
                                      first == 0 ? s->mode : MATMUL_ACCUMULATE, m->stream));
        profile_leave(&m->profile, m->stream);
    }
}

// After gpt_forward(m, &m->acts, s): all gradients; losses go to acts.model.losses.
static void gpt_backward(GPT *m, const MicroStep *s) {
    Activations *x = &m->acts;
    const ModelActivations *a = &x->model;
    const Dims *d = &m->dims;
    const ModelGradients *g = &m->gradients;
    Dropout dropout = dropout_of(m, RANDOM_EMBEDDING_DROPOUT, 0, s);
    const Boundary before = boundary_before_head(m, x, s);
    range_begin("backward");
    bucket_begin(m, 0, s);
    head_backward(m, s);
    device_zero(a->dresidual, x->B * x->T * d->C * sizeof(floatX), m->stream);
    boundary_backward(m, x, &before);
    profile_leave(&m->profile, m->stream);
    for (size_t l = d->L; l-- > 0;) block_backward(m, l, s);
    PROFILED(LAP_EMBEDDING, embedding_backward(g->wte, g->wpe, a->dresidual, a->tokens, x->B, x->T, d->C,
                                               d->V, &dropout, m->stream));
    profile_leave(&m->profile, m->stream);
    bucket_end(m, 0, s);
    range_end();
}

// Norm, clipping, AdamW of what this process owns; m->outcome says what came of it.
static void gpt_update(GPT *m, const AdamW *adamw) {
    const int divided = m->shape.sharding != SHARD_NONE;
    const size_t shared = divided ? step_totals(m->num_chunks)
                                  : (size_t)TOTAL_SQUARES; // the rest everybody has
    range_begin("optimizer");
    PROFILED(LAP_COMMUNICATION, comm_wait(m->comm, m->buckets[0].reduced, m->stream)); // the last one
    if (divided) device_zero(m->totals + TOTAL_SQUARES, m->num_chunks * sizeof(double), m->stream);
    PROFILED(LAP_OPTIMIZER,
             square_sums(m->totals, m->gradient_sums, m->chunks, m->num_owned_chunks, m->stream));
    PROFILED(
        LAP_COMMUNICATION,
        comm_wait(m->comm, comm_all_reduce(m->comm, m->totals, shared, COMM_DOUBLE, m->stream), m->stream));
    PROFILED(LAP_OPTIMIZER, step_outcome(m->outcome, m->totals, m->num_chunks, adamw, m->stream));
    adamw_update(m->weights_memory, m->master, m->moment1, m->moment2, m->gradient_sums, m->chunks,
                 m->num_owned_chunks, adamw, m->outcome, m->stream);
    profile_leave(&m->profile, m->stream);
    if (divided) gather_weights(m);
    range_end();
}

// ---- work -------------------------------------------------------------------------------------------------

// Products of causal attention on one token, forward: scores and their sum of values, of half the keys.
static double attention_flop(const GPT *m, size_t T) {
    return 2 * (double)T * (double)m->dims.Q;
}

// FLOPs of one token's forward pass through layer l (-1: of the head), a multiply-add counting two; `but`: without one product.
static double layer_flop(const GPT *m, int layer, size_t T, Lap but) {
    double flop = layer >= 0 ? attention_flop(m, T) : 0;
    for (size_t t = 0; t < m->num_tensors; t++) {
        const Parameter *p = &m->parameters[t];
        if (p->layer == layer && p->gradient == GRADIENT_WRITTEN && p->lap != but)
            flop += 2 * (double)p->used;
    }
    return flop;
}

// FLOPs of a training step on one token: backward's are twice forward's.
static double flop_per_token(const GPT *m, size_t T) {
    return 3 * ((double)m->dims.L * layer_flop(m, 0, T, NUM_LAPS) + layer_flop(m, -1, T, NUM_LAPS));
}

// What --profile compares times with: FLOPs of products and of attention in one step on `tokens`, and bytes of the tensors that
// are read and written.
static void set_work(GPT *m, size_t tokens) {
    const Dims *d = &m->dims;
    Profile *p = &m->profile;
    const double L = (double)d->L, N = (double)tokens, NC = N * (double)d->C, X = sizeof(floatX);
    for (size_t t = 0; t < m->num_tensors; t++) {
        const Parameter *w = &m->parameters[t];
        const double rows = (double)(w->rows + w->padding), columns = (double)w->columns;
        if (w->gradient == GRADIENT_WRITTEN)
            profile_add_work(p, w->lap, 2, 2 * N * rows * columns,
                             X * (N * (rows + columns) + rows * columns));
    }
    profile_add_work(p, LAP_MLP_UP, 2, 0, X * L * N * (double)d->F); // the activation's result
    profile_add_work(p, LAP_ATTENTION, 2.5, L * N * attention_flop(m, m->acts.T),
                     X * L * N * (double)(d->QKV + d->Q));
    profile_add_bytes(p, LAP_EMBEDDING, PASS_FORWARD, X * 2 * NC);
    profile_add_bytes(p, LAP_EMBEDDING, PASS_BACKWARD, X * 5 * NC);
    profile_add_bytes(p, LAP_NORM, PASS_FORWARD, X * (2 * L + 1) * 4 * NC);
    profile_add_bytes(p, LAP_NORM, PASS_BACKWARD, X * (2 * L + 1) * 5 * NC);
    profile_add_bytes(p, LAP_LOSS, PASS_BACKWARD, X * 2 * N * (double)d->Vp);
    profile_add_bytes(p, LAP_OPTIMIZER, PASS_BACKWARD, 8 * sizeof(float) * (double)m->num_floats);
}

#endif
