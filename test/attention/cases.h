// Runs one variant of attention on a case, and compares its results with the definition (reference.h).
//
// On the device, there are gaps after every token and every sequence, and guards around every array. In inputs the gaps
// contain NaN, which would appear in results if they were read; in outputs they must not change.
#ifndef TEST_ATTENTION_CASES_H
#define TEST_ATTENTION_CASES_H

#include <omp.h>
#include "layers/base/progress.h"
#include "reference.h"
#ifdef DEVICE_CUDA
#include "test/harness/device_arrays.h"
#endif

#ifdef CUDA_EMULATION
enum { EMULATED = 1 }; // slow
#else
enum { EMULATED = 0 };
#endif

// ---- arrays on the device ---------------------------------------------------------------------------------

// put returns a copy between guards; take returns the contents of one and frees it on the device.
#ifdef DEVICE_CUDA
static floatX *put(const float *x, size_t n) {
    return poisoned_copy<floatX>(x, n);
}
static float *put_floats(const float *x, size_t n) {
    return poisoned_copy<float>(x, n);
}
template <class T> static float *take(T *device, size_t n) {
    float *x = download(device, n);
    EXPECT(guards_hold_on_device(device, n), "attention writes outside an array");
    device_free_poisoned(device);
    return x;
}
#else
static float *put(const float *x, size_t n) {
    float *y = poisoned_floats(n);
    if (n > 0) memcpy(y, x, n * sizeof(float));
    return y;
}
static float *put_floats(const float *x, size_t n) {
    return put(x, n);
}
static float *take(float *device, size_t n) {
    float *x = (float *)malloc((n + 1) * sizeof(float));
    memcpy(x, device, n * sizeof(float));
    EXPECT(guards_hold(device, n), "attention writes outside an array");
    free_poisoned(device);
    return x;
}
#endif

static float *filled(size_t n, float value) {
    float *x = (float *)malloc((n + 1) * sizeof(float));
    for (size_t i = 0; i < n; i++) x[i] = value;
    return x;
}
static float *put_poison(size_t n) {
    float *x = filled(n, NAN), *device = put_floats(x, n);
    free(x);
    return device;
}

// ---- layout of tensors on the device ----------------------------------------------------------------------

static const float OUTSIDE = 12352; // content of gaps in outputs; exact in bf16

// A tensor of B sequences of T tokens in a buffer.
typedef struct {
    size_t B, T, row, token, sequence;
} Rows;

// q, k and v in one buffer, and so their gradients.
typedef struct {
    Attention a; // has the strides on the device
    Rows q_rows, kv_rows, out_rows;
    size_t q, k, v;        // offsets in the buffer
    size_t size, out_size; // elements of the buffer, and of that of out
} Layout;

static Layout layout_of(const Inputs *in) {
    enum { ELEMENTS = 8, TOKENS = 3 }; // sizes of the gaps after each token and after each sequence
    Layout l;
    l.a = in->a;
    Attention *a = &l.a;
    a->q_token += ELEMENTS, a->kv_token += ELEMENTS, a->out_token += ELEMENTS;
    a->q_sequence = (a->Tq + TOKENS) * a->q_token, a->kv_sequence = (a->Tk + TOKENS) * a->kv_token;
    l.q = 0, l.k = a->B * a->q_sequence, l.v = l.k + a->B * a->kv_sequence;
    l.size = l.v + a->B * a->kv_sequence;
    if (in->packed) {
        l.a = attention_packed(a->B, a->Tq, a->NH, a->NKV, a->HS, a->dropout);
        l.a.atomics = in->a.atomics;
        l.k = a->NH * a->HS, l.v = l.k + a->NKV * a->HS;
        l.size = a->B * a->q_sequence;
    }
    a->out_sequence = (a->Tq + TOKENS) * a->out_token;
    l.out_size = a->B * a->out_sequence;
    Rows q = {a->B, a->Tq, a->NH * a->HS, a->q_token, a->q_sequence}, out = q;
    Rows kv = {a->B, a->Tk, a->NKV * a->HS, a->kv_token, a->kv_sequence};
    out.token = a->out_token, out.sequence = a->out_sequence;
    l.q_rows = q, l.kv_rows = kv, l.out_rows = out;
    return l;
}

// Copies a dense tensor into the buffer, or fills the tensor there with NaN if `dense` is NULL.
static void scatter(float *buffer, const float *dense, const Rows *r) {
    for (size_t i = 0; i < r->B * r->T * r->row; i++)
        buffer[i / r->row / r->T * r->sequence + i / r->row % r->T * r->token + i % r->row] = dense ? dense[i]
                                                                                                    : NAN;
}
// Copies a tensor from the buffer to a dense one, and sets it to OUTSIDE in the buffer.
static void gather(float *dense, float *buffer, const Rows *r) {
    for (size_t i = 0; i < r->B * r->T * r->row; i++) {
        float *x = buffer + i / r->row / r->T * r->sequence + i / r->row % r->T * r->token + i % r->row;
        dense[i] = *x;
        *x = OUTSIDE;
    }
}
static void expect_outside(const float *buffer, size_t n) {
    size_t damaged = 0;
    for (size_t i = 0; i < n; i++) damaged += buffer[i] != OUTSIDE;
    EXPECT(damaged == 0, "%zu elements between the tokens of an output are written", damaged);
}

