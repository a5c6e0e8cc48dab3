// Compares every variant of attention with its definition in double precision (reference.h), which is itself compared
// with central differences. Reads dropout masks back through the kernels (dropout.h). Tests edge cases, extreme values,
// NaN, and that results are bitwise the same twice, for any number of threads and, emulated, in any order of threads.
// Prints one line per case: variant, shape, options, then error and allowed error of out, lse and the gradients, and
// the time.
//
// The allowed error (Dao's rule) is twice the error of naive, the plain implementation in the same precision, for out
// and lse, and three times its error for gradients, plus 1e-5.
#include "dropout.h"

// ---- one case ---------------------------------------------------------------------------------------------

static void expect_same(AttentionVariant variant, const Inputs *in, const Outputs *o, const Outputs *other,
                        const char *what) {
    for (int i = 0; i < TENSORS; i++)
        EXPECT(same_bits(o, other, in, i), "%s: %s has other bits %s", variant_names[variant],
               tensor_names[i], what);
}

static void expect_repeats(AttentionVariant variant, const Inputs *in, const Outputs *o) {
    Outputs again = outputs_create(in);
    omp_set_num_threads(3);
    run_variant(variant, in, &again);
    omp_set_num_threads(omp_get_num_procs());
    expect_same(variant, in, o, &again, "the second time");
    outputs_free(&again);
}

// dQ that is added up in any order is as accurate as in the fixed order, and no other output changes.
static void test_atomics(Inputs *in, const Outputs *ordered, const Reference *r, const Errors *allowed) {
    Outputs o = outputs_create(in);
    in->a.atomics = 1;
    double milliseconds = run_variant(ATTENTION_FLASH, in, &o);
    Errors e = errors_of(&o, in, r);
    report(ATTENTION_FLASH, in, &e, allowed, milliseconds);
    in->a.atomics = 0;
    for (int i = 0; i < TENSORS; i++)
        EXPECT(i == DQ || same_bits(&o, ordered, in, i), "atomics change %s", tensor_names[i]);
    outputs_free(&o);
}

// Tests both variants. `out`, `lse` and `gradients` are the errors allowed for naive, see allowed_plain; for `slack`
// and `more`, see allowed_by.
static void test_inputs(Inputs *in, double out, double lse, double gradients, double slack, double more) {
    Reference r = reference_create(in);
    reference_run(&r);
    Errors allowed = allowed_plain(in, &r, out, lse, gradients);
    for (int i = ATTENTION_NAIVE; i <= ATTENTION_FLASH; i++) {
        AttentionVariant variant = (AttentionVariant)i;
        Outputs o = outputs_create(in);
        double milliseconds = run_variant(variant, in, &o);
        Errors e = errors_of(&o, in, &r);
        report(variant, in, &e, &allowed, milliseconds);
        if (variant == ATTENTION_FLASH || in->q_size * in->a.Tk < 200000) expect_repeats(variant, in, &o);
        if (variant == ATTENTION_FLASH && DEVICE_IS_GPU && (!EMULATED || in->a.Tk > 64))
            test_atomics(in, &o, &r, &allowed);
        allowed = allowed_by(&e, in, &r, slack, more);
        outputs_free(&o);
    }
    reference_free(&r);
}

// The order in which scores are added up matters if they are large: on the CPU, naive has 16 partial sums, flash one.
static double slack_for_large_scores(void) {
    return DEVICE_IS_GPU ? 1 : 4;
}

static void test_case(Attention a) {
    Inputs in = inputs_create(a, 1);
    test_inputs(&in, 2e-5, 2e-5, 2e-5, a.scale > 1 ? slack_for_large_scores() : 1, 0);
    inputs_free(&in);
}

static void test_causal(size_t B, size_t T, size_t NH, size_t NKV, size_t HS, double p) {
    test_case(attention_dense(B, T, T, NH, NKV, HS, MASK_CAUSAL, 1.0f / sqrtf((float)HS), p));
}

// ---- shapes -----------------------------------------------------------------------------------------------

static const size_t head_sizes[] = {8, 16, 24, 32, 40, 64, 80, 96, 128, 160, 192, 200, 256};
enum { HEAD_SIZES = sizeof(head_sizes) / sizeof(head_sizes[0]) };

