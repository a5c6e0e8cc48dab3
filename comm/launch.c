// See launch.h.
#define _GNU_SOURCE
#include "comm/launch.h"
#include "comm/watchdog.h"
#include "data/progress.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

// ---- variables --------------------------------------------------------------------------------------------

// NULL where it is not set, or empty.
static const char *variable(const char *name) {
    const char *value = getenv(name);
    return value != NULL && value[0] != '\0' ? value : NULL;
}

static int read_number(const char *name, int minimum, int maximum, int *number, Error *error) {
    const char *value = variable(name);
    char *end;
    errno = 0;
    long parsed = strtol(value, &end, 10);
    if (*end != '\0' || isspace((unsigned char)value[0]) || errno != 0 || parsed < minimum ||
        parsed > maximum)
        return fail(error, "%s=%s: expected a whole number between %d and %d", name, value, minimum, maximum);
    *number = (int)parsed;
    return 0;
}

// "A, B and C" of those names that are set (with their values) or are not; the number of them.
static int list_names(const char *const *names, int set, char *text, size_t size) {
    int count = 0, listed = 0;
    for (int i = 0; names[i] != NULL; i++) count += (variable(names[i]) != NULL) == set;
    text[0] = '\0';
    for (int i = 0; names[i] != NULL; i++) {
        if ((variable(names[i]) != NULL) != set) continue;
        const char *between = listed == 0 ? "" : listed == count - 1 ? " and " : ", ";
        size_t length = strlen(text);
        snprintf(text + length, size - length, "%s%s%s%.60s", between, names[i], set ? "=" : "",
                 set ? variable(names[i]) : "");
        listed++;
    }
    return count;
}

// All of the names (up to NULL) or an error.
static int require(const char *const *names, const char *who, Error *error) {
    char present[512], missing[512];
    int num_missing = list_names(names, 0, missing, sizeof(missing));
    if (num_missing == 0) return 0;
    int num_present = list_names(names, 1, present, sizeof(present));
    return fail(error, "%s %s set but %s %s not: %s", present, num_present == 1 ? "is" : "are", missing,
                num_missing == 1 ? "is" : "are", who);
}

// A number of 64 bits from the texts of variables (FNV-1a); one that is not set counts too.
static uint64_t hash_variables(const char *const *names) {
    uint64_t hash = 0xcbf29ce484222325u;
    for (int i = 0; names[i] != NULL; i++) {
        const char *value = variable(names[i]);
        for (const char *c = value != NULL ? value : ""; *c != '\0'; c++)
            hash = (hash ^ (unsigned char)*c) * 0x100000001b3u;
        hash = (hash ^ 0xff) * 0x100000001b3u; // where one ends and the next begins
    }
    return hash;
}

// ---- hosts and ports --------------------------------------------------------------------------------------

static int set_master(Launch *launch, const char *host, Error *error) {
    if (strlen(host) >= sizeof(launch->master))
        return fail(error, "the name of process 0's host is too long: %s", host);
    strcpy(launch->master, host);
    return 0;
}

// Whether that is surely a name of this host.
static int is_this_host(const char *host) {
    char name[256] = "";
    gethostname(name, sizeof(name) - 1);
    size_t length = strcspn(name, ".");
    return strcmp(host, "localhost") == 0 || strncmp(host, "127.", 4) == 0 || strcmp(host, "::1") == 0 ||
           strcmp(host, name) == 0 ||
           (strlen(host) == length && memcmp(host, name, length) == 0 && length > 0);
}

// Process 0 listens on CONTROL_PORTS ports from this one on; they are all above MASTER_PORT or all below.
static int port_from_master(Launch *launch, Error *error) {
    int port;
    if (read_number("MASTER_PORT", 1, 65535, &port, error) != 0) return -1;
    launch->port = port + CONTROL_PORTS <= 65535 ? port + 1 : port - CONTROL_PORTS;
    return 0;
}

// Jobs on one host get ports of their own, below those that Linux gives to outgoing connections.
static int port_from_job(Launch *launch, Error *error) {
    if (variable("MASTER_PORT") != NULL) return port_from_master(launch, error);
    launch->port = 20000 + (int)((launch->run ^ launch->run >> 32) % 12000);
    return 0;
}

