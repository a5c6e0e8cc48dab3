// Every variant of attention against its definition in double precision, which is itself held against central
// differences; dropout read back through the kernels; edges, extremes, NaN; the same bits twice and for any
// number of threads. One line a case: shape, options, error and allowed error of out and of the gradients,
// time.
//
// Allowed (Dao's rule): twice the error of the plain fp32 implementation for out and lse, three times for
// gradients, plus 1e-5.
#include <omp.h>

#include "attention/attention.cuh"
#include "data/progress.h"
#include "test/arrays.h"
#ifdef DEVICE_CUDA
#include "test/device_arrays.h"
#endif

// ---- the definition in double precision -------------------------------------------------------------------

// q, k, v packed as in attention.h, with the strides of `a`; everything is of one case.
typedef struct {
    Attention a;
    size_t q_size, kv_size, out_size, lse_size;
    double *q, *k, *v, *dout;
    double *out, *lse, *dq, *dk, *dv;
} Reference;

static double keep_factor(const Attention *a, size_t b, size_t h, size_t i, size_t j) {
    if (a->dropout.threshold == 256) return 1;
    return attention_dropout_keeps(a, b, h, i, j) ? 256.0 / a->dropout.threshold : 0;
}

// One query: p (Tk) and out; returns lse.
static double reference_query(const Reference *r, size_t b, size_t h, size_t i, double *p, double *out) {
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

// Gradients of one query, added to dk and dv.
static void reference_query_backward(Reference *r, size_t b, size_t h, size_t i, const double *p) {
    const Attention *a = &r->a;
    size_t query = b * a->q_sequence + i * a->q_token + h * a->HS;
    size_t output = b * a->out_sequence + i * a->out_token + h * a->HS;
    size_t kv = b * a->kv_sequence + h / (a->NH / a->NKV) * a->HS;
    double D = 0;
    for (size_t c = 0; c < a->HS; c++) D += r->dout[output + c] * r->out[output + c], r->dq[query + c] = 0;
    for (size_t j = 0; j < attention_visible_keys(a, i); j++) {
        double factor = keep_factor(a, b, h, i, j), dp = 0;
        size_t key = kv + j * a->kv_token;
        for (size_t c = 0; c < a->HS; c++) dp += r->dout[output + c] * r->v[key + c];
        double ds = (double)a->scale * p[j] * (factor * dp - D);
        for (size_t c = 0; c < a->HS; c++) {
            r->dv[key + c] += p[j] * factor * r->dout[output + c];
            r->dk[key + c] += ds * r->q[query + c];
            r->dq[query + c] += ds * r->k[key + c];
        }
    }
}

static void reference_run(Reference *r) {
    const Attention *a = &r->a;
    double *p = (double *)malloc(a->Tk * sizeof(double));
    for (size_t i = 0; i < r->kv_size; i++) r->dk[i] = r->dv[i] = 0;
    for (size_t b = 0; b < a->B; b++)
        for (size_t h = 0; h < a->NH; h++)
            for (size_t i = 0; i < a->Tq; i++) {
                r->lse[(b * a->NH + h) * a->Tq + i] = reference_query(
                    r, b, h, i, p, r->out + b * a->out_sequence + i * a->out_token + h * a->HS);
                reference_query_backward(r, b, h, i, p);
            }
    free(p);
}

// sum(dout * out), for central differences.
static double reference_loss(void *context) {
    Reference *r = (Reference *)context;
    reference_run(r);
    double loss = 0;
    for (size_t i = 0; i < r->out_size; i++) loss += r->dout[i] * r->out[i];
    return loss;
}

// ---- a case: inputs, outputs of one variant, errors -------------------------------------------------------

typedef struct {
    Attention a;
    size_t q_size, kv_size, out_size, lse_size;
    float *q, *k, *v, *dout; // separate tensors, heads next to each other
} Inputs;

typedef struct {
    float *out, *lse, *saved, *dq, *dk, *dv;
} Outputs;

static Attention attention_unpacked(size_t B, size_t Tq, size_t Tk, size_t NH, size_t NKV, size_t HS,
                                    AttentionMask mask, float scale, double p) {
    Dropout d = dropout_make(dropout_threshold(p), 1234567890123ull, RANDOM_ATTENTION_DROPOUT, 3, 17, 5);
    Attention a = {B,       Tq,       Tk,      NH,           NKV,           HS,
                   NH * HS, NKV * HS, NH * HS, Tq * NH * HS, Tk * NKV * HS, Tq * NH * HS,
                   mask,    scale,    d};
    return a;
}

// Numbers that floatX has, so that the reference computes from the same.
static float *random_inputs(size_t n, double size) {
    float *x = random_floats(n, size);
    for (size_t i = 0; i < n; i++) x[i] = (float)(floatX)x[i];
    return x;
}

static Inputs inputs_create(Attention a, double size) {
    Inputs in = {a,
                 a.B * a.q_sequence,
                 a.B * a.kv_sequence,
                 a.B * a.out_sequence,
                 a.B * a.NH * a.Tq,
                 NULL,
                 NULL,
                 NULL,
                 NULL};
    in.q = random_inputs(in.q_size, size);
    in.k = random_inputs(in.kv_size, size);
    in.v = random_inputs(in.kv_size, size);
    in.dout = random_inputs(in.out_size, 1);
    return in;
}

static void inputs_free(Inputs *in) {
    free(in->q), free(in->k), free(in->v), free(in->dout);
}

static size_t saved_size(AttentionVariant variant, const Attention *a) {
    return attention_saved_size(variant, a->B, a->NH, a->Tq, a->Tk);
}

static Outputs outputs_create(AttentionVariant variant, const Inputs *in) {
    Outputs o = {poisoned_floats(in->out_size),
                 poisoned_floats(in->lse_size),
                 poisoned_floats(saved_size(variant, &in->a)),
                 poisoned_floats(in->q_size),
                 poisoned_floats(in->kv_size),
                 poisoned_floats(in->kv_size)};
    return o;
}

static void outputs_free(Outputs *o) {
    float *all[] = {o->out, o->lse, o->saved, o->dq, o->dk, o->dv};
    for (int i = 0; i < 6; i++) free_poisoned(all[i]);
}

#ifdef DEVICE_CUDA
// Outputs on the device between guards; what comes back goes to the host's outputs.
template <class T> static void fetch(float *to, T *from, size_t n) {
    float *got = download(from, n);
    EXPECT(guards_hold_on_device(from, n), "attention writes outside an output");
    memcpy(to, got, n * sizeof(float));
    free(got);
    device_free_poisoned(from);
}

static void run_forward(AttentionVariant variant, const Inputs *in, const Attention *a, Outputs *o) {
    floatX *q = upload(in->q, in->q_size), *k = upload(in->k, in->kv_size), *v = upload(in->v, in->kv_size);
    floatX *out = poisoned<floatX>(in->out_size);
    float *lse = poisoned<float>(in->lse_size), *saved = poisoned<float>(saved_size(variant, a));
    attention_forward(variant, out, lse, saved, q, k, v, a, 0);
    fetch(o->out, out, in->out_size);
    fetch(o->lse, lse, in->lse_size);
    fetch(o->saved, saved, saved_size(variant, a));
    device_free(q), device_free(k), device_free(v);
}

static void run_backward(AttentionVariant variant, const Inputs *in, const Attention *a, Outputs *o) {
    floatX *q = upload(in->q, in->q_size), *k = upload(in->k, in->kv_size), *v = upload(in->v, in->kv_size);
    floatX *dout = upload(in->dout, in->out_size), *out = upload(o->out, in->out_size);
    float *lse = upload<float>(o->lse, in->lse_size),
          *saved = upload<float>(o->saved, saved_size(variant, a));
    floatX *dq = poisoned<floatX>(in->q_size), *dk = poisoned<floatX>(in->kv_size),
           *dv = poisoned<floatX>(in->kv_size);
    attention_backward(variant, dq, dk, dv, dout, q, k, v, out, lse, saved, a, 0);
    fetch(o->dq, dq, in->q_size);
    fetch(o->dk, dk, in->kv_size);
    fetch(o->dv, dv, in->kv_size);
    device_free(q), device_free(k), device_free(v), device_free(dout), device_free(out), device_free(lse);
    device_free(saved);
}
#else
static void run_forward(AttentionVariant variant, const Inputs *in, const Attention *a, Outputs *o) {
    attention_forward(variant, o->out, o->lse, o->saved, in->q, in->k, in->v, a, 0);
}
static void run_backward(AttentionVariant variant, const Inputs *in, const Attention *a, Outputs *o) {
    attention_backward(variant, o->dq, o->dk, o->dv, in->dout, in->q, in->k, in->v, o->out, o->lse, o->saved,
                       a, 0);
}
#endif

static void run_variant(AttentionVariant variant, const Inputs *in, Outputs *o) {
    run_forward(variant, in, &in->a, o);
    run_backward(variant, in, &in->a, o);
}

static int is_available(int variant) {
    return attention_available((AttentionVariant)variant, DEVICE_IS_GPU);
}

// What rounding out and gradients to bf16 adds to the errors of naive, relative to the largest element: half a unit
// in the last place of 8 bits; gradients also see the rounded out in D, and cancel.
static const double forward_rounding = DEVICE_IS_BF16 ? 1.0 / 256 : 0;
static const double backward_rounding = DEVICE_IS_BF16 ? 1.0 / 32 : 0;

static Reference reference_create(const Inputs *in) {
    Reference r = {in->a,
                   in->q_size,
                   in->kv_size,
                   in->out_size,
                   in->lse_size,
                   as_doubles(in->q, in->q_size),
                   as_doubles(in->k, in->kv_size),
                   as_doubles(in->v, in->kv_size),
                   as_doubles(in->dout, in->out_size),
                   NULL,
                   NULL,
                   NULL,
                   NULL,
                   NULL};
    r.out = (double *)calloc(r.out_size, sizeof(double));
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

typedef struct {
    double forward, backward, lse; // lse is fp32, whatever out is
} Errors;

static double infinities_agree(const float *got, const double *wanted, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (isinf(wanted[i]) != isinf(got[i])) return 0;
    return 1;
}

static Errors errors_of(const Outputs *o, const Reference *r) {
    Errors e;
    double *lse = (double *)malloc(r->lse_size * sizeof(double));
    float *got = (float *)malloc(r->lse_size * sizeof(float));
    for (size_t i = 0; i < r->lse_size; i++) { // infinite ones agree: compare the rest
        lse[i] = isinf(r->lse[i]) ? 0 : r->lse[i];
        got[i] = isinf(o->lse[i]) ? 0 : o->lse[i];
    }
    e.forward = relative_error(o->out, r->out, r->out_size, 1e-3);
    e.lse = relative_error(got, lse, r->lse_size, 1);
    if (!infinities_agree(o->lse, r->lse, r->lse_size)) e.forward = INFINITY;
    // Gradients that cancel to nothing are compared with their terms, which are of the size of dout: 1.
    e.backward = fmax(
        relative_error(o->dq, r->dq, r->q_size, 0.1),
        fmax(relative_error(o->dk, r->dk, r->kv_size, 0.1), relative_error(o->dv, r->dv, r->kv_size, 0.1)));
    free(lse), free(got);
    return e;
}

static int outputs_guarded(const Outputs *o, const Inputs *in, AttentionVariant variant) {
    return guards_hold(o->out, in->out_size) && guards_hold(o->lse, in->lse_size) &&
           guards_hold(o->dq, in->q_size) && guards_hold(o->dk, in->kv_size) &&
           guards_hold(o->dv, in->kv_size) && guards_hold(o->saved, saved_size(variant, &in->a));
}

// Both variants on one case.
static void test_case(Attention a, double size) {
    Inputs in = inputs_create(a, size);
    Reference r = reference_create(&in);
    reference_run(&r);
    Errors plain = {0, 0, 0};
    for (int variant = ATTENTION_NAIVE; variant <= ATTENTION_FLASH; variant++) {
        if (!is_available(variant)) continue;
        Outputs o = outputs_create((AttentionVariant)variant, &in),
                again = outputs_create((AttentionVariant)variant, &in);
        double started = seconds_now();
        run_variant((AttentionVariant)variant, &in, &o);
        double milliseconds = 1e3 * (seconds_now() - started);
        Errors e = errors_of(&o, &r);
        if (variant == ATTENTION_NAIVE) plain = e;
        double forward = 2 * plain.forward + 1e-5, backward = 3 * plain.backward + 1e-5;
        if (variant == ATTENTION_NAIVE) { // against double directly
            forward = 2e-5 * fmax(1, size * size) + forward_rounding;
            backward = 2e-5 * fmax(1, size * size) + backward_rounding * fmax(1, size);
        }
        printf("%s B %zu Tq %zu Tk %zu NH %zu NKV %zu HS %zu %s scale %.3g p %.2f: out %.1e (%.1e) gradients "
               "%.1e (%.1e) "
               "%.2f ms\n",
               variant == ATTENTION_NAIVE ? "naive" : "flash", a.B, a.Tq, a.Tk, a.NH, a.NKV, a.HS,
               a.mask == MASK_CAUSAL ? "causal" : "full  ", (double)a.scale, 1 - a.dropout.threshold / 256.0,
               e.forward, forward, e.backward, backward, milliseconds);
        EXPECT(e.forward <= forward && e.backward <= backward, "the case above");
        EXPECT(e.lse <= 2e-5 * fmax(1, size * size), "the case above: lse is off by %g", e.lse);
        EXPECT(outputs_guarded(&o, &in, (AttentionVariant)variant),
               "the case above writes outside its outputs");
        omp_set_num_threads(3);
        run_variant((AttentionVariant)variant, &in, &again);
        omp_set_num_threads(omp_get_num_procs());
        EXPECT(memcmp(o.out, again.out, in.out_size * 4) == 0 && memcmp(o.dq, again.dq, in.q_size * 4) == 0 &&
                   memcmp(o.dk, again.dk, in.kv_size * 4) == 0 &&
                   memcmp(o.dv, again.dv, in.kv_size * 4) == 0 &&
                   memcmp(o.lse, again.lse, in.lse_size * 4) == 0,
               "the case above gives other bits the second time");
        outputs_free(&o), outputs_free(&again);
    }
    inputs_free(&in);
    reference_free(&r);
}

static float standard_scale(size_t HS) {
    return 1.0f / sqrtf((float)HS);
}

static void test_shapes(void) {
    static const size_t lengths[] = {1, 2, 3, 5, 17, 63, 64, 65, 97, 113, 127, 128, 129, 203, 255, 257};
    static const size_t sizes[] = {16, 32, 40, 64, 80, 96, 128, 256, 8, 24};
    static const size_t heads[][2] = {{1, 1}, {2, 1}, {3, 3}, {6, 2}};
    static const double rates[] = {0, 0.1, 0.17, 0.5, 0.9};
    int n = 0;
    for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++)
        for (size_t j = 0; j < 4; j++, n++) {
            if (test_is_small() && lengths[i] > 33) continue;
            size_t T = lengths[i], HS = sizes[(size_t)n % 10], B = n % 3 == 0 ? 3 : 1;
            double p = j % 2 ? rates[n / 2 % 5] : 0;
            test_case(
                attention_unpacked(B, T, T, heads[j][0], heads[j][1], HS, MASK_CAUSAL, standard_scale(HS), p),
                1);
        }
    for (size_t j = 0; j < 10; j++)
        test_case(attention_unpacked(1, 70, 70, 2, 1, sizes[j], MASK_CAUSAL, standard_scale(sizes[j]),
                                     rates[j % 5]),
                  1);
    if (test_is_small()) return;
    test_case(attention_unpacked(1, 512, 512, 1, 1, 64, MASK_CAUSAL, 0.125f, 0.1), 1);
    test_case(attention_unpacked(1, 1025, 1025, 1, 1, 32, MASK_CAUSAL, 0.125f, 0), 1);
}

static void test_masks_and_scales(void) {
    test_case(attention_unpacked(2, 65, 65, 2, 1, 32, MASK_NONE, 0.2f, 0.1), 1);
    test_case(attention_unpacked(1, 1, 77, 2, 2, 40, MASK_CAUSAL, 0.2f, 0),
              1); // one new token, a cache before it
    test_case(attention_unpacked(1, 33, 100, 2, 1, 16, MASK_CAUSAL, 0.2f, 0.5), 1);
    test_case(attention_unpacked(1, 100, 33, 2, 1, 16, MASK_CAUSAL, 0.2f, 0),
              1); // the first queries see nothing
    test_case(attention_unpacked(1, 50, 129, 3, 3, 24, MASK_NONE, 0.2f, 0), 1);
    test_case(attention_unpacked(1, 100, 100, 1, 1, 16, MASK_CAUSAL, 0.0f, 0.1), 1); // all keys count alike
    test_case(attention_unpacked(1, 100, 100, 1, 1, 16, MASK_CAUSAL, 7.5f, 0), 1);
}

// Magnitudes: q times 5 and k, v times 3; a row of equal keys; one huge key.
static void test_extremes(void) {
    Attention a = attention_unpacked(1, 130, 130, 2, 1, 64, MASK_CAUSAL, 0.125f, 0.1);
    Inputs in = inputs_create(a, 3);
    for (size_t i = 0; i < in.q_size; i++) in.q[i] = (float)(floatX)(in.q[i] * 5.0f / 3.0f);
    for (size_t i = 0; i < a.HS; i++) in.k[40 * a.kv_token + i] = 1.0f;
    for (size_t i = 0; i < a.HS; i++) in.k[90 * a.kv_token + i] = 1000.0f;
    Reference r = reference_create(&in);
    reference_run(&r);
    // In bf16 D is off by about 2^-9 of a sum of 64 terms of size 3, which is multiplied by scale and the key of 1000:
    // several units, where gradients that do not cancel have some too.
    Errors plain = {1e-3 + forward_rounding, DEVICE_IS_BF16 ? 4 : 1e-3, 1e-4};
    for (int variant = ATTENTION_NAIVE; variant <= ATTENTION_FLASH; variant++) {
        if (!is_available(variant)) continue;
        Outputs o = outputs_create((AttentionVariant)variant, &in);
        run_variant((AttentionVariant)variant, &in, &o);
        Errors e = errors_of(&o, &r);
        EXPECT(e.lse <= plain.lse, "variant %d: lse is off by %g", variant, e.lse);
        EXPECT(e.forward <= plain.forward && e.backward <= plain.backward, "variant %d: %g %g, allowed %g %g",
               variant, e.forward, e.backward, plain.forward, plain.backward);
        plain.forward = 2 * e.forward + 1e-5;
        plain.backward = 3 * e.backward + 1e-5;
        outputs_free(&o);
    }
    inputs_free(&in);
    reference_free(&r);
}

// A NaN in key and value of token 100 of sequence 0, head 0: other heads, other sequences and earlier key
// tiles do not see it.
static void test_nan_stays(AttentionVariant variant) {
    Attention a = attention_unpacked(2, 150, 150, 2, 2, 16, MASK_CAUSAL, 0.25f, 0);
    Inputs in = inputs_create(a, 1);
    Outputs clean = outputs_create(variant, &in), dirty = outputs_create(variant, &in);
    run_variant(variant, &in, &clean);
    in.k[100 * a.kv_token] = in.v[100 * a.kv_token + 3] = NAN;
    run_variant(variant, &in, &dirty);
    int others_equal = 1, early_equal = 1, late_nan = 1;
    for (size_t b = 0; b < 2; b++)
        for (size_t t = 0; t < 150; t++)
            for (size_t h = 0; h < 2; h++)
                for (size_t c = 0; c < 16; c++) {
                    size_t i = b * a.out_sequence + t * a.out_token + h * 16 + c;
                    int equal = clean.out[i] == dirty.out[i];
                    if (b == 1 || h == 1) others_equal &= equal && clean.dq[i] == dirty.dq[i];
                    if (b == 0 && h == 0 && t < 64) early_equal &= equal;
                    if (b == 0 && h == 0 && t >= 100) late_nan &= isnan(dirty.out[i]) != 0;
                }
    EXPECT(others_equal, "variant %d: a NaN reaches another head or sequence", variant);
    EXPECT(early_equal, "variant %d: a NaN reaches queries that cannot see it", variant);
    EXPECT(late_nan, "variant %d: a NaN is swallowed", variant);
    // A NaN in the gradient of query 20: keys of later tiles, which it does not see, are unchanged.
    in.k[100 * a.kv_token] = in.v[100 * a.kv_token + 3] = 0.5f;
    run_variant(variant, &in, &clean);
    in.dout[20 * a.out_token] = NAN;
    run_variant(variant, &in, &dirty);
    int unseen_equal = 1;
    for (size_t i = 128 * a.kv_token; i < a.kv_sequence; i++)
        unseen_equal &= clean.dk[i] == dirty.dk[i] && clean.dv[i] == dirty.dv[i];
    EXPECT(unseen_equal, "variant %d: a NaN of a query reaches keys it does not see", variant);
    outputs_free(&clean), outputs_free(&dirty), inputs_free(&in);
}

// ---- gradients of the definition --------------------------------------------------------------------------

static void test_definition(AttentionMask mask, size_t Tq, size_t Tk, size_t NH, size_t NKV, double p) {
    Attention a = attention_unpacked(2, Tq, Tk, NH, NKV, 8, mask, 0.4f, p);
    Inputs in = inputs_create(a, 1);
    Reference r = reference_create(&in);
    double *dq = central_differences(reference_loss, &r, r.q, r.q_size);
    double *dk = central_differences(reference_loss, &r, r.k, r.kv_size);
    double *dv = central_differences(reference_loss, &r, r.v, r.kv_size);
    reference_run(&r);
    double error = 0;
    for (size_t i = 0; i < r.q_size; i++) error = fmax(error, fabs(dq[i] - r.dq[i]));
    for (size_t i = 0; i < r.kv_size; i++)
        error = fmax(error, fmax(fabs(dk[i] - r.dk[i]), fabs(dv[i] - r.dv[i])));
    EXPECT(error < 1e-8, "gradients of the definition are off by %g (mask %d, p %g)", error, mask, p);
    free(dq), free(dk), free(dv), inputs_free(&in), reference_free(&r);
}

// ---- dropout, read back through the kernels ---------------------------------------------------------------

// With q = 0 and full attention every probability is 1 / T; V one-hot in a window of HS keys makes out the
// mask.
static void test_mask_forward(AttentionVariant variant, size_t T, double p) {
    enum { HS = 32 };
    Attention a = attention_unpacked(2, T, T, 2, 1, HS, MASK_NONE, 1, p);
    Inputs in = inputs_create(a, 1);
    Outputs o = outputs_create(variant, &in);
    memset(in.q, 0, in.q_size * sizeof(float));
    size_t wrong = 0;
    for (size_t window = 0; window < T; window += HS) {
        memset(in.v, 0, in.kv_size * sizeof(float));
        for (size_t b = 0; b < 2; b++)
            for (size_t c = 0; c < HS && window + c < T; c++)
                in.v[b * a.kv_sequence + (window + c) * a.kv_token + c] = 1;
        run_forward(variant, &in, &a, &o);
        for (size_t i = 0; i < in.out_size; i++) {
            size_t b = i / a.out_sequence, query = i % a.out_sequence / a.out_token, h = i % a.out_token / HS,
                   key = window + i % HS;
            if (key < T) wrong += (o.out[i] != 0) != attention_dropout_keeps(&a, b, h, query, key);
        }
    }
    EXPECT(wrong == 0, "variant %d, T %zu, p %g: %zu elements of the forward mask differ", variant, T, p,
           wrong);
    outputs_free(&o), inputs_free(&in);
}

// dO one-hot in a window of HS queries: column c of dV_j is A of (query c of the window, key j).
static void test_mask_backward(AttentionVariant variant, size_t T, double p) {
    enum { HS = 32 };
    Attention a = attention_unpacked(2, T, T, 2, 2, HS, MASK_NONE, 1, p);
    Inputs in = inputs_create(a, 1);
    Outputs o = outputs_create(variant, &in);
    memset(in.q, 0, in.q_size * sizeof(float));
    run_forward(variant, &in, &a, &o);
    size_t wrong = 0;
    for (size_t window = 0; window < T; window += HS) {
        memset(in.dout, 0, in.out_size * sizeof(float));
        for (size_t b = 0; b < 2; b++)
            for (size_t h = 0; h < 2; h++)
                for (size_t c = 0; c < HS && window + c < T; c++)
                    in.dout[b * a.out_sequence + (window + c) * a.out_token + h * HS + c] = 1;
        run_backward(variant, &in, &a, &o);
        for (size_t i = 0; i < in.kv_size; i++) {
            size_t b = i / a.kv_sequence, key = i % a.kv_sequence / a.kv_token, h = i % a.kv_token / HS,
                   query = window + i % HS;
            if (query < T) wrong += (o.dv[i] != 0) != attention_dropout_keeps(&a, b, h, query, key);
        }
    }
    EXPECT(wrong == 0, "variant %d, T %zu, p %g: %zu elements of the backward mask differ", variant, T, p,
           wrong);
    outputs_free(&o), inputs_free(&in);
}

// A mask of T x T elements as 0 and 1, in one byte each.
static uint8_t *mask_of(const Attention *a, size_t b, size_t h) {
    uint8_t *mask = (uint8_t *)malloc(a->Tq * a->Tk);
    for (size_t i = 0; i < a->Tq * a->Tk; i++)
        mask[i] = (uint8_t)attention_dropout_keeps(a, b, h, i / a->Tk, i % a->Tk);
    return mask;
}

// The rate, and no correlation with the mask of another step, layer, head, sequence or seed, nor with its
// transpose.
static void test_mask_statistics(double p) {
    enum { T = 512 };
    Attention a = attention_unpacked(1, T, T, 4, 4, 16, MASK_NONE, 1, p), other[5] = {a, a, a, a, a};
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

// The mean of out over many steps is the undropped out.
static void test_mean(AttentionVariant variant) {
    enum { T = 40, HS = 16 };
    const uint32_t SEEDS = test_is_small() ? 50 : 1000;
    Attention a = attention_unpacked(1, T, T, 1, 1, HS, MASK_CAUSAL, 0.25f, 0.17);
    Inputs in = inputs_create(a, 1);
    Outputs o = outputs_create(variant, &in);
    double sum[T * HS] = {0}, squares[T * HS] = {0};
    for (uint32_t seed = 0; seed < SEEDS; seed++) {
        a.dropout.step = seed;
        run_forward(variant, &in, &a, &o);
        for (int i = 0; i < T * HS; i++) {
            sum[i] += (double)o.out[i] / SEEDS;
            squares[i] += (double)o.out[i] * (double)o.out[i] / SEEDS;
        }
    }
    a.dropout.threshold = 256;
    run_forward(variant, &in, &a, &o);
    for (int i = 0; i < T * HS; i++) {
        double sigma = sqrt(fmax(squares[i] - sum[i] * sum[i], 0) / SEEDS) + 1e-6;
        EXPECT(fabs(sum[i] - (double)o.out[i]) < 5 * sigma,
               "variant %d: mean %g of element %d, undropped %g, sigma %g", variant, sum[i], i,
               (double)o.out[i], sigma);
    }
    outputs_free(&o), inputs_free(&in);
}

// A block of bytes is what the one-element definition says; masks do not depend on how a batch is split.
static void test_mask_blocks(void) {
    Attention a = attention_unpacked(3, 64, 96, 3, 3, 16, MASK_NONE, 1, 0.5);
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

int main(int argc, char **argv) {
    static const double rates[] = {0.1, 0.17, 0.5, 0.9};
    (void)argc;
    const char *refusal = device_open(argv);
    if (refusal != NULL) {
        printf("%s\n", refusal);
        return 1;
    }
    test_definition(MASK_CAUSAL, 5, 5, 2, 2, 0);
    test_definition(MASK_CAUSAL, 5, 5, 2, 1, 0.5);
    test_definition(MASK_CAUSAL, 3, 7, 4, 2, 0.17);
    test_definition(MASK_CAUSAL, 6, 4, 2, 1, 0);
    test_definition(MASK_NONE, 4, 6, 2, 2, 0.5);
    test_shapes();
    test_masks_and_scales();
    test_extremes();
    test_mask_blocks();
    for (int i = 0; i < 4; i++) test_mask_statistics(rates[i]);
    for (int variant = ATTENTION_NAIVE; variant <= ATTENTION_FLASH; variant++) {
        if (!is_available(variant)) continue;
        test_nan_stays((AttentionVariant)variant);
        test_mean((AttentionVariant)variant);
        for (int i = 0; i < 4; i++) {
            test_mask_forward((AttentionVariant)variant, 100, rates[i]);
            test_mask_backward((AttentionVariant)variant, 100, rates[i]);
        }
    }
    return test_finish();
}
