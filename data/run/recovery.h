// What losses and gradients say about a run: steps that were skipped, outliers, when to return to a checkpoint.
#ifndef DATA_RUN_RECOVERY_H
#define DATA_RUN_RECOVERY_H

#include "checkpoint.h"
#include "layers/base/error.h"
#include "outlier.h"

// What may make training end or return to a checkpoint.
typedef struct {
    int64_t rollback_after; // outliers in a row; 0: training never returns
    double outlier;         // median absolute deviations from the median of recent losses
    int64_t rolled_back_to; // step; -1: none
    int num_rollbacks;      // to that step
    int stopping;           // processes have agreed to end
    int failed;       // a process had no data for a step: that step and all queued after it are discarded
    int has_no_data;  // this process
    Error data_error; // the reason
    int skips_final_save; // or should not
} Recovery;

enum { MAX_ROLLBACKS = 3 }; // to one step

// Records the loss of a step, and whether it was skipped for a non-finite loss or gradient.
static inline void recovery_record_loss(const Recovery *r, TrainingState *state, double loss, int skipped) {
    const int outlier = is_outlier(loss, state->recent, state->num_recent, r->outlier);
    state->skipped += skipped;
    state->skipped_in_row = skipped ? state->skipped_in_row + 1 : 0;
    state->outliers_in_row = r->rollback_after > 0 && (outlier || skipped) ? state->outliers_in_row + 1 : 0;
    outlier_add(loss, state->recent, &state->num_recent, RECENT_LOSSES);
}

// Returns 1 if steps were bad lately: older checkpoints may be better than one of this state.
static inline int is_unstable(const TrainingState *state) {
    return state->skipped_in_row > 0 || state->outliers_in_row > 0;
}

// Returns 1 among steps that may lead back to a checkpoint: that one stays the newest, and all since may be done again.
static inline int may_roll_back(const Recovery *r, const TrainingState *state) {
    return r->rollback_after > 0 && is_unstable(state);
}

// Returns 1 after enough outliers in a row, whatever was computed since.
static inline int must_roll_back(const Recovery *r, const TrainingState *state) {
    return r->rollback_after > 0 && state->outliers_in_row >= r->rollback_after;
}

// Returns 0, or -1 if training has returned to `step` too often.
static inline int check_rollbacks(const Recovery *r, int64_t step, Error *error) {
    if (step != r->rolled_back_to || r->num_rollbacks < MAX_ROLLBACKS) return 0;
    fail(error,
         "training returned to step %lld %d times without getting past it; resume with a lower "
         "--learning-rate",
         (long long)step, MAX_ROLLBACKS);
    error->status = EXIT_SKIPPED;
    return -1;
}

static inline void count_rollback(Recovery *r, int64_t step) {
    r->num_rollbacks = step == r->rolled_back_to ? r->num_rollbacks + 1 : 1;
    r->rolled_back_to = step;
}

// Fails after `skipped` steps in a row that were skipped; `saved`: the step of the newest checkpoint.
static inline int fail_skipped(int64_t skipped, int64_t step, int64_t saved, Error *error) {
    fail(error,
         "%lld steps in a row had a non-finite loss or gradient; training stopped after step %lld, and the "
         "newest "
         "checkpoint is that of step %lld: resume with a lower --learning-rate",
         (long long)skipped, (long long)step, (long long)saved);
    error->status = EXIT_SKIPPED;
    return -1;
}

#endif
