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
#include "layers/layernorm.cuh"
#include "layers/matmul.cuh"
#include "layers/profile.h"
#include "layers/softmax_cross_entropy.cuh"

// ---- the model: parameters and activations as tables ------------------------------------------------------

// member, name in Hugging Face's GPT-2, rows (0: a vector), columns, initialisation, weight decay
#define MODEL_PARAMETERS(X)                                                                                  \
    X(wte, "wte.weight", Vp, C, INIT_EMBEDDING, 1)                                                           \
    X(wpe, "wpe.weight", max_T, C, INIT_POSITION, 1)                                                         \
    X(lnfw, "ln_f.weight", 0, C, INIT_ONE, 0)                                                                \
    X(lnfb, "ln_f.bias", 0, C, INIT_ZERO, 0)
#define BLOCK_PARAMETERS(X)                                                                                  \
    X(ln1w, "ln_1.weight", 0, C, INIT_ONE, 0)                                                                \
    X(ln1b, "ln_1.bias", 0, C, INIT_ZERO, 0)                                                                 \
    X(qkvw, "attn.c_attn.weight", C, 3 * C, INIT_MATRIX, 1)                                                  \
    X(qkvb, "attn.c_attn.bias", 0, 3 * C, INIT_ZERO, 0)                                                      \
    X(projw, "attn.c_proj.weight", C, C, INIT_RESIDUAL, 1)                                                   \
    X(projb, "attn.c_proj.bias", 0, C, INIT_ZERO, 0)                                                         \
    X(ln2w, "ln_2.weight", 0, C, INIT_ONE, 0)                                                                \
    X(ln2b, "ln_2.bias", 0, C, INIT_ZERO, 0)                                                                 \
    X(upw, "mlp.c_fc.weight", C, 4 * C, INIT_MATRIX, 1)                                                      \
    X(upb, "mlp.c_fc.bias", 0, 4 * C, INIT_ZERO, 0)                                                          \
    X(downw, "mlp.c_proj.weight", 4 * C, C, INIT_RESIDUAL, 1)                                                \
    X(downb, "mlp.c_proj.bias", 0, C, INIT_ZERO, 0)

// member, type, elements, what the memory is for
#define MODEL_ACTIVATIONS(X)                                                                                 \
    X(tokens, int32_t, N, MEMORY_OTHER)              /* (B, T) */                                            \
    X(targets, int32_t, training *N, MEMORY_OTHER)   /* (B, T) */                                            \
    X(embedded, floatX, N *C, MEMORY_OTHER)          /* (N, C) the residual stream before block 0 */         \
    X(lnf, floatX, N *C, MEMORY_OTHER)               /* (N, C) */                                            \
    X(lnf_mean, float, N, MEMORY_OTHER)              /* (N) */                                               \
    X(lnf_rstd, float, N, MEMORY_OTHER)              /* (N) */                                               \
    X(logits, floatX, logit_rows *Vp, MEMORY_LOGITS) /* (logit_rows, Vp), then dlogits in the same place */  \
    X(losses, float, N, MEMORY_OTHER)                /* (N) nats of each token */                            \
    X(branch, floatX, N *C, MEMORY_OTHER)            /* (N, C) a projection, before it joins the stream */   \
    X(dresidual, floatX, training *N *C, MEMORY_OTHER)  /* (N, C) gradient of the residual stream */         \
    X(dbranch, floatX, training *N *C, MEMORY_OTHER)    /* (N, C) */                                         \
    X(dnormed, floatX, training *N *C, MEMORY_OTHER)    /* (N, C) of a layernorm's output, of attention's */ \
    X(dwide, floatX, training *N * 4 * C, MEMORY_OTHER) /* (N, 4C) of the pre-activation; (N, 3C) of qkv */  \
    X(layernorm_partial, float, training *layernorm_scratch(C), MEMORY_WORKSPACE)                            \
    X(attention_scratch, float, training *attention_scratch_size(attention, arena->on_gpu, B, NH, T, HS),    \
      MEMORY_WORKSPACE)
