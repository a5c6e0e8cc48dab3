// The tokenizer: vocabulary, merges, encoding. See tokenizer.h.
//
// Encoding a pre-token uses a linked list of symbols and a heap of mergeable pairs, ordered by rank, then by
// position: O(n log n) for n bytes, and the same order as in Hugging Face's tokenizers. Most pre-tokens are words
// seen before; a small table per thread caches the ids of short ones.
#define _GNU_SOURCE // memmem
#include "tokenizer.h"
#include "tokenizer_added.h"

#include <omp.h>
#include <stdlib.h>
#include <string.h>

enum {
    CACHE_BITS = 15,
    CACHED_BYTES = 30, // longest pre-token in the cache
    CACHED_IDS = 8,
    CHUNK = 256 << 10 // bytes of text encoded by a thread at a time
};

typedef struct {
    size_t start; // in Tokenizer.text
    uint32_t size;
    uint8_t exists, is_ordinary;
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

// A symbol of the pre-token being encoded, in a doubly linked list indexed by position; size 0: merged into another
// symbol.
typedef struct {
    int32_t id;
    uint32_t size, previous;
} Symbol;

typedef struct {
    uint64_t order; // rank << 32 | position of the left symbol
    int32_t merged;
} Candidate;

// The working memory of one encoding thread.
typedef struct {
    Splitter *splitter;
    CachedWord *cache; // (1 << CACHE_BITS)
    Symbol *symbols;
    Candidate *heap;
    size_t symbol_capacity, heap_count, heap_capacity;
} Encoder;

enum { EXACT, NORMALIZED, NUM_SETS }; // sets of added tokens, in the order of search

struct Tokenizer {
    int32_t capacity, vocab_size, end_of_text;
    Token *tokens; // (capacity + 1)
    char *text;    // the bytes of all tokens, a NUL after each
    size_t text_size, text_capacity;
    int32_t *token_slots; // hash table of ordinary tokens' ids by their bytes; -1: empty
    size_t token_mask;
    AddedToken *added; // in the order of the file
    size_t num_added;
    AddedSet *sets[NUM_SETS];
    // 1 if documents can be separated before anything else is matched; then end of text is in none of the sets.
    int end_of_text_is_first;
    int32_t *prompt_start;
    size_t num_prompt_start;
    char *post_processor; // JSON
    Merge *merges;        // in the order in which they were learned
    size_t num_merges, merge_capacity;
    MergeSlot *merge_slots; // hash table by pair
    size_t merge_mask;
    int32_t byte_ids[256];
    Encoder **encoders; // (num_encoders)
    int num_encoders;
};

// ---- the byte alphabet ------------------------------------------------------------------------------------

// The bytes that are not mapped to the character of the same code, 0x00-0x20, 0x7F-0xA0 and 0xAD, are U+0100-U+0120,
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
        hash = (hash ^ word) * 0x9FB21C651E98DF25u; // odd, bits well distributed (as in rrmxmx, Evensen 2018)
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

// Returns a power of two that makes a hash table at most half full.
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

// Returns the slot of these bytes, or the one where they would be inserted.
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

int tokenizer_is_ordinary(const Tokenizer *t, int32_t id) {
    return tokenizer_has_token(t, id) && t->tokens[id].is_ordinary;
}

// Stores the bytes of a token that does not exist yet.
static int new_token(Tokenizer *t, int32_t id, const char *bytes, size_t size, int is_ordinary,
                     Error *error) {
    if (id < 0 || id >= t->capacity)
        return fail(error, "a token has id %d, expected 0 to %d", id, t->capacity - 1);
    if (size == 0 || size >= INT32_MAX) return fail(error, "token %d is empty or too long", id);
    if (t->tokens[id].exists) return fail(error, "there are two tokens with id %d", id);
    while (t->text_size + size + 1 > t->text_capacity) {
        t->text_capacity = 2 * t->text_capacity + 4096;
        t->text = (char *)xrealloc(t->text, t->text_capacity);
    }
    memcpy(t->text + t->text_size, bytes, size);
    t->text[t->text_size + size] = '\0';
    Token token = {t->text_size, (uint32_t)size, 1, (uint8_t)is_ordinary};
    t->tokens[id] = token;
    t->text_size += size + 1;
    if (id >= t->vocab_size) t->vocab_size = id + 1;
    return 0;
}

int tokenizer_add_token(Tokenizer *t, int32_t id, const char *bytes, size_t size, Error *error) {
    size_t slot = find_slot(t, bytes, size);
    if (t->token_slots[slot] >= 0)
        return fail(error, "tokens %d and %d are the same", t->token_slots[slot], id);
    if (new_token(t, id, bytes, size, 1, error) != 0) return -1;
    t->token_slots[slot] = id;
    return 0;
}

int tokenizer_add_added(Tokenizer *t, const AddedToken *token, Error *error) {
    const size_t size = strlen(token->content);
    const Token *ordinary = tokenizer_is_ordinary(t, token->id) ? &t->tokens[token->id] : NULL;
    if (ordinary != NULL &&
        (ordinary->size != size || memcmp(t->text + ordinary->start, token->content, size) != 0))
        return fail(error, "added token %d is '%.100s', but in the vocabulary this id is another token",
                    token->id, token->content);
    if (tokenizer_find_added(t, token->content) >= 0)
        return fail(error, "there are two added tokens '%.100s'", token->content);
    for (size_t i = 0; i < t->num_added; i++)
        if (t->added[i].id == token->id) return fail(error, "there are two tokens with id %d", token->id);
    if (ordinary == NULL && new_token(t, token->id, token->content, size, 0, error) != 0) return -1;
    t->added = (AddedToken *)xrealloc(t->added, (t->num_added + 1) * sizeof(AddedToken));
    t->added[t->num_added] = *token;
    t->added[t->num_added++].content = xstrdup(token->content);
    return 0;
}

size_t tokenizer_num_added(const Tokenizer *t) {
    return t->num_added;
}

const AddedToken *tokenizer_added(const Tokenizer *t, size_t index) {
    return &t->added[index];
}

int32_t tokenizer_find_added(const Tokenizer *t, const char *content) {
    for (size_t i = 0; i < t->num_added; i++)
        if (strcmp(t->added[i].content, content) == 0) return t->added[i].id;
    return -1;
}

int tokenizer_set_end_of_text(Tokenizer *t, const char *content) {
    int32_t id = tokenizer_find_added(t, content);
    if (id < 0 && content[0] != '\0' && (id = tokenizer_find(t, content, strlen(content))) >= 0) {
        const AddedToken token = {id, content, 0, 0, 0, 0, 1};
        Error impossible;
        if (tokenizer_add_added(t, &token, &impossible) != 0) return -1;
    }
    if (id >= 0) t->end_of_text = id;
    return id >= 0 ? 0 : -1;
}

void tokenizer_set_prompt_start(Tokenizer *t, const int32_t *ids, size_t count, const char *post_processor) {
    free(t->post_processor);
    free(t->prompt_start);
    t->post_processor = xstrdup(post_processor);
    t->prompt_start = (int32_t *)xmalloc((count + 1) * sizeof(int32_t));
    if (count > 0) memcpy(t->prompt_start, ids, count * sizeof(int32_t));
    t->num_prompt_start = count;
}

const char *tokenizer_post_processor(const Tokenizer *t) {
    return t->post_processor == NULL ? "null" : t->post_processor;
}

const int32_t *tokenizer_prompt_start(const Tokenizer *t, size_t *count) {
    *count = t->num_prompt_start;
    return t->prompt_start;
}

int tokenizer_add_merge(Tokenizer *t, int32_t left, int32_t right, Error *error) {
    const Token *a = &t->tokens[left], *b = &t->tokens[right];
    size_t size = (size_t)a->size + b->size;
    char *joined = (char *)xmalloc(size);
    memcpy(joined, t->text + a->start, a->size);
    memcpy(joined + a->size, t->text + b->start, b->size);
    int32_t merged = tokenizer_find(t, joined, size);
    free(joined);
    if (merged < 0)
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

// Returns 1 if a suffix of `a` is a prefix of `b`. With `proper`, the suffix must not be all of `a`.
static int suffix_is_prefix(const char *a, const char *b, int proper) {
    for (const char *end = a + proper; *end != '\0'; end++)
        if (strncmp(end, b, strlen(end)) == 0) return 1;
    return 0;
}

// Returns 1 if occurrences of two tokens can overlap in a text.
static int may_overlap(const char *a, const char *b) {
    return strstr(a, b) != NULL || strstr(b, a) != NULL || suffix_is_prefix(a, b, 0) ||
           suffix_is_prefix(b, a, 0);
}

static int is_punctuation(char c) {
    return (c > ' ' && c < '0') || (c > '9' && c < 'A') || (c > 'Z' && c < 'a' && c != '_') ||
           (c > 'z' && c < 0x7F);
}

// Returns 1 if separating documents at this end of text before matching anything else gives the same result: it has
// no flags, no other token overlaps it, and to the flags of neighbouring tokens its ends look like the ends of a
// text.
static int can_separate_first(const Tokenizer *t, const AddedToken *token) {
    const char *content = token->content;
    if (token->single_word || token->lstrip || token->rstrip || token->normalized) return 0;
    if (!is_punctuation(content[0]) || !is_punctuation(content[strlen(content) - 1])) return 0;
    if (suffix_is_prefix(content, content, 1)) return 0;
    for (size_t i = 0; i < t->num_added; i++)
        if (t->added[i].id != token->id && may_overlap(content, t->added[i].content)) return 0;
    return 1;
}

static void build_sets(Tokenizer *t) {
    for (int i = 0; i < NUM_SETS; i++) t->sets[i] = added_set_create();
    for (size_t i = 0; i < t->num_added; i++) {
        const AddedToken *token = &t->added[i];
        if (token->id == t->end_of_text && (t->end_of_text_is_first = can_separate_first(t, token))) continue;
        added_set_add(t->sets[token->normalized ? NORMALIZED : EXACT], token);
    }
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
    build_sets(t);
    t->merge_mask = table_size(t->num_merges) - 1;
    t->merge_slots = (MergeSlot *)xmalloc((t->merge_mask + 1) * sizeof(MergeSlot));
    for (size_t i = 0; i <= t->merge_mask; i++) t->merge_slots[i].pair = NO_PAIR;
    for (size_t i = 0; i < t->num_merges; i++) {
        const Merge *merge = &t->merges[i];
        MergeSlot filled = {pack_pair(merge->left, merge->right), (uint32_t)i, merge->merged};
        *find_merge(t, merge->left, merge->right) = filled; // of two equal merges the later one counts
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
    for (int i = 0; i < NUM_SETS; i++) added_set_free(t->sets[i]);
    for (size_t i = 0; i < t->num_added; i++) free((char *)t->added[i].content);
    free(t->added);
    free(t->prompt_start);
    free(t->post_processor);
    free(t->tokens);
    free(t->text);
    free(t->token_slots);
    free(t->merges);
    free(t->merge_slots);
    free(t);
}

// ---- queries ----------------------------------------------------------------------------------------------

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

const char *tokenizer_end_of_text_content(const Tokenizer *t) {
    return t->end_of_text < 0 ? NULL : t->text + t->tokens[t->end_of_text].start;
}

uint32_t tokenizer_checksum(const Tokenizer *t) {
    uint32_t crc = 0;
    for (int32_t id = 0; id < t->vocab_size; id++) {
        const Token *token = &t->tokens[id];
        crc = crc32c(crc, &token->size, sizeof token->size);
        crc = crc32c(crc, t->text + token->start, token->size);
        crc = crc32c(crc, &token->is_ordinary, 1);
    }
    for (size_t i = 0; i < t->num_merges; i++) crc = crc32c(crc, &t->merges[i].left, 2 * sizeof(int32_t));
    for (size_t i = 0; i < t->num_added; i++) {
        const AddedToken *token = &t->added[i];
        const uint8_t flags[] = {token->single_word, token->lstrip, token->rstrip, token->normalized};
        crc = crc32c(crc, &token->id, sizeof token->id);
        crc = crc32c(crc, flags, sizeof flags);
    }
    crc = crc32c(crc, &t->end_of_text, sizeof t->end_of_text);
    return crc32c(crc, t->prompt_start, t->num_prompt_start * sizeof(int32_t));
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

// Adds the symbol at `left` and its successor to the heap if they can be merged.
static void push_candidate(const Tokenizer *t, Encoder *e, uint32_t left, uint32_t end) {
    uint32_t right = left + e->symbols[left].size;
    if (right == end) return;
    const MergeSlot *slot = find_merge(t, e->symbols[left].id, e->symbols[right].id);
    if (slot->pair == NO_PAIR) return;
    Candidate candidate = {(uint64_t)slot->rank << 32 | left, slot->merged};
    heap_push(e, candidate);
}

// Merges symbols until no pair can be merged. A symbol is stored at the position of its first byte; its size leads to
// the next one.
static void join_symbols(const Tokenizer *t, Encoder *e, uint32_t end) {
    for (uint32_t i = 0; i + 1 < end; i++) push_candidate(t, e, i, end);
    while (e->heap_count > 0) {
        Candidate best = heap_pop(e);
        uint32_t left = (uint32_t)best.order, right = left + e->symbols[left].size;
        if (e->symbols[left].size == 0 || right == end) continue; // merged in the meantime
        const MergeSlot *slot = find_merge(t, e->symbols[left].id, e->symbols[right].id);
        if (slot->pair == NO_PAIR || slot->rank != best.order >> 32) continue; // no longer the same pair
        e->symbols[left].id = best.merged;
        e->symbols[left].size += e->symbols[right].size;
        e->symbols[right].size = 0;
        uint32_t next = left + e->symbols[left].size;
        if (next < end) e->symbols[next].previous = left;
        if (left > 0) push_candidate(t, e, e->symbols[left].previous, end);
        push_candidate(t, e, left, end);
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

// How one text is encoded.
typedef struct {
    const Tokenizer *tokenizer;
    Encoder *encoder;
    int with_end_of_text; // 1 if the content of end of text, in the text, is encoded as that token
    TokenList *ids;
} Encoding;

static void encode_words(const Encoding *e, const char *text, size_t size) {
    const char *word;
    size_t length;
    splitter_start(e->encoder->splitter, text, size);
    while (splitter_next(e->encoder->splitter, &word, &length))
        encode_word(e->tokenizer, e->encoder, word, length, e->ids);
}

// Encodes a text with the added tokens of a set; the parts between them are encoded as separate texts.
static void encode_with_added(const Encoding *e, int set_index, const char *text, size_t size) {
    if (set_index == NUM_SETS) {
        encode_words(e, text, size);
        return;
    }
    const AddedSet *set = e->tokenizer->sets[set_index];
    AddedMatch match;
    size_t done = 0, from = 0;
    while (added_set_find(set, text, size, from, &match)) {
        from = match.end;
        if (match.token->id == e->tokenizer->end_of_text && !e->with_end_of_text) continue;
        if (!added_match_accept(&match, text, size, done, e->encoder->splitter)) continue;
        if (done < match.start) encode_with_added(e, set_index + 1, text + done, match.start - done);
        // An empty match only consumes white space.
        if (match.start < match.end) append_ids(e->ids, &match.token->id, 1);
        done = match.end;
    }
    if (done < size) encode_with_added(e, set_index + 1, text + done, size - done);
}

// Returns 1 if the separator is searched before anything else, 0 if it is found among the added tokens.
static int is_separated_first(const Tokenizer *t, const char *separator) {
    if (separator == NULL || t == NULL || t->end_of_text < 0 || t->end_of_text_is_first)
        return separator != NULL;
    return strcmp(separator, tokenizer_end_of_text_content(t)) != 0;
}

static void encode_chunk(const Tokenizer *t, Encoder *encoder, const char *text, size_t size,
                         const char *separator, TokenList *ids) {
    const int first = is_separated_first(t, separator);
    const Encoding e = {t, encoder, separator != NULL && !first, ids};
    for (;;) {
        const char *found = first ? find_text(text, size, separator) : NULL;
        encode_with_added(&e, 0, text, found == NULL ? size : (size_t)(found - text));
        if (found == NULL) return;
        append_ids(ids, &t->end_of_text, 1);
        size -= (size_t)(found - text) + strlen(separator);
        text = found + strlen(separator);
    }
}

static int is_ascii_space(char c) {
    return c == ' ' || (c >= 9 && c <= 13);
}

// Returns 1 if this can be the last byte of a White_Space character (U+0085, U+00A0, U+1680, U+2000 to U+200A,
// U+2028, U+2029, U+202F, U+205F, U+3000).
static int may_end_space(char c) {
    uint8_t byte = (uint8_t)c;
    return is_ascii_space(c) || (byte >= 0x80 && byte <= 0x8A) || byte == 0x9F || byte == 0xA0 ||
           byte == 0xA8 || byte == 0xA9 || byte == 0xAF;
}

// Returns 1 if no added token begins, ends or continues at `position`.
static int is_outside_added(const Tokenizer *t, const char *text, size_t size, size_t position) {
    for (int i = 0; t != NULL && i < NUM_SETS; i++)
        if (added_set_touches(t->sets[i], text, size, position)) return 0;
    return 1;
}

// Returns the first position in [first, end) where the pattern certainly splits the text, whatever surrounds it, or
// `end`. That is before white space that follows something else: no alternative matches across such a position, and
// the part before it is matched as at the end of a text, because only white space depends on what follows. The flags
// of added tokens that do not touch the position do not look beyond it either.
static size_t find_safe_cut(const Tokenizer *t, const char *text, size_t size, size_t first, size_t end) {
    for (size_t i = first; i < end; i++)
        if (is_ascii_space(text[i]) && !may_end_space(text[i - 1]) && is_outside_added(t, text, size, i))
            return i;
    return end;
}

size_t tokenizer_cut(const Tokenizer *t, const char *text, size_t size, const char *separator,
                     size_t min_bytes) {
    if (!is_separated_first(t, separator)) separator = NULL;
    const size_t length = separator == NULL ? 0 : strlen(separator);
    if (min_bytes >= size) return size;
    // The window grows until it contains a position, so that text without any takes linear time.
    for (size_t window = min_bytes + CHUNK;; window *= 2) {
        size_t end = window < size ? window : size;
        size_t cut = find_safe_cut(t, text, size, min_bytes, end);
        // The cut must not be inside a separator; it may also be directly after one.
        if (separator != NULL) {
            size_t limit = cut + length - 1 < size ? cut + length - 1 : size, at = 0;
            const char *found;
            while ((found = find_text(text + at, limit - at, separator)) != NULL) {
                at = (size_t)(found - text) + length;
                if (at >= min_bytes) return at;
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
    size_t cut = tokenizer_cut(t, text, size, separator, CHUNK), num_chunks = 0;
    ensure_encoders(t, cut == size ? 1 : omp_get_max_threads());
    if (cut == size) {
        encode_chunk(t, t->encoders[0], text, size, separator, ids);
        return;
    }
    Text *chunks = (Text *)xmalloc((size / CHUNK + 1) * sizeof(Text));
    for (size_t start = 0; start < size; start += chunks[num_chunks++].size) {
        chunks[num_chunks].data = text + start;
        chunks[num_chunks].size = tokenizer_cut(t, text + start, size - start, separator, CHUNK);
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

void tokenizer_encode_texts(Tokenizer *t, const Text *texts, size_t count, TokenList *lists) {
    ensure_encoders(t, omp_get_max_threads());
#pragma omp parallel for schedule(dynamic)
    for (size_t i = 0; i < count; i++)
        encode_chunk(t, t->encoders[omp_get_thread_num()], texts[i].data, texts[i].size, NULL, &lists[i]);
}
