// The tokenizer: merges, pre-tokens and ids compared with a table made by another implementation; training and
// encoding compared with naive versions; files written, read, and refused when damaged.
#define _GNU_SOURCE // memmem
#include "data/tokenizer/tokenizer.h"
#include "layers/base/progress.h"
#include "data/model/generation_config.h"
#include "tokenizer_added_table.h"
#include "tokenizer_table.h"
#include "test/harness/test.h"

#include <omp.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char folder[64];

static char *in_folder(const char *name) {
    return format_text("%s/%s", folder, name);
}

// ---- random text ------------------------------------------------------------------------------------------

static uint64_t random_state = 1;

static uint32_t random_below(uint32_t limit) {
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((random_state >> 33) % limit);
}

static size_t put_utf8(char *out, uint32_t c) {
    if (c < 0x80) return out[0] = (char)c, 1;
    if (c < 0x800) return out[0] = (char)(0xC0 | c >> 6), out[1] = (char)(0x80 | (c & 63)), 2;
    out[0] = (char)(0xE0 | c >> 12);
    out[1] = (char)(0x80 | (c >> 6 & 63));
    out[2] = (char)(0x80 | (c & 63));
    return 3;
}

// Parts that cover the pattern's corner cases: contractions, every kind of space, letters and marks beyond ASCII;
// and, if requested, bytes that are not UTF-8.
static size_t random_text(char *out, size_t size, int with_invalid) {
    static const char *const pieces[] = {"'s", "'t", "'re", "'ve",  "'m",        "'ll",      "'d",   "'",
                                         " ",  "  ", "\n",  "\r\n", "\t",        "word",     "Text", "a",
                                         "12", "7",  "!",   "...",  "e\xCC\x81", "\xC3\xA9", " the"};
    static const uint32_t others[] = {0x85,   0xA0,   0x1680, 0x180E, 0x2003, 0x2028, 0x202F,
                                      0x205F, 0x3000, 0x200B, 0xFEFF, 0x660,  0x2167, 0x4E00,
                                      0x3042, 0x5D0,  0x915,  0x1C,   0xAD,   0x301};
    size_t used = 0;
    while (used + 8 < size) {
        uint32_t kind = random_below(20);
        if (kind == 0) {
            used += put_utf8(out + used, others[random_below(sizeof others / sizeof others[0])]);
        } else if (kind == 1 && with_invalid) {
            out[used++] = (char)(128 + random_below(128));
        } else if (kind < 4) {
            out[used++] = (char)random_below(128);
        } else {
            const char *piece = pieces[random_below(sizeof pieces / sizeof pieces[0])];
            memcpy(out + used, piece, strlen(piece));
            used += strlen(piece);
        }
    }
    return used;
}

// ---- the table --------------------------------------------------------------------------------------------

// Appends numbers separated by spaces.
typedef struct {
    char text[4096];
    size_t size;
} Numbers;

static void add_number(Numbers *numbers, size_t number) {
    numbers->size += (size_t)snprintf(numbers->text + numbers->size, sizeof numbers->text - numbers->size,
                                      "%s%zu", numbers->size > 0 ? " " : "", number);
}

static Tokenizer *train(const char *text, size_t size, int32_t vocab_size) {
    Text input = {text, size};
    Error error = {"", 0};
    Tokenizer *t = tokenizer_train(&input, 1, vocab_size, END_OF_TEXT, &error);
    EXPECT(t != NULL, "%s", error.text);
    return t;
}

static Tokenizer *train_on_table(void) {
    return train(TABLE_TEXT, sizeof TABLE_TEXT - 1, TABLE_VOCAB);
}

static void test_table_merges(const Tokenizer *t) {
    const char *expected = TABLE_MERGES;
    for (size_t i = 0; i < tokenizer_num_merges(t); i++) {
        int32_t left, right;
        int wanted_left = -1, wanted_right = -1, length = 0;
        tokenizer_merge(t, i, &left, &right);
        EXPECT(sscanf(expected, "%d %d%n", &wanted_left, &wanted_right, &length) == 2,
               "merge %zu is too much", i);
        EXPECT(left == wanted_left && right == wanted_right, "merge %zu is %d %d, expected %d %d", i, left,
               right, wanted_left, wanted_right);
        expected += length;
        if (*expected == ',') expected += 2;
    }
    EXPECT(*expected == 0, "merges are missing");
    EXPECT(tokenizer_vocab_size(t) == TABLE_VOCAB && tokenizer_end_of_text(t) == TABLE_VOCAB - 1,
           "end of text");
}

static void add_pretokens(Numbers *lengths, const char *text, size_t text_size, int use_scanner) {
    Splitter *splitter = splitter_create();
    const char *pretoken;
    size_t size, next = 0;
    splitter_use_scanner(splitter, use_scanner);
    splitter_start(splitter, text, text_size);
    while (splitter_next(splitter, &pretoken, &size)) {
        EXPECT(pretoken == text + next, "a gap before the pre-token at %zu", next);
        add_number(lengths, size);
        next += size;
    }
    EXPECT(next == text_size, "pre-tokens end at %zu of %zu", next, text_size);
    splitter_free(splitter);
}

static void test_table_sample(Tokenizer *t, const TableSample *sample, int use_scanner) {
    Numbers lengths = {"", 0}, ids = {"", 0};
    add_pretokens(&lengths, sample->text, sample->size, use_scanner);
    if (strcmp(sample->pretokens, "-") != 0)
        EXPECT(strcmp(lengths.text, sample->pretokens) == 0, "'%s': pre-tokens of %s bytes, expected %s",
               sample->text, lengths.text, sample->pretokens);
    TokenList list = {NULL, 0, 0};
    tokenizer_encode(t, sample->text, sample->size, END_OF_TEXT, &list);
    for (size_t i = 0; i < list.count; i++) add_number(&ids, (size_t)list.ids[i]);
    EXPECT(strcmp(ids.text, sample->ids) == 0, "'%s' is %s, expected %s", sample->text, ids.text,
           sample->ids);
    free(list.ids);
}

static void test_table(void) {
    Tokenizer *t = train_on_table();
    test_table_merges(t);
    for (size_t i = 0; i < sizeof TABLE_SAMPLES / sizeof TABLE_SAMPLES[0]; i++) {
        test_table_sample(t, &TABLE_SAMPLES[i], 1);
        test_table_sample(t, &TABLE_SAMPLES[i], 0);
    }
    tokenizer_free(t);
}

static void test_byte_alphabet(void) {
    const int expected[][2] = {{0, 0x100},    {' ', 0x120}, {'!', '!'},    {0x7F, 0x121},
                               {0xA0, 0x142}, {0xA1, 0xA1}, {0xAD, 0x143}, {0xFF, 0xFF}};
    for (size_t i = 0; i < sizeof expected / sizeof expected[0]; i++)
        EXPECT(byte_to_character(expected[i][0]) == expected[i][1], "byte %d", expected[i][0]);
    int bytes = 0;
    for (uint32_t c = 0; c < 0x400; c++) bytes += character_to_byte(c) >= 0;
    EXPECT(bytes == 256, "%d characters in the alphabet", bytes);
    for (int byte = 0; byte < 256; byte++)
        EXPECT(character_to_byte((uint32_t)byte_to_character(byte)) == byte, "byte %d does not come back",
               byte);
}

