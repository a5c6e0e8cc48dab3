// Where the time of a step goes. The trainer calls profile_lap(profile, LAP) after each piece of work: the
// time since the last call is that piece's. With a NULL profile nothing is measured.
#ifndef LAYERS_PROFILE_H
#define LAYERS_PROFILE_H

#include "data/progress.h"

#define PROFILE_LAPS(X)                                                                                      \
    X(LAP_EMBEDDING, "embedding")                                                                            \
    X(LAP_LAYERNORM, "residual + dropout + layernorm")                                                       \
    X(LAP_QKV, "matmul qkv + bias")                                                                          \
    X(LAP_ATTENTION, "attention")                                                                            \
    X(LAP_PROJECTION, "matmul projection + bias")                                                            \
    X(LAP_MLP_UP, "matmul mlp up + bias + gelu")                                                             \
    X(LAP_MLP_DOWN, "matmul mlp down + bias")                                                                \
    X(LAP_HEAD, "matmul output head")                                                                        \
    X(LAP_LOSS, "softmax + cross-entropy")                                                                   \
    X(LAP_OPTIMIZER, "gradient norm + adamw")                                                                \
    X(LAP_DATA, "data")

typedef enum {
#define AS_ENUM(id, name) id,
    PROFILE_LAPS(AS_ENUM)
#undef AS_ENUM
        NUM_LAPS
} Lap;

typedef enum { PASS_FORWARD, PASS_BACKWARD, NUM_PASSES } Pass;

typedef struct {
    double last;
    double seconds[NUM_LAPS][NUM_PASSES];
    double flop[NUM_LAPS][NUM_PASSES], bytes[NUM_LAPS][NUM_PASSES]; // of one step
} Profile;

static inline void profile_start(Profile *profile) {
    if (profile != NULL) profile->last = seconds_now();
}

static inline void profile_lap(Profile *profile, Lap lap, Pass pass) {
    if (profile == NULL) return;
    double now = seconds_now();
    profile->seconds[lap][pass] += now - profile->last;
    profile->last = now;
}

// Work of one step of a GPT on `tokens` in sequences of `length`: flop of the matmuls and of causal
// attention, and the bytes of the tensors that are read and written.
static inline void profile_set_work(Profile *p, size_t layers, size_t tokens, size_t length, size_t channels,
                                    size_t vocabulary, size_t parameters) {
    const double L = (double)layers, N = (double)tokens, T = (double)length, C = (double)channels,
                 V = (double)vocabulary;
    const struct {
        Lap lap;
        double flop, bytes; // forward
    } work[] = {
        {LAP_QKV, 2 * L * N * C * 3 * C, 4 * L * (4 * N * C + 3 * C * C)},
        {LAP_PROJECTION, 2 * L * N * C * C, 4 * L * (2 * N * C + C * C)},
        {LAP_MLP_UP, 2 * L * N * C * 4 * C, 4 * L * (9 * N * C + 4 * C * C)},
        {LAP_MLP_DOWN, 2 * L * N * C * 4 * C, 4 * L * (5 * N * C + 4 * C * C)},
        {LAP_HEAD, 2 * N * C * V, 4 * (N * C + N * V + C * V)},
        {LAP_ATTENTION, 2 * L * N * T * C, 4 * L * 4 * N * C},
    };
    for (size_t i = 0; i < sizeof(work) / sizeof(work[0]); i++) {
        p->flop[work[i].lap][PASS_FORWARD] = work[i].flop;
        p->flop[work[i].lap][PASS_BACKWARD] = (work[i].lap == LAP_ATTENTION ? 2.5 : 2.0) * work[i].flop;
        p->bytes[work[i].lap][PASS_FORWARD] = work[i].bytes;
        p->bytes[work[i].lap][PASS_BACKWARD] = 2 * work[i].bytes;
    }
    p->bytes[LAP_EMBEDDING][PASS_FORWARD] = 4 * 2 * N * C;
    p->bytes[LAP_EMBEDDING][PASS_BACKWARD] = 4 * 5 * N * C;
    p->bytes[LAP_LAYERNORM][PASS_FORWARD] = 4 * (2 * L + 1) * 4 * N * C;
    p->bytes[LAP_LAYERNORM][PASS_BACKWARD] = 4 * (2 * L + 1) * 5 * N * C;
    p->bytes[LAP_LOSS][PASS_BACKWARD] = 4 * 2 * N * V;
    p->bytes[LAP_OPTIMIZER][PASS_BACKWARD] = 4 * 8 * (double)parameters;
}

// A table of `steps` steps; peak in GFLOP/s.
static inline void profile_print(const Profile *profile, int steps, double peak) {
    static const char *names[] = {
#define AS_NAME(id, name) name,
        PROFILE_LAPS(AS_NAME)
#undef AS_NAME
    };
    double total = 0;
    for (int lap = 0; lap < NUM_LAPS; lap++) total += profile->seconds[lap][0] + profile->seconds[lap][1];
    printf("%-32s %9s %9s %9s %7s %7s\n", "layer", "ms/step", "share", "GFLOP/s", "% peak", "GB/s");
    for (int lap = 0; lap < NUM_LAPS; lap++)
        for (int pass = 0; pass < NUM_PASSES; pass++) {
            double seconds = profile->seconds[lap][pass] / steps;
            if (seconds == 0) continue;
            double rate = profile->flop[lap][pass] / seconds / 1e9;
            printf("%-32s %9.3f %8.1f%% ", names[lap], seconds * 1e3, 100 * seconds * steps / total);
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
