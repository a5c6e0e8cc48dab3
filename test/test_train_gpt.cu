// Tests the trainer as a whole: every gradient of a small GPT against central differences of the same model in double
// precision, dropout included; variants and splits of the batch against each other; overfitting; bitwise
// reproducibility; recomputation and logits in pieces; resuming; skipping of non-finite steps; generation against the
// full forward pass. The tests are the same on every device; bf16 builds have larger bounds.
#define main train_gpt_main
#include "../train_gpt.cu"
#undef main

#include "test/harness/arrays.h"
#include <fcntl.h>

enum { B = 2, T = 7, L = 2, NH = 2, C = 16, V = 19, WIDEST = 4 * C };

// ---- the model in double precision ------------------------------------------------------------------------

typedef struct {
    GPT *m;
    double *weights; // (num_elements), in the order of the model's
    const int32_t *tokens, *targets;
    const MicroStep *step;
} Double;

// Returns the tensor of a member of the tables, outside the blocks (layer -1) or in one.
static const Parameter *find_parameter(const GPT *m, int layer, const char *member) {
    for (size_t t = 0; t < m->parameters.num_tensors; t++)
        if (m->parameters.tensors[t].layer == layer && strcmp(m->parameters.tensors[t].member, member) == 0)
            return &m->parameters.tensors[t];
    die("the model has no %s", member);
    return NULL;
}

REFERENCE static const double *parameter(const Double *d, int layer, const char *member) {
    return d->weights + find_parameter(d->m, layer, member)->offset;
}

REFERENCE static void mask_rows(const Double *d, double *x, RandomStream stream, size_t layer) {
    Dropout dropout = dropout_of(d->m, stream, layer, d->step);
    for (size_t row = 0; row < B * T; row++) {
        float mask[C];
        for (int c = 0; c < C; c++) mask[c] = 1;
        dropout_row(mask, C, row % T, row / T, &dropout);
        for (int c = 0; c < C; c++) x[row * C + (size_t)c] *= (double)mask[c];
    }
}

REFERENCE static void normalise(const double *x, const double *gamma, const double *beta, double *out) {
    for (int row = 0; row < B * T; row++) {
        double mean = 0, variance = 0;
        for (int c = 0; c < C; c++) mean += x[row * C + c] / C;
        for (int c = 0; c < C; c++) variance += (x[row * C + c] - mean) * (x[row * C + c] - mean) / C;
        for (int c = 0; c < C; c++)
            out[row * C + c] = (x[row * C + c] - mean) / sqrt(variance + 1e-5) * gamma[c] + beta[c];
    }
}

REFERENCE static void linear(const double *x, const double *w, const double *bias, size_t in, size_t out,
                             double *y) {
    for (size_t row = 0; row < B * T; row++)
        for (size_t o = 0; o < out; o++) {
            double sum = bias[o];
            for (size_t i = 0; i < in; i++) sum += x[row * in + i] * w[i * out + o];
            y[row * out + o] = sum;
        }
}

// Computes the output of query i of head h, dropout included.
REFERENCE static void attend_row(const Dims *d, const Attention *a, const double *qkv, size_t b, size_t h,
                                 size_t i, double *out) {
    const size_t group = d->NH / d->NKV, key = d->Q + h / group * d->HS, value = key + d->KV;
    const double *query = qkv + (b * T + i) * d->QKV + h * d->HS, *first = qkv + b * T * d->QKV;
    double p[T], sum = 0;
    for (size_t j = 0; j <= i; j++) {
        double score = 0;
        for (size_t c = 0; c < d->HS; c++) score += query[c] * first[j * d->QKV + key + c];
        sum += p[j] = exp(score / sqrt((double)d->HS));
    }
    for (size_t c = 0; c < d->HS; c++) out[c] = 0;
    for (size_t j = 0; j <= i; j++) {
        int keeps = a->dropout.threshold == DROPOUT_NONE || attention_dropout_keeps(a, b, h, i, j);
        double factor = keeps * 256.0 / a->dropout.threshold;
        for (size_t c = 0; c < d->HS; c++) out[c] += factor * p[j] / sum * first[j * d->QKV + value + c];
    }
}

REFERENCE static void attend(const Double *d, size_t layer, const double *qkv, double *out) {
    const Dims *dims = &d->m->dims;
    Attention a = attention_of(d->m, &d->m->acts, layer, d->step);
    for (size_t b = 0; b < B; b++)
        for (size_t h = 0; h < dims->NH; h++)
            for (size_t i = 0; i < T; i++)
                attend_row(dims, &a, qkv, b, h, i, out + (b * T + i) * dims->Q + h * dims->HS);
}

