// See manifest.h.
#define _GNU_SOURCE
#include "manifest.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { LARGEST_MANIFEST = 16 << 20, READ_CHUNK = 1 << 20 };

void manifest_free(Manifest *manifest) {
    free(manifest->files);
    memset(manifest, 0, sizeof(*manifest));
}

void manifest_add(Manifest *manifest, const CheckpointFile *file) {
    size_t bytes = (manifest->num_files + 1) * sizeof(CheckpointFile);
    manifest->files = (CheckpointFile *)xrealloc(manifest->files, bytes);
    manifest->files[manifest->num_files++] = *file;
}

char *manifest_text(const Manifest *manifest) {
    char *text = manifest->run_id[0] ? format_text("run %s\n", manifest->run_id) : xstrdup("");
    for (size_t i = 0; i < manifest->num_files; i++) {
        const CheckpointFile *file = &manifest->files[i];
        char *longer = format_text("%s%08x %" PRIu64 " %s\n", text, file->crc, file->size, file->name);
        free(text);
        text = longer;
    }
    char *whole = format_text("%s%08x %s\n", text, crc32c(0, text, strlen(text)), MANIFEST_NAME);
    free(text);
    return whole;
}

// Parses a line of either kind. Returns -1 for any other line.
static int read_line(Manifest *manifest, const char *line) {
    CheckpointFile file;
    char end = 0;
    if (sscanf(line, "run %16[0-9a-f]%c", manifest->run_id, &end) == 2 && end == '\n') return 0;
    if (sscanf(line, "%8" SCNx32 " %" SCNu64 " %63[^/\n]%c", &file.crc, &file.size, file.name, &end) != 4 ||
        end != '\n')
        return -1;
    manifest_add(manifest, &file);
    return 0;
}

// `text` ends with a NUL that `size` does not count.
static int parse(Manifest *manifest, char *text, size_t size, const char *path, Error *error) {
    char expected[64], *last = size > 1 ? (char *)memrchr(text, '\n', size - 1) : NULL;
    last = last ? last + 1 : text;
    snprintf(expected, sizeof(expected), "%08x %s\n", crc32c(0, text, (size_t)(last - text)), MANIFEST_NAME);
    if (strcmp(last, expected) != 0 || strlen(text) != size)
        return fail(error, "'%s' is damaged: its last line is not its checksum", path);
    for (char *line = text; line < last; line = strchr(line, '\n') + 1)
        if (read_line(manifest, line) != 0)
            return fail(error, "'%s' is damaged: it has a line that is not \"checksum size name\"", path);
    return 0;
}

int manifest_read(const char *folder, Manifest *manifest, Error *error) {
    char *path = format_text("%s/%s", folder, MANIFEST_NAME), *text = NULL;
    size_t size;
    memset(manifest, 0, sizeof(*manifest));
    int result = file_read(path, LARGEST_MANIFEST, &text, &size, error);
    if (result == 0) result = parse(manifest, text, size, path, error);
    if (result != 0) manifest_free(manifest);
    free(text);
    free(path);
    return result;
}

static int file_crc(const char *path, uint32_t *crc, uint64_t *size, Error *error) {
    if (file_size(path, size, error) != 0) return -1;
    int descriptor = open(path, O_RDONLY | O_CLOEXEC), result = 0;
    if (descriptor < 0) return fail_io(error, "cannot open '%s'", path);
    char *buffer = (char *)xmalloc(READ_CHUNK);
    *crc = 0;
    for (uint64_t done = 0; done < *size && result == 0; done += READ_CHUNK) {
        size_t count = *size - done < READ_CHUNK ? (size_t)(*size - done) : READ_CHUNK;
        result = file_pread(descriptor, path, buffer, count, done, error);
        if (result == 0) *crc = crc32c(*crc, buffer, count);
    }
    free(buffer);
    close(descriptor);
    return result;
}

static int verify_file(const char *folder, const CheckpointFile *file, Error *error) {
    static const char intended[] = "if you changed it on purpose, remove the folder's file '" MANIFEST_NAME
                                   "'";
    uint32_t crc = 0;
    uint64_t size;
    char *path = format_text("%s/%s", folder, file->name);
    int result = file_crc(path, &crc, &size, error);
    if (result == 0 && size != file->size)
        result = fail(error, "'%s' is damaged: it has %" PRIu64 " bytes, but %" PRIu64 " were written (%s)",
                      path, size, file->size, intended);
    else if (result == 0 && crc != file->crc)
        result = fail(error, "'%s' is damaged: its CRC-32C is %08x, but %08x was written (%s)", path, crc,
                      file->crc, intended);
    free(path);
    return result;
}

int manifest_verify(const char *folder, const Manifest *manifest, Error *error) {
    for (size_t i = 0; i < manifest->num_files; i++)
        if (verify_file(folder, &manifest->files[i], error) != 0) return -1;
    return 0;
}
