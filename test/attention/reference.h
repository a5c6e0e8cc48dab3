// The definition of attention (attention/attention.h) in double precision, forward and backward, which is tested with
// central differences; and the inputs of a test case.
#ifndef TEST_ATTENTION_REFERENCE_H
#define TEST_ATTENTION_REFERENCE_H

#include "attention/attention.cuh"
#include "test/harness/arrays.h"

// ---- a case -----------------------------------------------------------------------------------------------

// The inputs, dense: q, dout (B, Tq, NH, HS), k and v (B, Tk, NKV, HS). The strides of `a` are those of dense tensors.
typedef struct {
    Attention a;
    size_t q_size, kv_size, lse_size;
    int packed; // 1 if q, k and v are one tensor on the device, as the QKV matmul writes it
    float *q, *k, *v, *dout;
} Inputs;

static Attention attention_dense(size_t B, size_t Tq, size_t Tk, size_t NH, size_t NKV, size_t HS,
                                 AttentionMask mask, float scale, double p) {
    Dropout d = dropout_make(dropout_threshold(p), 1234567890123ull, RANDOM_ATTENTION_DROPOUT, 3, 17, 5);
    Attention a = {
        B,    Tq,    Tk, NH, NKV, HS, NH * HS, NKV * HS, NH * HS, Tq * NH * HS, Tk * NKV * HS, Tq * NH * HS,
        mask, scale, d,  0};
    return a;
}

// Returns numbers that floatX represents exactly, so that the reference has the same inputs as the kernels.
static float *random_inputs(size_t n, double size) {
    float *x = random_floats(n, size);
    for (size_t i = 0; i < n; i++) x[i] = (float)(floatX)x[i];
    return x;
}

static Inputs inputs_create(Attention a, double size) {
    Inputs in = {a, a.B * a.q_sequence, a.B * a.kv_sequence, a.B * a.NH * a.Tq, 0, NULL, NULL, NULL, NULL};
    in.q = random_inputs(in.q_size, size);
    in.k = random_inputs(in.kv_size, size);
    in.v = random_inputs(in.kv_size, size);
    in.dout = random_inputs(in.q_size, 1);
    return in;
}

static void inputs_free(Inputs *in) {
    free(in->q), free(in->k), free(in->v), free(in->dout);
}

// ---- the definition ---------------------------------------------------------------------------------------

typedef struct {
    Attention a;
    size_t q_size, kv_size, lse_size;
    double *q, *k, *v, *dout;
    double *out, *lse, *dq, *dk, *dv;
} Reference;

static Reference reference_create(const Inputs *in) {
    Reference r;
    r.a = in->a, r.q_size = in->q_size, r.kv_size = in->kv_size, r.lse_size = in->lse_size;
    r.q = as_doubles(in->q, in->q_size);
    r.k = as_doubles(in->k, in->kv_size);
    r.v = as_doubles(in->v, in->kv_size);
    r.dout = as_doubles(in->dout, in->q_size);
    r.out = (double *)calloc(r.q_size, sizeof(double));
    r.lse = (double *)calloc(r.lse_size, sizeof(double));
    r.dq = (double *)calloc(r.q_size, sizeof(double));
    r.dk = (double *)calloc(r.kv_size, sizeof(double));
    r.dv = (double *)calloc(r.kv_size, sizeof(double));
    return r;
}

static void reference_free(Reference *r) {
    double *all[] = {r->q, r->k, r->v, r->dout, r->out, r->lse, r->dq, r->dk, r->dv};
    for (int i = 0; i < 9; i++) free(all[i]);
}

REFERENCE static double keep_factor(const Attention *a, size_t b, size_t h, size_t i, size_t j) {
    if (a->dropout.threshold == DROPOUT_NONE) return 1;
    return attention_dropout_keeps(a, b, h, i, j) ? 256.0 / a->dropout.threshold : 0;
}

// Computes p (Tk) and out of one query, and returns its lse.
REFERENCE static double reference_query(const Reference *r, size_t b, size_t h, size_t i, double *p,
                                        double *out) {
    const Attention *a = &r->a;
    const double *q = r->q + b * a->q_sequence + i * a->q_token + h * a->HS;
    size_t kv = b * a->kv_sequence + h / (a->NH / a->NKV) * a->HS, visible = attention_visible_keys(a, i);
    double maximum = -INFINITY, sum = 0;
    for (size_t j = 0; j < visible; j++) {
        p[j] = 0;
        for (size_t c = 0; c < a->HS; c++) p[j] += (double)a->scale * q[c] * r->k[kv + j * a->kv_token + c];
        maximum = fmax(maximum, p[j]);
    }
    for (size_t j = 0; j < visible; j++) sum += p[j] = exp(p[j] - maximum);
    for (size_t c = 0; c < a->HS; c++) out[c] = 0;
    for (size_t j = 0; j < visible; j++) {
        p[j] /= sum;
        double factor = p[j] * keep_factor(a, b, h, i, j);
        for (size_t c = 0; c < a->HS; c++) out[c] += factor * r->v[kv + j * a->kv_token + c];
    }
    return visible ? maximum + log(sum) : INFINITY;
}