// ---- splitting --------------------------------------------------------------------------------------------

static void test_scanner_equals_pattern(void) {
    enum { SIZE = 400 };
    Splitter *scanner = splitter_create(), *pattern = splitter_create();
    splitter_use_scanner(pattern, 0);
    int differences = 0;
    for (int round = 0; round < 2000; round++) {
        char text[SIZE];
        size_t size = random_text(text, 20 + random_below(SIZE - 20), round % 2), size1, size2;
        const char *a = NULL, *b = NULL;
        splitter_start(scanner, text, size);
        splitter_start(pattern, text, size);
        for (;;) {
            int more = splitter_next(scanner, &a, &size1);
            if (more != splitter_next(pattern, &b, &size2) || (more && (a != b || size1 != size2)))
                differences++;
            if (!more) break;
        }
    }
    EXPECT(differences == 0, "%d pre-tokens differ", differences);
    splitter_free(scanner);
    splitter_free(pattern);
}

// Bytes that are not UTF-8: runs of them are pre-tokens, and the text between them is matched as separate texts.
static void test_invalid_bytes(void) {
    static const struct {
        const char *text, *pretokens;
    } cases[] = {{"a\xFF\xFE"
                  "b",
                  "1 2 1"},
                 {"a  \xFF"
                  "b",
                  "1 2 1 1"},
                 {"\xE2\x82", "2"},
                 {"\xE2\x82\xAC", "3"},
                 {"a\xC0\xAF"
                  "b",
                  "1 2 1"},                         // overlong
                 {"!\xED\xA0\x80", "1 3"},          // a surrogate
                 {"\xED\x9F\xBF\xEE\x80\x80", "6"}, // next to the surrogates, valid: one run of symbols
                 {"!\xF4\x90\x80\x80", "1 4"},      // above U+10FFFF
                 {"\xF0\x8F\xBF\xBF\xF0\x90\x80\x80", "4 4"}, // overlong, then a letter
                 {" \x80 ", "1 1 1"}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        Numbers lengths = {"", 0};
        add_pretokens(&lengths, cases[i].text, strlen(cases[i].text), 1);
        EXPECT(strcmp(lengths.text, cases[i].pretokens) == 0, "case %zu: %s, expected %s", i, lengths.text,
               cases[i].pretokens);
    }
}

static void test_longest_pretoken(void) {
    const size_t size = (size_t)MAX_PRETOKEN * 2 + 10, whole = MAX_PRETOKEN / 3 * 3; // no character is cut
    char *text = (char *)xmalloc(size + 3);
    for (size_t i = 0; i < size; i += 3) memcpy(text + i, "\xE6\x96\x87", 3);
    Splitter *splitter = splitter_create();
    const char *pretoken;
    size_t length;
    splitter_start(splitter, text, size - size % 3 + 1); // the last character is cut: a run of invalid bytes
    size_t expected[] = {whole, whole, size - size % 3 - 2 * whole, 1};
    for (int i = 0; i < 4; i++)
        EXPECT(splitter_next(splitter, &pretoken, &length) == 1 && length == expected[i],
               "pre-token %d: %zu bytes", i, length);
    EXPECT(splitter_next(splitter, &pretoken, &length) == 0, "more than four pre-tokens");
    splitter_free(splitter);
    free(text);
}

// ---- encoding ---------------------------------------------------------------------------------------------

static int decodes_to(const Tokenizer *t, const TokenList *ids, const char *text, size_t size) {
    size_t at = 0;
    for (size_t i = 0; i < ids->count; i++) {
        size_t length;
        const char *bytes = tokenizer_bytes(t, ids->ids[i], &length);
        if (bytes == NULL || length > size - at || memcmp(text + at, bytes, length) != 0) return 0;
        at += length;
    }
    return at == size;
}

static void test_round_trip(void) {
    Tokenizer *t = train_on_table(), *bytes_only = train("", 0, 256);
    EXPECT(tokenizer_end_of_text(bytes_only) == -1 && tokenizer_vocab_size(bytes_only) == 256, "256 tokens");
    char *text = (char *)xmalloc(5000);
    for (int round = 0; round < 200; round++) {
        size_t size = 5000;
        if (round % 2)
            size = random_text(text, size, 1);
        else
            for (size_t i = 0; i < size; i++) text[i] = (char)random_below(256);
        TokenList ids = {NULL, 0, 0}, plain = {NULL, 0, 0};
        tokenizer_encode(t, text, size, NULL, &ids);
        tokenizer_encode(bytes_only, text, size, END_OF_TEXT, &plain);
        EXPECT(decodes_to(t, &ids, text, size), "round %d: not the same bytes", round);
        EXPECT(decodes_to(bytes_only, &plain, text, size) && plain.count == size, "round %d: bytes alone",
               round);
        free(ids.ids);
        free(plain.ids);
    }
    free(text);
    size_t length;
    EXPECT(tokenizer_bytes(t, -1, &length) == NULL && tokenizer_bytes(t, TABLE_VOCAB, &length) == NULL,
           "bad ids");
    tokenizer_free(bytes_only);
    tokenizer_free(t);
}

// The definition: of all adjacent pairs, merge the one whose merge was learned first, leftmost, until there is none.
static size_t encode_naively(const Tokenizer *t, int32_t *ids, size_t count) {
    for (;;) {
        size_t best_rank = SIZE_MAX, best = 0;
        for (size_t i = 0; i + 1 < count; i++)
            for (size_t rank = 0; rank < tokenizer_num_merges(t) && rank < best_rank; rank++) {
                int32_t left, right;
                tokenizer_merge(t, rank, &left, &right);
                if (left != ids[i] || right != ids[i + 1]) continue;
                best_rank = rank;
                best = i;
            }
        if (best_rank == SIZE_MAX) return count;
        size_t size1, size2;
        const char *a = tokenizer_bytes(t, ids[best], &size1), *b = tokenizer_bytes(t, ids[best + 1], &size2);
        char joined[256];
        memcpy(joined, a, size1);
        memcpy(joined + size1, b, size2);
        ids[best] = tokenizer_find(t, joined, size1 + size2);
        memmove(ids + best + 1, ids + best + 2, (count - best - 2) * sizeof *ids);
        count--;
    }
}

static void test_encoding_is_naive_encoding(void) {
    Tokenizer *t = train_on_table();
    for (int round = 0; round < 500; round++) {
        char word[60];
        int32_t ids[60];
        size_t size = 1 + random_below(60);
        const char *letters = round % 2 ? "etoinsrh" : "abcdefghijklmnopqrstuvwxyz";
        for (size_t i = 0; i < size; i++) {
            word[i] = letters[random_below((uint32_t)strlen(letters))];
            ids[i] = tokenizer_find(t, &word[i], 1);
        }
        size_t count = encode_naively(t, ids, size);
        TokenList list = {NULL, 0, 0};
        tokenizer_encode(t, word, size, NULL, &list);
        EXPECT(list.count == count && memcmp(list.ids, ids, count * sizeof *ids) == 0,
               "'%.*s': %zu ids, expected %zu", (int)size, word, list.count, count);
        free(list.ids);
    }
    tokenizer_free(t);
}

