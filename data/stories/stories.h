// A story corpus of known entropy: short children's stories drawn from a probabilistic grammar.
//
// The grammar is a table of rules (story_rules.h) over word lists (story_words.h). A story is a sequence of choices,
// each uniform among the n alternatives (or among the n words of a list not yet used in the story), so a derivation
// has probability P = prod 1/n and costs -log2 P = sum log2 n bits. Repeating a remembered word costs nothing. The
// grammar is built so that a text has at most one derivation; then -log2 P is the exact information content of the
// text, including its end, and its mean per byte is a lower bound on the loss of every model.
//
// Generator and parser use the same compiled table. The parser does not know the generator's choices: it tries every
// alternative at every position and counts all derivations, so it verifies uniqueness for each text that it is given.
// text it is given.
#ifndef DATA_STORIES_STORIES_H
#define DATA_STORIES_STORIES_H

#include <stddef.h>
#include <stdint.h>

// Separates stories in a file: "...\n<|endoftext|>...\n<|endoftext|>". A story ends with a newline.
#define STORY_END "<|endoftext|>"

enum { STORY_LIMIT = 900 }; // maximal number of bytes of a story

typedef struct {
    uint64_t state;
} StoryRng;

typedef struct {
    char text[STORY_LIMIT + 1]; // ASCII, NUL-terminated
    size_t length;              // bytes
    double bits;                // -log2 P, including the end of the story
    int num_references;         // words that refer back to an earlier choice
} Story;

// Initializes a generator. Streams of the same seed are independent of each other, and the same on every machine.
void story_rng_seed(StoryRng *rng, uint64_t seed, uint64_t stream);
// Generates the next story.
void story_generate(StoryRng *rng, Story *story);

typedef struct {
    uint64_t num_parses; // derivations of the text: 0 or, by construction of the grammar, 1
    double bits;         // -log2 P of the last derivation found; 0 if there is none
    size_t furthest;     // length of the longest prefix that agrees with some derivation
} StoryParse;

StoryParse story_parse(const char *text, size_t length);

// Returns the number of different words of a text, ignoring case; a word is a run of letters and hyphens between
// them.
size_t story_distinct_words(const char *text, size_t length);

// Access to the compiled grammar, for tests: word lists (without rules) and their words.
int story_num_lists(void);
int story_num_words(int list);
const char *story_list_name(int list);
const char *story_word(int list, int word, size_t *length);

#endif
