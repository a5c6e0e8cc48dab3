// The trainer of a GPT: the model's dimensions, the tables of its parameters and activations, forward, recomputation
// and backward of sublayers and head, the update, the training loop and main. Layers are in layers/, attention is in
// attention/, everything on disk is in data/, communication between processes is in layers/comm/ and layers/launch/.
//
// The model is GPT-2 (Radford et al. 2019): learned positions, pre-layernorm, tanh-GELU, tied output head.
//
// Names: B is the batch size, T the sequence length, N = B * T the number of tokens; for the others see Dims.
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <inttypes.h>

#include "attention/attention.cuh"
#include "data/options/model_choice.cuh"
#include "data/options/settings.cuh"
#include "data/run/banner.cuh"
#include "data/run/recovery.h"
#include "data/run/step_queue.cuh"
#include "data/run/training_run.cuh"
#include "data/sampling/generate.cuh"
#include "data/tokens/validation.cuh"
#include "layers/activation.cuh"
#include "layers/base/files.h"
#include "layers/base/progress.h"
#include "layers/base/threads.h"
#include "layers/comm/comm.h"
#include "layers/comm/sharding.cuh"
#include "layers/embedding.cuh"
#include "layers/host_memory.h"
#include "layers/comm/processes.cuh"
#include "layers/launch/signals.h"
#include "layers/memory_plan.cuh"
#include "layers/norm.cuh"
#include "layers/optimizer.cuh"
#include "layers/parameters.cuh"
#include "layers/positions.cuh"
#include "layers/profile.h"
#include "layers/softmax_cross_entropy.cuh"
#include "layers/work.cuh"

// ---- dimensions -------------------------------------------------------------------------------------------

enum { VOCAB_MULTIPLE = 128 }; // of which the padded vocabulary size is a multiple

// The sizes of a model, derived once from its description.
typedef struct {
    size_t L, C;        // number of layers; channels of the residual stream
    size_t NH, NKV, HS; // number of query heads; number of key/value heads; channels per head
    size_t Q, KV, QKV;  // NH * HS; NKV * HS; width of the fused projection, Q + 2 * KV
    size_t F, UP;       // width of the MLP after its activation; width before it
    size_t V, Vp;       // vocabulary size; vocabulary size with padding
    size_t max_T;       // number of positions
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

// ---- the model: tables of parameters and activations ------------------------------------------------------

// Fields: member; whether the model has it; rows (0: a vector), rows of padding (zeros), columns; initialisation;
// optimizer group; how backward writes its gradient; the lap (profile.h) that reads it; its name in GPT-2 checkpoints.
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

// Fields: member, type, elements, purpose of the memory.
#define MODEL_ACTIVATIONS(X)                                                                                 \
    X(tokens, int32_t, N, MEMORY_OTHER)            /* (B, T) */                                              \
    X(targets, int32_t, training *N, MEMORY_OTHER) /* (B, T) */                                              \
    X(embedded, floatX, N * d->C, MEMORY_OTHER)    /* (N, C) the residual stream before block 0 */           \
    X(final_norm, floatX, N * d->C, MEMORY_OTHER)  /* (N, C) */                                              \
    X(final_norm_mean, float, N, MEMORY_OTHER)     /* (N) */                                                 \
    X(final_norm_rstd, float, N, MEMORY_OTHER)     /* (N) */                                                 \
    X(logits, floatX, logit_rows * d->Vp,                                                                    \
      MEMORY_LOGITS)                          /* (logit_rows, Vp), overwritten by their gradient */          \
    X(losses, float, N, MEMORY_OTHER)         /* (N) loss of each token, in nats */                          \
    X(branch, floatX, N * d->C, MEMORY_OTHER) /* (N, C) a sublayer's output, before the residual addition */ \
    X(dresidual, floatX, training *N * d->C, MEMORY_OTHER) /* (N, C) gradient of the residual stream */      \
    X(dbranch, floatX, training *N * d->C, MEMORY_OTHER)   /* (N, C) gradient of branch */                   \
    X(dnormed, floatX, training *N *max_size(d->C, d->Q),                                                    \
      MEMORY_OTHER) /* gradient of a norm's output (N, C) or attention's (N, Q) */                           \
    X(dwide, floatX, training *N *max_size(d->UP, d->QKV),                                                   \
      MEMORY_OTHER) /* gradient of the pre-activation (N, UP) or qkv (N, QKV) */                             \
    X(norm_partial, float, training *norm_scratch(config->norm, d->C), MEMORY_WORKSPACE)                     \
    X(attention_scratch, float,                                                                              \
      training *attention_scratch_size(attention, arena->on_gpu, B, d->NH, T, d->HS), MEMORY_WORKSPACE)
// Fields: member, type, elements; the lowest level of recomputation at which all blocks share one memory for it;
// whether text generation keeps it for every block.
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

// What backward recomputes instead of reading what forward kept (--recompute); each level includes those before it.
typedef enum {
    RECOMPUTE_NONE,
    RECOMPUTE_ACTIVATION,
    RECOMPUTE_NORM,
    RECOMPUTE_BLOCK,
    RECOMPUTE_NEVER
} Recompute;

#define AS_WEIGHT(member, ...)   floatX *member;
#define AS_GRADIENT(member, ...) float *member;
typedef struct {
    MODEL_PARAMETERS(AS_WEIGHT)
} ModelWeights;
typedef struct {
    BLOCK_PARAMETERS(AS_WEIGHT)
} BlockWeights;
typedef struct {
    ModelWeights model;
    BlockWeights *block; // (L)
} Weights;
typedef struct {
    MODEL_PARAMETERS(AS_GRADIENT)
} ModelGradients;
typedef struct {
    BLOCK_PARAMETERS(AS_GRADIENT)
} BlockGradients;
typedef struct {
    ModelGradients model;
    BlockGradients *block; // (L)
} Gradients;
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
    size_t B, T;         // B = 0: text generation only, no training
    int caching;         // 1: text generation, which keeps only keys and values
    size_t past;         // number of earlier tokens, whose keys and values are in qkv
    size_t logits_bytes; // upper limit for logits; 0: no limit
    size_t logit_rows;   // number of tokens whose logits are computed at a time
    Recompute recompute;
    ModelActivations model;
    BlockActivations *block; // (L)
} Activations;

// How a model is to be trained or run, in addition to its description.
typedef struct {
    size_t B, T; // B = 0: text generation only, no training
    Recompute recompute;
    size_t logits_bytes; // upper limit for logits; 0: no limit
    AttentionVariant attention;
    Sharding sharding;
    int num_processes; // that share what `sharding` divides
    Comm *comm;        // connects all processes
    int sharing;       // number of processes on this host, which share its memory
} ModelSetup;

// What a model needs to run.
typedef struct {
    Stream stream;
    Arena arena;
    MatmulContext matmul;
    AttentionVariant attention;
    int attention_atomics; // as in Attention
    Profile profile;
    uint64_t seed;
    int sharing; // number of processes on this host, which share its memory
} Runtime;

typedef struct {
    GPTConfig config;
    Dims dims;
    Parameters parameters;
    Weights weights;
    Gradients gradients;
    Shards shards;
    Optimizer optimizer;
    Activations acts;  // of training and validation
    Activations cache; // of text generation, in the same memory
    Runtime run;
} GPT;

