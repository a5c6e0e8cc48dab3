// The watchdog, with real processes and a simulated transport: a process that dies, freezes, falls behind or reports
// an error is named by all others in time; one that exits normally, or is slow where it may be, is not.
#define _GNU_SOURCE
#include "layers/launch/watchdog.h"
#include "test/harness/test.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { SIZE = 4 };

// ---- a simulated transport --------------------------------------------------------------------------------

typedef struct {
    pthread_mutex_t mutex;
    CommProgress progress;
    int hangs; // the abort that should end it
    int *aborted;
} Fake;

static Fake fake = {PTHREAD_MUTEX_INITIALIZER, {0, 0, "", ""}, 0, NULL};

static void fake_progress(void *comm, CommProgress *progress) {
    Fake *f = (Fake *)comm;
    pthread_mutex_lock(&f->mutex);
    *progress = f->progress;
    pthread_mutex_unlock(&f->mutex);
}

static void fake_abort(void *comm) {
    Fake *f = (Fake *)comm;
    __atomic_fetch_add(f->aborted, 1, __ATOMIC_SEQ_CST);
    while (f->hangs) pause();
}

static void pretend(uint64_t queued, uint64_t done, const char *failure) {
    pthread_mutex_lock(&fake.mutex);
    fake.progress.queued = queued;
    fake.progress.done = done;
    snprintf(fake.progress.current, sizeof(fake.progress.current),
             done < queued ? "all-reduce %d, 1.0 MB" : "%.0d", done < queued ? (int)done + 1 : 0);
    snprintf(fake.progress.failure, sizeof(fake.progress.failure), "%s", failure);
    pthread_mutex_unlock(&fake.mutex);
}

// ---- cases ------------------------------------------------------------------------------------------------

typedef struct Case Case;
struct Case {
    const char *name;
    double floor;
    void (*play)(int rank, Watchdog *w); // after step 1; NULL: nothing
    const char *verdict; // "HOST" means the host's name, "#" any number; NULL: all end normally
    int dies, freezes;   // bit r: process r ends by a signal, stops
    int suspended;       // the test stops all processes for some seconds
    int first;           // step 1 continues while they play
    // Set by the test.
    pid_t pids[SIZE];
    FILE *outputs[SIZE];
    int *aborted; // (SIZE), shared
    double began;
};

static void sleep_for(double seconds) {
    struct timespec time = {(time_t)seconds, (long)(1e9 * (seconds - (double)(time_t)seconds))};
    while (nanosleep(&time, &time) != 0) continue;
}

static double seconds_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

// Hangs in a step, in an operation that never ends.
static void hang(Watchdog *w, int step) {
    watchdog_step(w, step);
    pretend(37, 36, "");
    sleep_for(60);
}

static void play_killed(int rank, Watchdog *w) {
    if (rank != 2) hang(w, 12);
    watchdog_step(w, 12);
    sleep_for(1.5);
    raise(SIGKILL);
}

static void play_killed_0(int rank, Watchdog *w) {
    if (rank != 0) hang(w, 12);
    watchdog_step(w, 12);
    sleep_for(1.5);
    raise(SIGKILL);
}

static void play_killed_abort_hangs(int rank, Watchdog *w) {
    fake.hangs = 1;
    play_killed(rank, w);
}

static void play_ended(int rank, Watchdog *w) {
    if (rank != 3) hang(w, 12);
    watchdog_step(w, 0);
    sleep_for(1.5);
    kill(getpid(), SIGTERM);
}

static void play_frozen(int rank, Watchdog *w) {
    watchdog_step(w, 12);
    sleep_for(1.5);
    if (rank == 1) raise(SIGSTOP);
    hang(w, 13);
}

static void play_frozen_0(int rank, Watchdog *w) {
    watchdog_step(w, 12);
    sleep_for(1.5);
    if (rank == 0) raise(SIGSTOP);
    hang(w, 13);
}

static void play_behind(int rank, Watchdog *w) {
    watchdog_step(w, 5);
    pretend(rank % 2 == 0 ? 40 : 36, 36, "");
    sleep_for(60);
}

