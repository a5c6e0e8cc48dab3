// Signals that ask a program to end: SIGINT, SIGTERM, SIGHUP and SIGUSR1 (which Slurm can be told to send before it takes the
// machine away). The first one is stored, and the program ends when it is ready; a second one ends it at once.
#ifndef LAYERS_LAUNCH_SIGNALS_H
#define LAYERS_LAUNCH_SIGNALS_H

#include <signal.h>
#include <time.h>

static volatile sig_atomic_t stop_signal; // the first signal; 0: none yet

// What comes within a second or so of the first signal is the same one, sent by a launcher and by its resource manager.
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

static inline void handle_signals(void) {
    signal(SIGINT, on_signal);
    signal(SIGTERM, on_signal);
    signal(SIGUSR1, on_signal);
    if (signal(SIGHUP, SIG_IGN) != SIG_IGN) signal(SIGHUP, on_signal); // a lost connection; nohup ignores it
    signal(SIGPIPE, SIG_IGN); // a reader of the output that went away
    signal(SIGXFSZ, SIG_IGN); // a limit on the size of files is treated as a full disk
}

#endif
