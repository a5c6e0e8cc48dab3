// Our attention launchers as a shared library with a C interface: dev/bench_attention.py calls them with PyTorch's
// tensors, in the process of PyTorch.
//
//     make attention_library          build/<...>/dev/libattention.so
//
// A case is described by a struct. library_refusal returns NULL if the case is supported, else a sentence that says why
// not; the other functions require that it is NULL. Pointers are in device memory, and work is queued on `stream`, a
// cudaStream_t that the CPU ignores.
//
// q, dq (B, T, NH, HS); k, v, dk, dv (B, T, NKV, HS); out, dout (B, T, NH, HS); lse (B, NH, T). All but lse have a
// stride between tokens, in elements of floatX; sequences are contiguous. saved and scratch are arrays of
// library_saved_size and library_scratch_size floats.
#include "attention/attention.cuh"

typedef struct {
    const char *variant; // a name that library_variant returns
    uint64_t B, T, NH, NKV, HS;
    uint64_t q_token, kv_token, out_token;
    double dropout; // probability
    uint64_t seed, step;
    uint64_t causal, atomics; // 0 or 1
} LibraryCase;

static const struct {
    const char *name;
    AttentionVariant variant;
} VARIANTS[] = {
    {"naive", ATTENTION_NAIVE},
    {"flash", ATTENTION_FLASH},
#ifdef HAVE_CUDNN
    {"cudnn", ATTENTION_CUDNN},
#endif
};
enum { NUM_VARIANTS = sizeof(VARIANTS) / sizeof(VARIANTS[0]) };

static AttentionVariant variant_of(const LibraryCase *c) {
    for (size_t i = 0; i < NUM_VARIANTS; i++)
        if (strcmp(c->variant, VARIANTS[i].name) == 0) return VARIANTS[i].variant;
    return ATTENTION_AUTO;
}

static Attention attention_of(const LibraryCase *c) {
    Attention a;
    memset(&a, 0, sizeof(a));
    a.B = c->B, a.Tq = a.Tk = c->T, a.NH = c->NH, a.NKV = c->NKV, a.HS = c->HS;
    a.q_token = c->q_token, a.kv_token = c->kv_token, a.out_token = c->out_token;
    a.q_sequence = c->T * c->q_token, a.kv_sequence = c->T * c->kv_token;
    a.out_sequence = c->T * c->out_token;
    a.mask = c->causal ? MASK_CAUSAL : MASK_NONE;
    a.scale = 1.0f / sqrtf((float)c->HS);
    a.dropout = dropout_make(dropout_threshold(c->dropout), c->seed, RANDOM_ATTENTION_DROPOUT, 0,
                             (uint32_t)c->step, 0);
    a.atomics = (int)c->atomics;
    return a;
}

#ifdef __cplusplus
extern "C" {
#endif

int library_is_gpu(void) {
    return DEVICE_IS_GPU;
}
int library_is_bf16(void) {
    return DEVICE_IS_BF16;
}
void library_describe(char *text, size_t size) {
    device_describe(text, size);
}
// Returns the name of a variant, or NULL if there are no more.
const char *library_variant(size_t index) {
    return index < NUM_VARIANTS ? VARIANTS[index].name : NULL;
}

const char *library_refusal(const LibraryCase *c) {
    if (variant_of(c) == ATTENTION_AUTO) return "the library has no variant of that name";
    if (c->HS < 8 || c->HS > ATTENTION_LARGEST_HEAD || c->HS % 8 != 0)
        return "the head size must be a multiple of 8, from 8 to 256";
    if (c->B < 1 || c->T < 1 || c->NH < 1 || c->NKV < 1 || c->NH % c->NKV != 0)
        return "sizes must be 1 or more, and the heads of K and V divide those of Q";
    if (dropout_threshold(c->dropout) == 0) return "dropout must be 0, or between 1/512 and 511/512";
    Attention a = attention_of(c);
    return attention_refusal(variant_of(c), &a);
}

size_t library_saved_size(const LibraryCase *c) {
    return attention_saved_size(variant_of(c), c->B, c->NH, c->T, c->T);
}
size_t library_scratch_size(const LibraryCase *c) {
    return attention_scratch_size(variant_of(c), DEVICE_IS_GPU, c->B, c->NH, c->T, c->HS);
}

void library_forward(const LibraryCase *c, floatX *out, float *lse, float *saved, const floatX *q,
                     const floatX *k, const floatX *v, void *stream) {
    Attention a = attention_of(c);
    attention_forward(variant_of(c), out, lse, saved, q, k, v, &a, (Stream)(intptr_t)stream);
}

void library_backward(const LibraryCase *c, floatX *dq, floatX *dk, floatX *dv, const floatX *dout,
                      const floatX *q, const floatX *k, const floatX *v, const floatX *out, const float *lse,
                      const float *saved, float *scratch, void *stream) {
    Attention a = attention_of(c);
    attention_backward(variant_of(c), dq, dk, dv, dout, q, k, v, out, lse, saved, scratch, &a,
                       (Stream)(intptr_t)stream);
}

#ifdef __cplusplus
}
#endif
