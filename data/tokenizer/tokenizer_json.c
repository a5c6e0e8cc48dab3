// Reads tokenizers: Hugging Face's tokenizer.json, and GPT-2's encoder.json with vocab.bpe. tokenizer_write.c writes.
//
// The relevant parts of tokenizer.json: model.type "BPE"; model.vocab {"spelling": id}; model.merges ["left right"]
// or [["left", "right"]]; added_tokens [{"id", "content", flags}], whose content is plain text; post_processor, which
// defines what a prompt begins with. The rest must describe byte-level BPE with GPT-2's pattern. Every key is used,
// or cannot change ids (and is listed in a call of check_keys), or is refused unless the user ignores it.
// vocab.bpe: a line "#version: ...", then "left right" on each line. Spellings use the byte alphabet of tokenizer.h.
#include "data/json/json_keys.h"
#include "tokenizer.h"

#include "data/json/json.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

// ---- spellings --------------------------------------------------------------------------------------------

// Characters of the alphabet are below U+0200, so they have one or two bytes in UTF-8.
static int read_character(const char *s, size_t size, uint32_t *character) {
    const uint8_t first = (uint8_t)s[0];
    *character = first;
    if (first < 0x80) return 1;
    if (first < 0xC2 || first > 0xDF || size < 2 || ((uint8_t)s[1] & 0xC0) != 0x80) return 0;
    *character = (uint32_t)(first & 0x1F) << 6 | ((uint8_t)s[1] & 0x3F);
    return 2;
}

// Converts a spelling into bytes (never more than the spelling has). Returns -1 if it is not in the alphabet.
static int read_spelling(const char *spelling, size_t size, char *bytes, size_t *count) {
    *count = 0;
    for (size_t i = 0; i < size;) {
        uint32_t character;
        int length = read_character(spelling + i, size - i, &character);
        int byte = length > 0 ? character_to_byte(character) : -1;
        if (byte < 0) return -1;
        bytes[(*count)++] = (char)byte;
        i += (size_t)length;
    }
    return 0;
}

static int32_t find_spelling(const Tokenizer *t, const char *spelling, size_t size) {
    char *bytes = (char *)xmalloc(size + 1);
    size_t count;
    int32_t id = -1;
    if (read_spelling(spelling, size, bytes, &count) == 0 && count > 0) id = tokenizer_find(t, bytes, count);
    free(bytes);
    return id;
}

// ---- vocabulary -------------------------------------------------------------------------------------------

// Like fail(), with the path before a sentence that does not name the file.
static int fail_in(const char *path, const Error *reason, Error *error) {
    return fail(error, "%s: %.900s", path, reason->text);
}

static int read_id(const cJSON *item, int32_t limit) {
    if (!cJSON_IsNumber(item) || item->valuedouble < 0 || item->valuedouble >= limit) return -1;
    int32_t id = (int32_t)item->valuedouble;
    return id == item->valuedouble ? id : -1;
}

// Returns 1 if this is the content of the added token with this id.
static int is_added(const cJSON *added, const char *content, int32_t id) {
    for (const cJSON *item = added != NULL ? added->child : NULL; item != NULL; item = item->next) {
        const char *other = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(item, "content"));
        const cJSON *number = cJSON_GetObjectItemCaseSensitive(item, "id");
        if (other != NULL && cJSON_IsNumber(number) && number->valuedouble == id &&
            strcmp(other, content) == 0)
            return 1;
    }
    return 0;
}

static int read_vocabulary(Tokenizer *t, const char *path, const cJSON *vocabulary, const cJSON *added,
                           int32_t limit, Error *error) {
    for (const cJSON *item = vocabulary->child; item != NULL; item = item->next) {
        int32_t id = read_id(item, limit);
        if (id < 0)
            return fail(error, "%s: token '%.100s' has no valid id, expected a whole number from 0 to %d",
                        path, item->string, limit - 1);
        size_t size = strlen(item->string), count;
        char *bytes = (char *)xmalloc(size + 1);
        Error reason;
        int result = 0;
        if (read_spelling(item->string, size, bytes, &count) != 0) {
            // Its spelling is that of added_tokens; text never produces it in any other way.
            if (!is_added(added, item->string, id))
                result = fail(error, "%s: token %d, '%.100s', is not spelled in GPT-2's byte alphabet", path,
                              id, item->string);
        } else if (tokenizer_add_token(t, id, bytes, count, &reason) != 0) {
            result = fail_in(path, &reason, error);
        }
        free(bytes);
        if (result != 0) return -1;
    }
    return 0;
}

