// A set of added tokens is a trie of their bytes. See tokenizer_added.h.
#include "tokenizer_added.h"

#include <stdlib.h>
#include <string.h>

#define NO_NODE UINT32_MAX

// A node's children form a linked list.
typedef struct {
    uint32_t child, sibling;
    uint8_t byte;
    const AddedToken *token; // the token that ends here, or NULL
} Node;

struct AddedSet {
    Node *nodes; // nodes[0] is the root
    uint32_t num_nodes, capacity;
    size_t longest;     // in bytes
    int num_beginnings; // number of different first bytes
    uint8_t beginning, begins[256];
};

static uint32_t add_node(AddedSet *set, uint8_t byte) {
    if (set->num_nodes == set->capacity) {
        set->capacity = 2 * set->capacity + 64;
        set->nodes = (Node *)xrealloc(set->nodes, set->capacity * sizeof(Node));
    }
    Node node = {NO_NODE, NO_NODE, byte, NULL};
    set->nodes[set->num_nodes] = node;
    return set->num_nodes++;
}

AddedSet *added_set_create(void) {
    AddedSet *set = (AddedSet *)xcalloc(1, sizeof *set);
    add_node(set, 0);
    return set;
}

void added_set_free(AddedSet *set) {
    if (set == NULL) return;
    free(set->nodes);
    free(set);
}

int added_set_is_empty(const AddedSet *set) {
    return set->num_beginnings == 0;
}

static uint32_t find_child(const AddedSet *set, uint32_t node, uint8_t byte) {
    uint32_t child = set->nodes[node].child;
    while (child != NO_NODE && set->nodes[child].byte != byte) child = set->nodes[child].sibling;
    return child;
}

void added_set_add(AddedSet *set, const AddedToken *token) {
    const size_t size = strlen(token->content);
    uint32_t node = 0;
    for (size_t i = 0; i < size; i++) {
        const uint8_t byte = (uint8_t)token->content[i];
        uint32_t child = find_child(set, node, byte);
        if (child == NO_NODE) {
            child = add_node(set, byte);
            set->nodes[child].sibling = set->nodes[node].child;
            set->nodes[node].child = child;
        }
        node = child;
    }
    set->nodes[node].token = token;
    set->beginning = (uint8_t)token->content[0];
    set->num_beginnings += !set->begins[set->beginning];
    set->begins[set->beginning] = 1;
    if (size > set->longest) set->longest = size;
}

// Returns the position of the next byte, at `from` or later, with which a token begins; `size` if there is none.
static size_t find_beginning(const AddedSet *set, const char *text, size_t size, size_t from) {
    if (set->num_beginnings == 1) {
        const char *found = from < size ? (const char *)memchr(text + from, set->beginning, size - from)
                                        : NULL;
        return found == NULL ? size : (size_t)(found - text);
    }
    while (from < size && !set->begins[(uint8_t)text[from]]) from++;
    return from;
}

int added_set_find(const AddedSet *set, const char *text, size_t size, size_t from, AddedMatch *match) {
    if (added_set_is_empty(set)) return 0;
    for (;; from++) {
        from = find_beginning(set, text, size, from);
        if (from >= size) return 0;
        match->token = NULL;
        uint32_t node = find_child(set, 0, (uint8_t)text[from]);
        for (size_t at = from + 1; node != NO_NODE; at++) {
            if (set->nodes[node].token != NULL) {
                match->token = set->nodes[node].token;
                match->end = at;
            }
            node = at < size ? find_child(set, node, (uint8_t)text[at]) : NO_NODE;
        }
        if (match->token == NULL) continue;
        match->start = from;
        return 1;
    }
}

int added_match_accept(AddedMatch *match, const char *text, size_t size, size_t done, Splitter *splitter) {
    const AddedToken *token = match->token;
    if (token->single_word && (splitter_ends_with_word(splitter, text, match->start) ||
                               splitter_begins_with_word(splitter, text + match->end, size - match->end)))
        return 0;
    if (token->lstrip) {
        size_t start = match->start - trailing_white_space(text, match->start);
        match->start = start > done ? start : done;
    }
    if (token->rstrip) match->end += leading_white_space(text + match->end, size - match->end);
    return 1;
}

int added_set_touches(const AddedSet *set, const char *text, size_t size, size_t position) {
    if (added_set_is_empty(set)) return 0;
    for (size_t start = position > set->longest ? position - set->longest : 0; start <= position; start++) {
        uint32_t node = start < size ? find_child(set, 0, (uint8_t)text[start]) : NO_NODE;
        for (size_t at = start + 1; node != NO_NODE; at++) {
            if (set->nodes[node].token != NULL && at >= position) return 1;
            node = at < size ? find_child(set, node, (uint8_t)text[at]) : NO_NODE;
        }
    }
    return 0;
}
