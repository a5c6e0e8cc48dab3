// MPI with operations that are executed as late as the contract (comm.h) allows: when the operation, or one queued
// later, is waited for. Replaces layers/comm/mpi.o, so that the unmodified trainer reveals missing waits:
//     - the output of an operation is NaN from the moment it is queued, so reading it too early spoils results
//     - the memory of an operation must not change after it was queued; writing it too early is reported, with exit
//       status 42
// Results are those of the prompt transport, bit for bit (test_processes.sh).
#define COMM_MPI COMM_MPI_PROMPT
#include <unistd.h>
#include "layers/comm/mpi.cu"
#undef COMM_MPI

enum { LATE_STATUS = 42, POISON = 0xff }; // bytes of a NaN, in fp32, bf16 and double

typedef struct {
    char *memory, *before;
    size_t bytes;
    int written; // 1: written by the operation, therefore poisoned; 0: only read
} Region;

typedef struct {
    Kind kind;
    void *data;
    size_t count, element;
    CommPiece *pieces;
    size_t num_pieces;
    Region *regions;
    size_t num_regions;
    Ticket ticket;
} LateOperation;

typedef struct {
    MpiState *prompt;
    LateOperation queue[QUEUE_SIZE];
    Ticket queued, done;
} LateState;

extern const CommTransport COMM_MPI;
static Ticket late_done; // atomic, as the watchdog's thread reads it

// ---- memory of queued operations ------------------------------------------------------------------------------

static void watch_region(LateOperation *o, void *memory, size_t bytes, int written) {
    if (bytes == 0) return;
    o->regions = (Region *)xrealloc(o->regions, (o->num_regions + 1) * sizeof(Region));
    Region *r = &o->regions[o->num_regions++];
    r->memory = (char *)memory;
    r->before = (char *)xmalloc(bytes);
    r->bytes = bytes;
    r->written = written;
    copy_to_host(r->before, memory, bytes, 0);
    stream_wait(0);
}

static void poison(LateOperation *o) {
    for (size_t i = 0; i < o->num_regions; i++) {
        Region *r = &o->regions[i];
        if (!r->written) continue;
        char *nan = (char *)xmalloc(r->bytes);
        memset(nan, POISON, r->bytes);
        copy_to_device(r->memory, nan, r->bytes, 0);
        stream_wait(0);
        free(nan);
    }
}

static const char *kind_name(Kind kind) {
    return kind == ALL_REDUCE ? "all-reduce" : kind == REDUCE_SCATTER ? "reduce-scatter" : "all-gather";
}

static void changed_too_early(const LateState *s, const LateOperation *o, const Region *r, size_t at) {
    fprintf(
        stderr,
        "late: process %d changed byte %zu of %zu that %s %llu %s, before it waited for it (%llu queued)\n",
        s->prompt->rank, at, r->bytes, kind_name(o->kind), (unsigned long long)o->ticket,
        r->written ? "writes" : "reads", (unsigned long long)s->queued);
    fflush(NULL);
    _exit(LATE_STATUS);
}

// Checks that the memory is unchanged, then restores its original content.
static void restore(const LateState *s, LateOperation *o) {
    for (size_t i = 0; i < o->num_regions; i++) {
        const Region *r = &o->regions[i];
        unsigned char *now = (unsigned char *)xmalloc(r->bytes);
        copy_to_host(now, r->memory, r->bytes, 0);
        stream_wait(0);
        for (size_t b = 0; b < r->bytes; b++)
            if (now[b] != (r->written ? (unsigned char)POISON : (unsigned char)r->before[b]))
                changed_too_early(s, o, r, b);
        free(now);
    }
    for (size_t i = 0; i < o->num_regions; i++) {
        copy_to_device(o->regions[i].memory, o->regions[i].before, o->regions[i].bytes, 0);
        stream_wait(0);
        free(o->regions[i].before);
    }
    free(o->regions);
}

// ---- the queue ------------------------------------------------------------------------------------------------

static void late_until(LateState *s, Ticket ticket) {
    while (s->done < ticket) {
        LateOperation *o = &s->queue[s->done % QUEUE_SIZE];
        restore(s, o);
        const CommTransport *t = &COMM_MPI_PROMPT;
        if (o->kind == ALL_REDUCE)
            t->all_reduce(s->prompt, o->data, o->count,
                          o->element == sizeof(float) ? COMM_FLOAT : COMM_DOUBLE, 0);
        else if (o->kind == REDUCE_SCATTER)
            t->reduce_scatter(s->prompt, o->pieces, o->num_pieces, 0);
        else
            t->all_gather(s->prompt, o->pieces, o->num_pieces, o->element, 0);
        t->wait(s->prompt, ++s->done, 0);
        __atomic_store_n(&late_done, s->done, __ATOMIC_RELEASE);
        free(o->pieces);
    }
}

