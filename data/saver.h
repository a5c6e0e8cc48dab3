// Writes checkpoints in a thread of its own, beside training. One process, or several that each write files of their own
// and of which one then commits the whole:
//
//     saver_write     this process's files, into the checkpoint's temporary folder
//     saver_commit    by one process: the manifest of all files; the folder gets its name
//     saver_leave     by the others; by all (abandon) where any file could not be written
//
// One job at a time: saver_wait, then saver_result, before the next.
#ifndef DATA_SAVER_H
#define DATA_SAVER_H

#include "checkpoint.h"
#include "run.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct Saver Saver;
enum { SAVER_MOST_FILES = 8 }; // of a process, in a checkpoint

// A file to write: tensors, or text.
typedef struct {
    char name[64];
    const NamedTensor *tensors;
    size_t num_tensors;
    char *text; // the saver frees it; NULL: tensors
} SaverFile;

// `run_id`: of the run. `lock`: of the run, which each save looks at; NULL: another process has it. NULL on error.
Saver *saver_open(const char *run, const char *run_id, RunLock *lock, Error *error);
// What the tensors hold must not change until the job is done, but for what `ready`, called first, waits for.
void saver_write(Saver *saver, int64_t step, const SaverFile *files, size_t count, void (*ready)(void *),
                 void *argument);
// `files`: what other processes have written. `record`, an open file, is on the disk before the checkpoint is.
void saver_commit(Saver *saver, const CheckpointFile *files, size_t count, int record, int64_t keep);
void saver_leave(Saver *saver, int abandon);

// Is the job done? Waits for it for so many seconds; < 0: until it is.
int saver_wait(Saver *saver, int seconds);
// Waits for the job, and says what came of it.
int saver_result(Saver *saver, Error *error);
// What saver_write wrote, until the next job.
const CheckpointFile *saver_files(const Saver *saver, size_t *count);
void saver_close(Saver *saver); // waits; NULL is nothing to close

#ifdef __cplusplus
}
#endif
#endif
