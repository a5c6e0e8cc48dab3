// See cluster.h.
#include "cluster.h"

#include <math.h>
#include <string.h>

// ---- GPUs -----------------------------------------------------------------------------------------------------------

// The constants of NCCL's own cost model (2.20, src/graph/tuning.cc): hops over NVLink or PCIe, and over a network.
// The protocol Simple has the full bandwidth, but in a chain or a tree a GPU forwards a chunk only when it has
// received all of it; LL128 (NVLink) and LL (here: PCIe) forward it line by line, with flags in each line.
#define OVER_NVLINK                                                                                          \
    {                                                                                                        \
        {8.4e-6, {3.4e-6, 14e-6}, {28e-6, 28e-6}, {28e-6, 28e-6}, 1},                                        \
            {14e-6, {1.9e-6, 4e-6}, {1.9e-6, 4e-6}, {1.25e-6, 8.5e-6}, 0.92},                                \
    }
#define OVER_PCIE                                                                                            \
    {                                                                                                        \
        {8.4e-6, {5.7e-6, 14e-6}, {28e-6, 28e-6}, {28e-6, 28e-6}, 1},                                        \
            {6.6e-6, {1e-6, 2.7e-6}, {1e-6, 2.7e-6}, {1e-6, 5e-6}, 0.25},                                    \
    }
// An assumption: each of NCCL's thread blocks takes one multiprocessor, 24 of 108 to 148 to saturate NVLink, 4 of 128
// to 170 for PCIe.
#define LOSS_NVLINK 0.2
#define LOSS_PCIE   0.03

// flops, memory_bandwidth and memory are from the data sheets: bf16, dense, fp32 accumulation; SXM modules.
//
// link is below the data sheet's value: the protocol takes a fifth of NVLink. A100: 12 links, 300 GB/s, of which NCCL
// assumes 235 (its tuning.cc); H100, H200: 18 links, 450 GB/s, 370 (NCCL's developers in nccl-tests, issue 212);
// B200: 18 links, 900 GB/s, 18 x 40.1 (NCCL's topo.h). PCIe 4.0 x16: 31.5 GB/s, 24 (NCCL's estimate; between sockets
// 10). PCIe 5.0 x16: 63 GB/s, 28 with eight RTX 5090 (nccl, issue 1639).
//
// network: DGX A100 has a card of 200 Gb/s for each GPU; DGX H100, H200 and B200 have one of 400 Gb/s, which gives 46
// to 48 GB/s (nccl-tests, issue 290); A100: half of that. For PCIe cards an assumption: 100 Gb/s for each L40S, 100
// Gb/s for eight GeForce cards.
//
// utilisation is what other trainers have published for whole steps. A100: llm.c 56 % (GPT-2 124M). H100: llm.c 38 %
// (124M) and 46 % (1558M), LLM.Q 47 to 59 % (0.5B to 3B); small models get less than the value in the table. RTX
// 4090: nanoGPT (issue 182) 29 % of an A100's peak with attention counted in full, which is 51 % of its own. H200,
// B200, L40S and RTX 5090 are assumptions from the most similar GPUs: less where the peak grew more than memory
// bandwidth (L40S) or takes new instructions to reach (B200).
// clang-format off
const PlanGpu PLAN_GPUS[] = {
    // name        flops  utilisation  memory: bandwidth, size   link    network  slowdown     protocols
    {"a100-40",   312e12, 0.56,        1.555e12, 40e9, PLAN_NCCL, 235e9, 23e9,   LOSS_NVLINK, OVER_NVLINK},
    {"a100-80",   312e12, 0.56,        2.039e12, 80e9, PLAN_NCCL, 235e9, 23e9,   LOSS_NVLINK, OVER_NVLINK},
    {"h100",      989e12, 0.47,        3.35e12, 80e9,  PLAN_NCCL, 370e9, 46e9,   LOSS_NVLINK, OVER_NVLINK},
    {"h200",      989e12, 0.47,        4.8e12, 141e9,  PLAN_NCCL, 370e9, 46e9,   LOSS_NVLINK, OVER_NVLINK},
    {"b200",     2250e12, 0.40,        8e12, 180e9,    PLAN_NCCL, 720e9, 46e9,   LOSS_NVLINK, OVER_NVLINK},
    {"l40s",      362e12, 0.35,        864e9, 48e9,    PLAN_NCCL, 24e9,  11.5e9, LOSS_PCIE,   OVER_PCIE},
    {"rtx4090", 165.2e12, 0.50,        1.008e12, 24e9, PLAN_NCCL, 24e9,  1.45e9, LOSS_PCIE,   OVER_PCIE},
    {"rtx5090", 209.5e12, 0.50,        1.792e12, 32e9, PLAN_NCCL, 28e9,  1.45e9, LOSS_PCIE,   OVER_PCIE},
};
// clang-format on
const size_t PLAN_NUM_GPUS = sizeof(PLAN_GPUS) / sizeof(PLAN_GPUS[0]);

