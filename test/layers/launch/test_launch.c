// The rank and size of a process from every launcher's variables; and child processes: how they end, and how their
// supervisor reacts.
#define _GNU_SOURCE
#include "layers/launch/control.h"
#include "layers/launch/launch.h"
#include "test/harness/test.h"

#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

// ---- variables --------------------------------------------------------------------------------------------

static Launch launch;
static Error error;

// Reads the launch from exactly these variables ("NAME=value", up to NULL).
static int read_from(const char *const *variables) {
    clearenv();
    for (; *variables != NULL; variables++) putenv((char *)*variables);
    error.text[0] = '\0';
    return launch_read(&launch, &error);
}
#define READ(...) read_from((const char *const[]){__VA_ARGS__, NULL})
#define ACCEPT(is, ...)                                                                                      \
    EXPECT(READ(__VA_ARGS__) == 0 && (is),                                                                   \
           "%s: '%s': launcher %d, rank %d of %d, local %d of %d, %s port %d",                               \
           ((const char *const[]){__VA_ARGS__})[0], error.text, launch.launcher, launch.rank, launch.size,   \
           launch.local_rank, launch.local_size, launch.master, launch.port)
#define REFUSE(wanted, ...)                                                                                  \
    EXPECT(READ(__VA_ARGS__) == -1 && strstr(error.text, wanted) != NULL, "'%s', not '%s'", error.text,      \
           wanted)

static int is(Launcher launcher, int rank, int size, int local_rank, int local_size) {
    return launch.launcher == launcher && launch.rank == rank && launch.size == size &&
           launch.local_rank == local_rank && launch.local_size == local_size && launch.listening == -1;
}
static int master_is(const char *host, int port) {
    return strcmp(launch.master, host) == 0 && launch.port == port;
}
static int alone(void) {
    return is(LAUNCHED_ALONE, 0, 1, 0, 1);
}

static void test_alone(void) {
    ACCEPT(alone(), "HOME=/");
    ACCEPT(alone(), "RANK=", "WORLD_SIZE=", "OMPI_COMM_WORLD_SIZE=", "PMI_RANK=");
    ACCEPT(alone(), "MASTER_ADDR=host", "MASTER_PORT=29500");
    ACCEPT(alone(), "RANK=0", "WORLD_SIZE=1");
    ACCEPT(alone(), "OMPI_COMM_WORLD_RANK=0", "OMPI_COMM_WORLD_SIZE=1", "OMPI_COMM_WORLD_LOCAL_RANK=0");
    ACCEPT(alone(), "PMI_RANK=0", "PMI_SIZE=1");
    ACCEPT(alone(), "SLURM_PROCID=0", "SLURM_NTASKS=8", "SLURM_LOCALID=0", "SLURM_JOB_ID=5",
           "SLURM_NODEID=0"); // in an sbatch script
    ACCEPT(alone(), "SLURM_PROCID=0", "SLURM_STEP_NUM_TASKS=1", "SLURM_STEP_ID=0", "SLURM_NTASKS=8");
    REFUSE("LOCAL_RANK=1 is set but RANK and WORLD_SIZE are not", "LOCAL_RANK=1");
}

#define MASTER "MASTER_ADDR=10.0.0.3", "MASTER_PORT=29500"

