// Compares every CUDA kernel of the layers, except matmul and attention, which have their own tests, with its _cpu
// specification and with double precision, from the same rounded inputs: odd sizes, dropout on and off, outputs
// poisoned and guarded, bitwise repeatability. Runs on a GPU and emulated, in bf16 and fp32.
//
// Bounds: the error of a result that is stored as floatX may be one rounding, floatX_epsilon relative to the result.
// The error of a sum in fp32 may be 1e-5 of the sum of the magnitudes of its terms; a few hundred additions and fast
// exponentials stay below that.
#include "layers/adamw.cuh"
#include "layers/embedding.cuh"
#include "layers/gelu.cuh"
#include "layers/layernorm.cuh"
#include "layers/softmax_cross_entropy.cuh"
#include "test/harness/device_arrays.h"

static const double SUM_ERROR = 1e-5;

static Dropout some_dropout(double p, RandomStream stream) {
    return dropout_make(dropout_threshold(p), 77, stream, 3, 9, 5);
}

// Expects results within one rounding to floatX of `wanted`, plus `slack`.
static void expect_rounded(const char *what, const floatX *got, const double *wanted, size_t n,
                           double slack) {
    float *x = download(got, n);
    double *bound = (double *)malloc((n + 1) * sizeof(double));
    for (size_t i = 0; i < n; i++) bound[i] = fabs(wanted[i]) * floatX_epsilon() + slack + 1e-7;
    expect_within(what, x, wanted, bound, n);
    EXPECT(guards_hold_on_device(got, n), "%s: writes outside its output", what);
    free(x), free(bound);
}

// Expects errors of at most SUM_ERROR, relative to the largest element of `wanted` (or 1, if it is larger).
static void expect_sum(const char *what, const float *got, const double *wanted, size_t n) {
    float *x = download(got, n);
    double size = 1;
    for (size_t i = 0; i < n; i++) size = fmax(size, fabs(wanted[i]));
    EXPECT(relative_error(x, wanted, n, size) <= SUM_ERROR, "%s: relative error %.3g", what,
           relative_error(x, wanted, n, size));
    EXPECT(guards_hold_on_device(got, n), "%s: writes outside its output", what);
    free(x);
}

// Expects results that equal those of the _cpu function up to a few roundings to floatX of the largest element.
template <class T>
static void expect_specification(const char *what, const T *got, const float *cpu, size_t n) {
    float *x = download(got, n);
    double *wanted = as_doubles(cpu, n), error = relative_error(x, wanted, n, 1e-3);
    EXPECT(error <= 4 * floatX_epsilon() + 1e-5, "%s: %.3g from the specification", what, error);
    free(x), free(wanted);
}

static int32_t *random_tokens(size_t n, size_t V) {
    int32_t *tokens = (int32_t *)malloc((n + 1) * sizeof(int32_t));
    for (size_t i = 0; i < n; i++) tokens[i] = (int32_t)((test_random() + 1) / 2 * (double)V);
    return tokens;
}

// ---- GELU -------------------------------------------------------------------------------------------------

static void test_gelu(size_t n) {
    float *x = random_floatX(n, 5), *dout = random_floatX(n, 1);
    double *forward = as_doubles(x, n), *backward = as_doubles(x, n);
    for (size_t i = 0; i < n; i++) {
        double u = 0.7978845608028654 * (forward[i] + 0.044715 * forward[i] * forward[i] * forward[i]);
        double t = tanh(u), du = 0.7978845608028654 * (1 + 3 * 0.044715 * forward[i] * forward[i]);
        backward[i] = (double)dout[i] * (0.5 * (1 + t) + 0.5 * forward[i] * (1 - t * t) * du);
        forward[i] = 0.5 * forward[i] * (1 + t);
    }
    floatX *in = upload(x, n), *d = upload(dout, n), *out[2], *din[2];
    for (int i = 0; i < 2; i++) {
        out[i] = poisoned<floatX>(n), din[i] = poisoned<floatX>(n);
        gelu_forward(out[i], in, n, 0);
        gelu_backward(din[i], d, in, n, 0);
    }
    expect_rounded("gelu", out[0], forward, n, 2e-6);
    expect_rounded("gelu backward", din[0], backward, n, 2e-6);
    float *cpu = random_floats(n, 1);
    gelu_forward_cpu(cpu, x, n);
    expect_specification("gelu", out[0], cpu, n);
    gelu_backward_cpu(cpu, dout, x, n);
    expect_specification("gelu backward", din[0], cpu, n);
    free(cpu);
    EXPECT(same_bits_on_device(out[0], out[1], n) && same_bits_on_device(din[0], din[1], n),
           "gelu: other bits");
    for (int i = 0; i < 2; i++) device_free_poisoned(out[i]), device_free_poisoned(din[i]);
    device_free(in), device_free(d), free(x), free(dout), free(forward), free(backward);
}

