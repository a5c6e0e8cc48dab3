// Incremental training of byte-pair encoding.
//
// 1. Pre-tokens are counted, on every core in a separate table; the tables are added up afterwards.
// 2. The distinct pre-tokens are stored one after another as linked lists of symbols. For every pair of adjacent
// symbols there is its count (weighted by the frequency of the pre-token) and a list of the positions where it has
// occurred.
// 3. A heap yields the most frequent pair. Its positions are visited; where the pair still occurs it is merged, and
// the counts of the neighbouring pairs are adjusted. So the cost of a merge is proportional to its number of
// occurrences.
//
// Heap entries are not updated when a count falls: an entry that is popped with an outdated count is pushed again
// with the correct one. A count rises only in the merge that creates one of the pair's two tokens, and the pair's
// entry is pushed after that merge. Equal counts are ordered by the ids of the pair, smaller first, as in Hugging
// Face's trainer; the result does not depend on the number of cores.
#define _GNU_SOURCE // memmem
#include "tokenizer.h"
#include "layers/base/progress.h"

#include <omp.h>
#include <stdlib.h>
#include <string.h>

enum {
    COUNT_CHUNK = 1 << 20, // bytes of text that a thread counts at a time
    MIN_COUNT = 2          // a pair that occurs once is not worth a token
};
#define NO_PAIR UINT32_MAX

// ---- counting pre-tokens ----------------------------------------------------------------------------------

typedef struct {
    uint64_t hash;
    size_t start; // in WordTable.bytes
    uint32_t size;
    int64_t count; // 0: an empty slot
} Word;

typedef struct {
    Word *slots;
    size_t mask, num_words;
    char *bytes;
    size_t num_bytes, capacity;
} WordTable;

static void table_create(WordTable *table) {
    memset(table, 0, sizeof *table);
    table->mask = (1 << 12) - 1;
    table->slots = (Word *)xcalloc(table->mask + 1, sizeof(Word));
}

static void table_free(WordTable *table) {
    free(table->slots);
    free(table->bytes);
}

static void table_grow(WordTable *table) {
    Word *old = table->slots;
    size_t old_size = table->mask + 1;
    table->mask = 2 * old_size - 1;
    table->slots = (Word *)xcalloc(table->mask + 1, sizeof(Word));
    for (size_t i = 0; i < old_size; i++) {
        if (old[i].count == 0) continue;
        size_t slot = old[i].hash & table->mask;
        while (table->slots[slot].count != 0) slot = (slot + 1) & table->mask;
        table->slots[slot] = old[i];
    }
    free(old);
}

static void table_add(WordTable *table, const char *bytes, size_t size, uint64_t hash, int64_t count) {
    size_t slot = hash & table->mask;
    for (; table->slots[slot].count != 0; slot = (slot + 1) & table->mask) {
        Word *word = &table->slots[slot];
        if (word->hash != hash || word->size != size || memcmp(table->bytes + word->start, bytes, size) != 0)
            continue;
        word->count += count;
        return;
    }
    if (table->num_bytes + size > table->capacity) {
        table->capacity = 2 * (table->num_bytes + size) + (1 << 16);
        table->bytes = (char *)xrealloc(table->bytes, table->capacity);
    }
    memcpy(table->bytes + table->num_bytes, bytes, size);
    Word word = {hash, table->num_bytes, (uint32_t)size, count};
    table->slots[slot] = word;
    table->num_bytes += size;
    if (2 * ++table->num_words > table->mask) table_grow(table);
}

static void count_text(WordTable *table, Splitter *splitter, const char *text, size_t size) {
    const char *word;
    size_t length;
    splitter_start(splitter, text, size);
    while (splitter_next(splitter, &word, &length))
        table_add(table, word, length, hash_bytes(word, length), 1);
}

static void count_chunk(WordTable *table, Splitter *splitter, Text chunk, const char *separator) {
    const char *found;
    while (separator != NULL &&
           (found = (const char *)memmem(chunk.data, chunk.size, separator, strlen(separator)))) {
        count_text(table, splitter, chunk.data, (size_t)(found - chunk.data));
        chunk.size -= (size_t)(found - chunk.data) + strlen(separator);
        chunk.data = found + strlen(separator);
    }
    count_text(table, splitter, chunk.data, chunk.size);
}

