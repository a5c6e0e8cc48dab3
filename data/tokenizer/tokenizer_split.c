// Pre-tokens: GPT-2's pattern, matched by PCRE2 or, for ASCII, by an equivalent scanner.
#define PCRE2_CODE_UNIT_WIDTH 8
#include "tokenizer.h"

#include <pcre2.h>
#include <stdlib.h>
#include <string.h>

// Unicode's White_Space, the meaning of \s in tiktoken and in Hugging Face's tokenizers; PCRE2's own \s also includes
// U+180E (a format character since Unicode 6.3).
#define WHITE_SPACE                                                                                          \
    "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{" \
    "3000}"

// GPT-2's `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`. Quantifiers at the end of an
// alternative are possessive, which changes only the speed.
static const char PATTERN[] = "'(?:[stmd]|re|ve|ll)| ?\\p{L}++| ?\\p{N}++| ?[^" WHITE_SPACE
                              "\\p{L}\\p{N}]++|[" WHITE_SPACE "]+(?![^" WHITE_SPACE "])|[" WHITE_SPACE "]++";

// The meaning of \w there: Unicode's Alphabetic, M, Nd, Pc and Join_Control. Alphabetic is L, Nl and, apart from
// marks, some circled and squared letters.
static const char WORD_PATTERN[] = "[\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{200c}\\x{200d}\\x{24b6}-\\x{24e9}"
                                   "\\x{1f130}-\\x{1f149}\\x{1f150}-\\x{1f169}"
                                   "\\x{1f170}-\\x{1f189}]";

struct Splitter {
    pcre2_code *code, *word_code;
    pcre2_match_data *match;
    const uint8_t *text;
    size_t size, position, valid_end; // text[position .. valid_end) is valid UTF-8
    int use_scanner;
};

enum { OTHER, LETTER, DIGIT, SPACE, BEYOND_ASCII };
static const uint8_t class_of[256] = {
    [128 ... 255] = BEYOND_ASCII, ['a' ... 'z'] = LETTER, ['A' ... 'Z'] = LETTER,
    ['0' ... '9'] = DIGIT,        [9 ... 13] = SPACE,     [' '] = SPACE,
};

static pcre2_code *compile(const char *source) {
    int error;
    PCRE2_SIZE offset;
    pcre2_code *code = pcre2_compile((PCRE2_SPTR)source, PCRE2_ZERO_TERMINATED, PCRE2_UTF, &error, &offset,
                                     NULL);
    if (code == NULL) die("PCRE2 does not compile '%s' (error %d at %zu)", source, error, offset);
    pcre2_jit_compile(code, PCRE2_JIT_COMPLETE); // without JIT support, PCRE2 interprets the pattern
    return code;
}

Splitter *splitter_create(void) {
    Splitter *splitter = (Splitter *)xcalloc(1, sizeof *splitter);
    splitter->code = compile(PATTERN);
    splitter->word_code = compile(WORD_PATTERN);
    splitter->match = pcre2_match_data_create_from_pattern(splitter->code, NULL);
    if (splitter->match == NULL) die("out of memory");
    splitter->use_scanner = 1;
    return splitter;
}

void splitter_free(Splitter *splitter) {
    if (splitter == NULL) return;
    pcre2_match_data_free(splitter->match);
    pcre2_code_free(splitter->code);
    pcre2_code_free(splitter->word_code);
    free(splitter);
}

void splitter_use_scanner(Splitter *splitter, int use) {
    splitter->use_scanner = use;
}

void splitter_start(Splitter *splitter, const char *text, size_t size) {
    splitter->text = (const uint8_t *)text;
    splitter->size = size;
    splitter->position = splitter->valid_end = 0;
}

// ---- UTF-8 ------------------------------------------------------------------------------------------------

static int is_continuation(uint8_t byte) {
    return (byte & 0xC0) == 0x80;
}

// Returns the length of the UTF-8 character at the beginning of the text, 0 if there is none (RFC 3629, table 3-7 of
// Unicode).
static size_t character_length(const uint8_t *s, size_t size) {
    const uint8_t first = s[0];
    if (first < 0x80) return 1;
    size_t length = first < 0xC2 ? 0 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : first < 0xF5 ? 4 : 0;
    if (length == 0 || size < length) return 0;
    uint8_t low = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80; // excludes overlong forms
    uint8_t high = first == 0xED   ? 0x9F
                   : first == 0xF4 ? 0x8F
                                   : 0xBF; // excludes surrogates and anything above U+10FFFF
    if (s[1] < low || s[1] > high) return 0;
    for (size_t i = 2; i < length; i++)
        if (!is_continuation(s[i])) return 0;
    return length;
}

static size_t valid_length(const uint8_t *s, size_t size) {
    size_t i = 0;
    while (i < size) {
        uint64_t eight;
        if (size - i >= 8 && (memcpy(&eight, s + i, 8), (eight & 0x8080808080808080u) == 0)) {
            i += 8;
            continue;
        }
        size_t length = character_length(s + i, size - i);
        if (length == 0) break;
        i += length;
    }
    return i;
}