// Lists the tensors that this model has: those outside the blocks, then those of each block in turn.
static void list_parameters(GPT *m) {
    const GPTConfig *config = &m->config;
    const Dims *d = &m->dims;
#define COUNT(...) +1
    const size_t per_model = 0 MODEL_PARAMETERS(COUNT), per_block = 0 BLOCK_PARAMETERS(COUNT);
#undef COUNT
    m->parameters.tensors = (Parameter *)xcalloc(per_model + d->L * per_block, sizeof(Parameter));
#define ADD(member, exists, rows, padding, columns, init, group, gradient, lap, name)                        \
    if (exists) {                                                                                            \
        Parameter p = {                                                                                      \
            #member, layer, rows, padding, columns, init, group, gradient, lap, name, 0, 0, 0, 0};           \
        parameters_add(&m->parameters, p);                                                                   \
    }
    int layer = -1;
    MODEL_PARAMETERS(ADD)
    for (layer = 0; layer < (int)d->L; layer++) {
        BLOCK_PARAMETERS(ADD)
    }
#undef ADD
}

// Returns the number of parameters of a model, without listing its tensors.
static double count_parameters(const GPTConfig *config) {
    const Dims dims = dims_of(config), *d = &dims;
#define ADD(member, exists, rows, padding, columns, ...)                                                     \
    +(double)(exists) * (double)max_size(rows, 1) * (double)(columns)
    const double of_model = 0 MODEL_PARAMETERS(ADD);
    const double of_block = 0 BLOCK_PARAMETERS(ADD);
#undef ADD
    return of_model + (double)d->L * of_block;
}

// Returns the approximate number of activations that training stores per token.
static double activation_floats(const GPTConfig *config, double T) {
    const Dims d = dims_of(config);
    return (double)d.L * ((double)(5 * d.C + d.QKV + d.Q + d.UP + d.F) + (double)d.NH * T) + (double)d.V;
}

// ---- memory -----------------------------------------------------------------------------------------------

static void place_weights(GPT *m, Arena *arena) {
    Parameters *p = &m->parameters;
    p->weights = (floatX *)arena_take(arena, MEMORY_WEIGHTS, p->num_elements, arena->floatX_size);
    p->master = (float *)p->weights;
    if (arena->floatX_size != sizeof(float))
        p->master = (float *)arena_take(arena, MEMORY_MASTER, sharding_size(&m->shards, p), sizeof(float));
}

// Sets the members of the tables to the addresses of their tensors' weights and gradients.
static void point_to_tensors(GPT *m) {
    const GPTConfig *config = &m->config;
    const int trains = m->acts.B > 0;
    size_t t = 0;
#define POINT(member, exists, ...)                                                                           \
    w->member = (exists) ? m->parameters.weights + m->parameters.tensors[t].offset : NULL;                   \
    g->member = (exists) && trains ? sharding_gradient(&m->shards, &m->parameters, t) : NULL;                \
    t += (exists);
    {
        ModelWeights *w = &m->weights.model;
        ModelGradients *g = &m->gradients.model;
        MODEL_PARAMETERS(POINT)
    }
    for (size_t l = 0; l < m->dims.L; l++) {
        BlockWeights *w = &m->weights.block[l];
        BlockGradients *g = &m->gradients.block[l];
        BLOCK_PARAMETERS(POINT)
    }
#undef POINT
}

#define SIZE_floatX  arena->floatX_size
#define SIZE_float   sizeof(float)
#define SIZE_int32_t sizeof(int32_t)
static void place_activations(const GPT *m, Activations *x, Arena *arena) {
    const GPTConfig *config = &m->config;
    const Dims *d = &m->dims;
    const size_t B = x->B, T = x->T, N = B * T, logit_rows = x->logit_rows, training = !x->caching;
    const AttentionVariant attention = m->run.attention;
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

// Assigns memory to every tensor. Text is generated between steps, and therefore in the memory of the activations.
static void gpt_place_tensors(GPT *m, Arena *arena) {
    size_t workspace = arena->on_gpu ? matmul_gpu_workspace_size(max_size(m->dims.UP, m->dims.QKV)) : 0;
    place_weights(m, arena);
    if (m->acts.B > 0) {
        sharding_place_gradients(&m->shards, &m->parameters, arena);
        optimizer_place(&m->optimizer, &m->shards, &m->parameters, arena);
    }
    if (arena->base != NULL) point_to_tensors(m);
    void *place = arena_take(arena, MEMORY_WORKSPACE, workspace, 1);
    if (place != NULL) matmul_set_workspace(&m->run.matmul, place, workspace);
    Arena generation = *arena;
    if (m->acts.B > 0) place_activations(m, &m->acts, arena);
    place_activations(m, &m->cache, &generation);
    if (generation.used > arena->used) {
        arena->by_purpose[MEMORY_BLOCKS] += generation.used - arena->used; // mostly keys and values
        arena->used = generation.used;
    }
}

// Sets the batch size, and the number of tokens whose logits are computed at a time.
static void set_batch(GPT *m, size_t B, size_t floatX_size) {
    Activations *x = &m->acts;
    size_t rows = B * x->T, fit = x->logits_bytes / (m->dims.Vp * floatX_size);
    if (fit >= 64) fit = fit / 64 * 64;
    if (x->logits_bytes > 0) rows = min_size(rows, fit > 0 ? fit : 1);
    x->B = B;
    x->logit_rows = rows;
}

// Returns the bytes that --batch B takes in a build for the CPU or a GPU; `by_purpose`: set to its parts, unless NULL.
static size_t gpt_memory(const void *model, size_t B, int on_gpu, size_t floatX_size,
                         size_t by_purpose[NUM_MEMORIES]) {
    const GPT *m = (const GPT *)model;
    CHECK(m->run.arena.base == NULL); // gpt_place_tensors overwrites the pointers of its blocks
    GPT plan = *m;
    Arena arena = {NULL, 0, {0}, on_gpu, floatX_size};
    set_batch(&plan, B, floatX_size);
    gpt_place_tensors(&plan, &arena);
    if (by_purpose != NULL) memcpy(by_purpose, arena.by_purpose, sizeof(arena.by_purpose));
    return arena.used;
}

static MemoryPlan memory_plan(const GPT *m) {
    MemoryPlan plan = {m, gpt_memory, &m->parameters, &m->shards, m->acts.B, m->acts.T, m->dims.HS};
    return plan;
}

// Initialises a model: its tensors and their shapes, without memory on the device.
static void gpt_describe(GPT *m, const GPTConfig *config, const ModelSetup *setup) {
    memset(m, 0, sizeof(*m));
    m->config = *config;
    m->dims = dims_of(config);
    m->run.attention = attention_choose(setup->attention);
    m->run.sharing = setup->sharing;
    list_parameters(m);
    sharding_open(&m->shards, &m->parameters, setup->sharding, setup->comm, setup->num_processes, m->dims.L);
    m->weights.block = (BlockWeights *)xcalloc(m->dims.L, sizeof(BlockWeights));
    m->gradients.block = (BlockGradients *)xcalloc(m->dims.L, sizeof(BlockGradients));
    m->acts.block = (BlockActivations *)xcalloc(m->dims.L, sizeof(BlockActivations));
    m->cache.block = (BlockActivations *)xcalloc(m->dims.L, sizeof(BlockActivations));
    m->acts.T = setup->T;
    m->acts.recompute = setup->recompute;
    m->acts.logits_bytes = setup->logits_bytes;
    set_batch(m, setup->B, sizeof(floatX));
    m->cache.B = 1;
    m->cache.T = m->dims.max_T;
    m->cache.caching = 1;
    m->cache.logit_rows = 1;
}

// Allocates the memory of a described model, and sets to zero what starts there. Returns 0, or -1 with a sentence.
static int gpt_allocate(GPT *m, MatmulLibrary library, Precision precision, Error *error) {
    Runtime *run = &m->run;
    size_t available, total, model_bytes = gpt_memory(m, m->acts.B, DEVICE_IS_GPU, sizeof(floatX), NULL);
    const MemoryPlan plan = memory_plan(m);
    const size_t bytes = model_bytes + additional_host_memory(&plan, m->acts.B, DEVICE_IS_GPU);
    run->stream = stream_create();
    matmul_open(&run->matmul, library, precision);
    device_memory(&available, &total, run->sharing);
    Arena arena = {NULL, 0, {0}, DEVICE_IS_GPU, sizeof(floatX)};
    if (bytes <= available) arena.base = (char *)device_alloc(model_bytes);
    if (arena.base == NULL) return refuse_memory(&plan, bytes, min_size(available, bytes - 1), error);
    run->arena = arena;
    gpt_place_tensors(m, &run->arena);
    const size_t *size = run->arena.by_purpose;
    device_zero(run->arena.base, size[MEMORY_WEIGHTS] + size[MEMORY_MASTER], run->stream);
    if (m->acts.B > 0) {
        device_zero(m->parameters.gradients, size[MEMORY_GRADIENTS] + size[MEMORY_MOMENTS], run->stream);
        optimizer_clear(&m->optimizer, &m->parameters, run->stream);
    }
    stream_wait(run->stream);
    return 0;
}

static void gpt_free(GPT *m) {
    if (m->run.arena.base != NULL) {
        stream_wait(m->run.stream);
        profile_free(&m->run.profile);
        matmul_close(&m->run.matmul);
        stream_destroy(m->run.stream);
        device_free(m->run.arena.base);
    }
    free(m->weights.block), free(m->gradients.block), free(m->acts.block), free(m->cache.block);
    free(m->parameters.tensors);
    sharding_close(&m->shards);
}

// Initialises the master weights with normally distributed numbers of these standard deviations (GPT-2's are 0.02);
// projections into the residual stream get matrices / sqrt(2 L).
static void gpt_initialise(GPT *m, double embedding, double matrices) {
    const double deviations[] = {0, 0, embedding, 0.02, matrices, matrices / sqrt(2.0 * (double)m->dims.L)};
    float *host = state_borrow(&m->shards, &m->parameters, m->parameters.master, m->run.stream);
    parameters_initialise(&m->parameters, host, m->run.seed, deviations);
    state_return(&m->shards, &m->parameters, host, m->parameters.master, m->run.stream);
}

// Computes the weights from the master weights, which were just loaded or initialised.
static void gpt_round_weights(GPT *m, int stochastic) {
    sharding_round_weights(&m->shards, &m->parameters, stochastic, m->run.seed, m->optimizer.outcome,
                           m->run.stream);
}

// ---- forward and backward ---------------------------------------------------------------------------------

// A micro-step: the key of its dropout masks, and what happens to its gradients.
typedef struct {
    uint32_t step;
    uint32_t first_sequence; // index of the micro-step's first sequence in the step's global batch
    uint32_t dropout_threshold;
    float loss_scale;    // 1 / number of tokens in the step
    MatmulMode mode;     // for weight gradients: the first micro-step overwrites them, later ones add
    int is_first;        // 1: there are no sums of gradients yet
    int sends_gradients; // 1: gradients are sent to the other processes
} MicroStep;

static const MicroStep NO_TRAINING = {0, 0, DROPOUT_NONE, 0, MATMUL_OVERWRITE, 1, 0};

static Dropout dropout_of(const GPT *m, RandomStream stream, size_t layer, const MicroStep *s) {
    return dropout_make(s->dropout_threshold, m->run.seed, stream, (uint32_t)layer, s->step,
                        s->first_sequence);
}

// Returns the shape of a layer's attention: queries are the T newest tokens, keys are these and all before them.
static Attention attention_of(const GPT *m, const Activations *x, size_t layer, const MicroStep *s) {
    Attention a = attention_packed(x->B, x->T, m->dims.NH, m->dims.NKV, m->dims.HS,
                                   dropout_of(m, RANDOM_ATTENTION_DROPOUT, layer, s));
    a.Tk = x->past + x->T;
    a.atomics = m->run.attention_atomics;
    return a;
}

// Returns the variant to use: text generation has fewer queries than (cached) keys, which cuDNN does not support.
static AttentionVariant attention_variant(const GPT *m, const Activations *x) {
    return x->caching && m->run.attention == ATTENTION_CUDNN ? ATTENTION_FLASH : m->run.attention;
}

// Calls a layer under a name that --profile and nsys report.
#define PROFILED(lap, call)                                                                                  \
    do {                                                                                                     \
        profile_enter(&m->run.profile, lap, m->run.stream);                                                  \
        call;                                                                                                \
    } while (0)

// Waits until bucket b's weights have arrived from the processes that updated them.
static void wait_for_weights(GPT *m, size_t b) {
    const Ticket gathered = m->shards.buckets[b].gathered;
    if (gathered == 0) return;
    PROFILED(LAP_COMMUNICATION, comm_wait(m->shards.comm, gathered, m->run.stream));
    profile_leave(&m->run.profile, m->run.stream);
}

// Called before and after backward computes the gradients of bucket b: block b - 1, or if b is 0, what is in no block.
static void begin_bucket(GPT *m, size_t b, const MicroStep *s) {
    if (s->mode == MATMUL_OVERWRITE) sharding_begin_bucket(&m->shards, &m->parameters, b, m->run.stream);
}
static void end_bucket(GPT *m, size_t b, const MicroStep *s) {
    if (s->sends_gradients) sharding_end_bucket(&m->shards, &m->parameters, b, s->is_first, m->run.stream);
}

// ---- boundaries between sublayers -------------------------------------------------------------------------

// A sublayer's output is added to the residual stream and the next one's input normalised, in one pass over memory:
//     r += dropout(branch)     n = norm(r)
typedef struct {
    const floatX *residual_in; // (N, C)
    const floatX *branch;      // (N, C), or NULL: nothing is added
    floatX *residual_out;      // (N, C), or NULL if branch is NULL
    floatX *normed;            // (N, C)
    float *mean, *rstd;        // (N)
    const floatX *weight, *bias;
    float *dweight, *dbias;
    Dropout dropout; // of the branch
} Boundary;

static Boundary boundary_before_attention(const GPT *m, const Activations *x, size_t l, const MicroStep *s) {
    const BlockActivations *b = &x->block[l], *before = l > 0 ? b - 1 : NULL;
    const BlockWeights *w = &m->weights.block[l];
    const BlockGradients *g = &m->gradients.block[l];
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
    const BlockWeights *w = &m->weights.block[l];
    const BlockGradients *g = &m->gradients.block[l];
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
                   m->weights.model.final_norm_weight,
                   m->weights.model.final_norm_bias,
                   m->gradients.model.final_norm_weight,
                   m->gradients.model.final_norm_bias,
                   dropout_of(m, RANDOM_MLP_RESIDUAL, m->dims.L - 1, s)};
    return at;
}

static void boundary_forward(GPT *m, const Activations *x, const Boundary *at) {
    PROFILED(LAP_NORM, norm_forward(m->config.norm, at->residual_out, at->normed, at->mean, at->rstd,
                                    at->residual_in, at->branch, at->weight, at->bias, x->B, x->T, m->dims.C,
                                    &at->dropout, m->run.stream));
}

static const floatX *residual_after(const Boundary *at) {
    return at->branch != NULL ? at->residual_out : at->residual_in;
}

static void boundary_recompute(GPT *m, const Activations *x, const Boundary *at) {
    PROFILED(LAP_NORM, norm_recompute(m->config.norm, at->normed, residual_after(at), at->mean, at->rstd,
                                      at->weight, at->bias, x->B * x->T, m->dims.C, m->run.stream));
}

// Turns dresidual, the gradient of the stream after the boundary, into that before it, given dnormed; writes dbranch.
static void boundary_backward(GPT *m, const Activations *x, const Boundary *at) {
    const ModelActivations *a = &x->model;
    PROFILED(LAP_NORM,
             norm_backward(m->config.norm, a->dresidual, at->branch != NULL ? a->dbranch : NULL, at->dweight,
                           at->dbias, a->norm_partial, a->dnormed, residual_after(at), at->mean, at->rstd,
                           at->weight, x->B, x->T, m->dims.C, &at->dropout, m->run.stream));
}

// ---- the attention sublayer -------------------------------------------------------------------------------

// branch (N, C) = attention(norm1 W_qkv + b_qkv) W_proj + b_proj
static void attention_from_norm(GPT *m, Activations *x, size_t l, const MicroStep *s) {
    const Dims *d = &m->dims;
    const size_t N = x->B * x->T;
    const BlockWeights *w = &m->weights.block[l];
    BlockActivations *b = &x->block[l];
    floatX *qkv = b->qkv + x->past * d->QKV; // after the rows of earlier tokens
    Attention attention = attention_of(m, x, l, s);
    PROFILED(LAP_QKV, matmul_forward(&m->run.matmul, qkv, b->norm1, w->qkv_weight, w->qkv_bias, N, d->C,
                                     d->QKV, m->run.stream));
    PROFILED(LAP_ATTENTION,
             attention_forward(attention_variant(m, x), b->attended, b->lse, b->saved, qkv, b->qkv + d->Q,
                               b->qkv + d->Q + d->KV, &attention, m->run.stream));
    PROFILED(LAP_PROJECTION, matmul_forward(&m->run.matmul, x->model.branch, b->attended, w->proj_weight,
                                            w->proj_bias, N, d->Q, d->C, m->run.stream));
}

static void attention_sublayer_forward(GPT *m, Activations *x, size_t l, const MicroStep *s) {
    const Boundary before = boundary_before_attention(m, x, l, s);
    boundary_forward(m, x, &before);
    attention_from_norm(m, x, l, s);
}

// Recomputes what forward did not keep, by the same calls on the same bits.
static void attention_sublayer_recompute(GPT *m, Activations *x, size_t l, const MicroStep *s) {
    const Boundary before = boundary_before_attention(m, x, l, s);
    if (x->recompute >= RECOMPUTE_NORM) boundary_recompute(m, x, &before);
    if (x->recompute == RECOMPUTE_BLOCK) attention_from_norm(m, x, l, s);
}

static void attention_sublayer_backward(GPT *m, Activations *x, size_t l, const MicroStep *s) {
    const Dims *d = &m->dims;
    const size_t N = x->B * x->T;
    const BlockWeights *w = &m->weights.block[l];
    const BlockGradients *g = &m->gradients.block[l];
    const BlockActivations *b = &x->block[l];
    const ModelActivations *a = &x->model;
    Attention attention = attention_of(m, x, l, s);
    PROFILED(LAP_PROJECTION,
             matmul_backward(&m->run.matmul, a->dnormed, g->proj_weight, g->proj_bias, a->dbranch,
                             b->attended, w->proj_weight, NULL, N, d->Q, d->C, s->mode, m->run.stream));
    PROFILED(LAP_ATTENTION,
             attention_backward(m->run.attention, a->dwide, a->dwide + d->Q, a->dwide + d->Q + d->KV,
                                a->dnormed, b->qkv, b->qkv + d->Q, b->qkv + d->Q + d->KV, b->attended, b->lse,
                                b->saved, a->attention_scratch, &attention, m->run.stream));
    PROFILED(LAP_QKV,
             matmul_backward(&m->run.matmul, a->dnormed, g->qkv_weight, g->qkv_bias, a->dwide, b->norm1,
                             w->qkv_weight, NULL, N, d->C, d->QKV, s->mode, m->run.stream));
    const Boundary before = boundary_before_attention(m, x, l, s);
    boundary_backward(m, x, &before);
}

// ---- the MLP sublayer -------------------------------------------------------------------------------------

// up (N, UP) = norm2 W_up + b_up     activated (N, F) = f(up)
static void mlp_up_from_branch(GPT *m, Activations *x, size_t l, const MicroStep *s) {
    const Dims *d = &m->dims;
    const BlockWeights *w = &m->weights.block[l];
    BlockActivations *b = &x->block[l];
    const Boundary before = boundary_before_mlp(m, x, l, s);
    boundary_forward(m, x, &before);
    PROFILED(LAP_MLP_UP,
             matmul_activation_forward(m->config.activation, &m->run.matmul, b->activated, b->up, b->norm2,
                                       w->up_weight, w->up_bias, x->B * x->T, d->C, d->UP, m->run.stream));
}

// branch (N, C) = activated W_down + b_down
static void mlp_sublayer_forward(GPT *m, Activations *x, size_t l, const MicroStep *s) {
    const Dims *d = &m->dims;
    const BlockWeights *w = &m->weights.block[l];
    mlp_up_from_branch(m, x, l, s);
    PROFILED(LAP_MLP_DOWN,
             matmul_forward(&m->run.matmul, x->model.branch, x->block[l].activated, w->down_weight,
                            w->down_bias, x->B * x->T, d->F, d->C, m->run.stream));
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
                                                m->dims.F, m->run.stream));
}