// Takes the next chunk from the front of the texts; its size is 0 if there is none.
static Text take_chunk(Text *texts, size_t num_texts, size_t *current, const char *separator) {
    while (*current < num_texts && texts[*current].size == 0) (*current)++;
    Text chunk = {NULL, 0};
    if (*current == num_texts) return chunk;
    Text *text = &texts[*current];
    chunk.data = text->data;
    chunk.size = tokenizer_cut(NULL, text->data, text->size, separator, COUNT_CHUNK);
    text->data += chunk.size;
    text->size -= chunk.size;
    return chunk;
}

static void count_words(WordTable *total, const Text *texts, size_t num_texts, const char *separator) {
    Text *left = (Text *)xmalloc((num_texts + 1) * sizeof(Text));
    uint64_t size = 0, done = 0;
    size_t current = 0;
    for (size_t i = 0; i < num_texts; i++) {
        left[i] = texts[i];
        size += texts[i].size;
    }
    Progress progress;
    progress_start(&progress, "counting words", "B", size);
    table_create(total);
#pragma omp parallel if (size > COUNT_CHUNK)
    {
        WordTable table;
        table_create(&table);
        Splitter *splitter = splitter_create();
        for (;;) {
            Text chunk;
#pragma omp critical
            {
                chunk = take_chunk(left, num_texts, &current, separator);
                done += chunk.size;
                progress_update(&progress, done);
            }
            if (chunk.size == 0) break;
            count_chunk(&table, splitter, chunk, separator);
        }
        splitter_free(splitter);
#pragma omp critical
        for (size_t i = 0; i <= table.mask; i++) {
            const Word *word = &table.slots[i];
            if (word->count > 0)
                table_add(total, table.bytes + word->start, word->size, word->hash, word->count);
        }
        table_free(&table);
    }
    progress_finish(&progress);
    free(left);
}

// ---- pairs ------------------------------------------------------------------------------------------------

typedef struct {
    int32_t id; // -1: merged into the preceding symbol
    uint32_t previous, next, word;
} Symbol;

typedef struct {
    int32_t left, right;
    int64_t count;
    uint32_t *positions; // of its left symbol; some are outdated
    uint32_t num_positions, capacity;
    uint32_t is_rising; // 1 if it is in `rising`
} Pair;

typedef struct {
    int64_t count;
    int32_t left, right;
    uint32_t pair;
} HeapEntry;

typedef struct {
    Symbol *symbols;
    int64_t *word_counts;
    Pair *pairs;
    uint32_t num_pairs, pair_capacity;
    uint32_t *slots; // hash table of pairs; NOWHERE: empty
    size_t mask;
    HeapEntry *heap;
    size_t heap_count, heap_capacity;
    uint32_t *rising; // pairs whose counts rose in the current merge
    size_t num_rising, rising_capacity;
} Trainer;

static size_t pair_slot(const Trainer *trainer, int32_t left, int32_t right) {
    uint64_t hash = ((uint64_t)(uint32_t)left << 32 | (uint32_t)right) * 0x9FB21C651E98DF25u;
    size_t slot = (hash ^ hash >> 32) & trainer->mask;
    for (; trainer->slots[slot] != NO_PAIR; slot = (slot + 1) & trainer->mask) {
        const Pair *pair = &trainer->pairs[trainer->slots[slot]];
        if (pair->left == left && pair->right == right) break;
    }
    return slot;
}

static void resize_pair_table(Trainer *trainer, size_t size) {
    free(trainer->slots);
    trainer->mask = size - 1;
    trainer->slots = (uint32_t *)xmalloc(size * sizeof(uint32_t));
    memset(trainer->slots, 0xFF, size * sizeof(uint32_t));
    for (uint32_t i = 0; i < trainer->num_pairs; i++)
        trainer->slots[pair_slot(trainer, trainer->pairs[i].left, trainer->pairs[i].right)] = i;
}