static LateOperation *late_queue(LateState *s, Kind kind, const CommPiece *pieces, size_t num_pieces,
                                 Stream after) {
    stream_wait(after);
    if (s->queued - s->done == QUEUE_SIZE) late_until(s, s->done + 1);
    LateOperation *o = &s->queue[s->queued++ % QUEUE_SIZE];
    memset(o, 0, sizeof(*o));
    o->kind = kind;
    o->ticket = s->queued;
    o->num_pieces = num_pieces;
    o->pieces = (CommPiece *)xmalloc((num_pieces + 1) * sizeof(CommPiece));
    if (num_pieces > 0) memcpy(o->pieces, pieces, num_pieces * sizeof(CommPiece));
    return o;
}

static void late_all_reduce(void *state, void *data, size_t count, CommType type, Stream after) {
    LateState *s = (LateState *)state;
    LateOperation *o = late_queue(s, ALL_REDUCE, NULL, 0, after);
    o->data = data, o->count = count;
    o->element = element_size(type);
    watch_region(o, data, count * o->element, 1);
    poison(o);
}

static void late_reduce_scatter(void *state, const CommPiece *pieces, size_t num_pieces, Stream after) {
    LateState *s = (LateState *)state;
    LateOperation *o = late_queue(s, REDUCE_SCATTER, pieces, num_pieces, after);
    o->element = sizeof(float);
    for (size_t i = 0; i < num_pieces; i++) {
        const CommPiece *p = &pieces[i];
        const size_t bytes = p->count * sizeof(float);
        const int mine = p->owner == s->prompt->rank;
        watch_region(o, p->data, bytes, mine && p->own == p->data);
        if (mine && p->own != p->data) watch_region(o, p->own, bytes, 1);
    }
    poison(o);
}

static void late_all_gather(void *state, const CommPiece *pieces, size_t num_pieces, size_t element,
                            Stream after) {
    LateState *s = (LateState *)state;
    LateOperation *o = late_queue(s, ALL_GATHER, pieces, num_pieces, after);
    o->element = element;
    for (size_t i = 0; i < num_pieces; i++) {
        const CommPiece *p = &pieces[i];
        const int mine = p->owner == s->prompt->rank;
        watch_region(o, p->data, p->count * element, !(mine && p->own == p->data));
        if (mine && p->own != p->data) watch_region(o, p->own, p->count * element, 0);
    }
    poison(o);
}

static void late_broadcast(void *state, void *data, size_t bytes, int root, Stream after) {
    CommPiece piece = {data, data, bytes, root};
    late_all_gather(state, &piece, 1, 1, after);
}

static void late_wait(void *state, Ticket ticket, Stream stream) {
    LateState *s = (LateState *)state;
    stream_wait(stream);
    CHECK(ticket <= s->queued);
    late_until(s, ticket);
}

static void late_exchange(void *state, const void *mine, size_t bytes, void *all) {
    LateState *s = (LateState *)state;
    late_until(s, s->queued);
    COMM_MPI_PROMPT.exchange(s->prompt, mine, bytes, all);
    s->done = ++s->queued;
    __atomic_store_n(&late_done, s->done, __ATOMIC_RELEASE);
}

// ---- the transport ----------------------------------------------------------------------------------------------

static void *late_open(const Launch *launch, int deterministic, double deadline, Control **control,
                       Error *error) {
    void *prompt = COMM_MPI_PROMPT.open(launch, deterministic, deadline, control, error);
    if (prompt == NULL) return NULL;
    LateState *s = (LateState *)xcalloc(1, sizeof(LateState));
    s->prompt = (MpiState *)prompt;
    return s;
}

static void late_close(void *state) {
    LateState *s = (LateState *)state;
    late_until(s, s->queued);
    COMM_MPI_PROMPT.close(s->prompt);
    free(s);
}

static Ticket late_progress(void *state, char *failure, size_t size) {
    (void)state, (void)failure, (void)size;
    return __atomic_load_n(&late_done, __ATOMIC_ACQUIRE);
}

const CommTransport COMM_MPI = {"late MPI",      1,
                                late_open,       late_close,
                                late_all_reduce, late_reduce_scatter,
                                late_all_gather, late_broadcast,
                                late_wait,       late_exchange,
                                late_progress,   mpi_abort};
