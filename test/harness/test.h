// A small test harness. A test program calls EXPECT any number of times and ends with
//     return test_finish();
// which prints the line `N passed, N failed` and returns the exit status (0 only if there were checks and none failed).
// Compiles as C, as C++ and with nvcc, without dependencies.
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

// Counts one check. If it fails, prints its location, the condition and the message (printf format, required).
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
    if (getenv("TEST_STOP_AT_FIRST") != NULL) exit(test_finish()); // callers that need only the status
    return 0;
}

// Returns 1 if only small shapes are to be tested: TEST_SMALL is set where everything is slow (emulated kernels under
// ThreadSanitizer).
static inline int test_is_small(void) {
    return getenv("TEST_SMALL") != NULL;
}

#endif
