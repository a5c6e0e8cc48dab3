// See cluster.h.
#include "dev/cluster.h"

#include <math.h>
#include <string.h>

// ---- the machines ---------------------------------------------------------------------------------------------------

// What NCCL reckons with when it chooses (2.20, src/graph/tuning.cc): hops over NVLink or PCIe, and over a network. The
// protocol Simple has the whole bandwidth, but in a chain or a tree a GPU passes a chunk on only when it has all of it;
// LL128 (NVLink) and LL (here: PCIe) pass on a line at a time, with flags in it.
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
// An assumption: NCCL's thread blocks take a multiprocessor each, 24 of 108 to 148 where NVLink is to be filled, 4 of
// 128 to 170 for PCIe.
#define LOSS_NVLINK 0.2
#define LOSS_PCIE   0.03

// flops, memory_bandwidth and memory are those of the data sheets: bf16, dense, sums in fp32; SXM modules.
//
// link is less than the data sheet's: protocol takes a fifth of NVLink. A100: 12 links, 300 GB/s, NCCL gets 235 (its
// tuning.cc); H100, H200: 18 links, 450 GB/s, 370 (NCCL's developers in nccl-tests, issue 212); B200: 18 links, 900
// GB/s, 18 x 40.1 (NCCL's topo.h). PCIe 4.0 x16: 31.5 GB/s, 24 (what NCCL reckons with; between sockets 10). PCIe 5.0
// x16: 63 GB/s, 28 with eight RTX 5090 (nccl, issue 1639).
//
// network: DGX A100 has a card of 200 Gb/s for each GPU, DGX H100, H200 and B200 one of 400 Gb/s, which gives 46 to 48
// GB/s (nccl-tests, issue 290); A100: half of that. For PCIe cards an assumption: 100 Gb/s for each L40S, 100 Gb/s for
// eight GeForce.
//
// utilisation is what others' trainers have published, of whole steps: A100: llm.c 56 % (GPT-2 124M). H100: llm.c 38 %
// (124M) and 46 % (1558M), LLM.Q 47 to 59 % (0.5B to 3B); small models get less than what stands here. RTX 4090: nanoGPT
// (issue 182) 29 % of an A100's peak with attention counted in full, which is 51 % of its own. H200, B200, L40S and RTX
// 5090 are assumptions, from their nearest relatives: where the peak grew more than memory bandwidth (L40S), or takes new
// instructions to reach (B200), less.
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

// ---- what an operation takes ----------------------------------------------------------------------------------------

static const double TREE_BANDWIDTH = 0.92; // of a ring's; NCCL's estimate as well

enum {
    GRADIENT_BYTES = 4,
    ADAMW_BYTES = 32 // the gradient, twice (once for the norm); read and write weight and both moments
};

typedef struct {
    const PlanGpu *gpu;
    double size, nodes, per_node, bandwidth;
} Group;

typedef struct {
    double seconds, sent;
} Operation;

static Group group_of(const PlanGpu *gpu, int gpus, int gpus_per_node) {
    const double size = gpus, most = gpus_per_node;
    Group g = {gpu, size, ceil(size / most), size < most ? size : most, 0};
    const int mpi = gpu->transport == PLAN_MPI;
    const double outside = mpi ? gpu->network : g.per_node * gpu->network;
    g.bandwidth = mpi ? gpu->link / g.per_node : gpu->link;
    if (g.nodes > 1 && outside < g.bandwidth) g.bandwidth = outside;
    return g;
}

static double lesser(double a, double b) {
    return a < b ? a : b;
}

static double all_reduce_seconds(const Group *g, const PlanProtocol *p, double bytes) {
    const double bandwidth = p->share * g->bandwidth, sent = 2 * (g->size - 1) / g->size * bytes;
    const double ring = 2 * (g->size - g->nodes) * p->ring[0] + 2 * (g->nodes - 1) * p->ring[1] +
                        sent / bandwidth;
    const double tree = 2 * (g->per_node - 1) * p->tree[0] + 2 * log2(g->nodes) * p->tree[1] +
                        2 * bytes / (TREE_BANDWIDTH * bandwidth);
    return p->operation + lesser(ring, tree);
}

static double owners_seconds(const Group *g, const PlanProtocol *p, double bytes) {
    const double carried = g->gpu->transport == PLAN_MPI ? (g->size - 1) / g->size * bytes : bytes;
    return p->operation + (g->size - g->nodes) * p->chain[0] + (g->nodes - 1) * p->chain[1] +
           carried / (p->share * g->bandwidth);
}

static double fastest(const Group *g, double (*seconds)(const Group *, const PlanProtocol *, double),
                      double bytes) {
    double least = HUGE_VAL;
    if (g->size == 1) return 0;
    for (int i = 0; i < 2; i++)
        if (g->gpu->protocols[i].share > 0) least = lesser(least, seconds(g, &g->gpu->protocols[i], bytes));
    return least;
}

