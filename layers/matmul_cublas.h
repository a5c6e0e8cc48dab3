// Matrix products by cuBLASLt (matmul_cublas.cu, in builds with HAVE_CUBLAS), behind an interface without C++
// and without the library's types; and the list of chosen algorithms, which is stored on disk so that a resumed run
// uses the same ones and repeats bit for bit.
//
// The list is text. The first line names the library, precision and GPU it is for. Then there is one line per shape:
// layout, M, N, K, type of the output, bias or -, mode, and the eight words in which the library describes an
// algorithm ("can be trivially serialized and later restored for use with the same version of cuBLAS",
// cublasLt.h). The last line is a checksum:
//
//     cuBLASLt 130100, bf16, NVIDIA H200, sm_90, 132 multiprocessors
//     NN 16384 2304 768 floatX bias overwrite 0000004200000014 ...
//     crc32c 1a2b3c4d
#ifndef LAYERS_MATMUL_CUBLAS_H
#define LAYERS_MATMUL_CUBLAS_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include "common.h"
#include "layers/base/files.h"
#include "matmul_cpu.h"

// Bytes of workspace for cuBLASLt; NVIDIA's recommendation for Hopper.
enum { MATMUL_CUBLAS_WORKSPACE = 32 << 20 };

typedef enum { MATMUL_FLOATX, MATMUL_FLOAT } MatmulOutput;

// Everything that the choice of an algorithm depends on.
typedef struct {
    MatmulLayout layout;
    size_t M, N, K;
    MatmulOutput output;
    int has_bias;
    MatmulMode mode;
} MatmulShape;

// ---- the list of algorithms -------------------------------------------------------------------------------

enum { MATMUL_ALGORITHM_WORDS = 8 };

typedef struct {
    MatmulShape shape;
    uint64_t words[MATMUL_ALGORITHM_WORDS];
} MatmulAlgorithm;

typedef struct {
    char made_for[512]; // the first line: library, precision and GPU
    size_t count;
    MatmulAlgorithm *list;
} MatmulAlgorithms;

// Names in the list, in the order of the enums.
static const char *const matmul_layout_names[] = {"NT", "NN", "TN"};
static const char *const matmul_output_names[] = {"floatX", "float"};
static const char *const matmul_bias_names[] = {"-", "bias"};
static const char *const matmul_mode_names[] = {"overwrite", "accumulate"};

static inline int matmul_shapes_equal(const MatmulShape *a, const MatmulShape *b) {
    return a->layout == b->layout && a->M == b->M && a->N == b->N && a->K == b->K && a->output == b->output &&
           a->has_bias == b->has_bias && a->mode == b->mode;
}

static inline void matmul_algorithms_add(MatmulAlgorithms *a, const MatmulAlgorithm *algorithm) {
    a->list = (MatmulAlgorithm *)xrealloc(a->list, (a->count + 1) * sizeof(*a->list));
    a->list[a->count++] = *algorithm;
}

static inline void matmul_algorithms_free(MatmulAlgorithms *a) {
    free(a->list);
    a->list = NULL;
    a->count = 0;
}

// Returns the list as text, which the caller frees.
static inline char *matmul_algorithms_text(const MatmulAlgorithms *a) {
    enum { LINE = 256 };
    size_t capacity = (a->count + 1) * LINE + sizeof(a->made_for), length = 0;
    char *text = (char *)xmalloc(capacity);
    length += (size_t)snprintf(text, capacity, "%s\n", a->made_for);
    for (size_t i = 0; i < a->count; i++) {
        const MatmulShape *s = &a->list[i].shape;
        length += (size_t)snprintf(text + length, capacity - length, "%s %zu %zu %zu %s %s %s",
                                   matmul_layout_names[s->layout], s->M, s->N, s->K,
                                   matmul_output_names[s->output], matmul_bias_names[s->has_bias != 0],
                                   matmul_mode_names[s->mode]);
        for (int w = 0; w < MATMUL_ALGORITHM_WORDS; w++)
            length += (size_t)snprintf(text + length, capacity - length, " %016llx",
                                       (unsigned long long)a->list[i].words[w]);
        length += (size_t)snprintf(text + length, capacity - length, "\n");
    }
    snprintf(text + length, capacity - length, "crc32c %08x\n", (unsigned)crc32c(0, text, length));
    return text;
}

static inline int matmul_algorithms_write(const MatmulAlgorithms *a, const char *path, Error *error) {
    char *text = matmul_algorithms_text(a);
    int result = file_write(path, text, strlen(text), error);
    free(text);
    return result;
}

// Returns the index of `name` among `count` names, or -1.
static inline int matmul_name_index(const char *name, const char *const *names, int count) {
    for (int i = 0; i < count; i++)
        if (strcmp(name, names[i]) == 0) return i;
    return -1;
}

