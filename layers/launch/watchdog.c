// See watchdog.h.
#define _GNU_SOURCE
#include "bytes.h"
#include "watchdog.h"
#include "layers/base/progress.h"
#include "layers/base/threads.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

// ---- messages ---------------------------------------------------------------------------------------------

// HEARTBEAT: the sender's progress. GOODBYE: the sender exits normally. TROUBLE: an error of the sender's transport
// (text). VERDICT: from process 0, a sentence; the receiver exits.
typedef enum { HEARTBEAT = 1, GOODBYE, TROUBLE, VERDICT } Kind;

// The progress of a process.
typedef struct {
    int64_t step;          // 0: it does something that has no deadline
    uint64_t begun;        // calls of watchdog_step
    uint64_t queued, done; // operations
    double deadline;       // of its step, in seconds
} State;

// Offsets in a message: magic, kind, the state (the deadline in microseconds), text; integers are little-endian.
enum {
    AT_KIND = 4,
    AT_STEP = 8,
    AT_BEGUN = 16,
    AT_QUEUED = 24,
    AT_DONE = 32,
    AT_DEADLINE = 40,
    AT_TEXT = 48
};
enum { MESSAGE_SIZE = 560, TEXT_SIZE = MESSAGE_SIZE - AT_TEXT };
static const unsigned char MAGIC[AT_KIND] = {'G', 'P', 'T', 0xb1};

static void write_message(unsigned char *bytes, Kind kind, const State *state, const char *text) {
    memset(bytes, 0, MESSAGE_SIZE);
    memcpy(bytes, MAGIC, sizeof(MAGIC));
    put_number(bytes + AT_KIND, kind, 4);
    put_number(bytes + AT_STEP, (uint64_t)state->step, 8);
    put_number(bytes + AT_BEGUN, state->begun, 8);
    put_number(bytes + AT_QUEUED, state->queued, 8);
    put_number(bytes + AT_DONE, state->done, 8);
    put_number(bytes + AT_DEADLINE, (uint64_t)(1e6 * state->deadline), 8);
    snprintf((char *)bytes + AT_TEXT, TEXT_SIZE, "%s", text);
}

static void read_state(const unsigned char *bytes, State *state) {
    state->step = (int64_t)get_number(bytes + AT_STEP, 8);
    state->begun = get_number(bytes + AT_BEGUN, 8);
    state->queued = get_number(bytes + AT_QUEUED, 8);
    state->done = get_number(bytes + AT_DONE, 8);
    state->deadline = 1e-6 * (double)get_number(bytes + AT_DEADLINE, 8);
}

// ---- state ------------------------------------------------------------------------------------------------

// The state of a watched process. Processes other than 0 watch process 0 only.
typedef struct {
    int rank, socket;
    int has_reported; // has sent a message
    int left;  // has said goodbye
    double last_heard;
    State state;
    double step_began; // in terms of step_clock
    char current[TEXT_SIZE];
    unsigned char in[MESSAGE_SIZE];
    size_t in_count;
    unsigned char out[4 * MESSAGE_SIZE];
    size_t out_count;
} Peer;

enum { NUM_DURATIONS = 20, TRANSPORT_GRACE = 1, ABORT_SECONDS = 3, GOODBYE_SECONDS = 1 };

struct Watchdog {
    Control *control;
    Watched watched;
    int rank, size;
    double floor, silence, interval;
    double stuck_seconds;   // seconds for which all processes have been in an operation
    uint64_t previous_done; // operations completed, over all processes
    char host[64];
    pthread_t thread;
    int wake; // an eventfd that watchdog_stop writes to

    // Shared with the process's main thread; guarded by `mutex`.
    pthread_mutex_t mutex;
    int64_t step;
    uint64_t begun, steps; // calls of watchdog_step, and those of them that began a step
    double durations[NUM_DURATIONS];
    uint64_t num_durations;
    int stop;

    // Used by the watchdog's thread only.
    Peer self, *peers; // (num_peers)
    int num_peers;
    double now, last_real; // `now` does not advance while this thread does not run
    double step_clock;     // advances only while all processes are inside steps
    double last_beat, trouble_at;
    char trouble[TEXT_SIZE]; // empty: none
};

