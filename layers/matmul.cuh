// The linear layer, with weights stored as (C, OC), as in Hugging Face's GPT-2 (Conv1D):
//
//     forward          out (N, OC) = in (N, C) W (C, OC) + bias (OC)
//     gelu forward     the same, and gelu (N, OC) = GELU(out); out is the pre-activation, saved for backward
//     backward         din (N, C)    = dout W^T                              overwrites
//                      din           = (dout W^T) * GELU'(in_pre_gelu)       if `in` is the output of a GELU
//                      dW (C, OC)    = or += in^T dout                       (mode)
//                      dbias (OC)   += sum over rows of dout                 always adds
//     head forward     logits (N, V) = in (N, C) wte (V, C)^T                the tied output head
//     head backward    din (N, C)    = dlogits wte;   dwte (V, C) = or += dlogits^T in
//
// Activations and weights are floatX, gradients of weights and biases float. Sums are fp32 and are rounded once,
// after the bias is added. On the CPU, bias, GELU and GELU' are applied to blocks of the output while they are in
// cache (matmul_cpu.h). On a GPU the products are computed by cuBLASLt (matmul_cublas.h) or by our own kernels
// (matmul_own.cuh); GELU and GELU' are separate kernels whose input is the stored, rounded product, so that
// gelu_forward(out) reproduces `gelu` bit for bit. All results repeat bit for bit.
#ifndef LAYERS_MATMUL_CUH
#define LAYERS_MATMUL_CUH

#include "common.h"
#include "layers/base/files.h"
#include "gelu.cuh"
#include "matmul_cpu.h"
#include "matmul_cublas.h"

// MATMUL_AUTO is cuBLASLt if the build has it, else our own kernels; the CPU has only one implementation.
typedef enum { MATMUL_AUTO, MATMUL_CUBLAS, MATMUL_OWN } MatmulLibrary;

// Maximum number of chunks of rows whose partial sums bias_backward computes on a GPU.
enum { MAX_BIAS_CHUNKS = 256 };

// Returns the bytes of device memory that a GPU build needs for gradients of biases of at most `max_bias` elements, and
// for cuBLASLt; they share the memory.
static inline size_t matmul_gpu_workspace_size(size_t max_bias) {
    size_t bytes = MAX_BIAS_CHUNKS * max_bias * sizeof(float), library = MATMUL_CUBLAS_WORKSPACE;
    return bytes > library ? bytes : library;
}

// dbias += sum over rows of dout, in the order of the rows. Threads divide the columns.
static inline void bias_backward_cpu(float *dbias, const float *dout, size_t N, size_t OC) {
    enum { COLUMNS = 32 };
#pragma omp parallel for schedule(dynamic)
    for (size_t first = 0; first < OC; first += COLUMNS) {
        float sum[COLUMNS] = {0};
        size_t count = min_size(COLUMNS, OC - first);
        if (count == COLUMNS) {
            for (size_t row = 0; row < N; row++)
                for (size_t c = 0; c < COLUMNS; c++) sum[c] += dout[row * OC + first + c];
        } else {
            for (size_t row = 0; row < N; row++)
                for (size_t c = 0; c < count; c++) sum[c] += dout[row * OC + first + c];
        }
        for (size_t c = 0; c < count; c++) dbias[first + c] += sum[c];
    }
}

// ---- on a GPU ---------------------------------------------------------------------------------------------
#ifdef DEVICE_CUDA
#include "kernel.cuh"
#include "matmul_own.cuh"

typedef struct {
    MatmulLibrary library; // never MATMUL_AUTO
#ifdef HAVE_CUBLAS
    MatmulCublas *cublas; // NULL if library is MATMUL_OWN
#endif
    void *workspace; // shared by cuBLASLt and bias_backward, so only one stream may use it at a time
    size_t workspace_bytes;
} MatmulContext;

