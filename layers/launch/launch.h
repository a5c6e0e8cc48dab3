// The rank of this process and the number of processes, from the environment that the launcher has set:
//
//     alone                    no variable of a launcher is set
//     ./train_gpt --processes  the program starts the others itself (launch_processes)
//     torchrun, and by hand    RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT
//     mpirun (Open MPI)        OMPI_COMM_WORLD_RANK _SIZE _LOCAL_RANK _LOCAL_SIZE
//     mpirun (MPICH, Intel)    PMI_RANK PMI_SIZE MPI_LOCALRANKID MPI_LOCALNRANKS
//     srun                     SLURM_PROCID SLURM_STEP_NUM_TASKS SLURM_LOCALID SLURM_STEP_NODELIST
//
// The first launcher in this order whose variables are set counts. A set of variables that is incomplete or
// contradictory is an error that names them; otherwise the program would wait for processes that never come. Empty
// variables count as not set. A single process is LAUNCHED_ALONE, whatever started it.
#ifndef LAYERS_LAUNCH_LAUNCH_H
#define LAYERS_LAUNCH_LAUNCH_H

#include "layers/base/files.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum {
    LAUNCHED_ALONE,
    LAUNCHED_BY_SELF,
    LAUNCHED_BY_TORCHRUN,
    LAUNCHED_BY_MPIRUN,
    LAUNCHED_BY_SRUN
} Launcher;

typedef struct {
    Launcher launcher;
    int rank, size;             // among all processes
    int local_rank, local_size; // among those on this host
    char master[256];           // the host of process 0; empty: unknown
    // The first port that process 0 tries to listen on; with LAUNCHED_BY_SELF the port it listens on.
    int port;
    int listening; // in process 0 of LAUNCHED_BY_SELF a listening socket, else -1
    uint64_t run;  // the same in all processes of this run, unlikely to equal that of another run
} Launch;

// Reads the environment. Returns 0, or -1 with a sentence. torchrun itself listens on MASTER_PORT, so this program
// uses the ports after it. mpirun and srun need no MASTER_PORT; if they do not name the host of process 0,
// MASTER_ADDR does.
int launch_read(Launch *launch, Error *error);

// Starts `count` processes of this program and returns in each of them, with its own `launch`. The calling process
// remains as their supervisor: it forwards signals, ends all other processes (also frozen ones) if one fails, and
// exits with the first non-zero status, or 128 + n after signal n. Must be called before anything else creates
// threads or uses the GPU. Returns -1 with a sentence if processes cannot be started.
// Each process has a process group of its own, so that it gets Ctrl-C once, from the supervisor; it reads nothing from
// the terminal, and does not outlive the supervisor.
int launch_processes(Launch *launch, int count, Error *error);

// Runs `mpirun -n count` with this program and its arguments except --processes; the calling process waits and exits
// with the status of mpirun. Unless the user's environment says otherwise, Open MPI is told to allow more processes
// than cores, not to bind processes to cores (each has threads), and to allow root. Signals that request a stop are
// forwarded as SIGUSR1, because mpirun would kill its processes on any other. Returns only on error, with a sentence.
int launch_mpirun(int count, int argc, char **argv, Error *error);

#ifdef __cplusplus
}
#endif
#endif
