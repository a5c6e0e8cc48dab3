// The planning model: steps computed by hand, quantities that must be equal, and quantities that must grow or fall.
#include <math.h>
#include <string.h>
#include "dev/cluster.h"
#include "test/harness/test.h"

// One flop and one element (4 bytes) per second; AdamW and starting an operation take no time.
static const PlanGpu SIMPLE = {"simple",  1, 1, HUGE_VAL, 0,
                               PLAN_NCCL, 4, 4, 0,        {{0, {0, 0}, {0, 0}, {0, 0}, 1}}};

static const PlanProtocol SLOW = {5, {1, 10}, {7, 20}, {6, 9}, 1};

// Two blocks. For one token: one flop in a block's forward, two in its backward, three in the head.
static const size_t TWO_BLOCKS[] = {2, 1, 3};
static const PlanModel SMALL = {TWO_BLOCKS, 3, 1, 1, 1, 1, 0, 4, 0, PLAN_SHARD_NONE};

// GPT-2 124M, 64 sequences of 1024 tokens.
enum { BLOCK = 7087872, EMBEDDINGS = 50304 * 768 + 1024 * 768 + 2 * 768 };
static const size_t GPT2[] = {EMBEDDINGS, BLOCK, BLOCK, BLOCK, BLOCK, BLOCK, BLOCK,
                              BLOCK,      BLOCK, BLOCK, BLOCK, BLOCK, BLOCK};
static const PlanModel GPT2_124M = {
    GPT2, 13,        65536,          1, 24.0 * 768 * 768 + 2.0 * 1024 * 768, 2.0 * 768 * 50257, 0,
    2,    8 * 15200, PLAN_SHARD_NONE};

static PlanModel sharded(PlanModel model, PlanSharding sharding, size_t micro_steps) {
    model.sharding = sharding;
    model.micro_steps = micro_steps;
    return model;
}

static PlanStep planned(const PlanModel *model, const PlanGpu *gpu, int gpus, int gpus_per_node) {
    PlanStep s;
    plan_step(model, gpu, gpus, gpus_per_node, &s);
    return s;
}

static int equal(double a, double b) {
    return fabs(a - b) <= 1e-9 * (fabs(a) + fabs(b));
}

static void expect_step(const char *what, PlanStep s, double step, double compute, double communication,
                        double bytes) {
    EXPECT(equal(s.step, step), "%s: a step of %.9g s, not %.9g", what, s.step, step);
    EXPECT(equal(s.compute, compute), "%s: computing takes %.9g s, not %.9g", what, s.compute, compute);
    EXPECT(equal(s.communication, communication), "%s: operations take %.9g s, not %.9g", what,
           s.communication, communication);
    EXPECT(equal(s.exposed, step - compute), "%s: %.9g s exposed, not %.9g", what, s.exposed, step - compute);
    EXPECT(equal(s.bytes_sent, bytes), "%s: %.9g bytes sent, not %.9g", what, s.bytes_sent, bytes);
}

static void test_alone(void) {
    for (int sharding = PLAN_SHARD_NONE; sharding <= PLAN_SHARD_GRADIENTS; sharding++) {
        const PlanModel m = sharded(SMALL, (PlanSharding)sharding, 3);
        PlanGpu gpu = SIMPLE;
        gpu.protocols[0] = gpu.protocols[1] = SLOW;
        gpu.memory_bandwidth = 32; // an element per second: 6 s of AdamW
        const PlanStep s = planned(&m, &gpu, 1, 8);
        expect_step("one GPU", s, 3 * (2 + 3 + 4) + 6, 3 * (2 + 3 + 4) + 6, 0, 0);
        EXPECT(s.efficiency == 1, "efficiency %g", s.efficiency);
    }
}

