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
#include "layers/comm/comm.h"
#include "layers/comm/sharding.cuh"
#include "data/run/checkpoint.h"
#include "layers/base/files.h"
#include "layers/base/threads.h"
#include "layers/embedding.cuh"
#include "layers/memory_plan.cuh"
#include "layers/activation.cuh"
#include "layers/norm.cuh"
#include "layers/optimizer.cuh"
#include "layers/parameters.cuh"
#include "layers/positions.cuh"
#include "layers/profile.h"
#include "layers/softmax_cross_entropy.cuh"

// ---- dimensions -------------------------------------------------------------------------------------------

enum { VOCAB_MULTIPLE = 128 }; // tokens

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

// What backward computes again instead of forward's keeping it (--recompute), each level including the ones before.
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
    size_t B, T;         // B = 0: there is no training, only generating text
    int caching;         // text is generated: only keys and values are kept
    size_t past;         // tokens before these whose keys and values are in qkv
    size_t logits_bytes; // the most for logits; 0: no limit
    size_t logit_rows;   // tokens whose logits are computed at a time
    Recompute recompute;
    ModelActivations model;
    BlockActivations *block; // (L)
} Activations;

// What a model is asked for beside its description.
typedef struct {
    size_t B, T; // B = 0: no training, only generating text
    Recompute recompute;
    size_t logits_bytes; // the most for logits; 0: no limit
    AttentionVariant attention;
    Sharding sharding;
    int processes; // that share what is divided
    Comm *comm;    // this process and the others
    int sharing;   // processes on this host, which share its memory
} Shape;

// What a model runs on.
typedef struct {
    Stream stream;
    Arena arena;
    MatmulContext matmul;
    AttentionVariant attention;
    int attention_atomics; // Attention's
    Profile profile;
    uint64_t seed;
    int sharing; // processes on this host, which share its memory
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
    Activations cache; // of generating text; in the same memory
    Runtime run;
} GPT;

// Fills the list of the tensors that this model has: the model's, then block after block.
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

static void place_weights(GPT *m, Arena *arena) {
    const GPTConfig *config = &m->config;
    Parameters *parameters = &m->parameters;
    const Parameter *p = parameters->tensors;
    parameters->weights = (floatX *)arena_take(arena, MEMORY_WEIGHTS, parameters->num_elements,
                                               arena->floatX_size);
    parameters->master = (float *)parameters->weights;
    if (arena->floatX_size != sizeof(float))
        parameters->master = (float *)arena_take(arena, MEMORY_MASTER, sharding_size(&m->shards, parameters),
                                                 sizeof(float));
    if (arena->base == NULL) return;
#define POINT(member, exists, ...)                                                                           \
    m->weights.model.member = (exists) ? parameters->weights + (p++)->offset : NULL;
    MODEL_PARAMETERS(POINT)
#undef POINT
#define POINT(member, exists, ...)                                                                           \
    m->weights.block[l].member = (exists) ? parameters->weights + (p++)->offset : NULL;
    for (size_t l = 0; l < m->dims.L; l++) {
        BLOCK_PARAMETERS(POINT)
    }
#undef POINT
}

