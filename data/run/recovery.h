// Bad steps of a run: skipped steps, losses that are outliers, and when training returns to a checkpoint.
#ifndef DATA_RUN_RECOVERY_H
#define DATA_RUN_RECOVERY_H

#include "checkpoint.h"
#include "layers/base/error.h"
#include "outlier.h"

// What may make training end or return to a checkpoint.
typedef struct {
    int64_t rollback_after; // number of bad steps in a row that cause a rollback; 0: no rollbacks
    double outlier;         // limit of a loss: median absolute deviations from the median of recent losses
    int64_t rolled_back_to; // step that training has last returned to; -1: none
    int num_rollbacks;      // in a row to that step
    int stopping;           // 1: the processes have agreed to end
    int failed;             // 1: a process had no data: that step and all queued after it are discarded
    int has_no_data;        // 1: this process had no data for a step
    Error data_error;       // why it had none
    int skips_final_save;   // 1: no checkpoint is saved when training ends with an error
} Recovery;

enum { MAX_ROLLBACKS = 3 }; // in a row to the same step

// Records the loss of a step, and whether the step was skipped because of a non-finite loss or gradient.
static inline void recovery_record_loss(const Recovery *r, TrainingState *state, double loss, int skipped) {
    const int outlier = is_outlier(loss, state->recent, state->num_recent, r->outlier);
    state->skipped += skipped;
    state->skipped_in_row = skipped ? state->skipped_in_row + 1 : 0;
    state->outliers_in_row = r->rollback_after > 0 && (outlier || skipped) ? state->outliers_in_row + 1 : 0;
    outlier_add(loss, state->recent, &state->num_recent, RECENT_LOSSES);
}

// Returns 1 if the latest steps were bad, so that older checkpoints may be better than one of this state.
static inline int is_unstable(const TrainingState *state) {
    return state->skipped_in_row > 0 || state->outliers_in_row > 0;
}

// Returns 1 while the latest steps may lead back to the newest checkpoint. No newer one is then saved at the end of a
// run, so that a resumed run does these steps again.
static inline int may_roll_back(const Recovery *r, const TrainingState *state) {
    return r->rollback_after > 0 && is_unstable(state);
}

// Returns 1 after rollback_after bad steps in a row, whatever was computed after them.
static inline int must_roll_back(const Recovery *r, const TrainingState *state) {
    return r->rollback_after > 0 && state->outliers_in_row >= r->rollback_after;
}

// Returns 0, or -1 with a sentence if training has returned to `step` too often.
static inline int check_rollbacks(const Recovery *r, int64_t step, Error *error) {
    if (step != r->rolled_back_to || r->num_rollbacks < MAX_ROLLBACKS) return 0;
    fail(error,
         "training returned to step %lld %d times without getting past it; resume with a lower "
         "--learning-rate",
         (long long)step, MAX_ROLLBACKS);
    error->status = EXIT_SKIPPED;
    return -1;
}

// Counts a return to `step`.
static inline void count_rollback(Recovery *r, int64_t step) {
    r->num_rollbacks = step == r->rolled_back_to ? r->num_rollbacks + 1 : 1;
    r->rolled_back_to = step;
}

// Returns -1 with a sentence for `skipped` skipped steps in a row up to `step`. `saved`: step of the newest checkpoint.
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