// member, type, elements, and when all blocks share one: because backward computes it again (--recompute), or
// because nothing is kept but keys and values
#define BLOCK_ACTIVATIONS(X)                                                                                 \
    X(ln1, floatX, N *C, keep >= KEEP_LAYERNORM)  /* (N, C) */                                               \
    X(ln1_mean, float, N, keep == KEEP_CACHE)     /* (N) */                                                  \
    X(ln1_rstd, float, N, keep == KEEP_CACHE)     /* (N) */                                                  \
    X(qkv, floatX, N * 3 * C, keep == KEEP_BLOCK) /* (N, 3C): (B, T, 3, NH, HS) */                           \
    X(attended, floatX, N *C, keep >= KEEP_BLOCK) /* (N, C) */                                               \
    X(lse, float, N *NH, keep >= KEEP_BLOCK)      /* (B, NH, T) */                                           \
    X(saved, float, attention_saved_size(attention, B, NH, T, T), keep >= KEEP_BLOCK)                        \
    X(residual_middle, floatX, N *C, keep >= KEEP_BLOCK) /* (N, C) after attention */                        \
    X(ln2, floatX, N *C, keep >= KEEP_LAYERNORM)         /* (N, C) */                                        \
    X(ln2_mean, float, N, keep >= KEEP_BLOCK)            /* (N) */                                           \
    X(ln2_rstd, float, N, keep >= KEEP_BLOCK)            /* (N) */                                           \
    X(up, floatX, N * 4 * C, keep >= KEEP_BLOCK)         /* (N, 4C) pre-activation */                        \
    X(gelu, floatX, N * 4 * C, keep >= KEEP_GELU)        /* (N, 4C) */                                       \
    X(residual_out, floatX, N *C, keep == KEEP_CACHE)    /* (N, C) after the MLP */

typedef enum {
    INIT_ZERO,
    INIT_ONE,
    INIT_EMBEDDING,
    INIT_POSITION,
    INIT_MATRIX,
    INIT_RESIDUAL
} Initialisation;

// What a forward pass keeps: everything; all but what --recompute names, each including the ones before; or, for
// generating text, keys and values only.
typedef enum { KEEP_ALL, KEEP_GELU, KEEP_LAYERNORM, KEEP_BLOCK, KEEP_CACHE } Keep;

// What processes divide among them rather than each having all of it.
typedef enum { SHARD_NONE, SHARD_OPTIMIZER, SHARD_GRADIENTS } Sharding;

typedef struct {
    const char *name;
    int layer; // -1: of the model, not of a block
    size_t rows, columns;
    Initialisation init;
    int decay;
    size_t offset, size; // numbers, in every memory that holds one a parameter
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
    size_t B, T, past; // past: tokens before these whose keys and values stand in qkv (KEEP_CACHE)
    size_t logit_rows; // tokens whose logits are computed at a time
    Keep keep;
    ModelActivations model;
    BlockActivations *block; // (L)
} Activations;