static int read_merge(Tokenizer *t, const char *path, const char *left, size_t left_size, const char *right,
                      size_t right_size, Error *error) {
    int32_t a = find_spelling(t, left, left_size), b = find_spelling(t, right, right_size);
    if (a < 0 || b < 0)
        return fail(error, "%s: merge %zu, '%.*s %.*s', is of something that is not a token", path,
                    tokenizer_num_merges(t) + 1, left_size < 100 ? (int)left_size : 100, left,
                    right_size < 100 ? (int)right_size : 100, right);
    Error reason;
    if (tokenizer_add_merge(t, a, b, &reason) == 0) return 0;
    return fail_in(path, &reason, error);
}

// Parses "left right", of `size` bytes.
static int read_merge_line(Tokenizer *t, const char *path, const char *line, size_t size, Error *error) {
    const char *space = (const char *)memchr(line, ' ', size);
    if (space == NULL)
        return fail(error, "%s: merge %zu is '%.*s', expected two tokens with a space between them", path,
                    tokenizer_num_merges(t) + 1, size < 100 ? (int)size : 100, line);
    size_t left_size = (size_t)(space - line);
    return read_merge(t, path, line, left_size, space + 1, size - left_size - 1, error);
}

static int read_merges(Tokenizer *t, const char *path, const cJSON *merges, Error *error) {
    for (const cJSON *item = merges->child; item != NULL; item = item->next) {
        int result;
        if (cJSON_IsString(item)) {
            result = read_merge_line(t, path, item->valuestring, strlen(item->valuestring), error);
        } else {
            const cJSON *first = cJSON_IsArray(item) ? item->child : NULL;
            const char *left = cJSON_GetStringValue(first);
            const char *right = first != NULL ? cJSON_GetStringValue(first->next) : NULL;
            if (left == NULL || right == NULL || first->next->next != NULL)
                return fail(error, "%s: merge %zu is neither \"left right\" nor [\"left\", \"right\"]", path,
                            tokenizer_num_merges(t) + 1);
            result = read_merge(t, path, left, strlen(left), right, strlen(right), error);
        }
        if (result != 0) return -1;
    }
    return 0;
}

// ---- tokenizer.json ---------------------------------------------------------------------------------------

// The file being read, for the functions below.
typedef struct {
    const char *path, *ignored; // --ignore-key
    Error *error;
} Reader;

// Reports a key with an unsupported value. Returns 0 if the user ignores the key, else -1.
static int fail_unsupported(const Reader *reader, const char *key, const char *sentence) {
    if (key_is_ignored(reader->ignored, key)) return 0;
    return fail(reader->error, "%s: %s; --ignore-key %s ignores it", reader->path, sentence, key);
}

// Checks that every key of an object is in `known`, a comma-separated list, or is ignored. `prefix` ("model.")
// precedes its name in messages.
static int check_keys(const Reader *reader, const cJSON *object, const char *prefix, const char *known) {
    for (const cJSON *item = object->child; item != NULL; item = item->next) {
        char name[200], sentence[300];
        snprintf(name, sizeof name, "%s%.100s", prefix, item->string);
        if (key_is_ignored(known, item->string)) continue;
        snprintf(sentence, sizeof sentence, "the key %s is not known to this program", name);
        if (fail_unsupported(reader, name, sentence) != 0) return -1;
    }
    return 0;
}

static int is_absent(const cJSON *object, const char *name) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, name);
    return item == NULL || cJSON_IsNull(item);
}

