#define _GNU_SOURCE
#include "error.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void set_error(Error *error, const char *format, va_list arguments) {
    vsnprintf(error->text, sizeof(error->text), format, arguments);
    error->status = EXIT_USER;
}

int fail(Error *error, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    set_error(error, format, arguments);
    va_end(arguments);
    return -1;
}

// Returns 1 for an errno whose reason is the request (EXIT_USER) rather than the disk (EXIT_IO).
static int is_user_error(int reason) {
    static const int reasons[] = {ENOENT, EACCES, EPERM,        ENOTDIR, EISDIR,
                                  EEXIST, EINVAL, ENAMETOOLONG, ELOOP,   EROFS};
    for (size_t i = 0; i < sizeof(reasons) / sizeof(reasons[0]); i++)
        if (reason == reasons[i]) return 1;
    return 0;
}

int fail_io(Error *error, const char *format, ...) {
    const int reason = errno;
    va_list arguments;
    va_start(arguments, format);
    set_error(error, format, arguments);
    va_end(arguments);
    const size_t length = strlen(error->text);
    snprintf(error->text + length, sizeof(error->text) - length, ": %s", strerror(reason));
    if (!is_user_error(reason)) error->status = EXIT_IO;
    return -1;
}

void die_of(const Error *error) {
    fflush(stdout);
    fprintf(stderr, "error: %s\n", error->text); // one call, as other processes write to the same stream
    exit(error->status);
}

void die(const char *format, ...) {
    Error error;
    va_list arguments;
    va_start(arguments, format);
    set_error(&error, format, arguments);
    va_end(arguments);
    die_of(&error);
}

void warn(const char *format, ...) {
    Error sentence;
    va_list arguments;
    va_start(arguments, format);
    set_error(&sentence, format, arguments);
    va_end(arguments);
    fflush(stdout);
    fprintf(stderr, "warning: %s\n", sentence.text);
}

void open_standard_descriptors(void) {
    for (int descriptor = 0; descriptor <= 2; descriptor++)
        if (fcntl(descriptor, F_GETFD) < 0 &&
            open("/dev/null", descriptor == 0 ? O_RDONLY : O_WRONLY) != descriptor)
            _exit(EXIT_USER); // no descriptor is left to report it on
}

// Reports a failed write to standard output. The stream remembers only that a write failed: if `reason` is 0, writing
// a line feed finds out why.
static int fail_output(int reason, Error *error) {
    static const char sentence[] = "cannot write to standard output";
    errno = reason;
    if (reason != 0 || write(1, "\n", 1) < 0) return fail_io(error, sentence);
    fail(error, sentence);
    error->status = EXIT_IO;
    return -1;
}

int flush_output(Error *error) {
    errno = 0;
    const int result = fflush(stdout), reason = errno;
    return result == 0 && !ferror(stdout) ? 0 : fail_output(result == 0 ? 0 : reason, error);
}

void close_output(void) {
    Error error;
    int result = flush_output(&error);
    if (fclose(stdout) != 0 && result == 0) result = fail_output(errno, &error);
    if (result != 0) die_of(&error);
}

static void *checked(void *pointer, size_t size) {
    if (pointer == NULL && size > 0) die("out of memory: cannot allocate %zu bytes", size);
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
