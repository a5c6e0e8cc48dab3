// See nccl.h. A group of calls is collected, then executed by a separate thread, the only one that calls MPI, so that
// the caller sees the communicator in progress and can abort it.
#include "nccl.h"

#include <limits.h>
#define OMPI_SKIP_MPICXX // the C++ bindings are unused and cause warnings
#include <mpi.h>
#include <pthread.h>
#include <stdarg.h>
#include <unistd.h>

#include "layers/base/files.h"

typedef enum { INIT, ALL_REDUCE, REDUCE, ALL_GATHER, BROADCAST, SEND, RECEIVE, FINALIZE } Kind;
static const char *const NAMES[] = {
    "ncclCommInitRankConfig", "ncclAllReduce", "ncclReduce", "ncclAllGather",
    "ncclBroadcast",          "ncclSend",      "ncclRecv",   "ncclCommFinalize"};

// The arguments that processes must agree on.
typedef struct {
    Kind kind;
    int type, peer; // `peer`: the root, or the other process
    size_t count;
} Arguments;

typedef struct {
    Arguments what;
    const void *send;
    void *receive;
    cudaStream_t stream;
    long number; // counts the calls of the process
    void *host;  // host copy of a send or receive in progress
} Call;

enum { POLLS = 3 }; // minimal number of polls while the thread works

struct ncclComm {
    MPI_Comm mpi;
    int rank, size;
    ncclUniqueId id;
    Call *calls; // of the current group
    size_t num_calls;
    long called;
    // `work_done`: the thread has finished its work (atomic).
    int working, work_done, polls, finalized, aborted;
    pthread_t thread;
    char last_error[200];
};

static __thread int group_depth;
static __thread ncclComm_t group_comm;
static __thread ncclResult_t group_result;
static int live_comms;

// ---- errors ---------------------------------------------------------------------------------------------------------

__attribute__((format(printf, 3, 4), noreturn)) static void report_violation(int rank, const Arguments *what,
                                                                             const char *format, ...) {
    char text[400]; // printed by one call, since other processes print too
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    fprintf(stderr, "nccl stand-in: process %d, %s of %zu elements of type %d, root or peer %d: %s\n", rank,
            NAMES[what->kind], what->count, what->type, what->peer, text);
    MPI_Abort(MPI_COMM_WORLD, 1);
    abort();
}

static ncclResult_t refuse(ncclComm_t c, ncclResult_t result, const char *why) {
    snprintf(c->last_error, sizeof(c->last_error), "%s", why);
    if (group_depth > 0) group_result = result;
    return result;
}

const char *ncclGetLastError(ncclComm_t comm) {
    return comm != NULL ? comm->last_error : "";
}

const char *ncclGetErrorString(ncclResult_t result) {
    static const char *const words[] = {
        "no error",         "unhandled cuda error", "unhandled system error", "internal error",
        "invalid argument", "invalid usage",        "remote process exited",  "NCCL operation in progress"};
    return words[result];
}

// Returns 1 if `variable` names this process and a call up to `call`; with `exactly`, this call.
static int is_named(const char *variable, const ncclComm *c, long call, int exactly) {
    const char *text = getenv(variable);
    int rank;
    long from;
    if (text == NULL || sscanf(text, "%d:%ld", &rank, &from) != 2 || rank != c->rank) return 0;
    return exactly ? from == call : from <= call;
}

static void hang_where_asked(const ncclComm *c, long call) {
    while (is_named("NCCL_STANDIN_HANG", c, call, 1)) pause();
}

// ---- memory ---------------------------------------------------------------------------------------------------------

static size_t bytes_of(size_t count, int type) {
    return count * (type == ncclFloat64 ? 8 : type == ncclFloat32 ? 4 : 1);
}

// The memory that a call reads and writes in this process.
typedef struct {
    const char *at;
    size_t bytes;
} Range;

static Range range_read(const ncclComm *c, const Call *call) {
    const Arguments *w = &call->what;
    int is_read = w->kind != RECEIVE && !(w->kind == BROADCAST && w->peer != c->rank);
    Range range = {(const char *)call->send, is_read ? bytes_of(w->count, w->type) : 0};
    return range;
}
static Range range_written(const ncclComm *c, const Call *call) {
    const Arguments *w = &call->what;
    int is_written = w->kind != SEND && !(w->kind == REDUCE && w->peer != c->rank);
    Range range = {(const char *)call->receive, is_written ? bytes_of(w->count, w->type) : 0};
    if (w->kind == ALL_GATHER) range.bytes *= (size_t)c->size;
    return range;
}
static int overlap(Range a, Range b) {
    return a.bytes > 0 && b.bytes > 0 && a.at < b.at + b.bytes && b.at < a.at + a.bytes;
}