static void play_done_behind(int rank, Watchdog *w) {
    watchdog_step(w, 5);
    pretend(40, rank == 0 ? 35 : 36, "");
    sleep_for(60);
}

static void play_earlier_step(int rank, Watchdog *w) {
    watchdog_step(w, rank == 2 ? 4 : 5);
    pretend(40, rank == 2 ? 39 : 36, "");
    sleep_for(60);
}

static void play_hang(int rank, Watchdog *w) {
    (void)rank;
    hang(w, 5);
}

static void play_failure(int rank, Watchdog *w) {
    watchdog_step(w, 5);
    sleep_for(1);
    if (rank == 3) pretend(37, 36, "the network is down");
    sleep_for(60);
}

static void play_failure_0(int rank, Watchdog *w) {
    watchdog_step(w, 5);
    sleep_for(1);
    if (rank == 0) pretend(37, 36, "the network is down");
    sleep_for(60);
}

// Ranks 0 and 2 notice that 1 is gone before its connection ends.
static void play_failure_of_lost(int rank, Watchdog *w) {
    watchdog_step(w, 5);
    sleep_for(1.5);
    if (rank % 2 == 0) pretend(37, 36, "a peer is gone");
    sleep_for(0.2);
    if (rank == 1) raise(SIGKILL);
    sleep_for(60);
}

static void play_leave_0_first(int rank, Watchdog *w) {
    watchdog_step(w, 2);
    sleep_for(0.7 * rank);
}

static void play_leave_0_last(int rank, Watchdog *w) {
    watchdog_step(w, 2);
    sleep_for(0.7 * (SIZE - 1 - rank));
}

// The others wait in their step for longer than the deadline.
static void play_saving(int rank, Watchdog *w) {
    watchdog_step(w, rank == 1 ? 0 : 5);
    sleep_for(8);
    watchdog_step(w, 6);
}

static void play_long_step(int rank, Watchdog *w) {
    (void)rank;
    watchdog_learn(w, 3);
    watchdog_step(w, 5);
    sleep_for(8);
}

// Together longer than the deadline of one step.
static void play_many_steps(int rank, Watchdog *w) {
    (void)rank;
    for (int step = 2; step < 18; step++) {
        watchdog_step(w, step);
        watchdog_learn(w, 0.2);
        sleep_for(0.5);
    }
}

static void play_long_first_step(int rank, Watchdog *w) {
    (void)rank;
    (void)w;
    sleep_for(8);
}

// Signals of the process are not delivered to the watchdog's thread.
static void play_signal(int rank, Watchdog *w) {
    (void)rank;
    (void)w;
    sigset_t usr1;
    sigemptyset(&usr1);
    sigaddset(&usr1, SIGUSR1);
    sigprocmask(SIG_BLOCK, &usr1, NULL);
    kill(getpid(), SIGUSR1);
    sleep_for(0.5);
}

