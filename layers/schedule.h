// The learning rate of a step: linear warm-up from 0 to `high`, then one of four schedules, which end (except constant)
// at low = `final` times `high`.
//
//     cosine      low + (high - low) (1 + cos(pi share)) / 2         share: fraction done of the steps after warm-up
//     linear      high + (low - high) share
//     constant    high
//     wsd         warm-up, stable, decay (arXiv 2404.06395): high, then a linear cool-down over the last steps
#ifndef LAYERS_SCHEDULE_H
#define LAYERS_SCHEDULE_H

#include <math.h>
#include <stdint.h>

typedef enum { SCHEDULE_COSINE, SCHEDULE_LINEAR, SCHEDULE_CONSTANT, SCHEDULE_WSD } Schedule;

typedef struct {
    Schedule schedule;
    double high;           // the highest learning rate
    double final;          // fraction of `high` at the last step
    int64_t steps, warmup; // all steps; those of the warm-up
    int64_t cooldown;      // steps of the cool-down of wsd; 0: a fifth of all steps
} LearningRate;

// Returns the learning rate of step number `step`, counted from 1.
static inline double learning_rate_at(const LearningRate *r, int64_t step) {
    double high = r->high, low = high * r->final;
    if (step <= r->warmup) return high * (double)step / (double)r->warmup;
    double share = r->steps > r->warmup ? (double)(step - r->warmup) / (double)(r->steps - r->warmup) : 1;
    share = share > 1 ? 1 : share;
    double cooldown = r->cooldown > 0 ? (double)r->cooldown : fmax(1, (double)(r->steps / 5));
    double left = fmax(0, (double)(r->steps - step));
    switch (r->schedule) {
    case SCHEDULE_COSINE:
        return low + (high - low) * 0.5 * (1 + cos(3.141592653589793 * share));
    case SCHEDULE_LINEAR:
        return high + (low - high) * share;
    case SCHEDULE_CONSTANT:
        return high;
    case SCHEDULE_WSD:
        return left >= cooldown ? high : low + (high - low) * left / cooldown;
    }
    return high;
}

#endif
