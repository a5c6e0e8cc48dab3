// Tokenizers on disk: Hugging Face's tokenizer.json (read and written), GPT-2's encoder.json with vocab.bpe
// (read).
//
// tokenizer.json, the parts that matter: model.type "BPE"; model.vocab {"spelling": id}; model.merges
// ["left right"] or [["left", "right"]]; added_tokens [{"id", "content"}], whose content is spelled as it is;
// the rest must describe byte-level BPE with GPT-2's pattern, for other settings would give other ids.
// vocab.bpe: a line "#version: ..." and then "left right" on each line.
// Spellings are in the byte alphabet of tokenizer.h.
#include "tokenizer.h"

#include "data/cjson.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum {
    LARGEST_FILE = 64 << 20 // bytes; parsed JSON takes up to some forty times as much memory
};

// ---- spellings --------------------------------------------------------------------------------------------

// Characters of the alphabet are below U+0200, so one or two bytes of UTF-8.
static int read_character(const char *s, size_t size, uint32_t *character) {
    const uint8_t first = (uint8_t)s[0];
    *character = first;
    if (first < 0x80) return 1;
    if (first < 0xC2 || first > 0xDF || size < 2 || ((uint8_t)s[1] & 0xC0) != 0x80) return 0;
    *character = (uint32_t)(first & 0x1F) << 6 | ((uint8_t)s[1] & 0x3F);
    return 2;
}

// Turns a spelling into bytes (never more of them than of the spelling); -1 if it is not in the alphabet.
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

// fail() with the file in front of a sentence that does not name it.
static int fail_in(const char *path, const Error *reason, Error *error) {
    return fail(error, "%s: %.900s", path, reason->text);
}

static int read_id(const cJSON *item, int32_t limit) {
    if (!cJSON_IsNumber(item) || item->valuedouble < 0 || item->valuedouble >= limit) return -1;
    int32_t id = (int32_t)item->valuedouble;
    return id == item->valuedouble ? id : -1;
}

static int add_token_in(Tokenizer *t, const char *path, int32_t id, const char *bytes, size_t size,
                        int is_special, Error *error) {
    Error reason;
    if (tokenizer_add_token(t, id, bytes, size, is_special, &reason) == 0) return 0;
    return fail_in(path, &reason, error);
}

static int read_vocabulary(Tokenizer *t, const char *path, const cJSON *vocabulary, int32_t limit,
                           Error *error) {
    for (const cJSON *item = vocabulary->child; item != NULL; item = item->next) {
        int32_t id = read_id(item, limit);
        if (id < 0)
            return fail(error, "%s: token '%.100s' has no valid id, expected a whole number from 0 to %d",
                        path, item->string, limit - 1);
        if (tokenizer_is_special(t, id)) continue; // stands in added_tokens, too
        size_t size = strlen(item->string), count;
        char *bytes = (char *)xmalloc(size + 1);
        int result = read_spelling(item->string, size, bytes, &count);
        if (result != 0)
            fail(error, "%s: token %d, '%.100s', is not spelled in GPT-2's byte alphabet", path, id,
                 item->string);
        else
            result = add_token_in(t, path, id, bytes, count, 0, error);
        free(bytes);
        if (result != 0) return -1;
    }
    return 0;
}

static int read_added_tokens(Tokenizer *t, const char *path, const cJSON *added, int32_t limit,
                             Error *error) {
    for (const cJSON *item = added != NULL ? added->child : NULL; item != NULL; item = item->next) {
        int32_t id = read_id(cJSON_GetObjectItemCaseSensitive(item, "id"), limit);
        const char *content = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(item, "content"));
        if (id < 0 || content == NULL)
            return fail(error, "%s: an entry of added_tokens lacks an id from 0 to %d or its content", path,
                        limit - 1);
        if (add_token_in(t, path, id, content, strlen(content), 1, error) != 0) return -1;
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

// "left right", of `size` bytes.
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

static int is_absent(const cJSON *object, const char *name) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, name);
    return item == NULL || cJSON_IsNull(item);
}

static int has_type(const cJSON *object, const char *type) {
    const char *found = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(object, "type"));
    return found != NULL && strcmp(found, type) == 0;
}

