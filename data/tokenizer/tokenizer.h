// Byte-level byte-pair encoding, as in GPT-2: text to token ids and back, the file formats of Hugging Face and
// OpenAI, training.
//
// Text is split into pre-tokens (words with the preceding space, numbers, punctuation, white space) by GPT-2's
// pattern. Within a pre-token, starting from single bytes, the adjacent pair whose merge was learned first is merged
// until no pair can be merged (Sennrich et al. 2016, Radford et al. 2019). Every sequence of bytes can be encoded,
// and decoding restores exactly those bytes. In files, the bytes of a token are spelled with 256 printable
// characters, GPT-2's byte alphabet; in memory they are plain bytes.
//
// Added tokens are matched before text is split into pre-tokens, as in Hugging Face's tokenizers. One of them, end of
// text, precedes every document in shards; text produces it only if the caller says what separates documents. It is
// the caller's choice, else eos_token of tokenizer_config.json next to tokenizer.json, else <|endoftext|> if there is
// one.
//
// A prompt begins with the tokens that tokenizer.json's post_processor adds before a text: none if it is null or
// ByteLevel, as in GPT-2's; in files written by tokenizer_train, end of text, because models are trained on documents
// that begin with it. (Files from versions that did not write a post_processor have null: write the token into the
// prompt.)
//
// A tokenizer is used by one thread at a time; encoding long text uses all cores itself, with the same result.
#ifndef DATA_TOKENIZER_TOKENIZER_H
#define DATA_TOKENIZER_TOKENIZER_H

#include <stddef.h>
#include <stdint.h>
#include "layers/base/files.h"

