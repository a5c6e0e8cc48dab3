// Detects losses that are outliers among the recent ones, by the median and the median absolute deviation (MAD). Both
// are robust: even if up to half of the recent losses are wrong, they do not move far (Hampel, "The Influence Curve and
// its Role in Robust Estimation", J. Am. Stat. Assoc. 69, 1974):
//
//     scale   = max(1.4826 MAD, OUTLIER_MIN_SCALE |median|)     1.4826 MAD: standard deviation if losses are normal
//     outlier = loss is not finite, or (loss - median) / scale > deviations
//
// Only losses above the median can be outliers, because losses are expected to fall. A loss that is not finite is never
// added to the recent losses. With fewer than OUTLIER_MIN_LOSSES of them, no finite loss is an outlier.
#ifndef DATA_RUN_OUTLIER_H
#define DATA_RUN_OUTLIER_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { OUTLIER_MIN_LOSSES = 16, OUTLIER_MAX_LOSSES = 1024 };
static const double OUTLIER_MIN_SCALE = 0.005; // for losses that are almost equal

static inline int outlier_compare(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

// Returns the median of `values` (count >= 1), which it sorts.
static inline double outlier_median(double *values, int64_t count) {
    qsort(values, (size_t)count, sizeof(double), outlier_compare);
    return 0.5 * (values[(count - 1) / 2] + values[count / 2]);
}

// Returns 1 if the loss is an outlier. `recent` (count): finite losses, at most OUTLIER_MAX_LOSSES.
static inline int is_outlier(double loss, const double *recent, int64_t count, double deviations) {
    double values[OUTLIER_MAX_LOSSES];
    if (!isfinite(loss)) return 1;
    if (count < OUTLIER_MIN_LOSSES) return 0;
    memcpy(values, recent, (size_t)count * sizeof(double));
    const double median = outlier_median(values, count);
    for (int64_t i = 0; i < count; i++) values[i] = fabs(recent[i] - median);
    const double scale = fmax(1.4826 * outlier_median(values, count), OUTLIER_MIN_SCALE * fabs(median));
    return loss - median > deviations * scale;
}

// Appends a loss to `recent` (count), which holds the last `capacity` finite losses, oldest first. If it is full, the
// oldest is removed.
static inline void outlier_add(double loss, double *recent, int64_t *count, int64_t capacity) {
    if (!isfinite(loss)) return;
    if (*count == capacity) memmove(recent, recent + 1, (size_t)(--*count) * sizeof(double));
    recent[(*count)++] = loss;
}

#endif
