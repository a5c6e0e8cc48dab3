// See comm.h. A single process needs no transport: data is copied only if `own` and `data` differ.
#include "comm.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>
#include "transport.h"
#include "layers/profile.h"

enum { RECENT = 64 }; // operations whose names are kept for the watchdog

struct Comm {
    int rank, size;
    const CommTransport *transport; // NULL with one process
    void *state;
    Control *control;
    double deadline;       // in seconds, for connecting and for disconnecting
    pthread_mutex_t mutex; // guards `queued` and `names`, which the watchdog reads
    Ticket queued;
    char names[RECENT][sizeof(((CommProgress *)0)->current)];
};

static const CommTransport *const TRANSPORTS[] = {
#ifdef HAVE_NCCL
    &COMM_NCCL,
#endif
#ifdef HAVE_MPI
    &COMM_MPI,
#endif
    NULL,
};

int comm_start(Launch *launch, int processes, int argc, char **argv, Error *error) {
    const CommTransport *transport = TRANSPORTS[0];
    if (processes > 1 && launch->size > 1 && processes != launch->size)
        return fail(error, "--processes %d: the launcher has already started %d processes", processes,
                    launch->size);
    if (processes <= 1 && launch->size == 1) return 0;
    if (transport == NULL)
        return fail(
            error,
            "this build can train with one process only: it was built without MPI (pkg-config found neither "
            "ompi nor mpich) and without NCCL; install Open MPI or MPICH and run make again");
    if (transport->needs_mpirun && launch->launcher == LAUNCHED_BY_TORCHRUN)
        return fail(error,
                    "processes of this build communicate over MPI, which torchrun does not start: use "
                    "--processes %d, mpirun -n %d ./train_gpt ... or srun --mpi=pmix",
                    launch->size, launch->size);
    if (launch->size > 1) return 0;
    return transport->needs_mpirun ? launch_mpirun(processes, argc, argv, error)
                                   : launch_processes(launch, processes, error);
}

Comm *comm_alone(void) {
    Comm *comm = (Comm *)xcalloc(1, sizeof(Comm));
    comm->size = 1;
    pthread_mutex_init(&comm->mutex, NULL);
    return comm;
}

Comm *comm_open(const Launch *launch, int deterministic, double deadline, Error *error) {
    Comm *comm = comm_alone();
    if (launch->size == 1) return comm;
    comm->rank = launch->rank;
    comm->size = launch->size;
    comm->deadline = deadline;
    comm->transport = TRANSPORTS[0];
    comm->state = comm->transport->open(launch, deterministic, deadline, &comm->control, error);
    if (comm->state != NULL) return comm;
    comm->transport = NULL;
    comm_close(comm);
    return NULL;
}

void comm_close(Comm *comm) {
    if (comm == NULL) return;
    if (comm->transport != NULL) {
        comm_limit("disconnecting from the other processes", comm->deadline);
        comm->transport->close(comm->state);
        comm_limit(NULL, 0);
    }
    if (comm->control != NULL) control_close(comm->control);
    pthread_mutex_destroy(&comm->mutex);
    free(comm);
}

int comm_rank(const Comm *comm) {
    return comm->rank;
}
int comm_size(const Comm *comm) {
    return comm->size;
}
const char *comm_transport(const Comm *comm) {
    return comm->transport != NULL ? comm->transport->name : "alone";
}
Control *comm_control(Comm *comm) {
    return comm->control;
}

// ---- limits -----------------------------------------------------------------------------------------------

// Connecting and disconnecting have no deadline of their own: the process's alarm clock (SIGALRM) limits them.
static char limit_sentence[256];

static void on_limit(int number) {
    ssize_t written = write(STDERR_FILENO, limit_sentence, strlen(limit_sentence));
    (void)number, (void)written;
    _exit(EXIT_LOST_PEER);
}

void comm_limit(const char *what, double seconds) {
    if (what != NULL) {
        snprintf(limit_sentence, sizeof(limit_sentence),
                 "error: %s has taken more than %.0f s: another process was lost\n", what, seconds);
        signal(SIGALRM, on_limit);
    }
    alarm(what != NULL && seconds < 1e6 ? (unsigned)ceil(seconds) : 0);
}

