// See gpt_config.h.
#define _GNU_SOURCE
#include "gpt_config.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include "data/json/json.h"
#include "data/json/json_keys.h"

#define COUNT(table) (sizeof(table) / sizeof((table)[0]))

// ---- the formats ------------------------------------------------------------------------------------------

// A key that changes the model's result, and the values, as JSON, that this trainer computes with. If the key is
// missing, transformers uses the first value.
typedef struct {
    const char *name, *values[3];
} RequiredKey;

typedef struct {
    const char *model_type;      // identifies the format
    const char *architecture;    // name of the class in transformers
    const char *layer_name;      // printf format of the name of a layer's tensor
    const char *const *used;     // keys that are read, here or in generation_config.c; ends with NULL
    const RequiredKey *required; // ends with an element without a name
    int (*read)(const cJSON *json, const char *path, GPTConfig *config, Error *error);
    void (*write)(const GPTConfig *config, cJSON *json);
} Format;

static int read_gpt2(const cJSON *json, const char *path, GPTConfig *config, Error *error);
static void write_gpt2(const GPTConfig *config, cJSON *json);

static const char *const gpt2_used[] = {"model_type", "n_positions",  "vocab_size",   "n_layer", "n_head",
                                        "n_embd",     "eos_token_id", "bos_token_id", "n_inner", NULL};

static const RequiredKey gpt2_required[] = {
    {"activation_function", {"\"gelu_new\"", "\"gelu_pytorch_tanh\""}},
    {"layer_norm_epsilon", {"1e-05"}},
    {"scale_attn_weights", {"true"}},
    {"scale_attn_by_inverse_layer_idx", {"false"}},
    {"tie_word_embeddings", {"true"}},
    {"add_cross_attention", {"false"}},
    {"is_encoder_decoder", {"false"}},
    {"pruned_heads", {"{}", "null"}},
    {"quantization_config", {"null"}},
    {"auto_map", {"null"}}, // custom code
    {NULL, {NULL}},
};

static const Format FORMATS[NUM_MODEL_FORMATS] = {
    {"gpt2", "GPT2LMHeadModel", "h.%d.%s", gpt2_used, gpt2_required, read_gpt2, write_gpt2},
};

// Keys without influence on logits: about training, how computation is done, text generation (which has options of its
// own here), heads other than the language model's, and metadata.
static const char *const irrelevant_keys[] = {
    // training
    "attn_pdrop", "embd_pdrop", "resid_pdrop", "initializer_range", "gradient_checkpointing", "use_bfloat16",
    "tf_legacy_loss",
    // computation
    "reorder_and_upcast_attn", "use_cache", "torch_dtype", "dtype", "torchscript", "chunk_size_feed_forward",
    "_attn_implementation", "_attn_implementation_autoset", "attn_implementation", "_flash_attn_2_enabled",
    "n_ctx", "output_attentions", "output_hidden_states", "return_dict", "is_decoder",
    "cross_attention_hidden_size", "tie_encoder_decoder",
    // generating text
    "pad_token_id", "sep_token_id", "decoder_start_token_id", "prefix", "task_specific_params", "temperature",
    "top_k", "top_p", "typical_p", "do_sample", "num_beams", "num_beam_groups", "num_return_sequences",
    "diversity_penalty", "length_penalty", "repetition_penalty", "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size", "max_length", "min_length", "max_new_tokens", "early_stopping",
    "bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id",
    "exponential_decay_length_penalty", "remove_invalid_values", "output_scores", "return_dict_in_generate",
    // other heads
    "summary_type", "summary_use_proj", "summary_activation", "summary_first_dropout",
    "summary_proj_to_labels", "id2label", "label2id", "num_labels", "problem_type", "finetuning_task",
    "classifier_dropout",
    // metadata
    "architectures", "transformers_version", "_name_or_path", "name_or_path", "tokenizer_class",
    "_commit_hash"};

static int is_in(const char *const *names, size_t count, const char *name) {
    for (size_t i = 0; i < count; i++)
        if (strcmp(names[i], name) == 0) return 1;
    return 0;
}

static int is_used(const Format *format, const char *name) {
    for (const char *const *used = format->used; *used != NULL; used++)
        if (strcmp(*used, name) == 0) return 1;
    return 0;
}

// Returns the format's requirement for a key, or NULL.
static const RequiredKey *find_required(const Format *format, const char *name) {
    for (const RequiredKey *key = format->required; key->name != NULL; key++)
        if (strcmp(key->name, name) == 0) return key;
    return NULL;
}

