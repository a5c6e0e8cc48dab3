// The NCCL transport: compared with sums in double precision and, with `deterministic`, bit for bit with sums in rank
// order. Every process checks its results, process 0 counts. Without mpirun it is one process, which also works:
//     mpirun -n 3 build/emulated-bf16/test/layers/comm/test_nccl
#include <pthread.h>
#include <unistd.h>

#include "layers/comm/sum.cuh"
#include "layers/comm/transport.h"
#include "test/harness/device_arrays.h"

enum { LARGE = 3 * (1 << 18) + 4321 }; // with three processes, a share is still more than one segment

static const CommTransport *const nccl = &COMM_NCCL;
static void *state;
static int rank, size, deterministic;
static Ticket queued; // number of operations so far

// ---- the processes' data and their sums -----------------------------------------------------------------------------

// Returns n elements of process r, which every process can generate.
template <class T> static T *numbers(int r, int seed, size_t n) {
    T *x = (T *)malloc((n + 1) * sizeof(T));
    test_random_state = (uint64_t)(r + 1) * 0x9e3779b97f4a7c15ull + (uint64_t)seed;
    for (int i = 0; i < 4; i++) test_random();
    for (size_t i = 0; i < n; i++)
        x[i] = (T)(test_random() * test_random()); // of very different magnitudes: sums are rounded
    return x;
}

typedef struct {
    double *exact; // (n)
    void *ordered; // (n) of the element type: ((x_0 + x_1) + x_2) + ...
} Sums;

template <class T> static Sums sums_of(int seed, size_t n) {
    Sums sums = {(double *)calloc(n + 1, sizeof(double)), numbers<T>(0, seed, n)};
    for (int r = 0; r < size; r++) {
        T *x = numbers<T>(r, seed, n);
        for (size_t i = 0; i < n; i++) sums.exact[i] += (double)x[i];
        for (size_t i = 0; i < n && r > 0; i++) ((T *)sums.ordered)[i] += x[i];
        free(x);
    }
    return sums;
}

// `got` (n) is compared with the sum from element `first` on.
template <class T>
static void expect_sum(const char *name, const T *got, const Sums *sums, size_t first, size_t n) {
    const T *ordered = (const T *)sums->ordered + first;
    double worst = 0;
    size_t differ = 0;
    for (size_t i = 0; i < n; i++) {
        worst = fmax(worst, isnan(got[i]) ? INFINITY : fabs((double)got[i] - sums->exact[first + i]));
        differ += memcmp(&got[i], &ordered[i], sizeof(T)) != 0;
    }
    const double allowed = size * size * (sizeof(T) == 4 ? 1e-7 : 1e-15);
    EXPECT(worst <= allowed, "%s of %zu: error %.3g, allowed %.3g", name, n, worst, allowed);
    if (deterministic)
        EXPECT(differ == 0, "%s of %zu: %zu elements are not the sum in the order of ranks", name, n, differ);
#ifdef CUDA_EMULATION // its stand-in adds in another order, so that the check above is meaningful
    if (!deterministic && size > 2 && n > 1000) EXPECT(differ > 0, "%s of %zu", name, n);
#endif
}

static void expect_same_everywhere(const char *name, const void *data, size_t bytes) {
    uint32_t mine = crc32c(0, data, bytes), *all = (uint32_t *)malloc((size_t)size * sizeof(uint32_t));
    nccl->exchange(state, &mine, sizeof(mine), all);
    queued++;
    for (int r = 0; r < size; r++)
        EXPECT(all[r] == all[0], "%s: process %d has other bits than process 0", name, r);
    free(all);
}

// Work queued on `stream` from now on sees the output of the last operation.
static void wait_on(Stream stream) {
    nccl->wait(state, ++queued, stream);
    stream_wait(stream);
}

// ---- operations -----------------------------------------------------------------------------------------------------

template <class T> static void test_all_reduce(size_t n, Stream stream) {
    const char *name = sizeof(T) == 4 ? "all-reduce" : "all-reduce in double";
    T *x = numbers<T>(rank, 1, n), *data = guarded(x, n);
    Sums sums = sums_of<T>(1, n);
    nccl->all_reduce(state, data, n, sizeof(T) == 4 ? COMM_FLOAT : COMM_DOUBLE, stream);
    wait_on(stream);
    T *got = download_as_is(data, n);
    expect_sum(name, got, &sums, 0, n);
    EXPECT(guards_hold_on_device(data, n), "%s of %zu", name, n);
    expect_same_everywhere(name, got, n * sizeof(T));
    free(x), free(got), free(sums.exact), free(sums.ordered);
    device_free_poisoned(data);
}

// Pieces of different lengths, some empty, with gaps between them, owned by processes in turn.
static size_t make_pieces(CommPiece *pieces, size_t *first, size_t num_pieces, size_t element, char *data,
                          char *own, size_t longest) {
    const size_t lengths[] = {5, 0, 1000, 64, longest, 7, 1};
    size_t end = 3;
    for (size_t i = 0; i < num_pieces; i++) {
        const size_t length = lengths[i % 7];
        const int owner = (int)(i * 2 % 3 % (size_t)size);
        pieces[i] = {data + end * element, owner == rank ? own + end * element : NULL, length, owner};
        first[i] = end;
        end += length + i % 3;
    }
    return end;
}