// ---- embedding --------------------------------------------------------------------------------------------

// Uses only the tokens 0 .. used - 1 of V.
static void test_embedding(size_t B, size_t T, size_t C, size_t V, size_t used, double p) {
    const size_t N = B * T;
    Dropout dropout = some_dropout(p, RANDOM_EMBEDDING_DROPOUT);
    float *wte = random_floatX(V * C, 1), *wpe = random_floatX(T * C, 1), *dout = random_floatX(N * C, 1);
    float *dwte = random_floats(V * C, 1), *dwpe = random_floats(T * C, 1), *mask = random_floats(N * C, 1);
    int32_t *tokens = random_tokens(N, used);
    double *forward = as_doubles(dout, N * C), *token_sum = as_doubles(dwte, V * C),
           *position_sum = as_doubles(dwpe, T * C);
    for (size_t row = 0; row < N; row++) {
        for (size_t c = 0; c < C; c++) mask[row * C + c] = 1;
        dropout_row(mask + row * C, C, row % T, row / T, &dropout);
        for (size_t c = 0; c < C; c++) {
            size_t token = (size_t)tokens[row] * C + c, position = row % T * C + c, i = row * C + c;
            forward[i] = ((double)wte[token] + (double)wpe[position]) * (double)mask[i];
            double d = (double)as_floatX(mask[i] * dout[i]);
            token_sum[token] += d;
            position_sum[position] += d;
        }
    }
    floatX *d_wte = upload(wte, V * C), *d_wpe = upload(wpe, T * C), *out = poisoned<floatX>(N * C);
    int32_t *d_tokens = upload_as_is(tokens, N);
    embedding_forward(out, d_tokens, d_wte, d_wpe, B, T, C, &dropout, 0);
    expect_rounded("embedding", out, forward, N * C, 1e-6);
    float *sums[2][2];
    for (int i = 0; i < 2; i++) {
        floatX *d_dout = upload(dout, N * C);
        sums[i][0] = poisoned_copy(dwte, V * C), sums[i][1] = poisoned_copy(dwpe, T * C);
        embedding_backward(sums[i][0], sums[i][1], d_dout, d_tokens, B, T, C, V, &dropout, 0);
        stream_wait(0);
        device_free(d_dout);
    }
    expect_sum("embedding dwte", sums[0][0], token_sum, V * C);
    expect_sum("embedding dwpe", sums[0][1], position_sum, T * C);
    float *cpu = random_floats(N * C, 1);
    embedding_forward_cpu(cpu, tokens, wte, wpe, B, T, C, &dropout);
    expect_specification("embedding", out, cpu, N * C);
    memcpy(cpu, dout, N * C * sizeof(float));
    embedding_backward_cpu(dwte, dwpe, cpu, tokens, B, T, C, &dropout);
    expect_specification("embedding dwte", sums[0][0], dwte, V * C);
    expect_specification("embedding dwpe", sums[0][1], dwpe, T * C);
    free(cpu);
    EXPECT(same_bits_on_device(sums[0][0], sums[1][0], V * C) &&
               same_bits_on_device(sums[0][1], sums[1][1], T * C),
           "embedding backward: other bits the second time");
    for (int i = 0; i < 4; i++) device_free_poisoned(sums[i / 2][i % 2]);
    device_free(d_wte), device_free(d_wpe), device_free(d_tokens), device_free_poisoned(out);
    free(wte), free(wpe), free(dout), free(dwte), free(dwpe), free(mask), free(tokens);
    free(forward), free(token_sum), free(position_sum);
}