static void mlp_sublayer_backward(GPT *m, Activations *x, size_t l, const MicroStep *s) {
    const Dims *d = &m->dims;
    const size_t N = x->B * x->T;
    const BlockWeights *w = &m->weights.block[l];
    const BlockGradients *g = &m->gradients.block[l];
    const BlockActivations *b = &x->block[l];
    const ModelActivations *a = &x->model;
    PROFILED(LAP_MLP_DOWN,
             matmul_activation_backward(m->config.activation, &m->run.matmul, a->dwide, g->down_weight,
                                        g->down_bias, a->dbranch, b->activated, w->down_weight, b->up, N,
                                        d->F, d->C, s->mode, m->run.stream));
    PROFILED(LAP_MLP_UP,
             matmul_backward(&m->run.matmul, a->dnormed, g->up_weight, g->up_bias, a->dwide, b->norm2,
                             w->up_weight, NULL, N, d->C, d->UP, s->mode, m->run.stream));
    const Boundary before = boundary_before_mlp(m, x, l, s);
    boundary_backward(m, x, &before);
}

// ---- blocks -----------------------------------------------------------------------------------------------

static void block_forward(GPT *m, Activations *x, size_t l, const MicroStep *s) {
    range_begin("block forward");
    wait_for_weights(m, l + 1);
    attention_sublayer_forward(m, x, l, s);
    mlp_sublayer_forward(m, x, l, s);
    profile_leave(&m->run.profile, m->run.stream);
    range_end();
}

