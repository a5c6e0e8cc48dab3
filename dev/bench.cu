// Measures speed on this machine, relative to a peak measured in the same run.
//
//     bench matmul       the products of L=6 C=384 and of gpt2-124M: GFLOP/s, % of peak, for fp32 and bf16 inputs
//     bench attention    naive and flash at T = 256 .. 4096: ms, GFLOP/s, memory
//     bench step         whole training steps of three models, with a profile
//     bench serve L NH C T B V fp32|bf16 ATTENTION
//                        trains on random tokens, one step for every line on standard input, and prints the
//                        milliseconds of each: for dev/bench_torch.py, which alternates it with PyTorch
//
// Results are medians; rounds of the alternatives that are compared alternate. For products, the best round is shown
// too: the speed when no other program uses the machine.
#define main train_gpt_main
#include "../train_gpt.cu"
#undef main

enum { MAX_ROUNDS = 200 };

static int compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static double median(double *x, int n) {
    qsort(x, (size_t)n, sizeof(double), compare_doubles);
    return n % 2 ? x[n / 2] : 0.5 * (x[n / 2 - 1] + x[n / 2]);
}

static float *random_memory(size_t n) {
    float *x = (float *)device_alloc(n * sizeof(float));
    if (x == NULL) die("out of memory: %zu floats", n);
    for (size_t i = 0; i < n; i++) x[i] = (float)((i * 2654435761u >> 9 & 255) / 128.0 - 1.0);
    return x;
}

// ---- matmul -----------------------------------------------------------------------------------------------

static void bench_product(const MatmulCpu *contexts, int precisions, double *peak, MatmulLayout layout,
                          size_t M, size_t N, size_t K, double *worst) {
    static const char *names[] = {"NT", "NN", "TN"};
    float *A = random_memory(M * K), *B = random_memory(N * K), *C = random_memory(M * N);
    // Use the highest peak so far, so that a temporarily slow machine does not make the next products look better.
    for (int p = 0; p < precisions; p++) peak[p] = fmax(peak[p], matmul_measure_peak((Precision)p));
    double seconds[2][MAX_ROUNDS];
    int rounds = 25;
    for (int round = 0; round < rounds; round++)
        for (int p = 0; p < precisions; p++) {
            double started = seconds_now();
            matmul_cpu(&contexts[p], layout, M, N, K, A, layout == MATMUL_TN ? M : K, B,
                       layout == MATMUL_NT ? K : N, C, N, MATMUL_OVERWRITE, NULL);
            seconds[p][round] = seconds_now() - started;
        }
    printf("%s %6zu x %6zu x %5zu", names[layout], M, N, K);
    for (int p = 0; p < precisions; p++) {
        double flop = 2.0 * (double)M * (double)N * (double)K / 1e9, middle = median(seconds[p], rounds);
        double best = seconds[p][0]; // median() has sorted them
        printf("   %s %6.1f GFLOP/s %5.1f %%, best %5.1f %%", p ? "bf16" : "fp32", flop / middle,
               100 * flop / middle / peak[p], 100 * flop / best / peak[p]);
        worst[p] = fmin(worst[p], 100 * flop / best / peak[p]);
    }
    printf("\n");
    device_free(A), device_free(B), device_free(C);
}

// The products of one layer of weights (C, OC) on N tokens: forward, input gradient, weight gradient.
static void bench_layer(const MatmulCpu *contexts, int precisions, double *peak, size_t N, size_t C,
                        size_t OC, double *worst) {
    bench_product(contexts, precisions, peak, MATMUL_NN, N, OC, C, worst);
    bench_product(contexts, precisions, peak, MATMUL_NT, N, C, OC, worst);
    bench_product(contexts, precisions, peak, MATMUL_TN, C, OC, N, worst);
}

static void bench_matmul(void) {
    static const size_t models[][2] = {{1024, 384}, {256, 768}}; // tokens, channels
    MatmulCpu contexts[2];
    int precisions = 1 + matmul_bf16_available();
    double peak[2];
    for (int p = 0; p < precisions; p++) {
        matmul_cpu_open(&contexts[p], (Precision)p);
        peak[p] = matmul_measure_peak((Precision)p);
    }
    for (int model = 0; model < 2; model++) {
        size_t N = models[model][0], C = models[model][1];
        double worst[2] = {1e9, 1e9};
        printf("products of C = %zu on %zu tokens, %d threads, peak %.0f GFLOP/s in fp32%s\n", C, N,
               omp_get_max_threads(), peak[0], precisions > 1 ? "" : " (no AVX512-BF16 here)");
        bench_layer(contexts, precisions, peak, N, C, 3 * C, worst);
        bench_layer(contexts, precisions, peak, N, C, C, worst);
        bench_layer(contexts, precisions, peak, N, C, 4 * C, worst);
        bench_layer(contexts, precisions, peak, N, 4 * C, C, worst);
        if (model == 1) bench_layer(contexts, precisions, peak, N, 50304, C, worst);
        printf("lowest of the best: fp32 %.1f %% of peak", worst[0]);
        if (precisions > 1) printf(", bf16 %.1f %%", worst[1]);
        printf("\n\n");
    }
    for (int p = 0; p < precisions; p++) matmul_cpu_close(&contexts[p]);
}

