// See run.h.
#define _GNU_SOURCE
#include "run.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include "checkpoint.h"
#include "layers/base/progress.h"
#include "layers/base/threads.h"

enum { OWNER_SIZE = 200 };

// Writes a line that is unique to this process: host, process, current time.
static void describe_process(char *line, size_t size) {
    char host[64] = "?";
    struct timespec now;
    gethostname(host, sizeof(host) - 1);
    clock_gettime(CLOCK_REALTIME, &now);
    snprintf(line, size, "%s %ld %lld.%09ld\n", host, (long)getpid(), (long long)now.tv_sec, now.tv_nsec);
}

static void read_owner(int descriptor, char *line, size_t size) {
    ssize_t count = pread(descriptor, line, size - 1, 0);
    line[count > 0 ? count : 0] = '\0';
    line[strcspn(line, "\n")] = '\0';
}

// Returns "process 123 on host a"; the caller frees it.
static char *describe_owner(const char *line) {
    char host[64];
    long process;
    if (sscanf(line, "%63s %ld", host, &process) != 2) return xstrdup("another trainer");
    return format_text("process %ld on host %s", process, host);
}

static int is_of_this_host(const char *line) {
    char host[64] = "?";
    gethostname(host, sizeof(host) - 1);
    return strncmp(line, host, strlen(host)) == 0 && line[strlen(host)] == ' ';
}

static struct timespec time_touched(int descriptor) {
    struct stat status;
    memset(&status, 0, sizeof(status));
    fstat(descriptor, &status);
    return status.st_mtim;
}

// Returns 1 if the lock is still being touched by a process of another host, whose kernel lock may be invisible here.
// Waits long enough for a live process to touch it, unless by this host's clock it has not been touched for far
// longer.
static int is_still_touched(const RunLock *lock, const char *owner) {
    const double until = seconds_now() + 2.5 * LOCK_TOUCH_SECONDS;
    const struct timespec before = time_touched(lock->descriptor);
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (now.tv_sec - before.tv_sec > 100 * LOCK_TOUCH_SECONDS) return 0;
    fprintf(stderr, "waiting to see whether %s is still using the run\n", owner);
    while (seconds_now() < until) {
        usleep(200000);
        const struct timespec after = time_touched(lock->descriptor);
        if (after.tv_sec != before.tv_sec || after.tv_nsec != before.tv_nsec) return 1;
    }
    return 0;
}

// The thread that touches the lock regularly, independent of what the trainer and the disk are doing.
static void *touch_lock(void *argument) {
    RunLock *lock = (RunLock *)argument;
    pthread_mutex_lock(&lock->mutex);
    while (!lock->stop) {
        const struct timespec next = thread_deadline(LOCK_TOUCH_SECONDS);
        while (!lock->stop && pthread_cond_timedwait(&lock->changed, &lock->mutex, &next) != ETIMEDOUT)
            continue;
        // If this fails, only the kernel's lock remains.
        if (!lock->stop) futimens(lock->descriptor, NULL);
    }
    pthread_mutex_unlock(&lock->mutex);
    return NULL;
}

static int start_touch_thread(RunLock *lock, Error *error) {
    lock->stop = 0;
    pthread_mutex_init(&lock->mutex, NULL);
    thread_condition(&lock->changed);
    if (thread_start(&lock->thread, touch_lock, lock) == 0) return 0;
    close(lock->descriptor); // run_close must not wait for the thread
    lock->descriptor = -1;
    return fail(error, "cannot start the thread that touches '%s'", lock->path);
}

// Returns 1 if the lock file's content was written by a trainer: nothing, or describe_process's line.
static int is_own_lock(int descriptor) {
    struct stat status;
    char line[OWNER_SIZE], host[64], time[32], end = 0;
    long process;
    if (fstat(descriptor, &status) != 0 || !S_ISREG(status.st_mode) || status.st_size >= OWNER_SIZE) return 0;
    ssize_t count = pread(descriptor, line, sizeof(line) - 1, 0);
    line[count > 0 ? count : 0] = '\0';
    return count == 0 ||
           (sscanf(line, "%63s %ld %31[0-9.]%c", host, &process, time, &end) == 4 && end == '\n');
}

