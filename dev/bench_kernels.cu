// Measures the speed of every kernel at the shapes of one model, relative to what the hardware allows: of memory-bound
// kernels in percent of a measured device-to-device copy, of products in percent of a measured square product.
//
//     build/cuda-bf16/dev/bench_kernels [B T C V]          (16 1024 768 50257: gpt2-124M)
//
// The number of bytes is the minimum: every input is read once, every output written once. Before each round, a large
// buffer is zeroed to flush the L2 cache. Results are medians of ROUNDS rounds. There is one line per kernel:
//     name, ms, GB/s, % of the copy   or   name, ms, TFLOP/s, % of the peak
#include "attention/attention.cuh"
#include "layers/base/files.h"
#include "layers/adamw.cuh"
#include "layers/embedding.cuh"
#include "layers/layernorm.cuh"
#include "layers/matmul.cuh"
#include "layers/softmax_cross_entropy.cuh"

enum { ROUNDS = 15, NUM_TENSORS = 6 };

typedef struct {
    size_t B, T, N, C, V, Vp, parameters;
    size_t HS;                  // head size of attention
    floatX *x[NUM_TENSORS];     // (N, 4C) each
    floatX *logits, *wte, *wpe; // (N, Vp), (Vp, C), (T, C)
    float *f[2], *dwte;         // (N), (Vp, C)
    float *flat[4];             // (parameters): master, m, v, gradients
    floatX *weights;            // (parameters)
    double *totals;
    float *scratch; // for layernorm
    float *lse, *attention_scratch;
    int atomics;
    int32_t *tokens; // (N)
    AdamWChunk *chunks;
    size_t num_chunks;
    StepOutcome *outcome;
    void *cache_filler;
    size_t cache_filler_bytes;
    MatmulContext matmul;
    Dropout dropout;
    Stream stream;
    double copy_rate, product_rate; // GB/s, GFLOP/s
} Bench;

// ---- the measured functions -------------------------------------------------------------------------------

static void run_embedding_forward(Bench *b) {
    embedding_forward(b->x[0], b->tokens, b->wte, b->wpe, b->B, b->T, b->C, &b->dropout, b->stream);
}
static void run_embedding_backward(Bench *b) {
    embedding_backward(b->dwte, b->f[0], b->x[0], b->tokens, b->B, b->T, b->C, b->V, &b->dropout, b->stream);
}
static void run_layernorm_forward(Bench *b) {
    layernorm_forward(b->x[0], b->x[1], b->f[0], b->f[1], b->x[2], b->x[3], b->wpe, b->wpe + b->C, b->B, b->T,
                      b->C, &b->dropout, b->stream);
}
static void run_layernorm_normalise(Bench *b) {
    layernorm_normalise(b->x[0], b->x[2], b->f[0], b->f[1], b->wpe, b->wpe + b->C, b->N, b->C, b->stream);
}
static void run_layernorm_backward(Bench *b) {
    layernorm_backward(b->x[0], b->x[1], b->dwte, b->dwte + b->C, b->scratch, b->x[2], b->x[3], b->f[0],
                       b->f[1], b->wpe, b->B, b->T, b->C, &b->dropout, b->stream);
}
static void run_gelu_forward(Bench *b) {
    gelu_forward(b->x[0], b->x[1], b->N * 4 * b->C, b->stream);
}
static void run_gelu_backward(Bench *b) {
    gelu_backward(b->x[0], b->x[0], b->x[1], b->N * 4 * b->C, b->stream);
}
static void run_bias_backward(Bench *b) {
    bias_backward(&b->matmul, b->dwte, b->x[0], b->N, 4 * b->C, b->stream);
}
static void run_cross_entropy(Bench *b) {
    cross_entropy_backward(b->f[0], b->logits, b->tokens, 1e-4f, b->N, b->V, b->Vp, b->stream);
}
static void run_norm(Bench *b) {
    AdamW a = {1e-4, 0.9, 0.95, 1e-8, 1, 0, 0};
    square_sums(b->totals, b->flat[3], b->chunks, b->num_chunks, b->stream);
    step_outcome(b->outcome, b->totals, b->num_chunks, &a, b->stream);
}
static void run_adamw(Bench *b) {
    AdamW a = {1e-4, 0.9, 0.95, 1e-8, 1, 0, 0};
    adamw_update(b->weights, b->flat[0], b->flat[1], b->flat[2], b->flat[3], b->chunks, b->num_chunks, &a,
                 b->outcome, b->stream);
}
static void run_qkv(Bench *b) {
    matmul_forward(&b->matmul, b->x[0], b->x[1], b->wte, b->wpe, b->N, b->C, 3 * b->C, b->stream);
}
static void run_down(Bench *b) {
    matmul_forward(&b->matmul, b->x[0], b->x[1], b->wte, b->wpe, b->N, 4 * b->C, b->C, b->stream);
}
static void run_up_backward(Bench *b) {
    matmul_backward(&b->matmul, b->x[0], b->dwte, b->f[0], b->x[1], b->x[2], b->wte, NULL, b->N, b->C,
                    4 * b->C, MATMUL_ACCUMULATE, b->stream);
}
static void run_head_forward(Bench *b) {
    matmul_head_forward(&b->matmul, b->logits, b->x[0], b->wte, b->N, b->C, b->Vp, b->stream);
}
static void run_head_backward(Bench *b) {
    matmul_head_backward(&b->matmul, b->x[0], b->dwte, b->logits, b->x[1], b->wte, b->N, b->C, b->Vp,
                         MATMUL_ACCUMULATE, b->stream);
}
static Attention attention_of(const Bench *b) {
    Dropout dropout = dropout_make(b->dropout.threshold, 1, RANDOM_ATTENTION_DROPOUT, 0, 0, 0);
    Attention a = attention_packed(b->B, b->T, b->C / b->HS, b->C / b->HS, b->HS, dropout);
    a.atomics = b->atomics;
    return a;
}
static void run_attention_forward(Bench *b) {
    Attention a = attention_of(b);
    attention_flash_forward(b->x[0], b->lse, b->x[1], b->x[1] + b->C, b->x[1] + 2 * b->C, &a, b->stream);
}
static void run_attention_backward(Bench *b) {
    Attention a = attention_of(b);
    const floatX *qkv = b->x[1];
    floatX *dqkv = b->x[3];
    attention_flash_backward(dqkv, dqkv + b->C, dqkv + 2 * b->C, b->x[2], qkv, qkv + b->C, qkv + 2 * b->C,
                             b->x[0], b->lse, b->attention_scratch, &a, b->stream);
}
static void run_copy(Bench *b) {
    CHECK(cudaMemcpyAsync(b->logits, (char *)b->logits + b->N * b->Vp * sizeof(floatX) / 2,
                          b->N * b->Vp * sizeof(floatX) / 2, cudaMemcpyDeviceToDevice, b->stream));
}

