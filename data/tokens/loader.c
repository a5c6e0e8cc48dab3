// The loader: see loader.h for the definition and the order of sequences.
//
// The reader thread fills a ring of batches, each (batch, T + 1) tokens; loader_next takes the oldest. `filled` and
// `taken` count batches since the start and are guarded by the mutex. A batch is accessed only by the thread whose
// turn these counts say it is, so reading and copying need no lock.
#include "loader.h"
#include "layers/base/threads.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { RING = 4, ROUNDS = 8 };

typedef struct {
    int32_t *tokens; // (batch, T + 1)
    int failed;
    Error error;
} Batch;

struct Loader {
    const ShardSet *set;
    LoaderConfig config;
    uint64_t *first_sequence; // (number of shards + 1): number of sequences in the shards before this one
    uint64_t num_sequences;
    Batch ring[RING];
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    uint64_t filled, taken; // numbers of batches
    int stop;
};

// ---- order ------------------------------------------------------------------------------------------------

// The finalizer of SplitMix64 (Steele, Lea & Flood 2014).
static uint64_t mix(uint64_t x) {
    x ^= x >> 30;
    x *= 0xBF58476D1CE4E5B9u;
    x ^= x >> 27;
    x *= 0x94D049BB133111EBu;
    return x ^ x >> 31;
}

uint64_t loader_permute(uint64_t index, uint64_t count, uint64_t seed, uint64_t epoch) {
    int half_bits = 1;
    while (half_bits < 32 && (uint64_t)1 << 2 * half_bits < count) half_bits++;
    const uint64_t mask = ((uint64_t)1 << half_bits) - 1, golden = 0x9E3779B97F4A7C15u;
    const uint64_t key = mix(mix(seed + golden) ^ (epoch + 1) * golden);
    do {
        uint64_t left = index >> half_bits, right = index & mask;
        for (int round = 0; round < ROUNDS; round++) {
            uint64_t scrambled = mix(right + mix(key + (uint64_t)round * golden)) >> 32;
            uint64_t next = left ^ (scrambled & mask);
            left = right;
            right = next;
        }
        index = left << half_bits | right;
    } while (index >= count);
    return index;
}

void loader_locate(const Loader *loader, uint64_t position, uint64_t *shard, uint64_t *offset) {
    uint64_t count = loader->num_sequences, epoch = position / count, sequence = position % count;
    if (loader->config.shuffle) sequence = loader_permute(sequence, count, loader->config.seed, epoch);
    // The last shard with first_sequence <= sequence is in [low, high).
    size_t low = 0, high = loader->set->count;
    while (high - low > 1) {
        size_t middle = low + (high - low) / 2;
        if (loader->first_sequence[middle] <= sequence)
            low = middle;
        else
            high = middle;
    }
    *shard = low;
    *offset = (sequence - loader->first_sequence[low]) * (uint64_t)loader->config.T;
}

// ---- the reader thread ------------------------------------------------------------------------------------

// Sleeps. Returns 1 if the loader is closed in the meantime.
static int pause_reading(void *argument, int seconds) {
    Loader *loader = (Loader *)argument;
    const struct timespec until = thread_deadline(seconds);
    int result = 0;
    pthread_mutex_lock(&loader->mutex);
    while (!loader->stop && result != ETIMEDOUT)
        result = pthread_cond_timedwait(&loader->changed, &loader->mutex, &until);
    int stop = loader->stop;
    pthread_mutex_unlock(&loader->mutex);
    return stop;
}

static int read_sequence(Loader *loader, uint64_t position, int32_t *tokens, Error *error) {
    uint64_t index, offset;
    loader_locate(loader, position, &index, &offset);
    const Shard *shard = &loader->set->shards[index];
    const size_t count = (size_t)loader->config.T + 1;
    if (shard_read_with_retries(shard, offset, count, tokens, pause_reading, loader, error) != 0) return -1;
    const uint32_t vocab_size = (uint32_t)loader->config.vocab_size;
    uint32_t largest = 0; // negative values become large
    for (size_t i = 0; i < count; i++)
        largest = (uint32_t)tokens[i] > largest ? (uint32_t)tokens[i] : largest;
    if (largest < vocab_size) return 0;
    size_t bad = 0;
    while ((uint32_t)tokens[bad] < vocab_size) bad++;
    return fail(error, "token %llu of '%s' is %u, expected 0 to %u for a vocabulary of %u",
                (unsigned long long)(offset + bad), shard->path, (uint32_t)tokens[bad], vocab_size - 1,
                vocab_size);
}

static void fill_batch(Loader *loader, uint64_t number, Batch *batch) {
    const uint64_t rows = (uint64_t)loader->config.batch, row_tokens = (uint64_t)loader->config.T + 1;
    const uint64_t round = loader->config.repeat ? 0 : number * (uint64_t)loader->config.processes;
    const uint64_t first = loader->config.position + (round + (uint64_t)loader->config.rank) * rows;
    batch->failed = 0;
    for (uint64_t row = 0; row < rows && !batch->failed; row++)
        batch->failed = read_sequence(loader, first + row, batch->tokens + row * row_tokens, &batch->error) !=
                        0;
}

