// Text generation: a model continues a prompt, token by token, with a cache of keys and values.
#ifndef DATA_SAMPLING_GENERATE_CUH
#define DATA_SAMPLING_GENERATE_CUH

#include <math.h>
#include <signal.h>
#include "data/options/settings.cuh"
#include "layers/base/progress.h"
#include "layers/common.h"
#include "layers/philox.h"
#include "sampling.h"
#include "data/tokenizer/tokenizer.h"

// A model that generates text.
typedef struct {
    // Computes the logits (vocab_size) of the token after `count` new tokens, which begin at position `past`. Tokens
    // and logits are in pinned host memory.
    void (*logits)(void *model, const int32_t *tokens, size_t count, size_t past, floatX *logits);
    void *model;
    size_t vocab_size; // number of tokens that the model knows
    size_t capacity;   // number of positions that the model has
} TextModel;

// How tokens are sampled.
typedef struct {
    int64_t max_tokens;
    uint64_t seed;
    double temperature;
    size_t top_k; // 0: all
    double top_p;
} Sampling;

// The buffers of text generation, in host memory.
typedef struct {
    const TextModel *model;
    int32_t *tokens;    // (capacity)
    floatX *logits;     // (vocab_size), as they come from the device
    float *logits_fp32; // (vocab_size)
} Generator;

static void generator_open(Generator *g, const TextModel *model) {
    g->model = model;
    g->tokens = (int32_t *)host_alloc(model->capacity * sizeof(int32_t));
    g->logits = (floatX *)host_alloc(model->vocab_size * sizeof(floatX));
    g->logits_fp32 = (float *)xmalloc(model->vocab_size * sizeof(float));
}

static void generator_close(Generator *g) {
    host_free(g->tokens), host_free(g->logits), free(g->logits_fp32);
}

// Returns the logits (vocab_size) of the token after `count` new tokens, which begin at position `past`.
static const float *generator_next(Generator *g, const int32_t *tokens, size_t count, size_t past) {
    memcpy(g->tokens, tokens, count * sizeof(int32_t));
    g->model->logits(g->model->model, g->tokens, count, past, g->logits);
    for (size_t v = 0; v < g->model->vocab_size; v++) g->logits_fp32[v] = (float)g->logits[v];
    return g->logits_fp32;
}

static int all_finite(const float *x, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (!isfinite(x[i])) return 0;
    return 1;
}

// Reads ids separated by commas, all below `limit`. Returns 0, or -1 with a sentence.
static int parse_ids(const char *text, int64_t limit, TokenList *list, Error *error) {
    for (const char *at = text; *at != '\0' || list->count == 0;) {
        char *end;
        const long long id = strtoll(at, &end, 10);
        if (end == at || id < 0 || id >= limit || (*end != ',' && *end != '\0'))
            return fail(
                error,
                "--prompt-ids '%.200s' is not a list of token ids, expected numbers from 0 to %" PRId64
                " with commas between them",
                text, limit - 1);
        list->ids = (int32_t *)xrealloc(list->ids, (list->count + 1) * sizeof(int32_t));
        list->ids[list->count++] = (int32_t)id;
        at = *end == ',' ? end + 1 : end;
    }
    list->capacity = list->count;
    return 0;
}

// Encodes the prompt, after the tokens that the tokenizer puts before a text. The list is never empty: it has at least
// the token that documents begin with or, where there is none, a newline.
static void encode_prompt(TokenList *list, Tokenizer *tokenizer, const char *prompt) {
    const int32_t end = tokenizer_end_of_text(tokenizer),
                  *start = tokenizer_prompt_start(tokenizer, &list->count);
    list->capacity = list->count + 16;
    list->ids = (int32_t *)xmalloc(list->capacity * sizeof(int32_t));
    if (list->count > 0) memcpy(list->ids, start, list->count * sizeof(int32_t));
    tokenizer_encode(tokenizer, prompt, strlen(prompt), tokenizer_end_of_text_content(tokenizer), list);
    if (list->count == 0 && end >= 0) list->ids[list->count++] = end;
    if (list->count == 0) tokenizer_encode(tokenizer, "\n", 1, NULL, list);
}

static void print_token(const Tokenizer *tokenizer, int32_t token) {
    size_t size = 0;
    const char *bytes = tokenizer_bytes(tokenizer, token, &size);
    if (bytes != NULL) fwrite(bytes, 1, size, stdout);
}

// Returns 1 if the token ends the text: it is one of `stops` or, if these are empty, the end-of-text token.
static int is_stop(const TokenList *stops, const Tokenizer *tokenizer, int32_t token) {
    for (size_t i = 0; i < stops->count; i++)
        if (stops->ids[i] == token) return 1;
    return stops->count == 0 && token == tokenizer_end_of_text(tokenizer);
}