// ---- operations -------------------------------------------------------------------------------------------

// Counts an operation before it is queued, and records its name.
static Ticket count_operation(Comm *comm, const char *name, size_t bytes) {
    range_begin(name);
    pthread_mutex_lock(&comm->mutex);
    Ticket ticket = ++comm->queued;
    snprintf(comm->names[ticket % RECENT], sizeof(comm->names[0]), "%s %llu, %.3g MB", name,
             (unsigned long long)ticket, (double)bytes * 1e-6);
    pthread_mutex_unlock(&comm->mutex);
    return ticket;
}

static size_t count_elements(const CommPiece *pieces, size_t num_pieces) {
    size_t count = 0;
    for (size_t i = 0; i < num_pieces; i++) count += pieces[i].count;
    return count;
}

Ticket comm_all_reduce(Comm *comm, void *data, size_t count, CommType type, Stream after) {
    if (comm->size == 1) return 0;
    Ticket ticket = count_operation(comm, "all-reduce", count * element_size(type));
    comm->transport->all_reduce(comm->state, data, count, type, after);
    range_end();
    return ticket;
}

Ticket comm_reduce_scatter(Comm *comm, const CommPiece *pieces, size_t num_pieces, Stream after) {
    if (comm->size == 1) {
        for (size_t i = 0; i < num_pieces; i++)
            if (pieces[i].own != pieces[i].data)
                copy_on_device(pieces[i].own, pieces[i].data, pieces[i].count * sizeof(float), after);
        return 0;
    }
    Ticket ticket = count_operation(comm, "reduce-scatter",
                                    count_elements(pieces, num_pieces) * sizeof(float));
    comm->transport->reduce_scatter(comm->state, pieces, num_pieces, after);
    range_end();
    return ticket;
}

Ticket comm_all_gather(Comm *comm, const CommPiece *pieces, size_t num_pieces, size_t element, Stream after) {
    if (comm->size == 1) {
        for (size_t i = 0; i < num_pieces; i++)
            if (pieces[i].own != pieces[i].data)
                copy_on_device(pieces[i].data, pieces[i].own, pieces[i].count * element, after);
        return 0;
    }
    Ticket ticket = count_operation(comm, "all-gather", count_elements(pieces, num_pieces) * element);
    comm->transport->all_gather(comm->state, pieces, num_pieces, element, after);
    range_end();
    return ticket;
}

Ticket comm_broadcast(Comm *comm, void *data, size_t bytes, int root, Stream after) {
    if (comm->size == 1) return 0;
    Ticket ticket = count_operation(comm, "broadcast", bytes);
    comm->transport->broadcast(comm->state, data, bytes, root, after);
    range_end();
    return ticket;
}

void comm_wait(Comm *comm, Ticket ticket, Stream stream) {
    if (comm->size > 1 && ticket > 0) comm->transport->wait(comm->state, ticket, stream);
}

void comm_exchange(Comm *comm, const void *mine, size_t bytes, void *all) {
    if (comm->size == 1) {
        memcpy(all, mine, bytes);
        return;
    }
    count_operation(comm, "exchange", bytes);
    comm->transport->exchange(comm->state, mine, bytes, all);
    range_end();
}

void comm_barrier(Comm *comm) {
    char mine = 0, *all = (char *)xmalloc((size_t)comm->size);
    comm_exchange(comm, &mine, 1, all);
    free(all);
}

// ---- for the watchdog ---------------------------------------------------------------------------------------

void comm_progress(void *argument, CommProgress *progress) {
    Comm *comm = (Comm *)argument;
    memset(progress, 0, sizeof(*progress));
    if (comm->size == 1) return;
    progress->done = comm->transport->progress(comm->state, progress->failure, sizeof(progress->failure));
    pthread_mutex_lock(&comm->mutex);
    progress->queued = comm->queued;
    if (progress->done < progress->queued && progress->queued - progress->done < RECENT)
        memcpy(progress->current, comm->names[(progress->done + 1) % RECENT], sizeof(progress->current));
    pthread_mutex_unlock(&comm->mutex);
}

void comm_abort(void *argument) {
    Comm *comm = (Comm *)argument;
    if (comm->size > 1) comm->transport->abort(comm->state);
}
