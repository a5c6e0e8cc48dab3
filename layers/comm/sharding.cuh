// Sharding: which process owns which part of the parameters (partition.h), and how gradients and weights are exchanged
// between owners and all processes (ZeRO: Rajbhandari et al., SC'20).
//
// Tensors are sent in buckets: one for those outside the blocks, then one for each block. With SHARD_NONE every process
// has everything, and all get the sums of all gradients. With SHARD_OPTIMIZER each owner gets the sums of its
// gradients, updates its weights and sends them to all. With SHARD_GRADIENTS the gradients of a block are sent as soon
// as backward is done with it, in every micro-step, so that two memories, which blocks use in turn, suffice.
#ifndef LAYERS_COMM_SHARDING_CUH
#define LAYERS_COMM_SHARDING_CUH

#include "comm.h"
#include "layers/arena.h"
#include "layers/parameters.cuh"
#include "partition.h"
#include "sum.cuh"

// What is divided among the processes instead of being in all of them.
typedef enum { SHARD_NONE, SHARD_OPTIMIZER, SHARD_GRADIENTS } Sharding;

// Tensors that are sent together and are consecutive in the flat memories.
typedef struct {
    size_t offset, size;              // elements
    size_t first_tensor, num_tensors; // in Parameters.tensors
    size_t first_piece, num_pieces;   // in Shards.owned
    float *gradients;                 // (size)
    Ticket reduced, gathered;         // last operation on its gradients; last operation on its weights
} Bucket;

typedef struct {
    Sharding sharding;
    Comm *comm;
    int rank, num_processes;
    PartitionChunk *chunks; // (Parameters.num_chunks)
    PartitionPiece *owned;  // (num_pieces), bucket after bucket
    CommPiece *pieces;      // (num_pieces), filled in for one operation at a time
    size_t num_pieces;
    size_t most_owned; // largest number of elements that a process owns
    Bucket *buckets;   // (num_buckets): the tensors outside the blocks, then those of each block
    size_t num_buckets;
    Ticket slots[3]; // last reduction out of each memory for gradients (gradient_slot)
} Shards;

// Cuts the tensors into chunks. Each matrix begins a unit, which includes the vectors that follow it.
static inline void sharding_list_chunks(Shards *s, const Parameters *parameters) {
    PartitionChunk *next = s->chunks;
    int32_t unit = -1, bucket = -1;
    for (size_t t = 0; t < parameters->num_tensors; t++) {
        const Parameter *p = &parameters->tensors[t];
        int begins_bucket = t == 0 || p->layer != p[-1].layer;
        unit += begins_bucket || p->rows > 0;
        bucket += begins_bucket;
        if (begins_bucket) s->buckets[bucket].first_tensor = t;
        s->buckets[bucket].num_tensors++;
        for (size_t done = 0; done < p->size; done += ADAMW_CHUNK, next++) {
            const size_t size = round_up(min_size(p->size - done, ADAMW_CHUNK), PARAMETER_ALIGNMENT);
            PartitionChunk chunk = {p->offset + done, size, unit, bucket, 0, 0};
            *next = chunk;
        }
    }
}

// Divides the parameters among the processes. `num_layers`: number of blocks of the model.
static inline void sharding_open(Shards *s, const Parameters *parameters, Sharding sharding, Comm *comm,
                                 int num_processes, size_t num_layers) {
    s->sharding = sharding;
    s->comm = comm;
    s->rank = comm_rank(comm);
    s->num_processes = num_processes;
    s->num_buckets = num_layers + 1;
    s->chunks = (PartitionChunk *)xcalloc(parameters->num_chunks, sizeof(PartitionChunk));
    s->buckets = (Bucket *)xcalloc(s->num_buckets, sizeof(Bucket));
    sharding_list_chunks(s, parameters);
    s->most_owned = partition_make(s->chunks, parameters->num_chunks, num_processes);
    s->num_pieces = partition_pieces(s->chunks, parameters->num_chunks, NULL);
    s->owned = (PartitionPiece *)xcalloc(s->num_pieces, sizeof(PartitionPiece));
    s->pieces = (CommPiece *)xcalloc(s->num_pieces, sizeof(CommPiece));
    partition_pieces(s->chunks, parameters->num_chunks, s->owned);
    for (size_t i = s->num_pieces; i-- > 0;) {
        Bucket *b = &s->buckets[s->owned[i].bucket];
        b->offset = s->owned[i].offset;
        b->first_piece = i;
        b->size += s->owned[i].size;
        b->num_pieces++;
    }
}

