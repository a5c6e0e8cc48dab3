// The shape of a GPT-2, and config.json, the file in which Hugging Face's folders have it.
//
// Every key of a config.json is in one of three lists (gpt_config.c): read into GPTConfig; required to have the value that
// this trainer computes with; or without influence on the model's result. A key that is in none of them, or has another
// value than is required, may stand for a model that this trainer would compute wrongly: it is refused by name, unless the
// user says to ignore it.
#ifndef DATA_GPT_CONFIG_H
#define DATA_GPT_CONFIG_H

#include <stdint.h>
#include "files.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
    int64_t max_sequence_length; // n_positions
    int64_t vocab_size;
    int64_t num_layers, num_heads, channels;
    int64_t begin_of_text, end_of_text; // bos_token_id, eos_token_id (one number); -1: none
} GPTConfig;

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
