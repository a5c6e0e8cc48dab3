// What processes that train one model together say to each other: collective operations on device memory, as every
// process calls them, in the same order, with the same sizes. Three transports: alone (one process), MPI (the CPU's
// and the emulated build), NCCL (the CUDA build).
//
//     comm_all_reduce       data = sum over processes of data
//     comm_reduce_scatter   of each piece, at its owner: own = sum over processes of data (fp32)
//     comm_all_gather       of each piece, everywhere: data = the owner's own
//     comm_broadcast        data = that of process `root`
//
// An operation is queued and runs beside the compute stream: it begins when what `after` holds so far is done, and
// operations run one after the other, in the order they were queued. It returns a ticket; comm_wait makes a stream
// wait for it (and so for all before it). Until then its memory is left alone: not written, and what the operation
// writes not read.
//
// Every process gets the same bits. Sums in the order of ranks, ((x_0 + x_1) + x_2) + ..., repeat bit for bit with
// the same number of processes whatever the transport; MPI always adds so, NCCL where `deterministic` is asked for.
#ifndef COMM_COMM_H
#define COMM_COMM_H

#include "comm/launch.h"
#include "comm/watchdog.h"
#include "data/files.h"
#include "layers/common.h"

typedef struct Comm Comm;
typedef uint64_t Ticket; // operations are counted from 1; 0 is always done

typedef enum { COMM_FLOAT, COMM_DOUBLE } CommType;

// A part of a tensor that one process is in charge of. Elements are floats where they are summed.
typedef struct {
    void *data; // everybody's
    void *own;  // the owner's; may be `data`. Elsewhere it is not looked at
    size_t count;
    int owner;
} CommPiece;

// Where `launch`, as it was read, is one process and `processes` is above 1, starts that many: forks them (NCCL; returns
// in each), or replaces this process by mpirun (MPI). Before there are threads, and before the GPU is used.
int comm_start(Launch *launch, int processes, int argc, char **argv, Error *error);
// Joins the processes that `launch` describes; where that is one, nothing can fail. `deadline`: the seconds until
// everybody must be there. NULL on error, which names who is missing.
Comm *comm_open(const Launch *launch, int deterministic, double deadline, Error *error);
// One process, without anybody to ask: for tests and tools.
Comm *comm_alone(void);
// Waits for what is queued; every process calls it.
void comm_close(Comm *comm);

int comm_rank(const Comm *comm);
int comm_size(const Comm *comm);
const char *comm_transport(const Comm *comm); // "alone", "MPI", "NCCL"

Ticket comm_all_reduce(Comm *comm, void *data, size_t count, CommType type, Stream after);
Ticket comm_reduce_scatter(Comm *comm, const CommPiece *pieces, size_t num_pieces, Stream after);
// `element`: bytes of one element.
Ticket comm_all_gather(Comm *comm, const CommPiece *pieces, size_t num_pieces, size_t element, Stream after);
Ticket comm_broadcast(Comm *comm, void *data, size_t bytes, int root, Stream after);
void comm_wait(Comm *comm, Ticket ticket, Stream stream);

// all[r] = mine of process r, `bytes` each, in host memory; the host waits. Also the barrier.
void comm_exchange(Comm *comm, const void *mine, size_t bytes, void *all);
void comm_barrier(Comm *comm);

// What the watchdog needs. comm_abort ends what hangs, as far as the transport can, so that the process can end.
// Both may be called by any thread.
Control *comm_control(Comm *comm); // NULL: alone
void comm_progress(void *comm, CommProgress *progress);
void comm_abort(void *comm);

#endif
