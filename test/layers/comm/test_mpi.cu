// The MPI transport: sums bit for bit in rank order, for lengths around every limit (small all-reduces, segments,
// ranges of odd sizes). Every process checks its results; process 0 counts:
//     mpirun -n 3 build/cpu/test/layers/comm/test_mpi
#include "layers/comm/comm.h"
#include "test/harness/test.h"

enum { SEGMENT = 1 << 18, SMALL = 1 << 12, MOST = 3 * 3 * SEGMENT + 100, GUARD = 64 };

static Comm *comm;
static int rank, size;

// Element i of process r, of very different magnitudes, so that another order of summation gives other bits.
__attribute__((noinline)) static double number(int r, size_t i) { // no FMA with the sum
    uint64_t x = (i + 1) * 0x9e3779b97f4a7c15u + (uint64_t)(r + 1) * 0xbf58476d1ce4e5b9u;
    x ^= x >> 29, x *= 0x94d049bb133111ebu, x ^= x >> 32;
    return ((double)(x >> 11) * 0x1p-53 - 0.5) * (double)(1 << (x & 15));
}

#define DEFINE_TEST_ALL_REDUCE(T, type)                                                                      \
    static void test_all_reduce_##T(size_t n) {                                                              \
        T *x = (T *)device_alloc((n + GUARD) * sizeof(T));                                                   \
        size_t wrong = 0;                                                                                    \
        for (size_t i = 0; i < n + GUARD; i++) x[i] = (T)number(rank, i);                                    \
        comm_wait(comm, comm_all_reduce(comm, x, n, type, 0), 0);                                            \
        for (size_t i = 0; i < n + GUARD; i++) {                                                             \
            T sum = (T)number(i < n ? 0 : rank, i);                                                          \
            for (int r = 1; r < size && i < n; r++) sum += (T)number(r, i);                                  \
            wrong += x[i] != sum;                                                                            \
        }                                                                                                    \
        EXPECT(wrong == 0, "process %d: %zu wrong numbers in an all-reduce of %zu " #T, rank, wrong, n);     \
        device_free(x);                                                                                      \
    }
DEFINE_TEST_ALL_REDUCE(float, COMM_FLOAT)
DEFINE_TEST_ALL_REDUCE(double, COMM_DOUBLE)

// Stores pieces of different lengths, assigned to owners by `deal`, one after another with gaps. Returns their
// number.
static size_t make_pieces(CommPiece *pieces, size_t *first, char *data, char *own, size_t element, int deal) {
    static const size_t lengths[] = {5, 0, 1, SEGMENT - 1, SEGMENT, SEGMENT + 1, 3 * SEGMENT + 7, 64, 4097};
    const size_t count = sizeof(lengths) / sizeof(lengths[0]);
    size_t at = 3;
    for (size_t i = 0; i < count; i++) {
        const int owner = deal == 0 ? 0 : (int)(i * (size_t)deal % (size_t)size);
        CommPiece piece = {data + at * element, owner == rank ? own + at * element : NULL, lengths[i], owner};
        pieces[i] = piece;
        first[i] = at;
        at += lengths[i] + i % 3;
    }
    CHECK(at < MOST);
    return count;
}

static void test_reduce_scatter(int in_place, int deal) {
    CommPiece pieces[16];
    size_t first[16], wrong = 0;
    float *data = (float *)device_alloc(MOST * sizeof(float)), *own = data;
    if (!in_place) own = (float *)device_alloc(MOST * sizeof(float));
    for (size_t i = 0; i < MOST; i++) data[i] = own[i] = (float)number(rank, i);
    const size_t count = make_pieces(pieces, first, (char *)data, (char *)own, sizeof(float), deal);
    Ticket ticket = comm_reduce_scatter(comm, pieces, count, 0);
    memset(pieces, 0xff, sizeof(pieces)); // as before the operation
    comm_wait(comm, ticket, 0);
    make_pieces(pieces, first, (char *)data, (char *)own, sizeof(float), deal);
    for (size_t i = 0, p = 0; i < MOST; i++) {
        while (p < count && i >= first[p] + pieces[p].count) p++;
        const int mine = p < count && i >= first[p] && pieces[p].owner == rank;
        float sum = (float)number(mine ? 0 : rank, i);
        for (int r = 1; r < size && mine; r++) sum += (float)number(r, i);
        wrong += own[i] != sum;
        wrong += !in_place && data[i] != (float)number(rank, i);
    }
    EXPECT(wrong == 0, "process %d: %zu wrong numbers in a reduce-scatter, in place %d, deal %d", rank, wrong,
           in_place, deal);
    device_free(data);
    if (!in_place) device_free(own);
}