static inline int matmul_library_available(MatmulLibrary library) {
#ifdef HAVE_CUBLAS
    (void)library;
    return 1;
#else
    return library != MATMUL_CUBLAS;
#endif
}

static inline int matmul_precision_available(Precision precision) {
    return precision == (Precision)DEVICE_IS_BF16;
}

// Opens the library; MATMUL_AUTO chooses one. `precision` is used only on the CPU.
static inline void matmul_open(MatmulContext *context, MatmulLibrary library, Precision precision) {
    (void)precision;
    CHECK(matmul_library_available(library));
    memset(context, 0, sizeof(*context));
    if (library == MATMUL_AUTO)
        library = matmul_library_available(MATMUL_CUBLAS) ? MATMUL_CUBLAS : MATMUL_OWN;
    context->library = library;
#ifdef HAVE_CUBLAS
    if (library == MATMUL_CUBLAS) context->cublas = matmul_cublas_open();
#endif
}

static inline void matmul_close(MatmulContext *context) {
#ifdef HAVE_CUBLAS
    if (context->cublas != NULL) matmul_cublas_close(context->cublas);
#endif
    memset(context, 0, sizeof(*context));
}

static inline void matmul_set_workspace(MatmulContext *context, void *workspace, size_t bytes) {
    CHECK(bytes >= matmul_gpu_workspace_size(0));
    context->workspace = workspace;
    context->workspace_bytes = bytes;
#ifdef HAVE_CUBLAS
    if (context->cublas != NULL) matmul_cublas_set_workspace(context->cublas, workspace);
#endif
}

// If `search`, the algorithm for a new shape is chosen by measurement; see matmul_cublas.h.
static inline void matmul_search_algorithms(MatmulContext *context, int search) {
#ifdef HAVE_CUBLAS
    if (context->cublas != NULL) matmul_cublas_search(context->cublas, search);
#endif
    (void)context, (void)search;
}

// Load and save the list of algorithms that cuBLASLt uses, so that a resumed run repeats bit for bit. They do nothing
// if cuBLASLt is not used: our own kernels have only one algorithm for each shape. Both return 0 on success, -1 with a
// sentence on error.
static inline int matmul_load_algorithms(MatmulContext *context, const char *path, Error *error) {
#ifdef HAVE_CUBLAS
    if (context->cublas != NULL) return matmul_cublas_load(context->cublas, path, error);
#endif
    (void)context, (void)path, (void)error;
    return 0;
}
static inline int matmul_save_algorithms(const MatmulContext *context, const char *path, Error *error) {
#ifdef HAVE_CUBLAS
    if (context->cublas != NULL) return matmul_cublas_save(context->cublas, path, error);
#endif
    (void)context, (void)path, (void)error;
    return 0;
}

template <MatmulLayout layout, class Out>
static inline void matmul_product(const MatmulContext *context, Out *C, const floatX *A, const floatX *B,
                                  const floatX *bias, size_t M, size_t N, size_t K, MatmulMode mode,
                                  Stream stream) {
#ifdef HAVE_CUBLAS
    if (context->library == MATMUL_CUBLAS) {
        MatmulOutput output = layout == MATMUL_TN ? MATMUL_FLOAT : MATMUL_FLOATX;
        MatmulShape shape = {layout, M, N, K, output, bias != NULL, mode};
        matmul_cublas_product(context->cublas, &shape, C, A, B, bias, stream);
        return;
    }
#endif
    (void)context;
    matmul_own<layout>(C, A, B, bias, M, N, K, mode, stream);
}
static inline void matmul_nn(const MatmulContext *context, floatX *C, const floatX *A, const floatX *B,
                             const floatX *bias, size_t M, size_t N, size_t K, Stream stream) {
    matmul_product<MATMUL_NN>(context, C, A, B, bias, M, N, K, MATMUL_OVERWRITE, stream);
}
static inline void matmul_nt(const MatmulContext *context, floatX *C, const floatX *A, const floatX *B,
                             size_t M, size_t N, size_t K, Stream stream) {
    matmul_product<MATMUL_NT>(context, C, A, B, (const floatX *)NULL, M, N, K, MATMUL_OVERWRITE, stream);
}
static inline void matmul_tn(const MatmulContext *context, float *C, const floatX *A, const floatX *B,
                             size_t M, size_t N, size_t K, MatmulMode mode, Stream stream) {
    matmul_product<MATMUL_TN>(context, C, A, B, (const floatX *)NULL, M, N, K, mode, stream);
}