static inline void sharding_close(Shards *s) {
    free(s->chunks), free(s->owned), free(s->pieces), free(s->buckets);
}

// ---- memory -----------------------------------------------------------------------------------------------

// Returns the number of elements of a memory that is divided unless the sharding is SHARD_NONE.
static inline size_t sharding_size(const Shards *s, const Parameters *parameters) {
    return s->sharding == SHARD_NONE ? parameters->num_elements : s->most_owned;
}

// Returns the offset of a chunk that this process owns, in a memory that is divided or not.
static inline size_t sharding_offset(const Shards *s, const PartitionChunk *chunk, int divided) {
    return divided && s->sharding != SHARD_NONE ? chunk->own : chunk->offset;
}

// Returns 1 for a memory of which each process has only the part that it owns.
static inline int is_divided(const Shards *s, const Parameters *parameters, const float *memory) {
    return s->sharding != SHARD_NONE && memory != (const float *)parameters->weights;
}

// Assigns memory to gradients: for all tensors; or, if gradients are divided, for the tensors outside the blocks, for
// two blocks as large as the largest, which all blocks use in turn, and for the sums that this process owns.
static inline void sharding_place_gradients(Shards *s, Parameters *parameters, Arena *arena) {
    const int divided = s->sharding == SHARD_GRADIENTS;
    size_t block_size = 0, size = parameters->num_elements;
    for (size_t b = 1; b < s->num_buckets; b++) block_size = max_size(block_size, s->buckets[b].size);
    if (divided) size = s->buckets[0].size + min_size(s->num_buckets - 1, 2) * block_size;
    parameters->gradients = (float *)arena_take(arena, MEMORY_GRADIENTS, size, sizeof(float));
    parameters->gradient_sums = parameters->gradients;
    if (divided)
        parameters->gradient_sums = (float *)arena_take(arena, MEMORY_GRADIENTS, s->most_owned,
                                                        sizeof(float));
    if (arena->base == NULL) return;
    for (size_t b = 0; b < s->num_buckets; b++) {
        const size_t slot_offset = b % 2 * (s->num_buckets > 2) * block_size;
        s->buckets[b].gradients = parameters->gradients + (divided && b > 0 ? s->buckets[0].size + slot_offset
                                                                            : s->buckets[b].offset);
    }
}

// Returns the gradient of tensor t.
static inline float *sharding_gradient(const Shards *s, const Parameters *parameters, size_t t) {
    const Bucket *bucket = &s->buckets[s->chunks[parameters->tensors[t].first_chunk].bucket];
    return bucket->gradients + (parameters->tensors[t].offset - bucket->offset);
}

// ---- weights ----------------------------------------------------------------------------------------------

// Returns the pieces of bucket b, in `data`, which every process has for the bucket, and in `own` of their owners.
// `element`: bytes per element.
static inline const CommPiece *sharding_pieces(Shards *s, size_t b, void *data, void *own, size_t element,
                                               int divided) {
    const Bucket *bucket = &s->buckets[b];
    for (size_t i = 0; i < bucket->num_pieces; i++) {
        const PartitionPiece *p = &s->owned[bucket->first_piece + i];
        char *at = (char *)data + (p->offset - bucket->offset) * element;
        CommPiece piece = {at, divided ? (char *)own + p->own * element : at, p->size, p->owner};
        s->pieces[i] = piece;
    }
    return s->pieces;
}

// Sends each owner's weights to all processes, bucket by bucket, because forward waits for one bucket at a time.
static inline void sharding_gather_weights(Shards *s, const Parameters *parameters, Stream stream) {
    for (size_t b = 0; b < s->num_buckets; b++) {
        Bucket *bucket = &s->buckets[b];
        const CommPiece *pieces = sharding_pieces(s, b, parameters->weights + bucket->offset, NULL,
                                                  sizeof(floatX), 0);
        bucket->gathered = comm_all_gather(s->comm, pieces, bucket->num_pieces, sizeof(floatX), stream);
    }
}

// Waits until the weights of all buckets have arrived.
static inline void sharding_wait_for_weights(const Shards *s, Stream stream) {
    comm_wait(s->comm, s->buckets[s->num_buckets - 1].gathered, stream); // sent last
}

