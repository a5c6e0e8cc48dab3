// Processes on CPUs talk over MPI. Operations are done by a thread of their own, in the order they were queued, while
// the others compute; only that thread calls MPI. It sleeps between looks at what has arrived, so that it takes no
// core from the computation.
//
// Sums are made where they are wanted: each owner gets everybody's part, a segment at a time, and adds them up in the
// order of ranks. That sends each number as often as a ring does, and its bits do not depend on timing.
//
// MPI wants host memory. A device's memory (here: the emulated one's) is copied a segment at a time, and the
// operation is done when the call returns.
#ifdef HAVE_MPI
#define OMPI_SKIP_MPICXX  1 // C++ is only for kernels
#define MPICH_SKIP_MPICXX 1
#include <mpi.h>
#include <pthread.h>
#include <sched.h>
#include <time.h>
#include "comm/sum.cuh"
#include "comm/transport.h"
#include "data/threads.h"

enum {
    SEGMENT = 1 << 18, // elements an owner gets of each process at a time
    SMALL = 1 << 12,   // elements that everybody sends to everybody rather than to an owner
    QUEUE = 1024,      // operations
    SPINS = 20,        // looks before the first sleep
    SLEEP = 20000,     // nanoseconds between looks
};

typedef enum { ALL_REDUCE, REDUCE_SCATTER, ALL_GATHER, EXCHANGE, CLOSE } Kind;

typedef struct {
    Kind kind;
    void *data, *all; // of ALL_REDUCE and EXCHANGE
    size_t count, element;
    CommPiece *pieces; // our copy
    size_t num_pieces;
} Operation;

typedef struct {
    int rank, size;
    char *received, *staged, *sum; // (size, SEGMENT), (size, SEGMENT), (SEGMENT) elements of 8 bytes at most
    MPI_Status *statuses;  // (2 size), not looked at: gcc takes MPICH's MPI_STATUSES_IGNORE for a mistake
    MPI_Request *requests; // (2 size)
    pthread_t thread;
    pthread_mutex_t mutex; // guards all below
    pthread_cond_t changed;
    Operation queue[QUEUE];
    Ticket queued, done;
} MpiState;

// ---- one round: a segment for every owner ---------------------------------------------------------------------

// What MPI may read: the memory itself, or a copy of the device's.
static const void *host_view(MpiState *s, int slot, const void *data, size_t bytes) {
    if (!DEVICE_IS_GPU) return data;
    char *copy = s->staged + (size_t)slot * SEGMENT * sizeof(double);
    copy_to_host(copy, data, bytes, 0);
    stream_wait(0);
    return copy;
}

static void host_store(void *data, const void *host, size_t bytes) {
    if (data == host) return;
    copy_to_device(data, host, bytes, 0);
    stream_wait(0);
}

// Until all requests are done.
static void wait_for(MpiState *s, int count) {
    struct timespec pause = {0, SLEEP};
    int done = 0;
    for (int looks = 0; !done; looks++) {
        if (looks >= SPINS) nanosleep(&pause, NULL);
        MPI_Testall(count, s->requests, &done, s->statuses);
        if (!done && looks < SPINS) sched_yield();
    }
}

// x_0 + x_1 + ... of `bytes` bytes of elements each: x_r is what process r sent, ours `mine`.
static void sum_received(const MpiState *s, void *out, const void *mine, size_t bytes, size_t element) {
    const RankBuffers x = {mine, s->received, SEGMENT * sizeof(double) / element, s->rank, s->size};
    sum_ranks_cpu(out, &x, bytes / element, element == sizeof(float) ? COMM_FLOAT : COMM_DOUBLE);
}

static int receive_from_all(MpiState *s, size_t bytes) {
    int requests = 0;
    for (int r = 0; r < s->size && bytes > 0; r++)
        if (r != s->rank)
            MPI_Irecv(s->received + (size_t)r * SEGMENT * sizeof(double), (int)bytes, MPI_BYTE, r, 0,
                      MPI_COMM_WORLD, &s->requests[requests++]);
    return requests;
}

