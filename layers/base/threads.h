// Threads in addition to the main thread.
#ifndef LAYERS_BASE_THREADS_H
#define LAYERS_BASE_THREADS_H

#include <pthread.h>
#include <signal.h>
#include <time.h>

enum { THREAD_STACK = 2 << 20 }; // bytes

// Starts a thread with a stack of THREAD_STACK bytes and all signals blocked, so that only the main thread gets them.
// Returns 0, or pthread_create's error.
static inline int thread_start(pthread_t *thread, void *(*run)(void *), void *argument) {
    sigset_t all, before;
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, THREAD_STACK);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int result = pthread_create(thread, &attributes, run, argument);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    return result;
}

// Initializes a condition for timed waits until thread_deadline, which do not depend on the wall clock.
static inline void thread_condition(pthread_cond_t *condition) {
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(condition, &attributes);
    pthread_condattr_destroy(&attributes);
}

// Returns the time `seconds` from now, for pthread_cond_timedwait.
static inline struct timespec thread_deadline(int seconds) {
    struct timespec deadline;
    clock_gettime(CLOCK_MONOTONIC, &deadline);
    deadline.tv_sec += seconds;
    return deadline;
}

#endif