// On entry acts.dbranch is the gradient of the block's MLP branch and acts.dresidual that of its output; on exit they
// are the same for the block before.
static void block_backward(GPT *m, size_t l, const MicroStep *s) {
    Activations *x = &m->acts;
    range_begin("block backward");
    begin_bucket(m, l + 1, s);
    attention_sublayer_recompute(m, x, l, s);
    mlp_sublayer_recompute(m, x, l, s);
    mlp_sublayer_backward(m, x, l, s);
    attention_sublayer_backward(m, x, l, s);
    profile_leave(&m->run.profile, m->run.stream);
    end_bucket(m, l + 1, s);
    range_end();
}

// ---- the model --------------------------------------------------------------------------------------------

// Computes x->model.final_norm, the head's input, from x->model.tokens at positions past .. past + T - 1.
static void gpt_forward(GPT *m, Activations *x, const MicroStep *s) {
    const ModelActivations *a = &x->model;
    const Dims *d = &m->dims;
    const floatX *positions = position_vectors(m->config.positions, m->weights.model.wpe, x->past, d->C);
    Dropout dropout = dropout_of(m, RANDOM_EMBEDDING_DROPOUT, 0, s);
    range_begin("forward");
    profile_begin_pass(&m->run.profile, PASS_FORWARD);
    wait_for_weights(m, 0);
    PROFILED(LAP_EMBEDDING, embedding_forward(a->embedded, a->tokens, m->weights.model.wte, positions, x->B,
                                              x->T, d->C, &dropout, m->run.stream));
    profile_leave(&m->run.profile, m->run.stream);
    for (size_t l = 0; l < d->L; l++) block_forward(m, x, l, s);
    const Boundary before = boundary_before_head(m, x, s);
    boundary_forward(m, x, &before);
    profile_leave(&m->run.profile, m->run.stream);
    range_end();
}

// Computes the logits of `count` tokens from `first` on; x->model.logits has room for logit_rows.
static void gpt_logits(GPT *m, Activations *x, size_t first, size_t count) {
    const Dims *d = &m->dims;
    PROFILED(LAP_HEAD,
             matmul_head_forward(&m->run.matmul, x->model.logits, x->model.final_norm + first * d->C,
                                 m->weights.model.wte, count, d->C, d->Vp, m->run.stream));
    profile_leave(&m->run.profile, m->run.stream);
}

