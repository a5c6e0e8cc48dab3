// Trains GPT-2 models: learned positions, pre-layernorm, tanh-GELU, tied output head (Radford et al. 2019).
//
// The whole trainer, from top to bottom: the options, the model's parameters and activations as tables,
// forward, backward, update, sampling, checkpoints, the loop. Layers are in layers/, attention in attention/,
// everything on disk in data/.
//
// Names: B batch, T time, C channels, L layers, NH heads, HS = C / NH head size, V vocabulary, Vp = V rounded
// up to a multiple of 128 (rows V .. Vp - 1 of the embedding stay zero and never reach a softmax), N = B * T
// tokens.
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <sys/file.h>
#include <unistd.h>
#include <omp.h>

#include "attention/attention.cuh"
#include "data/checkpoint.h"
#include "data/files.h"
#include "data/loader.h"
#include "data/metrics.h"
#include "data/options.h"
#include "data/progress.h"
#include "data/shards.h"
#include "data/tokenizer.h"
#include "layers/adamw.cuh"
#include "layers/embedding.cuh"
#include "layers/layernorm.cuh"
#include "layers/matmul.cuh"
#include "layers/profile.h"
#include "layers/sampling.h"
#include "layers/schedule.h"
#include "layers/simd_cpu.h"
#include "layers/softmax_cross_entropy.cuh"

// ---- options ----------------------------------------------------------------------------------------------

typedef enum { MODEL_FREE, MODEL_124M, MODEL_350M, MODEL_774M, MODEL_1558M } ModelName;

typedef struct {
    const char *run, *train, *validation, *tokenizer, *init_from, *sample;
    int model, schedule, attention, precision, resume, validate_documents, overfit, profile;
    int64_t num_layers, num_heads, channels, max_sequence_length, vocab_size;
    int64_t sequence_length, batch, accumulate, steps, warmup, cooldown, max_skips, seed, threads;
    int64_t save_every, keep, validate_every, validation_batches, sample_every, sample_tokens, top_k;
    double dropout, learning_rate, final_learning_rate, weight_decay, beta1, beta2, epsilon, clip;
    double validation_floor, temperature, top_p, init_embedding, init_matrices;
} Settings;

// One option a line: name, member of Settings, default, bounds or choices, help. Above the first of a group,
// its heading.
#define INTEGER(name, member, standard, low, high, help)                                                     \
    name, OPTION_INTEGER, offsetof(Settings, member), standard, low, high, NULL, help
#define REAL(name, member, standard, low, high, help)                                                        \
    name, OPTION_REAL, offsetof(Settings, member), standard, low, high, NULL, help
#define TEXT(name, member, standard, help)                                                                   \
    name, OPTION_TEXT, offsetof(Settings, member), standard, 0, 0, NULL, help
#define FLAG(name, member, help) name, OPTION_FLAG, offsetof(Settings, member), "0", 0, 0, NULL, help
#define CHOICE(name, member, standard, choices, help)                                                        \
    name, OPTION_CHOICE, offsetof(Settings, member), standard, 0, 0, choices, help
// clang-format off
static const Option OPTIONS[] = {
    {"Run", TEXT("run", run, "runs/gpt", "folder of the run: options, metrics, checkpoints")},
    {NULL, FLAG("resume", resume, "go on from the run's newest checkpoint")},
    {NULL, TEXT("init-from", init_from, NULL, "begin with the weights of a Hugging Face GPT-2 folder")},
    {NULL, INTEGER("steps", steps, "1000", 1, 1e12, "optimizer steps")},
    {NULL, INTEGER("save-every", save_every, "500", 0, 1e12, "steps between checkpoints; 0: only at the end")},
    {NULL, INTEGER("keep", keep, "2", 1, 1e6, "how many checkpoints to keep")},
    {NULL, INTEGER("seed", seed, "1337", 0, 9e15, "random numbers of initialisation, order, dropout and sampling")},
    {NULL, INTEGER("threads", threads, "0", 0, 4096, "0: one a core; results do not depend on it")},

    {"Data", TEXT("train", train, NULL, "token shards to train on (quote a pattern: 'data/x_train_*.bin')")},
    {NULL, TEXT("validation", validation, NULL, "token shards to validate on")},
    {NULL, TEXT("tokenizer", tokenizer, NULL, "tokenizer.json, or a folder with one; for text samples, bits per byte, V")},
    {NULL, INTEGER("validate-every", validate_every, "250", 0, 1e12, "steps between validations; 0: only at the end")},
    {NULL, INTEGER("validation-batches", validation_batches, "20", 1, 1e9, "batches in a validation")},
    {NULL, FLAG("validate-documents", validate_documents, "validate on whole documents from their start")},
    {NULL, REAL("validation-floor", validation_floor, "0", 0, 100, "bits per byte to show beside the validation's; 0: none")},

    {"Model", CHOICE("model", model, "free", "free|gpt2-124M|gpt2-350M|gpt2-774M|gpt2-1558M", "a shape by name, or free")},
    {NULL, INTEGER("num-layers", num_layers, "4", 1, 1000, "L")},
    {NULL, INTEGER("num-heads", num_heads, "4", 1, 1000, "NH, divides the channels")},
    {NULL, INTEGER("channels", channels, "128", 8, 65536, "C")},
    {NULL, INTEGER("max-sequence-length", max_sequence_length, "0", 0, 1e6, "positions of the model; 0: the sequence length")},
    {NULL, INTEGER("vocab-size", vocab_size, "0", 0, 1e8, "V; 0: the tokenizer's")},
    {NULL, REAL("init-embedding", init_embedding, "0.02", 0, 10, "deviation of the initial token embedding; narrow models learn faster from more")},
    {NULL, REAL("init-matrices", init_matrices, "0.02", 0, 10, "of the blocks' matrices; those into the residual stream / sqrt(2 L)")},
    {NULL, REAL("dropout", dropout, "0", 0, 0.99, "on embedding, attention and both residual branches; steps of 1/256")},

    {"Training", INTEGER("batch", batch, "12", 1, 1e6, "B, sequences in a micro-step")},
    {NULL, INTEGER("sequence-length", sequence_length, "256", 1, 1e6, "T")},
    {NULL, INTEGER("accumulate", accumulate, "1", 1, 1e6, "micro-steps in a step")},
    {NULL, REAL("learning-rate", learning_rate, "6e-4", 0, 10, "the highest, after warm-up")},
    {NULL, REAL("final-learning-rate", final_learning_rate, "0.1", 0, 1, "the last, as a fraction of the highest")},
    {NULL, CHOICE("schedule", schedule, "cosine", "cosine|linear|constant|wsd", "after warm-up; wsd: constant, then a linear cool-down")},
    {NULL, INTEGER("warmup", warmup, "100", 0, 1e9, "steps of linear warm-up; if not given, at most a tenth of the steps")},
    {NULL, INTEGER("cooldown", cooldown, "0", 0, 1e9, "steps of wsd's cool-down; 0: a fifth of the steps")},
    {NULL, REAL("weight-decay", weight_decay, "0.1", 0, 10, "on matrices and embeddings only")},
    {NULL, REAL("beta1", beta1, "0.9", 0, 0.999999, "of AdamW")},
    {NULL, REAL("beta2", beta2, "0.95", 0, 0.999999, "of AdamW")},
    {NULL, REAL("epsilon", epsilon, "1e-8", 1e-20, 1, "of AdamW")},
    {NULL, REAL("clip", clip, "1", 0, 1e9, "largest global gradient norm; 0: no clipping")},
    {NULL, INTEGER("max-skips", max_skips, "5", 1, 1e9, "steps with a non-finite loss or gradient skipped in a row before training stops")},

    {"Speed", CHOICE("attention", attention, "flash", "naive|flash", "changes speed and memory, not results")},
    {NULL, CHOICE("precision", precision, "fp32", "fp32|bf16", "of matmul inputs; sums and weights stay fp32")},

    {"Samples", TEXT("sample", sample, NULL, "no training: continue this text with the run's newest checkpoint (or --init-from)")},
    {NULL, INTEGER("sample-every", sample_every, "0", 0, 1e12, "steps between samples while training; 0: only at the end")},
    {NULL, INTEGER("sample-tokens", sample_tokens, "200", 1, 1e6, "the most to generate")},
    {NULL, REAL("temperature", temperature, "0.8", 0, 100, "0: always the most probable token")},
    {NULL, INTEGER("top-k", top_k, "0", 0, 1e9, "only the k most probable tokens; 0: all")},
    {NULL, REAL("top-p", top_p, "1", 1e-6, 1, "only the most probable tokens that together have this probability")},

    {"Study", FLAG("overfit", overfit, "train on the first batch again and again")},
    {NULL, FLAG("profile", profile, "at the end, a table of where the time of a step went")},
};
// clang-format on
enum { NUM_OPTIONS = sizeof(OPTIONS) / sizeof(OPTIONS[0]) };

