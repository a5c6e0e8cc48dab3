// The choice of the model's shape and of the tokenizer: from a folder, by a preset's name, or from the options.
#ifndef DATA_OPTIONS_MODEL_CHOICE_CUH
#define DATA_OPTIONS_MODEL_CHOICE_CUH

#include "data/model/generation_config.h"
#include "data/model/gpt_config.h"
#include "data/tokenizer/tokenizer.h"
#include "settings.cuh"

// Chooses the shape of the model: that of the folder that weights come from, or by name, or from the options.
// `largest_head`: largest possible number of channels per head. Returns 0, or -1 with a sentence.
static int choose_config(const Settings *o, const char *folder, const Tokenizer *tokenizer, GPTConfig *config,
                         int64_t largest_head, Error *error) {
    int64_t V = tokenizer ? tokenizer_vocab_size(tokenizer) : 0;
    if (folder != NULL) {
        if (gpt_config_read(folder, o->ignore_key, config, error) != 0) return -1;
    } else {
        const GPTPreset free_shape = {o->num_layers, o->num_heads, o->channels};
        const GPTPreset *shape = o->model ? &GPT_PRESETS[o->model] : &free_shape;
        const int64_t positions = o->max_sequence_length ? o->max_sequence_length
                                  : o->model             ? 1024
                                                         : o->sequence_length;
        *config = gpt_config_gpt2(positions, o->vocab_size ? o->vocab_size : V, shape->num_layers,
                                  shape->num_heads, shape->channels);
    }
    if (folder == NULL || config->end_of_text < 0)
        config->end_of_text = tokenizer ? tokenizer_end_of_text(tokenizer) : -1;
    if (folder == NULL) config->begin_of_text = config->end_of_text; // documents begin with it
    if (config->vocab_size < 1)
        return fail(error, "the size of the vocabulary is unknown: give --tokenizer or --vocab-size");
    if (V > config->vocab_size)
        return fail(error,
                    "the tokenizer%s%s has %" PRId64 " tokens, but the model%s%s has %" PRId64
                    ": a model's vocabulary may be larger than its tokenizer's, not smaller",
                    o->tokenizer ? " " : "", o->tokenizer ? o->tokenizer : "", V, folder ? " in " : "",
                    folder ? folder : "", config->vocab_size);
    return gpt_config_check(config, largest_head, error);
}

// Returns the path of the tokenizer in the folder of weights: a file, or, for a tokenizer of two files, the folder;
// NULL if there is none. The caller frees it.
static char *find_tokenizer(const char *folder) {
    static const char *const names[] = {"tokenizer.json", "encoder.json", "vocab.json"};
    for (int i = 0; folder != NULL && i < 3; i++) {
        char *path = format_text("%s/%s", folder, names[i]);
        const int found = file_exists(path);
        if (found && i == 0) return path;
        free(path);
        if (found) return xstrdup(folder);
    }
    return NULL;
}

// Opens the tokenizer of the checkpoint that is resumed, else the one that is given, else that of the folder of
// weights, if any, and reads the tokens that end a text. Returns 0, or -1 with a sentence.
static int choose_tokenizer(const Settings *o, const char *folder, Tokenizer **tokenizer, TokenList *stops,
                            Error *error) {
    char *in_folder = find_tokenizer(folder);
    const char *path = in_folder != NULL && (o->resume || o->tokenizer == NULL) ? in_folder : o->tokenizer;
    const TokenizerChoices choices = {o->end_of_text, NULL, o->ignore_key};
    int result = folder != NULL ? stop_tokens_read(folder, stops, error) : 0;
    if (result == 0 && path != NULL && (*tokenizer = tokenizer_open(path, &choices, error)) == NULL)
        result = -1;
    if (result == 0 && path != NULL && path == in_folder &&
        options_given(OPTIONS, NUM_OPTIONS, "tokenizer")) {
        Tokenizer *given = tokenizer_open(o->tokenizer, &choices, error);
        if (given == NULL)
            result = -1;
        else if (tokenizer_checksum(given) != tokenizer_checksum(*tokenizer))
            result = fail(error, "'%s' is not the tokenizer that this run was started with", o->tokenizer);
        if (given != NULL) tokenizer_free(given);
    }
    free(in_folder);
    return result;
}

// Refuses sizes that would overflow; those that are merely too large are refused when memory is allocated. `floats`:
// number of activations per token.
static int check_size(const Settings *o, double floats, Error *error) {
    const double all = (double)o->batch * (double)o->sequence_length * floats;
    if (all <= 1e16) return 0;
    return fail(error,
                "--batch %" PRId64 " --sequence-length %" PRId64 " would take %.3g GB: use smaller values",
                o->batch, o->sequence_length, all * 4e-9);
}

// Refuses a model whose weights alone do not fit, before anything is allocated for its parts. `sharing`: number of
// processes on this host.
static int check_parameters(const Settings *o, double parameters, int sharing, Error *error) {
    enum { MAX_PLANNED = 200 }; // billion
    size_t available, total;
    if (o->plan && parameters > MAX_PLANNED * 1e9)
        return fail(error, "a model of %.3g parameters is too large for --plan: expected at most %d billion",
                    parameters, MAX_PLANNED);
    if (o->plan) return 0;
    device_memory(&available, &total, sharing);
    if (parameters * sizeof(floatX) <= (double)available) return 0;
    return fail(error,
                "%.3g parameters take %.4g GB, but only %.4g GB are available, and not even --batch 1 fits: "
                "try a smaller model",
                parameters, parameters * sizeof(floatX) * 1e-9, (double)available * 1e-9);
}

#endif
