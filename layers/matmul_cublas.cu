#include "matmul_cublas.h"

#include <algorithm>
#include <cublasLt.h>

enum {
    CANDIDATES = 8, // maximum number of algorithms that are measured for a shape
    ROUNDS = 5,     // measurements of each
    // Every tensor is aligned to 16 bytes, since rows are multiples of 8 elements; by default the library assumes 256.
    ALIGNMENT = 16,
};

static inline void check(cublasStatus_t status, const char *file, int line, const char *statement) {
    if (status != CUBLAS_STATUS_SUCCESS) check_failed(file, line, statement, cublasLtGetStatusString(status));
}

// A shape, and the library's descriptors for computing it.
typedef struct {
    MatmulShape shape;
    cublasLtMatmulDesc_t operation;
    cublasLtMatrixLayout_t a, b, c; // layouts of our A, B and C
    cublasLtMatmulAlgo_t algorithm;
} Plan;

struct MatmulCublas {
    cublasLtHandle_t library;
    cublasLtMatmulPreference_t preference;
    void *workspace;
    int search;
    char made_for[512];
    size_t count;
    Plan *plans;
};

static_assert(sizeof(cublasLtMatmulAlgo_t) == MATMUL_ALGORITHM_WORDS * sizeof(uint64_t),
              "the description of an algorithm has another size");

// ---- plans ------------------------------------------------------------------------------------------------

template <class T>
static void set_operation(cublasLtMatmulDesc_t operation, cublasLtMatmulDescAttributes_t attribute, T value) {
    CHECK(cublasLtMatmulDescSetAttribute(operation, attribute, &value, sizeof(value)));
}
template <class T>
static void set_preference(cublasLtMatmulPreference_t preference,
                           cublasLtMatmulPreferenceAttributes_t attribute, T value) {
    CHECK(cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof(value)));
}

// The library's matrices are column-major, so a row-major matrix is described as its transpose.
static cublasLtMatrixLayout_t row_major(cudaDataType type, size_t rows, size_t columns) {
    cublasLtMatrixLayout_t layout;
    CHECK(cublasLtMatrixLayoutCreate(&layout, type, columns, rows, (int64_t)columns));
    return layout;
}

