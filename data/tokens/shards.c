// Token shards: see shards.h for the format.
#include "shards.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "shards are read and written as they lie in memory, which must be little-endian"
#endif

enum {
    HEADER_INTS = 256,
    HEADER_BYTES = HEADER_INTS * 4,
    MAGIC_16 = 20240520,
    VERSION_16 = 1,
    MAGIC_32 = 20240801,
    VERSION_32 = 7,
    MARKER = 0x4B524D47,        // "GMRK"
    CRC_BYTES = 1 << 20,        // read at a time
    CONVERT_TOKENS = 8192,      // converted at a time
    DOCUMENT_BUFFER = 64 * 1024 // tokens
};

// ---- paths ------------------------------------------------------------------------------------------------

static int compare_paths(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

int paths_match(const char *pattern, const char *what, char ***paths, size_t *count, Error *error) {
    *count = 0;
    if (file_exists(pattern)) {
        *paths = (char **)xmalloc(sizeof(char *));
        (*paths)[(*count)++] = xstrdup(pattern);
        return 0;
    }
    glob_t found;
    int status = glob(pattern, GLOB_BRACE | GLOB_TILDE | GLOB_NOSORT, NULL, &found);
    if (status != 0) {
        globfree(&found);
        if (status == GLOB_NOMATCH) return fail(error, "no %s matches '%s'", what, pattern);
        return fail(error, "cannot search for a %s that matches '%s'", what, pattern);
    }
    qsort(found.gl_pathv, found.gl_pathc, sizeof(char *), compare_paths);
    *paths = (char **)xmalloc(found.gl_pathc * sizeof(char *));
    for (size_t i = 0; i < found.gl_pathc; i++)
        if (i == 0 || strcmp(found.gl_pathv[i - 1], found.gl_pathv[i]) != 0)
            (*paths)[(*count)++] = xstrdup(found.gl_pathv[i]);
    globfree(&found);
    return 0;
}

void paths_free(char **paths, size_t count) {
    for (size_t i = 0; i < count; i++) free(paths[i]);
    free(paths);
}

// ---- opening ----------------------------------------------------------------------------------------------

// A large corpus has more shards than the usual limit of 1024 open files, so the limit is raised as far as allowed.
// O_NONBLOCK keeps a pipe, which is refused later, from waiting here for a writer.
static int open_for_reading(const char *path) {
    const int flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK;
    int descriptor = open(path, flags);
    struct rlimit limit;
    if (descriptor >= 0 || errno != EMFILE || getrlimit(RLIMIT_NOFILE, &limit) != 0) return descriptor;
    limit.rlim_cur = limit.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &limit) != 0) return -1;
    return open(path, flags);
}

// Returns 1 if the supposed header may be uint16 tokens of GPT-2's vocabulary, as nanoGPT writes them.
static int may_be_gpt2_tokens(const int32_t *header) {
    uint16_t tokens[HEADER_BYTES / 2];
    memcpy(tokens, header, HEADER_BYTES);
    for (size_t i = 0; i < HEADER_BYTES / 2; i++)
        if (tokens[i] > 50256) return 0;
    return 1;
}

static int check_header(Shard *shard, const int32_t *header, uint64_t file_bytes, Error *error) {
    int32_t version;
    if (header[0] == MAGIC_16) {
        shard->token_bytes = 2;
        version = VERSION_16;
    } else if (header[0] == MAGIC_32) {
        shard->token_bytes = 4;
        version = VERSION_32;
    } else {
        return fail(
            error,
            "'%s' is not a token shard: it begins with %d, expected %d (uint16 tokens) or %d (uint32)%s",
            shard->path, header[0], MAGIC_16, MAGIC_32,
            file_bytes % 2 == 0 && may_be_gpt2_tokens(header)
                ? "; files of nanoGPT have no header: make shards from the text with data/tokenize encode"
                : "");
    }
    if (header[1] != version)
        return fail(error, "'%s' is a token shard of version %d, expected version %d", shard->path, header[1],
                    version);
    if (header[2] <= 0)
        return fail(error, "'%s' is damaged: its header says that it has %d tokens, expected at least 1",
                    shard->path, header[2]);
    shard->num_tokens = (uint64_t)header[2];
    uint64_t expected = HEADER_BYTES + shard->num_tokens * (uint64_t)shard->token_bytes;
    if (file_bytes != expected)
        return fail(error, "'%s' is %s: it has %llu bytes, expected %llu for the %llu tokens of its header",
                    shard->path, file_bytes < expected ? "truncated" : "longer than its header says",
                    (unsigned long long)file_bytes, (unsigned long long)expected,
                    (unsigned long long)shard->num_tokens);
    return 0;
}