REFERENCE static void double_block(const Double *d, int l, double *x) {
    const Dims *dims = &d->m->dims;
    double normed[B * T * C], qkv[B * T * WIDEST], attended[B * T * WIDEST], branch[B * T * C],
        up[B * T * WIDEST];
    normalise(x, parameter(d, l, "norm1_weight"), parameter(d, l, "norm1_bias"), normed);
    linear(normed, parameter(d, l, "qkv_weight"), parameter(d, l, "qkv_bias"), C, dims->QKV, qkv);
    attend(d, (size_t)l, qkv, attended);
    linear(attended, parameter(d, l, "proj_weight"), parameter(d, l, "proj_bias"), dims->Q, C, branch);
    mask_rows(d, branch, RANDOM_ATTENTION_RESIDUAL, (size_t)l);
    for (int i = 0; i < B * T * C; i++) x[i] += branch[i];
    normalise(x, parameter(d, l, "norm2_weight"), parameter(d, l, "norm2_bias"), normed);
    linear(normed, parameter(d, l, "up_weight"), parameter(d, l, "up_bias"), C, dims->UP, up);
    for (size_t i = 0; i < B * T * dims->F; i++)
        up[i] = 0.5 * up[i] * (1 + tanh(0.7978845608028654 * (up[i] + 0.044715 * up[i] * up[i] * up[i])));
    linear(up, parameter(d, l, "down_weight"), parameter(d, l, "down_bias"), dims->F, C, branch);
    mask_rows(d, branch, RANDOM_MLP_RESIDUAL, (size_t)l);
    for (int i = 0; i < B * T * C; i++) x[i] += branch[i];
}

// Returns the mean loss of the batch.
REFERENCE static double double_loss(void *context) {
    const Double *d = (const Double *)context;
    const double *wte = parameter(d, -1, "wte"), *wpe = parameter(d, -1, "wpe");
    double x[B * T * C], normed[B * T * C], loss = 0;
    for (int row = 0; row < B * T; row++)
        for (int c = 0; c < C; c++) x[row * C + c] = wte[d->tokens[row] * C + c] + wpe[row % T * C + c];
    mask_rows(d, x, RANDOM_EMBEDDING_DROPOUT, 0);
    for (int l = 0; l < L; l++) double_block(d, l, x);
    normalise(x, parameter(d, -1, "final_norm_weight"), parameter(d, -1, "final_norm_bias"), normed);
    for (int row = 0; row < B * T; row++) {
        double sum = 0, target = 0;
        for (int v = 0; v < V; v++) {
            double logit = 0;
            for (int c = 0; c < C; c++) logit += normed[row * C + c] * wte[v * C + c];
            sum += exp(logit);
            if (v == d->targets[row]) target = logit;
        }
        loss += (log(sum) - target) / (B * T);
    }
    return loss;
}

// ---- fixtures ---------------------------------------------------------------------------------------------

// Factor of the error bounds: 1 for the rounding of fp32, more for that of bf16.
static const double tolerance = DEVICE_IS_BF16 ? 400 : 1;

// Returns a copy of memory on the device. The caller frees it.
static void *copy_of(const void *device, size_t bytes) {
    void *host = host_borrow(device, bytes), *copy = malloc(bytes);
    memcpy(copy, host, bytes);
    host_return(host, (void *)(uintptr_t)device, bytes, 0);
    return copy;
}
static float *copy_of_gradients(const GPT *m) {
    return (float *)copy_of(m->parameters.gradients, m->parameters.num_elements * sizeof(float));
}

// Returns the weights that forward and backward use, as doubles. The caller frees them.
static double *copy_of_weights(const GPT *m) {
    floatX *weights = (floatX *)copy_of(m->parameters.weights, m->parameters.num_elements * sizeof(floatX));
    double *x = (double *)malloc(m->parameters.num_elements * sizeof(double));
    for (size_t i = 0; i < m->parameters.num_elements; i++) x[i] = (double)(float)weights[i];
    free(weights);
    return x;
}

static int32_t tokens[B * T], targets[B * T];

static void send_tokens(GPT *m, size_t first, size_t count) {
    copy_to_device(m->acts.model.tokens, tokens + first, count * sizeof(int32_t), m->run.stream);
    copy_to_device(m->acts.model.targets, targets + first, count * sizeof(int32_t), m->run.stream);
    stream_wait(m->run.stream);
}

static Comm *alone; // set by main

// Returns the master weights (num_elements), as they are saved. The caller frees them.
static float *copy_of_master(GPT *m) {
    const int sees[] = {1};
    Snapshot snapshot;
    float *copy = (float *)calloc(m->parameters.num_elements, sizeof(float));
    const SavedModel model = saved_model(m);
    snapshot_open(&snapshot, &model, sees);
    snapshot_take(&snapshot, &model);
    wait_for_snapshot(&snapshot);
    for (size_t i = 0; i < m->parameters.num_tensors; i++)
        memcpy(copy + m->parameters.tensors[i].offset, snapshot.tensors[i].data,
               m->parameters.tensors[i].size * sizeof(float));
    snapshot_close(&snapshot);
    return copy;
}

static GPTConfig small_config; // set by main: a GPT-2

static void small_model_with(GPT *m, AttentionVariant attention, Recompute recompute, size_t logits_bytes,
                             Sharding sharding) {
    Error error;
    ModelSetup setup = {B, T, recompute, logits_bytes, attention, sharding, 1, alone, 1};
    gpt_describe(m, &small_config, &setup);
    m->run.seed = 5;
    // MATMUL_OWN adds up the terms of an element in the same order for any number of rows.
    if (gpt_allocate(m, MATMUL_OWN, (Precision)DEVICE_IS_BF16, &error) != 0) die("%s", error.text);
    gpt_initialise(m, 0.02, 0.02);
    optimizer_list_chunks(&m->optimizer, &m->shards, &m->parameters, 0.1, m->run.stream);
    // The weights are larger than GPT-2's, and none is 0 or 1, so that every gradient matters.
    float *master = state_borrow(&m->shards, &m->parameters, m->parameters.master, m->run.stream),
          *initial = copy_of_master(m);
    memcpy(master, initial, m->parameters.num_elements * sizeof(float));
    free(initial);
    for (size_t t = 0; t < m->parameters.num_tensors; t++)
        for (size_t i = 0; i < m->parameters.tensors[t].used; i++)
            master[m->parameters.tensors[t].offset + i] += (float)(0.3 * test_random());
    state_return(&m->shards, &m->parameters, master, m->parameters.master, m->run.stream);
    gpt_round_weights(m, 0);
    for (int i = 0; i < B * T; i++) {
        tokens[i] = (int32_t)((test_random() + 1) / 2 * V);
        targets[i] = (int32_t)((test_random() + 1) / 2 * V);
    }
    send_tokens(m, 0, B * T);
}