enum {
    BIAS_WARPS = 8,          // warps in a block
    BIAS_COLUMNS = WARP * 8, // columns of a block: 8 per lane
    MIN_BIAS_ROWS = 64,      // minimum number of rows in a chunk
};

// partial (chunks, OC) = sums over chunks of `rows` rows. Each warp sums every BIAS_WARPS-th row of the chunk of its
// block; then the sums of the warps are added in order.
static __global__ void __launch_bounds__(BIAS_WARPS *WARP)
    bias_partial_sums_kernel(float *partial, const floatX *dout, size_t N, size_t OC, size_t rows) {
    __shared__ float sums[BIAS_WARPS][BIAS_COLUMNS];
    const unsigned warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const unsigned across = (unsigned)divide_up(OC, BIAS_COLUMNS), chunk = blockIdx.x / across;
    const size_t first = (size_t)(blockIdx.x % across) * BIAS_COLUMNS, column = first + lane * 8;
    const size_t end = min_size(N, (chunk + 1) * rows);
    Float8 sum = {};
    if (column < OC) {
#pragma unroll 4
        for (size_t row = chunk * rows + warp; row < end; row += BIAS_WARPS) {
            Float8 x = load8(dout + row * OC + column);
#pragma unroll
            for (int i = 0; i < 8; i++) sum.v[i] += x.v[i];
        }
    }
#pragma unroll
    for (int i = 0; i < 8; i++) sums[warp][lane * 8 + i] = sum.v[i];
    __syncthreads(); // the sums of all warps are written
    static_assert(BIAS_COLUMNS == BIAS_WARPS * WARP, "one thread per column");
    float total = 0;
#pragma unroll
    for (unsigned w = 0; w < BIAS_WARPS; w++) total += sums[w][threadIdx.x];
    if (first + threadIdx.x < OC) partial[chunk * OC + first + threadIdx.x] = total;
}

// dbias (OC) += the sum over rows of dout (N, OC).
static inline void bias_backward(const MatmulContext *context, float *dbias, const floatX *dout, size_t N,
                                 size_t OC, Stream stream) {
    size_t rows = divide_up(N, MAX_BIAS_CHUNKS);
    if (rows < MIN_BIAS_ROWS) rows = MIN_BIAS_ROWS;
    size_t chunks = divide_up(N, rows);
    float *partial = (float *)context->workspace;
    CHECK(OC % 8 == 0 && chunks * OC * sizeof(float) <= context->workspace_bytes);
    launch(bias_partial_sums_kernel, blocks_for(chunks * divide_up(OC, BIAS_COLUMNS), 1), BIAS_WARPS * WARP,
           0, stream, partial, dout, N, OC, rows);
    add_partial_sums(dbias, partial, chunks, OC, OC, stream);
}

static inline void matmul_forward(const MatmulContext *context, floatX *out, const floatX *in,
                                  const floatX *weight, const floatX *bias, size_t N, size_t C, size_t OC,
                                  Stream stream) {
    matmul_nn(context, out, in, weight, bias, N, OC, C, stream);
}

static inline void matmul_gelu_forward(const MatmulContext *context, floatX *gelu, floatX *out,
                                       const floatX *in, const floatX *weight, const floatX *bias, size_t N,
                                       size_t C, size_t OC, Stream stream) {
    matmul_nn(context, out, in, weight, bias, N, OC, C, stream);
    gelu_forward(gelu, out, N * OC, stream);
}

