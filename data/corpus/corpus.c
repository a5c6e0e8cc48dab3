#include "corpus.h"
#include "data/tokens/shards.h"
#include "spool.h"

#include "data/json/cjson.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

struct CorpusFile {
    char *path;
    const char *data; // memory-mapped
    size_t size;
};

static void note_problem(Corpus *corpus, const char *sentence) {
    char *longer = corpus->problems == NULL ? xstrdup(sentence)
                                            : format_text("%s; %s", corpus->problems, sentence);
    free(corpus->problems);
    corpus->problems = longer;
    corpus->num_problems++;
}

static void add_text(Corpus *corpus, const struct CorpusFile *file, size_t start, size_t size,
                     int is_document) {
    if (corpus->count == corpus->capacity) {
        corpus->capacity = 2 * corpus->capacity + 64;
        corpus->texts = (CorpusText *)xrealloc(corpus->texts, corpus->capacity * sizeof(CorpusText));
    }
    CorpusText text = {file->path, file->data + start, size, is_document};
    corpus->texts[corpus->count++] = text;
    corpus->size += size;
}

// ---- files and pipes --------------------------------------------------------------------------------------

static int map_file(struct CorpusFile *file, int descriptor, uint64_t size, Error *error) {
    void *data = mmap(NULL, (size_t)size, PROT_READ, MAP_PRIVATE, descriptor, 0);
    if (data == MAP_FAILED) return fail_io(error, "cannot read %s", file->path);
    madvise(data, (size_t)size, MADV_SEQUENTIAL);
    file->data = (const char *)data;
    file->size = (size_t)size;
    return 0;
}

// Maps the contents of a spool, and closes it.
static int map_spool(struct CorpusFile *file, FILE *spool, uint64_t size, Error *error) {
    int result = fflush(spool) == 0
                     ? 0
                     : fail_io(error, "cannot write the text of %s to a temporary file", file->path);
    if (result == 0 && size > 0) result = map_file(file, fileno(spool), size, error);
    fclose(spool);
    return result;
}

static FILE *open_spool(const Corpus *corpus, Error *error) {
    const char *chosen = getenv("TMPDIR");
    return spool_create(chosen != NULL && chosen[0] != '\0' ? chosen : corpus->folder, error);
}

// Maps the decompressed text of an open file.
static int read_file(const Corpus *corpus, struct CorpusFile *file, int descriptor, const struct stat *status,
                     int is_pipe, Error *error) {
    const Compression compression = compression_of_name(file->path);
    uint64_t size = 0;
    if (S_ISDIR(status->st_mode)) return fail(error, "%s is a folder, not a file", file->path);
    if (!is_pipe && compression == NOT_COMPRESSED)
        return status->st_size == 0 ? 0 : map_file(file, descriptor, (uint64_t)status->st_size, error);
    FILE *spool = open_spool(corpus, error);
    if (spool == NULL) return -1;
    if (spool_copy(descriptor, file->path, compression, is_pipe, spool, &size, error) == 0)
        return map_spool(file, spool, size, error);
    fclose(spool);
    return -1;
}

// ---- JSON lines -------------------------------------------------------------------------------------------

// Finds NUL characters, also as JSON's escape \u0000: cJSON's strings end there.
static int has_nul(const char *line, size_t size) {
    for (size_t i = 0; i + 5 < size; i++) {
        if (line[i] != '\\') continue;
        if (memcmp(line + i + 1, "u0000", 5) == 0) return 1;
        i++;
    }
    return memchr(line, '\0', size) != NULL;
}

// Writes one line's field to the spool. Returns -1 with a sentence if there is none.
static int copy_field(const Corpus *corpus, const char *path, size_t number, const char *line, size_t size,
                      FILE *spool, uint64_t *bytes, Error *error) {
    if (has_nul(line, size)) return fail(error, "%s: line %zu contains a NUL character", path, number);
    cJSON *json = cJSON_ParseWithLength(line, size);
    const cJSON *field = cJSON_GetObjectItemCaseSensitive(json, corpus->field);
    const char *text = cJSON_GetStringValue(field);
    int result = 0;
    if (!cJSON_IsObject(json)) {
        result = fail(error, "%s: line %zu is not a JSON object", path, number);
    } else if (text == NULL) {
        result = fail(error, "%s: line %zu has no text named '%.100s' (--field gives another name)", path,
                      number, corpus->field);
    } else {
        *bytes = strlen(text);
        if (fwrite(text, 1, *bytes, spool) != *bytes)
            result = fail_io(
                error, "cannot write the text of %s to a temporary file (TMPDIR names another folder)", path);
    }
    cJSON_Delete(json);
    return result;
}

static int is_blank(const char *line, size_t size) {
    for (size_t i = 0; i < size; i++)
        if (line[i] != ' ' && line[i] != '\t' && line[i] != '\r') return 0;
    return 1;
}