static void test_reduce_scatter(size_t num_pieces, size_t longest, int in_place, Stream stream) {
    CommPiece pieces[16];
    size_t first[16];
    const size_t n = make_pieces(pieces, first, num_pieces, sizeof(float), NULL, NULL, longest);
    float *x = numbers<float>(rank, 2, n), *data = guarded(x, n), *own = in_place ? data : guarded(x, n);
    Sums sums = sums_of<float>(2, n);
    make_pieces(pieces, first, num_pieces, sizeof(float), (char *)data, (char *)own, longest);
    nccl->reduce_scatter(state, pieces, num_pieces, stream);
    wait_on(stream);
    float *got = download_as_is(own, n);
    for (size_t i = 0; i < num_pieces; i++) {
        if (pieces[i].owner != rank) continue;
        expect_sum(in_place ? "reduce-scatter in place" : "reduce-scatter", got + first[i], &sums, first[i],
                   pieces[i].count);
        memcpy(got + first[i], x + first[i], pieces[i].count * sizeof(float));
    }
    EXPECT(memcmp(got, x, n * sizeof(float)) == 0, "something beside the own pieces was written");
    float *kept = download_as_is(data, n);
    EXPECT(in_place || memcmp(kept, x, n * sizeof(float)) == 0, "data was written");
    EXPECT(guards_hold_on_device(data, n) && guards_hold_on_device(own, n), "%zu pieces", num_pieces);
    free(x), free(got), free(kept), free(sums.exact), free(sums.ordered);
    device_free_poisoned(data);
    if (!in_place) device_free_poisoned(own);
}

static void test_all_gather(size_t num_pieces, size_t element, int in_place, Stream stream) {
    CommPiece pieces[16];
    size_t first[16];
    const size_t n = make_pieces(pieces, first, num_pieces, element, NULL, NULL, 70000) * element;
    char *x = (char *)malloc(n), *data, *own;
    for (size_t i = 0; i < n; i++) x[i] = (char)(i * 31 + (size_t)rank * 101);
    data = guarded(x, n), own = in_place ? data : guarded(x, n);
    make_pieces(pieces, first, num_pieces, element, data, own, 70000);
    nccl->all_gather(state, pieces, num_pieces, element, stream);
    wait_on(stream);
    for (size_t i = 0; i < num_pieces; i++) // the expected x
        for (size_t k = first[i] * element; k < (first[i] + pieces[i].count) * element; k++)
            x[k] = (char)(k * 31 + (size_t)pieces[i].owner * 101);
    char *got = download_as_is(data, n);
    EXPECT(memcmp(got, x, n) == 0, "all-gather of %zu pieces, elements of %zu bytes", num_pieces, element);
    EXPECT(guards_hold_on_device(data, n) && guards_hold_on_device(own, n), "%zu pieces", num_pieces);
    free(x), free(got);
    device_free_poisoned(data);
    if (!in_place) device_free_poisoned(own);
}

static void test_broadcast(size_t bytes, int root, Stream stream) {
    char *x = (char *)malloc(bytes + 1);
    memset(x, rank + 1, bytes);
    char *data = guarded(x, bytes);
    nccl->broadcast(state, data, bytes, root, stream);
    wait_on(stream);
    char *got = download_as_is(data, bytes);
    memset(x, root + 1, bytes);
    EXPECT(memcmp(got, x, bytes) == 0, "broadcast of %zu bytes by %d", bytes, root);
    EXPECT(guards_hold_on_device(data, bytes), "broadcast of %zu bytes", bytes);
    free(x), free(got);
    device_free_poisoned(data);
}

static void test_exchange(size_t bytes) {
    unsigned char *mine = (unsigned char *)malloc(bytes + 1),
                  *all = (unsigned char *)malloc(bytes * (size_t)size + 1);
    memset(mine, 17 * (rank + 1), bytes);
    nccl->exchange(state, mine, bytes, all);
    queued++;
    size_t wrong = 0;
    for (size_t i = 0; i < bytes * (size_t)size; i++) wrong += all[i] != 17 * (i / bytes + 1);
    EXPECT(wrong == 0, "exchange of %zu bytes", bytes);
    free(mine), free(all);
}

// ---- order ----------------------------------------------------------------------------------------------------------

// A stream that waits for an operation also waits for the work that precedes the operation on the stream `after`.
// (The emulator writes NaN if a copy to the host has not been waited for.)
static void test_order(Stream before, Stream after) {
    float one = 1, *data = upload_as_is(&one, 1), *other = upload_as_is(&one, 1),
          *host = (float *)host_alloc(sizeof(float));
    copy_to_host(host, other, sizeof(float), before);
    nccl->all_reduce(state, data, 1, COMM_FLOAT, before);
    wait_on(after);
    EXPECT(*host == 1, "the copy before the operation had not been waited for");
    host_free(host);
    device_free(data);
    device_free(other);
}