static void small_model(GPT *m, AttentionVariant attention) {
    small_model_with(m, attention, RECOMPUTE_NONE, 0, SHARD_NONE);
}

// Returns step 4 with the whole batch as one micro-step, and dropout with a probability of 1 - threshold / 256.
static MicroStep whole_batch(uint32_t threshold) {
    MicroStep s = {4, 0, threshold, 1.0f / (B * T), MATMUL_OVERWRITE, 1, 0};
    return s;
}
enum { NO_DROPOUT = 256, SOME_DROPOUT = 212 };

static double mean_loss(const GPT *m) {
    const size_t n = m->acts.B * T;
    float *losses = (float *)copy_of(m->acts.model.losses, n * sizeof(float));
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += (double)losses[i];
    free(losses);
    return sum / (double)n;
}

static double compute_gradients(GPT *m, const MicroStep *s) {
    gpt_forward(m, &m->acts, s);
    gpt_backward(m, s);
    return mean_loss(m);
}

// ---- tests ------------------------------------------------------------------------------------------------

static void test_gradients(AttentionVariant attention, uint32_t threshold) {
    GPT m;
    const MicroStep s = whole_batch(threshold);
    small_model(&m, attention);
    double loss = compute_gradients(&m, &s);
    Double d = {&m, copy_of_weights(&m), tokens, targets, &s};
    double wanted_loss = double_loss(&d);
    EXPECT(fabs(loss - wanted_loss) < 1e-6 * tolerance * 10 * wanted_loss, "loss %.9g, in double %.9g", loss,
           wanted_loss);
    float *gradients = copy_of_gradients(&m);
    for (size_t t = 0; t < m.parameters.num_tensors; t++) {
        const Parameter *p = &m.parameters.tensors[t];
        const size_t used = p->used;
        double *wanted = central_differences(double_loss, &d, d.weights + p->offset, used);
        double error = relative_error(gradients + p->offset, wanted, used, 1e-4 * tolerance);
        EXPECT(error < 1e-4 * tolerance,
               "dropout threshold %u, %s, layer %d: relative error %.3g of the gradient", threshold, p->name,
               p->layer, error);
        for (size_t i = used; i < p->size; i++)
            if (gradients[p->offset + i] != 0) EXPECT(0, "padding of %s has a gradient", p->name);
        free(wanted);
    }
    free(d.weights), free(gradients);
    gpt_free(&m);
}

// Two micro-steps of one sequence each give the gradients of one of two sequences, dropout included.
static void test_accumulation(void) {
    GPT whole, split;
    const MicroStep s = whole_batch(SOME_DROPOUT);
    test_random_state = 7;
    small_model(&whole, ATTENTION_AUTO);
    test_random_state = 7;
    small_model(&split, ATTENTION_AUTO);
    compute_gradients(&whole, &s);
    split.acts.B = 1;
    for (int micro = 0; micro < B; micro++) {
        MicroStep half = s;
        half.first_sequence = (uint32_t)micro;
        half.mode = micro ? MATMUL_ACCUMULATE : MATMUL_OVERWRITE;
        send_tokens(&split, (size_t)micro * T, T);
        gpt_forward(&split, &split.acts, &half);
        gpt_backward(&split, &half);
    }
    float *got = copy_of_gradients(&split), *of_whole = copy_of_gradients(&whole);
    double *wanted = as_doubles(of_whole, whole.parameters.num_elements);
    double error = relative_error(got, wanted, whole.parameters.num_elements, 1e-4);
    EXPECT(error < 1e-5, "gradients of a split batch are off by %g", error);
    free(wanted), free(got), free(of_whole);
    gpt_free(&whole), gpt_free(&split);
}

// Naive and flash attention, where there are both, give close gradients; 1 and 3 threads give the same bits.
static void test_variants(void) {
    float *gradients[3];
    size_t n = 0;
    for (int i = 0; i < 3; i++) {
        GPT m;
        const MicroStep s = whole_batch(SOME_DROPOUT);
        test_random_state = 11;
        small_model(&m, i == 1 ? ATTENTION_NAIVE : ATTENTION_AUTO);
        omp_set_num_threads(i == 2 ? 3 : 1);
        compute_gradients(&m, &s);
        gradients[i] = copy_of_gradients(&m);
        n = m.parameters.num_elements;
        gpt_free(&m);
    }
    omp_set_num_threads(omp_get_num_procs());
    double *wanted = as_doubles(gradients[0], n);
    double error = relative_error(gradients[1], wanted, n, 1e-4);
    // In bf16 flash rounds probabilities to 8 bits, and naive does not.
    EXPECT(error < (DEVICE_IS_BF16 ? 0.03 : 1e-5), "naive and flash differ by %g", error);
    EXPECT(memcmp(gradients[0], gradients[2], n * sizeof(float)) == 0,
           "gradients have other bits with 3 threads");
    free(wanted);
    for (int i = 0; i < 3; i++) free(gradients[i]);
}

