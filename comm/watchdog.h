// The watchdog: a thread that notices when a process has died, is frozen, or hangs in a collective operation, says
// who, where and in what, and ends this process, so that a launcher can start the run again. No process waits for ever.
//
// Every process tells process 0 a few times a second how far it is (heartbeats, over the control channel); process 0
// judges, and tells everybody the verdict:
//     - a connection that ends: the process has died (one that is done says so before it leaves)
//     - no heartbeat for `silence` seconds: the process is frozen, or its host cannot be reached
//     - a step that takes longer than the step deadline: those that are furthest behind are named, and the operation
//       they are in. The deadline is the larger of the floor and 10 times the longest of the last 20 steps; the first
//       step of a process, which also sets things up, has 10 floors. It counts only the time in which no process does
//       something that has no deadline: the others wait for that one in their steps. But when all have been in an
//       operation for 3 floors, and none has ended, all are lost.
//     - the transport reports an error of its own (NCCL's asynchronous errors). It is often that a peer has died, so
//       the verdict waits a second for a better reason
// Processes other than 0 judge process 0's connection and heartbeats in the same way. The first heartbeat may take 10
// floors: until then a process sets things up. Time in which this process itself did not run (suspended, a host that
// sleeps) does not count as another's silence.
//
// What is printed: "error: process 3 (host b) was lost in step 1201: no heartbeat for 10.2 s; this is process 0 (host a),
// in all-reduce 37, 9.4 MB". Then comm_abort, and the process exits with EXIT_LOST_PEER.
#ifndef COMM_WATCHDOG_H
#define COMM_WATCHDOG_H

#include "comm/control.h"

#ifdef __cplusplus
extern "C" {
#endif

// How far a transport is.
typedef struct {
    uint64_t queued, done; // operations since the start
    char current[96];      // the one under way: "all-reduce 37, 9.4 MB"; empty: none
    char failure[160];     // what the transport itself noticed; empty: nothing
} CommProgress;

// What is watched (comm_progress and comm_abort of comm.h).
typedef struct {
    void *comm;
    void (*progress)(void *comm, CommProgress *progress);
    void (*abort)(void *comm);
} Watched;

typedef struct Watchdog Watchdog;

// `floor`: seconds, of the step deadline; silence is the smaller of the floor and 30 s, but at least 2 s. With a floor of
// 0, or without a control channel (one process), there is no watchdog: NULL, which all functions take and ignore.
Watchdog *watchdog_start(Control *control, const Watched *watched, double floor);
// The process begins a step, or, with 0, something that has no deadline: saving, validating, sampling.
void watchdog_step(Watchdog *watchdog, int64_t step);
// A step took this long.
void watchdog_learn(Watchdog *watchdog, double seconds);
// Tells the others that this process leaves as it should; what they do or have done then is no concern of it any more.
// To be called before comm_close and control_close.
void watchdog_stop(Watchdog *watchdog);

#ifdef __cplusplus
}
#endif
#endif
