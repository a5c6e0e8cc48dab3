// Files and errors: what everything that touches the disk stands on.
//
// Errors. A function that can fail for a reason the user can mend returns 0, or -1 with one plain sentence in
// Error (which file or option, what was expected). Programs print it and exit with its status; fuzzers and
// tests look at it. Running out of memory is not such a reason: xmalloc and friends end the program.
#ifndef DATA_FILES_H
#define DATA_FILES_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

// How programs end.
enum {
    EXIT_USER = 1,        // an error that is the user's to mend
    EXIT_IO = 2,          // the disk, or the network to it, did not read or write
    EXIT_LOST_PEER = 3,   // another process was lost
    EXIT_SKIPPED = 4,     // too many steps were skipped
    EXIT_INTERRUPTED = 5, // by a signal, and saved
};

typedef struct {
    char text[1024];
    int status; // of the above
} Error;

// Writes the sentence into error and returns -1, so that callers can `return fail(error, ...)`. Status: EXIT_USER.
int fail(Error *error, const char *format, ...) __attribute__((format(printf, 2, 3)));
// The same with ": " and errno's text behind; EXIT_IO for reasons that lie in the disk, not in what was asked of it.
int fail_io(Error *error, const char *format, ...) __attribute__((format(printf, 2, 3)));
// Prints `error: <sentence>` to stderr and exits with status 1.
void die(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));
// The same with an error's own sentence and status.
void die_of(const Error *error) __attribute__((noreturn));
// Prints `warning: <sentence>` to stderr.
void warn(const char *format, ...) __attribute__((format(printf, 1, 2)));

// Every program calls this first. It opens those of the descriptors 0 to 2 that are closed on /dev/null: otherwise the
// next file to be opened would get such a number, and messages would be written into it.
void open_standard_descriptors(void);
// Has everything written to standard output so far arrived? Returns 0, or -1 with a sentence: a full disk, a closed pipe.
int flush_output(Error *error);
// Every program calls this last: closes standard output, and ends with an error where that, or an earlier write, failed.
void close_output(void);

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

// The three steps of file_write for content that is produced piece by piece. It stays where it was opened: the stream
// points to it.
typedef struct {
    FILE *stream; // write here
    char *path;   // where the content will stand
    char *temporary;
    int descriptor;
    int reason;    // errno of the first failure; 0: none
    uint32_t crc;  // CRC-32C and
    uint64_t size; // number of the bytes that reached the file, in the order they were written
} FileWriter;
int file_writer_open(FileWriter *writer, const char *path, Error *error); // PATH.PROCESS.tmp until then
int file_writer_open_tagged(FileWriter *writer, const char *path, const char *tag, Error *error); // PATH.TAG.tmp
// Flush, fsync, rename; on error the file is removed. crc and size stay.
int file_writer_commit(FileWriter *writer, Error *error);
void file_writer_abandon(FileWriter *writer); // removes the temporary file

// Also where that cannot be found out: whoever opens it then learns why.
int file_exists(const char *path);
int file_size(const char *path, uint64_t *size, Error *error);
// Reads exactly `size` bytes at `offset`; end of file and I/O errors are errors. `path` is for the message.
int file_pread(int descriptor, const char *path, void *data, size_t size, uint64_t offset, Error *error);
// Writes all of it at `offset`; 0, or -1 with errno.
int file_pwrite(int descriptor, const void *data, size_t size, uint64_t offset);
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
