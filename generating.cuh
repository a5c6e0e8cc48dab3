// Text from a model: a prompt's continuation, token by token over a cache of keys and values.
#ifndef GENERATING_CUH
#define GENERATING_CUH

#include <math.h>
#include <signal.h>
#include "data/tokenizer.h"
#include "gpt.cuh"
#include "layers/sampling.h"
#include "settings.cuh"

// What the host needs to generate text; what the device needs is the model's cache.
typedef struct {
    int32_t *tokens; // (capacity)
    floatX *logits;  // (V), as they come from the device
    float *numbers;  // (V)
} Generator;

static void generator_open(Generator *g, const GPT *m) {
    g->tokens = (int32_t *)host_alloc((size_t)m->config.max_sequence_length * sizeof(int32_t));
    g->logits = (floatX *)host_alloc(m->dims.V * sizeof(floatX));
    g->numbers = (float *)xmalloc(m->dims.V * sizeof(float));
}

static void generator_close(Generator *g) {
    host_free(g->tokens), host_free(g->logits), free(g->numbers);
}

// Logits (V) of the token after `count` new tokens that stand at position `past`.
static const float *gpt_generate(GPT *m, Generator *g, const int32_t *tokens, size_t count, size_t past) {
    Activations *x = &m->cache;
    int timing = m->run.profile.timing;
    m->run.profile.timing = 0;
    x->T = count;
    x->past = past;
    memcpy(g->tokens, tokens, count * sizeof(int32_t));
    copy_to_device(x->model.tokens, g->tokens, count * sizeof(int32_t), m->run.stream);
    gpt_forward(m, x, &NO_TRAINING);
    gpt_logits(m, x, count - 1, 1);
    copy_to_host(g->logits, x->model.logits, m->dims.V * sizeof(floatX), m->run.stream);
    stream_wait(m->run.stream);
    m->run.profile.timing = timing;
    for (size_t v = 0; v < m->dims.V; v++) g->numbers[v] = (float)g->logits[v];
    return g->numbers;
}

static int all_finite(const float *x, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (!isfinite(x[i])) return 0;
    return 1;
}

// Ids with commas between them, all below `limit`.
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

// The prompt's tokens, after those that the tokenizer puts before a text. A text is never empty: it is at least what
// documents begin with.
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

// Does this token end the text? Where no list says so, end of text does.
static int is_stop(const TokenList *stops, const Tokenizer *tokenizer, int32_t token) {
    for (size_t i = 0; i < stops->count; i++)
        if (stops->ids[i] == token) return 1;
    return stops->count == 0 && token == tokenizer_end_of_text(tokenizer);
}

// Prints the continuation of `text`, which it appends to, as it is generated, until `stop` is not 0, one of `stops` comes, or it
// cannot be written;
// returns the number of tokens, or -1 where the model's logits are not finite. `sample` numbers the samples of one seed.
// When the positions are used up, the second half of the text is kept as context. Ids of the model that the tokenizer
// does not have are never chosen.
static int64_t continue_text(GPT *m, const Tokenizer *tokenizer, const TokenList *stops, const Settings *o,
                             TokenList *text, uint32_t sample, const volatile sig_atomic_t *stop) {
    Generator generator;
    const size_t capacity = (size_t)m->config.max_sequence_length;
    const size_t known = (size_t)tokenizer_vocab_size(tokenizer),
                 choices = known < m->dims.V ? known : m->dims.V;
    generator_open(&generator, m);
    size_t start = text->count > capacity ? text->count - capacity : 0, past = 0;
    int64_t generated = 0;
    while (generated < o->sample_tokens && !*stop && !ferror(stdout)) {
        if (text->count - start > capacity) {
            start = text->count - capacity / 2 - 1;
            past = 0;
        }
        const float *logits = gpt_generate(m, &generator, text->ids + start + past,
                                           text->count - start - past, past);
        past = text->count - start;
        if (!all_finite(logits, m->dims.V)) {
            generated = -1;
            break;
        }
        Philox random = philox(philox_key((uint64_t)o->seed, RANDOM_SAMPLING, 0), (uint32_t)text->count,
                               sample, 0, 0);
        int32_t token = sample_token(logits, choices, o->temperature, (size_t)o->top_k, o->top_p,
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

// Prints a prompt and its continuation.
static int64_t print_sample(GPT *m, Tokenizer *tokenizer, const TokenList *stops, const Settings *o,
                            const char *prompt, uint32_t sample, const volatile sig_atomic_t *stop) {
    TokenList text = {NULL, 0, 0};
    encode_prompt(&text, tokenizer, prompt);
    fputs(prompt, stdout);
    int64_t generated = continue_text(m, tokenizer, stops, o, &text, sample, stop);
    free(text.ids);
    return generated;
}

#endif