// Encodes text that is long enough for several chunks, pre-token by pre-token.
static void encode_in_order(Tokenizer *t, const char *text, size_t size, const char *separator,
                            TokenList *ids) {
    Splitter *splitter = splitter_create();
    for (;;) {
        const char *found = separator ? (const char *)memmem(text, size, separator, strlen(separator)) : NULL,
                   *word;
        size_t length;
        splitter_start(splitter, text, found ? (size_t)(found - text) : size);
        while (splitter_next(splitter, &word, &length)) tokenizer_encode(t, word, length, NULL, ids);
        if (found == NULL) break;
        tokenizer_encode(t, END_OF_TEXT, strlen(END_OF_TEXT), END_OF_TEXT, ids);
        size -= (size_t)(found - text) + strlen(separator);
        text = found + strlen(separator);
    }
    splitter_free(splitter);
}

static int same_ids(const TokenList *a, const TokenList *b) {
    return a->count == b->count && memcmp(a->ids, b->ids, a->count * sizeof(int32_t)) == 0;
}

static void test_chunks(Tokenizer *t, const char *text, size_t size, const char *separator) {
    TokenList whole = {NULL, 0, 0}, parts = {NULL, 0, 0};
    encode_in_order(t, text, size, separator, &whole);
    tokenizer_encode(t, text, size, separator, &parts);
    EXPECT(same_ids(&whole, &parts), "chunks give other ids (separator '%s')", separator ? separator : "");
    parts.count = 0;
    size_t pieces = 0;
    for (size_t start = 0; start < size; pieces++) {
        size_t cut = tokenizer_cut(t, text + start, size - start, separator, 1 + random_below(5000));
        tokenizer_encode(t, text + start, cut, separator, &parts);
        start += cut;
    }
    EXPECT(same_ids(&whole, &parts), "%zu cuts give other ids (separator '%s')", pieces,
           separator ? separator : "");
    free(whole.ids);
    free(parts.ids);
}

// Cutting text around any kind of white space does not change its pre-tokens.
static void test_cuts_at_white_space(void) {
    static const uint32_t spaces[] = {9,      10,     11,     12,     13,     32,     0x85,   0xA0,   0x1680,
                                      0x2000, 0x2001, 0x2002, 0x2003, 0x2004, 0x2005, 0x2006, 0x2007, 0x2008,
                                      0x2009, 0x200A, 0x2028, 0x2029, 0x202F, 0x205F, 0x3000, 0x180E, 0x200B};
    for (size_t i = 0; i < sizeof spaces / sizeof spaces[0]; i++) {
        char text[32] = "x";
        size_t size = 1 + put_utf8(text + 1, spaces[i]);
        memcpy(text + size, "  y \n\n z", 9);
        size += 9;
        Numbers whole = {"", 0};
        add_pretokens(&whole, text, size, 1);
        for (size_t least = 1; least <= size; least++) {
            Numbers parts = {"", 0};
            size_t cut = tokenizer_cut(NULL, text, size, NULL, least);
            add_pretokens(&parts, text, cut, 1);
            add_pretokens(&parts, text + cut, size - cut, 1);
            EXPECT(cut >= least && strcmp(whole.text, parts.text) == 0,
                   "U+%04X: other pre-tokens when cut at %zu", spaces[i], cut);
        }
    }
}

static void test_parallel_encoding(void) {
    const size_t size = 1500000;
    Tokenizer *t = train_on_table();
    char *text = (char *)xmalloc(size);
    size_t used = random_text(text, size, 1);
    for (size_t i = 0; i + 100 < used; i += 1 + random_below(3000)) memcpy(text + i, END_OF_TEXT, 13);
    test_chunks(t, text, used, NULL);
    test_chunks(t, text, used, END_OF_TEXT);
    test_chunks(t, text, used, "\n\n"); // may overlap itself, and contains positions to cut at
    test_chunks(t, text, used, " ");
    for (size_t i = 0; i + 100 < used; i += 1 + random_below(100)) memcpy(text + i, "the end of it", 13);
    test_chunks(t, text, used, "the end of it"); // contains positions to cut at
    int threads = omp_get_max_threads();
    omp_set_num_threads(3);
    test_chunks(t, text, used, END_OF_TEXT);
    omp_set_num_threads(threads);
    for (size_t i = 0; i < used; i++) text[i] = "abcdef"[random_below(6)]; // no position to cut at
    EXPECT(tokenizer_cut(t, text, used, NULL, 1) == used, "cut inside a word");
    for (size_t i = 0; i + 100 < used; i += 200000) memcpy(text + i, END_OF_TEXT, 13);
    test_chunks(t, text, used, END_OF_TEXT);
    free(text);
    tokenizer_free(t);
}

static void test_long_word(void) {
    const size_t size = 1 << 20;
    Tokenizer *t = train_on_table();
    char *text = (char *)xmalloc(size);
    for (int kind = 0; kind < 3; kind++) {
        for (size_t i = 0; i < size; i++)
            text[i] = kind == 0 ? 'e' : kind == 1 ? "thesaino"[random_below(8)] : ' ';
        TokenList ids = {NULL, 0, 0};
        double started = seconds_now();
        tokenizer_encode(t, text, size, NULL, &ids);
        double seconds = seconds_now() - started;
        EXPECT(seconds < 10, "a word of 1 MiB took %.1f s", seconds); // quadratic time would be hours
        EXPECT(decodes_to(t, &ids, text, size), "not the same bytes");
        free(ids.ids);
    }
    free(text);
    tokenizer_free(t);
}

// ---- training ---------------------------------------------------------------------------------------------

typedef struct {
    int32_t *ids;
    size_t count;
} NaiveWord;

static int64_t count_naively(const NaiveWord *words, size_t num_words, int32_t left, int32_t right) {
    int64_t count = 0;
    for (size_t w = 0; w < num_words; w++)
        for (size_t i = 0; i + 1 < words[w].count; i++)
            count += words[w].ids[i] == left && words[w].ids[i + 1] == right;
    return count;
}

// Returns the count of the most frequent pair, smallest ids first, by counting every pair from scratch.
static int64_t best_naively(const NaiveWord *words, size_t num_words, int32_t *left, int32_t *right) {
    int64_t best = 0;
    for (size_t w = 0; w < num_words; w++)
        for (size_t i = 0; i + 1 < words[w].count; i++) {
            int32_t a = words[w].ids[i], b = words[w].ids[i + 1];
            int64_t count = count_naively(words, num_words, a, b);
            int smaller = a < *left || (a == *left && b < *right);
            if (count < best || (count == best && !smaller)) continue;
            best = count;
            *left = a;
            *right = b;
        }
    return best;
}

static void join_naively(NaiveWord *word, int32_t left, int32_t right, int32_t merged) {
    size_t out = 0;
    for (size_t i = 0; i < word->count; i++) {
        int here = i + 1 < word->count && word->ids[i] == left && word->ids[i + 1] == right;
        word->ids[out++] = here ? merged : word->ids[i];
        i += (size_t)here;
    }
    word->count = out;
}

