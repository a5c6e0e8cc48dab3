#include "cudnn.h"

#include <array>
#include <exception>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#define CUDNN_FRONTEND_SKIP_JSON_LIB // graphs are not written to disk; compiles in half the time
#include <cudnn_frontend.h>

namespace fe = cudnn_frontend;

#if CUDNN_VERSION < 90000 || CUDNN_FRONTEND_VERSION < 11500
#error "cuDNN 9 and its frontend 1.15 or later are needed: pip install --upgrade nvidia-cudnn-frontend"
#endif

typedef std::shared_ptr<fe::graph::Tensor_attributes> Tensor;

enum Pass { FORWARD, BACKWARD };

// Ids by which a call associates pointers with tensors.
enum TensorId { Q = 1, K, V, OUT, LSE, DOUT, DQ, DK, DV, SEED, OFFSET };

// Everything that a graph depends on: two calls with the same key use the same plan.
typedef std::array<uint64_t, 17> Key;

struct Plan {
    Key key;
    std::unique_ptr<fe::graph::Graph> graph;
    size_t workspace; // bytes of workspace that a pass needs
};

// ---- errors -----------------------------------------------------------------------------------------------

// cuDNN's messages have many lines, one for each kernel that was tried; only the first is shown.
static std::string first_line(const std::string &message) {
    return message.substr(0, message.find('\n'));
}

[[noreturn]] static void fail(const char *what, const std::string &message) {
    fprintf(stderr, "error: cuDNN's attention: %s: %s\n", what, message.c_str());
    exit(1);
}

// Returns the error message of call(), or an empty string on success. The frontend returns most errors but throws some.
template <class Call> static std::string message_of(Call call) {
    try {
        fe::error_t error = call();
        if (error.is_good()) return "";
        std::string message = first_line(error.get_message());
        return message.empty() ? "it failed without a message" : message;
    } catch (const std::exception &exception) {
        return first_line(exception.what());
    }
}

// ---- the library ------------------------------------------------------------------------------------------

// Returns the handle of the process, which the first call creates; returns NULL with a message on error.
static cudnnHandle_t library(std::string *message) {
    static cudnnHandle_t handle = NULL;
    if (handle != NULL) return handle;
    cudnnStatus_t status = cudnnCreate(&handle);
    if (status == CUDNN_STATUS_SUCCESS) return handle;
    handle = NULL;
    *message = std::string("cuDNN cannot be initialized: ") + cudnnGetErrorString(status);
    return NULL;
}

// ---- graphs -----------------------------------------------------------------------------------------------

static Key key_of(const Attention *a, Pass pass) {
    uint64_t mask = (uint64_t)a->mask, backward = pass == BACKWARD, any_order = backward && a->atomics;
    return {a->B,
            a->Tq,
            a->Tk,
            a->NH,
            a->NKV,
            a->HS,
            a->q_token,
            a->kv_token,
            a->out_token,
            a->q_sequence,
            a->kv_sequence,
            a->out_sequence,
            mask,
            backward,
            any_order,
            bits_from_float(a->scale),
            a->dropout.threshold};
}

static fe::graph::Tensor_attributes tensor_of(TensorId id, std::vector<int64_t> shape,
                                              std::vector<int64_t> strides, fe::DataType_t type) {
    return fe::graph::Tensor_attributes().set_uid(id).set_dim(shape).set_stride(strides).set_data_type(type);
}

// Describes a tensor as (B, heads, T, HS) with arbitrary strides: cuDNN expects heads before tokens.
static fe::graph::Tensor_attributes heads_of(TensorId id, const Attention *a, size_t heads, size_t T,
                                             size_t token, size_t sequence) {
    return tensor_of(id, {(int64_t)a->B, (int64_t)heads, (int64_t)T, (int64_t)a->HS},
                     {(int64_t)sequence, (int64_t)a->HS, (int64_t)token, 1}, fe::DataType_t::BFLOAT16);
}
static fe::graph::Tensor_attributes like_q(TensorId id, const Attention *a) {
    return heads_of(id, a, a->NH, a->Tq, a->q_token, a->q_sequence);
}
static fe::graph::Tensor_attributes like_kv(TensorId id, const Attention *a) {
    return heads_of(id, a, a->NKV, a->Tk, a->kv_token, a->kv_sequence);
}
static fe::graph::Tensor_attributes like_out(TensorId id, const Attention *a) {
    return heads_of(id, a, a->NH, a->Tq, a->out_token, a->out_sequence);
}
static fe::graph::Tensor_attributes lse_of(const Attention *a) {
    int64_t B = (int64_t)a->B, NH = (int64_t)a->NH, T = (int64_t)a->Tq;
    return tensor_of(LSE, {B, NH, T, 1}, {NH * T, T, 1, 1}, fe::DataType_t::FLOAT);
}