// Computes x->model.losses, after gpt_forward.
static void gpt_losses(GPT *m, Activations *x) {
    const size_t N = x->B * x->T;
    for (size_t first = 0; first < N; first += x->logit_rows) {
        size_t count = min_size(x->logit_rows, N - first);
        gpt_logits(m, x, first, count);
        cross_entropy_forward(x->model.losses + first, x->model.logits, x->model.targets + first, count,
                              m->dims.V, m->dims.Vp, m->run.stream);
    }
}

// Computes head and loss, forward and backward, for logit_rows tokens at a time: losses, the gradient of wte and, in
// dnormed, that of final_norm. The logits are the only product of the forward pass that is computed here.
static void head_backward(GPT *m, const MicroStep *s) {
    const ModelActivations *a = &m->acts.model;
    const Dims *d = &m->dims;
    const size_t N = m->acts.B * m->acts.T;
    for (size_t first = 0; first < N; first += m->acts.logit_rows) {
        size_t count = min_size(m->acts.logit_rows, N - first);
        profile_begin_pass(&m->run.profile, PASS_FORWARD);
        gpt_logits(m, &m->acts, first, count);
        profile_begin_pass(&m->run.profile, PASS_BACKWARD);
        PROFILED(LAP_LOSS, cross_entropy_backward(a->losses + first, a->logits, a->targets + first,
                                                  s->loss_scale, count, d->V, d->Vp, m->run.stream));
        PROFILED(LAP_HEAD,
                 matmul_head_backward(&m->run.matmul, a->dnormed + first * d->C, m->gradients.model.wte,
                                      a->logits, a->final_norm + first * d->C, m->weights.model.wte, count,
                                      d->C, d->Vp, first == 0 ? s->mode : MATMUL_ACCUMULATE, m->run.stream));
        profile_leave(&m->run.profile, m->run.stream);
    }
}

// Computes all gradients, and acts.model.losses, after gpt_forward(m, &m->acts, s).
static void gpt_backward(GPT *m, const MicroStep *s) {
    Activations *x = &m->acts;
    const ModelActivations *a = &x->model;
    const Dims *d = &m->dims;
    const ModelGradients *g = &m->gradients.model;
    Dropout dropout = dropout_of(m, RANDOM_EMBEDDING_DROPOUT, 0, s);
    const Boundary before = boundary_before_head(m, x, s);
    range_begin("backward");
    begin_bucket(m, 0, s);
    head_backward(m, s);
    PROFILED(LAP_NORM, device_zero(a->dresidual, x->B * x->T * d->C * sizeof(floatX), m->run.stream));
    boundary_backward(m, x, &before);
    profile_leave(&m->run.profile, m->run.stream);
    for (size_t l = d->L; l-- > 0;) block_backward(m, l, s);
    PROFILED(LAP_EMBEDDING, embedding_backward(g->wte, g->wpe, a->dresidual, a->tokens, x->B, x->T, d->C,
                                               d->V, &dropout, m->run.stream));
    profile_leave(&m->run.profile, m->run.stream);
    end_bucket(m, 0, s);
    range_end();
}

// Computes the gradient norm, clips, and updates what this process owns; the results go to optimizer.outcome.
static void gpt_update(GPT *m, const AdamW *adamw) {
    Optimizer *o = &m->optimizer;
    Comm *comm = m->shards.comm;
    const Stream stream = m->run.stream;
    const size_t shared = optimizer_shared_totals(&m->shards, &m->parameters);
    range_begin("optimizer");
    PROFILED(LAP_COMMUNICATION, comm_wait(comm, m->shards.buckets[0].reduced, stream)); // reduced last
    PROFILED(LAP_OPTIMIZER, optimizer_square_sums(o, &m->shards, &m->parameters, stream));
    PROFILED(LAP_COMMUNICATION,
             comm_wait(comm, comm_all_reduce(comm, o->totals, shared, COMM_DOUBLE, stream), stream));
    PROFILED(LAP_OPTIMIZER, optimizer_update(o, &m->parameters, adamw, stream));
    profile_leave(&m->run.profile, stream);
    if (m->shards.sharding != SHARD_NONE) sharding_gather_weights(&m->shards, &m->parameters, stream);
    range_end();
}

// Computes the logits (V) of the token after `count` new tokens, which begin at position `past`, with cached keys and
// values. Tokens and logits are in pinned host memory.
static void gpt_next_logits(void *model, const int32_t *tokens, size_t count, size_t past, floatX *logits) {
    GPT *m = (GPT *)model;
    Activations *x = &m->cache;
    const int timing = m->run.profile.timing;
    m->run.profile.timing = 0;
    x->T = count;
    x->past = past;
    copy_to_device(x->model.tokens, tokens, count * sizeof(int32_t), m->run.stream);
    gpt_forward(m, x, &NO_TRAINING);
    gpt_logits(m, x, count - 1, 1);
    copy_to_host(logits, x->model.logits, m->dims.V * sizeof(floatX), m->run.stream);
    stream_wait(m->run.stream);
    m->run.profile.timing = timing;
}

// ---- views of the model for other files -------------------------------------------------------------------

static WorkSizes work_sizes(const GPT *m) {
    const Dims *d = &m->dims;
    WorkSizes sizes = {d->L, d->C, d->Q, d->QKV, d->F, d->Vp, m->acts.T};
    return sizes;
}

// Returns the parts of the model that checkpoints contain.
static SavedModel saved_model(GPT *m) {
    SavedModel saved = {&m->config, &m->parameters, &m->shards, &m->optimizer, &m->run.matmul, m->run.stream};
    return saved;
}

// ---- a run ------------------------------------------------------------------------------------------------

typedef struct {
    Settings options;
    const char *program; // argv[0]
    int64_t num_started; // --processes
    Processes processes;
    GPT model;
    Tokenizer *tokenizer; // or NULL
    TokenList stops; // tokens that end a sample, from the folder of the weights; if empty, end of text does
    Pipeline data;
    StepQueue queue;
    TrainingRun run;
    Recovery recovery;
    double peak; // measured GFLOP/s of this process
} Trainer;

// Returns 1 when the run is to end, on which several processes agree once per step.
static int is_stopping(const Trainer *t) {
    return t->processes.launch.size > 1 ? t->recovery.stopping : stop_signal != 0;
}

// Computes the initial weights from the master weights, after making those the same in all processes: what each has
// computed or read may differ, because mathematical libraries of other hosts may round differently.
static void set_weights(Trainer *t) {
    GPT *m = &t->model;
    sharding_broadcast_master(&m->shards, &m->parameters, m->run.stream);
    gpt_round_weights(m, t->options.stochastic_rounding && t->run.state.step > 0); // as before the restart
}

// ---- validation -------------------------------------------------------------------------------------------

// Adds the loss of a batch to the total of the validation, which is on the device.
static void score_on_device(void *trainer, Batch *batch, int first) {
    GPT *m = &((Trainer *)trainer)->model;
    const size_t N = m->acts.B * m->acts.T;
    const int timing = m->run.profile.timing;
    m->run.profile.timing = 0;
    batch_send(batch, m->acts.model.tokens, m->acts.model.targets, N, m->run.stream);
    gpt_forward(m, &m->acts, &NO_TRAINING);
    gpt_losses(m, &m->acts);
    loss_add(&m->optimizer.totals[TOTAL_LOSS], m->acts.model.losses, N, 1.0, !first, m->run.stream);
    m->run.profile.timing = timing;
}

static int trainer_is_stopping(const void *trainer) {
    return is_stopping((const Trainer *)trainer);
}

