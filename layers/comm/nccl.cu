// The NCCL transport: operations are NCCL kernels on a stream of their own.
//
// The communicator is nonblocking: a call returns at once, with ncclInProgress while threads of NCCL still work on
// it, and `settle` waits for these. So no thread hangs inside NCCL, and the watchdog's thread can abort the
// communicator. Both threads use `lock`, because NCCL allows only one thread at a time to use a communicator.
//
// Events record which operations are complete; the last RING events are kept. The stream runs operations in order, so
// if a newer operation has reused a ticket's event, waiting for that event is also correct.
//
// NCCL adds in an order that depends on topology and size. With `deterministic`, sums use send and receive instead:
// every process sends an owner its parts, a segment at a time, and the owner adds them in rank order (sum.cuh).
#ifdef HAVE_NCCL
#include <nccl.h>
#include <pthread.h>
#include <sched.h>
#include <time.h>
#include <unistd.h>

#include "sum.cuh"
#include "transport.h"
#include "layers/base/progress.h"

enum {
    RING = 64,
    SEGMENT_BYTES = 1 << 20, // per process and round: 2^18 floats
    GRACE_SECONDS = 10       // seconds that the watchdog has to end a process whose communicator has failed
};

typedef struct {
    ncclComm_t comm;
    pthread_mutex_t lock; // guards comm, aborted, failure
    int aborted;
    char failure[160]; // of a call; empty: none

    int rank, size, device;
    Stream stream;
    Event input_ready;
    Event events[RING];  // operation t uses events[t % RING]
    Ticket queued, done; // atomic, as the watchdog's thread reads them

    char *host_buffer, *device_buffer; // for exchange: (1 + size, exchange_bytes)
    size_t exchange_bytes;
    // The fields below are NULL without `deterministic`.
    char *scratch;     // (size, SEGMENT_BYTES), device memory
    Cursor *cursors;   // (size)
    CommPiece *ranges; // (size), for all-reduce
} Nccl;

// ---- calls of NCCL --------------------------------------------------------------------------------------------------

static void describe_failure(char *text, size_t size, ncclComm_t comm, ncclResult_t result) {
    const char *details = ncclGetLastError(comm);
    snprintf(text, size, "NCCL reports: %s%s%s", ncclGetErrorString(result),
             details != NULL && *details ? ": " : "", details != NULL ? details : "");
    text[strcspn(text, "\n")] = 0; // one line
}

// For calls from the main thread. After an abort there is no communicator, and the process is about to exit: waits
// for that.
static void lock_communicator(Nccl *n) {
    pthread_mutex_lock(&n->lock);
    if (!n->aborted) return;
    pthread_mutex_unlock(&n->lock);
    for (;;) pause();
}

// A usage error is a bug of this program. Any other error concerns other processes or the network: the watchdog,
// which can name the cause, ends the process; without a watchdog it ends here. It must not continue with data that
// never arrived.
static void call_failed(Nccl *n, ncclResult_t result) {
    lock_communicator(n);
    describe_failure(n->failure, sizeof(n->failure), n->comm, result);
    pthread_mutex_unlock(&n->lock);
    if (result == ncclInvalidArgument || result == ncclInvalidUsage)
        check_failed(__FILE__, __LINE__, "NCCL operation", n->failure);
    sleep(GRACE_SECONDS);
    fprintf(stderr, "error: %s\n", n->failure);
    fflush(NULL);
    _exit(EXIT_LOST_PEER);
}

static ncclResult_t current_state(Nccl *n) {
    ncclResult_t state = ncclInProgress;
    lock_communicator(n);
    ncclResult_t result = ncclCommGetAsyncError(n->comm, &state);
    pthread_mutex_unlock(&n->lock);
    return result != ncclSuccess ? result : state;
}

// Waits until NCCL has queued the call's work on the stream, at most `deadline` seconds; only then may NCCL be called
// again or the stream be used.
static ncclResult_t settle_within(Nccl *n, ncclResult_t result, double deadline) {
    double start = seconds_now();
    for (int polls = 0; result == ncclInProgress && seconds_now() - start < deadline; polls++) {
        if (polls < 1000)
            sched_yield();
        else
            usleep(100);
        result = current_state(n);
    }
    return result;
}
static void settle(Nccl *n, ncclResult_t result) {
    result = settle_within(n, result, INFINITY);
    if (result != ncclSuccess) call_failed(n, result);
}

