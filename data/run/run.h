// The folder of a run, used by one trainer at a time.
//
//     runs/NAME/run_id            "run " and 16 hexadecimal digits, drawn at random when the folder is created
//     runs/NAME/options.txt       the options of the run, readable as @file
//     runs/NAME/lock              the user of the run: "host process time"; empty if it is not in use
//     runs/NAME/metrics.jsonl     one line per step and per validation (data/run/metrics.h)
//     runs/NAME/checkpoints/      (data/run/checkpoint.h)
//
// The trainer overwrites and removes only what it has created. A folder with a run_id belongs to a run, and its files
// have the names above; a folder without one that has a file of such a name is refused. Temporary names contain the
// id, and checkpoints name it in their manifest.
//
// The lock is the kernel's (flock), which is released however the process ends. Because some file systems do not show
// such locks to other hosts, its owner also touches the file every LOCK_TOUCH_SECONDS: a lock of another host that is
// still being touched is in use, one that is not was left by a process that was killed.
#ifndef DATA_RUN_RUN_H
#define DATA_RUN_RUN_H

#include <pthread.h>
#include "layers/base/files.h"
#include "data/model/manifest.h"
#include "data/options/options.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { LOCK_TOUCH_SECONDS = 10 };

// The lock of a run folder.
typedef struct {
    int descriptor; // -1: not locked
    char *path;
    char run_id[RUN_ID_SIZE]; // id of the locked run
    // Touches the lock.
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    int stop;
} RunLock;

// Creates the run's folder, locks it (one trainer at a time), removes what a killed trainer has left, and writes
// options.txt. `resumed`: the options were read from there, so the folder is a run's even if an earlier version has
// not written a run_id. `last`: the step of the newest checkpoint when the caller decided what to start from, -1 for
// none; if it has changed since, the run is refused. Reports a stale lock that it takes over. `lock` must not be
// moved.
int run_open(RunLock *lock, const char *run, int resumed, int64_t last, const Option *table, size_t count,
             const void *settings, Error *error);
// Checks that the path still leads to the locked folder, which it does not after it was moved, removed or unmounted.
// Returns 0, or -1 with a sentence.
int run_check(const RunLock *lock, Error *error);
void run_close(RunLock *lock);
// Returns the line in the run's lock, by which other processes know that they see the same folder; NULL if there is
// none. The caller frees it.
char *run_owner(const char *run);

#ifdef __cplusplus
}
#endif
#endif
