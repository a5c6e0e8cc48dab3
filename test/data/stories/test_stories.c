// The story corpus: every story has one derivation, whose bits are those of its choices; corrupted stories have none;
// the corpus has the documented size, vocabulary and references. And the n-gram baseline: its probabilities are a
// distribution and equal values computed by hand.
#include "data/stories/byte_ngram.h"
#include "layers/base/files.h"
#include "data/stories/stories.h"
#include "test/harness/test.h"

#include <ctype.h>
#include <math.h>
#include <string.h>

static void test_parses(void) {
    enum { STORIES = 2000 };
    StoryRng rng;
    Story story;
    int wrong_count = 0, wrong_bits = 0;
    story_rng_seed(&rng, 7, 0);
    for (int i = 0; i < STORIES; i++) {
        story_generate(&rng, &story);
        StoryParse parsed = story_parse(story.text, story.length);
        wrong_count += parsed.num_parses != 1;
        wrong_bits += fabs(parsed.bits - story.bits) > 1e-9;
        if (parsed.num_parses != 1 && wrong_count == 1)
            printf("%d parses of:\n%s", (int)parsed.num_parses, story.text);
    }
    EXPECT(wrong_count == 0, "%d of %d stories do not have one derivation", wrong_count, STORIES);
    EXPECT(wrong_bits == 0, "%d of %d stories have other bits when parsed", wrong_bits, STORIES);
}

// Counts "a" before a vowel and "an" before a consonant; u and h are pronounced both ways.
static int wrong_articles(const char *text) {
    int wrong = 0;
    for (const char *at = text; (at = strstr(at, " a ")) != NULL; at++)
        wrong += strchr("aeio", at[3]) != NULL;
    for (const char *at = text; (at = strstr(at, " an ")) != NULL; at++)
        wrong += strchr("aeiouh", at[4]) == NULL;
    return wrong;
}

static void test_shape(void) {
    StoryRng rng;
    Story story;
    int bad_end = 0, bad_byte = 0, bad_length = 0, few_references = 0, bad_articles = 0;
    story_rng_seed(&rng, 8, 0);
    for (int i = 0; i < 2000; i++) {
        story_generate(&rng, &story);
        bad_length += story.length < 300 || story.length > STORY_LIMIT || story.length != strlen(story.text);
        bad_end += story.text[story.length - 1] != '\n' || strstr(story.text, "\n\n") != NULL;
        few_references += story.num_references < 3;
        bad_articles += wrong_articles(story.text);
        for (size_t k = 0; k < story.length; k++)
            bad_byte += story.text[k] != '\n' && !isprint((unsigned char)story.text[k]);
        bad_byte += strpbrk(story.text, "{}|_^<>") != NULL || strstr(story.text, "  ") != NULL;
    }
    EXPECT(bad_length == 0, "%d stories of a bad length", bad_length);
    EXPECT(bad_end == 0, "%d stories do not end in one newline", bad_end);
    EXPECT(bad_byte == 0, "%d bytes that do not belong in a story", bad_byte);
    EXPECT(bad_articles == 0, "%d times 'a' for 'an' or the reverse", bad_articles);
    EXPECT(few_references == 0, "%d stories with fewer than 3 references back", few_references);
}

// Parses the story after replacing `removed` bytes at `at` by `inserted`. Returns the number of derivations.
static int parses_of_edit(const Story *story, size_t at, size_t removed, const char *inserted) {
    char *text = format_text("%.*s%s%s", (int)at, story->text, inserted, story->text + at + removed);
    int parses = (int)story_parse(text, strlen(text)).num_parses;
    free(text);
    return parses;
}

// Returns the position of the hero's first name.
static size_t find_name(const Story *story, size_t *length) {
    const char *named = strstr(story->text, " named "), *end = strchr(story->text, '.');
    const char *name = named && named < end ? named + strlen(" named ") : story->text;
    *length = strcspn(name, " ,.\n");
    return (size_t)(name - story->text);
}