static int take_lock(RunLock *lock, const char *run, Error *error) {
    char line[OWNER_SIZE];
    lock->path = format_text("%s/lock", run);
    lock->descriptor = open(lock->path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (lock->descriptor < 0) return fail_io(error, "cannot write '%s'", lock->path);
    if (!is_own_lock(lock->descriptor)) {
        close(lock->descriptor);
        lock->descriptor = -1;
        return fail(error, "'%s' was not written by this trainer: give another --run", lock->path);
    }
    const int locked = flock(lock->descriptor, LOCK_EX | LOCK_NB) == 0, reason = locked ? 0 : errno;
    read_owner(lock->descriptor, line, sizeof(line));
    char *owner = describe_owner(line);
    int result = 0;
    if (!locked && reason == EWOULDBLOCK)
        result = fail(error, "another trainer is using '%s': %s", run, owner);
    else if (line[0] != '\0' && !is_of_this_host(line) && is_still_touched(lock, owner))
        result = fail(error, "another trainer is using '%s': %s, as '%s' shows", run, owner, lock->path);
    else if (line[0] != '\0')
        fprintf(stderr, "the lock of '%s' is stale: %s ended without releasing it\n", run, owner);
    if (result == 0 && !locked)
        warn("'%s' cannot be locked (%s): do not start a second trainer on it", run, strerror(reason));
    free(owner);
    describe_process(line, sizeof(line));
    if (result == 0 &&
        (ftruncate(lock->descriptor, 0) != 0 || file_pwrite(lock->descriptor, line, strlen(line), 0) != 0 ||
         fsync(lock->descriptor) != 0)) // makes it visible to other hosts
        result = fail_io(error, "cannot write '%s'", lock->path);
    if (result != 0) {
        close(lock->descriptor);
        lock->descriptor = -1;
        return -1;
    }
    return start_touch_thread(lock, error);
}

// ---- the run's id -----------------------------------------------------------------------------------------

static const char ID_FORMAT[] = "run %s\n";

// Returns 1 if the text is what a trainer writes into run_id, or the beginning of it (the trainer was killed while
// writing). Copies the id, or an empty one if the text is incomplete.
static int parse_id(const char *text, size_t size, char run_id[RUN_ID_SIZE]) {
    static const char word[] = "run ";
    const size_t start = sizeof(word) - 1, whole = start + RUN_ID_SIZE; // the line feed replaces the NUL
    if (size > whole || memcmp(text, word, size < start ? size : start) != 0) return 0;
    for (size_t i = start; i < size && i < whole - 1; i++)
        if (strchr("0123456789abcdef", text[i]) == NULL) return 0;
    if (size == whole && text[whole - 1] != '\n') return 0;
    snprintf(run_id, RUN_ID_SIZE, "%.16s", size == whole ? text + start : "");
    return 1;
}

// A folder without an id may become a run's folder only if it has no file that the trainer would overwrite.
static int check_names(const char *run, Error *error) {
    static const char *const names[] = {"options.txt", "metrics.jsonl", "matmul.txt"};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        char *path = format_text("%s/%s", run, names[i]);
        const int exists = file_exists(path);
        if (exists)
            fail(error,
                 "'%s' would be overwritten, but '%s' is not a run of this trainer (it has no file run_id): "
                 "give another --run",
                 path, run);
        free(path);
        if (exists) return -1;
    }
    return 0;
}

static int create_id(RunLock *lock, const char *path, Error *error) {
    uint64_t random;
    char text[64];
    if (getrandom(&random, sizeof(random), 0) != sizeof(random))
        return fail_io(error, "cannot draw a random number for '%s'", path);
    snprintf(lock->run_id, RUN_ID_SIZE, "%016llx", (unsigned long long)random);
    snprintf(text, sizeof(text), ID_FORMAT, lock->run_id);
    int descriptor = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
    int result = descriptor >= 0 && file_pwrite(descriptor, text, strlen(text), 0) == 0 && fsync(descriptor) == 0
                     ? 0
                     : fail_io(error, "cannot write '%s'", path);
    if (descriptor >= 0) close(descriptor);
    return result;
}