#ifdef __cplusplus
extern "C" {
#endif

#define END_OF_TEXT "<|endoftext|>"
// In bytes; parsed JSON takes up to about forty times as much memory.
enum { MAX_TOKENIZER_BYTES = 64 << 20 };

typedef struct Tokenizer Tokenizer;

// An entry of added_tokens. Hugging Face's flags: single_word: matches only if no word character is adjacent; lstrip,
// rstrip: includes the white space before, after it; normalized: matched after those that are not; special: omitted
// from decoded text (ignored here).
typedef struct {
    int32_t id;
    const char *content;
    uint8_t single_word, lstrip, rstrip, normalized, special;
} AddedToken;

typedef struct {
    int32_t *ids;
    size_t count, capacity;
} TokenList; // initially all zeros; free list.ids

// ---- files (tokenizer_json.c) -----------------------------------------------------------------------------

// `path`: a tokenizer.json (Hugging Face: model BPE, pre-tokenizer ByteLevel), or a folder with tokenizer.json, with
// encoder.json and vocab.bpe, or with vocab.json and merges.txt. Returns NULL with a sentence on error: any key that
// could change ids and is not supported is refused by name.
Tokenizer *tokenizer_load(const char *path, Error *error);
// Like tokenizer_load, with choices of the user; each may be NULL.
typedef struct {
    const char *end_of_text; // the token that precedes documents (--end-of-text); it must exist
    const char *separator;   // end of text if nothing else names one, provided that it is an added token
    const char *ignored;     // comma-separated keys to ignore, with dots ("model.dropout") (--ignore-key)
} TokenizerChoices;
Tokenizer *tokenizer_open(const char *path, const TokenizerChoices *choices, Error *error);
// Write a tokenizer.json that Hugging Face's tokenizers and transformers can read, to a stream or a file.
void tokenizer_write(const Tokenizer *tokenizer, FILE *stream);
// Returns the text of a tokenizer_config.json that names the end-of-text token; NULL if tokenizer.json suffices. The
// caller frees it.
char *tokenizer_config_text(const Tokenizer *tokenizer);
int tokenizer_save(const Tokenizer *tokenizer, const char *path, Error *error);
// Returns 1 if the file is, byte for byte, what tokenizer_save writes for the tokenizer in it, which proves that this
// program wrote it.
int tokenizer_is_ours(const char *path);

// ---- training (tokenizer_train.c) -------------------------------------------------------------------------

typedef struct {
    const char *data;
    size_t size;
} Text;

// Learns merges until there are vocab_size tokens: 256 bytes, merges, end of text (the last id; not with exactly
// 256). The most frequent pair is merged first; of equally frequent ones the one with the smaller ids, as in Hugging
// Face's trainer. `separator` (NULL: none) separates texts and is not learned. If no pair occurs twice any more,
// there are fewer tokens than requested.
Tokenizer *tokenizer_train(const Text *texts, size_t num_texts, int32_t vocab_size, const char *separator,
                           Error *error);

// ---- use --------------------------------------------------------------------------------------------------

void tokenizer_free(Tokenizer *tokenizer);
int32_t tokenizer_vocab_size(const Tokenizer *tokenizer);
int32_t tokenizer_end_of_text(const Tokenizer *tokenizer);             // its id, or -1 if there is none
const char *tokenizer_end_of_text_content(const Tokenizer *tokenizer); // its text, or NULL if there is none
// Returns the CRC-32C of everything that determines ids: tokens, merges in order, added tokens with their flags, end
// of text, what a prompt begins with.
uint32_t tokenizer_checksum(const Tokenizer *tokenizer);
// Returns the tokens that a prompt begins with.
const int32_t *tokenizer_prompt_start(const Tokenizer *tokenizer, size_t *count);
// Returns the bytes of a token (the content of an added one), or NULL for an id outside the vocabulary.
const char *tokenizer_bytes(const Tokenizer *tokenizer, int32_t id, size_t *size);

// Appends the ids of the text to `ids`. Each occurrence of `separator` (NULL: none) becomes the end-of-text token, if
// the tokenizer has one; pass tokenizer_end_of_text_content to recognize end of text with its flags. Other added
// tokens are always recognized.
void tokenizer_encode(Tokenizer *tokenizer, const char *text, size_t size, const char *separator,
                      TokenList *ids);
// Encodes many texts in parallel, without a separator: appends the ids of each text to its own list.
void tokenizer_encode_texts(Tokenizer *tokenizer, const Text *texts, size_t count, TokenList *lists);
// Returns the size of the shortest prefix of at least `min_bytes` (> 0) bytes that can be encoded separately: the ids
// of the prefix followed by those of the rest are the ids of the whole. Returns `size` if there is none. `tokenizer`
// may be NULL for text without added tokens.
size_t tokenizer_cut(const Tokenizer *tokenizer, const char *text, size_t size, const char *separator,
                     size_t min_bytes);

// ---- pre-tokens (tokenizer_split.c) -----------------------------------------------------------------------

// Splits text by GPT-2's pattern, which cannot match bytes that are not UTF-8: each valid part of the text is matched
// as a separate text, and each run of invalid bytes between them is one pre-token. A pre-token of more than
// MAX_PRETOKEN bytes is cut there, to bound memory.
enum { MAX_PRETOKEN = 16 << 20 };

typedef struct Splitter Splitter;
Splitter *splitter_create(void);
void splitter_free(Splitter *splitter);
void splitter_start(Splitter *splitter, const char *text, size_t size);
// Returns 1 and the next pre-token, or 0 at the end.
int splitter_next(Splitter *splitter, const char **pretoken, size_t *size);
// Return 1 if the text begins, or ends, with a word character (Rust's \w).
int splitter_begins_with_word(Splitter *splitter, const char *text, size_t size);
int splitter_ends_with_word(Splitter *splitter, const char *text, size_t size);
// Return the number of bytes of white space at the beginning, or at the end, of the text.
size_t leading_white_space(const char *text, size_t size);
size_t trailing_white_space(const char *text, size_t size);
// With use = 0, every pre-token is matched by the regular expression, none by the equivalent scanner for ASCII.
void splitter_use_scanner(Splitter *splitter, int use);

// ---- building a tokenizer: for the files listed above -----------------------------------------------------

// GPT-2's byte alphabet: printable Latin-1 characters represent the byte of the same value; U+0100 and the following
// characters represent the other bytes, in order.
int byte_to_character(int byte);
int character_to_byte(uint32_t character); // -1 if outside the alphabet
uint64_t hash_bytes(const void *data, size_t size);

// `capacity`: upper bound of all ids. Add ordinary tokens in any order, then added tokens, then merges in the order
// in which they were learned, then end of text and what prompts begin with; then call tokenizer_finish.
Tokenizer *tokenizer_create(int32_t capacity);
int tokenizer_add_token(Tokenizer *tokenizer, int32_t id, const char *bytes, size_t size, Error *error);
// An added token may also be an ordinary one if its bytes are the same.
int tokenizer_add_added(Tokenizer *tokenizer, const AddedToken *token, Error *error);
size_t tokenizer_num_added(const Tokenizer *tokenizer);
const AddedToken *tokenizer_added(const Tokenizer *tokenizer, size_t index);   // in the order they were added
int32_t tokenizer_find_added(const Tokenizer *tokenizer, const char *content); // -1: none
int tokenizer_has_token(const Tokenizer *tokenizer, int32_t id);
int tokenizer_is_ordinary(const Tokenizer *tokenizer, int32_t id);
// Returns the id of an ordinary token, or -1 if there is none.
int32_t tokenizer_find(const Tokenizer *tokenizer, const char *bytes, size_t size);
// Sets end of text; if it is only an ordinary token, it also becomes an added one. Returns -1 if it is not a token.
int tokenizer_set_end_of_text(Tokenizer *tokenizer, const char *content);
// `post_processor`: JSON, written back to tokenizer.json.
void tokenizer_set_prompt_start(Tokenizer *tokenizer, const int32_t *ids, size_t count,
                                const char *post_processor);
const char *tokenizer_post_processor(const Tokenizer *tokenizer);
// The concatenated bytes of `left` and `right` must be those of a token.
int tokenizer_add_merge(Tokenizer *tokenizer, int32_t left, int32_t right, Error *error);
size_t tokenizer_num_merges(const Tokenizer *tokenizer);
void tokenizer_merge(const Tokenizer *tokenizer, size_t index, int32_t *left, int32_t *right);
// Checks that every id and every byte has a token, and builds the tables.
int tokenizer_finish(Tokenizer *tokenizer, Error *error);

#ifdef __cplusplus
}
#endif
#endif