// Gives id, shape, strides and type of `as` to an output, which its node created.
static void set_output(const Tensor &output, const fe::graph::Tensor_attributes &as) {
    output->set_output(true).set_uid(as.get_uid()).set_dim(as.get_dim()).set_stride(as.get_stride());
    output->set_data_type(as.get_data_type());
}

// Returns the options that both passes share. Seed and offset are host values, passed at each call.
template <class Options> static Options options_of(fe::graph::Graph *graph, const Attention *a) {
    Options options;
    options.set_attn_scale(a->scale);
    if (a->mask == MASK_CAUSAL)
        options.set_diagonal_alignment(fe::DiagonalAlignment_t::TOP_LEFT).set_diagonal_band_right_bound(0);
    if (a->dropout.threshold < 256) {
        auto number = [&](TensorId id) {
            return graph->tensor(
                tensor_of(id, {1, 1, 1, 1}, {1, 1, 1, 1}, fe::DataType_t::INT64).set_is_pass_by_value(true));
        };
        options.set_dropout(1.0f - (float)a->dropout.threshold / 256.0f, number(SEED), number(OFFSET));
    }
    return options;
}

static void describe_forward(fe::graph::Graph *graph, const Attention *a) {
    auto options = options_of<fe::graph::SDPA_attributes>(graph, a).set_generate_stats(true);
    Tensor q = graph->tensor(like_q(Q, a)), k = graph->tensor(like_kv(K, a)),
           v = graph->tensor(like_kv(V, a));
    std::array<Tensor, 2> outputs = graph->sdpa(q, k, v, options);
    set_output(outputs[0], like_out(OUT, a));
    set_output(outputs[1], lse_of(a));
}

static void describe_backward(fe::graph::Graph *graph, const Attention *a, bool deterministic) {
    auto options = options_of<fe::graph::SDPA_backward_attributes>(graph, a);
    options.set_deterministic_algorithm(deterministic);
    Tensor q = graph->tensor(like_q(Q, a)), k = graph->tensor(like_kv(K, a)),
           v = graph->tensor(like_kv(V, a));
    Tensor out = graph->tensor(like_out(OUT, a)), dout = graph->tensor(like_out(DOUT, a));
    Tensor lse = graph->tensor(lse_of(a));
    std::array<Tensor, 3> outputs = graph->sdpa_backward(q, k, v, out, dout, lse, options);
    set_output(outputs[0], like_q(DQ, a));
    set_output(outputs[1], like_kv(DK, a));
    set_output(outputs[2], like_kv(DV, a));
}

static std::unique_ptr<fe::graph::Graph> describe(const Attention *a, Pass pass, bool deterministic) {
    std::unique_ptr<fe::graph::Graph> graph(new fe::graph::Graph());
    graph->set_io_data_type(fe::DataType_t::BFLOAT16);
    graph->set_intermediate_data_type(fe::DataType_t::FLOAT).set_compute_data_type(fe::DataType_t::FLOAT);
    if (pass == FORWARD)
        describe_forward(graph.get(), a);
    else
        describe_backward(graph.get(), a, deterministic);
    return graph;
}

// Lets cuDNN choose kernels by its heuristics and compile them.
static fe::error_t compile(fe::graph::Graph *graph, cudnnHandle_t handle) {
    fe::error_t error = graph->validate();
    if (error.is_good()) error = graph->build_operation_graph(handle);
    if (error.is_good()) error = graph->create_execution_plans({fe::HeurMode_t::A});
    if (error.is_good()) error = graph->check_support();
    if (error.is_good()) error = graph->build_plans();
    return error;
}

// ---- plans ------------------------------------------------------------------------------------------------

static std::vector<Plan> plans;

static std::string plan_build(Plan *plan, const Attention *a, Pass pass, bool deterministic) {
    std::string message;
    cudnnHandle_t handle = library(&message);
    if (handle == NULL) return message;
    return message_of([&] {
        plan->graph = describe(a, pass, deterministic);
        fe::error_t error = compile(plan->graph.get(), handle);
        int64_t workspace = 0;
        if (error.is_good()) error = plan->graph->get_workspace_size(workspace);
        plan->workspace = (size_t)workspace;
        return error;
    });
}

// Returns the plan for this pass, which is built if it is new, or NULL with a message if cuDNN does not support it. The
// pointer is valid until the next call. If cuDNN has no deterministic backward pass, a nondeterministic one is used,
// and a note is printed once.
static const Plan *plan_find(const Attention *a, Pass pass, std::string *message) {
    static bool noted = false;
    Key key = key_of(a, pass);
    for (const Plan &plan : plans)
        if (plan.key == key) return &plan;
    Plan plan = {key, nullptr, 0};
    bool deterministic = pass == BACKWARD && !a->atomics;
    *message = plan_build(&plan, a, pass, deterministic);
    if (!message->empty() && deterministic) {
        std::string reason = *message;
        *message = plan_build(&plan, a, pass, false);
        if (message->empty() && !noted)
            fprintf(stderr, "note: cuDNN's backward pass is not reproducible bit for bit here: %s\n",
                    reason.c_str());
        noted = noted || message->empty();
    }
    if (!message->empty()) return NULL;
    plans.push_back(std::move(plan));
    return &plans.back();
}

