// Token shards: files of token ids, read at random, written in order, walked document by document.
//
// Format (llm.c's): a header of 256 little-endian int32, of which llm.c uses the first three - magic, version,
// number of tokens - then the tokens. 20240520, 1 stands for uint16 tokens; 20240801, 7 for uint32 tokens.
// The next five words, which llm.c ignores and other writers leave zero, are our marker:
//
//     [3] 0x4B524D47 ("GMRK")     [4] CRC-32C of the file's name up to its number ("train" of train_000002.bin)
//     [5] the number in the name  [6] CRC-32C of the tokens' bytes     [7] CRC-32C of the words [0] to [6]
//
// It proves that a file was written by ShardWriter under the very name it has and was not changed since. Only
// such files are ever replaced or removed; a copy under another name does not count.
//
// The file is exactly as long as the header says. A shard holds up to 2^31 - 1 tokens; all offsets are
// 64-bit. Every document begins with the end-of-text token (llm.c's convention), so that token is what
// separates them; a document that does not fit is cut and goes on in the next shard.
//
// Errors are as in files.h: -1 and a sentence naming the file and what was expected.
#ifndef DATA_SHARDS_H
#define DATA_SHARDS_H

#include <stddef.h>
#include <stdint.h>
#include "files.h"

#ifdef __cplusplus
extern "C" {
#endif

#define SHARD_MAX_TOKENS 2147483647u

typedef struct {
    char *path;
    int descriptor;
    uint64_t num_tokens;
    int token_bytes; // 2 or 4
} Shard;

typedef struct {
    Shard *shards;
    size_t count;
    uint64_t num_tokens; // of all shards together
} ShardSet;

// Paths that match `pattern`: the path itself if it exists, else a glob with *, ?, [..], {a,b} and ~, each
// path once, sorted byte by byte (the order of tokens must not depend on the locale). `what` is for the
// message when none does.
int paths_match(const char *pattern, const char *what, char ***paths, size_t *count, Error *error);
void paths_free(char **paths, size_t count);

// Opens every file that matches `pattern` (a path, or a glob with *, ?, [..], {a,b} and ~), in the order of
// their names, and checks header and length of each. On error the set is left closed.
int shards_open(ShardSet *set, const char *pattern, Error *error);
// Appends what matches another pattern to a set that is open, or all zeros. On error the set stays as it was.
int shards_add(ShardSet *set, const char *pattern, Error *error);
void shards_close(ShardSet *set);

// Reads tokens [first, first + count). Several threads may read one shard. Values are not compared with any
// vocabulary; a uint32 above 2^31 - 1 comes out negative.
int shard_read(const Shard *shard, uint64_t first, size_t count, int32_t *tokens, Error *error);
// What the disk, or the network to it, does not give at once is read again after 1, 2, 4 and 8 seconds, with a warning.
// `pause` sleeps, and may say by another value than 0 that it is enough.
int shard_read_patiently(const Shard *shard, uint64_t first, size_t count, int32_t *tokens,
                         int (*pause)(void *argument, int seconds), void *argument, Error *error);

// Writes <prefix>_000000.bin, <prefix>_000001.bin, ...; each appears under its name only when it is complete
// and on the disk. Shards of an earlier, longer set under the same prefix are removed at the end, as a glob
// would mix them in, provided that their markers prove they are ours.
typedef struct {
    FileWriter file;
    char *prefix;
    int is_open;  // is a shard being written?
    uint32_t crc; // of the tokens of the shard being written
    int token_bytes;
    uint32_t shard_index; // of the shard being written, or of the next one
    uint64_t tokens_per_shard;
    uint64_t shard_tokens; // in the shard being written
    uint64_t num_tokens;   // in all shards so far
} ShardWriter;
// Fails when a file <prefix>_NNNNNN.bin of any number exists whose marker does not prove that it is ours, unless
// `overwrite`: then such a file is replaced if the new set has a shard of its name, else left (with a warning).
int shard_writer_open(ShardWriter *writer, const char *prefix, uint64_t tokens_per_shard, int token_bytes,
                      int overwrite, Error *error);
// `tokens` begin with the end-of-text token. A long document may come in several calls.
int shard_writer_document(ShardWriter *writer, const int32_t *tokens, size_t count, Error *error);
// Completes the last shard, then removes our shards of higher numbers.
int shard_writer_close(ShardWriter *writer, Error *error);
// Instead of close, after an error: removes the unfinished shard; complete ones stay.
void shard_writer_abandon(ShardWriter *writer);

// Walks a set document by document. The set must stay open. A document is what stands between two end-of-text
// tokens, or after the last one; it may be empty, and may straddle shards. Tokens before the first
// end-of-text (the end of a document that began in a shard outside the set) are skipped.
typedef struct {
    const ShardSet *set;
    int32_t end_of_text;
    size_t shard;    // where the buffer is filled from next
    uint64_t offset; // in that shard
    int32_t *buffer;
    size_t start, end; // unread part of the buffer
    int inside;        // has an end-of-text token been passed?
} DocumentReader;
void documents_open(DocumentReader *reader, const ShardSet *set, int32_t end_of_text);
// Returns 1 when there was a document, 0 at the end, -1 on error. *count is its full length; only the first
// `capacity` tokens of it are stored.
int documents_next(DocumentReader *reader, int32_t *tokens, size_t capacity, size_t *count, Error *error);
// The next documents that are not empty, one a row of inputs and targets (batch, T), for scoring each from
// its start: end of text and the document as inputs, the document and end of text as targets; targets past
// that are -1. What does not fit into T is cut, and counted in *cut. Returns the number of rows filled, 0 at
// the end, -1 on error; a token outside 0 .. vocab_size - 1 is one.
int documents_batch(DocumentReader *reader, int32_t vocab_size, size_t batch, size_t T, int32_t *inputs,
                    int32_t *targets, int64_t *cut, Error *error);
void documents_close(DocumentReader *reader);

#ifdef __cplusplus
}
#endif
#endif