static void test_training_is_naive_training(const char *text, size_t size, int num_merges) {
    Text input = {text, size};
    Error error = {"", 0};
    Tokenizer *t = tokenizer_train(&input, 1, 257 + num_merges, NULL,
                                   &error); // or the largest that the text allows
    if (!EXPECT(t != NULL, "%s", error.text)) return;
    NaiveWord *words = (NaiveWord *)xmalloc((size + 1) * sizeof(NaiveWord));
    size_t num_words = 0, length;
    Splitter *splitter = splitter_create();
    const char *pretoken;
    splitter_start(splitter, text, size);
    while (splitter_next(splitter, &pretoken, &length)) {
        words[num_words].ids = (int32_t *)xmalloc(length * sizeof(int32_t));
        words[num_words].count = length;
        for (size_t i = 0; i < length; i++) words[num_words].ids[i] = tokenizer_find(t, pretoken + i, 1);
        num_words++;
    }
    for (size_t i = 0; i < tokenizer_num_merges(t); i++) {
        int32_t left = 0, right = 0, left2, right2;
        int64_t count = best_naively(words, num_words, &left, &right);
        tokenizer_merge(t, i, &left2, &right2);
        if (!EXPECT(count >= 2 && left == left2 && right == right2,
                    "'%.*s': merge %zu is %d %d, expected %d %d", (int)size, text, i, left2, right2, left,
                    right))
            break;
        char joined[512];
        size_t size1, size2;
        const char *a = tokenizer_bytes(t, left, &size1);
        memcpy(joined, a, size1);
        const char *b = tokenizer_bytes(t, right, &size2);
        memcpy(joined + size1, b, size2);
        int32_t merged = tokenizer_find(t, joined, size1 + size2);
        for (size_t w = 0; w < num_words; w++) join_naively(&words[w], left, right, merged);
    }
    if (tokenizer_num_merges(t) < (size_t)num_merges) {
        int32_t left = 0, right = 0;
        EXPECT(best_naively(words, num_words, &left, &right) < 2, "'%.*s': it ends too early", (int)size,
               text);
    }
    for (size_t w = 0; w < num_words; w++) free(words[w].ids);
    free(words);
    splitter_free(splitter);
    tokenizer_free(t);
}

static void test_training(void) {
    for (int round = 0; round < 150; round++) {
        char text[120];
        size_t size = 10 + random_below(110);
        const char *letters = round % 3 == 0 ? "aab " : round % 3 == 1 ? "aaaaaab" : "abcde  ";
        for (size_t i = 0; i < size; i++) text[i] = letters[random_below((uint32_t)strlen(letters))];
        test_training_is_naive_training(text, size, 25);
    }
    test_training_is_naive_training(TABLE_TEXT, 700, 60);
}

static void expect_training_error(const char *text, int32_t vocab_size, const char *words) {
    Text input = {text, strlen(text)};
    Error error = {"(no message)", 0};
    Tokenizer *t = tokenizer_train(&input, 1, vocab_size, END_OF_TEXT, &error);
    EXPECT(t == NULL && strstr(error.text, words) != NULL, "wanted '%s', got '%s'", words, error.text);
    tokenizer_free(t);
}

// A text that is too small for the vocabulary size gives fewer tokens.
static void expect_smaller(const char *text, int32_t vocab_size, int32_t expected) {
    Tokenizer *t = train(text, strlen(text), vocab_size);
    EXPECT(tokenizer_vocab_size(t) == expected && tokenizer_end_of_text(t) == expected - 1, "'%s': %d tokens",
           text, tokenizer_vocab_size(t));
    tokenizer_free(t);
}

static void test_training_edges(void) {
    expect_training_error("some text", 255, "expected at least 256");
    expect_training_error("some text", -1, "expected at least 256");
    expect_smaller("", 258, 257);
    expect_smaller("abc abc", 300, 259);
    expect_smaller("<|endoftext|>a<|endoftext|>a<|endoftext|>a", 258, 257);
    Tokenizer *t = train("", 0, 257);
    EXPECT(tokenizer_end_of_text(t) == 256 && tokenizer_num_merges(t) == 0, "257 tokens");
    tokenizer_free(t);
    // The same result with one and several threads, and with several texts instead of one.
    size_t size = 3000000;
    char *text = (char *)xmalloc(size);
    for (size_t used = 0; used + sizeof TABLE_TEXT < size; used += sizeof TABLE_TEXT)
        memcpy(text + used, TABLE_TEXT, sizeof TABLE_TEXT);
    int threads = omp_get_max_threads();
    omp_set_num_threads(1);
    Tokenizer *one = train(text, size / sizeof TABLE_TEXT * sizeof TABLE_TEXT - sizeof TABLE_TEXT, 600);
    omp_set_num_threads(4);
    Tokenizer *four = train(text, size / sizeof TABLE_TEXT * sizeof TABLE_TEXT - sizeof TABLE_TEXT, 600);
    omp_set_num_threads(threads);
    EXPECT(tokenizer_checksum(one) == tokenizer_checksum(four), "another vocabulary with more threads");
    tokenizer_free(one);
    tokenizer_free(four);
    free(text);
}

// ---- files ------------------------------------------------------------------------------------------------

static char *read_text(const char *path, size_t *size) {
    char *data = NULL;
    Error error = {"", 0};
    EXPECT(file_read(path, 1 << 26, &data, size, &error) == 0, "%s", error.text);
    return data;
}

static void write_text(const char *path, const char *text, size_t size) {
    Error error = {"", 0};
    EXPECT(file_write(path, text, size, &error) == 0, "%s", error.text);
}

// The file must load and give the same tokenizer; GPT-2's two files do not define what a prompt begins with.
static void expect_same(const char *path, Tokenizer *t, int with_prompt) {
    Error error = {"", 0};
    Tokenizer *other = tokenizer_load(path, &error);
    if (!EXPECT(other != NULL, "%s", error.text)) return;
    EXPECT((tokenizer_checksum(other) == tokenizer_checksum(t)) == with_prompt, "%s: other tokens", path);
    EXPECT(tokenizer_end_of_text(other) == tokenizer_end_of_text(t), "%s: other end of text", path);
    TokenList a = {NULL, 0, 0}, b = {NULL, 0, 0};
    tokenizer_encode(t, TABLE_TEXT, sizeof TABLE_TEXT - 1, END_OF_TEXT, &a);
    tokenizer_encode(other, TABLE_TEXT, sizeof TABLE_TEXT - 1, END_OF_TEXT, &b);
    EXPECT(same_ids(&a, &b), "%s: other ids", path);
    free(a.ids);
    free(b.ids);
    tokenizer_free(other);
}