static int has_value(const cJSON *item, const char *wanted) {
    cJSON *value = cJSON_Parse(wanted);
    const int same = cJSON_Compare(item, value, 1);
    cJSON_Delete(value);
    return same;
}

static int refuse_value(const char *path, const cJSON *item, const char *wanted, Error *error) {
    char *found = cJSON_PrintUnformatted(item);
    fail(error,
         "'%s': %s is %.60s, but this trainer computes with %s; to load the model all the same, give "
         "--ignore-key %s",
         path, item->string, found, wanted, item->string);
    cJSON_free(found);
    return -1;
}

static int check_required(const char *path, const cJSON *item, const RequiredKey *key, Error *error) {
    for (size_t i = 0; i < COUNT(key->values) && key->values[i] != NULL; i++)
        if (has_value(item, key->values[i])) return 0;
    return refuse_value(path, item, key->values[0], error);
}

// Returns the format by model_type, which is checked first because other kinds of model have other keys; NULL with a
// sentence on error.
static const Format *find_format(const char *path, const cJSON *json, const char *ignored, Error *error) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(json, "model_type");
    for (int i = 0; i < NUM_MODEL_FORMATS && cJSON_IsString(item); i++)
        if (strcmp(item->valuestring, FORMATS[i].model_type) == 0) return &FORMATS[i];
    if (key_is_ignored(ignored, "model_type")) return &FORMATS[FORMAT_GPT2];
    if (item != NULL)
        refuse_value(path, item, "\"gpt2\"", error);
    else
        fail(error, "'%s': model_type is missing, but \"gpt2\" was expected", path);
    return NULL;
}

static int check_keys(const Format *format, const char *path, const cJSON *json, const char *ignored,
                      Error *error) {
    const cJSON *item;
    cJSON_ArrayForEach(item, json) {
        const char *name = item->string;
        const RequiredKey *key = find_required(format, name);
        if (key_is_ignored(ignored, name)) continue;
        if (key != NULL) {
            if (check_required(path, item, key, error) != 0) return -1;
        } else if (!is_used(format, name) && !is_in(irrelevant_keys, COUNT(irrelevant_keys), name)) {
            return fail(error,
                        "'%s' has a key that this trainer does not know, %.60s, which may change the model; "
                        "if it does not, give --ignore-key %.60s",
                        path, name, name);
        }
    }
    return 0;
}

void gpt_tensor_name(char *text, size_t size, ModelFormat format, int layer, const char *name) {
    if (layer < 0)
        snprintf(text, size, "%s", name);
    else
        snprintf(text, size, FORMATS[format].layer_name, layer, name);
}

// ---- shapes -----------------------------------------------------------------------------------------------

const GPTPreset GPT_PRESETS[] = {{0, 0, 0}, {12, 12, 768}, {24, 16, 1024}, {36, 20, 1280}, {48, 25, 1600}};

GPTConfig gpt_config_gpt2(int64_t max_sequence_length, int64_t vocab_size, int64_t num_layers,
                          int64_t num_heads, int64_t channels) {
    GPTConfig config = {FORMAT_GPT2,
                        NORM_LAYERNORM,
                        ACTIVATION_GELU,
                        POSITIONS_LEARNED,
                        num_layers,
                        channels,
                        num_heads,
                        num_heads,
                        num_heads > 0 ? channels / num_heads : 0,
                        4 * channels,
                        max_sequence_length,
                        vocab_size,
                        -1,
                        -1};
    return config;
}

// ---- reading ----------------------------------------------------------------------------------------------

// Checks the width of the MLP; if it is missing or null, the width is the usual one.
static int check_inner(const char *path, const cJSON *json, int64_t channels, Error *error) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(json, "n_inner");
    int64_t inner;
    if (item == NULL || cJSON_IsNull(item)) return 0;
    if (json_integer(json, path, "n_inner", -1, &inner, error) != 0) return -1;
    if (inner == 4 * channels) return 0;
    return fail(error, "'%s': n_inner is %" PRId64 ", but this trainer supports only 4 n_embd = %" PRId64,
                path, inner, 4 * channels);
}

// Returns a token's id, or -1 if there is none or a list of them.
static int64_t read_token(const cJSON *json, const char *name) {
    const cJSON *item = json != NULL ? cJSON_GetObjectItemCaseSensitive(json, name) : NULL;
    const int known = cJSON_IsNumber(item) && item->valuedouble >= 0 && item->valuedouble < 1e9;
    return known ? (int64_t)item->valuedouble : -1;
}