static const struct {
    int64_t num_layers, num_heads, channels;
} MODEL_SHAPES[] = {{0, 0, 0}, {12, 12, 768}, {24, 16, 1024}, {36, 20, 1280}, {48, 25, 1600}};

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

// member, floats
#define MODEL_ACTIVATIONS(X)                                                                                 \
    X(embedded, N *C)   /* (N, C) the residual stream before block 0 */                                      \
    X(lnf, N *C)        /* (N, C) */                                                                         \
    X(lnf_mean, N)      /* (N) */                                                                            \
    X(lnf_rstd, N)      /* (N) */                                                                            \
    X(logits, N *Vp)    /* (N, Vp), then dlogits in the same place */                                        \
    X(losses, N)        /* (N) nats of each token */                                                         \
    X(branch, N *C)     /* (N, C) output of a projection, before it joins the residual stream */             \
    X(dresidual, N *C)  /* (N, C) gradient of the residual stream */                                         \
    X(dbranch, N *C)    /* (N, C) */                                                                         \
    X(dnormed, N *C)    /* (N, C) gradient of a layernorm's output, of attention's */                        \
    X(dwide, N * 4 * C) /* (N, 4C) gradient of the pre-activation; (N, 3C) of qkv */                         \
    X(layernorm_partial, layernorm_scratch(C))
#define BLOCK_ACTIVATIONS(X)                                                                                 \
    X(ln1, N *C)      /* (N, C) */                                                                           \
    X(ln1_mean, N)    /* (N) */                                                                              \
    X(ln1_rstd, N)    /* (N) */                                                                              \
    X(qkv, N * 3 * C) /* (N, 3C): (B, T, 3, NH, HS) */                                                       \
    X(attended, N *C) /* (N, C) */                                                                           \
    X(lse, N *NH)     /* (B, NH, T) */                                                                       \
    X(saved, attention_saved_size((AttentionVariant)attention, B, NH, T, T))                                 \
    X(residual_middle, N *C) /* (N, C) after attention */                                                    \
    X(ln2, N *C)             /* (N, C) */                                                                    \
    X(ln2_mean, N)           /* (N) */                                                                       \
    X(ln2_rstd, N)           /* (N) */                                                                       \
    X(up, N * 4 * C)         /* (N, 4C) pre-activation */                                                    \
    X(gelu, N * 4 * C)       /* (N, 4C) */                                                                   \
    X(residual_out, N *C)    /* (N, C) after the MLP */

typedef enum {
    INIT_ZERO,
    INIT_ONE,
    INIT_EMBEDDING,
    INIT_POSITION,
    INIT_MATRIX,
    INIT_RESIDUAL
} Initialisation;

typedef struct {
    const char *name;
    int layer; // -1: of the model, not of a block
    size_t rows, columns;
    Initialisation init;
    int decay;
    size_t offset, size; // floats, in every memory that holds one number a parameter
} Parameter;

#define AS_MEMBER(member, ...) float *member;
typedef struct {
    MODEL_PARAMETERS(AS_MEMBER)
} ModelWeights;
typedef struct {
    BLOCK_PARAMETERS(AS_MEMBER)
} BlockWeights;
typedef struct {
    MODEL_ACTIVATIONS(AS_MEMBER)
} ModelActivations;
typedef struct {
    BLOCK_ACTIVATIONS(AS_MEMBER)
} BlockActivations;
#undef AS_MEMBER

typedef struct {
    ModelWeights model;
    BlockWeights *block; // (L)
    float *memory;       // all of them, num_floats
} Weights;

typedef struct {
    GPTConfig config;
    size_t L, NH, C, HS, V, Vp; // the same numbers under their short names
    Parameter *parameters;
    size_t num_tensors;
    size_t num_parameters; // without padding
    size_t num_floats;     // with padding
    Weights weights, gradients;
    float *moment1, *moment2; // AdamW's m and v, laid out as the weights; NULL without training
    double *norm_partial;

    size_t B, T; // what the activations have room for
    ModelActivations acts;
    BlockActivations *block_acts; // (L)
    float *acts_memory;
    size_t acts_floats;
    int32_t *tokens, *targets; // (B, T)

    MatmulContext matmul;
    int attention;
    uint32_t dropout_threshold; // while training; 256 elsewhere
    uint64_t seed;
    Profile *profile; // NULL: not measured
} GPT;

enum { VOCAB_MULTIPLE = 128, ALIGNMENT = 16 }; // tokens; floats: every tensor begins on a cache line

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
    m->num_floats += round_up(p->size, ALIGNMENT);
    m->num_parameters += p->size;
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

// Memory of one float a parameter, with a pointer to every tensor.
static void weights_allocate(Weights *w, const GPT *m) {
    w->memory = (float *)device_alloc(m->num_floats * sizeof(float));
    w->block = (BlockWeights *)xcalloc(m->L, sizeof(BlockWeights));
    if (w->memory == NULL) die("out of memory: %.1f GB for the parameters", (double)m->num_floats * 4e-9);
    memset(w->memory, 0, m->num_floats * sizeof(float));
    const Parameter *p = m->parameters;
#define POINT(member, ...) w->model.member = w->memory + (p++)->offset;
    MODEL_PARAMETERS(POINT)
#undef POINT
#define POINT(member, ...) w->block[l].member = w->memory + (p++)->offset;
    for (size_t l = 0; l < m->L; l++) {
        BLOCK_PARAMETERS(POINT)
    }
#undef POINT
}

static void weights_free(Weights *w) {
    device_free(w->memory);
    free(w->block);
}

// How many floats the activations of (B, T) take; with `memory`, also points every tensor into it.
static size_t activations_layout(GPT *m, size_t B, size_t T, int attention, float *memory) {
    const size_t N = B * T, C = m->C, NH = m->NH, Vp = m->Vp;
    size_t offset = 0;
#define PLACE(member, floats)                                                                                \
    place->member = memory ? memory + offset : NULL;                                                         \
    offset += round_up(floats, ALIGNMENT);
    {
        ModelActivations *place = &m->acts;
        MODEL_ACTIVATIONS(PLACE)
    }
    for (size_t l = 0; l < m->L; l++) {
        BlockActivations *place = &m->block_acts[l];
        BLOCK_ACTIVATIONS(PLACE)
    }
#undef PLACE
    return offset;
}

static void activations_allocate(GPT *m, size_t B, size_t T) {
    m->B = B;
    m->T = T;
    const double per_token = (double)m->L * ((double)m->C * 17 + (double)(m->NH * T)) + (double)m->Vp;
    if ((double)(B * T) * per_token > 1e16) // sizes must not overflow
        die("out of memory: %.3g GB for the activations", (double)(B * T) * per_token * 4e-9);
    m->acts_floats = activations_layout(m, B, T, m->attention, NULL);
    m->acts_memory = (float *)device_alloc(m->acts_floats * sizeof(float));
    if (m->acts_memory == NULL)
        die("out of memory: %.1f GB for the activations of --batch %zu --sequence-length %zu; try a smaller "
            "batch with "
            "--accumulate",
            (double)m->acts_floats * 4e-9, B, T);
    activations_layout(m, B, T, m->attention, m->acts_memory);
    m->tokens = (int32_t *)device_alloc(B * T * sizeof(int32_t));
    m->targets = (int32_t *)device_alloc(B * T * sizeof(int32_t));
    if (m->tokens == NULL || m->targets == NULL) die("out of memory for a batch of tokens");
}

// Weights only; activations, gradients and moments are allocated by those who need them.
static void gpt_create(GPT *m, const GPTConfig *config, AttentionVariant attention, Precision precision,
                       uint64_t seed) {
    memset(m, 0, sizeof(*m));
    m->config = *config;
    m->L = (size_t)config->num_layers;
    m->NH = (size_t)config->num_heads;
    m->C = (size_t)config->channels;
    m->HS = m->C / m->NH;
    m->V = (size_t)config->vocab_size;
    m->Vp = round_up(m->V, VOCAB_MULTIPLE);
    m->attention = attention;
    m->dropout_threshold = 256;
    m->seed = seed;
    m->block_acts = (BlockActivations *)xcalloc(m->L, sizeof(BlockActivations));
    list_parameters(m);
    weights_allocate(&m->weights, m);
    matmul_context_init(&m->matmul, precision);
}