// The first of "node[003-007,12],other", "a,b", "rack[1-2]n[01-04]": of each bracket the first number.
static void first_host(const char *list, char *host, size_t size) {
    size_t length = 0;
    for (const char *c = list; *c != '\0' && *c != ',' && length + 1 < size;) {
        if (*c != '[') {
            host[length++] = *c++;
            continue;
        }
        for (c++; isdigit((unsigned char)*c) && length + 1 < size;) host[length++] = *c++;
        while (*c != '\0' && *c != ']') c++;
        c += *c == ']';
    }
    host[length] = '\0';
}

// The `index`-th number of "4(x2),3", which is 4 4 3; 0 where there is none.
static int tasks_of_node(const char *list, int index) {
    while (*list != '\0') {
        char *end;
        long tasks = strtol(list, &end, 10), times = 1;
        if (end == list || tasks < 1 || tasks > INT_MAX) return 0;
        if (strncmp(end, "(x", 2) == 0) {
            times = strtol(end + 2, &end, 10);
            if (*end != ')' || times < 1) return 0;
            end++;
        }
        if (index < times) return (int)tasks;
        index -= (int)(times < INT_MAX ? times : INT_MAX);
        if (*end != ',') return 0;
        list = end + 1;
    }
    return 0;
}

// ---- launchers: each returns 0, or -1 and a sentence ------------------------------------------------------

enum { MOST_PROCESSES = 1 << 20 };

static int read_rank(Launch *launch, const char *rank, const char *size, Error *error) {
    if (read_number(size, 1, MOST_PROCESSES, &launch->size, error) != 0) return -1;
    if (read_number(rank, 0, MOST_PROCESSES, &launch->rank, error) != 0) return -1;
    if (launch->rank >= launch->size)
        return fail(error, "%s=%d and %s=%d contradict each other: ranks go from 0 to %d", rank, launch->rank,
                    size, launch->size, launch->size - 1);
    return 0;
}

static int read_local(Launch *launch, const char *rank, const char *size, Error *error) {
    if (read_number(size, 1, MOST_PROCESSES, &launch->local_size, error) != 0) return -1;
    if (read_number(rank, 0, MOST_PROCESSES, &launch->local_rank, error) != 0) return -1;
    if (launch->local_rank >= launch->local_size || launch->local_size > launch->size)
        return fail(error, "%s=%d, %s=%d and %d processes in all contradict each other", rank,
                    launch->local_rank, size, launch->local_size, launch->size);
    return 0;
}

// By hand, the local variables may be left out where all processes are on this host.
static int read_local_by_hand(Launch *launch, Error *error) {
    int here = is_this_host(launch->master), have_size = variable("LOCAL_WORLD_SIZE") != NULL;
    if (variable("LOCAL_RANK") == NULL && (!here || have_size))
        return fail(error,
                    "LOCAL_RANK is not set: give the process with RANK=%d its number on its host, from 0 "
                    "(process 0 is on %s)",
                    launch->rank, launch->master);
    if (have_size) return read_local(launch, "LOCAL_RANK", "LOCAL_WORLD_SIZE", error);
    launch->local_rank = launch->rank;
    if (variable("LOCAL_RANK") != NULL &&
        read_number("LOCAL_RANK", 0, launch->size - 1, &launch->local_rank, error) != 0)
        return -1;
    launch->local_size = here ? launch->size : launch->local_rank + 1;
    return 0;
}

// mpirun that starts a launcher on every host is fine; mpirun's processes that are told of another number are not.
static int check_against_mpirun(const Launch *launch, Error *error) {
    if (variable("OMPI_COMM_WORLD_SIZE") == NULL) return 0;
    int size;
    if (read_number("OMPI_COMM_WORLD_SIZE", 1, MOST_PROCESSES, &size, error) != 0) return -1;
    if (size == 1 || size == launch->size) return 0;
    if (variable("TORCHELASTIC_RUN_ID") != NULL && launch->size % size == 0) return 0;
    return fail(error, "WORLD_SIZE=%d and OMPI_COMM_WORLD_SIZE=%d contradict each other", launch->size, size);
}

