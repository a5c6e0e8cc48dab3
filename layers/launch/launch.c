// See launch.h.
#define _GNU_SOURCE
#include "launch.h"
#include "watchdog.h"
#include "layers/base/progress.h"

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

// Returns NULL if the variable is not set or empty.
static const char *get_variable(const char *name) {
    const char *value = getenv(name);
    return value != NULL && value[0] != '\0' ? value : NULL;
}

static int read_number(const char *name, int minimum, int maximum, int *number, Error *error) {
    const char *value = get_variable(name);
    char *end;
    errno = 0;
    long parsed = strtol(value, &end, 10);
    if (*end != '\0' || isspace((unsigned char)value[0]) || errno != 0 || parsed < minimum ||
        parsed > maximum)
        return fail(error, "%s=%s: expected a whole number between %d and %d", name, value, minimum, maximum);
    *number = (int)parsed;
    return 0;
}

// Lists, as "A, B and C", the names that are set (with their values), or those that are not. Returns their number.
static int list_names(const char *const *names, int set, char *text, size_t size) {
    int count = 0, listed = 0;
    for (int i = 0; names[i] != NULL; i++) count += (get_variable(names[i]) != NULL) == set;
    text[0] = '\0';
    for (int i = 0; names[i] != NULL; i++) {
        if ((get_variable(names[i]) != NULL) != set) continue;
        const char *between = listed == 0 ? "" : listed == count - 1 ? " and " : ", ";
        size_t length = strlen(text);
        snprintf(text + length, size - length, "%s%s%s%.60s", between, names[i], set ? "=" : "",
                 set ? get_variable(names[i]) : "");
        listed++;
    }
    return count;
}

// Returns 0 if all names (up to NULL) are set, else -1 with a sentence.
static int require_variables(const char *const *names, const char *hint, Error *error) {
    char present[512], missing[512];
    int num_missing = list_names(names, 0, missing, sizeof(missing));
    if (num_missing == 0) return 0;
    int num_present = list_names(names, 1, present, sizeof(present));
    return fail(error, "%s %s set but %s %s not: %s", present, num_present == 1 ? "is" : "are", missing,
                num_missing == 1 ? "is" : "are", hint);
}

