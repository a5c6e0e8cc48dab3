// Which process is in charge of which part of the model: its optimizer state, its master weights, the sum of its
// gradients (ZeRO: Rajbhandari et al., SC'20; stages 1 and 2).
//
// Parameters lie in one flat memory, cut into chunks of a tensor each. A unit is what should stay together, a matrix
// and the vectors beside it, so that an optimizer that needs whole matrices finds them on one process. Only a unit
// that is larger than a process's fair share is cut, between chunks. Parts go, largest first, to the process that has
// least so far; what it already has of the same bucket (the tensors whose gradients are sent together) counts twice,
// so that all processes have work in every bucket.
#ifndef COMM_PARTITION_H
#define COMM_PARTITION_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
    size_t offset,
        size; // in the flat memory, in numbers; offsets ascend, the size is that up to the next chunk
    int32_t unit, bucket; // both ascend
    int32_t owner;        // partition_make decides
    size_t own;           // where the chunk stands in its owner's memory of what it owns
} PartitionChunk;

// Consecutive chunks of one unit and owner: consecutive in both memories.
typedef struct {
    size_t offset, size, own;
    int32_t bucket, owner;
} PartitionPiece;

// Sets owner and own of every chunk. Returns the most that a process owns.
size_t partition_make(PartitionChunk *chunks, size_t count, int processes);
// The pieces in order; returns their number. `pieces` has room for `count`, or is NULL: only the number.
size_t partition_pieces(const PartitionChunk *chunks, size_t count, PartitionPiece *pieces);

#ifdef __cplusplus
}
#endif
#endif