static uint32_t find_pair(Trainer *trainer, int32_t left, int32_t right) {
    size_t slot = pair_slot(trainer, left, right);
    if (trainer->slots[slot] != NO_PAIR) return trainer->slots[slot];
    if (trainer->num_pairs == trainer->pair_capacity) {
        trainer->pair_capacity = 2 * trainer->pair_capacity + 1024;
        trainer->pairs = (Pair *)xrealloc(trainer->pairs, trainer->pair_capacity * sizeof(Pair));
    }
    Pair pair = {left, right, 0, NULL, 0, 0, 0};
    uint32_t index = trainer->num_pairs++;
    trainer->pairs[index] = pair;
    trainer->slots[slot] = index;
    if (2 * (size_t)trainer->num_pairs > trainer->mask) resize_pair_table(trainer, 2 * (trainer->mask + 1));
    return index;
}

// Records that the pair at `position` now occurs.
static void add_occurrence(Trainer *trainer, uint32_t position) {
    const Symbol *left = &trainer->symbols[position];
    uint32_t index = find_pair(trainer, left->id, trainer->symbols[left->next].id);
    Pair *pair = &trainer->pairs[index];
    if (pair->num_positions == pair->capacity) {
        pair->capacity = 2 * pair->capacity + 2;
        pair->positions = (uint32_t *)xrealloc(pair->positions, pair->capacity * sizeof(uint32_t));
    }
    pair->positions[pair->num_positions++] = position;
    pair->count += trainer->word_counts[left->word];
    if (pair->is_rising) return;
    if (trainer->num_rising == trainer->rising_capacity) {
        trainer->rising_capacity = 2 * trainer->rising_capacity + 256;
        trainer->rising = (uint32_t *)xrealloc(trainer->rising, trainer->rising_capacity * sizeof(uint32_t));
    }
    trainer->rising[trainer->num_rising++] = index;
    pair->is_rising = 1;
}

static void remove_occurrence(Trainer *trainer, uint32_t position) {
    const Symbol *left = &trainer->symbols[position];
    uint32_t index = find_pair(trainer, left->id, trainer->symbols[left->next].id);
    trainer->pairs[index].count -= trainer->word_counts[left->word];
}

// ---- the heap ---------------------------------------------------------------------------------------------

static int comes_first(const HeapEntry *a, const HeapEntry *b) {
    if (a->count != b->count) return a->count > b->count;
    return a->left != b->left ? a->left < b->left : a->right < b->right;
}

static void heap_push(Trainer *trainer, uint32_t index) {
    if (trainer->heap_count == trainer->heap_capacity) {
        trainer->heap_capacity = 2 * trainer->heap_capacity + 1024;
        trainer->heap = (HeapEntry *)xrealloc(trainer->heap, trainer->heap_capacity * sizeof(HeapEntry));
    }
    const Pair *pair = &trainer->pairs[index];
    HeapEntry *heap = trainer->heap, entry = {pair->count, pair->left, pair->right, index};
    size_t at = trainer->heap_count++;
    for (; at > 0 && comes_first(&entry, &heap[(at - 1) / 2]); at = (at - 1) / 2)
        heap[at] = heap[(at - 1) / 2];
    heap[at] = entry;
}

