// The description of a GPT, and its reading from and writing to config.json, the file in which Hugging Face's folders have it.
//
// Each checkpoint format is a row of a table (gpt_config.c): its model_type, the keys that it reads, those that must have the
// value that this trainer computes with, how the description follows from them, and how it is written. A key that is in none of a
// format's lists, and is not known to be without influence on the model's result, may stand for a model that this trainer
// would compute wrongly: it is refused by name, unless the user says to ignore it.
#ifndef DATA_MODEL_GPT_CONFIG_H
#define DATA_MODEL_GPT_CONFIG_H

#include <stdint.h>
#include "layers/base/files.h"
#include "layers/kinds.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum { FORMAT_GPT2, NUM_MODEL_FORMATS } ModelFormat;

typedef struct {
    ModelFormat format; // of the checkpoints
    NormKind norm;
    ActivationKind activation;
    PositionKind positions;
    int64_t num_layers;
    int64_t channels;                           // width of the residual stream
    int64_t num_heads, num_kv_heads, head_size; // query heads, heads of keys and values, channels of each
    int64_t hidden;                             // width of the MLP
    int64_t max_sequence_length, vocab_size;
    int64_t begin_of_text, end_of_text; // ids of tokens; -1: none
} GPTConfig;

// A shape by name; what it leaves out follows as in GPT-2.
typedef struct {
    int64_t num_layers, num_heads, channels;
} GPTPreset;
#define GPT_PRESET_NAMES "free|gpt2-124M|gpt2-350M|gpt2-774M|gpt2-1558M"
extern const GPTPreset GPT_PRESETS[]; // in the order of the names; "free" has zeros

// A GPT-2 without tokens of its own: one head of keys and values for each query head, heads that divide the channels, an MLP of
// four times their width.
GPTConfig gpt_config_gpt2(int64_t max_sequence_length, int64_t vocab_size, int64_t num_layers,
                          int64_t num_heads, int64_t channels);
// Writes the name of a tensor in the format's checkpoints, `name` being that within its layer; layer -1: it belongs to none.
void gpt_tensor_name(char *text, size_t size, ModelFormat format, int layer, const char *name);

// Checks the bounds, and that the heads divide the channels into sizes that are multiples of 8 and at most `largest_head`.
// Returns 0, or -1 with a sentence.
int gpt_config_check(const GPTConfig *config, int64_t largest_head, Error *error);
// Reads folder/config.json. `ignored`: names of keys, separated by commas, whose values do not matter (--ignore-key); NULL:
// none. Returns 0, or -1 with a sentence.
int gpt_config_read(const char *folder, const char *ignored, GPTConfig *config, Error *error);
// The text of a config.json. The caller frees it.
char *gpt_config_text(const GPTConfig *config);

#ifdef __cplusplus
}
#endif
#endif