// Parses a line of the list. Returns 0, or -1 if the line is malformed.
static inline int matmul_algorithm_parse(const char *line, MatmulAlgorithm *algorithm) {
    char layout[4], output[8], bias[8], mode[12], numbers[3][24];
    int used = 0;
    if (sscanf(line, "%3s %20[0-9] %20[0-9] %20[0-9] %7s %7s %11s%n", layout, numbers[0], numbers[1],
               numbers[2], output, bias, mode, &used) != 7)
        return -1;
    int l = matmul_name_index(layout, matmul_layout_names, 3),
        o = matmul_name_index(output, matmul_output_names, 2),
        b = matmul_name_index(bias, matmul_bias_names, 2), m = matmul_name_index(mode, matmul_mode_names, 2);
    if (l < 0 || o < 0 || b < 0 || m < 0) return -1;
    MatmulShape shape = {(MatmulLayout)l,
                         (size_t)strtoull(numbers[0], NULL, 10),
                         (size_t)strtoull(numbers[1], NULL, 10),
                         (size_t)strtoull(numbers[2], NULL, 10),
                         (MatmulOutput)o,
                         b,
                         (MatmulMode)m};
    if (shape.M == 0 || shape.N == 0 || shape.K == 0) return -1;
    algorithm->shape = shape;
    line += used;
    for (int w = 0; w < MATMUL_ALGORITHM_WORDS; w++, line += 17) {
        if (line[0] != ' ' || strspn(line + 1, "0123456789abcdef") != 16) return -1;
        algorithm->words[w] = (uint64_t)strtoull(line + 1, NULL, 16);
    }
    return *line == '\n' ? 0 : -1;
}

// Parses the text of a list; it is followed by a NUL, which `size` does not include. Returns 0, or -1 if the text is
// damaged.
static inline int matmul_algorithms_parse(MatmulAlgorithms *a, const char *text, size_t size) {
    enum { CHECKSUM_LINE = 16 }; // bytes, including the line feed
    memset(a, 0, sizeof(*a));
    char checksum[CHECKSUM_LINE + 1];
    if (size <= CHECKSUM_LINE || text[size - CHECKSUM_LINE - 1] != '\n') return -1;
    const char *end = text + size - CHECKSUM_LINE;
    snprintf(checksum, sizeof(checksum), "crc32c %08x\n", (unsigned)crc32c(0, text, size - CHECKSUM_LINE));
    if (memcmp(end, checksum, CHECKSUM_LINE) != 0) return -1;
    size_t first = strcspn(text, "\n");
    if (first >= sizeof(a->made_for)) return -1;
    memcpy(a->made_for, text, first);
    for (const char *line = text + first + 1; line < end; line += strcspn(line, "\n") + 1) {
        MatmulAlgorithm algorithm;
        if (matmul_algorithm_parse(line, &algorithm) != 0) {
            matmul_algorithms_free(a);
            return -1;
        }
        matmul_algorithms_add(a, &algorithm);
    }
    return 0;
}

static inline int matmul_algorithms_read(MatmulAlgorithms *a, const char *path, Error *error) {
    char *text;
    size_t size;
    if (file_read(path, 16 << 20, &text, &size, error) != 0) return -1;
    int result = matmul_algorithms_parse(a, text, size);
    free(text);
    return result == 0 ? 0
                       : fail(error,
                              "'%s' is damaged: it is not a list of matmul algorithms as a run writes it; "
                              "remove the file to choose the algorithms again",
                              path);
}

// ---- the library; only where HAVE_CUBLAS is defined -------------------------------------------------------
#ifdef HAVE_CUBLAS
#ifdef __cplusplus
extern "C" {
#endif

typedef struct MatmulCublas MatmulCublas;

MatmulCublas *matmul_cublas_open(void);
void matmul_cublas_close(MatmulCublas *cublas);
// Sets the workspace: MATMUL_CUBLAS_WORKSPACE bytes of device memory, used by one product at a time.
void matmul_cublas_set_workspace(MatmulCublas *cublas, void *workspace);
// If `search`, the algorithm for each new shape is the one of the library's proposals that is measured to be fastest,
// instead of its first proposal. Measurements differ from run to run, so runs then repeat only with a list of
// algorithms that was saved and loaded.
void matmul_cublas_search(MatmulCublas *cublas, int search);

// C (M, N) = or += A B (+ bias (N)), in the layouts of matmul_cpu.h. Matrices are dense and aligned to 16 bytes, with
// rows of multiples of 8 elements. shape->output says whether C is floatX or float, shape->has_bias whether bias is
// not NULL.
void matmul_cublas_product(MatmulCublas *cublas, const MatmulShape *shape, void *C, const floatX *A,
                           const floatX *B, const floatX *bias, Stream stream);

// Load and save the list of algorithms. A list for another GPU, precision or version of the library is ignored, with a
// note on stderr. Both return 0 on success, -1 with a sentence on error.
int matmul_cublas_load(MatmulCublas *cublas, const char *path, Error *error);
int matmul_cublas_save(const MatmulCublas *cublas, const char *path, Error *error);

#ifdef __cplusplus
}
#endif
#endif
#endif