// Every operation is called between group_begin and group_end. ncclGroupEnd returns errors of calls in between.
static void group_begin(Nccl *n) {
    lock_communicator(n);
    ncclGroupStart();
}
static void group_end(Nccl *n) {
    ncclResult_t result = ncclGroupEnd();
    pthread_mutex_unlock(&n->lock);
    settle(n, result);
}

static ncclDataType_t nccl_type(CommType type) {
    return type == COMM_FLOAT ? ncclFloat32 : ncclFloat64;
}

// ---- open and close -------------------------------------------------------------------------------------------------

static int connection_failed(const Nccl *n, ncclResult_t result, double deadline, Error *error) {
    char host[256] = "", reason[512] = "some of them did not answer", limit[64] = "";
    gethostname(host, sizeof(host) - 1);
    if (result != ncclInProgress)
        describe_failure(reason, sizeof(reason), n->comm, result);
    else
        snprintf(limit, sizeof(limit), " within %g seconds", deadline);
    return fail(
        error,
        "NCCL could not connect the %d processes%s (this is process %d, host %s): %s; set NCCL_DEBUG=INFO "
        "for details",
        n->size, limit, n->rank, host, reason);
}

static int connect_processes(Nccl *n, Control *control, double deadline, Error *error) {
    ncclUniqueId id;
    memset(&id, 0, sizeof(id));
    ncclResult_t result = n->rank == 0 ? ncclGetUniqueId(&id) : ncclSuccess;
    if (result != ncclSuccess) return connection_failed(n, result, deadline, error);
    if (control != NULL && control_broadcast(control, &id, sizeof(id), error) != 0) return -1;
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    result = ncclCommInitRankConfig(&n->comm, n->size, id, n->rank, &config);
    result = settle_within(n, result, deadline);
    if (result == ncclSuccess) return 0;
    connection_failed(n, result, deadline, error);
    if (n->comm != NULL) ncclCommAbort(n->comm);
    return -1;
}

static void nccl_free(Nccl *n) {
    stream_destroy(n->stream);
    event_destroy(n->input_ready);
    for (int i = 0; i < RING; i++) event_destroy(n->events[i]);
    if (n->exchange_bytes > 0) {
        host_free(n->host_buffer);
        device_free(n->device_buffer);
    }
    if (n->scratch != NULL) device_free(n->scratch);
    free(n->cursors);
    free(n->ranges);
    pthread_mutex_destroy(&n->lock);
    free(n);
}

static Event event_without_time(void) {
    Event event;
    CHECK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    return event;
}

static Nccl *nccl_new(const Launch *launch) {
    Nccl *n = (Nccl *)xcalloc(1, sizeof(Nccl));
    pthread_mutex_init(&n->lock, NULL);
    n->rank = launch->rank, n->size = launch->size;
    CHECK(cudaGetDevice(&n->device));
    n->stream = stream_create();
    n->input_ready = event_without_time();
    for (int i = 0; i < RING; i++) n->events[i] = event_without_time();
    return n;
}

static int nccl_prepare_sums(Nccl *n, Error *error) {
    n->cursors = (Cursor *)xcalloc((size_t)n->size, sizeof(Cursor));
    n->ranges = (CommPiece *)xcalloc((size_t)n->size, sizeof(CommPiece));
    n->scratch = (char *)device_alloc((size_t)n->size * SEGMENT_BYTES);
    if (n->scratch != NULL) return 0;
    return fail(error, "--deterministic-reduce needs %d MiB of GPU memory, and there is not that much left",
                n->size);
}

// A single process needs no control channel.
static void *nccl_open(const Launch *launch, int deterministic, double deadline, Control **control,
                       Error *error) {
    *control = NULL;
    if (launch->size > 1) {
        *control = control_open(launch, launch->listening, NULL, deadline, error);
        if (*control == NULL) return NULL;
    }
    Nccl *n = nccl_new(launch);
    if ((deterministic && nccl_prepare_sums(n, error) != 0) ||
        connect_processes(n, *control, deadline, error) != 0) {
        nccl_free(n);
        if (*control != NULL) control_close(*control);
        *control = NULL;
        return NULL;
    }
    return n;
}

static void nccl_close(void *state) {
    Nccl *n = (Nccl *)state;
    stream_wait(n->stream);
    lock_communicator(n);
    ncclResult_t result = ncclCommFinalize(n->comm);
    pthread_mutex_unlock(&n->lock);
    settle(n, result);
    ncclCommDestroy(n->comm);
    nccl_free(n);
}

// ---- operations -----------------------------------------------------------------------------------------------------

