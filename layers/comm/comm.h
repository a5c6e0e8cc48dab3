// Communication between the processes that train one model: collective operations on device memory. Every process
// calls the same operations in the same order with the same sizes. There are three transports: none (one process),
// MPI (CPU build and emulated build) and NCCL (CUDA build).
//
//     comm_all_reduce       data = sum over processes of data
//     comm_reduce_scatter   for each piece, at its owner: own = sum over processes of data (fp32)
//     comm_all_gather       for each piece, in every process: data = the owner's `own`
//     comm_broadcast        data = that of process `root`
//
// An operation is queued and runs concurrently with the compute stream: it begins when the work queued on `after` so
// far is done, and operations run one after another in the order in which they were queued. It returns a ticket;
// comm_wait makes a stream wait for that operation (and so for all before it). Until then the caller must neither
// write the operation's memory nor read its output.
//
// Every process gets the same bits. A sum in rank order, ((x_0 + x_1) + x_2) + ..., is reproducible bit for bit with
// the same number of processes, whatever the transport; MPI always adds in rank order, NCCL does if `deterministic`
// is set.
#ifndef LAYERS_COMM_COMM_H
#define LAYERS_COMM_COMM_H

#include "layers/launch/launch.h"
#include "layers/launch/watchdog.h"
#include "layers/base/files.h"
#include "layers/common.h"

typedef struct Comm Comm;
typedef uint64_t Ticket; // operations are counted from 1; ticket 0 is always complete

typedef enum { COMM_FLOAT, COMM_DOUBLE } CommType;

// A part of a tensor that one process owns. Elements are floats in operations that sum.
typedef struct {
    void *data; // in every process
    void *own;  // only of the owner, may equal `data`; ignored elsewhere
    size_t count;
    int owner;
} CommPiece;

// If `launch`, as read from the environment, describes one process and `processes` is above 1, starts that many:
// forks them (NCCL; returns in each of them) or replaces this process by mpirun (MPI). Must be called before threads
// are created and before the GPU is used. Returns 0, or -1 with a sentence on error.
int comm_start(Launch *launch, int processes, int argc, char **argv, Error *error);
// Connects the processes that `launch` describes; with one process this cannot fail. All processes must be connected
// within `deadline` seconds. Returns NULL on error, with a sentence that names the missing processes.
Comm *comm_open(const Launch *launch, int deterministic, double deadline, Error *error);
// Returns a communicator of one process, for tests and tools.
Comm *comm_alone(void);
// Waits for all queued operations; collective.
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

// all[r] = `mine` of process r, `bytes` bytes each, in host memory. Blocks the host, so it is also a barrier.
void comm_exchange(Comm *comm, const void *mine, size_t bytes, void *all);
void comm_barrier(Comm *comm);

// For the watchdog; callable from any thread. comm_abort ends operations that hang, as far as the transport can, so
// that the process can exit.
Control *comm_control(Comm *comm); // NULL with one process
void comm_progress(void *comm, CommProgress *progress);
void comm_abort(void *comm);

#endif
