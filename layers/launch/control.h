// The control channel: a TCP connection of every process to process 0, in addition to the transport that carries
// tensors. Over it, processes find each other and process 0 broadcasts a few bytes before there is a transport;
// afterwards it carries the watchdog's heartbeats.
#ifndef LAYERS_LAUNCH_CONTROL_H
#define LAYERS_LAUNCH_CONTROL_H

#include "launch.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct Control Control;

// Where process 0 listens, as text for the other processes: its port, an id unique to this run, and the addresses of
// its interfaces: "29501 7f3a9c0d12345678 10.0.0.3,192.168.1.7,127.0.0.1".
typedef struct {
    char text[512];
} ControlAddress;

// For transports that can distribute the address themselves (MPI): makes process 0 listen on a free port. Returns the
// socket, or -1 with a sentence.
int control_listen(ControlAddress *address, Error *error);

// Connects all processes; returns when all have joined.
// `listening`: in process 0 the socket from control_listen or launch_processes, else -1; always closed.
// `address`: in every process the address from process 0's control_listen. If NULL, launch->master and launch->port
// are used: process 0 takes the first free port of the CONTROL_PORTS that begin there, the others try them all, and
// unrelated listeners are skipped (with LAUNCHED_BY_SELF the port is known).
// Returns NULL on error. After `deadline` seconds, process 0 and those that reached it name the missing ranks; those
// that did not reach it name the addresses they tried. Two processes of the same rank, or processes that disagree
// about their number, are an error in all processes at once.
enum { CONTROL_PORTS = 16 };
Control *control_open(const Launch *launch, int listening, const ControlAddress *address, double deadline,
                      Error *error);

// Copies process 0's `data` to all processes. Returns 0, or -1 with a sentence if the connection is lost or nothing
// arrives within control_open's `deadline`.
int control_broadcast(Control *control, void *data, size_t bytes, Error *error);

// Returns the nonblocking sockets, for the watchdog: in process 0 one for each rank (its own is -1), elsewhere only
// [0].
const int *control_sockets(const Control *control);
// Process 0 knows the host name of every rank, the others only that of rank 0; unknown: "?".
const char *control_host(const Control *control, int rank);
int control_rank(const Control *control);
int control_size(const Control *control);
void control_close(Control *control);

#ifdef __cplusplus
}
#endif
#endif
