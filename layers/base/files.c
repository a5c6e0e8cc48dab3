#define _GNU_SOURCE
#include "files.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#ifdef __SSE4_2__
#include <nmmintrin.h>
#endif

enum { WRITE_BUFFER = 1 << 16 };

int file_exists(const char *path) {
    return access(path, F_OK) == 0 || (errno != ENOENT && errno != ENOTDIR);
}

int file_size(const char *path, uint64_t *size, Error *error) {
    struct stat status;
    if (stat(path, &status) != 0) return fail_io(error, "cannot open '%s'", path);
    *size = (uint64_t)status.st_size;
    return 0;
}

int file_read(const char *path, size_t limit, char **data, size_t *size, Error *error) {
    *data = NULL;
    int descriptor = open(path, O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) return fail_io(error, "cannot open '%s'", path);
    struct stat status;
    int result = -1;
    if (fstat(descriptor, &status) != 0) {
        fail_io(error, "cannot read '%s'", path);
    } else if (!S_ISREG(status.st_mode)) {
        fail(error, "cannot read '%s': not a regular file", path);
    } else if ((uint64_t)status.st_size > limit) {
        fail(error, "'%s' has %lld bytes, but at most %zu were expected", path, (long long)status.st_size,
             limit);
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
            return fail_io(error, "cannot read '%s' at byte %llu", path, (unsigned long long)(offset + done));
        if (count == 0)
            return fail(error, "'%s' ends at byte %llu, but %zu more bytes were expected", path,
                        (unsigned long long)(offset + done), size - done);
        done += (size_t)count;
    }
    return 0;
}

int file_pwrite(int descriptor, const void *data, size_t size, uint64_t offset) {
    for (size_t done = 0; done < size;) {
        ssize_t count = pwrite(descriptor, (const char *)data + done, size - done, (off_t)(offset + done));
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) return -1;
        done += (size_t)count;
    }
    return 0;
}

// The stream's write function: writes all of the data, or records the reason of the failure.
static ssize_t writer_write(void *cookie, const char *data, size_t size) {
    FileWriter *writer = (FileWriter *)cookie;
    for (size_t done = 0; done < size && writer->reason == 0;) {
        ssize_t count = write(writer->descriptor, data + done, size - done);
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) {
            writer->reason = errno;
            break;
        }
        writer->crc = crc32c(writer->crc, data + done, (size_t)count);
        writer->size += (uint64_t)count;
        done += (size_t)count;
    }
    return writer->reason == 0 ? (ssize_t)size : 0; // 0 tells the stream about the error
}

static int writer_seek(void *cookie, off64_t *offset, int whence) {
    *offset = lseek(((FileWriter *)cookie)->descriptor, *offset, whence);
    return *offset < 0 ? -1 : 0;
}

int file_writer_open_tagged(FileWriter *writer, const char *path, const char *tag, Error *error) {
    const cookie_io_functions_t functions = {NULL, writer_write, writer_seek, NULL};
    memset(writer, 0, sizeof(*writer));
    writer->path = xstrdup(path);
    writer->temporary = format_text("%s.%s.tmp", path, tag);
    writer->descriptor = open(writer->temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (writer->descriptor >= 0) {
        writer->stream = fopencookie(writer, "w", functions);
        if (writer->stream == NULL) die("out of memory: cannot write '%s'", path);
        setvbuf(writer->stream, NULL, _IOFBF, WRITE_BUFFER);
        return 0;
    }
    fail_io(error, "cannot write '%s'", path);
    free(writer->path);
    free(writer->temporary);
    return -1;
}

int file_writer_open(FileWriter *writer, const char *path, Error *error) {
    char process[32];
    snprintf(process, sizeof(process), "%ld", (long)getpid());
    return file_writer_open_tagged(writer, path, process, error);
}

// Frees everything; `crc` and `size` remain.
static void file_writer_free(FileWriter *writer) {
    free(writer->path);
    free(writer->temporary);
    writer->path = writer->temporary = NULL;
    writer->stream = NULL;
}

// Syncs the folder that contains `path`.
static int parent_sync(const char *path, Error *error) {
    char *copy = xstrdup(path);
    int result = folder_sync(dirname(copy), error);
    free(copy);
    return result;
}

// Records the reason of the first failure.
static void check_call(FileWriter *writer, int result) {
    if (result != 0 && writer->reason == 0) writer->reason = errno;
}

int file_writer_commit(FileWriter *writer, Error *error) {
    fclose(writer->stream); // a failure here is a failed write, which is already recorded
    if (writer->reason == 0) check_call(writer, fsync(writer->descriptor));
    check_call(writer, close(writer->descriptor));
    if (writer->reason == 0) check_call(writer, rename(writer->temporary, writer->path));
    int result = 0;
    if (writer->reason != 0) {
        errno = writer->reason;
        result = fail_io(error, "cannot write '%s'", writer->path);
        unlink(writer->temporary);
    } else {
        result = parent_sync(writer->path, error);
    }
    file_writer_free(writer);
    return result;
}

void file_writer_abandon(FileWriter *writer) {
    if (writer->stream == NULL) return;
    writer->reason = ECANCELED; // makes later writes fail
    fclose(writer->stream);
    close(writer->descriptor);
    unlink(writer->temporary);
    file_writer_free(writer);
}

int file_write(const char *path, const void *data, size_t size, Error *error) {
    FileWriter writer;
    if (file_writer_open(&writer, path, error) != 0) return -1;
    fwrite(data, 1, size, writer.stream); // file_writer_commit reports errors
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
            result = fail_io(error, "cannot create the folder '%s'", copy);
        *slash = end;
        if (end == '\0') break;
    }
    struct stat status;
    if (result == 0 && (stat(path, &status) != 0 || !S_ISDIR(status.st_mode)))
        result = fail(error, "cannot create the folder '%s': a file of that name exists", path);
    free(copy);
    return result;
}

int folder_sync(const char *path, Error *error) {
    int descriptor = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (descriptor < 0) return fail_io(error, "cannot open the folder '%s'", path);
    int result = fsync(descriptor);
    // Some network file systems cannot sync folders; that is not an error.
    if (result != 0 && errno != EINVAL && errno != ENOTSUP)
        result = fail_io(error, "cannot sync the folder '%s'", path);
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