static void operation_begin(Nccl *n, Stream after) {
    CHECK(cudaEventRecord(n->input_ready, after));
    CHECK(cudaStreamWaitEvent(n->stream, n->input_ready, 0));
}
static void operation_end(Nccl *n) {
    Ticket ticket = n->queued + 1;
    CHECK(cudaEventRecord(n->events[ticket % RING], n->stream));
    __atomic_store_n(&n->queued, ticket, __ATOMIC_RELEASE);
}

static void gather(Nccl *n, const CommPiece *pieces, size_t num_pieces, size_t element) {
    group_begin(n);
    for (const CommPiece *p = pieces; p < pieces + num_pieces; p++)
        if (p->count > 0)
            ncclBroadcast(p->owner == n->rank ? p->own : p->data, p->data, p->count * element, ncclUint8,
                          p->owner, n->comm, n->stream);
    group_end(n);
}

// Sums in NCCL's order.
static void sum_pieces(Nccl *n, const CommPiece *pieces, size_t num_pieces) {
    group_begin(n);
    for (const CommPiece *p = pieces; p < pieces + num_pieces; p++)
        if (p->count > 0)
            ncclReduce(p->data, p->owner == n->rank ? p->own : p->data, p->count, ncclFloat32, ncclSum,
                       p->owner, n->comm, n->stream);
    group_end(n);
}

// Sums in rank order. A round is a segment of every owner, so that all owners add at the same time.
static void sum_pieces_in_order(Nccl *n, const CommPiece *pieces, size_t num_pieces, CommType type) {
    const size_t element = element_size(type);
    memset(n->cursors, 0, (size_t)n->size * sizeof(Cursor));
    for (;;) {
        CommPiece mine = {NULL, NULL, 0, n->rank};
        size_t left = 0;
        group_begin(n);
        for (int owner = 0; owner < n->size; owner++) {
            CommPiece segment = next_segment(pieces, num_pieces, owner, SEGMENT_BYTES / element, element,
                                             &n->cursors[owner]);
            left += segment.count;
            if (owner == n->rank)
                mine = segment;
            else if (segment.count > 0)
                ncclSend(segment.data, segment.count, nccl_type(type), owner, n->comm, n->stream);
        }
        for (int r = 0; r < n->size; r++)
            if (r != n->rank && mine.count > 0)
                ncclRecv(n->scratch + (size_t)r * SEGMENT_BYTES, mine.count, nccl_type(type), r, n->comm,
                         n->stream);
        group_end(n);
        if (left == 0) return;
        RankBuffers parts = {mine.data, n->scratch, SEGMENT_BYTES / element, n->rank, n->size};
        sum_ranks(mine.own, &parts, mine.count, type, n->stream);
    }
}

// Splits `data` into one range per process, nearly equal, each summed by one process; then all ranges are gathered.
static void all_reduce_in_order(Nccl *n, void *data, size_t count, CommType type) {
    const size_t element = element_size(type), size = (size_t)n->size;
    list_ranges(n->ranges, n->size, data, count, element);
    sum_pieces_in_order(n, n->ranges, size, type);
    gather(n, n->ranges, size, element);
}

static void nccl_all_reduce(void *state, void *data, size_t count, CommType type, Stream after) {
    Nccl *n = (Nccl *)state;
    operation_begin(n, after);
    if (n->scratch != NULL) {
        all_reduce_in_order(n, data, count, type);
    } else if (count > 0) {
        group_begin(n);
        ncclAllReduce(data, data, count, nccl_type(type), ncclSum, n->comm, n->stream);
        group_end(n);
    }
    operation_end(n);
}

static void nccl_reduce_scatter(void *state, const CommPiece *pieces, size_t num_pieces, Stream after) {
    Nccl *n = (Nccl *)state;
    operation_begin(n, after);
    if (n->scratch != NULL)
        sum_pieces_in_order(n, pieces, num_pieces, COMM_FLOAT);
    else
        sum_pieces(n, pieces, num_pieces);
    operation_end(n);
}

static void nccl_all_gather(void *state, const CommPiece *pieces, size_t num_pieces, size_t element,
                            Stream after) {
    Nccl *n = (Nccl *)state;
    operation_begin(n, after);
    gather(n, pieces, num_pieces, element);
    operation_end(n);
}

static void nccl_broadcast(void *state, void *data, size_t bytes, int root, Stream after) {
    Nccl *n = (Nccl *)state;
    operation_begin(n, after);
    if (bytes > 0) {
        group_begin(n);
        ncclBroadcast(data, data, bytes, ncclUint8, root, n->comm, n->stream);
        group_end(n);
    }
    operation_end(n);
}