static int validate(Trainer *t, Error *error) {
    GPT *m = &t->model;
    double started = seconds_now();
    Score score = {0, 0, 0, 0, 0};
    const Scorer scorer = {t, score_on_device, trainer_is_stopping, m->acts.B, m->acts.T, (int64_t)m->dims.V};
    const int result = (t->options.validate_documents ? score_documents : score_windows)(
        &t->data, &t->options, &t->processes, t->tokenizer, &scorer, &score, error);
    if (agree(&t->processes, result, error) != 0) return -1;
    if (is_stopping(t)) return 0; // a partial validation is discarded
    stream_wait(m->run.stream);
    double *nats = (double *)host_borrow(&m->optimizer.totals[TOTAL_LOSS], sizeof(double));
    if (score.batches > 0) score.nats = *nats;
    host_return(nats, &m->optimizer.totals[TOTAL_LOSS], sizeof(double), 0);
    score = add_scores(&t->processes, &score);
    if (score.tokens == 0) return fail(error, "'%s' has no documents to validate on", t->options.validation);
    ValidationMetrics v = {t->run.state.step,
                           score.nats / (double)score.tokens,
                           score.bytes > 0 ? score.nats / log(2.0) / score.bytes : -1,
                           t->options.validation_floor,
                           score.tokens,
                           score.cut,
                           seconds_now() - started};
    if (is_main(&t->processes)) metrics_validation(&t->run.metrics, &v);
    t->run.validated = t->run.state.step;
    return 0;
}

// ---- the loop ---------------------------------------------------------------------------------------------

// Runs forward and backward of all micro-steps; adds this process's part of the mean loss to the step's totals.
static void accumulate_gradients(Trainer *t) {
    GPT *m = &t->model;
    const Settings *o = &t->options;
    const size_t N = m->acts.B * m->acts.T;
    const double tokens = (double)N * (double)o->accumulate * t->processes.launch.size;
    const int divided = m->shards.sharding == SHARD_GRADIENTS;
    for (int64_t micro = 0; micro < o->accumulate; micro++) {
        profile_begin_pass(&m->run.profile, PASS_FORWARD);
        profile_enter(&m->run.profile, LAP_DATA, m->run.stream);
        Batch *batch = pipeline_next_batch(&t->data);
        if (loader_next(t->data.loader, batch->tokens, batch->targets, &t->recovery.data_error) != 0) {
            t->recovery.has_no_data = 1; // the other processes learn this from the step's totals
            memset(batch->tokens, 0, N * sizeof(int32_t));
            memset(batch->targets, 0, N * sizeof(int32_t));
        }
        batch_send(batch, m->acts.model.tokens, m->acts.model.targets, N, m->run.stream);
        profile_leave(&m->run.profile, m->run.stream);
        MicroStep s = {(uint32_t)t->run.state.step,
                       (uint32_t)((micro * t->processes.launch.size + t->processes.launch.rank) * o->batch),
                       dropout_threshold(o->dropout),
                       (float)(1.0 / tokens),
                       divided || micro == 0 ? MATMUL_OVERWRITE : MATMUL_ACCUMULATE,
                       micro == 0,
                       divided || micro + 1 == o->accumulate};
        gpt_forward(m, &m->acts, &s);
        gpt_backward(m, &s);
        loss_add(&m->optimizer.totals[TOTAL_LOSS], m->acts.model.losses, N, tokens, micro > 0, m->run.stream);
    }
}

// Waits for the oldest step that is queued on the device, and records its results.
static void finish_step(Trainer *t) {
    PendingStep *p = &t->queue.pending[t->queue.num_finished++ % 2];
    StepMetrics *s = &p->metrics;
    event_wait(p->done);
    s->loss = p->outcome->loss;
    s->gradient_norm = p->outcome->norm;
    s->skipped = p->outcome->skipped;
    s->seconds = event_seconds(p->started, p->done);
    if (p->outcome->signals[SIGNAL_NO_DATA] && !t->recovery.failed) {
        t->recovery.failed = 1;
        t->run.state.step = s->step - 1;
        t->run.state.position = p->position;
    }
    if (t->recovery.failed || must_roll_back(&t->recovery, &t->run.state))
        return; // this step was queued after a bad one and is discarded
    recovery_record_loss(&t->recovery, &t->run.state, s->loss, s->skipped);
    if (must_roll_back(&t->recovery, &t->run.state)) {
        t->run.state.step = s->step;
        t->run.state.position = p->next_position;
    }
    t->recovery.stopping |= p->outcome->signals[SIGNAL_STOP] > 0;
    t->run.save_due |= p->outcome->signals[SIGNAL_SAVE] > 0;
    watchdog_learn(t->processes.watchdog, s->seconds);
    if (is_main(&t->processes)) metrics_step(&t->run.metrics, s);
    if (p->outcome->signals[SIGNAL_WRITTEN] == t->processes.launch.size &&
        p->phase_number == t->run.saving.current.phase_number)
        saving_advance(&t->run.saving);
}

static void finish_steps(Trainer *t) {
    while (t->queue.num_finished < t->queue.num_steps) finish_step(t);
}

// Writes this process's signals to the step's totals, which are summed over all processes.
static void send_signals(Trainer *t, PendingStep *p) {
    GPT *m = &t->model;
    p->signals[SIGNAL_STOP] = stop_signal != 0;
    p->signals[SIGNAL_SAVE] = saving_is_due(&t->run.saving);
    p->signals[SIGNAL_WRITTEN] = saving_part_is_done(&t->run.saving);
    p->signals[SIGNAL_NO_DATA] = t->recovery.has_no_data;
    p->phase_number = t->run.saving.current.phase_number;
    copy_to_device(&m->optimizer.totals[TOTAL_SIGNALS], p->signals, NUM_SIGNALS * sizeof(double),
                   m->run.stream);
}

// Queues one step on the device, then records an earlier one, so that the device always has work.
static void train_step(Trainer *t) {
    GPT *m = &t->model;
    const Settings *o = &t->options;
    PendingStep *p = &t->queue.pending[t->queue.num_steps % 2];
    StepMetrics metrics = {t->run.state.step + 1, o->global_batch * o->sequence_length, 0, 0, 0, 0, 0};
    LearningRate schedule = {
        (Schedule)o->schedule, o->learning_rate, o->final_learning_rate, o->steps, o->warmup, o->cooldown};
    metrics.learning_rate = learning_rate_at(&schedule, metrics.step);
    AdamW adamw = {metrics.learning_rate,  o->beta1,   o->beta2, o->epsilon, o->clip,
                   o->stochastic_rounding, m->run.seed};
    p->metrics = metrics;
    range_begin("step");
    watchdog_step(t->processes.watchdog, metrics.step);
    event_record(&p->started, m->run.stream);
    p->position = t->run.state.position;
    accumulate_gradients(t);
    send_signals(t, p);
    gpt_update(m, &adamw);
    copy_to_host(p->outcome, m->optimizer.outcome, sizeof(StepOutcome), m->run.stream);
    event_record(&p->done, m->run.stream);
    range_end();
    t->run.state.position = p->next_position = (int64_t)loader_position(t->data.loader);
    t->run.state.step++;
    t->queue.num_steps++;
    if (m->run.profile.timing) profile_collect(&m->run.profile);
    if (t->queue.num_steps - t->queue.num_finished > DEVICE_QUEUES) finish_step(t);
}

static TextModel text_model(GPT *m) {
    TextModel model = {gpt_next_logits, m, m->dims.V, m->dims.max_T};
    return model;
}

static void show_samples(Trainer *t) {
    if (t->tokenizer == NULL || !is_main(&t->processes)) return;
    metrics_end_line(&t->run.metrics);
    printf("---- sample after step %" PRId64 ":\n", t->run.state.step);
    const TextModel model = text_model(&t->model);
    const Sampling sampling = sampling_of(&t->options);
    const int64_t count = print_sample(&model, t->tokenizer, &t->stops, &sampling, "",
                                       (uint32_t)t->run.state.step, &stop_signal);
    puts(count < 0 ? "---- the model's logits are not finite" : "----");
}

// Returns 1 when something that is done every `every` steps (0: never) is due.
static int is_due(const Trainer *t, int64_t every) {
    return every > 0 && t->run.state.step % every == 0;
}

static int validation_is_due(const Trainer *t) {
    return t->data.validation.count > 0 &&
           (t->run.state.step == t->options.steps || is_due(t, t->options.validate_every));
}

static int is_unfinished(const Trainer *t) {
    return t->run.state.step < t->options.steps ||
           (validation_is_due(t) && t->run.validated != t->run.state.step);
}