// Return inputs on the device or, for NULL, outputs that contain NaN.
static floatX *put_qkv(const Layout *l, const float *q, const float *k, const float *v) {
    float *host = filled(l->size, q ? NAN : OUTSIDE);
    scatter(host + l->q, q, &l->q_rows), scatter(host + l->k, k, &l->kv_rows),
        scatter(host + l->v, v, &l->kv_rows);
    floatX *device = put(host, l->size);
    free(host);
    return device;
}
static floatX *put_out(const Layout *l, const float *out) {
    float *host = filled(l->out_size, out ? NAN : OUTSIDE);
    scatter(host, out, &l->out_rows);
    floatX *device = put(host, l->out_size);
    free(host);
    return device;
}

// ---- running a variant ------------------------------------------------------------------------------------

static const char *const variant_names[] = {"auto", "naive", "flash", "cudnn"};

enum { OUT, LSE, DQ, DK, DV, TENSORS };
static const char *const tensor_names[] = {"out", "lse", "dq", "dk", "dv"};

// Outputs, dense as the inputs are.
typedef struct {
    float *x[TENSORS], *saved;
} Outputs;

static size_t tensor_size(const Inputs *in, int tensor) {
    return tensor == LSE ? in->lse_size : tensor == DK || tensor == DV ? in->kv_size : in->q_size;
}
static size_t saved_size(AttentionVariant variant, const Attention *a) {
    return attention_saved_size(variant, a->B, a->NH, a->Tq, a->Tk);
}

static Outputs outputs_create(const Inputs *in) {
    Outputs o;
    for (int i = 0; i < TENSORS; i++) o.x[i] = filled(tensor_size(in, i), NAN);
    o.saved = NULL;
    return o;
}
static void outputs_free(Outputs *o) {
    for (int i = 0; i < TENSORS; i++) free(o->x[i]);
    free(o->saved);
}

static double kernel_milliseconds; // of the last forward or backward

static void run_forward(AttentionVariant variant, const Inputs *in, Outputs *o) {
    const Layout l = layout_of(in);
    floatX *qkv = put_qkv(&l, in->q, in->k, in->v), *out = put_out(&l, NULL);
    float *lse = put_poison(in->lse_size), *saved = put_poison(saved_size(variant, &in->a));
    stream_wait(0);
    double started = seconds_now();
    attention_forward(variant, out, lse, saved, qkv + l.q, qkv + l.k, qkv + l.v, &l.a, 0);
    stream_wait(0);
    kernel_milliseconds = 1e3 * (seconds_now() - started);
    float *strided = take(out, l.out_size);
    gather(o->x[OUT], strided, &l.out_rows);
    expect_outside(strided, l.out_size);
    free(strided), free(o->x[LSE]), free(o->saved), free(take(qkv, l.size));
    o->x[LSE] = take(lse, in->lse_size);
    o->saved = take(saved, saved_size(variant, &in->a));
}

// Must be called after run_forward, whose results are in `o`.
static void run_backward(AttentionVariant variant, const Inputs *in, Outputs *o) {
    const Layout l = layout_of(in);
    const Attention *a = &in->a;
    const size_t scratch_size = attention_scratch_size(variant, DEVICE_IS_GPU, a->B, a->NH, a->Tq, a->HS);
    floatX *qkv = put_qkv(&l, in->q, in->k, in->v), *dqkv = put_qkv(&l, NULL, NULL, NULL);
    floatX *out = put_out(&l, o->x[OUT]), *dout = put_out(&l, in->dout);
    float *lse = put_floats(o->x[LSE], in->lse_size), *saved = put_floats(o->saved, saved_size(variant, a));
    float *scratch = put_poison(scratch_size);
    stream_wait(0);
    double started = seconds_now();
    attention_backward(variant, dqkv + l.q, dqkv + l.k, dqkv + l.v, dout, qkv + l.q, qkv + l.k, qkv + l.v,
                       out, lse, saved, scratch, &l.a, 0);
    stream_wait(0);
    kernel_milliseconds = 1e3 * (seconds_now() - started);
    float *strided = take(dqkv, l.size);
    gather(o->x[DQ], strided + l.q, &l.q_rows);
    gather(o->x[DK], strided + l.k, &l.kv_rows);
    gather(o->x[DV], strided + l.v, &l.kv_rows);
    expect_outside(strided, l.size);
    free(strided), free(take(scratch, scratch_size)), free(take(qkv, l.size)), free(take(out, l.out_size));
    free(take(dout, l.out_size)), free(take(lse, in->lse_size)), free(take(saved, saved_size(variant, a)));
}