static HeapEntry heap_pop(Trainer *trainer) {
    HeapEntry *heap = trainer->heap, top = heap[0], last = heap[--trainer->heap_count];
    size_t at = 0;
    for (;;) {
        size_t child = 2 * at + 1;
        if (child >= trainer->heap_count) break;
        if (child + 1 < trainer->heap_count && comes_first(&heap[child + 1], &heap[child])) child++;
        if (!comes_first(&heap[child], &last)) break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = last;
    return top;
}

// Returns the most frequent pair, or NOWHERE if none is frequent enough.
static uint32_t pop_best(Trainer *trainer) {
    while (trainer->heap_count > 0) {
        HeapEntry entry = heap_pop(trainer);
        int64_t count = trainer->pairs[entry.pair].count;
        if (count == entry.count) return count >= MIN_COUNT ? entry.pair : NO_PAIR;
        if (count >= MIN_COUNT) heap_push(trainer, entry.pair);
    }
    return NO_PAIR;
}

static void push_rising(Trainer *trainer) {
    for (size_t i = 0; i < trainer->num_rising; i++) {
        Pair *pair = &trainer->pairs[trainer->rising[i]];
        pair->is_rising = 0;
        if (pair->count >= MIN_COUNT) heap_push(trainer, trainer->rising[i]);
    }
    trainer->num_rising = 0;
}

// ---- merging ----------------------------------------------------------------------------------------------

static int join_at(Trainer *trainer, uint32_t position, int32_t left, int32_t right, int32_t merged) {
    Symbol *symbols = trainer->symbols, *symbol = &symbols[position];
    uint32_t second = symbol->next;
    if (symbol->id != left || second == NO_PAIR || symbols[second].id != right) return 0;
    if (symbol->previous != NO_PAIR) remove_occurrence(trainer, symbol->previous);
    if (symbols[second].next != NO_PAIR) remove_occurrence(trainer, second);
    symbol->id = merged;
    symbol->next = symbols[second].next;
    symbols[second].id = -1;
    if (symbol->next != NO_PAIR) symbols[symbol->next].previous = position;
    if (symbol->previous != NO_PAIR) add_occurrence(trainer, symbol->previous);
    if (symbol->next != NO_PAIR) add_occurrence(trainer, position);
    return 1;
}

static void join_everywhere(Trainer *trainer, uint32_t index, int32_t merged) {
    const int32_t left = trainer->pairs[index].left, right = trainer->pairs[index].right;
    uint32_t *positions = trainer->pairs[index].positions, count = trainer->pairs[index].num_positions;
    trainer->pairs[index].positions = NULL;
    trainer->pairs[index].num_positions = trainer->pairs[index].capacity = 0;
    // The positions ascend, because all of them were recorded in one pass over the text; so pairs are merged from
    // left to right. Otherwise "aaa" would be merged differently than in encoding.
    for (uint32_t i = 0; i < count; i++) join_at(trainer, positions[i], left, right, merged);
    free(positions);
    push_rising(trainer);
}

static int start_trainer(Trainer *trainer, const WordTable *words, const Tokenizer *t, Error *error) {
    memset(trainer, 0, sizeof *trainer);
    if (words->num_bytes >= NO_PAIR || words->num_words >= NO_PAIR)
        return fail(error,
                    "the text has %zu bytes of distinct words, more than the %u that can be trained on",
                    words->num_bytes, NO_PAIR - 1);
    trainer->symbols = (Symbol *)xmalloc((words->num_bytes + 1) * sizeof(Symbol));
    trainer->word_counts = (int64_t *)xmalloc((words->num_words + 1) * sizeof(int64_t));
    resize_pair_table(trainer, 1 << 12);
    uint32_t position = 0, word_index = 0;
    for (size_t slot = 0; slot <= words->mask; slot++) {
        const Word *word = &words->slots[slot];
        if (word->count == 0) continue;
        trainer->word_counts[word_index] = word->count;
        for (uint32_t i = 0; i < word->size; i++, position++) {
            Symbol symbol = {tokenizer_find(t, words->bytes + word->start + i, 1),
                             i > 0 ? position - 1 : NO_PAIR, i + 1 < word->size ? position + 1 : NO_PAIR,
                             word_index};
            trainer->symbols[position] = symbol;
        }
        word_index++;
    }
    for (uint32_t i = 0; i < position; i++)
        if (trainer->symbols[i].next != NO_PAIR) add_occurrence(trainer, i);
    push_rising(trainer);
    return 0;
}

static void free_trainer(Trainer *trainer) {
    for (uint32_t i = 0; i < trainer->num_pairs; i++) free(trainer->pairs[i].positions);
    free(trainer->pairs);
    free(trainer->slots);
    free(trainer->heap);
    free(trainer->rising);
    free(trainer->symbols);
    free(trainer->word_counts);
}

// Adds the token for the merged pair. No earlier merge can have produced the same bytes: wherever these occurred as
// complete tokens, nothing was ever merged across their ends, so the merges inside were the same everywhere.
static int32_t add_joined(Tokenizer *t, int32_t left, int32_t right, Error *error) {
    const int32_t id = tokenizer_vocab_size(t);
    size_t left_size, right_size;
    const char *a = tokenizer_bytes(t, left, &left_size), *b = tokenizer_bytes(t, right, &right_size);
    char *joined = (char *)xmalloc(left_size + right_size);
    memcpy(joined, a, left_size);
    memcpy(joined + left_size, b, right_size);
    int result = tokenizer_add_token(t, id, joined, left_size + right_size, error);
    free(joined);
    return result == 0 ? id : -1;
}

static int learn_merges(Trainer *trainer, Tokenizer *t, int32_t num_ordinary, Error *error) {
    Progress progress;
    progress_start(&progress, "learning merges", "tokens", (uint64_t)num_ordinary);
    int result = 0;
    while (result == 0 && tokenizer_vocab_size(t) < num_ordinary) {
        uint32_t best = pop_best(trainer);
        if (best == NO_PAIR) break;
        const int32_t left = trainer->pairs[best].left, right = trainer->pairs[best].right;
        int32_t merged = add_joined(t, left, right, error);
        result = merged < 0 ? -1 : tokenizer_add_merge(t, left, right, error);
        if (result == 0) join_everywhere(trainer, best, merged);
        progress_update(&progress, (uint64_t)tokenizer_vocab_size(t));
    }
    progress_finish(&progress);
    return result;
}

// The 256 bytes are in the order of their characters in the alphabet, as in GPT-2.
static int add_bytes(Tokenizer *t, Error *error) {
    int32_t id = 0;
    for (uint32_t character = 0; id < 256; character++) {
        int byte = character_to_byte(character);
        char c = (char)byte;
        if (byte >= 0 && tokenizer_add_token(t, id++, &c, 1, error) != 0) return -1;
    }
    return 0;
}

// Adds the last token. It precedes every document, so a prompt begins with it.
static int add_end_of_text(Tokenizer *t, Error *error) {
    const int32_t id = tokenizer_vocab_size(t);
    char *post_processor = format_text(
        "{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"%s\",\"type_id\":0}},"
        "{\"Sequence\":{\"id\":\"A\",\"type_id\":0}}],\"pair\":[{\"SpecialToken\":{\"id\":\"%s\",\"type_id\":"
        "0}},"
        "{\"Sequence\":{\"id\":\"A\",\"type_id\":0}},{\"Sequence\":{\"id\":\"B\",\"type_id\":1}}],"
        "\"special_tokens\":{\"%s\":{\"id\":\"%s\",\"ids\":[%d],\"tokens\":[\"%s\"]}}}",
        END_OF_TEXT, END_OF_TEXT, END_OF_TEXT, END_OF_TEXT, id, END_OF_TEXT);
    int result = tokenizer_add_token(t, id, END_OF_TEXT, strlen(END_OF_TEXT), error);
    if (result == 0) result = tokenizer_set_end_of_text(t, END_OF_TEXT);
    if (result == 0) tokenizer_set_prompt_start(t, &id, 1, post_processor);
    free(post_processor);
    return result;
}

static int learn(Tokenizer *t, const Text *texts, size_t num_texts, int32_t num_ordinary,
                 const char *separator, Error *error) {
    if (num_ordinary == 256) return 0;
    WordTable words;
    Trainer trainer;
    count_words(&words, texts, num_texts, separator);
    int result = start_trainer(&trainer, &words, t, error);
    table_free(&words);
    if (result == 0) result = learn_merges(&trainer, t, num_ordinary, error);
    free_trainer(&trainer);
    return result;
}

Tokenizer *tokenizer_train(const Text *texts, size_t num_texts, int32_t vocab_size, const char *separator,
                           Error *error) {
    if (vocab_size < 256) {
        fail(error, "a vocabulary of %d tokens is too small, expected at least 256, one for each byte",
             vocab_size);
        return NULL;
    }
    const int32_t num_ordinary = vocab_size == 256 ? 256 : vocab_size - 1;
    Tokenizer *t = tokenizer_create(vocab_size);
    int result = add_bytes(t, error);
    if (result == 0) result = learn(t, texts, num_texts, num_ordinary, separator, error);
    if (result == 0 && num_ordinary < vocab_size) result = add_end_of_text(t, error);
    if (result == 0) result = tokenizer_finish(t, error);
    if (result == 0) return t;
    tokenizer_free(t);
    return NULL;
}