static void gpt_create_training_state(GPT *m) {
    weights_allocate(&m->gradients, m);
    m->moment1 = (float *)device_alloc(m->num_floats * sizeof(float));
    m->moment2 = (float *)device_alloc(m->num_floats * sizeof(float));
    m->norm_partial = (double *)xmalloc(global_norm_scratch(m->num_floats) * sizeof(double));
    if (m->moment1 == NULL || m->moment2 == NULL) die("out of memory for the optimizer's state");
    device_zero(m->moment1, m->num_floats * sizeof(float), 0);
    device_zero(m->moment2, m->num_floats * sizeof(float), 0);
}

static void gpt_free(GPT *m) {
    matmul_context_free(&m->matmul);
    weights_free(&m->weights);
    weights_free(&m->gradients);
    device_free(m->moment1);
    device_free(m->moment2);
    device_free(m->acts_memory);
    device_free(m->tokens);
    device_free(m->targets);
    free(m->norm_partial);
    free(m->block_acts);
    free(m->parameters);
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
    float *host = (float *)xmalloc(m->num_floats * sizeof(float));
    memset(host, 0, m->num_floats * sizeof(float));
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
    copy_to_device(m->weights.memory, host, m->num_floats * sizeof(float), 0);
    free(host);
}

// ---- forward and backward ---------------------------------------------------------------------------------

// Where a micro-step stands: the key of its dropout masks, how gradients are written.
typedef struct {
    uint32_t step;
    uint32_t first_sequence; // of the micro-step's batch, in the step's global batch
    float loss_scale;        // 1 / number of tokens in the step
    MatmulMode mode;         // the first micro-step overwrites weight gradients, later ones add
} MicroStep;

static Dropout dropout_of(const GPT *m, RandomStream stream, size_t layer, const MicroStep *s) {
    return dropout_make(m->dropout_threshold, m->seed, stream, (uint32_t)layer, s->step, s->first_sequence);
}

static Attention attention_of(const GPT *m, size_t layer, const MicroStep *s) {
    return attention_packed(m->B, m->T, m->NH, m->NH, m->HS,
                            dropout_of(m, RANDOM_ATTENTION_DROPOUT, layer, s));
}

// Adds the branch to the residual stream after block l's MLP, and normalises for what comes next: block l +
// 1's attention, or the head.
static void join_and_normalise(GPT *m, size_t l, const MicroStep *s) {
    const ModelActivations *a = &m->acts;
    BlockActivations *b = &m->block_acts[l];
    Dropout dropout = dropout_of(m, RANDOM_MLP_RESIDUAL, l, s);
    int last = l + 1 == m->L;
    BlockActivations *next = last ? NULL : &m->block_acts[l + 1];
    layernorm_forward(b->residual_out, last ? a->lnf : next->ln1, last ? a->lnf_mean : next->ln1_mean,
                      last ? a->lnf_rstd : next->ln1_rstd, b->residual_middle, a->branch,
                      last ? m->weights.model.lnfw : m->weights.block[l + 1].ln1w,
                      last ? m->weights.model.lnfb : m->weights.block[l + 1].ln1b, m->B, m->T, m->C, &dropout,
                      0);
}

static void block_forward(GPT *m, size_t l, const MicroStep *s) {
    const size_t N = m->B * m->T, C = m->C;
    const BlockWeights *w = &m->weights.block[l];
    BlockActivations *b = &m->block_acts[l];
    float *branch = m->acts.branch;
    const float *residual_in = l == 0 ? m->acts.embedded : m->block_acts[l - 1].residual_out;
    Attention attention = attention_of(m, l, s);
    Dropout dropout = dropout_of(m, RANDOM_ATTENTION_RESIDUAL, l, s);

    matmul_forward(&m->matmul, b->qkv, b->ln1, w->qkvw, w->qkvb, N, C, 3 * C, 0);
    profile_lap(m->profile, LAP_QKV, PASS_FORWARD);
    attention_forward((AttentionVariant)m->attention, b->attended, b->lse, b->saved, b->qkv, b->qkv + C,
                      b->qkv + 2 * C, &attention, 0);
    profile_lap(m->profile, LAP_ATTENTION, PASS_FORWARD);
    matmul_forward(&m->matmul, branch, b->attended, w->projw, w->projb, N, C, C, 0);
    profile_lap(m->profile, LAP_PROJECTION, PASS_FORWARD);
    layernorm_forward(b->residual_middle, b->ln2, b->ln2_mean, b->ln2_rstd, residual_in, branch, w->ln2w,
                      w->ln2b, m->B, m->T, C, &dropout, 0);
    profile_lap(m->profile, LAP_LAYERNORM, PASS_FORWARD);
    matmul_gelu_forward(&m->matmul, b->gelu, b->up, b->ln2, w->upw, w->upb, N, C, 4 * C, 0);
    profile_lap(m->profile, LAP_MLP_UP, PASS_FORWARD);
    matmul_forward(&m->matmul, branch, b->gelu, w->downw, w->downb, N, 4 * C, C, 0);
    profile_lap(m->profile, LAP_MLP_DOWN, PASS_FORWARD);
    join_and_normalise(m, l, s);
    profile_lap(m->profile, LAP_LAYERNORM, PASS_FORWARD);
}

// From m->tokens to m->acts.logits.
static void gpt_forward(GPT *m, const MicroStep *s) {
    const ModelWeights *w = &m->weights.model;
    const ModelActivations *a = &m->acts;
    BlockActivations *first = &m->block_acts[0];
    Dropout dropout = dropout_of(m, RANDOM_EMBEDDING_DROPOUT, 0, s);

    profile_start(m->profile);
    embedding_forward(a->embedded, m->tokens, w->wte, w->wpe, m->B, m->T, m->C, &dropout, 0);
    profile_lap(m->profile, LAP_EMBEDDING, PASS_FORWARD);
    layernorm_forward(NULL, first->ln1, first->ln1_mean, first->ln1_rstd, a->embedded, NULL,
                      m->weights.block[0].ln1w, m->weights.block[0].ln1b, m->B, m->T, m->C, &dropout, 0);
    profile_lap(m->profile, LAP_LAYERNORM, PASS_FORWARD);
    for (size_t l = 0; l < m->L; l++) block_forward(m, l, s);
    matmul_head_forward(&m->matmul, a->logits, a->lnf, w->wte, m->B * m->T, m->C, m->Vp, 0);
    profile_lap(m->profile, LAP_HEAD, PASS_FORWARD);
}

// On entry acts.dbranch is the gradient of the block's MLP branch, acts.dresidual that of its output; on exit
// the same of the block before.
static void block_backward(GPT *m, size_t l, const MicroStep *s) {
    const size_t N = m->B * m->T, C = m->C;
    const BlockWeights *w = &m->weights.block[l], *g = &m->gradients.block[l];
    const BlockActivations *b = &m->block_acts[l];
    const ModelActivations *a = &m->acts;
    const float *residual_in = l == 0 ? a->embedded : m->block_acts[l - 1].residual_out;
    Attention attention = attention_of(m, l, s);
    Dropout dropout_attention = dropout_of(m, RANDOM_ATTENTION_RESIDUAL, l, s);
    Dropout dropout_mlp = dropout_of(m, RANDOM_MLP_RESIDUAL, l == 0 ? 0 : l - 1, s); // of the block before

    matmul_backward(&m->matmul, a->dwide, g->downw, g->downb, a->dbranch, b->gelu, w->downw, b->up, N, 4 * C,
                    C, s->mode, 0);
    profile_lap(m->profile, LAP_MLP_DOWN, PASS_BACKWARD);
    matmul_backward(&m->matmul, a->dnormed, g->upw, g->upb, a->dwide, b->ln2, w->upw, NULL, N, C, 4 * C,
                    s->mode, 0);
    profile_lap(m->profile, LAP_MLP_UP, PASS_BACKWARD);
    layernorm_backward(a->dresidual, a->dbranch, g->ln2w, g->ln2b, a->layernorm_partial, a->dnormed,
                       b->residual_middle, b->ln2_mean, b->ln2_rstd, w->ln2w, m->B, m->T, C,
                       &dropout_attention, 0);
    profile_lap(m->profile, LAP_LAYERNORM, PASS_BACKWARD);
    matmul_backward(&m->matmul, a->dnormed, g->projw, g->projb, a->dbranch, b->attended, w->projw, NULL, N, C,
                    C, s->mode, 0);
    profile_lap(m->profile, LAP_PROJECTION, PASS_BACKWARD);
    attention_backward((AttentionVariant)m->attention, a->dwide, a->dwide + C, a->dwide + 2 * C, a->dnormed,
                       b->qkv, b->qkv + C, b->qkv + 2 * C, b->attended, b->lse, b->saved, &attention, 0);
    profile_lap(m->profile, LAP_ATTENTION, PASS_BACKWARD);
    matmul_backward(&m->matmul, a->dnormed, g->qkvw, g->qkvb, a->dwide, b->ln1, w->qkvw, NULL, N, C, 3 * C,
                    s->mode, 0);
    profile_lap(m->profile, LAP_QKV, PASS_BACKWARD);
    layernorm_backward(a->dresidual, l == 0 ? NULL : a->dbranch, g->ln1w, g->ln1b, a->layernorm_partial,
                       a->dnormed, residual_in, b->ln1_mean, b->ln1_rstd, w->ln1w, m->B, m->T, C,
                       &dropout_mlp, 0);
    profile_lap(m->profile, LAP_LAYERNORM, PASS_BACKWARD);
}

