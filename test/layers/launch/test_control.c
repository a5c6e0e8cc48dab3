// The control channel with real processes on this host: how they find each other; late, missing and contradictory
// processes; unrelated programs; broadcasts from process 0.
#define _GNU_SOURCE
#include "layers/launch/control.h"
#include "test/harness/test.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MAX_PROCESSES = 8 };

// The results of a process, in shared memory.
typedef struct {
    int opened, received, sockets, names_match;
    double seconds;
    Error error;
} Outcome;

// A group of processes that connect. Array fields have one element per process; a case changes the defaults of
// `usual`.
typedef struct {
    const char *name, *master;
    int count;                                                         // number of processes started
    int rank[MAX_PROCESSES], size[MAX_PROCESSES], late[MAX_PROCESSES]; // `late`: milliseconds
    int quits[MAX_PROCESSES]; // seconds after which a process ends; 0: it does not
    uint64_t run[MAX_PROCESSES];
    int port;
    double deadline;
    Launcher launcher;
    int listening;                 // in process 0
    const ControlAddress *address; // may be NULL
    // A process that connects to process 0 and sends: 1 nothing, 2 unrelated data.
    int unrelated;
    Outcome *outcomes;
    pid_t pids[MAX_PROCESSES + 1];
} Case;

static double seconds_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

// Listens on 127.0.0.1; *port 0: any free port.
static int listen_on(int *port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)*port)};
    socklen_t length = sizeof(address);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int on = 1, s = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (bind(s, (struct sockaddr *)&address, length) != 0 || listen(s, 16) != 0) {
        close(s);
        return -1;
    }
    getsockname(s, (struct sockaddr *)&address, &length);
    *port = ntohs(address.sin_port);
    return s;
}

// Returns the first of CONTROL_PORTS free consecutive ports, below the ephemeral ports, different for every case.
static int free_ports(void) {
    static int next;
    if (next == 0) next = 12000 + (int)(getpid() % 500) * 32;
    for (;; next += CONTROL_PORTS) {
        int taken = 0;
        for (int port = next; port < next + CONTROL_PORTS && !taken; port++) {
            int number = port, s = listen_on(&number);
            taken = s < 0;
            if (s >= 0) close(s);
        }
        next += CONTROL_PORTS;
        if (!taken) return next - CONTROL_PORTS;
    }
}

