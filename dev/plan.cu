// Predicts a training step on 1 to 1,024 GPUs: time, memory, bytes sent. All is modelled, not measured (cluster.h).
//     make plan PLAN='--model gpt2-124M --vocab-size 50257 --sequence-length 1024 --batch 64'
//     plan OPTION...        the trainer's options for the model, the batch and --shard, and those that --help lists
#define main train_gpt_main
#include "../train_gpt.cu"
#undef main

#include "cluster.h"

typedef struct {
    Settings trainer;
    int gpu;
    int64_t gpus_per_node;
    double link, network, utilisation;
} PlanSettings;

#define FIELD(member) offsetof(PlanSettings, member)
// clang-format off
static const Option PLAN_OPTIONS[] = {
    {"Cluster", "gpu", OPTION_CHOICE, FIELD(gpu), "h100", 0, 0, "a100-40|a100-80|h100|h200|b200|l40s|rtx4090|rtx5090", "GPU that the prediction is for"},
    {NULL, "gpus-per-node", OPTION_INTEGER, FIELD(gpus_per_node), "8", 1, 1024, NULL, "GPUs in a node"},
    {NULL, "link", OPTION_REAL, FIELD(link), "0", 0, 1e6, NULL, "GB/s between GPUs of a node in one direction; 0: usual for that GPU"},
    {NULL, "network", OPTION_REAL, FIELD(network), "0", 0, 1e6, NULL, "GB/s of network per GPU; 0: usual for that GPU"},
    {NULL, "utilisation", OPTION_REAL, FIELD(utilisation), "0", 0, 1, NULL, "fraction of its peak that a GPU reaches; 0: as published by others"},
};
// clang-format on
enum {
    NUM_PLAN_OPTIONS = sizeof(PLAN_OPTIONS) / sizeof(PLAN_OPTIONS[0]),
    NUM_TABLE = NUM_OPTIONS + NUM_PLAN_OPTIONS
};
static Option table[NUM_TABLE]; // the trainer's options, then those above

// Returns the model as cluster.h simulates it, with weights in bf16. `sizes` (L + 1): set to the sizes of its buckets.
static PlanModel plan_model(const GPT *m, int64_t accumulate, size_t *sizes) {
    const WorkSizes work = work_sizes(m);
    const double block = layer_flop(&m->parameters, &work, 0, NUM_LAPS);
    const double recomputed = layer_flop(&m->parameters, &work, 0, LAP_MLP_DOWN); // all but the last product
    for (size_t b = 0; b <= m->dims.L; b++) sizes[b] = m->shards.buckets[b].size;
    PlanModel plan = {sizes,
                      m->dims.L + 1,
                      m->acts.B * m->acts.T,
                      (size_t)accumulate,
                      block,
                      layer_flop(&m->parameters, &work, -1, NUM_LAPS),
                      m->acts.recompute == RECOMPUTE_BLOCK ? recomputed / block : 0,
                      2,
                      sizeof(double) * optimizer_shared_totals(&m->shards, &m->parameters),
                      (PlanSharding)m->shards.sharding};
    return plan;
}

// Prints the prediction for 1 to 1,024 GPUs, each with this batch.
static void print_cluster_plan(const GPT *m, const PlanSettings *o) {
    PlanGpu gpu = *plan_gpu(option_choice_name(table, NUM_TABLE, o, "gpu"));
    size_t *sizes = (size_t *)xcalloc(m->dims.L + 1, sizeof(size_t));
    const PlanModel plan = plan_model(m, o->trainer.accumulate, sizes);
    const double tokens = (double)(plan.tokens * plan.micro_steps);
    if (o->link > 0) gpu.link = o->link * 1e9;
    if (o->network > 0) gpu.network = o->network * 1e9;
    if (o->utilisation > 0) gpu.utilisation = o->utilisation;
    printf("These figures are modelled, not measured (dev/cluster.h): %s at %.0f %% of %.0f TFLOP/s in bf16, "
           "%" PRId64
           " per node with %.0f GB/s between them, %.1f GB/s of\nnetwork each, %.0f tokens per step on each, "
           "--shard %s\n"
           "%6s %10s %10s %10s %12s %10s %14s %11s\n",
           gpu.name, 100 * gpu.utilisation, gpu.flops * 1e-12, o->gpus_per_node, gpu.link * 1e-9,
           gpu.network * 1e-9, tokens, option_choice_name(table, NUM_TABLE, o, "shard"), "GPUs", "GB each",
           "GB sent", "step ms", "sending ms", "hidden %", "tokens/s", "efficiency");
    for (int gpus = 1; gpus <= 1024; gpus *= 2) {
        GPT one;
        ModelSetup setup = {
            m->acts.B,          m->acts.T, m->acts.recompute, m->acts.logits_bytes, m->run.attention,
            m->shards.sharding, gpus,      m->shards.comm,    m->run.sharing};
        PlanStep step;
        gpt_describe(&one, &m->config, &setup);
        plan_step(&plan, &gpu, gpus, (int)o->gpus_per_node, &step);
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

static void print_plan_help(void) {
    printf("Predicts a step of training on 1 to 1,024 GPUs. It takes the trainer's options of the model, the "
           "batch and\n"
           "--shard (train_gpt --help), and these:\n");
    options_help(PLAN_OPTIONS, NUM_PLAN_OPTIONS, stdout);
}

int main(int argc, char **argv) {
    static PlanSettings settings;
    static Trainer trainer;
    Error error;
    open_standard_descriptors();
    memcpy(table, OPTIONS, sizeof(OPTIONS));
    memcpy(table + NUM_OPTIONS, PLAN_OPTIONS, sizeof(PLAN_OPTIONS));
    options_defaults(table, NUM_TABLE, &settings);
    const int parsed = options_parse(table, NUM_TABLE, &settings, argc, argv, NULL, 0, NULL, &error);
    if (parsed < 0) die_of(&error);
    if (parsed > 0) {
        if (parsed == OPTIONS_VERSION)
            printf("plan %s\n", VERSION);
        else
            print_plan_help();
        close_output();
        return 0;
    }
    const Settings *o = &settings.trainer;
    settings.trainer.plan = 1;
    if (o->resume || o->sample != NULL || o->prompt_ids != NULL)
        die("--resume, --sample and --prompt-ids are options of train_gpt: give plan those of a model and "
            "its batch");
    if (check_options(o, &error) != 0) die_of(&error);
    trainer.options = settings.trainer;
    trainer.processes.launch.size = trainer.processes.launch.local_size = 1;
    trainer.processes.comm = comm_alone();
    if (describe_model(&trainer, trainer.options.init_from, &error) != 0) die_of(&error);
    print_cluster_plan(&trainer.model, &settings);
    gpt_free(&trainer.model);
    comm_close(trainer.processes.comm);
    close_output();
    return 0;
}