// From the logits that gpt_forward left to all gradients; losses go to acts.losses.
static void gpt_backward(GPT *m, const MicroStep *s) {
    const size_t N = m->B * m->T;
    const ModelActivations *a = &m->acts;
    const ModelWeights *w = &m->weights.model, *g = &m->gradients.model;
    Dropout dropout_mlp = dropout_of(m, RANDOM_MLP_RESIDUAL, m->L - 1, s);
    Dropout dropout_embedding = dropout_of(m, RANDOM_EMBEDDING_DROPOUT, 0, s);

    cross_entropy_backward(a->losses, a->logits, m->targets, s->loss_scale, N, m->V, m->Vp, 0);
    profile_lap(m->profile, LAP_LOSS, PASS_BACKWARD);
    matmul_head_backward(&m->matmul, a->dnormed, g->wte, a->logits, a->lnf, w->wte, N, m->C, m->Vp, s->mode,
                         0);
    profile_lap(m->profile, LAP_HEAD, PASS_BACKWARD);
    device_zero(a->dresidual, N * m->C * sizeof(float), 0);
    layernorm_backward(a->dresidual, a->dbranch, g->lnfw, g->lnfb, a->layernorm_partial, a->dnormed,
                       m->block_acts[m->L - 1].residual_out, a->lnf_mean, a->lnf_rstd, w->lnfw, m->B, m->T,
                       m->C, &dropout_mlp, 0);
    profile_lap(m->profile, LAP_LAYERNORM, PASS_BACKWARD);
    for (size_t l = m->L; l-- > 0;) block_backward(m, l, s);
    embedding_backward(g->wte, g->wpe, a->dresidual, m->tokens, m->B, m->T, m->C, &dropout_embedding, 0);
    profile_lap(m->profile, LAP_EMBEDDING, PASS_BACKWARD);
}

// Zeroes the gradients that every micro-step adds to: all but the matrices of matmul.
static void gpt_start_gradients(GPT *m) {
    for (size_t t = 0; t < m->num_tensors; t++) {
        const Parameter *p = &m->parameters[t];
        int is_matmul = p->rows > 0 && m->gradients.memory + p->offset != m->gradients.model.wpe;
        if (!is_matmul) device_zero(m->gradients.memory + p->offset, p->size * sizeof(float), 0);
    }
}

// AdamW on every tensor, with the decay of the parameter table.
static void gpt_update(GPT *m, const Settings *o, double learning_rate, double clip_factor, int64_t update) {
    for (size_t t = 0; t < m->num_tensors; t++) {
        const Parameter *p = &m->parameters[t];
        AdamW adamw = adamw_make(learning_rate, o->beta1, o->beta2, o->epsilon,
                                 p->decay ? o->weight_decay : 0.0, clip_factor, update);
        adamw_update(m->weights.memory + p->offset, m->moment1 + p->offset, m->moment2 + p->offset,
                     m->gradients.memory + p->offset, p->size, adamw, 0);
    }
}

static double sum_of(const float *x, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += (double)x[i];
    return sum;
}

// Of one step: multiply-adds count two, causal attention half.
static double flop_per_token(const GPT *m, size_t T) {
    double L = (double)m->L, C = (double)m->C, V = (double)m->V;
    return 3 * (L * (24 * C * C + 2 * (double)T * C) + 2 * C * V);
}

// ---- signals ----------------------------------------------------------------------------------------------

static volatile sig_atomic_t stop_signal; // SIGINT, SIGTERM or SIGHUP, once it came

// The first one ends training after the step; a second one ends the program at once.
static void on_signal(int number) {
    stop_signal = number;
    signal(number, SIG_DFL);
}

static void handle_signals(void) {
    signal(SIGINT, on_signal);
    signal(SIGTERM, on_signal);
    signal(SIGHUP, on_signal); // a connection that is lost
    signal(SIGPIPE, SIG_IGN);  // a reader of the output that went away
}

// ---- generating text --------------------------------------------------------------------------------------

// Keys and values of the tokens seen so far, and activations for a few new tokens.
typedef struct {
    size_t capacity;    // tokens
    float *keys_values; // (L, capacity, 2, C)
    float *residual, *normed, *qkv, *attended, *wide, *gelu, *logits, *statistics;
} Cache;

static void cache_create(Cache *cache, const GPT *m) {
    const size_t T = (size_t)m->config.max_sequence_length, C = m->C;
    cache->capacity = T;
    cache->keys_values = (float *)device_alloc(m->L * T * 2 * C * sizeof(float));
    cache->residual = (float *)device_alloc(T * C * sizeof(float));
    cache->normed = (float *)device_alloc(T * C * sizeof(float));
    cache->qkv = (float *)device_alloc(T * 3 * C * sizeof(float));
    cache->attended = (float *)device_alloc(T * C * sizeof(float));
    cache->wide = (float *)device_alloc(T * 4 * C * sizeof(float));
    cache->gelu = (float *)device_alloc(T * 4 * C * sizeof(float));
    cache->logits = (float *)device_alloc(m->Vp * sizeof(float));
    cache->statistics = (float *)device_alloc((2 + m->NH) * T * sizeof(float)); // mean, rstd, lse
    if (cache->keys_values == NULL || cache->residual == NULL || cache->normed == NULL ||
        cache->qkv == NULL || cache->attended == NULL || cache->wide == NULL || cache->gelu == NULL ||
        cache->logits == NULL || cache->statistics == NULL)
        die("out of memory for generating text");
}

static void cache_free(Cache *cache) {
    float *all[] = {cache->keys_values, cache->residual, cache->normed, cache->qkv,       cache->attended,
                    cache->wide,        cache->gelu,     cache->logits, cache->statistics};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) device_free(all[i]);
}

// Block l on `count` new tokens after `past` cached ones.
static void block_generate(GPT *m, Cache *c, size_t l, size_t count, size_t past) {
    const size_t C = m->C;
    const BlockWeights *w = &m->weights.block[l];
    float *mean = c->statistics, *rstd = mean + c->capacity, *lse = rstd + c->capacity;
    float *keys_values = c->keys_values + l * c->capacity * 2 * C;
    MicroStep none = {0, 0, 0, MATMUL_OVERWRITE};
    Dropout off = dropout_of(m, RANDOM_ATTENTION_DROPOUT, l, &none);

    layernorm_forward(NULL, c->normed, mean, rstd, c->residual, NULL, w->ln1w, w->ln1b, 1, count, C, &off, 0);
    matmul_forward(&m->matmul, c->qkv, c->normed, w->qkvw, w->qkvb, count, C, 3 * C, 0);
    for (size_t t = 0; t < count; t++)
        memcpy(keys_values + (past + t) * 2 * C, c->qkv + t * 3 * C + C, 2 * C * sizeof(float));
    Attention a = attention_packed(1, count, m->NH, m->NH, m->HS, off);
    a.Tk = past + count;
    a.kv_token = 2 * C;
    a.kv_sequence = c->capacity * 2 * C;
    attention_flash_forward_cpu(c->attended, lse, c->qkv, keys_values, keys_values + C, &a);
    matmul_forward(&m->matmul, c->qkv, c->attended, w->projw, w->projb, count, C, C, 0);
    layernorm_forward(c->residual, c->normed, mean, rstd, c->residual, c->qkv, w->ln2w, w->ln2b, 1, count, C,
                      &off, 0);
    matmul_gelu_forward(&m->matmul, c->gelu, c->wide, c->normed, w->upw, w->upb, count, C, 4 * C, 0);
    matmul_forward(&m->matmul, c->qkv, c->gelu, w->downw, w->downb, count, 4 * C, C, 0);
    for (size_t i = 0; i < count * C; i++) c->residual[i] += c->qkv[i];
}

