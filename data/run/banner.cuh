// What is printed when training begins: model, memory, data, processes, machine.
#ifndef DATA_RUN_BANNER_CUH
#define DATA_RUN_BANNER_CUH

#include "data/tokens/pipeline.cuh"
#include "layers/arena.h"

// Returns the ending of a noun after a count: "" after 1, otherwise "s".
static const char *plural(int64_t count) {
    return count == 1 ? "" : "s";
}

static void print_model(const GPTConfig *c, size_t num_parameters) {
    printf("model       %" PRId64 " layer%s, %" PRId64 " head%s, %" PRId64 " channels, %" PRId64
           " positions, vocabulary %" PRId64 ": %.2f M parameters\n",
           c->num_layers, plural(c->num_layers), c->num_heads, plural(c->num_heads), c->channels,
           c->max_sequence_length, c->vocab_size, (double)num_parameters * 1e-6);
}

// `tokens`: number of tokens in a batch.
static void print_memory(const Arena *arena, size_t tokens) {
    const size_t *size = arena->by_purpose;
    const double activations = (double)(size[MEMORY_BLOCKS] + size[MEMORY_LOGITS] + size[MEMORY_OTHER]);
    printf("memory      %.1f MB: weights %.1f, gradients %.1f, optimizer %.1f, activations %.1f (%.1f kB per "
           "token)\n",
           (double)arena->used * 1e-6, (double)(size[MEMORY_WEIGHTS] + size[MEMORY_MASTER]) * 1e-6,
           (double)size[MEMORY_GRADIENTS] * 1e-6, (double)size[MEMORY_MOMENTS] * 1e-6, activations * 1e-6,
           activations * 1e-3 / (double)tokens);
}

static void print_data(const Pipeline *p, const Settings *o) {
    uint64_t short_tokens;
    const size_t short_shards = count_short_shards(&p->train, o->sequence_length, &short_tokens);
    const size_t shards = p->train.count - short_shards;
    printf("data        %.3f M tokens in %zu shard%s, %" PRId64 " tokens per step, %.2f epochs in this run\n",
           (double)(p->train.num_tokens - short_tokens) * 1e-6, shards, plural((int64_t)shards),
           o->global_batch * o->sequence_length,
           (double)o->steps * (double)o->global_batch / (double)loader_sequences_per_epoch(p->loader));
}

static void print_processes(const Processes *processes, const Settings *o) {
    const int size = processes->launch.size;
    if (size == 1) return;
    printf("processes   %d over %s, each step %d x %" PRId64 " micro-step%s of %" PRId64
           " sequence%s, sharded: %s\n",
           size, comm_transport(processes->comm), size, o->accumulate, plural(o->accumulate), o->batch,
           plural(o->batch), option_choice_name(OPTIONS, NUM_OPTIONS, o, "shard"));
}

// `peak`: GFLOP/s of one process. `attention`: the name of its variant.
static void print_machine(const Settings *o, double peak, const char *attention) {
    char device[320];
    device_describe(device, sizeof(device));
    printf("machine     %s, %s matmul inputs, measured peak %.0f GFLOP/s, attention %s\n", device,
           PRECISIONS[precision_of(o)], peak, attention);
    if (dropout_threshold(o->dropout) < DROPOUT_NONE)
        printf("dropout     %.4f (requested: %g)\n", 1 - dropout_threshold(o->dropout) / 256.0, o->dropout);
    fflush(stdout);
}

#endif
