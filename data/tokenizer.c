// The tokenizer itself: vocabulary, merges, encoding. See tokenizer.h.
//
// Encoding a pre-token keeps a linked list of symbols and a heap of the joinable pairs, ordered by rank and
// then by position: O(n log n) for n bytes, and the order Hugging Face's tokenizers use. Most pre-tokens are
// words seen before; a small table per thread remembers the ids of short ones.
#define _GNU_SOURCE // memmem
#include "tokenizer.h"

#include <omp.h>
#include <stdlib.h>
#include <string.h>

enum {
    CACHE_BITS = 15,
    CACHED_BYTES = 30, // longest pre-token the cache holds
    CACHED_IDS = 8,
    CHUNK = 256 << 10 // bytes of text encoded by a thread at a time
};

typedef struct {
    size_t start; // in Tokenizer.text
    uint32_t size;
    uint8_t exists, is_special;
} Token;

typedef struct {
    int32_t left, right, merged;
} Merge;

typedef struct {
    uint64_t pair; // left << 32 | right; NO_PAIR: an empty slot
    uint32_t rank;
    int32_t merged;
} MergeSlot;
#define NO_PAIR UINT64_MAX

typedef struct {
    uint8_t size, count; // size 0: empty
    char bytes[CACHED_BYTES];
    int32_t ids[CACHED_IDS];
} CachedWord;

// A symbol of the pre-token being encoded, as a doubly linked list through positions; size 0: joined to
// another.
typedef struct {
    int32_t id;
    uint32_t size, previous;
} Symbol;

typedef struct {
    uint64_t order; // rank << 32 | position of the left symbol
    int32_t merged;
} Candidate;

// What one thread needs to encode.
typedef struct {
    Splitter *splitter;
    CachedWord *cache; // (1 << CACHE_BITS)
    Symbol *symbols;
    Candidate *heap;
    size_t symbol_capacity, heap_count, heap_capacity;
} Encoder;

struct Tokenizer {
    int32_t capacity, vocab_size, end_of_text;
    Token *tokens; // (capacity + 1)
    char *text;    // the bytes of all tokens
    size_t text_size, text_capacity;
    int32_t *token_slots; // hash table of ids by bytes; -1: empty
    size_t token_mask;
    Merge *merges; // in the order they were learnt
    size_t num_merges, merge_capacity;
    MergeSlot *merge_slots; // hash table by pair
    size_t merge_mask;
    int32_t byte_ids[256];
    Encoder **encoders; // (num_encoders)
    int num_encoders;
};

// ---- the byte alphabet ------------------------------------------------------------------------------------

// The bytes that do not stand for themselves, 0x00-0x20, 0x7F-0xA0 and 0xAD, are U+0100-U+0120,
// U+0121-U+0142, U+0143.
int byte_to_character(int byte) {
    if (byte <= 0x20) return 0x100 + byte;
    if (byte >= 0x7F && byte <= 0xA0) return 0x121 + byte - 0x7F;
    return byte == 0xAD ? 0x143 : byte;
}

int character_to_byte(uint32_t character) {
    if (character >= 0x100 && character <= 0x120) return (int)character - 0x100;
    if (character >= 0x121 && character <= 0x142) return (int)character - 0x121 + 0x7F;
    if (character == 0x143) return 0xAD;
    return character < 0x100 && byte_to_character((int)character) == (int)character ? (int)character : -1;
}

// ---- building ---------------------------------------------------------------------------------------------

uint64_t hash_bytes(const void *data, size_t size) {
    const char *bytes = (const char *)data;
    uint64_t hash = size * 0x9E3779B97F4A7C15u;
    for (; size > 0;) {
        uint64_t word = 0;
        size_t part = size < 8 ? size : 8;
        memcpy(&word, bytes, part);
        hash = (hash ^ word) * 0x9FB21C651E98DF25u; // odd, bits well spread (as in rrmxmx, Evensen 2018)
        hash ^= hash >> 32;
        bytes += part;
        size -= part;
    }
    hash *= 0x9FB21C651E98DF25u;
    return hash ^ hash >> 29;
}

static uint64_t hash_pair(uint64_t pair) {
    pair *= 0x9FB21C651E98DF25u;
    return pair ^ pair >> 32;
}