// ---- the operations -----------------------------------------------------------------------------------------------

static CommPiece next_of(const Operation *o, int owner, Cursor *cursors) {
    return next_segment(o->pieces, o->num_pieces, owner, SEGMENT, o->element, &cursors[owner]);
}

static void do_reduce_scatter(MpiState *s, const Operation *o) {
    Cursor *cursors = (Cursor *)xcalloc((size_t)s->size, sizeof(Cursor));
    for (int left = 1; left;) {
        const CommPiece mine = next_of(o, s->rank, cursors);
        const size_t bytes = mine.count * o->element;
        left = bytes > 0;
        int requests = receive_from_all(s, bytes);
        for (int r = 0; r < s->size; r++) {
            if (r == s->rank) continue;
            const CommPiece other = next_of(o, r, cursors);
            const size_t sent = other.count * o->element;
            if (sent == 0) continue;
            left = 1;
            MPI_Isend(host_view(s, r, other.data, sent), (int)sent, MPI_BYTE, r, 0, MPI_COMM_WORLD,
                      &s->requests[requests++]);
        }
        wait_for(s, requests);
        if (bytes == 0) continue;
        void *sum = DEVICE_IS_GPU ? s->sum : mine.own;
        sum_received(s, sum, host_view(s, s->rank, mine.data, bytes), bytes, o->element);
        host_store(mine.own, sum, bytes);
    }
    free(cursors);
}

static void do_all_gather(MpiState *s, const Operation *o) {
    Cursor *cursors = (Cursor *)xcalloc((size_t)s->size, sizeof(Cursor));
    CommPiece *others = (CommPiece *)xcalloc((size_t)s->size, sizeof(CommPiece));
    for (int left = 1; left;) {
        int requests = 0;
        left = 0;
        for (int r = 0; r < s->size; r++) {
            others[r] = next_of(o, r, cursors);
            if (others[r].count == 0) continue;
            left = 1;
            if (r == s->rank) continue;
            void *to = DEVICE_IS_GPU ? s->received + (size_t)r * SEGMENT * sizeof(double) : others[r].data;
            MPI_Irecv(to, (int)(others[r].count * o->element), MPI_BYTE, r, 0, MPI_COMM_WORLD,
                      &s->requests[requests++]);
        }
        const CommPiece mine = others[s->rank];
        const size_t bytes = mine.count * o->element;
        const void *view = bytes > 0 ? host_view(s, s->rank, mine.own, bytes) : NULL;
        for (int r = 0; r < s->size && bytes > 0; r++)
            if (r != s->rank)
                MPI_Isend(view, (int)bytes, MPI_BYTE, r, 0, MPI_COMM_WORLD, &s->requests[requests++]);
        wait_for(s, requests);
        if (mine.own != mine.data) host_store(mine.data, view, bytes);
        for (int r = 0; r < s->size && DEVICE_IS_GPU; r++)
            if (r != s->rank && others[r].count > 0)
                host_store(others[r].data, s->received + (size_t)r * SEGMENT * sizeof(double),
                           others[r].count * o->element);
    }
    free(cursors), free(others);
}

// Few numbers: everybody gets all of them, and adds them up in the same order.
static void all_reduce_small(MpiState *s, const Operation *o) {
    const size_t bytes = o->count * o->element;
    const void *mine = host_view(s, s->rank, o->data, bytes);
    int requests = receive_from_all(s, bytes);
    for (int r = 0; r < s->size; r++)
        if (r != s->rank)
            MPI_Isend(mine, (int)bytes, MPI_BYTE, r, 0, MPI_COMM_WORLD, &s->requests[requests++]);
    wait_for(s, requests);
    sum_received(s, s->sum, mine, bytes, o->element);
    host_store(o->data, s->sum, bytes);
}

