// What training on several GPUs will take: a model to plan with, not a measurement. It plays one step through, as the
// trainer queues it, on two streams: one computes, the other does the operations one after the other.
//
//     all gathers (sharded) | per micro-step: blocks forward, head, blocks backward | AdamW | one small all-reduce
//
// Computing takes
//     block forward    tokens block_flop / (flops utilisation); backward twice that, and what it computes again
//     head             3 tokens head_flop / (flops utilisation), forward and backward, before the blocks' backward
//     AdamW            numbers that a GPU owns x (32 bytes, and 2 of a bf16 weight) / memory_bandwidth
// and goes on at (1 - slowdown) of its speed while an operation runs. Operations of N GPUs, G a node, on S bytes take
//     all-reduce       operation + 2 (N - nodes) ring[0] + 2 (nodes - 1) ring[1] + 2 (N-1)/N S / (share bandwidth)
//       or as a tree   operation + 2 (G-1) tree[0] + 2 log2(nodes) tree[1] + 2 S / (0.92 share bandwidth)
//     to, from owners  operation + (N - nodes) chain[0] + (nodes - 1) chain[1] + S / (share bandwidth), as chains of
//                      NCCL's reductions or broadcasts, whose pieces take turns; with MPI (N-1)/N S instead of S
// with the protocol, and as ring or tree, whichever is fastest: so NCCL chooses, too. Bandwidth is
//     NCCL             min(link, G network): a ring goes into a node and out of it once, and as many rings as there
//                      are cards, together with all of their network, carry a part of the data each
//     MPI              min(link / G, network): processes share their machine's memory
// Each GPU sends 2 (N-1)/N S bytes in an all-reduce, (N-1)/N S on average to or from owners.
//
// What is sent when (the buckets are the model's tensors, [0], and each block's):
//     no sharding      all-reduce of a bucket's gradients when backward of the last micro-step is done with it
//     the optimizer    to owners instead, then, beside the next step's forward, which waits for a bucket's before it
//                      uses them, weights from owners
//     gradients        to owners in every micro-step; a block's gradients take the place of those of the block two
//                      before, when these are gone
// Left out: loading data, GPUs that are not equally fast or own more than others, other traffic, what the processor
// takes to queue work, and sums in the network (NVSwitch: all-reduces inside a node are about 1.3 times as fast).
#ifndef DEV_CLUSTER_H
#define DEV_CLUSTER_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum { PLAN_NCCL, PLAN_MPI } PlanTransport;
typedef enum { PLAN_SHARD_NONE, PLAN_SHARD_OPTIMIZER, PLAN_SHARD_GRADIENTS } PlanSharding;

// What a way to send takes beside bandwidth: seconds of an operation, and of each hop, inside a node and between nodes.
typedef struct {
    double operation, ring[2], chain[2], tree[2];
    double share; // of the bandwidth that it gets; 0: there is no such protocol
} PlanProtocol;

// A GPU, or a process on a CPU, and how it is connected: bytes, seconds; link and network in one direction.
typedef struct {
    const char *name;
    double flops;       // at most, per second
    double utilisation; // the share of them that forward and backward get, all kernels together
    double memory_bandwidth, memory;
    PlanTransport transport;
    double
        link; // what is to be had in practice, to another GPU of the node; MPI: of all its processes together
    double network;  // likewise to other nodes, the share of one GPU
    double slowdown; // the share of its speed that computing loses while an operation runs
    PlanProtocol protocols[2];
} PlanGpu;

extern const PlanGpu PLAN_GPUS[];
extern const size_t PLAN_NUM_GPUS;
// NULL: there is none of that name.
const PlanGpu *plan_gpu(const char *name);

typedef struct {
    const size_t *bucket_sizes; // (num_buckets) numbers: of the model's tensors, then of each block
    size_t num_buckets;
    size_t tokens; // of a micro-step, on each GPU
    size_t micro_steps;
    double block_flop, head_flop; // of forward, a token
    double recompute;             // the share of a block's forward that backward does again
    size_t bytes_per_weight;      // 2 or 4
    size_t totals;                // bytes of the small all-reduce: losses, and sums of squares for the norm
    PlanSharding sharding;
} PlanModel;

// Of one step in a long run, each GPU: step = compute + exposed.
typedef struct {
    double step;          // seconds
    double compute;       // seconds of it that computing would take alone
    double communication; // seconds in which an operation runs
    double exposed;    // seconds by which operations make the step longer, in waits and in slower computing
    double bytes_sent; // on average
    double efficiency; // seconds of a step on one GPU, with the same tokens a GPU, over those here
} PlanStep;

// Sharding leaves each GPU less of AdamW's work, so where sending takes no time efficiency can be above 1.
void plan_step(const PlanModel *model, const PlanGpu *gpu, int gpus, int gpus_per_node, PlanStep *step);

#ifdef __cplusplus
}
#endif
#endif