static void *reader_thread(void *argument) {
    Loader *loader = (Loader *)argument;
    for (uint64_t number = 0;; number++) {
        pthread_mutex_lock(&loader->mutex);
        while (!loader->stop && loader->filled - loader->taken == RING)
            pthread_cond_wait(&loader->changed, &loader->mutex);
        int stop = loader->stop;
        pthread_mutex_unlock(&loader->mutex);
        if (stop) return NULL;

        Batch *batch = &loader->ring[number % RING];
        fill_batch(loader, number, batch);
        int failed = batch->failed; // read before `filled` counts it: then the batch belongs to the consumer

        pthread_mutex_lock(&loader->mutex);
        loader->filled++;
        pthread_cond_signal(&loader->changed);
        pthread_mutex_unlock(&loader->mutex);
        if (failed) return NULL; // nothing is returned after an error
    }
}

// ---- interface --------------------------------------------------------------------------------------------

static int check_config(const LoaderConfig *config, Error *error) {
    if (config->batch < 1 || config->batch > INT32_MAX)
        return fail(error, "a batch cannot have %lld sequences: expected at least 1",
                    (long long)config->batch);
    if (config->T < 1 || config->T >= INT32_MAX)
        return fail(error, "a sequence cannot have %lld tokens: expected at least 1", (long long)config->T);
    if (config->batch > ((int64_t)1 << 40) / (config->T + 1))
        return fail(error, "a batch of %lld sequences of %lld tokens is too large", (long long)config->batch,
                    (long long)config->T);
    if (config->vocab_size < 1)
        return fail(error, "a vocabulary cannot have %d tokens: expected at least 1", config->vocab_size);
    return 0;
}

static int fail_no_sequences(const ShardSet *set, const LoaderConfig *config, Error *error) {
    if (set->count == 0) return fail(error, "there are no token shards to read");
    const Shard *shortest = &set->shards[0], *longest = &set->shards[0];
    for (size_t i = 1; i < set->count; i++) {
        if (set->shards[i].num_tokens < shortest->num_tokens) shortest = &set->shards[i];
        if (set->shards[i].num_tokens > longest->num_tokens) longest = &set->shards[i];
    }
    return fail(
        error,
        "no shard is long enough for sequences of %lld tokens: one shard must have at least %lld, but the "
        "shortest, '%s', has %llu and the longest, '%s', has %llu; use a shorter --sequence-length",
        (long long)config->T, (long long)config->T + 1, shortest->path,
        (unsigned long long)shortest->num_tokens, longest->path, (unsigned long long)longest->num_tokens);
}

static void free_loader(Loader *loader) {
    for (int i = 0; i < RING; i++) free(loader->ring[i].tokens);
    pthread_cond_destroy(&loader->changed);
    pthread_mutex_destroy(&loader->mutex);
    free(loader->first_sequence);
    free(loader);
}

Loader *loader_open(const ShardSet *set, const LoaderConfig *config, Error *error) {
    if (check_config(config, error) != 0) return NULL;
    Loader *loader = (Loader *)xcalloc(1, sizeof *loader);
    pthread_mutex_init(&loader->mutex, NULL);
    thread_condition(&loader->changed);
    loader->set = set;
    loader->config = *config;
    if (loader->config.processes == 0) loader->config.processes = 1;
    loader->first_sequence = (uint64_t *)xcalloc(set->count + 1, sizeof(uint64_t));
    for (size_t i = 0; i < set->count; i++) {
        uint64_t sequences = (set->shards[i].num_tokens - 1) / (uint64_t)config->T;
        loader->first_sequence[i + 1] = loader->first_sequence[i] + sequences;
    }
    loader->num_sequences = loader->first_sequence[set->count];
    if (loader->num_sequences == 0) {
        fail_no_sequences(set, config, error);
        free_loader(loader);
        return NULL;
    }
    size_t batch_bytes = (size_t)config->batch * ((size_t)config->T + 1) * sizeof(int32_t);
    for (int i = 0; i < RING; i++) loader->ring[i].tokens = (int32_t *)xmalloc(batch_bytes);
    if (thread_start(&loader->thread, reader_thread, loader) != 0) {
        fail(error, "cannot start the thread that reads token shards");
        free_loader(loader);
        return NULL;
    }
    return loader;
}

int loader_next(Loader *loader, int32_t *inputs, int32_t *targets, Error *error) {
    pthread_mutex_lock(&loader->mutex);
    while (loader->filled == loader->taken) pthread_cond_wait(&loader->changed, &loader->mutex);
    pthread_mutex_unlock(&loader->mutex);

    const Batch *batch = &loader->ring[loader->taken % RING]; // only this thread changes `taken`
    if (batch->failed) {
        *error = batch->error;
        return -1;
    }
    const size_t T = (size_t)loader->config.T;
    for (size_t row = 0; row < (size_t)loader->config.batch; row++) {
        const int32_t *tokens = batch->tokens + row * (T + 1);
        memcpy(inputs + row * T, tokens, T * sizeof(int32_t));
        memcpy(targets + row * T, tokens + 1, T * sizeof(int32_t));
    }
    pthread_mutex_lock(&loader->mutex);
    loader->taken++;
    pthread_cond_signal(&loader->changed);
    pthread_mutex_unlock(&loader->mutex);
    return 0;
}

uint64_t loader_position(const Loader *loader) {
    return loader->config.position + (loader->config.repeat ? 0
                                                            : loader->taken * (uint64_t)loader->config.batch *
                                                                  (uint64_t)loader->config.processes);
}

uint64_t loader_sequences_per_epoch(const Loader *loader) {
    return loader->num_sequences;
}

void loader_close(Loader *loader) {
    if (loader == NULL) return;
    pthread_mutex_lock(&loader->mutex);
    loader->stop = 1;
    pthread_cond_signal(&loader->changed);
    pthread_mutex_unlock(&loader->mutex);
    pthread_join(loader->thread, NULL);
    free_loader(loader);
}