static const char *type_of(const cJSON *object) {
    const char *type = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(object, "type"));
    return type == NULL ? "none" : type;
}

// Uses Hugging Face's names. A byte-level tokenizer has a token for every byte, so unk_token, fuse_unk and
// byte_fallback have no effect.
static int check_model(const Reader *reader, const cJSON *model) {
    const cJSON *dropout = cJSON_GetObjectItemCaseSensitive(model, "dropout");
    if (!is_absent(model, "type") && strcmp(type_of(model), "BPE") != 0)
        return fail(reader->error, "%s: model.type is %.40s, not of type BPE, the only one that is supported",
                    reader->path, type_of(model));
    if (check_keys(reader, model, "model.",
                   "type,vocab,merges,dropout,continuing_subword_prefix,end_of_word_suffix,ignore_merges,"
                   "unk_token,fuse_unk,byte_fallback") != 0)
        return -1;
    if (cJSON_IsNumber(dropout) && dropout->valuedouble != 0 &&
        fail_unsupported(reader, "model.dropout", "model.dropout is not 0, which makes ids random") != 0)
        return -1;
    static const char *const affixes[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    for (int i = 0; i < 2; i++) {
        const char *text = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(model, affixes[i]));
        char key[64], sentence[100];
        snprintf(key, sizeof key, "model.%s", affixes[i]);
        snprintf(sentence, sizeof sentence, "%s is not empty", key);
        if (text != NULL && text[0] != 0 && fail_unsupported(reader, key, sentence) != 0) return -1;
    }
    if (cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(model, "ignore_merges")))
        return fail_unsupported(reader, "model.ignore_merges",
                                "model.ignore_merges is true, expected false as in GPT-2");
    return 0;
}

static int check_pre_tokenizer(const Reader *reader, const cJSON *part) {
    if (strcmp(type_of(part), "ByteLevel") != 0) {
        char sentence[200];
        snprintf(sentence, sizeof sentence, "the pre_tokenizer is %.40s, not ByteLevel with GPT-2's pattern",
                 type_of(part));
        return fail_unsupported(reader, "pre_tokenizer", sentence);
    }
    if (check_keys(reader, part, "pre_tokenizer.", "type,add_prefix_space,trim_offsets,use_regex") != 0)
        return -1;
    if (cJSON_IsFalse(cJSON_GetObjectItemCaseSensitive(part, "use_regex")) &&
        fail_unsupported(reader, "pre_tokenizer.use_regex",
                         "the pre_tokenizer's use_regex is false, so not GPT-2's pattern") != 0)
        return -1;
    if (!cJSON_IsFalse(cJSON_GetObjectItemCaseSensitive(part, "add_prefix_space")))
        return fail_unsupported(
            reader, "pre_tokenizer.add_prefix_space",
            "the pre_tokenizer has add_prefix_space, expected \"add_prefix_space\": false");
    return 0;
}

// Checks the settings with which the same vocabulary and merges would give other ids. Irrelevant for them: version,
// decoder (this program decodes to bytes).
static int check_settings(const Reader *reader, const cJSON *root) {
    const cJSON *model = cJSON_GetObjectItemCaseSensitive(root, "model");
    if (!cJSON_IsObject(model))
        return fail(reader->error, "%s is not a tokenizer.json: it has no \"model\"", reader->path);
    if (check_keys(reader, root, "",
                   "version,truncation,padding,added_tokens,normalizer,pre_tokenizer,post_processor,decoder,"
                   "model") != 0)
        return -1;
    static const char *const nulls[][2] = {{"truncation", "truncation shortens long texts, expected null"},
                                           {"padding", "padding adds tokens to short texts, expected null"},
                                           {"normalizer", "it has a normalizer, expected none as in GPT-2"}};
    for (int i = 0; i < 3; i++)
        if (!is_absent(root, nulls[i][0]) && fail_unsupported(reader, nulls[i][0], nulls[i][1]) != 0)
            return -1;
    if (!is_absent(root, "decoder") &&
        strcmp(type_of(cJSON_GetObjectItemCaseSensitive(root, "decoder")), "ByteLevel") != 0 &&
        fail_unsupported(reader, "decoder", "the decoder is not ByteLevel") != 0)
        return -1;
    return check_model(reader, model) == 0
               ? check_pre_tokenizer(reader, cJSON_GetObjectItemCaseSensitive(root, "pre_tokenizer"))
               : -1;
}

