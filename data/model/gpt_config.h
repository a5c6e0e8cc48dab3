// The description of a GPT, and how it is read from and written to config.json, as in Hugging Face's folders.
//
// Each checkpoint format is a row of a table (gpt_config.c): its model_type, the keys that are read, the keys that must
// have the value that this trainer computes with, and the functions that read and write the description. A key that is
// in none of a format's lists, and is not known to have no influence on the model's result, may describe a model that
// this trainer would compute wrongly. It is refused by name, unless the user asks to ignore it.
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
    int64_t num_heads, num_kv_heads, head_size; // query heads; key/value heads; channels per head
    int64_t hidden;                             // width of the MLP
    int64_t max_sequence_length, vocab_size;
    int64_t begin_of_text, end_of_text; // token ids; -1: none
} GPTConfig;

// A shape that has a name; everything else is as in GPT-2.
typedef struct {
    int64_t num_layers, num_heads, channels;
} GPTPreset;
#define GPT_PRESET_NAMES "free|gpt2-124M|gpt2-350M|gpt2-774M|gpt2-1558M"
extern const GPTPreset GPT_PRESETS[]; // in the order of the names; "free" has zeros

// Returns the description of a GPT-2 whose special tokens are unset: each query head has its own keys and values, the
// heads divide the channels among them, and the MLP is four times as wide as the residual stream.
GPTConfig gpt_config_gpt2(int64_t max_sequence_length, int64_t vocab_size, int64_t num_layers,
                          int64_t num_heads, int64_t channels);
// Writes to `text` a tensor's name in the format's checkpoints. `name`: its name within the layer; layer -1: no layer.
void gpt_tensor_name(char *text, size_t size, ModelFormat format, int layer, const char *name);

// Checks the bounds, and that the heads divide the channels into heads of a size that is a multiple of 8 and at most
// `largest_head`. Returns 0, or -1 with a sentence.
int gpt_config_check(const GPTConfig *config, int64_t largest_head, Error *error);
// Reads folder/config.json. `ignored`: names of keys to ignore, separated by commas (--ignore-key), or NULL. Returns 0,
// or -1 with a sentence.
int gpt_config_read(const char *folder, const char *ignored, GPTConfig *config, Error *error);
// Returns the contents of a config.json. The caller frees them.
char *gpt_config_text(const GPTConfig *config);

#ifdef __cplusplus
}
#endif
#endif
