#define _GNU_SOURCE
#include "files.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#ifdef __SSE4_2__
#include <nmmintrin.h>
#endif

int fail(Error *error, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(error->text, sizeof(error->text), format, arguments);
    va_end(arguments);
    return -1;
}

void die(const char *format, ...) {
    Error sentence;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(sentence.text, sizeof(sentence.text), format, arguments);
    va_end(arguments);
    fflush(stdout);
    fprintf(stderr, "error: %s\n", sentence.text); // at once: other processes may write, too
    exit(1);
}

static void *checked(void *pointer, size_t size) {
    if (pointer == NULL && size > 0) die("out of memory: %zu bytes were asked for", size);
    return pointer;
}

void *xmalloc(size_t size) {
    return checked(malloc(size), size);
}
void *xcalloc(size_t count, size_t size) {
    return checked(calloc(count, size), count * size);
}
void *xrealloc(void *pointer, size_t size) {
    return checked(realloc(pointer, size), size);
}
char *xstrdup(const char *text) {
    return (char *)checked(strdup(text), strlen(text) + 1);
}

char *format_text(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    char *text = NULL;
    int length = vasprintf(&text, format, arguments);
    va_end(arguments);
    return (char *)checked(length < 0 ? NULL : text, 1);
}

int file_exists(const char *path) {
    return access(path, F_OK) == 0;
}

int file_size(const char *path, uint64_t *size, Error *error) {
    struct stat status;
    if (stat(path, &status) != 0) return fail(error, "cannot open '%s': %s", path, strerror(errno));
    *size = (uint64_t)status.st_size;
    return 0;
}

int file_read(const char *path, size_t limit, char **data, size_t *size, Error *error) {
    *data = NULL;
    int descriptor = open(path, O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) return fail(error, "cannot open '%s': %s", path, strerror(errno));
    struct stat status;
    int result = -1;
    if (fstat(descriptor, &status) != 0) {
        fail(error, "cannot read '%s': %s", path, strerror(errno));
    } else if (!S_ISREG(status.st_mode)) {
        fail(error, "cannot read '%s': not a regular file", path);
    } else if ((uint64_t)status.st_size > limit) {
        fail(error, "'%s' has %lld bytes, more than the %zu expected at most", path,
             (long long)status.st_size, limit);
    } else {
        *size = (size_t)status.st_size;
        *data = (char *)xmalloc(*size + 1);
        (*data)[*size] = '\0';
        result = file_pread(descriptor, path, *data, *size, 0, error);
        if (result != 0) {
            free(*data);
            *data = NULL;
        }
    }
    close(descriptor);
    return result;
}

int file_pread(int descriptor, const char *path, void *data, size_t size, uint64_t offset, Error *error) {
    size_t done = 0;
    while (done < size) {
        ssize_t count = pread(descriptor, (char *)data + done, size - done, (off_t)(offset + done));
        if (count < 0 && errno == EINTR) continue;
        if (count < 0)
            return fail(error, "cannot read '%s' at byte %llu: %s", path, (unsigned long long)(offset + done),
                        strerror(errno));
        if (count == 0)
            return fail(error, "'%s' ends at byte %llu, %zu more were expected", path,
                        (unsigned long long)(offset + done), size - done);
        done += (size_t)count;
    }
    return 0;
}

int file_writer_open(FileWriter *writer, const char *path, Error *error) {
    writer->path = xstrdup(path);
    writer->temporary = format_text("%s.%ld.tmp", path, (long)getpid());
    writer->stream = fopen(writer->temporary, "wbe");
    if (writer->stream != NULL) return 0;
    fail(error, "cannot write '%s': %s", path, strerror(errno));
    free(writer->path);
    free(writer->temporary);
    return -1;
}

static void file_writer_free(FileWriter *writer) {
    free(writer->path);
    free(writer->temporary);
    memset(writer, 0, sizeof(*writer));
}

// fsync of the folder that holds `path`.
static int parent_sync(const char *path, Error *error) {
    char *copy = xstrdup(path);
    int result = folder_sync(dirname(copy), error);
    free(copy);
    return result;
}

int file_writer_commit(FileWriter *writer, Error *error) {
    int failed = ferror(writer->stream) | (fflush(writer->stream) != 0) |
                 (fsync(fileno(writer->stream)) != 0);
    int reason = errno;
    if (fclose(writer->stream) != 0 && !failed) {
        failed = 1;
        reason = errno;
    }
    if (!failed && rename(writer->temporary, writer->path) != 0) {
        failed = 1;
        reason = errno;
    }
    int result = 0;
    if (failed) {
        result = fail(error, "cannot write '%s': %s", writer->path, strerror(reason));
        unlink(writer->temporary);
    } else {
        result = parent_sync(writer->path, error);
    }
    file_writer_free(writer);
    return result;
}

void file_writer_abandon(FileWriter *writer) {
    if (writer->stream == NULL) return;
    fclose(writer->stream);
    unlink(writer->temporary);
    file_writer_free(writer);
}

int file_write(const char *path, const void *data, size_t size, Error *error) {
    FileWriter writer;
    if (file_writer_open(&writer, path, error) != 0) return -1;
    fwrite(data, 1, size, writer.stream); // a short write shows in ferror at the commit
    return file_writer_commit(&writer, error);
}

int folder_create(const char *path, Error *error) {
    char *copy = xstrdup(path);
    int result = 0;
    for (char *slash = copy + 1; result == 0; slash++) {
        if (*slash != '/' && *slash != '\0') continue;
        char end = *slash;
        *slash = '\0';
        if (mkdir(copy, 0777) != 0 && errno != EEXIST)
            result = fail(error, "cannot create the folder '%s': %s", copy, strerror(errno));
        *slash = end;
        if (end == '\0') break;
    }
    struct stat status;
    if (result == 0 && (stat(path, &status) != 0 || !S_ISDIR(status.st_mode)))
        result = fail(error, "'%s' is in the way: it is not a folder", path);
    free(copy);
    return result;
}

int folder_sync(const char *path, Error *error) {
    int descriptor = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (descriptor < 0) return fail(error, "cannot open the folder '%s': %s", path, strerror(errno));
    int result = fsync(descriptor);
    // Some network file systems cannot sync folders; that is not the user's error.
    if (result != 0 && errno != EINVAL && errno != ENOTSUP)
        fail(error, "cannot sync the folder '%s': %s", path, strerror(errno));
    else
        result = 0;
    close(descriptor);
    return result;
}

#ifdef __SSE4_2__
uint32_t crc32c(uint32_t crc, const void *data, size_t size) {
    const unsigned char *bytes = (const unsigned char *)data;
    uint64_t state = ~crc;
    for (; size >= 8; size -= 8, bytes += 8) {
        uint64_t word;
        memcpy(&word, bytes, 8);
        state = _mm_crc32_u64(state, word);
    }
    for (; size > 0; size--, bytes++) state = _mm_crc32_u8((uint32_t)state, *bytes);
    return ~(uint32_t)state;
}
#else
uint32_t crc32c(uint32_t crc, const void *data, size_t size) {
    const unsigned char *bytes = (const unsigned char *)data;
    uint32_t state = ~crc;
    for (; size > 0; size--, bytes++) {
        state ^= *bytes;
        for (int bit = 0; bit < 8; bit++) state = (state >> 1) ^ (0x82F63B78u & (0u - (state & 1u)));
    }
    return ~state;
}
#endif
