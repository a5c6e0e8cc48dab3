// The optimizer: the states that it keeps for every parameter, the chunks into which its work is cut, and its step:
// gradient norm, clipping, update. adamw.cuh updates the elements; a tensor's group is in its row (parameters.cuh).
#ifndef LAYERS_OPTIMIZER_CUH
#define LAYERS_OPTIMIZER_CUH

#include "adamw.cuh"
#include "layers/comm/sharding.cuh"
#include "parameters.cuh"

// The states that are kept for every parameter, in fp32. Checkpoints store them by these names; --plan counts them.
static const struct {
    const char *name;
    size_t elements; // per parameter
} OPTIMIZER_STATES[] = {{"moment1", 1}, {"moment2", 1}};
enum { STATE_MOMENT1, STATE_MOMENT2, NUM_OPTIMIZER_STATES };

typedef struct {
    float *states[NUM_OPTIMIZER_STATES]; // (num_elements), or the part that is owned
    AdamWChunk *chunks;                  // (num_chunks) chunks that this process updates
    size_t num_chunks;
    double *totals; // sums of a step or of a validation
    StepOutcome *outcome;
} Optimizer;

// Assigns memory to the optimizer.
static inline void optimizer_place(Optimizer *o, const Shards *shards, const Parameters *parameters,
                                   Arena *arena) {
    const size_t size = sharding_size(shards, parameters), num_chunks = parameters->num_chunks;
    for (int i = 0; i < NUM_OPTIMIZER_STATES; i++)
        o->states[i] = (float *)arena_take(arena, MEMORY_MOMENTS, size * OPTIMIZER_STATES[i].elements,
                                           sizeof(float));
    o->chunks = (AdamWChunk *)arena_take(arena, MEMORY_WORKSPACE, num_chunks, sizeof(AdamWChunk));
    o->totals = (double *)arena_take(arena, MEMORY_WORKSPACE, step_totals(num_chunks), sizeof(double));
    o->outcome = (StepOutcome *)arena_take(arena, MEMORY_WORKSPACE, 1, sizeof(StepOutcome));
}

// Sets everything but the states to zero, as a run begins.
static inline void optimizer_clear(Optimizer *o, const Parameters *parameters, Stream stream) {
    device_zero(o->outcome, sizeof(StepOutcome), stream);
    device_zero(o->totals, step_totals(parameters->num_chunks) * sizeof(double), stream);
}

// Returns the bytes of the master weights and the states in a checkpoint.
static inline size_t optimizer_saved_bytes(const Parameters *parameters) {
    size_t elements = 1;
    for (int i = 0; i < NUM_OPTIMIZER_STATES; i++) elements += OPTIMIZER_STATES[i].elements;
    return elements * sizeof(float) * parameters->num_elements;
}

// Lists the chunks that this process updates, each with its group's weight decay.
static inline void optimizer_list_chunks(Optimizer *o, const Shards *shards, const Parameters *parameters,
                                         double weight_decay, Stream stream) {
    AdamWChunk *chunks = (AdamWChunk *)host_alloc(parameters->num_chunks * sizeof(AdamWChunk)),
               *next = chunks;
    const PartitionChunk *c = shards->chunks;
    for (size_t t = 0; t < parameters->num_tensors; t++) {
        const Parameter *p = &parameters->tensors[t];
        for (size_t done = 0; done < p->size; done += ADAMW_CHUNK, c++) {
            if (shards->sharding != SHARD_NONE && c->owner != shards->rank) continue;
            next->number = (uint64_t)(c - shards->chunks);
            next->weight = c->offset;
            next->master = sharding_offset(shards, c, sizeof(floatX) != sizeof(float));
            next->gradient = sharding_offset(shards, c, parameters->gradient_sums != parameters->gradients);
            next->moment = sharding_offset(shards, c, 1);
            next->size = (uint32_t)min_size(p->size - done, ADAMW_CHUNK);
            next->decay = p->group != GROUP_VECTOR ? (float)weight_decay : 0.0f;
            next++;
        }
    }
    o->num_chunks = (size_t)(next - chunks);
    copy_to_device(o->chunks, chunks, o->num_chunks * sizeof(AdamWChunk), stream);
    stream_wait(stream);
    host_free(chunks);
}

// Writes the sums of squares of this process's chunks to the step's totals, and zeros for chunks of other processes.
static inline void optimizer_square_sums(Optimizer *o, const Shards *shards, const Parameters *parameters,
                                         Stream stream) {
    if (shards->sharding != SHARD_NONE)
        device_zero(o->totals + TOTAL_SQUARES, parameters->num_chunks * sizeof(double), stream);
    square_sums(o->totals, parameters->gradient_sums, o->chunks, o->num_chunks, stream);
}

// Returns how many of a step's totals the processes add up: without sharding, each computes all squares itself.
static inline size_t optimizer_shared_totals(const Shards *shards, const Parameters *parameters) {
    return shards->sharding != SHARD_NONE ? step_totals(parameters->num_chunks) : (size_t)TOTAL_SQUARES;
}

// Decides about the step (o->outcome) by the totals of all processes, and updates what this process owns.
static inline void optimizer_update(Optimizer *o, const Parameters *parameters, const AdamW *adamw,
                                    Stream stream) {
    step_outcome(o->outcome, o->totals, parameters->num_chunks, adamw, stream);
    adamw_update(parameters->weights, parameters->master, o->states[STATE_MOMENT1], o->states[STATE_MOMENT2],
                 parameters->gradient_sums, o->chunks, o->num_chunks, adamw, o->outcome, stream);
}

#endif