static void check_device_memory(const ncclComm *c, const Call *call, Range range, const char *name) {
    if (range.bytes == 0) return;
    emulation::Lock lock(emulation::memory.mutex);
    const emulation::Allocation *a = emulation::find_allocation(range.at);
    if (a == NULL || a->pinned)
        report_violation(c->rank, &call->what, "the %s buffer is not device memory", name);
    if ((size_t)a->offset(range.at) + range.bytes > a->bytes)
        report_violation(c->rank, &call->what, "the %s buffer ends %zu bytes beyond its memory", name,
                         (size_t)a->offset(range.at) + range.bytes - a->bytes);
}

static void check_call(const ncclComm *c, const Call *call) {
    const Range read = range_read(c, call), written = range_written(c, call);
    const char *in_place = written.at;
    check_device_memory(c, call, read, "send");
    check_device_memory(c, call, written, "receive");
    if (read.bytes > INT_MAX || written.bytes > INT_MAX)
        report_violation(c->rank, &call->what, "too large for MPI");
    if (call->what.kind == ALL_GATHER) in_place += (size_t)c->rank * read.bytes;
    if (overlap(read, written) && read.at != in_place)
        report_violation(c->rank, &call->what, "the buffers overlap, but the operation is not in place");
}

// Calls of a group run concurrently, so their memory must not overlap.
static void check_group(const ncclComm *c) {
    for (size_t i = 0; i < c->num_calls; i++) {
        check_call(c, &c->calls[i]);
        for (size_t j = 0; j < c->num_calls; j++)
            if (i != j && (overlap(range_written(c, &c->calls[i]), range_read(c, &c->calls[j])) ||
                           overlap(range_written(c, &c->calls[i]), range_written(c, &c->calls[j]))))
                report_violation(c->rank, &c->calls[i].what, "writes what another call of its group uses");
    }
}

static char *from_device(const Call *call, size_t bytes) {
    char *host = (char *)xmalloc(bytes + 1);
    if (bytes > 0) cudaMemcpyAsync(host, call->send, bytes, cudaMemcpyDeviceToHost, call->stream);
    return host;
}
static void to_device(const Call *call, const char *host, size_t bytes) {
    if (bytes > 0) cudaMemcpyAsync(call->receive, host, bytes, cudaMemcpyHostToDevice, call->stream);
}

// ---- agreement ------------------------------------------------------------------------------------------------------

static int is_between_two(const Arguments *what) {
    return what->kind == SEND || what->kind == RECEIVE;
}

// Returns the index of the next element of `what`, from `i` on, that is a collective call or, given a kind, a call of
// that kind with this peer.
static int find_next(const Arguments *what, int count, int i, int kind, int peer) {
    while (i < count &&
           (kind < 0 ? is_between_two(&what[i]) : (int)what[i].kind != kind || what[i].peer != peer))
        i++;
    return i;
}

static void compare(int a, const Arguments *of_a, int num_a, int kind_a, int peer_a, int b,
                    const Arguments *of_b, int num_b, int kind_b, int peer_b) {
    for (int i = 0, j = 0;; i++, j++) {
        i = find_next(of_a, num_a, i, kind_a, peer_a);
        j = find_next(of_b, num_b, j, kind_b, peer_b);
        if (i == num_a && j == num_b) return;
        if (i == num_a) report_violation(b, &of_b[j], "process %d makes no call that goes with it", a);
        if (j == num_b) report_violation(a, &of_a[i], "process %d makes no call that goes with it", b);
        const Arguments *x = &of_a[i], *y = &of_b[j];
        if (x->count != y->count || x->type != y->type ||
            (kind_a < 0 && (x->kind != y->kind || x->peer != y->peer)))
            report_violation(a, x, "process %d calls %s with %zu elements of type %d, root or peer %d", b,
                             NAMES[y->kind], y->count, y->type, y->peer);
    }
}