// Every level of recomputation gives the same losses and gradients, bit for bit; logits in pieces give the same up to
// rounding.
static void test_recompute(void) {
    GPT m[6];
    float *gradients[6], *losses[6];
    const MicroStep s = whole_batch(SOME_DROPOUT);
    for (int i = 0; i < 6; i++) {
        test_random_state = 13;
        // The last two have logits in pieces of 3 rows, and of as few as possible.
        small_model_with(&m[i], ATTENTION_AUTO, i < 4 ? (Recompute)i : RECOMPUTE_BLOCK,
                         i < 4    ? 0
                         : i == 4 ? 3 * 128 * sizeof(floatX)
                                  : 1,
                         SHARD_NONE);
        compute_gradients(&m[i], &s);
        gradients[i] = copy_of_gradients(&m[i]);
        losses[i] = (float *)copy_of(m[i].acts.model.losses, B * T * sizeof(float));
    }
    const size_t n = m[0].parameters.num_elements;
    for (int i = 1; i < 6; i++) {
        EXPECT(m[i].run.arena.used < m[i - 1].run.arena.used + (i == 5 ? 1 : 0) || i == 4,
               "keeping less (%d) takes %zu bytes after %zu", i, m[i].run.arena.used,
               m[i - 1].run.arena.used);
        if (i < 4) {
            EXPECT(memcmp(losses[0], losses[i], B * T * sizeof(float)) == 0,
                   "losses change with what is kept (%d)", i);
            EXPECT(memcmp(gradients[0], gradients[i], n * sizeof(float)) == 0,
                   "gradients change with what is kept (%d)", i);
            continue;
        }
        double *wanted = as_doubles(gradients[0], n), error = relative_error(gradients[i], wanted, n, 1e-4);
        EXPECT(error < 1e-5, "logits in pieces: gradients are off by %g", error);
        free(wanted);
        wanted = as_doubles(losses[0], B * T);
        EXPECT(relative_error(losses[i], wanted, B * T, 1) < 1e-6, "logits in pieces change losses");
        free(wanted);
    }
    EXPECT(m[4].acts.logit_rows == 3 && m[5].acts.logit_rows == 1, "pieces of logits have %zu and %zu rows",
           m[4].acts.logit_rows, m[5].acts.logit_rows);
    for (int i = 0; i < 6; i++) {
        free(gradients[i]), free(losses[i]);
        gpt_free(&m[i]);
    }
}

// With divided state, one process computes the same weights, bit for bit, from the same gradients. (If gradients are
// divided, sums over several micro-steps may be rounded differently.)
static void test_sharding(void) {
    GPT m[3];
    float *master[3];
    MicroStep s = whole_batch(SOME_DROPOUT);
    s.sends_gradients = 1;
    for (int i = 0; i < 3; i++) {
        test_random_state = 21;
        small_model_with(&m[i], ATTENTION_AUTO, RECOMPUTE_NONE, 0, (Sharding)i);
        for (uint32_t step = 1; step <= 3; step++) {
            AdamW adamw = {1e-2, 0.9, 0.95, 1e-8, 0.5, DEVICE_IS_BF16, 5};
            s.step = step;
            gpt_forward(&m[i], &m[i].acts, &s);
            gpt_backward(&m[i], &s);
            loss_add(&m[i].optimizer.totals[TOTAL_LOSS], m[i].acts.model.losses, B * T, B * T, 0,
                     m[i].run.stream);
            gpt_update(&m[i], &adamw);
        }
        master[i] = copy_of_master(&m[i]);
        floatX *weights = (floatX *)copy_of(m[i].parameters.weights,
                                            m[i].parameters.num_elements * sizeof(floatX));
        floatX *others = (floatX *)copy_of(m[0].parameters.weights,
                                           m[0].parameters.num_elements * sizeof(floatX));
        EXPECT(memcmp(master[0], master[i], m[0].parameters.num_elements * sizeof(float)) == 0,
               "--shard %d gives other master weights", i);
        EXPECT(memcmp(others, weights, m[0].parameters.num_elements * sizeof(floatX)) == 0,
               "--shard %d gives other weights", i);
        free(weights), free(others);
    }
    EXPECT(m[2].run.arena.by_purpose[MEMORY_GRADIENTS] >= m[0].run.arena.by_purpose[MEMORY_GRADIENTS],
           "one process saves memory by sharding");
    for (int i = 0; i < 3; i++) {
        gpt_free(&m[i]);
        free(master[i]);
    }
}

// The memory that each process needs shrinks with the number of processes.
static void test_sharded_memory(void) {
    GPTConfig config = gpt_config_gpt2(1024, 50257, 12, 12, 768);
    size_t of[3][NUM_MEMORIES];
    for (int sharding = 0; sharding < 3; sharding++) {
        GPT m;
        ModelSetup setup = {1, 1024, RECOMPUTE_NONE, 0, ATTENTION_AUTO, (Sharding)sharding, 8, alone, 1};
        gpt_describe(&m, &config, &setup);
        gpt_memory(&m, 1, 1, 2, of[sharding]);
        gpt_free(&m);
    }
    EXPECT(of[1][MEMORY_MOMENTS] < of[0][MEMORY_MOMENTS] / 7 &&
               of[1][MEMORY_MASTER] < of[0][MEMORY_MASTER] / 7,
           "an eighth of the optimizer's state takes %zu of %zu bytes", of[1][MEMORY_MOMENTS],
           of[0][MEMORY_MOMENTS]);
    EXPECT(of[1][MEMORY_GRADIENTS] == of[0][MEMORY_GRADIENTS] &&
               of[2][MEMORY_GRADIENTS] < of[0][MEMORY_GRADIENTS] * 3 / 5,
           "divided gradients take %zu of %zu bytes", of[2][MEMORY_GRADIENTS], of[0][MEMORY_GRADIENTS]);
}

