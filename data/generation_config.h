// The tokens that end a generated text, as a model's folder names them.
#ifndef DATA_GENERATION_CONFIG_H
#define DATA_GENERATION_CONFIG_H

#include "files.h"
#include "tokenizer.h"

#ifdef __cplusplus
extern "C" {
#endif

// Reads eos_token_id, a number or a list of numbers, of generation_config.json in the folder; if there is none, of
// config.json. `stops` (all zeros before) stays empty if neither names one. Returns -1 with a sentence if a file is
// damaged or an id is not a whole number.
int stop_tokens_read(const char *folder, TokenList *stops, Error *error);
// The text of a generation_config.json with these tokens. Caller frees.
char *stop_tokens_text(const TokenList *stops);

#ifdef __cplusplus
}
#endif
#endif
