// Threads beside the program's own.
#ifndef DATA_THREADS_H
#define DATA_THREADS_H

#include <pthread.h>
#include <signal.h>

// Starts a thread that gets no signals: they stay with the program's own. 0, or pthread_create's error.
static inline int thread_start(pthread_t *thread, void *(*run)(void *), void *argument) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int result = pthread_create(thread, NULL, run, argument);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return result;
}

#endif