// Logits (V) of the token after `count` new tokens that stand at position `past`.
static const float *gpt_generate(GPT *m, Cache *c, const int32_t *tokens, size_t count, size_t past) {
    const size_t C = m->C;
    MicroStep none = {0, 0, 0, MATMUL_OVERWRITE};
    Dropout off = dropout_of(m, RANDOM_EMBEDDING_DROPOUT, 0, &none);
    uint32_t threshold = m->dropout_threshold;
    float *last = c->residual + (count - 1) * C;
    m->dropout_threshold = off.threshold = 256;
    embedding_forward(c->residual, tokens, m->weights.model.wte, m->weights.model.wpe + past * C, 1, count, C,
                      &off, 0);
    for (size_t l = 0; l < m->L; l++) block_generate(m, c, l, count, past);
    layernorm_forward(NULL, c->normed, c->statistics, c->statistics + 1, last, NULL, m->weights.model.lnfw,
                      m->weights.model.lnfb, 1, 1, C, &off, 0);
    matmul_head_forward(&m->matmul, c->logits, c->normed, m->weights.model.wte, 1, C, m->Vp, 0);
    m->dropout_threshold = threshold;
    return c->logits;
}

// The prompt's tokens, after an end-of-text where the tokenizer has one: documents begin with it. A text is
// never empty.
static void encode_prompt(TokenList *list, Tokenizer *tokenizer, const char *prompt) {
    int32_t end = tokenizer_end_of_text(tokenizer);
    list->capacity = 16;
    list->ids = (int32_t *)xmalloc(list->capacity * sizeof(int32_t));
    if (end >= 0) list->ids[list->count++] = end;
    tokenizer_encode(tokenizer, prompt, strlen(prompt), NULL, list);
    if (list->count == 0) tokenizer_encode(tokenizer, "\n", 1, NULL, list);
}

// Prints the prompt's continuation as it is generated; returns the number of tokens. `sample` numbers the
// samples of one seed. When the positions are used up, the second half of the text is kept as context.
static int64_t print_sample(GPT *m, Tokenizer *tokenizer, const Settings *o, const char *prompt,
                            uint32_t sample) {
    Cache cache;
    TokenList text = {NULL, 0, 0};
    encode_prompt(&text, tokenizer, prompt);
    cache_create(&cache, m);
    size_t start = text.count > cache.capacity ? text.count - cache.capacity : 0, past = 0;
    int64_t generated = 0;
    fputs(prompt, stdout);
    while (generated < o->sample_tokens && !stop_signal) {
        if (text.count - start > cache.capacity) {
            start = text.count - cache.capacity / 2 - 1;
            past = 0;
        }
        const float *logits = gpt_generate(m, &cache, text.ids + start + past, text.count - start - past,
                                           past);
        past = text.count - start;
        if (!isfinite(sum_of(logits, m->V))) {
            printf("\n");
            die("the model's logits are not finite: its weights have diverged");
        }
        Philox random = philox(philox_key((uint64_t)o->seed, RANDOM_SAMPLING, 0), (uint32_t)text.count,
                               sample, 0, 0);
        int32_t token = sample_token(logits, m->V, o->temperature, (size_t)o->top_k, o->top_p,
                                     uniform_from_bits(random.v[0]));
        generated++;
        if (token == tokenizer_end_of_text(tokenizer)) break;
        size_t size;
        const char *bytes = tokenizer_bytes(tokenizer, token, &size);
        fwrite(bytes, 1, size, stdout);
        fflush(stdout);
        if (text.count == text.capacity)
            text.ids = (int32_t *)xrealloc(text.ids, (text.capacity *= 2) * sizeof(int32_t));
        text.ids[text.count++] = token;
    }
    printf("\n");
    free(text.ids);
    cache_free(&cache);
    return generated;
}

// ---- validation -------------------------------------------------------------------------------------------

// Everything a run holds on to.
typedef struct {
    Settings options;
    GPT model;
    Tokenizer *tokenizer; // or NULL
    ShardSet train, validation;
    Loader *loader;
    Metrics metrics;
    TrainingState state;
    int64_t saved_step; // of the newest checkpoint; -1: none yet
} Trainer;

typedef struct {
    double nats, bytes;
    int64_t tokens, cut;
} Score;

// Bytes of text that a batch's targets stand for; end of text stands for none.
static double bytes_of(const Tokenizer *tokenizer, const int32_t *targets, size_t count) {
    double bytes = 0;
    for (size_t i = 0; i < count && tokenizer != NULL; i++) {
        size_t size = 0;
        if (targets[i] == IGNORE_TARGET || targets[i] == tokenizer_end_of_text(tokenizer)) continue;
        if (tokenizer_bytes(tokenizer, targets[i], &size) != NULL) bytes += (double)size;
    }
    return bytes;
}

// Adds the batch that stands in m->tokens and m->targets.
static void score_batch(Trainer *t, Score *score) {
    GPT *m = &t->model;
    const size_t N = m->B * m->T;
    MicroStep none = {0, 0, 0, MATMUL_OVERWRITE};
    uint32_t threshold = m->dropout_threshold;
    Profile *profile = m->profile;
    m->dropout_threshold = 256;
    m->profile = NULL;
    gpt_forward(m, &none);
    cross_entropy_forward(m->acts.losses, m->acts.logits, m->targets, N, m->V, m->Vp, 0);
    m->dropout_threshold = threshold;
    m->profile = profile;
    score->nats += sum_of(m->acts.losses, N);
    score->bytes += bytes_of(t->tokenizer, m->targets, N);
    for (size_t i = 0; i < N; i++) score->tokens += m->targets[i] != IGNORE_TARGET;
}

// The first validation batches in the order of the shards.
static int score_windows(Trainer *t, Score *score, Error *error) {
    GPT *m = &t->model;
    LoaderConfig config = {(int64_t)m->B, (int64_t)m->T, (int32_t)m->V, 0, 0, 0, 0};
    Loader *loader = loader_open(&t->validation, &config, error);
    if (loader == NULL) return -1;
    const int64_t B = (int64_t)m->B, sequences = (int64_t)loader_sequences_per_epoch(loader);
    int result = 0;
    for (int64_t i = 0; i < t->options.validation_batches && i * B < sequences && result == 0 && !stop_signal;
         i++) {
        result = loader_next(loader, m->tokens, m->targets, error);
        for (int64_t row = sequences - i * B; row < B; row++) // of the next epoch
            for (size_t c = 0; c < m->T; c++) m->targets[(size_t)row * m->T + c] = IGNORE_TARGET;
        if (result == 0) score_batch(t, score);
    }
    loader_close(loader);
    return result;
}

// The first validation documents, each whole from its start, its end included.
static int score_documents(Trainer *t, Score *score, Error *error) {
    GPT *m = &t->model;
    DocumentReader reader;
    int rows = 1;
    documents_open(&reader, &t->validation, tokenizer_end_of_text(t->tokenizer));
    for (int64_t batch = 0; rows > 0 && batch < t->options.validation_batches && !stop_signal; batch++) {
        rows = documents_batch(&reader, (int32_t)m->V, m->B, m->T, m->tokens, m->targets, &score->cut, error);
        if (rows > 0) score_batch(t, score);
    }
    documents_close(&reader);
    return rows < 0 ? -1 : 0;
}

static int validate(Trainer *t, Error *error) {
    double started = seconds_now();
    Score score = {0, 0, 0, 0};
    if ((t->options.validate_documents ? score_documents : score_windows)(t, &score, error) != 0) return -1;
    if (stop_signal) return 0; // half a score is none
    if (score.tokens == 0) return fail(error, "'%s' has no documents to validate on", t->options.validation);
    ValidationMetrics v = {t->state.step,
                           score.nats / (double)score.tokens,
                           score.bytes > 0 ? score.nats / log(2.0) / score.bytes : -1,
                           t->options.validation_floor,
                           score.tokens,
                           score.cut,
                           seconds_now() - started};
    return metrics_validation(&t->metrics, &v, error);
}