static void test_torchrun(void) {
    ACCEPT(is(LAUNCHED_BY_TORCHRUN, 5, 8, 1, 4) && master_is("10.0.0.3", 29501), "RANK=5", "WORLD_SIZE=8",
           "LOCAL_RANK=1", "LOCAL_WORLD_SIZE=4", MASTER);
    uint64_t run = launch.run;
    ACCEPT(launch.run == run, "RANK=0", "WORLD_SIZE=8", "LOCAL_RANK=0", "LOCAL_WORLD_SIZE=4", MASTER);
    ACCEPT(launch.run != run, "RANK=0", "WORLD_SIZE=8", "LOCAL_RANK=0", "TORCHELASTIC_RUN_ID=a", MASTER);
    ACCEPT(launch.run != run, "RANK=0", "WORLD_SIZE=8", "LOCAL_RANK=0", "MASTER_ADDR=10.0.0.3",
           "MASTER_PORT=29501");
    ACCEPT(is(LAUNCHED_BY_TORCHRUN, 5, 8, 1, 2), "RANK=5", "WORLD_SIZE=8", "LOCAL_RANK=1", MASTER);
    ACCEPT(is(LAUNCHED_BY_TORCHRUN, 1, 2, 1, 2) && master_is("localhost", 65519), "RANK=1", "WORLD_SIZE=2",
           "MASTER_ADDR=localhost", "MASTER_PORT=65535");
    ACCEPT(launch.port == 65520 - CONTROL_PORTS, "RANK=1", "WORLD_SIZE=2", "MASTER_ADDR=localhost",
           "MASTER_PORT=65520");
    ACCEPT(launch.port == 65535 - CONTROL_PORTS + 1, "RANK=1", "WORLD_SIZE=2", "MASTER_ADDR=localhost",
           "MASTER_PORT=65519");
    ACCEPT(is(LAUNCHED_BY_TORCHRUN, 1, 2, 0, 2), "RANK=1", "WORLD_SIZE=2", "LOCAL_RANK=0",
           "MASTER_ADDR=127.0.0.1", "MASTER_PORT=1");
    char host[64] = "", variable[128];
    gethostname(host, sizeof(host) - 1);
    snprintf(variable, sizeof(variable), "MASTER_ADDR=%s", host);
    ACCEPT(is(LAUNCHED_BY_TORCHRUN, 1, 2, 1, 2), "RANK=1", "WORLD_SIZE=2", "MASTER_PORT=1", variable);
    REFUSE("RANK=1 is set but WORLD_SIZE is not: torchrun sets", "RANK=1", "LOCAL_RANK=1", MASTER);
    REFUSE("WORLD_SIZE=4 is set but RANK is not", "WORLD_SIZE=4", MASTER);
    REFUSE("RANK=1 and WORLD_SIZE=2 are set but MASTER_ADDR and MASTER_PORT are not", "RANK=1",
           "WORLD_SIZE=2");
    REFUSE("and MASTER_ADDR=h are set but MASTER_PORT is not", "RANK=1", "WORLD_SIZE=2", "MASTER_ADDR=h");
    REFUSE("LOCAL_RANK is not set", "RANK=1", "WORLD_SIZE=2", MASTER);
    REFUSE("LOCAL_RANK is not set", "RANK=1", "WORLD_SIZE=2", "LOCAL_WORLD_SIZE=2", MASTER);
    REFUSE("RANK=2 and WORLD_SIZE=2 contradict", "RANK=2", "WORLD_SIZE=2", "LOCAL_RANK=0", MASTER);
    REFUSE("RANK=-1: expected a whole number", "RANK=-1", "WORLD_SIZE=2", "LOCAL_RANK=0", MASTER);
    REFUSE("RANK=0x: expected a whole number", "RANK=0x", "WORLD_SIZE=2", "LOCAL_RANK=0", MASTER);
    REFUSE("WORLD_SIZE=0: expected a whole number", "RANK=0", "WORLD_SIZE=0");
    REFUSE("WORLD_SIZE=99999999999999999999", "RANK=0", "WORLD_SIZE=99999999999999999999");
    REFUSE("MASTER_PORT=65536", "RANK=0", "WORLD_SIZE=2", "LOCAL_RANK=0", "MASTER_ADDR=h",
           "MASTER_PORT=65536");
    REFUSE("LOCAL_RANK=2, LOCAL_WORLD_SIZE=2", "RANK=2", "WORLD_SIZE=4", "LOCAL_RANK=2", "LOCAL_WORLD_SIZE=2",
           MASTER);
    REFUSE("LOCAL_RANK=0, LOCAL_WORLD_SIZE=8", "RANK=2", "WORLD_SIZE=4", "LOCAL_RANK=0", "LOCAL_WORLD_SIZE=8",
           MASTER);
}

