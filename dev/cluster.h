// Predicts what training on several GPUs will take: a model for planning, not a measurement. It simulates one step as
// the trainer queues it, on two streams: one computes, the other runs the operations one after another.
//
//     all gathers (sharded) | per micro-step: blocks forward, head, blocks backward | AdamW | one small all-reduce
//
// Computation takes
//     block forward    tokens block_flop / (flops utilisation); backward twice that, plus what it recomputes
//     head             3 tokens head_flop / (flops utilisation), forward and backward, before the blocks' backward
//     AdamW            elements that a GPU owns x (32 bytes, and 2 for a bf16 weight) / memory_bandwidth
// and runs at (1 - slowdown) of its speed while an operation runs. Operations of N GPUs, G per node, on S bytes take
//     all-reduce       operation + 2 (N - nodes) ring[0] + 2 (nodes - 1) ring[1] + 2 (N-1)/N S / (share bandwidth)
//       or as a tree   operation + 2 (G-1) tree[0] + 2 log2(nodes) tree[1] + 2 S / (0.92 share bandwidth)
//     to, from owners  operation + (N - nodes) chain[0] + (nodes - 1) chain[1] + S / (share bandwidth), as chains of
//                      NCCL's reductions or broadcasts, whose pieces alternate; with MPI (N-1)/N S instead of S
// with the fastest protocol, as a ring or a tree: NCCL chooses in the same way. Bandwidth is
//     NCCL             min(link, G network): a ring enters and leaves a node once, and there are as many rings as
//                      network cards, which together use the whole network, each for a part of the data
//     MPI              min(link / G, network): processes share their machine's memory
// Each GPU sends 2 (N-1)/N S bytes in an all-reduce, (N-1)/N S on average to or from owners.
//
// What is sent when (bucket 0 holds the tensors outside of blocks, then each block is a bucket):
//     no sharding      all-reduce of a bucket's gradients when the backward pass of the last micro-step has finished it
//     the optimizer    to owners instead; then weights from owners, overlapped with the next step's forward pass, which
//                      waits for a bucket's weights before it uses them
//     gradients        to owners in every micro-step; a block's gradients reuse the buffer of the block two before,
//                      once those have been sent
// Not modelled: data loading, GPUs that are not equally fast or own more than others, other traffic, the host's time
// to queue work, and in-network reduction (NVSwitch: all-reduces inside a node are about 1.3 times as fast).
#ifndef DEV_CLUSTER_H
#define DEV_CLUSTER_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum { PLAN_NCCL, PLAN_MPI } PlanTransport;
typedef enum { PLAN_SHARD_NONE, PLAN_SHARD_OPTIMIZER, PLAN_SHARD_GRADIENTS } PlanSharding;

// The cost of a protocol in addition to bandwidth: seconds per operation, and per hop inside a node [0] and between
// nodes [1].
typedef struct {
    double operation, ring[2], chain[2], tree[2];
    double share; // of the bandwidth that the protocol reaches; 0: there is no such protocol
} PlanProtocol;

// A GPU, or a process on a CPU, and its connections, in bytes and seconds; link and network are for one direction.
typedef struct {
    const char *name;
    double flops;       // peak, per second
    double utilisation; // fraction of the peak that forward and backward reach, averaged over all kernels
    double memory_bandwidth, memory;
    PlanTransport transport;
    // Achievable in practice, to another GPU of the node; with MPI: of all processes of a node together.
    double link;
    double network;  // likewise to other nodes, the share of one GPU
    double slowdown; // fraction of its speed that computation loses while an operation runs
    PlanProtocol protocols[2];
} PlanGpu;

extern const PlanGpu PLAN_GPUS[];
extern const size_t PLAN_NUM_GPUS;
// Returns NULL if there is no GPU of that name.
const PlanGpu *plan_gpu(const char *name);

typedef struct {
    const size_t *bucket_sizes; // (num_buckets) elements: the tensors outside of blocks, then each block
    size_t num_buckets;
    size_t tokens; // per micro-step and GPU
    size_t micro_steps;
    double block_flop, head_flop; // forward, per token
    double recompute;             // fraction of a block's forward that backward recomputes
    size_t bytes_per_weight;      // 2 or 4
    size_t totals;                // bytes of the small all-reduce: losses, and sums of squares for the norm
    PlanSharding sharding;
} PlanModel;

// One step in a long run, per GPU: step = compute + exposed.
typedef struct {
    double step;          // seconds
    double compute;       // seconds that the computation would take alone
    double communication; // seconds during which an operation runs
    // Seconds by which operations lengthen the step: waiting and slower computation.
    double exposed;
    double bytes_sent; // average over GPUs
    double efficiency; // seconds of a step on one GPU with the same tokens per GPU / `step`
} PlanStep;

// Sharding leaves each GPU less of AdamW's work, so the efficiency can exceed 1 if communication takes no time.
void plan_step(const PlanModel *model, const PlanGpu *gpu, int gpus, int gpus_per_node, PlanStep *step);

#ifdef __cplusplus
}
#endif
#endif
