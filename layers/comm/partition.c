// See partition.h.
#include "partition.h"

#include <stdlib.h>
#include "layers/base/files.h"

// Consecutive chunks that are assigned to one process together.
typedef struct {
    size_t first, count, size;
    int32_t bucket;
} Part;

static int compare_parts(const void *a, const void *b) {
    const Part *x = (const Part *)a, *y = (const Part *)b;
    if (x->size != y->size) return x->size < y->size ? 1 : -1;
    return x->first < y->first ? -1 : 1;
}

// Cuts chunks first .. end - 1, a unit of `size` elements, into as few nearly equal parts as possible, each at most
// `share`.
static size_t cut_unit(Part *parts, const PartitionChunk *chunks, size_t first, size_t end, size_t size,
                       size_t share) {
    size_t count = (size + share - 1) / share, made = 0, done = 0, i = first;
    while (i < end) {
        Part part = {i, 0, 0, chunks[i].bucket};
        // Where this part should end, counted from the beginning of the unit.
        size_t until = size / count * (made + 1);
        while (i < end && (part.count == 0 || made + 1 == count || done + chunks[i].size / 2 < until)) {
            part.count++;
            part.size += chunks[i].size;
            done += chunks[i++].size;
        }
        parts[made++] = part;
    }
    return made;
}

static size_t cut_units(Part *parts, const PartitionChunk *chunks, size_t count, size_t share) {
    size_t num_parts = 0;
    for (size_t first = 0, end; first < count; first = end) {
        size_t size = 0;
        for (end = first; end < count && chunks[end].unit == chunks[first].unit; end++)
            size += chunks[end].size;
        num_parts += cut_unit(parts + num_parts, chunks, first, end, size, share);
    }
    return num_parts;
}

size_t partition_make(PartitionChunk *chunks, size_t count, int processes) {
    size_t total = 0, max_owned = 0, num_parts;
    const size_t P = (size_t)processes;
    if (count == 0) return 0;
    const size_t num_buckets = (size_t)chunks[count - 1].bucket + 1;
    for (size_t i = 0; i < count; i++) total += chunks[i].size;
    Part *parts = (Part *)xmalloc(count * sizeof(Part));
    size_t *load = (size_t *)xcalloc(P, sizeof(size_t)),
           *bucket_loads = (size_t *)xcalloc(P * num_buckets, sizeof(size_t));
    num_parts = cut_units(parts, chunks, count, (total + P - 1) / P);
    qsort(parts, num_parts, sizeof(Part), compare_parts);
    for (size_t i = 0; i < num_parts; i++) {
        size_t *bucket_load = bucket_loads + P * (size_t)parts[i].bucket, best = 0;
        for (size_t p = 1; p < P; p++)
            if (load[p] + bucket_load[p] < load[best] + bucket_load[best]) best = p;
        load[best] += parts[i].size;
        bucket_load[best] += parts[i].size;
        for (size_t c = 0; c < parts[i].count; c++) chunks[parts[i].first + c].owner = (int32_t)best;
    }
    for (size_t p = 0; p < P; p++) {
        if (load[p] > max_owned) max_owned = load[p];
        load[p] = 0;
    }
    for (size_t i = 0; i < count; i++) {
        chunks[i].own = load[chunks[i].owner];
        load[chunks[i].owner] += chunks[i].size;
    }
    free(parts), free(load), free(bucket_loads);
    return max_owned;
}

size_t partition_pieces(const PartitionChunk *chunks, size_t count, PartitionPiece *pieces) {
    size_t made = 0;
    for (size_t first = 0, end; first < count; first = end, made++) {
        PartitionPiece piece = {chunks[first].offset, 0, chunks[first].own, chunks[first].bucket,
                                chunks[first].owner};
        for (end = first;
             end < count && chunks[end].unit == chunks[first].unit && chunks[end].owner == piece.owner; end++)
            piece.size += chunks[end].size;
        if (pieces != NULL) pieces[made] = piece;
    }
    return made;
}
