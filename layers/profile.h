// Measures how the time of a step is divided among its parts. The trainer calls profile_begin_pass where forward or
// backward begins, profile_enter before each piece of work and profile_leave after the last one; the device time from
// one call to the next is attributed to that piece. While `timing` is 0, nothing is measured. profile_collect waits
// until the device has done the work and adds up the times since the last call.
//
// In builds with NVTX, the same pieces, and those between range_begin and range_end, are ranges that a profiler (nsys)
// shows; without a profiler their cost is negligible.
#ifndef LAYERS_PROFILE_H
#define LAYERS_PROFILE_H

#include "common.h"
#ifdef DEVICE_CUDA
#include <cuda_profiler_api.h>
#endif

#ifdef HAVE_NVTX
#include <nvtx3/nvToolsExt.h>
static inline void range_begin(const char *name) {
    nvtxRangePushA(name);
}
static inline void range_end(void) {
    nvtxRangePop();
}
#else
static inline void range_begin(const char *name) {
    (void)name;
}
static inline void range_end(void) {}
#endif

// Makes a profiler that waits for it (nsys --capture-range=cudaProfilerApi) record steps 10 .. 19 of a process. `done`
// is the number of steps done.
static inline void profile_steady_steps(int64_t done, Stream stream) {
    if (done == 10 || done == 20) stream_wait(stream); // so that only whole steps are recorded
#ifdef DEVICE_CUDA
    if (done == 10) CHECK(cudaProfilerStart());
    if (done == 20) CHECK(cudaProfilerStop());
#endif
}

#define PROFILE_LAPS(X)                                                                                      \
    X(LAP_EMBEDDING, "embedding")                                                                            \
    X(LAP_NORM, "residual + dropout + layernorm")                                                            \
    X(LAP_QKV, "matmul qkv + bias")                                                                          \
    X(LAP_ATTENTION, "attention")                                                                            \
    X(LAP_PROJECTION, "matmul projection + bias")                                                            \
    X(LAP_MLP_UP, "matmul mlp up + bias + gelu")                                                             \
    X(LAP_MLP_DOWN, "matmul mlp down + bias")                                                                \
    X(LAP_HEAD, "matmul output head")                                                                        \
    X(LAP_LOSS, "softmax + cross-entropy")                                                                   \
    X(LAP_OPTIMIZER, "gradient norm + adamw")                                                                \
    X(LAP_DATA, "data")                                                                                      \
    X(LAP_COMMUNICATION, "waiting for other processes")

typedef enum {
#define AS_ENUM(id, name) id,
    PROFILE_LAPS(AS_ENUM)
#undef AS_ENUM
        NUM_LAPS
} Lap;

typedef enum { PASS_FORWARD, PASS_BACKWARD, NUM_PASSES } Pass;

// The start of a piece.
typedef struct {
    Event event;
    int lap, pass; // lap NUM_LAPS: the end of the last piece
} ProfileMark;

typedef struct {
    int timing;
    int inside; // 1 between profile_enter and profile_leave
    Pass pass;  // that the next pieces belong to
    ProfileMark *marks;
    size_t num_marks, capacity; // events are created once and reused
    double seconds[NUM_LAPS][NUM_PASSES];
    double flop[NUM_LAPS][NUM_PASSES], bytes[NUM_LAPS][NUM_PASSES]; // per step
} Profile;

static const char *const LAP_NAMES[] = {
#define AS_NAME(id, name) name,
    PROFILE_LAPS(AS_NAME)
#undef AS_NAME
};

static inline void profile_mark(Profile *p, int lap, int pass, Stream stream) {
    if (p->num_marks == p->capacity) {
        size_t capacity = p->capacity > 0 ? 2 * p->capacity : 256;
        p->marks = (ProfileMark *)realloc(p->marks, capacity * sizeof(ProfileMark));
        CHECK(p->marks != NULL);
        for (; p->capacity < capacity; p->capacity++) p->marks[p->capacity].event = event_create();
    }
    ProfileMark *mark = &p->marks[p->num_marks++];
    mark->lap = lap;
    mark->pass = pass;
    event_record(&mark->event, stream);
}

static inline void profile_leave(Profile *p, Stream stream) {
    if (p->inside) range_end();
    p->inside = 0;
    if (p->timing) profile_mark(p, NUM_LAPS, PASS_FORWARD, stream);
}

static inline void profile_begin_pass(Profile *p, Pass pass) {
    p->pass = pass;
}

static inline void profile_enter(Profile *p, Lap lap, Stream stream) {
    if (p->inside) range_end();
    p->inside = 1;
    range_begin(LAP_NAMES[lap]);
    if (p->timing) profile_mark(p, lap, p->pass, stream);
}

static inline void profile_collect(Profile *p) {
    if (p->num_marks > 0) event_wait(p->marks[p->num_marks - 1].event);
    for (size_t i = 0; i + 1 < p->num_marks; i++)
        if (p->marks[i].lap != NUM_LAPS)
            p->seconds[p->marks[i].lap][p->marks[i].pass] += event_seconds(p->marks[i].event,
                                                                           p->marks[i + 1].event);
    p->num_marks = 0;
}

static inline void profile_free(Profile *p) {
    for (size_t i = 0; i < p->capacity; i++) event_destroy(p->marks[i].event);
    free(p->marks);
}

// Adds work of one step: `flop` and `bytes` of a piece's forward pass; its backward pass has `factor` times the FLOPs
// and twice the bytes.
static inline void profile_add_work(Profile *p, Lap lap, double factor, double flop, double bytes) {
    p->flop[lap][PASS_FORWARD] += flop;
    p->flop[lap][PASS_BACKWARD] += factor * flop;
    p->bytes[lap][PASS_FORWARD] += bytes;
    p->bytes[lap][PASS_BACKWARD] += 2 * bytes;
}
static inline void profile_add_bytes(Profile *p, Lap lap, Pass pass, double bytes) {
    p->bytes[lap][pass] += bytes;
}

// Prints a table of the averages over `steps` steps; peak is in GFLOP/s.
static inline void profile_print(const Profile *profile, int steps, double peak) {
    double total = 0;
    for (int lap = 0; lap < NUM_LAPS; lap++) total += profile->seconds[lap][0] + profile->seconds[lap][1];
    printf("%-32s %9s %9s %9s %7s %7s\n", "layer", "ms/step", "share", "GFLOP/s", "% peak", "GB/s");
    for (int lap = 0; lap < NUM_LAPS; lap++)
        for (int pass = 0; pass < NUM_PASSES; pass++) {
            double seconds = profile->seconds[lap][pass] / steps;
            if (seconds == 0) continue;
            double rate = profile->flop[lap][pass] / seconds / 1e9;
            printf("%-32s %9.3f %8.1f%% ", LAP_NAMES[lap], seconds * 1e3, 100 * seconds * steps / total);
            if (rate > 0)
                printf("%9.1f %6.1f%% ", rate, 100 * rate / peak);
            else
                printf("%9s %7s ", "", "");
            printf("%7.1f %s\n", profile->bytes[lap][pass] / seconds / 1e9,
                   pass == PASS_FORWARD ? "forward" : "backward");
        }
    printf("%-32s %9.3f\n", "sum", total / steps * 1e3);
}

#endif
