// The steps that the device was given: one may still be computed while the next is queued.
#ifndef DATA_RUN_STEP_QUEUE_CUH
#define DATA_RUN_STEP_QUEUE_CUH

#include "layers/adamw.cuh"
#include "metrics.h"

// A step that the device has been given, and its results once it is done.
typedef struct {
    StepMetrics metrics;
    StepOutcome *outcome;            // in pinned host memory
    double *flags;                   // (TOTAL_SQUARES) without the loss: what this process tells the others
    int turn;                        // of Saving, when the flags were set
    int64_t position, next_position; // sequences consumed before the step, and after it
    Event started, done;
} PendingStep;

typedef struct {
    PendingStep pending[2];
    size_t num_steps, num_finished;
} StepQueue;

static inline void queue_open(StepQueue *q) {
    for (int i = 0; i < 2; i++) {
        q->pending[i].outcome = (StepOutcome *)host_alloc(sizeof(StepOutcome));
        q->pending[i].flags = (double *)host_alloc(TOTAL_SQUARES * sizeof(double));
        q->pending[i].started = event_create();
        q->pending[i].done = event_create();
    }
}

static inline void queue_close(StepQueue *q) {
    if (q->pending[0].outcome == NULL) return; // never opened
    for (int i = 0; i < 2; i++) {
        host_free(q->pending[i].outcome), host_free(q->pending[i].flags);
        event_destroy(q->pending[i].started), event_destroy(q->pending[i].done);
    }
}

#endif