static Case usual(const char *name, int count) {
    Case c;
    static uint64_t run;
    if (run == 0) run = (uint64_t)getpid() << 32; // this test may run several times on this host
    run += 16;
    memset(&c, 0, sizeof(c));
    c.name = name;
    c.master = "127.0.0.1";
    c.count = count;
    c.port = free_ports();
    c.deadline = 60;
    c.launcher = LAUNCHED_BY_TORCHRUN;
    c.listening = -1;
    for (int p = 0; p < count; p++) {
        c.rank[p] = p;
        c.size[p] = count;
        c.run[p] = run;
    }
    c.outcomes = (Outcome *)mmap(NULL, sizeof(Outcome) * MAX_PROCESSES, PROT_READ | PROT_WRITE,
                                 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    return c;
}

// A process: connects to the others, receives process 0's broadcasts, and records the results.
static void run_process(const Case *c, int p) {
    Outcome *o = &c->outcomes[p];
    Launch launch = {c->launcher, c->rank[p], c->size[p], c->rank[p], c->size[p], "", c->port, -1, c->run[p]};
    strcpy(launch.master, c->master);
    usleep((unsigned)c->late[p] * 1000);
    if (c->quits[p]) alarm((unsigned)c->quits[p]);
    double began = seconds_now();
    int listening = c->rank[p] == 0 ? c->listening : -1;
    if (c->rank[p] != 0 && c->listening >= 0) close(c->listening);
    Control *control = control_open(&launch, listening, c->address, c->deadline, &o->error);
    o->seconds = seconds_now() - began;
    o->opened = control != NULL;
    if (control == NULL) _exit(0);
    static unsigned char text[300000]; // more than a socket buffer holds
    memset(text, c->rank[p] == 0 ? 'x' : 0, sizeof(text));
    o->received = control_broadcast(control, text, sizeof(text), &o->error) == 0 && text[0] == 'x' &&
                  text[sizeof(text) - 1] == 'x';
    char host[64] = "";
    gethostname(host, sizeof(host) - 1);
    o->names_match = strcmp(control_host(control, 0), host) == 0 && control_rank(control) == c->rank[p] &&
                     control_size(control) == c->size[p];
    for (int r = 0; r < (c->rank[p] == 0 ? c->size[p] : 1); r++) {
        o->sockets += control_sockets(control)[r] >= 0;
        o->names_match = o->names_match && (c->rank[p] != 0 || strcmp(control_host(control, r), host) == 0);
    }
    char end = '\0';
    // No process exits before all have received this.
    o->received = o->received && control_broadcast(control, &end, 1, &o->error) == 0;
    control_close(control);
    _exit(0);
}

static void run_unrelated(const Case *c) {
    struct sockaddr_in address = {.sin_family = AF_INET};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    for (;; usleep(20000))
        for (int port = c->port; port < c->port + (c->launcher == LAUNCHED_BY_SELF ? 1 : 2); port++) {
            address.sin_port = htons((uint16_t)port);
            int s = socket(AF_INET, SOCK_STREAM, 0);
            if (connect(s, (struct sockaddr *)&address, sizeof(address)) != 0) {
                close(s);
            } else if (c->unrelated == 2) {
                send(s, "GET / HTTP/1.0\r\n\r\n", 18, MSG_NOSIGNAL);
            }
        }
}

static void start(Case *c) {
    for (int p = 0; p <= c->count; p++) {
        if (p == c->count && !c->unrelated) break;
        if ((c->pids[p] = fork()) != 0) continue;
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (p == c->count) run_unrelated(c);
        run_process(c, p);
    }
    if (c->listening >= 0) close(c->listening);
}

static void finish(Case *c) {
    for (int p = 0; p < c->count; p++) {
        int status;
        waitpid(c->pids[p], &status, 0);
        EXPECT(c->quits[p] || status == 0, "%s: process %d ended with %x", c->name, p, status);
    }
    if (!c->unrelated) return;
    kill(c->pids[c->count], SIGKILL);
    waitpid(c->pids[c->count], NULL, 0);
}

static void expect_met(const Case *c) {
    for (int p = 0; p < c->count; p++) {
        const Outcome *o = &c->outcomes[p];
        EXPECT(o->opened && o->received && o->names_match &&
                   o->sockets == (c->rank[p] == 0 ? c->count - 1 : 1),
               "%s, process %d: opened %d, told %d, named %d, %d sockets: %s", c->name, p, o->opened,
               o->received, o->names_match, o->sockets, o->error.text);
        EXPECT(o->seconds < c->deadline / 2, "%s, process %d: %.1f s", c->name, p, o->seconds);
    }
}

static void expect_error(const Case *c, int p, const char *wanted, double seconds) {
    const Outcome *o = &c->outcomes[p];
    EXPECT(!o->opened && strstr(o->error.text, wanted) != NULL, "%s, process %d: '%s', not '%s'", c->name, p,
           o->error.text, wanted);
    EXPECT(o->seconds < seconds, "%s, process %d took %.1f s", c->name, p, o->seconds);
}

static void test_meetings(void) {
    Case cases[16];
    char host[64] = "";
    int n = 0, strangers[CONTROL_PORTS];
    ControlAddress address;
    Error error;
    gethostname(host, sizeof(host) - 1);
    for (int count = 1; count <= 5; count++) cases[n++] = usual("processes", count);
    cases[n] = usual("process 0 comes late", 3);
    cases[n++].late[0] = 1500;
    cases[n] = usual("everybody comes late", 4);
    for (int p = 0; p < 4; p++) cases[n].late[p] = 300 * p;
    n++;
    cases[n] = usual("by the name localhost", 3);
    cases[n++].master = "localhost";
    cases[n] = usual("by IPv6", 3); // without IPv6, this is localhost again
    int v6 = socket(AF_INET6, SOCK_STREAM, 0);
    struct sockaddr_in6 loopback = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    cases[n++].master = bind(v6, (struct sockaddr *)&loopback, sizeof(loopback)) == 0 ? "::1" : "localhost";
    close(v6);
    cases[n] = usual("by the host's name", 3);
    cases[n++].master = host;
    cases[n] = usual("a silent client", 3);
    cases[n].late[2] = 1000;
    cases[n++].unrelated = 1;
    cases[n] = usual("a client that says something else", 3);
    cases[n].late[1] = 1000;
    cases[n++].unrelated = 2;
    cases[n] = usual("a socket that listens already", 3);
    cases[n].launcher = LAUNCHED_BY_SELF;
    cases[n].port = 0;
    cases[n].listening = listen_on(&cases[n].port);
    cases[n++].late[0] = 500;
    cases[n] = usual("an address that is told", 4);
    cases[n].listening = control_listen(&address, &error);
    EXPECT(cases[n].listening >= 0 && strstr(address.text, "127.0.0.1") != NULL, "'%s'", address.text);
    cases[n].address = &address;
    cases[n++].port = 1; // not used
    // An unrelated program listens on the first port and sends nothing (the kernel accepts connections).
    cases[n] = usual("a stranger on the first port", 3);
    strangers[0] = listen_on(&cases[n++].port);
    for (int i = 0; i < n; i++) start(&cases[i]);
    for (int i = 0; i < n; i++) {
        finish(&cases[i]);
        expect_met(&cases[i]);
    }
    close(strangers[0]);
}

// Two runs at the same ports, and one whose range of ports begins in the middle of theirs.
static void test_neighbours(void) {
    Case cases[3];
    for (int i = 0; i < 3; i++) {
        cases[i] = usual("neighbours", 3);
        cases[i].port = cases[0].port + (i == 2);
        for (int p = 0; p < 3; p++) {
            cases[i].run[p] = cases[0].run[0] + (uint64_t)i;
            cases[i].late[p] = p == 0 ? 200 * (3 - i) : 0;
        }
    }
    for (int i = 0; i < 3; i++) start(&cases[i]);
    for (int i = 0; i < 3; i++) {
        finish(&cases[i]);
        expect_met(&cases[i]);
    }
}

static void test_errors(void) {
    Case cases[8];
    int n = 0, taken[CONTROL_PORTS];
    cases[n] = usual("one is missing", 3);
    cases[n].deadline = 5;
    for (int p = 0; p < 3; p++) cases[n].size[p] = 4;
    cases[n++].rank[2] = 3;
    cases[n] = usual("three are missing", 1);
    cases[n].deadline = 1;
    cases[n++].size[0] = 4;
    cases[n] = usual("process 0 is missing", 2);
    cases[n].deadline = 2;
    cases[n].rank[0] = 1;
    cases[n].rank[1] = 2;
    cases[n].size[0] = cases[n].size[1] = 3;
    n++;
    cases[n] = usual("twice the same rank", 4);
    cases[n++].rank[2] = 1;
    cases[n] = usual("another size", 4);
    cases[n].size[3] = 3;
    cases[n++].rank[3] = 2;
    cases[n] = usual("one ends early", 3);
    for (int p = 0; p < 3; p++) cases[n].size[p] = 4;
    cases[n++].quits[1] = 4;
    cases[n] = usual("all ports are taken", 1);
    cases[n].size[0] = 2;
    for (int i = 0; i < CONTROL_PORTS; i++) {
        int port = cases[n].port + i;
        taken[i] = listen_on(&port);
    }
    n++;
    cases[n] = usual("process 0's host is not known", 2);
    cases[n++].master = "";
    for (int i = 0; i < n; i++) start(&cases[i]);
    for (int i = 0; i < n; i++) finish(&cases[i]);
    for (int i = 0; i < CONTROL_PORTS; i++) close(taken[i]);
    for (int p = 0; p < 3; p++)
        expect_error(&cases[0], p, "1 of 4 processes is missing after 5 s: rank 2", 25);
    expect_error(&cases[1], 0, "3 of 4 processes are missing after 1 s: ranks 1, 2 and 3", 20);
    for (int p = 0; p < 2; p++)
        expect_error(&cases[2], p, "could not reach process 0 within 2 s at 127.0.0.1, ports ", 20);
    for (int p = 0; p < 4; p++)
        expect_error(&cases[3], p, "two processes claim to be process 1 of 4: one on host ", 25);
    for (int p = 0; p < 4; p++)
        expect_error(&cases[4], p, "was started as one of 3, but process 0 (host ", 25);
    expect_error(&cases[5], 0, "process 1 (host ", 25);
    expect_error(&cases[5], 2, "disconnected while others were still missing", 25);
    expect_error(&cases[6], 0, "are all in use", 20);
    for (int p = 0; p < 2; p++) expect_error(&cases[7], p, "mpirun -x MASTER_ADDR=host", 20);
}

// Process 0 ends, or sends nothing, while the others wait for its broadcast.
static void test_silence(void) {
    for (int silent = 0; silent < 2; silent++) {
        Case c = usual("told nothing", 2);
        Launch launch = {c.launcher, 0, 2, 0, 2, "127.0.0.1", c.port, -1, 7};
        Error error = {"", 0};
        pid_t child = fork();
        if (child != 0) launch.rank = launch.local_rank = 1;
        Control *control = control_open(&launch, -1, NULL, 4, &error);
        if (child == 0) {
            if (control != NULL && silent) pause();
            _exit(0);
        }
        char byte;
        EXPECT(control != NULL && control_broadcast(control, &byte, 1, &error) == -1, "told");
        EXPECT(strstr(error.text, silent ? "has not answered for 4 s" : "was closed") != NULL, "'%s'",
               error.text);
        control_close(control);
        kill(child, SIGKILL);
        waitpid(child, NULL, 0);
    }
}

int main(void) {
    alarm(100); // no test may hang
    setvbuf(stdout, NULL, _IOLBF, 0);
    test_meetings();
    test_neighbours();
    test_errors();
    test_silence();
    return test_finish();
}
