// The path from token shards to batches on the device, for training data, in the order of the run, and validation data.
#ifndef DATA_TOKENS_PIPELINE_CUH
#define DATA_TOKENS_PIPELINE_CUH

#include "data/options/settings.cuh"
#include "data/tokenizer/tokenizer.h"
#include "layers/device.h"
#include "layers/comm/processes.cuh"
#include "loader.h"
#include "shards.h"

// A batch on its way to the device.
typedef struct {
    int32_t *tokens, *targets; // (B, T)
    Event copied;
} Batch;

typedef struct {
    ShardSet train, validation;
    Loader *loader;   // of the training data
    Batch batches[2]; // one may still be on its way to the device while the next is filled
    size_t num_batches;
} Pipeline;

// ---- batches ----------------------------------------------------------------------------------------------

// Allocates batches of `size` tokens.
static void pipeline_open_batches(Pipeline *p, size_t size) {
    for (int i = 0; i < 2; i++) {
        p->batches[i].tokens = (int32_t *)host_alloc(size * sizeof(int32_t));
        p->batches[i].targets = (int32_t *)host_alloc(size * sizeof(int32_t));
        p->batches[i].copied = event_create();
    }
}

// Returns the next batch to fill, once its previous copy to the device is done.
static Batch *pipeline_next_batch(Pipeline *p) {
    Batch *batch = &p->batches[p->num_batches++ % 2];
    event_wait(batch->copied);
    return batch;
}

// Queues the copy of a batch of `size` tokens to `tokens` and `targets` on the device.
static void batch_send(Batch *batch, int32_t *tokens, int32_t *targets, size_t size, Stream stream) {
    copy_to_device(tokens, batch->tokens, size * sizeof(int32_t), stream);
    copy_to_device(targets, batch->targets, size * sizeof(int32_t), stream);
    event_record(&batch->copied, stream);
}

static void pipeline_close(Pipeline *p) {
    if (p->loader != NULL) loader_close(p->loader);
    shards_close(&p->train);
    shards_close(&p->validation);
    if (p->batches[0].tokens == NULL) return; // never opened
    for (int i = 0; i < 2; i++) {
        host_free(p->batches[i].tokens), host_free(p->batches[i].targets);
        event_destroy(p->batches[i].copied);
    }
}

// ---- shards -----------------------------------------------------------------------------------------------

// Returns the number of shards that are too short for a sequence and the token after it, and so give no sequences.
// `tokens`: set to the number of tokens in them.
static size_t count_short_shards(const ShardSet *set, int64_t T, uint64_t *tokens) {
    size_t count = 0;
    *tokens = 0;
    for (size_t i = 0; i < set->count; i++) {
        if (set->shards[i].num_tokens > (uint64_t)T) continue;
        *tokens += set->shards[i].num_tokens;
        count++;
    }
    return count;
}

static void warn_of_short_shards(const ShardSet *set, int64_t T) {
    uint64_t tokens;
    const size_t count = count_short_shards(set, T, &tokens);
    size_t first = 0;
    if (count == 0) return;
    while (set->shards[first].num_tokens > (uint64_t)T) first++;
    warn("skipping %zu of %zu shards for having too few tokens for a sequence (--sequence-length %" PRId64
         "); the first is '%s'",
         count, set->count, T, set->shards[first].path);
}

// Opens the loader of the training data. `position`: sequences consumed so far. `sequences`: those of an epoch when the
// last checkpoint was written (0: unknown); on exit those of now. Returns 0, or -1 with a sentence.
static int pipeline_open_loader(Pipeline *p, const Settings *o, int64_t vocab_size,
                                const Processes *processes, int64_t position, int64_t *sequences,
                                Error *error) {
    const Launch *launch = &processes->launch;
    LoaderConfig config = {o->batch,          o->sequence_length, (int32_t)vocab_size,
                           (uint64_t)o->seed, (uint64_t)position, !o->overfit,
                           o->overfit,        launch->rank,       launch->size};
    if ((p->loader = loader_open(&p->train, &config, error)) == NULL) return -1;
    const int64_t now = (int64_t)loader_sequences_per_epoch(p->loader), before = *sequences;
    if (before > 0 && before != now && is_main(processes))
        warn("'%s' has %" PRId64 " sequences of %" PRId64 " tokens, but had %" PRId64
             " when the checkpoint was written: from now on they are read in a different order",
             o->train, now, o->sequence_length, before);
    *sequences = now;
    return 0;
}

// Checks before training that there is a document to validate on. Returns 0, or -1 with a sentence.
static int check_documents(Pipeline *p, const Settings *o, const Tokenizer *tokenizer, Error *error) {
    if (tokenizer == NULL)
        return fail(error,
                    "--validate-documents needs --tokenizer: there is none in the folder of the weights");
    if (tokenizer_end_of_text(tokenizer) < 0)
        return fail(
            error,
            "--validate-documents needs a token that separates documents, but the tokenizer%s%s has no "
            "%s: name its own token with --end-of-text",
            o->tokenizer ? " " : "", o->tokenizer ? o->tokenizer : "", END_OF_TEXT);
    DocumentReader reader;
    int32_t token;
    size_t count = 0;
    int found = 1;
    documents_open(&reader, &p->validation, tokenizer_end_of_text(tokenizer));
    while (found == 1 && count == 0) found = documents_next(&reader, &token, 1, &count, error);
    documents_close(&reader);
    if (found != 0) return found == 1 ? 0 : -1;
    return fail(
        error,
        "'%s' has no documents to validate on: the token %s, which precedes each, does not occur in it",
        o->validation, tokenizer_end_of_text_content(tokenizer));
}

// Checks before training that the validation shards are long enough. Returns 0, or -1 with a sentence.
static int check_windows(Pipeline *p, const Settings *o, int64_t vocab_size, Error *error) {
    LoaderConfig config = {1, o->sequence_length, (int32_t)vocab_size, 0, 0, 0, 0, 0, 1};
    Loader *loader = loader_open(&p->validation, &config, error);
    if (loader != NULL) loader_close(loader);
    return loader != NULL ? 0 : -1;
}

// Opens the shards and the loader. Returns 0, or -1 with a sentence.
static int pipeline_open(Pipeline *p, const Settings *o, int64_t vocab_size, const Tokenizer *tokenizer,
                         const Processes *processes, int64_t position, int64_t *sequences, Error *error) {
    if (shards_open(&p->train, o->train, error) != 0) return -1;
    if (o->validation != NULL && shards_open(&p->validation, o->validation, error) != 0) return -1;
    if (p->validation.count > 0 && (o->validate_documents ? check_documents(p, o, tokenizer, error)
                                                          : check_windows(p, o, vocab_size, error)) != 0)
        return -1;
    if (is_main(processes)) warn_of_short_shards(&p->train, o->sequence_length);
    if (is_main(processes) && !o->validate_documents)
        warn_of_short_shards(&p->validation, o->sequence_length);
    return pipeline_open_loader(p, o, vocab_size, processes, position, sequences, error);
}

#endif