// ---- attention --------------------------------------------------------------------------------------------

static void bench_attention_case(size_t B, size_t T, size_t NH, size_t HS, double p) {
    size_t C = NH * HS, n = B * T * C;
    Attention a = attention_packed(B, T, NH, NH, HS,
                                   dropout_make(dropout_threshold(p), 1, RANDOM_ATTENTION_DROPOUT, 0, 0, 0));
    float *qkv = random_memory(3 * n), *dqkv = random_memory(3 * n), *out = random_memory(n),
          *dout = random_memory(n);
    float *lse = random_memory(B * NH * T);
    size_t saved_floats = attention_saved_size(ATTENTION_NAIVE, B, NH, T, T);
    float *saved = random_memory(saved_floats);
    double seconds[2][2][MAX_ROUNDS];
    int rounds = T <= 1024 ? 7 : 3;
    for (int round = 0; round < rounds; round++)
        for (int v = 0; v < 2; v++) {
            double started = seconds_now();
            attention_forward((AttentionVariant)(ATTENTION_NAIVE + v), out, lse, saved, qkv, qkv + C,
                              qkv + 2 * C, &a, 0);
            double middle = seconds_now();
            attention_backward((AttentionVariant)(ATTENTION_NAIVE + v), dqkv, dqkv + C, dqkv + 2 * C, dout,
                               qkv, qkv + C, qkv + 2 * C, out, lse, saved, NULL, &a, 0);
            seconds[v][0][round] = middle - started;
            seconds[v][1][round] = seconds_now() - middle;
        }
    double flop = 2.0 * (double)(B * NH) * (double)(T * T) * (double)HS, naive = 0; // forward, causal
    for (int v = 0; v < 2; v++) {
        double forward = median(seconds[v][0], rounds), backward = median(seconds[v][1], rounds);
        double saves = 4e-6 * (double)((v == 0 ? saved_floats : 0) + B * NH * T);
        printf("T %5zu B %zu NH %zu HS %zu p %.1f %s: forward %8.2f ms %5.0f GFLOP/s, backward %8.2f ms "
               "%5.0f GFLOP/s, saves %8.1f MB",
               T, B, NH, HS, p, v ? "flash" : "naive", forward * 1e3, flop / forward / 1e9, backward * 1e3,
               2.5 * flop / backward / 1e9, saves);
        if (v == 0)
            naive = forward + backward;
        else
            printf(", %.1f x naive", naive / (forward + backward));
        printf("\n");
    }
    device_free(qkv), device_free(dqkv), device_free(out), device_free(dout), device_free(lse),
        device_free(saved);
}

static void bench_attention(void) {
    static const size_t lengths[] = {256, 512, 1024, 2048, 4096};
    for (int i = 0; i < 5; i++)
        for (int dropped = 0; dropped < 2; dropped++)
            bench_attention_case(lengths[i] <= 1024 ? 4 : 1, lengths[i], lengths[i] <= 1024 ? 6 : 2, 64,
                                 0.1 * dropped);
    printf("\n");
}

// ---- whole steps ------------------------------------------------------------------------------------------

typedef struct {
    const char *name;
    int64_t num_layers, num_heads, channels;
    size_t T, B, V;
} StepShape;

static void create_model(GPT *m, const StepShape *s, Precision precision, AttentionVariant attention) {
    Error error;
    GPTConfig config = gpt_config_gpt2((int64_t)s->T, (int64_t)s->V, s->num_layers, s->num_heads,
                                       s->channels);
    ModelSetup setup = {s->B, s->T, RECOMPUTE_NONE, 0, attention, SHARD_NONE, 1, comm_alone(), 1};
    const size_t N = s->B * s->T;
    gpt_describe(m, &config, &setup);
    m->run.seed = 1;
    if (gpt_allocate(m, MATMUL_AUTO, precision, &error) != 0) die("%s", error.text);
    gpt_initialise(m, 0.02, 0.02);
    optimizer_list_chunks(&m->optimizer, &m->shards, &m->parameters, 0.1, m->run.stream);
    int32_t *tokens = (int32_t *)xmalloc(2 * N * sizeof(int32_t));
    for (size_t i = 0; i < 2 * N; i++) tokens[i] = (int32_t)((i % N + i / N) * 7919 % s->V);
    copy_to_device(m->acts.model.tokens, tokens, N * sizeof(int32_t), m->run.stream);
    copy_to_device(m->acts.model.targets, tokens + N, N * sizeof(int32_t), m->run.stream);
    stream_wait(m->run.stream);
    free(tokens);
}

