// How processes find each other. Process 0 listens; the others try all its possible addresses and ports at the same
// time. Messages:
//
//     HELLO    from a process: its rank                      JOIN     from a process: it has chosen this connection
//     HERE     from process 0: it belongs to this run        START    from process 0: all processes have joined
//                                                            FAILED   from process 0: the error, one sentence
//
// Only connections that have sent JOIN count. Unrelated clients and unrelated listeners are ignored: they send
// nothing, or something that does not begin with MAGIC and the id of the run.
#define _GNU_SOURCE
#include "bytes.h"
#include "control.h"
#include "layers/base/progress.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <inttypes.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

enum { HOST_SIZE = 64 };

struct Control {
    int rank, size;
    double deadline;          // seconds
    int *sockets;             // (size) in process 0, else (1)
    char (*hosts)[HOST_SIZE]; // (size) in process 0, else (1)
};

// Returns the timeout for poll: the time until `when`, at least 0 and at most an hour.
static int milliseconds_until(double when) {
    double left = when - seconds_now();
    return left <= 0 ? 0 : left > 3600 ? 3600000 : (int)(1000 * left) + 1;
}

static void get_host_name(char *name) {
    memset(name, 0, HOST_SIZE);
    if (gethostname(name, HOST_SIZE - 1) != 0) strcpy(name, "?");
}

// ---- messages ---------------------------------------------------------------------------------------------

typedef enum { HELLO = 1, HERE, JOIN, START, FAILED } Kind;

// Offsets in a message: magic, run, kind, rank, size, text; integers are little-endian.
enum { AT_RUN = 8, AT_KIND = 16, AT_RANK = 20, AT_SIZE = 24, AT_TEXT = 28, MESSAGE_SIZE = 512 };
static const unsigned char MAGIC[8] = {'G', 'P', 'T', 'r', 'u', 'n', 0xd7, 0x0a};

// A message that is being received, perhaps in pieces.
typedef struct {
    unsigned char bytes[MESSAGE_SIZE];
    size_t count;
} Message;

static Kind message_kind(const Message *message) {
    return (Kind)get_number(message->bytes + AT_KIND, 4);
}
static int message_number(const Message *message, int at) {
    return (int)get_number(message->bytes + at, 4);
}
static const char *message_text(const Message *message) {
    return (const char *)message->bytes + AT_TEXT;
}

typedef enum { INCOMPLETE, COMPLETE, ENDED, UNRELATED } Arrival;

// Reads what has arrived of a message, without waiting.
static Arrival receive(int descriptor, uint64_t run, Message *message) {
    unsigned char head[AT_KIND];
    memcpy(head, MAGIC, sizeof(MAGIC));
    put_number(head + AT_RUN, run, 8);
    ssize_t got = recv(descriptor, message->bytes + message->count, MESSAGE_SIZE - message->count,
                       MSG_DONTWAIT);
    if (got < 0) return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR ? INCOMPLETE : ENDED;
    if (got == 0) return ENDED;
    message->count += (size_t)got;
    size_t known = message->count < sizeof(head) ? message->count : sizeof(head);
    if (memcmp(message->bytes, head, known) != 0) return UNRELATED;
    if (message->count < MESSAGE_SIZE) return INCOMPLETE;
    message->bytes[MESSAGE_SIZE - 1] = '\0';
    return COMPLETE;
}

// Returns 0, or -1 if the socket's buffer has no room; it always has, as no other message is in flight.
static int send_message(int descriptor, uint64_t run, Kind kind, int rank, int size, const char *text) {
    unsigned char bytes[MESSAGE_SIZE] = {0};
    memcpy(bytes, MAGIC, sizeof(MAGIC));
    put_number(bytes + AT_RUN, run, 8);
    put_number(bytes + AT_KIND, kind, 4);
    put_number(bytes + AT_RANK, (uint64_t)rank, 4);
    put_number(bytes + AT_SIZE, (uint64_t)size, 4);
    snprintf((char *)bytes + AT_TEXT, MESSAGE_SIZE - AT_TEXT, "%s", text);
    return send(descriptor, bytes, MESSAGE_SIZE, MSG_NOSIGNAL | MSG_DONTWAIT) == MESSAGE_SIZE ? 0 : -1;
}