// Tests `count` cases of one length; each call continues with the head sizes, heads and rates that follow the last
// ones.
static void test_length(size_t T, size_t count) {
    static const size_t heads[][2] = {{1, 1}, {2, 1}, {3, 3}, {6, 2}, {2, 2}, {6, 3}, {3, 1}, {6, 1}};
    static const double rates[] = {0, 0.1, 0, 0.17, 0.5, 0, 0.9};
    static size_t n = 0;
    for (size_t i = 0; i < count; i++, n++)
        test_causal(n % 3 == 0 && (T < 200 || !EMULATED) ? 3 : 1, T, heads[n % 8][0], heads[n % 8][1],
                    head_sizes[n * 5 % HEAD_SIZES], rates[n % 7]);
}

static void test_shapes(void) {
    static const size_t lengths[] = {1,   2,   3,   5,   17,  63,  64,  65,   97,   113,
                                     127, 128, 129, 203, 255, 257, 512, 1023, 1024, 1025};
    const int on_gpu = DEVICE_IS_GPU && !EMULATED;
    for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++)
        if (lengths[i] <= (test_is_small() ? 33 : 257) || on_gpu)
            test_length(lengths[i], on_gpu ? HEAD_SIZES : EMULATED ? 3 : 4);
    // Several tiles of queries and of keys, for each way to divide them among warps.
    test_causal(1, 150, 2, 1, 64, 0.17);
    test_causal(1, 70, 2, 2, 256, 0.5);
    test_causal(1, 130, 1, 1, 128, 0);
    if (test_is_small()) return;
    for (size_t i = 0; i < HEAD_SIZES; i++) test_causal(1, 70, 2, 1, head_sizes[i], i % 2 ? 0.17 : 0);
    test_causal(1, 257, 3, 1, 64, 0.1);  // every dq has three parts
    test_causal(40, 3, 12, 12, 16, 0.1); // many small sequences
    test_causal(10, 3, 12, 4, 64, 0);
    test_causal(1, 512, 1, 1, 64, 0.1);
    test_causal(1, 1025, 1, 1, 32, 0);
    if (EMULATED) return;
    test_causal(1, 1023, 2, 1, 128, 0.17);
    test_causal(1, 1024, 1, 1, 64, 0.5);
}

static void test_masks_and_scales(void) {
    test_case(attention_dense(2, 65, 65, 2, 1, 32, MASK_NONE, 0.2f, 0.1));
    test_case(attention_dense(1, 1, 77, 2, 2, 40, MASK_CAUSAL, 0.2f, 0)); // one new token after a cache
    test_case(attention_dense(1, 33, 100, 2, 1, 16, MASK_CAUSAL, 0.2f, 0.5));
    test_case(attention_dense(1, 50, 129, 3, 3, 24, MASK_NONE, 0.2f, 0));
    test_case(attention_dense(1, 100, 100, 1, 1, 16, MASK_CAUSAL, 0.0f, 0.1)); // all keys have equal weights
    test_case(attention_dense(1, 100, 100, 1, 1, 16, MASK_CAUSAL, 7.5f, 0));
    test_case(attention_dense(1, 150, 180, 2, 1, 64, MASK_CAUSAL, 0.1f, 0.1)); // diagonal inside tiles
    test_case(attention_dense(5, 140, 140, 2, 1, 16, MASK_CAUSAL, 0.1f, 0));   // larger than the L2 cache
    if (test_is_small()) return;
    test_case(attention_dense(1, 70, 200, 2, 1, 128, MASK_CAUSAL, 0.1f, 0.17));
    test_case(attention_dense(1, 131, 66, 2, 1, 64, MASK_NONE, 0.1f, 0.9));
    test_case(attention_dense(1, 90, 90, 2, 1, 64, MASK_CAUSAL, 0.0f, 0));
    test_case(attention_dense(1, 90, 90, 2, 1, 192, MASK_NONE, 0.0f, 0.5));
    test_case(attention_dense(1, 90, 90, 2, 1, 128, MASK_CAUSAL, 2.0f, 0.1));
}

