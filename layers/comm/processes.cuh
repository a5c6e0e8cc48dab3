// The processes that train together: how this process joins them, how they agree on errors, and how they exit with one
// error message.
#ifndef LAYERS_COMM_PROCESSES_CUH
#define LAYERS_COMM_PROCESSES_CUH

#include <omp.h>
#include <sched.h>
#include <unistd.h>
#include "layers/base/files.h"
#include "comm.h"
#include "layers/launch/watchdog.h"

enum { MAX_THREADS = 4096 };

typedef struct {
    Launch launch;
    Comm *comm;
    Watchdog *watchdog;
    int speaker; // rank of the process that prints the error with which all exit
    // Called with its context before this process exits with an error of all; NULL: there is nothing to release.
    void (*release)(void *context);
    void *release_context;
} Processes;

typedef struct {
    int alone;                // 1: one process does all the work, and others that a launcher started exit
    int64_t count;            // number of processes to start here; 0: those that a launcher started, or one
    int deterministic_reduce; // as for comm_open
    double deadline;          // seconds; 0: none
} ProcessOptions;

static inline int is_main(const Processes *p) {
    return p->launch.rank == 0;
}

// ---- agreement --------------------------------------------------------------------------------------------

// Returns the error as all processes report it: with the rank of the process that has it, unless that is 0.
static inline Error name_process(int rank, const Error *error) {
    Error named = *error;
    if (rank > 0) fail(&named, "process %d: %s", rank, error->text);
    named.status = error->status;
    return named;
}

// Returns the value of process 0 in every process.
static inline int64_t broadcast_from_main(const Processes *p, int64_t mine) {
    int64_t *all = (int64_t *)xcalloc((size_t)p->launch.size, sizeof(int64_t));
    comm_exchange(p->comm, &mine, sizeof(mine), all);
    const int64_t value = all[0];
    free(all);
    return value;
}

// Returns 0 if no process failed, else -1 in every process. The first process that failed becomes the speaker, and
// `error` gets its exit status.
static inline int agree(Processes *p, int result, Error *error) {
    int mine = result != 0 ? error->status : 0, first = 0;
    int *all = (int *)xcalloc((size_t)p->launch.size, sizeof(int));
    comm_exchange(p->comm, &mine, sizeof(int), all);
    while (first < p->launch.size && all[first] == 0) first++;
    const int failed = first < p->launch.size;
    if (failed) {
        p->speaker = first;
        error->status = all[first];
    }
    free(all);
    return failed ? -1 : 0;
}

// Exits with the error's status, as all processes do; the speaker prints the error. The others wait until it has,
// because a launcher ends all processes when one has ended.
static inline void exit_together(Processes *p, const Error *error) {
    watchdog_stop(p->watchdog);
    if (p->release != NULL) p->release(p->release_context);
    if (p->speaker != p->launch.rank) {
        sleep(2);
        exit(error->status);
    }
    const Error named = name_process(p->speaker, error);
    die_of(&named);
}

// Exits, as all processes do, if any of them failed.
static inline void agree_or_die(Processes *p, int result, Error *error) {
    if (agree(p, result, error) != 0) exit_together(p, error);
}

// Exits with an error that every process has; process 0 prints it.
static inline void die_once(const Processes *p, const Error *error) {
    if (p->launch.rank == 0) die_of(error);
    watchdog_stop(p->watchdog);
    sleep(3); // meanwhile process 0 prints the same, and its launcher ends this process
    die("process %d: %s", p->launch.rank, error->text);
}

// ---- joining ----------------------------------------------------------------------------------------------

// Becomes one of the processes that `launch`, which has been read, and the options describe. Next, the caller adapts
// its settings to the number of processes, and then calls processes_join.
static inline void processes_start(Processes *p, const ProcessOptions *o, int argc, char **argv) {
    Error error;
    if (o->alone) {
        if (p->launch.rank > 0) exit(EXIT_SUCCESS);
        p->launch.size = p->launch.local_size = 1;
    } else if (comm_start(&p->launch, (int)o->count, argc, argv, &error) != 0) {
        die_once(p, &error);
    }
}

// Connects to the other processes, and starts the watchdog.
static inline void processes_join(Processes *p, const ProcessOptions *o) {
    Error error;
    p->comm = comm_open(&p->launch, o->deterministic_reduce, o->deadline > 0 ? o->deadline : 1e9, &error);
    if (p->comm == NULL) die_of(&error);
    const Watched watched = {p->comm, comm_progress, comm_abort};
    p->watchdog = watchdog_start(comm_control(p->comm), &watched, o->deadline);
}

// ---- threads ----------------------------------------------------------------------------------------------

// The cores that a process may use, and a number that identifies its host.
typedef struct {
    uint64_t host;
    cpu_set_t cores;
} HostCores;

// Sets the number of threads: `threads` or, if that is 0, this process's share of the cores that it has in common with
// others.
static inline void processes_set_threads(const Processes *p, int threads) {
    HostCores mine = {0, {{0}}}, *all = (HostCores *)xcalloc((size_t)p->launch.size, sizeof(HostCores));
    int sharing = 0;
    char name[256] = "";
    gethostname(name, sizeof(name) - 1);
    mine.host = crc32c(0, name, strlen(name));
    sched_getaffinity(0, sizeof(mine.cores), &mine.cores);
    comm_exchange(p->comm, &mine, sizeof(mine), all);
    for (int r = 0; r < p->launch.size; r++) {
        cpu_set_t common;
        CPU_AND(&common, &mine.cores, &all[r].cores);
        sharing += all[r].host == mine.host && CPU_COUNT(&common) > 0;
    }
    if (threads == 0 && sharing > 1) threads = CPU_COUNT(&mine.cores) / sharing;
    if (threads == 0 && omp_get_max_threads() > MAX_THREADS)
        die("OMP_NUM_THREADS asks for %d threads, but at most %d are possible", omp_get_max_threads(),
            MAX_THREADS);
    if (threads > 0 || sharing > 1) omp_set_num_threads(threads > 0 ? threads : 1);
    free(all);
#pragma omp parallel
    {} // starts the threads, so that their stacks count as used memory from now on
}

#endif