static Case cases[] = {
    {.name = "killed",
     .floor = 4,
     .play = play_killed,
     .verdict = "process 2 (host HOST) was lost in step 12: its connection was closed",
     .dies = 1 << 2},
    {.name = "0 is killed",
     .floor = 4,
     .play = play_killed_0,
     .verdict = "process 0 (host HOST) was lost in step 12: its connection was closed",
     .dies = 1 << 0},
    {.name = "killed, abort hangs",
     .floor = 4,
     .play = play_killed_abort_hangs,
     .verdict = "process 2 (host HOST) was lost in step 12: its connection was closed",
     .dies = 1 << 2},
    {.name = "ends between steps",
     .floor = 4,
     .play = play_ended,
     .verdict = "process 3 (host HOST) was lost between steps: its connection was closed",
     .dies = 1 << 3},
    {.name = "frozen",
     .floor = 4,
     .play = play_frozen,
     .verdict = "process 1 (host HOST) was lost in step 12: no heartbeat for # s",
     .freezes = 1 << 1},
    {.name = "0 is frozen",
     .floor = 4,
     .play = play_frozen_0,
     .verdict = "process 0 (host HOST) was lost in step 12: no heartbeat for # s",
     .freezes = 1 << 0},
    {.name = "behind",
     .floor = 3,
     .play = play_behind,
     .verdict = "step 5 has taken # s: processes 1 (host HOST) and 3 (host HOST) are behind, in no "
                "collective operation"},
    {.name = "fewer done",
     .floor = 3,
     .play = play_done_behind,
     .verdict = "step 5 has taken # s: process 0 (host HOST) is behind, in all-reduce 36, 1.0 MB"},
    {.name = "earlier step",
     .floor = 3,
     .play = play_earlier_step,
     .verdict = "step 4 has taken # s: process 2 (host HOST) is behind, in all-reduce 40, 1.0 MB"},
    {.name = "hang",
     .floor = 3,
     .play = play_hang,
     .verdict = "step 5 has taken # s: all processes are in all-reduce 37, 1.0 MB"},
    {.name = "failure",
     .floor = 6,
     .play = play_failure,
     .verdict = "process 3 (host HOST) cannot continue in step 5: the network is down"},
    {.name = "failure at 0",
     .floor = 6,
     .play = play_failure_0,
     .verdict = "process 0 (host HOST) cannot continue in step 5: the network is down"},
    {.name = "failure of a lost peer",
     .floor = 6,
     .play = play_failure_of_lost,
     .verdict = "process 1 (host HOST) was lost in step 5: its connection was closed",
     .dies = 1 << 1},
    {.name = "0 leaves first", .floor = 4, .play = play_leave_0_first},
    {.name = "0 leaves last", .floor = 4, .play = play_leave_0_last},
    {.name = "all leave together", .floor = 4},
    {.name = "one is saving", .floor = 3, .play = play_saving},
    {.name = "long steps", .floor = 3, .play = play_long_step},
    {.name = "many steps", .floor = 3, .play = play_many_steps},
    {.name = "a long first step", .floor = 3, .play = play_long_first_step, .first = 1},
    {.name = "a signal", .floor = 4, .play = play_signal},
    {.name = "suspended", .floor = 4, .play = play_long_step, .suspended = 1},
};
enum { COUNT = sizeof(cases) / sizeof(cases[0]) };

// ---- processes --------------------------------------------------------------------------------------------

static int listen_here(int *port) {
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t length = sizeof(address);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int s = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (bind(s, (struct sockaddr *)&address, length) != 0 || listen(s, 16) != 0) die("cannot listen");
    getsockname(s, (struct sockaddr *)&address, &length);
    *port = ntohs(address.sin_port);
    return s;
}

static Control *meet(int rank, int listening, int port) {
    Launch launch = {LAUNCHED_BY_SELF, rank, SIZE, rank, SIZE, "127.0.0.1", port, -1, (uint64_t)port};
    Error error;
    Control *control = control_open(&launch, rank == 0 ? listening : -1, NULL, 60, &error);
    if (control == NULL) die("%s", error.text);
    return control;
}

static void be_process(Case *c, int rank, int listening, int port) {
    dup2(fileno(c->outputs[rank]), STDERR_FILENO);
    Control *control = meet(rank, listening, port);
    fake.aborted = &c->aborted[rank];
    Watched watched = {&fake, fake_progress, fake_abort};
    Watchdog *w = watchdog_start(control, &watched, c->floor);
    if (w == NULL) die("no watchdog");
    watchdog_step(w, 1);
    if (!c->first) watchdog_learn(w, 0.001);
    if (c->play != NULL) c->play(rank, w);
    watchdog_stop(w);
    control_close(control);
    _exit(0);
}

static void start(Case *c) {
    int port, listening = listen_here(&port);
    c->aborted = (int *)mmap(NULL, SIZE * sizeof(int), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
                             0);
    c->began = seconds_now();
    for (int rank = 0; rank < SIZE; rank++) {
        c->outputs[rank] = tmpfile();
        if ((c->pids[rank] = fork()) != 0) continue;
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (rank != 0) close(listening);
        be_process(c, rank, listening, port);
    }
    close(listening);
}