// Generates the continuation of `text`, appends it to `text`, and prints each token at once, until `stop` is not 0,
// one of `stops` is generated, or printing fails. Returns the number of tokens, or -1 if the model's logits are not
// finite. `sample` is the number of this sample among those of one seed. When all positions are used, the second half
// of the text is kept as context. Ids that the model has and the tokenizer does not are never chosen.
static int64_t continue_text(const TextModel *m, const Tokenizer *tokenizer, const TokenList *stops,
                             const Sampling *sampling, TokenList *text, uint32_t sample,
                             const volatile sig_atomic_t *stop) {
    Generator generator;
    const size_t capacity = m->capacity, V = m->vocab_size;
    const size_t known = (size_t)tokenizer_vocab_size(tokenizer), choices = min_size(known, V);
    generator_open(&generator, m);
    size_t start = text->count > capacity ? text->count - capacity : 0, past = 0;
    int64_t generated = 0;
    while (generated < sampling->max_tokens && !*stop && !ferror(stdout)) {
        if (text->count - start > capacity) {
            start = text->count - capacity / 2 - 1;
            past = 0;
        }
        const float *logits = generator_next(&generator, text->ids + start + past, text->count - start - past,
                                             past);
        past = text->count - start;
        if (!all_finite(logits, V)) {
            generated = -1;
            break;
        }
        Philox random = philox(philox_key(sampling->seed, RANDOM_SAMPLING, 0), (uint32_t)text->count, sample,
                               0, 0);
        int32_t token = sample_token(logits, choices, sampling->temperature, sampling->top_k, sampling->top_p,
                                     uniform_from_bits(random.v[0]));
        generated++;
        if (is_stop(stops, tokenizer, token)) break;
        print_token(tokenizer, token);
        fflush(stdout);
        if (text->count == text->capacity)
            text->ids = (int32_t *)xrealloc(text->ids, (text->capacity *= 2) * sizeof(int32_t));
        text->ids[text->count++] = token;
    }
    printf("\n");
    generator_close(&generator);
    return generated;
}

// Prints a prompt and its continuation. Returns as continue_text does.
static int64_t print_sample(const TextModel *m, Tokenizer *tokenizer, const TokenList *stops,
                            const Sampling *sampling, const char *prompt, uint32_t sample,
                            const volatile sig_atomic_t *stop) {
    TokenList text = {NULL, 0, 0};
    encode_prompt(&text, tokenizer, prompt);
    fputs(prompt, stdout);
    int64_t generated = continue_text(m, tokenizer, stops, sampling, &text, sample, stop);
    free(text.ids);
    return generated;
}

static Sampling sampling_of(const Settings *o) {
    Sampling sampling = {o->sample_tokens, (uint64_t)o->seed, o->temperature, (size_t)o->top_k, o->top_p};
    return sampling;
}

// Prints tokens that are given by id (--prompt-ids) and their continuation. Returns as continue_text does.
static int64_t print_sample_of_ids(const TextModel *m, const Tokenizer *tokenizer, const TokenList *stops,
                                   const Sampling *sampling, const char *ids,
                                   const volatile sig_atomic_t *stop) {
    TokenList text = {NULL, 0, 0};
    Error error;
    if (parse_ids(ids, (int64_t)m->vocab_size, &text, &error) != 0) die_of(&error);
    for (size_t i = 0; i < text.count; i++) print_token(tokenizer, text.ids[i]);
    int64_t count = continue_text(m, tokenizer, stops, sampling, &text, 0, stop);
    free(text.ids);
    return count;
}

// Prints a continuation of the prompt, and the tokens generated per second (--sample).
static void run_sample(const TextModel *m, Tokenizer *tokenizer, const TokenList *stops, const Settings *o,
                       const volatile sig_atomic_t *stop) {
    if (tokenizer == NULL) die("there is no tokenizer in the folder of the weights: give --tokenizer");
    const Sampling sampling = sampling_of(o);
    const double started = seconds_now();
    const int64_t count = o->prompt_ids != NULL
                              ? print_sample_of_ids(m, tokenizer, stops, &sampling, o->prompt_ids, stop)
                              : print_sample(m, tokenizer, stops, &sampling, o->sample, 0, stop);
    if (count < 0) die("the model's logits are not finite: its weights have diverged");
    fprintf(stderr, "%" PRId64 " tokens, %.1f tokens/s\n", count, (double)count / (seconds_now() - started));
}

#endif