// ---- layernorm --------------------------------------------------------------------------------------------

typedef struct {
    size_t rows, T, C;
    Dropout dropout;
    float *residual, *branch, *gamma, *beta, *dout, *dresidual, *dgamma, *dbeta; // inputs
    float *mask;
} LayernormCase;

static LayernormCase layernorm_case(size_t N, size_t T, size_t C, double p) {
    size_t n = N * T * C;
    LayernormCase k = {N * T,
                       T,
                       C,
                       some_dropout(p, RANDOM_MLP_RESIDUAL),
                       random_floatX(n, 2),
                       random_floatX(n, 1),
                       random_floatX(C, 1),
                       random_floatX(C, 1),
                       random_floatX(n, 1),
                       random_floatX(n, 1),
                       random_floats(C, 1),
                       random_floats(C, 1),
                       random_floats(n, 1)};
    for (size_t i = 0; i < n; i++) k.mask[i] = 1;
    for (size_t row = 0; row < k.rows; row++) dropout_row(k.mask + row * C, C, row % T, row / T, &k.dropout);
    return k;
}

static void layernorm_case_free(LayernormCase *k) {
    float *all[] = {k->residual,  k->branch, k->gamma, k->beta, k->dout,
                    k->dresidual, k->dgamma, k->dbeta, k->mask};
    for (int i = 0; i < 9; i++) free(all[i]);
}

// Computes forward in double from the stored residual stream `x`.
static void normalise_in_double(const LayernormCase *k, const float *x, double *out, double *mean,
                                double *rstd) {
    for (size_t row = 0; row < k->rows; row++) {
        const float *r = x + row * k->C;
        double sum = 0, squares = 0;
        for (size_t c = 0; c < k->C; c++) sum += (double)r[c];
        mean[row] = sum / (double)k->C;
        for (size_t c = 0; c < k->C; c++) squares += ((double)r[c] - mean[row]) * ((double)r[c] - mean[row]);
        rstd[row] = 1 / sqrt(squares / (double)k->C + 1e-5);
        for (size_t c = 0; c < k->C; c++)
            out[row * k->C + c] = ((double)r[c] - mean[row]) * rstd[row] * (double)k->gamma[c] +
                                  (double)k->beta[c];
    }
}

static void test_layernorm_forward(const LayernormCase *k, int has_branch) {
    const size_t n = k->rows * k->C, C = k->C;
    double *stream_wanted = as_doubles(k->residual, n), *out_wanted = as_doubles(k->residual, n);
    double *mean_wanted = (double *)calloc(k->rows, sizeof(double)),
           *rstd_wanted = (double *)calloc(k->rows, sizeof(double));
    floatX *residual = upload(k->residual, n), *branch = has_branch ? upload(k->branch, n) : NULL;
    floatX *gamma = upload(k->gamma, C), *beta = upload(k->beta, C);
    floatX *out = poisoned<floatX>(n), *sum = poisoned<floatX>(n), *again = poisoned<floatX>(n);
    float *mean = poisoned<float>(k->rows), *rstd = poisoned<float>(k->rows);
    for (size_t i = 0; has_branch && i < n; i++)
        stream_wanted[i] += (double)k->mask[i] * (double)k->branch[i];
    layernorm_forward(has_branch ? sum : NULL, out, mean, rstd, residual, branch, gamma, beta, k->rows / k->T,
                      k->T, C, &k->dropout, 0);
    if (has_branch) expect_rounded("residual + dropout", sum, stream_wanted, n, 1e-6);
    float *stream = has_branch ? download(sum, n) : download(residual, n);
    normalise_in_double(k, stream, out_wanted, mean_wanted, rstd_wanted);
    expect_rounded("layernorm", out, out_wanted, n, 1e-5);
    expect_sum("layernorm mean", mean, mean_wanted, k->rows);
    float *got = download(rstd, k->rows);
    for (size_t i = 0; i < k->rows; i++)
        EXPECT(fabs((double)got[i] - rstd_wanted[i]) < 1e-5 * rstd_wanted[i], "rstd of row %zu: %g", i,
               (double)got[i]);
    float *cpu[4] = {random_floats(n, 1), random_floats(n, 1), random_floats(k->rows, 1),
                     random_floats(k->rows, 1)};
    layernorm_forward_cpu(cpu[0], cpu[1], cpu[2], cpu[3], k->residual, has_branch ? k->branch : NULL,
                          k->gamma, k->beta, k->rows / k->T, k->T, C, &k->dropout);
    if (has_branch) expect_specification("residual + dropout", sum, cpu[0], n);
    expect_specification("layernorm", out, cpu[1], n);
    expect_specification("layernorm rstd", rstd, cpu[3], k->rows);
    for (int i = 0; i < 4; i++) free(cpu[i]);
    layernorm_normalise(again, has_branch ? sum : residual, mean, rstd, gamma, beta, k->rows, C, 0);
    EXPECT(same_bits_on_device(out, again, n), "layernorm_normalise gives other bits than layernorm_forward");
    free(got), free(stream), free(stream_wanted), free(out_wanted), free(mean_wanted), free(rstd_wanted);
    device_free(residual), device_free(branch), device_free(gamma), device_free(beta);
    device_free_poisoned(out), device_free_poisoned(sum), device_free_poisoned(again);
    device_free_poisoned(mean), device_free_poisoned(rstd);
}

