// Matches added tokens in text, as Hugging Face's tokenizers do. Used by the tokenizer's own files only.
//
// A set is searched from left to right; of the tokens that begin at the leftmost position the longest is matched, and
// the search continues after it. single_word drops a match that has a word character (\w) before or after it; lstrip
// and rstrip extend it over the white space on that side.
#ifndef DATA_TOKENIZER_TOKENIZER_ADDED_H
#define DATA_TOKENIZER_TOKENIZER_ADDED_H

#include "tokenizer.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct AddedSet AddedSet;

typedef struct {
    const AddedToken *token;
    size_t start, end; // in the text
} AddedMatch;

AddedSet *added_set_create(void);
void added_set_free(AddedSet *set);
// `token` must not be moved or freed while the set is in use.
void added_set_add(AddedSet *set, const AddedToken *token);
int added_set_is_empty(const AddedSet *set);

// Finds the next match that begins at `from` or later. Returns 0 if there is none.
int added_set_find(const AddedSet *set, const char *text, size_t size, size_t from, AddedMatch *match);
// Applies the token's flags to a match in a text that is consumed up to `done`. Returns 0 if the match is dropped.
int added_match_accept(AddedMatch *match, const char *text, size_t size, size_t done, Splitter *splitter);
// Returns 1 if an occurrence of any token of the set begins, ends or continues at `position`.
int added_set_touches(const AddedSet *set, const char *text, size_t size, size_t position);

#ifdef __cplusplus
}
#endif
#endif