// Queries the transport and updates this process's own state.
static void update_self(Watchdog *w, char *failure, size_t size) {
    CommProgress progress;
    memset(&progress, 0, sizeof(progress));
    w->watched.progress(w->watched.comm, &progress);
    pthread_mutex_lock(&w->mutex);
    State *state = &w->self.state;
    state->step = w->step;
    state->begun = w->begun;
    state->queued = progress.queued;
    state->done = progress.done;
    double longest = 0;
    for (int i = 0; i < NUM_DURATIONS; i++)
        if (w->durations[i] > longest) longest = w->durations[i];
    // The second step may begin before the device has finished the first, so this does not test `steps`.
    int first = w->num_durations == 0;
    state->deadline = first ? 10 * w->floor : 10 * longest > w->floor ? 10 * longest : w->floor;
    pthread_mutex_unlock(&w->mutex);
    snprintf(w->self.current, sizeof(w->self.current), "%s", progress.current);
    snprintf(failure, size, "%s", progress.failure);
}

// ---- the end ----------------------------------------------------------------------------------------------

typedef struct {
    Watchdog *watchdog;
    const char *sentence;
    int done;
} Ending;

// Runs in a thread of its own, as each of these calls may hang.
static void *print_and_abort(void *argument) {
    Ending *ending = (Ending *)argument;
    Watchdog *w = ending->watchdog;
    fprintf(stderr, "error: %s; this is process %d (host %s), in %s\n", ending->sentence, w->rank, w->host,
            w->self.current[0] != '\0' ? w->self.current : "no collective operation");
    w->watched.abort(w->watched.comm);
    fflush(stdout);
    __atomic_store_n(&ending->done, 1, __ATOMIC_RELEASE);
    return NULL;
}

static void end_process(Watchdog *w, const char *sentence) __attribute__((noreturn));
static void end_process(Watchdog *w, const char *sentence) {
    Ending ending = {w, sentence, 0};
    pthread_t thread;
    double until = seconds_now() + ABORT_SECONDS;
    if (pthread_create(&thread, NULL, print_and_abort, &ending) == 0) {
        pthread_detach(thread);
        while (!__atomic_load_n(&ending.done, __ATOMIC_ACQUIRE) && seconds_now() < until) usleep(5000);
    }
    _exit(EXIT_LOST_PEER);
}

// ---- connections ------------------------------------------------------------------------------------------

// Sends as much as possible; the rest stays in the buffer. The end of a connection is noticed when it is read.
static void flush_peer(Peer *peer) {
    while (peer->out_count > 0) {
        ssize_t sent = send(peer->socket, peer->out, peer->out_count, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0 && errno == EINTR) continue;
        if (sent <= 0) return;
        peer->out_count -= (size_t)sent;
        memmove(peer->out, peer->out + sent, peer->out_count);
    }
}

static void send_to(Watchdog *w, Peer *peer, Kind kind, const char *text) {
    if (peer->socket < 0 || peer->left) return;
    // A heartbeat is skipped if another message is still waiting to be sent.
    size_t room = kind == HEARTBEAT ? MESSAGE_SIZE : sizeof(peer->out);
    if (peer->out_count + MESSAGE_SIZE <= room) {
        write_message(peer->out + peer->out_count, kind, &w->self.state, text);
        peer->out_count += MESSAGE_SIZE;
    }
    flush_peer(peer);
}

static void send_to_all(Watchdog *w, Kind kind, const char *text) {
    for (int i = 0; i < w->num_peers; i++) send_to(w, &w->peers[i], kind, text);
}

// Sends the verdict to the other processes, if this is process 0, and exits.
static void judge(Watchdog *w, const char *sentence) __attribute__((noreturn));
static void judge(Watchdog *w, const char *sentence) {
    if (w->rank == 0) send_to_all(w, VERDICT, sentence);
    end_process(w, sentence);
}

static const char *host_of(const Watchdog *w, const Peer *peer) {
    return peer->rank == w->rank ? w->host : control_host(w->control, peer->rank);
}

static const char *name_step(const Peer *peer, char *text, size_t size) {
    snprintf(text, size, "in step %lld", (long long)peer->state.step);
    return peer->state.step > 0 ? text : peer->state.begun > 0 ? "between steps" : "before its first step";
}

static void judge_lost(Watchdog *w, const Peer *peer, const char *why) __attribute__((noreturn));
static void judge_lost(Watchdog *w, const Peer *peer, const char *why) {
    char sentence[TEXT_SIZE], where[48];
    snprintf(sentence, sizeof(sentence), "process %d (host %.63s) was lost %s: %.95s", peer->rank,
             host_of(w, peer), name_step(peer, where, sizeof(where)), why);
    judge(w, sentence);
}

static void note_trouble(Watchdog *w, const Peer *peer, const char *what) {
    if (w->trouble[0] != '\0') return;
    char where[48];
    snprintf(w->trouble, sizeof(w->trouble), "process %d (host %.63s) cannot continue %s: %.160s", peer->rank,
             host_of(w, peer), name_step(peer, where, sizeof(where)), what);
    w->trouble_at = w->now;
}