static void test_corruption(void) {
    enum { STORIES = 50 };
    StoryRng rng;
    Story story;
    int renamed = 0, dropped = 0, cut = 0, longer = 0, shortest = 99;
    story_rng_seed(&rng, 9, 0);
    for (int i = 0; i < STORIES; i++) {
        story_generate(&rng, &story);
        size_t length, name = find_name(&story, &length);
        renamed += parses_of_edit(&story, name, length, story.text[name] == 'T' ? "Milo" : "Tom") != 0;
        int words = 0;
        for (size_t at = 0; at < story.length; words++) { // drops every single word, with the blank after it
            size_t word = strcspn(story.text + at, " \n") + 1;
            if (parses_of_edit(&story, at, word, "") != 0 && ++dropped == 1)
                printf("dropping the word at byte %d leaves a story:\n%s", (int)at, story.text);
            at += word;
        }
        if (words < shortest) shortest = words;
        cut += story_parse(story.text, story.length - 1).num_parses != 0;
        longer += parses_of_edit(&story, story.length, 0, "\n") != 0;
    }
    EXPECT(renamed == 0, "%d stories parse after the hero was renamed in one place", renamed);
    EXPECT(dropped == 0, "%d stories parse after a word was dropped", dropped);
    EXPECT(cut == 0 && longer == 0, "%d stories parse when cut, %d when continued", cut, longer);
    EXPECT(shortest >= 50, "a story of only %d words", shortest);
    EXPECT(story_parse("", 0).num_parses == 0, "the empty text parses");
    EXPECT(story_parse("Once upon a time", 16).furthest >= 11, "the parser stops early");
}

// Compares the sizes of corpora of about 10 MB and counts the words.
static void test_corpus(void) {
    enum { SIZE = 10000000 };
    char *text = xmalloc(SIZE + STORY_LIMIT);
    size_t size = 0;
    StoryRng rng;
    Story story, other;
    story_rng_seed(&rng, 1, 0);
    while (size < SIZE) {
        story_generate(&rng, &story);
        memcpy(text + size, story.text, story.length);
        size += story.length;
    }
    size_t words = story_distinct_words(text, size);
    EXPECT(words >= 1500, "%zu different words in 10 MB", words);
    StoryRng same, seed, stream;
    story_rng_seed(&same, 1, 0);
    story_rng_seed(&seed, 2, 0);
    story_rng_seed(&stream, 1, 1);
    story_generate(&same, &story);
    EXPECT(memcmp(text, story.text, story.length) == 0, "the same seed tells another story");
    story_generate(&seed, &other);
    EXPECT(strcmp(story.text, other.text) != 0, "another seed tells the same story");
    story_generate(&stream, &other);
    EXPECT(strcmp(story.text, other.text) != 0, "another stream tells the same story");
    free(text);
    EXPECT(story_distinct_words("A top-hat, a Top hat: a-", 24) == 5,
           "words are not counted as they should be");
}

static void test_mean_bits(void) {
    enum { HALF = 3000 };
    StoryRng rng;
    Story story;
    double mean[2], variance = 0;
    story_rng_seed(&rng, 3, 0);
    for (int half = 0; half < 2; half++) {
        double sum = 0, squares = 0;
        for (int i = 0; i < HALF; i++) {
            story_generate(&rng, &story);
            sum += story.bits;
            squares += story.bits * story.bits;
        }
        mean[half] = sum / HALF;
        variance += (squares / HALF - mean[half] * mean[half]) / HALF;
    }
    EXPECT(fabs(mean[0] - mean[1]) < 5 * sqrt(variance), "mean bits %.3f and %.3f, standard error %.3f",
           mean[0], mean[1], sqrt(variance));
}

static int same_word(int list_a, int a, int list_b, int b) {
    size_t length_a, length_b;
    const char *word_a = story_word(list_a, a, &length_a), *word_b = story_word(list_b, b, &length_b);
    return length_a == length_b && memcmp(word_a, word_b, length_a) == 0;
}

