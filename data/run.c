// See run.h.
#define _GNU_SOURCE
#include "run.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include "checkpoint.h"
#include "progress.h"
#include "threads.h"

enum { OWNER_SIZE = 200 };

// A line that no other process has: host, process, now.
static void describe_self(char *line, size_t size) {
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

// "process 123 on host a"
static char *name_owner(const char *line) {
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

// Is the lock of another host's process still touched? Kernels of other hosts may not know of this one's locks. Waits for
// as long as a process that lives may let pass, unless nothing has come for longer already, by this host's clock.
static int is_still_touched(const RunLock *lock, const char *owner) {
    const double until = seconds_now() + 2.5 * LOCK_TOUCH_SECONDS;
    const struct timespec before = time_touched(lock->descriptor);
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (now.tv_sec - before.tv_sec > 100 * LOCK_TOUCH_SECONDS) return 0;
    fprintf(stderr, "waiting to see whether %s still uses the run\n", owner);
    while (seconds_now() < until) {
        usleep(200000);
        const struct timespec after = time_touched(lock->descriptor);
        if (after.tv_sec != before.tv_sec || after.tv_nsec != before.tv_nsec) return 1;
    }
    return 0;
}

// The thread that touches the lock, whatever else the trainer and the disk are busy with.
static void *touch(void *argument) {
    RunLock *lock = (RunLock *)argument;
    pthread_mutex_lock(&lock->mutex);
    while (!lock->ends) {
        const struct timespec next = thread_deadline(LOCK_TOUCH_SECONDS);
        while (!lock->ends && pthread_cond_timedwait(&lock->changed, &lock->mutex, &next) != ETIMEDOUT)
            continue;
        if (!lock->ends)
            futimens(lock->descriptor, NULL); // where that fails, the kernel's lock is what there is
    }
    pthread_mutex_unlock(&lock->mutex);
    return NULL;
}

static int start_touching(RunLock *lock, Error *error) {
    lock->ends = 0;
    pthread_mutex_init(&lock->mutex, NULL);
    thread_condition(&lock->changed);
    if (thread_start(&lock->thread, touch, lock) == 0) return 0;
    return fail(error, "cannot start the thread that keeps '%s'", lock->path);
}

static int take_lock(RunLock *lock, const char *run, Error *error) {
    char line[OWNER_SIZE];
    lock->path = format_text("%s/lock", run);
    lock->descriptor = open(lock->path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (lock->descriptor < 0) return fail_io(error, "cannot write '%s'", lock->path);
    const int locked = flock(lock->descriptor, LOCK_EX | LOCK_NB) == 0, reason = locked ? 0 : errno;
    read_owner(lock->descriptor, line, sizeof(line));
    char *owner = name_owner(line);
    int result = 0;
    if (!locked && reason == EWOULDBLOCK)
        result = fail(error, "another trainer is using '%s': %s", run, owner);
    else if (line[0] != '\0' && !is_of_this_host(line) && is_still_touched(lock, owner))
        result = fail(error, "another trainer is using '%s': %s, as '%s' shows", run, owner, lock->path);
    else if (line[0] != '\0')
        fprintf(stderr, "the lock of '%s' is stale: %s has ended without giving it back\n", run, owner);
    if (result == 0 && !locked)
        warn("'%s' cannot be locked (%s): start no second trainer on it", run, strerror(reason));
    free(owner);
    describe_self(line, sizeof(line));
    if (result == 0 &&
        (ftruncate(lock->descriptor, 0) != 0 || file_pwrite(lock->descriptor, line, strlen(line), 0) != 0 ||
         fsync(lock->descriptor) != 0)) // for other hosts to see
        result = fail_io(error, "cannot write '%s'", lock->path);
    if (result != 0) {
        close(lock->descriptor);
        lock->descriptor = -1;
        return -1;
    }
    return start_touching(lock, error);
}

static int write_options(const char *run, const Option *table, size_t count, const void *settings,
                         Error *error) {
    FileWriter file;
    char *path = format_text("%s/options.txt", run);
    int result = file_writer_open(&file, path, error);
    free(path);
    if (result != 0) return -1;
    options_write(table, count, settings, file.stream);
    return file_writer_commit(&file, error);
}

// Files that a process was writing when it was killed.
static void remove_temporary(const char *run) {
    DIR *folder = opendir(run);
    for (struct dirent *entry; folder != NULL && (entry = readdir(folder)) != NULL;) {
        const size_t length = strlen(entry->d_name);
        if (length > 4 && strcmp(entry->d_name + length - 4, ".tmp") == 0)
            unlinkat(dirfd(folder), entry->d_name, 0);
    }
    if (folder != NULL) closedir(folder);
}

// Has nobody else written checkpoints before the lock was ours?
static int check_last(const char *run, int64_t last, Error *error) {
    int64_t now;
    if (checkpoint_last(run, &now, error) != 0) return -1;
    if (now == last) return 0;
    if (last >= 0) return fail(error, "another trainer went on with '%s' meanwhile: start again", run);
    return fail(error, "'%s' has checkpoints of an earlier run: go on with --resume, or give another --run",
                run);
}

int run_open(RunLock *lock, const char *run, int64_t last, const Option *table, size_t count,
             const void *settings, Error *error) {
    lock->descriptor = -1;
    lock->path = NULL;
    if (folder_create(run, error) != 0 || take_lock(lock, run, error) != 0) return -1;
    if (check_last(run, last, error) != 0) {
        run_close(lock);
        return -1;
    }
    remove_temporary(run);
    checkpoint_remove_leftovers(run);
    return write_options(run, table, count, settings, error);
}

int run_check(const RunLock *lock, Error *error) {
    struct stat mine, there;
    if (stat(lock->path, &there) != 0)
        return fail_io(error, "the run's folder has vanished: '%s'", lock->path);
    if (fstat(lock->descriptor, &mine) != 0) return fail_io(error, "cannot look at '%s'", lock->path);
    if (mine.st_dev == there.st_dev && mine.st_ino == there.st_ino) return 0;
    return fail(error, "'%s' is not the lock of this run: another folder has come in its place", lock->path);
}

void run_close(RunLock *lock) {
    if (lock->descriptor >= 0) {
        pthread_mutex_lock(&lock->mutex);
        lock->ends = 1;
        pthread_cond_signal(&lock->changed);
        pthread_mutex_unlock(&lock->mutex);
        pthread_join(lock->thread, NULL);
        if (ftruncate(lock->descriptor, 0) != 0)
            warn("'%s' could not be emptied: it will be called stale", lock->path);
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