static int check_file(Shard *shard, Error *error) {
    struct stat status;
    if (fstat(shard->descriptor, &status) != 0) return fail_io(error, "cannot read '%s'", shard->path);
    if (!S_ISREG(status.st_mode))
        return fail(error, "'%s' is not a file, but a token shard was expected", shard->path);
    if (status.st_size < HEADER_BYTES)
        return fail(error, "'%s' %s: it has %lld bytes, but the header of a token shard alone has %d",
                    shard->path, status.st_size == 0 ? "is empty" : "is truncated", (long long)status.st_size,
                    HEADER_BYTES);
    int32_t header[HEADER_INTS];
    if (file_pread(shard->descriptor, shard->path, header, HEADER_BYTES, 0, error) != 0) return -1;
    return check_header(shard, header, (uint64_t)status.st_size, error);
}

static int shard_open(Shard *shard, const char *path, Error *error) {
    memset(shard, 0, sizeof *shard);
    shard->descriptor = open_for_reading(path);
    if (shard->descriptor < 0) return fail_io(error, "cannot open the token shard '%s'", path);
    shard->path = xstrdup(path);
    if (check_file(shard, error) == 0) return 0;
    close(shard->descriptor);
    free(shard->path);
    return -1;
}

static void close_from(ShardSet *set, size_t first) {
    for (size_t i = first; i < set->count; i++) {
        set->num_tokens -= set->shards[i].num_tokens;
        close(set->shards[i].descriptor);
        free(set->shards[i].path);
    }
    set->count = first;
}

static int add_path(ShardSet *set, const char *path, Error *error) {
    set->shards = (Shard *)xrealloc(set->shards, (set->count + 1) * sizeof(Shard));
    if (shard_open(&set->shards[set->count], path, error) != 0) return -1;
    set->num_tokens += set->shards[set->count].num_tokens;
    set->count++;
    return 0;
}

int shards_add(ShardSet *set, const char *pattern, Error *error) {
    char **paths;
    size_t count, before = set->count;
    if (paths_match(pattern, "token shard", &paths, &count, error) != 0) return -1;
    int result = 0;
    for (size_t i = 0; i < count && result == 0; i++) result = add_path(set, paths[i], error);
    if (result != 0) close_from(set, before);
    paths_free(paths, count);
    return result;
}

int shards_open(ShardSet *set, const char *pattern, Error *error) {
    memset(set, 0, sizeof *set);
    if (shards_add(set, pattern, error) == 0) return 0;
    shards_close(set);
    return -1;
}

void shards_close(ShardSet *set) {
    close_from(set, 0);
    free(set->shards);
    memset(set, 0, sizeof *set);
}

// ---- reading ----------------------------------------------------------------------------------------------

int shard_read(const Shard *shard, uint64_t first, size_t count, int32_t *tokens, Error *error) {
    if (first > shard->num_tokens || count > shard->num_tokens - first)
        return fail(error, "'%s' has %llu tokens, too few to read %zu from token %llu onwards", shard->path,
                    (unsigned long long)shard->num_tokens, count, (unsigned long long)first);
    if (shard->token_bytes == 4)
        return file_pread(shard->descriptor, shard->path, tokens, count * 4, HEADER_BYTES + first * 4, error);
    uint16_t narrow[CONVERT_TOKENS];
    for (size_t done = 0; done < count;) {
        size_t part = count - done < CONVERT_TOKENS ? count - done : CONVERT_TOKENS;
        uint64_t offset = HEADER_BYTES + (first + done) * 2;
        if (file_pread(shard->descriptor, shard->path, narrow, part * 2, offset, error) != 0) return -1;
        for (size_t i = 0; i < part; i++) tokens[done + i] = narrow[i];
        done += part;
    }
    return 0;
}

int shard_read_with_retries(const Shard *shard, uint64_t first, size_t count, int32_t *tokens,
                            int (*pause)(void *argument, int seconds), void *argument, Error *error) {
    static const int seconds[] = {1, 2, 4, 8};
    int result = shard_read(shard, first, count, tokens, error);
    for (size_t i = 0; i < sizeof(seconds) / sizeof(seconds[0]); i++) {
        if (result == 0 || error->status != EXIT_IO) return result;
        warn("%s; trying again in %d s", error->text, seconds[i]);
        if (pause(argument, seconds[i]) != 0) return result;
        result = shard_read(shard, first, count, tokens, error);
    }
    return result;
}

// ---- writing ----------------------------------------------------------------------------------------------

