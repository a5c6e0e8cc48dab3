// Who this process is among those that train together, by what started it:
//
//     alone                    no variable of a launcher is set
//     ./train_gpt --processes  the program starts the others itself (launch_processes)
//     torchrun, and by hand    RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT
//     mpirun (Open MPI)        OMPI_COMM_WORLD_RANK _SIZE _LOCAL_RANK _LOCAL_SIZE
//     mpirun (MPICH, Intel)    PMI_RANK PMI_SIZE MPI_LOCALRANKID MPI_LOCALNRANKS
//     srun                     SLURM_PROCID SLURM_STEP_NUM_TASKS SLURM_LOCALID SLURM_STEP_NODELIST
//
// The first of these that is there counts. One that is there in part, or contradicts itself, is an error that names
// the variables; nothing waits for processes that will never come. Empty variables count as not set. One process
// is LAUNCHED_ALONE, whoever started it.
#ifndef COMM_LAUNCH_H
#define COMM_LAUNCH_H

#include "data/files.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum {
    LAUNCHED_ALONE,
    LAUNCHED_BY_US,
    LAUNCHED_BY_TORCHRUN,
    LAUNCHED_BY_MPIRUN,
    LAUNCHED_BY_SRUN
} Launcher;

typedef struct {
    Launcher launcher;
    int rank, size;             // of all processes
    int local_rank, local_size; // of those on this host
    char master[256];           // the host of process 0; empty: not known
    int port;      // the first that process 0 tries to listen on; of LAUNCHED_BY_US the one it listens on
    int listening; // a socket that listens already (process 0 of LAUNCHED_BY_US), or -1
    uint64_t run;  // the same in all processes of this run, and hardly in those of another
} Launch;

// From the environment. 0, or -1 and a sentence. MASTER_PORT belongs to torchrun, which listens there itself: ours is
// the next. mpirun and srun need none; where they give no host for process 0 either, MASTER_ADDR does.
int launch_read(Launch *launch, Error *error);

// Starts `count` processes of this program, which return, each with its own launch; the caller's process stays behind
// as their supervisor: it passes signals on, ends the others when one ends badly (what is frozen too), and exits
// with the first bad status, 128 + n for signal n. Must be called before anything else has threads or uses the GPU. -1
// and a sentence when processes cannot be started.
// Each has a process group of its own, so that Ctrl-C comes to it once, from the supervisor; it reads nothing from the
// terminal, and does not outlive the supervisor.
int launch_processes(Launch *launch, int count, Error *error);

// Runs `mpirun -n count` of this program, without its option --processes; the caller's process stays behind and exits like
// it. Open MPI is told, where the user's environment says nothing else, that there may be more processes than cores, that
// none is bound to a core (each has threads), and that root may do this. A signal to end is passed on as SIGUSR1: mpirun
// would kill its processes at any other. Returns only on error.
int launch_mpirun(int count, int argc, char **argv, Error *error);

#ifdef __cplusplus
}
#endif
#endif
