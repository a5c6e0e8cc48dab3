// Writes checkpoints in a separate thread, concurrently with training. One process writes a checkpoint, or several
// processes write their own files and one of them then commits all:
//
//     saver_write     writes this process's files into the checkpoint's temporary folder
//     saver_commit    called by one process: writes the manifest of all files and renames the folder
//     saver_leave     called by the others; by all processes, with `abandon`, if any file could not be written
//
// One job at a time: call saver_wait and then saver_result before starting the next.
#ifndef DATA_RUN_SAVER_H
#define DATA_RUN_SAVER_H

#include "checkpoint.h"
#include "run.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct Saver Saver;
enum { SAVER_MOST_FILES = 8 }; // per process, in one checkpoint

// A file to write: tensors or text.
typedef struct {
    char name[64];
    const NamedTensor *tensors;
    size_t num_tensors;
    char *text; // freed by the saver; NULL: the file has tensors
} SaverFile;

// `run_id`: the run's id. `lock`: the run's lock, which each save checks; NULL: another process holds it. Returns
// NULL on error.
Saver *saver_open(const char *run, const char *run_id, RunLock *lock, Error *error);
// The tensors' data must not change until the job is done, except before `ready`, which is called first, has
// returned.
void saver_write(Saver *saver, int64_t step, const SaverFile *files, size_t count, void (*ready)(void *),
                 void *argument);
// `files`: the files that other processes have written. `record`: an open file that is synced before the checkpoint
// is committed.
void saver_commit(Saver *saver, const CheckpointFile *files, size_t count, int record, int64_t keep);
void saver_leave(Saver *saver, int abandon);

// Returns 1 when the job is done. Waits at most `seconds` for it; if < 0, until it is done.
int saver_wait(Saver *saver, int seconds);
// Waits for the job, and returns its result: 0, or -1 with a sentence.
int saver_result(Saver *saver, Error *error);
// Returns the files that saver_write has written; valid until the next job.
const CheckpointFile *saver_files(const Saver *saver, size_t *count);
void saver_close(Saver *saver); // waits for the job; `saver` may be NULL

#ifdef __cplusplus
}
#endif
#endif