static void prepare_socket(int descriptor) {
    int on = 1;
    fcntl(descriptor, F_SETFL, fcntl(descriptor, F_GETFL) | O_NONBLOCK);
    setsockopt(descriptor, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    setsockopt(descriptor, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
}

// ---- addresses --------------------------------------------------------------------------------------------

typedef union {
    struct sockaddr any;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
} Address;

static socklen_t address_size(const Address *address) {
    return address->any.sa_family == AF_INET ? sizeof(address->v4) : sizeof(address->v6);
}
static void set_port(Address *address, int port) {
    if (address->any.sa_family == AF_INET)
        address->v4.sin_port = htons((uint16_t)port);
    else
        address->v6.sin6_port = htons((uint16_t)port);
}

// Stores at most `limit` addresses of a host. Returns their number, or -1 and *reason.
static int resolve(const char *host, Address *addresses, int limit, const char **reason) {
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM}, *list;
    int result = getaddrinfo(host, NULL, &hints, &list), count = 0;
    if (result != 0) {
        *reason = result == EAI_SYSTEM ? strerror(errno) : gai_strerror(result);
        return -1;
    }
    for (struct addrinfo *a = list; a != NULL && count < limit; a = a->ai_next)
        if (a->ai_family == AF_INET || a->ai_family == AF_INET6)
            memcpy(&addresses[count++], a->ai_addr, a->ai_addrlen);
    freeaddrinfo(list);
    return count;
}

// Returns a socket that listens at `address`, or -1 with errno.
static int listen_at(const Address *address) {
    int on = 1, off = 0,
        descriptor = socket(address->any.sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (descriptor < 0) return -1;
    // Connections of a previous run may linger.
    setsockopt(descriptor, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (address->any.sa_family == AF_INET6)
        setsockopt(descriptor, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off));
    if (bind(descriptor, &address->any, address_size(address)) == 0 && listen(descriptor, SOMAXCONN) == 0)
        return descriptor;
    int reason = errno;
    close(descriptor);
    errno = reason;
    return -1;
}

// Listens on all addresses of this host: an IPv6 socket accepts IPv4 too; without IPv6, an IPv4 socket.
static int listen_everywhere(int port) {
    Address address;
    memset(&address, 0, sizeof(address));
    address.any.sa_family = AF_INET6;
    set_port(&address, port);
    int descriptor = listen_at(&address);
    if (descriptor >= 0 || errno == EADDRINUSE || errno == EACCES) return descriptor;
    memset(&address, 0, sizeof(address));
    address.any.sa_family = AF_INET;
    set_port(&address, port);
    return listen_at(&address);
}

// Returns 1 for a name that only this host can reach: "localhost", "127.0.0.1", "::1".
static int is_loopback(const char *host) {
    return strcmp(host, "localhost") == 0 || strncmp(host, "127.", 4) == 0 || strcmp(host, "::1") == 0;
}

// Makes process 0 listen at launch->master, on the first free port from launch->port on.
static int listen_for(const Launch *launch, Error *error) {
    Address addresses[8];
    const char *reason = "no address was found for it";
    int local = is_loopback(launch->master), which = 0;
    if (local) {
        int count = resolve(launch->master, addresses, 8, &reason);
        if (count < 1) return fail(error, "cannot listen on %s: %s", launch->master, reason);
        while (which < count - 1 && addresses[which].any.sa_family != AF_INET) which++;
    }
    for (int port = launch->port; port < launch->port + CONTROL_PORTS; port++) {
        set_port(&addresses[which], port);
        int descriptor = local ? listen_at(&addresses[which]) : listen_everywhere(port);
        if (descriptor >= 0) return descriptor;
        if (errno != EADDRINUSE && errno != EACCES)
            return fail(error, "process 0 cannot listen on port %d: %s", port, strerror(errno));
    }
    return fail(
        error,
        "process 0 cannot listen: ports %d to %d of its host are all in use (set MASTER_PORT to use others)",
        launch->port, launch->port + CONTROL_PORTS - 1);
}

// Appends an interface's address if other hosts may be able to use it and there is room.
static void add_address(ControlAddress *text, const struct ifaddrs *interface) {
    char name[INET6_ADDRSTRLEN];
    const struct sockaddr *address = interface->ifa_addr;
    if (address == NULL || !(interface->ifa_flags & IFF_UP)) return;
    if (address->sa_family == AF_INET) {
        inet_ntop(AF_INET, &((const struct sockaddr_in *)address)->sin_addr, name, sizeof(name));
    } else if (address->sa_family == AF_INET6) {
        const struct in6_addr *v6 = &((const struct sockaddr_in6 *)address)->sin6_addr;
        if (IN6_IS_ADDR_LINKLOCAL(v6)) return; // link-local: valid on its own link only
        inet_ntop(AF_INET6, v6, name, sizeof(name));
    } else {
        return;
    }
    size_t length = strlen(text->text);
    if (length + strlen(name) + 2 > sizeof(text->text)) return;
    snprintf(text->text + length, sizeof(text->text) - length, "%s%s",
             text->text[length - 1] == ' ' ? "" : ",", name);
}

int control_listen(ControlAddress *address, Error *error) {
    Address bound;
    socklen_t length = sizeof(bound);
    uint64_t number;
    struct ifaddrs *interfaces = NULL;
    memset(address, 0, sizeof(*address));
    memset(&bound, 0, sizeof(bound));
    int descriptor = listen_everywhere(0);
    if (descriptor < 0 || getsockname(descriptor, &bound.any, &length) != 0 ||
        getrandom(&number, sizeof(number), 0) != sizeof(number) || getifaddrs(&interfaces) != 0) {
        fail(error, "process 0 cannot listen: %s", strerror(errno));
        if (descriptor >= 0) close(descriptor);
        return -1;
    }
    int port = ntohs(bound.any.sa_family == AF_INET ? bound.v4.sin_port : bound.v6.sin6_port);
    snprintf(address->text, sizeof(address->text), "%d %016" PRIx64 " ", port, number);
    for (int loopback = 0; loopback < 2; loopback++)
        for (struct ifaddrs *i = interfaces; i != NULL; i = i->ifa_next)
            if (((i->ifa_flags & IFF_LOOPBACK) != 0) == loopback) add_address(address, i);
    freeifaddrs(interfaces);
    return descriptor;
}

// ---- process 0 --------------------------------------------------------------------------------------------

// How long an accepted connection may take to identify itself, and how long process 0 reports a failure to late
// processes.
enum { IDENTIFY_SECONDS = 5, NOTICE_SECONDS = 1 };

// A connection that has not joined yet.
typedef struct {
    int descriptor;
    double until;
    Message message;
} PendingPeer;

typedef struct {
    uint64_t run;
    Control *control;
    int listening;
    PendingPeer *pending; // (num_pending)
    size_t num_pending, max_pending;
    int num_joined; // processes, including process 0
    int failed; // `error` says why
    Error *error;
} Rendezvous;

static void rendezvous_fail(Rendezvous *m, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void rendezvous_fail(Rendezvous *m, const char *format, ...) {
    if (m->failed) return;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(m->error->text, sizeof(m->error->text), format, arguments);
    va_end(arguments);
    m->failed = 1;
    for (int rank = 1; rank < m->control->size; rank++)
        if (m->control->sockets[rank] >= 0)
            send_message(m->control->sockets[rank], m->run, FAILED, 0, m->control->size, m->error->text);
}

static void drop_pending(Rendezvous *m, size_t index, int keep_open) {
    if (!keep_open) close(m->pending[index].descriptor);
    m->pending[index] = m->pending[--m->num_pending];
}

static void accept_connection(Rendezvous *m) {
    int descriptor = accept4(m->listening, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (descriptor < 0) return;
    prepare_socket(descriptor);
    if (m->num_pending == m->max_pending) drop_pending(m, 0, 0);
    PendingPeer *peer = &m->pending[m->num_pending++];
    peer->descriptor = descriptor;
    peer->until = seconds_now() + IDENTIFY_SECONDS;
    peer->message.count = 0;
}

// Handles JOIN. Returns 1 if the connection now belongs to a rank.
static int join(Rendezvous *m, const PendingPeer *peer) {
    Control *control = m->control;
    int rank = message_number(&peer->message, AT_RANK), size = message_number(&peer->message, AT_SIZE);
    const char *host = message_text(&peer->message);
    if (size != control->size) {
        rendezvous_fail(
            m, "process %d (host %.63s) was started as one of %d, but process 0 (host %s) as one of %d", rank,
            host, size, control->hosts[0], control->size);
    } else if (rank < 1 || rank >= size || control->sockets[rank] >= 0) {
        const char *other = rank < 0 || rank >= size ? "?" : control->hosts[rank];
        rendezvous_fail(m, "two processes claim to be process %d of %d: one on host %s and one on host %.63s",
                        rank, size, other, host);
    }
    if (m->failed) {
        send_message(peer->descriptor, m->run, FAILED, 0, control->size, m->error->text);
        return 0;
    }
    control->sockets[rank] = peer->descriptor;
    snprintf(control->hosts[rank], HOST_SIZE, "%.63s", host);
    m->num_joined++;
    return 1;
}

static void read_pending(Rendezvous *m, size_t index) {
    PendingPeer *peer = &m->pending[index];
    Arrival arrival = receive(peer->descriptor, m->run, &peer->message);
    if (arrival == INCOMPLETE) return;
    if (arrival == COMPLETE && message_kind(&peer->message) == HELLO) {
        peer->message.count = 0;
        peer->until = seconds_now() + IDENTIFY_SECONDS;
        if (send_message(peer->descriptor, m->run, HERE, 0, m->control->size, m->control->hosts[0]) == 0)
            return;
    }
    int joins = arrival == COMPLETE && message_kind(&peer->message) == JOIN;
    drop_pending(m, index, joins && join(m, peer));
}

// A process that has joined sends nothing more, so its socket is readable only when the connection has ended.
static void check_joined(Rendezvous *m, int rank) {
    char byte;
    ssize_t got = recv(m->control->sockets[rank], &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    if (got > 0 || (got < 0 && (errno == EAGAIN || errno == EINTR))) return;
    close(m->control->sockets[rank]);
    m->control->sockets[rank] = -1;
    m->num_joined--;
    rendezvous_fail(m, "process %d (host %s) disconnected while others were still missing", rank,
                    m->control->hosts[rank]);
}

static void rendezvous_step(Rendezvous *m, struct pollfd *polled, double until) {
    Control *control = m->control;
    nfds_t count = 0;
    double next = until;
    polled[count++] = (struct pollfd){m->listening, POLLIN, 0};
    for (size_t i = 0; i < m->num_pending; i++) {
        polled[count++] = (struct pollfd){m->pending[i].descriptor, POLLIN, 0};
        if (m->pending[i].until < next) next = m->pending[i].until;
    }
    for (int rank = 1; rank < control->size; rank++)
        polled[count++] = (struct pollfd){control->sockets[rank], POLLIN, 0}; // poll ignores -1
    size_t num_polled = m->num_pending;
    if (poll(polled, count, milliseconds_until(next)) < 0) return;
    for (int rank = 1; rank < control->size; rank++)
        if (polled[num_polled + (size_t)rank].revents != 0 && control->sockets[rank] >= 0)
            check_joined(m, rank);
    for (size_t i = num_polled; i-- > 0;) { // backwards: a removed entry is replaced by the last
        if (polled[1 + i].revents != 0)
            read_pending(m, i);
        else if (m->pending[i].until < seconds_now())
            drop_pending(m, i, 0);
    }
    if (polled[0].revents != 0) accept_connection(m);
}

// For example: "rank 2", "ranks 1, 2 and 5", "ranks 1, 2, 3, 4, 5, 6, 7, 8 and 24 others".
static void list_missing(const Control *control, int missing, char *text, size_t size) {
    enum { NAMED = 8 };
    int named = 0, most = missing <= NAMED + 1 ? missing : NAMED;
    snprintf(text, size, "%s", missing == 1 ? "rank " : "ranks ");
    for (int rank = 1; rank < control->size && named < most; rank++) {
        if (control->sockets[rank] >= 0) continue;
        size_t length = strlen(text);
        named++;
        snprintf(text + length, size - length, "%s%d",
                 named == 1         ? ""
                 : named == missing ? " and "
                                    : ", ",
                 rank);
    }
    size_t length = strlen(text);
    if (most < missing) snprintf(text + length, size - length, " and %d others", missing - most);
}

// Runs until all processes have joined (returns 0) or one has failed or the deadline has passed (returns -1).
static int run_rendezvous(Rendezvous *m, double deadline) {
    Control *control = m->control;
    m->max_pending = 64 + 2 * (size_t)control->size;
    m->pending = (PendingPeer *)xmalloc(m->max_pending * sizeof(PendingPeer));
    struct pollfd *polled = (struct pollfd *)xmalloc((m->max_pending + 1 + (size_t)control->size) *
                                                     sizeof(*polled));
    double until = seconds_now() + deadline;
    while (m->num_joined < control->size && !m->failed && seconds_now() < until)
        rendezvous_step(m, polled, until);
    if (m->num_joined < control->size && !m->failed) {
        char names[128];
        int missing = control->size - m->num_joined;
        list_missing(control, missing, names, sizeof(names));
        rendezvous_fail(m, "%d of %d processes %s missing after %.3g s: %s", missing, control->size,
                        missing == 1 ? "is" : "are", deadline, names);
    } else if (m->failed) {
        until = seconds_now() + NOTICE_SECONDS;
        while (seconds_now() < until) rendezvous_step(m, polled, until);
    }
    for (int rank = 1; rank < control->size && !m->failed; rank++)
        send_message(control->sockets[rank], m->run, START, 0, control->size, control->hosts[0]);
    while (m->num_pending > 0) drop_pending(m, 0, 0);
    free(m->pending);
    free(polled);
    return m->failed ? -1 : 0;
}

// ---- the others -------------------------------------------------------------------------------------------

// An address and port where process 0 may listen.
typedef struct {
    Address address;
    int descriptor; // -1: not connected
    int hello_sent; // the connection is open and HELLO was sent
    // When this connection attempt is abandoned or, if not connected, when the next one begins.
    double until;
    int attempts;
    Message message;
} Candidate;

// Seconds to connect, then to wait for an answer (process 0 may be busy; other candidates do not wait for this one),
// and to wait for process 0's final message beyond its own deadline.
enum { CONNECT_SECONDS = 2, ANSWER_SECONDS = 10, FINAL_SECONDS = 5, MAX_CANDIDATES = 8 * CONTROL_PORTS };

typedef struct {
    const Launch *launch;
    uint64_t run;
    char hosts[512]; // comma-separated names or addresses of process 0
    int port, num_ports;
    Candidate candidates[MAX_CANDIDATES];
    int num_candidates;
    double resolve_at;
    char last_error[96]; // the latest reason
} Search;

static void resolve_hosts(Search *s) {
    char hosts[sizeof(s->hosts)], *rest = hosts, *host;
    const char *reason = "no address was found for this host";
    memcpy(hosts, s->hosts, sizeof(hosts));
    while ((host = strsep(&rest, ",")) != NULL) {
        Address addresses[8];
        int count = resolve(host, addresses, 8, &reason);
        for (int i = 0; i < count; i++)
            for (int port = s->port; port < s->port + s->num_ports && s->num_candidates < MAX_CANDIDATES;
                 port++) {
                Candidate *candidate = &s->candidates[s->num_candidates++];
                memset(candidate, 0, sizeof(*candidate));
                candidate->address = addresses[i];
                candidate->descriptor = -1;
                set_port(&candidate->address, port);
            }
    }
    if (s->num_candidates == 0) snprintf(s->last_error, sizeof(s->last_error), "%s", reason);
    s->resolve_at = seconds_now() + 1;
}

// Closes the connection and schedules the next attempt: after a growing pause of at most 1 s, or after 2 s if a
// program had accepted the connection.
static void drop_candidate(Search *s, Candidate *candidate, const char *why) {
    if (candidate->descriptor >= 0) close(candidate->descriptor);
    candidate->descriptor = -1;
    double pause = candidate->hello_sent ? 2 : candidate->attempts < 4 ? 0.1 * (1 << candidate->attempts) : 1;
    candidate->hello_sent = 0;
    candidate->attempts++;
    candidate->until = seconds_now() + pause;
    snprintf(s->last_error, sizeof(s->last_error), "%s", why);
}

static void connect_candidate(Search *s, Candidate *candidate) {
    candidate->message.count = 0;
    candidate->descriptor = socket(candidate->address.any.sa_family,
                                   SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (candidate->descriptor < 0) {
        drop_candidate(s, candidate, strerror(errno));
        return;
    }
    prepare_socket(candidate->descriptor);
    candidate->until = seconds_now() + CONNECT_SECONDS;
    if (connect(candidate->descriptor, &candidate->address.any, address_size(&candidate->address)) != 0 &&
        errno != EINPROGRESS)
        drop_candidate(s, candidate, strerror(errno));
}

// Returns 1 when process 0 has answered.
static int advance_candidate(Search *s, Candidate *candidate, const char *host) {
    const char *unrelated = "another program, which is not part of this run, listens there";
    if (!candidate->hello_sent) {
        int reason = 0;
        socklen_t length = sizeof(reason);
        getsockopt(candidate->descriptor, SOL_SOCKET, SO_ERROR, &reason, &length);
        if (reason == 0 &&
            send_message(candidate->descriptor, s->run, HELLO, s->launch->rank, s->launch->size, host) != 0)
            reason = errno;
        candidate->hello_sent = reason == 0;
        snprintf(s->last_error, sizeof(s->last_error), "there is no answer yet");
        candidate->until = seconds_now() + ANSWER_SECONDS;
        if (reason != 0) drop_candidate(s, candidate, strerror(reason));
        return 0;
    }
    Arrival arrival = receive(candidate->descriptor, s->run, &candidate->message);
    if (arrival == COMPLETE && message_kind(&candidate->message) == HERE) return 1;
    if (arrival != INCOMPLETE) drop_candidate(s, candidate, unrelated);
    return 0;
}

// Returns the first candidate that has answered, or NULL.
static Candidate *search_step(Search *s, const char *host, double until) {
    struct pollfd polled[MAX_CANDIDATES];
    double now = seconds_now(), next = until;
    if (s->num_candidates == 0 && now >= s->resolve_at) resolve_hosts(s);
    if (s->num_candidates == 0 && s->resolve_at < next) next = s->resolve_at;
    for (int i = 0; i < s->num_candidates; i++) {
        Candidate *candidate = &s->candidates[i];
        if (candidate->until <= now && candidate->descriptor >= 0)
            drop_candidate(s, candidate,
                           candidate->hello_sent ? "the program that listens there does not answer"
                                                 : "connecting timed out");
        else if (candidate->until <= now)
            connect_candidate(s, candidate);
        polled[i] = (struct pollfd){candidate->descriptor, candidate->hello_sent ? POLLIN : POLLOUT, 0};
        if (candidate->until < next) next = candidate->until;
    }
    if (poll(polled, (nfds_t)s->num_candidates, milliseconds_until(next)) <= 0) return NULL;
    for (int i = 0; i < s->num_candidates; i++)
        if (polled[i].revents != 0 && advance_candidate(s, &s->candidates[i], host)) return &s->candidates[i];
    return NULL;
}

// Returns a connection to process 0, or -1 with a sentence. `main_host` receives the name of its host.
static int search(Search *s, double deadline, char *main_host, Error *error) {
    char host[HOST_SIZE];
    get_host_name(host);
    Candidate *found = NULL;
    double until = seconds_now() + deadline;
    while (found == NULL && seconds_now() < until) found = search_step(s, host, until);
    int descriptor = found != NULL ? found->descriptor : -1;
    for (int i = 0; i < s->num_candidates; i++)
        if (s->candidates[i].descriptor >= 0 && &s->candidates[i] != found)
            close(s->candidates[i].descriptor);
    if (found != NULL) {
        snprintf(main_host, HOST_SIZE, "%.63s", message_text(&found->message));
        send_message(descriptor, s->run, JOIN, s->launch->rank, s->launch->size, host);
        return descriptor;
    }
    char ports[64];
    snprintf(ports, sizeof(ports), s->num_ports == 1 ? "port %d" : "ports %d to %d", s->port,
             s->port + s->num_ports - 1);
    return fail(error, "process %d could not reach process 0 within %.3g s at %s, %s: %s", s->launch->rank,
                deadline, s->hosts, ports, s->last_error);
}

// Waits for process 0's START. Process 0's deadline began no later than when this process reached it.
static int await_start(int descriptor, uint64_t run, double deadline, const char *main_host, Error *error) {
    Message message;
    message.count = 0;
    double until = seconds_now() + deadline + FINAL_SECONDS;
    Arrival arrival = INCOMPLETE;
    while (arrival == INCOMPLETE && seconds_now() < until) {
        struct pollfd polled = {descriptor, POLLIN, 0};
        if (poll(&polled, 1, milliseconds_until(until)) > 0) arrival = receive(descriptor, run, &message);
    }
    if (arrival == COMPLETE && message_kind(&message) == START) return 0;
    if (arrival == COMPLETE && message_kind(&message) == FAILED)
        return fail(error, "%s", message_text(&message));
    if (arrival == INCOMPLETE) return fail(error, "process 0 (host %s) no longer answers", main_host);
    return fail(error, "process 0 (host %s) disconnected while processes were still missing", main_host);
}

// ---- all --------------------------------------------------------------------------------------------------

// Parses the text of control_listen: "29501 7f3a9c0d12345678 10.0.0.3,192.168.1.7,127.0.0.1".
static int read_address(const ControlAddress *address, Search *s, Error *error) {
    char text[sizeof(address->text) + 1];
    memcpy(text, address->text, sizeof(address->text));
    text[sizeof(address->text)] = '\0';
    if (sscanf(text, "%d %" SCNx64 " %511s", &s->port, &s->run, s->hosts) != 3)
        return fail(error, "'%.100s' is not an address of process 0", text);
    s->num_ports = 1;
    return 0;
}

static Control *control_new(const Launch *launch, double deadline) {
    Control *control = (Control *)xcalloc(1, sizeof(Control));
    size_t connections = launch->rank == 0 ? (size_t)launch->size : 1;
    control->rank = launch->rank;
    control->size = launch->size;
    control->deadline = deadline;
    control->sockets = (int *)xmalloc(connections * sizeof(int));
    control->hosts = (char(*)[HOST_SIZE])xcalloc(connections, HOST_SIZE);
    for (size_t i = 0; i < connections; i++) control->sockets[i] = -1;
    return control;
}

// Connects process 0 to all others, on a socket that listens.
static int open_as_process_0(Control *control, int listening, uint64_t run, Error *error) {
    // Nonblocking, because a connection may be gone again before it is accepted.
    fcntl(listening, F_SETFL, fcntl(listening, F_GETFL) | O_NONBLOCK);
    Rendezvous rendezvous;
    memset(&rendezvous, 0, sizeof(rendezvous));
    rendezvous.run = run;
    rendezvous.control = control;
    rendezvous.listening = listening;
    rendezvous.num_joined = 1;
    rendezvous.error = error;
    get_host_name(control->hosts[0]);
    return run_rendezvous(&rendezvous, control->deadline);
}

Control *control_open(const Launch *launch, int listening, const ControlAddress *address, double deadline,
                      Error *error) {
    Search *s = (Search *)xcalloc(1, sizeof(Search));
    Control *control = control_new(launch, deadline);
    int result = 0;
    s->launch = launch;
    s->run = launch->run;
    s->port = launch->port;
    s->num_ports = launch->launcher == LAUNCHED_BY_SELF ? 1 : CONTROL_PORTS;
    snprintf(s->hosts, sizeof(s->hosts), "%s", launch->master);
    if (address != NULL)
        result = read_address(address, s, error);
    else if (launch->master[0] == '\0')
        result = fail(
            error,
            "the host of process 0 is unknown: set MASTER_ADDR, for example: mpirun -x MASTER_ADDR=host");
    if (result == 0 && launch->rank == 0) {
        if (listening < 0) listening = listen_for(launch, error);
        result = listening < 0 ? -1 : open_as_process_0(control, listening, s->run, error);
    } else if (result == 0) {
        control->sockets[0] = search(s, deadline, control->hosts[0], error);
        result = control->sockets[0] < 0
                     ? -1
                     : await_start(control->sockets[0], s->run, deadline, control->hosts[0], error);
    }
    if (listening >= 0) close(listening);
    free(s);
    if (result == 0) return control;
    control_close(control);
    return NULL;
}

// Sends or receives exactly `size` bytes. Returns 0, or -1 if the connection has ended or `until` has passed (*late).
static int transfer(int descriptor, unsigned char *bytes, size_t size, int sending, double until, int *late) {
    *late = 0;
    for (size_t done = 0; done < size;) {
        ssize_t count = sending ? send(descriptor, bytes + done, size - done, MSG_NOSIGNAL | MSG_DONTWAIT)
                                : recv(descriptor, bytes + done, size - done, MSG_DONTWAIT);
        if (count > 0) {
            done += (size_t)count;
            continue;
        }
        if (count == 0 || (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR)) return -1;
        *late = seconds_now() >= until;
        if (*late) return -1;
        struct pollfd polled = {descriptor, sending ? POLLOUT : POLLIN, 0};
        poll(&polled, 1, milliseconds_until(until));
    }
    return 0;
}

int control_broadcast(Control *control, void *data, size_t bytes, Error *error) {
    unsigned char head[sizeof(MAGIC) + 8], expected[sizeof(head)];
    memcpy(head, MAGIC, sizeof(MAGIC));
    put_number(head + sizeof(MAGIC), bytes, 8);
    memcpy(expected, head, sizeof(head));
    double until = seconds_now() + control->deadline;
    int sending = control->rank == 0, late;
    for (int peer = sending ? 1 : 0; peer < (sending ? control->size : 1); peer++) {
        int descriptor = control->sockets[peer];
        int result = transfer(descriptor, head, sizeof(head), sending, until, &late);
        if (result == 0 && memcmp(head, expected, sizeof(head)) != 0)
            return fail(error,
                        "process 0 (host %s) sent something other than the %zu bytes that were expected",
                        control->hosts[0], bytes);
        if (result == 0) result = transfer(descriptor, (unsigned char *)data, bytes, sending, until, &late);
        if (result != 0 && late)
            return fail(error, "process %d (host %s) has not answered for %.3g s", peer, control->hosts[peer],
                        control->deadline);
        if (result != 0)
            return fail(error, "the connection to process %d (host %s) was closed", peer,
                        control->hosts[peer]);
    }
    return 0;
}

const int *control_sockets(const Control *control) {
    return control->sockets;
}

const char *control_host(const Control *control, int rank) {
    return control->rank == 0 || rank == 0 ? control->hosts[rank] : "?";
}

int control_rank(const Control *control) {
    return control->rank;
}

int control_size(const Control *control) {
    return control->size;
}

void control_close(Control *control) {
    if (control == NULL) return;
    for (int i = 0; i < (control->rank == 0 ? control->size : 1); i++)
        if (control->sockets[i] >= 0) close(control->sockets[i]);
    free(control->sockets);
    free(control->hosts);
    free(control);
}