static int save_and_wait(Trainer *t, Error *error) {
    watchdog_step(t->processes.watchdog, 0);
    if (save_now(&t->run.saving, &t->run.state, error) == 0) return 0;
    t->recovery.skips_final_save = 1;
    return -1;
}

static int stop_after_skips(Trainer *t, Error *error) {
    if (t->run.saving.saved_step < 0 && save_and_wait(t, error) != 0) return -1;
    t->recovery.skips_final_save = 1; // the skipped steps have changed no weights
    return fail_skipped(t->run.state.skipped_in_row, t->run.state.step, t->run.saving.saved_step, error);
}

static int load_checkpoint(Trainer *t, const char *folder, Error *error) {
    const SavedModel model = saved_model(&t->model);
    if (load_weights(&model, folder, error) != 0) return -1;
    return load_training_state(&model, folder, &t->run.state, error);
}

// Continues with the data at `position`, after a return from step `from` to the checkpoint just loaded; records this.
static int skip_data(Trainer *t, int64_t from, int64_t position, Error *error) {
    const int64_t passed = position - t->run.state.position, step = t->run.state.step;
    t->run.state.position = position;
    loader_close(t->data.loader);
    t->data.loader = NULL;
    if (pipeline_open_loader(&t->data, &t->options, (int64_t)t->model.dims.V, &t->processes,
                             t->run.state.position, &t->run.state.sequences, error) != 0)
        return -1;
    count_rollback(&t->recovery, step);
    t->run.saving.saved_step = step;
    t->run.state.outliers_in_row = t->run.save_due = 0;
    if (!is_main(&t->processes)) return 0;
    metrics_end_line(&t->run.metrics);
    printf("%" PRId64 " steps in a row had losses that are outliers: returning from step %" PRId64
           " to step %" PRId64 " and skipping %" PRId64 " sequences\n",
           t->options.rollback_after, from, step, passed);
    return metrics_rollback(&t->run.metrics, step, from, passed, error);
}

// Returns from a series of bad steps to the last checkpoint.
static int roll_back(Trainer *t, Error *error) {
    const int64_t from = t->run.state.step, position = t->run.state.position;
    watchdog_step(t->processes.watchdog, 0);
    saving_finish(&t->run.saving, -1);
    if (check_rollbacks(&t->recovery, t->run.saving.saved_step, error) != 0) {
        t->recovery.skips_final_save = 1; // nothing new is worth saving
        return -1;
    }
    char *folder = choose_checkpoint(&t->run, &t->processes, t->options.run, 0, t->run.saving.saved_step);
    agree_or_die(&t->processes,
                 folder != NULL ? 0 : fail(error, "there is no longer a checkpoint in '%s'", t->options.run),
                 error);
    agree_or_die(&t->processes, load_checkpoint(t, folder, error), error);
    set_weights(t);
    agree_or_die(&t->processes, skip_data(t, from, position, error), error);
    find_last_validation(&t->run, &t->processes);
    free(folder);
    return 0;
}

// Does what is due between steps: validation, samples, a checkpoint, a rollback.
static int after_step(Trainer *t, Error *error) {
    const Settings *o = &t->options;
    const int last = t->run.state.step == o->steps;
    const int validates = validation_is_due(t);
    const int samples = !last && is_due(t, o->sample_every);
    t->run.save_due |= last || is_due(t, o->save_every);
    const int saves = t->run.save_due &&
                      (t->run.saving.current.phase == SAVE_IDLE || !t->run.saving.current.slow);
    const int suspicious = t->run.state.skipped_in_row >= o->max_skips ||
                           must_roll_back(&t->recovery, &t->run.state);
    if (validates || samples || saves || suspicious) finish_steps(t);
    if (is_stopping(t) || t->recovery.failed) return 0;
    if (must_roll_back(&t->recovery, &t->run.state)) return roll_back(t, error);
    if (t->run.state.skipped_in_row >= o->max_skips) return stop_after_skips(t, error);
    if (validates || samples || saves) watchdog_step(t->processes.watchdog, 0);
    if (validates && validate(t, error) != 0) return -1;
    if (samples) show_samples(t);
    if (saves) start_save(&t->run, &t->processes, o->save_synchronously, last);
    return 0;
}

static int train(Trainer *t, Error *error) {
    const Settings *o = &t->options;
    int64_t started_at = t->run.state.step;
    if (started_at >= o->steps && is_main(&t->processes))
        printf("this run has already done %" PRId64 " steps, and --steps is %" PRId64
               ": give a larger --steps to continue it\n",
               started_at, o->steps);
    if (o->rollback_after > 0 && t->run.saving.saved_step < 0 && save_and_wait(t, error) != 0) return -1;
    find_last_validation(&t->run, &t->processes); // the run may have been interrupted before it
    if (started_at > 0 && validation_is_due(t) && t->run.validated != started_at && validate(t, error) != 0)
        return -1;
    while (t->run.state.step < o->steps && !is_stopping(t) && !t->recovery.failed) {
        train_step(t);
        profile_steady_steps(t->run.state.step - started_at, t->model.run.stream);
        if (after_step(t, error) != 0) return -1;
    }
    finish_steps(t);
    watchdog_step(t->processes.watchdog, 0);
    if (is_main(&t->processes)) metrics_end_line(&t->run.metrics);
    if (t->recovery.failed) {
        *error = t->recovery.data_error;
        return agree(&t->processes, t->recovery.has_no_data ? -1 : 0, error);
    }
    if (may_roll_back(&t->recovery, &t->run.state) && is_unfinished(t))
        saving_finish(&t->run.saving, -1);
    else if (save_and_wait(t, error) != 0)
        return -1;
    if (is_unfinished(t)) {
        if (is_main(&t->processes)) print_resume_hint(&t->run, t->program, o->run, t->num_started);
        return 0;
    }
    if (!is_stopping(t)) show_samples(t);
    if (t->model.run.profile.timing && t->run.state.step > started_at && is_main(&t->processes))
        profile_print(&t->model.run.profile, (int)(t->run.state.step - started_at), t->peak);
    return 0;
}

// ---- setting up -------------------------------------------------------------------------------------------

// Opens the tokenizer and describes the model. `folder`: where weights come from; NULL: they are initialised.
static int describe_model(Trainer *t, const char *folder, Error *error) {
    Settings *o = &t->options;
    GPTConfig config;
    if (folder != NULL && folder == o->init_from && checkpoint_verify(folder, 0, error) != 0) return -1;
    if (choose_tokenizer(o, folder, &t->tokenizer, &t->stops, error) != 0) return -1;
    if (choose_config(o, folder, t->tokenizer, &config, ATTENTION_LARGEST_HEAD, error) != 0) return -1;
    if (!options_given(OPTIONS, NUM_OPTIONS, "sequence-length") &&
        o->sequence_length > config.max_sequence_length)
        o->sequence_length = config.max_sequence_length;
    if (o->sample == NULL && o->sequence_length > config.max_sequence_length)
        return fail(error, "--sequence-length %" PRId64 " is more than the model's %" PRId64 " positions",
                    o->sequence_length, config.max_sequence_length);
    if (DEVICE_IS_GPU && config.channels > LARGEST_LAYERNORM)
        return fail(error, "on a GPU a model can have at most %d channels", LARGEST_LAYERNORM);
    if (check_size(o, activation_floats(&config, (double)o->sequence_length), error) != 0 ||
        check_parameters(o, count_parameters(&config), t->processes.launch.local_size, error) != 0)
        return -1;
    const size_t row = dims_of(&config).Vp * sizeof(floatX);
    if (o->logits_memory > 0 && (size_t)o->logits_memory < row)
        return fail(error, "--logits-memory %" PRId64 " is too small: the logits of one token take %zu bytes",
                    o->logits_memory, row);
    o->num_layers = config.num_layers; // these are saved with the run
    o->num_heads = config.num_heads;
    o->channels = config.channels;
    o->max_sequence_length = config.max_sequence_length;
    o->vocab_size = config.vocab_size;
    ModelSetup setup = {o->sample ? 0 : (size_t)o->batch, (size_t)o->sequence_length,
                        (Recompute)o->recompute,          (size_t)o->logits_memory,
                        (AttentionVariant)o->attention,   o->sample ? SHARD_NONE : (Sharding)o->shard,
                        t->processes.launch.size,         t->processes.comm,
                        t->processes.launch.local_size};
    gpt_describe(&t->model, &config, &setup);
    t->model.run.seed = (uint64_t)o->seed;
    t->model.run.attention_atomics = o->attention_atomics;
    return 0;
}

