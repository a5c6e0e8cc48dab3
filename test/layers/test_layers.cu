// Compares every layer on the CPU, except matmul and attention, with definitions in double precision, and gradients
// with central differences of those definitions; odd sizes. Tests the statistics and the closed form of dropout.
#include <omp.h>

#include "layers/adamw.cuh"
#include "layers/embedding.cuh"
#include "layers/gelu.cuh"
#include "layers/layernorm.cuh"
#include "data/run/outlier.h"
#include "data/sampling/sampling.h"
#include "layers/softmax_cross_entropy.cuh"
#include "test/harness/arrays.h"

static const Dropout no_dropout = {256, {0, 0}, 0, 0};

// ---- random numbers ---------------------------------------------------------------------------------------

// Known answers of the Random123 distribution (kat_vectors, philox 4x32-10).
static void test_philox(void) {
    static const struct {
        uint32_t counter[4], key[2], result[4];
    } known[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
         {0xffffffff, 0xffffffff},
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xa4093822, 0x299f31d0},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (int i = 0; i < 3; i++) {
        PhiloxKey key = {known[i].key[0], known[i].key[1]};
        const uint32_t *c = known[i].counter;
        Philox one = philox(key, c[0], c[1], c[2], c[3]);
        EXPECT(memcmp(one.v, known[i].result, 16) == 0, "philox, known answer %d", i);
        uint32_t word[4][PHILOX_LANES];
        for (int lane = 0; lane < PHILOX_LANES; lane++)
            for (int w = 0; w < 4; w++) word[w][lane] = c[w] + (uint32_t)(w == 1 ? lane : 0);
        philox_lanes(key, word[0], word[1], word[2], word[3]);
        for (int lane = 0; lane < PHILOX_LANES; lane++) {
            one = philox(key, c[0], c[1] + (uint32_t)lane, c[2], c[3]);
            EXPECT(word[0][lane] == one.v[0] && word[1][lane] == one.v[1] && word[2][lane] == one.v[2] &&
                       word[3][lane] == one.v[3],
                   "lane %d of philox_lanes", lane);
        }
    }
    Philox bytes = {{0x03020100, 0x07060504, 0x0b0a0908, 0x0f0e0d0c}};
    for (int i = 0; i < 16; i++) EXPECT(philox_byte(&bytes, i) == (uint32_t)i, "byte %d", i);
}

