// The folder of a run, for the one trainer that uses it.
//
//     runs/NAME/run_id            "run " and 16 hexadecimal digits, drawn at random when the folder is made
//     runs/NAME/options.txt       the options of the run, readable as @file
//     runs/NAME/lock              who uses the run: "host process time", empty when nobody does
//     runs/NAME/metrics.jsonl     one line a step, a validation (data/metrics.h)
//     runs/NAME/checkpoints/      (data/checkpoint.h)
//
// The trainer overwrites and removes only what it made. A folder with a run_id is a run's, and its files have the names
// above; without one, a folder that has a file of such a name is refused. Temporary names carry the id, and checkpoints
// name it in their manifest.
//
// The lock is the kernel's (flock), which gives it back whatever becomes of the process. File systems that do not show
// such locks to other hosts are why its owner also touches it every LOCK_TOUCH_SECONDS: a lock of another host that goes
// on being touched is in use, one that is not was left by a process that was killed.
#ifndef DATA_RUN_H
#define DATA_RUN_H

#include <pthread.h>
#include "files.h"
#include "manifest.h"
#include "options.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { LOCK_TOUCH_SECONDS = 10 };

// The lock of a run folder.
typedef struct {
    int descriptor; // -1: none
    char *path;
    char run_id[RUN_ID_SIZE]; // of the locked run
    pthread_t thread; // touches it
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    int ends;
} RunLock;

// Creates the run's folder, locks it (one trainer at a time), removes what a killed one has left, and writes its
// options.txt. `resumed`: its options were read from there, so that it is a run's also where an earlier version has left no
// run_id. `last`: the step of the last checkpoint there was when it was decided what to begin with, -1: none; if it is
// another by now, the run is refused. Says so when it takes over a stale lock. The lock stays where it is.
int run_open(RunLock *lock, const char *run, int resumed, int64_t last, const Option *table, size_t count,
             const void *settings, Error *error);
// Does the path still lead to the folder that was locked? Not after it was moved, removed or unmounted.
int run_check(const RunLock *lock, Error *error);
void run_close(RunLock *lock);
// The line in the run's lock, by which other processes know that they see the same folder. Caller frees; NULL: there is none.
char *run_owner(const char *run);

#ifdef __cplusplus
}
#endif
#endif
