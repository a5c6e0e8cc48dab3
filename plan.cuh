// --plan: the memory that a model takes on each kind of machine.
#ifndef PLAN_CUH
#define PLAN_CUH

#include "gpt.cuh"
#include "data/options/settings.cuh"

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

#endif
