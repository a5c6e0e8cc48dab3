// Byte-level byte-pair encoding, as in GPT-2: text to token ids and back, files of Hugging Face and OpenAI,
// training.
//
// Text is cut into pre-tokens (words with the space before them, numbers, punctuation, white space) by
// GPT-2's pattern; within a pre-token, beginning with single bytes, the adjacent pair whose merge was learnt
// first is joined until no pair can be joined (Sennrich et al. 2016, Radford et al. 2019). Every sequence of
// bytes can be encoded, and decoding gives back exactly those bytes. In files, the bytes of a token are
// spelled with 256 printable characters, GPT-2's byte alphabet; in memory they are plain bytes.
//
// Added tokens are found in text before it is cut into pre-tokens, as Hugging Face's tokenizers finds them. One of
// them, the end of text, stands before every document in shards; text produces it only where the caller says what
// separates documents. Which one it is: the caller's choice, else eos_token of tokenizer_config.json beside
// tokenizer.json, else <|endoftext|> if there is one.
//
// What a prompt begins with is what tokenizer.json's post_processor puts before a text: nothing where it is null or
// ByteLevel, as in GPT-2's; in those that tokenizer_train makes, end of text, since their models are trained on
// documents that begin with it. (Those made before it wrote a post_processor have null there: write the token into
// the prompt.)
//
// A tokenizer is used by one thread at a time; encoding long text uses all cores by itself, with the same
// result.
#ifndef DATA_TOKENIZER_H
#define DATA_TOKENIZER_H

#include <stddef.h>
#include <stdint.h>
#include "files.h"

