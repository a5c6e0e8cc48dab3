// The steps that are queued on the device: one may still be computed while the next is queued.
#ifndef DATA_RUN_STEP_QUEUE_CUH
#define DATA_RUN_STEP_QUEUE_CUH

#include "layers/adamw.cuh"
#include "metrics.h"

// Signals, which processes send each other with the totals of a step: the process was asked to stop, it asks for a
// checkpoint, it has written its part of one, it had no data for the step.
enum { SIGNAL_STOP, SIGNAL_SAVE, SIGNAL_WRITTEN, SIGNAL_NO_DATA = SIGNAL_VETO };

// A step that is queued on the device, and its results once it is done.
typedef struct {
    StepMetrics metrics;
    StepOutcome *outcome;            // in pinned host memory
    double *signals;                 // (NUM_SIGNALS) of this process, in pinned host memory
    int phase_number;                // of Saving, when the signals were set
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
        q->pending[i].signals = (double *)host_alloc(NUM_SIGNALS * sizeof(double));
        q->pending[i].started = event_create();
        q->pending[i].done = event_create();
    }
}

static inline void queue_close(StepQueue *q) {
    if (q->pending[0].outcome == NULL) return; // never opened
    for (int i = 0; i < 2; i++) {
        host_free(q->pending[i].outcome), host_free(q->pending[i].signals);
        event_destroy(q->pending[i].started), event_destroy(q->pending[i].done);
    }
}

#endif