#define OPEN_MPI(rank, size, local)                                                                          \
    "OMPI_COMM_WORLD_RANK=" #rank, "OMPI_COMM_WORLD_SIZE=" #size, "OMPI_COMM_WORLD_LOCAL_RANK=" #rank,       \
        "OMPI_COMM_WORLD_LOCAL_SIZE=" #local

static void test_mpirun(void) {
    ACCEPT(is(LAUNCHED_BY_MPIRUN, 1, 4, 1, 4) && strcmp(launch.master, "127.0.0.1") == 0, OPEN_MPI(1, 4, 4),
           "PMIX_NAMESPACE=77");
    Launch first = launch;
    EXPECT(first.port >= 20000 && first.port + CONTROL_PORTS < 32768, "port %d", first.port);
    ACCEPT(launch.port == first.port && launch.run == first.run, OPEN_MPI(3, 4, 4), "PMIX_NAMESPACE=77");
    ACCEPT(launch.port != first.port && launch.run != first.run, OPEN_MPI(3, 4, 4), "PMIX_NAMESPACE=78");
    ACCEPT(launch.launcher == LAUNCHED_BY_MPIRUN && launch.master[0] == '\0', OPEN_MPI(1, 4, 2));
    ACCEPT(master_is("10.0.0.3", 29501), OPEN_MPI(1, 4, 2), MASTER);
    ACCEPT(is(LAUNCHED_BY_MPIRUN, 2, 3, 0, 1), "PMI_RANK=2", "PMI_SIZE=3", "MPI_LOCALRANKID=0",
           "MPI_LOCALNRANKS=1");
    REFUSE("OMPI_COMM_WORLD_RANK=1 is set but OMPI_COMM_WORLD_SIZE is not: mpirun", "OMPI_COMM_WORLD_RANK=1");
    REFUSE("PMI_SIZE=3 is set but PMI_RANK is not", "PMI_SIZE=3");
    REFUSE("PMI_RANK=2 and PMI_SIZE=3 are set but MPI_LOCALRANKID and MPI_LOCALNRANKS are not", "PMI_RANK=2",
           "PMI_SIZE=3");
    REFUSE("OMPI_COMM_WORLD_LOCAL_RANK=1, OMPI_COMM_WORLD_LOCAL_SIZE=1", OPEN_MPI(1, 4, 1));
    // With variables of two launchers, the first in the header's order counts, as long as they do not contradict each
    // other.
    ACCEPT(is(LAUNCHED_BY_TORCHRUN, 1, 4, 1, 4), OPEN_MPI(0, 1, 1), "RANK=1", "WORLD_SIZE=4",
           "MASTER_ADDR=localhost", "MASTER_PORT=29500");
    ACCEPT(is(LAUNCHED_BY_TORCHRUN, 1, 2, 1, 2), OPEN_MPI(1, 2, 2), "RANK=1", "WORLD_SIZE=2",
           "MASTER_ADDR=localhost", "MASTER_PORT=29500");
    ACCEPT(is(LAUNCHED_BY_TORCHRUN, 1, 4, 1, 2), OPEN_MPI(0, 2, 1), "RANK=1", "WORLD_SIZE=4", "LOCAL_RANK=1",
           "LOCAL_WORLD_SIZE=2", "TORCHELASTIC_RUN_ID=x", MASTER);
    REFUSE("WORLD_SIZE=4 and OMPI_COMM_WORLD_SIZE=2 contradict", OPEN_MPI(1, 2, 2), "RANK=1", "WORLD_SIZE=4",
           "LOCAL_RANK=1", MASTER);
    REFUSE("WORLD_SIZE=1 and OMPI_COMM_WORLD_SIZE=2 contradict", OPEN_MPI(1, 2, 2), "RANK=0", "WORLD_SIZE=1");
}

#define STEP(rank, size, local, node, tasks, nodes)                                                          \
    "SLURM_PROCID=" #rank, "SLURM_STEP_NUM_TASKS=" #size, "SLURM_LOCALID=" #local, "SLURM_NODEID=" #node,    \
        "SLURM_STEP_TASKS_PER_NODE=" tasks, "SLURM_STEP_NODELIST=" nodes, "SLURM_STEP_ID=0"

