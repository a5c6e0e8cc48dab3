// The watchdog: a thread that notices when a process has died, is frozen, or hangs in a collective operation, reports
// which process, where and in what operation, and ends this process, so that a launcher can restart the run. No
// process waits forever.
//
// Every process reports its progress to process 0 a few times per second (heartbeats, over the control channel);
// process 0 judges, and sends the verdict to all processes:
//     - a connection ends: the process has died (a process that exits normally says so before)
//     - no heartbeat for `silence` seconds: the process is frozen, or its host cannot be reached
//     - a step takes longer than the step deadline: the processes that are furthest behind are named, and the operation
//       they are in. The deadline is the larger of the floor and 10 times the longest of the last 20 steps; the first
//       step of a process, which includes initialization, has 10 floors. Only time counts in which no process does
//       something that has no deadline, because the others wait for that process in their steps. But when all have been
//       in an operation for 3 floors, and none has completed, all are lost.
//     - the transport reports an error of its own (NCCL's asynchronous errors). The cause is often that a peer has
//       died, so the verdict waits a second for a more specific reason
// Processes other than 0 judge process 0's connection and heartbeats in the same way. The first heartbeat may take 10
// floors, because processes initialize first. Time in which this process itself did not run (suspended, or its host
// asleep) does not count as silence of another.
//
// The message: "error: process 3 (host b) was lost in step 1201: no heartbeat for 10.2 s; this is process 0 (host a),
// in all-reduce 37, 9.4 MB". Then comm_abort is called, and the process exits with EXIT_LOST_PEER.
#ifndef LAYERS_LAUNCH_WATCHDOG_H
#define LAYERS_LAUNCH_WATCHDOG_H

#include "control.h"

#ifdef __cplusplus
extern "C" {
#endif

// The progress of a transport.
typedef struct {
    uint64_t queued, done; // operations since the start
    char current[96];      // the operation in progress: "all-reduce 37, 9.4 MB"; empty: none
    char failure[160];     // an error that the transport noticed; empty: none
} CommProgress;

// The communicator that is watched (comm_progress and comm_abort of comm.h).
typedef struct {
    void *comm;
    void (*progress)(void *comm, CommProgress *progress);
    void (*abort)(void *comm);
} Watched;

typedef struct Watchdog Watchdog;

// `floor`: the minimal step deadline, in seconds; `silence` is the smaller of the floor and 30 s, but at least 2 s.
// Returns NULL, which all functions accept and ignore, if the floor is 0 or there is no control channel (one
// process).
Watchdog *watchdog_start(Control *control, const Watched *watched, double floor);
// Marks the beginning of a step or, if `step` is 0, of something that has no deadline: saving, validating, sampling.
void watchdog_step(Watchdog *watchdog, int64_t step);
// Records the duration of a completed step.
void watchdog_learn(Watchdog *watchdog, double seconds);
// Tells the others that this process exits normally, and stops watching them. Must be called before comm_close and
// control_close.
void watchdog_stop(Watchdog *watchdog);

#ifdef __cplusplus
}
#endif
#endif
