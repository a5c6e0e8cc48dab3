// Training batches out of token shards, prepared ahead of time by a thread of its own.
//
// Sequences. A shard of n tokens holds floor((n - 1) / T) sequences; sequence i of a shard is tokens [i*T,
// i*T + T], T + 1 of them: inputs are the first T, targets the last T. What is left over at the end of a
// shard, and shards shorter than T + 1, contribute nothing. All sequences of all shards, in order, are
// numbered 0 .. n - 1.
//
// Order. Sequence number p of the training run (p = 0, 1, ...) belongs to epoch p / n and is the sequence
// permutation(seed, epoch)(p mod n): a pure function, the same whatever the batch size, with no state but p.
// So a run resumes with one integer, and a batch may straddle epochs. The permutation is a Feistel network
// keyed by seed and epoch on the smallest domain of 4^k >= n numbers; results outside 0 .. n - 1 are sent
// through it again until they fall inside (cycle walking: Black & Rogaway, "Ciphers with Arbitrary Finite
// Domains", 2002).
#ifndef DATA_LOADER_H
#define DATA_LOADER_H

#include <stdint.h>
#include "files.h"
#include "shards.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct Loader Loader;

typedef struct {
    int64_t batch, T;
    int32_t vocab_size; // every token must be 0 .. vocab_size - 1
    uint64_t seed;
    uint64_t position; // sequences consumed before this run; 0 to start afresh
    int shuffle;       // 0: in the order of the shards
    int repeat;        // 1: the first batch again and again
    int rank, processes; // batches are dealt out to so many loaders, this one's first is number `rank`; 0 is 1
} LoaderConfig;

// The set must stay open until loader_close. NULL on error, for instance when no shard has T + 1 tokens.
Loader *loader_open(const ShardSet *set, const LoaderConfig *config, Error *error);
// inputs and targets are (batch, T). A batch with a token outside the vocabulary, or that cannot be read, is
// an error; the batches before it are not affected, and every call after it returns the same error.
int loader_next(Loader *loader, int32_t *inputs, int32_t *targets, Error *error);
// Sequences handed out since the start of training by all loaders, config.position included, when each has handed out
// as many batches as this one; with repeat it stays there.
uint64_t loader_position(const Loader *loader);
uint64_t loader_sequences_per_epoch(const Loader *loader);
// Where sequence number `position` of the run begins: index of the shard, and token in it.
void loader_locate(const Loader *loader, uint64_t position, uint64_t *shard, uint64_t *offset);
void loader_close(Loader *loader);

// The permutation of 0 .. count - 1 that an epoch is read in.
uint64_t loader_permute(uint64_t index, uint64_t count, uint64_t seed, uint64_t epoch);

#ifdef __cplusplus
}
#endif
#endif