static int check_attention(const GPT *m, const Settings *o, Error *error) {
    const MicroStep step = {0, 0, dropout_threshold(o->dropout), 0, MATMUL_OVERWRITE, 1, 0};
    if (m->acts.B == 0) return 0;
    Attention attention = attention_of(m, &m->acts, 0, &step);
    const char *refusal = attention_refusal(m->run.attention, &attention);
    return refusal == NULL ? 0 : fail(error, "--attention %s: %s", ATTENTIONS[m->run.attention], refusal);
}

// Allocates the model, and loads or initialises its weights.
static int set_up_model(Trainer *t, const char *folder, Error *error) {
    const Settings *o = &t->options;
    GPT *m = &t->model;
    if (check_attention(m, o, error) != 0) return -1;
    if (gpt_allocate(m, (MatmulLibrary)o->matmul, precision_of(o), error) != 0) return -1;
    matmul_search_algorithms(&m->run.matmul, o->matmul_search);
    const SavedModel saved = saved_model(m);
    if (folder != NULL) return load_weights(&saved, folder, error);
    gpt_initialise(m, o->init_embedding, o->init_matrices);
    return 0;
}

// Sets up what training needs in addition to the model. `resume_from`: a checkpoint, or NULL.
static int set_up_training(Trainer *t, const char *resume_from, Error *error) {
    const Settings *o = &t->options;
    GPT *m = &t->model;
    optimizer_list_chunks(&m->optimizer, &m->shards, &m->parameters, o->weight_decay, m->run.stream);
    pipeline_open_batches(&t->data, m->acts.B * m->acts.T);
    queue_open(&t->queue);
    if (resume_from != NULL) {
        const SavedModel model = saved_model(m);
        if (load_training_state(&model, resume_from, &t->run.state, error) != 0) return -1;
        t->run.saving.saved_step = t->run.state.step;
    }
    if (is_main(&t->processes)) prepare_texts(&t->run, t->tokenizer, &t->stops, m->config.end_of_text);
    if (pipeline_open(&t->data, o, (int64_t)m->dims.V, t->tokenizer, &t->processes, t->run.state.position,
                      &t->run.state.sequences, error) != 0)
        return -1;
    t->run.algorithms = format_text("%s/matmul.txt", o->run);
    if (resume_from != NULL && file_exists(t->run.algorithms) &&
        matmul_load_algorithms(&m->run.matmul, t->run.algorithms, error) != 0)
        return -1;
    char *activations = (char *)m->acts.model.tokens; // as scratch: they are not in use yet
    t->peak = matmul_peak(&m->run.matmul, activations,
                          (size_t)(m->run.arena.base + m->run.arena.used - activations));
    m->run.profile.timing = o->profile;
    const WorkSizes sizes = work_sizes(m);
    set_work(&m->run.profile, &m->parameters, &sizes, m->acts.B * m->acts.T * (size_t)o->accumulate);
    return 0;
}

// Saves the steps that were done, then exits with the error, which is that of all processes.
static void save_and_die(Trainer *t, const Error *error) {
    Error second;
    finish_steps(t);
    watchdog_step(t->processes.watchdog, 0);
    saving_finish(&t->run.saving, -1);
    if (is_main(&t->processes)) metrics_end_line(&t->run.metrics);
    if (t->run.state.step > 0 && !may_roll_back(&t->recovery, &t->run.state) &&
        !t->recovery.skips_final_save) {
        const int saved = save_now(&t->run.saving, &t->run.state, &second) == 0;
        if (saved && is_main(&t->processes))
            printf("saved a checkpoint of step %" PRId64 "\n", t->run.state.step);
        if (!saved && is_main(&t->processes)) warn("%s", second.text);
    }
    if (is_main(&t->processes) && metrics_flush(&t->run.metrics, &second) != 0) warn("%s", second.text);
    comm_barrier(t->processes.comm); // no process exits before all are done
    exit_together(&t->processes, error);
}

static void close_down(Trainer *t) {
    training_run_close(&t->run);
    pipeline_close(&t->data);
    queue_close(&t->queue);
    free(t->stops.ids);
    gpt_free(&t->model);
    comm_close(t->processes.comm);
    if (t->tokenizer != NULL) tokenizer_free(t->tokenizer);
}

static int start_run(Trainer *t, Error *error) {
    const GPT *m = &t->model;
    const WorkSizes sizes = work_sizes(m);
    if (!is_main(&t->processes)) return 0;
    if (open_run(&t->run, &t->options, step_flop(&m->parameters, &sizes), t->peak * t->processes.launch.size,
                 error) != 0)
        return -1;
    print_model(&m->config, m->parameters.count);
    print_memory(&m->run.arena, m->acts.B * m->acts.T);
    print_data(&t->data, &t->options);
    print_processes(&t->processes, &t->options);
    print_machine(&t->options, t->peak, ATTENTIONS[m->run.attention]);
    return 0;
}

// Sets up model and data; an error in one process ends all.
static void set_up(Trainer *t, const char *folder) {
    const Settings *o = &t->options;
    Error error;
    const int samples = o->sample != NULL;
    int result = set_up_model(t, folder, &error);
    if (result == 0 && !samples) result = set_up_training(t, o->resume ? folder : NULL, &error);
    agree_or_die(&t->processes, result, &error);
    check_agreement(&t->processes, o, &t->data, folder);
    set_weights(t);
    if (samples) return;
    agree_or_die(&t->processes, start_run(t, &error), &error); // nothing is written before all agree
    const SavedModel model = saved_model(&t->model);
    agree_or_die(&t->processes, open_saving(&t->run, o, &t->processes, &model, &error), &error);
}

static void run_training(Trainer *t) {
    Error error;
    if (train(t, &error) != 0) save_and_die(t, &error);
    comm_barrier(t->processes.comm); // no process exits before all are done
    watchdog_stop(t->processes.watchdog);
}

int main(int argc, char **argv) {
    static Trainer trainer;
    Trainer *t = &trainer;
    Settings *o = &t->options;
    Error error;
    t->program = argv[0];
    training_run_init(&t->run);
    open_standard_descriptors();
    host_memory_share_heap();
    int parsed = parse_options(o, argc, argv, &error);
    if (parsed > 0) {
        answer(parsed);
        close_output();
        return 0;
    }
    if (launch_read(&t->processes.launch, &error) != 0) die_of(&error);
    if (parsed < 0 || check_options(o, &error) != 0) die_once(&t->processes, &error);
    t->num_started = o->processes;
    join_processes(&t->run, &t->processes, o, argc, argv);
    t->recovery.rolled_back_to = -1;
    t->recovery.rollback_after = o->rollback_after;
    t->recovery.outlier = o->outlier;

    if (!o->plan && o->sample == NULL)
        handle_signals(); // one that arrives during set-up ends the run after its first step
    const char *folder = choose_initial_folder(&t->run, &t->processes, o);
    agree_or_die(&t->processes, describe_model(t, folder, &error), &error);
    if (o->plan) {
        const MemoryPlan plan = memory_plan(&t->model);
        const char *recompute = option_choice_name(OPTIONS, NUM_OPTIONS, o, "recompute");
        print_memory_plan(&plan, recompute, ATTENTIONS[t->model.run.attention]);
    } else {
        set_up(t, folder);
        const TextModel text = text_model(&t->model);
        if (o->sample != NULL)
            run_sample(&text, t->tokenizer, &t->stops, o, &stop_signal);
        else
            run_training(t);
    }
    const int interrupted = is_stopping(t) && is_unfinished(t);
    close_down(t);
    if (interrupted) return EXIT_INTERRUPTED;
    close_output();
    return 0;
}
