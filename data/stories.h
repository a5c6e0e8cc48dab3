// A story corpus of known entropy: short stories for children, drawn from a probabilistic grammar.
//
// The grammar is a table of rules (story_rules.h) over word lists (story_words.h). A story is a sequence of
// choices, each uniform among the n alternatives (or the n words of a list not yet used in the story), so a
// derivation has probability P = prod 1/n and costs -log2 P = sum log2 n bits. Words remembered and said
// again cost nothing. The grammar is built so that a text has one derivation at most; then -log2 P is the
// exact information of the text, its end included, and its mean per byte is the floor under every model's
// loss.
//
// Generator and parser walk the same compiled table. The parser shares no choices with the generator: it
// tries every alternative at every place and counts all derivations, so it proves the uniqueness for each
// text it is given.
#ifndef DATA_STORIES_H
#define DATA_STORIES_H

#include <stddef.h>
#include <stdint.h>

// What follows each story in a file: "...\n<|endoftext|>...\n<|endoftext|>". A story ends with a newline.
#define STORY_END "<|endoftext|>"

enum { STORY_LIMIT = 900 }; // bytes of a story at most

typedef struct {
    uint64_t state;
} StoryRng;

typedef struct {
    char text[STORY_LIMIT + 1]; // ASCII, NUL-terminated
    size_t length;              // bytes
    double bits;                // -log2 P, end of story included
    int num_references;         // words that refer back to an earlier choice
} Story;

// Streams of the same seed are independent of each other; the same on every machine.
void story_rng_seed(StoryRng *rng, uint64_t seed, uint64_t stream);
// Draws the next story.
void story_generate(StoryRng *rng, Story *story);

typedef struct {
    uint64_t num_parses; // derivations of the text: 0 or, as the grammar is made, 1
    double bits;         // -log2 P of the last one found; 0 if there is none
    size_t furthest;     // bytes up to which some derivation agrees with the text
} StoryParse;

StoryParse story_parse(const char *text, size_t length);

// Different words of a text, capital or small; a word is a run of letters and the hyphens between them.
size_t story_distinct_words(const char *text, size_t length);

// The compiled grammar, for tests: word lists (rules are not counted) and their words.
int story_num_lists(void);
int story_num_words(int list);
const char *story_list_name(int list);
const char *story_word(int list, int word, size_t *length);

#endif