// Every process adds up a range, and the ranges are gathered.
static void do_all_reduce(MpiState *s, const Operation *o) {
    if (o->count == 0) return;
    if (o->count <= SMALL) {
        all_reduce_small(s, o);
        return;
    }
    Operation ranges = *o;
    ranges.num_pieces = (size_t)s->size;
    ranges.pieces = (CommPiece *)xcalloc(ranges.num_pieces, sizeof(CommPiece));
    list_ranges(ranges.pieces, s->size, o->data, o->count, o->element);
    do_reduce_scatter(s, &ranges);
    do_all_gather(s, &ranges);
    free(ranges.pieces);
}

static void do_exchange(MpiState *s, const Operation *o) {
    MPI_Iallgather(o->data, (int)o->count, MPI_BYTE, o->all, (int)o->count, MPI_BYTE, MPI_COMM_WORLD,
                   &s->requests[0]);
    wait_for(s, 1);
}

static void run_operation(MpiState *s, const Operation *o) {
    switch (o->kind) {
    case ALL_REDUCE:
        do_all_reduce(s, o);
        break;
    case REDUCE_SCATTER:
        do_reduce_scatter(s, o);
        break;
    case ALL_GATHER:
        do_all_gather(s, o);
        break;
    case EXCHANGE:
        do_exchange(s, o);
        break;
    case CLOSE:
        break;
    }
    free(o->pieces);
}

// ---- the queue --------------------------------------------------------------------------------------------------

static void *worker(void *argument) {
    MpiState *s = (MpiState *)argument;
    for (Kind kind = EXCHANGE; kind != CLOSE;) {
        pthread_mutex_lock(&s->mutex);
        while (s->done == s->queued) pthread_cond_wait(&s->changed, &s->mutex);
        Operation operation = s->queue[s->done % QUEUE];
        pthread_mutex_unlock(&s->mutex);
        kind = operation.kind;
        run_operation(s, &operation);
        pthread_mutex_lock(&s->mutex);
        s->done++;
        pthread_cond_broadcast(&s->changed);
        pthread_mutex_unlock(&s->mutex);
    }
    return NULL;
}

static void wait_until_done(MpiState *s, Ticket ticket) {
    pthread_mutex_lock(&s->mutex);
    while (s->done < ticket) pthread_cond_wait(&s->changed, &s->mutex);
    pthread_mutex_unlock(&s->mutex);
}

static void queue(MpiState *s, const Operation *operation, Stream after) {
    Operation o = *operation;
    if (o.num_pieces > 0) {
        o.pieces = (CommPiece *)xmalloc(o.num_pieces * sizeof(CommPiece));
        memcpy(o.pieces, operation->pieces, o.num_pieces * sizeof(CommPiece));
    }
    stream_wait(after);
    pthread_mutex_lock(&s->mutex);
    while (s->queued - s->done == QUEUE) pthread_cond_wait(&s->changed, &s->mutex);
    s->queue[s->queued++ % QUEUE] = o;
    const Ticket ticket = s->queued;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->mutex);
    if (DEVICE_IS_GPU) wait_until_done(s, ticket);
}

// ---- the transport ------------------------------------------------------------------------------------------------

static void mpi_all_reduce(void *state, void *data, size_t count, CommType type, Stream after) {
    Operation o = {ALL_REDUCE, data, NULL, count, element_size(type), NULL, 0};
    queue((MpiState *)state, &o, after);
}
static void mpi_reduce_scatter(void *state, const CommPiece *pieces, size_t num_pieces, Stream after) {
    Operation o = {REDUCE_SCATTER, NULL, NULL, 0, sizeof(float), (CommPiece *)(uintptr_t)pieces, num_pieces};
    queue((MpiState *)state, &o, after);
}
static void mpi_all_gather(void *state, const CommPiece *pieces, size_t num_pieces, size_t element,
                           Stream after) {
    Operation o = {ALL_GATHER, NULL, NULL, 0, element, (CommPiece *)(uintptr_t)pieces, num_pieces};
    queue((MpiState *)state, &o, after);
}
static void mpi_broadcast(void *state, void *data, size_t bytes, int root, Stream after) {
    CommPiece piece = {data, data, bytes, root};
    mpi_all_gather(state, &piece, 1, 1, after);
}
static void mpi_wait(void *state, Ticket ticket, Stream stream) {
    (void)stream; // work that is queued from here on is queued after this returns
    wait_until_done((MpiState *)state, ticket);
}
static void mpi_exchange(void *state, const void *mine, size_t bytes, void *all) {
    MpiState *s = (MpiState *)state;
    Operation o = {EXCHANGE, (void *)(uintptr_t)mine, all, bytes, 1, NULL, 0};
    queue(s, &o, 0);
    wait_until_done(s, s->queued);
}