// Reads the run's id into the lock, or creates one. Only the holder of the lock calls this. An id that was truncated
// because its writer was killed is replaced, and counts as missing: nothing else was written before it.
static int read_or_create_id(RunLock *lock, const char *run, int resumed, Error *error) {
    char *path = format_text("%s/run_id", run), *text = NULL;
    size_t size = 0;
    int result = 0;
    lock->run_id[0] = '\0';
    if (file_exists(path)) {
        result = file_read(path, 4096, &text, &size, error);
        if (result == 0 && !parse_id(text, size, lock->run_id))
            result = fail(error, "'%s' was not written by this trainer: give another --run", path);
    }
    const int whole = lock->run_id[0] != '\0';
    if (result == 0 && !whole && !resumed) result = check_names(run, error);
    if (result == 0 && !whole) result = create_id(lock, path, error);
    free(text);
    free(path);
    return result;
}

// ---- opening ----------------------------------------------------------------------------------------------

static char *temporary_options(const RunLock *lock, const char *run) {
    return format_text("%s/options.txt.%s.tmp", run, lock->run_id);
}

static int write_options(const RunLock *lock, const char *run, const Option *table, size_t count,
                         const void *settings, Error *error) {
    FileWriter file;
    char *path = format_text("%s/options.txt", run);
    int result = file_writer_open_tagged(&file, path, lock->run_id, error);
    free(path);
    if (result != 0) return -1;
    options_write(table, count, settings, file.stream);
    return file_writer_commit(&file, error);
}

// Checks that no other trainer has written checkpoints before this one got the lock.
static int check_last(const char *run, int64_t last, Error *error) {
    int64_t now;
    if (checkpoint_last(run, &now, error) != 0) return -1;
    if (now == last) return 0;
    if (last >= 0) return fail(error, "another trainer has meanwhile resumed '%s': start again", run);
    return fail(error, "'%s' has checkpoints of an earlier run: resume it with --resume, or give another --run",
                run);
}

int run_open(RunLock *lock, const char *run, int resumed, int64_t last, const Option *table, size_t count,
             const void *settings, Error *error) {
    lock->descriptor = -1;
    lock->path = NULL;
    if (folder_create(run, error) != 0) return -1;
    if (take_lock(lock, run, error) != 0 || check_last(run, last, error) != 0 ||
        read_or_create_id(lock, run, resumed, error) != 0) {
        run_close(lock);
        return -1;
    }
    char *leftover = temporary_options(lock, run); // a file that this run was writing when it was killed
    unlink(leftover);
    free(leftover);
    checkpoint_remove_leftovers(run, lock->run_id);
    return write_options(lock, run, table, count, settings, error);
}

int run_check(const RunLock *lock, Error *error) {
    struct stat mine, current;
    if (stat(lock->path, &current) != 0)
        return fail_io(error, "the run's folder has disappeared: '%s'", lock->path);
    if (fstat(lock->descriptor, &mine) != 0) return fail_io(error, "cannot access '%s'", lock->path);
    if (mine.st_dev == current.st_dev && mine.st_ino == current.st_ino) return 0;
    return fail(error, "'%s' is not the lock of this run: another folder has taken its place", lock->path);
}

void run_close(RunLock *lock) {
    if (lock->descriptor >= 0) {
        pthread_mutex_lock(&lock->mutex);
        lock->stop = 1;
        pthread_cond_signal(&lock->changed);
        pthread_mutex_unlock(&lock->mutex);
        pthread_join(lock->thread, NULL);
        if (ftruncate(lock->descriptor, 0) != 0)
            warn("'%s' could not be emptied: the next trainer will report a stale lock", lock->path);
        close(lock->descriptor);
    }
    free(lock->path);
    lock->path = NULL;
    lock->descriptor = -1;
}

char *run_owner(const char *run) {
    char line[OWNER_SIZE] = "", *path = format_text("%s/lock", run);
    int descriptor = open(path, O_RDONLY | O_CLOEXEC);
    free(path);
    if (descriptor < 0) return NULL;
    read_owner(descriptor, line, sizeof(line));
    close(descriptor);
    return xstrdup(line);
}