// Reads a flag of an added token. Returns -1 if it is neither true nor false, `fallback` if it is missing.
static int read_flag(const cJSON *item, const char *name, int fallback) {
    const cJSON *flag = cJSON_GetObjectItemCaseSensitive(item, name);
    return flag == NULL ? fallback : cJSON_IsBool(flag) ? cJSON_IsTrue(flag) : -1;
}

static int read_added_token(const Reader *reader, Tokenizer *t, const cJSON *item, int32_t limit) {
    const char *content = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(item, "content"));
    const int32_t id = read_id(cJSON_GetObjectItemCaseSensitive(item, "id"), limit);
    Error reason;
    if (id < 0 || content == NULL)
        return fail(reader->error, "%s: an entry of added_tokens lacks an id from 0 to %d or its content",
                    reader->path, limit - 1);
    if (check_keys(reader, item, "added_tokens.",
                   "id,content,single_word,lstrip,rstrip,normalized,special") != 0)
        return -1;
    const int special = read_flag(item, "special", 0), single_word = read_flag(item, "single_word", 0),
              lstrip = read_flag(item, "lstrip", 0), rstrip = read_flag(item, "rstrip", 0),
              normalized = read_flag(item, "normalized", !special);
    if ((special | single_word | lstrip | rstrip | normalized) < 0)
        return fail(reader->error, "%s: a flag of added token '%.100s' is neither true nor false",
                    reader->path, content);
    const int32_t ordinary = find_spelling(t, content, strlen(content));
    if (ordinary >= 0 && ordinary != id)
        return fail(reader->error, "%s: token '%.100s' has id %d in added_tokens and %d in the vocabulary",
                    reader->path, content, id, ordinary);
    const AddedToken token = {id,
                              content,
                              (uint8_t)single_word,
                              (uint8_t)lstrip,
                              (uint8_t)rstrip,
                              (uint8_t)normalized,
                              (uint8_t)special};
    return tokenizer_add_added(t, &token, &reason) == 0 ? 0 : fail_in(reader->path, &reason, reader->error);
}

// ---- the post-processor -----------------------------------------------------------------------------------

// Appends the ids of a special token to `start`.
static int read_special(const Reader *reader, const Tokenizer *t, const cJSON *tokens, const char *name,
                        TokenList *start) {
    const cJSON *entry = cJSON_GetObjectItemCaseSensitive(tokens, name == NULL ? "" : name);
    const cJSON *ids = cJSON_GetObjectItemCaseSensitive(entry, "ids");
    for (const cJSON *item = cJSON_IsArray(ids) ? ids->child : NULL; item != NULL; item = item->next) {
        const int32_t id = read_id(item, tokenizer_vocab_size(t));
        if (id < 0)
            return fail(reader->error, "%s: the post_processor has an id that is not a token", reader->path);
        start->ids = (int32_t *)xrealloc(start->ids, (start->count + 1) * sizeof(int32_t));
        start->ids[start->count++] = id;
    }
    if (!cJSON_IsArray(ids))
        return fail(reader->error, "%s: the post_processor has no ids for its special token '%.100s'",
                    reader->path, name == NULL ? "" : name);
    return 0;
}