static int read_torchrun(Launch *launch, Error *error) {
    static const char *const ranks[] = {"RANK", "WORLD_SIZE", NULL};
    static const char *const masters[] = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", NULL};
    static const char *const identity[] = {"MASTER_PORT", "TORCHELASTIC_RUN_ID", NULL};
    const char
        *who = "torchrun sets RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT";
    if (require(ranks, who, error) != 0) return -1;
    if (read_rank(launch, "RANK", "WORLD_SIZE", error) != 0 || check_against_mpirun(launch, error) != 0)
        return -1;
    if (launch->size == 1) return 0;
    launch->launcher = LAUNCHED_BY_TORCHRUN;
    if (require(masters, who, error) != 0 || set_master(launch, variable("MASTER_ADDR"), error) != 0)
        return -1;
    launch->run = hash_variables(identity);
    return port_from_master(launch, error) != 0 || read_local_by_hand(launch, error) != 0 ? -1 : 0;
}

// Open MPI, or MPICH and its relatives; only the names differ.
static int read_mpirun(Launch *launch, const char *const *names, const char *who, Error *error) {
    // Which of these there is, is the same in all processes of a job; the first that there is says it all.
    static const char *const jobs[] = {"PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid", "PMI_JOBID",
                                       "SLURM_JOB_ID", NULL};
    const char *const ranks[] = {names[0], names[1], NULL};
    if (require(ranks, who, error) != 0 || read_rank(launch, names[0], names[1], error) != 0) return -1;
    if (launch->size == 1) return 0;
    launch->launcher = LAUNCHED_BY_MPIRUN;
    if (require(names, who, error) != 0 || read_local(launch, names[2], names[3], error) != 0) return -1;
    int job = 0;
    while (jobs[job] != NULL && variable(jobs[job]) == NULL) job++;
    const char *const identity[] = {"MASTER_PORT", jobs[job], NULL};
    launch->run = hash_variables(identity);
    const char *master = variable("MASTER_ADDR");
    if (master == NULL) master = launch->local_size == launch->size ? "127.0.0.1" : "";
    return set_master(launch, master, error) != 0 || port_from_job(launch, error) != 0 ? -1 : 0;
}

