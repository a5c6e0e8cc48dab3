// The tokens that end a generated text, as stated in a model's folder.
#ifndef DATA_MODEL_GENERATION_CONFIG_H
#define DATA_MODEL_GENERATION_CONFIG_H

#include "layers/base/files.h"
#include "data/tokenizer/tokenizer.h"

#ifdef __cplusplus
extern "C" {
#endif

// Reads eos_token_id, a number or a list of numbers, from generation_config.json in the folder or, if there is none,
// from config.json. `stops` (initially all zeros) stays empty if neither has one. Returns -1 with a sentence if a
// file is damaged or an id is not a whole number.
int stop_tokens_read(const char *folder, TokenList *stops, Error *error);
// Returns the text of a generation_config.json with these tokens. The caller frees it.
char *stop_tokens_text(const TokenList *stops);

#ifdef __cplusplus
}
#endif
#endif