// in_pre_gelu (N, C) is the pre-activation if `in` is its GELU, else NULL.
static inline void matmul_backward(const MatmulContext *context, floatX *din, float *dweight, float *dbias,
                                   const floatX *dout, const floatX *in, const floatX *weight,
                                   const floatX *in_pre_gelu, size_t N, size_t C, size_t OC, MatmulMode mode,
                                   Stream stream) {
    matmul_nt(context, din, dout, weight, N, C, OC, stream);
    if (in_pre_gelu != NULL) gelu_backward(din, din, in_pre_gelu, N * C, stream);
    matmul_tn(context, dweight, in, dout, C, OC, N, mode, stream);
    bias_backward(context, dbias, dout, N, OC, stream);
}

static inline void matmul_head_forward(const MatmulContext *context, floatX *logits, const floatX *in,
                                       const floatX *wte, size_t N, size_t C, size_t V, Stream stream) {
    matmul_nt(context, logits, in, wte, N, V, C, stream);
}

static inline void matmul_head_backward(const MatmulContext *context, floatX *din, float *dwte,
                                        const floatX *dlogits, const floatX *in, const floatX *wte, size_t N,
                                        size_t C, size_t V, MatmulMode mode, Stream stream) {
    matmul_nn(context, din, dlogits, wte, (const floatX *)NULL, N, C, V, stream);
    matmul_tn(context, dwte, dlogits, in, V, C, N, mode, stream);
}

// Fills x with pseudo-random values in (-1, 1), because the clock rate of a GPU depends on how many bits change.
static __global__ void __launch_bounds__(256) matmul_fill_kernel(floatX *x, size_t n) {
    size_t i = (size_t)blockIdx.x * 256 + threadIdx.x;
    uint32_t bits = (uint32_t)i * 0x9e3779b1u;
    bits = (bits ^ bits >> 15) * 0x85ebca6bu;
    if (i < n) x[i] = from_float<floatX>((float)(int32_t)(bits ^ bits >> 13) * (1.0f / 2147483648.0f));
}

// Measures the peak rate with which the trainer compares itself: returns the GFLOP/s of a square product that fills the
// GPU, the best of a few runs. If there is not enough free memory for it, uses a smaller product in `memory`, which is
// overwritten and must have room for at least three matrices of 8 x 8.
static inline double matmul_peak(const MatmulContext *context, void *memory, size_t bytes) {
    enum { ROUNDS = 5 };
    cudaDeviceProp properties;
    int device;
    CHECK(cudaGetDevice(&device));
    CHECK(cudaGetDeviceProperties(&properties, device));
    size_t edge = min_size(8192, 64 * (size_t)properties.multiProcessorCount);
    void *own = device_alloc(3 * edge * edge * sizeof(floatX));
    while (own == NULL && edge > 8 && 3 * edge * edge * sizeof(floatX) > bytes) edge -= 8;
    CHECK(own != NULL || 3 * edge * edge * sizeof(floatX) <= bytes);
    const size_t n = edge * edge;
    floatX *A = (floatX *)(own != NULL ? own : memory), *B = A + n, *C = B + n;
    Stream stream = stream_create();
    Event started = event_create(), ended = event_create();
    launch(matmul_fill_kernel, blocks_for(2 * n, 256), 256, 0, stream, A, 2 * n);
    double best = 0;
    for (int round = 0; round <= ROUNDS; round++) { // the first is the warm-up
        event_record(&started, stream);
        matmul_nn(context, C, A, B, (const floatX *)NULL, edge, edge, edge, stream);
        event_record(&ended, stream);
        event_wait(ended);
        double rate = 2e-9 * (double)edge * (double)n / event_seconds(started, ended);
        if (round > 0 && rate > best) best = rate;
    }
    event_destroy(started);
    event_destroy(ended);
    stream_destroy(stream);
    device_free(own);
    return best;
}

// ---- on the CPU -------------------------------------------------------------------------------------------
#else

typedef MatmulCpu MatmulContext;

