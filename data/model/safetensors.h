// Tensors in Hugging Face's safetensors format: the length of the header (8 bytes, little-endian), the header (JSON:
// name -> dtype, shape, data_offsets), then the data. Written as F32; F32, F16 and BF16 are read.
// https://github.com/huggingface/safetensors#format
#ifndef DATA_MODEL_SAFETENSORS_H
#define DATA_MODEL_SAFETENSORS_H

#include <stddef.h>
#include "layers/base/files.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { TENSOR_NAME_SIZE = 96 };

// A tensor of one dimension (rows = 0) or two, contiguous fp32.
typedef struct {
    char name[TENSOR_NAME_SIZE];
    float *data;
    size_t rows, columns;
} NamedTensor;

// Writes all tensors to an open stream; ferror reports write errors.
void safetensors_write(FILE *stream, const NamedTensor *tensors, size_t count);

// Fills every tensor of the list from the files, each of which has some of them; names, shapes and sizes must agree.
// The prefix "transformer." of names in the files is ignored. Tensors of the files that are not in the list must be
// ones that Hugging Face's GPT-2 can do without (h.*.attn.bias, h.*.attn.masked_bias, lm_head.weight), else that is
// an error.
int safetensors_read(const char *const *paths, size_t num_paths, const NamedTensor *tensors, size_t count,
                     Error *error);

#ifdef __cplusplus
}
#endif
#endif
