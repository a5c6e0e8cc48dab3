// Ownership: every element has one owner, nothing overlaps, units stay on one process where possible, and no process
// has much more than others, over the whole model and in each bucket.
#include <stdlib.h>
#include "layers/comm/partition.h"
#include "layers/base/files.h"
#include "test/harness/test.h"

enum { CHUNK = 8192, MOST_CHUNKS = 200000 };

static PartitionChunk chunks[MOST_CHUNKS];

// Lists a GPT-2 as the trainer does: embeddings and the last layernorm, then blocks of four matrices.
static size_t list_gpt2(size_t L, size_t C, size_t Vp, size_t T) {
    const size_t block[][2] = {
        {2 * C, 1}, {3 * C * C + 3 * C, 0}, {C * C + 3 * C, 1}, {4 * C * C + 4 * C, 1}, {4 * C * C + C, 1}};
    size_t count = 0, offset = 0;
    int32_t unit = -1;
    for (size_t b = 0; b <= L; b++)
        for (int t = 0; t < (b ? 5 : 2); t++) {
            size_t size = b ? block[t][0] : t ? T * C + 2 * C : Vp * C;
            unit += b == 0 || block[t][1]; // the first layernorm and the first matrix are one unit
            for (size_t done = 0; done < size; done += CHUNK) {
                size_t n = size - done < CHUNK ? (size - done + 15) / 16 * 16 : CHUNK;
                PartitionChunk chunk = {offset, n, unit, (int32_t)b, 0, 0};
                chunks[count++] = chunk;
                offset += n;
            }
        }
    return count;
}

// Returns the largest share relative to the fair one.
static double check_partition(size_t count, int processes) {
    const size_t P = (size_t)processes, most = partition_make(chunks, count, processes),
                 total = chunks[count - 1].offset + chunks[count - 1].size;
    size_t *load = (size_t *)xcalloc(P, sizeof(size_t)), largest = 0;
    int wrong = 0;
    for (size_t i = 0; i < count; i++) {
        const int owner = chunks[i].owner;
        if (owner < 0 || owner >= processes || chunks[i].own != load[owner]) wrong++;
        load[owner >= 0 && owner < processes ? owner : 0] += chunks[i].size;
    }
    for (size_t p = 0; p < P; p++)
        if (load[p] > largest) largest = load[p];
    EXPECT(wrong == 0, "%d processes: %d of %zu chunks are out of place", processes, wrong, count);
    EXPECT(largest == most, "%d processes: %zu is the most, not %zu", processes, largest, most);
    // A unit that is not larger than the fair share has one owner.
    wrong = 0;
    for (size_t first = 0, end; first < count; first = end) {
        size_t size = 0, owners = 1;
        for (end = first; end < count && chunks[end].unit == chunks[first].unit; end++) {
            size += chunks[end].size;
            if (end > first) owners += chunks[end].owner != chunks[end - 1].owner;
        }
        if (size <= (total + P - 1) / P && owners > 1) wrong++;
    }
    EXPECT(wrong == 0, "%d processes: %d units are cut without need", processes, wrong);
    free(load);
    return (double)most * processes / (double)total;
}

// Checks that pieces cover each bucket without gaps, in both buffers.
static void check_pieces(size_t count, int processes) {
    size_t n = partition_pieces(chunks, count, NULL), at = 0;
    PartitionPiece *pieces = (PartitionPiece *)xcalloc(n, sizeof(PartitionPiece));
    EXPECT(partition_pieces(chunks, count, pieces) == n, "the number of pieces changes");
    int wrong = 0;
    size_t chunk = 0;
    for (size_t i = 0; i < n; i++) {
        wrong += pieces[i].offset != at || pieces[i].owner != chunks[chunk].owner ||
                 pieces[i].bucket != chunks[chunk].bucket;
        at += pieces[i].size;
        for (; chunk < count && chunks[chunk].offset < at; chunk++)
            wrong += chunks[chunk].own - pieces[i].own != chunks[chunk].offset - pieces[i].offset;
    }
    EXPECT(wrong == 0 && chunk == count, "%d processes: %d pieces are wrong", processes, wrong);
    free(pieces);
}

// Returns the busiest process's part of a block, relative to the fair one, in the middle of the blocks.
static double busiest_in_block(size_t count, int processes) {
    double worst = 0;
    for (int32_t b = 1; b <= chunks[count - 1].bucket; b++) {
        size_t load[64] = {0}, total = 0, most = 0;
        for (size_t i = 0; i < count; i++)
            if (chunks[i].bucket == b) {
                load[chunks[i].owner] += chunks[i].size;
                total += chunks[i].size;
            }
        for (int p = 0; p < processes; p++)
            if (load[p] > most) most = load[p];
        if ((double)most * processes / (double)total > worst)
            worst = (double)most * processes / (double)total;
    }
    return worst;
}

int main(void) {
    static const struct {
        const char *name;
        size_t L, C, Vp, T;
    } models[] = {{"gpt2-124M", 12, 768, 50304, 1024}, {"gpt2-1558M", 48, 1600, 50304, 1024}};
    for (int m = 0; m < 2; m++) {
        size_t count = list_gpt2(models[m].L, models[m].C, models[m].Vp, models[m].T);
        for (int processes = 1; processes <= 64; processes = processes < 9 ? processes + 1 : 2 * processes) {
            double balance = check_partition(count, processes), in_block = busiest_in_block(count, processes);
            check_pieces(count, processes);
            printf("%s, %2d processes: largest share %.3f of the fair one, in a block %.2f\n", models[m].name,
                   processes, balance, in_block);
            EXPECT(balance < (processes <= 18 ? 1.1 : 1.25),
                   "%s, %d processes: a share is %.3f of the fair one", models[m].name, processes, balance);
        }
    }
    size_t count = list_gpt2(1, 16, 128, 8); // only a few chunks for many processes
    for (int processes = 1; processes <= 40; processes += 3) {
        check_partition(count, processes);
        check_pieces(count, processes);
    }
    partition_make(chunks, count, 1);
    for (size_t i = 0; i < count; i++)
        if (chunks[i].own != chunks[i].offset) EXPECT(0, "one process has chunk %zu elsewhere", i);
    return test_finish();
}
