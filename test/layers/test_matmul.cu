// Compares matmul on the CPU with double precision: all layouts, modes, precisions, epilogues, odd sizes; gradients
// of the layer with central differences. Results are bitwise the same for any number of threads and any division of a
// matrix.
#include <omp.h>

#include "layers/matmul.cuh"
#include "layers/gelu.cuh"
#include "test/harness/arrays.h"

static const char *layout_names[] = {"NT", "NN", "TN"};

// Rounds to the nearest bf16, ties to even, as --precision bf16 does with the inputs.
static float round_to_bf16(float x) {
    uint32_t bits = bits_from_float(x);
    return float_from_bits((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u);
}

static double gelu_in_double(double x) {
    return 0.5 * x * (1 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
}

// Returns the product of elements (i, k) of A and (k, j) of B, for any layout.
static double term(const float *A, const float *B, MatmulLayout layout, size_t i, size_t j, size_t k,
                   size_t lda, size_t ldb, Precision precision) {
    float a = layout == MATMUL_TN ? A[k * lda + i] : A[i * lda + k];
    float b = layout == MATMUL_NT ? B[j * ldb + k] : B[k * ldb + j];
    if (precision == PRECISION_BF16) {
        a = round_to_bf16(a);
        b = round_to_bf16(b);
    }
    return (double)a * (double)b;
}

// Leading dimensions are larger than the rows by `gap`; the elements in the gaps of C must not change.
static void test_product(Precision precision, MatmulLayout layout, size_t M, size_t N, size_t K,
                         MatmulMode mode, size_t gap) {
    MatmulCpu context;
    matmul_cpu_open(&context, precision);
    size_t lda = (layout == MATMUL_TN ? M : K) + gap, ldb = (layout == MATMUL_NT ? K : N) + gap,
           ldc = N + gap;
    float *A = random_floats((layout == MATMUL_TN ? K : M) * lda, 1),
          *B = random_floats((layout == MATMUL_NT ? N : K) * ldb, 1);
    float *C = poisoned_floats(M * ldc);
    double *wanted = (double *)malloc(M * ldc * sizeof(double));
    for (size_t i = 0; i < M; i++)
        for (size_t j = 0; j < ldc; j++) {
            size_t at = i * ldc + j;
            if (j >= N || mode == MATMUL_ACCUMULATE) C[at] = (float)test_random();
            wanted[at] = mode == MATMUL_ACCUMULATE || j >= N ? (double)C[at] : 0;
            for (size_t k = 0; k < K && j < N; k++)
                wanted[at] += term(A, B, layout, i, j, k, lda, ldb, precision);
        }
    matmul_cpu(&context, layout, M, N, K, A, lda, B, ldb, C, ldc, mode, NULL);
    char what[128];
    snprintf(what, sizeof(what), "%s %zu x %zu x %zu%s%s", layout_names[layout], M, N, K,
             mode == MATMUL_ACCUMULATE ? " accumulate" : "", precision == PRECISION_BF16 ? " bf16" : "");
    expect_close(what, C, wanted, M * ldc, 1e-7 * (4 + sqrt((double)K)));
    EXPECT(guards_hold(C, M * ldc), "%s writes outside its output", what);
    free(A), free(B), free_poisoned(C), free(wanted);
    matmul_cpu_close(&context);
}

static void test_products(void) {
    static const size_t shapes[][3] = {{1, 1, 1},     {2, 3, 5},     {14, 32, 16},   {15, 33, 17},
                                       {13, 31, 769}, {97, 100, 40}, {255, 65, 101}, {64, 48, 384},
                                       {3, 500, 2},   {500, 2, 3},   {29, 64, 385},  {2100, 5, 7},
                                       {7, 3100, 33}, {1, 64, 500},  {40, 40, 1600}};
    for (int precision = 0; precision <= matmul_bf16_available(); precision++)
        for (size_t s = 0; s < sizeof(shapes) / sizeof(shapes[0]); s++)
            for (int layout = 0; layout < 3; layout++)
                for (int mode = 0; mode < 2; mode++)
                    test_product((Precision)precision, (MatmulLayout)layout, shapes[s][0], shapes[s][1],
                                 shapes[s][2], (MatmulMode)mode, s % 3);
}

// Bias and GELU are applied once, although the sum over K is computed in several blocks.
static void test_epilogue_once(Precision precision, size_t N, size_t C, size_t OC) {
    MatmulCpu context;
    matmul_cpu_open(&context, precision);
    float *in = random_floats(N * C, 0.2), *weight = random_floats(C * OC, 0.2), *bias = random_floats(OC, 1);
    float *out = poisoned_floats(N * OC), *gelu = poisoned_floats(N * OC);
    double *wanted = (double *)malloc(N * OC * sizeof(double));
    for (size_t n = 0; n < N; n++)
        for (size_t o = 0; o < OC; o++) {
            double sum = (double)bias[o];
            for (size_t c = 0; c < C; c++) sum += term(in, weight, MATMUL_NN, n, o, c, C, OC, precision);
            wanted[n * OC + o] = sum;
        }
    matmul_gelu_forward(&context, gelu, out, in, weight, bias, N, C, OC, 0);
    expect_close("bias over several blocks of K", out, wanted, N * OC, 1e-5);
    for (size_t i = 0; i < N * OC; i++) wanted[i] = gelu_in_double(wanted[i]);
    expect_close("gelu over several blocks of K", gelu, wanted, N * OC, 1e-5);
    free(in), free(weight), free(bias), free_poisoned(out), free_poisoned(gelu), free(wanted);
    matmul_cpu_close(&context);
}

// With K = 0, C is zero or, if accumulating, unchanged; the epilogue is still applied.
static void test_empty_sum(void) {
    MatmulCpu context;
    matmul_cpu_open(&context, PRECISION_FP32);
    float C[6] = {1, 2, 3, 4, 5, 6}, bias[3] = {10, 20, 30};
    MatmulEpilogue epilogue = {bias, NULL, NULL};
    matmul_cpu(&context, MATMUL_NN, 2, 3, 0, NULL, 1, NULL, 3, C, 3, MATMUL_ACCUMULATE, &epilogue);
    EXPECT(C[0] == 11 && C[5] == 36, "accumulate nothing, add a bias: %g %g", (double)C[0], (double)C[5]);
    matmul_cpu(&context, MATMUL_NN, 2, 3, 0, NULL, 1, NULL, 3, C, 3, MATMUL_OVERWRITE, &epilogue);
    EXPECT(C[0] == 10 && C[5] == 30, "overwrite with nothing, add a bias: %g %g", (double)C[0], (double)C[5]);
    matmul_cpu_close(&context);
}

// ---- the layer --------------------------------------------------------------------------------------------

typedef struct {
    size_t N, C, OC;
    int has_gelu; // the layer's input is the GELU of `in`
    double *in, *weight, *bias, *dout, *out;
} LinearCase;

static double linear_loss(void *context) {
    LinearCase *k = (LinearCase *)context;
    double loss = 0;
    for (size_t n = 0; n < k->N; n++)
        for (size_t o = 0; o < k->OC; o++) {
            double sum = k->bias[o];
            for (size_t c = 0; c < k->C; c++) {
                double x = k->in[n * k->C + c];
                sum += (k->has_gelu ? gelu_in_double(x) : x) * k->weight[c * k->OC + o];
            }
            k->out[n * k->OC + o] = sum;
            loss += k->dout[n * k->OC + o] * sum;
        }
    return loss;
}

static void test_layer(size_t N, size_t C, size_t OC, int has_gelu, MatmulMode mode) {
    MatmulCpu context;
    matmul_cpu_open(&context, PRECISION_FP32);
    float *pre = random_floats(N * C, 2), *in = poisoned_floats(N * C), *weight = random_floats(C * OC, 1);
    float *bias = random_floats(OC, 1), *dout = random_floats(N * OC, 1), *out = poisoned_floats(N * OC);
    float *gelu = poisoned_floats(N * OC), *din = poisoned_floats(N * C), *dweight = poisoned_floats(C * OC);
    float *dbias = random_floats(OC, 1);
    for (size_t i = 0; i < N * C; i++) in[i] = has_gelu ? gelu_value(pre[i]) : pre[i];
    for (size_t i = 0; i < C * OC && mode == MATMUL_ACCUMULATE; i++) dweight[i] = (float)test_random();

    LinearCase k = {N,
                    C,
                    OC,
                    has_gelu,
                    as_doubles(pre, N * C),
                    as_doubles(weight, C * OC),
                    as_doubles(bias, OC),
                    as_doubles(dout, N * OC),
                    as_doubles(out, N * OC)};
    double *wanted_in = central_differences(linear_loss, &k, k.in, N * C);
    double *wanted_weight = central_differences(linear_loss, &k, k.weight, C * OC);
    double *wanted_bias = central_differences(linear_loss, &k, k.bias, OC);
    for (size_t i = 0; i < C * OC && mode == MATMUL_ACCUMULATE; i++) wanted_weight[i] += (double)dweight[i];
    for (size_t i = 0; i < OC; i++) wanted_bias[i] += (double)dbias[i]; // += in every mode
    linear_loss(&k);

    matmul_forward(&context, out, in, weight, bias, N, C, OC, 0);
    expect_close("linear forward", out, k.out, N * OC, 2e-6);
    matmul_gelu_forward(&context, gelu, out, in, weight, bias, N, C, OC, 0);
    expect_close("linear forward before gelu", out, k.out, N * OC, 2e-6);
    for (size_t i = 0; i < N * OC; i++) k.out[i] = gelu_in_double(k.out[i]);
    expect_close("linear forward and gelu", gelu, k.out, N * OC, 2e-6);
    matmul_backward(&context, din, dweight, dbias, dout, in, weight, has_gelu ? pre : NULL, N, C, OC, mode,
                    0);
    expect_close("linear din", din, wanted_in, N * C, 1e-5);
    expect_close("linear dweight", dweight, wanted_weight, C * OC, 1e-5);
    expect_close("linear dbias", dbias, wanted_bias, OC, 1e-5);
    EXPECT(guards_hold(out, N * OC) && guards_hold(gelu, N * OC) && guards_hold(din, N * C) &&
               guards_hold(dweight, C * OC),
           "linear writes outside its outputs");
    float *inputs[] = {pre, weight, bias, dout, dbias}, *outputs[] = {in, out, gelu, din, dweight};
    for (int i = 0; i < 5; i++) free(inputs[i]), free_poisoned(outputs[i]);
    double *doubles[] = {k.in, k.weight, k.bias, k.dout, k.out, wanted_in, wanted_weight, wanted_bias};
    for (int i = 0; i < 8; i++) free(doubles[i]);
    matmul_cpu_close(&context);
}

static void test_head(void) {
    enum { N = 7, C = 24, V = 128 };
    MatmulCpu context;
    matmul_cpu_open(&context, PRECISION_FP32);
    float *in = random_floats(N * C, 1), *wte = random_floats(V * C, 1), *dlogits = random_floats(N * V, 1);
    float *logits = poisoned_floats(N * V), *din = poisoned_floats(N * C), *dwte = poisoned_floats(V * C);
    double wanted_logits[N * V] = {0}, wanted_in[N * C] = {0}, wanted_wte[V * C] = {0};
    for (int n = 0; n < N; n++)
        for (int v = 0; v < V; v++)
            for (int c = 0; c < C; c++) {
                wanted_logits[n * V + v] += (double)in[n * C + c] * (double)wte[v * C + c];
                wanted_in[n * C + c] += (double)dlogits[n * V + v] * (double)wte[v * C + c];
                wanted_wte[v * C + c] += (double)dlogits[n * V + v] * (double)in[n * C + c];
            }
    matmul_head_forward(&context, logits, in, wte, N, C, V, 0);
    matmul_head_backward(&context, din, dwte, dlogits, in, wte, N, C, V, MATMUL_OVERWRITE, 0);
    expect_close("logits", logits, wanted_logits, N * V, 1e-6);
    expect_close("head din", din, wanted_in, N * C, 2e-6);
    expect_close("head dwte", dwte, wanted_wte, V * C, 1e-6);
    free(in), free(wte), free(dlogits), free_poisoned(logits), free_poisoned(din), free_poisoned(dwte);
    matmul_cpu_close(&context);
}

// ---- order of sums ----------------------------------------------------------------------------------------

// The first rows and columns of a product are bitwise equal to the product of the first rows and columns, with 1, 2 or
// 3 threads, because the order of the sum over K is fixed.
static void test_order(Precision precision) {
    enum { M = 150, N = 330, K = 900, ROWS = 37, COLUMNS = 101 };
    MatmulCpu context;
    matmul_cpu_open(&context, precision);
    float *A = random_floats(M * K, 1), *B = random_floats(N * K, 1), *C = poisoned_floats(M * N),
          *part = poisoned_floats(M * N);
    for (int layout = 0; layout < 3; layout++) {
        size_t lda = layout == MATMUL_TN ? M : K, ldb = layout == MATMUL_NT ? K : N;
        omp_set_num_threads(1);
        matmul_cpu(&context, (MatmulLayout)layout, M, N, K, A, lda, B, ldb, C, N, MATMUL_OVERWRITE, NULL);
        for (int threads = 1; threads <= 3; threads++) {
            omp_set_num_threads(threads);
            matmul_cpu(&context, (MatmulLayout)layout, M, N, K, A, lda, B, ldb, part, N, MATMUL_OVERWRITE,
                       NULL);
            EXPECT(memcmp(C, part, M * N * sizeof(float)) == 0, "%s: bits differ with %d threads",
                   layout_names[layout], threads);
        }
        matmul_cpu(&context, (MatmulLayout)layout, ROWS, COLUMNS, K, A, lda, B, ldb, part, N,
                   MATMUL_OVERWRITE, NULL);
        int equal = 1;
        for (size_t i = 0; i < ROWS; i++)
            equal &= memcmp(C + i * N, part + i * N, COLUMNS * sizeof(float)) == 0;
        EXPECT(equal, "%s: bits depend on the size of the matrix", layout_names[layout]);
    }
    free(A), free(B), free_poisoned(C), free_poisoned(part);
    matmul_cpu_close(&context);
}

// A NaN in A affects only its row of C.
static void test_not_finite(void) {
    enum { M = 40, N = 50, K = 60 };
    MatmulCpu context;
    matmul_cpu_open(&context, PRECISION_FP32);
    float *A = random_floats(M * K, 1), *B = random_floats(N * K, 1), *C = poisoned_floats(M * N);
    A[17 * K + 3] = NAN;
    matmul_cpu(&context, MATMUL_NT, M, N, K, A, K, B, K, C, N, MATMUL_OVERWRITE, NULL);
    for (size_t i = 0; i < M; i++)
        EXPECT(isnan(C[i * N]) == (i == 17) && isnan(C[i * N + N - 1]) == (i == 17), "row %zu", i);
    free(A), free(B), free_poisoned(C);
    matmul_cpu_close(&context);
}

int main(void) {
    test_products();
    test_empty_sum();
    for (int precision = 0; precision <= matmul_bf16_available(); precision++) {
        test_epilogue_once((Precision)precision, 37, 1700, 70);
        test_epilogue_once((Precision)precision, 3, 900, 45);
    }
    for (int has_gelu = 0; has_gelu < 2; has_gelu++)
        for (int mode = 0; mode < 2; mode++) {
            test_layer(1, 8, 8, has_gelu, (MatmulMode)mode);
            test_layer(5, 24, 40, has_gelu, (MatmulMode)mode);
            test_layer(19, 17, 21, has_gelu, (MatmulMode)mode);
        }
    test_head();
    for (int precision = 0; precision <= matmul_bf16_available(); precision++)
        test_order((Precision)precision);
    test_not_finite();
    return test_finish();
}