// ---- checkpoints ------------------------------------------------------------------------------------------

// The tensors of `memory`, one float a parameter, under Hugging Face's names after `prefix`. Caller frees.
static NamedTensor *name_tensors(const GPT *m, const char *prefix, float *memory) {
    NamedTensor *tensors = (NamedTensor *)xcalloc(m->num_tensors, sizeof(NamedTensor));
    for (size_t i = 0; i < m->num_tensors; i++) {
        const Parameter *p = &m->parameters[i];
        NamedTensor *t = &tensors[i];
        if (p->layer < 0)
            snprintf(t->name, sizeof(t->name), "%s%s", prefix, p->name);
        else
            snprintf(t->name, sizeof(t->name), "%sh.%d.%s", prefix, p->layer, p->name);
        t->data = memory + p->offset;
        t->rows = i == 0 ? m->V : p->rows; // the embedding without its padding
        t->columns = p->columns;
    }
    return tensors;
}

// The optimizer's moments as one list of tensors. Caller frees.
static NamedTensor *name_moments(const GPT *m) {
    const size_t n = m->num_tensors;
    NamedTensor *first = name_tensors(m, "moment1.", m->moment1),
                *second = name_tensors(m, "moment2.", m->moment2);
    first = (NamedTensor *)xrealloc(first, 2 * n * sizeof(NamedTensor));
    memcpy(first + n, second, n * sizeof(NamedTensor));
    free(second);
    return first;
}

static int save_checkpoint(Trainer *t, Error *error) {
    GPT *m = &t->model;
    CheckpointWriter writer;
    if (t->saved_step == t->state.step) return 0;
    if (checkpoint_begin(&writer, t->options.run, t->state.step, error) != 0) return -1;
    NamedTensor *weights = name_tensors(m, "", m->weights.memory), *moments = name_moments(m);
    char *config = gpt_config_text(&m->config), *state = training_state_text(&t->state);
    char *tokenizer = checkpoint_path(&writer, "tokenizer.json");
    int result = checkpoint_tensors(&writer, "model.safetensors", weights, m->num_tensors, error);
    if (result == 0)
        result = checkpoint_tensors(&writer, "optimizer.safetensors", moments, 2 * m->num_tensors, error);
    if (result == 0) result = checkpoint_text(&writer, "config.json", config, error);
    if (result == 0) result = checkpoint_text(&writer, "training_state.json", state, error);
    if (result == 0 && t->tokenizer != NULL) result = tokenizer_save(t->tokenizer, tokenizer, error);
    if (result == 0)
        result = checkpoint_commit(&writer, t->options.keep, error);
    else
        checkpoint_abandon(&writer);
    if (result == 0) t->saved_step = t->state.step;
    free(weights), free(moments), free(config), free(state), free(tokenizer);
    return result;
}

static int load_weights(GPT *m, const char *folder, Error *error) {
    char *path = format_text("%s/model.safetensors", folder);
    NamedTensor *weights = name_tensors(m, "", m->weights.memory);
    int result = safetensors_read(path, weights, m->num_tensors, error);
    free(weights);
    free(path);
    return result;
}

static int load_training_state(Trainer *t, const char *folder, Error *error) {
    GPT *m = &t->model;
    char *path = format_text("%s/optimizer.safetensors", folder);
    NamedTensor *moments = name_moments(m);
    int result = safetensors_read(path, moments, 2 * m->num_tensors, error);
    if (result == 0) result = training_state_read(folder, &t->state, error);
    t->saved_step = t->state.step;
    t->state.skipped_in_row = 0; // a new start, perhaps with other options
    free(moments);
    free(path);
    return result;
}

// ---- the loop ---------------------------------------------------------------------------------------------

// Forward and backward of all micro-steps; the mean loss in nats.
static int accumulate_gradients(Trainer *t, double *loss, Error *error) {
    GPT *m = &t->model;
    const Settings *o = &t->options;
    *loss = 0;
    gpt_start_gradients(m);
    for (int64_t micro = 0; micro < o->accumulate; micro++) {
        profile_start(m->profile);
        if (loader_next(t->loader, m->tokens, m->targets, error) != 0) return -1;
        t->state.position = (int64_t)loader_position(t->loader);
        profile_lap(m->profile, LAP_DATA, PASS_FORWARD);
        MicroStep s = {(uint32_t)t->state.step, (uint32_t)(micro * o->batch),
                       (float)(1.0 / ((double)m->B * (double)m->T * (double)o->accumulate)),
                       micro == 0 ? MATMUL_OVERWRITE : MATMUL_ACCUMULATE};
        gpt_forward(m, &s);
        gpt_backward(m, &s);
        *loss += sum_of(m->acts.losses, m->B * m->T) / ((double)m->B * (double)m->T * (double)o->accumulate);
    }
    return 0;
}

static int train_step(Trainer *t, Error *error) {
    GPT *m = &t->model;
    const Settings *o = &t->options;
    StepMetrics s = {t->state.step + 1, o->batch * o->sequence_length * o->accumulate, 0, 0, 0, 0, 0};
    double started = seconds_now();
    if (accumulate_gradients(t, &s.loss, error) != 0) return -1;
    profile_start(m->profile);
    s.gradient_norm = global_norm(m->gradients.memory, m->num_floats, m->norm_partial, 0);
    LearningRate schedule = {
        (Schedule)o->schedule, o->learning_rate, o->final_learning_rate, o->steps, o->warmup, o->cooldown};
    s.learning_rate = learning_rate_at(&schedule, s.step);
    s.skipped = !isfinite(s.loss) || !isfinite(s.gradient_norm);
    if (!s.skipped) {
        double clip = o->clip > 0 && s.gradient_norm > o->clip ? o->clip / s.gradient_norm : 1;
        gpt_update(m, o, s.learning_rate, clip, s.step - t->state.skipped);
    }
    profile_lap(m->profile, LAP_OPTIMIZER, PASS_BACKWARD);
    s.seconds = seconds_now() - started;
    t->state.step++;
    t->state.skipped += s.skipped;
    t->state.skipped_in_row = s.skipped ? t->state.skipped_in_row + 1 : 0;
    return metrics_step(&t->metrics, &s, error);
}

static void show_samples(Trainer *t) {
    if (t->tokenizer == NULL) return;
    metrics_end_line(&t->metrics);
    printf("---- sample after step %" PRId64 ":\n", t->state.step);
    print_sample(&t->model, t->tokenizer, &t->options, "", (uint32_t)t->state.step);
    printf("----\n");
}

// Is it time for something that happens every `every` steps (0: never)?
static int is_due(const Trainer *t, int64_t every) {
    return every > 0 && t->state.step % every == 0;
}

static int train(Trainer *t, Error *error) {
    const Settings *o = &t->options;
    int64_t started_at = t->state.step;
    if (started_at >= o->steps) {
        printf("this run has done its %" PRId64 " steps; --steps N goes on to more\n", o->steps);
    }
    while (t->state.step < o->steps && !stop_signal) {
        if (train_step(t, error) != 0) return -1;
        if (stop_signal) break;
        if (t->state.skipped_in_row >= o->max_skips) {
            if (t->saved_step < 0 && save_checkpoint(t, error) != 0) return -1;
            return fail(
                error,
                "%" PRId64 " steps in a row had a non-finite loss or gradient; stopped after step %" PRId64
                ", the newest checkpoint is that of step %" PRId64 ": resume with a lower --learning-rate",
                t->state.skipped_in_row, t->state.step, t->saved_step);
        }
        int last = t->state.step == o->steps;
        if (t->validation.count > 0 && (last || is_due(t, o->validate_every)) && validate(t, error) != 0)
            return -1;
        if (!last && is_due(t, o->sample_every)) show_samples(t);
        // While steps are skipped, the checkpoints that are kept must not give way to ones that may be no better.
        int save_now = last || (is_due(t, o->save_every) && t->state.skipped_in_row == 0);
        if (save_now && save_checkpoint(t, error) != 0) return -1;
    }
    metrics_end_line(&t->metrics);
    if (t->state.step < o->steps || t->saved_step != t->state.step) {
        if (save_checkpoint(t, error) != 0) return -1;
        if (stop_signal)
            printf("interrupted after step %" PRId64 "; go on with: ./train_gpt --run %s --resume\n",
                   t->state.step, o->run);
        return 0;
    }
    show_samples(t);
    if (t->model.profile != NULL && t->state.step > started_at)
        profile_print(t->model.profile, (int)(t->state.step - started_at), t->metrics.peak);
    return 0;
}