static char *shard_path(const char *prefix, uint64_t index) {
    return format_text("%s_%06llu.bin", prefix, (unsigned long long)index);
}

static const char *base_name(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash == NULL ? path : slash + 1;
}

// Sets the nonzero words of the header.
static void fill_header(int32_t *header, const char *prefix, uint64_t index, int token_bytes,
                        uint64_t num_tokens, uint32_t crc) {
    const char *name = base_name(prefix);
    header[0] = token_bytes == 2 ? MAGIC_16 : MAGIC_32;
    header[1] = token_bytes == 2 ? VERSION_16 : VERSION_32;
    header[2] = (int32_t)num_tokens;
    header[3] = MARKER;
    header[4] = (int32_t)crc32c(0, name, strlen(name));
    header[5] = (int32_t)index;
    header[6] = (int32_t)crc;
    header[7] = (int32_t)crc32c(0, header, 7 * sizeof(int32_t));
}

static int tokens_crc(const Shard *shard, uint32_t *crc, Error *error) {
    const uint64_t size = shard->num_tokens * (uint64_t)shard->token_bytes;
    char *buffer = (char *)xmalloc(CRC_BYTES);
    int result = 0;
    *crc = 0;
    for (uint64_t done = 0; done < size && result == 0; done += CRC_BYTES) {
        size_t part = size - done < CRC_BYTES ? (size_t)(size - done) : CRC_BYTES;
        result = file_pread(shard->descriptor, shard->path, buffer, part, HEADER_BYTES + done, error);
        if (result == 0) *crc = crc32c(*crc, buffer, part);
    }
    free(buffer);
    return result;
}

// Returns 1 if the marker proves that this file was written under this name and is unchanged.
static int has_own_marker(const char *prefix, uint64_t index) {
    char *path = shard_path(prefix, index);
    int32_t header[HEADER_INTS], expected[HEADER_INTS] = {0};
    struct stat status;
    Shard shard;
    Error ignored;
    uint32_t crc = 0;
    int ours = lstat(path, &status) == 0 && S_ISREG(status.st_mode) &&
               shard_open(&shard, path, &ignored) == 0;
    free(path);
    if (!ours) return 0;
    ours = file_pread(shard.descriptor, shard.path, header, HEADER_BYTES, 0, &ignored) == 0 &&
           header[3] == MARKER && tokens_crc(&shard, &crc, &ignored) == 0;
    if (ours) fill_header(expected, prefix, index, shard.token_bytes, shard.num_tokens, crc);
    close(shard.descriptor);
    free(shard.path);
    return ours && memcmp(header, expected, HEADER_BYTES) == 0;
}

// Returns the number in a shard's name in the set `base`, if it is spelled as in shard_path; -1 for any other name.
static int64_t index_of_name(const char *name, const char *base) {
    const size_t length = strlen(base);
    if (strncmp(name, base, length) != 0 || name[length] != '_') return -1;
    int64_t index = strtoll(name + length + 1, NULL, 10);
    char *spelled = index < 0 ? NULL : shard_path(base, (uint64_t)index);
    int same = spelled != NULL && strcmp(spelled, name) == 0;
    free(spelled);
    return same ? index : -1;
}

// Calls `visit` with the number of every file that has a name of the set, until a call fails. A missing folder has no
// such files.
typedef int (*VisitShard)(ShardWriter *writer, uint64_t index, Error *error);
static int for_each_shard(ShardWriter *writer, VisitShard visit, Error *error) {
    const char *base = base_name(writer->prefix);
    char *path = format_text("%.*s%s", (int)(base - writer->prefix), writer->prefix,
                             base == writer->prefix ? "." : "");
    DIR *folder = opendir(path);
    int result = folder != NULL || errno == ENOENT || errno == ENOTDIR
                     ? 0
                     : fail_io(error, "cannot open the folder '%s'", path);
    for (struct dirent *entry; result == 0 && folder != NULL && (entry = readdir(folder)) != NULL;) {
        int64_t index = index_of_name(entry->d_name, base);
        if (index >= 0) result = visit(writer, (uint64_t)index, error);
    }
    if (folder != NULL) closedir(folder);
    free(path);
    return result;
}

static int refuse_foreign(ShardWriter *writer, uint64_t index, Error *error) {
    if (has_own_marker(writer->prefix, index)) return 0;
    char *path = shard_path(writer->prefix, index);
    fail(error,
         "'%s' exists, and its header does not show that this program wrote it under this name: move it "
         "away, choose another --out, or give --overwrite",
         path);
    free(path);
    return -1;
}