static void nccl_wait(void *state, Ticket ticket, Stream stream) {
    Nccl *n = (Nccl *)state;
    CHECK(ticket <= n->queued);
    if (ticket > 0) CHECK(cudaStreamWaitEvent(stream, n->events[ticket % RING], 0));
}

// ---- exchange -------------------------------------------------------------------------------------------------------

static void exchange_grow(Nccl *n, size_t bytes) {
    if (bytes <= n->exchange_bytes) return;
    if (n->exchange_bytes > 0) {
        host_free(n->host_buffer);
        device_free(n->device_buffer);
    }
    n->exchange_bytes = round_up(bytes, 4096);
    n->host_buffer = (char *)host_alloc((size_t)(n->size + 1) * n->exchange_bytes);
    n->device_buffer = (char *)device_alloc((size_t)(n->size + 1) * n->exchange_bytes);
    CHECK(n->device_buffer != NULL);
}

// Sends one byte if `bytes` is 0, so that processes wait for each other.
static void nccl_exchange(void *state, const void *mine, size_t bytes, void *all) {
    Nccl *n = (Nccl *)state;
    const size_t sent = bytes > 0 ? bytes : 1, size = (size_t)n->size;
    exchange_grow(n, sent);
    char *to = n->device_buffer + sent, *host_to = n->host_buffer + sent;
    n->host_buffer[0] = 0;
    if (bytes > 0) memcpy(n->host_buffer, mine, bytes);
    copy_to_device(n->device_buffer, n->host_buffer, sent, n->stream);
    group_begin(n);
    ncclAllGather(n->device_buffer, to, sent, ncclUint8, n->comm, n->stream);
    group_end(n);
    copy_to_host(host_to, to, size * sent, n->stream);
    operation_end(n);
    stream_wait(n->stream);
    if (bytes > 0) memcpy(all, host_to, size * bytes);
}

// ---- for the watchdog -----------------------------------------------------------------------------------------------

// Returns the newest complete operation; all before it are complete too.
static Ticket newest_done(Nccl *n) {
    const Ticket queued = __atomic_load_n(&n->queued, __ATOMIC_ACQUIRE);
    Ticket known = __atomic_load_n(&n->done, __ATOMIC_ACQUIRE);
    for (Ticket t = queued; t > known && t + RING > queued; t--) {
        cudaError_t state = cudaEventQuery(n->events[t % RING]);
        if (state == cudaErrorNotReady) continue;
        if (state != cudaSuccess) break; // the main thread's next call reports the CUDA error
        while (known < t &&
               !__atomic_compare_exchange_n(&n->done, &known, t, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
        }
        return t > known ? t : known;
    }
    return known;
}

static Ticket nccl_progress(void *state, char *failure, size_t size) {
    Nccl *n = (Nccl *)state;
    *failure = 0;
    CHECK(cudaSetDevice(n->device)); // otherwise this thread would use device 0
    // If the main thread holds the lock, the next call will succeed soon enough.
    if (pthread_mutex_trylock(&n->lock) == 0) {
        ncclResult_t result = ncclSuccess;
        if (!n->aborted && ncclCommGetAsyncError(n->comm, &result) == ncclSuccess && result != ncclSuccess &&
            result != ncclInProgress && *n->failure == 0)
            describe_failure(n->failure, sizeof(n->failure), n->comm, result);
        snprintf(failure, size, "%s", n->failure);
        pthread_mutex_unlock(&n->lock);
    }
    return newest_done(n);
}

static void nccl_abort(void *state) {
    Nccl *n = (Nccl *)state;
    struct timespec limit;
    clock_gettime(CLOCK_REALTIME, &limit);
    limit.tv_sec += 2;
    // If a call of NCCL does not return, the exit of the process ends it.
    if (pthread_mutex_timedlock(&n->lock, &limit) != 0) return;
    if (!n->aborted) ncclCommAbort(n->comm);
    n->aborted = 1;
    pthread_mutex_unlock(&n->lock);
}

const CommTransport COMM_NCCL = {"NCCL",          0,
                                 nccl_open,       nccl_close,
                                 nccl_all_reduce, nccl_reduce_scatter,
                                 nccl_all_gather, nccl_broadcast,
                                 nccl_wait,       nccl_exchange,
                                 nccl_progress,   nccl_abort};
#endif