// A model can memorise one batch.
static void test_overfit(void) {
    GPT m;
    small_model(&m, ATTENTION_AUTO);
    gpt_initialise(&m, 0.02, 0.02);
    MicroStep s = whole_batch(NO_DROPOUT);
    const uint32_t steps = DEVICE_IS_GPU ? 60 : 300; // a GPU's kernels may be emulated
    for (uint32_t step = 1; step <= steps; step++) {
        AdamW adamw = {1e-2, 0.9, 0.95, 1e-8, 1, 0, 5};
        s.step = step;
        gpt_forward(&m, &m.acts, &s);
        gpt_backward(&m, &s);
        loss_add(&m.optimizer.totals[TOTAL_LOSS], m.acts.model.losses, B * T, B * T, 0, m.run.stream);
        gpt_update(&m, &adamw);
    }
    double loss = mean_loss(&m);
    EXPECT(loss < (DEVICE_IS_GPU ? 0.5 : 0.05), "after %u steps on one batch the loss is still %g", steps,
           loss);
    gpt_free(&m);
}

// Logits with cached keys and values, token by token and in pieces, are those of the full forward pass.
static void test_generation(void) {
    GPT m;
    const MicroStep s = whole_batch(NO_DROPOUT);
    small_model(&m, ATTENTION_NAIVE);
    gpt_forward(&m, &m.acts, &s);
    gpt_logits(&m, &m.acts, 0, B * T);
    stream_wait(m.run.stream);
    floatX *all = (floatX *)copy_of(m.acts.model.logits, B * T * m.dims.Vp * sizeof(floatX));
    static const size_t pieces[][T] = {{1, 1, 1, 1, 1, 1, 1}, {T}, {3, 1, 2, 1}};
    Generator generator;
    const TextModel model = text_model(&m);
    generator_open(&generator, &model);
    for (int way = 0; way < 3; way++) {
        size_t past = 0;
        for (int i = 0; i < T && past < T; i++) {
            const float *logits = generator_next(&generator, tokens + past, pieces[way][i], past);
            double wanted[V];
            past += pieces[way][i];
            for (size_t v = 0; v < V; v++) wanted[v] = (double)(float)all[(past - 1) * m.dims.Vp + v];
            double error = relative_error(logits, wanted, V, 1e-3);
            EXPECT(error < 1e-5, "way %d, %zu tokens: logits from the cache are off by %g", way, past, error);
        }
    }
    free(all);
    generator_close(&generator);
    gpt_free(&m);
}

// All of this also holds for a shape that no GPT-2 has: queries wider than the residual stream, key/value heads that
// are shared, a narrow MLP.
static void test_other_shape(void) {
    const GPTConfig kept = small_config;
    small_config.num_heads = 4, small_config.num_kv_heads = 2, small_config.head_size = 8;
    small_config.hidden = 24;
    for (int attention = ATTENTION_NAIVE; attention <= ATTENTION_FLASH; attention++)
        test_gradients((AttentionVariant)attention, SOME_DROPOUT);
    if (!test_is_small()) test_recompute(), test_generation(), test_sharding();
    small_config = kept;
}

static void test_schedules(void) {
    LearningRate r = {SCHEDULE_COSINE, 1, 0.1, 110, 10, 20};
    static const struct {
        Schedule schedule;
        int64_t step;
        double rate;
    } cases[] = {
        {SCHEDULE_COSINE, 1, 0.1},   {SCHEDULE_COSINE, 10, 1},    {SCHEDULE_COSINE, 60, 0.55},
        {SCHEDULE_COSINE, 110, 0.1}, {SCHEDULE_COSINE, 500, 0.1}, {SCHEDULE_LINEAR, 5, 0.5},
        {SCHEDULE_LINEAR, 60, 0.55}, {SCHEDULE_LINEAR, 110, 0.1}, {SCHEDULE_CONSTANT, 9, 0.9},
        {SCHEDULE_CONSTANT, 99, 1},  {SCHEDULE_WSD, 10, 1},       {SCHEDULE_WSD, 90, 1},
        {SCHEDULE_WSD, 100, 0.55},   {SCHEDULE_WSD, 110, 0.1},    {SCHEDULE_WSD, 5, 0.5},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        r.schedule = cases[i].schedule;
        double rate = learning_rate_at(&r, cases[i].step);
        EXPECT(fabs(rate - cases[i].rate) < 1e-12, "schedule %d, step %d: %g, not %g", (int)cases[i].schedule,
               (int)cases[i].step, rate, cases[i].rate);
    }
    r.warmup = 0;
    EXPECT(learning_rate_at(&r, 1) > 0.5, "no warm-up");
}