// ---- setting up -------------------------------------------------------------------------------------------

static void print_banner(const Trainer *t, double peak) {
    const GPT *m = &t->model;
    const Settings *o = &t->options;
    double weights = (double)m->num_floats * 4e-6, acts = (double)m->acts_floats * 4e-6;
    int64_t per_step = o->batch * o->sequence_length * o->accumulate;
    printf("model       %zu layers, %zu heads, %zu channels, %" PRId64
           " positions, vocabulary %zu: %.2f M parameters\n",
           m->L, m->NH, m->C, m->config.max_sequence_length, m->V, (double)m->num_parameters * 1e-6);
    printf("memory      weights %.1f MB, gradients %.1f MB, optimizer %.1f MB, activations %.1f MB (%.1f kB "
           "a token)\n",
           weights, weights, 2 * weights, acts, acts * 1e3 / (double)(m->B * m->T));
    printf("data        %.3f M tokens in %zu shards, %" PRId64 " tokens a step, this run sees %.2f epochs\n",
           (double)t->train.num_tokens * 1e-6, t->train.count, per_step,
           (double)(o->steps * o->batch * o->accumulate) / (double)loader_sequences_per_epoch(t->loader));
    printf("machine     %d threads, %s, %s matmul inputs, measured peak %.0f GFLOP/s, attention %s\n",
           omp_get_max_threads(), SIMD_NAME, option_choice_name(OPTIONS, NUM_OPTIONS, o, "precision"), peak,
           m->attention == ATTENTION_FLASH ? "flash" : "naive");
    if (m->dropout_threshold < 256)
        printf("dropout     %.4f (asked for %g)\n", 1 - m->dropout_threshold / 256.0, o->dropout);
    fflush(stdout);
}

// Shape of the model: by name, from the options, or of the folder that weights come from.
static int model_config(const Settings *o, const char *folder, const Tokenizer *tokenizer, GPTConfig *config,
                        Error *error) {
    int64_t V = tokenizer ? tokenizer_vocab_size(tokenizer) : 0;
    if (folder != NULL) {
        if (gpt_config_read(folder, config, error) != 0) return -1;
    } else {
        config->num_layers = o->model ? MODEL_SHAPES[o->model].num_layers : o->num_layers;
        config->num_heads = o->model ? MODEL_SHAPES[o->model].num_heads : o->num_heads;
        config->channels = o->model ? MODEL_SHAPES[o->model].channels : o->channels;
        config->max_sequence_length = o->max_sequence_length ? o->max_sequence_length
                                      : o->model             ? 1024
                                                             : o->sequence_length;
        config->vocab_size = o->vocab_size ? o->vocab_size : V;
    }
    config->end_of_text = tokenizer ? tokenizer_end_of_text(tokenizer) : -1;
    if (config->vocab_size < 1)
        return fail(error, "the size of the vocabulary is not known: give --tokenizer or --vocab-size");
    if (V > 0 && V != config->vocab_size)
        return fail(error, "the tokenizer has %" PRId64 " tokens, the model %" PRId64, V, config->vocab_size);
    return gpt_config_check(config, ATTENTION_LARGEST_HEAD, error);
}

static int contradicts(const char *option, int64_t value, int64_t wanted) {
    return options_given(OPTIONS, NUM_OPTIONS, option) && value != wanted;
}

// Options that contradict each other or what the machine can do.
static int check_options(const Settings *o, Error *error) {
    if (dropout_threshold(o->dropout) == 0)
        return fail(error, "--dropout %g rounds to dropping nothing or everything; it has steps of 1/256",
                    o->dropout);
    if (o->precision == PRECISION_BF16 && !matmul_bf16_available())
        return fail(error,
                    "--precision bf16 needs a processor with AVX512-BF16, and a build for it; use fp32");
    if (o->init_from != NULL && o->resume)
        return fail(error, "--init-from and --resume contradict each other");
    if (o->model && !o->resume &&
        (contradicts("num-layers", o->num_layers, MODEL_SHAPES[o->model].num_layers) ||
         contradicts("num-heads", o->num_heads, MODEL_SHAPES[o->model].num_heads) ||
         contradicts("channels", o->channels, MODEL_SHAPES[o->model].channels)))
        return fail(
            error,
            "--model sets the shape; give --num-layers, --num-heads and --channels only with --model free");
    if (o->validate_documents && o->tokenizer == NULL)
        return fail(error, "--validate-documents needs --tokenizer, to know the end of a document");
    if (o->sample == NULL && o->train == NULL)
        return fail(error, "nothing to train on: give --train SHARDS; see --help");
    if (o->sample == NULL && o->schedule == SCHEDULE_WSD && o->warmup + o->cooldown > o->steps)
        return fail(error, "--warmup %" PRId64 " and --cooldown %" PRId64 " do not fit into --steps %" PRId64,
                    o->warmup, o->cooldown, o->steps);
    if (o->sample == NULL && !o->resume && o->steps <= o->warmup &&
        options_given(OPTIONS, NUM_OPTIONS, "warmup"))
        return fail(error, "--warmup %" PRId64 " leaves nothing of --steps %" PRId64, o->warmup, o->steps);
    return 0;
}

// The tokenizer of the checkpoint that is resumed, else the one that is given, else the one beside the weights.
static int set_up_tokenizer(Trainer *t, const char *folder, Error *error) {
    const Settings *o = &t->options;
    char *beside = folder ? format_text("%s/tokenizer.json", folder) : NULL;
    if (beside != NULL && !file_exists(beside)) {
        free(beside);
        beside = NULL;
    }
    const char *path = beside != NULL && (o->resume || o->tokenizer == NULL) ? beside : o->tokenizer;
    int result = 0;
    if (path != NULL && (t->tokenizer = tokenizer_load(path, error)) == NULL) result = -1;
    if (result == 0 && path != NULL && path == beside && options_given(OPTIONS, NUM_OPTIONS, "tokenizer")) {
        Tokenizer *given = tokenizer_load(o->tokenizer, error);
        if (given == NULL)
            result = -1;
        else if (tokenizer_checksum(given) != tokenizer_checksum(t->tokenizer))
            result = fail(error, "'%s' is not the tokenizer of the run", o->tokenizer);
        if (given != NULL) tokenizer_free(given);
    }
    free(beside);
    return result;
}

// Tokenizer and model. `folder`: where weights come from, or NULL for fresh ones.
static int set_up_model(Trainer *t, const char *folder, Error *error) {
    Settings *o = &t->options;
    GPTConfig config;
    if (folder != NULL && checkpoint_verify(folder, o->init_from == NULL, error) != 0) return -1;
    if (set_up_tokenizer(t, folder, error) != 0) return -1;
    if (model_config(o, folder, t->tokenizer, &config, error) != 0) return -1;
    if (o->sample == NULL && o->sequence_length > config.max_sequence_length)
        return fail(error, "--sequence-length %" PRId64 " is more than the model's %" PRId64 " positions",
                    o->sequence_length, config.max_sequence_length);
    o->num_layers = config.num_layers; // as they are saved with the run
    o->num_heads = config.num_heads;
    o->channels = config.channels;
    o->max_sequence_length = config.max_sequence_length;
    o->vocab_size = config.vocab_size;
    gpt_create(&t->model, &config, (AttentionVariant)o->attention, (Precision)o->precision,
               (uint64_t)o->seed);
    if (folder != NULL) return load_weights(&t->model, folder, error);
    gpt_initialise(&t->model, o->init_embedding, o->init_matrices);
    return 0;
}

// What would otherwise be found out at the first validation: shards too short, no documents.
static int check_validation(Trainer *t, Error *error) {
    const Settings *o = &t->options;
    LoaderConfig config = {1, o->sequence_length, (int32_t)t->model.V, 0, 0, 0, 0};
    if (t->validation.count == 0) return 0;
    if (!o->validate_documents) {
        Loader *loader = loader_open(&t->validation, &config, error);
        if (loader != NULL) loader_close(loader);
        return loader != NULL ? 0 : -1;
    }
    DocumentReader reader;
    int32_t token;
    size_t count = 0;
    int found = 1;
    documents_open(&reader, &t->validation, tokenizer_end_of_text(t->tokenizer));
    while (found == 1 && count == 0) found = documents_next(&reader, &token, 1, &count, error);
    documents_close(&reader);
    return found == 0   ? fail(error, "'%s' has no documents to validate on", o->validation)
           : found == 1 ? 0
                        : -1;
}