// An all-reduce between two GPUs sends each element once, which takes a second.
//     0-2 forward, 2-5 head, 5-7 backward of the second block, 7-9 of the first
//     7-10 the second block's 3 elements, 10-11 the first block's, 11-13 the model's 2
static void test_overlap(void) {
    PlanGpu gpu = SIMPLE;
    PlanStep s = planned(&SMALL, &gpu, 2, 8);
    expect_step("overlap", s, 13, 9, 6, 6 * 4);
    EXPECT(equal(s.efficiency, 9.0 / 13), "efficiency %g", s.efficiency);
    // At half speed during an operation, the first block's backward does 1.5 s of its 2 s until 10, and the rest
    // without an operation, since its own gradients are not queued yet: it ends at 10.5. Then 10.5-11.5, 11.5-13.5.
    gpu.slowdown = 0.5;
    expect_step("slower", planned(&SMALL, &gpu, 2, 8), 13.5, 9, 6, 6 * 4);
    // At no speed during an operation: 7-10 waits, 10-12 computes, 12-15 sends the rest.
    gpu.slowdown = 1;
    expect_step("no overlap", planned(&SMALL, &gpu, 2, 8), 15, 9, 6, 6 * 4);
    // A link ten times as fast: 7-7.3, 9-9.1, 9.1-9.3.
    gpu.slowdown = 0, gpu.link = 40;
    expect_step("fast link", planned(&SMALL, &gpu, 2, 8), 9.3, 9, 0.6, 6 * 4);
}

// Backward recomputes the second block's forward in 5-6, the first block's in 8-9; operations are at 8-11, 11-12,
// 12-14.
static void test_recompute(void) {
    PlanModel m = SMALL;
    m.recompute = 1;
    expect_step("recompute", planned(&m, &SIMPLE, 2, 8), 14, 11, 6, 6 * 4);
}

// Weights in bf16 arrive at 2 elements per second, at 1, 1.5 and 3 s: forward 1.5-2.5, 3-4; head 4-7; backward 7-9,
// 9-11; gradients 9-12, 12-13, 13-15. AdamW: 3 of 6 elements, 34 bytes each, at 34 bytes per second, 15-18.
static void test_shard_optimizer(void) {
    PlanModel m = sharded(SMALL, PLAN_SHARD_OPTIMIZER, 1);
    PlanGpu gpu = SIMPLE;
    m.bytes_per_weight = 2;
    gpu.memory_bandwidth = 34;
    PlanStep s = planned(&m, &gpu, 2, 8);
    expect_step("optimizer", s, 18, 9 + 3, 3 + 6, 6 * (2 + 4) / 2);
    EXPECT(equal(s.efficiency, (9.0 + 6) / 18), "efficiency %g", s.efficiency);
}

// Gradients in each of two micro-steps, weights of 4 bytes arrive at 2, 3 and 6 s.
//     forward 3-4, 6-7; head 7-10; backward 10-12, 12-14; sent 12-15, 15-16, 16-18
//     forward 14-16; head waits for the model's gradients: 18-21; backward 21-23, 23-25; sent 23-26, 26-27, 27-29
static void test_shard_gradients(void) {
    const PlanModel m = sharded(SMALL, PLAN_SHARD_GRADIENTS, 2);
    expect_step("gradients", planned(&m, &SIMPLE, 2, 8), 29, 18, 6 + 12, (6 + 12) * 4 / 2);
    // Three blocks; the first block's gradients reuse the buffer of the third's, which are sent by 16. Weights: 0, 1,
    // 2, 6.
    //     forward 1-2, 2-3, 6-7; head 7-10; backward 10-12, 12-14, 16-18; sent 12-16, 16-17, 18-19
    static const size_t sizes[] = {0, 1, 1, 4};
    PlanModel three = sharded(SMALL, PLAN_SHARD_GRADIENTS, 1);
    three.bucket_sizes = sizes;
    three.num_buckets = 4;
    expect_step("turns", planned(&three, &SIMPLE, 2, 8), 19, 12, 12, 24);
}

// A single bucket and nothing to compute: returns the time of one operation.
static double time_of(const PlanGpu *gpu, PlanSharding sharding, size_t numbers, int gpus,
                      int gpus_per_node) {
    PlanModel m = sharded(SMALL, sharding, 1);
    m.bucket_sizes = &numbers;
    m.num_buckets = 1;
    m.head_flop = 0;
    m.totals = 0;
    PlanStep s = planned(&m, gpu, gpus, gpus_per_node);
    PlanStep nothing;
    size_t none = 0;
    m.bucket_sizes = &none; // the latencies of all other operations
    nothing = planned(&m, gpu, gpus, gpus_per_node);
    return s.communication - nothing.communication;
}

