// Failing file systems, for test/torture.py: preloaded into the trainer, this library counts the libc calls that
// access files below one folder, and makes the n-th of them fail. Calls of all threads count, in the order in which
// they are made.
//
//     IO_FAULTS_UNDER=FOLDER   absolute; other files are not affected
//     IO_FAULTS_RANK=R         only in this process of those started by mpirun; if unset, in all of them
//     IO_FAULTS_MODE=          count: all calls succeed
//                              fail: they return an error, IO_FAULTS_ERRNO=EIO, ENOSPC, EROFS or ESTALE
//                              short: reads and writes transfer half of the requested bytes
//                              kill: the process kills itself before the call
//                              term: the process gets a SIGTERM before the call
//                              hang: the call takes IO_FAULTS_SECONDS longer
//     IO_FAULTS_AT=N           the first affected call, counted from 1
//     IO_FAULTS_COUNT=K        number of consecutive affected calls, default 1; or: all
//     IO_FAULTS_LOG=FILE       gets a line `number call what path` for every affected call (count: for every call)
//
// `what` defines the errors that a call can have: space (it may need disk space: all of them), change (it writes: all
// but ENOSPC), look (neither ENOSPC nor EROFS). A call is not affected by errors that it cannot have.
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

typedef enum { LOOK, CHANGE, SPACE } What;
typedef enum { GO_ON, FAIL, SHORT } Fate;
enum { MAX_DESCRIPTORS = 1024 };

static struct {
    const char *under, *mode;
    char folder[PATH_MAX]; // the folder of relative paths
    long at, count;        // `count` < 0: all
    int error, log;        // `log`: a descriptor, or -1
    double seconds;
} faults;
static atomic_long calls;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static char *paths[MAX_DESCRIPTORS]; // of the descriptors of watched files

// ---- settings ---------------------------------------------------------------------------------------------

static int errno_of(const char *name) {
    static const struct {
        const char *name;
        int number;
    } known[] = {{"EIO", EIO}, {"ENOSPC", ENOSPC}, {"EROFS", EROFS}, {"ESTALE", ESTALE}};
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
        if (strcmp(name, known[i].name) == 0) return known[i].number;
    abort();
}

static const char *setting(const char *name, const char *fallback) {
    const char *value = getenv(name);
    return value != NULL ? value : fallback;
}

static int is_other_rank(void) {
    const char *wanted = getenv("IO_FAULTS_RANK");
    const char *rank = setting("OMPI_COMM_WORLD_RANK", setting("PMI_RANK", "0"));
    return wanted != NULL && strcmp(wanted, rank) != 0;
}

static void start(void) {
    const char *count = setting("IO_FAULTS_COUNT", "1"), *log = getenv("IO_FAULTS_LOG");
    if (is_other_rank()) return;
    faults.mode = setting("IO_FAULTS_MODE", "count");
    faults.at = atol(setting("IO_FAULTS_AT", "0"));
    faults.count = strcmp(count, "all") == 0 ? -1 : atol(count);
    faults.error = errno_of(setting("IO_FAULTS_ERRNO", "EIO"));
    faults.seconds = atof(setting("IO_FAULTS_SECONDS", "0"));
    faults.log = -1;
    if (log != NULL)
        faults.log = (int)syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (getcwd(faults.folder, sizeof(faults.folder)) == NULL) abort();
    faults.under = getenv("IO_FAULTS_UNDER");
}

// ---- which calls are affected -----------------------------------------------------------------------------

// Finds the path below the watched folder that `path` (relative to a descriptor's folder, AT_FDCWD: to the program's)
// refers to. Returns 0 if it is elsewhere.
static int watched_path(char *full, int folder, const char *path) {
    pthread_once(&once, start);
    if (faults.under == NULL || path == NULL) return 0;
    const char *base = faults.folder;
    pthread_mutex_lock(&mutex);
    if (folder >= 0 && folder < MAX_DESCRIPTORS && paths[folder] != NULL) base = paths[folder];
    if (path[0] == '/')
        snprintf(full, PATH_MAX, "%s", path);
    else
        snprintf(full, PATH_MAX, "%.2000s/%.2000s", base, path);
    pthread_mutex_unlock(&mutex);
    size_t length = strlen(faults.under);
    return strncmp(full, faults.under, length) == 0 && (full[length] == '/' || full[length] == '\0');
}