static const Plan *plan_of(const Attention *a, Pass pass) {
    std::string message;
    const Plan *plan = plan_find(a, pass, &message);
    if (plan == NULL)
        fail(pass == FORWARD ? "cannot build the forward pass" : "cannot build the backward pass", message);
    return plan;
}

// Returns at least `bytes` of device memory as workspace for a pass; its contents are not preserved. Its size is known
// only to cuDNN on the actual GPU, so --plan does not count it.
static void *workspace(size_t bytes) {
    static void *memory = NULL;
    static size_t size = 0;
    if (bytes <= size) return memory;
    device_free(memory); // waits for kernels that still use it
    memory = device_alloc(size = bytes);
    if (memory == NULL)
        fail("cannot allocate its workspace",
             "the GPU does not have " + std::to_string(bytes) + " bytes left");
    return memory;
}

// Executes a plan. `tensors` holds all tensors except the seed and offset of dropout. The seed is 64 random bits, so
// that layers and steps use unrelated random streams; the offset is a position within a stream, and always 0.
static void plan_run(const Plan *plan, std::unordered_map<int64_t, void *> tensors, const Attention *a,
                     Stream stream) {
    Philox random = philox(a->dropout.key, a->dropout.first_sequence, 0, 0, a->dropout.step);
    int64_t seed = (int64_t)((uint64_t)random.v[1] << 32 | random.v[0]), offset = 0;
    if (a->dropout.threshold < 256) {
        tensors[SEED] = &seed;
        tensors[OFFSET] = &offset;
    }
    std::string message;
    cudnnHandle_t handle = library(&message);
    if (handle == NULL) fail("cannot create a handle", message);
    cudnnStatus_t status = cudnnSetStream(handle, stream);
    if (status != CUDNN_STATUS_SUCCESS) fail("cannot set the stream", cudnnGetErrorString(status));
    message = message_of([&] { return plan->graph->execute(handle, tensors, workspace(plan->workspace)); });
    if (!message.empty()) fail("a pass failed", message);
}

// ---- the interface ----------------------------------------------------------------------------------------

// Returns NULL if cuDNN's attention supports the current GPU, else a sentence that says why not.
static const char *refusal_of_device(void) {
    int device = 0, major = 0;
    if (cudaGetDevice(&device) != cudaSuccess ||
        cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess) {
        (void)cudaGetLastError();
        return "cuDNN's attention needs an NVIDIA GPU, but none was found";
    }
    if (major < 8) return "cuDNN's attention needs a GPU of compute capability 8.0 or later";
    if (cudnnGetVersion() < 90000) return "cuDNN's attention needs cuDNN 9 or later";
    return NULL;
}

const char *attention_cudnn_refusal(const Attention *a) {
    static std::string sentence;
    if (!DEVICE_IS_BF16)
        return "cuDNN's attention computes in bf16, but this build is for fp32: build with make "
               "PRECISION=bf16";
    if (a->HS % 8 != 0 || a->HS > 256)
        return "cuDNN's attention needs a head size that is a multiple of 8 and at most 256";
    if (a->mask == MASK_CAUSAL && a->Tq != a->Tk)
        return "cuDNN's causal attention needs as many queries as keys";
    const char *refusal = refusal_of_device();
    if (refusal != NULL) return refusal;
    for (Pass pass : {FORWARD, BACKWARD})
        if (plan_find(a, pass, &sentence) == NULL) {
            sentence = "cuDNN does not support attention of this shape on this GPU: " + sentence;
            return sentence.c_str();
        }
    return NULL;
}

// Removes const, which the map of tensors does not allow.
static void *pointer(const void *tensor) {
    return (void *)(uintptr_t)tensor;
}

void attention_cudnn_forward(floatX *out, float *lse, const floatX *q, const floatX *k, const floatX *v,
                             const Attention *a, Stream stream) {
    plan_run(plan_of(a, FORWARD), {{Q, pointer(q)}, {K, pointer(k)}, {V, pointer(v)}, {OUT, out}, {LSE, lse}},
             a, stream);
}

void attention_cudnn_backward(floatX *dq, floatX *dk, floatX *dv, const floatX *dout, const floatX *q,
                              const floatX *k, const floatX *v, const floatX *out, const float *lse,
                              const Attention *a, Stream stream) {
    plan_run(plan_of(a, BACKWARD),
             {{Q, pointer(q)},
              {K, pointer(k)},
              {V, pointer(v)},
              {OUT, pointer(out)},
              {DOUT, pointer(dout)},
              {LSE, pointer(lse)},
              {DQ, dq},
              {DK, dk},
              {DV, dv}},
             a, stream);
}
