// Validation: reads the validation data, in windows of one sequence or as whole documents, has the model score each
// batch, and adds up the scores of all processes.
#ifndef DATA_TOKENS_VALIDATION_CUH
#define DATA_TOKENS_VALIDATION_CUH

#include "layers/softmax_cross_entropy.cuh"
#include "pipeline.cuh"

typedef struct {
    double nats;    // sum of the losses of all targets
    double bytes;   // size of the text that the targets represent
    int64_t tokens; // number of targets that are scored
    int64_t cut;    // number of documents that were truncated to a sequence
    int64_t batches;
} Score;

// The model that is validated.
typedef struct {
    void *trainer;
    // Adds the loss of a batch to a sum on the device, which the `first` batch sets.
    void (*score_batch)(void *trainer, Batch *batch, int first);
    int (*is_stopping)(const void *trainer);
    size_t B, T;
    int64_t vocab_size;
} Scorer;

// Returns the bytes of text that the targets represent; the end-of-text token represents none.
static double count_target_bytes(const Tokenizer *tokenizer, const int32_t *targets, size_t count) {
    double bytes = 0;
    for (size_t i = 0; i < count && tokenizer != NULL; i++) {
        size_t size = 0;
        if (targets[i] == IGNORE_TARGET || targets[i] == tokenizer_end_of_text(tokenizer)) continue;
        if (tokenizer_bytes(tokenizer, targets[i], &size) != NULL) bytes += (double)size;
    }
    return bytes;
}

// Scores a batch and adds the result to `score`, except for the loss, which is summed on the device.
static void score_batch(const Scorer *scorer, Batch *batch, const Tokenizer *tokenizer, Score *score) {
    const size_t N = scorer->B * scorer->T;
    scorer->score_batch(scorer->trainer, batch, score->batches == 0);
    score->bytes += count_target_bytes(tokenizer, batch->targets, N);
    for (size_t i = 0; i < N; i++) score->tokens += batch->targets[i] != IGNORE_TARGET;
    score->batches++;
}

// Scores the first validation batches in the order of the shards, which processes share in turn. Returns 0, or -1 with
// a sentence.
static int score_windows(Pipeline *p, const Settings *o, const Processes *processes,
                         const Tokenizer *tokenizer, const Scorer *scorer, Score *score, Error *error) {
    const size_t T = scorer->T;
    const int64_t B = (int64_t)scorer->B;
    const int rank = processes->launch.rank, size = processes->launch.size;
    LoaderConfig config = {B, (int64_t)T, (int32_t)scorer->vocab_size, 0, 0, 0, 0, rank, size};
    Loader *loader = loader_open(&p->validation, &config, error);
    if (loader == NULL) return -1;
    const int64_t sequences = (int64_t)loader_sequences_per_epoch(loader);
    int result = 0;
    for (int64_t i = 0; i < o->validation_batches && result == 0 && !scorer->is_stopping(scorer->trainer);
         i++) {
        const int64_t first = (i * size + rank) * B;
        if (first >= sequences) break;
        Batch *batch = pipeline_next_batch(p);
        result = loader_next(loader, batch->tokens, batch->targets, error);
        for (int64_t row = sequences - first; row < B; row++) // rows of the next epoch
            for (size_t c = 0; c < T; c++) batch->targets[(size_t)row * T + c] = IGNORE_TARGET;
        if (result == 0) score_batch(scorer, batch, tokenizer, score);
    }
    loader_close(loader);
    return result;
}

// Scores the first validation documents, each from its start and including its end. All processes read all batches, and
// score them in turn. Returns 0, or -1 with a sentence.
static int score_documents(Pipeline *p, const Settings *o, const Processes *processes,
                           const Tokenizer *tokenizer, const Scorer *scorer, Score *score, Error *error) {
    const int rank = processes->launch.rank, size = processes->launch.size;
    DocumentReader reader;
    int rows = 1;
    documents_open(&reader, &p->validation, tokenizer_end_of_text(tokenizer));
    for (int64_t i = 0; rows > 0 && i < o->validation_batches * size && !scorer->is_stopping(scorer->trainer);
         i++) {
        Batch *batch = pipeline_next_batch(p);
        int64_t cut = 0;
        rows = documents_batch(&reader, (int32_t)scorer->vocab_size, scorer->B, scorer->T, batch->tokens,
                               batch->targets, &cut, error);
        if (rows <= 0 || i % size != rank) continue;
        score->cut += cut;
        score_batch(scorer, batch, tokenizer, score);
    }
    documents_close(&reader);
    return rows < 0 ? -1 : 0;
}

// Returns the sum of all processes' scores.
static Score add_scores(const Processes *processes, const Score *mine) {
    const int size = processes->launch.size;
    Score sum = {0, 0, 0, 0, 0}, *all = (Score *)xcalloc((size_t)size, sizeof(Score));
    comm_exchange(processes->comm, mine, sizeof(Score), all);
    for (int r = 0; r < size; r++) {
        sum.nats += all[r].nats;
        sum.bytes += all[r].bytes;
        sum.tokens += all[r].tokens;
        sum.cut += all[r].cut;
        sum.batches += all[r].batches;
    }
    free(all);
    return sum;
}

#endif