// Computes gradients in double: dresidual +=, dgamma +=, dbeta +=.
static void layernorm_backward_in_double(const LayernormCase *k, const float *mean, const float *rstd,
                                         double *dresidual, double *dgamma, double *dbeta) {
    for (size_t row = 0; row < k->rows; row++) {
        const size_t first = row * k->C;
        double sum = 0, product = 0, m = (double)mean[row], r = (double)rstd[row];
        for (size_t c = 0; c < k->C; c++) {
            double g = (double)k->dout[first + c] * (double)k->gamma[c];
            double xhat = ((double)k->residual[first + c] - m) * r;
            sum += g / (double)k->C;
            product += g * xhat / (double)k->C;
            dgamma[c] += (double)k->dout[first + c] * xhat;
            dbeta[c] += (double)k->dout[first + c];
        }
        for (size_t c = 0; c < k->C; c++) {
            double g = (double)k->dout[first + c] * (double)k->gamma[c];
            double xhat = ((double)k->residual[first + c] - m) * r;
            dresidual[first + c] += r * (g - sum - xhat * product);
        }
    }
}

static void test_layernorm_backward(const LayernormCase *k, int has_branch) {
    const size_t n = k->rows * k->C, C = k->C;
    float *mean = random_floats(k->rows, 0.1), *rstd = random_floats(k->rows, 0.2);
    for (size_t i = 0; i < k->rows; i++) rstd[i] += 0.8f;
    double *dresidual = as_doubles(k->dresidual, n), *dgamma = as_doubles(k->dgamma, C),
           *dbeta = as_doubles(k->dbeta, C);
    layernorm_backward_in_double(k, mean, rstd, dresidual, dgamma, dbeta);
    floatX *dout = upload(k->dout, n), *x = upload(k->residual, n), *gamma = upload(k->gamma, C);
    float *d_mean = upload<float>(mean, k->rows), *d_rstd = upload<float>(rstd, k->rows);
    floatX *got_residual[2], *got_branch[2];
    float *got_gamma[2], *got_beta[2], *partial = poisoned<float>(layernorm_scratch(C));
    for (int i = 0; i < 2; i++) {
        got_residual[i] = poisoned_copy<floatX>(k->dresidual, n), got_branch[i] = poisoned<floatX>(n);
        got_gamma[i] = poisoned_copy(k->dgamma, C), got_beta[i] = poisoned_copy(k->dbeta, C);
        layernorm_backward(got_residual[i], has_branch ? got_branch[i] : NULL, got_gamma[i], got_beta[i],
                           partial, dout, x, d_mean, d_rstd, gamma, k->rows / k->T, k->T, C, &k->dropout, 0);
    }
    expect_rounded("layernorm dresidual", got_residual[0], dresidual, n, 1e-5);
    if (has_branch) { // dbranch is exactly the stored dresidual after dropout
        float *stored = download(got_residual[0], n), *branch = download(got_branch[0], n);
        size_t wrong = 0;
        for (size_t i = 0; i < n; i++) wrong += branch[i] != as_floatX(stored[i] * k->mask[i]);
        EXPECT(wrong == 0 && guards_hold_on_device(got_branch[0], n),
               "%zu of %zu elements of dbranch are not dresidual after dropout", wrong, n);
        free(stored), free(branch);
    }
    expect_sum("layernorm dgamma", got_gamma[0], dgamma, C);
    expect_sum("layernorm dbeta", got_beta[0], dbeta, C);
    float *cpu[3] = {random_floats(n, 1), random_floats(n, 1), random_floats(layernorm_scratch(C), 1)};
    memcpy(cpu[0], k->dresidual, n * sizeof(float));
    float *cpu_gamma = random_floats(C, 1), *cpu_beta = random_floats(C, 1);
    memcpy(cpu_gamma, k->dgamma, C * sizeof(float)), memcpy(cpu_beta, k->dbeta, C * sizeof(float));
    layernorm_backward_cpu(cpu[0], has_branch ? cpu[1] : NULL, cpu_gamma, cpu_beta, cpu[2], k->dout,
                           k->residual, mean, rstd, k->gamma, k->rows / k->T, k->T, C, &k->dropout);
    expect_specification("layernorm dresidual", got_residual[0], cpu[0], n);
    if (has_branch) expect_specification("layernorm dbranch", got_branch[0], cpu[1], n);
    expect_specification("layernorm dgamma", got_gamma[0], cpu_gamma, C);
    expect_specification("layernorm dbeta", got_beta[0], cpu_beta, C);
    for (int i = 0; i < 3; i++) free(cpu[i]);
    free(cpu_gamma), free(cpu_beta);
    EXPECT(same_bits_on_device(got_residual[0], got_residual[1], n) &&
               same_bits_on_device(got_gamma[0], got_gamma[1], C) &&
               same_bits_on_device(got_beta[0], got_beta[1], C),
           "layernorm backward: other bits the second time");
    EXPECT(guards_hold_on_device(partial, layernorm_scratch(C)),
           "layernorm backward writes outside its scratch");
    for (int i = 0; i < 2; i++) {
        device_free_poisoned(got_residual[i]), device_free_poisoned(got_branch[i]);
        device_free_poisoned(got_gamma[i]), device_free_poisoned(got_beta[i]);
    }
    device_free(dout), device_free(x), device_free(gamma), device_free(d_mean), device_free(d_rstd);
    device_free_poisoned(partial);
    free(mean), free(rstd), free(dresidual), free(dgamma), free(dbeta);
}