// Tensors that are packed into one, as in the trainer, give bitwise the same results as separate ones.
static void test_packed(size_t T, size_t HS, double p) {
    Attention a = attention_dense(2, T, T, 4, 2, HS, MASK_CAUSAL, 1.0f / sqrtf((float)HS), p);
    Inputs in = inputs_create(a, 1);
    for (int i = ATTENTION_NAIVE; i <= ATTENTION_FLASH; i++) {
        AttentionVariant variant = (AttentionVariant)i;
        Outputs apart = outputs_create(&in), packed = outputs_create(&in);
        in.packed = 0;
        run_variant(variant, &in, &apart);
        in.packed = 1;
        run_variant(variant, &in, &packed);
        expect_same(variant, &in, &apart, &packed, "in a packed tensor");
        outputs_free(&apart), outputs_free(&packed);
    }
    inputs_free(&in);
}

// ---- GPUs with less shared memory: other tiles ------------------------------------------------------------

static void test_less_shared_memory(void) {
#ifdef CUDA_EMULATION
    if (!DEVICE_IS_BF16) return; // fp32 has one choice of tiles
    setenv("CUDA_EMULATION_SHARED", "101376", 1);
    printf("99 KB of shared memory:\n");
    test_causal(1, 137, 2, 1, 64, 0.17);
    test_causal(1, 137, 2, 1, 128, 0.17);
    if (!test_is_small()) {
        test_causal(1, 203, 2, 2, 40, 0);
        test_causal(2, 65, 3, 1, 104, 0.5);
        test_causal(1, 257, 2, 1, 128, 0);
        test_case(attention_dense(1, 150, 70, 2, 1, 128, MASK_CAUSAL, 0.1f, 0.1));
        test_case(attention_dense(1, 70, 150, 2, 1, 64, MASK_NONE, 0.1f, 0.1));
        test_masks(ATTENTION_FLASH, 137, 150, 64, 0.5);
        test_masks(ATTENTION_FLASH, 137, 150, 128, 0.1);
        for (size_t i = 0; i < HEAD_SIZES; i++)
            test_causal(1, 33, 1, 1, head_sizes[i], 0); // every head size can be launched
    }
    unsetenv("CUDA_EMULATION_SHARED");
#endif
}

// ---- cuDNN, if the build has it ---------------------------------------------------------------------------

// Without dropout, the rule is that of flash. With dropout, cuDNN has its own masks, which must repeat, and differ in
// another step.
#ifdef HAVE_CUDNN
static void test_cudnn_case(size_t T, size_t NH, size_t NKV, size_t HS, double p) {
    Inputs in = inputs_create(attention_dense(2, T, T, NH, NKV, HS, MASK_CAUSAL, 1.0f / sqrtf((float)HS), p),
                              1);
    const char *refusal = attention_refusal(ATTENTION_CUDNN, &in.a);
    if (refusal != NULL) {
        printf("cudnn T %zu NH %zu NKV %zu HS %zu p %.2f: %s\n", T, NH, NKV, HS, p, refusal);
        inputs_free(&in);
        return;
    }
    Reference r = reference_create(&in);
    reference_run(&r);
    Outputs naive = outputs_create(&in), cudnn = outputs_create(&in);
    run_variant(ATTENTION_NAIVE, &in, &naive);
    double milliseconds = run_variant(ATTENTION_CUDNN, &in, &cudnn);
    if (p == 0) {
        Errors plain = errors_of(&naive, &in, &r), e = errors_of(&cudnn, &in, &r);
        Errors allowed = allowed_by(&plain, &in, &r, 1, 0);
        report(ATTENTION_CUDNN, &in, &e, &allowed, milliseconds);
    }
    expect_repeats(ATTENTION_CUDNN, &in, &cudnn);
    in.a.dropout.step++;
    run_variant(ATTENTION_CUDNN, &in, &naive);
    EXPECT(same_bits(&naive, &cudnn, &in, OUT) == (p == 0), "cudnn: another step's mask, p %g", p);
    outputs_free(&naive), outputs_free(&cudnn), inputs_free(&in);
    reference_free(&r);
}
#endif
static void test_cudnn(void) {
#ifdef HAVE_CUDNN
    static const size_t shapes[][4] = {{65, 2, 2, 64}, {256, 3, 1, 128}, {1024, 2, 2, 64}};
    for (int i = 0; i < 3; i++)
        for (int dropped = 0; dropped < 2; dropped++)
            test_cudnn_case(shapes[i][0], shapes[i][1], shapes[i][2], shapes[i][3], dropped ? 0.1 : 0);
#endif
}