static void test_srun(void) {
    static const char *const lists[][2] = {
        {"node[003-007,12],other", "node003"},
        {"a,b", "a"},
        {"rack[1-2]n[01-04]", "rack1n01"},
        {"gpu-7", "gpu-7"},
        {"n[5,9-10]x", "n5x"},
        {"n[1-2],m[3-4]", "n1"},
        {"n[1-2", "n1"},
    };
    for (size_t i = 0; i < sizeof(lists) / sizeof(lists[0]); i++) {
        char variable[128];
        snprintf(variable, sizeof(variable), "SLURM_STEP_NODELIST=%s", lists[i][0]);
        ACCEPT(strcmp(launch.master, lists[i][1]) == 0, STEP(1, 4, 1, 0, "4", ""), "SLURM_JOB_ID=7",
               variable);
    }
    ACCEPT(is(LAUNCHED_BY_SRUN, 10, 11, 2, 3), STEP(10, 11, 2, 2, "4(x2),3", "n[1-3]"), "SLURM_JOB_ID=7");
    Launch first = launch;
    ACCEPT(is(LAUNCHED_BY_SRUN, 4, 11, 0, 4) && launch.run == first.run && launch.port == first.port,
           STEP(4, 11, 0, 1, "4(x2),3", "n[1-3]"), "SLURM_JOB_ID=7");
    ACCEPT(launch.run != first.run && launch.port != first.port, STEP(4, 11, 0, 1, "4(x2),3", "n[1-3]"),
           "SLURM_JOB_ID=8");
    ACCEPT(is(LAUNCHED_BY_SRUN, 1, 4, 1, 2), STEP(1, 4, 1, 0, "", "a,b"), "SLURM_TASKS_PER_NODE=2(x2)",
           "SLURM_JOB_ID=8");
    ACCEPT(master_is("10.0.0.3", 29501), STEP(1, 4, 1, 0, "2(x2)", "a,b"), "SLURM_JOB_ID=8", MASTER);
    // srun --mpi=pmi2; and MPICH's mpirun in a step.
    ACCEPT(is(LAUNCHED_BY_SRUN, 1, 4, 1, 2), STEP(1, 4, 1, 0, "2(x2)", "a,b"), "SLURM_JOB_ID=8", "PMI_RANK=1",
           "PMI_SIZE=4");
    ACCEPT(is(LAUNCHED_BY_MPIRUN, 3, 6, 0, 3), STEP(1, 2, 0, 1, "1(x2)", "a,b"), "SLURM_JOB_ID=8",
           "PMI_RANK=3", "PMI_SIZE=6", "MPI_LOCALRANKID=0", "MPI_LOCALNRANKS=3");
    REFUSE("SLURM_JOB_ID is not", STEP(1, 4, 1, 0, "2(x2)", "a,b"));
    REFUSE("SLURM_STEP_NODELIST is not", STEP(1, 4, 1, 0, "2(x2)", ""), "SLURM_JOB_ID=8");
    REFUSE("neither SLURM_STEP_TASKS_PER_NODE nor SLURM_TASKS_PER_NODE is", STEP(1, 4, 1, 0, "", "a,b"),
           "SLURM_JOB_ID=8");
    REFUSE("SLURM_STEP_TASKS_PER_NODE=2(x2), SLURM_NODEID=2", STEP(1, 4, 1, 2, "2(x2)", "a,b"),
           "SLURM_JOB_ID=8");
    REFUSE("SLURM_STEP_TASKS_PER_NODE=nonsense", STEP(1, 4, 1, 0, "nonsense", "a,b"), "SLURM_JOB_ID=8");
    REFUSE("SLURM_PROCID=4 and SLURM_STEP_NUM_TASKS=4", STEP(4, 4, 1, 0, "2(x2)", "a,b"), "SLURM_JOB_ID=8");
}

// ---- child processes --------------------------------------------------------------------------------------

