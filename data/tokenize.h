// What the parts of the command `tokenize` share. Errors are as in files.h: -1 and a sentence.
#ifndef DATA_TOKENIZE_H
#define DATA_TOKENIZE_H

#include "files.h"
#include "tokenizer.h"

// Options of all commands; each command has its own of them.
typedef struct {
    const char *tokenizer, *input, *out, *separator, *end_of_text, *ignore_key, *field;
    int64_t vocab, shard_tokens, validation_every;
    double validation_fraction;
    int whole_files, overwrite;
    const char **words; // further input files
    int num_words;
} Settings;

int require_option(const char *value, const char *name, Error *error); // is it not empty?
// Calls `add` for --input and for every word.
int add_inputs(const Settings *settings, int (*add)(void *, const char *, Error *), void *target,
               Error *error);
// Creates the folder of a file that is to be written where it is missing.
int create_folder_of(const char *out, Error *error);
Tokenizer *open_tokenizer(const Settings *settings, Error *error); // NULL on error
// What stands between documents in text: what was asked for, else the end-of-text token; NULL if there is none.
int choose_separator(const Settings *settings, const Tokenizer *tokenizer, const char **separator,
                     Error *error);

// The commands of tokenize_shards.c.
int decode_shards(const Settings *settings, Error *error);
int inspect_shards(const Settings *settings, Error *error);

#endif