// Queues more operations than there are events, then waits for the first of them.
static void test_many(Stream stream) {
    const Ticket first = queued + 1;
    float one = 1, *data = upload_as_is(&one, 1), expected = 1;
    char failure[160];
    for (int i = 0; i < 150; i++, queued++) nccl->all_reduce(state, data, 1, COMM_FLOAT, stream);
    nccl->wait(state, 0, stream);
    nccl->wait(state, first, stream);
    nccl->wait(state, queued, stream);
    stream_wait(stream);
    for (int i = 0; i < 150; i++) expected *= (float)size;
    float *got = download_as_is(data, 1);
    EXPECT(*got == expected, "%g, wanted %g", *got, expected);
    Ticket done = 0;
    for (int i = 0; i < 100 && done < queued; i++) done = nccl->progress(state, failure, sizeof(failure));
    EXPECT(done == queued && failure[0] == 0, "%d of %d operations done, failure: '%s'", (int)done,
           (int)queued, failure);
    free(got);
    device_free(data);
}

// Polls the transport continuously, as the watchdog does.
static int watching;
static void *watch(void *) {
    Ticket last = 0;
    char failure[160];
    int wrong = 0;
    while (__atomic_load_n(&watching, __ATOMIC_ACQUIRE)) {
        Ticket done = nccl->progress(state, failure, sizeof(failure));
        wrong += done < last || failure[0] != 0;
        last = done;
        usleep(1000);
    }
    return wrong > 0 ? state : NULL;
}

static void test_transport(const Launch *launch) {
    pthread_t watcher;
    void *wrong;
    Control *control;
    Error error;
    state = nccl->open(launch, deterministic, 30, &control, &error);
    if (state == NULL) die("%s", error.text);
    const Stream stream = stream_create(), other = stream_create();
    const size_t counts[] = {0, 1, 31, 33, 1000, 5000, LARGE};
    queued = 0, watching = 1;
    CHECK(pthread_create(&watcher, NULL, watch, NULL) == 0);
    for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
        test_all_reduce<float>(counts[i], stream);
        test_all_reduce<double>(counts[i], stream);
    }
    for (int in_place = 0; in_place < 2; in_place++) {
        for (size_t num_pieces = 0; num_pieces < 8; num_pieces++)
            test_reduce_scatter(num_pieces, 2000, in_place, stream);
        test_reduce_scatter(16, LARGE, in_place, stream);
        for (size_t element = 1; element <= 8; element *= 2) test_all_gather(13, element, in_place, stream);
        test_all_gather(0, 4, in_place, stream);
    }
    for (int root = 0; root < size; root++) test_broadcast(100001, root, stream);
    test_broadcast(0, 0, stream);
    for (size_t bytes = 0; bytes < 300000; bytes = bytes * 7 + 1) test_exchange(bytes);
    test_order(stream, other);
    test_many(other);
    __atomic_store_n(&watching, 0, __ATOMIC_RELEASE);
    pthread_join(watcher, &wrong);
    EXPECT(wrong == NULL, "operations were undone, or there was a failure");
    stream_destroy(stream);
    stream_destroy(other);
    nccl->close(state);
    if (control != NULL) control_close(control);
}

// y += x, including vectors that end inside a group of eight.
static void test_accumulate(void) {
    for (size_t n = 0; n < 40; n += 13) {
        float *x = numbers<float>(0, 3, n), *y = numbers<float>(1, 3, n), *on_device = guarded(y, n),
              *addend = upload_as_is(x, n);
        accumulate(on_device, addend, n, 0);
        accumulate_cpu(y, x, n);
        float *got = download_as_is(on_device, n);
        EXPECT(memcmp(got, y, n * sizeof(float)) == 0, "accumulate of %zu", n);
        EXPECT(guards_hold_on_device(on_device, n), "accumulate of %zu", n);
        free(x), free(y), free(got);
        device_free(addend);
        device_free_poisoned(on_device);
    }
}

// Collects the counts of all processes in process 0.
static void sum_counts(const Launch *launch) {
    Control *control;
    Error error;
    int mine[2] = {test_passed, test_failed}, *all = (int *)malloc(2 * (size_t)size * sizeof(int));
    state = nccl->open(launch, 0, 30, &control, &error);
    if (state == NULL) die("%s", error.text);
    nccl->exchange(state, mine, sizeof(mine), all);
    nccl->close(state);
    if (control != NULL) control_close(control);
    test_passed = test_failed = 0;
    for (int r = 0; r < size; r++) test_passed += all[2 * r], test_failed += all[2 * r + 1];
    free(all);
}

int main(void) {
    Launch launch;
    Error error;
    int devices = 0;
    if (launch_read(&launch, &error) != 0) die("%s", error.text);
    CHECK(cudaGetDeviceCount(&devices));
    CHECK(cudaSetDevice(launch.local_rank % devices));
    rank = launch.rank, size = launch.size;
    if (rank == 0) test_accumulate();
    for (deterministic = 0; deterministic < 2; deterministic++) test_transport(&launch);
    sum_counts(&launch);
    return rank == 0 ? test_finish() : test_failed > 0;
}
