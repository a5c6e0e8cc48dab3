// Tests dropout of attention: its mask, which is read back through the kernels and compared with the closed form of
// attention/attention.h element by element, its statistics, and the mean of the results.
#ifndef TEST_ATTENTION_DROPOUT_H
#define TEST_ATTENTION_DROPOUT_H

#include "cases.h"

static const double dropout_rates[] = {0.1, 0.17, 0.5, 0.9};

// ---- masks read back through the kernels ------------------------------------------------------------------

// With q = 0 and full attention every probability is 1 / Tk; if V is one-hot in a window of HS keys, out is nonzero
// exactly where the mask keeps an element. Two sequences, three heads that share one key-value head.
static void test_mask_forward(AttentionVariant variant, size_t Tq, size_t Tk, size_t HS, double p) {
    Inputs in = inputs_create(attention_dense(2, Tq, Tk, 3, 1, HS, MASK_NONE, 1, p), 1);
    const Attention *a = &in.a;
    Outputs o = outputs_create(&in);
    memset(in.q, 0, in.q_size * sizeof(float));
    size_t wrong = 0;
    for (size_t window = 0; window < Tk; window += HS) {
        memset(in.v, 0, in.kv_size * sizeof(float));
        for (size_t b = 0; b < 2; b++)
            for (size_t c = 0; c < HS && window + c < Tk; c++)
                in.v[b * a->kv_sequence + (window + c) * a->kv_token + c] = 1;
        run_forward(variant, &in, &o);
        for (size_t i = 0; i < in.q_size; i++) {
            size_t b = i / a->out_sequence, query = i % a->out_sequence / a->out_token;
            size_t h = i % a->out_token / HS, key = window + i % HS;
            int kept = key < Tk && attention_dropout_keeps(a, b, h, query, key);
            wrong += !(kept ? o.x[OUT][i] > 0 : o.x[OUT][i] == 0);
        }
    }
    EXPECT(wrong == 0, "%s, Tq %zu, Tk %zu, HS %zu, p %g: %zu elements of the forward mask differ",
           variant_names[variant], Tq, Tk, HS, p, wrong);
    outputs_free(&o), inputs_free(&in);
}

// dO is one-hot in a window of HS / 2 queries, with a separate half of the columns for each of the two heads that share
// keys: column c of dV_j is then A at (query c of the window, key j).
static void test_mask_backward(AttentionVariant variant, size_t Tq, size_t Tk, size_t HS, double p) {
    Inputs in = inputs_create(attention_dense(2, Tq, Tk, 4, 2, HS, MASK_NONE, 1, p), 1);
    const Attention *a = &in.a;
    const size_t half = HS / 2;
    Outputs o = outputs_create(&in);
    memset(in.q, 0, in.q_size * sizeof(float));
    run_forward(variant, &in, &o);
    size_t wrong = 0;
    for (size_t window = 0; window < Tq; window += half) {
        memset(in.dout, 0, in.q_size * sizeof(float));
        for (size_t b = 0; b < 2; b++)
            for (size_t h = 0; h < 4; h++)
                for (size_t c = 0; c < half && window + c < Tq; c++)
                    in.dout[b * a->out_sequence + (window + c) * a->out_token + h * HS + h % 2 * half + c] =
                        1;
        run_backward(variant, &in, &o);
        for (size_t i = 0; i < in.kv_size; i++) {
            size_t b = i / a->kv_sequence, key = i % a->kv_sequence / a->kv_token, c = i % HS;
            size_t h = i % a->kv_token / HS * 2 + c / half, query = window + c % half;
            int kept = query < Tq && attention_dropout_keeps(a, b, h, query, key);
            wrong += !(kept ? o.x[DV][i] > 0 : o.x[DV][i] == 0);
        }
    }
    EXPECT(wrong == 0, "%s, Tq %zu, Tk %zu, HS %zu, p %g: %zu elements of the backward mask differ",
           variant_names[variant], Tq, Tk, HS, p, wrong);
    outputs_free(&o), inputs_free(&in);
}

static void test_masks(AttentionVariant variant, size_t Tq, size_t Tk, size_t HS, double p) {
    double started = seconds_now();
    test_mask_forward(variant, Tq, Tk, HS, p);
    test_mask_backward(variant, Tq, Tk, HS, p);
    printf("%s Tq %zu Tk %zu HS %zu p %.2f: masks read back in %.0f ms\n", variant_names[variant], Tq, Tk, HS,
           p, 1e3 * (seconds_now() - started));
}

// Tests every layout of warps that reads the mask differently, at every rate; emulated, only some of the pairs.
static void test_all_masks(void) {
    static const size_t sizes[] = {32, 64, 96, 128, 256};
    for (int i = test_is_small() ? 3 : 0; i < 4; i++)
        test_masks(ATTENTION_NAIVE, 37, 43, 32, dropout_rates[i]);
    for (size_t n = 0; n < 5; n++)
        for (size_t i = 0; i < 4; i++)
            if (!EMULATED || (test_is_small() ? n % 2 == 1 && i == 1 : (n + i) % 4 < (n < 4 ? 2 : 1)))
                test_masks(ATTENTION_FLASH, test_is_small() ? 37 : 137, test_is_small() ? 83 : 150, sizes[n],
                           dropout_rates[i]);
}

