// Token shards: files of token ids, with random reads, sequential writes, and iteration over documents.
//
// Format (llm.c's): a header of 256 little-endian int32, of which llm.c uses the first three (magic, version, number
// of tokens), then the tokens. Magic 20240520 and version 1 mean uint16 tokens; 20240801 and 7 mean uint32 tokens.
// The next five words, which llm.c ignores and other programs leave zero, are the marker of this program:
//
//     [3] 0x4B524D47 ("GMRK")     [4] CRC-32C of the file's name up to its number ("train" of train_000002.bin)
//     [5] the number in the name  [6] CRC-32C of the tokens' bytes     [7] CRC-32C of the words [0] to [6]
//
// It proves that a file was written by ShardWriter under the name that it has, and is unchanged. Only such files are
// ever replaced or removed; a copy under another name is not.
//
// The file is exactly as long as the header says. A shard holds up to 2^31 - 1 tokens; all offsets are 64-bit. Every
// document begins with the end-of-text token (llm.c's convention), so this token separates documents; a document that
// does not fit into a shard continues in the next one.
//
// Errors are as in files.h: -1 with a sentence that names the file and says what was expected.
#ifndef DATA_TOKENS_SHARDS_H
#define DATA_TOKENS_SHARDS_H

#include <stddef.h>
#include <stdint.h>
#include "layers/base/files.h"

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

// Stores the paths that match `pattern`: the path itself if it exists, else those of a glob with *, ?, [..], {a,b}
// and ~; each path once, sorted bytewise (the order of tokens must not depend on the locale). Fails if there is none;
// `what` names the kind of file in the message.
int paths_match(const char *pattern, const char *what, char ***paths, size_t *count, Error *error);
void paths_free(char **paths, size_t count);

// Opens every file that matches `pattern` (see paths_match), in the order of their names, and checks the header and
// the length of each. On error the set is closed.
int shards_open(ShardSet *set, const char *pattern, Error *error);
// Appends the files that match another pattern to a set that is open or all zeros. On error the set is unchanged.
int shards_add(ShardSet *set, const char *pattern, Error *error);
void shards_close(ShardSet *set);

// Reads tokens [first, first + count). Several threads may read one shard. Values are not checked against any
// vocabulary; a uint32 above 2^31 - 1 becomes negative.
int shard_read(const Shard *shard, uint64_t first, size_t count, int32_t *tokens, Error *error);
// Like shard_read, but after an I/O error tries again after 1, 2, 4 and 8 seconds, with a warning. `pause` sleeps,
// and returns nonzero to stop trying.
int shard_read_with_retries(const Shard *shard, uint64_t first, size_t count, int32_t *tokens,
                            int (*pause)(void *argument, int seconds), void *argument, Error *error);

// Writes <prefix>_000000.bin, <prefix>_000001.bin, ...; each appears under its name only when it is complete and on
// disk. At the end, shards of an earlier, longer set with the same prefix are removed, because a glob would include
// them, but only if their markers prove that this program wrote them.
typedef struct {
    FileWriter file;
    char *prefix;
    int is_open;  // 1 while a shard is being written
    uint32_t crc; // of the tokens of the shard being written
    int token_bytes;
    uint32_t shard_index; // of the shard being written, or of the next one
    uint64_t tokens_per_shard;
    uint64_t shard_tokens; // in the shard being written
    uint64_t num_tokens;   // in all shards so far
} ShardWriter;
// Fails if any file <prefix>_NNNNNN.bin exists whose marker does not prove that this program wrote it, unless
// `overwrite` is set: then such a file is replaced if the new set has a shard of its name, and otherwise kept, with a
// warning.
int shard_writer_open(ShardWriter *writer, const char *prefix, uint64_t tokens_per_shard, int token_bytes,
                      int overwrite, Error *error);
// Appends `tokens`, which begin with the end-of-text token. A long document may be written by several calls.
int shard_writer_document(ShardWriter *writer, const int32_t *tokens, size_t count, Error *error);
// Completes the last shard, then removes this program's shards with higher numbers.
int shard_writer_close(ShardWriter *writer, Error *error);
// Replaces shard_writer_close after an error: removes the unfinished shard; complete ones are kept.
void shard_writer_abandon(ShardWriter *writer);

// Reads a set document by document. The set must stay open. A document consists of the tokens between two end-of-text
// tokens, or after the last one; it may be empty, and may span shards. Tokens before the first end-of-text token (the
// end of a document that began in a shard outside the set) are skipped.
typedef struct {
    const ShardSet *set;
    int32_t end_of_text;
    size_t shard;    // the shard from which the buffer is filled next
    uint64_t offset; // in that shard
    int32_t *buffer;
    size_t start, end; // unread part of the buffer
    int inside;        // 1 after the first end-of-text token
} DocumentReader;
void documents_open(DocumentReader *reader, const ShardSet *set, int32_t end_of_text);
// Returns 1 if there was a document, 0 at the end, -1 on error. *count is its full length; only its first `capacity`
// tokens are stored.
int documents_next(DocumentReader *reader, int32_t *tokens, size_t capacity, size_t *count, Error *error);
// Reads the next nonempty documents, one per row of `inputs` and `targets` (batch, T), so that each can be scored
// from its beginning: end of text and the document as inputs, the document and end of text as targets; targets after
// that, and in unused rows, are -1. Documents that do not fit into T are truncated and counted: *cut += their number.
// Returns the number of rows filled, 0 at the end, -1 on error, for example if a token is outside 0 .. vocab_size -
// 1.
int documents_batch(DocumentReader *reader, int32_t vocab_size, size_t batch, size_t T, int32_t *inputs,
                    int32_t *targets, int64_t *cut, Error *error);
void documents_close(DocumentReader *reader);

#ifdef __cplusplus
}
#endif
#endif