// Process 0 compares the calls that all processes are about to make. On a mismatch it ends, and so do the others.
static void check_agreement(const ncclComm *c) {
    int mine = (int)(c->num_calls * sizeof(Arguments)),
        *bytes = (int *)xcalloc((size_t)c->size * 2, sizeof(int)), *first = bytes + c->size, total = 0;
    Arguments *what = (Arguments *)xcalloc(c->num_calls + 1, sizeof(Arguments));
    for (size_t i = 0; i < c->num_calls; i++) what[i] = c->calls[i].what;
    MPI_Gather(&mine, 1, MPI_INT, bytes, 1, MPI_INT, 0, c->mpi);
    for (int r = 0; r < c->size; r++) first[r] = total, total += bytes[r];
    char *all = (char *)xmalloc((size_t)total + 1);
    MPI_Gatherv(what, mine, MPI_BYTE, all, bytes, first, MPI_BYTE, 0, c->mpi);
    for (int a = 0; a < c->size && c->rank == 0; a++) {
        const Arguments *of_a = (const Arguments *)(all + first[a]), *of_0 = (const Arguments *)all;
        int num_a = bytes[a] / (int)sizeof(Arguments), num_0 = bytes[0] / (int)sizeof(Arguments);
        compare(0, of_0, num_0, -1, 0, a, of_a, num_a, -1, 0);
        for (int b = 0; b < c->size; b++)
            compare(a, of_a, num_a, SEND, b, b, (const Arguments *)(all + first[b]),
                    bytes[b] / (int)sizeof(Arguments), RECEIVE, a);
    }
    MPI_Barrier(c->mpi);
    free(all), free(what), free(bytes);
}

// ---- the work -------------------------------------------------------------------------------------------------------

// x (size, count). Adds in a ring's order, which begins at another process for every 64 elements, but never at
// process 0.
template <class T> static void add_around_ring(T *out, const T *x, size_t count, int size) {
    for (size_t i = 0; i < count; i++) {
        int start = size > 1 ? 1 + (int)(i / 64 % (size_t)(size - 1)) : 0;
        T sum = x[(size_t)start * count + i];
        for (int k = 1; k < size; k++) sum += x[(size_t)((start + k) % size) * count + i];
        out[i] = sum;
    }
}

static void reduce(ncclComm *c, const Call *call) {
    const size_t count = call->what.count, bytes = bytes_of(count, call->what.type);
    const int is_root = call->what.kind == ALL_REDUCE || call->what.peer == c->rank;
    char *mine = from_device(call, bytes), *all = (char *)xmalloc(bytes * (size_t)c->size + 1);
    if (call->what.kind == ALL_REDUCE)
        MPI_Allgather(mine, (int)bytes, MPI_BYTE, all, (int)bytes, MPI_BYTE, c->mpi);
    else
        MPI_Gather(mine, (int)bytes, MPI_BYTE, all, (int)bytes, MPI_BYTE, call->what.peer, c->mpi);
    if (is_root && call->what.type == ncclFloat32)
        add_around_ring((float *)mine, (const float *)all, count, c->size);
    if (is_root && call->what.type == ncclFloat64)
        add_around_ring((double *)mine, (const double *)all, count, c->size);
    if (is_root) to_device(call, mine, bytes);
    free(mine), free(all);
}

static void all_gather(ncclComm *c, const Call *call) {
    const size_t bytes = bytes_of(call->what.count, call->what.type);
    char *mine = from_device(call, bytes), *all = (char *)xmalloc(bytes * (size_t)c->size + 1);
    MPI_Allgather(mine, (int)bytes, MPI_BYTE, all, (int)bytes, MPI_BYTE, c->mpi);
    to_device(call, all, bytes * (size_t)c->size);
    free(mine), free(all);
}

static void broadcast(ncclComm *c, const Call *call) {
    const size_t bytes = bytes_of(call->what.count, call->what.type);
    char *host = call->what.peer == c->rank ? from_device(call, bytes) : (char *)xmalloc(bytes + 1);
    MPI_Bcast(host, (int)bytes, MPI_BYTE, call->what.peer, c->mpi);
    to_device(call, host, bytes);
    free(host);
}

static void send_and_receive(ncclComm *c) {
    MPI_Request *requests = (MPI_Request *)xcalloc(c->num_calls + 1, sizeof(MPI_Request));
    int started = 0;
    for (Call *call = c->calls; call < c->calls + c->num_calls; call++) {
        const size_t bytes = bytes_of(call->what.count, call->what.type);
        if (!is_between_two(&call->what)) continue;
        call->host = call->what.kind == SEND ? from_device(call, bytes) : xmalloc(bytes + 1);
        if (call->what.kind == SEND)
            MPI_Isend(call->host, (int)bytes, MPI_BYTE, call->what.peer, 0, c->mpi, &requests[started++]);
        else
            MPI_Irecv(call->host, (int)bytes, MPI_BYTE, call->what.peer, 0, c->mpi, &requests[started++]);
    }
    MPI_Waitall(started, requests, MPI_STATUSES_IGNORE);
    for (Call *call = c->calls; call < c->calls + c->num_calls; call++) {
        if (call->what.kind == RECEIVE)
            to_device(call, (const char *)call->host, bytes_of(call->what.count, call->what.type));
        free(call->host);
    }
    free(requests);
}