// Settings under which the same vocabulary and merges would give other ids.
static int check_settings(const cJSON *root, const char *path, Error *error) {
    const cJSON *model = cJSON_GetObjectItemCaseSensitive(root, "model");
    const cJSON *pretokens = cJSON_GetObjectItemCaseSensitive(root, "pre_tokenizer");
    const cJSON *decoder = cJSON_GetObjectItemCaseSensitive(root, "decoder");
    if (!cJSON_IsObject(model)) return fail(error, "%s is not a tokenizer.json: it has no \"model\"", path);
    if (!is_absent(model, "type") && !has_type(model, "BPE"))
        return fail(error, "%s: the model is not of type BPE, the only one that is supported", path);
    if (!is_absent(root, "normalizer"))
        return fail(error, "%s: it has a normalizer, expected none as in GPT-2", path);
    if (!has_type(pretokens, "ByteLevel") ||
        cJSON_IsFalse(cJSON_GetObjectItemCaseSensitive(pretokens, "use_regex")))
        return fail(error, "%s: the pre_tokenizer is not ByteLevel with GPT-2's pattern", path);
    if (!cJSON_IsFalse(cJSON_GetObjectItemCaseSensitive(pretokens, "add_prefix_space")))
        return fail(error, "%s: the pre_tokenizer has add_prefix_space, expected \"add_prefix_space\": false",
                    path);
    if (!is_absent(root, "decoder") && !has_type(decoder, "ByteLevel"))
        return fail(error, "%s: the decoder is not ByteLevel", path);
    static const char *const refused_texts[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    for (int i = 0; i < 2; i++) {
        const char *text = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(model, refused_texts[i]));
        if (text != NULL && text[0] != 0)
            return fail(error, "%s: model.%s is not empty", path, refused_texts[i]);
    }
    static const char *const refused_flags[] = {"byte_fallback", "ignore_merges"};
    for (int i = 0; i < 2; i++)
        if (cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(model, refused_flags[i])))
            return fail(error, "%s: model.%s is true, expected false as in GPT-2", path, refused_flags[i]);
    const cJSON *dropout = cJSON_GetObjectItemCaseSensitive(model, "dropout");
    if (cJSON_IsNumber(dropout) && dropout->valuedouble != 0)
        return fail(error, "%s: model.dropout is not 0, so ids would be random", path);
    return 0;
}

// Frees the tokenizer and returns NULL if building it failed.
static Tokenizer *finish(Tokenizer *t, int result, const char *path, Error *error) {
    Error reason;
    if (result == 0 && tokenizer_finish(t, &reason) != 0) result = fail_in(path, &reason, error);
    if (result == 0) return t;
    tokenizer_free(t);
    return NULL;
}

static Tokenizer *read_root(const cJSON *root, const char *path, Error *error) {
    if (check_settings(root, path, error) != 0) return NULL;
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
    // Every id is one of an entry, so there are no more ids than entries.
    int32_t limit = cJSON_GetArraySize(vocabulary) + (added != NULL ? cJSON_GetArraySize(added) : 0);
    Tokenizer *t = tokenizer_create(limit);
    int result = read_added_tokens(t, path, added, limit, error);
    if (result == 0) result = read_vocabulary(t, path, vocabulary, limit, error);
    if (result == 0) result = read_merges(t, path, merges, error);
    return finish(t, result, path, error);
}

static cJSON *read_json(const char *path, Error *error) {
    char *data;
    size_t size;
    if (file_read(path, LARGEST_FILE, &data, &size, error) != 0) return NULL;
    // Nothing may follow the object but the NUL that file_read puts behind the data, nor any NUL stand in it.
    cJSON *root = strlen(data) == size ? cJSON_ParseWithLengthOpts(data, size + 1, NULL, 1) : NULL;
    free(data);
    if (cJSON_IsObject(root)) return root;
    fail(error, "%s is damaged: expected a JSON object", path);
    cJSON_Delete(root);
    return NULL;
}

static Tokenizer *load_tokenizer_json(const char *path, Error *error) {
    cJSON *root = read_json(path, error);
    if (root == NULL) return NULL;
    Tokenizer *t = read_root(root, path, error);
    cJSON_Delete(root);
    return t;
}

// ---- encoder.json and vocab.bpe ---------------------------------------------------------------------------