// C^T = op(B)^T op(A)^T: the first operand of the library is our B, the second our A.
static Plan plan_create(const MatmulShape *s) {
    const cudaDataType input = sizeof(floatX) == 2 ? CUDA_R_16BF : CUDA_R_32F;
    const int a_transposed = s->layout == MATMUL_TN, b_transposed = s->layout == MATMUL_NT;
    Plan plan;
    plan.shape = *s;
    memset(&plan.algorithm, 0, sizeof(plan.algorithm));
    CHECK(cublasLtMatmulDescCreate(&plan.operation, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    set_operation(plan.operation, CUBLASLT_MATMUL_DESC_TRANSA,
                  (int32_t)(b_transposed ? CUBLAS_OP_T : CUBLAS_OP_N));
    set_operation(plan.operation, CUBLASLT_MATMUL_DESC_TRANSB,
                  (int32_t)(a_transposed ? CUBLAS_OP_T : CUBLAS_OP_N));
    if (s->has_bias) {
        set_operation(plan.operation, CUBLASLT_MATMUL_DESC_EPILOGUE, (uint32_t)CUBLASLT_EPILOGUE_BIAS);
        // The choice of an algorithm depends only on the alignment of this pointer: it gets the smallest of any bias.
        set_operation(plan.operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, (const void *)(uintptr_t)ALIGNMENT);
    }
    plan.a = a_transposed ? row_major(input, s->K, s->M) : row_major(input, s->M, s->K);
    plan.b = b_transposed ? row_major(input, s->N, s->K) : row_major(input, s->K, s->N);
    plan.c = row_major(s->output == MATMUL_FLOAT ? CUDA_R_32F : input, s->M, s->N);
    return plan;
}

static void plan_destroy(Plan *plan) {
    CHECK(cublasLtMatrixLayoutDestroy(plan->a));
    CHECK(cublasLtMatrixLayoutDestroy(plan->b));
    CHECK(cublasLtMatrixLayoutDestroy(plan->c));
    CHECK(cublasLtMatmulDescDestroy(plan->operation));
}

static Plan *plan_add(MatmulCublas *cublas, const Plan *plan) {
    cublas->plans = (Plan *)xrealloc(cublas->plans, (cublas->count + 1) * sizeof(Plan));
    cublas->plans[cublas->count] = *plan;
    return &cublas->plans[cublas->count++];
}

// to = A B (+ bias) (+ from, if the plan accumulates). Both `to` and `from` are C, except when algorithms are measured.
static cublasStatus_t plan_run(const MatmulCublas *cublas, const Plan *plan,
                               const cublasLtMatmulAlgo_t *algorithm, void *to, const void *from,
                               const floatX *A, const floatX *B, Stream stream) {
    const float one = 1.0f, beta = plan->shape.mode == MATMUL_ACCUMULATE ? 1.0f : 0.0f;
    return cublasLtMatmul(cublas->library, plan->operation, &one, B, plan->b, A, plan->a, &beta, from,
                          plan->c, to, plan->c, algorithm, cublas->workspace, MATMUL_CUBLAS_WORKSPACE,
                          stream);
}

// ---- choosing ---------------------------------------------------------------------------------------------

// Returns the median time of a few runs in seconds, or infinity if the algorithm fails.
static double measure(const MatmulCublas *cublas, const Plan *plan, const cublasLtMatmulAlgo_t *algorithm,
                      void *to, const void *from, const floatX *A, const floatX *B, Stream stream) {
    Event started = event_create(), ended = event_create();
    double seconds[ROUNDS];
    cublasStatus_t status = plan_run(cublas, plan, algorithm, to, from, A, B, stream); // warm-up
    for (int round = 0; round < ROUNDS && status == CUBLAS_STATUS_SUCCESS; round++) {
        event_record(&started, stream);
        status = plan_run(cublas, plan, algorithm, to, from, A, B, stream);
        event_record(&ended, stream);
        event_wait(ended);
        seconds[round] = event_seconds(started, ended);
    }
    event_destroy(started);
    event_destroy(ended);
    if (status != CUBLAS_STATUS_SUCCESS) return INFINITY;
    std::sort(seconds, seconds + ROUNDS);
    return seconds[ROUNDS / 2];
}

// Returns the index of the fastest of `count` candidates. If the product is added to C, the results are written into
// separate memory, so that C does not change.
static int find_fastest(const MatmulCublas *cublas, const Plan *plan,
                        const cublasLtMatmulHeuristicResult_t *candidates, int count, void *C,
                        const floatX *A, const floatX *B, Stream stream) {
    void *scratch = NULL;
    if (plan->shape.mode == MATMUL_ACCUMULATE) {
        size_t element = plan->shape.output == MATMUL_FLOAT ? sizeof(float) : sizeof(floatX);
        scratch = device_alloc(plan->shape.M * plan->shape.N * element);
        if (scratch == NULL) return 0; // no memory to measure in: use the first proposal of the library
    }
    int best = 0;
    double best_seconds = INFINITY;
    for (int i = 0; i < count; i++) {
        double seconds = measure(cublas, plan, &candidates[i].algo, scratch != NULL ? scratch : C, C, A, B,
                                 stream);
        if (seconds < best_seconds) {
            best = i;
            best_seconds = seconds;
        }
    }
    if (scratch != NULL) {
        stream_wait(stream);
        device_free(scratch);
    }
    return best;
}

static Plan *plan_choose(MatmulCublas *cublas, const MatmulShape *shape, void *C, const floatX *A,
                         const floatX *B, const floatX *bias, Stream stream) {
    Plan plan = plan_create(shape);
    cublasLtMatmulHeuristicResult_t found[CANDIDATES], candidates[CANDIDATES];
    int written = 0, count = 0;
    CHECK(cublasLtMatmulAlgoGetHeuristic(cublas->library, plan.operation, plan.b, plan.a, plan.c, plan.c,
                                         cublas->preference, CANDIDATES, found, &written));
    for (int i = 0; i < written; i++)
        if (found[i].state == CUBLAS_STATUS_SUCCESS) candidates[count++] = found[i];
    CHECK(count > 0);
    if (bias != NULL) set_operation(plan.operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, (const void *)bias);
    int best = cublas->search && count > 1 ? find_fastest(cublas, &plan, candidates, count, C, A, B, stream)
                                           : 0;
    plan.algorithm = candidates[best].algo;
    return plan_add(cublas, &plan);
}

static Plan *plan_find(const MatmulCublas *cublas, const MatmulShape *shape) {
    for (size_t i = 0; i < cublas->count; i++)
        if (matmul_shapes_equal(&cublas->plans[i].shape, shape)) return &cublas->plans[i];
    return NULL;
}

void matmul_cublas_product(MatmulCublas *cublas, const MatmulShape *shape, void *C, const floatX *A,
                           const floatX *B, const floatX *bias, Stream stream) {
    CHECK(cublas->workspace != NULL && (bias != NULL) == (shape->has_bias != 0));
    Plan *plan = plan_find(cublas, shape);
    if (plan == NULL) plan = plan_choose(cublas, shape, C, A, B, bias, stream);
    if (bias != NULL) set_operation(plan->operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, (const void *)bias);
    CHECK(plan_run(cublas, plan, &plan->algorithm, C, C, A, B, stream));
}

// ---- open, close ------------------------------------------------------------------------------------------

MatmulCublas *matmul_cublas_open(void) {
    MatmulCublas *cublas = (MatmulCublas *)xcalloc(1, sizeof(*cublas));
    CHECK(cublasLtCreate(&cublas->library));
    CHECK(cublasLtMatmulPreferenceCreate(&cublas->preference));
    cublasLtMatmulPreference_t p = cublas->preference;
    set_preference(p, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, (uint64_t)MATMUL_CUBLAS_WORKSPACE);
    // A sum over K that is split over blocks can be completed in three ways: the blocks add to the output in turn, or
    // their sums are stored in the type of the output, or in fp32, and a separate kernel adds them. Besides not
    // splitting, only the last is allowed: its order is fixed, so it repeats bit for bit, and partial sums are not
    // rounded.
    set_preference(p, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                   (uint32_t)CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE);
    set_preference(p, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, (uint32_t)ALIGNMENT);
    set_preference(p, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, (uint32_t)ALIGNMENT);
    set_preference(p, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, (uint32_t)ALIGNMENT);
    set_preference(p, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, (uint32_t)ALIGNMENT);
    char device[400];
    device_describe(device, sizeof(device));
    snprintf(cublas->made_for, sizeof(cublas->made_for), "cuBLASLt %zu, %s, %s", cublasLtGetVersion(),
             DEVICE_IS_BF16 ? "bf16" : "fp32", device);
    return cublas;
}

void matmul_cublas_close(MatmulCublas *cublas) {
    for (size_t i = 0; i < cublas->count; i++) plan_destroy(&cublas->plans[i]);
    CHECK(cublasLtMatmulPreferenceDestroy(cublas->preference));
    CHECK(cublasLtDestroy(cublas->library));
    free(cublas->plans);
    free(cublas);
}

void matmul_cublas_set_workspace(MatmulCublas *cublas, void *workspace) {
    cublas->workspace = workspace;
}
void matmul_cublas_search(MatmulCublas *cublas, int search) {
    cublas->search = search;
}

// ---- the list on disk -------------------------------------------------------------------------------------

int matmul_cublas_save(const MatmulCublas *cublas, const char *path, Error *error) {
    MatmulAlgorithms algorithms = {};
    memcpy(algorithms.made_for, cublas->made_for, sizeof(algorithms.made_for));
    for (size_t i = 0; i < cublas->count; i++) {
        MatmulAlgorithm algorithm;
        algorithm.shape = cublas->plans[i].shape;
        memcpy(algorithm.words, &cublas->plans[i].algorithm, sizeof(algorithm.words));
        matmul_algorithms_add(&algorithms, &algorithm);
    }
    int result = matmul_algorithms_write(&algorithms, path, error);
    matmul_algorithms_free(&algorithms);
    return result;
}

// Returns 0, or -1 if the library cannot use this algorithm for this shape.
static int plan_restore(MatmulCublas *cublas, const MatmulAlgorithm *algorithm) {
    Plan plan = plan_create(&algorithm->shape);
    memcpy(&plan.algorithm, algorithm->words, sizeof(plan.algorithm));
    cublasLtMatmulHeuristicResult_t result = {};
    if (cublasLtMatmulAlgoCheck(cublas->library, plan.operation, plan.b, plan.a, plan.c, plan.c,
                                &plan.algorithm, &result) != CUBLAS_STATUS_SUCCESS ||
        result.workspaceSize > MATMUL_CUBLAS_WORKSPACE) {
        plan_destroy(&plan);
        return -1;
    }
    plan_add(cublas, &plan);
    return 0;
}

int matmul_cublas_load(MatmulCublas *cublas, const char *path, Error *error) {
    MatmulAlgorithms algorithms;
    if (matmul_algorithms_read(&algorithms, path, error) != 0) return -1;
    int result = 0;
    if (strcmp(algorithms.made_for, cublas->made_for) != 0) {
        fprintf(stderr,
                "note: '%s' was made for %s, but this is %s: algorithms are chosen again, so results may "
                "differ slightly\n",
                path, algorithms.made_for, cublas->made_for);
    } else {
        for (size_t i = 0; i < algorithms.count && result == 0; i++)
            if (plan_find(cublas, &algorithms.list[i].shape) == NULL &&
                plan_restore(cublas, &algorithms.list[i]) != 0)
                result = fail(error,
                              "'%s', line %zu: cuBLASLt rejects this algorithm; remove the file to choose "
                              "all of them again",
                              path, i + 2);
    }
    matmul_algorithms_free(&algorithms);
    return result;
}