static void test_all_gather(int in_place, int deal, size_t element) {
    CommPiece pieces[16];
    size_t first[16], wrong = 0;
    unsigned char *data = (unsigned char *)device_alloc(MOST * element), *own = data;
    if (!in_place) own = (unsigned char *)device_alloc(MOST * element);
    for (size_t i = 0; i < MOST * element; i++)
        own[i] = (unsigned char)(i * 31 + (size_t)rank * 101 + i / 251);
    for (size_t i = 0; i < MOST * element && !in_place; i++) data[i] = 0;
    const size_t count = make_pieces(pieces, first, (char *)data, (char *)own, element, deal);
    comm_wait(comm, comm_all_gather(comm, pieces, count, element, 0), 0);
    for (size_t i = 0, p = 0; i < MOST; i++) {
        while (p < count && i >= first[p] + pieces[p].count) p++;
        const int between = !(p < count && i >= first[p]);
        const size_t from = (size_t)(between ? rank : pieces[p].owner);
        for (size_t k = i * element; k < (i + 1) * element; k++)
            wrong += data[k] != (between && !in_place ? 0 : (unsigned char)(k * 31 + from * 101 + k / 251));
    }
    EXPECT(wrong == 0, "process %d: %zu wrong bytes in an all-gather, in place %d, deal %d, elements of %zu",
           rank, wrong, in_place, deal, element);
    device_free(data);
    if (!in_place) device_free(own);
}

// More operations than the queue's capacity.
static void test_many(void) {
    enum { MANY = 3000 };
    static float x[MANY];
    int wrong = 0;
    Ticket last = 0;
    for (int i = 0; i < MANY; i++) x[i] = (float)(rank + i);
    for (int i = 0; i < MANY; i++) last = comm_all_reduce(comm, &x[i], 1, COMM_FLOAT, 0);
    comm_wait(comm, last, 0);
    for (int i = 0; i < MANY; i++) wrong += x[i] != (float)(size * i + size * (size - 1) / 2);
    EXPECT(wrong == 0, "process %d: %d of %d operations in flight went wrong", rank, wrong, (int)MANY);
}

int main(void) {
    static const size_t counts[] = {
        0,         1,      2,           3,           SMALL - 1,       SMALL,       SMALL + 1,
        SMALL + 5, 100003, SEGMENT - 1, SEGMENT + 1, 2 * SEGMENT + 1, 3 * SEGMENT, 4 * SEGMENT + 11};
    Launch launch;
    Error error;
    if (launch_read(&launch, &error) != 0 || (comm = comm_open(&launch, 0, 30, &error)) == NULL)
        die("%s", error.text);
    rank = comm_rank(comm), size = comm_size(comm);
    for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
        test_all_reduce_float(counts[i]);
        test_all_reduce_double(counts[i]);
    }
    for (int in_place = 0; in_place < 2; in_place++)
        for (int deal = 0; deal < 4; deal++) {
            test_reduce_scatter(in_place, deal);
            for (size_t element = 1; element <= 4; element *= 2) test_all_gather(in_place, deal, element);
        }
    test_many();
    int mine[2] = {test_passed, test_failed}, *all = (int *)xcalloc(2 * (size_t)size, sizeof(int));
    comm_exchange(comm, mine, sizeof(mine), all);
    test_passed = test_failed = 0;
    for (int r = 0; r < size; r++) test_passed += all[2 * r], test_failed += all[2 * r + 1];
    free(all);
    comm_close(comm);
    return rank == 0 ? test_finish() : 0;
}