// ---- measuring --------------------------------------------------------------------------------------------

static int compare_doubles(const void *a, const void *b) {
    return (*(const double *)a > *(const double *)b) - (*(const double *)a < *(const double *)b);
}

// Returns the median seconds of a call.
static double seconds_of(Bench *b, void (*run)(Bench *)) {
    double seconds[ROUNDS];
    Event from = event_create(), to = event_create();
    run(b);
    for (int round = 0; round < ROUNDS; round++) {
        device_zero(b->cache_filler, b->cache_filler_bytes, b->stream);
        event_record(&from, b->stream);
        run(b);
        event_record(&to, b->stream);
        event_wait(to);
        seconds[round] = event_seconds(from, to);
    }
    event_destroy(from), event_destroy(to);
    qsort(seconds, ROUNDS, sizeof(double), compare_doubles);
    return seconds[ROUNDS / 2];
}

static void bench_memory(Bench *b, const char *name, double bytes, void (*run)(Bench *)) {
    double seconds = seconds_of(b, run), rate = bytes / seconds / 1e9;
    printf("%-40s %9.4f ms %9.1f GB/s    %5.1f %% of the copy\n", name, seconds * 1e3, rate,
           100 * rate / b->copy_rate);
}

static void bench_product(Bench *b, const char *name, double flop, void (*run)(Bench *)) {
    double seconds = seconds_of(b, run), rate = flop / seconds / 1e9;
    printf("%-40s %9.4f ms %9.2f TFLOP/s %5.1f %% of the peak\n", name, seconds * 1e3, rate * 1e-3,
           100 * rate / b->product_rate);
}

// ---- memory -----------------------------------------------------------------------------------------------

static void *must_alloc(size_t bytes) {
    void *pointer = device_alloc(bytes);
    if (pointer == NULL) {
        fprintf(stderr, "error: out of memory on the device; try a smaller B\n");
        exit(1);
    }
    return pointer;
}

static floatX *random_tensor(size_t n) {
    floatX *x = (floatX *)must_alloc(n * sizeof(floatX));
    launch(matmul_fill_kernel, blocks_for(n, 256), 256, 0, (Stream)0, x, n);
    return x;
}
static float *zero_floats(size_t n) {
    float *x = (float *)must_alloc(n * sizeof(float));
    device_zero(x, n * sizeof(float), 0);
    return x;
}