static void test_layernorm(size_t N, size_t T, size_t C, double p) {
    LayernormCase k = layernorm_case(N, T, C, p);
    for (int has_branch = 0; has_branch < 2; has_branch++) {
        test_layernorm_forward(&k, has_branch);
        test_layernorm_backward(&k, has_branch);
    }
    layernorm_case_free(&k);
}

// ---- softmax and cross-entropy ----------------------------------------------------------------------------

static void test_cross_entropy(size_t N, size_t V, size_t Vp, double size) {
    const double scale = 0.37;
    float *logits = random_floatX(N * Vp, size);
    int32_t *targets = random_tokens(N, V);
    double *gradient = (double *)calloc(N * Vp, sizeof(double)),
           *losses = (double *)calloc(N, sizeof(double));
    if (N > 2) targets[1] = IGNORE_TARGET;
    targets[0] = (int32_t)V - 1;
    for (size_t i = 0; i < N; i++) {
        double sum = 0, maximum = -INFINITY;
        if (targets[i] == IGNORE_TARGET) continue;
        for (size_t v = 0; v < V; v++) maximum = fmax(maximum, (double)logits[i * Vp + v]);
        for (size_t v = 0; v < V; v++) sum += exp((double)logits[i * Vp + v] - maximum);
        losses[i] = log(sum) + maximum - (double)logits[i * Vp + (size_t)targets[i]];
        for (size_t v = 0; v < V; v++)
            gradient[i * Vp + v] = scale * (exp((double)logits[i * Vp + v] - maximum) / sum -
                                            (v == (size_t)targets[i]));
    }
    int32_t *d_targets = upload_as_is(targets, N);
    floatX *d_logits[2];
    float *d_losses[3];
    for (int i = 0; i < 2; i++) {
        d_logits[i] = poisoned_copy<floatX>(logits, N * Vp), d_losses[i] = poisoned<float>(N);
        if (i == 0) {
            d_losses[2] = poisoned<float>(N);
            cross_entropy_forward(d_losses[2], d_logits[i], d_targets, N, V, Vp, 0);
        }
        cross_entropy_backward(d_losses[i], d_logits[i], d_targets, (float)scale, N, V, Vp, 0);
    }
    expect_rounded("dlogits", d_logits[0], gradient, N * Vp, 1e-6 * (1 + size));
    expect_sum("losses", d_losses[0], losses, N);
    float *cpu = random_floats(N, 1);
    cross_entropy_backward_cpu(cpu, logits, targets, (float)scale, N, V, Vp);
    expect_specification("losses", d_losses[0], cpu, N);
    expect_specification("dlogits", d_logits[0], logits, N * Vp);
    free(cpu);
    EXPECT(same_bits_on_device(d_losses[0], d_losses[2], N), "losses differ with and without gradients");
    EXPECT(same_bits_on_device(d_logits[0], d_logits[1], N * Vp), "dlogits: other bits the second time");
    double *sum = upload_as_is(losses, 1), wanted = 0;
    for (size_t i = 0; i < N; i++) wanted += losses[i] / 3;
    loss_add(sum, d_losses[0], N, 3, 0, 0);
    loss_add(sum, d_losses[0], N, 3, 1, 0);
    double *got = download_as_is(sum, 1);
    EXPECT(fabs(*got - 2 * wanted) < 1e-5 * (1 + wanted), "sum of losses %g, wanted %g", *got, 2 * wanted);
    for (int i = 0; i < 2; i++) device_free_poisoned(d_logits[i]);
    for (int i = 0; i < 3; i++) device_free_poisoned(d_losses[i]);
    device_free(d_targets), device_free(sum), free(got), free(logits), free(targets), free(gradient),
        free(losses);
}