int shard_writer_open(ShardWriter *writer, const char *prefix, uint64_t tokens_per_shard, int token_bytes,
                      int overwrite, Error *error) {
    memset(writer, 0, sizeof *writer);
    if (tokens_per_shard < 1 || tokens_per_shard > SHARD_MAX_TOKENS)
        return fail(error, "a shard cannot have %llu tokens: expected 1 to %u",
                    (unsigned long long)tokens_per_shard, SHARD_MAX_TOKENS);
    if (token_bytes != 2 && token_bytes != 4)
        return fail(error, "a token cannot have %d bytes: expected 2 or 4", token_bytes);
    writer->prefix = xstrdup(prefix);
    writer->tokens_per_shard = tokens_per_shard;
    writer->token_bytes = token_bytes;
    if (overwrite || for_each_shard(writer, refuse_foreign, error) == 0) return 0;
    shard_writer_abandon(writer);
    return -1;
}

static int start_shard(ShardWriter *writer, Error *error) {
    char *path = shard_path(writer->prefix, writer->shard_index);
    int result = file_writer_open(&writer->file, path, error);
    free(path);
    if (result != 0) return -1;
    writer->is_open = 1;
    writer->shard_tokens = 0;
    writer->crc = 0;
    // The header is written last, when the number of tokens is known.
    static const int32_t zeros[HEADER_INTS];
    if (fwrite(zeros, HEADER_BYTES, 1, writer->file.stream) != 1)
        return fail_io(error, "cannot write %s", writer->file.path);
    return 0;
}

static int finish_shard(ShardWriter *writer, Error *error) {
    int32_t header[HEADER_INTS] = {0};
    fill_header(header, writer->prefix, writer->shard_index, writer->token_bytes, writer->shard_tokens,
                writer->crc);
    if (fseeko(writer->file.stream, 0, SEEK_SET) != 0 ||
        fwrite(header, HEADER_BYTES, 1, writer->file.stream) != 1)
        return fail_io(error, "cannot write %s", writer->file.path);
    writer->is_open = 0;
    writer->shard_index++;
    return file_writer_commit(&writer->file, error);
}

static int write_tokens(ShardWriter *writer, const int32_t *tokens, size_t count, Error *error) {
    uint16_t narrow[CONVERT_TOKENS];
    uint32_t largest = writer->token_bytes == 2 ? UINT16_MAX : INT32_MAX;
    for (size_t done = 0; done < count;) {
        size_t part = count - done < CONVERT_TOKENS ? count - done : CONVERT_TOKENS;
        for (size_t i = 0; i < part; i++) {
            if ((uint32_t)tokens[done + i] > largest)
                return fail(error, "token %d does not fit into '%s', expected 0 to %u", tokens[done + i],
                            writer->file.path, largest);
            narrow[i] = (uint16_t)tokens[done + i];
        }
        const void *bytes = writer->token_bytes == 2 ? (const void *)narrow : (const void *)(tokens + done);
        if (fwrite(bytes, (size_t)writer->token_bytes, part, writer->file.stream) != part)
            return fail_io(error, "cannot write %s", writer->file.path);
        writer->crc = crc32c(writer->crc, bytes, part * (size_t)writer->token_bytes);
        done += part;
    }
    writer->shard_tokens += count;
    writer->num_tokens += count;
    return 0;
}

int shard_writer_document(ShardWriter *writer, const int32_t *tokens, size_t count, Error *error) {
    for (size_t done = 0; done < count;) {
        if (!writer->is_open && start_shard(writer, error) != 0) return -1;
        uint64_t room = writer->tokens_per_shard - writer->shard_tokens;
        size_t part = count - done < room ? count - done : (size_t)room;
        if (write_tokens(writer, tokens + done, part, error) != 0) return -1;
        done += part;
        if (writer->shard_tokens == writer->tokens_per_shard && finish_shard(writer, error) != 0) return -1;
    }
    return 0;
}

static int remove_if_ours(ShardWriter *writer, uint64_t index, Error *error) {
    if (index < writer->shard_index) return 0;
    char *path = shard_path(writer->prefix, index);
    int result = 0;
    if (!has_own_marker(writer->prefix, index))
        warn("'%s' is not part of this set of shards and is kept, but a pattern such as '%s_*.bin' includes "
             "it",
             path, writer->prefix);
    else if (unlink(path) != 0 && errno != ENOENT)
        result = fail_io(error, "cannot remove '%s', a shard of an earlier set", path);
    free(path);
    return result;
}