static void handle_message(Watchdog *w, Peer *peer) {
    const unsigned char *bytes = peer->in;
    char text[TEXT_SIZE];
    snprintf(text, sizeof(text), "%.*s", TEXT_SIZE - 1, (const char *)bytes + AT_TEXT);
    if (memcmp(bytes, MAGIC, sizeof(MAGIC)) != 0)
        judge_lost(w, peer, "it sent something that is not a heartbeat");
    uint64_t begun = peer->state.begun;
    read_state(bytes, &peer->state);
    if (begun != peer->state.begun) peer->step_began = w->step_clock;
    peer->has_reported = 1;
    peer->last_heard = w->now;
    switch ((Kind)get_number(bytes + AT_KIND, 4)) {
    case HEARTBEAT:
        memcpy(peer->current, text, sizeof(text));
        break;
    case TROUBLE:
        note_trouble(w, peer, text);
        break;
    case VERDICT:
        end_process(w, text);
    case GOODBYE:
        peer->left = 1;
        shutdown(peer->socket, SHUT_WR); // confirms that the goodbye has arrived
        break;
    }
}

// Reads all messages that have arrived. Returns 1 when the connection has ended.
static int receive_from(Watchdog *w, Peer *peer) {
    for (;;) {
        ssize_t got = recv(peer->socket, peer->in + peer->in_count, MESSAGE_SIZE - peer->in_count,
                           MSG_DONTWAIT);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return 0;
        if (got <= 0) return 1;
        peer->in_count += (size_t)got;
        if (peer->in_count < MESSAGE_SIZE) continue;
        peer->in_count = 0;
        handle_message(w, peer);
    }
}

// Waits for messages, at most until the next heartbeat is due, and handles them. From a process that has said goodbye
// only the end of the connection is still expected.
static void listen_to_all(Watchdog *w, struct pollfd *polled) {
    for (int i = 0; i < w->num_peers; i++) polled[i] = (struct pollfd){w->peers[i].socket, POLLIN, 0};
    polled[w->num_peers] = (struct pollfd){w->wake, POLLIN, 0};
    double left = w->last_beat + w->interval - w->now;
    poll(polled, (nfds_t)w->num_peers + 1, left > 0 ? (int)(1000 * left) + 1 : 0);
    double real = seconds_now(), passed = real - w->last_real;
    // A longer pause means that this process did not run, which is not silence of the others.
    w->now += passed < 2 * w->interval ? passed : 2 * w->interval;
    w->last_real = real;
    for (int i = 0; i < w->num_peers; i++) {
        Peer *peer = &w->peers[i];
        if (polled[i].revents == 0 || !receive_from(w, peer)) continue;
        if (!peer->left) judge_lost(w, peer, "its connection was closed");
        peer->socket = -1; // poll ignores -1; the control channel closes the socket
    }
}

// ---- process 0 judges steps -------------------------------------------------------------------------------

// Returns the state of any rank: of process 0 itself, or of a peer.
static Peer *process_state(Watchdog *w, int rank) {
    return rank == 0 ? &w->self : &w->peers[rank - 1];
}

// Returns < 0 if a is behind b.
static int compare_progress(const State *a, const State *b) {
    if (a->step != b->step) return a->step < b->step ? -1 : 1;
    if (a->done != b->done) return a->done < b->done ? -1 : 1;
    if (a->queued != b->queued) return a->queued < b->queued ? -1 : 1;
    return 0;
}

// Lists the processes with the least progress, at most 4 by name: " 1 (host b) and 3 (host c) are".
static void list_behind(Watchdog *w, const State *slowest, int count, char *text, size_t size) {
    enum { NAMED = 4 };
    int named = 0, most = count <= NAMED ? count : NAMED - 1;
    snprintf(text, size, "%s", count == 1 ? "" : "es");
    for (int rank = 0; rank < w->size && named < most; rank++) {
        const Peer *peer = process_state(w, rank);
        if (peer->left || compare_progress(&peer->state, slowest) != 0) continue;
        size_t length = strlen(text);
        const char *between = named == 0 ? " " : named == count - 1 ? " and " : ", ";
        snprintf(text + length, size - length, "%s%d (host %s)", between, rank, host_of(w, peer));
        named++;
    }
    size_t length = strlen(text);
    if (most < count) snprintf(text + length, size - length, " and %d others", count - most);
    length = strlen(text);
    snprintf(text + length, size - length, count == 1 ? " is" : " are");
}