// Returns 1 if the text matches the pattern, in which "HOST" is this host and "#" any number.
static int is_like(const char *text, const char *pattern) {
    static char host[64];
    gethostname(host, sizeof(host) - 1);
    while (*pattern != '\0') {
        if (*pattern == '#') {
            size_t digits = strspn(text, "0123456789.");
            if (digits == 0) return 0;
            text += digits;
            pattern++;
        } else if (strncmp(pattern, "HOST", 4) == 0) {
            if (strncmp(text, host, strlen(host)) != 0) return 0;
            text += strlen(host);
            pattern += 4;
        } else if (*text++ != *pattern++) {
            return 0;
        }
    }
    return *text == '\0' || *text == ';';
}

static void expect_verdict(const Case *c, int rank, int status, const char *text) {
    char own[64];
    snprintf(own, sizeof(own), "; this is process %d (host ", rank);
    EXPECT(WIFEXITED(status) && WEXITSTATUS(status) == EXIT_LOST_PEER, "%s: process %d ended with %x",
           c->name, rank, status);
    EXPECT(c->aborted[rank] == 1, "%s: process %d: abort was called %d times", c->name, rank,
           c->aborted[rank]);
    const char *end = strchr(text, '\n');
    EXPECT(strncmp(text, "error: ", 7) == 0 && is_like(text + 7, c->verdict) && strstr(text, own) != NULL &&
               end != NULL && end[1] == '\0',
           "%s: process %d: '%s', not '%s'", c->name, rank, text, c->verdict);
}

static void finish_process(const Case *c, int rank) {
    int status;
    char text[1024] = "";
    if (c->freezes >> rank & 1) kill(c->pids[rank], SIGCONT);
    waitpid(c->pids[rank], &status, 0);
    rewind(c->outputs[rank]);
    text[fread(text, 1, sizeof(text) - 1, c->outputs[rank])] = '\0';
    fclose(c->outputs[rank]);
    if (c->dies >> rank & 1)
        EXPECT(WIFSIGNALED(status), "%s: process %d ended with %x: %s", c->name, rank, status, text);
    else if (c->freezes >> rank & 1) // continues when the others have ended
        EXPECT(WIFEXITED(status) && WEXITSTATUS(status) == EXIT_LOST_PEER, "%s: process %d ended with %x: %s",
               c->name, rank, status, text);
    else if (c->verdict == NULL)
        EXPECT(status == 0 && text[0] == '\0' && c->aborted[rank] == 0, "%s: process %d ended with %x: '%s'",
               c->name, rank, status, text);
    else
        expect_verdict(c, rank, status, text);
}

static void finish(Case *c) {
    for (int rank = 0; rank < SIZE; rank++)
        if (!(c->freezes >> rank & 1)) finish_process(c, rank);
    for (int rank = 0; rank < SIZE; rank++)
        if (c->freezes >> rank & 1) finish_process(c, rank);
    EXPECT(seconds_now() - c->began < 50, "%s: %.1f s", c->name, seconds_now() - c->began);
}

static void signal_suspended(int number) {
    for (int i = 0; i < COUNT; i++)
        for (int rank = 0; rank < SIZE && cases[i].suspended; rank++) kill(cases[i].pids[rank], number);
}

// Without a watchdog all functions accept NULL.
static void test_none(void) {
    Watched watched = {&fake, fake_progress, fake_abort};
    Watchdog *w = watchdog_start(NULL, &watched, 5);
    EXPECT(w == NULL, "one process has a watchdog");
    watchdog_step(w, 1);
    watchdog_learn(w, 1);
    watchdog_stop(w);
    int port, listening = listen_here(&port);
    Launch launch = {LAUNCHED_BY_SELF, 0, 1, 0, 1, "127.0.0.1", port, -1, 7};
    Error error;
    Control *control = control_open(&launch, listening, NULL, 5, &error);
    EXPECT(control != NULL && watchdog_start(control, &watched, 5) == NULL, "one process has a watchdog");
    EXPECT(watchdog_start(control, &watched, 0) == NULL, "a floor of 0");
    control_close(control);
}

int main(void) {
    alarm(100); // no test may hang
    setvbuf(stdout, NULL, _IOLBF, 0);
    test_none();
    for (int i = 0; i < COUNT; i++) start(&cases[i]);
    sleep_for(3);
    signal_suspended(SIGSTOP);
    sleep_for(6);
    signal_suspended(SIGCONT);
    for (int i = 0; i < COUNT; i++) finish(&cases[i]);
    return test_finish();
}