const PlanGpu *plan_gpu(const char *name) {
    for (size_t i = 0; i < PLAN_NUM_GPUS; i++)
        if (strcmp(PLAN_GPUS[i].name, name) == 0) return &PLAN_GPUS[i];
    return NULL;
}

// ---- duration of an operation ---------------------------------------------------------------------------------------

static const double TREE_BANDWIDTH = 0.92; // relative to a ring's, as in NCCL's cost model

enum {
    GRADIENT_BYTES = 4,
    // Reads the gradient twice (once for the norm); reads and writes the weight and both moments.
    ADAMW_BYTES = 32
};

typedef struct {
    const PlanGpu *gpu;
    double size, nodes, per_node, bandwidth;
} Group;

typedef struct {
    double seconds, sent;
} Operation;

static Group make_group(const PlanGpu *gpu, int gpus, int gpus_per_node) {
    const double size = gpus, max_per_node = gpus_per_node;
    Group g = {gpu, size, ceil(size / max_per_node), size < max_per_node ? size : max_per_node, 0};
    const int mpi = gpu->transport == PLAN_MPI;
    const double outside = mpi ? gpu->network : g.per_node * gpu->network;
    g.bandwidth = mpi ? gpu->link / g.per_node : gpu->link;
    if (g.nodes > 1 && outside < g.bandwidth) g.bandwidth = outside;
    return g;
}

static double smaller(double a, double b) {
    return a < b ? a : b;
}

static double all_reduce_seconds(const Group *g, const PlanProtocol *p, double bytes) {
    const double bandwidth = p->share * g->bandwidth, sent = 2 * (g->size - 1) / g->size * bytes;
    const double ring = 2 * (g->size - g->nodes) * p->ring[0] + 2 * (g->nodes - 1) * p->ring[1] +
                        sent / bandwidth;
    const double tree = 2 * (g->per_node - 1) * p->tree[0] + 2 * log2(g->nodes) * p->tree[1] +
                        2 * bytes / (TREE_BANDWIDTH * bandwidth);
    return p->operation + smaller(ring, tree);
}

static double owner_seconds(const Group *g, const PlanProtocol *p, double bytes) {
    const double carried = g->gpu->transport == PLAN_MPI ? (g->size - 1) / g->size * bytes : bytes;
    return p->operation + (g->size - g->nodes) * p->chain[0] + (g->nodes - 1) * p->chain[1] +
           carried / (p->share * g->bandwidth);
}

static double fastest(const Group *g, double (*seconds)(const Group *, const PlanProtocol *, double),
                      double bytes) {
    double least = HUGE_VAL;
    if (g->size == 1) return 0;
    for (int i = 0; i < 2; i++)
        if (g->gpu->protocols[i].share > 0) least = smaller(least, seconds(g, &g->gpu->protocols[i], bytes));
    return least;
}

static Operation all_reduce(const Group *g, double bytes) {
    Operation o = {fastest(g, all_reduce_seconds, bytes), 2 * (g->size - 1) / g->size * bytes};
    return o;
}

// Gradients to their owners, or weights from their owners.
static Operation owner_transfer(const Group *g, double bytes) {
    Operation o = {fastest(g, owner_seconds, bytes), (g->size - 1) / g->size * bytes};
    return o;
}

// ---- simulation of one step -----------------------------------------------------------------------------------------

typedef struct {
    const PlanModel *model;
    Group group;
    double now;               // time on the compute stream
    double comm_busy_until;   // when the communication stream becomes idle
    double buffer_free_at[3]; // when each gradient buffer is free again
    PlanStep result;
} Simulation;

static void compute(Simulation *p, double seconds) {
    const double speed = 1 - p->group.gpu->slowdown;
    // Seconds during which an operation runs concurrently.
    const double overlapped = p->comm_busy_until > p->now ? p->comm_busy_until - p->now : 0;
    if (seconds <= 0) return;
    p->result.compute += seconds;
    p->now += seconds <= overlapped * speed ? seconds / speed : overlapped + (seconds - overlapped * speed);
}