static void judge_step(Watchdog *w, double seconds) __attribute__((noreturn));
static void judge_step(Watchdog *w, double seconds) {
    const Peer *slowest = &w->self;
    char sentence[TEXT_SIZE], names[TEXT_SIZE / 2];
    int behind = 0, all = 0;
    for (int rank = 1; rank < w->size; rank++)
        if (!process_state(w, rank)->left &&
            compare_progress(&process_state(w, rank)->state, &slowest->state) < 0)
            slowest = process_state(w, rank);
    for (int rank = 0; rank < w->size; rank++) {
        all += !process_state(w, rank)->left;
        behind += !process_state(w, rank)->left &&
                  compare_progress(&process_state(w, rank)->state, &slowest->state) == 0;
    }
    const char *operation = slowest->current[0] != '\0' ? slowest->current : "no collective operation";
    char what[64] = "the work between steps";
    if (slowest->state.step > 0) snprintf(what, sizeof(what), "step %lld", (long long)slowest->state.step);
    if (behind == all) {
        snprintf(sentence, sizeof(sentence), "%s has taken %.1f s: all processes are in %.95s", what, seconds,
                 operation);
    } else {
        list_behind(w, &slowest->state, behind, names, sizeof(names));
        snprintf(sentence, sizeof(sentence), "%s has taken %.1f s: process%s behind, in %.95s", what, seconds,
                 names, operation);
    }
    judge(w, sentence);
}

// Outside of steps there is no deadline while any process is working. But if all processes have been in an operation
// for 3 floors and none has completed, all of them hang.
static void check_operations(Watchdog *w, double passed) {
    uint64_t done = 0;
    int all_wait = 1;
    for (int rank = 0; rank < w->size; rank++) {
        const Peer *peer = process_state(w, rank);
        done += peer->state.done;
        if (!peer->left && peer->state.queued == peer->state.done) all_wait = 0;
    }
    w->stuck_seconds = all_wait && done == w->previous_done ? w->stuck_seconds + passed : 0;
    w->previous_done = done;
    if (w->stuck_seconds > 3 * w->floor) judge_step(w, w->stuck_seconds);
}

static void check_steps(Watchdog *w, double passed) {
    double deadline = 0, longest = 0;
    for (int rank = 0; rank < w->size; rank++) {
        const Peer *peer = process_state(w, rank);
        if (peer->left) continue;
        if (peer->state.step == 0) return; // the others wait for this one
        if (peer->state.deadline > deadline) deadline = peer->state.deadline;
    }
    w->step_clock += passed;
    for (int rank = 0; rank < w->size; rank++) {
        const Peer *peer = process_state(w, rank);
        if (!peer->left && w->step_clock - peer->step_began > longest)
            longest = w->step_clock - peer->step_began;
    }
    // A process that may be frozen is judged by its silence, not by its step.
    for (int i = 0; i < w->num_peers; i++)
        if (!w->peers[i].left && w->now - w->peers[i].last_heard > 2 * w->interval) return;
    if (longest > deadline) judge_step(w, longest);
}

static void check_silence(Watchdog *w) {
    for (int i = 0; i < w->num_peers; i++) {
        const Peer *peer = &w->peers[i];
        double silent_seconds = w->now - peer->last_heard;
        if (peer->left || silent_seconds <= (peer->has_reported ? w->silence : 10 * w->floor)) continue;
        char why[64];
        snprintf(why, sizeof(why), "no heartbeat for %.1f s", silent_seconds);
        judge_lost(w, peer, why);
    }
}

// ---- the thread -------------------------------------------------------------------------------------------

// Processes other than 0 report the failure to process 0, and wait for its verdict a little longer than it needs.
static void check_transport(Watchdog *w, const char *failure) {
    if (failure[0] != '\0' && w->trouble[0] == '\0') {
        note_trouble(w, &w->self, failure);
        if (w->rank != 0) send_to_all(w, TROUBLE, failure);
    }
    double grace = w->rank == 0 ? TRANSPORT_GRACE : 2 * TRANSPORT_GRACE;
    if (w->trouble[0] != '\0' && w->now - w->trouble_at > grace) judge(w, w->trouble);
}

static int is_stopped(Watchdog *w) {
    pthread_mutex_lock(&w->mutex);
    int stop = w->stop;
    pthread_mutex_unlock(&w->mutex);
    return stop;
}