// Replaces the mapped lines by a mapping of their fields' texts, whose sizes are stored in `sizes`.
static int decode_lines(const Corpus *corpus, struct CorpusFile *file, size_t **sizes, size_t *count,
                        Error *error) {
    struct CorpusFile decoded = {file->path, NULL, 0};
    uint64_t total = 0;
    size_t number = 1, capacity = 0;
    int result = 0;
    FILE *spool = open_spool(corpus, error);
    if (spool == NULL) return -1;
    for (size_t start = 0; start < file->size && result == 0; number++) {
        const char *line = file->data + start, *end = (const char *)memchr(line, '\n', file->size - start);
        const size_t length = end == NULL ? file->size - start : (size_t)(end - line);
        uint64_t bytes = 0;
        start += length + 1;
        if (is_blank(line, length)) continue;
        result = copy_field(corpus, file->path, number, line, length, spool, &bytes, error);
        if (*count == capacity) {
            capacity = 2 * capacity + 1024;
            *sizes = (size_t *)xrealloc(*sizes, capacity * sizeof(size_t));
        }
        (*sizes)[(*count)++] = (size_t)bytes;
        total += bytes;
    }
    if (result == 0)
        result = map_spool(&decoded, spool, total, error);
    else
        fclose(spool);
    if (file->size > 0) munmap((void *)file->data, file->size);
    *file = decoded;
    return result;
}

static int is_json_lines(const Corpus *corpus, const char *path, int is_pipe) {
    static const char *const ends[] = {".jsonl", ".jsonl.gz", ".jsonl.zst"};
    const size_t length = strlen(path);
    for (int i = 0; i < 3; i++)
        if (length > strlen(ends[i]) && strcmp(path + length - strlen(ends[i]), ends[i]) == 0) return 1;
    return is_pipe && corpus->lines;
}

// ---- the corpus -------------------------------------------------------------------------------------------

// Reads a file and adds its texts. An empty file is skipped with a warning.
static int add_texts(Corpus *corpus, struct CorpusFile *file, int descriptor, int is_stdin, Error *error) {
    struct stat status;
    if (fstat(descriptor, &status) != 0) return fail_io(error, "cannot read %s", file->path);
    const int is_pipe = is_stdin || !S_ISREG(status.st_mode); // standard input may have been read in part
    if (read_file(corpus, file, descriptor, &status, is_pipe, error) != 0) return -1;
    if (file->size == 0) {
        warn("%s is empty and is skipped", file->path);
        return 0;
    }
    if (!is_json_lines(corpus, file->path, is_pipe)) {
        add_text(corpus, file, 0, file->size, 0);
        return 0;
    }
    size_t *sizes = NULL, count = 0, start = 0;
    int result = decode_lines(corpus, file, &sizes, &count, error);
    for (size_t i = 0; i < count && result == 0; i++) {
        add_text(corpus, file, start, sizes[i], 1);
        start += sizes[i];
    }
    free(sizes);
    return result;
}

static void add_file(Corpus *corpus, const char *path) {
    const int is_stdin = strcmp(path, "-") == 0;
    struct CorpusFile file = {xstrdup(is_stdin ? "standard input" : path), NULL, 0};
    Error error;
    int descriptor = is_stdin ? dup(STDIN_FILENO) : open(path, O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) fail_io(&error, "cannot open %s", file.path);
    if (descriptor < 0 || add_texts(corpus, &file, descriptor, is_stdin, &error) != 0)
        note_problem(corpus, error.text);
    if (descriptor >= 0) close(descriptor);
    corpus->files = (struct CorpusFile *)xrealloc(corpus->files,
                                                  (corpus->num_files + 1) * sizeof(struct CorpusFile));
    corpus->files[corpus->num_files++] = file;
}

void corpus_add(Corpus *corpus, const char *pattern) {
    char **paths;
    size_t count;
    Error error;
    if (strcmp(pattern, "-") == 0) {
        add_file(corpus, pattern);
    } else if (paths_match(pattern, "file", &paths, &count, &error) != 0) {
        note_problem(corpus, error.text);
    } else {
        for (size_t i = 0; i < count; i++) add_file(corpus, paths[i]);
        paths_free(paths, count);
    }
}

int corpus_check(const Corpus *corpus, Error *error) {
    if (corpus->num_problems == 1) return fail(error, "%.1000s", corpus->problems);
    if (corpus->num_problems > 1)
        return fail(error, "%zu inputs cannot be used: %.900s%s", corpus->num_problems, corpus->problems,
                    strlen(corpus->problems) > 900 ? " ..." : "");
    return corpus->count > 0 ? 0 : fail(error, "there is no text in the input");
}

void corpus_close(Corpus *corpus) {
    for (size_t i = 0; i < corpus->num_files; i++) {
        if (corpus->files[i].size > 0) munmap((void *)corpus->files[i].data, corpus->files[i].size);
        free(corpus->files[i].path);
    }
    free(corpus->files);
    free(corpus->texts);
    free(corpus->problems);
    memset(corpus, 0, sizeof *corpus);
}