// Returns a 64-bit hash (FNV-1a) of the values of variables; an unset one counts as empty.
static uint64_t hash_variables(const char *const *names) {
    uint64_t hash = 0xcbf29ce484222325u;
    for (int i = 0; names[i] != NULL; i++) {
        const char *value = get_variable(names[i]);
        for (const char *c = value != NULL ? value : ""; *c != '\0'; c++)
            hash = (hash ^ (unsigned char)*c) * 0x100000001b3u;
        hash = (hash ^ 0xff) * 0x100000001b3u; // separates values
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

// Returns 1 if `host` certainly names this host.
static int is_this_host(const char *host) {
    char name[256] = "";
    gethostname(name, sizeof(name) - 1);
    size_t length = strcspn(name, ".");
    return strcmp(host, "localhost") == 0 || strncmp(host, "127.", 4) == 0 || strcmp(host, "::1") == 0 ||
           strcmp(host, name) == 0 ||
           (strlen(host) == length && memcmp(host, name, length) == 0 && length > 0);
}

// Process 0 tries CONTROL_PORTS ports from launch->port on; all of them are above MASTER_PORT, or all below.
static int port_from_master(Launch *launch, Error *error) {
    int port;
    if (read_number("MASTER_PORT", 1, 65535, &port, error) != 0) return -1;
    launch->port = port + CONTROL_PORTS <= 65535 ? port + 1 : port - CONTROL_PORTS;
    return 0;
}

// Gives each job on a host ports of its own, below Linux's ephemeral ports.
static int port_from_job(Launch *launch, Error *error) {
    if (get_variable("MASTER_PORT") != NULL) return port_from_master(launch, error);
    launch->port = 20000 + (int)((launch->run ^ launch->run >> 32) % 12000);
    return 0;
}

// Returns the first host of a Slurm list such as "node[003-007,12],other", "a,b" or "rack[1-2]n[01-04]": of each
// bracket the first number.
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

// Returns element `index` of a Slurm list such as "4(x2),3", which means 4 4 3; 0 if there is none.
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

// ---- launchers: each function returns 0, or -1 with a sentence --------------------------------------------

enum { MAX_PROCESSES = 1 << 20 };

static int read_rank(Launch *launch, const char *rank, const char *size, Error *error) {
    if (read_number(size, 1, MAX_PROCESSES, &launch->size, error) != 0) return -1;
    if (read_number(rank, 0, MAX_PROCESSES, &launch->rank, error) != 0) return -1;
    if (launch->rank >= launch->size)
        return fail(error, "%s=%d and %s=%d contradict each other: ranks go from 0 to %d", rank, launch->rank,
                    size, launch->size, launch->size - 1);
    return 0;
}

static int read_local(Launch *launch, const char *rank, const char *size, Error *error) {
    if (read_number(size, 1, MAX_PROCESSES, &launch->local_size, error) != 0) return -1;
    if (read_number(rank, 0, MAX_PROCESSES, &launch->local_rank, error) != 0) return -1;
    if (launch->local_rank >= launch->local_size || launch->local_size > launch->size)
        return fail(error, "%s=%d, %s=%d and %d processes in all contradict each other", rank,
                    launch->local_rank, size, launch->local_size, launch->size);
    return 0;
}

// If processes are started by hand, the local variables are optional as long as all processes are on this host.
static int read_local_by_hand(Launch *launch, Error *error) {
    int is_local = is_this_host(launch->master), have_size = get_variable("LOCAL_WORLD_SIZE") != NULL;
    if (get_variable("LOCAL_RANK") == NULL && (!is_local || have_size))
        return fail(error,
                    "LOCAL_RANK is not set: give the process with RANK=%d its number on its host, from 0 "
                    "(process 0 is on %s)",
                    launch->rank, launch->master);
    if (have_size) return read_local(launch, "LOCAL_RANK", "LOCAL_WORLD_SIZE", error);
    launch->local_rank = launch->rank;
    if (get_variable("LOCAL_RANK") != NULL &&
        read_number("LOCAL_RANK", 0, launch->size - 1, &launch->local_rank, error) != 0)
        return -1;
    launch->local_size = is_local ? launch->size : launch->local_rank + 1;
    return 0;
}

// mpirun may start one launcher on every host, but not processes whose WORLD_SIZE is another number.
static int check_against_mpirun(const Launch *launch, Error *error) {
    if (get_variable("OMPI_COMM_WORLD_SIZE") == NULL) return 0;
    int size;
    if (read_number("OMPI_COMM_WORLD_SIZE", 1, MAX_PROCESSES, &size, error) != 0) return -1;
    if (size == 1 || size == launch->size) return 0;
    if (get_variable("TORCHELASTIC_RUN_ID") != NULL && launch->size % size == 0) return 0;
    return fail(error, "WORLD_SIZE=%d and OMPI_COMM_WORLD_SIZE=%d contradict each other", launch->size, size);
}

static int read_torchrun(Launch *launch, Error *error) {
    static const char *const ranks[] = {"RANK", "WORLD_SIZE", NULL};
    static const char *const masters[] = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", NULL};
    static const char *const identity[] = {"MASTER_PORT", "TORCHELASTIC_RUN_ID", NULL};
    const char
        *hint = "torchrun sets RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT";
    if (require_variables(ranks, hint, error) != 0) return -1;
    if (read_rank(launch, "RANK", "WORLD_SIZE", error) != 0 || check_against_mpirun(launch, error) != 0)
        return -1;
    if (launch->size == 1) return 0;
    launch->launcher = LAUNCHED_BY_TORCHRUN;
    if (require_variables(masters, hint, error) != 0 ||
        set_master(launch, get_variable("MASTER_ADDR"), error) != 0)
        return -1;
    launch->run = hash_variables(identity);
    return port_from_master(launch, error) != 0 || read_local_by_hand(launch, error) != 0 ? -1 : 0;
}

// For Open MPI, and for MPICH and its derivatives; only the names differ.
static int read_mpirun(Launch *launch, const char *const *names, const char *hint, Error *error) {
    // Use the first job-id variable that is set; all processes of a job agree on it.
    static const char *const jobs[] = {"PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid", "PMI_JOBID",
                                       "SLURM_JOB_ID", NULL};
    const char *const ranks[] = {names[0], names[1], NULL};
    if (require_variables(ranks, hint, error) != 0 || read_rank(launch, names[0], names[1], error) != 0)
        return -1;
    if (launch->size == 1) return 0;
    launch->launcher = LAUNCHED_BY_MPIRUN;
    if (require_variables(names, hint, error) != 0 || read_local(launch, names[2], names[3], error) != 0)
        return -1;
    int job = 0;
    while (jobs[job] != NULL && get_variable(jobs[job]) == NULL) job++;
    const char *const identity[] = {"MASTER_PORT", jobs[job], NULL};
    launch->run = hash_variables(identity);
    const char *master = get_variable("MASTER_ADDR");
    if (master == NULL) master = launch->local_size == launch->size ? "127.0.0.1" : "";
    return set_master(launch, master, error) != 0 || port_from_job(launch, error) != 0 ? -1 : 0;
}

static int read_srun(Launch *launch, Error *error) {
    static const char *const names[] = {
        "SLURM_PROCID",  "SLURM_STEP_NUM_TASKS", "SLURM_STEP_ID", "SLURM_JOB_ID",
        "SLURM_LOCALID", "SLURM_STEP_NODELIST",  "SLURM_NODEID",  NULL};
    static const char *const identity[] = {"MASTER_PORT", "SLURM_JOB_ID", "SLURM_STEP_ID", NULL};
    const char *hint = "srun sets all of them";
    if (read_rank(launch, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", error) != 0) return -1;
    if (launch->size == 1) return 0;
    launch->launcher = LAUNCHED_BY_SRUN;
    int node;
    if (require_variables(names, hint, error) != 0) return -1;
    if (read_number("SLURM_LOCALID", 0, launch->size - 1, &launch->local_rank, error) != 0) return -1;
    if (read_number("SLURM_NODEID", 0, MAX_PROCESSES, &node, error) != 0) return -1;
    const char *name = get_variable("SLURM_STEP_TASKS_PER_NODE") ? "SLURM_STEP_TASKS_PER_NODE"
                                                                 : "SLURM_TASKS_PER_NODE";
    const char *tasks = get_variable(name);
    if (tasks == NULL)
        return fail(
            error,
            "SLURM_PROCID=%d is set but neither SLURM_STEP_TASKS_PER_NODE nor SLURM_TASKS_PER_NODE is: %s",
            launch->rank, hint);
    launch->local_size = tasks_of_node(tasks, node);
    if (launch->local_size <= launch->local_rank || launch->local_size > launch->size)
        return fail(
            error,
            "%s=%s, SLURM_NODEID=%d, SLURM_LOCALID=%d and SLURM_STEP_NUM_TASKS=%d contradict each other",
            name, tasks, node, launch->local_rank, launch->size);
    launch->run = hash_variables(identity);
    char host[sizeof(launch->master) + 1];
    first_host(get_variable("SLURM_STEP_NODELIST"), host, sizeof(host));
    const char *master = get_variable("MASTER_ADDR") != NULL ? get_variable("MASTER_ADDR") : host;
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
    // SLURM_PROCID is also set in an sbatch script; only a step started by srun has the number of tasks too.
    int step = get_variable("SLURM_PROCID") != NULL && get_variable("SLURM_STEP_NUM_TASKS") != NULL;
    if (get_variable("RANK") != NULL || get_variable("WORLD_SIZE") != NULL)
        return read_torchrun(launch, error);
    if (get_variable("OMPI_COMM_WORLD_RANK") != NULL || get_variable("OMPI_COMM_WORLD_SIZE") != NULL)
        return read_mpirun(launch, open_mpi, "mpirun of Open MPI sets all of them", error);
    // srun also sets PMI_RANK and PMI_SIZE if it serves as MPI's launcher, but not the MPI_LOCAL variables.
    int started_by_srun = step && get_variable("MPI_LOCALRANKID") == NULL &&
                          get_variable("MPI_LOCALNRANKS") == NULL;
    if (!started_by_srun && (get_variable("PMI_RANK") != NULL || get_variable("PMI_SIZE") != NULL))
        return read_mpirun(launch, mpich, "mpirun of MPICH sets all of them", error);
    if (step) return read_srun(launch, error);
    if (get_variable("LOCAL_RANK") != NULL)
        return require_variables(locals, "torchrun sets all of them", error);
    return 0;
}

// ---- child processes and their supervisor -----------------------------------------------------------------

// Seconds that the other processes have to exit by themselves after one has failed; their watchdogs make them exit.
enum { GRACE_SECONDS = 10 };

typedef struct {
    pid_t *children; // (count), 0: has exited
    int count, num_running;
    int status;      // the first non-zero exit status
    int stop_signal; // SIGINT, SIGTERM, SIGHUP or SIGUSR1 that was forwarded
    double kill_at;  // 0: not scheduled
    int killed;      // SIGKILL was sent
} Supervisor;

static void signal_all(const Supervisor *s, int number) {
    for (int rank = 0; rank < s->count; rank++)
        if (s->children[rank] > 0) kill(s->children[rank], number);
}

// Records that a process has exited: reports a failure, and sets the time that the others have left.
static void record_exit(Supervisor *s, int rank, int status) {
    int number = WIFSIGNALED(status) ? WTERMSIG(status) : 0,
        code = number ? 128 + number : WEXITSTATUS(status);
    s->children[rank] = 0;
    s->num_running--;
    // No process exits before all are done.
    if (code == 0 && s->kill_at == 0) s->kill_at = seconds_now() + 3 * GRACE_SECONDS;
    if (code == 0 || (s->killed && number == SIGKILL)) return;
    // EXIT_LOST_PEER is a consequence of another process's failure, not the cause.
    int first = s->status == 0 || s->status == EXIT_LOST_PEER;
    int stopped = s->stop_signal != 0 && code == EXIT_INTERRUPTED;
    if (first) s->status = code;
    if (stopped) return; // it was asked to stop, and others may still be saving
    if (number)
        fprintf(stderr, "error: process %d was killed by signal %d (%s)\n", rank, number, strsignal(number));
    else if (first && code > EXIT_INTERRUPTED) // lower statuses come with an error message
        fprintf(stderr, "error: process %d exited with status %d\n", rank, code);
    if (s->kill_at == 0) s->kill_at = seconds_now() + GRACE_SECONDS;
}

static void kill_all(Supervisor *s) {
    for (int rank = 0; rank < s->count; rank++)
        if (s->children[rank] > 0)
            fprintf(stderr, "error: process %d did not exit within %d s and is being killed\n", rank,
                    GRACE_SECONDS);
    signal_all(s, SIGKILL); // also ends stopped processes
    s->killed = 1;
    s->kill_at = 0;
}

static void forward_signal(Supervisor *s, int number) {
    if (number == SIGTSTP) { // Ctrl-Z: all processes stop, and continue with the supervisor
        signal_all(s, SIGSTOP);
        raise(SIGSTOP);
        signal_all(s, SIGCONT);
        return;
    }
    signal_all(s, number);
    if (number == SIGUSR2) return;
    // The second signal ends a process at once; a process that does not end then is frozen.
    if (s->stop_signal != 0 && s->kill_at == 0 && !s->killed) s->kill_at = seconds_now() + GRACE_SECONDS;
    s->stop_signal = number;
}

static void supervise(Supervisor *s, const sigset_t *signals) __attribute__((noreturn));
static void supervise(Supervisor *s, const sigset_t *signals) {
    while (s->num_running > 0) {
        double left = s->kill_at > 0 ? s->kill_at - seconds_now() : 3600;
        if (left < 0) {
            kill_all(s);
            continue;
        }
        struct timespec wait = {(time_t)left, (long)(1e9 * (left - (double)(time_t)left))};
        int number = sigtimedwait(signals, NULL, &wait), status;
        if (number > 0 && number != SIGCHLD) forward_signal(s, number);
        for (int rank = 0; rank < s->count; rank++)
            if (s->children[rank] > 0 && waitpid(s->children[rank], &status, WNOHANG) == s->children[rank])
                record_exit(s, rank, status);
    }
    free(s->children);
    exit(s->status);
}

// Returns a socket that listens on a free port of the loopback interface.
static int listen_on_loopback(int *port, Error *error) {
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
    // The socket must not be one of stdin, stdout and stderr: children replace stdin by /dev/null.
    int duplicate = fcntl(descriptor, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
    close(descriptor);
    return duplicate;
}

// Prepares a new process: it gets `last_signal` when the supervisor exits, and a process group of its own.
static void prepare_child(pid_t supervisor, int last_signal, const sigset_t *mask) {
    prctl(PR_SET_PDEATHSIG, last_signal);
    if (getppid() != supervisor) _exit(1); // the supervisor has already exited
    setpgid(0, 0);
    signal(SIGTTOU, SIG_IGN); // a background process may write to any terminal
    int null_device = open("/dev/null", O_RDONLY);
    if (null_device > 0) {
        dup2(null_device, STDIN_FILENO);
        close(null_device);
    }
    sigprocmask(SIG_SETMASK, mask, NULL);
}

static void become_child(Launch *launch, int rank, int listening, pid_t supervisor, const sigset_t *mask) {
    prepare_child(supervisor, SIGKILL, mask);
    launch->rank = launch->local_rank = rank;
    if (rank == 0)
        launch->listening = listening;
    else
        close(listening);
}

// Collects the signals that the supervisor waits for. Ignored signals (nohup) stay ignored.
static void collect_signals(sigset_t *signals) {
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
    launch->launcher = LAUNCHED_BY_SELF;
    launch->size = launch->local_size = count;
    launch->listening = -1;
    strcpy(launch->master, "127.0.0.1");
    if (getrandom(&launch->run, sizeof(launch->run), 0) != sizeof(launch->run))
        return fail(error, "cannot get random numbers from the system: %s", strerror(errno));
    int listening = listen_on_loopback(&launch->port, error);
    if (listening < 0) return -1;
    Supervisor s = {(pid_t *)xcalloc((size_t)count, sizeof(pid_t)), count, 0, 0, 0, 0, 0};
    sigset_t signals, old_mask;
    collect_signals(&signals);
    signal(SIGCHLD, SIG_DFL);
    sigprocmask(SIG_BLOCK, &signals, &old_mask);
    fflush(NULL); // otherwise every process would write what is buffered
    pid_t supervisor = getpid();
    for (int rank = 0; rank < count; rank++) {
        pid_t child = fork();
        if (child == 0) {
            free(s.children);
            become_child(launch, rank, listening, supervisor, &old_mask);
            return 0;
        }
        if (child < 0) {
            fail(error, "cannot start process %d of %d: %s", rank, count, strerror(errno));
            signal_all(&s, SIGKILL);
            while (waitpid(-1, NULL, 0) > 0) continue;
            sigprocmask(SIG_SETMASK, &old_mask, NULL);
            close(listening);
            free(s.children);
            return -1;
        }
        s.children[s.num_running++] = child;
    }
    close(listening);
    supervise(&s, &signals);
}

// ---- mpirun -----------------------------------------------------------------------------------------------

// Forwards signals until mpirun has exited, and exits with its status. Signals that end mpirun make it kill its
// processes, perhaps while they save a checkpoint; therefore mpirun gets SIGUSR1, which it forwards and the processes
// handle as a request to stop. A second signal, at least a second later, ends mpirun.
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

// Runs the program words[0] with these arguments and supervises it. Returns errno only if the program cannot be
// started.
static int run_mpirun(char **words) {
    sigset_t signals, old_mask;
    int pipe_ends[2], reason = 0;
    if (pipe2(pipe_ends, O_CLOEXEC) != 0) return errno;
    collect_signals(&signals);
    sigdelset(&signals, SIGTSTP);
    signal(SIGCHLD, SIG_DFL);
    sigprocmask(SIG_BLOCK, &signals, &old_mask);
    fflush(NULL);
    const pid_t supervisor = getpid(), child = fork();
    if (child == 0) {
        prepare_child(supervisor, SIGTERM, &old_mask);
        execvp(words[0], words);
        reason = errno;
        _exit(write(pipe_ends[1], &reason, sizeof(reason)) > 0 ? 126 : 127);
    }
    if (child < 0) reason = errno;
    close(pipe_ends[1]);
    if (child > 0 && read(pipe_ends[0], &reason, sizeof(reason)) <= 0) // closed by exec: mpirun is running
        supervise_mpirun(child, &signals);
    close(pipe_ends[0]);
    if (child > 0) waitpid(child, NULL, 0);
    sigprocmask(SIG_SETMASK, &old_mask, NULL);
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
            i++; // skips its value too
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
