// Byte-level byte-pair encoding, as in GPT-2: text to token ids and back, files of Hugging Face and OpenAI,
// training.
//
// Text is cut into pre-tokens (words with the space before them, numbers, punctuation, white space) by
// GPT-2's pattern; within a pre-token, beginning with single bytes, the adjacent pair whose merge was learnt
// first is joined until no pair can be joined (Sennrich et al. 2016, Radford et al. 2019). Every sequence of
// bytes can be encoded, and decoding gives back exactly those bytes. In files, the bytes of a token are
// spelled with 256 printable characters, GPT-2's byte alphabet; in memory they are plain bytes.
//
// `<|endoftext|>` is the one special token: a token of its own that text never produces unless the caller
// asks.
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

typedef struct Tokenizer Tokenizer;

typedef struct {
    int32_t *ids;
    size_t count, capacity;
} TokenList; // begin with all zeros; free(list.ids)

// ---- files (tokenizer_json.c) -----------------------------------------------------------------------------

// `path` is a tokenizer.json (Hugging Face: model BPE, pre-tokenizer ByteLevel), or a folder with
// tokenizer.json, with encoder.json and vocab.bpe, or with vocab.json and merges.txt. NULL on error.
Tokenizer *tokenizer_load(const char *path, Error *error);
// Writes a tokenizer.json that Hugging Face's tokenizers and transformers read.
void tokenizer_write(const Tokenizer *tokenizer, FILE *stream); // the same to a stream
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
// ids, as in Hugging Face's trainer. `separator` (NULL: none) parts texts and is not learnt. Fails when no
// pair occurs twice any more before there are that many tokens.
Tokenizer *tokenizer_train(const Text *texts, size_t num_texts, int32_t vocab_size, const char *separator,
                           Error *error);

// ---- use --------------------------------------------------------------------------------------------------

void tokenizer_free(Tokenizer *tokenizer);
int32_t tokenizer_vocab_size(const Tokenizer *tokenizer);
int32_t tokenizer_end_of_text(const Tokenizer *tokenizer); // its id, -1 if there is none
uint32_t
tokenizer_checksum(const Tokenizer *tokenizer); // CRC-32C of the vocabulary: the same ids mean the same
// The bytes of a token (end of text: its literal), or NULL for an id outside the vocabulary. No NUL at the
// end.
const char *tokenizer_bytes(const Tokenizer *tokenizer, int32_t id, size_t *size);

// Appends the ids of the text to `ids`. Where `separator` (NULL: none) stands in the text, the end-of-text
// token is put instead, provided the tokenizer has one: pass END_OF_TEXT to recognise the literal.
void tokenizer_encode(Tokenizer *tokenizer, const char *text, size_t size, const char *separator,
                      TokenList *ids);
// The shortest part of at least `least` (> 0) bytes from the front that can be encoded on its own, such that
// its ids and the ids of the rest, one after the other, are the ids of the whole. `size` when there is none.
size_t tokenizer_cut(const char *text, size_t size, const char *separator, size_t least);

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
// With 0, every pre-token goes through the regular expression, none through the equivalent scanner for ASCII.
void splitter_use_scanner(Splitter *splitter, int use);

// ---- building a tokenizer: for the files above ------------------------------------------------------------

// GPT-2's byte alphabet: printable Latin-1 characters stand for themselves, the other bytes, in order, for
// U+0100 and the characters after it.
int byte_to_character(int byte);
int character_to_byte(uint32_t character); // -1 if outside the alphabet
uint64_t hash_bytes(const void *data, size_t size);

// `capacity` bounds ids. Tokens come in any order, then merges in the order they were learnt, then finish.
Tokenizer *tokenizer_create(int32_t capacity);
int tokenizer_add_token(Tokenizer *tokenizer, int32_t id, const char *bytes, size_t size, int is_special,
                        Error *error);
int tokenizer_has_token(const Tokenizer *tokenizer, int32_t id);
int tokenizer_is_special(const Tokenizer *tokenizer, int32_t id);
int32_t tokenizer_find(const Tokenizer *tokenizer, const char *bytes, size_t size); // -1 if there is none
// The parts' bytes joined must be the bytes of a token.
int tokenizer_add_merge(Tokenizer *tokenizer, int32_t left, int32_t right, Error *error);
size_t tokenizer_num_merges(const Tokenizer *tokenizer);
void tokenizer_merge(const Tokenizer *tokenizer, size_t index, int32_t *left, int32_t *right);
int tokenizer_finish(Tokenizer *tokenizer, Error *error); // every id and every byte must have a token

#ifdef __cplusplus
}
#endif
#endif