// What decides, beside the model, how much memory is needed.
typedef struct {
    size_t B, T; // B = 0: no training, only generating text
    Keep keep;
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
    size_t L, NH, C, HS, V, Vp; // the same numbers under their short names
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

enum { VOCAB_MULTIPLE = 128, ALIGNMENT = 16 }; // tokens; numbers: every tensor begins on a cache line

static void add_parameter(GPT *m, const char *name, int layer, size_t rows, size_t columns,
                          Initialisation init, int decay) {
    Parameter *p = &m->parameters[m->num_tensors++];
    p->name = name;
    p->layer = layer;
    p->rows = rows;
    p->columns = columns;
    p->init = init;
    p->decay = decay;
    p->offset = m->num_floats;
    p->size = (rows ? rows : 1) * columns;
    p->first_chunk = m->num_chunks;
    m->num_floats += round_up(p->size, ALIGNMENT);
    m->num_parameters += p->size;
    m->num_chunks += divide_up(p->size, ADAMW_CHUNK);
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
    m->buckets = (Bucket *)xcalloc(m->L + 1, sizeof(Bucket));
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

// Fills the list of parameter tensors: the model's, then block after block.
static void list_parameters(GPT *m) {
    const size_t C = m->C, Vp = m->Vp, max_T = (size_t)m->config.max_sequence_length;
#define COUNT(...) +1
    const size_t per_model = 0 MODEL_PARAMETERS(COUNT), per_block = 0 BLOCK_PARAMETERS(COUNT);
#undef COUNT
    m->parameters = (Parameter *)xcalloc(per_model + m->L * per_block, sizeof(Parameter));
#define ADD(member, name, rows, columns, init, decay)                                                        \
    add_parameter(m, name, layer, rows, columns, init, decay);
    int layer = -1;
    MODEL_PARAMETERS(ADD)
    for (layer = 0; layer < (int)m->L; layer++) {
        BLOCK_PARAMETERS(ADD)
    }
#undef ADD
    m->num_parameters -= (Vp - m->V) * C;
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
#define POINT(member, ...) m->weights.member = m->weights_memory + (p++)->offset;
    MODEL_PARAMETERS(POINT)
#undef POINT
#define POINT(member, ...) m->block_weights[l].member = m->weights_memory + (p++)->offset;
    for (size_t l = 0; l < m->L; l++) {
        BLOCK_PARAMETERS(POINT)
    }
#undef POINT
}

// Where they are divided, a block's gradients leave as soon as they are complete: two blocks take turns.
static void place_gradients(GPT *m, Arena *arena) {
    const Parameter *p = m->parameters;
    const size_t of_model = m->buckets[0].size, of_block = m->buckets[1].size;
    const int divided = m->shape.sharding == SHARD_GRADIENTS;
    const size_t size = divided ? of_model + min_size(m->L, 2) * of_block : m->num_floats;
    m->gradients_memory = (float *)arena_take(arena, MEMORY_GRADIENTS, size, sizeof(float));
    m->gradient_sums = m->gradients_memory;
    if (divided)
        m->gradient_sums = (float *)arena_take(arena, MEMORY_GRADIENTS, m->most_owned, sizeof(float));
    if (arena->base == NULL) return;
    for (size_t b = 0; b <= m->L; b++)
        m->buckets[b].gradients = m->gradients_memory + (divided && b > 0
                                                             ? of_model + b % 2 * of_block * (m->L > 1)
                                                             : m->buckets[b].offset);
#define POINT(member, ...) m->gradients.member = m->buckets[0].gradients + (p++)->offset;
    MODEL_PARAMETERS(POINT)
#undef POINT
#define POINT(member, ...)                                                                                   \
    m->block_gradients[l].member = m->buckets[l + 1].gradients + ((p++)->offset - m->buckets[l + 1].offset);
    for (size_t l = 0; l < m->L; l++) {
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
    const size_t B = x->B, T = x->T, N = B * T, C = m->C, NH = m->NH, HS = m->HS, Vp = m->Vp,
                 logit_rows = x->logit_rows;
    const size_t training = x->keep != KEEP_CACHE;
    const Keep keep = x->keep;
    const AttentionVariant attention = m->attention;
#define PLACE(member, type, count, memory)                                                                   \
    x->model.member = (type *)arena_take(arena, memory, count, SIZE_##type);
    MODEL_ACTIVATIONS(PLACE)
#undef PLACE
#define PLACE(member, type, count, shared)                                                                   \
    x->block[l].member = l > 0 && (shared) ? x->block[0].member                                              \
                                           : (type *)arena_take(arena, MEMORY_BLOCKS, count, SIZE_##type);
    for (size_t l = 0; l < m->L; l++) {
        BLOCK_ACTIVATIONS(PLACE)
    }
#undef PLACE
}

// Gives every tensor its place. Text is generated between steps, so its memory is that of the activations.
static void gpt_place(GPT *m, Arena *arena) {
    size_t workspace = arena->on_gpu ? matmul_gpu_workspace_size(4 * m->C) : 0;
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
    size_t rows = B * s->T, fit = s->logits_bytes / (m->Vp * floatX_size);
    if (fit >= 64) fit = fit / 64 * 64;
    if (s->logits_bytes > 0) rows = min_size(rows, fit > 0 ? fit : 1);
    m->acts.B = B;
    m->acts.T = s->T;
    m->acts.keep = s->keep;
    m->acts.logit_rows = rows;
    m->cache.B = 1;
    m->cache.T = (size_t)m->config.max_sequence_length;
    m->cache.keep = KEEP_CACHE;
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
    const size_t sums = 2 * m->shape.T * round_up(m->HS, 64) * sizeof(float) * (size_t)omp_get_max_threads();
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
    m->L = (size_t)config->num_layers;
    m->NH = (size_t)config->num_heads;
    m->C = (size_t)config->channels;
    m->HS = m->C / m->NH;
    m->V = (size_t)config->vocab_size;
    m->Vp = round_up(m->V, VOCAB_MULTIPLE);
    m->shape = *shape;
    m->comm = shape->comm;
    m->rank = comm_rank(m->comm);
    m->attention = attention_choose(shape->attention);
    list_parameters(m);
    divide_parameters(m);
    m->block_weights = (BlockWeights *)xcalloc(m->L, sizeof(BlockWeights));
    m->block_gradients = (BlockGradients *)xcalloc(m->L, sizeof(BlockGradients));
    m->acts.block = (BlockActivations *)xcalloc(m->L, sizeof(BlockActivations));
    m->cache.block = (BlockActivations *)xcalloc(m->L, sizeof(BlockActivations));
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
            next->decay = p->decay ? (float)weight_decay : 0.0f;
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
    for (size_t b = 0; b <= m->L; b++) {
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
    comm_wait(m->comm, m->buckets[m->L].gathered, m->stream);
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
    const double deviations[] = {0, 0, embedding, 0.02, matrices, matrices / sqrt(2.0 * (double)m->L)};
    float *host = state_borrow(m, m->master);
    for (size_t t = 0; t < m->num_tensors; t++) {
        const Parameter *p = &m->parameters[t];
        double deviation = deviations[p->init];
        size_t used = t == 0 ? m->V * m->C : p->size; // the embedding's padding stays zero
#pragma omp parallel for schedule(static)
        for (size_t i = 0; i < used; i++)
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
    Attention a = attention_packed(x->B, x->T, m->NH, m->NH, m->HS,
                                   dropout_of(m, RANDOM_ATTENTION_DROPOUT, layer, s));
    a.Tk = x->past + x->T;
    a.atomics = m->attention_atomics;
    return a;
}

// Generating text reads cached keys: fewer queries than keys, which cuDNN does not serve.
static AttentionVariant attention_variant(const GPT *m, const Activations *x) {
    return x->keep == KEEP_CACHE && m->attention == ATTENTION_CUDNN ? ATTENTION_FLASH : m->attention;
}

static const floatX *residual_into(const Activations *x, size_t l) {
    return l == 0 ? x->model.embedded : x->block[l - 1].residual_out;
}

// Until bucket b's weights, which their owners updated, are here.
static void wait_for_weights(GPT *m, size_t b) {
    if (m->buckets[b].gathered == 0) return;
    profile_enter(&m->profile, LAP_COMMUNICATION, PASS_FORWARD, m->stream);
    comm_wait(m->comm, m->buckets[b].gathered, m->stream);
    profile_leave(&m->profile, m->stream);
}

// Adds the branch to the residual stream after block l's MLP, and normalises for what comes next: block l +
// 1's attention, or the head.
static void join_and_normalise(GPT *m, Activations *x, size_t l, const MicroStep *s) {
    const ModelActivations *a = &x->model;
    BlockActivations *b = &x->block[l];
    Dropout dropout = dropout_of(m, RANDOM_MLP_RESIDUAL, l, s);
    int last = l + 1 == m->L;
    BlockActivations *next = last ? NULL : &x->block[l + 1];
    layernorm_forward(b->residual_out, last ? a->lnf : next->ln1, last ? a->lnf_mean : next->ln1_mean,
                      last ? a->lnf_rstd : next->ln1_rstd, b->residual_middle, a->branch,
                      last ? m->weights.lnfw : m->block_weights[l + 1].ln1w,
                      last ? m->weights.lnfb : m->block_weights[l + 1].ln1b, x->B, x->T, m->C, &dropout,
                      m->stream);
}

// Block l from ln1 to gelu. Backward calls it again where nothing of it was kept.
static void block_forward_to_gelu(GPT *m, Activations *x, size_t l, const MicroStep *s, Pass pass) {
    const size_t N = x->B * x->T, C = m->C;
    const BlockWeights *w = &m->block_weights[l];
    BlockActivations *b = &x->block[l];
    floatX *branch = x->model.branch, *qkv = b->qkv + x->past * 3 * C;
    Attention attention = attention_of(m, x, l, s);
    Dropout dropout = dropout_of(m, RANDOM_ATTENTION_RESIDUAL, l, s);

    profile_enter(&m->profile, LAP_QKV, pass, m->stream);
    matmul_forward(&m->matmul, qkv, b->ln1, w->qkvw, w->qkvb, N, C, 3 * C, m->stream);
    profile_enter(&m->profile, LAP_ATTENTION, pass, m->stream);
    attention_forward(attention_variant(m, x), b->attended, b->lse, b->saved, qkv, b->qkv + C, b->qkv + 2 * C,
                      &attention, m->stream);
    profile_enter(&m->profile, LAP_PROJECTION, pass, m->stream);
    matmul_forward(&m->matmul, branch, b->attended, w->projw, w->projb, N, C, C, m->stream);
    profile_enter(&m->profile, LAP_LAYERNORM, pass, m->stream);
    layernorm_forward(b->residual_middle, b->ln2, b->ln2_mean, b->ln2_rstd, residual_into(x, l), branch,
                      w->ln2w, w->ln2b, x->B, x->T, C, &dropout, m->stream);
    profile_enter(&m->profile, LAP_MLP_UP, pass, m->stream);
    matmul_gelu_forward(&m->matmul, b->gelu, b->up, b->ln2, w->upw, w->upb, N, C, 4 * C, m->stream);
}

static void block_forward(GPT *m, Activations *x, size_t l, const MicroStep *s) {
    const BlockWeights *w = &m->block_weights[l];
    range_begin("block forward");
    block_forward_to_gelu(m, x, l, s, PASS_FORWARD);
    profile_enter(&m->profile, LAP_MLP_DOWN, PASS_FORWARD, m->stream);
    matmul_forward(&m->matmul, x->model.branch, x->block[l].gelu, w->downw, w->downb, x->B * x->T, 4 * m->C,
                   m->C, m->stream);
    if (l + 1 < m->L) wait_for_weights(m, l + 2); // the next block's first layernorm is part of this one
    profile_enter(&m->profile, LAP_LAYERNORM, PASS_FORWARD, m->stream);
    join_and_normalise(m, x, l, s);
    profile_leave(&m->profile, m->stream);
    range_end();
}

// From x->model.tokens, which stand at positions past .. past + T - 1, to x->model.lnf.
static void gpt_forward(GPT *m, Activations *x, const MicroStep *s) {
    const ModelActivations *a = &x->model;
    BlockActivations *first = &x->block[0];
    Dropout dropout = dropout_of(m, RANDOM_EMBEDDING_DROPOUT, 0, s);

    range_begin("forward");
    wait_for_weights(m, 0);
    wait_for_weights(m, 1);
    profile_enter(&m->profile, LAP_EMBEDDING, PASS_FORWARD, m->stream);
    embedding_forward(a->embedded, a->tokens, m->weights.wte, m->weights.wpe + x->past * m->C, x->B, x->T,
                      m->C, &dropout, m->stream);
    profile_enter(&m->profile, LAP_LAYERNORM, PASS_FORWARD, m->stream);
    layernorm_forward(NULL, first->ln1, first->ln1_mean, first->ln1_rstd, a->embedded, NULL,
                      m->block_weights[0].ln1w, m->block_weights[0].ln1b, x->B, x->T, m->C, &dropout,
                      m->stream);
    profile_leave(&m->profile, m->stream);
    for (size_t l = 0; l < m->L; l++) block_forward(m, x, l, s);
    range_end();
}

// Logits of `count` tokens from `first` on; x->model.logits holds logit_rows.
static void gpt_logits(GPT *m, Activations *x, size_t first, size_t count) {
    profile_enter(&m->profile, LAP_HEAD, PASS_FORWARD, m->stream);
    matmul_head_forward(&m->matmul, x->model.logits, x->model.lnf + first * m->C, m->weights.wte, count, m->C,
                        m->Vp, m->stream);
    profile_leave(&m->profile, m->stream);
}

// After gpt_forward: x->model.losses.
static void gpt_losses(GPT *m, Activations *x) {
    const size_t N = x->B * x->T;
    for (size_t first = 0; first < N; first += x->logit_rows) {
        size_t count = min_size(x->logit_rows, N - first);
        gpt_logits(m, x, first, count);
        cross_entropy_forward(x->model.losses + first, x->model.logits, x->model.targets + first, count, m->V,
                              m->Vp, m->stream);
    }
}

// Head and loss, forward and backward, as many tokens at a time as logits have room for: losses, dwte and, in
// dnormed, the gradient of lnf.
static void head_backward(GPT *m, const MicroStep *s) {
    const ModelActivations *a = &m->acts.model;
    const size_t N = m->acts.B * m->acts.T, C = m->C;
    for (size_t first = 0; first < N; first += m->acts.logit_rows) {
        size_t count = min_size(m->acts.logit_rows, N - first);
        gpt_logits(m, &m->acts, first, count);
        profile_enter(&m->profile, LAP_LOSS, PASS_BACKWARD, m->stream);
        cross_entropy_backward(a->losses + first, a->logits, a->targets + first, s->loss_scale, count, m->V,
                               m->Vp, m->stream);
        profile_enter(&m->profile, LAP_HEAD, PASS_BACKWARD, m->stream);
        matmul_head_backward(&m->matmul, a->dnormed + first * C, m->gradients.wte, a->logits,
                             a->lnf + first * C, m->weights.wte, count, C, m->Vp,
                             first == 0 ? s->mode : MATMUL_ACCUMULATE, m->stream);
        profile_leave(&m->profile, m->stream);
    }
}

// Computes again, by the same calls on the same bits, what forward did not keep of block l.
static void block_recompute(GPT *m, size_t l, const MicroStep *s) {
    Activations *x = &m->acts;
    const size_t N = x->B * x->T, C = m->C;
    const BlockWeights *w = &m->block_weights[l];
    BlockActivations *b = &x->block[l];
    if (x->keep >= KEEP_LAYERNORM) {
        profile_enter(&m->profile, LAP_LAYERNORM, PASS_BACKWARD, m->stream);
        layernorm_normalise(b->ln1, residual_into(x, l), b->ln1_mean, b->ln1_rstd, w->ln1w, w->ln1b, N, C,
                            m->stream);
    }
    if (x->keep == KEEP_BLOCK) {
        block_forward_to_gelu(m, x, l, s, PASS_BACKWARD);
        return;
    }
    if (x->keep >= KEEP_LAYERNORM)
        layernorm_normalise(b->ln2, b->residual_middle, b->ln2_mean, b->ln2_rstd, w->ln2w, w->ln2b, N, C,
                            m->stream);
    if (x->keep >= KEEP_GELU) {
        profile_enter(&m->profile, LAP_MLP_UP, PASS_BACKWARD, m->stream);
        gelu_forward(b->gelu, b->up, N * 4 * C, m->stream);
    }
}

// Which of the memories for gradients bucket b has with SHARD_GRADIENTS.
static size_t gradient_slot(size_t b) {
    return b == 0 ? 0 : 1 + b % 2;
}

// Before backward writes gradients of bucket b: zeroes those that it adds to, all but the matrices of matmul.
static void bucket_begin(GPT *m, size_t b, const MicroStep *s) {
    const Bucket *bucket = &m->buckets[b];
    if (s->mode == MATMUL_ACCUMULATE) return;
    if (m->shape.sharding == SHARD_GRADIENTS) comm_wait(m->comm, m->slots[gradient_slot(b)], m->stream);
    for (size_t i = 0; i < bucket->num_tensors; i++) {
        const Parameter *p = &m->parameters[bucket->first_tensor + i];
        float *gradients = bucket->gradients + (p->offset - bucket->offset);
        if (p->rows == 0 || gradients == m->gradients.wpe)
            device_zero(gradients, p->size * sizeof(float), m->stream);
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

// On entry acts.dbranch is the gradient of the block's MLP branch, acts.dresidual that of its output; on exit
// the same of the block before.
static void block_backward(GPT *m, size_t l, const MicroStep *s) {
    const Activations *x = &m->acts;
    const size_t N = x->B * x->T, C = m->C;
    const BlockWeights *w = &m->block_weights[l];
    const BlockGradients *g = &m->block_gradients[l];
    const BlockActivations *b = &x->block[l];
    const ModelActivations *a = &x->model;
    Attention attention = attention_of(m, x, l, s);
    Dropout dropout_attention = dropout_of(m, RANDOM_ATTENTION_RESIDUAL, l, s);
    Dropout dropout_mlp = dropout_of(m, RANDOM_MLP_RESIDUAL, l == 0 ? 0 : l - 1, s); // of the block before

    range_begin("block backward");
    bucket_begin(m, l + 1, s);
    block_recompute(m, l, s);
    profile_enter(&m->profile, LAP_MLP_DOWN, PASS_BACKWARD, m->stream);
    matmul_backward(&m->matmul, a->dwide, g->downw, g->downb, a->dbranch, b->gelu, w->downw, b->up, N, 4 * C,
                    C, s->mode, m->stream);
    profile_enter(&m->profile, LAP_MLP_UP, PASS_BACKWARD, m->stream);
    matmul_backward(&m->matmul, a->dnormed, g->upw, g->upb, a->dwide, b->ln2, w->upw, NULL, N, C, 4 * C,
                    s->mode, m->stream);
    profile_enter(&m->profile, LAP_LAYERNORM, PASS_BACKWARD, m->stream);
    layernorm_backward(a->dresidual, a->dbranch, g->ln2w, g->ln2b, a->layernorm_partial, a->dnormed,
                       b->residual_middle, b->ln2_mean, b->ln2_rstd, w->ln2w, x->B, x->T, C,
                       &dropout_attention, m->stream);
    profile_enter(&m->profile, LAP_PROJECTION, PASS_BACKWARD, m->stream);
    matmul_backward(&m->matmul, a->dnormed, g->projw, g->projb, a->dbranch, b->attended, w->projw, NULL, N, C,
                    C, s->mode, m->stream);
    profile_enter(&m->profile, LAP_ATTENTION, PASS_BACKWARD, m->stream);
    attention_backward(m->attention, a->dwide, a->dwide + C, a->dwide + 2 * C, a->dnormed, b->qkv, b->qkv + C,
                       b->qkv + 2 * C, b->attended, b->lse, b->saved, a->attention_scratch, &attention,
                       m->stream);
    profile_enter(&m->profile, LAP_QKV, PASS_BACKWARD, m->stream);
    matmul_backward(&m->matmul, a->dnormed, g->qkvw, g->qkvb, a->dwide, b->ln1, w->qkvw, NULL, N, C, 3 * C,
                    s->mode, m->stream);
    profile_enter(&m->profile, LAP_LAYERNORM, PASS_BACKWARD, m->stream);
    layernorm_backward(a->dresidual, l == 0 ? NULL : a->dbranch, g->ln1w, g->ln1b, a->layernorm_partial,
                       a->dnormed, residual_into(x, l), b->ln1_mean, b->ln1_rstd, w->ln1w, x->B, x->T, C,
                       &dropout_mlp, m->stream);
    profile_leave(&m->profile, m->stream);
    bucket_end(m, l + 1, s);
    range_end();
}

// After gpt_forward(m, &m->acts, s): all gradients; losses go to acts.model.losses.
static void gpt_backward(GPT *m, const MicroStep *s) {
    const Activations *x = &m->acts;
    const size_t N = x->B * x->T;
    const ModelActivations *a = &x->model;
    const ModelGradients *g = &m->gradients;
    Dropout dropout_mlp = dropout_of(m, RANDOM_MLP_RESIDUAL, m->L - 1, s);
    Dropout dropout_embedding = dropout_of(m, RANDOM_EMBEDDING_DROPOUT, 0, s);

    range_begin("backward");
    bucket_begin(m, 0, s);
    head_backward(m, s);
    profile_enter(&m->profile, LAP_LAYERNORM, PASS_BACKWARD, m->stream);
    device_zero(a->dresidual, N * m->C * sizeof(floatX), m->stream);
    layernorm_backward(a->dresidual, a->dbranch, g->lnfw, g->lnfb, a->layernorm_partial, a->dnormed,
                       x->block[m->L - 1].residual_out, a->lnf_mean, a->lnf_rstd, m->weights.lnfw, x->B, x->T,
                       m->C, &dropout_mlp, m->stream);
    profile_leave(&m->profile, m->stream);
    for (size_t l = m->L; l-- > 0;) block_backward(m, l, s);
    profile_enter(&m->profile, LAP_EMBEDDING, PASS_BACKWARD, m->stream);
    embedding_backward(g->wte, g->wpe, a->dresidual, a->tokens, x->B, x->T, m->C, m->V, &dropout_embedding,
                       m->stream);
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
    profile_enter(&m->profile, LAP_COMMUNICATION, PASS_BACKWARD, m->stream);
    comm_wait(m->comm, m->buckets[0].reduced, m->stream); // the last one
    profile_enter(&m->profile, LAP_OPTIMIZER, PASS_BACKWARD, m->stream);
    if (divided) device_zero(m->totals + TOTAL_SQUARES, m->num_chunks * sizeof(double), m->stream);
    square_sums(m->totals, m->gradient_sums, m->chunks, m->num_owned_chunks, m->stream);
    profile_enter(&m->profile, LAP_COMMUNICATION, PASS_BACKWARD, m->stream);
    comm_wait(m->comm, comm_all_reduce(m->comm, m->totals, shared, COMM_DOUBLE, m->stream), m->stream);
    profile_enter(&m->profile, LAP_OPTIMIZER, PASS_BACKWARD, m->stream);
    step_outcome(m->outcome, m->totals, m->num_chunks, adamw, m->stream);
    adamw_update(m->weights_memory, m->master, m->moment1, m->moment2, m->gradient_sums, m->chunks,
                 m->num_owned_chunks, adamw, m->outcome, m->stream);
    profile_leave(&m->profile, m->stream);
    if (divided) gather_weights(m);
    range_end();
}

// Of one step: multiply-adds count two, causal attention half.
static double flop_per_token(const GPT *m, size_t T) {
    double L = (double)m->L, C = (double)m->C, V = (double)m->V;
    return 3 * (L * (24 * C * C + 2 * (double)T * C) + 2 * C * V);
}

#endif