// Reads what a single-text template adds before the text. What it adds after the text does not belong to a prompt,
// which is continued.
static int read_template(const Reader *reader, const Tokenizer *t, const cJSON *processor, TokenList *start) {
    const cJSON *pieces = cJSON_GetObjectItemCaseSensitive(processor, "single");
    const cJSON *tokens = cJSON_GetObjectItemCaseSensitive(processor, "special_tokens");
    if (check_keys(reader, processor, "post_processor.", "type,single,pair,special_tokens") != 0) return -1;
    TokenList before = {NULL, 0, 0};
    int result = 0, found = 0;
    for (const cJSON *piece = cJSON_IsArray(pieces) ? pieces->child : NULL;
         piece != NULL && result == 0 && !found; piece = piece->next) {
        const cJSON *special = cJSON_GetObjectItemCaseSensitive(piece, "SpecialToken");
        const cJSON *sequence = cJSON_GetObjectItemCaseSensitive(piece, "Sequence");
        const char *name = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(special, "id"));
        const char *text = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(sequence, "id"));
        found = text != NULL && strcmp(text, "A") == 0;
        if (!found) result = read_special(reader, t, tokens, name, &before);
    }
    if (result == 0 && !found)
        result = fail(reader->error, "%s: the post_processor's template \"single\" has no sequence A",
                      reader->path);
    if (result == 0) { // before what earlier processors add
        before.ids = (int32_t *)xrealloc(before.ids, (before.count + start->count + 1) * sizeof(int32_t));
        if (start->count > 0) memcpy(before.ids + before.count, start->ids, start->count * sizeof(int32_t));
        free(start->ids);
        before.count += start->count;
        *start = before;
    } else {
        free(before.ids);
    }
    return result;
}

static int read_processor(const Reader *reader, const Tokenizer *t, const cJSON *processor, int depth,
                          TokenList *start) {
    const char *type = type_of(processor);
    if (strcmp(type, "TemplateProcessing") == 0) return read_template(reader, t, processor, start);
    if (strcmp(type, "ByteLevel") == 0)
        return check_keys(reader, processor, "post_processor.",
                          "type,add_prefix_space,trim_offsets,use_regex");
    const cJSON *parts = cJSON_GetObjectItemCaseSensitive(processor, "processors");
    if (strcmp(type, "Sequence") != 0 || !cJSON_IsArray(parts) || depth > 3) {
        char sentence[200];
        snprintf(sentence, sizeof sentence,
                 "the post_processor is %.40s, expected ByteLevel, TemplateProcessing or a Sequence of those",
                 type);
        return fail_unsupported(reader, "post_processor", sentence);
    }
    if (check_keys(reader, processor, "post_processor.", "type,processors") != 0) return -1;
    int result = 0;
    for (const cJSON *part = parts->child; part != NULL && result == 0; part = part->next)
        result = read_processor(reader, t, part, depth + 1, start);
    return result;
}

static int read_post_processor(const Reader *reader, Tokenizer *t, const cJSON *root) {
    const cJSON *processor = cJSON_GetObjectItemCaseSensitive(root, "post_processor");
    if (is_absent(root, "post_processor")) return 0;
    TokenList start = {NULL, 0, 0};
    int result = read_processor(reader, t, processor, 0, &start);
    char *text = result == 0 ? cJSON_PrintUnformatted(processor) : NULL;
    if (result == 0 && text == NULL) die("out of memory");
    if (result == 0) tokenizer_set_prompt_start(t, start.ids, start.count, text);
    cJSON_free(text);
    free(start.ids);
    return result;
}

// ---- tokenizer.json as a whole ----------------------------------------------------------------------------

static int read_parts(const Reader *reader, Tokenizer *t, const cJSON *root, int32_t limit) {
    const cJSON *model = cJSON_GetObjectItemCaseSensitive(root, "model");
    const cJSON *added = cJSON_GetObjectItemCaseSensitive(root, "added_tokens");
    if (read_vocabulary(t, reader->path, cJSON_GetObjectItemCaseSensitive(model, "vocab"), added, limit,
                        reader->error) != 0)
        return -1;
    for (const cJSON *item = added != NULL ? added->child : NULL; item != NULL; item = item->next)
        if (read_added_token(reader, t, item, limit) != 0) return -1;
    if (read_merges(t, reader->path, cJSON_GetObjectItemCaseSensitive(model, "merges"), reader->error) != 0)
        return -1;
    return read_post_processor(reader, t, root);
}