static size_t invalid_length(const uint8_t *s, size_t size) {
    size_t i = 1;
    while (i < size && character_length(s + i, size - i) == 0) i++;
    return i;
}

// Returns the length of the character that ends the text, 0 if there is none.
static size_t last_length(const uint8_t *s, size_t size) {
    for (size_t length = 1; length <= 4 && length <= size; length++)
        if (!is_continuation(s[size - length]))
            return character_length(s + size - length, length) == length ? length : 0;
    return 0;
}

int splitter_begins_with_word(Splitter *splitter, const char *text, size_t size) {
    const uint8_t *s = (const uint8_t *)text;
    if (size == 0) return 0;
    if (s[0] < 0x80) return class_of[s[0]] == LETTER || class_of[s[0]] == DIGIT || s[0] == '_';
    const size_t length = character_length(s, size);
    const uint32_t options = PCRE2_ANCHORED | PCRE2_NO_UTF_CHECK;
    return length > 0 && pcre2_match(splitter->word_code, s, length, 0, options, splitter->match, NULL) > 0;
}

int splitter_ends_with_word(Splitter *splitter, const char *text, size_t size) {
    const size_t length = last_length((const uint8_t *)text, size);
    return length > 0 && splitter_begins_with_word(splitter, text + size - length, length);
}

// Returns 1 if this character, of `length` bytes, is in Unicode's White_Space.
static int is_white(const uint8_t *s, size_t length) {
    if (length == 1) return class_of[s[0]] == SPACE;
    if (length == 2) return s[0] == 0xC2 && (s[1] == 0x85 || s[1] == 0xA0);
    if (length != 3) return 0;
    const uint32_t c = (uint32_t)(s[0] & 0x0F) << 12 | (uint32_t)(s[1] & 0x3F) << 6 | (s[2] & 0x3F);
    return c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F ||
           c == 0x205F || c == 0x3000;
}

size_t leading_white_space(const char *text, size_t size) {
    const uint8_t *s = (const uint8_t *)text;
    size_t at = 0, length;
    while (at < size && (length = character_length(s + at, size - at)) > 0 && is_white(s + at, length))
        at += length;
    return at;
}

size_t trailing_white_space(const char *text, size_t size) {
    const uint8_t *s = (const uint8_t *)text;
    size_t at = size, length;
    while ((length = last_length(s, at)) > 0 && is_white(s + at - length, length)) at -= length;
    return size - at;
}

// ---- matching ---------------------------------------------------------------------------------------------

static size_t contraction_length(const uint8_t *s, size_t size) {
    if (size < 2 || s[0] != '\'') return 0;
    if (s[1] == 's' || s[1] == 't' || s[1] == 'm' || s[1] == 'd') return 2;
    if (size < 3) return 0;
    return (s[1] == 'r' && s[2] == 'e') || (s[1] == 'v' && s[2] == 'e') || (s[1] == 'l' && s[2] == 'l') ? 3
                                                                                                        : 0;
}

// Returns the length of the pattern's match at the beginning of the text if all characters that determine it (those
// of the match, and the next one) are ASCII; else 0.
static size_t scan_ascii(const uint8_t *s, size_t size) {
    size_t length = contraction_length(s, size);
    if (length > 0) return length;
    length = s[0] == ' ' && size > 1 && class_of[s[1]] != SPACE; // the space before a word
    const uint8_t kind = class_of[s[length]];
    if (kind == BEYOND_ASCII) return 0;
    while (length < size && class_of[s[length]] == kind) length++;
    if (length == size) return length;
    if (class_of[s[length]] == BEYOND_ASCII) return 0;
    // The last white-space character before a word belongs to the word if it is a space; otherwise it is a pre-token
    // of its own.
    return kind == SPACE && length > 1 ? length - 1 : length;
}

static size_t match_pattern(Splitter *splitter, const uint8_t *s, size_t size) {
    const uint32_t options = PCRE2_ANCHORED | PCRE2_NO_UTF_CHECK;
    int count = pcre2_match(splitter->code, s, size, 0, options, splitter->match, NULL);
    size_t length = count > 0 ? pcre2_get_ovector_pointer(splitter->match)[1] : 0;
    if (length == 0) die("PCRE2 fails to match GPT-2's pattern (error %d)", count);
    return length;
}

int splitter_next(Splitter *splitter, const char **pretoken, size_t *size) {
    if (splitter->position == splitter->size) return 0;
    const uint8_t *s = splitter->text + splitter->position;
    size_t left = splitter->size - splitter->position, length = 0;
    if (splitter->position == splitter->valid_end) splitter->valid_end += valid_length(s, left);
    if (splitter->position == splitter->valid_end) {
        length = invalid_length(s, left < MAX_PRETOKEN ? left : MAX_PRETOKEN);
        splitter->valid_end += length;
    } else {
        left = splitter->valid_end - splitter->position;
        if (left > MAX_PRETOKEN) {
            left = MAX_PRETOKEN;
            while (is_continuation(s[left])) left--;
        }
        if (splitter->use_scanner) length = scan_ascii(s, left);
        if (length == 0) length = match_pattern(splitter, s, left);
    }
    *pretoken = (const char *)s;
    *size = length;
    splitter->position += length;
    return 1;
}