// Copies the text, with each merge `"left right"` written as `["left", "right"]`.
static char *with_array_merges(const char *text) {
    char *out = (char *)xmalloc(2 * strlen(text) + 1), *to = out;
    const char *merges = strstr(text, "\"merges\": [") + strlen("\"merges\": [");
    for (const char *c = text; *c != 0; c++) {
        int quoted = c > merges && *c == '"' && c[-1] != '\\';
        if (quoted && c[-1] == ' ')
            to += sprintf(to, "[\"");
        else if (quoted)
            to += sprintf(to, "\"]");
        else if (c > merges && *c == ' ' && c[-1] != ' ' && c[1] != ' ')
            to += sprintf(to, "\", \"");
        else
            *to++ = *c;
    }
    *to = 0;
    return out;
}

// Writes GPT-2's two files from the text of a tokenizer.json.
static void write_pair(const char *text, const char *vocabulary_path, const char *merges_path) {
    const char *vocabulary = strstr(text, "\"vocab\": ") + strlen("\"vocab\": ");
    write_text(vocabulary_path, vocabulary, (size_t)(strstr(vocabulary, "\n    },") + 6 - vocabulary));
    char *lines = (char *)xmalloc(strlen(text)), *to = lines;
    to += sprintf(to, "#version: 0.2\n");
    const char *line = strstr(text, "\"merges\": [\n") + strlen("\"merges\": [\n");
    for (; line[4] == ' '; line = strchr(line, '\n') + 1) {
        const char *first = strchr(line, '"') + 1;
        for (const char *c = first; !(*c == '"' && c[-1] != '\\'); c++)
            if (*c != '\\' || c[-1] == '\\') *to++ = *c;
        *to++ = '\n';
    }
    write_text(merges_path, lines, (size_t)(to - lines));
    free(lines);
}

static void test_files(void) {
    Tokenizer *t = train_on_table();
    Error error = {"", 0};
    char *path = in_folder("tokenizer.json"), *second = in_folder("second.json");
    EXPECT(tokenizer_save(t, path, &error) == 0, "%s", error.text);
    expect_same(path, t, 1);
    expect_same(folder, t, 1);
    size_t size, size2;
    char *text = read_text(path, &size);
    Tokenizer *loaded = tokenizer_load(path, &error);
    EXPECT(tokenizer_save(loaded, second, &error) == 0, "%s", error.text);
    char *again = read_text(second, &size2);
    EXPECT(size == size2 && memcmp(text, again, size) == 0, "saved, loaded and saved is not the same");
    char *arrays = with_array_merges(text);
    write_text(second, arrays, strlen(arrays));
    expect_same(second, t, 1);
    const char *const names[][2] = {{"encoder.json", "vocab.bpe"}, {"vocab.json", "merges.txt"}};
    unlink(path);
    for (int i = 0; i < 2; i++) {
        char *vocabulary = in_folder(names[i][0]), *merges = in_folder(names[i][1]);
        write_pair(text, vocabulary, merges);
        expect_same(folder, t, 0);
        unlink(vocabulary);
        unlink(merges);
        free(vocabulary);
        free(merges);
    }
    EXPECT(tokenizer_load(folder, &error) == NULL && strstr(error.text, folder), "'%s'", error.text);
    EXPECT(tokenizer_load("/no/such/file", &error) == NULL && strstr(error.text, "/no/such/file"), "'%s'",
           error.text);
    EXPECT(tokenizer_save(t, "/no/such/file", &error) == -1 && strstr(error.text, "/no/such/file"), "'%s'",
           error.text);
    free(text);
    free(again);
    free(arrays);
    free(path);
    free(second);
    tokenizer_free(loaded);
    tokenizer_free(t);
}

static void expect_refused(const char *text, size_t size, const char *words) {
    char *path = in_folder("damaged.json");
    Error error = {"(no message)", 0};
    write_text(path, text, size);
    Tokenizer *t = tokenizer_load(path, &error);
    EXPECT(t == NULL, "accepted, expected '%s'", words);
    EXPECT(strstr(error.text, words) != NULL && strstr(error.text, path) != NULL, "wanted '%s', got '%s'",
           words, error.text);
    tokenizer_free(t);
    unlink(path);
    free(path);
}

