// Signals that ask the program to end: SIGINT, SIGTERM, SIGHUP and SIGUSR1, which Slurm can be told to send before it
// reclaims the machine. The program ends when it is ready after the first signal, and at once after a second one.
#ifndef LAYERS_LAUNCH_SIGNALS_H
#define LAYERS_LAUNCH_SIGNALS_H

#include <signal.h>
#include <time.h>

static volatile sig_atomic_t stop_signal; // the first signal; 0: none yet

// A signal within a second or so of the first counts as the same one, sent by both a launcher and its resource manager.
static inline void on_signal(int number) {
    static volatile time_t first;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    if (stop_signal == 0) {
        first = now.tv_sec;
        stop_signal = number;
    } else if (now.tv_sec - first > 1) {
        signal(number, SIG_DFL);
        raise(number);
    }
}

// Handles the signals above, and ignores those that would end the program for other reasons.
static inline void handle_signals(void) {
    signal(SIGINT, on_signal);
    signal(SIGTERM, on_signal);
    signal(SIGUSR1, on_signal);
    if (signal(SIGHUP, SIG_IGN) != SIG_IGN) signal(SIGHUP, on_signal); // connection lost; nohup ignores this
    signal(SIGPIPE, SIG_IGN);                                          // the reader of the output has exited
    signal(SIGXFSZ, SIG_IGN); // the file size limit is treated as a full disk
}

#endif