static void wait_until(Simulation *p, double when) {
    if (when > p->now) p->now = when;
}

// Queues an operation, which begins when those before it are done. Returns the time when it is done.
static double queue(Simulation *p, Operation o) {
    p->comm_busy_until = (p->comm_busy_until > p->now ? p->comm_busy_until : p->now) + o.seconds;
    p->result.communication += o.seconds;
    p->result.bytes_sent += o.sent;
    return p->comm_busy_until;
}

static Operation gather_weights(const Simulation *p, size_t b) {
    return owner_transfer(&p->group, (double)p->model->bucket_sizes[b] * (double)p->model->bytes_per_weight);
}

static double compute_seconds(const Simulation *p, double flop) {
    return flop * (double)p->model->tokens / (p->group.gpu->flops * p->group.gpu->utilisation);
}

// If weights are gathered from their owners, this happens bucket by bucket, from 0 on.
static void forward(Simulation *p) {
    const int is_sharded = p->model->sharding != PLAN_SHARD_NONE;
    double ready = gather_weights(p, 0).seconds;
    for (size_t b = 1; b < p->model->num_buckets; b++) {
        ready += gather_weights(p, b).seconds;
        if (is_sharded) wait_until(p, ready);
        compute(p, compute_seconds(p, p->model->block_flop));
    }
}

// Returns the gradient buffer of bucket b if gradients are sharded: blocks alternate between two buffers.
static size_t buffer_of(size_t b) {
    return b == 0 ? 0 : 1 + b % 2;
}

static void send_gradients(Simulation *p, size_t b) {
    const double bytes = (double)p->model->bucket_sizes[b] * GRADIENT_BYTES;
    const int whole = p->model->sharding == PLAN_SHARD_NONE;
    p->buffer_free_at[buffer_of(b)] = queue(p, whole ? all_reduce(&p->group, bytes)
                                                     : owner_transfer(&p->group, bytes));
}

static void backward(Simulation *p, int last) {
    const PlanModel *m = p->model;
    const int is_sharded = m->sharding == PLAN_SHARD_GRADIENTS, is_sent = is_sharded || last;
    if (is_sharded) wait_until(p, p->buffer_free_at[buffer_of(0)]);
    compute(p, compute_seconds(p, 3 * m->head_flop));
    for (size_t b = m->num_buckets; b-- > 1;) {
        if (is_sharded) wait_until(p, p->buffer_free_at[buffer_of(b)]);
        compute(p, compute_seconds(p, (2 + m->recompute) * m->block_flop));
        if (is_sent) send_gradients(p, b);
    }
    if (is_sent) send_gradients(p, 0);
}

static void update(Simulation *p) {
    const PlanModel *m = p->model;
    double elements = 0, bytes = ADAMW_BYTES + (m->bytes_per_weight == 2 ? 2 : 0);
    for (size_t b = 0; b < m->num_buckets; b++) elements += (double)m->bucket_sizes[b];
    if (m->sharding != PLAN_SHARD_NONE) elements /= p->group.size;
    wait_until(p, p->comm_busy_until);
    compute(p, elements * bytes / p->group.gpu->memory_bandwidth);
    wait_until(p, queue(p, all_reduce(&p->group, (double)m->totals)));
}

// A step begins when AdamW of the previous step is done; nothing is in flight except what the step itself queues.
static PlanStep simulate(const PlanModel *m, const PlanGpu *gpu, int gpus, int gpus_per_node) {
    Simulation p;
    memset(&p, 0, sizeof(p));
    p.model = m;
    p.group = make_group(gpu, gpus, gpus_per_node);
    const int is_sharded = m->sharding != PLAN_SHARD_NONE;
    for (size_t b = 0; b < m->num_buckets && is_sharded; b++) queue(&p, gather_weights(&p, b));
    for (size_t micro = 0; micro < m->micro_steps; micro++) {
        forward(&p);
        backward(&p, micro + 1 == m->micro_steps);
    }
    update(&p);
    p.result.step = p.now;
    p.result.exposed = p.now - p.result.compute;
    return p.result;
}

void plan_step(const PlanModel *model, const PlanGpu *gpu, int gpus, int gpus_per_node, PlanStep *step) {
    const PlanStep alone = simulate(model, gpu, 1, 1);
    *step = simulate(model, gpu, gpus, gpus_per_node);
    step->efficiency = alone.step / step->step;
}