static uint64_t pack_pair(int32_t left, int32_t right) {
    return (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
}

// A power of two that leaves a hash table at most half full.
static size_t table_size(size_t entries) {
    size_t size = 16;
    while (size < 2 * entries) size *= 2;
    return size;
}

Tokenizer *tokenizer_create(int32_t capacity) {
    Tokenizer *t = (Tokenizer *)xcalloc(1, sizeof *t);
    t->capacity = capacity;
    t->end_of_text = -1;
    t->tokens = (Token *)xcalloc((size_t)capacity + 1, sizeof(Token));
    t->token_mask = table_size((size_t)capacity) - 1;
    t->token_slots = (int32_t *)xmalloc((t->token_mask + 1) * sizeof(int32_t));
    memset(t->token_slots, 0xFF, (t->token_mask + 1) * sizeof(int32_t));
    return t;
}

// The slot where these bytes are, or would be.
static size_t find_slot(const Tokenizer *t, const char *bytes, size_t size) {
    size_t slot = hash_bytes(bytes, size) & t->token_mask;
    for (;; slot = (slot + 1) & t->token_mask) {
        int32_t id = t->token_slots[slot];
        if (id < 0) return slot;
        const Token *token = &t->tokens[id];
        if (token->size == size && memcmp(t->text + token->start, bytes, size) == 0) return slot;
    }
}

int32_t tokenizer_find(const Tokenizer *t, const char *bytes, size_t size) {
    return t->token_slots[find_slot(t, bytes, size)];
}

int tokenizer_has_token(const Tokenizer *t, int32_t id) {
    return id >= 0 && id < t->capacity && t->tokens[id].exists;
}

int tokenizer_is_special(const Tokenizer *t, int32_t id) {
    return tokenizer_has_token(t, id) && t->tokens[id].is_special;
}

int tokenizer_add_token(Tokenizer *t, int32_t id, const char *bytes, size_t size, int is_special,
                        Error *error) {
    if (id < 0 || id >= t->capacity)
        return fail(error, "a token has id %d, expected 0 to %d", id, t->capacity - 1);
    if (size == 0 || size > INT32_MAX) return fail(error, "token %d is empty or too long", id);
    if (t->tokens[id].exists) return fail(error, "there are two tokens with id %d", id);
    while (t->text_size + size > t->text_capacity) {
        t->text_capacity = 2 * t->text_capacity + 4096;
        t->text = (char *)xrealloc(t->text, t->text_capacity);
    }
    memcpy(t->text + t->text_size, bytes, size);
    size_t slot = find_slot(t, t->text + t->text_size, size);
    if (t->token_slots[slot] >= 0)
        return fail(error, "tokens %d and %d are the same", t->token_slots[slot], id);
    Token token = {t->text_size, (uint32_t)size, 1, (uint8_t)is_special};
    if (size == strlen(END_OF_TEXT) && memcmp(bytes, END_OF_TEXT, size) == 0) {
        t->end_of_text = id;
        token.is_special = 1;
    }
    t->tokens[id] = token;
    t->token_slots[slot] = id;
    t->text_size += size;
    if (id >= t->vocab_size) t->vocab_size = id + 1;
    return 0;
}

int tokenizer_add_merge(Tokenizer *t, int32_t left, int32_t right, Error *error) {
    const Token *a = &t->tokens[left], *b = &t->tokens[right];
    size_t size = (size_t)a->size + b->size;
    char *joined = (char *)xmalloc(size);
    memcpy(joined, t->text + a->start, a->size);
    memcpy(joined + a->size, t->text + b->start, b->size);
    int32_t merged = tokenizer_find(t, joined, size);
    free(joined);
    if (merged < 0 || t->tokens[merged].is_special)
        return fail(error, "merge %zu joins tokens %d and %d, but there is no ordinary token for the result",
                    t->num_merges + 1, left, right);
    if (t->num_merges == t->merge_capacity) {
        t->merge_capacity = 2 * t->merge_capacity + 1024;
        t->merges = (Merge *)xrealloc(t->merges, t->merge_capacity * sizeof(Merge));
    }
    Merge merge = {left, right, merged};
    t->merges[t->num_merges++] = merge;
    return 0;
}

size_t tokenizer_num_merges(const Tokenizer *t) {
    return t->num_merges;
}

void tokenizer_merge(const Tokenizer *t, size_t index, int32_t *left, int32_t *right) {
    *left = t->merges[index].left;
    *right = t->merges[index].right;
}

static MergeSlot *find_merge(const Tokenizer *t, int32_t left, int32_t right) {
    const uint64_t pair = pack_pair(left, right);
    size_t slot = hash_pair(pair) & t->merge_mask;
    while (t->merge_slots[slot].pair != pair && t->merge_slots[slot].pair != NO_PAIR)
        slot = (slot + 1) & t->merge_mask;
    return &t->merge_slots[slot];
}

int tokenizer_finish(Tokenizer *t, Error *error) {
    for (int32_t id = 0; id < t->vocab_size; id++)
        if (!t->tokens[id].exists)
            return fail(error, "there is no token with id %d, though there is one with id %d", id,
                        t->vocab_size - 1);
    for (int byte = 0; byte < 256; byte++) {
        char c = (char)byte;
        t->byte_ids[byte] = tokenizer_find(t, &c, 1);
        if (t->byte_ids[byte] < 0)
            return fail(error, "there is no token for byte %d, expected one for each of the 256 bytes", byte);
    }
    t->merge_mask = table_size(t->num_merges) - 1;
    t->merge_slots = (MergeSlot *)xmalloc((t->merge_mask + 1) * sizeof(MergeSlot));
    for (size_t i = 0; i <= t->merge_mask; i++) t->merge_slots[i].pair = NO_PAIR;
    for (size_t i = 0; i < t->num_merges; i++) {
        const Merge *merge = &t->merges[i];
        MergeSlot filled = {pack_pair(merge->left, merge->right), (uint32_t)i, merge->merged};
        *find_merge(t, merge->left, merge->right) = filled; // of two equal merges the later counts
    }
    return 0;
}

static Encoder *encoder_create(void) {
    Encoder *encoder = (Encoder *)xcalloc(1, sizeof *encoder);
    encoder->splitter = splitter_create();
    encoder->cache = (CachedWord *)xcalloc((size_t)1 << CACHE_BITS, sizeof(CachedWord));
    return encoder;
}

static void encoder_free(Encoder *encoder) {
    splitter_free(encoder->splitter);
    free(encoder->cache);
    free(encoder->symbols);
    free(encoder->heap);
    free(encoder);
}

void tokenizer_free(Tokenizer *t) {
    if (t == NULL) return;
    for (int i = 0; i < t->num_encoders; i++) encoder_free(t->encoders[i]);
    free(t->encoders);
    free(t->tokens);
    free(t->text);
    free(t->token_slots);
    free(t->merges);
    free(t->merge_slots);
    free(t);
}

// ---- asking -----------------------------------------------------------------------------------------------

int32_t tokenizer_vocab_size(const Tokenizer *t) {
    return t->vocab_size;
}

int32_t tokenizer_end_of_text(const Tokenizer *t) {
    return t->end_of_text;
}

const char *tokenizer_bytes(const Tokenizer *t, int32_t id, size_t *size) {
    if (id < 0 || id >= t->vocab_size) return NULL;
    *size = t->tokens[id].size;
    return t->text + t->tokens[id].start;
}

uint32_t tokenizer_checksum(const Tokenizer *t) {
    uint32_t crc = 0;
    for (int32_t id = 0; id < t->vocab_size; id++) {
        crc = crc32c(crc, &t->tokens[id].size, sizeof t->tokens[id].size);
        crc = crc32c(crc, t->text + t->tokens[id].start, t->tokens[id].size);
    }
    return crc;
}

// ---- encoding a pre-token ---------------------------------------------------------------------------------

static void append_ids(TokenList *list, const int32_t *ids, size_t count) {
    if (count == 0) return;
    if (list->count + count > list->capacity) {
        while (list->count + count > list->capacity) list->capacity = 2 * list->capacity + 256;
        list->ids = (int32_t *)xrealloc(list->ids, list->capacity * sizeof(int32_t));
    }
    memcpy(list->ids + list->count, ids, count * sizeof(int32_t));
    list->count += count;
}

static void heap_push(Encoder *e, Candidate candidate) {
    if (e->heap_count == e->heap_capacity) {
        e->heap_capacity = 2 * e->heap_capacity + 64;
        e->heap = (Candidate *)xrealloc(e->heap, e->heap_capacity * sizeof(Candidate));
    }
    size_t at = e->heap_count++;
    for (; at > 0 && e->heap[(at - 1) / 2].order > candidate.order; at = (at - 1) / 2)
        e->heap[at] = e->heap[(at - 1) / 2];
    e->heap[at] = candidate;
}

static Candidate heap_pop(Encoder *e) {
    Candidate top = e->heap[0], last = e->heap[--e->heap_count];
    size_t at = 0;
    for (;;) {
        size_t child = 2 * at + 1;
        if (child >= e->heap_count) break;
        if (child + 1 < e->heap_count && e->heap[child + 1].order < e->heap[child].order) child++;
        if (e->heap[child].order >= last.order) break;
        e->heap[at] = e->heap[child];
        at = child;
    }
    e->heap[at] = last;
    return top;
}

// Notes that the symbol at `left` can be joined with the one after it, if it can.
static void consider(const Tokenizer *t, Encoder *e, uint32_t left, uint32_t end) {
    uint32_t right = left + e->symbols[left].size;
    if (right == end) return;
    const MergeSlot *slot = find_merge(t, e->symbols[left].id, e->symbols[right].id);
    if (slot->pair == NO_PAIR) return;
    Candidate candidate = {(uint64_t)slot->rank << 32 | left, slot->merged};
    heap_push(e, candidate);
}

// Joins symbols until none can be joined. A symbol stands at the position of its first byte; the next one is
// found through its size.
static void join_symbols(const Tokenizer *t, Encoder *e, uint32_t end) {
    for (uint32_t i = 0; i + 1 < end; i++) consider(t, e, i, end);
    while (e->heap_count > 0) {
        Candidate best = heap_pop(e);
        uint32_t left = (uint32_t)best.order, right = left + e->symbols[left].size;
        if (e->symbols[left].size == 0 || right == end) continue; // joined to another since
        const MergeSlot *slot = find_merge(t, e->symbols[left].id, e->symbols[right].id);
        if (slot->pair == NO_PAIR || slot->rank != best.order >> 32) continue; // another pair stands here now
        e->symbols[left].id = best.merged;
        e->symbols[left].size += e->symbols[right].size;
        e->symbols[right].size = 0;
        uint32_t next = left + e->symbols[left].size;
        if (next < end) e->symbols[next].previous = left;
        if (left > 0) consider(t, e, e->symbols[left].previous, end);
        consider(t, e, left, end);
    }
}

static void encode_new_word(const Tokenizer *t, Encoder *e, const char *word, size_t size, TokenList *ids) {
    if (size > e->symbol_capacity) {
        e->symbol_capacity = 2 * size + 64;
        e->symbols = (Symbol *)xrealloc(e->symbols, e->symbol_capacity * sizeof(Symbol));
    }
    for (size_t i = 0; i < size; i++) {
        Symbol symbol = {t->byte_ids[(uint8_t)word[i]], 1, (uint32_t)i - 1};
        e->symbols[i] = symbol;
    }
    join_symbols(t, e, (uint32_t)size);
    for (size_t i = 0; i < size; i += e->symbols[i].size) append_ids(ids, &e->symbols[i].id, 1);
}

static void encode_word(const Tokenizer *t, Encoder *e, const char *word, size_t size, TokenList *ids) {
    if (size > CACHED_BYTES) {
        encode_new_word(t, e, word, size, ids);
        return;
    }
    CachedWord *cached = &e->cache[hash_bytes(word, size) >> (64 - CACHE_BITS)];
    if (cached->size == size && memcmp(cached->bytes, word, size) == 0) {
        append_ids(ids, cached->ids, cached->count);
        return;
    }
    size_t before = ids->count;
    encode_new_word(t, e, word, size, ids);
    if (ids->count - before > CACHED_IDS) return;
    cached->size = (uint8_t)size;
    cached->count = (uint8_t)(ids->count - before);
    memcpy(cached->bytes, word, size);
    memcpy(cached->ids, ids->ids + before, cached->count * sizeof(int32_t));
}

// ---- encoding text ----------------------------------------------------------------------------------------

static const char *find_text(const char *text, size_t size, const char *what) {
    return what == NULL ? NULL : (const char *)memmem(text, size, what, strlen(what));
}

static void encode_chunk(const Tokenizer *t, Encoder *e, const char *text, size_t size, const char *separator,
                         TokenList *ids) {
    for (;;) {
        const char *found = find_text(text, size, separator), *word;
        size_t length;
        splitter_start(e->splitter, text, found == NULL ? size : (size_t)(found - text));
        while (splitter_next(e->splitter, &word, &length)) encode_word(t, e, word, length, ids);
        if (found == NULL) return;
        append_ids(ids, &t->end_of_text, 1);
        size -= (size_t)(found - text) + strlen(separator);
        text = found + strlen(separator);
    }
}

static int is_ascii_space(char c) {
    return c == ' ' || (c >= 9 && c <= 13);
}

// Can this be the last byte of a White_Space character? (of U+0085, U+00A0, U+1680, U+2000 to U+200A, U+2028,
// U+2029, U+202F, U+205F, U+3000)
static int may_end_space(char c) {
    uint8_t byte = (uint8_t)c;
    return is_ascii_space(c) || (byte >= 0x80 && byte <= 0x8A) || byte == 0x9F || byte == 0xA0 ||
           byte == 0xA8 || byte == 0xA9 || byte == 0xAF;
}

// The first position in [first, end) where the pattern is certain to part the text, whatever stands around:
// before white space that follows something else, since no alternative matches that inside; and what stands
// before it is matched as at the end of a text, since only white space looks at what follows.
static size_t find_parting(const char *text, size_t first, size_t end) {
    for (size_t i = first; i < end; i++)
        if (is_ascii_space(text[i]) && !may_end_space(text[i - 1])) return i;
    return end;
}

size_t tokenizer_cut(const char *text, size_t size, const char *separator, size_t least) {
    const size_t length = separator == NULL ? 0 : strlen(separator);
    if (least >= size) return size;
    // The window grows until there is something in it, so that text without any place to cut takes linear
    // time.
    for (size_t window = least + CHUNK;; window *= 2) {
        size_t end = window < size ? window : size;
        size_t cut = find_parting(text, least, end);
        if (separator != NULL) { // not inside a separator; behind one is a place to cut, too
            size_t limit = cut + length - 1 < size ? cut + length - 1 : size, at = 0;
            const char *found;
            while ((found = find_text(text + at, limit - at, separator)) != NULL) {
                at = (size_t)(found - text) + length;
                if (at >= least) return at;
            }
        }
        if (cut < end || end == size) return cut;
    }
}

static void ensure_encoders(Tokenizer *t, int count) {
    if (count <= t->num_encoders) return;
    t->encoders = (Encoder **)xrealloc(t->encoders, (size_t)count * sizeof(Encoder *));
    while (t->num_encoders < count) t->encoders[t->num_encoders++] = encoder_create();
}

void tokenizer_encode(Tokenizer *t, const char *text, size_t size, const char *separator, TokenList *ids) {
    if (t->end_of_text < 0) separator = NULL;
    size_t cut = tokenizer_cut(text, size, separator, CHUNK), num_chunks = 0;
    ensure_encoders(t, cut == size ? 1 : omp_get_max_threads());
    if (cut == size) {
        encode_chunk(t, t->encoders[0], text, size, separator, ids);
        return;
    }
    Text *chunks = (Text *)xmalloc((size / CHUNK + 1) * sizeof(Text));
    for (size_t start = 0; start < size; start += chunks[num_chunks++].size) {
        chunks[num_chunks].data = text + start;
        chunks[num_chunks].size = tokenizer_cut(text + start, size - start, separator, CHUNK);
    }
    TokenList *lists = (TokenList *)xcalloc(num_chunks, sizeof(TokenList));
#pragma omp parallel for schedule(dynamic)
    for (size_t i = 0; i < num_chunks; i++)
        encode_chunk(t, t->encoders[omp_get_thread_num()], chunks[i].data, chunks[i].size, separator,
                     &lists[i]);
    for (size_t i = 0; i < num_chunks; i++) {
        append_ids(ids, lists[i].ids, lists[i].count);
        free(lists[i].ids);
    }
    free(lists);
    free(chunks);
}
