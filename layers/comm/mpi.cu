// The MPI transport, for processes on CPUs. A thread of its own runs the operations in the order in which they were
// queued, while the other threads compute; only this thread calls MPI. It sleeps between polls, so that it takes no
// core from the computation.
//
// Sums are computed by their owners: each owner receives every process's part, a segment at a time, and adds the
// parts in rank order. This sends each element as often as a ring does, and the bits do not depend on timing.
//
// MPI needs host memory. Device memory (here: of the emulated device) is copied a segment at a time, and the
// operation is complete when the call returns.
// operation is done when the call returns.
#ifdef HAVE_MPI
#define OMPI_SKIP_MPICXX  1 // only kernels are C++
#define MPICH_SKIP_MPICXX 1
#include <mpi.h>
#include <pthread.h>
#include <sched.h>
#include <time.h>
#include "sum.cuh"
#include "transport.h"
#include "layers/base/threads.h"

enum {
    SEGMENT = 1 << 18,     // elements that an owner gets from each process at a time
    SMALL_COUNT = 1 << 12, // up to this many elements, every process sends all to every other
    QUEUE_SIZE = 1024,     // capacity, in operations
    NUM_SPINS = 20,        // polls before the first sleep
    SLEEP_NANOSECONDS = 20000,
};

typedef enum { ALL_REDUCE, REDUCE_SCATTER, ALL_GATHER, EXCHANGE, CLOSE } Kind;

typedef struct {
    Kind kind;
    void *data, *all; // for ALL_REDUCE and EXCHANGE
    size_t count, element;
    CommPiece *pieces; // a copy, owned by the operation
    size_t num_pieces;
} Operation;

typedef struct {
    int rank, size;
    char *received, *staged, *sum; // (size, SEGMENT), (size, SEGMENT), (SEGMENT) elements of at most 8 bytes
    MPI_Status *statuses;          // (2 size), unused: gcc warns about MPICH's MPI_STATUSES_IGNORE
    MPI_Request *requests; // (2 size)
    pthread_t thread;
    pthread_mutex_t mutex; // guards the fields below
    pthread_cond_t changed;
    Operation queue[QUEUE_SIZE];
    Ticket queued, done;
} MpiState;

// ---- one round: a segment for every owner ---------------------------------------------------------------------

// Returns memory that MPI may read: `data` itself, or a host copy of device memory.
static const void *host_view(MpiState *s, int slot, const void *data, size_t bytes) {
    if (!DEVICE_IS_GPU) return data;
    char *copy = s->staged + (size_t)slot * SEGMENT * sizeof(double);
    copy_to_host(copy, data, bytes, 0);
    stream_wait(0);
    return copy;
}

static void store_from_host(void *data, const void *host, size_t bytes) {
    if (data == host) return;
    copy_to_device(data, host, bytes, 0);
    stream_wait(0);
}

// Waits until all requests are complete.
static void wait_for(MpiState *s, int count) {
    struct timespec pause = {0, SLEEP_NANOSECONDS};
    int done = 0;
    for (int polls = 0; !done; polls++) {
        if (polls >= NUM_SPINS) nanosleep(&pause, NULL);
        MPI_Testall(count, s->requests, &done, s->statuses);
        if (!done && polls < NUM_SPINS) sched_yield();
    }
}

// out = x_0 + x_1 + ..., `bytes` bytes each: x_r is what process r sent, and `mine` of this process.
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

static CommPiece next_segment_of(const Operation *o, int owner, Cursor *cursors) {
    return next_segment(o->pieces, o->num_pieces, owner, SEGMENT, o->element, &cursors[owner]);
}

static void do_reduce_scatter(MpiState *s, const Operation *o) {
    Cursor *cursors = (Cursor *)xcalloc((size_t)s->size, sizeof(Cursor));
    for (int remaining = 1; remaining;) {
        const CommPiece mine = next_segment_of(o, s->rank, cursors);
        const size_t bytes = mine.count * o->element;
        remaining = bytes > 0;
        int requests = receive_from_all(s, bytes);
        for (int r = 0; r < s->size; r++) {
            if (r == s->rank) continue;
            const CommPiece other = next_segment_of(o, r, cursors);
            const size_t sent = other.count * o->element;
            if (sent == 0) continue;
            remaining = 1;
            MPI_Isend(host_view(s, r, other.data, sent), (int)sent, MPI_BYTE, r, 0, MPI_COMM_WORLD,
                      &s->requests[requests++]);
        }
        wait_for(s, requests);
        if (bytes == 0) continue;
        void *sum = DEVICE_IS_GPU ? s->sum : mine.own;
        sum_received(s, sum, host_view(s, s->rank, mine.data, bytes), bytes, o->element);
        store_from_host(mine.own, sum, bytes);
    }
    free(cursors);
}

static void do_all_gather(MpiState *s, const Operation *o) {
    Cursor *cursors = (Cursor *)xcalloc((size_t)s->size, sizeof(Cursor));
    CommPiece *others = (CommPiece *)xcalloc((size_t)s->size, sizeof(CommPiece));
    for (int remaining = 1; remaining;) {
        int requests = 0;
        remaining = 0;
        for (int r = 0; r < s->size; r++) {
            others[r] = next_segment_of(o, r, cursors);
            if (others[r].count == 0) continue;
            remaining = 1;
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
        if (mine.own != mine.data) store_from_host(mine.data, view, bytes);
        for (int r = 0; r < s->size && DEVICE_IS_GPU; r++)
            if (r != s->rank && others[r].count > 0)
                store_from_host(others[r].data, s->received + (size_t)r * SEGMENT * sizeof(double),
                                others[r].count * o->element);
    }
    free(cursors), free(others);
}

// For few elements: every process gets all parts and adds them in the same order.
static void all_reduce_small(MpiState *s, const Operation *o) {
    const size_t bytes = o->count * o->element;
    const void *mine = host_view(s, s->rank, o->data, bytes);
    int requests = receive_from_all(s, bytes);
    for (int r = 0; r < s->size; r++)
        if (r != s->rank)
            MPI_Isend(mine, (int)bytes, MPI_BYTE, r, 0, MPI_COMM_WORLD, &s->requests[requests++]);
    wait_for(s, requests);
    sum_received(s, s->sum, mine, bytes, o->element);
    store_from_host(o->data, s->sum, bytes);
}

// Every process sums one range, then the ranges are gathered.
static void do_all_reduce(MpiState *s, const Operation *o) {
    if (o->count == 0) return;
    if (o->count <= SMALL_COUNT) {
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
        Operation operation = s->queue[s->done % QUEUE_SIZE];
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
    while (s->queued - s->done == QUEUE_SIZE) pthread_cond_wait(&s->changed, &s->mutex);
    s->queue[s->queued++ % QUEUE_SIZE] = o;
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
    (void)stream; // work that is queued from now on is queued after this returns
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
    (void)state; // mpirun reacts to the exit status of the process
}

// Compares MPI's rank and size with those of the launcher's variables.
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
    (void)deterministic; // sums are always in rank order
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