static void initialize(ncclComm *c) {
    ncclUniqueId first = c->id;
    Arguments what = {INIT, 0, 0, 0};
    int same, all;
    MPI_Comm_dup(MPI_COMM_WORLD, &c->mpi);
    MPI_Bcast(&first, sizeof(first), MPI_BYTE, 0, c->mpi);
    same = memcmp(&first, &c->id, sizeof(first)) == 0;
    MPI_Allreduce(&same, &all, 1, MPI_INT, MPI_MIN, c->mpi);
    if (!same) report_violation(c->rank, &what, "its ncclUniqueId is not that of process 0");
    if (!all) pause();
}

static void *work(void *argument) {
    ncclComm *c = (ncclComm *)argument;
    for (size_t i = 0; i < c->num_calls; i++) hang_where_asked(c, c->calls[i].number);
    if (c->calls[0].what.kind == INIT) {
        initialize(c);
    } else {
        check_agreement(c);
        for (const Call *call = c->calls; call < c->calls + c->num_calls; call++) {
            if (call->what.kind == ALL_REDUCE || call->what.kind == REDUCE) reduce(c, call);
            if (call->what.kind == ALL_GATHER) all_gather(c, call);
            if (call->what.kind == BROADCAST) broadcast(c, call);
            if (call->what.kind == FINALIZE) MPI_Comm_free(&c->mpi);
        }
        send_and_receive(c);
    }
    __atomic_store_n(&c->work_done, 1, __ATOMIC_RELEASE);
    return NULL;
}

// ---- calls ----------------------------------------------------------------------------------------------------------

static ncclResult_t start_work(ncclComm *c) {
    c->working = 1, c->work_done = 0, c->polls = 0;
    if (pthread_create(&c->thread, NULL, work, c) != 0) return refuse(c, ncclSystemError, "no thread");
    return ncclInProgress;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t c, ncclResult_t *state) {
    *state = ncclSuccess;
    if (c->aborted) return refuse(c, ncclInvalidArgument, "the communicator was aborted");
    if (is_named("NCCL_STANDIN_FAIL", c, c->called, 0)) {
        *state = ncclRemoteError;
        snprintf(c->last_error, sizeof(c->last_error), "NCCL_STANDIN_FAIL says so");
    } else if (c->working) {
        *state = ncclInProgress;
        if (++c->polls < POLLS || !__atomic_load_n(&c->work_done, __ATOMIC_ACQUIRE)) return ncclSuccess;
        pthread_join(c->thread, NULL);
        c->working = 0, c->num_calls = 0;
        *state = ncclSuccess;
    }
    return ncclSuccess;
}

ncclResult_t ncclGroupStart(void) {
    group_depth++;
    return ncclSuccess;
}

ncclResult_t ncclGroupEnd(void) {
    ncclComm_t c = group_comm;
    ncclResult_t result = group_result;
    if (group_depth == 0) return ncclInvalidUsage;
    if (--group_depth > 0) return ncclSuccess;
    group_comm = NULL, group_result = ncclSuccess;
    if (result != ncclSuccess || c == NULL) return result;
    check_group(c);
    return start_work(c);
}

static void append(ncclComm *c, const Call *call) {
    c->calls = (Call *)xrealloc(c->calls, (c->num_calls + 1) * sizeof(Call));
    c->calls[c->num_calls++] = *call;
}

static ncclResult_t collect(ncclComm *c, Call call) {
    if (c->aborted || c->finalized) return refuse(c, ncclInvalidArgument, "the communicator has ended");
    if (c->working)
        return refuse(c, ncclInvalidArgument, "the communicator's last call is still in progress");
    if (call.what.peer < 0 || call.what.peer >= c->size)
        return refuse(c, ncclInvalidArgument, "no such root or peer");
    if (group_comm != NULL && group_comm != c)
        return refuse(c, ncclInvalidUsage, "two communicators in a group");
    if (call.what.type != ncclFloat32 && call.what.type != ncclFloat64 &&
        (call.what.type != ncclUint8 || call.what.kind <= REDUCE))
        return refuse(c, ncclInvalidArgument, "no such type, or it cannot be added");
    if (c->num_calls > 0 && c->calls[0].stream != call.stream)
        report_violation(c->rank, &call.what, "a group has two streams");
    call.number = ++c->called;
    append(c, &call);
    group_comm = c;
    return ncclSuccess;
}

