// Is a loss an outlier among the recent ones? By the median and the median absolute deviation (MAD), which up to half of
// the recent losses could be wrong without moving far (Hampel, "The Influence Curve and its Role in Robust Estimation",
// J. Am. Stat. Assoc. 69, 1974):
//
//     scale   = max(1.4826 MAD, OUTLIER_LEAST_SCALE |median|)     1.4826: a normal distribution's deviation
//     outlier = loss is not finite, or (loss - median) / scale > deviations
//
// Only what is above is one: a loss that falls is what training is for. A loss that is not finite never joins the recent
// ones. Fewer than OUTLIER_FEWEST are no judge of finite losses.
#ifndef LAYERS_OUTLIER_H
#define LAYERS_OUTLIER_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { OUTLIER_FEWEST = 16, OUTLIER_MOST = 1024 };
static const double OUTLIER_LEAST_SCALE = 0.005; // where losses are all the same

static inline int outlier_ascending(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

// Sorts `values` (count), 1 or more.
static inline double outlier_median(double *values, int64_t count) {
    qsort(values, (size_t)count, sizeof(double), outlier_ascending);
    return 0.5 * (values[(count - 1) / 2] + values[count / 2]);
}

// `recent` (count): finite losses, OUTLIER_MOST of them at most.
static inline int is_outlier(double loss, const double *recent, int64_t count, double deviations) {
    double values[OUTLIER_MOST];
    if (!isfinite(loss)) return 1;
    if (count < OUTLIER_FEWEST) return 0;
    memcpy(values, recent, (size_t)count * sizeof(double));
    const double median = outlier_median(values, count);
    for (int64_t i = 0; i < count; i++) values[i] = fabs(recent[i] - median);
    const double scale = fmax(1.4826 * outlier_median(values, count), OUTLIER_LEAST_SCALE * fabs(median));
    return loss - median > deviations * scale;
}

// The newest of `most` recent losses, the oldest first; the oldest gives way.
static inline void outlier_add(double loss, double *recent, int64_t *count, int64_t most) {
    if (!isfinite(loss)) return;
    if (*count == most) memmove(recent, recent + 1, (size_t)(--*count) * sizeof(double));
    recent[(*count)++] = loss;
}

#endif
