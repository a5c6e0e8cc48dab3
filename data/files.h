// Files and errors: what everything that touches the disk stands on.
//
// Errors. A function that can fail for a reason the user can mend returns 0, or -1 with one plain sentence in
// Error (which file or option, what was expected). Programs print it and exit with status 1; fuzzers and
// tests look at it. Running out of memory is not such a reason: xmalloc and friends end the program.
#ifndef DATA_FILES_H
#define DATA_FILES_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
    char text[1024];
} Error;

// Writes the sentence into error and returns -1, so that callers can `return fail(error, ...)`.
int fail(Error *error, const char *format, ...) __attribute__((format(printf, 2, 3)));
// Prints `error: <sentence>` to stderr and exits with status 1.
void die(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));

void *xmalloc(size_t size);
void *xcalloc(size_t count, size_t size);
void *xrealloc(void *pointer, size_t size);
char *xstrdup(const char *text);
// sprintf into fresh memory.
char *format_text(const char *format, ...) __attribute__((format(printf, 1, 2)));

// Reads a whole file of at most `limit` bytes; *data ends with a NUL that *size does not count. Caller frees.
int file_read(const char *path, size_t limit, char **data, size_t *size, Error *error);
// Writes a whole file so that at any moment, power cuts included, `path` holds the old content or the new:
// temporary file beside it, fsync, rename, fsync of the folder.
int file_write(const char *path, const void *data, size_t size, Error *error);

// The three steps of file_write for content that is produced piece by piece.
typedef struct {
    FILE *stream; // write here
    char *path;   // where the content will stand
    char *temporary;
} FileWriter;
int file_writer_open(FileWriter *writer, const char *path, Error *error);
int file_writer_commit(FileWriter *writer,
                       Error *error);         // flush, fsync, rename; on error the file is removed
void file_writer_abandon(FileWriter *writer); // removes the temporary file

int file_exists(const char *path);
int file_size(const char *path, uint64_t *size, Error *error);
// Reads exactly `size` bytes at `offset`; end of file and I/O errors are errors. `path` is for the message.
int file_pread(int descriptor, const char *path, void *data, size_t size, uint64_t offset, Error *error);
// Creates a folder and its parents.
int folder_create(const char *path, Error *error);
// fsync of the folder itself: makes renames and new files in it durable.
int folder_sync(const char *path, Error *error);

// CRC-32C (Castagnoli, polynomial 0x1EDC6F41 reflected; RFC 3720 appendix B.4), as in iSCSI and ext4.
// Continue with the value returned; start with 0.
uint32_t crc32c(uint32_t crc, const void *data, size_t size);

#ifdef __cplusplus
}
#endif
#endif