// A call outside of a group is a group of its own.
static ncclResult_t add_call(ncclComm *c, Kind kind, const void *send, void *receive, size_t count, int type,
                             int peer, cudaStream_t stream) {
    Call call = {{kind, type, peer, count}, send, receive, stream, 0, NULL};
    ncclGroupStart();
    ncclResult_t result = collect(c, call), end = ncclGroupEnd();
    return result != ncclSuccess ? result : end;
}

ncclResult_t ncclAllReduce(const void *send, void *receive, size_t count, ncclDataType_t type, ncclRedOp_t,
                           ncclComm_t comm, cudaStream_t stream) {
    return add_call(comm, ALL_REDUCE, send, receive, count, type, 0, stream);
}
ncclResult_t ncclReduce(const void *send, void *receive, size_t count, ncclDataType_t type, ncclRedOp_t,
                        int root, ncclComm_t comm, cudaStream_t stream) {
    return add_call(comm, REDUCE, send, receive, count, type, root, stream);
}
ncclResult_t ncclAllGather(const void *send, void *receive, size_t count, ncclDataType_t type,
                           ncclComm_t comm, cudaStream_t stream) {
    return add_call(comm, ALL_GATHER, send, receive, count, type, 0, stream);
}
ncclResult_t ncclBroadcast(const void *send, void *receive, size_t count, ncclDataType_t type, int root,
                           ncclComm_t comm, cudaStream_t stream) {
    return add_call(comm, BROADCAST, send, receive, count, type, root, stream);
}
ncclResult_t ncclSend(const void *send, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
    return add_call(comm, SEND, send, NULL, count, type, peer, stream);
}
ncclResult_t ncclRecv(void *receive, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
    return add_call(comm, RECEIVE, NULL, receive, count, type, peer, stream);
}

// ---- communicators --------------------------------------------------------------------------------------------------

ncclResult_t ncclGetUniqueId(ncclUniqueId *id) {
    FILE *random = fopen("/dev/urandom", "rb");
    size_t got = random != NULL ? fread(id, 1, sizeof(*id), random) : 0;
    if (random != NULL) fclose(random);
    return got == sizeof(*id) ? ncclSuccess : ncclSystemError;
}

// A process that ends before its communicators do does not finalize MPI, so mpirun ends the others.
static void finish_mpi(void) {
    if (live_comms == 0) MPI_Finalize();
}

static int start_mpi(void) {
    int started, provided;
    MPI_Initialized(&started);
    if (started) {
        MPI_Query_thread(&provided);
    } else {
        MPI_Init_thread(NULL, NULL, MPI_THREAD_MULTIPLE, &provided);
        atexit(finish_mpi);
    }
    return provided == MPI_THREAD_MULTIPLE;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t *comm, int size, ncclUniqueId id, int rank,
                                    ncclConfig_t *config) {
    ncclComm *c = (ncclComm *)xcalloc(1, sizeof(ncclComm));
    Call call = {{INIT, 0, 0, 0}, NULL, NULL, NULL, 0, NULL};
    int mpi_rank, mpi_size;
    *comm = c;
    c->rank = rank, c->size = size, c->id = id;
    if (config->magic != 0xcafebeef || config->blocking != 0)
        return refuse(c, ncclInvalidArgument, "the stand-in is for non-blocking communicators only");
    if (!start_mpi()) return refuse(c, ncclSystemError, "MPI without MPI_THREAD_MULTIPLE");
    MPI_Comm_rank(MPI_COMM_WORLD, &mpi_rank);
    MPI_Comm_size(MPI_COMM_WORLD, &mpi_size);
    if (mpi_rank != rank || mpi_size != size)
        report_violation(rank, &call.what, "of %d, but for MPI it is %d of %d: the stand-in needs mpirun",
                         size, mpi_rank, mpi_size);
    live_comms++;
    append(c, &call);
    return start_work(c);
}

ncclResult_t ncclCommFinalize(ncclComm_t c) {
    Call call = {{FINALIZE, 0, 0, 0}, NULL, NULL, NULL, ++c->called, NULL};
    if (c->working || c->finalized || c->aborted)
        return refuse(c, ncclInvalidArgument, "not the time to finalize");
    append(c, &call);
    c->finalized = 1;
    return start_work(c);
}

ncclResult_t ncclCommDestroy(ncclComm_t c) {
    if (c->working || !c->finalized) return refuse(c, ncclInvalidUsage, "destroyed before it was finalized");
    live_comms--;
    free(c->calls);
    free(c);
    return ncclSuccess;
}

// The thread's current call is not interrupted: the process is about to end.
ncclResult_t ncclCommAbort(ncclComm_t c) {
    c->aborted = 1;
    return ncclSuccess;
}