// By the tables, only matrices and embeddings have weight decay, and GPT-2's models have their numbers of parameters.
static void test_tables(void) {
    static const int64_t parameters[] = {0, 124439808, 354823168, 774030080, 1557611200};
    for (int model = 1; model <= 4; model++) {
        GPT m;
        const GPTPreset *shape = &GPT_PRESETS[model];
        memset(&m, 0, sizeof(m));
        m.config = gpt_config_gpt2(1024, 50257, shape->num_layers, shape->num_heads, shape->channels);
        m.dims = dims_of(&m.config);
        list_parameters(&m);
        EXPECT((int64_t)m.parameters.count == parameters[model], "model %d has %zu parameters", model,
               m.parameters.count);
        EXPECT(count_parameters(&m.config) == (double)parameters[model], "model %d: %g are counted", model,
               count_parameters(&m.config));
        for (size_t t = 0; t < m.parameters.num_tensors; t++)
            EXPECT((m.parameters.tensors[t].group != GROUP_VECTOR) == (m.parameters.tensors[t].rows > 0),
                   "decay of %s", m.parameters.tensors[t].name);
        free(m.parameters.tensors);
    }
}

static void test_initialisation(void) {
    GPT m;
    Error error;
    GPTConfig config = gpt_config_gpt2(64, 500, 4, 4, 64);
    ModelSetup setup = {0, 0, RECOMPUTE_NONE, 0, ATTENTION_AUTO, SHARD_NONE, 1, alone, 1};
    gpt_describe(&m, &config, &setup);
    m.run.seed = 1;
    if (gpt_allocate(&m, MATMUL_AUTO, (Precision)DEVICE_IS_BF16, &error) != 0) die("%s", error.text);
    gpt_initialise(&m, 0.05, 0.03);
    float *master = (float *)copy_of(m.parameters.master, m.parameters.num_elements * sizeof(float));
    for (size_t t = 0; t < m.parameters.num_tensors; t++) {
        const Parameter *p = &m.parameters.tensors[t];
        size_t n = p->used;
        double sum = 0, squares = 0;
        for (size_t i = 0; i < n; i++) {
            double x = (double)master[p->offset + i];
            sum += x;
            squares += x * x;
        }
        const char *kind = strrchr(p->name, '.'); // by name, as in GPT-2's paper and code
        int into_residual = strstr(p->name, "c_proj") != NULL, is_norm = strstr(p->name, "ln_") != NULL;
        double deviation = strcmp(p->name, "wte.weight") == 0      ? 0.05
                           : strcmp(p->name, "wpe.weight") == 0    ? 0.02
                           : strcmp(kind, ".bias") == 0 || is_norm ? 0
                           : into_residual                         ? 0.03 / sqrt(2 * 4)
                                                                   : 0.03;
        double mean = is_norm && strcmp(kind, ".weight") == 0,
               found = sqrt(fmax(squares / (double)n - sum * sum / (double)n / (double)n, 0));
        EXPECT(fabs(sum / (double)n - mean) < 5 * deviation / sqrt((double)n) + 1e-9, "mean of %s", p->name);
        EXPECT(fabs(found - deviation) < 5 * deviation / sqrt(2 * (double)n) + 1e-9, "deviation of %s: %g",
               p->name, found);
    }
    for (size_t i = m.dims.V * m.dims.C; i < m.dims.Vp * m.dims.C; i++)
        if (master[i] != 0) EXPECT(0, "padding of the embedding is not zero");
    free(master);
    gpt_free(&m);
}

// Continues a text of one token and discards the output. Returns the number of tokens.
static int64_t continue_quietly(GPT *m, const Tokenizer *tokenizer, const TokenList *stops,
                                const Sampling *sampling, TokenList *text) {
    const TextModel model = text_model(m);
    const sig_atomic_t never = 0;
    fflush(stdout);
    const int output = dup(STDOUT_FILENO), nowhere = open("/dev/null", O_WRONLY);
    dup2(nowhere, STDOUT_FILENO);
    text->ids = (int32_t *)xrealloc(text->ids, sizeof(int32_t));
    text->ids[0] = 7;
    text->count = text->capacity = 1;
    int64_t generated = continue_text(&model, tokenizer, stops, sampling, text, 0, &never);
    fflush(stdout);
    dup2(output, STDOUT_FILENO);
    close(output);
    close(nowhere);
    return generated;
}

// If a model has more ids than its tokenizer, only those of the tokenizer are sampled, until a stop token is.
static void test_larger_vocabulary(void) {
    GPT m;
    Error error;
    GPTConfig config = gpt_config_gpt2(64, 600, 2, 2, 32);
    ModelSetup setup = {0, 0, RECOMPUTE_NONE, 0, ATTENTION_AUTO, SHARD_NONE, 1, alone, 1};
    gpt_describe(&m, &config, &setup);
    m.run.seed = 1;
    if (gpt_allocate(&m, MATMUL_AUTO, (Precision)DEVICE_IS_BF16, &error) != 0) die("%s", error.text);
    gpt_initialise(&m, 0.05, 0.03);
    Tokenizer *tokenizer = tokenizer_train(NULL, 0, 257, NULL, &error);
    if (tokenizer == NULL) die("%s", error.text);
    TokenList text = {NULL, 0, 0}, stops = {NULL, 0, 0};
    const int64_t count = DEVICE_IS_GPU ? 12 : 200; // GPU kernels may be emulated and slow
    Sampling sampling = {count, 1337, 100, 0, 1};   // all 600 ids are about equally likely
    stops.ids = (int32_t *)xmalloc(sizeof(int32_t));
    stops.ids[stops.count++] = 599; // is never sampled
    for (int kind = 0; kind < 3; kind++) {
        sampling.top_k = kind == 1 ? 400 : 0;
        sampling.top_p = kind == 2 ? 0.9 : 1;
        EXPECT(continue_quietly(&m, tokenizer, &stops, &sampling, &text) == count &&
                   text.count == (size_t)count + 1,
               "%zu tokens", text.count);
        size_t foreign = 0;
        for (size_t i = 0; i < text.count; i++) foreign += text.ids[i] >= 257;
        EXPECT(foreign == 0, "kind %d: %zu ids that the tokenizer does not have", kind, foreign);
    }
    stops.ids[0] = text.ids[count / 2];
    const size_t first = text.count;
    EXPECT(continue_quietly(&m, tokenizer, &stops, &sampling, &text) <= count / 2 && text.count < first,
           "it does not stop");
    free(text.ids);
    free(stops.ids);
    tokenizer_free(tokenizer);
    gpt_free(&m);
}