// Says goodbye and waits briefly for confirmation: each peer that has received it closes its half of the connection.
static void say_goodbye(Watchdog *w) {
    double until = seconds_now() + GOODBYE_SECONDS;
    send_to_all(w, GOODBYE, "");
    for (int i = 0; i < w->num_peers; i++) {
        Peer *peer = &w->peers[i];
        int sent = 0;
        while (peer->socket >= 0 && !peer->left && seconds_now() < until) {
            unsigned char discarded[MESSAGE_SIZE];
            flush_peer(peer);
            if (peer->out_count == 0 && !sent) sent = shutdown(peer->socket, SHUT_WR) == 0;
            ssize_t got = recv(peer->socket, discarded, sizeof(discarded), MSG_DONTWAIT);
            if (got > 0 || (got < 0 && errno == EINTR)) continue;
            if (got == 0 || (errno != EAGAIN && errno != EWOULDBLOCK)) break;
            struct pollfd polled = {peer->socket, sent ? POLLIN : POLLIN | POLLOUT, 0};
            poll(&polled, 1, 1000 * GOODBYE_SECONDS / 10);
        }
    }
}

static void *watch(void *argument) {
    Watchdog *w = (Watchdog *)argument;
    struct pollfd *polled = (struct pollfd *)xcalloc((size_t)w->num_peers + 1, sizeof(struct pollfd));
    // If process 0 has left, nothing is judged any more.
    while (!is_stopped(w) && !(w->rank != 0 && w->peers[0].left)) {
        char failure[160];
        uint64_t begun = w->self.state.begun;
        update_self(w, failure, sizeof(failure));
        if (begun != w->self.state.begun) w->self.step_began = w->step_clock;
        if (w->now - w->last_beat >= 0.9 * w->interval) {
            send_to_all(w, HEARTBEAT, w->self.current);
            w->last_beat = w->now;
        }
        for (int i = 0; i < w->num_peers; i++) flush_peer(&w->peers[i]);
        double before = w->now;
        listen_to_all(w, polled);
        check_silence(w);
        check_transport(w, failure);
        if (w->rank != 0) continue;
        check_steps(w, w->now - before);
        check_operations(w, w->now - before);
    }
    say_goodbye(w);
    free(polled);
    return NULL;
}

// ---- functions of the main thread -------------------------------------------------------------------------

static void prepare_peers(Watchdog *w) {
    const int *sockets = control_sockets(w->control);
    w->num_peers = w->rank == 0 ? w->size - 1 : 1;
    w->peers = (Peer *)xcalloc((size_t)w->num_peers, sizeof(Peer));
    for (int i = 0; i < w->num_peers; i++) {
        w->peers[i].rank = w->rank == 0 ? i + 1 : 0;
        w->peers[i].socket = sockets[w->peers[i].rank];
    }
}

Watchdog *watchdog_start(Control *control, const Watched *watched, double floor) {
    if (control == NULL || floor <= 0 || control_size(control) < 2) return NULL;
    Watchdog *w = (Watchdog *)xcalloc(1, sizeof(Watchdog));
    w->control = control;
    w->watched = *watched;
    w->rank = w->self.rank = control_rank(control);
    w->size = control_size(control);
    w->floor = floor;
    w->silence = floor > 30 ? 30 : floor < 2 ? 2 : floor;
    w->interval = w->silence / 4 < 0.5 ? w->silence / 4 : 0.5;
    w->self.socket = -1;
    w->last_beat = -w->interval;
    w->last_real = seconds_now();
    if (gethostname(w->host, sizeof(w->host) - 1) != 0) strcpy(w->host, "?");
    prepare_peers(w);
    pthread_mutex_init(&w->mutex, NULL);
    w->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (w->wake < 0 || thread_start(&w->thread, watch, w) != 0) die("cannot start the watchdog's thread");
    return w;
}

void watchdog_step(Watchdog *w, int64_t step) {
    if (w == NULL) return;
    pthread_mutex_lock(&w->mutex);
    w->step = step;
    w->begun++;
    w->steps += step > 0;
    pthread_mutex_unlock(&w->mutex);
}

void watchdog_learn(Watchdog *w, double seconds) {
    if (w == NULL) return;
    pthread_mutex_lock(&w->mutex);
    w->durations[w->num_durations++ % NUM_DURATIONS] = seconds;
    pthread_mutex_unlock(&w->mutex);
}

void watchdog_stop(Watchdog *w) {
    if (w == NULL) return;
    pthread_mutex_lock(&w->mutex);
    w->stop = 1;
    pthread_mutex_unlock(&w->mutex);
    eventfd_write(w->wake, 1);
    pthread_join(w->thread, NULL);
    close(w->wake);
    pthread_mutex_destroy(&w->mutex);
    free(w->peers);
    free(w);
}
