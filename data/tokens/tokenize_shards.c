// tokenize decode and tokenize inspect: convert token shards back to text. See tokenize.h.
#include "tokenize_shards.h"
#include "overwrite.h"
#include "shards.h"

#include <stdlib.h>
#include <string.h>

enum {
    DECODE_TOKENS = 256 * 1024, // tokens decoded at a time
    SHOWN_TOKENS = 24           // tokens that inspect decodes
};

static int add_shards(void *target, const char *pattern, Error *error) {
    return shards_add((ShardSet *)target, pattern, error);
}

// Calls `visit` with consecutive ranges of all tokens, after checking that each token is in the vocabulary.
typedef int (*VisitTokens)(void *state, const int32_t *tokens, size_t count, Error *error);

static int read_shard(const Shard *shard, int32_t vocab_size, int32_t *tokens, VisitTokens visit, void *state,
                      Error *error) {
    for (uint64_t first = 0; first < shard->num_tokens;) {
        uint64_t left = shard->num_tokens - first;
        size_t count = left < DECODE_TOKENS ? (size_t)left : DECODE_TOKENS;
        if (shard_read(shard, first, count, tokens, error) != 0) return -1;
        for (size_t i = 0; i < count; i++)
            if ((uint32_t)tokens[i] >= (uint32_t)vocab_size)
                return fail(error, "token %llu of %s is %u, expected 0 to %d as in the tokenizer",
                            (unsigned long long)(first + i), shard->path, (uint32_t)tokens[i],
                            vocab_size - 1);
        if (visit(state, tokens, count, error) != 0) return -1;
        first += count;
    }
    return 0;
}

static int read_shards(const ShardSet *set, const Tokenizer *t, VisitTokens visit, void *state,
                       Error *error) {
    int32_t *tokens = (int32_t *)xmalloc(DECODE_TOKENS * sizeof(int32_t));
    int result = 0;
    for (size_t i = 0; i < set->count && result == 0; i++)
        result = read_shard(&set->shards[i], tokenizer_vocab_size(t), tokens, visit, state, error);
    free(tokens);
    return result;
}

typedef struct {
    const Tokenizer *tokenizer;
    const char *separator, *path;
    FILE *stream;
    int started; // 1 after the first token
} Decoding;

static int decode_tokens(void *state, const int32_t *tokens, size_t count, Error *error) {
    Decoding *d = (Decoding *)state;
    const int32_t end_of_text = tokenizer_end_of_text(d->tokenizer);
    for (size_t i = 0; i < count; i++) {
        size_t size;
        const char *bytes = tokenizer_bytes(d->tokenizer, tokens[i], &size);
        if (tokens[i] == end_of_text) { // no separator precedes the first document
            bytes = d->separator;
            size = d->started ? strlen(bytes) : 0;
        }
        fwrite(bytes, 1, size, d->stream);
        d->started = 1;
    }
    return ferror(d->stream) ? fail_io(error, "cannot write %s", d->path) : 0;
}

static int decode_to(const ShardSet *set, const Tokenizer *t, const Settings *settings, Error *error) {
    Decoding decoding = {t, NULL, settings->out, stdout, 0};
    if (choose_separator(settings, t, &decoding.separator, error) != 0) return -1;
    if (strcmp(settings->out, "-") == 0) {
        decoding.path = "standard output";
        if (read_shards(set, t, decode_tokens, &decoding, error) != 0) return -1;
        return fflush(stdout) == 0 ? 0 : fail_io(error, "cannot write %s", decoding.path);
    }
    FileWriter writer;
    if (create_folder_of(settings->out, error) != 0) return -1;
    if (overwrite_check(settings->out, settings->overwrite, NULL, error) != 0) return -1;
    if (file_writer_open(&writer, settings->out, error) != 0) return -1;
    decoding.stream = writer.stream;
    if (read_shards(set, t, decode_tokens, &decoding, error) == 0) return file_writer_commit(&writer, error);
    file_writer_abandon(&writer);
    return -1;
}

int decode_shards(const Settings *settings, Error *error) {
    ShardSet set = {0};
    Tokenizer *t = NULL;
    int result = require_option(settings->out, "out", error);
    if (result == 0) result = add_inputs(settings, add_shards, &set, error);
    if (result == 0 && (t = open_tokenizer(settings, error)) == NULL) result = -1;
    if (result == 0) result = decode_to(&set, t, settings, error);
    tokenizer_free(t);
    shards_close(&set);
    return result;
}

typedef struct {
    int32_t end_of_text, smallest, largest;
    uint64_t num_documents;
    int32_t first[SHOWN_TOKENS];
    size_t num_first;
} Summary;

static int summarise(void *state, const int32_t *tokens, size_t count, Error *error) {
    Summary *s = (Summary *)state;
    (void)error;
    for (size_t i = 0; i < count; i++) {
        if (tokens[i] < s->smallest) s->smallest = tokens[i];
        if (tokens[i] > s->largest) s->largest = tokens[i];
        s->num_documents += tokens[i] == s->end_of_text;
        if (s->num_first < SHOWN_TOKENS) s->first[s->num_first++] = tokens[i];
    }
    return 0;
}

static void print_escaped(const char *bytes, size_t size) {
    for (size_t i = 0; i < size; i++) {
        uint8_t c = (uint8_t)bytes[i];
        if (c == '\n')
            printf("\\n");
        else if (c < 0x20 || c == 0x7F)
            printf("\\x%02x", c);
        else
            putchar(c);
    }
}

static void print_summary(const ShardSet *set, const Tokenizer *t, const Summary *s) {
    for (size_t i = 0; i < set->count; i++)
        printf("%s: %llu tokens, uint%d\n", set->shards[i].path,
               (unsigned long long)set->shards[i].num_tokens, 8 * set->shards[i].token_bytes);
    printf("all: %llu tokens, %llu documents, ids %d to %d of %d, tokenizer checksum %08x\n",
           (unsigned long long)set->num_tokens, (unsigned long long)s->num_documents, s->smallest, s->largest,
           tokenizer_vocab_size(t), tokenizer_checksum(t));
    if (s->end_of_text >= 0 && s->first[0] != s->end_of_text) printf("begins in the middle of a document\n");
    printf("begins with: ");
    for (size_t i = 0; i < s->num_first; i++) {
        size_t size;
        const char *bytes = tokenizer_bytes(t, s->first[i], &size);
        print_escaped(bytes, size);
    }
    printf("\n");
}

int inspect_shards(const Settings *settings, Error *error) {
    ShardSet set = {0};
    Tokenizer *t = NULL;
    int result = add_inputs(settings, add_shards, &set, error);
    if (result == 0 && (t = open_tokenizer(settings, error)) == NULL) result = -1;
    if (result == 0) {
        Summary summary = {tokenizer_end_of_text(t), INT32_MAX, -1, 0, {0}, 0};
        result = read_shards(&set, t, summarise, &summary, error);
        if (result == 0) print_summary(&set, t, &summary);
    }
    tokenizer_free(t);
    shards_close(&set);
    return result;
}