// The key of each use of dropout is made from its stream, layer, step and seed.
static void test_dropout_keys(void) {
    GPT m;
    small_model(&m, ATTENTION_AUTO);
    MicroStep s = {4, 6, SOME_DROPOUT, 1, MATMUL_OVERWRITE, 1, 0};
    static const RandomStream streams[] = {RANDOM_EMBEDDING_DROPOUT, RANDOM_ATTENTION_DROPOUT,
                                           RANDOM_ATTENTION_RESIDUAL, RANDOM_MLP_RESIDUAL};
    for (int i = 0; i < 4; i++) {
        Dropout got = dropout_of(&m, streams[i], 3, &s), wanted = dropout_make(212, 5, streams[i], 3, 4, 6);
        EXPECT(memcmp(&got, &wanted, sizeof(got)) == 0, "the key of stream %d", streams[i]);
    }
    Attention a = attention_of(&m, &m.acts, 1, &s);
    Dropout wanted = dropout_make(212, 5, RANDOM_ATTENTION_DROPOUT, 1, 4, 6);
    EXPECT(memcmp(&a.dropout, &wanted, sizeof(wanted)) == 0, "the key of attention's dropout");
    gpt_free(&m);
}

// Initialises a trainer of the small model on a shard of its own in `folder`.
static void small_trainer(Trainer *t, const char *folder) {
    Error error;
    ShardWriter writer;
    int32_t text[40 * T];
    char *prefix = format_text("%s/shard", folder), *pattern = format_text("%s/shard_000000.bin", folder);
    for (int i = 0; i < 40 * T; i++) text[i] = i * i % V;
    memset(t, 0, sizeof(*t));
    options_defaults(OPTIONS, NUM_OPTIONS, &t->options);
    t->options.batch = B, t->options.sequence_length = T, t->options.steps = 10, t->options.warmup = 4;
    t->processes.launch.size = 1;
    t->options.keep = 2, t->options.learning_rate = 1e-2, t->options.clip = 0.05, t->options.epsilon = 1e-3;
    small_model(&t->model, ATTENTION_AUTO);
    pipeline_open_batches(&t->data, B * T);
    queue_open(&t->queue);
    LoaderConfig config = {B, T, V, 1, 0, 1, 0, 0, 1};
    EXPECT(shard_writer_open(&writer, prefix, 1000, 2, 0, &error) == 0 &&
               shard_writer_document(&writer, text, 40 * T, &error) == 0 &&
               shard_writer_close(&writer, &error) == 0 &&
               shards_open(&t->data.train, pattern, &error) == 0 &&
               (t->data.loader = loader_open(&t->data.train, &config, &error)) != NULL &&
               metrics_open(&t->run.metrics, folder, 0, 10, 1, 1, &error) == 0,
           "%s", error.text);
    t->run.saving.saved_step = t->recovery.rolled_back_to = -1;
    t->run.saving.model = saved_model(&t->model);
    t->processes.comm = alone;
    t->run.lock.descriptor = -1;
    free(prefix), free(pattern);
}

// Does one step of AdamW in double precision, directly by its definition.
static void adamw_in_double(const GPT *model, double *w, double *m, double *v, const float *gradients,
                            int step, int updates) {
    double norm = 0, rate = 1e-2 * (step <= 4 ? step / 4.0 : 0.1 + 0.45 * (1 + cos(M_PI * (step - 4) / 6.0)));
    for (size_t i = 0; i < model->parameters.num_elements; i++)
        norm += (double)gradients[i] * (double)gradients[i];
    double clip = sqrt(norm) > 0.05 ? 0.05 / sqrt(norm) : 1;
    for (size_t p = 0; p < model->parameters.num_tensors; p++)
        for (size_t i = model->parameters.tensors[p].offset;
             i < model->parameters.tensors[p].offset + model->parameters.tensors[p].size; i++) {
            double gradient = clip * (double)gradients[i];
            m[i] = 0.9 * m[i] + 0.1 * gradient;
            v[i] = 0.95 * v[i] + 0.05 * gradient * gradient;
            double change = m[i] / (1 - pow(0.9, updates)) / (sqrt(v[i] / (1 - pow(0.95, updates))) + 1e-3);
            w[i] -= rate * (change + (model->parameters.tensors[p].rows > 0 ? 0.1 : 0) * w[i]);
        }
}