// Like watched_path, for an open descriptor.
static int watched_descriptor(char *full, int descriptor) {
    if (descriptor < 0 || descriptor >= MAX_DESCRIPTORS) return 0;
    pthread_mutex_lock(&mutex);
    int is_watched = paths[descriptor] != NULL;
    if (is_watched) snprintf(full, PATH_MAX, "%s", paths[descriptor]);
    pthread_mutex_unlock(&mutex);
    return is_watched;
}

// Remembers the path of a descriptor; NULL: forgets it.
static void remember_path(int descriptor, const char *path) {
    if (descriptor < 0 || descriptor >= MAX_DESCRIPTORS) return;
    pthread_mutex_lock(&mutex);
    free(paths[descriptor]);
    paths[descriptor] = path != NULL ? strdup(path) : NULL;
    pthread_mutex_unlock(&mutex);
}

static void record(long number, const char *call, What what, const char *path) {
    static const char *const names[] = {"look", "change", "space"};
    char line[PATH_MAX + 100];
    int length = snprintf(line, sizeof(line), "%ld %s %s %s\n", number, call, names[what], path);
    if (faults.log >= 0) syscall(SYS_write, faults.log, line, (size_t)length);
}

static int can_fail(What what) {
    return faults.error == ENOSPC ? what == SPACE : faults.error == EROFS ? what != LOOK : 1;
}

static void hang(void) {
    struct timespec time = {(time_t)faults.seconds, (long)(1e9 * (faults.seconds - (long)faults.seconds))};
    nanosleep(&time, NULL);
}

// Determines what happens to a call for a watched file; with FAIL, errno is set.
static Fate decide_fate(const char *call, What what, const char *path) {
    long number = atomic_fetch_add(&calls, 1) + 1;
    int only_counts = strcmp(faults.mode, "count") == 0, fails = strcmp(faults.mode, "fail") == 0;
    int is_hit = number >= faults.at && (faults.count < 0 || number - faults.at < faults.count);
    if (!only_counts && (!is_hit || (fails && !can_fail(what)))) return GO_ON;
    record(number, call, what, path);
    if (strcmp(faults.mode, "kill") == 0) kill(getpid(), SIGKILL);
    if (strcmp(faults.mode, "term") == 0) kill(getpid(), SIGTERM);
    if (strcmp(faults.mode, "hang") == 0) hang();
    if (fails) errno = faults.error;
    return fails ? FAIL : strcmp(faults.mode, "short") == 0 ? SHORT : GO_ON;
}

// ---- the calls --------------------------------------------------------------------------------------------

// NEXT(open) is libc's own function.
#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