static int read_srun(Launch *launch, Error *error) {
    static const char *const names[] = {
        "SLURM_PROCID",  "SLURM_STEP_NUM_TASKS", "SLURM_STEP_ID", "SLURM_JOB_ID",
        "SLURM_LOCALID", "SLURM_STEP_NODELIST",  "SLURM_NODEID",  NULL};
    static const char *const identity[] = {"MASTER_PORT", "SLURM_JOB_ID", "SLURM_STEP_ID", NULL};
    const char *who = "srun sets all of them";
    if (read_rank(launch, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", error) != 0) return -1;
    if (launch->size == 1) return 0;
    launch->launcher = LAUNCHED_BY_SRUN;
    int node;
    if (require(names, who, error) != 0) return -1;
    if (read_number("SLURM_LOCALID", 0, launch->size - 1, &launch->local_rank, error) != 0) return -1;
    if (read_number("SLURM_NODEID", 0, MOST_PROCESSES, &node, error) != 0) return -1;
    const char *name = variable("SLURM_STEP_TASKS_PER_NODE") ? "SLURM_STEP_TASKS_PER_NODE"
                                                             : "SLURM_TASKS_PER_NODE";
    const char *tasks = variable(name);
    if (tasks == NULL)
        return fail(
            error,
            "SLURM_PROCID=%d is set but neither SLURM_STEP_TASKS_PER_NODE nor SLURM_TASKS_PER_NODE is: %s",
            launch->rank, who);
    launch->local_size = tasks_of_node(tasks, node);
    if (launch->local_size <= launch->local_rank || launch->local_size > launch->size)
        return fail(
            error,
            "%s=%s, SLURM_NODEID=%d, SLURM_LOCALID=%d and SLURM_STEP_NUM_TASKS=%d contradict each other",
            name, tasks, node, launch->local_rank, launch->size);
    launch->run = hash_variables(identity);
    char host[sizeof(launch->master) + 1];
    first_host(variable("SLURM_STEP_NODELIST"), host, sizeof(host));
    const char *master = variable("MASTER_ADDR") != NULL ? variable("MASTER_ADDR") : host;
    return set_master(launch, master, error) != 0 || port_from_job(launch, error) != 0 ? -1 : 0;
}

int launch_read(Launch *launch, Error *error) {
    static const char *const open_mpi[] = {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE",
                                           "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE", NULL};
    static const char *const mpich[] = {"PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS", NULL};
    static const char *const locals[] = {"RANK", "WORLD_SIZE", "LOCAL_RANK", NULL};
    memset(launch, 0, sizeof(*launch));
    launch->size = launch->local_size = 1;
    launch->listening = -1;
    // An sbatch script has SLURM_PROCID too; a step is what srun starts.
    int step = variable("SLURM_PROCID") != NULL && variable("SLURM_STEP_NUM_TASKS") != NULL;
    if (variable("RANK") != NULL || variable("WORLD_SIZE") != NULL) return read_torchrun(launch, error);
    if (variable("OMPI_COMM_WORLD_RANK") != NULL || variable("OMPI_COMM_WORLD_SIZE") != NULL)
        return read_mpirun(launch, open_mpi, "mpirun of Open MPI sets all of them", error);
    // srun sets PMI_RANK and PMI_SIZE too, where it is told to serve MPI, but not the others.
    int served = step && variable("MPI_LOCALRANKID") == NULL && variable("MPI_LOCALNRANKS") == NULL;
    if (!served && (variable("PMI_RANK") != NULL || variable("PMI_SIZE") != NULL))
        return read_mpirun(launch, mpich, "mpirun of MPICH sets all of them", error);
    if (step) return read_srun(launch, error);
    if (variable("LOCAL_RANK") != NULL) return require(locals, "torchrun sets all of them", error);
    return 0;
}

// ---- processes of our own ---------------------------------------------------------------------------------

// Seconds for the others to end by themselves once one has ended badly; their watchdogs see to that.
enum { GRACE = 10 };

typedef struct {
    pid_t *children; // (count), 0: has ended
    int count, running;
    int status;      // the first bad one
    int stop_signal; // SIGINT, SIGTERM, SIGHUP or SIGUSR1 that was passed on
    double kill_at;  // 0: not yet
    int killed;      // by us
} Supervisor;

static void signal_all(const Supervisor *s, int number) {
    for (int rank = 0; rank < s->count; rank++)
        if (s->children[rank] > 0) kill(s->children[rank], number);
}

// A process that has ended: says how, if that was bad, and sets how long the others have.
static void note_end(Supervisor *s, int rank, int status) {
    int number = WIFSIGNALED(status) ? WTERMSIG(status) : 0,
        code = number ? 128 + number : WEXITSTATUS(status);
    s->children[rank] = 0;
    s->running--;
    if (code == 0 && s->kill_at == 0)
        s->kill_at = seconds_now() + 3 * GRACE; // nobody leaves before all are done
    if (code == 0 || (s->killed && number == SIGKILL)) return;
    int first = s->status == 0 || s->status == EXIT_LOST_PEER; // that somebody is lost is not the cause
    int stopped = s->stop_signal != 0 && code == EXIT_INTERRUPTED;
    if (first) s->status = code;
    if (stopped) return; // it was asked to, and others may still be saving
    if (number)
        fprintf(stderr, "error: process %d was killed by signal %d (%s)\n", rank, number, strsignal(number));
    else if (first && code > EXIT_INTERRUPTED) // the others come with a sentence
        fprintf(stderr, "error: process %d exited with status %d\n", rank, code);
    if (s->kill_at == 0) s->kill_at = seconds_now() + GRACE;
}

static void kill_all(Supervisor *s) {
    for (int rank = 0; rank < s->count; rank++)
        if (s->children[rank] > 0)
            fprintf(stderr, "error: process %d did not exit within %d s and is being killed\n", rank, GRACE);
    signal_all(s, SIGKILL); // ends what is stopped too
    s->killed = 1;
    s->kill_at = 0;
}

static void pass_on(Supervisor *s, int number) {
    if (number == SIGTSTP) { // Ctrl-Z: everybody stops, and goes on with the supervisor
        signal_all(s, SIGSTOP);
        raise(SIGSTOP);
        signal_all(s, SIGCONT);
        return;
    }
    signal_all(s, number);
    if (number == SIGUSR2) return;
    // The second one ends a process at once; what does not end then is frozen.
    if (s->stop_signal != 0 && s->kill_at == 0 && !s->killed) s->kill_at = seconds_now() + GRACE;
    s->stop_signal = number;
}

static void supervise(Supervisor *s, const sigset_t *signals) __attribute__((noreturn));
static void supervise(Supervisor *s, const sigset_t *signals) {
    while (s->running > 0) {
        double left = s->kill_at > 0 ? s->kill_at - seconds_now() : 3600;
        if (left < 0) {
            kill_all(s);
            continue;
        }
        struct timespec wait = {(time_t)left, (long)(1e9 * (left - (double)(time_t)left))};
        int number = sigtimedwait(signals, NULL, &wait), status;
        if (number > 0 && number != SIGCHLD) pass_on(s, number);
        for (int rank = 0; rank < s->count; rank++)
            if (s->children[rank] > 0 && waitpid(s->children[rank], &status, WNOHANG) == s->children[rank])
                note_end(s, rank, status);
    }
    free(s->children);
    exit(s->status);
}

// A socket that listens on a free port of this host, for this host.
static int listen_here(int *port, Error *error) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t length = sizeof(address);
    int descriptor = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (descriptor < 0 || bind(descriptor, (struct sockaddr *)&address, length) != 0 ||
        listen(descriptor, SOMAXCONN) != 0 ||
        getsockname(descriptor, (struct sockaddr *)&address, &length) != 0) {
        fail(error, "cannot listen on 127.0.0.1: %s", strerror(errno));
        if (descriptor >= 0) close(descriptor);
        return -1;
    }
    *port = ntohs(address.sin_port);
    if (descriptor > STDERR_FILENO) return descriptor;
    int moved = fcntl(descriptor, F_DUPFD_CLOEXEC,
                      STDERR_FILENO + 1); // children open /dev/null in the place of stdin
    close(descriptor);
    return moved;
}

// In a process just started: it ends with the supervisor, by this signal, and has a process group of its own.
static void stand_before(pid_t supervisor, int last_signal, const sigset_t *mask) {
    prctl(PR_SET_PDEATHSIG, last_signal);
    if (getppid() != supervisor) _exit(1); // it ended before that
    setpgid(0, 0);
    signal(SIGTTOU, SIG_IGN); // a process in the background may write to any terminal
    int nothing = open("/dev/null", O_RDONLY);
    if (nothing > 0) {
        dup2(nothing, STDIN_FILENO);
        close(nothing);
    }
    sigprocmask(SIG_SETMASK, mask, NULL);
}

static void become_child(Launch *launch, int rank, int listening, pid_t supervisor, const sigset_t *mask) {
    stand_before(supervisor, SIGKILL, mask);
    launch->rank = launch->local_rank = rank;
    if (rank == 0)
        launch->listening = listening;
    else
        close(listening);
}

// Signals the supervisor waits for. What is ignored (nohup) stays ignored.
static void supervised_signals(sigset_t *signals) {
    static const int numbers[] = {SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2, SIGTSTP};
    sigemptyset(signals);
    sigaddset(signals, SIGCHLD);
    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
        struct sigaction action;
        sigaction(numbers[i], NULL, &action);
        if (action.sa_handler != SIG_IGN) sigaddset(signals, numbers[i]);
    }
}

