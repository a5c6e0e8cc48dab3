// --plan: the memory that a model takes on each kind of machine, and what many GPUs would make of it (comm/plan.h).
#ifndef PLAN_CUH
#define PLAN_CUH

#include "comm/plan.h"
#include "gpt.cuh"
#include "settings.cuh"

typedef struct {
    const char *name;
    int on_gpu;
    size_t floatX_size;
} PlannedBuild;

// --plan: what the model would take, here and elsewhere.
static void print_plan(const GPT *m, const Settings *o) {
    static const char *const purposes[] = {"weights",           "master weights",    "gradients",
                                           "optimizer moments", "block activations", "logits",
                                           "other activations", "workspace"};
    static const PlannedBuild builds[] = {{"CPU", 0, 4}, {"GPU bf16", 1, 2}, {"GPU fp32", 1, 4}};
    enum { NUM_BUILDS = sizeof(builds) / sizeof(builds[0]) };
    static const double gigabytes[] = {16, 24, 40, 80, 141};
    size_t of[NUM_BUILDS][NUM_MEMORIES], total[NUM_BUILDS];
    printf("%.2f M parameters, --batch %zu --sequence-length %zu --recompute %s; MB\n%-28s",
           (double)m->parameters.count * 1e-6, m->acts.B, m->acts.T,
           option_choice_name(OPTIONS, NUM_OPTIONS, o, "recompute"), "");
    for (int b = 0; b < NUM_BUILDS; b++) {
        total[b] = gpt_memory(m, m->acts.B, builds[b].on_gpu, builds[b].floatX_size, of[b]);
        printf(" %12s", builds[b].name);
    }
    printf("\n%-28s", "attention");
    for (int b = 0; b < NUM_BUILDS; b++) printf(" %12s", ATTENTIONS[m->run.attention]);
    for (int memory = 0; memory < NUM_MEMORIES; memory++) {
        printf("\n%-28s", purposes[memory]);
        for (int b = 0; b < NUM_BUILDS; b++) printf(" %12.1f", (double)of[b][memory] * 1e-6);
    }
    printf("\n%-28s", "total");
    for (int b = 0; b < NUM_BUILDS; b++) printf(" %12.1f", (double)total[b] * 1e-6);
    printf("\n%-28s", "host copy while saving"); // saving.cuh: weights and moments in fp32
    for (int b = 0; b < NUM_BUILDS; b++)
        printf(" %12.1f", (double)optimizer_saved_bytes(&m->parameters) * 1e-6);
    for (size_t i = 0; i < sizeof(gigabytes) / sizeof(gigabytes[0]); i++) {
        printf("\nlargest --batch in %3.0f GB    ", gigabytes[i]);
        for (int b = 0; b < NUM_BUILDS; b++) {
            size_t total_here = (size_t)(gigabytes[i] * 1e9);
            size_t left = builds[b].on_gpu ? device_memory_left(total_here, total_here) : total_here;
            printf(" %12zu", largest_batch(m, left, builds[b].on_gpu, builds[b].floatX_size));
        }
    }
    printf("\n");
}

// The model as comm/plan.h plays it: weights in bf16, `sizes` of its buckets.
static PlanModel plan_model(const GPT *m, const Settings *o, size_t *sizes) {
    const double block = layer_flop(m, 0, m->acts.T, NUM_LAPS);
    const double again = layer_flop(m, 0, m->acts.T, LAP_MLP_DOWN); // all but the last product
    for (size_t b = 0; b <= m->dims.L; b++) sizes[b] = m->shards.buckets[b].size;
    PlanModel plan = {sizes,
                      m->dims.L + 1,
                      m->acts.B * m->acts.T,
                      (size_t)o->accumulate,
                      block,
                      layer_flop(m, -1, m->acts.T, NUM_LAPS),
                      m->acts.recompute == RECOMPUTE_BLOCK ? again / block : 0,
                      2,
                      sizeof(double) * (m->shards.sharding == SHARD_NONE
                                            ? (size_t)TOTAL_SQUARES
                                            : step_totals(m->parameters.num_chunks)),
                      (PlanSharding)m->shards.sharding};
    return plan;
}

// --plan: 1 to 1024 GPUs, each with this batch.
static void print_plan_of_many(const GPT *m, const Settings *o) {
    PlanGpu gpu = *plan_gpu(option_choice_name(OPTIONS, NUM_OPTIONS, o, "plan-gpu"));
    size_t *sizes = (size_t *)xcalloc(m->dims.L + 1, sizeof(size_t));
    const PlanModel plan = plan_model(m, o, sizes);
    const double tokens = (double)(plan.tokens * plan.micro_steps);
    if (o->plan_link > 0) gpu.link = o->plan_link * 1e9;
    if (o->plan_network > 0) gpu.network = o->plan_network * 1e9;
    if (o->plan_utilisation > 0) gpu.utilisation = o->plan_utilisation;
    printf("\nThese figures are modelled, not measured (comm/plan.h): %s at %.0f %% of %.0f TFLOP/s in bf16, "
           "%" PRId64
           " per node with %.0f GB/s between them, %.1f GB/s of\nnetwork each, %.0f tokens per step on each, "
           "--shard %s\n"
           "%6s %10s %10s %10s %12s %10s %14s %11s\n",
           gpu.name, 100 * gpu.utilisation, gpu.flops * 1e-12, o->plan_node, gpu.link * 1e-9,
           gpu.network * 1e-9, tokens, option_choice_name(OPTIONS, NUM_OPTIONS, o, "shard"), "GPUs",
           "GB each", "GB sent", "step ms", "sending ms", "hidden %", "tokens/s", "efficiency");
    for (int gpus = 1; gpus <= 1024; gpus *= 2) {
        GPT one;
        Shape shape = {
            m->acts.B,          m->acts.T, m->acts.recompute, m->acts.logits_bytes, m->run.attention,
            m->shards.sharding, gpus,      m->shards.comm,    m->run.sharing};
        PlanStep step;
        gpt_describe(&one, &m->config, &shape);
        plan_step(&plan, &gpu, gpus, (int)o->plan_node, &step);
        const double memory = (double)gpt_memory(&one, m->acts.B, 1, 2, NULL),
                     hidden = step.communication - step.exposed;
        printf("%6d %9.2f%s %10.3f %10.1f %12.1f %10.0f %14.0f %11.3f\n", gpus, memory * 1e-9,
               memory > gpu.memory ? "!" : " ", step.bytes_sent * 1e-9, step.step * 1e3,
               step.communication * 1e3, step.communication > 0 ? 100 * hidden / step.communication : 0,
               tokens * gpus / step.step, step.efficiency);
        gpt_free(&one);
    }
    printf("!: more than the %.0f GB of this GPU\n", gpu.memory * 1e-9);
    free(sizes);
}

#endif