static void expect_time(const char *what, double is, double should) {
    EXPECT(equal(is, should), "%s: %.9g s, not %.9g", what, is, should);
}

static void test_bandwidth(void) {
    PlanGpu gpu = SIMPLE;
    gpu.link = 400, gpu.network = 80;
    expect_time("ring of 8", time_of(&gpu, PLAN_SHARD_NONE, 800, 8, 8), 2 * 7.0 / 8 * 3200 / 400);
    expect_time("owners of 8", time_of(&gpu, PLAN_SHARD_OPTIMIZER, 800, 8, 8),
                2 * 3200.0 / 400); // to owners and back
    // Eight cards of 80 are more than a link of 400; two are not.
    expect_time("2 x 8", time_of(&gpu, PLAN_SHARD_NONE, 800, 16, 8), 2 * 15.0 / 16 * 3200 / 400);
    expect_time("8 x 2", time_of(&gpu, PLAN_SHARD_NONE, 800, 16, 2), 2 * 15.0 / 16 * 3200 / 160);
    expect_time("2 x 1", time_of(&gpu, PLAN_SHARD_NONE, 800, 2, 1), 3200.0 / 80);
    // Processes share a machine's memory; no piece waits for another.
    gpu.transport = PLAN_MPI;
    expect_time("4 processes", time_of(&gpu, PLAN_SHARD_NONE, 800, 4, 8), 2 * 3.0 / 4 * 3200 / (400.0 / 4));
    expect_time("4 owners", time_of(&gpu, PLAN_SHARD_OPTIMIZER, 800, 4, 8), 2 * 3.0 / 4 * 3200 / (400.0 / 4));
    expect_time("4 machines", time_of(&gpu, PLAN_SHARD_NONE, 800, 4, 1), 2 * 3.0 / 4 * 3200 / 80);
}

// No elements, only latencies. Those of a step come from its bucket and from the small all-reduce.
static void test_latency(void) {
    PlanGpu gpu = SIMPLE;
    PlanModel m = SMALL;
    size_t none = 0;
    m.bucket_sizes = &none;
    m.num_buckets = 1;
    gpu.protocols[0] = SLOW;
    expect_time("ring", planned(&m, &gpu, 4, 8).communication, 2 * (5 + 6 * 1));
    expect_time("ring over 2 nodes", planned(&m, &gpu, 4, 2).communication, 2 * (5 + 4 * 1 + 2 * 10));
    // Over 16 nodes a tree is faster: one level up and down inside a node and four between nodes, against 32 and 30
    // hops.
    expect_time("tree", planned(&m, &gpu, 32, 2).communication, 2 * (5 + 2 * 6 + 2 * 4 * 9));
    m.sharding = PLAN_SHARD_OPTIMIZER;
    expect_time("chain", planned(&m, &gpu, 4, 8).communication, 2 * (5 + 3 * 7) + 5 + 6 * 1);
    expect_time("chain over 2 nodes", planned(&m, &gpu, 4, 2).communication,
                2 * (5 + 2 * 7 + 20) + 5 + 4 * 1 + 2 * 10);
}

// Of two protocols, the one that is faster for this number of bytes is used.
static void test_protocols(void) {
    PlanGpu gpu = SIMPLE;
    const PlanProtocol quick = {1, {0, 0}, {0, 0}, {0, 0}, 0.5};
    size_t numbers = 1;
    PlanModel m = SMALL;
    m.bucket_sizes = &numbers;
    m.num_buckets = 1;
    gpu.protocols[0].operation = 5;
    gpu.protocols[1] = quick;
    expect_time("few", planned(&m, &gpu, 2, 8).communication, 1 + 1 / 0.5 + 1); // and the small all-reduce
    numbers = 100;
    expect_time("many", planned(&m, &gpu, 2, 8).communication, 5 + 100 + 1);
    m.sharding = PLAN_SHARD_OPTIMIZER; // and back
    expect_time("many to owners", planned(&m, &gpu, 2, 8).communication, 2 * (5 + 100) + 1);
}

