// Errors, messages, memory and output of all programs.
//
// A function that can fail for a reason outside of the program returns 0, or -1 with one plain sentence in
// Error (which file or option, what was expected). Programs print it and exit with its status; fuzzers and tests
// inspect it. Running out of memory is not such a reason: xmalloc and its relatives end the program.
#ifndef LAYERS_BASE_ERROR_H
#define LAYERS_BASE_ERROR_H

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

#ifdef __cplusplus
}
#endif
#endif