static void bench_open(Bench *b, size_t B, size_t T, size_t C, size_t V) {
    memset(b, 0, sizeof(*b));
    b->B = B, b->T = T, b->N = B * T, b->C = C, b->V = V, b->Vp = round_up(V, 128);
    b->parameters = round_up(12 * 12 * C * C + b->Vp * C, 16);
    b->num_chunks = divide_up(b->parameters, ADAMW_CHUNK);
    for (int i = 0; i < NUM_TENSORS; i++) b->x[i] = random_tensor(b->N * 4 * C);
    b->logits = random_tensor(b->N * b->Vp);
    b->wte = random_tensor(b->Vp * C > 12 * C * C ? b->Vp * C : 12 * C * C);
    b->wpe = random_tensor(T * C + 4 * C);
    b->dwte = zero_floats(b->Vp * C + 4 * C * C);
    for (int i = 0; i < 2; i++) b->f[i] = zero_floats(b->N > T * C ? b->N : T * C);
    for (int i = 0; i < 4; i++) b->flat[i] = zero_floats(b->parameters);
    b->weights = random_tensor(b->parameters);
    b->totals = (double *)must_alloc(step_totals(b->num_chunks) * sizeof(double));
    b->scratch = zero_floats(layernorm_scratch(C));
    // Heads of 128 need less scratch space.
    b->attention_scratch = zero_floats(attention_flash_scratch_size(B, C / 64, T, 64));
    b->lse = zero_floats(b->N * (C / 64));
    b->outcome = (StepOutcome *)zero_floats(sizeof(StepOutcome));
    b->cache_filler_bytes = (size_t)4 * b->N * C * sizeof(floatX);
    b->cache_filler = must_alloc(b->cache_filler_bytes);
    b->dropout = dropout_make(256, 1, RANDOM_MLP_RESIDUAL, 0, 0, 0);
    b->stream = stream_create();
    matmul_open(&b->matmul, MATMUL_AUTO, (Precision)DEVICE_IS_BF16);
    size_t workspace = matmul_gpu_workspace_size(4 * C);
    matmul_set_workspace(&b->matmul, must_alloc(workspace), workspace);

    int32_t *tokens = (int32_t *)malloc(b->N * sizeof(int32_t));
    AdamWChunk *chunks = (AdamWChunk *)malloc(b->num_chunks * sizeof(AdamWChunk));
    CHECK(tokens != NULL && chunks != NULL);
    // Approximates Zipf's law: as in text, there are few frequent tokens and many rare ones.
    for (size_t i = 0; i < b->N; i++) {
        double u = (double)((i * 2654435761u + 12345u) % 1000003u) / 1000003.0;
        tokens[i] = (int32_t)min_size((size_t)(pow((double)V, u) - 1), V - 1);
    }
    for (size_t i = 0; i < b->num_chunks; i++) {
        chunks[i].number = i;
        chunks[i].weight = chunks[i].master = chunks[i].gradient = chunks[i].moment = i * ADAMW_CHUNK;
        chunks[i].size = (uint32_t)min_size(b->parameters - i * ADAMW_CHUNK, ADAMW_CHUNK);
        chunks[i].decay = 0.1f;
    }
    b->tokens = (int32_t *)must_alloc(b->N * sizeof(int32_t));
    b->chunks = (AdamWChunk *)must_alloc(b->num_chunks * sizeof(AdamWChunk));
    copy_to_device(b->tokens, tokens, b->N * sizeof(int32_t), 0);
    copy_to_device(b->chunks, chunks, b->num_chunks * sizeof(AdamWChunk), 0);
    stream_wait(0);
    free(tokens), free(chunks);
}

static void bench_close(Bench *b) {
    matmul_close(&b->matmul);
    stream_destroy(b->stream); // device memory is freed when the process ends
}

// ---- the table --------------------------------------------------------------------------------------------