// If operations take no time, only the division of the optimizer matters; if they take all the time, only their sum
// does.
static void test_limits(void) {
    PlanGpu gpu = *plan_gpu("h100");
    gpu.link = gpu.network = HUGE_VAL;
    gpu.protocols[0] = SIMPLE.protocols[0];
    const PlanStep alone = planned(&GPT2_124M, &gpu, 1, 8);
    const double adamw = 34.0 * (EMBEDDINGS + 12.0 * BLOCK) / gpu.memory_bandwidth;
    for (int gpus = 2; gpus <= 1024; gpus *= 4) {
        PlanStep s = planned(&GPT2_124M, &gpu, gpus, 8);
        EXPECT(equal(s.efficiency, 1) && s.exposed < 1e-12, "%d GPUs: efficiency %g", gpus, s.efficiency);
        const PlanModel m = sharded(GPT2_124M, PLAN_SHARD_GRADIENTS, 1);
        s = planned(&m, &gpu, gpus, 8);
        EXPECT(equal(s.step, alone.step - adamw * (1 - 1.0 / gpus)), "%d GPUs: %g s", gpus, s.step);
    }
    // Everything except the forward pass, the head and the last block's backward is hidden behind the operations.
    gpu = *plan_gpu("h100");
    gpu.link = 1e9;
    gpu.protocols[1].share = 0;
    const double rate = gpu.flops * gpu.utilisation / 65536;
    const double before = (12 * GPT2_124M.block_flop + 3 * GPT2_124M.head_flop + 2 * GPT2_124M.block_flop) /
                          rate;
    const double latency = gpu.protocols[0].operation + 14 * gpu.protocols[0].ring[0];
    const double bytes = 4 * (EMBEDDINGS + 12.0 * BLOCK);
    const double operations = 14 * latency + 2 * 7.0 / 8 * (bytes + (double)GPT2_124M.totals) / 1e9;
    const PlanStep slow = planned(&GPT2_124M, &gpu, 8, 8);
    EXPECT(equal(slow.communication, operations), "%.9g s, not %.9g", slow.communication, operations);
    EXPECT(equal(slow.step, before + operations + adamw), "%.9g s, not %.9g", slow.step,
           before + operations + adamw);
}

// With more micro-steps, communication is a smaller part of the step, unless each micro-step communicates.
static void test_micro_steps(void) {
    PlanGpu gpu = *plan_gpu("h100");
    gpu.link = 2e9;
    for (int sharding = PLAN_SHARD_NONE; sharding <= PLAN_SHARD_GRADIENTS; sharding++) {
        const PlanModel one = sharded(GPT2_124M, (PlanSharding)sharding, 1);
        const PlanModel many = sharded(GPT2_124M, (PlanSharding)sharding, 16);
        const PlanStep a = planned(&one, &gpu, 8, 8), b = planned(&many, &gpu, 8, 8);
        if (sharding == PLAN_SHARD_GRADIENTS) {
            EXPECT(b.exposed > 8 * a.exposed, "%g s exposed, then %g", a.exposed, b.exposed);
            EXPECT(b.bytes_sent > 8 * a.bytes_sent, "%g bytes, then %g", a.bytes_sent, b.bytes_sent);
        } else {
            EXPECT(b.efficiency > 2 * a.efficiency, "efficiency %g, then %g", a.efficiency, b.efficiency);
            EXPECT(b.exposed <= a.exposed * (1 + 1e-9), "%g s exposed, then %g", a.exposed, b.exposed);
            EXPECT(b.bytes_sent == a.bytes_sent, "%g bytes, then %g", a.bytes_sent, b.bytes_sent);
        }
    }
}