// The behaviour of a process, by rank.
typedef enum {
    EXIT_NORMALLY,
    EXIT_WITH_ERROR,
    BE_KILLED,
    FREEZE,
    EXIT_LOST,
    CONNECT,
    WAIT_FOR_SIGNAL,
    WAIT
} Behaviour;

typedef struct {
    const char *name;
    Behaviour behaviours[4];
    int status;        // of the supervisor
    const char *lines; // its output
    int signal;        // sent to the supervisor (if negative, to its process group) once all are ready
    int then;          // another signal, after the effects of the first
    pid_t supervisor;
    int output; // read end of a pipe
    // Shared with the processes.
    volatile struct { int ready, pids[4], signals[4]; } * seen;
} Processes;

static volatile sig_atomic_t signals_seen;

static void on_signal(int number) {
    (void)number;
    signals_seen++;
}

static void connect_all(Launch *own) {
    Error failure;
    char word[8] = "nothing";
    Control *control = control_open(own, own->listening, NULL, 60, &failure);
    if (control == NULL) die("%s", failure.text);
    if (own->rank == 0) strcpy(word, "hello");
    if (control_broadcast(control, word, sizeof(word), &failure) != 0 || strcmp(word, "hello") != 0)
        die("not told");
    control_close(control);
    exit(0);
}

static void run_child(Processes *f, Launch *own) {
    int rank = own->rank;
    char byte;
    signal(SIGTERM, on_signal);
    signal(SIGINT, on_signal);
    f->seen->pids[rank] = getpid();
    if (own->size != 4 || own->local_rank != rank || own->local_size != 4 ||
        own->launcher != LAUNCHED_BY_SELF || (own->listening >= 0) != (rank == 0) ||
        read(STDIN_FILENO, &byte, 1) != 0)
        _exit(77);
    __atomic_fetch_add(&f->seen->ready, 1, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&f->seen->ready, __ATOMIC_SEQ_CST) < 4) usleep(1000);
    switch (f->behaviours[rank]) {
    case EXIT_NORMALLY:
        exit(0);
    case EXIT_WITH_ERROR:
        usleep(300000);
        exit(9);
    case EXIT_LOST:
        usleep(600000);
        exit(3);
    case BE_KILLED:
        usleep(300000);
        raise(SIGKILL);
        break;
    case FREEZE:
        raise(SIGSTOP);
        break;
    case CONNECT:
        connect_all(own);
        break;
    case WAIT:
        for (;;) pause();
    case WAIT_FOR_SIGNAL: // and count how often it arrives
        while (!signals_seen) usleep(1000);
        usleep(500000);
        f->seen->signals[rank] = signals_seen;
        exit(EXIT_INTERRUPTED);
    }
    exit(0);
}

