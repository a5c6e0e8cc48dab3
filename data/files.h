// Files and errors, used by everything that accesses the disk.
//
// Errors: a function that can fail for a reason outside of the program returns 0, or -1 with one plain sentence in
// Error (which file or option, what was expected). Programs print it and exit with its status; fuzzers and tests
// inspect it. Running out of memory is not such a reason: xmalloc and its relatives end the program.
#ifndef DATA_FILES_H
#define DATA_FILES_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

// Exit statuses of all programs.
enum {
    EXIT_USER = 1,        // user error (see the message)
    EXIT_IO = 2,          // the disk, or the network to it, failed to read or write
    EXIT_LOST_PEER = 3,   // another process was lost
    EXIT_SKIPPED = 4,     // too many steps were skipped
    EXIT_INTERRUPTED = 5, // stopped by a signal, after saving
};

typedef struct {
    char text[1024];
    int status; // one of the exit statuses above
} Error;

// Stores the sentence in `error`, with status EXIT_USER, and returns -1, so that callers can write
// `return fail(error, ...)`.
int fail(Error *error, const char *format, ...) __attribute__((format(printf, 2, 3)));
// Like fail, with ": " and errno's text appended; the status is EXIT_IO if the disk is the reason rather than the
// request.
int fail_io(Error *error, const char *format, ...) __attribute__((format(printf, 2, 3)));
// Prints `error: <sentence>` to stderr and exits with status 1.
void die(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));
// Like die, with the sentence and the status of `error`.
void die_of(const Error *error) __attribute__((noreturn));
// Prints `warning: <sentence>` to stderr.
void warn(const char *format, ...) __attribute__((format(printf, 1, 2)));

// Every program calls this first. It opens closed descriptors among 0 to 2 on /dev/null: otherwise the next opened
// file would get such a number, and messages would be written into it.
void open_standard_descriptors(void);
// Writes out standard output. Returns 0, or -1 with a sentence if anything so far could not be written: a full disk,
// a closed pipe.
int flush_output(Error *error);
// Every program calls this last. Closes standard output, and exits with an error if that or an earlier write failed.
void close_output(void);

void *xmalloc(size_t size);
void *xcalloc(size_t count, size_t size);
void *xrealloc(void *pointer, size_t size);
char *xstrdup(const char *text);
// sprintf into newly allocated memory, which the caller frees.
char *format_text(const char *format, ...) __attribute__((format(printf, 1, 2)));

// Reads a whole file of at most `limit` bytes. *data ends with a NUL that *size does not count; the caller frees it.
int file_read(const char *path, size_t limit, char **data, size_t *size, Error *error);
// Writes a whole file atomically: at any moment, even after a power failure, `path` has the old content or the new.
// Writes a temporary file in the same folder, syncs it, renames it, and syncs the folder.
int file_write(const char *path, const void *data, size_t size, Error *error);

// The steps of file_write, for content that is produced piece by piece. Must not be moved after it was opened,
// because the stream points to it.
typedef struct {
    FILE *stream; // the content is written here
    char *path;   // the final path
    char *temporary;
    int descriptor;
    int reason;    // errno of the first failure; 0: none
    uint32_t crc;  // CRC-32C of the bytes written to the file, in order
    uint64_t size; // number of these bytes
} FileWriter;
// Opens the temporary file PATH.PROCESS.tmp. Returns 0, or -1 with a sentence.
int file_writer_open(FileWriter *writer, const char *path, Error *error);
// Like file_writer_open, but the temporary file is PATH.TAG.tmp.
int file_writer_open_tagged(FileWriter *writer, const char *path, const char *tag, Error *error);
// Flushes, syncs and renames the file; on error it is removed. `crc` and `size` remain valid.
int file_writer_commit(FileWriter *writer, Error *error);
void file_writer_abandon(FileWriter *writer); // removes the temporary file

// Returns 1 if the file exists. Also returns 1 if existence cannot be determined: opening it will report the reason.
int file_exists(const char *path);
int file_size(const char *path, uint64_t *size, Error *error);
// Reads exactly `size` bytes at `offset`. A file that ends before is an error, as is an I/O error. `path` is for the
// message.
int file_pread(int descriptor, const char *path, void *data, size_t size, uint64_t offset, Error *error);
// Writes all of `data` at `offset`. Returns 0, or -1 with errno.
int file_pwrite(int descriptor, const void *data, size_t size, uint64_t offset);
// Creates a folder and its parents.
int folder_create(const char *path, Error *error);
// Syncs the folder itself, which makes renames and new files in it durable.
int folder_sync(const char *path, Error *error);

// Returns the CRC-32C (Castagnoli, polynomial 0x1EDC6F41 reflected; RFC 3720 appendix B.4), as used by iSCSI and
// ext4. `crc`: 0, or the returned value to continue with more data.
uint32_t crc32c(uint32_t crc, const void *data, size_t size);

#ifdef __cplusplus
}
#endif
#endif