static void test_bytes(void) {
    const double numbers = EMBEDDINGS + 12.0 * BLOCK, totals = 2 * 7.0 / 8 * (double)GPT2_124M.totals;
    const PlanGpu *gpu = plan_gpu("a100-80");
    const PlanModel optimizer = sharded(GPT2_124M, PLAN_SHARD_OPTIMIZER, 5);
    const PlanModel gradients = sharded(GPT2_124M, PLAN_SHARD_GRADIENTS, 5);
    expect_time("bytes, none", planned(&GPT2_124M, gpu, 8, 8).bytes_sent, 2 * 7.0 / 8 * 4 * numbers + totals);
    expect_time("bytes, optimizer", planned(&optimizer, gpu, 8, 8).bytes_sent,
                7.0 / 8 * (4 + 2) * numbers + totals);
    expect_time("bytes, gradients", planned(&gradients, gpu, 8, 8).bytes_sent,
                7.0 / 8 * (5 * 4 + 2) * numbers + totals);
}

// On every GPU: no time is lost or counted twice, more GPUs never hurt throughput, faster links never hurt.
static void test_consistent(const PlanGpu *gpu, PlanSharding sharding) {
    const PlanModel m = sharded(GPT2_124M, sharding, 2);
    double step = 0, of_adamw = 0;
    for (int gpus = 1; gpus <= 1024; gpus *= 2) {
        const PlanStep s = planned(&m, gpu, gpus, 8);
        EXPECT(equal(s.step, s.compute + s.exposed), "%s, %d GPUs: %g s is not %g + %g", gpu->name, gpus,
               s.step, s.compute, s.exposed);
        EXPECT(s.exposed >= -1e-12 && s.exposed <= s.communication + 1e-12,
               "%s, %d GPUs: of %g s %g are exposed", gpu->name, gpus, s.communication, s.exposed);
        // The work of AdamW that each GPU is spared is not a loss.
        const double adamw = gpus == 1 ? of_adamw : planned(&m, gpu, 1, 8).compute - s.compute;
        EXPECT(s.step + adamw >= step - 1e-12, "%s: %d GPUs take %g s, half as many %g", gpu->name, gpus,
               s.step, step);
        step = s.step + adamw;
        PlanGpu faster = *gpu;
        faster.link *= 2, faster.network *= 2;
        const PlanStep f = planned(&m, &faster, gpus, 8);
        EXPECT(f.step <= s.step + 1e-12, "%s, %d GPUs: %g s, with faster links %g", gpu->name, gpus, s.step,
               f.step);
        if (gpus > 1 && f.exposed > 0)
            EXPECT(f.exposed < s.exposed, "%g s exposed, then %g", s.exposed, f.exposed);
    }
}

static void test_table(void) {
    EXPECT(plan_gpu("h100") != NULL && plan_gpu("h100")->memory == 80e9, "no h100");
    EXPECT(plan_gpu("h1000") == NULL && plan_gpu("") == NULL, "found what is not there");
    for (size_t i = 0; i < PLAN_NUM_GPUS; i++) {
        const PlanGpu *g = &PLAN_GPUS[i];
        EXPECT(plan_gpu(g->name) == g, "%s is there twice", g->name);
        EXPECT(g->flops > 1e14 && g->flops < 1e16 && g->utilisation > 0.1 && g->utilisation < 0.8 &&
                   g->memory > 1e10 && g->memory < 1e12 && g->memory_bandwidth > 5e11 &&
                   g->memory_bandwidth < 1e13 && g->link < g->memory_bandwidth && g->network < g->link &&
                   g->network > 1e9 && g->slowdown < 0.5,
               "%s: a figure is out of place", g->name);
        for (int p = 0; p < 2; p++)
            EXPECT(g->protocols[p].operation < 1e-4 && g->protocols[p].ring[0] < g->protocols[p].ring[1] &&
                       g->protocols[p].share > 0 && g->protocols[p].share <= 1,
                   "%s: a figure of protocol %d is out of place", g->name, p);
        for (int s = PLAN_SHARD_NONE; s <= PLAN_SHARD_GRADIENTS; s++) test_consistent(g, (PlanSharding)s);
    }
}

int main(void) {
    test_alone();
    test_overlap();
    test_recompute();
    test_shard_optimizer();
    test_shard_gradients();
    test_bandwidth();
    test_latency();
    test_protocols();
    test_limits();
    test_micro_steps();
    test_bytes();
    test_table();
    return test_finish();
}