int launch_processes(Launch *launch, int count, Error *error) {
    memset(launch, 0, sizeof(*launch));
    launch->launcher = LAUNCHED_BY_US;
    launch->size = launch->local_size = count;
    launch->listening = -1;
    strcpy(launch->master, "127.0.0.1");
    if (getrandom(&launch->run, sizeof(launch->run), 0) != sizeof(launch->run))
        return fail(error, "cannot get random numbers from the system: %s", strerror(errno));
    int listening = listen_here(&launch->port, error);
    if (listening < 0) return -1;
    Supervisor s = {(pid_t *)xcalloc((size_t)count, sizeof(pid_t)), count, 0, 0, 0, 0, 0};
    sigset_t signals, before;
    supervised_signals(&signals);
    signal(SIGCHLD, SIG_DFL);
    sigprocmask(SIG_BLOCK, &signals, &before);
    fflush(NULL); // or every process writes what is buffered
    pid_t supervisor = getpid();
    for (int rank = 0; rank < count; rank++) {
        pid_t child = fork();
        if (child == 0) {
            free(s.children);
            become_child(launch, rank, listening, supervisor, &before);
            return 0;
        }
        if (child < 0) {
            fail(error, "cannot start process %d of %d: %s", rank, count, strerror(errno));
            signal_all(&s, SIGKILL);
            while (waitpid(-1, NULL, 0) > 0) continue;
            sigprocmask(SIG_SETMASK, &before, NULL);
            close(listening);
            free(s.children);
            return -1;
        }
        s.children[s.running++] = child;
    }
    close(listening);
    supervise(&s, &signals);
}

