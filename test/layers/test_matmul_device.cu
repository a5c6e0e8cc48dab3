// Compares matmul and GELU kernels with double precision computed from the same rounded inputs: every layout and
// mode, sizes around multiples of the tile sizes, bias, GELU and its derivative, gradients of biases; outputs between
// guards, bitwise repeatability; for our own kernels and, on a GPU, for cuBLASLt. Also tests the list of cuBLASLt's
// algorithms on disk, which needs no GPU.
#include <unistd.h>

#include "layers/matmul.cuh"
#include "layers/matmul_cublas.h"
#include "test/harness/device_arrays.h"

static double gelu_in_double(double x) {
    return 0.5 * x * (1 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
}
static double gelu_derivative_in_double(double x) {
    double t = tanh(0.7978845608028654 * (x + 0.044715 * x * x * x));
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * 0.7978845608028654 * (1 + 3 * 0.044715 * x * x);
}

// ---- references -------------------------------------------------------------------------------------------

typedef struct {
    size_t n;
    double *wanted, *bound; // each with n elements
} Reference;

static Reference reference_create(size_t n) {
    Reference r = {n, (double *)malloc(n * sizeof(double)), (double *)malloc(n * sizeof(double))};
    CHECK(r.wanted != NULL && r.bound != NULL);
    return r;
}
static void reference_free(Reference *r) {
    free(r->wanted), free(r->bound);
}

// Returns a product with `bias` (N) or NULL, added to `initial` (M, N) or NULL, and stored with a relative error of
// `rounding`.
//
// Bound: products of floatX are exact or rounded once in fp32, and each of the K + 2 additions rounds (or, on
// tensor cores, truncates) a partial sum that is at most S = the sum of all absolute values, which gives
// 2 (K + 3) 2^-24 S. Then the result is rounded once more.
static Reference reference_product(MatmulLayout layout, size_t M, size_t N, size_t K, const float *A,
                                   const float *B, const float *bias, const float *initial, double rounding) {
    Reference r = reference_create(M * N);
    for (size_t m = 0; m < M; m++)
        for (size_t n = 0; n < N; n++) {
            double sum = initial != NULL ? (double)initial[m * N + n] : 0, size = fabs(sum);
            if (bias != NULL) sum += (double)bias[n], size += fabs((double)bias[n]);
            for (size_t k = 0; k < K; k++) {
                double a = (double)(layout == MATMUL_TN ? A[k * M + m] : A[m * K + k]);
                double b = (double)(layout == MATMUL_NT ? B[n * K + k] : B[k * N + n]);
                sum += a * b, size += fabs(a * b);
            }
            r.wanted[m * N + n] = sum;
            r.bound[m * N + n] = 2 * ((double)K + 3) * 0x1p-24 * size + rounding * fabs(sum) * 1.001 + 1e-30;
        }
    return r;
}

// The values of the product are rounded, then multiplied by GELU'(input), which the kernel computes to about 1e-5,
// then rounded again.
static void reference_gelu_derivative(Reference *r, const float *input) {
    for (size_t i = 0; i < r->n; i++) {
        double derivative = gelu_derivative_in_double((double)input[i]), value = r->wanted[i] * derivative;
        r->bound[i] = r->bound[i] * fabs(derivative) + 1e-5 * fabs(r->wanted[i]) +
                      1.01 * floatX_epsilon() * fabs(value) + 1e-30;
        r->wanted[i] = value;
    }
}

static Reference reference_bias(const float *dout, size_t N, size_t OC, const float *initial) {
    Reference r = reference_create(OC);
    for (size_t o = 0; o < OC; o++) {
        double sum = (double)initial[o], size = fabs(sum);
        for (size_t n = 0; n < N; n++)
            sum += (double)dout[n * OC + o], size += fabs((double)dout[n * OC + o]);
        r.wanted[o] = sum;
        r.bound[o] = ((double)N + 2) * 0x1p-24 * size + 1e-30;
    }
    return r;
}

// Checks an output and that its repetition has the same bits, and frees both.
template <class T> static void expect_output(const char *what, T *got, T *again, const Reference *r) {
    float *values = download(got, r->n);
    expect_within(what, values, r->wanted, r->bound, r->n);
    EXPECT(guards_hold_on_device(got, r->n) && guards_hold_on_device(again, r->n),
           "%s: writes outside its output", what);
    EXPECT(same_bits_on_device(got, again, r->n), "%s: other bits the second time", what);
    free(values);
    device_free_poisoned(got), device_free_poisoned(again);
}

// ---- the layer --------------------------------------------------------------------------------------------

static MatmulContext context;
static Stream stream;
static const char *library;

typedef struct {
    size_t N, C, OC;
    float *in, *weight, *bias, *dout, *pre;            // on the host
    floatX *d_in, *d_weight, *d_bias, *d_dout, *d_pre; // on the device
} Case;

static Case case_create(size_t N, size_t C, size_t OC) {
    Case k = {N,
              C,
              OC,
              random_floatX(N * C, 1),
              random_floatX(C * OC, 1),
              random_floatX(OC, 1),
              random_floatX(N * OC, 1),
              random_floatX(N * C, 3),
              NULL,
              NULL,
              NULL,
              NULL,
              NULL};
    k.d_in = upload(k.in, N * C), k.d_weight = upload(k.weight, C * OC), k.d_bias = upload(k.bias, OC);
    k.d_dout = upload(k.dout, N * OC), k.d_pre = upload(k.pre, N * C);
    return k;
}
static void case_free(Case *k) {
    free(k->in), free(k->weight), free(k->bias), free(k->dout), free(k->pre);
    device_free(k->d_in), device_free(k->d_weight), device_free(k->d_bias), device_free(k->d_dout),
        device_free(k->d_pre);
}

static void describe(char *text, size_t size, const char *what, const Case *k) {
    snprintf(text, size, "%s: %s, N %zu, C %zu, OC %zu", library, what, k->N, k->C, k->OC);
}

// Tests in (N, C) weight (C, OC) with and without bias, and with GELU.
static void test_forward(const Case *k) {
    size_t n = k->N * k->OC;
    char what[128];
    for (int has_bias = 0; has_bias < 2; has_bias++) {
        floatX *out[2] = {poisoned<floatX>(n), poisoned<floatX>(n)};
        for (int i = 0; i < 2; i++)
            matmul_forward(&context, out[i], k->d_in, k->d_weight, has_bias ? k->d_bias : NULL, k->N, k->C,
                           k->OC, stream);
        Reference r = reference_product(MATMUL_NN, k->N, k->OC, k->C, k->in, k->weight,
                                        has_bias ? k->bias : NULL, NULL, floatX_epsilon());
        describe(what, sizeof(what), has_bias ? "forward with bias" : "forward", k);
        expect_output(what, out[0], out[1], &r);
        reference_free(&r);
    }
    // Computing out and gelu in one call gives the same out, and bitwise the same gelu as gelu_forward of the stored
    // out.
    floatX *plain = poisoned<floatX>(n), *out = poisoned<floatX>(n),
           *gelu[2] = {poisoned<floatX>(n), poisoned<floatX>(n)};
    matmul_forward(&context, plain, k->d_in, k->d_weight, k->d_bias, k->N, k->C, k->OC, stream);
    matmul_gelu_forward(&context, gelu[0], out, k->d_in, k->d_weight, k->d_bias, k->N, k->C, k->OC, stream);
    gelu_forward(gelu[1], out, n, stream);
    describe(what, sizeof(what), "gelu forward", k);
    EXPECT(same_bits_on_device(plain, out, n), "%s: the pre-activation is not that of forward", what);
    EXPECT(guards_hold_on_device(out, n), "%s: writes outside its output", what);
    Reference r = reference_create(n);
    float *x = download(out, n);
    for (size_t i = 0; i < n; i++) {
        r.wanted[i] = gelu_in_double((double)x[i]);
        r.bound[i] = 1.001 * floatX_epsilon() * fabs(r.wanted[i]) + 2e-6 * fabs((double)x[i]) + 1e-30;
    }
    expect_output(what, gelu[0], gelu[1], &r);
    reference_free(&r);
    free(x), device_free_poisoned(plain), device_free_poisoned(out);
}

static void test_backward(const Case *k, int has_gelu, MatmulMode mode) {
    size_t N = k->N, C = k->C, OC = k->OC;
    float *old_weight = random_floats(C * OC, 1), *old_bias = random_floats(OC, 1);
    const int adds = mode == MATMUL_ACCUMULATE;
    floatX *din[2];
    float *dweight[2], *dbias[2];
    for (int i = 0; i < 2; i++) {
        din[i] = poisoned<floatX>(N * C);
        dweight[i] = adds ? poisoned_copy(old_weight, C * OC) : poisoned<float>(C * OC);
        dbias[i] = poisoned_copy(old_bias, OC);
        matmul_backward(&context, din[i], dweight[i], dbias[i], k->d_dout, k->d_in, k->d_weight,
                        has_gelu ? k->d_pre : NULL, N, C, OC, mode, stream);
    }
    Reference in = reference_product(MATMUL_NT, N, C, OC, k->dout, k->weight, NULL, NULL, floatX_epsilon());
    if (has_gelu) reference_gelu_derivative(&in, k->pre);
    Reference weight = reference_product(MATMUL_TN, C, OC, N, k->in, k->dout, NULL, adds ? old_weight : NULL,
                                         0);
    Reference bias = reference_bias(k->dout, N, OC, old_bias);
    char what[128];
    describe(what, sizeof(what), has_gelu ? "din with gelu'" : "din", k);
    expect_output(what, din[0], din[1], &in);
    describe(what, sizeof(what), adds ? "dweight +=" : "dweight =", k);
    expect_output(what, dweight[0], dweight[1], &weight);
    describe(what, sizeof(what), "dbias", k);
    expect_output(what, dbias[0], dbias[1], &bias);
    reference_free(&in), reference_free(&weight), reference_free(&bias);
    free(old_weight), free(old_bias);
}

// Tests the head, with V = OC; wte (V, C) is the weight of the case, interpreted with another shape.
static void test_head(const Case *k, MatmulMode mode) {
    size_t N = k->N, C = k->C, V = k->OC;
    float *old = random_floats(V * C, 1);
    const int adds = mode == MATMUL_ACCUMULATE;
    floatX *logits[2], *din[2];
    float *dwte[2];
    for (int i = 0; i < 2; i++) {
        logits[i] = poisoned<floatX>(N * V);
        din[i] = poisoned<floatX>(N * C);
        dwte[i] = adds ? poisoned_copy(old, V * C) : poisoned<float>(V * C);
        matmul_head_forward(&context, logits[i], k->d_in, k->d_weight, N, C, V, stream);
        matmul_head_backward(&context, din[i], dwte[i], k->d_dout, k->d_in, k->d_weight, N, C, V, mode,
                             stream);
    }
    Reference out = reference_product(MATMUL_NT, N, V, C, k->in, k->weight, NULL, NULL, floatX_epsilon());
    Reference in = reference_product(MATMUL_NN, N, C, V, k->dout, k->weight, NULL, NULL, floatX_epsilon());
    Reference wte = reference_product(MATMUL_TN, V, C, N, k->dout, k->in, NULL, adds ? old : NULL, 0);
    char what[128];
    describe(what, sizeof(what), "logits", k);
    expect_output(what, logits[0], logits[1], &out);
    describe(what, sizeof(what), "head's din", k);
    expect_output(what, din[0], din[1], &in);
    describe(what, sizeof(what), adds ? "dwte +=" : "dwte =", k);
    expect_output(what, dwte[0], dwte[1], &wte);
    reference_free(&out), reference_free(&in), reference_free(&wte);
    free(old);
}

// Tests every pair of a number of tokens and a width, and every pair of widths; modes alternate.
static void test_sizes(void) {
    static const size_t tokens[] = {1, 3, 17, 63, 64, 65, 129}, widths[] = {8, 24, 40, 64, 72, 136};
    for (size_t i = 0; i < 7; i++)
        for (size_t j = 0; j < 6; j++) {
            Case k = case_create(tokens[i], widths[j], widths[(i + j) % 6]);
            test_forward(&k);
            test_backward(&k, (i + j) % 2 == 0, (MatmulMode)(i % 2));
            test_head(&k, (MatmulMode)(j % 2));
            case_free(&k);
        }
}

// Tests more rows of tiles than a strip has, and many chunks of rows for the bias.
static void test_tall(void) {
    Case k = case_create(1100, 8, 136);
    test_forward(&k);
    test_head(&k, MATMUL_ACCUMULATE);
    case_free(&k);
    k = case_create(8, 1112, 72);
    test_backward(&k, 1, MATMUL_ACCUMULATE);
    case_free(&k);
}

// Tests the gradient of a bias alone, with chunks of the minimum number of rows and of more.
static void test_bias(size_t N, size_t OC) {
    float *dout = random_floatX(N * OC, 1), *old = random_floats(OC, 1);
    floatX *d_dout = upload(dout, N * OC);
    float *dbias[2] = {poisoned_copy(old, OC), poisoned_copy(old, OC)};
    for (int i = 0; i < 2; i++) bias_backward(&context, dbias[i], d_dout, N, OC, stream);
    Reference r = reference_bias(dout, N, OC, old);
    char what[64];
    snprintf(what, sizeof(what), "bias of %zu x %zu", N, OC);
    expect_output(what, dbias[0], dbias[1], &r);
    reference_free(&r);
    free(dout), free(old), device_free(d_dout);
}

// A NaN in a row of A affects only that row of C.
static void test_not_finite(void) {
    enum { N = 70, C = 72, OC = 72, ROW = 17 };
    float *in = random_floatX(N * C, 1), *weight = random_floatX(C * OC, 1);
    in[ROW * C + 71] = NAN;
    floatX *d_in = upload(in, N * C), *d_weight = upload(weight, C * OC), *out = poisoned<floatX>(N * OC);
    matmul_forward(&context, out, d_in, d_weight, NULL, N, C, OC, stream);
    float *got = download(out, N * OC);
    size_t wrong = 0;
    for (size_t i = 0; i < N * OC; i++) wrong += (isnan(got[i]) != 0) != (i / OC == ROW);
    EXPECT(wrong == 0, "%s: a NaN in row %d: %zu elements are NaN and should not be, or the reverse", library,
           ROW, wrong);
    free(in), free(weight), free(got), device_free(d_in), device_free(d_weight), device_free_poisoned(out);
}

// ---- GELU -------------------------------------------------------------------------------------------------

static void test_gelu(size_t n) {
    static const float special[] = {0,   -0.0f, 1e-20f, -1e-20f, 5,     -5,    12,
                                    -12, 100,   -100,   3000,    -3000, 1e10f, -1e10f};
    float *x = random_floatX(n, 8), *dout = random_floatX(n, 1);
    for (size_t i = 0; i < n && i < sizeof(special) / sizeof(special[0]); i++)
        x[n - 1 - i] = as_floatX(special[i]);
    floatX *in = upload(x, n), *d_dout = upload(dout, n), *out = poisoned<floatX>(n),
           *again = poisoned<floatX>(n);
    floatX *din = poisoned<floatX>(n), *in_place = poisoned_copy<floatX>(dout, n);
    gelu_forward(out, in, n, stream);
    gelu_forward(again, in, n, stream);
    gelu_backward(din, d_dout, in, n, stream);
    gelu_backward(in_place, in_place, in, n, stream);
    Reference forward = reference_create(n), backward = reference_create(n);
    for (size_t i = 0; i < n; i++) {
        double value = (double)x[i], gradient = (double)dout[i];
        forward.wanted[i] = gelu_in_double(value);
        backward.wanted[i] = gradient * (fabs(value) < 100 ? gelu_derivative_in_double(value) : value > 0);
        forward.bound[i] = 1.001 * floatX_epsilon() * fabs(forward.wanted[i]) + 2e-6 * fabs(value) + 1e-30;
        backward.bound[i] = 1.001 * floatX_epsilon() * fabs(backward.wanted[i]) + 1e-5 * fabs(gradient) +
                            1e-30;
    }
    char what[64];
    snprintf(what, sizeof(what), "gelu of %zu elements", n);
    expect_output(what, out, again, &forward);
    expect_output(what, din, in_place, &backward);
    reference_free(&forward), reference_free(&backward);
    free(x), free(dout), device_free(in), device_free(d_dout);
}

// ---- the list of algorithms -------------------------------------------------------------------------------

static MatmulAlgorithms some_algorithms(void) {
    MatmulAlgorithms a = {"cuBLASLt 130100, bf16, NVIDIA H200, sm_90, 132 multiprocessors", 0, NULL};
    static const MatmulShape shapes[] = {{MATMUL_NN, 16384, 2304, 768, MATMUL_FLOATX, 1, MATMUL_OVERWRITE},
                                         {MATMUL_TN, 768, 2304, 16384, MATMUL_FLOAT, 0, MATMUL_ACCUMULATE},
                                         {MATMUL_NT, 1, SIZE_MAX, 8, MATMUL_FLOATX, 0, MATMUL_OVERWRITE}};
    for (size_t i = 0; i < 3; i++) {
        MatmulAlgorithm algorithm = {shapes[i], {0, 1, ~0ull, 0x0123456789abcdefull, 5, 6, 7, 8 + i}};
        matmul_algorithms_add(&a, &algorithm);
    }
    return a;
}

static int parses(const char *text, size_t size) {
    char *copy = (char *)malloc(size + 1); // so that a sanitizer detects a read past the end
    memcpy(copy, text, size);
    copy[size] = '\0';
    MatmulAlgorithms a;
    int result = matmul_algorithms_parse(&a, copy, size);
    if (result == 0) matmul_algorithms_free(&a);
    free(copy);
    return result == 0;
}

// Tests malformed lines with a correct checksum.
static void test_bad_lines(void) {
    static const char *const words = " 0000000000000000 0000000000000001 0000000000000002 0000000000000003"
                                     " 0000000000000004 0000000000000005 0000000000000006 0000000000000007";
    static const char *const bad[] = {"",
                                      "NN",
                                      "XX 1 2 3 floatX - overwrite",
                                      "NN 1 2 floatX - overwrite",
                                      "NN 1 2 3 double - overwrite",
                                      "NN 1 2 3 floatX yes overwrite",
                                      "NN 1 2 3 floatX - add",
                                      "NN -1 2 3 floatX - overwrite",
                                      "NN 0 2 3 floatX - overwrite",
                                      "NN 1 2 3 floatX - overwrite 0"};
    for (size_t i = 0; i <= sizeof(bad) / sizeof(bad[0]); i++) {
        char text[512];
        int good = i == sizeof(bad) / sizeof(bad[0]);
        int length = snprintf(text, sizeof(text), "x\n%s%s\n", good ? "NN 1 2 3 floatX - overwrite" : bad[i],
                              words);
        length += snprintf(text + length, sizeof(text) - (size_t)length, "crc32c %08x\n",
                           (unsigned)crc32c(0, text, (size_t)length));
        EXPECT(parses(text, (size_t)length) == good, "'%s' is %s", good ? "a good line" : bad[i],
               good ? "refused" : "accepted");
    }
}

static void test_algorithm_list(void) {
    MatmulAlgorithms a = some_algorithms(), b;
    char *text = matmul_algorithms_text(&a);
    size_t size = strlen(text);
    EXPECT(matmul_algorithms_parse(&b, text, size) == 0, "a list is not read back");
    int same = b.count == a.count && strcmp(a.made_for, b.made_for) == 0;
    for (size_t i = 0; same && i < a.count; i++)
        same = matmul_shapes_equal(&a.list[i].shape, &b.list[i].shape) &&
               memcmp(a.list[i].words, b.list[i].words, sizeof(a.list[i].words)) == 0;
    EXPECT(same, "a list that is read back is another one");
    char *again = matmul_algorithms_text(&b);
    EXPECT(strcmp(text, again) == 0, "the text of a list that is read back is another one");

    int accepted = 0;
    for (size_t i = 0; i < size; i++) {
        text[i] ^= 1;
        accepted += parses(text, size);
        text[i] ^= 1;
        accepted += parses(text, i); // truncated
    }
    EXPECT(accepted == 0, "%d damaged lists are accepted", accepted);
    EXPECT(parses(text, size), "the list itself is not");

    char folder[] = "/tmp/test_matmul_device_XXXXXX", path[64], sentence[1024];
    Error error;
    MatmulAlgorithms c, damaged;
    EXPECT(mkdtemp(folder) != NULL, "no temporary folder");
    snprintf(path, sizeof(path), "%s/algorithms", folder);
    EXPECT(matmul_algorithms_read(&c, path, &error) == -1, "a file that is not there is read");
    EXPECT(matmul_algorithms_write(&a, path, &error) == 0, "%s", error.text);
    EXPECT(matmul_algorithms_read(&c, path, &error) == 0 && c.count == a.count, "%s", error.text);
    text[size / 2] ^= 4;
    EXPECT(file_write(path, text, size, &error) == 0, "%s", error.text);
    snprintf(sentence, sizeof(sentence), "'%s' is damaged", path);
    EXPECT(matmul_algorithms_read(&damaged, path, &error) == -1 &&
               strncmp(error.text, sentence, strlen(sentence)) == 0,
           "%s", error.text);
    unlink(path), rmdir(folder);
    free(text), free(again);
    matmul_algorithms_free(&a), matmul_algorithms_free(&b), matmul_algorithms_free(&c);
}

// ---- cuBLASLt's algorithms, saved and loaded --------------------------------------------------------------
#ifdef HAVE_CUBLAS
static void test_saved_algorithms(void) {
    char folder[] = "/tmp/test_matmul_device_XXXXXX", path[64];
    Error error;
    EXPECT(mkdtemp(folder) != NULL, "no temporary folder");
    snprintf(path, sizeof(path), "%s/algorithms", folder);
    void *workspace = device_alloc(matmul_gpu_workspace_size(512));
    Case k = case_create(300, 256, 512);
    floatX *out[2];
    for (int i = 0; i < 2; i++) { // first with a search, then with the algorithms it found
        MatmulContext saved;
        matmul_open(&saved, MATMUL_CUBLAS, PRECISION_FP32);
        matmul_set_workspace(&saved, workspace, matmul_gpu_workspace_size(512));
        if (i == 0)
            matmul_search_algorithms(&saved, 1);
        else
            EXPECT(matmul_load_algorithms(&saved, path, &error) == 0, "%s", error.text);
        out[i] = poisoned<floatX>(k.N * k.OC);
        matmul_forward(&saved, out[i], k.d_in, k.d_weight, k.d_bias, k.N, k.C, k.OC, stream);
        stream_wait(stream);
        if (i == 0) EXPECT(matmul_save_algorithms(&saved, path, &error) == 0, "%s", error.text);
        matmul_close(&saved);
    }
    EXPECT(same_bits_on_device(out[0], out[1], k.N * k.OC), "other bits with loaded algorithms");
    unlink(path), rmdir(folder);
    device_free_poisoned(out[0]), device_free_poisoned(out[1]), device_free(workspace), case_free(&k);
}
#endif

static void test_library(MatmulLibrary which, const char *name) {
    void *workspace = device_alloc(matmul_gpu_workspace_size(2048));
    CHECK(workspace != NULL);
    library = name;
    matmul_open(&context, which, PRECISION_FP32);
    matmul_set_workspace(&context, workspace, matmul_gpu_workspace_size(2048));
    test_sizes();
    test_tall();
    test_not_finite();
    enum { SCRATCH = 3 * 64 * 64 * sizeof(floatX) };
    floatX *scratch = poisoned<floatX>(SCRATCH / sizeof(floatX));
    double peak = matmul_peak(&context, scratch, SCRATCH);
    EXPECT(guards_hold_on_device(scratch, SCRATCH / sizeof(floatX)), "matmul_peak writes outside its memory");
    device_free_poisoned(scratch);
    EXPECT(peak > 0, "%s: peak of %g GFLOP/s", name, peak);
    matmul_close(&context);
    device_free(workspace);
}

int main(int argc, char **argv) {
    (void)argc;
    test_algorithm_list();
    test_bad_lines();
    const char *no_device = device_open(argv, 0);
    if (no_device != NULL) {
        printf("without a GPU only the list of algorithms is tested: %s\n", no_device);
        return test_finish();
    }
    stream = stream_create();
    test_library(MATMUL_OWN, "own");
#if defined(CUDA_EMULATION) && !defined(PRECISION_IS_FP32)
    EXPECT(emulation::ldmatrix_phases > 0 && emulation::ldmatrix_conflicts == 0,
           "%llu bank conflicts in %llu ldmatrix phases", (unsigned long long)emulation::ldmatrix_conflicts,
           (unsigned long long)emulation::ldmatrix_phases);
#endif
#ifdef HAVE_CUBLAS
    test_library(MATMUL_CUBLAS, "cuBLASLt");
    test_saved_algorithms();
#endif
    void *workspace = device_alloc(matmul_gpu_workspace_size(264));
    CHECK(workspace != NULL);
    matmul_open(&context, MATMUL_OWN, PRECISION_FP32);
    matmul_set_workspace(&context, workspace, matmul_gpu_workspace_size(264));
    test_bias(257, 264);
    test_bias(MAX_BIAS_CHUNKS * MIN_BIAS_ROWS + 1, 8);
    matmul_close(&context);
    device_free(workspace);
    static const size_t lengths[] = {1, 7, 8, 9, 100, 2048, 2049, 5000};
    for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) test_gelu(lengths[i]);
    stream_destroy(stream);
    return test_finish();
}