static Ticket mpi_progress(void *state, char *failure, size_t size) {
    MpiState *s = (MpiState *)state;
    (void)failure, (void)size;
    pthread_mutex_lock(&s->mutex);
    Ticket done = s->done;
    pthread_mutex_unlock(&s->mutex);
    return done;
}

static void mpi_abort(void *state) {
    (void)state; // the process's exit status tells mpirun
}

// What MPI says about who is there, against what the launcher's variables say.
static int check_size(const Launch *launch, Error *error) {
    int rank, size;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    if (rank == launch->rank && size == launch->size) return 0;
    return fail(
        error,
        "the launcher started %d processes, but MPI reports %d: this mpirun or srun does not belong to the "
        "MPI that the program was built with (srun needs --mpi=pmix or --mpi=pmi2)",
        launch->size, size);
}

static void *mpi_open(const Launch *launch, int deterministic, double deadline, Control **control,
                      Error *error) {
    int provided, listening = -1;
    ControlAddress address = {{0}};
    (void)deterministic; // always
    comm_limit("connecting all processes over MPI", deadline);
    if (MPI_Init_thread(NULL, NULL, MPI_THREAD_SERIALIZED, &provided) != MPI_SUCCESS ||
        provided < MPI_THREAD_SERIALIZED) {
        fail(error, "this MPI cannot be used by more than one thread (MPI_THREAD_SERIALIZED)");
        return NULL;
    }
    if (check_size(launch, error) != 0) return NULL;
    if (launch->rank == 0 && (listening = control_listen(&address, error)) < 0) return NULL;
    MPI_Bcast(&address, (int)sizeof(address), MPI_BYTE, 0, MPI_COMM_WORLD);
    comm_limit(NULL, 0);
    *control = control_open(launch, listening, &address, deadline, error);
    if (*control == NULL) return NULL;
    MpiState *s = (MpiState *)xcalloc(1, sizeof(MpiState));
    s->rank = launch->rank;
    s->size = launch->size;
    s->received = (char *)xmalloc((size_t)s->size * SEGMENT * sizeof(double));
    s->staged = (char *)xmalloc(DEVICE_IS_GPU ? (size_t)s->size * SEGMENT * sizeof(double) : 1);
    s->sum = (char *)xmalloc(SEGMENT * sizeof(double));
    s->statuses = (MPI_Status *)xmalloc(2 * (size_t)s->size * sizeof(MPI_Status));
    s->requests = (MPI_Request *)xmalloc(2 * (size_t)s->size * sizeof(MPI_Request));
    pthread_mutex_init(&s->mutex, NULL);
    pthread_cond_init(&s->changed, NULL);
    if (thread_start(&s->thread, worker, s) == 0) return s;
    fail(error, "cannot start the thread that communicates with the other processes");
    free(s);
    return NULL;
}

static void mpi_close(void *state) {
    MpiState *s = (MpiState *)state;
    Operation o = {CLOSE, NULL, NULL, 0, 0, NULL, 0};
    queue(s, &o, 0);
    pthread_join(s->thread, NULL);
    MPI_Finalize();
    free(s->received), free(s->staged), free(s->sum), free(s->statuses), free(s->requests);
    pthread_mutex_destroy(&s->mutex);
    pthread_cond_destroy(&s->changed);
    free(s);
}

const CommTransport COMM_MPI = {
    "MPI",         1,        mpi_open,     mpi_close,    mpi_all_reduce, mpi_reduce_scatter, mpi_all_gather,
    mpi_broadcast, mpi_wait, mpi_exchange, mpi_progress, mpi_abort};
#endif