// The mean of out over many seeds equals out without dropout.
static void test_mean(AttentionVariant variant, size_t HS, double p) {
    enum { T = 40 };
    // With fewer seeds, the estimated sigma is sometimes too small for one element among hundreds.
    const uint32_t SEEDS = test_is_small() ? 150 : 1000;
    Inputs in = inputs_create(attention_dense(1, T, T, 1, 1, HS, MASK_CAUSAL, 0.25f, p), 1);
    Outputs o = outputs_create(&in);
    double *sum = as_doubles(in.q, in.q_size), *squares = as_doubles(in.q, in.q_size);
    for (size_t i = 0; i < in.q_size; i++) sum[i] = squares[i] = 0;
    for (uint32_t seed = 0; seed < SEEDS; seed++) {
        in.a.dropout.key = philox_key(seed, RANDOM_ATTENTION_DROPOUT, 3);
        run_forward(variant, &in, &o);
        for (size_t i = 0; i < in.q_size; i++) {
            sum[i] += (double)o.x[OUT][i] / SEEDS;
            squares[i] += (double)o.x[OUT][i] * (double)o.x[OUT][i] / SEEDS;
        }
    }
    in.a.dropout.threshold = 256;
    run_forward(variant, &in, &o);
    double worst = 0;
    for (size_t i = 0; i < in.q_size; i++) {
        double sigma = sqrt(fmax(squares[i] - sum[i] * sum[i], 0) / SEEDS) + 1e-6;
        worst = fmax(worst, fabs(sum[i] - (double)o.x[OUT][i]) / sigma);
    }
    printf("%s HS %zu p %.2f: the mean of out over %u seeds is off by at most %.1f sigma (5)\n",
           variant_names[variant], HS, p, SEEDS, worst);
    EXPECT(worst < 5, "the mean above");
    free(sum), free(squares), outputs_free(&o), inputs_free(&in);
}

// ---- the closed form itself -------------------------------------------------------------------------------

// Returns a mask of Tq x Tk elements, 0 or 1 in one byte each.
static uint8_t *mask_of(const Attention *a, size_t b, size_t h) {
    uint8_t *mask = (uint8_t *)malloc(a->Tq * a->Tk);
    for (size_t i = 0; i < a->Tq * a->Tk; i++)
        mask[i] = (uint8_t)attention_dropout_keeps(a, b, h, i / a->Tk, i % a->Tk);
    return mask;
}

// Tests the keep rate, and that a mask is uncorrelated with the masks of other steps, layers, heads, sequences and
// seeds, and with its transpose.
static void test_mask_statistics(double p) {
    enum { T = 512 };
    Attention a = attention_dense(1, T, T, 4, 4, 16, MASK_NONE, 1, p), other[5] = {a, a, a, a, a};
    other[0].dropout.step++;
    other[1].dropout.key = philox_key(1234567890123ull, RANDOM_ATTENTION_DROPOUT, 4);
    other[4].dropout.key = philox_key(1234567890124ull, RANDOM_ATTENTION_DROPOUT, 3);
    double keep = a.dropout.threshold / 256.0, n = (double)T * T, kept = 0;
    uint8_t *mask = mask_of(&a, 0, 0);
    for (size_t i = 0; i < T * T; i++) kept += mask[i];
    EXPECT(fabs(kept / n - keep) < 4 * sqrt(keep * (1 - keep) / n), "p %g: %g are kept, %g expected", p,
           kept / n, keep);
    for (int j = 0; j < 6; j++) {
        uint8_t *second = mask_of(j < 5 ? &other[j] : &a, j == 2, j == 3);
        double product = 0;
        for (size_t i = 0; i < T * T; i++) {
            size_t at = j < 5 ? i : i % T * T + i / T;
            product += (mask[i] - keep) * (second[at] - keep);
        }
        double correlation = product / n / (keep * (1 - keep));
        // A matrix and its transpose share the diagonal, and every other pair counts twice.
        double bound = j < 5 ? 5 / sqrt(n) : 1.0 / T + 8 / sqrt(n);
        EXPECT(fabs(correlation) < bound, "p %g: correlation %g with mask %d", p, correlation, j);
        free(second);
    }
    free(mask);
}

// A block of bytes agrees with the definition for single elements; masks do not depend on how a batch is split.
static void test_mask_blocks(void) {
    Attention a = attention_dense(3, 64, 96, 3, 3, 16, MASK_NONE, 1, 0.5);
    for (size_t row = 0; row < 4; row++)
        for (size_t column = 0; column < 3; column++) {
            uint8_t bytes[DROPOUT_BLOCK_QUERIES][DROPOUT_BLOCK_KEYS];
            attention_dropout_block(bytes, &a, 2, 1, row, column);
            int equal = 1;
            for (size_t q = 0; q < DROPOUT_BLOCK_QUERIES; q++)
                for (size_t k = 0; k < DROPOUT_BLOCK_KEYS; k++)
                    equal &= (bytes[q][k] < a.dropout.threshold) ==
                             attention_dropout_keeps(&a, 2, 1, 16 * row + q, 32 * column + k);
            EXPECT(equal, "block %zu, %zu", row, column);
        }
    Attention split = a;
    split.dropout.first_sequence += 2;
    int equal = 1;
    for (size_t i = 0; i < 64 * 96; i++)
        equal &= attention_dropout_keeps(&a, 2, 1, i / 96, i % 96) ==
                 attention_dropout_keeps(&split, 0, 1, i / 96, i % 96);
    EXPECT(equal, "a mask depends on how the batch is split");
}

#endif
