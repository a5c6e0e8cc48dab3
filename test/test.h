// A test harness in a few macros. A test program calls EXPECT as often as it likes and ends with
//     return test_finish();
// which prints the one line `N passed, N failed` and returns the exit status (0 only if nothing failed).
// Compiles as C, as C++ and with nvcc, and needs nothing installed.
#ifndef TEST_H
#define TEST_H

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

static int test_passed, test_failed;

static inline int test_finish(void) {
    printf("%d passed, %d failed\n", test_passed, test_failed);
    return test_failed == 0 && test_passed > 0 ? 0 : 1;
}

// Counts one check; when it does not hold, prints where, what, and the message (printf format, required).
#define EXPECT(condition, ...) test_expect((condition) != 0, __FILE__, __LINE__, #condition, __VA_ARGS__)

#if defined(__GNUC__)
__attribute__((format(printf, 5, 6)))
#endif
static inline int
test_expect(int holds, const char *file, int line, const char *condition, const char *format, ...) {
    if (holds) {
        test_passed++;
        return 1;
    }
    test_failed++;
    printf("%s:%d: FAILED: %s: ", file, line, condition);
    va_list arguments;
    va_start(arguments, format);
    vprintf(format, arguments);
    va_end(arguments);
    printf("\n");
    fflush(stdout);
    if (getenv("TEST_STOP_AT_FIRST") != NULL) exit(test_finish()); // for those who only ask whether it fails
    return 0;
}

// Where everything is slow (emulated kernels under ThreadSanitizer) TEST_SMALL is set, and only small shapes are tried.
static inline int test_is_small(void) {
    return getenv("TEST_SMALL") != NULL;
}

#endif