// Returns milliseconds.
static double run_variant(AttentionVariant variant, const Inputs *in, Outputs *o) {
    run_forward(variant, in, o);
    double forward = kernel_milliseconds;
    run_backward(variant, in, o);
    return forward + kernel_milliseconds;
}

static int same_bits(const Outputs *a, const Outputs *b, const Inputs *in, int tensor) {
    return memcmp(a->x[tensor], b->x[tensor], tensor_size(in, tensor) * sizeof(float)) == 0;
}

// ---- comparing --------------------------------------------------------------------------------------------

typedef struct {
    double of[TENSORS];
} Errors;

// Returns the largest |got - wanted|. Equal infinities count as 0, a NaN as infinite.
static double absolute_error(const float *got, const double *wanted, size_t n) {
    double error = 0;
    for (size_t i = 0; i < n; i++) {
        double difference = (double)got[i] == wanted[i] ? 0 : fabs((double)got[i] - wanted[i]);
        if (!(difference <= error)) error = isnan(difference) ? INFINITY : difference;
    }
    return error;
}
static double largest(const double *x, size_t n) {
    double size = 0;
    for (size_t i = 0; i < n; i++)
        if (!isinf(x[i])) size = fmax(size, fabs(x[i]));
    return size;
}

static const double *wanted(const Reference *r, int tensor) {
    const double *all[TENSORS] = {r->out, r->lse, r->dq, r->dk, r->dv};
    return all[tensor];
}

static Errors errors_of(const Outputs *o, const Inputs *in, const Reference *r) {
    Errors e;
    for (int i = 0; i < TENSORS; i++) e.of[i] = absolute_error(o->x[i], wanted(r, i), tensor_size(in, i));
    return e;
}

// Returns the errors that are allowed for naive, the plain implementation. `out`, `lse` and `gradients` are errors of
// the arithmetic relative to the largest element or, if gradients cancel almost completely, to the size of their terms.
static Errors allowed_plain(const Inputs *in, const Reference *r, double out, double lse, double gradients) {
    // Rounding to bf16 adds half a unit in the last place of 8 bits. In gradients there are also the rounding of out in
    // D, and cancellation.
    const double forward_rounding = DEVICE_IS_BF16 ? 1.0 / 256 : 0,
                 backward_rounding = DEVICE_IS_BF16 ? 1.0 / 32 : 0;
    const double relative[] = {out + forward_rounding, lse, gradients + backward_rounding};
    const double smallest[] = {1e-3, 1, 0.1};
    Errors e;
    for (int i = 0; i < TENSORS; i++) {
        int kind = i < DQ ? i : DQ;
        e.of[i] = relative[kind] * fmax(smallest[kind], largest(wanted(r, i), tensor_size(in, i)));
    }
    return e;
}

// Returns the errors that are allowed for other variants, by Dao's rule: twice the error of the plain implementation
// for out and lse, three times for gradients, plus 1e-5. An lse of thousands is only accurate to its last place, to
// which naive may be closer by chance. For extreme values, `slack` is a factor and `more` is added for gradients;
// otherwise they are 1 and 0.
static Errors allowed_by(const Errors *plain, const Inputs *in, const Reference *r, double slack,
                         double more) {
    Errors e;
    for (int i = 0; i < TENSORS; i++)
        e.of[i] = (i < DQ ? 2 : 3) * slack * plain->of[i] + 1e-5 + (i < DQ ? 0 : more);
    e.of[LSE] += 4 * largest(wanted(r, LSE), tensor_size(in, LSE)) / (1 << 24);
    return e;
}

// Prints the line of a case and checks its errors.
static void report(AttentionVariant variant, const Inputs *in, const Errors *e, const Errors *allowed,
                   double milliseconds) {
    const Attention *a = &in->a;
    printf("%s B %zu Tq %zu Tk %zu NH %zu NKV %zu HS %zu %s scale %.3g p %.2f%s%s:", variant_names[variant],
           a->B, a->Tq, a->Tk, a->NH, a->NKV, a->HS, a->mask == MASK_CAUSAL ? "causal" : "full",
           (double)a->scale, 1 - a->dropout.threshold / 256.0, in->packed ? " packed" : "",
           a->atomics ? " atomics" : "");
    int good = 1;
    for (int i = 0; i < TENSORS; i++) {
        printf(" %s %.1e (%.1e)", tensor_names[i], e->of[i], allowed->of[i]);
        good &= e->of[i] <= allowed->of[i];
    }
    printf(" %.2f ms\n", milliseconds);
    EXPECT(good, "the case above: a larger error than the one allowed");
}

#endif