static void place_gradients(GPT *m, Arena *arena) {
    const GPTConfig *config = &m->config;
    size_t t = 0;
    sharding_place_gradients(&m->shards, &m->parameters, arena);
    if (arena->base == NULL) return;
#define POINT(member, exists, ...)                                                                           \
    m->gradients.model.member = (exists) ? sharding_gradient(&m->shards, &m->parameters, t++) : NULL;
    MODEL_PARAMETERS(POINT)
#undef POINT
#define POINT(member, exists, ...)                                                                           \
    m->gradients.block[l].member = (exists) ? sharding_gradient(&m->shards, &m->parameters, t++) : NULL;
    for (size_t l = 0; l < m->dims.L; l++) {
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

// Gives every tensor its place. Text is generated between steps, so its memory is that of the activations.
static void gpt_place(GPT *m, Arena *arena) {
    size_t workspace = arena->on_gpu ? matmul_gpu_workspace_size(max_size(m->dims.UP, m->dims.QKV)) : 0;
    place_weights(m, arena);
    if (m->acts.B > 0) {
        place_gradients(m, arena);
        optimizer_place(&m->optimizer, &m->shards, &m->parameters, arena);
    }
    void *place = arena_take(arena, MEMORY_WORKSPACE, workspace, 1);
    if (place != NULL) matmul_set_workspace(&m->run.matmul, place, workspace);
    Arena generation = *arena;
    if (m->acts.B > 0) place_activations(m, &m->acts, arena);
    place_activations(m, &m->cache, &generation);
    if (generation.used > arena->used) {
        arena->of[MEMORY_BLOCKS] += generation.used - arena->used; // keys and values, most of it
        arena->used = generation.used;
    }
}

// Sets the batch, and how many logits it computes at a time.
static void set_batch(GPT *m, size_t B, size_t floatX_size) {
    Activations *x = &m->acts;
    size_t rows = B * x->T, fit = x->logits_bytes / (m->dims.Vp * floatX_size);
    if (fit >= 64) fit = fit / 64 * 64;
    if (x->logits_bytes > 0) rows = min_size(rows, fit > 0 ? fit : 1);
    x->B = B;
    x->logit_rows = rows;
}

// Bytes that --batch B takes in a build for the CPU or a GPU; `of` (or NULL): by purpose.
static size_t gpt_memory(const void *model, size_t B, int on_gpu, size_t floatX_size,
                         size_t of[NUM_MEMORIES]) {
    const GPT *m = (const GPT *)model;
    CHECK(m->run.arena.base == NULL); // places are forgotten
    GPT plan = *m;
    Arena arena = {NULL, 0, {0}, on_gpu, floatX_size};
    set_batch(&plan, B, floatX_size);
    gpt_place(&plan, &arena);
    if (of != NULL) memcpy(of, arena.of, sizeof(arena.of));
    return arena.used;
}

static MemoryPlan memory_plan(const GPT *m) {
    MemoryPlan plan = {m, gpt_memory, &m->parameters, &m->shards, m->acts.B, m->acts.T, m->dims.HS};
    return plan;
}

// The model's tensors and shapes, without memory.
static void gpt_describe(GPT *m, const GPTConfig *config, const Shape *shape) {
    memset(m, 0, sizeof(*m));
    m->config = *config;
    m->dims = dims_of(config);
    m->run.attention = attention_choose(shape->attention);
    m->run.sharing = shape->sharing;
    list_parameters(m);
    sharding_open(&m->shards, &m->parameters, shape->sharding, shape->comm, shape->processes, m->dims.L);
    m->weights.block = (BlockWeights *)xcalloc(m->dims.L, sizeof(BlockWeights));
    m->gradients.block = (BlockGradients *)xcalloc(m->dims.L, sizeof(BlockGradients));
    m->acts.block = (BlockActivations *)xcalloc(m->dims.L, sizeof(BlockActivations));
    m->cache.block = (BlockActivations *)xcalloc(m->dims.L, sizeof(BlockActivations));
    m->acts.T = shape->T;
    m->acts.recompute = shape->recompute;
    m->acts.logits_bytes = shape->logits_bytes;
    set_batch(m, shape->B, sizeof(floatX));
    m->cache.B = 1;
    m->cache.T = m->dims.max_T;
    m->cache.caching = 1;
    m->cache.logit_rows = 1;
}

// Memory for what gpt_describe described, and zeros where a run begins with them.
static int gpt_allocate(GPT *m, MatmulLibrary library, Precision precision, Error *error) {
    Runtime *run = &m->run;
    size_t available, total, asked = gpt_memory(m, m->acts.B, DEVICE_IS_GPU, sizeof(floatX), NULL);
    const MemoryPlan plan = memory_plan(m);
    const size_t taken = asked + memory_beside(&plan, m->acts.B, DEVICE_IS_GPU);
    run->stream = stream_create();
    matmul_open(&run->matmul, library, precision);
    device_memory(&available, &total, run->sharing);
    Arena arena = {NULL, 0, {0}, DEVICE_IS_GPU, sizeof(floatX)};
    if (taken <= available) arena.base = (char *)device_alloc(asked);
    if (arena.base == NULL) return refuse_memory(&plan, taken, min_size(available, taken - 1), error);
    run->arena = arena;
    gpt_place(m, &run->arena);
    const size_t *of = run->arena.of;
    device_zero(run->arena.base, of[MEMORY_WEIGHTS] + of[MEMORY_MASTER], run->stream);
    if (m->acts.B > 0) {
        device_zero(m->parameters.gradients, of[MEMORY_GRADIENTS] + of[MEMORY_MOMENTS], run->stream);
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

// GPT-2's initialisation with 0.02 for `embedding` and `matrices`: normal numbers of that deviation; projections into the
// residual stream get matrices / sqrt(2 L).
static void gpt_initialise(GPT *m, double embedding, double matrices) {
    const double deviations[] = {0, 0, embedding, 0.02, matrices, matrices / sqrt(2.0 * (double)m->dims.L)};
    float *host = state_borrow(&m->shards, &m->parameters, m->parameters.master, m->run.stream);
    parameters_initialise(&m->parameters, host, m->run.seed, deviations);
    state_return(&m->shards, &m->parameters, host, m->parameters.master, m->run.stream);
}

// Makes the weights of the master weights, which were just loaded or initialised.
static void gpt_round(GPT *m, int stochastic) {
    sharding_round_weights(&m->shards, &m->parameters, stochastic, m->run.seed, m->optimizer.outcome,
                           m->run.stream);
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
    return dropout_make(s->dropout_threshold, m->run.seed, stream, (uint32_t)layer, s->step,
                        s->first_sequence);
}

// Queries are the T newest tokens, keys those and the ones before them.
static Attention attention_of(const GPT *m, const Activations *x, size_t layer, const MicroStep *s) {
    Attention a = attention_packed(x->B, x->T, m->dims.NH, m->dims.NKV, m->dims.HS,
                                   dropout_of(m, RANDOM_ATTENTION_DROPOUT, layer, s));
    a.Tk = x->past + x->T;
    a.atomics = m->run.attention_atomics;
    return a;
}

// Generating text reads cached keys: fewer queries than keys, which cuDNN does not serve.
static AttentionVariant attention_variant(const GPT *m, const Activations *x) {
    return x->caching && m->run.attention == ATTENTION_CUDNN ? ATTENTION_FLASH : m->run.attention;
}

// Names a call of a layer once, for --profile and for nsys.
#define PROFILED(lap, call)                                                                                  \
    do {                                                                                                     \
        profile_enter(&m->run.profile, lap, m->run.stream);                                                  \
        call;                                                                                                \
    } while (0)

// Waits for bucket b's weights from the processes that updated them.
static void wait_for_weights(GPT *m, size_t b) {
    const Ticket gathered = m->shards.buckets[b].gathered;
    if (gathered == 0) return;
    PROFILED(LAP_COMMUNICATION, comm_wait(m->shards.comm, gathered, m->run.stream));
    profile_leave(&m->run.profile, m->run.stream);
}

// Before and after backward makes the gradients of bucket b, the model's or block b - 1's.
static void begin_bucket(GPT *m, size_t b, const MicroStep *s) {
    if (s->mode == MATMUL_OVERWRITE) sharding_begin_bucket(&m->shards, &m->parameters, b, m->run.stream);
}
static void end_bucket(GPT *m, size_t b, const MicroStep *s) {
    if (s->sends) sharding_end_bucket(&m->shards, &m->parameters, b, s->first, m->run.stream);
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

// From dnormed and the gradient of the stream after the boundary to that before it, and to dbranch.
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
    floatX *qkv = b->qkv + x->past * d->QKV; // after those of the tokens before
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

// What forward did not keep is computed again by the same calls on the same bits.
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

// On entry acts.dbranch is the gradient of the block's MLP branch, acts.dresidual that of its output; on exit
// the same of the block before.
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

// From x->model.tokens, at positions past .. past + T - 1, to x->model.final_norm, the head's input.
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

// Logits of `count` tokens from `first` on; x->model.logits holds logit_rows.
static void gpt_logits(GPT *m, Activations *x, size_t first, size_t count) {
    const Dims *d = &m->dims;
    PROFILED(LAP_HEAD,
             matmul_head_forward(&m->run.matmul, x->model.logits, x->model.final_norm + first * d->C,
                                 m->weights.model.wte, count, d->C, d->Vp, m->run.stream));
    profile_leave(&m->run.profile, m->run.stream);
}

// After gpt_forward: x->model.losses.
static void gpt_losses(GPT *m, Activations *x) {
    const size_t N = x->B * x->T;
    for (size_t first = 0; first < N; first += x->logit_rows) {
        size_t count = min_size(x->logit_rows, N - first);
        gpt_logits(m, x, first, count);
        cross_entropy_forward(x->model.losses + first, x->model.logits, x->model.targets + first, count,
                              m->dims.V, m->dims.Vp, m->run.stream);
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

// After gpt_forward(m, &m->acts, s): all gradients; losses go to acts.model.losses.
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
    device_zero(a->dresidual, x->B * x->T * d->C * sizeof(floatX), m->run.stream);
    boundary_backward(m, x, &before);
    profile_leave(&m->run.profile, m->run.stream);
    for (size_t l = d->L; l-- > 0;) block_backward(m, l, s);
    PROFILED(LAP_EMBEDDING, embedding_backward(g->wte, g->wpe, a->dresidual, a->tokens, x->B, x->T, d->C,
                                               d->V, &dropout, m->run.stream));
    profile_leave(&m->run.profile, m->run.stream);
    end_bucket(m, 0, s);
    range_end();
}

// Norm, clipping and update of what this process owns; optimizer.outcome says what came of it.
static void gpt_update(GPT *m, const AdamW *adamw) {
    Optimizer *o = &m->optimizer;
    Comm *comm = m->shards.comm;
    const Stream stream = m->run.stream;
    const int divided = m->shards.sharding != SHARD_NONE;
    const size_t shared = divided ? step_totals(m->parameters.num_chunks)
                                  : (size_t)TOTAL_SQUARES; // every process has the rest
    range_begin("optimizer");
    PROFILED(LAP_COMMUNICATION, comm_wait(comm, m->shards.buckets[0].reduced, stream)); // the last one
    PROFILED(LAP_OPTIMIZER, optimizer_square_sums(o, &m->shards, &m->parameters, stream));
    PROFILED(LAP_COMMUNICATION,
             comm_wait(comm, comm_all_reduce(comm, o->totals, shared, COMM_DOUBLE, stream), stream));
    PROFILED(LAP_OPTIMIZER, optimizer_update(o, &m->parameters, adamw, stream));
    profile_leave(&m->run.profile, stream);
    if (divided) sharding_gather_weights(&m->shards, &m->parameters, stream);
    range_end();
}

// Logits (V) of the token after `count` new tokens, which begin at position `past`, over the cache. In pinned host memory.
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

// ---- work -------------------------------------------------------------------------------------------------

// Products of causal attention on one token, forward: scores and their sum of values, of half the keys.
static double attention_flop(const GPT *m, size_t T) {
    return 2 * (double)T * (double)m->dims.Q;
}

// FLOPs of one token's forward pass through layer l (-1: of the head), a multiply-add counting two; `but`: without one product.
static double layer_flop(const GPT *m, int layer, size_t T, Lap but) {
    double flop = layer >= 0 ? attention_flop(m, T) : 0;
    for (size_t t = 0; t < m->parameters.num_tensors; t++) {
        const Parameter *p = &m->parameters.tensors[t];
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
    Profile *p = &m->run.profile;
    const double L = (double)d->L, N = (double)tokens, NC = N * (double)d->C, X = sizeof(floatX);
    for (size_t t = 0; t < m->parameters.num_tensors; t++) {
        const Parameter *w = &m->parameters.tensors[t];
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
    profile_add_bytes(p, LAP_OPTIMIZER, PASS_BACKWARD,
                      8 * sizeof(float) * (double)m->parameters.num_elements);
}

#endif
