// Added tokens found in text, as Hugging Face's tokenizers finds them: for the files of the tokenizer only.
//
// A set is searched from left to right; of the tokens that begin at the leftmost place the longest is found, and the
// search goes on behind it. single_word drops a match with a word character (\w) before or after it; lstrip and
// rstrip widen it over the white space on that side.
#ifndef DATA_TOKENIZER_ADDED_H
#define DATA_TOKENIZER_ADDED_H

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
// The token must stay where it is.
void added_set_add(AddedSet *set, const AddedToken *token);
int added_set_is_empty(const AddedSet *set);

// The next match that begins at `from` or later; 0 if there is none.
int added_set_find(const AddedSet *set, const char *text, size_t size, size_t from, AddedMatch *match);
// Applies the token's flags to a match in a text that is used up to `done`: 0 if it is dropped.
int added_match_accept(AddedMatch *match, const char *text, size_t size, size_t done, Splitter *splitter);
// Does any token of the set stand in the text so that it begins, ends or goes on at `position`?
int added_set_touches(const AddedSet *set, const char *text, size_t size, size_t position);

#ifdef __cplusplus
}
#endif
#endif