// Chooses the end-of-text token: the user's choice, else that of tokenizer_config.json, else <|endoftext|>, else the
// separator.
static int choose_end_of_text(Tokenizer *t, const char *path, const char *configured,
                              const TokenizerChoices *choices, Error *error) {
    if (choices->end_of_text != NULL && tokenizer_set_end_of_text(t, choices->end_of_text) != 0)
        return fail(error, "%s has no token '%.100s', which --end-of-text names", path, choices->end_of_text);
    if (choices->end_of_text != NULL) return 0;
    if (configured != NULL && tokenizer_set_end_of_text(t, configured) != 0)
        return fail(
            error,
            "%s has no token '%.100s', though tokenizer_config.json beside it names it as eos_token; name "
            "another with --end-of-text",
            path, configured);
    if (configured == NULL && tokenizer_set_end_of_text(t, END_OF_TEXT) != 0 && choices->separator != NULL &&
        tokenizer_find_added(t, choices->separator) >= 0)
        tokenizer_set_end_of_text(t, choices->separator);
    return 0;
}

// Chooses end of text and builds the tables. Frees the tokenizer and returns NULL if anything has failed.
static Tokenizer *finish_tokenizer(Tokenizer *t, int result, const char *path, const char *configured,
                                   const TokenizerChoices *choices, Error *error) {
    Error reason;
    if (result == 0) result = choose_end_of_text(t, path, configured, choices, error);
    if (result == 0 && tokenizer_finish(t, &reason) != 0) result = fail_in(path, &reason, error);
    if (result == 0) return t;
    tokenizer_free(t);
    return NULL;
}

static Tokenizer *read_root(const cJSON *root, const char *path, const char *configured,
                            const TokenizerChoices *choices, Error *error) {
    const Reader reader = {path, choices->ignored, error};
    if (check_settings(&reader, root) != 0) return NULL;
    const cJSON *model = cJSON_GetObjectItemCaseSensitive(root, "model");
    const cJSON *vocabulary = cJSON_GetObjectItemCaseSensitive(model, "vocab");
    const cJSON *merges = cJSON_GetObjectItemCaseSensitive(model, "merges");
    const cJSON *added = cJSON_GetObjectItemCaseSensitive(root, "added_tokens");
    if (!cJSON_IsObject(vocabulary) || !cJSON_IsArray(merges)) {
        fail(error, "%s: expected an object model.vocab and an array model.merges", path);
        return NULL;
    }
    if (added != NULL && !cJSON_IsArray(added)) {
        fail(error, "%s: added_tokens is not an array", path);
        return NULL;
    }
    // Every id belongs to an entry, so ids are below the number of entries.
    int32_t limit = cJSON_GetArraySize(vocabulary) + (added != NULL ? cJSON_GetArraySize(added) : 0);
    Tokenizer *t = tokenizer_create(limit);
    return finish_tokenizer(t, read_parts(&reader, t, root, limit), path, configured, choices, error);
}

static Tokenizer *load_tokenizer_json(const char *path, const char *configured,
                                      const TokenizerChoices *choices, Error *error) {
    cJSON *root = json_read(path, error);
    if (root == NULL) return NULL;
    Tokenizer *t = read_root(root, path, configured, choices, error);
    cJSON_Delete(root);
    return t;
}

// Reads eos_token from tokenizer_config.json in this folder: a string, or an object with "content". *token is NULL if
// there is no such file or it has none; the caller frees it.
static int read_eos_token(const char *folder, char **token, Error *error) {
    char *path = format_text("%s/tokenizer_config.json", folder);
    *token = NULL;
    cJSON *root = NULL;
    int result = 0;
    if (file_exists(path) && (root = json_read(path, error)) == NULL) result = -1;
    const cJSON *eos = cJSON_GetObjectItemCaseSensitive(root, "eos_token");
    const char *content = cJSON_GetStringValue(
        cJSON_IsObject(eos) ? cJSON_GetObjectItemCaseSensitive(eos, "content") : eos);
    if (content != NULL)
        *token = xstrdup(content);
    else if (result == 0 && eos != NULL && !cJSON_IsNull(eos))
        result = fail(error, "%s: eos_token is neither a text nor an object with one as its content", path);
    cJSON_Delete(root);
    free(path);
    return result;
}

