// Training batches from token shards, prepared ahead of time by a separate thread.
//
// Sequences: a shard of n tokens holds floor((n - 1) / T) sequences. Sequence i of a shard consists of the T + 1
// tokens [i*T, i*T + T]: inputs are the first T, targets the last T. The rest at the end of a shard, and shards
// shorter than T + 1, contribute nothing. The sequences of all shards, in order, are numbered 0 .. n - 1.
//
// Order: position p of the training run (p = 0, 1, ...) belongs to epoch p / n and is sequence permutation(seed,
// epoch)(p mod n): a pure function, independent of the batch size, without state other than p. So one integer
// suffices to resume a run, and a batch may span epochs. The permutation is a Feistel network keyed by seed and epoch
// on the smallest domain of 4^k >= n elements; results outside 0 .. n - 1 pass through it again until they fall
// inside (cycle walking: Black & Rogaway, "Ciphers with Arbitrary Finite Domains", 2002).
#ifndef DATA_TOKENS_LOADER_H
#define DATA_TOKENS_LOADER_H

#include <stdint.h>
#include "layers/base/files.h"
#include "shards.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct Loader Loader;

typedef struct {
    int64_t batch, T;
    int32_t vocab_size; // every token must be 0 .. vocab_size - 1
    uint64_t seed;
    uint64_t position; // sequences consumed before this run; 0 for a new run
    int shuffle;       // 0: in the order of the shards
    int repeat;        // 1: returns the first batch again and again
    // Batches are distributed over `processes` loaders (0 means 1); the first batch of this one is batch `rank`.
    int rank, processes;
} LoaderConfig;

// The set must stay open until loader_close. Returns NULL on error, for example if no shard has T + 1 tokens.
Loader *loader_open(const ShardSet *set, const LoaderConfig *config, Error *error);
// Copies the next batch to `inputs` and `targets`, (batch, T) each. A batch that cannot be read, or with a token
// outside the vocabulary, is an error; batches before it are not affected, and all later calls return the same error.
int loader_next(Loader *loader, int32_t *inputs, int32_t *targets, Error *error);
// Returns the number of sequences that all loaders together have returned since the start of training, including
// config.position, assuming that each has returned as many batches as this one; constant with `repeat`.
uint64_t loader_position(const Loader *loader);
uint64_t loader_sequences_per_epoch(const Loader *loader);
// Finds where sequence number `position` of the run begins: index of the shard, and token offset in it.
void loader_locate(const Loader *loader, uint64_t position, uint64_t *shard, uint64_t *offset);
void loader_close(Loader *loader);

// Returns element `index` of the permutation of 0 .. count - 1 in which an epoch is read.
uint64_t loader_permute(uint64_t index, uint64_t count, uint64_t seed, uint64_t epoch);

#ifdef __cplusplus
}
#endif
#endif