// Calls with a path, and calls with a descriptor, that either fail or succeed.
#define PATH_CALL(type, failed, name, what, folder, path, parameters, arguments)                             \
    type name parameters {                                                                                   \
        char full[PATH_MAX];                                                                                 \
        if (watched_path(full, folder, path) && decide_fate(#name, what, full) == FAIL) return failed;       \
        return NEXT(name) arguments;                                                                         \
    }
#define DESCRIPTOR_CALL(type, failed, name, what, descriptor, parameters, arguments)                         \
    type name parameters {                                                                                   \
        char full[PATH_MAX];                                                                                 \
        if (watched_descriptor(full, descriptor) && decide_fate(#name, what, full) == FAIL) return failed;   \
        return NEXT(name) arguments;                                                                         \
    }

PATH_CALL(int, -1, mkdir, SPACE, AT_FDCWD, path, (const char *path, mode_t mode), (path, mode))
PATH_CALL(int, -1, mkdirat, SPACE, folder, path, (int folder, const char *path, mode_t mode),
          (folder, path, mode))
PATH_CALL(int, -1, unlink, CHANGE, AT_FDCWD, path, (const char *path), (path))
PATH_CALL(int, -1, unlinkat, CHANGE, folder, path, (int folder, const char *path, int flags),
          (folder, path, flags))
PATH_CALL(int, -1, remove, CHANGE, AT_FDCWD, path, (const char *path), (path))
PATH_CALL(int, -1, rmdir, CHANGE, AT_FDCWD, path, (const char *path), (path))
PATH_CALL(int, -1, truncate, CHANGE, AT_FDCWD, path, (const char *path, off_t size), (path, size))
PATH_CALL(int, -1, rename, SPACE, AT_FDCWD, to, (const char *from, const char *to), (from, to))
PATH_CALL(int, -1, renameat, SPACE, to_folder, to,
          (int from_folder, const char *from, int to_folder, const char *to),
          (from_folder, from, to_folder, to))
PATH_CALL(int, -1, renameat2, SPACE, to_folder, to,
          (int from_folder, const char *from, int to_folder, const char *to, unsigned flags),
          (from_folder, from, to_folder, to, flags))
PATH_CALL(int, -1, stat, LOOK, AT_FDCWD, path, (const char *path, struct stat *status), (path, status))
PATH_CALL(int, -1, lstat, LOOK, AT_FDCWD, path, (const char *path, struct stat *status), (path, status))
PATH_CALL(int, -1, fstatat, LOOK, folder, path,
          (int folder, const char *path, struct stat *status, int flags), (folder, path, status, flags))
PATH_CALL(int, -1, access, LOOK, AT_FDCWD, path, (const char *path, int mode), (path, mode))

DESCRIPTOR_CALL(int, -1, fstat, LOOK, descriptor, (int descriptor, struct stat *status), (descriptor, status))
DESCRIPTOR_CALL(int, -1, fsync, SPACE, descriptor, (int descriptor), (descriptor))
DESCRIPTOR_CALL(int, -1, fdatasync, SPACE, descriptor, (int descriptor), (descriptor))
DESCRIPTOR_CALL(int, -1, syncfs, SPACE, descriptor, (int descriptor), (descriptor))
DESCRIPTOR_CALL(int, -1, ftruncate, CHANGE, descriptor, (int descriptor, off_t size), (descriptor, size))
DESCRIPTOR_CALL(int, errno, posix_fallocate, SPACE, descriptor, (int descriptor, off_t offset, off_t size),
                (descriptor, offset, size))
DESCRIPTOR_CALL(int, -1, fallocate, SPACE, descriptor, (int descriptor, int mode, off_t offset, off_t size),
                (descriptor, mode, offset, size))
DESCRIPTOR_CALL(off_t, -1, lseek, LOOK, descriptor, (int descriptor, off_t offset, int from),
                (descriptor, offset, from))
DESCRIPTOR_CALL(int, -1, flock, LOOK, descriptor, (int descriptor, int operation), (descriptor, operation))
DESCRIPTOR_CALL(void *, MAP_FAILED, mmap, LOOK, descriptor,
                (void *address, size_t size, int protection, int flags, int descriptor, off_t offset),
                (address, size, protection, flags, descriptor, offset))

// Reads and writes, which may also transfer half of the bytes.
#define MOVING_CALL(name, what, size, parameters, arguments)                                                 \
    ssize_t name parameters {                                                                                \
        char full[PATH_MAX];                                                                                 \
        Fate fate = watched_descriptor(full, descriptor) ? decide_fate(#name, what, full) : GO_ON;           \
        if (fate == FAIL) return -1;                                                                         \
        if (fate == SHORT && size > 1) size /= 2;                                                            \
        return NEXT(name) arguments;                                                                         \
    }
MOVING_CALL(read, LOOK, size, (int descriptor, void *data, size_t size), (descriptor, data, size))
MOVING_CALL(write, SPACE, size, (int descriptor, const void *data, size_t size), (descriptor, data, size))
MOVING_CALL(pread, LOOK, size, (int descriptor, void *data, size_t size, off_t offset),
            (descriptor, data, size, offset))
MOVING_CALL(pwrite, SPACE, size, (int descriptor, const void *data, size_t size, off_t offset),
            (descriptor, data, size, offset))

// Calls that open a file; the new descriptor's path is remembered.
static What what_open(int flags) {
    return flags & O_CREAT ? SPACE : (flags & O_ACCMODE) != O_RDONLY ? CHANGE : LOOK;
}

int openat(int folder, const char *path, int flags, ...) {
    char full[PATH_MAX];
    va_list arguments;
    va_start(arguments, flags);
    mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(arguments, mode_t) : 0;
    va_end(arguments);
    int is_watched = watched_path(full, folder, path);
    if (is_watched && decide_fate("open", what_open(flags), full) == FAIL) return -1;
    int descriptor = NEXT(openat)(folder, path, flags, mode);
    if (is_watched) remember_path(descriptor, full);
    return descriptor;
}

int open(const char *path, int flags, ...) {
    va_list arguments;
    va_start(arguments, flags);
    mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(arguments, mode_t) : 0;
    va_end(arguments);
    return openat(AT_FDCWD, path, flags, mode);
}

int creat(const char *path, mode_t mode) {
    return openat(AT_FDCWD, path, O_WRONLY | O_CREAT | O_TRUNC, mode);
}

DIR *opendir(const char *path) {
    char full[PATH_MAX];
    int is_watched = watched_path(full, AT_FDCWD, path);
    if (is_watched && decide_fate("opendir", LOOK, full) == FAIL) return NULL;
    DIR *folder = NEXT(opendir)(path);
    if (is_watched && folder != NULL) remember_path(dirfd(folder), full);
    return folder;
}

struct dirent *readdir(DIR *folder) {
    char full[PATH_MAX];
    if (watched_descriptor(full, dirfd(folder)) && decide_fate("readdir", LOOK, full) == FAIL) return NULL;
    return NEXT(readdir)(folder);
}

FILE *fopen(const char *path, const char *mode) {
    char full[PATH_MAX];
    int is_watched = watched_path(full, AT_FDCWD, path);
    What what = mode[0] == 'r' && strchr(mode, '+') == NULL ? LOOK : SPACE;
    if (is_watched && decide_fate("fopen", what, full) == FAIL) return NULL;
    FILE *stream = NEXT(fopen)(path, mode);
    if (is_watched && stream != NULL) remember_path(fileno(stream), full);
    return stream;
}

// What fflush would have written remains in the stream, as after a failed write.
int fflush(FILE *stream) {
    char full[PATH_MAX];
    if (stream != NULL && watched_descriptor(full, fileno(stream)) &&
        decide_fate("fflush", SPACE, full) == FAIL)
        return EOF;
    return NEXT(fflush)(stream);
}

// The descriptor is closed, whatever close returns.
int close(int descriptor) {
    char full[PATH_MAX];
    int fails = watched_descriptor(full, descriptor) && decide_fate("close", CHANGE, full) == FAIL;
    remember_path(descriptor, NULL);
    int result = NEXT(close)(descriptor);
    if (fails) errno = faults.error;
    return fails ? -1 : result;
}

int closedir(DIR *folder) {
    remember_path(dirfd(folder), NULL);
    return NEXT(closedir)(folder);
}

int fclose(FILE *stream) {
    char full[PATH_MAX];
    int descriptor = fileno(stream);
    int fails = watched_descriptor(full, descriptor) && decide_fate("fclose", CHANGE, full) == FAIL;
    remember_path(descriptor, NULL);
    int result = NEXT(fclose)(stream);
    if (fails) errno = faults.error;
    return fails ? EOF : result;
}

// The same functions under their names for large files.
int open64(const char *path, int flags, ...) __attribute__((alias("open")));
int openat64(int folder, const char *path, int flags, ...) __attribute__((alias("openat")));
FILE *fopen64(const char *path, const char *mode) __attribute__((alias("fopen")));
struct dirent64 *readdir64(DIR *folder) __attribute__((alias("readdir")));