// ---- extremes ---------------------------------------------------------------------------------------------

// Tests large values (q times 5, k and v times 3), a query whose scores are all equal, a key of equal elements, and a
// huge key.
static void test_extremes(size_t HS) {
    Attention a = attention_dense(1, 130, 130, 2, 1, HS, MASK_CAUSAL, 0.125f, 0.1);
    Inputs in = inputs_create(a, 3);
    for (size_t i = 0; i < in.q_size; i++) in.q[i] = (float)(floatX)(in.q[i] * 5.0f / 3.0f);
    for (size_t i = 0; i < HS; i++) in.q[100 * a.q_token + i] = 0.0f;
    for (size_t i = 0; i < HS; i++) in.k[40 * a.kv_token + i] = 1.0f;
    for (size_t i = 0; i < HS; i++) in.k[90 * a.kv_token + i] = 1000.0f;
    // In bf16, the error of D is about 2^-9 of a sum of 64 terms of size 3, which is multiplied by scale and the key of
    // 1000: several units, while gradients without cancellation are of that size too.
    // In fp32, scores of thousands have few digits after the decimal point; and flash on a GPU computes P from lse in
    // other units, with an error of 2^-22 of 10^4.
    const double more = DEVICE_IS_GPU && !DEVICE_IS_BF16 ? 2.5e-3 : 0;
    test_inputs(&in, 1e-3, 1e-4, DEVICE_IS_BF16 ? 4 : 1e-3, slack_for_large_scores(), more);
    inputs_free(&in);
}

// With causal attention and more queries than keys, the first Tq - Tk queries see no key.
static void test_blind(size_t Tq, size_t Tk, size_t HS, double p) {
    Inputs in = inputs_create(attention_dense(2, Tq, Tk, 2, 1, HS, MASK_CAUSAL, 0.2f, p), 1);
    const Attention *a = &in.a;
    test_inputs(&in, 2e-5, 2e-5, 2e-5, 1, 0);
    for (int variant = ATTENTION_NAIVE; variant <= ATTENTION_FLASH; variant++) {
        Outputs o = outputs_create(&in);
        run_variant((AttentionVariant)variant, &in, &o);
        int nothing = 1, infinite = 1;
        for (size_t i = 0; i < in.q_size; i++)
            if (i % a->q_sequence / a->q_token < Tq - Tk) nothing &= o.x[OUT][i] == 0 && o.x[DQ][i] == 0;
        for (size_t i = 0; i < in.lse_size; i++) infinite &= (i % Tq < Tq - Tk) == (o.x[LSE][i] == INFINITY);
        EXPECT(nothing, "%s: out or dq of a query that sees nothing is not 0", variant_names[variant]);
        EXPECT(infinite, "%s: lse is not +inf where a query sees nothing, and only there",
               variant_names[variant]);
        outputs_free(&o);
    }
    inputs_free(&in);
}

// ---- NaN affects only what depends on it ------------------------------------------------------------------

enum { NAN_T = 150, NAN_KEY = 100, NAN_QUERY = 20, LARGEST_TILE = 128 };

// Returns 1 if element i of a tensor belongs to sequence 0 and head 0.
static int is_first(const Attention *a, size_t i) {
    return i < a->q_sequence && i % a->q_token < a->HS;
}