static void bench_memory_bound(Bench *b) {
    const double X = sizeof(floatX), N = (double)b->N, C = (double)b->C, NC = N * C;
    const double Vp = (double)b->Vp, P = (double)b->parameters, T = (double)b->T;
    bench_memory(b, "embedding forward", 2 * X * NC + X * T * C, run_embedding_forward);
    bench_memory(b, "embedding backward", 2 * X * NC + 2 * 4 * (NC < Vp * C ? NC : Vp * C) + 8 * T * C,
                 run_embedding_backward);
    for (int dropped = 0; dropped < 2; dropped++) {
        b->dropout.threshold = dropped ? 230 : 256;
        bench_memory(b, dropped ? "layernorm forward, dropout 0.1" : "layernorm forward", 4 * X * NC,
                     run_layernorm_forward);
        bench_memory(b, dropped ? "layernorm backward, dropout 0.1" : "layernorm backward", 5 * X * NC,
                     run_layernorm_backward);
    }
    b->dropout.threshold = 256;
    bench_memory(b, "layernorm again (--recompute)", 2 * X * NC, run_layernorm_normalise);
    bench_memory(b, "gelu forward", 2 * X * 4 * NC, run_gelu_forward);
    bench_memory(b, "gelu backward", 3 * X * 4 * NC, run_gelu_backward);
    bench_memory(b, "bias gradient, 4C columns", X * 4 * NC, run_bias_backward);
    bench_memory(b, "softmax + cross-entropy + dlogits", 2 * X * N * Vp, run_cross_entropy);
    bench_memory(b, "gradient norm", 4 * P, run_norm);
    bench_memory(b, "adamw", (4 * 7 + (X == 2 ? 2 : 0)) * P, run_adamw);
}

static void bench_products(Bench *b) {
    const double N = (double)b->N, C = (double)b->C, Vp = (double)b->Vp;
    bench_product(b, "matmul qkv + bias", 2 * N * C * 3 * C, run_qkv);
    bench_product(b, "matmul mlp down + bias", 2 * N * C * 4 * C, run_down);
    bench_product(b, "matmul mlp up backward, bias gradient", 4 * N * C * 4 * C, run_up_backward);
    bench_product(b, "matmul output head", 2 * N * C * Vp, run_head_forward);
    bench_product(b, "matmul output head backward", 4 * N * C * Vp, run_head_backward);
}

// Counts only the products for visible pairs, of causal attention; backward has 2.5 times as many as forward.
static void bench_attention(Bench *b) {
    static const size_t head_sizes[] = {64, 128};
    for (int i = 0; i < 4; i++) {
        char name[64];
        b->HS = head_sizes[i / 2];
        b->dropout.threshold = i % 2 ? 230 : 256;
        if (b->C % b->HS != 0) continue;
        const double flop = 2.0 * (double)b->N * (double)b->T * (double)b->C;
        const char *dropped = i % 2 ? ", dropout 0.1" : "";
        snprintf(name, sizeof(name), "attention HS %zu%s", b->HS, dropped);
        bench_product(b, name, flop, run_attention_forward);
        for (b->atomics = 0; b->atomics < 2; b->atomics++) {
            snprintf(name, sizeof(name), "attention HS %zu%s, backward%s", b->HS, dropped,
                     b->atomics ? ", atomics" : "");
            bench_product(b, name, 2.5 * flop, run_attention_backward);
        }
    }
}

int main(int argc, char **argv) {
    size_t sizes[4] = {16, 1024, 768, 50257};
    open_standard_descriptors();
    const char *refusal = device_open(argv, 0);
    if (refusal != NULL || (argc != 1 && argc != 5)) {
        fprintf(stderr, "error: %s\n", refusal ? refusal : "usage: bench_kernels [B T C V]");
        return 1;
    }
    for (int i = 1; i < argc; i++) sizes[i - 1] = (size_t)atoll(argv[i]);
    if (sizes[0] < 1 || sizes[1] < 1 || sizes[2] < 8 || sizes[2] % 8 != 0 || sizes[3] < 1) {
        fprintf(stderr, "error: B, T and V must be 1 or more, C a multiple of 8\n");
        return 1;
    }
    static Bench bench;
    char device[320];
    device_describe(device, sizeof(device));
    bench_open(&bench, sizes[0], sizes[1], sizes[2], sizes[3]);
    bench.product_rate = matmul_peak(&bench.matmul, bench.logits, bench.N * bench.Vp * sizeof(floatX));
    double copy = seconds_of(&bench, run_copy);
    // One half of the logits is read, the other written.
    bench.copy_rate = (double)(bench.N * bench.Vp * sizeof(floatX)) / copy / 1e9;
    printf("%s, %s; B %zu T %zu C %zu V %zu\ncopy %.1f GB/s, square product %.2f TFLOP/s\n", device,
           DEVICE_IS_BF16 ? "bf16" : "fp32", sizes[0], sizes[1], sizes[2], sizes[3], bench.copy_rate,
           bench.product_rate * 1e-3);
    bench_memory_bound(&bench);
    bench_products(&bench);
    bench_attention(&bench);
    bench_close(&bench);
    close_output();
    return 0;
}