int shard_writer_close(ShardWriter *writer, Error *error) {
    int result = writer->is_open ? finish_shard(writer, error) : 0;
    if (result == 0) result = for_each_shard(writer, remove_if_ours, error);
    shard_writer_abandon(writer);
    return result;
}

void shard_writer_abandon(ShardWriter *writer) {
    if (writer->is_open) file_writer_abandon(&writer->file);
    writer->is_open = 0;
    free(writer->prefix);
    writer->prefix = NULL;
}

// ---- documents --------------------------------------------------------------------------------------------

void documents_open(DocumentReader *reader, const ShardSet *set, int32_t end_of_text) {
    memset(reader, 0, sizeof *reader);
    reader->set = set;
    reader->end_of_text = end_of_text;
    reader->buffer = (int32_t *)xmalloc(DOCUMENT_BUFFER * sizeof(int32_t));
}

void documents_close(DocumentReader *reader) {
    free(reader->buffer);
    memset(reader, 0, sizeof *reader);
}

static int pause_documents(void *nothing, int seconds) {
    (void)nothing;
    sleep((unsigned)seconds);
    return 0;
}

// Refills the empty buffer. Returns 1 if it has tokens, 0 at the end of the set, -1 on error.
static int fill_buffer(DocumentReader *reader, Error *error) {
    while (reader->shard < reader->set->count) {
        const Shard *shard = &reader->set->shards[reader->shard];
        uint64_t left = shard->num_tokens - reader->offset;
        if (left == 0) {
            reader->shard++;
            reader->offset = 0;
            continue;
        }
        size_t count = left < DOCUMENT_BUFFER ? (size_t)left : DOCUMENT_BUFFER;
        if (shard_read_with_retries(shard, reader->offset, count, reader->buffer, pause_documents, NULL,
                                    error) != 0)
            return -1;
        reader->offset += count;
        reader->start = 0;
        reader->end = count;
        return 1;
    }
    return 0;
}

int documents_next(DocumentReader *reader, int32_t *tokens, size_t capacity, size_t *count, Error *error) {
    *count = 0;
    for (;;) {
        if (reader->start == reader->end) {
            int filled = fill_buffer(reader, error);
            if (filled > 0) continue;
            int last = filled == 0 && reader->inside;
            reader->inside = 0;
            return filled < 0 ? -1 : last;
        }
        const int32_t *from = reader->buffer + reader->start;
        size_t available = reader->end - reader->start, length = 0;
        while (length < available && from[length] != reader->end_of_text) length++;
        reader->start += length + (length < available);
        if (reader->inside) {
            size_t room = *count < capacity ? capacity - *count : 0;
            if (room > 0) memcpy(tokens + *count, from, (length < room ? length : room) * sizeof(int32_t));
            *count += length;
        }
        if (length == available) continue;
        if (reader->inside) return 1;
        reader->inside = 1;
    }
}

// Completes one row; `row_targets` already holds the first min(count, T) tokens of the document.
static int fill_row(DocumentReader *reader, int32_t vocab_size, size_t T, size_t count, int32_t *row_inputs,
                    int32_t *row_targets, Error *error) {
    size_t length = count < T ? count : T;
    for (size_t i = 0; i < length; i++)
        if (row_targets[i] < 0 || row_targets[i] >= vocab_size)
            return fail(error,
                        "token %zu of a document in '%s' is %d, expected 0 to %d for a vocabulary of %d", i,
                        reader->set->shards[0].path, row_targets[i], vocab_size - 1, vocab_size);
    row_inputs[0] = reader->end_of_text;
    memcpy(row_inputs + 1, row_targets, (length < T ? length : T - 1) * sizeof(int32_t));
    for (size_t i = length + 1; i < T; i++) row_inputs[i] = reader->end_of_text;
    if (length < T) row_targets[length] = reader->end_of_text;
    for (size_t i = length + 1; i < T; i++) row_targets[i] = -1;
    return 0;
}

int documents_batch(DocumentReader *reader, int32_t vocab_size, size_t batch, size_t T, int32_t *inputs,
                    int32_t *targets, int64_t *cut, Error *error) {
    size_t rows = 0, count;
    int found = 1;
    while (rows < batch && (found = documents_next(reader, targets + rows * T, T, &count, error)) == 1) {
        if (count == 0) continue;
        if (fill_row(reader, vocab_size, T, count, inputs + rows * T, targets + rows * T, error) != 0)
            return -1;
        *cut += count >= T;
        rows++;
    }
    for (size_t i = rows * T; i < batch * T; i++) {
        inputs[i] = reader->end_of_text;
        targets[i] = -1;
    }
    return found < 0 ? -1 : (int)rows;
}
