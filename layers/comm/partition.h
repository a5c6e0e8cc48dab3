// Assigns each part of the model to an owner: the process that keeps its optimizer state and master weights and sums
// its gradients (ZeRO, Rajbhandari et al., SC'20; stages 1 and 2).
//
// Parameters are stored in one flat buffer, cut into chunks that belong to one tensor each. A unit is a set of chunks
// that should stay together, a matrix and its vectors, so that an optimizer that needs whole matrices finds them on
// one process. Only a unit larger than a process's fair share is cut, between chunks. Parts are assigned, largest
// first, to the process with the smallest load; its load in the same bucket (the tensors whose gradients are sent
// together) counts twice, so that all processes have work in every bucket.
#ifndef LAYERS_COMM_PARTITION_H
#define LAYERS_COMM_PARTITION_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
    size_t offset;        // in elements, into the flat buffer; ascending
    size_t size;          // in elements, up to the next chunk
    int32_t unit, bucket; // both ascending
    int32_t owner;        // set by partition_make
    size_t own;           // in elements, into its owner's buffer; set by partition_make
} PartitionChunk;

// Consecutive chunks of one unit and one owner: contiguous in both buffers.
typedef struct {
    size_t offset, size, own;
    int32_t bucket, owner;
} PartitionPiece;

// Sets `owner` and `own` of every chunk. Returns the largest number of elements that one process owns.
size_t partition_make(PartitionChunk *chunks, size_t count, int processes);
// Stores the pieces in order and returns their number. `pieces` has room for `count`, or is NULL to only count them.
size_t partition_pieces(const PartitionChunk *chunks, size_t count, PartitionPiece *pieces);

#ifdef __cplusplus
}
#endif
#endif