static Operation all_reduce(const Group *g, double bytes) {
    Operation o = {fastest(g, all_reduce_seconds, bytes), 2 * (g->size - 1) / g->size * bytes};
    return o;
}

// Gradients to their owners, or weights from them.
static Operation owners(const Group *g, double bytes) {
    Operation o = {fastest(g, owners_seconds, bytes), (g->size - 1) / g->size * bytes};
    return o;
}

// ---- one step, played through ---------------------------------------------------------------------------------------

typedef struct {
    const PlanModel *model;
    Group group;
    double now;      // of the stream that computes
    double sends_to; // the other one has work until then, without a gap from now on
    double turns[3]; // when each memory for gradients is free again
    PlanStep result;
} Play;

static void compute(Play *p, double seconds) {
    const double speed = 1 - p->group.gpu->slowdown;
    const double beside = p->sends_to > p->now ? p->sends_to - p->now
                                               : 0; // seconds with an operation running
    if (seconds <= 0) return;
    p->result.compute += seconds;
    p->now += seconds <= beside * speed ? seconds / speed : beside + (seconds - beside * speed);
}

static void wait_until(Play *p, double when) {
    if (when > p->now) p->now = when;
}

// Begins when the operations before it are done; returns when it is done itself.
static double queue(Play *p, Operation o) {
    p->sends_to = (p->sends_to > p->now ? p->sends_to : p->now) + o.seconds;
    p->result.communication += o.seconds;
    p->result.bytes_sent += o.sent;
    return p->sends_to;
}

static Operation gather_of(const Play *p, size_t b) {
    return owners(&p->group, (double)p->model->bucket_sizes[b] * (double)p->model->bytes_per_weight);
}

static double seconds_of(const Play *p, double flop) {
    return flop * (double)p->model->tokens / (p->group.gpu->flops * p->group.gpu->utilisation);
}

// Weights that come from their owners do so one bucket after the other, from 0 on.
static void forward(Play *p) {
    const int divided = p->model->sharding != PLAN_SHARD_NONE;
    double ready = gather_of(p, 0).seconds;
    for (size_t b = 1; b < p->model->num_buckets; b++) {
        ready += gather_of(p, b).seconds;
        if (divided) wait_until(p, ready);
        compute(p, seconds_of(p, p->model->block_flop));
    }
}

// Which of the memories for gradients bucket b has where gradients are divided: two blocks take turns.
static size_t turn_of(size_t b) {
    return b == 0 ? 0 : 1 + b % 2;
}

static void send_gradients(Play *p, size_t b) {
    const double bytes = (double)p->model->bucket_sizes[b] * GRADIENT_BYTES;
    const int whole = p->model->sharding == PLAN_SHARD_NONE;
    p->turns[turn_of(b)] = queue(p, whole ? all_reduce(&p->group, bytes) : owners(&p->group, bytes));
}

static void backward(Play *p, int last) {
    const PlanModel *m = p->model;
    const int divided = m->sharding == PLAN_SHARD_GRADIENTS, sends = divided || last;
    if (divided) wait_until(p, p->turns[turn_of(0)]);
    compute(p, seconds_of(p, 3 * m->head_flop));
    for (size_t b = m->num_buckets; b-- > 1;) {
        if (divided) wait_until(p, p->turns[turn_of(b)]);
        compute(p, seconds_of(p, (2 + m->recompute) * m->block_flop));
        if (sends) send_gradients(p, b);
    }
    if (sends) send_gradients(p, 0);
}

static void update(Play *p) {
    const PlanModel *m = p->model;
    double numbers = 0, bytes = ADAMW_BYTES + (m->bytes_per_weight == 2 ? 2 : 0);
    for (size_t b = 0; b < m->num_buckets; b++) numbers += (double)m->bucket_sizes[b];
    if (m->sharding != PLAN_SHARD_NONE) numbers /= p->group.size;
    wait_until(p, p->sends_to);
    compute(p, numbers * bytes / p->group.gpu->memory_bandwidth);
    wait_until(p, queue(p, all_reduce(&p->group, (double)m->totals)));
}

// A step begins when AdamW of the one before is done, with nothing under way but what it queues itself.
static PlanStep play(const PlanModel *m, const PlanGpu *gpu, int gpus, int gpus_per_node) {
    Play p;
    memset(&p, 0, sizeof(p));
    p.model = m;
    p.group = group_of(gpu, gpus, gpus_per_node);
    const int divided = m->sharding != PLAN_SHARD_NONE;
    for (size_t b = 0; b < m->num_buckets && divided; b++) queue(&p, gather_of(&p, b));
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
    const PlanStep alone = play(model, gpu, 1, 1);
    *step = play(model, gpu, gpus, gpus_per_node);
    step->efficiency = alone.step / step->step;
}