// An intact file with one part of its text replaced must be refused.
static void expect_change_refused(const char *text, const char *from, const char *to, const char *words) {
    const char *at = strstr(text, from);
    if (!EXPECT(at != NULL, "'%s' is not in the file", from)) return;
    char *changed = format_text("%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
    expect_refused(changed, strlen(changed), words);
    free(changed);
}

// The replaced text of an intact file, its replacement, and a part of the sentence that refuses it.
static const char *const DAMAGES[][3] = {
    {"\"BPE\"", "\"Unigram\"", "not of type BPE"},
    {"\"normalizer\": null", "\"normalizer\": {\"type\": \"NFC\"}", "normalizer"},
    {"\"use_regex\": true", "\"use_regex\": false", "GPT-2's pattern"},
    {"\"add_prefix_space\": false", "\"add_prefix_space\": true", "add_prefix_space"},
    {"\"version\"", "\"vision\": 1, \"version\"", "key vision is not known"},
    {"\"type\": \"BPE\"", "\"type\": \"BPE\", \"shift\": 0", "key model.shift is not known"},
    {"\"pre_tokenizer\": {", "\"pre_tokenizer\": {\"behavior\": 1,",
     "key pre_tokenizer.behavior is not known"},
    {"\"pre_tokenizer\": {\"type\": \"ByteLevel\"", "\"pre_tokenizer\": {\"type\": \"Split\"",
     "pre_tokenizer is Split"},
    {"\"single_word\"", "\"flag\": 0, \"single_word\"", "key added_tokens.flag is not known"},
    {"\"single_word\": false", "\"single_word\": 1", "neither true nor false"},
    {"\"truncation\": null", "\"truncation\": {\"max_length\": 8}", "truncation shortens"},
    {"\"padding\": null", "\"padding\": {\"pad_id\": 0}", "padding adds"},
    {"{\"type\":\"TemplateProcessing\"", "{\"type\":\"RobertaProcessing\"",
     "post_processor is RobertaProcessing"},
    {"\"type\":\"TemplateProcessing\"", "\"type\":\"TemplateProcessing\",\"sep\":1",
     "key post_processor.sep is not known"},
    {"\"ids\":[440]", "\"ids\":[441]", "an id that is not a token"},
    {"\"ids\":[440]", "\"id2\":[440]", "no ids for its special token"},
    {"\"Sequence\":{\"id\":\"A\"", "\"Sequence\":{\"id\":\"B\"", "special token"},
    {"\"decoder\": {\"type\": \"ByteLevel\"", "\"decoder\": {\"type\": \"WordPiece\"", "decoder"},
    {"\"continuing_subword_prefix\": null", "\"continuing_subword_prefix\": \"##\"",
     "continuing_subword_prefix"},
    {"\"ignore_merges\": false", "\"ignore_merges\": true", "ignore_merges"},
    {"\"dropout\": null", "\"dropout\": 0.1", "dropout"},
    {"\"vocab\": {", "\"vocabulary\": {", "model.vocab"},
    {"\"merges\": [", "\"merges\": [7,", "merge 1 is neither"},
    {"\"merges\": [", "\"merges\": [[\"a\"],", "merge 1 is neither"},
    {"\"merges\": [", "\"merges\": [\"ab\",", "merge 1 is 'ab'"},
    {"\"merges\": [", "\"merges\": [\"q \",", "not a token"},
    {"\"merges\": [", "\"merges\": [\"q zzz\",", "not a token"},
    {"\"merges\": [", "\"merges\": [\"q q\",", "no ordinary token"},
    {"\"!\": 0", "\"!\": 1", "two tokens with id 1"},
    {"\"!\": 0", "\"!\": -1", "no valid id"},
    {"\"!\": 0", "\"!\": 0.5", "no valid id"},
    {"\"!\": 0", "\"!\": 1e99", "no valid id"},
    {"\"!\": 0", "\"!\": \"0\"", "no valid id"},
    {"\"!\": 0", "\"\": 0", "empty"},
    {"\"!\": 0", "\"qqqq\": 0", "no token for byte 33"},
    {"\"!\": 0", "\" \": 0", "byte alphabet"},
    {"\"!\": 0", "\"\\u4e00\": 0", "byte alphabet"},
    {"\"!\": 0", "\"#\": 0", "are the same"},
    {"\"id\": 440", "\"id\": 442", "added_tokens"},
    {"\"id\": 440", "\"id\": 441", "has id 441 in added_tokens and 440 in the vocabulary"},
    {"\"id\": 440", "\"ID\": 440", "added_tokens"},
};

static void test_damaged_files(void) {
    Tokenizer *t = train_on_table();
    Error error = {"", 0};
    char *path = in_folder("good.json");
    EXPECT(tokenizer_save(t, path, &error) == 0, "%s", error.text);
    size_t size;
    char *text = read_text(path, &size);
    expect_refused("", 0, "is damaged");
    expect_refused("{}", 2, "no \"model\"");
    expect_refused("[1]", 3, "not a JSON object");
    expect_refused("{} x", 4, "is damaged");
    expect_refused(text, size / 2, "is damaged");
    expect_refused("{\"a\0\": 1}", 9, "is damaged");
    for (size_t i = 0; i < sizeof DAMAGES / sizeof DAMAGES[0]; i++)
        expect_change_refused(text, DAMAGES[i][0], DAMAGES[i][1], DAMAGES[i][2]);
    char *deep = (char *)xmalloc(1000000);
    memset(deep, '[', 1000000);
    expect_refused(deep, 1000000, "is damaged");
    free(deep);
    unlink(path);
    free(path);
    free(text);
    tokenizer_free(t);
}

// ---- added tokens, end of text, prompts --------------------------------------------------------------------

// Returns the tokenizer.json of the table's tokenizer with one part replaced. The caller frees it.
static char *changed_json(const char *from, const char *to) {
    Tokenizer *t = train_on_table();
    char *json = NULL;
    size_t size;
    FILE *stream = open_memstream(&json, &size);
    tokenizer_write(t, stream);
    fclose(stream);
    tokenizer_free(t);
    const char *at = strstr(json, from);
    EXPECT(at != NULL, "'%s' is not in the file", from);
    char *changed = at == NULL ? xstrdup(json)
                               : format_text("%.*s%s%s", (int)(at - json), json, to, at + strlen(from));
    free(json);
    return changed;
}

static Tokenizer *load_json(const char *json, const TokenizerChoices *choices) {
    const TokenizerChoices none = {NULL, NULL, NULL};
    char *path = in_folder("tokenizer.json");
    Error error = {"", 0};
    write_text(path, json, strlen(json));
    Tokenizer *t = tokenizer_open(path, choices == NULL ? &none : choices, &error);
    EXPECT(t != NULL, "%s", error.text);
    unlink(path);
    free(path);
    return t;
}

static Tokenizer *load_changed(const char *from, const char *to, const TokenizerChoices *choices) {
    char *json = changed_json(from, to);
    Tokenizer *t = load_json(json, choices);
    free(json);
    return t;
}

static const char END_OF_ADDED[] = "\"special\": true}\n  ]";

static Tokenizer *load_with_added(const char *entries) {
    char *to = format_text("\"special\": true}%s\n  ]", entries);
    Tokenizer *t = load_changed(END_OF_ADDED, to, NULL);
    free(to);
    return t;
}

// Encodes as in a prompt; in parts of at least `least` bytes or, if 0, as a whole.
static void expect_ids(Tokenizer *t, const char *name, const char *text, size_t least, const char *expected) {
    const char *separator = tokenizer_end_of_text_content(t);
    const size_t size = strlen(text);
    Numbers numbers = {"", 0};
    TokenList ids = {NULL, 0, 0};
    size_t count;
    const int32_t *start = tokenizer_prompt_start(t, &count);
    for (size_t i = 0; i < count; i++) add_number(&numbers, (size_t)start[i]);
    for (size_t from = 0, cut; from < size; from += cut) {
        cut = least == 0 ? size : tokenizer_cut(t, text + from, size - from, separator, least);
        tokenizer_encode(t, text + from, cut, separator, &ids);
    }
    for (size_t i = 0; i < ids.count; i++) add_number(&numbers, (size_t)ids.ids[i]);
    EXPECT(strcmp(numbers.text, expected) == 0, "%s: '%s' is %s, expected %s", name, text, numbers.text,
           expected);
    free(ids.ids);
}

static void test_added_table(void) {
    for (size_t i = 0; i < sizeof ADDED_TABLE / sizeof ADDED_TABLE[0]; i++) {
        Tokenizer *t = load_with_added(ADDED_TABLE[i].entries);
        if (t == NULL) continue;
        char *json = NULL; // writing it gives the same tokenizer again, including flags
        size_t size;
        FILE *stream = open_memstream(&json, &size);
        tokenizer_write(t, stream);
        fclose(stream);
        EXPECT(strstr(json, "\"single_word\": true") == NULL ||
                   strstr(ADDED_TABLE[i].entries, "\"single_word\": true"),
               "%s: a flag that was not there", ADDED_TABLE[i].name);
        Tokenizer *again = load_json(json, NULL);
        EXPECT(tokenizer_checksum(again) == tokenizer_checksum(t), "%s: written otherwise",
               ADDED_TABLE[i].name);
        for (size_t k = 0; k < NUM_ADDED_TEXTS; k++)
            for (size_t least = 0; least < 8; least++)
                expect_ids(least == 7 ? again : t, ADDED_TABLE[i].name, ADDED_TEXTS[k], least % 7,
                           ADDED_TABLE[i].ids[k]);
        free(json);
        tokenizer_free(again);
        tokenizer_free(t);
    }
}

// However long text with added tokens is cut, and with any number of threads, the ids are the same.
static void test_cuts_at_added_tokens(void) {
    const size_t size = 60000;
    char *text = (char *)xmalloc(size);
    for (size_t i = 0; i < sizeof ADDED_TABLE / sizeof ADDED_TABLE[0]; i++) {
        Tokenizer *t = load_with_added(ADDED_TABLE[i].entries);
        const char *separator = tokenizer_end_of_text_content(t);
        size_t used = random_text(text, size, 1);
        for (size_t at = 0; at + 100 < used; at += 1 + random_below(60)) {
            const char *piece = ADDED_TEXTS[random_below(NUM_ADDED_TEXTS)];
            memcpy(text + at, piece, strlen(piece) < 20 ? strlen(piece) : 20);
        }
        TokenList whole = {NULL, 0, 0}, parts = {NULL, 0, 0};
        tokenizer_encode(t, text, used, separator, &whole);
        for (size_t from = 0, cut; from < used; from += cut) {
            cut = tokenizer_cut(t, text + from, used - from, separator, 1 + random_below(40));
            tokenizer_encode(t, text + from, cut, separator, &parts);
        }
        EXPECT(same_ids(&whole, &parts), "%s: cuts give other ids", ADDED_TABLE[i].name);
        free(whole.ids);
        free(parts.ids);
        tokenizer_free(t);
    }
    free(text);
}

// Returns a merge as spelled in the file if it consists of lower-case letters only, else NULL. The caller frees it.
static char *spelled_merge(const Tokenizer *t, size_t index) {
    int32_t left, right;
    size_t size, right_size;
    tokenizer_merge(t, index, &left, &right);
    const char *a = tokenizer_bytes(t, left, &size), *b = tokenizer_bytes(t, right, &right_size);
    char *text = format_text("%.*s %.*s", (int)size, a, (int)right_size, b);
    if (strspn(text, "abcdefghijklmnopqrstuvwxyz ") == strlen(text) && text[0] != ' ') return text;
    free(text);
    return NULL;
}

// Any change of ids changes the checksum.
static void test_checksum(void) {
    static const char added[] =
        ", {\"id\": 441, \"content\": \"<x>\", \"single_word\": false, \"lstrip\": false, "
        "\"rstrip\": false, \"normalized\": false, \"special\": false}";
    static const char *const flags[] = {"single_word", "lstrip", "rstrip", "normalized"};
    Tokenizer *t = train_on_table(), *with = load_with_added(added);
    const uint32_t base = tokenizer_checksum(t), base_with = tokenizer_checksum(with);
    EXPECT(base != base_with, "an added token");
    tokenizer_free(with);
    for (int i = 0; i < 4; i++) {
        char *from = format_text("\"%s\": false", flags[i]), *to = format_text("\"%s\": true", flags[i]);
        const char *at = strstr(added, from);
        char *changed = format_text("%.*s%s%s", (int)(at - added), added, to, at + strlen(from));
        Tokenizer *other = load_with_added(changed);
        EXPECT(tokenizer_checksum(other) != base_with, "%s", flags[i]);
        tokenizer_free(other);
        free(from);
        free(to);
        free(changed);
    }
    // Two merges in the other order: the same vocabulary.
    char *one = spelled_merge(t, 0), *two = NULL;
    for (size_t i = 1; one == NULL || two == NULL; i++) {
        free(one);
        one = two != NULL ? two : spelled_merge(t, i - 1);
        two = spelled_merge(t, i);
    }
    char *from = format_text("\"%s\",\n      \"%s\"", one, two),
         *to = format_text("\"%s\",\n      \"%s\"", two, one);
    Tokenizer *swapped = load_changed(from, to, NULL);
    EXPECT(tokenizer_checksum(swapped) != base, "the order of merges");
    tokenizer_free(swapped);
    Tokenizer *prompt = load_changed(
        "\"post_processor\": {\"type\":\"TemplateProcessing\",\"single\":[",
        "\"post_processor\": {\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":"
        "{\"id\":\"<|endoftext|>\",\"type_id\":0}},",
        NULL);
    EXPECT(tokenizer_checksum(prompt) != base, "what a prompt begins with");
    tokenizer_free(prompt);
    tokenizer_free(t);
    free(one);
    free(two);
    free(from);
    free(to);
}

static void expect_prompt_start(const char *post_processor, const char *expected) {
    char *json = changed_json("\"post_processor\": ", "\"post_processor\": @");
    char *at = strchr(json, '@');
    char *changed = format_text("%.*s%s%s", (int)(at - json), json, post_processor, strchr(at, '\n') - 1);
    Tokenizer *t = load_json(changed, NULL);
    if (t != NULL) expect_ids(t, post_processor, "", 0, expected);
    tokenizer_free(t);
    free(json);
    free(changed);
}

static void test_prompt_start(void) {
#define TEMPLATE(single)                                                                                     \
    "{\"type\": \"TemplateProcessing\", \"single\": [" single "], \"pair\": [], \"special_tokens\": {"       \
    "\"a\": {\"id\": \"a\", \"ids\": [7], \"tokens\": [\"x\"]}, \"b\": {\"id\": \"b\", \"ids\": [8, 9], "    \
    "\"tokens\": [\"y\", \"z\"]}}}"
#define SPECIAL(name) "{\"SpecialToken\": {\"id\": \"" name "\", \"type_id\": 0}}"
#define SEQUENCE      "{\"Sequence\": {\"id\": \"A\", \"type_id\": 0}}"
    static const char byte_level[] =
        "{\"type\": \"ByteLevel\", \"add_prefix_space\": true, \"trim_offsets\": false}";
    Tokenizer *t = train_on_table();
    expect_ids(t, "ours", "", 0, "440");
    tokenizer_free(t);
    expect_prompt_start("null", "");
    expect_prompt_start(byte_level, "");
    expect_prompt_start(TEMPLATE(SEQUENCE), "");
    expect_prompt_start(TEMPLATE(SPECIAL("a") "," SEQUENCE), "7");
    expect_prompt_start(TEMPLATE(SPECIAL("b") "," SPECIAL("a") "," SEQUENCE "," SPECIAL("a")), "8 9 7");
    char *both = format_text("{\"type\": \"Sequence\", \"processors\": [%s, %s, %s]}", byte_level,
                             TEMPLATE(SPECIAL("a") "," SEQUENCE), TEMPLATE(SPECIAL("b") "," SEQUENCE));
    expect_prompt_start(both, "8 9 7");
    free(both);
}

// A key that is not supported, and is ignored on request.
static void test_ignored_keys(void) {
    static const char *const changes[][3] = {
        {"\"version\"", "\"vision\": 1, \"version\"", "vision"},
        {"\"dropout\": null", "\"dropout\": 0.1", "x, model.dropout"},
        {"\"ignore_merges\": false", "\"ignore_merges\": true", "model.ignore_merges,x"},
        {"\"normalizer\": null", "\"normalizer\": {\"type\": \"NFC\"}", "normalizer"},
        {"\"add_prefix_space\": false", "\"add_prefix_space\": true", "pre_tokenizer.add_prefix_space"},
        {"{\"type\":\"TemplateProcessing\"", "{\"type\":\"BertProcessing\"", "post_processor"},
    };
    for (size_t i = 0; i < sizeof changes / sizeof changes[0]; i++) {
        const TokenizerChoices choices = {NULL, NULL, changes[i][2]};
        Tokenizer *t = load_changed(changes[i][0], changes[i][1], &choices);
        if (t != NULL) expect_ids(t, changes[i][2], "the", 0, i < 5 ? "440 83 257" : "83 257");
        tokenizer_free(t);
    }
    // unk_token, fuse_unk and byte_fallback have no effect, as every byte is a token.
    Tokenizer *t = load_changed("\"unk_token\": null", "\"unk_token\": \"!\"", NULL);
    if (t != NULL) expect_ids(t, "unk_token", "\xE6\x96\x87\x01", 0, "440 303 229 189");
    tokenizer_free(t);
}

static void write_in_folder(const char *name, const char *text) {
    char *path = in_folder(name);
    write_text(path, text, strlen(text));
    free(path);
}

static void remove_in_folder(const char *name) {
    char *path = in_folder(name);
    unlink(path);
    free(path);
}

// Expects the end of text `content` ("" for none) or, if it is NULL, an error whose sentence contains `expected`.
static void expect_end(const char *config, const TokenizerChoices *choices, const char *content,
                       const char *expected) {
    char *json = changed_json(
        END_OF_ADDED, "\"special\": true}, {\"id\": 441, \"content\": \"</s>\", \"single_word\": false, "
                      "\"lstrip\": false, \"rstrip\": false, \"normalized\": false, \"special\": true}\n  ]");
    char *path = in_folder("tokenizer.json");
    Error error = {"(no message)", 0};
    write_text(path, json, strlen(json));
    if (config != NULL) write_in_folder("tokenizer_config.json", config);
    Tokenizer *t = tokenizer_open(folder, choices, &error), *other = tokenizer_open(path, choices, &error);
    if (content == NULL)
        EXPECT(t == NULL && other == NULL && strstr(error.text, expected) != NULL, "%s: '%s'", config,
               error.text);
    else
        EXPECT(t != NULL && other != NULL && strcmp(tokenizer_end_of_text_content(t), content) == 0 &&
                   tokenizer_end_of_text(other) == tokenizer_end_of_text(t),
               "%s: %s", config, error.text);
    if (t != NULL) { // the same from the files of a checkpoint
        char *text = tokenizer_config_text(t);
        EXPECT((text == NULL) == (strcmp(content, END_OF_TEXT) == 0), "tokenizer_config.json");
        EXPECT(text == NULL || strstr(text, content) != NULL, "'%s'", text);
        TokenList ids = {NULL, 0, 0};
        char *document = format_text("a%sa", content);
        tokenizer_encode(t, document, strlen(document), content, &ids);
        EXPECT(ids.count == 3 && ids.ids[1] == tokenizer_end_of_text(t), "'%s' is not one token", document);
        free(ids.ids);
        free(document);
        free(text);
    }
    tokenizer_free(t);
    tokenizer_free(other);
    remove_in_folder("tokenizer_config.json");
    unlink(path);
    free(path);
    free(json);
}

static void test_end_of_text(void) {
    const TokenizerChoices none = {NULL, NULL, NULL}, chosen = {"</s>", NULL, NULL},
                           ordinary = {"text", NULL, NULL}, absent = {"</x>", NULL, NULL},
                           separator = {NULL, "</s>", NULL};
    expect_end(NULL, &none, END_OF_TEXT, "");
    expect_end("{}", &none, END_OF_TEXT, "");
    expect_end("{\"eos_token\": null}", &none, END_OF_TEXT, "");
    expect_end("{\"eos_token\": \"</s>\"}", &none, "</s>", "");
    expect_end("{\"eos_token\": {\"content\": \"</s>\", \"lstrip\": false}}", &none, "</s>", "");
    expect_end(NULL, &chosen, "</s>", "");
    expect_end("{\"eos_token\": \"<|endoftext|>\"}", &chosen, "</s>", "");
    expect_end(NULL, &ordinary, "text", "");
    expect_end("{\"eos_token\": \"<|endoftext|>\"}", &separator, END_OF_TEXT, ""); // already known
    expect_end(NULL, &absent, NULL, "no token '</x>', which --end-of-text names");
    expect_end("{\"eos_token\": \"<e>\"}", &none, NULL, "no token '<e>', though tokenizer_config.json");
    expect_end("{\"eos_token\": 7}", &none, NULL, "eos_token is neither");
    expect_end("[]", &none, NULL, "not a JSON object");
}

static void expect_stops(const char *generation, const char *config, const char *expected) {
    TokenList stops = {NULL, 0, 0};
    Error error = {"", 0};
    Numbers numbers = {"", 0};
    if (generation != NULL) write_in_folder("generation_config.json", generation);
    if (config != NULL) write_in_folder("config.json", config);
    int result = stop_tokens_read(folder, &stops, &error);
    for (size_t i = 0; i < stops.count; i++) add_number(&numbers, (size_t)stops.ids[i]);
    EXPECT(strcmp(result == 0 ? numbers.text : error.text, expected) == 0 ||
               (result != 0 && strstr(error.text, expected)),
           "%s, %s: '%s' '%s', expected '%s'", generation, config, numbers.text, error.text, expected);
    if (result == 0 && stops.count > 0) { // written and read again
        char *text = stop_tokens_text(&stops);
        TokenList again = {NULL, 0, 0};
        write_in_folder("generation_config.json", text);
        EXPECT(stop_tokens_read(folder, &again, &error) == 0 && same_ids(&again, &stops), "'%s'", text);
        free(again.ids);
        free(text);
    }
    remove_in_folder("generation_config.json");
    remove_in_folder("config.json");
    free(stops.ids);
}

static void test_stop_tokens(void) {
    expect_stops(NULL, NULL, "");
    expect_stops(NULL, "{\"eos_token_id\": 5}", "5");
    expect_stops(NULL, "{\"eos_token_id\": [5, 6]}", "5 6");
    expect_stops("{\"eos_token_id\": 7}", "{\"eos_token_id\": 5}", "7");
    expect_stops("{\"eos_token_id\": [7, 8]}", "{\"eos_token_id\": 5}", "7 8");
    expect_stops("{\"eos_token_id\": null}", "{\"eos_token_id\": 5}", "5");
    expect_stops("{}", "{\"eos_token_id\": null}", "");
    expect_stops("{\"eos_token_id\": -1}", NULL, "whole number");
    expect_stops("{\"eos_token_id\": [1, 2.5]}", NULL, "whole number");
    expect_stops("{\"eos_token_id\": \"x\"}", NULL, "whole number");
    expect_stops("nonsense", NULL, "not a JSON object");
}

int main(void) {
    snprintf(folder, sizeof folder, "/tmp/test_tokenizer_%d", (int)getpid());
    mkdir(folder, 0700);
    test_byte_alphabet();
    test_table();
    test_scanner_equals_pattern();
    test_invalid_bytes();
    test_longest_pretoken();
    test_round_trip();
    test_encoding_is_naive_encoding();
    test_cuts_at_white_space();
    test_parallel_encoding();
    test_long_word();
    test_training();
    test_training_edges();
    test_files();
    test_damaged_files();
    test_added_table();
    test_cuts_at_added_tokens();
    test_checksum();
    test_prompt_start();
    test_ignored_keys();
    test_end_of_text();
    test_stop_tokens();
    char *command = format_text("rm -rf '%s'", folder);
    if (system(command) != 0) printf("could not remove %s\n", folder);
    free(command);
    return test_finish();
}