#ifdef __cplusplus
extern "C" {
#endif

#define END_OF_TEXT "<|endoftext|>"
enum {
    LARGEST_TOKENIZER = 64 << 20
}; // bytes of a file; parsed JSON takes up to some forty times as much memory

typedef struct Tokenizer Tokenizer;

// An entry of added_tokens. Its flags, of Hugging Face: only where no word character is beside it; with the white
// space before it, after it; found after those that are not `normalized`; left out of decoded text (not by us).
typedef struct {
    int32_t id;
    const char *content;
    uint8_t single_word, lstrip, rstrip, normalized, special;
} AddedToken;

typedef struct {
    int32_t *ids;
    size_t count, capacity;
} TokenList; // begin with all zeros; free(list.ids)

// ---- files (tokenizer_json.c) -----------------------------------------------------------------------------

// `path` is a tokenizer.json (Hugging Face: model BPE, pre-tokenizer ByteLevel), or a folder with
// tokenizer.json, with encoder.json and vocab.bpe, or with vocab.json and merges.txt. NULL on error: every key that
// could change ids and is not supported is refused by its name.
Tokenizer *tokenizer_load(const char *path, Error *error);
// The same with choices of the user, each NULL for none.
typedef struct {
    const char *end_of_text; // the token that stands before documents (--end-of-text); it must exist
    const char *separator;   // serves as that if nothing else says which, provided that it is an added token
    const char
        *ignored; // keys that are ignored, with dots ("model.dropout"), separated by commas (--ignore-key)
} TokenizerChoices;
Tokenizer *tokenizer_open(const char *path, const TokenizerChoices *choices, Error *error);
// Writes a tokenizer.json that Hugging Face's tokenizers and transformers read, to a stream or a file.
void tokenizer_write(const Tokenizer *tokenizer, FILE *stream);
// The text of a tokenizer_config.json that says which token ends text; NULL if tokenizer.json is enough to know it.
char *tokenizer_config_text(const Tokenizer *tokenizer); // caller frees
int tokenizer_save(const Tokenizer *tokenizer, const char *path, Error *error);
// Returns 1 if the file is, byte for byte, what tokenizer_save writes for the tokenizer in it, which proves that this
// program wrote it.
int tokenizer_is_ours(const char *path);

// ---- training (tokenizer_train.c) -------------------------------------------------------------------------

typedef struct {
    const char *data;
    size_t size;
} Text;

// Learns merges until there are vocab_size tokens: 256 bytes, merges, end of text (the last id; not with
// exactly 256). The most frequent pair is merged first; of equally frequent ones, the one with the smaller
// ids, as in Hugging Face's trainer. `separator` (NULL: none) parts texts and is not learnt. When no pair occurs twice
// any more, there are fewer tokens than asked for.
Tokenizer *tokenizer_train(const Text *texts, size_t num_texts, int32_t vocab_size, const char *separator,
                           Error *error);

// ---- use --------------------------------------------------------------------------------------------------

void tokenizer_free(Tokenizer *tokenizer);
int32_t tokenizer_vocab_size(const Tokenizer *tokenizer);
int32_t tokenizer_end_of_text(const Tokenizer *tokenizer); // its id, -1 if there is none
const char *tokenizer_end_of_text_content(const Tokenizer *tokenizer); // its text, NULL if there is none
// CRC-32C of all that decides about ids: tokens, merges in their order, added tokens with their flags, end of text,
// what a prompt begins with.
uint32_t tokenizer_checksum(const Tokenizer *tokenizer);
// The tokens that a prompt begins with.
const int32_t *tokenizer_prompt_start(const Tokenizer *tokenizer, size_t *count);
// The bytes of a token (of an added one its content), or NULL for an id outside the vocabulary.
const char *tokenizer_bytes(const Tokenizer *tokenizer, int32_t id, size_t *size);

// Appends the ids of the text to `ids`. Where `separator` (NULL: none) stands in the text, the end-of-text
// token is put instead, provided the tokenizer has one: pass tokenizer_end_of_text_content to recognise it, with
// its flags. Added tokens other than end of text are recognised always.
void tokenizer_encode(Tokenizer *tokenizer, const char *text, size_t size, const char *separator,
                      TokenList *ids);
// Many texts at a time, without a separator: appends the ids of each to its own list.
void tokenizer_encode_texts(Tokenizer *tokenizer, const Text *texts, size_t count, TokenList *lists);
// The shortest part of at least `least` (> 0) bytes from the front that can be encoded on its own, such that
// its ids and the ids of the rest, one after the other, are the ids of the whole. `size` when there is none.
// Without a tokenizer (NULL), of text that has no added tokens.
size_t tokenizer_cut(const Tokenizer *tokenizer, const char *text, size_t size, const char *separator,
                     size_t least);

// ---- pre-tokens (tokenizer_split.c) -----------------------------------------------------------------------

// Cuts text by GPT-2's pattern. Bytes that are not UTF-8 cannot be matched by it: text is taken as valid
// stretches, each matched as a text of its own, and between them each run of invalid bytes is one pre-token.
// A pre-token of more than MAX_PRETOKEN bytes is cut there, to bound memory.
enum { MAX_PRETOKEN = 16 << 20 };

typedef struct Splitter Splitter;
Splitter *splitter_create(void);
void splitter_free(Splitter *splitter);
void splitter_start(Splitter *splitter, const char *text, size_t size);
// Returns 1 and the next pre-token, or 0 at the end.
int splitter_next(Splitter *splitter, const char **pretoken, size_t *size);
// Is there a word character (Rust's \w) at the beginning of the text, or at its end?
int splitter_word_after(Splitter *splitter, const char *text, size_t size);
int splitter_word_before(Splitter *splitter, const char *text, size_t size);
// Bytes of white space that the text begins with, or ends with.
size_t white_after(const char *text, size_t size);
size_t white_before(const char *text, size_t size);
// With 0, every pre-token goes through the regular expression, none through the equivalent scanner for ASCII.
void splitter_use_scanner(Splitter *splitter, int use);

// ---- building a tokenizer: for the files above ------------------------------------------------------------

// GPT-2's byte alphabet: printable Latin-1 characters stand for themselves, the other bytes, in order, for
// U+0100 and the characters after it.
int byte_to_character(int byte);
int character_to_byte(uint32_t character); // -1 if outside the alphabet
uint64_t hash_bytes(const void *data, size_t size);

// `capacity` bounds ids. Ordinary tokens come in any order, then added tokens and merges in the order they were
// learnt, then end of text and what prompts begin with, then finish.
Tokenizer *tokenizer_create(int32_t capacity);
int tokenizer_add_token(Tokenizer *tokenizer, int32_t id, const char *bytes, size_t size, Error *error);
// An added token may be an ordinary one, too, if its bytes are the same.
int tokenizer_add_added(Tokenizer *tokenizer, const AddedToken *token, Error *error);
size_t tokenizer_num_added(const Tokenizer *tokenizer);
const AddedToken *tokenizer_added(const Tokenizer *tokenizer, size_t index);   // in the order they were added
int32_t tokenizer_find_added(const Tokenizer *tokenizer, const char *content); // its id, -1 if there is none
int tokenizer_has_token(const Tokenizer *tokenizer, int32_t id);
int tokenizer_is_ordinary(const Tokenizer *tokenizer, int32_t id);
int32_t tokenizer_find(const Tokenizer *tokenizer, const char *bytes,
                       size_t size); // an ordinary one; -1: none
// The end of text becomes an added token if it is an ordinary one only. Returns -1 if it is no token.
int tokenizer_set_end_of_text(Tokenizer *tokenizer, const char *content);
// `post_processor`, JSON, is written to tokenizer.json again.
void tokenizer_set_prompt_start(Tokenizer *tokenizer, const int32_t *ids, size_t count,
                                const char *post_processor);
const char *tokenizer_post_processor(const Tokenizer *tokenizer);
// The parts' bytes joined must be the bytes of a token.
int tokenizer_add_merge(Tokenizer *tokenizer, int32_t left, int32_t right, Error *error);
size_t tokenizer_num_merges(const Tokenizer *tokenizer);
void tokenizer_merge(const Tokenizer *tokenizer, size_t index, int32_t *left, int32_t *right);
int tokenizer_finish(Tokenizer *tokenizer, Error *error); // every id and every byte must have a token

#ifdef __cplusplus
}
#endif
#endif
