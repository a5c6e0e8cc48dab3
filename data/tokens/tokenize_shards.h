// Shared by the parts of the command `tokenize`. Errors are as in files.h: -1 with a sentence.
#ifndef DATA_TOKENS_TOKENIZE_SHARDS_H
#define DATA_TOKENS_TOKENIZE_SHARDS_H

#include "layers/base/files.h"
#include "data/tokenizer/tokenizer.h"

// Options of all commands; each command uses some of them.
typedef struct {
    const char *tokenizer, *input, *out, *separator, *end_of_text, *ignore_key, *field;
    int64_t vocab, shard_tokens, validation_every;
    double validation_fraction;
    int whole_files, overwrite;
    const char **words; // further input files
    int num_words;
} Settings;

// Returns 0 if the option's value is not empty, else -1 with a sentence.
int require_option(const char *value, const char *name, Error *error);
// Calls `add` for --input and for every word.
int add_inputs(const Settings *settings, int (*add)(void *, const char *, Error *), void *target,
               Error *error);
// Creates the folder of an output file if it is missing.
int create_folder_of(const char *out, Error *error);
Tokenizer *open_tokenizer(const Settings *settings, Error *error); // NULL on error
// Chooses the separator between documents in text: the requested one, else the text of the end-of-text token; NULL if
// there is none.
int choose_separator(const Settings *settings, const Tokenizer *tokenizer, const char **separator,
                     Error *error);

// The commands in tokenize_shards.c.
int decode_shards(const Settings *settings, Error *error);
int inspect_shards(const Settings *settings, Error *error);

#endif
