// Metrics of a run. metrics.jsonl is the record, with one JSON object per line for every step and every validation;
// the console shows the same values, on a terminal as one line rewritten in place, otherwise as plain lines.
#ifndef DATA_RUN_METRICS_H
#define DATA_RUN_METRICS_H

#include <stdint.h>
#include "layers/base/files.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
    int descriptor; // of metrics.jsonl; -1: not open
    char *path;
    uint64_t size;      // bytes of whole lines in the file
    char *pending;      // lines not yet in the file, because the disk did not accept them
    size_t num_pending; // bytes
    int warned;
    // 1 if the file has a validation of the step at which it was opened.
    int validated;
    int64_t num_steps, first_step; // of the run; the first of this process
    double flop_per_token, peak;   // `peak` in GFLOP/s
    double started, shown;         // seconds
    int on_terminal, line_open;
} Metrics;

typedef struct {
    int64_t step; // counted from 1
    int64_t tokens;
    double loss, learning_rate, gradient_norm, seconds;
    int skipped;
} StepMetrics;

typedef struct {
    int64_t step;
    double loss;          // nats per token
    double bits_per_byte; // < 0: unknown
    double floor;         // entropy bound in bits per byte, which no model can beat; 0: unknown
    int64_t tokens, cut;  // `cut`: documents truncated to T
    double seconds;
} ValidationMetrics;

// Appends to run/metrics.jsonl. Lines of steps after `done` (from a run that continued beyond the checkpoint from
// which it is resumed) are removed first. A line that cannot be written is kept, with a warning, and written before
// the next one.
int metrics_open(Metrics *metrics, const char *run, int64_t done, int64_t num_steps, double flop_per_token,
                 double peak, Error *error);
void metrics_step(Metrics *metrics, const StepMetrics *step);
void metrics_validation(Metrics *metrics, const ValidationMetrics *validation);
// Removes the lines of steps after `done`, and records that training was rolled back from `step`. Works on a full
// disk.
int metrics_rollback(Metrics *metrics, int64_t done, int64_t step, int64_t sequences, Error *error);
// Tries to write pending lines. Returns 0 if all lines are in the file.
int metrics_flush(Metrics *metrics, Error *error);
// Ends the line that is rewritten in place, so that other output can follow.
void metrics_end_line(Metrics *metrics);
void metrics_close(Metrics *metrics);

#ifdef __cplusplus
}
#endif
#endif
