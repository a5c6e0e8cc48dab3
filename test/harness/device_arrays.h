// Arrays in device memory for tests of kernels: uploads of inputs rounded to floatX, outputs filled with NaN between
// guards, and downloads. They work for bf16 and fp32, on a GPU and emulated; host code never accesses device memory
// directly.
//
//     float *x = random_floatX(n, 1);                   // host floats that floatX represents exactly
//     floatX *in = upload(x, n);                        // the same values on the device
//     floatX *out = poisoned<floatX>(n);                // an output that is overwritten
//     float *sum = poisoned_copy(x, n);                 // an output that is added to: starts from x
//     ...launch, on any stream...
//     float *got = download(out, n);                    // waits for the device
//     EXPECT(guards_hold_on_device(out, n), "...");
//     free(x), free(got), device_free(in), device_free_poisoned(out), device_free_poisoned(sum);
#ifndef TEST_HARNESS_DEVICE_ARRAYS_H
#define TEST_HARNESS_DEVICE_ARRAYS_H

#include "layers/common.h"
#include "arrays.h"

static inline float as_float(float x) {
    return x;
}
#ifdef DEVICE_CUDA
static inline float as_float(__nv_bfloat16 x) {
    return __bfloat162float(x);
}
#endif
// Returns x rounded to T, to nearest even.
template <class T> static T rounded_to(float x);
template <> inline float rounded_to<float>(float x) {
    return x;
}
#ifdef DEVICE_CUDA
template <> inline __nv_bfloat16 rounded_to<__nv_bfloat16>(float x) {
    return __float2bfloat16_rn(x);
}
#endif
// Returns the value that is stored when x is written as floatX.
static inline float as_floatX(float x) {
    return as_float(rounded_to<floatX>(x));
}

// Returns the largest relative error of rounding to floatX.
static inline double floatX_epsilon(void) {
    return sizeof(floatX) == 2 ? 1.0 / 256 : 1.0 / (1 << 24);
}

// Returns uniform random numbers in (-scale, scale), rounded to floatX, so that the reference has the same inputs as
// the device.
static inline float *random_floatX(size_t n, double scale) {
    float *x = random_floats(n, scale);
    for (size_t i = 0; i < n; i++) x[i] = as_floatX(x[i]);
    return x;
}

// ---- to the device ----------------------------------------------------------------------------------------

static inline void copy_and_wait(void *device, const void *host, size_t bytes) {
    copy_to_device(device, host, bytes, 0);
    stream_wait(0);
}

// Copies n elements of any type to the device.
template <class T> static T *upload_as_is(const T *x, size_t n) {
    T *device = (T *)device_alloc(n * sizeof(T));
    CHECK(device != NULL);
    if (n > 0) copy_and_wait(device, x, n * sizeof(T));
    return device;
}

// Copies n floats to the device, rounded to T (floatX by default).
template <class T = floatX> static T *upload(const float *x, size_t n) {
    T *host = (T *)malloc((n + 1) * sizeof(T));
    CHECK(host != NULL);
    for (size_t i = 0; i < n; i++) host[i] = rounded_to<T>(x[i]);
    T *device = upload_as_is(host, n);
    free(host);
    return device;
}

// ---- outputs: DEVICE_ALIGNMENT bytes of guard on either side ----------------------------------------------

enum { GUARD_BYTE = 0x5a, POISON_BYTE = 0xff }; // in bf16 and fp32 all ones is NaN

// Returns n elements between guards. They are initialised with `content`, or with NaN if it is NULL.
template <class T> static T *guarded(const T *content, size_t n) {
    size_t bytes = n * sizeof(T), whole = bytes + 2 * DEVICE_ALIGNMENT;
    char *host = (char *)malloc(whole), *device = (char *)device_alloc(whole);
    CHECK(host != NULL && device != NULL);
    memset(host, GUARD_BYTE, whole);
    if (content != NULL)
        memcpy(host + DEVICE_ALIGNMENT, content, bytes);
    else
        memset(host + DEVICE_ALIGNMENT, POISON_BYTE, bytes);
    copy_and_wait(device, host, whole);
    free(host);
    return (T *)(device + DEVICE_ALIGNMENT);
}

template <class T> static T *poisoned(size_t n) {
    return guarded<T>(NULL, n);
}

// Returns a copy of x, rounded to T, between guards.
template <class T = float> static T *poisoned_copy(const float *x, size_t n) {
    T *host = (T *)malloc((n + 1) * sizeof(T));
    CHECK(host != NULL);
    for (size_t i = 0; i < n; i++) host[i] = rounded_to<T>(x[i]);
    T *device = guarded(host, n);
    free(host);
    return device;
}

template <class T> static void device_free_poisoned(T *x) {
    device_free((char *)x - DEVICE_ALIGNMENT);
}

// ---- from the device; these functions wait for all of its work --------------------------------------------

// Returns n elements of any type; the caller frees them.
template <class T> static T *download_as_is(const T *device, size_t n) {
    size_t bytes = n * sizeof(T);
    T *x = (T *)malloc(bytes + 1);
    void *host = host_borrow(device, bytes);
    CHECK(x != NULL);
    memcpy(x, host, bytes);
    host_return(host, (void *)(uintptr_t)device, bytes, 0);
    return x;
}

// Returns n elements as floats; the caller frees them.
template <class T> static float *download(const T *device, size_t n) {
    T *host = download_as_is(device, n);
    float *x = (float *)malloc((n + 1) * sizeof(float));
    CHECK(x != NULL);
    for (size_t i = 0; i < n; i++) x[i] = as_float(host[i]);
    free(host);
    return x;
}

template <class T> static int guards_hold_on_device(const T *x, size_t n) {
    size_t bytes = n * sizeof(T), whole = bytes + 2 * DEVICE_ALIGNMENT;
    char *all = download_as_is((const char *)x - DEVICE_ALIGNMENT, whole);
    int hold = 1;
    for (size_t i = 0; i < DEVICE_ALIGNMENT; i++)
        hold &= all[i] == GUARD_BYTE && all[DEVICE_ALIGNMENT + bytes + i] == GUARD_BYTE;
    free(all);
    return hold;
}

template <class T> static int same_bits_on_device(const T *a, const T *b, size_t n) {
    T *x = download_as_is(a, n), *y = download_as_is(b, n);
    int same = memcmp(x, y, n * sizeof(T)) == 0;
    free(x), free(y);
    return same;
}

// ---- comparison -------------------------------------------------------------------------------------------

// Expects every element of `got` within its absolute error in `bound` of the one in `wanted`. Reports the element with
// the largest excess.
static inline void expect_within(const char *what, const float *got, const double *wanted,
                                 const double *bound, size_t n) {
    size_t worst = 0;
    double excess = 0;
    for (size_t i = 0; i < n; i++) {
        double ratio = fabs((double)got[i] - wanted[i]) / bound[i];
        if (!(ratio <= excess)) {
            excess = isnan(ratio) ? INFINITY : ratio;
            worst = i;
        }
    }
    EXPECT(excess <= 1, "%s: element %zu is %.9g, wanted %.9g, allowed error %.3g", what, worst,
           (double)got[worst], wanted[worst], bound[worst]);
}

#endif