// Sets one element of the last layernorm's bias, and returns its previous value.
static floatX set_final_bias(GPT *m, floatX value) {
    floatX *bias = (floatX *)host_borrow(m->weights.model.final_norm_bias, m->dims.C * sizeof(floatX)),
           kept = bias[3];
    bias[3] = value;
    host_return(bias, m->weights.model.final_norm_bias, m->dims.C * sizeof(floatX), 1);
    return kept;
}

// A trainer that starts from the other's checkpoint continues with the same bits, and knows of the skipped step.
static void test_resume(Trainer *t, const char *folder) {
    Trainer u;
    Error error;
    char *run = format_text("%s/run", folder), *other = format_text("%s/other", folder);
    EXPECT(folder_create(run, &error) == 0 && folder_create(other, &error) == 0, "%s", error.text);
    t->options.run = run;
    t->run.algorithms = format_text("%s/matmul.txt", run);
    const SavedModel model = saved_model(&t->model);
    EXPECT(run_open(&t->run.lock, run, 0, -1, OPTIONS, NUM_OPTIONS, &t->options, &error) == 0 &&
               open_saving(&t->run, &t->options, &t->processes, &model, &error) == 0 &&
               save_and_wait(t, &error) == 0,
           "%s", error.text);
    char *checkpoint = checkpoint_folder(run, t->run.state.step);
    small_trainer(&u, other);
    EXPECT(load_checkpoint(&u, checkpoint, &error) == 0, "%s", error.text);
    gpt_round_weights(&u.model, 0);
    LoaderConfig config = {B, T, V, 1, (uint64_t)u.run.state.position, 1, 0, 0, 1};
    loader_close(u.data.loader);
    u.data.loader = loader_open(&u.data.train, &config, &error);
    for (int step = 0; step < 2; step++) {
        train_step(t);
        train_step(&u);
    }
    finish_steps(t);
    finish_steps(&u);
    const size_t bytes = t->model.parameters.num_elements * sizeof(float);
    float *a = (float *)copy_of(t->model.parameters.master, bytes),
          *b = (float *)copy_of(u.model.parameters.master, bytes);
    EXPECT(memcmp(a, b, bytes) == 0 && u.run.state.skipped == 1 &&
               u.run.state.position == t->run.state.position,
           "a resumed trainer goes on with other bits");
    t->options.run = NULL;
    free(a), free(b), free(checkpoint), free(run), free(other);
    u.processes.comm = NULL; // shared with other tests, so not closed here
    close_down(&u);
}

// train_step agrees with AdamW in double precision: learning rate, clipping, decay, both moments, bias corrections. A
// step with a NaN is skipped and counted as skipped, not as an update.
static void test_train_steps(void) {
    char folder[] = "/tmp/test_train_gpt_XXXXXX";
    Trainer t;
    EXPECT(mkdtemp(folder) != NULL, "no temporary folder");
    small_trainer(&t, folder);
    const size_t n = t.model.parameters.num_elements;
    float *start = (float *)copy_of(t.model.parameters.master, n * sizeof(float));
    double *w = as_doubles(start, n), *m = (double *)calloc(n, sizeof(double)),
           *v = (double *)calloc(n, sizeof(double));
    int updates = 0;
    for (int step = 1; step <= 6; step++) {
        floatX kept = step == 3 ? set_final_bias(&t.model, (floatX)NAN) : (floatX)0.0f;
        train_step(&t);
        finish_steps(&t);
        if (step == 3) {
            set_final_bias(&t.model, kept);
            EXPECT(t.run.state.skipped == 1 && t.run.state.skipped_in_row == 1,
                   "a NaN is not counted as skipped");
        } else {
            float *gradients = copy_of_gradients(&t.model);
            adamw_in_double(&t.model, w, m, v, gradients, step, ++updates);
            free(gradients);
            EXPECT(t.run.state.skipped_in_row == 0, "a good step is counted as skipped");
        }
        float *master = (float *)copy_of(t.model.parameters.master, n * sizeof(float));
        double error_w = relative_error(master, w, n, 1e-3);
        EXPECT(error_w < 2e-6, "after step %d the weights are off by %g", step, error_w);
        free(master);
    }
    EXPECT(t.run.state.step == 6 && t.run.state.position == 6 * B && t.run.state.skipped == 1,
           "the state after 6 steps");
    test_resume(&t, folder);
    free(start), free(w), free(m), free(v);
    t.processes.comm = NULL;
    close_down(&t);
    char *command = format_text("rm -r %s", folder);
    EXPECT(system(command) == 0, "cannot remove %s", folder);
    free(command);
}

int main(int argc, char **argv) {
    (void)argc;
    const char *refusal = device_open(argv, 0);
    if (refusal != NULL) die("%s", refusal);
    alone = comm_alone();
    small_config = gpt_config_gpt2(T + 3, V, L, NH, C);
    for (int attention = ATTENTION_NAIVE; attention <= ATTENTION_FLASH; attention++) {
        test_gradients((AttentionVariant)attention, NO_DROPOUT);
        test_gradients((AttentionVariant)attention, SOME_DROPOUT);
    }
    test_accumulation();
    test_variants();
    test_recompute();
    test_sharding();
    test_sharded_memory();
    test_overfit();
    test_generation();
    test_other_shape();
    test_schedules();
    test_tables();
    test_initialisation();
    test_larger_vocabulary();
    test_dropout_keys();
    test_train_steps();
    comm_close(alone);
    return test_finish();
}