static int read_gpt2(const cJSON *json, const char *path, GPTConfig *config, Error *error) {
    int64_t positions, vocab_size, layers, heads, channels;
    if (json_integer(json, path, "n_positions", -1, &positions, error) != 0 ||
        json_integer(json, path, "vocab_size", -1, &vocab_size, error) != 0 ||
        json_integer(json, path, "n_layer", -1, &layers, error) != 0 ||
        json_integer(json, path, "n_head", -1, &heads, error) != 0 ||
        json_integer(json, path, "n_embd", -1, &channels, error) != 0 ||
        check_inner(path, json, channels, error) != 0)
        return -1;
    *config = gpt_config_gpt2(positions, vocab_size, layers, heads, channels);
    return 0;
}

int gpt_config_read(const char *folder, const char *ignored, GPTConfig *config, Error *error) {
    char *path = format_text("%s/config.json", folder);
    cJSON *json = json_read(path, error);
    const Format *format = json != NULL ? find_format(path, json, ignored, error) : NULL;
    int result = format == NULL || check_keys(format, path, json, ignored, error) != 0 ||
                         format->read(json, path, config, error) != 0
                     ? -1
                     : 0;
    if (result == 0) config->begin_of_text = read_token(json, "bos_token_id");
    if (result == 0) config->end_of_text = read_token(json, "eos_token_id");
    cJSON_Delete(json);
    free(path);
    return result;
}

int gpt_config_check(const GPTConfig *c, int64_t largest_head, Error *error) {
    if (c->num_layers < 1 || c->num_heads < 1 || c->channels < 1 || c->max_sequence_length < 1 ||
        c->vocab_size < 1 || c->num_layers > 1000 || c->channels > 65536 ||
        c->max_sequence_length > 1000000 || c->vocab_size > 100000000)
        return fail(error,
                    "a model of %" PRId64 " layers, %" PRId64 " heads, %" PRId64 " channels, %" PRId64
                    " positions and %" PRId64 " tokens is out of bounds",
                    c->num_layers, c->num_heads, c->channels, c->max_sequence_length, c->vocab_size);
    if (c->num_heads * c->head_size != c->channels)
        return fail(error, "--num-heads %" PRId64 " does not divide --channels %" PRId64, c->num_heads,
                    c->channels);
    if (c->head_size % 8 != 0 || c->head_size > largest_head)
        return fail(error,
                    "the head size, --channels / --num-heads, is %" PRId64
                    ", but it must be a multiple of 8 and at most %" PRId64,
                    c->head_size, largest_head);
    return 0;
}

// ---- writing ----------------------------------------------------------------------------------------------

static void write_gpt2(const GPTConfig *config, cJSON *json) {
    cJSON_AddStringToObject(json, "activation_function", "gelu_new");
    cJSON_AddNumberToObject(json, "layer_norm_epsilon", 1e-5);
    cJSON_AddNumberToObject(json, "n_positions", (double)config->max_sequence_length);
    cJSON_AddNumberToObject(json, "n_ctx", (double)config->max_sequence_length);
    cJSON_AddNumberToObject(json, "vocab_size", (double)config->vocab_size);
    cJSON_AddNumberToObject(json, "n_layer", (double)config->num_layers);
    cJSON_AddNumberToObject(json, "n_head", (double)config->num_heads);
    cJSON_AddNumberToObject(json, "n_embd", (double)config->channels);
    cJSON_AddNumberToObject(json, "initializer_range", 0.02);
}

static void add_token(cJSON *json, const char *name, int64_t token) {
    if (token >= 0)
        cJSON_AddNumberToObject(json, name, (double)token);
    else
        cJSON_AddNullToObject(json, name);
}

char *gpt_config_text(const GPTConfig *config) {
    const Format *format = &FORMATS[config->format];
    cJSON *json = cJSON_CreateObject();
    cJSON_AddItemToObject(json, "architectures", cJSON_CreateStringArray(&format->architecture, 1));
    cJSON_AddStringToObject(json, "model_type", format->model_type);
    format->write(config, json);
    add_token(json, "bos_token_id", config->begin_of_text);
    add_token(json, "eos_token_id", config->end_of_text);
    cJSON_AddBoolToObject(json, "tie_word_embeddings", 1);
    cJSON_AddStringToObject(json, "torch_dtype", "float32");
    return json_text(json);
}