// With a NaN in key and value of one token, other heads, other sequences and earlier tiles of queries do not change.
static void test_nan_in_key(AttentionVariant variant, Inputs *in, const Outputs *clean) {
    const Attention *a = &in->a;
    const size_t at = NAN_KEY * a->kv_token;
    const float key = in->k[at], value = in->v[at + 3];
    Outputs dirty = outputs_create(in);
    in->k[at] = in->v[at + 3] = NAN;
    run_variant(variant, in, &dirty);
    in->k[at] = key, in->v[at + 3] = value;
    int others = 1, early = 1, late = 1;
    for (size_t i = 0; i < in->q_size; i++) {
        int equal = clean->x[OUT][i] == dirty.x[OUT][i] && clean->x[DQ][i] == dirty.x[DQ][i];
        size_t query = i / a->q_token;
        if (!is_first(a, i))
            others &= equal && clean->x[DK][i] == dirty.x[DK][i] && clean->x[DV][i] == dirty.x[DV][i];
        else if (query < NAN_KEY / 64 * 64)
            early &= equal;
        else if (query >= NAN_KEY)
            late &= isnan(dirty.x[OUT][i]) && isnan(dirty.x[DQ][i]);
    }
    EXPECT(others, "%s, HS %zu: a NaN reaches another head or sequence", variant_names[variant], a->HS);
    EXPECT(early, "%s, HS %zu: a NaN reaches queries that cannot see it", variant_names[variant], a->HS);
    EXPECT(late, "%s, HS %zu: a NaN is swallowed", variant_names[variant], a->HS);
    outputs_free(&dirty);
}

// With a NaN in one element of a query, or of its gradient, other heads, other sequences, later tiles of keys and all
// other queries do not change.
static void test_nan_in_query(AttentionVariant variant, Inputs *in, const Outputs *clean, float *element) {
    const Attention *a = &in->a;
    const float before = *element;
    Outputs dirty = outputs_create(in);
    *element = NAN;
    run_variant(variant, in, &dirty);
    *element = before;
    int others = 1, unseen = 1, queries = 1, seen = 1;
    for (size_t i = 0; i < in->q_size; i++) {
        int same_keys = clean->x[DK][i] == dirty.x[DK][i] && clean->x[DV][i] == dirty.x[DV][i];
        int same_query = clean->x[OUT][i] == dirty.x[OUT][i] && clean->x[DQ][i] == dirty.x[DQ][i];
        size_t token = i / a->q_token;
        if (!is_first(a, i)) others &= same_keys && same_query;
        if (is_first(a, i) && token >= LARGEST_TILE) unseen &= same_keys;
        if (is_first(a, i) && token != NAN_QUERY) queries &= same_query;
        if (is_first(a, i) && token <= NAN_QUERY) seen &= isnan(dirty.x[DK][i]) != 0;
    }
    EXPECT(others, "%s, HS %zu: a query's NaN reaches another head or sequence", variant_names[variant],
           a->HS);
    EXPECT(unseen, "%s, HS %zu: a query's NaN reaches keys that it does not see", variant_names[variant],
           a->HS);
    EXPECT(queries, "%s, HS %zu: a query's NaN reaches other queries", variant_names[variant], a->HS);
    EXPECT(seen, "%s, HS %zu: a query's NaN is swallowed", variant_names[variant], a->HS);
    outputs_free(&dirty);
}

static void test_nan_stays(AttentionVariant variant, size_t HS) {
    Inputs in = inputs_create(attention_dense(2, NAN_T, NAN_T, 2, 2, HS, MASK_CAUSAL, 0.25f, 0), 1);
    Outputs clean = outputs_create(&in);
    run_variant(variant, &in, &clean);
    test_nan_in_key(variant, &in, &clean);
    test_nan_in_query(variant, &in, &clean, &in.q[NAN_QUERY * in.a.q_token]);
    test_nan_in_query(variant, &in, &clean, &in.dout[NAN_QUERY * in.a.out_token]);
    outputs_free(&clean), inputs_free(&in);
}

// ---- bitwise the same results in every order of threads ---------------------------------------------------