static void start(Processes *f) {
    int ends[2];
    f->seen = mmap(NULL, sizeof(*f->seen), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (pipe2(ends, O_CLOEXEC) != 0) die("no pipe");
    f->output = ends[0];
    fflush(NULL);
    f->supervisor = fork();
    if (f->supervisor != 0) {
        close(ends[1]);
        return;
    }
    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    dup2(ends[1], STDERR_FILENO);
    Launch own;
    Error failure;
    if (launch_processes(&own, 4, &failure) != 0) die("%s", failure.text);
    run_child(f, &own);
}

// Returns the state of a process as Linux names it: 'T' stopped, 'Z' zombie; 0: there is no such process.
static char state_of(pid_t pid) {
    char path[64], line[256] = "";
    snprintf(path, sizeof(path), "/proc/%d/stat", pid);
    FILE *file = fopen(path, "r");
    const char *state = file != NULL && fgets(line, sizeof(line), file) != NULL ? strrchr(line, ')') : NULL;
    if (file != NULL) fclose(file);
    return state != NULL ? state[2] : '\0';
}

// Returns 1 if a process soon reaches one of these states, or has ended if that is among them.
static int becomes(pid_t pid, const char *states) {
    for (int tries = 0; tries < 2000; tries++, usleep(10000)) {
        char state = state_of(pid);
        if (strchr(states, state == '\0' || state == 'X' ? 'Z' : state) != NULL) return 1;
    }
    return 0;
}

static void signal_when_ready(Processes *f) {
    if (f->signal == 0) return;
    while (__atomic_load_n(&f->seen->ready, __ATOMIC_SEQ_CST) < 4) usleep(1000);
    for (int rank = 0; rank < 4; rank++)
        if (f->behaviours[rank] == FREEZE)
            EXPECT(becomes(f->seen->pids[rank], "T"), "%s: process %d is not stopped", f->name, rank);
    kill(f->signal < 0 ? -f->supervisor : f->supervisor, abs(f->signal));
    if (f->then == 0) return;
    if (f->signal == SIGTSTP) { // all stop, and continue together
        EXPECT(becomes(f->supervisor, "T"), "%s: the supervisor is not stopped", f->name);
        for (int rank = 0; rank < 4; rank++)
            EXPECT(becomes(f->seen->pids[rank], "T"), "%s: process %d is not stopped", f->name, rank);
        kill(f->supervisor, SIGCONT);
    } else {
        for (int rank = 0; rank < 4; rank++)
            if (f->behaviours[rank] != FREEZE)
                EXPECT(becomes(f->seen->pids[rank], "Z"), "%s: process %d has not ended", f->name, rank);
    }
    kill(f->supervisor, f->then);
}

static void finish(Processes *f) {
    char text[4096] = "";
    size_t length = 0;
    for (ssize_t got = 1; got > 0; length += (size_t)got) { // until all writers of the pipe have ended
        got = read(f->output, text + length, sizeof(text) - 1 - length);
        if (got < 0) got = 0;
    }
    int status;
    waitpid(f->supervisor, &status, 0);
    int code = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
    EXPECT(code == f->status, "%s: status %d, not %d; %s", f->name, code, f->status, text);
    EXPECT(strcmp(text, f->lines) == 0, "%s: '%s', not '%s'", f->name, text, f->lines);
    for (int rank = 0; rank < 4; rank++) {
        EXPECT(becomes(f->seen->pids[rank], "Z"), "%s: process %d is still there", f->name, rank);
        if (f->behaviours[rank] == WAIT_FOR_SIGNAL)
            EXPECT(f->seen->signals[rank] == 1, "%s: %d signals", f->name, f->seen->signals[rank]);
    }
    close(f->output);
    munmap((void *)f->seen, sizeof(*f->seen));
}

static void test_processes(void) {
    Processes families[] = {
        {.name = "all end well",
         .behaviours = {EXIT_NORMALLY, EXIT_NORMALLY, EXIT_NORMALLY, EXIT_NORMALLY},
         .lines = ""},
        {.name = "they meet", .behaviours = {CONNECT, CONNECT, CONNECT, CONNECT}, .lines = ""},
        {.name = "one ends badly",
         .behaviours = {EXIT_LOST, EXIT_LOST, EXIT_WITH_ERROR, EXIT_NORMALLY},
         .status = 9,
         .lines = "error: process 2 exited with status 9\n"},
        {.name = "one is killed",
         .behaviours = {EXIT_LOST, BE_KILLED, EXIT_LOST, EXIT_LOST},
         .status = 137,
         .lines = "error: process 1 was killed by signal 9 (Killed)\n"},
        {.name = "one is frozen",
         .behaviours = {EXIT_NORMALLY, EXIT_WITH_ERROR, WAIT, FREEZE},
         .status = 9,
         .lines = "error: process 1 exited with status 9\n"
                  "error: process 2 did not exit within 10 s and is being killed\n"
                  "error: process 3 did not exit within 10 s and is being killed\n"},
        {.name = "one is frozen, the others notice",
         .behaviours = {EXIT_LOST, FREEZE, EXIT_LOST, EXIT_LOST},
         .status = 3,
         .lines = "error: process 1 did not exit within 10 s and is being killed\n"},
        {.name = "a signal",
         .behaviours = {WAIT_FOR_SIGNAL, WAIT_FOR_SIGNAL, WAIT_FOR_SIGNAL, WAIT_FOR_SIGNAL},
         .status = EXIT_INTERRUPTED,
         .lines = "",
         .signal = SIGINT},
        {.name = "Ctrl-C",
         .behaviours = {WAIT_FOR_SIGNAL, WAIT_FOR_SIGNAL, WAIT_FOR_SIGNAL, WAIT_FOR_SIGNAL},
         .status = EXIT_INTERRUPTED,
         .lines = "",
         .signal = -SIGINT},
        {.name = "Ctrl-C twice, one is frozen",
         .behaviours = {WAIT_FOR_SIGNAL, WAIT_FOR_SIGNAL, WAIT_FOR_SIGNAL, FREEZE},
         .status = EXIT_INTERRUPTED,
         .lines = "error: process 3 did not exit within 10 s and is being killed\n",
         .signal = SIGINT,
         .then = SIGINT},
        {.name = "Ctrl-Z, then Ctrl-C",
         .behaviours = {WAIT_FOR_SIGNAL, WAIT_FOR_SIGNAL, WAIT_FOR_SIGNAL, WAIT_FOR_SIGNAL},
         .status = EXIT_INTERRUPTED,
         .lines = "",
         .signal = SIGTSTP,
         .then = SIGINT},
        {.name = "the supervisor is killed",
         .behaviours = {WAIT, FREEZE, WAIT, FREEZE},
         .status = -SIGKILL,
         .lines = "",
         .signal = SIGKILL},
    };
    enum { COUNT = sizeof(families) / sizeof(families[0]) };
    for (int i = 0; i < COUNT; i++) start(&families[i]);
    for (int i = 0; i < COUNT; i++) signal_when_ready(&families[i]);
    for (int i = 0; i < COUNT; i++) finish(&families[i]);
}

// ---- mpirun -----------------------------------------------------------------------------------------------

// An mpirun that prints its arguments.
static void test_mpirun_command(void) {
    static const char script[] =
        "#!/bin/sh\nfor word in \"$@\"; do printf '%s|' \"$word\"; done\n"
        "echo $OMPI_MCA_rmaps_base_oversubscribe $OMPI_MCA_hwloc_base_binding_policy "
        "$OMPI_ALLOW_RUN_AS_ROOT $PRTE_MCA_rmaps_default_mapping_policy\n";
    static char *words[] = {"./program", "--run",         "a b",    "--processes", "4",
                            "--steps=3", "--processes=5", "--last", NULL};
    char folder[] = "/tmp/test_launch_XXXXXX", path[64], out[512] = "";
    int ends[2];
    if (mkdtemp(folder) == NULL || pipe(ends) != 0) die("no temporary folder");
    snprintf(path, sizeof(path), "%s/mpirun", folder);
    setenv("PATH", folder, 1);
    setenv("OMPI_MCA_hwloc_base_binding_policy", "core", 1); // the user's setting
    int result = launch_mpirun(4, 8, words, &error);
    EXPECT(result == -1 && strstr(error.text, "the command mpirun was not found"), "'%s'", error.text);
    FILE *file = fopen(path, "w");
    fputs(script, file);
    fclose(file);
    chmod(path, 0700);
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], STDOUT_FILENO);
        launch_mpirun(4, 8, words, &error);
        _exit(1);
    }
    close(ends[1]);
    for (ssize_t length = 0, got; (got = read(ends[0], out + length, sizeof(out) - 1 - (size_t)length)) > 0;)
        length += got;
    close(ends[0]);
    waitpid(child, NULL, 0);
    const char *wanted = "-n|4|./program|--run|a b|--steps=3|--last|1 core 1 :oversubscribe\n";
    EXPECT(strcmp(out, wanted) == 0, "'%s', not '%s'", out, wanted);
    unlink(path);
    rmdir(folder);
}

int main(void) {
    signal(SIGINT, SIG_DFL), signal(SIGQUIT, SIG_DFL); // ignored if a shell starts this in the background
    alarm(100);                                        // no test may hang
    setvbuf(stdout, NULL, _IOLBF, 0);
    test_alone();
    test_torchrun();
    test_mpirun();
    test_srun();
    test_processes();
    test_mpirun_command();
    return test_finish();
}