// Computes the gradients of one query: dq =, dk +=, dv +=.
REFERENCE static void reference_query_backward(Reference *r, size_t b, size_t h, size_t i, const double *p) {
    const Attention *a = &r->a;
    size_t query = b * a->q_sequence + i * a->q_token + h * a->HS;
    size_t kv = b * a->kv_sequence + h / (a->NH / a->NKV) * a->HS;
    double D = 0;
    for (size_t c = 0; c < a->HS; c++) D += r->dout[query + c] * r->out[query + c], r->dq[query + c] = 0;
    for (size_t j = 0; j < attention_visible_keys(a, i); j++) {
        double factor = keep_factor(a, b, h, i, j), dp = 0;
        size_t key = kv + j * a->kv_token;
        for (size_t c = 0; c < a->HS; c++) dp += r->dout[query + c] * r->v[key + c];
        double ds = (double)a->scale * p[j] * (factor * dp - D);
        for (size_t c = 0; c < a->HS; c++) {
            r->dv[key + c] += p[j] * factor * r->dout[query + c];
            r->dk[key + c] += ds * r->q[query + c];
            r->dq[query + c] += ds * r->k[key + c];
        }
    }
}

REFERENCE static void reference_run(Reference *r) {
    const Attention *a = &r->a;
    const size_t group = a->NH / a->NKV;
    for (size_t i = 0; i < r->kv_size; i++) r->dk[i] = r->dv[i] = 0;
#pragma omp parallel for collapse(2) if (a->Tq * a->Tk > 4096)
    for (size_t b = 0; b < a->B; b++)
        for (size_t kv_head = 0; kv_head < a->NKV; kv_head++) {
            double *p = (double *)malloc(a->Tk * sizeof(double));
            for (size_t h = kv_head * group; h < (kv_head + 1) * group; h++)
                for (size_t i = 0; i < a->Tq; i++) {
                    r->lse[(b * a->NH + h) * a->Tq + i] = reference_query(
                        r, b, h, i, p, r->out + b * a->out_sequence + i * a->out_token + h * a->HS);
                    reference_query_backward(r, b, h, i, p);
                }
            free(p);
        }
}

// ---- its gradients, compared with central differences -----------------------------------------------------

REFERENCE static double reference_loss(void *context) { // returns sum(dout * out)
    Reference *r = (Reference *)context;
    reference_run(r);
    double loss = 0;
    for (size_t i = 0; i < r->q_size; i++) loss += r->dout[i] * r->out[i];
    return loss;
}

static void test_definition(AttentionMask mask, size_t Tq, size_t Tk, size_t NH, size_t NKV, float scale,
                            double p) {
    Inputs in = inputs_create(attention_dense(2, Tq, Tk, NH, NKV, 8, mask, scale, p), 1);
    Reference r = reference_create(&in);
    double *dq = central_differences(reference_loss, &r, r.q, r.q_size);
    double *dk = central_differences(reference_loss, &r, r.k, r.kv_size);
    double *dv = central_differences(reference_loss, &r, r.v, r.kv_size);
    reference_run(&r);
    double error = 0;
    for (size_t i = 0; i < r.q_size; i++) error = fmax(error, fabs(dq[i] - r.dq[i]));
    for (size_t i = 0; i < r.kv_size; i++)
        error = fmax(error, fmax(fabs(dk[i] - r.dk[i]), fabs(dv[i] - r.dv[i])));
    EXPECT(error < 1e-8,
           "gradients of the definition are off by %g (mask %d, Tq %zu, Tk %zu, NH %zu, NKV %zu, p %g)",
           error, mask, Tq, Tk, NH, NKV, p);
    free(dq), free(dk), free(dv), inputs_free(&in), reference_free(&r);
}

static void test_definitions(void) {
    static const size_t lengths[][2] = {{5, 5}, {3, 7}, {6, 4}, {1, 4}},
                        heads[][2] = {{2, 2}, {2, 1}, {4, 2}};
    static const double rates[] = {0, 0.17, 0.5, 0.9};
    const size_t count = test_is_small() ? 6 : 32;
    for (size_t i = 0; i < count; i++)
        test_definition(i % 2 ? MASK_NONE : MASK_CAUSAL, lengths[i / 2 % 4][0], lengths[i / 2 % 4][1],
                        heads[i % 3][0], heads[i % 3][1], i % 5 == 4 ? 0.0f : 0.4f, rates[(i + i / 8) % 4]);
}

#endif