// ---- AdamW and the norm -----------------------------------------------------------------------------------

typedef struct {
    size_t n;
    float *master, *m, *v, *gradients;
    AdamWChunk *chunks;
    size_t num_chunks;
} AdamWCase;

static AdamWCase adamw_case(size_t n) {
    AdamWCase k = {
        n, random_floats(n, 1), random_floats(n, 0.1), random_floats(n, 0.01), random_floats(n, 0.1), NULL,
        0};
    for (size_t i = 0; i < n; i++) k.v[i] = fabsf(k.v[i]);
    k.chunks = (AdamWChunk *)calloc(divide_up(n, 496), sizeof(AdamWChunk));
    for (size_t first = 0; first < n; first += 496, k.num_chunks++) {
        AdamWChunk *c = &k.chunks[k.num_chunks];
        size_t neighbour = 496 * (k.num_chunks ^ 1); // gradients and moments of two chunks are swapped
        c->number = k.num_chunks;
        c->weight = c->master = first;
        c->gradient = c->moment = min_size(first, neighbour) + 2 * 496 <= n ? neighbour : first;
        c->size = (uint32_t)min_size(n - first, 496);
        c->decay = k.num_chunks % 2 ? 0.1f : 0.0f;
    }
    return k;
}

// Performs two steps on the device and on the CPU, then one that is skipped because of a NaN.
static void test_adamw(size_t n, double max_norm, int stochastic) {
    AdamWCase k = adamw_case(n);
    AdamW a = {1e-2, 0.9, 0.95, 1e-8, max_norm, stochastic, 99};
    StepOutcome start = {0, 0, 6, 0, {0}, 0, 0, 0}, wanted = start;
    double *scratch = (double *)calloc(step_totals(k.num_chunks), sizeof(double));
    scratch[TOTAL_LOSS] = 1.5;
    float *master = upload<float>(k.master, n), *m = poisoned_copy(k.m, n), *v = poisoned_copy(k.v, n);
    float *gradients = upload<float>(k.gradients, n);
    floatX *weights = sizeof(floatX) == sizeof(float) ? (floatX *)(void *)master : poisoned<floatX>(n);
    AdamWChunk *chunks = upload_as_is(k.chunks, k.num_chunks);
    double *totals = upload_as_is(scratch, step_totals(k.num_chunks));
    StepOutcome *outcome = upload_as_is(&start, 1);
    for (int step = 0; step < 2; step++) {
        square_sums(totals, gradients, chunks, k.num_chunks, 0);
        step_outcome(outcome, totals, k.num_chunks, &a, 0);
        adamw_update(weights, master, m, v, gradients, chunks, k.num_chunks, &a, outcome, 0);
        square_sums_cpu(scratch, k.gradients, k.chunks, k.num_chunks);
        step_outcome_cpu(&wanted, scratch, k.num_chunks, &a);
        adamw_update_cpu(k.master, k.m, k.v, k.gradients, k.chunks, k.num_chunks, &a, &wanted);
    }
    StepOutcome *got = download_as_is(outcome, 1);
    EXPECT(fabs(got->norm - wanted.norm) < 1e-12 * wanted.norm && got->updates == 8 && !got->skipped &&
               got->clip == wanted.clip && got->loss == 1.5,
           "norm %g, wanted %g, %d updates", got->norm, wanted.norm, (int)got->updates);
    double *master_wanted = as_doubles(k.master, n), *m_wanted = as_doubles(k.m, n),
           *v_wanted = as_doubles(k.v, n);
    float *got_master = download(master, n), *got_weights = download(weights, n);
    expect_close("master weights", got_master, master_wanted, n, 2e-6);
    expect_sum("moment 1", m, m_wanted, n);
    expect_sum("moment 2", v, v_wanted, n);
    for (size_t i = 0; i < n; i++) {
        float low = as_floatX(got_master[i]), unit = fabsf(got_master[i]) * 2 * (float)floatX_epsilon();
        int right = stochastic ? fabsf(got_weights[i] - got_master[i]) <= unit : got_weights[i] == low;
        if (!right)
            EXPECT(0, "weight %zu is %.9g, its master %.9g", i, (double)got_weights[i],
                   (double)got_master[i]);
    }
    scratch[TOTAL_LOSS] = NAN;
    copy_and_wait(outcome, &start, sizeof(start));
    copy_and_wait(totals, scratch, sizeof(double));
    step_outcome(outcome, totals, k.num_chunks, &a, 0);
    adamw_update(weights, master, m, v, gradients, chunks, k.num_chunks, &a, outcome, 0);
    float *kept = download(master, n);
    StepOutcome *skipped = download_as_is(outcome, 1);
    EXPECT(memcmp(kept, got_master, n * sizeof(float)) == 0 && skipped->skipped && skipped->updates == 6,
           "a loss of NaN does not skip the step");
    round_weights(weights, master, 0, n, 0, 0, NULL, 0);
    float *rounded = download(weights, n);
    size_t wrong = 0;
    for (size_t i = 0; i < n; i++) wrong += rounded[i] != as_floatX(kept[i]);
    EXPECT(wrong == 0, "%zu of %zu weights are not their masters rounded", wrong, n);
    if ((void *)weights != (void *)master) device_free_poisoned(weights);
    device_free(master), device_free_poisoned(m), device_free_poisoned(v), device_free(gradients);
    device_free(chunks), device_free(totals), device_free(outcome);
    free(scratch), free(got), free(master_wanted), free(m_wanted), free(v_wanted), free(got_master);
    free(got_weights), free(kept), free(skipped), free(rounded);
    free(k.master), free(k.m), free(k.v), free(k.gradients), free(k.chunks);
}

