// A transport as comm.cu uses it: what comm.h promises, for two processes and more. Not included by anybody else.
#ifndef COMM_TRANSPORT_H
#define COMM_TRANSPORT_H

#include "comm/comm.h"
#include "comm/control.h"

// Functions are called by one thread, but for progress and abort, which the watchdog's thread calls too. Operations
// do not fail: what goes wrong on the way shows in `progress`, and the watchdog ends the process.
typedef struct {
    const char *name;
    int needs_mpirun; // processes must be started by what starts MPI's
    // Opens the control channel, then what carries the numbers. NULL and an error, or the transport's state. What the
    // transport itself knows of rank and size (MPI) must agree with `launch`.
    void *(*open)(const Launch *launch, int deterministic, double deadline, Control **control, Error *error);
    void (*close)(void *state);
    void (*all_reduce)(void *state, void *data, size_t count, CommType type, Stream after);
    void (*reduce_scatter)(void *state, const CommPiece *pieces, size_t num_pieces, Stream after);
    void (*all_gather)(void *state, const CommPiece *pieces, size_t num_pieces, size_t element, Stream after);
    void (*broadcast)(void *state, void *data, size_t bytes, int root, Stream after);
    void (*wait)(void *state, Ticket ticket, Stream stream); // the ticket-th operation since open
    void (*exchange)(void *state, const void *mine, size_t bytes, void *all);
    // Operations done so far. `failure` (of `size` bytes) gets a sentence, or stays empty.
    Ticket (*progress)(void *state, char *failure, size_t size);
    void (*abort)(void *state);
} CommTransport;

// Unless it is called again within `seconds`, with NULL, the process says that `what` took too long, and ends with
// EXIT_LOST_PEER.
void comm_limit(const char *what, double seconds);

// ---- what transports that add in the order of ranks share ------------------------------------------------------

static inline size_t element_size(CommType type) {
    return type == COMM_FLOAT ? sizeof(float) : sizeof(double);
}

// Where an owner's pieces were left off.
typedef struct {
    size_t piece, done;
} Cursor;

// The next part of what `owner` is in charge of, at most `most` elements. With a count of 0 nothing is left. `own` is
// that of the piece, which counts at the owner alone.
static inline CommPiece next_segment(const CommPiece *pieces, size_t num_pieces, int owner, size_t most,
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
    segment.count = min_size(piece->count - c->done, most);
    c->done += segment.count;
    return segment;
}

// As many ranges of data (count) as processes, nearly equal, each its owner's: an all-reduce as a reduce-scatter.
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
