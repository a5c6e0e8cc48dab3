// What a run reports: metrics.jsonl, one JSON object a line for every step and every validation, is the record; the
// console shows the same numbers, on a terminal as one line rewritten in place, otherwise as plain lines.
#ifndef DATA_METRICS_H
#define DATA_METRICS_H

#include <stdint.h>
#include "files.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
    int descriptor; // of metrics.jsonl; -1: not open
    char *path;
    uint64_t size;      // of the file's whole lines
    char *pending;      // lines that are not in the file yet, because the disk did not take them
    size_t num_pending; // bytes
    int warned;
    int validated;                 // is there a validation of the step it was opened at?
    int64_t num_steps, first_step; // of the run; the first of this process
    double flop_per_token, peak;   // peak in GFLOP/s
    double started, shown;         // seconds
    int on_terminal, line_open;
} Metrics;

typedef struct {
    int64_t step; // counts from 1
    int64_t tokens;
    double loss, learning_rate, gradient_norm, seconds;
    int skipped;
} StepMetrics;

typedef struct {
    int64_t step;
    double loss;          // nats per token
    double bits_per_byte; // < 0: not known
    double floor;         // bits per byte that no model can beat; 0: not known
    int64_t tokens, cut;  // documents cut at T
    double seconds;
} ValidationMetrics;

// Appends to run/metrics.jsonl; lines of steps after `done` (from a run that went on beyond the checkpoint it is
// resumed from) are cut off first. A line that cannot be written is kept, with a warning, and written before the next.
int metrics_open(Metrics *metrics, const char *run, int64_t done, int64_t num_steps, double flop_per_token,
                 double peak, Error *error);
void metrics_step(Metrics *metrics, const StepMetrics *step);
void metrics_validation(Metrics *metrics, const ValidationMetrics *validation);
// Takes back the lines of steps after `done`, and records that steps up to `step` were given up. A full disk does not
// matter.
int metrics_rollback(Metrics *metrics, int64_t done, int64_t step, int64_t sequences, Error *error);
// Tries to write what is kept; 0 where all lines are in the file.
int metrics_flush(Metrics *metrics, Error *error);
// Ends the line that is rewritten in place, so that other output can follow.
void metrics_end_line(Metrics *metrics);
void metrics_close(Metrics *metrics);

#ifdef __cplusplus
}
#endif
#endif