static void test_dropout_threshold(void) {
    static const struct {
        double p;
        uint32_t threshold;
    } cases[] = {{0, 256},   {0.1, 230}, {0.17, 212}, {0.5, 128}, {0.9, 26},
                 {0.001, 0}, {0.999, 0}, {1, 0},      {-0.1, 0},  {NAN, 0}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        EXPECT(dropout_threshold(cases[i].p) == cases[i].threshold, "p = %g gives %u", cases[i].p,
               dropout_threshold(cases[i].p));
}

// The factors of dropout_row equal the closed form of dropout.h, for any width.
static void test_dropout_closed_form(void) {
    Dropout d = dropout_make(dropout_threshold(0.17), 77, RANDOM_MLP_RESIDUAL, 5, 9, 1000);
    for (size_t C = 1; C < 600; C += 61) {
        float *row = random_floats(C, 1);
        for (size_t c = 0; c < C; c++) row[c] = 1.0f;
        dropout_row(row, C, 3, 2, &d);
        for (size_t c = 0; c < C; c++) {
            Philox r = philox(d.key, (uint32_t)(c / 16), 3, 1002, 9);
            float wanted = philox_byte(&r, (int)(c % 16)) < 212 ? 256.0f / 212.0f : 0.0f;
            if (row[c] != wanted)
                EXPECT(0, "C %zu, channel %zu: %g, not %g", C, c, (double)row[c], (double)wanted);
        }
        EXPECT(1, "unreachable");
        free(row);
    }
}

// Tests the share of elements kept, and the correlation with the masks of other steps, layers, tokens, sequences and
// streams.
static void test_dropout_statistics(void) {
    enum { C = 4096, ROWS = 64 };
    static const double rates[] = {0.1, 0.17, 0.5, 0.9};
    for (int i = 0; i < 4; i++) {
        uint32_t threshold = dropout_threshold(rates[i]);
        double keep = threshold / 256.0, n = (double)C * ROWS;
        static float mask[6][C];
        double kept = 0, product[6] = {0};
        for (size_t row = 0; row < ROWS; row++) {
            Dropout d[6];
            for (int j = 0; j < 6; j++) {
                d[j] = dropout_make(threshold, 42, j == 5 ? RANDOM_EMBEDDING_DROPOUT : RANDOM_MLP_RESIDUAL,
                                    j == 1, j == 2, 0);
                for (int c = 0; c < C; c++) mask[j][c] = 1.0f;
                dropout_row(mask[j], C, row + (j == 3 ? ROWS : 0), j == 4, &d[j]);
            }
            for (int c = 0; c < C; c++) {
                kept += mask[0][c] > 0;
                for (int j = 1; j < 6; j++)
                    product[j] += ((mask[0][c] > 0) - keep) * ((mask[j][c] > 0) - keep);
            }
        }
        double sigma = sqrt(keep * (1 - keep) / n);
        EXPECT(fabs(kept / n - keep) < 4 * sigma, "p %g: kept %g, expected %g", rates[i], kept / n, keep);
        for (int j = 1; j < 6; j++) {
            double correlation = product[j] / n / (keep * (1 - keep));
            EXPECT(fabs(correlation) < 5 / sqrt(n), "p %g: correlation %g of mask 0 and mask %d", rates[i],
                   correlation, j);
        }
    }
}

// ---- exp, GELU --------------------------------------------------------------------------------------------

static void test_fast_exp(void) {
    double worst = 0;
    for (double x = -87; x < 88; x += 0.00137) {
        double wanted = exp((double)(float)x), error = fabs((double)fast_exp((float)x) - wanted) / wanted;
        worst = error > worst ? error : worst;
    }
    EXPECT(worst < 3e-7, "relative error of fast_exp: %g", worst);
    EXPECT(isnan(fast_exp(NAN)), "exp(NaN)");
    EXPECT(fast_exp(-INFINITY) < 2e-38f && fast_exp(-1000) < 2e-38f, "exp of very negative numbers");
    EXPECT(isfinite(fast_exp(INFINITY)) && fast_exp(1000) > 1e38f, "exp of large numbers");
}

static double gelu_in_double(double x) {
    return 0.5 * x * (1 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
}

static void test_gelu(void) {
    enum { N = 1037 };
    float *x = random_floats(N, 6), *dout = random_floats(N, 1), *out = poisoned_floats(N),
          *din = poisoned_floats(N);
    double forward[N], backward[N];
    x[0] = 0;
    x[1] = 40;
    x[2] = -40;
    for (int i = 0; i < N; i++) {
        forward[i] = gelu_in_double((double)x[i]);
        double h = 1e-5;
        backward[i] = (double)dout[i] *
                      (gelu_in_double((double)x[i] + h) - gelu_in_double((double)x[i] - h)) / (2 * h);
    }
    gelu_forward_cpu(out, x, N);
    gelu_backward_cpu(din, dout, x, N);
    expect_close("gelu", out, forward, N, 1e-6);
    expect_close("gelu backward", din, backward, N, 1e-6);
    EXPECT(guards_hold(out, N) && guards_hold(din, N), "gelu writes outside its output");
    free(x), free(dout), free_poisoned(out), free_poisoned(din);
}

// ---- embedding --------------------------------------------------------------------------------------------

static void test_embedding_case(size_t B, size_t T, size_t C, double p) {
    enum { V = 11 };
    const size_t N = B * T;
    Dropout d = dropout_make(dropout_threshold(p), 3, RANDOM_EMBEDDING_DROPOUT, 0, 4, 10);
    float *wte = random_floats(V * C, 1), *wpe = random_floats(T * C, 1), *out = poisoned_floats(N * C);
    float *dout = random_floats(N * C, 1), *dwte = random_floats(V * C, 1), *dwpe = random_floats(T * C, 1);
    double *forward = (double *)malloc(N * C * sizeof(double)), *token_sum = as_doubles(dwte, V * C),
           *position_sum = as_doubles(dwpe, T * C);
    int32_t *tokens = (int32_t *)malloc(N * sizeof(int32_t));
    for (size_t i = 0; i < N; i++) {
        tokens[i] = (int32_t)((test_random() + 1) * V / 2);
        float *mask = (float *)malloc(C * sizeof(float));
        for (size_t c = 0; c < C; c++) mask[c] = 1;
        dropout_row(mask, C, i % T, i / T, &d);
        for (size_t c = 0; c < C; c++) {
            size_t token = (size_t)tokens[i] * C + c, position = i % T * C + c;
            forward[i * C + c] = ((double)wte[token] + (double)wpe[position]) * (double)mask[c];
            token_sum[token] += (double)mask[c] * (double)dout[i * C + c];
            position_sum[position] += (double)mask[c] * (double)dout[i * C + c];
        }
        free(mask);
    }
    embedding_forward_cpu(out, tokens, wte, wpe, B, T, C, &d);
    embedding_backward_cpu(dwte, dwpe, dout, tokens, B, T, C, &d);
    expect_close("embedding", out, forward, N * C, 1e-6);
    expect_close("embedding dwte", dwte, token_sum, V * C, 1e-5);
    expect_close("embedding dwpe", dwpe, position_sum, T * C, 1e-5);
    EXPECT(guards_hold(out, N * C), "embedding writes outside its output");
    free(wte), free(wpe), free_poisoned(out), free(dout), free(dwte), free(dwpe), free(forward),
        free(token_sum);
    free(position_sum), free(tokens);
}

// ---- layernorm --------------------------------------------------------------------------------------------

typedef struct {
    size_t N, T, C;
    int has_branch;
    double *residual, *branch, *mask, *gamma, *beta; // inputs
    double *dout, *dresidual;                        // weights of the outputs in the loss
    double *out, *residual_out, *mean, *rstd;
} LayernormCase;

// Computes forward in double; returns the loss sum(dout * out) + sum(dresidual * residual_out).
static double layernorm_loss(void *context) {
    LayernormCase *k = (LayernormCase *)context;
    double loss = 0;
    for (size_t row = 0; row < k->N * k->T; row++) {
        double mean = 0, variance = 0;
        double *x = k->residual_out + row * k->C;
        for (size_t c = 0; c < k->C; c++) {
            size_t i = row * k->C + c;
            x[c] = k->residual[i] + (k->has_branch ? k->branch[i] * k->mask[i] : 0);
            mean += x[c] / (double)k->C;
            loss += k->dresidual[i] * x[c];
        }
        for (size_t c = 0; c < k->C; c++) variance += (x[c] - mean) * (x[c] - mean) / (double)k->C;
        k->mean[row] = mean;
        k->rstd[row] = 1 / sqrt(variance + 1e-5);
        for (size_t c = 0; c < k->C; c++) {
            size_t i = row * k->C + c;
            k->out[i] = (x[c] - mean) * k->rstd[row] * k->gamma[c] + k->beta[c];
            loss += k->dout[i] * k->out[i];
        }
    }
    return loss;
}

static void test_layernorm_case(size_t N, size_t T, size_t C, int has_branch, double p) {
    const size_t n = N * T * C, rows = N * T;
    Dropout d = dropout_make(dropout_threshold(p), 5, RANDOM_MLP_RESIDUAL, 2, 6, 3);
    float *residual = random_floats(n, 2), *branch = random_floats(n, 1), *gamma = random_floats(C, 1);
    float *beta = random_floats(C, 1), *dout = random_floats(n, 1), *dresidual = random_floats(n, 1);
    float *mask = random_floats(n, 1), *dgamma = random_floats(C, 1), *dbeta = random_floats(C, 1);
    float *out = poisoned_floats(n), *residual_out = poisoned_floats(n), *dbranch = poisoned_floats(n);
    float *mean = poisoned_floats(rows), *rstd = poisoned_floats(rows),
          *partial = poisoned_floats(layernorm_scratch(C));
    for (size_t i = 0; i < n; i++) mask[i] = 1;
    for (size_t row = 0; row < rows; row++) dropout_row(mask + row * C, C, row % T, row / T, &d);

    LayernormCase k = {N,
                       T,
                       C,
                       has_branch,
                       as_doubles(residual, n),
                       as_doubles(branch, n),
                       as_doubles(mask, n),
                       as_doubles(gamma, C),
                       as_doubles(beta, C),
                       as_doubles(dout, n),
                       as_doubles(dresidual, n),
                       as_doubles(out, n),
                       as_doubles(out, n),
                       as_doubles(mean, rows),
                       as_doubles(rstd, rows)};
    double *dgamma_before = as_doubles(dgamma, C), *dbeta_before = as_doubles(dbeta, C);
    double *wanted_residual = central_differences(layernorm_loss, &k, k.residual, n);
    double *wanted_branch = central_differences(layernorm_loss, &k, k.branch, n);
    double *wanted_gamma = central_differences(layernorm_loss, &k, k.gamma, C);
    double *wanted_beta = central_differences(layernorm_loss, &k, k.beta, C);
    for (size_t c = 0; c < C; c++) {
        wanted_gamma[c] += dgamma_before[c]; // backward adds to both
        wanted_beta[c] += dbeta_before[c];
    }
    layernorm_loss(&k);
    layernorm_forward_cpu(has_branch ? residual_out : NULL, out, mean, rstd, residual,
                          has_branch ? branch : NULL, gamma, beta, N, T, C, &d);
    expect_close("layernorm", out, k.out, n, 1e-5);
    expect_close("layernorm mean", mean, k.mean, rows, 1e-5);
    expect_close("layernorm rstd", rstd, k.rstd, rows, 1e-5);
    if (has_branch) expect_close("residual", residual_out, k.residual_out, n, 1e-6);
    layernorm_backward_cpu(dresidual, has_branch ? dbranch : NULL, dgamma, dbeta, partial, dout,
                           has_branch ? residual_out : residual, mean, rstd, gamma, N, T, C, &d);
    expect_close("layernorm dresidual", dresidual, wanted_residual, n, 2e-5);
    if (has_branch) expect_close("layernorm dbranch", dbranch, wanted_branch, n, 2e-5);
    expect_close("layernorm dgamma", dgamma, wanted_gamma, C, 2e-5);
    expect_close("layernorm dbeta", dbeta, wanted_beta, C, 2e-5);
    EXPECT(guards_hold(out, n) && guards_hold(residual_out, n) && guards_hold(dbranch, n) &&
               guards_hold(mean, rows) && guards_hold(rstd, rows) &&
               guards_hold(partial, layernorm_scratch(C)),
           "layernorm writes outside its outputs");
    float *inputs[] = {residual, branch, gamma, beta, dout, dresidual, mask, dgamma, dbeta};
    for (size_t i = 0; i < sizeof(inputs) / sizeof(inputs[0]); i++) free(inputs[i]);
    float *outputs[] = {out, residual_out, dbranch, mean, rstd, partial};
    for (size_t i = 0; i < sizeof(outputs) / sizeof(outputs[0]); i++) free_poisoned(outputs[i]);
    double *doubles[] = {k.residual,   k.branch,      k.mask,       k.gamma,         k.beta,
                         k.dout,       k.dresidual,   k.out,        k.residual_out,  k.mean,
                         k.rstd,       dgamma_before, dbeta_before, wanted_residual, wanted_branch,
                         wanted_gamma, wanted_beta};
    for (size_t i = 0; i < sizeof(doubles) / sizeof(doubles[0]); i++) free(doubles[i]);
}

// ---- softmax, cross-entropy -------------------------------------------------------------------------------

typedef struct {
    size_t N, V, Vp;
    double *logits, scale;
    const int32_t *targets;
    double *losses;
} LossCase;

static double cross_entropy_loss(void *context) {
    LossCase *k = (LossCase *)context;
    double loss = 0;
    for (size_t i = 0; i < k->N; i++) {
        const double *row = k->logits + i * k->Vp;
        double maximum = row[0], sum = 0;
        for (size_t v = 0; v < k->V; v++) maximum = row[v] > maximum ? row[v] : maximum;
        for (size_t v = 0; v < k->V; v++) sum += exp(row[v] - maximum);
        k->losses[i] = k->targets[i] == IGNORE_TARGET ? 0 : log(sum) + maximum - row[k->targets[i]];
        loss += k->scale * k->losses[i];
    }
    return loss;
}

static void test_cross_entropy_case(size_t N, size_t V, size_t Vp, double size) {
    float *logits = random_floats(N * Vp, size), *losses = poisoned_floats(N), *again = poisoned_floats(N);
    int32_t *targets = (int32_t *)malloc(N * sizeof(int32_t));
    for (size_t i = 0; i < N; i++) {
        targets[i] = i % 4 == 3 ? IGNORE_TARGET : (int32_t)((test_random() + 1) / 2 * (double)V);
        for (size_t v = V; v < Vp; v++) logits[i * Vp + v] = 1e30f; // padding must be ignored
    }
    double *doubles = as_doubles(logits, N * Vp), *wanted_losses = as_doubles(losses, N);
    LossCase k = {N, V, Vp, doubles, 0.37, targets, wanted_losses};
    double *gradient = central_differences(cross_entropy_loss, &k, doubles, N * Vp);
    cross_entropy_loss(&k);
    cross_entropy_forward_cpu(losses, logits, targets, N, V, Vp);
    expect_close("cross-entropy", losses, wanted_losses, N, 2e-6);
    cross_entropy_backward_cpu(again, logits, targets, 0.37f, N, V, Vp);
    EXPECT(memcmp(losses, again, N * sizeof(float)) == 0, "losses differ between the two functions");
    expect_close("dlogits", logits, gradient, N * Vp, 1e-5);
    EXPECT(guards_hold(losses, N) && guards_hold(again, N), "cross-entropy writes outside its output");
    free(logits), free_poisoned(losses), free_poisoned(again), free(targets), free(doubles),
        free(wanted_losses);
    free(gradient);
}

// ---- optimizer --------------------------------------------------------------------------------------------

static void test_adamw(void) {
    enum { N = 1003, STEPS = 5 };
    float *w = random_floats(N, 1), m[N] = {0}, v[N] = {0};
    double *wanted = as_doubles(w, N), md[N] = {0}, vd[N] = {0};
    const AdamW adamw = {1e-2, 0.9, 0.95, 1e-8, 3, 0, 0};
    const AdamWChunk chunks[] = {{0, 0, 0, 0, 0, 512, 0.1f}, {1, 512, 512, 512, 512, N - 512, 0.0f}};
    StepOutcome outcome = {0, 0, 0, 0, {0}, 0, 0, 0};
    double totals[TOTAL_SQUARES] = {0};
    for (int step = 1; step <= STEPS; step++) {
        float *g = random_floats(N, 0.1);
        outcome_decide(&outcome, totals, 6 * 6, &adamw); // clips by 3 / 6
        adamw_update_cpu(w, m, v, g, chunks, 2, &adamw, &outcome);
        for (int i = 0; i < N; i++) {
            double gradient = 0.5 * (double)g[i];
            md[i] = 0.9 * md[i] + 0.1 * gradient;
            vd[i] = 0.95 * vd[i] + 0.05 * gradient * gradient;
            double mhat = md[i] / (1 - pow(0.9, step)), vhat = vd[i] / (1 - pow(0.95, step));
            wanted[i] -= 1e-2 * (mhat / (sqrt(vhat) + 1e-8) + (i < 512 ? 0.1 : 0) * wanted[i]);
        }
        free(g);
    }
    expect_close("adamw", w, wanted, N, 1e-5);
    float kept = w[3];
    outcome_decide(&outcome, totals, NAN, &adamw);
    adamw_update_cpu(w, m, v, w, chunks, 2, &adamw, &outcome);
    EXPECT(outcome.skipped && outcome.updates == STEPS && w[3] == kept,
           "a norm of NaN does not skip the step");
    totals[TOTAL_LOSS] = INFINITY;
    outcome_decide(&outcome, totals, 1, &adamw);
    EXPECT(outcome.skipped, "an infinite loss does not skip the step");
    totals[TOTAL_LOSS] = 1;
    outcome_decide(&outcome, totals, INFINITY, &adamw);
    EXPECT(outcome.skipped, "an infinite norm does not skip the step");
    totals[TOTAL_SIGNALS] = 2, totals[TOTAL_SIGNALS + 1] = 1, totals[TOTAL_SIGNALS + 2] = 3;
    outcome_decide(&outcome, totals, 4.5 * 4.5, &adamw);
    EXPECT(outcome.signals[0] == 2 && outcome.signals[1] == 1 && outcome.signals[2] == 3 && outcome.loss == 1,
           "flags: %d processes are asked to end, %d to save, %d have written", outcome.signals[0],
           outcome.signals[1], outcome.signals[2]);
    EXPECT(!outcome.signals[SIGNAL_VETO] && !outcome.skipped && outcome.clip == 3.0f / 4.5f,
           "a norm of 4.5 is clipped by %g", (double)outcome.clip);
    totals[TOTAL_SIGNALS + SIGNAL_VETO] = 1;
    outcome_decide(&outcome, totals, 1, &adamw);
    EXPECT(outcome.signals[SIGNAL_VETO] == 1 && outcome.skipped,
           "a process without data does not skip the step");
    totals[TOTAL_SIGNALS + SIGNAL_VETO] = 0;
    outcome_decide(&outcome, totals, 2.9 * 2.9, &adamw);
    EXPECT(outcome.clip == 1, "a norm below the limit is clipped by %g", (double)outcome.clip);
    AdamW no_limit = adamw;
    no_limit.max_norm = 0;
    outcome_decide(&outcome, totals, 1e18, &no_limit);
    EXPECT(outcome.clip == 1, "without a limit the clip is %g", (double)outcome.clip);
    free(w), free(wanted);
}

// With losses around 3 and a deviation of 0.1, a loss far above is an outlier and one far below is not, even if some of
// the recent losses were far above, and others NaN.
static void test_outliers(void) {
    enum { CAPACITY = 128 };
    double recent[CAPACITY], same[20];
    int64_t count = 0;
    EXPECT(is_outlier(NAN, recent, 0, 8) && is_outlier(INFINITY, recent, 0, 8), "NaN is an outlier at once");
    for (int i = 0; i < OUTLIER_MIN_LOSSES - 1; i++) outlier_add(3, recent, &count, CAPACITY);
    EXPECT(!is_outlier(1e9, recent, count, 8), "%d losses are no judge", OUTLIER_MIN_LOSSES - 1);
    for (int i = 0; i < 1000; i++) {
        double loss = 3 + 0.1 * sqrt(3) * test_random(); // uniform: MAD 0.0866, scale 0.128
        outlier_add(i % 3 == 0 ? NAN : i % 7 == 0 ? 1e6 : loss, recent, &count, CAPACITY);
    }
    EXPECT(count == CAPACITY, "%d losses are kept", (int)count);
    for (int i = 0; i < CAPACITY; i++) EXPECT(isfinite(recent[i]), "a loss that is not finite was kept");
    EXPECT(!is_outlier(3.3, recent, count, 8) && is_outlier(5, recent, count, 8),
           "a sixth of 1e6 among them moves the limit");
    EXPECT(!is_outlier(-100, recent, count, 8), "a low loss is an outlier");
    for (int i = 0; i < CAPACITY; i++) outlier_add(i, recent, &count, CAPACITY);
    for (int i = 0; i < CAPACITY; i++)
        EXPECT(recent[i] == i, "the oldest first: %g is number %d", recent[i], i);
    for (int i = 0; i < 20; i++) same[i] = 2;
    EXPECT(is_outlier(2.1, same, 20, 8) && !is_outlier(2.07, same, 20, 8), "losses that are all the same");
    same[0] = 1, same[1] = 4; // the median of 20 is the mean of two
    EXPECT(outlier_median(same, 20) == 2 && outlier_median(same, 2) == 1.5, "medians");
}

// The norm is that of all chunks, of any size, including those of other processes.
static void test_global_norm(void) {
    const AdamW adamw = {1e-2, 0.9, 0.95, 1e-8, 3, 0, 0};
    for (size_t n = 1; n < 60000; n = n * 3 + 7) {
        AdamWChunk chunks[8];
        StepOutcome outcome = {0, 0, 0, 0, {0}, 0, 0, 0};
        float *g = random_floats(n, 3);
        double totals[TOTAL_SQUARES + 9] = {1, 0}, others = 2.5, sum = others;
        size_t count = 0;
        for (size_t first = 0; first < n; first += ADAMW_CHUNK, count++) {
            AdamWChunk chunk = {8 - count, 0, 0, first, 0, (uint32_t)min_size(n - first, ADAMW_CHUNK), 0};
            chunks[count] = chunk;
        }
        totals[TOTAL_SQUARES] = others;
        for (size_t i = 0; i < n; i++) sum += (double)g[i] * (double)g[i];
        square_sums_cpu(totals, g, chunks, count);
        step_outcome_cpu(&outcome, totals, 9, &adamw);
        EXPECT(fabs(outcome.norm - sqrt(sum)) < 1e-12 * sqrt(sum), "norm of %zu: %.17g, not %.17g", n,
               outcome.norm, sqrt(sum));
        g[n / 2] = NAN;
        square_sums_cpu(totals, g, chunks, count);
        step_outcome_cpu(&outcome, totals, 9, &adamw);
        EXPECT(isnan(outcome.norm) && outcome.skipped, "a NaN among %zu does not show in the norm", n);
        free(g);
    }
}

// ---- sampling ---------------------------------------------------------------------------------------------

static void test_sampling(void) {
    float logits[] = {logf(0.1f), logf(0.4f), logf(0.2f), logf(0.3f)};
    EXPECT(sample_token(logits, 4, 0, 0, 1, 0.99) == 1, "temperature 0 is greedy");
    static const struct {
        size_t top_k;
        double top_p, expected[4];
    } cases[] = {{0, 1, {0.1, 0.4, 0.2, 0.3}},      {2, 1, {0, 4 / 7., 0, 3 / 7.}},
                 {0, 0.65, {0, 4 / 7., 0, 3 / 7.}}, {1, 1, {0, 1, 0, 0}},
                 {0, 1e-6, {0, 1, 0, 0}},           {3, 0.7, {0, 4 / 7., 0, 3 / 7.}}};
    for (int c = 0; c < 6; c++) {
        enum { DRAWS = 10000 };
        double count[4] = {0};
        for (int i = 0; i < DRAWS; i++)
            count[sample_token(logits, 4, 1, cases[c].top_k, cases[c].top_p, (i + 0.5) / DRAWS)] += 1.0 /
                                                                                                    DRAWS;
        for (int v = 0; v < 4; v++)
            EXPECT(fabs(count[v] - cases[c].expected[v]) < 2e-3, "case %d, token %d: %g, not %g", c, v,
                   count[v], cases[c].expected[v]);
    }
    float huge[] = {1e4f, 9e3f, -1e4f};
    EXPECT(sample_token(huge, 3, 1, 0, 1, 0.5) == 0, "large logits do not overflow");
}

// ---- bitwise the same results for any number of threads ---------------------------------------------------

static void test_threads(void) {
    enum { N = 3, T = 41, C = 100 };
    float *x = random_floats(N * T * C, 1), *g = random_floats(C, 1), *dout = random_floats(N * T * C, 1);
    float out[2][N * T * C], mean[N * T], rstd[N * T], dresidual[2][N * T * C], dgamma[2][C], dbeta[2][C];
    float *partial = random_floats(layernorm_scratch(C), 1);
    for (int run = 0; run < 2; run++) {
        omp_set_num_threads(run == 0 ? 1 : 3);
        memset(dresidual[run], 0, sizeof(dresidual[run]));
        memset(dgamma[run], 0, sizeof(dgamma[run]));
        memset(dbeta[run], 0, sizeof(dbeta[run]));
        layernorm_forward_cpu(NULL, out[run], mean, rstd, x, NULL, g, g, N, T, C, &no_dropout);
        layernorm_backward_cpu(dresidual[run], NULL, dgamma[run], dbeta[run], partial, dout, x, mean, rstd, g,
                               N, T, C, &no_dropout);
    }
    EXPECT(memcmp(out[0], out[1], sizeof(out[0])) == 0 &&
               memcmp(dgamma[0], dgamma[1], sizeof(dgamma[0])) == 0 &&
               memcmp(dbeta[0], dbeta[1], sizeof(dbeta[0])) == 0 &&
               memcmp(dresidual[0], dresidual[1], sizeof(dresidual[0])) == 0,
           "layernorm's bits depend on the number of threads");
    free(x), free(g), free(dout), free(partial);
}

int main(void) {
    test_philox();
    test_dropout_threshold();
    test_dropout_closed_form();
    test_dropout_statistics();
    test_fast_exp();
    test_gelu();
    for (int p = 0; p < 2; p++) {
        test_embedding_case(1, 1, 1, 0.5 * p);
        test_embedding_case(3, 5, 67, 0.1 * p);
        test_embedding_case(2, 17, 144, 0.17 * p);
        for (int has_branch = 0; has_branch < 2; has_branch++) {
            test_layernorm_case(1, 1, 8, has_branch, 0.1 * p);
            test_layernorm_case(3, 7, 33, has_branch, 0.5 * p);
            test_layernorm_case(2, 40, 17, has_branch, 0.17 * p);
        }
    }
    test_cross_entropy_case(1, 1, 1, 1);
    test_cross_entropy_case(5, 65, 128, 3);
    test_cross_entropy_case(9, 128, 128, 50);
    test_cross_entropy_case(4, 257, 384, 1);
    test_adamw();
    test_outliers();
    test_global_norm();
    test_sampling();
    test_threads();
    return test_finish();
}