// Returns a hash (FNV-1a) of the bits of all outputs of a few cases.
static uint64_t digest(void) {
    static const size_t shapes[][5] = {
        {2, 150, 150, 64, 3}, {1, 200, 140, 128, 2}, {1, 70, 70, 192, 2}, {1, 33, 257, 32, 4}};
    uint64_t sum = 14695981039346656037ull;
    test_random_state = 1;
    for (int i = 0; i < 4; i++) {
        const size_t *s = shapes[i];
        Inputs in = inputs_create(
            attention_dense(s[0], s[1], s[2], s[4], s[4] == 4 ? 2 : 1, s[3], MASK_CAUSAL, 0.1f, 0.1), 1);
        Outputs o = outputs_create(&in);
        run_variant(ATTENTION_FLASH, &in, &o);
        for (int j = 0; j < TENSORS; j++)
            for (size_t k = 0; k < tensor_size(&in, j) * sizeof(float); k++)
                sum = (sum ^ ((const uint8_t *)o.x[j])[k]) * 1099511628211ull;
        outputs_free(&o), inputs_free(&in);
    }
    return sum;
}

// Runs this program, which then only prints its digest, with other orders of the threads of emulated kernels.
static void test_orders(const char *program) {
#ifdef CUDA_EMULATION
    if (test_is_small() || getenv("CUDA_EMULATION_SEED") != NULL) return;
    const uint64_t wanted = digest();
    fflush(stdout);
    for (int seed = 1; seed <= 5; seed++) {
        char command[1000];
        unsigned long long got = 0;
        snprintf(command, sizeof(command), "CUDA_EMULATION_SEED=%d ATTENTION_DIGEST=1 '%s'", seed, program);
        FILE *output = popen(command, "r");
        int found = output != NULL && fscanf(output, "%llx", &got) == 1;
        found &= output != NULL && pclose(output) == 0;
        EXPECT(found && got == wanted, "seed %d gives other bits: %llx, not %llx", seed, got,
               (unsigned long long)wanted);
    }
    printf("digest %llx, the same for five orders of threads\n", (unsigned long long)wanted);
#endif
    (void)program;
}

// In every kernel above, the rows that one phase of ldmatrix reads are in different banks.
static void test_bank_conflicts(void) {
#ifdef CUDA_EMULATION
    printf("%llu phases of ldmatrix, %llu bank conflicts\n", (unsigned long long)emulation::ldmatrix_phases,
           (unsigned long long)emulation::ldmatrix_conflicts);
    EXPECT(emulation::ldmatrix_conflicts == 0, "ldmatrix has bank conflicts");
    EXPECT((emulation::ldmatrix_phases > 0) == DEVICE_IS_BF16, "ldmatrix is for bf16");
#endif
}

static void test_variants(void) {
    static const size_t sizes[] = {16, 64, 128, 256};
    for (int i = 0; i < (test_is_small() ? 2 : 4); i++) {
        test_extremes(sizes[i]);
        if (!EMULATED || i == 0) test_nan_stays(ATTENTION_NAIVE, sizes[i]);
        test_nan_stays(ATTENTION_FLASH, sizes[i]);
    }
    test_blind(100, 33, 16, 0);
    test_blind(135, 4, 64, 0.1); // a tile of queries that see no key
    if (!test_is_small()) {
        test_blind(200, 70, 64, 0.1);
        test_blind(130, 1, 128, 0);
        test_blind(70, 65, 256, 0.5);
        test_packed(150, 64, 0.1);
        test_packed(70, 128, 0);
        test_packed(67, 200, 0);
        test_packed(40, 8, 0.5);
    }
    test_packed(33, 64, 0.1);
    test_mean(ATTENTION_NAIVE, 16, 0.17);
    test_mean(ATTENTION_FLASH, 16, 0.17);
    if (!EMULATED) test_mean(ATTENTION_FLASH, 64, 0.9);
}

int main(int argc, char **argv) {
    (void)argc;
    const char *refusal = device_open(argv, 0);
    if (refusal != NULL) {
        printf("%s\n", refusal);
        return 1;
    }
    if (getenv("ATTENTION_DIGEST") != NULL) {
        printf("%llx\n", (unsigned long long)digest());
        return 0;
    }
    test_definitions();
    test_shapes();
    test_masks_and_scales();
    test_variants();
    test_mask_blocks();
    for (int i = 0; i < 4; i++) test_mask_statistics(dropout_rates[i]);
    test_all_masks();
    test_less_shared_memory();
    test_cudnn();
    test_orders(argv[0]);
    test_bank_conflicts();
    return test_finish();
}