// Performs one optimizer step and returns its seconds.
static double step_once(GPT *m, int64_t step) {
    double started = seconds_now();
    const size_t N = m->acts.B * m->acts.T;
    AdamW adamw = {1e-4, 0.9, 0.95, 1e-8, 1, 0, m->run.seed};
    MicroStep s = {(uint32_t)step, 0, DROPOUT_NONE, (float)(1.0 / (double)N), MATMUL_OVERWRITE, 1, 0};
    gpt_forward(m, &m->acts, &s);
    gpt_backward(m, &s);
    loss_add(&m->optimizer.totals[TOTAL_LOSS], m->acts.model.losses, N, (double)N, 0, m->run.stream);
    gpt_update(m, &adamw);
    stream_wait(m->run.stream);
    if (m->run.profile.timing) profile_collect(&m->run.profile);
    return seconds_now() - started;
}

static void bench_step(void) {
    static const StepShape shapes[] = {{"L4 NH4 C128 T64 B12", 4, 4, 128, 64, 12, 65},
                                       {"L6 NH6 C384 T256 B4", 6, 6, 384, 256, 4, 65},
                                       {"gpt2-124M T64 B4", 12, 12, 768, 64, 4, 50257}};
    static const int rounds[] = {60, 12, 7};
    int precisions = 1 + matmul_bf16_available();
    for (int i = 0; i < 3; i++) {
        GPT m[2];
        double seconds[2][MAX_ROUNDS], typical[2], peak[2];
        for (int p = 0; p < precisions; p++) {
            peak[p] = matmul_measure_peak((Precision)p);
            create_model(&m[p], &shapes[i], (Precision)p, ATTENTION_FLASH);
            step_once(&m[p], 1);
            m[p].run.profile.timing = 1;
            const WorkSizes sizes = work_sizes(&m[p]);
            set_work(&m[p].run.profile, &m[p].parameters, &sizes, shapes[i].B * shapes[i].T);
        }
        for (int round = 0; round < rounds[i]; round++)
            for (int p = 0; p < precisions; p++) seconds[p][round] = step_once(&m[p], round + 2);
        for (int p = 0; p < precisions; p++) {
            const WorkSizes sizes = work_sizes(&m[p]);
            typical[p] = median(seconds[p], rounds[i]);
            double tokens = (double)(shapes[i].B * shapes[i].T),
                   rate = tokens * step_flop(&m[p].parameters, &sizes) / typical[p] / 1e9;
            printf("%s %s: %.1f ms a step, %.0f tokens/s, %.0f GFLOP/s, %.1f %% of the measured peak\n",
                   shapes[i].name, p ? "bf16" : "fp32", typical[p] * 1e3, tokens / typical[p], rate,
                   100 * rate / peak[p]);
            profile_print(&m[p].run.profile, rounds[i], peak[p]);
            gpt_free(&m[p]);
        }
        if (precisions > 1) printf("bf16 inputs are %.2f x as fast as fp32\n", typical[0] / typical[1]);
        printf("\n");
    }
}

static void serve(char **words) {
    StepShape shape = {"served",
                       atoll(words[0]),
                       atoll(words[1]),
                       atoll(words[2]),
                       (size_t)atoll(words[3]),
                       (size_t)atoll(words[4]),
                       (size_t)atoll(words[5])};
    GPT m;
    char line[16];
    create_model(&m, &shape, strcmp(words[6], "bf16") == 0 ? PRECISION_BF16 : PRECISION_FP32,
                 strcmp(words[7], "naive") == 0 ? ATTENTION_NAIVE : ATTENTION_FLASH);
    for (int64_t step = 1; fgets(line, sizeof(line), stdin) != NULL; step++) {
        printf("%.4f\n", step_once(&m, step) * 1e3);
        fflush(stdout);
    }
    gpt_free(&m);
}

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "all";
    open_standard_descriptors();
    if (device_open(argv, 0) != NULL) return 1;
    if (strcmp(what, "serve") == 0 && argc == 10) {
        serve(argv + 2);
        return 0;
    }
    int all = strcmp(what, "all") == 0;
    if (!all && strcmp(what, "matmul") != 0 && strcmp(what, "attention") != 0 && strcmp(what, "step") != 0)
        die("'%s' is not one of matmul, attention, step, all, serve", what);
    if (all || strcmp(what, "matmul") == 0) bench_matmul();
    if (all || strcmp(what, "attention") == 0) bench_attention();
    if (all || strcmp(what, "step") == 0) bench_step();
    close_output();
    return 0;
}
