// See byte_ngram.h. All counts are stored in one hash table (open addressing, linear probing). A context of k bytes
// is packed into an integer, 9 bits per symbol, below a leading 1 that encodes k; appending a symbol gives the key of
// count(h s), and appending NO_SYMBOL the key of N(h) and T(h).
#include "byte_ngram.h"

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include "layers/base/files.h"

enum { START_MARK = 257, NO_SYMBOL = 511, SYMBOL_BITS = 9 };

typedef struct {
    uint64_t key; // 0: free
    uint32_t count, types;
} Slot;

struct ByteNgram {
    int order;
    Slot *slots;
    size_t num_slots, num_used; // num_slots is a power of two
};

ByteNgram *byte_ngram_new(int order) {
    if (order < 0 || order > BYTE_NGRAM_MAX_ORDER)
        die("the order of an n-gram model is 0 to %d, not %d", BYTE_NGRAM_MAX_ORDER, order);
    ByteNgram *model = xcalloc(1, sizeof(ByteNgram));
    model->order = order;
    model->num_slots = 1024;
    model->slots = xcalloc(model->num_slots, sizeof(Slot));
    return model;
}

void byte_ngram_free(ByteNgram *model) {
    free(model->slots);
    free(model);
}

// Returns the slot of the key, or the free slot where it would be inserted.
static Slot *find_slot(const ByteNgram *model, uint64_t key) {
    uint64_t hash = key * 0x9E3779B97F4A7C15u;
    for (size_t i = (size_t)(hash >> 20);; i++) {
        Slot *slot = &model->slots[i & (model->num_slots - 1)];
        if (slot->key == key || slot->key == 0) return slot;
    }
}

static void grow(ByteNgram *model) {
    Slot *old = model->slots;
    size_t num_old = model->num_slots;
    model->num_slots *= 2;
    model->slots = xcalloc(model->num_slots, sizeof(Slot));
    for (size_t i = 0; i < num_old; i++) {
        if (old[i].key) *find_slot(model, old[i].key) = old[i];
    }
    free(old);
}

// Increments the count of a key. Returns the new count.
static uint32_t count_key(ByteNgram *model, uint64_t key, int new_type) {
    Slot *slot = find_slot(model, key);
    if (slot->key == 0) {
        if (model->num_used * 2 >= model->num_slots) {
            grow(model);
            slot = find_slot(model, key);
        }
        slot->key = key;
        model->num_used++;
    }
    slot->types += new_type;
    return ++slot->count;
}

// Returns the key of the context made of the last k symbols of a history.
static uint64_t context_key(uint64_t history, int k) {
    uint64_t one = (uint64_t)1 << (SYMBOL_BITS * k);
    return one | (history & (one - 1));
}

static uint64_t start_history(void) {
    uint64_t history = 0;
    for (int i = 0; i < BYTE_NGRAM_MAX_ORDER; i++) history = history << SYMBOL_BITS | START_MARK;
    return history;
}

static int symbol_at(const char *text, size_t length, size_t i) {
    return i < length ? (unsigned char)text[i] : BYTE_NGRAM_END;
}

void byte_ngram_add(ByteNgram *model, const char *text, size_t length) {
    uint64_t history = start_history();
    for (size_t i = 0; i <= length; i++) {
        int symbol = symbol_at(text, length, i);
        for (int k = 0; k <= model->order; k++) {
            uint64_t context = context_key(history, k) << SYMBOL_BITS;
            int new_type = count_key(model, context | symbol, 0) == 1;
            count_key(model, context | NO_SYMBOL, new_type);
        }
        history = history << SYMBOL_BITS | symbol;
    }
}

static double probability(const ByteNgram *model, uint64_t history, int symbol) {
    double p = 1.0 / BYTE_NGRAM_SYMBOLS;
    for (int k = 0; k <= model->order; k++) {
        uint64_t context = context_key(history, k) << SYMBOL_BITS;
        const Slot *all = find_slot(model, context | NO_SYMBOL);
        if (all->key == 0) break; // longer contexts were not seen either
        const Slot *one = find_slot(model, context | symbol);
        p = (one->count + all->types * p) / ((double)all->count + all->types);
    }
    return p;
}

double byte_ngram_probability(const ByteNgram *model, const char *text, size_t length, int symbol) {
    uint64_t history = start_history();
    for (size_t i = 0; i < length; i++) history = history << SYMBOL_BITS | (unsigned char)text[i];
    return probability(model, history, symbol);
}

double byte_ngram_bits(const ByteNgram *model, const char *text, size_t length) {
    uint64_t history = start_history();
    double bits = 0;
    for (size_t i = 0; i <= length; i++) {
        int symbol = symbol_at(text, length, i);
        bits -= log2(probability(model, history, symbol));
        history = history << SYMBOL_BITS | symbol;
    }
    return bits;
}