static int open_data(Trainer *t, Error *error) {
    const Settings *o = &t->options;
    LoaderConfig config = {o->batch,          o->sequence_length,          (int32_t)t->model.V,
                           (uint64_t)o->seed, (uint64_t)t->state.position, !o->overfit,
                           o->overfit};
    if (shards_open(&t->train, o->train, error) != 0) return -1;
    if (o->validation != NULL && shards_open(&t->validation, o->validation, error) != 0) return -1;
    if (check_validation(t, error) != 0) return -1;
    t->loader = loader_open(&t->train, &config, error);
    return t->loader != NULL ? 0 : -1;
}

// The run's folder, which one trainer at a time may use; its options for a later --resume.
static int open_run(Trainer *t, Error *error) {
    const Settings *o = &t->options;
    char *earlier = o->resume ? NULL : checkpoint_newest(o->run, error);
    free(earlier);
    if (earlier != NULL)
        return fail(error,
                    "'%s' has checkpoints of an earlier run: go on with --resume, or give another --run",
                    o->run);
    if (folder_create(o->run, error) != 0) return -1;
    char *lock = format_text("%s/lock", o->run), *path = format_text("%s/options.txt", o->run);
    int descriptor = open(lock, O_RDWR | O_CREAT | O_CLOEXEC, 0666),
        result = 0; // open, and so locked, until the end
    FileWriter file;
    if (descriptor < 0)
        result = fail(error, "cannot write '%s': %s", lock, strerror(errno));
    else if (flock(descriptor, LOCK_EX | LOCK_NB) != 0)
        result = fail(error, "another trainer is using '%s'", o->run);
    else
        result = file_writer_open(&file, path, error);
    if (result == 0) {
        Settings saved = *o;
        saved.resume = 0;
        options_write(OPTIONS, NUM_OPTIONS, &saved, file.stream);
        result = file_writer_commit(&file, error);
    }
    free(lock), free(path);
    return result;
}

// All that training needs beside the model. `resume_from`: a checkpoint, or NULL.
static int set_up_training(Trainer *t, const char *resume_from, Error *error) {
    const Settings *o = &t->options;
    GPT *m = &t->model;
    m->dropout_threshold = dropout_threshold(o->dropout);
    gpt_create_training_state(m);
    activations_allocate(m, (size_t)o->batch, (size_t)o->sequence_length);
    if (resume_from != NULL && load_training_state(t, resume_from, error) != 0) return -1;
    if (open_data(t, error) != 0 || open_run(t, error) != 0) return -1;
    double peak = matmul_measure_peak((Precision)o->precision);
    if (o->profile) {
        m->profile = (Profile *)xcalloc(1, sizeof(Profile));
        profile_set_work(m->profile, m->L, m->B * m->T * (size_t)o->accumulate, m->T, m->C, m->Vp,
                         m->num_floats);
    }
    print_banner(t, peak);
    return metrics_open(&t->metrics, o->run, t->state.step, o->steps, flop_per_token(m, m->T), peak, error);
}

// Ends with the error's sentence, but not without the steps that were done.
static void die_saving(Trainer *t, const Error *error) {
    Error second;
    metrics_end_line(&t->metrics);
    if (t->state.step > 0 && t->state.skipped_in_row == 0 && save_checkpoint(t, &second) == 0)
        printf("a checkpoint of step %" PRId64 " is saved\n", t->state.step);
    die("%s", error->text);
}

static void close_down(Trainer *t) {
    metrics_close(&t->metrics);
    if (t->loader != NULL) loader_close(t->loader);
    shards_close(&t->train);
    shards_close(&t->validation);
    free(t->model.profile);
    gpt_free(&t->model);
    if (t->tokenizer != NULL) tokenizer_free(t->tokenizer);
}

// --sample: prints a continuation of the text and how fast it came.
static void run_sample(Trainer *t) {
    if (t->tokenizer == NULL) die("there is no tokenizer beside the weights: give --tokenizer");
    double started = seconds_now();
    int64_t count = print_sample(&t->model, t->tokenizer, &t->options, t->options.sample, 0);
    fprintf(stderr, "%" PRId64 " tokens, %.1f tokens/s\n", count, (double)count / (seconds_now() - started));
}

// Fields that belong to the model: a resumed run cannot change them.
static const char *changed_model_option(const Settings *a, const Settings *b) {
    if (a->model != b->model) return "model";
    if (a->num_layers != b->num_layers) return "num-layers";
    if (a->num_heads != b->num_heads) return "num-heads";
    if (a->channels != b->channels) return "channels";
    if (a->max_sequence_length != b->max_sequence_length) return "max-sequence-length";
    if (a->vocab_size != b->vocab_size) return "vocab-size";
    return NULL;
}

// A resumed run begins with its saved options; those given now win.
static int parse_resumed(Settings *o, int argc, char **argv, Error *error) {
    char *file = format_text("@%s/options.txt", o->run), *words[] = {argv[0], file};
    if (!file_exists(file + 1)) return fail(error, "there is no run to resume in '%s'", o->run);
    options_defaults(OPTIONS, NUM_OPTIONS, o);
    int result = options_parse(OPTIONS, NUM_OPTIONS, o, 2, words, NULL, 0, NULL, error);
    free(file);
    options_forget_given();
    o->init_from = NULL; // the checkpoint has come in its place
    Settings saved = *o;
    if (result == 0) result = options_parse(OPTIONS, NUM_OPTIONS, o, argc, argv, NULL, 0, NULL, error);
    const char *changed = result == 0 ? changed_model_option(&saved, o) : NULL;
    return changed
               ? fail(error, "--%s belongs to the model of the run and cannot change on --resume", changed)
               : result;
}

static int parse_options(Settings *o, int argc, char **argv, Error *error) {
    options_defaults(OPTIONS, NUM_OPTIONS, o);
    int result = options_parse(OPTIONS, NUM_OPTIONS, o, argc, argv, NULL, 0, NULL, error);
    if (result == 0 && o->resume) return parse_resumed(o, argc, argv, error);
    if (!options_given(OPTIONS, NUM_OPTIONS, "warmup") && o->warmup > o->steps / 10)
        o->warmup = o->steps / 10;
    return result;
}

// While libgomp's threads wait for each other they spin, by default for milliseconds; beside other work on
// the machine that makes a step up to five times slower (dev/PERFORMANCE.md). The library reads its limit
// before main, so the program starts once more with it.
static void limit_spinning(char **argv) {
    if (getenv("GOMP_SPINCOUNT") != NULL || getenv("OMP_WAIT_POLICY") != NULL) return;
    setenv("GOMP_SPINCOUNT", "1000", 1);
    execv("/proc/self/exe", argv); // where that cannot be had, things go on as they are
}

int main(int argc, char **argv) {
    static Trainer trainer;
    Trainer *t = &trainer;
    Error error;
    limit_spinning(argv);
    int parsed = parse_options(&t->options, argc, argv, &error);
    if (parsed < 0) die("%s", error.text);
    if (parsed > 0) {
        printf("Trains a GPT-2 on token shards, or continues a text with a trained one.\n\n"
               "    ./train_gpt --train 'data_train_*.bin' --validation 'data_val_*.bin' --tokenizer "
               "tokenizer.json\n"
               "    ./train_gpt --run runs/x --resume\n"
               "    ./train_gpt --run runs/x --sample \"Once upon a time\"\n");
        options_help(OPTIONS, NUM_OPTIONS, stdout);
        return 0;
    }
    Settings *o = &t->options;
    if (check_options(o, &error) != 0) die("%s", error.text);
    if (o->threads > 0) omp_set_num_threads((int)o->threads);
    t->saved_step = -1;

    int from_run = o->resume || (o->sample != NULL && o->init_from == NULL);
    char *folder = from_run ? checkpoint_newest(o->run, &error) : o->init_from ? xstrdup(o->init_from) : NULL;
    if (from_run && folder == NULL) die("%s", error.text);
    if (set_up_model(t, folder, &error) != 0) die("%s", error.text);
    if (o->sample != NULL) {
        run_sample(t);
    } else {
        handle_signals();
        if (set_up_training(t, o->resume ? folder : NULL, &error) != 0) die("%s", error.text);
        if (train(t, &error) != 0) die_saving(t, &error);
    }
    free(folder);
    close_down(t);
    return stop_signal ? 128 + stop_signal : 0;
}
