// Arrays for tests: random inputs, outputs between guards, comparison with references in double precision,
// and gradients by central differences.
#ifndef TEST_HARNESS_ARRAYS_H
#define TEST_HARNESS_ARRAYS_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include "test.h"

// Marks reference implementations. Sanitizers check them in the CPU build, but not in emulated builds, where they would
// take most of the time and only the kernels are to be checked.
#ifdef CUDA_EMULATION
#define REFERENCE __attribute__((no_sanitize("address", "undefined", "thread")))
#else
#define REFERENCE
#endif

static uint64_t test_random_state = 1;

// Returns a uniform random number in (-1, 1), from a 64-bit linear congruential generator (Knuth's MMIX constants).
static inline double test_random(void) {
    test_random_state = test_random_state * 6364136223846793005ull + 1442695040888963407ull;
    return (double)(test_random_state >> 11) / 4503599627370496.0 - 1.0;
}

static inline float *random_floats(size_t n, double scale) {
    float *x = (float *)malloc((n + 1) * sizeof(float));
    for (size_t i = 0; i < n; i++) x[i] = (float)(scale * test_random());
    return x;
}

static inline double *as_doubles(const float *x, size_t n) {
    double *y = (double *)malloc((n + 1) * sizeof(double));
    for (size_t i = 0; i < n; i++) y[i] = (double)x[i];
    return y;
}

// ---- outputs ----------------------------------------------------------------------------------------------

enum { GUARD = 64 }; // floats on either side

// Returns n floats of NaN between guards, so that missing writes and writes out of bounds are detected.
static inline float *poisoned_floats(size_t n) {
    float *memory = (float *)aligned_alloc(64, (n + 2 * GUARD + 15) / 16 * 16 * sizeof(float));
    for (size_t i = 0; i < n + 2 * GUARD; i++) memory[i] = i < GUARD || i >= n + GUARD ? 12345.0f : NAN;
    return memory + GUARD;
}

static inline int guards_hold(const float *x, size_t n) {
    for (size_t i = 0; i < GUARD; i++)
        if (x[-1 - (ptrdiff_t)i] != 12345.0f || x[n + i] != 12345.0f) return 0;
    return 1;
}

static inline void free_poisoned(float *x) {
    free(x - GUARD);
}

// ---- comparison -------------------------------------------------------------------------------------------

// Returns the largest |got - wanted|, relative to the largest |wanted| (but at least `floor`); NaN counts as infinite.
static inline double relative_error(const float *got, const double *wanted, size_t n, double floor) {
    double error = 0, size = floor;
    for (size_t i = 0; i < n; i++) {
        double difference = fabs((double)got[i] - wanted[i]);
        if (!(difference <= error)) error = isnan(difference) ? INFINITY : difference;
        size = fabs(wanted[i]) > size ? fabs(wanted[i]) : size;
    }
    return error / size;
}

static inline void expect_close(const char *what, const float *got, const double *wanted, size_t n,
                                double bound) {
    double error = relative_error(got, wanted, n, 1e-3);
    EXPECT(error <= bound, "%s: relative error %.3g, allowed %.3g", what, error, bound);
}

// Returns d loss / d x by central differences in double; x is restored.
REFERENCE static inline double *central_differences(double (*loss)(void *), void *context, double *x,
                                                    size_t n) {
    double *gradient = (double *)malloc((n + 1) * sizeof(double));
    for (size_t i = 0; i < n; i++) {
        double kept = x[i], step = 1e-5 * (fabs(kept) > 0.1 ? fabs(kept) : 0.1);
        x[i] = kept + step;
        double above = loss(context);
        x[i] = kept - step;
        double below = loss(context);
        x[i] = kept;
        gradient[i] = (above - below) / (2 * step);
    }
    return gradient;
}

#endif