// ---- mpirun -----------------------------------------------------------------------------------------------

// Passes signals on until mpirun has ended, and ends like it. What ends mpirun makes it kill its processes, in the midst
// of a checkpoint: it gets SIGUSR1 instead, which it passes on and they understand. A second signal, later, ends it.
static void supervise_mpirun(pid_t mpirun, const sigset_t *signals) __attribute__((noreturn));
static void supervise_mpirun(pid_t mpirun, const sigset_t *signals) {
    int status;
    double first = 0;
    while (waitpid(mpirun, &status, WNOHANG) == 0) {
        const int number = sigwaitinfo(signals, NULL);
        if (number < 0 || number == SIGCHLD) continue;
        if (number == SIGUSR2 || first == 0)
            kill(mpirun, number == SIGUSR2 ? SIGUSR2 : SIGUSR1);
        else if (seconds_now() - first > 1)
            kill(mpirun, SIGTERM);
        if (number != SIGUSR2 && first == 0) first = seconds_now();
    }
    exit(WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status));
}

// Starts the program that the words begin with, and waits for it. Returns, with the reason, if it cannot be started.
static int run_mpirun(char **words) {
    sigset_t signals, before;
    int ends[2], reason = 0;
    if (pipe2(ends, O_CLOEXEC) != 0) return errno;
    supervised_signals(&signals);
    sigdelset(&signals, SIGTSTP);
    signal(SIGCHLD, SIG_DFL);
    sigprocmask(SIG_BLOCK, &signals, &before);
    fflush(NULL);
    const pid_t supervisor = getpid(), child = fork();
    if (child == 0) {
        stand_before(supervisor, SIGTERM, &before);
        execvp(words[0], words);
        reason = errno;
        _exit(write(ends[1], &reason, sizeof(reason)) > 0 ? 126 : 127);
    }
    if (child < 0) reason = errno;
    close(ends[1]);
    if (child > 0 && read(ends[0], &reason, sizeof(reason)) <= 0) // closed: it has become mpirun
        supervise_mpirun(child, &signals);
    close(ends[0]);
    if (child > 0) waitpid(child, NULL, 0);
    sigprocmask(SIG_SETMASK, &before, NULL);
    return reason;
}

int launch_mpirun(int count, int argc, char **argv, Error *error) {
    static const char *const settings[][2] = {
        {"OMPI_MCA_rmaps_base_oversubscribe", "1"},                  // Open MPI 4
        {"PRTE_MCA_rmaps_default_mapping_policy", ":oversubscribe"}, // Open MPI 5
        {"OMPI_MCA_hwloc_base_binding_policy", "none"},
        {"PRTE_MCA_hwloc_default_binding_policy", "none"},
        {"OMPI_ALLOW_RUN_AS_ROOT", "1"},
        {"OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"},
        {"PRTE_ALLOW_RUN_AS_ROOT", "1"},
        {"PRTE_ALLOW_RUN_AS_ROOT_CONFIRM", "1"},
    };
    if (getenv("OMPI_COMM_WORLD_SIZE") != NULL || getenv("PMI_SIZE") != NULL)
        return fail(error, "mpirun has already started this process: use mpirun -n %d, without --processes",
                    count);
    for (size_t i = 0; i < sizeof(settings) / sizeof(settings[0]); i++)
        setenv(settings[i][0], settings[i][1], 0);
    char number[16], program[] = "mpirun", option[] = "-n";
    snprintf(number, sizeof(number), "%d", count);
    char **words = (char **)xcalloc((size_t)argc + 4, sizeof(char *));
    int n = 0;
    words[n++] = program;
    words[n++] = option;
    words[n++] = number;
    for (int i = 0; i < argc; i++) {
        if (strcmp(argv[i], "--processes") == 0)
            i++; // and its value
        else if (strncmp(argv[i], "--processes=", 12) != 0)
            words[n++] = argv[i];
    }
    const int reason = run_mpirun(words);
    free(words);
    if (reason == ENOENT)
        return fail(
            error,
            "the command mpirun was not found: this build starts its processes with MPI; install Open MPI "
            "or MPICH (Debian, Ubuntu: apt-get install openmpi-bin)");
    return fail(error, "cannot run mpirun: %s", strerror(reason));
}
