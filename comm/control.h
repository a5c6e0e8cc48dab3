// The control channel: a TCP connection of every process with process 0, beside the transport that carries numbers.
// Over it processes find each other and a few bytes are told to everybody before there is a transport; then the
// watchdog's heartbeats go over it.
#ifndef COMM_CONTROL_H
#define COMM_CONTROL_H

#include "comm/launch.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct Control Control;

// Where process 0 listens, in words that others are given: its port, addresses of its interfaces and a number that
// only this run has: "29501 7f3a9c0d12345678 10.0.0.3,192.168.1.7,127.0.0.1".
typedef struct {
    char text[512];
} ControlAddress;

// For transports that can tell the others themselves (MPI): process 0 listens on a free port. Returns the socket or -1.
int control_listen(ControlAddress *address, Error *error);

// Connects all processes; returns when everybody is there. `listening`: process 0's socket from control_listen or
// launch_processes, else -1; it is closed in any case. `address`: from process 0's control_listen, in every process;
// NULL: from launch->master and launch->port: process 0 takes the first free port of that and the CONTROL_PORTS - 1
// after it, the others try them all, and a stranger that listens on one of them is passed over (of LAUNCHED_BY_US the
// port is known). NULL on error: after `deadline` seconds process 0, and those that reached it, name the ranks that are
// missing; those that did not reach it name where they looked. Two processes of the same rank, or processes that
// disagree on how many they are, are an error at once, everywhere.
enum { CONTROL_PORTS = 16 };
Control *control_open(const Launch *launch, int listening, const ControlAddress *address, double deadline,
                      Error *error);

// Everybody's `data` becomes process 0's. 0, or -1 and a sentence when the connection is lost, or nothing comes within
// the seconds that control_open had.
int control_tell(Control *control, void *data, size_t bytes, Error *error);

// The connections, for the watchdog: of process 0 one a rank (its own is -1), of the others [0] alone. They do not block.
const int *control_sockets(const Control *control);
const char *control_host(const Control *control,
                         int rank); // process 0 knows everybody's name, the others that of rank 0
int control_rank(const Control *control);
int control_size(const Control *control);
void control_close(Control *control);

#ifdef __cplusplus
}
#endif
#endif