// Stochastic rounding is unbiased, independent for adjacent elements and from update to update, and reproducible.
// 1 + 0.3 / 128 is three tenths of the way between two bf16 numbers.
static void test_stochastic_rounding(void) {
    enum { N = 8192 };
    static float master[N], zeros[N];
    for (int i = 0; i < N; i++) master[i] = 1.0f + 0.3f / 128;
    AdamWChunk chunk = {0, 0, 0, 0, 0, N, 0};
    AdamW a = {0, 0.9, 0.95, 1, 0, 1, 5};
    float *d_master = upload<float>(master, N), *m = upload<float>(zeros, N), *v = upload<float>(zeros, N);
    floatX *weights[2] = {poisoned<floatX>(N), poisoned<floatX>(N)};
    AdamWChunk *chunks = upload_as_is(&chunk, 1);
    float *up[2];
    for (int update = 0; update < 2; update++) {
        StepOutcome go = {0, 0, update + 1, 0, {0}, 1, 1, 1};
        StepOutcome *outcome = upload_as_is(&go, 1);
        adamw_update(weights[0], d_master, m, v, m, chunks, 1, &a, outcome, 0);
        round_weights(weights[1], d_master, 0, N / 2, 1, a.seed, outcome, 0);
        round_weights(weights[1] + N / 2, d_master + N / 2, N / 2, N / 2, 1, a.seed, outcome, 0);
        EXPECT(same_bits_on_device(weights[0], weights[1], N), "rounding again gives other bits");
        up[update] = download(weights[0], N);
        for (int i = 0; i < N; i++) up[update][i] = (up[update][i] - 1.0f) * 128;
        device_free(outcome);
    }
    const double p = (double)(float)(1.0f + 0.3f / 128) * 128 - 128, sigma = sqrt(p * (1 - p) / N);
    for (int update = 0; update < 2; update++) {
        double mean = 0, neighbours = 0, updates = 0;
        for (int i = 0; i < N; i++) {
            mean += (double)up[update][i] / N;
            neighbours += ((double)up[update][i] - p) * ((double)up[update][(i + 1) % N] - p) / N;
            updates += ((double)up[0][i] - p) * ((double)up[1][i] - p) / N;
        }
        EXPECT(fabs(mean - p) < 4 * sigma, "%g of the weights are rounded up, wanted %g", mean, p);
        EXPECT(fabs(neighbours) < 5 * p * (1 - p) / sqrt((double)N) &&
                   fabs(updates) < 5 * p * (1 - p) / sqrt((double)N),
               "covariance of neighbours %g, of updates %g", neighbours, updates);
    }
    for (int i = 0; i < 2; i++) free(up[i]), device_free_poisoned(weights[i]);
    device_free(d_master), device_free(m), device_free(v), device_free(chunks);
}

