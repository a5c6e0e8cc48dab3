// A transport, which implements what comm.h promises for two or more processes. Only comm.cu and transports include
// this.
#ifndef LAYERS_COMM_TRANSPORT_H
#define LAYERS_COMM_TRANSPORT_H

#include "comm.h"
#include "layers/launch/control.h"

// Functions are called by one thread, except `progress` and `abort`, which the watchdog's thread also calls.
// Operations do not fail: `progress` reports errors, and the watchdog ends the process.
typedef struct {
    const char *name;
    int needs_mpirun; // processes must be started by MPI's launcher
    // Opens the control channel, then the transport. Returns the transport's state, or NULL with a sentence. The rank
    // and size that the transport itself reports (MPI) must agree with `launch`.
    void *(*open)(const Launch *launch, int deterministic, double deadline, Control **control, Error *error);
    void (*close)(void *state);
    void (*all_reduce)(void *state, void *data, size_t count, CommType type, Stream after);
    void (*reduce_scatter)(void *state, const CommPiece *pieces, size_t num_pieces, Stream after);
    void (*all_gather)(void *state, const CommPiece *pieces, size_t num_pieces, size_t element, Stream after);
    void (*broadcast)(void *state, void *data, size_t bytes, int root, Stream after);
    void (*wait)(void *state, Ticket ticket, Stream stream); // waits for the ticket-th operation since open
    void (*exchange)(void *state, const void *mine, size_t bytes, void *all);
    // Returns the number of completed operations. `failure` (of `size` bytes) receives a sentence or stays empty.
    Ticket (*progress)(void *state, char *failure, size_t size);
    void (*abort)(void *state);
} CommTransport;

// Sets a time limit on `what`: unless comm_limit(NULL, ...) is called within `seconds`, the process prints that
// `what` took too long and exits with EXIT_LOST_PEER.
void comm_limit(const char *what, double seconds);

// ---- shared by transports that add in rank order ---------------------------------------------------------------

static inline size_t element_size(CommType type) {
    return type == COMM_FLOAT ? sizeof(float) : sizeof(double);
}

// Progress through an owner's pieces.
typedef struct {
    size_t piece, done;
} Cursor;

// Returns the next part of what `owner` owns, at most `max_count` elements; a count of 0 means that nothing is left.
// Its `own` is meaningful only in the owner's process.
static inline CommPiece next_segment(const CommPiece *pieces, size_t num_pieces, int owner, size_t max_count,
                                     size_t element, Cursor *c) {
    CommPiece segment = {NULL, NULL, 0, owner};
    while (c->piece < num_pieces && (pieces[c->piece].owner != owner || c->done == pieces[c->piece].count)) {
        c->piece++;
        c->done = 0;
    }
    if (c->piece == num_pieces) return segment;
    const CommPiece *piece = &pieces[c->piece];
    segment.data = (char *)piece->data + c->done * element;
    if (piece->own != NULL) segment.own = (char *)piece->own + c->done * element;
    segment.count = min_size(piece->count - c->done, max_count);
    c->done += segment.count;
    return segment;
}

// Divides `data` (count) into one range per process, nearly equal, so that an all-reduce becomes a reduce-scatter and
// a gather.
static inline void list_ranges(CommPiece *ranges, int size, void *data, size_t count, size_t element) {
    const size_t length = round_up(divide_up(count, (size_t)size), 32);
    for (int r = 0; r < size; r++) {
        const size_t first = min_size((size_t)r * length, count);
        char *range = (char *)data + first * element;
        CommPiece piece = {range, range, min_size(count - first, length), r};
        ranges[r] = piece;
    }
}

#ifdef HAVE_MPI
extern const CommTransport COMM_MPI;
#endif
#ifdef HAVE_NCCL
extern const CommTransport COMM_NCCL;
#endif

#endif
