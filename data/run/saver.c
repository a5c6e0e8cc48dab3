// See saver.h.
#define _GNU_SOURCE
#include "saver.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "layers/base/threads.h"

typedef enum { JOB_WRITE, JOB_COMMIT, JOB_LEAVE, JOB_ABANDON, JOB_END } JobKind;

typedef struct {
    JobKind kind;
    int64_t step, keep;
    SaverFile files[SAVER_MOST_FILES];
    size_t num_files;
    void (*ready)(void *);
    void *argument;
    int record;
} Job;

struct Saver {
    char *run, run_id[RUN_ID_SIZE];
    RunLock *lock;
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    Job job;
    // Set until the job is done. While it is set, the job belongs to the thread, otherwise to the caller.
    int has_job;
    int result;
    Error error;
    CheckpointWriter writer;
};

// ---- the thread -------------------------------------------------------------------------------------------

static int write_files(Saver *s, Error *error) {
    Job *job = &s->job;
    int result = s->lock != NULL ? run_check(s->lock, error) : 0;
    if (result == 0 && job->num_files > 0)
        result =
            checkpoint_begin(&s->writer, s->run, s->run_id, job->step, error);
    job->ready(job->argument); // also after an error, so that what it waits for is always complete
    for (size_t i = 0; i < job->num_files; i++) {
        SaverFile *file = &job->files[i];
        if (result == 0 && file->text != NULL)
            result = checkpoint_text(&s->writer, file->name, file->text, error);
        else if (result == 0)
            result = checkpoint_tensors(&s->writer, file->name, file->tensors, file->num_tensors, error);
        free(file->text);
    }
    return result;
}

static int commit(Saver *s, Error *error) {
    if (fsync(s->job.record) == 0 || errno == EINVAL)
        return checkpoint_commit(&s->writer, s->job.keep, error);
    fail_io(error, "cannot sync '%s/metrics.jsonl'", s->run);
    checkpoint_abandon(&s->writer);
    return -1;
}

static int do_job(Saver *s, Error *error) {
    switch (s->job.kind) {
    case JOB_WRITE:
        return write_files(s, error);
    case JOB_COMMIT:
        return commit(s, error);
    case JOB_ABANDON:
        checkpoint_abandon(&s->writer);
        return 0;
    default:
        checkpoint_leave(&s->writer);
        return 0;
    }
}

static void *saver_thread(void *argument) {
    Saver *s = (Saver *)argument;
    for (;;) {
        pthread_mutex_lock(&s->mutex);
        while (!s->has_job) pthread_cond_wait(&s->changed, &s->mutex);
        pthread_mutex_unlock(&s->mutex);
        const int ends = s->job.kind == JOB_END;
        s->result = do_job(s, &s->error);
        pthread_mutex_lock(&s->mutex);
        s->has_job = 0;
        pthread_cond_broadcast(&s->changed);
        pthread_mutex_unlock(&s->mutex);
        if (ends) return NULL;
    }
}

// ---- interface --------------------------------------------------------------------------------------------

Saver *saver_open(const char *run, const char *run_id, RunLock *lock, Error *error) {
    Saver *s = (Saver *)xcalloc(1, sizeof(Saver));
    s->run = xstrdup(run);
    snprintf(s->run_id, sizeof(s->run_id), "%s", run_id);
    s->lock = lock;
    pthread_mutex_init(&s->mutex, NULL);
    thread_condition(&s->changed);
    if (thread_start(&s->thread, saver_thread, s) == 0) return s;
    fail(error, "cannot start the thread that writes checkpoints");
    free(s->run);
    free(s);
    return NULL;
}

static void start_job(Saver *s, const Job *job) {
    pthread_mutex_lock(&s->mutex);
    s->job = *job;
    s->has_job = 1;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->mutex);
}

void saver_write(Saver *s, int64_t step, const SaverFile *files, size_t count, void (*ready)(void *),
                 void *argument) {
    Job job = {.kind = JOB_WRITE, .step = step, .num_files = count, .ready = ready, .argument = argument};
    if (count > SAVER_MOST_FILES) die("one process cannot write %zu files of a checkpoint", count);
    memcpy(job.files, files, count * sizeof(SaverFile));
    start_job(s, &job);
}

void saver_commit(Saver *s, const CheckpointFile *files, size_t count, int record, int64_t keep) {
    Job job = {.kind = JOB_COMMIT, .record = record, .keep = keep};
    for (size_t i = 0; i < count; i++) checkpoint_add(&s->writer, &files[i]);
    start_job(s, &job);
}

void saver_leave(Saver *s, int abandon) {
    Job job = {.kind = abandon ? JOB_ABANDON : JOB_LEAVE};
    start_job(s, &job);
}

int saver_wait(Saver *s, int seconds) {
    const struct timespec until = thread_deadline(seconds);
    int result = 0;
    pthread_mutex_lock(&s->mutex);
    while (s->has_job && seconds != 0 && result != ETIMEDOUT)
        result = seconds < 0 ? pthread_cond_wait(&s->changed, &s->mutex)
                             : pthread_cond_timedwait(&s->changed, &s->mutex, &until);
    const int done = !s->has_job;
    pthread_mutex_unlock(&s->mutex);
    return done;
}

int saver_result(Saver *s, Error *error) {
    saver_wait(s, -1);
    if (s->result != 0) *error = s->error;
    return s->result;
}

const CheckpointFile *saver_files(const Saver *s, size_t *count) {
    *count = s->writer.manifest.num_files;
    return s->writer.manifest.files;
}

void saver_close(Saver *s) {
    Error ignored;
    if (s == NULL) return;
    Job job = {.kind = JOB_END};
    saver_result(s, &ignored);
    start_job(s, &job);
    pthread_join(s->thread, NULL);
    free(s->run);
    free(s);
}