// Copies the master weights of process 0 to all processes, unless they are divided.
static inline void sharding_broadcast_master(Shards *s, const Parameters *parameters, Stream stream) {
    if (is_divided(s, parameters, parameters->master)) return;
    const size_t bytes = parameters->num_elements * sizeof(float);
    comm_wait(s->comm, comm_broadcast(s->comm, parameters->master, bytes, 0, stream), stream);
}

// Computes the weights, in all processes, from the master weights.
static inline void sharding_round_weights(Shards *s, const Parameters *parameters, int stochastic,
                                          uint64_t seed, const StepOutcome *outcome, Stream stream) {
    if (s->sharding == SHARD_NONE) {
        round_weights(parameters->weights, parameters->master, 0, parameters->num_elements, stochastic, seed,
                      outcome, stream);
        return;
    }
    for (size_t i = 0; i < s->num_pieces && sizeof(floatX) != sizeof(float); i++) {
        const PartitionPiece *p = &s->owned[i];
        if (p->owner == s->rank)
            round_weights(parameters->weights + p->offset, parameters->master + p->own, p->offset, p->size,
                          stochastic, seed, outcome, stream);
    }
    sharding_gather_weights(s, parameters, stream);
}

// Returns the master weights or a state of the optimizer (num_elements) in memory that the host can write: the memory
// itself or a copy of it, or zeros if it is divided. state_return ends the use of it.
static inline float *state_borrow(const Shards *s, const Parameters *parameters, float *memory,
                                  Stream stream) {
    sharding_wait_for_weights(s, stream);
    if (!is_divided(s, parameters, memory))
        return (float *)host_borrow(memory, parameters->num_elements * sizeof(float));
    return (float *)xcalloc(parameters->num_elements, sizeof(float));
}

// Copies what the host has written to the memory; if that is divided, only the part that this process owns.
static inline void state_return(const Shards *s, const Parameters *parameters, float *host, float *memory,
                                Stream stream) {
    if (!is_divided(s, parameters, memory)) {
        host_return(host, memory, parameters->num_elements * sizeof(float), 1);
        return;
    }
    for (size_t i = 0; i < s->num_pieces; i++) {
        const PartitionPiece *p = &s->owned[i];
        if (p->owner == s->rank)
            copy_to_device(memory + p->own, host + p->offset, p->size * sizeof(float), stream);
    }
    stream_wait(stream);
    free(host);
}

// ---- gradients --------------------------------------------------------------------------------------------

// Returns which of the memories for gradients bucket b uses with SHARD_GRADIENTS.
static inline size_t gradient_slot(size_t b) {
    return b == 0 ? 0 : 1 + b % 2;
}

// Zeroes those gradients of bucket b to which backward adds. Called before the first backward pass of each sum over
// micro-steps computes the bucket.
static inline void sharding_begin_bucket(Shards *s, const Parameters *parameters, size_t b, Stream stream) {
    const Bucket *bucket = &s->buckets[b];
    if (s->sharding == SHARD_GRADIENTS) comm_wait(s->comm, s->slots[gradient_slot(b)], stream);
    for (size_t i = 0; i < bucket->num_tensors; i++) {
        const size_t t = bucket->first_tensor + i;
        if (parameters->tensors[t].gradient == GRADIENT_ADDED)
            device_zero(sharding_gradient(s, parameters, t), parameters->tensors[t].size * sizeof(float),
                        stream);
    }
}

// Sends the gradients of bucket b to the other processes, after backward has computed them. `first`: there are no sums
// of them yet.
static inline void sharding_end_bucket(Shards *s, const Parameters *parameters, size_t b, int first,
                                       Stream stream) {
    Bucket *bucket = &s->buckets[b];
    const int divided = s->sharding == SHARD_GRADIENTS;
    if (s->sharding == SHARD_NONE) {
        bucket->reduced = comm_all_reduce(s->comm, bucket->gradients, bucket->size, COMM_FLOAT, stream);
        return;
    }
    const CommPiece *pieces = sharding_pieces(s, b, bucket->gradients, parameters->gradient_sums,
                                              sizeof(float), divided);
    for (size_t i = 0; i < bucket->num_pieces && divided && !first; i++)
        if (pieces[i].owner == s->rank) // the reduction includes the sums so far
            accumulate((float *)pieces[i].data, (const float *)pieces[i].own, pieces[i].count, stream);
    bucket->reduced = comm_reduce_scatter(s->comm, pieces, bucket->num_pieces, stream);
    s->slots[gradient_slot(b)] = bucket->reduced;
}

#endif
