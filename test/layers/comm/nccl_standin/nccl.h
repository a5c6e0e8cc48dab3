// A stand-in for NCCL in the emulated build: the functions that layers/comm/nccl.cu calls, with the names, values and
// semantics of NCCL 2, on top of MPI. It is for tests, and enforces rules whose violation would make the real library
// hang or crash:
//     - every process makes the same calls in the same order; sends match receives
//     - buffers are device memory, large enough, and overlap only where an operation may be in place
//     - a communicator is not called before ncclCommGetAsyncError has reported that the last call is complete, which is
//       never immediately (nonblocking communicators only)
// A violation ends all processes with a message that begins with "nccl stand-in:".
//
// Sums are deliberately not added in rank order, so that tests can tell them from sums that are.
//
// NCCL_STANDIN_FAIL=rank:call   from this call on (from 1; 0 is ncclCommInitRankConfig) this process's communicator
//                               reports ncclRemoteError
// NCCL_STANDIN_HANG=rank:call   in this call this process hangs, and so do the others
#ifndef NCCL_STANDIN_NCCL_H
#define NCCL_STANDIN_NCCL_H

#include <cuda_runtime.h>

typedef struct ncclComm *ncclComm_t;

typedef enum {
    ncclSuccess = 0,
    ncclUnhandledCudaError = 1,
    ncclSystemError = 2,
    ncclInternalError = 3,
    ncclInvalidArgument = 4,
    ncclInvalidUsage = 5,
    ncclRemoteError = 6,
    ncclInProgress = 7
} ncclResult_t;
typedef enum { ncclUint8 = 1, ncclFloat32 = 7, ncclFloat64 = 8 } ncclDataType_t;
typedef enum { ncclSum = 0 } ncclRedOp_t;

typedef struct {
    char internal[128];
} ncclUniqueId;

typedef struct {
    unsigned magic;
    int blocking;
} ncclConfig_t;
#define NCCL_CONFIG_INITIALIZER                                                                              \
    { 0xcafebeef, 1 }

ncclResult_t ncclGetUniqueId(ncclUniqueId *id);
ncclResult_t ncclCommInitRankConfig(ncclComm_t *comm, int size, ncclUniqueId id, int rank,
                                    ncclConfig_t *config);
ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *state);
ncclResult_t ncclCommFinalize(ncclComm_t comm);
ncclResult_t ncclCommDestroy(ncclComm_t comm);
ncclResult_t ncclCommAbort(ncclComm_t comm);
const char *ncclGetErrorString(ncclResult_t result);
const char *ncclGetLastError(ncclComm_t comm);

ncclResult_t ncclGroupStart(void);
ncclResult_t ncclGroupEnd(void);
ncclResult_t ncclAllReduce(const void *send, void *receive, size_t count, ncclDataType_t type, ncclRedOp_t op,
                           ncclComm_t comm, cudaStream_t stream);
ncclResult_t ncclReduce(const void *send, void *receive, size_t count, ncclDataType_t type, ncclRedOp_t op,
                        int root, ncclComm_t comm, cudaStream_t stream);
ncclResult_t ncclAllGather(const void *send, void *receive, size_t count, ncclDataType_t type,
                           ncclComm_t comm, cudaStream_t stream);
ncclResult_t ncclBroadcast(const void *send, void *receive, size_t count, ncclDataType_t type, int root,
                           ncclComm_t comm, cudaStream_t stream);
ncclResult_t ncclSend(const void *send, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream);
ncclResult_t ncclRecv(void *receive, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream);

#endif