static int read_bpe_file(Tokenizer *t, const char *path, Error *error) {
    char *data;
    size_t size;
    if (file_read(path, LARGEST_FILE, &data, &size, error) != 0) return -1;
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

static Tokenizer *load_pair(const char *vocabulary_path, const char *merges_path, Error *error) {
    cJSON *vocabulary = read_json(vocabulary_path, error);
    if (vocabulary == NULL) return NULL;
    int32_t limit = cJSON_GetArraySize(vocabulary);
    Tokenizer *t = tokenizer_create(limit);
    int result = read_vocabulary(t, vocabulary_path, vocabulary, limit, error);
    cJSON_Delete(vocabulary);
    if (result == 0) result = read_bpe_file(t, merges_path, error);
    return finish(t, result, vocabulary_path, error);
}

Tokenizer *tokenizer_load(const char *path, Error *error) {
    struct stat status;
    if (stat(path, &status) != 0) {
        fail_io(error, "cannot open tokenizer '%s'", path);
        return NULL;
    }
    if (!S_ISDIR(status.st_mode)) return load_tokenizer_json(path, error);
    static const char *const names[][2] = {
        {"tokenizer.json", NULL}, {"encoder.json", "vocab.bpe"}, {"vocab.json", "merges.txt"}};
    for (int i = 0; i < 3; i++) {
        char *first = format_text("%s/%s", path, names[i][0]);
        char *second = names[i][1] != NULL ? format_text("%s/%s", path, names[i][1]) : NULL;
        int found = file_exists(first);
        Tokenizer *t = NULL;
        if (found) t = second == NULL ? load_tokenizer_json(first, error) : load_pair(first, second, error);
        free(first);
        free(second);
        if (found) return t;
    }
    fail(error,
         "folder %s has no tokenizer, expected tokenizer.json, encoder.json with vocab.bpe, or vocab.json "
         "with merges.txt",
         path);
    return NULL;
}

// ---- writing ----------------------------------------------------------------------------------------------

static void write_escaped(FILE *stream, uint8_t c) {
    if (c == '"' || c == '\\')
        fprintf(stream, "\\%c", c);
    else if (c < 0x20)
        fprintf(stream, "\\u%04x", c);
    else
        putc(c, stream);
}

// Without quotes around it; special tokens are written as they are, others in the byte alphabet.
static void write_spelling(FILE *stream, const Tokenizer *t, int32_t id) {
    size_t size;
    const char *bytes = tokenizer_bytes(t, id, &size);
    for (size_t i = 0; i < size; i++) {
        int character = (uint8_t)bytes[i];
        if (!tokenizer_is_special(t, id)) character = byte_to_character(character);
        if (tokenizer_is_special(t, id) || character < 0x80) {
            write_escaped(stream, (uint8_t)character);
        } else {
            putc(0xC0 | character >> 6, stream);
            putc(0x80 | (character & 0x3F), stream);
        }
    }
}

static void write_added_tokens(FILE *stream, const Tokenizer *t) {
    const char *before = "";
    fprintf(stream, "  \"added_tokens\": [");
    for (int32_t id = 0; id < tokenizer_vocab_size(t); id++) {
        if (!tokenizer_is_special(t, id)) continue;
        fprintf(stream, "%s\n    {\"id\": %d, \"content\": \"", before, id);
        write_spelling(stream, t, id);
        fprintf(stream,
                "\", \"single_word\": false, \"lstrip\": false, \"rstrip\": false, \"normalized\": false, "
                "\"special\": true}");
        before = ",";
    }
    fprintf(stream, "\n  ],\n");
}

static void write_model(FILE *stream, const Tokenizer *t) {
    fprintf(stream,
            "  \"model\": {\n    \"type\": \"BPE\",\n    \"dropout\": null,\n    \"unk_token\": null,\n"
            "    \"continuing_subword_prefix\": null,\n    \"end_of_word_suffix\": null,\n"
            "    \"fuse_unk\": false,\n    \"byte_fallback\": false,\n    \"ignore_merges\": false,\n"
            "    \"vocab\": {");
    for (int32_t id = 0; id < tokenizer_vocab_size(t); id++) {
        fprintf(stream, "%s\n      \"", id > 0 ? "," : "");
        write_spelling(stream, t, id);
        fprintf(stream, "\": %d", id);
    }
    fprintf(stream, "\n    },\n    \"merges\": [");
    for (size_t i = 0; i < tokenizer_num_merges(t); i++) {
        int32_t left, right;
        tokenizer_merge(t, i, &left, &right);
        fprintf(stream, "%s\n      \"", i > 0 ? "," : "");
        write_spelling(stream, t, left);
        putc(' ', stream);
        write_spelling(stream, t, right);
        putc('"', stream);
    }
    fprintf(stream, "\n    ]\n  }\n}\n");
}

void tokenizer_write(const Tokenizer *t, FILE *stream) {
    static const char byte_level[] =
        "{\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"trim_offsets\": true, \"use_regex\": true}";
    fprintf(stream, "{\n  \"version\": \"1.0\",\n  \"truncation\": null,\n  \"padding\": null,\n");
    write_added_tokens(stream, t);
    fprintf(stream, "  \"normalizer\": null,\n  \"pre_tokenizer\": %s,\n  \"post_processor\": null,\n",
            byte_level);
    fprintf(stream, "  \"decoder\": %s,\n", byte_level);
    write_model(stream, t);
}

int tokenizer_save(const Tokenizer *t, const char *path, Error *error) {
    FileWriter writer;
    if (file_writer_open(&writer, path, error) != 0) return -1;
    tokenizer_write(t, writer.stream);
    return file_writer_commit(&writer, error);
}

int tokenizer_is_ours(const char *path) {
    char *data, *text = NULL;
    size_t size, text_size = 0;
    Error ignored;
    Tokenizer *t = tokenizer_load(path, &ignored);
    FILE *stream = t == NULL ? NULL : open_memstream(&text, &text_size);
    if (stream != NULL) {
        tokenizer_write(t, stream);
        fclose(stream);
    }
    tokenizer_free(t);
    int same = text != NULL && file_read(path, LARGEST_FILE, &data, &size, &ignored) == 0;
    if (same) {
        same = size == text_size && memcmp(data, text, size) == 0;
        free(data);
    }
    free(text);
    return same;
}