// ---- encoder.json and vocab.bpe ---------------------------------------------------------------------------

static int read_bpe_file(Tokenizer *t, const char *path, Error *error) {
    char *data;
    size_t size;
    if (file_read(path, MAX_TOKENIZER_BYTES, &data, &size, error) != 0) return -1;
    int result = 0;
    for (size_t start = 0; start < size && result == 0;) {
        const char *line = data + start, *end = (const char *)memchr(line, '\n', size - start);
        size_t length = end == NULL ? size - start : (size_t)(end - line);
        start += length + 1;
        if (length > 0 && line[length - 1] == '\r') length--;
        if (length == 0 || (length >= 8 && memcmp(line, "#version", 8) == 0)) continue;
        result = read_merge_line(t, path, line, length, error);
    }
    free(data);
    return result;
}

static Tokenizer *load_pair(const char *vocabulary_path, const char *merges_path, const char *configured,
                            const TokenizerChoices *choices, Error *error) {
    cJSON *vocabulary = json_read(vocabulary_path, error);
    if (vocabulary == NULL) return NULL;
    int32_t limit = cJSON_GetArraySize(vocabulary);
    Tokenizer *t = tokenizer_create(limit);
    int result = read_vocabulary(t, vocabulary_path, vocabulary, NULL, limit, error);
    cJSON_Delete(vocabulary);
    if (result == 0) result = read_bpe_file(t, merges_path, error);
    return finish_tokenizer(t, result, vocabulary_path, configured, choices, error);
}

static Tokenizer *load_folder(const char *folder, const char *configured, const TokenizerChoices *choices,
                              Error *error) {
    static const char *const names[][2] = {
        {"tokenizer.json", NULL}, {"encoder.json", "vocab.bpe"}, {"vocab.json", "merges.txt"}};
    for (int i = 0; i < 3; i++) {
        char *first = format_text("%s/%s", folder, names[i][0]);
        char *second = names[i][1] != NULL ? format_text("%s/%s", folder, names[i][1]) : NULL;
        int found = file_exists(first);
        Tokenizer *t = NULL;
        if (found && second == NULL) t = load_tokenizer_json(first, configured, choices, error);
        if (found && second != NULL) t = load_pair(first, second, configured, choices, error);
        free(first);
        free(second);
        if (found) return t;
    }
    fail(error,
         "folder %s has no tokenizer, expected tokenizer.json, encoder.json with vocab.bpe, or vocab.json "
         "with merges.txt",
         folder);
    return NULL;
}

Tokenizer *tokenizer_open(const char *path, const TokenizerChoices *choices, Error *error) {
    static const char name[] = "tokenizer.json";
    struct stat status;
    if (stat(path, &status) != 0) {
        fail_io(error, "cannot open tokenizer '%s'", path);
        return NULL;
    }
    const char *slash = strrchr(path, '/'), *file = slash == NULL ? path : slash + 1;
    char *folder = S_ISDIR(status.st_mode) ? xstrdup(path)
                   : slash == NULL         ? xstrdup(".")
                                           : format_text("%.*s/", (int)(slash - path), path);
    char *configured = NULL;
    Tokenizer *t = NULL;
    if ((!S_ISDIR(status.st_mode) && strcmp(file, name) != 0) ||
        read_eos_token(folder, &configured, error) == 0)
        t = S_ISDIR(status.st_mode) ? load_folder(path, configured, choices, error)
                                    : load_tokenizer_json(path, configured, choices, error);
    free(configured);
    free(folder);
    return t;
}

Tokenizer *tokenizer_load(const char *path, Error *error) {
    const TokenizerChoices none = {NULL, NULL, NULL};
    return tokenizer_open(path, &none, error);
}