static inline int matmul_library_available(MatmulLibrary library) {
    return library != MATMUL_CUBLAS;
}
static inline int matmul_precision_available(Precision precision) {
    return precision == PRECISION_FP32 || matmul_bf16_available();
}
static inline void matmul_open(MatmulContext *context, MatmulLibrary library, Precision precision) {
    CHECK(matmul_library_available(library));
    matmul_cpu_open(context, precision);
}
static inline void matmul_close(MatmulContext *context) {
    matmul_cpu_close(context);
}

static inline void matmul_set_workspace(MatmulContext *context, void *workspace, size_t bytes) {
    (void)context, (void)workspace, (void)bytes;
}
static inline void matmul_search_algorithms(MatmulContext *context, int search) {
    (void)context, (void)search;
}
static inline int matmul_load_algorithms(MatmulContext *context, const char *path, Error *error) {
    (void)context, (void)path, (void)error;
    return 0;
}
static inline int matmul_save_algorithms(const MatmulContext *context, const char *path, Error *error) {
    (void)context, (void)path, (void)error;
    return 0;
}
static inline double matmul_peak(const MatmulContext *context, void *memory, size_t bytes) {
    (void)memory, (void)bytes;
    return matmul_measure_peak(context->precision);
}

static inline void matmul_forward(const MatmulContext *context, floatX *out, const floatX *in,
                                  const floatX *weight, const floatX *bias, size_t N, size_t C, size_t OC,
                                  Stream stream) {
    (void)stream;
    MatmulEpilogue epilogue = {bias, NULL, NULL};
    matmul_cpu(context, MATMUL_NN, N, OC, C, in, C, weight, OC, out, OC, MATMUL_OVERWRITE, &epilogue);
}

static inline void matmul_gelu_forward(const MatmulContext *context, floatX *gelu, floatX *out,
                                       const floatX *in, const floatX *weight, const floatX *bias, size_t N,
                                       size_t C, size_t OC, Stream stream) {
    (void)stream;
    MatmulEpilogue epilogue = {bias, gelu, NULL};
    matmul_cpu(context, MATMUL_NN, N, OC, C, in, C, weight, OC, out, OC, MATMUL_OVERWRITE, &epilogue);
}

static inline void matmul_backward(const MatmulContext *context, floatX *din, float *dweight, float *dbias,
                                   const floatX *dout, const floatX *in, const floatX *weight,
                                   const floatX *in_pre_gelu, size_t N, size_t C, size_t OC, MatmulMode mode,
                                   Stream stream) {
    (void)stream;
    MatmulEpilogue epilogue = {NULL, NULL, in_pre_gelu};
    matmul_cpu(context, MATMUL_NT, N, C, OC, dout, OC, weight, OC, din, C, MATMUL_OVERWRITE, &epilogue);
    matmul_cpu(context, MATMUL_TN, C, OC, N, in, C, dout, OC, dweight, OC, mode, NULL);
    bias_backward_cpu(dbias, dout, N, OC);
}

static inline void matmul_head_forward(const MatmulContext *context, floatX *logits, const floatX *in,
                                       const floatX *wte, size_t N, size_t C, size_t V, Stream stream) {
    (void)stream;
    matmul_cpu(context, MATMUL_NT, N, V, C, in, C, wte, C, logits, V, MATMUL_OVERWRITE, NULL);
}

static inline void matmul_head_backward(const MatmulContext *context, floatX *din, float *dwte,
                                        const floatX *dlogits, const floatX *in, const floatX *wte, size_t N,
                                        size_t C, size_t V, MatmulMode mode, Stream stream) {
    (void)stream;
    matmul_cpu(context, MATMUL_NN, N, C, V, dlogits, V, wte, C, din, C, MATMUL_OVERWRITE, NULL);
    matmul_cpu(context, MATMUL_TN, V, C, N, dlogits, V, in, C, dwte, C, mode, NULL);
}

#endif
#endif