static int is_name_list(int list) {
    const char *name = story_list_name(list);
    return strstr(name, "_name") != NULL;
}

static void test_word_lists(void) {
    for (int i = 0; i < story_num_lists(); i++) {
        for (int k = i; k < story_num_lists(); k++) {
            if (i != k && !(is_name_list(i) && is_name_list(k))) continue;
            int twice = 0;
            for (int a = 0; a < story_num_words(i); a++) {
                for (int b = i == k ? a + 1 : 0; b < story_num_words(k); b++) twice += same_word(i, a, k, b);
            }
            EXPECT(twice == 0, "%d words of list %s also in list %s", twice, story_list_name(i),
                   story_list_name(k));
        }
    }
}

static void test_ngram_by_hand(void) {
    // Model of "aab" and its end, order 1. Empty context: a 2, b 1, end 1, so N = 4, T = 3:
    //     p(a) = (2 + 3/257) / 7, p(b) = p(end) = (1 + 3/257) / 7, others (3/257) / 7.
    // After the start: a 1 (N = 1, T = 1). After a: a 1, b 1 (2, 2). After b: end 1 (1, 1).
    ByteNgram *model = byte_ngram_new(1);
    byte_ngram_add(model, "aab", 3);
    double u = 3.0 / 257, a = (2 + u) / 7, b = (1 + u) / 7, other = u / 7;
    double first = (1 + a) / 2, a_after_a = (1 + 2 * a) / 4, b_after_a = (1 + 2 * b) / 4, end = (1 + b) / 2;
    double bits = -log2(first * a_after_a * b_after_a * end);
    EXPECT(fabs(byte_ngram_probability(model, "", 0, 'a') - first) < 1e-12, "first symbol");
    EXPECT(fabs(byte_ngram_probability(model, "a", 1, 'b') - b_after_a) < 1e-12, "b after a");
    EXPECT(fabs(byte_ngram_probability(model, "ab", 2, 'z') - other / 2) < 1e-12, "an unseen symbol after b");
    EXPECT(fabs(byte_ngram_probability(model, "z", 1, 'a') - a) < 1e-12, "an unseen context");
    EXPECT(fabs(byte_ngram_bits(model, "aab", 3) - bits) < 1e-12, "a whole document");
    byte_ngram_free(model);
}

static void test_ngram_sums(void) {
    static const char *const contexts[] = {"", "O", "Once", "Once upon a t", "zzzzzz", "\n", "ed to the "};
    ByteNgram *model = byte_ngram_new(5);
    StoryRng rng;
    Story story;
    double before = 0, after = 0;
    story_rng_seed(&rng, 4, 0);
    for (int i = 0; i < 1000; i++) {
        story_generate(&rng, &story);
        if (i == 10) before = byte_ngram_bits(model, story.text, story.length);
        byte_ngram_add(model, story.text, story.length);
    }
    story_generate(&rng, &story);
    after = byte_ngram_bits(model, story.text, story.length);
    for (size_t i = 0; i < sizeof(contexts) / sizeof(contexts[0]); i++) {
        double sum = 0;
        for (int symbol = 0; symbol < BYTE_NGRAM_SYMBOLS; symbol++)
            sum += byte_ngram_probability(model, contexts[i], strlen(contexts[i]), symbol);
        EXPECT(fabs(sum - 1) < 1e-10, "probabilities after '%s' sum to %.15f", contexts[i], sum);
    }
    EXPECT(after < before, "1000 stories do not help: %.1f and %.1f bits", before, after);
    EXPECT(after > story.bits, "%.1f bits, below the %.1f of the grammar", after, story.bits);
    byte_ngram_free(model);
}

int main(void) {
    test_parses();
    test_shape();
    test_corruption();
    test_corpus();
    test_mean_bits();
    test_word_lists();
    test_ngram_by_hand();
    test_ngram_sums();
    return test_finish();
}