int main(int argc, char **argv) {
    (void)argc;
    const char *refusal = device_open(argv, 0);
    if (refusal != NULL) {
        printf("%s\n", refusal);
        return 1;
    }
    const int small = test_is_small();
    static const size_t sizes[] = {1, 7, 8, 9, 2047, 4096};
    for (int i = 0; i < 6; i++) test_gelu(sizes[i]);
    test_embedding(1, 1, 8, 1, 1, 0);
    test_embedding(3, 5, 24, 7, 7, 0.17);
    test_embedding(2, 17, 264, 70, 70, 0.5);
    test_embedding(1, 4200, 8, 300, 3, 0); // two segments; most blocks have no token in either
    if (!small) test_embedding(5, 1000, 16, 40, 40, 0.1);
    test_layernorm(1, 1, 8, 0);
    test_layernorm(2, 3, 40, 0.17);
    test_layernorm(3, 7, 264, 0.5);
    test_layernorm(1, 5, 768, 0);
    if (!small) test_layernorm(3, 400, 16, 0.1); // more rows than blocks
    if (!small) test_layernorm(1, 3, 4104, 0.1); // two units per thread
    test_cross_entropy(1, 1, 8, 1);
    test_cross_entropy(5, 19, 128, 5);
    test_cross_entropy(3, 128, 128, 30);
    if (!small) test_cross_entropy(4, 5001, 5120, 3);
    test_adamw(1, 0, 0);
    test_adamw(1003, 0.5, 0);
    test_adamw(2000, 0.5, sizeof(floatX) == 2);
    if (!small) test_adamw(40000, 1, 0); // more than one chunk of the norm
    if (DEVICE_IS_BF16) test_stochastic_rounding();
    return test_finish();
}
