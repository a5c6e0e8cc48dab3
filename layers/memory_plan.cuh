// The memory that a model takes on the CPU and on GPUs, and the largest batch that fits: --plan, and the error message
// if memory does not suffice.
#ifndef LAYERS_MEMORY_PLAN_CUH
#define LAYERS_MEMORY_PLAN_CUH

#include <omp.h>
#include "arena.h"
#include "layers/base/error.h"
#include "layers/base/threads.h"
#include "optimizer.cuh"

// A model whose memory is planned.
typedef struct {
    const void *model;
    // Returns the bytes that --batch B takes in a build for the CPU or a GPU. Sets `by_purpose`, unless NULL, to its
    // parts.
    size_t (*bytes)(const void *model, size_t B, int on_gpu, size_t floatX_size,
                    size_t by_purpose[NUM_MEMORIES]);
    const Parameters *parameters;
    const Shards *shards;
    size_t B, T, HS; // B = 0: text generation
} MemoryPlan;

// Returns an upper bound of the bytes of host memory that training takes in addition to the model's: the copy of the
// state that is saved, batches (in loader and pipeline), sums of attention's backward pass, stacks and buffers of
// threads. Returns 0 on a GPU, where host memory does not limit the batch.
static inline size_t additional_host_memory(const MemoryPlan *m, size_t B, int on_gpu) {
    enum { BATCHES = 8, THREADS = 4, FIXED = 24 << 20 };
    const size_t saved = optimizer_saved_bytes(m->parameters);
    const size_t divided = m->shards->sharding == SHARD_NONE ? 1 : (size_t)m->shards->num_processes;
    const size_t sums = 2 * m->T * round_up(m->HS, 64) * sizeof(float) * (size_t)omp_get_max_threads();
    if (on_gpu) return 0;
    if (B == 0) return FIXED;
    return saved / divided + BATCHES * B * (m->T + 1) * sizeof(int32_t) + sums + THREADS * THREAD_STACK +
           FIXED;
}

// Returns all bytes that --batch B takes in a build for the CPU or a GPU.
static inline size_t memory_taken(const MemoryPlan *m, size_t B, int on_gpu, size_t floatX_size) {
    return m->bytes(m->model, B, on_gpu, floatX_size, NULL) + additional_host_memory(m, B, on_gpu);
}

// Returns the largest batch size that fits into `bytes`; 0: none.
static inline size_t largest_batch(const MemoryPlan *m, size_t bytes, int on_gpu, size_t floatX_size) {
    size_t fits = 0, too_much = 1;
    while (too_much < (1 << 20) && memory_taken(m, too_much, on_gpu, floatX_size) <= bytes) {
        fits = too_much;
        too_much *= 2;
    }
    while (too_much - fits > 1) {
        size_t middle = fits + (too_much - fits) / 2;
        if (memory_taken(m, middle, on_gpu, floatX_size) <= bytes)
            fits = middle;
        else
            too_much = middle;
    }
    return fits;
}

// Returns -1 with a sentence that proposes what fits into the available bytes. `asked`: bytes that were requested.
static inline int refuse_memory(const MemoryPlan *m, size_t asked, size_t available, Error *error) {
    const double takes = (double)asked * 1e-9, has = (double)available * 1e-9;
    if (m->B == 0)
        return fail(error, "generating text takes %.4g GB, but only %.4g GB are available", takes, has);
    size_t fits = largest_batch(m, available, DEVICE_IS_GPU, sizeof(floatX));
    if (fits > 0)
        return fail(
            error,
            "--batch %zu --sequence-length %zu takes %.4g GB, but only %.4g GB are available: the largest "
            "batch that fits is --batch %zu (--accumulate makes up for a smaller one)",
            m->B, m->T, takes, has, fits);
    return fail(error,
                "--batch %zu --sequence-length %zu takes %.4g GB, but only %.4g GB are available, and not "
                "even --batch 1 fits: try "
                "--recompute block, --logits-memory, a shorter sequence or a smaller model",
                m->B, m->T, takes, has);
}

typedef struct {
    const char *name;
    int on_gpu;
    size_t floatX_size;
} PlannedBuild;

// Prints the memory that the model takes on each kind of machine. `recompute`, `attention`: names of these choices.
static inline void print_memory_plan(const MemoryPlan *m, const char *recompute, const char *attention) {
    static const char *const purposes[] = {"weights",           "master weights",    "gradients",
                                           "optimizer moments", "block activations", "logits",
                                           "other activations", "workspace"};
    static const PlannedBuild builds[] = {{"CPU", 0, 4}, {"GPU bf16", 1, 2}, {"GPU fp32", 1, 4}};
    enum { NUM_BUILDS = sizeof(builds) / sizeof(builds[0]) };
    static const double gigabytes[] = {16, 24, 40, 80, 141};
    size_t by_purpose[NUM_BUILDS][NUM_MEMORIES], total[NUM_BUILDS];
    printf("%.2f M parameters, --batch %zu --sequence-length %zu --recompute %s; MB\n%-28s",
           (double)m->parameters->count * 1e-6, m->B, m->T, recompute, "");
    for (int b = 0; b < NUM_BUILDS; b++) {
        total[b] = m->bytes(m->model, m->B, builds[b].on_gpu, builds[b].floatX_size, by_purpose[b]);
        printf(" %12s", builds[b].name);
    }
    printf("\n%-28s", "attention");
    for (int b = 0; b < NUM_BUILDS; b++) printf(" %12s", attention);
    for (int memory = 0; memory < NUM_MEMORIES; memory++) {
        printf("\n%-28s", purposes[memory]);
        for (int b = 0; b < NUM_BUILDS; b++) printf(" %12.1f", (double)by_purpose[b][memory] * 1e-6);
    }
    printf("\n%-28s", "total");
    for (int b = 0; b < NUM_BUILDS; b++) printf(" %12.1f", (double)total[b] * 1e-6);
    printf("\n%-28s", "host copy while saving"); // saving.cuh: weights and moments in fp32
    for (int b = 0; b < NUM_BUILDS; b++)
        printf(" %12.1f", (double)optimizer_saved_bytes(m->parameters) * 1e-6);
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
