// Writes tokenizer.json and the accompanying file of a model's folder. See tokenizer.h.
#define _GNU_SOURCE // open_memstream
#include "tokenizer.h"

#include <stdlib.h>
#include <string.h>

static void write_escaped(FILE *stream, uint8_t c) {
    if (c == '"' || c == '\\')
        fprintf(stream, "\\%c", c);
    else if (c < 0x20)
        fprintf(stream, "\\u%04x", c);
    else
        putc(c, stream);
}

// Writes an ordinary token in the byte alphabet, without quotes.
static void write_spelling(FILE *stream, const Tokenizer *t, int32_t id) {
    size_t size;
    const char *bytes = tokenizer_bytes(t, id, &size);
    for (size_t i = 0; i < size; i++) {
        int character = byte_to_character((uint8_t)bytes[i]);
        if (character < 0x80) {
            write_escaped(stream, (uint8_t)character);
        } else {
            putc(0xC0 | character >> 6, stream);
            putc(0x80 | (character & 0x3F), stream);
        }
    }
}

static void write_quoted(FILE *stream, const char *text) {
    putc('"', stream);
    for (; *text != '\0'; text++) write_escaped(stream, (uint8_t)*text);
    putc('"', stream);
}

static const char *true_or_false(int flag) {
    return flag ? "true" : "false";
}

static void write_added_tokens(FILE *stream, const Tokenizer *t) {
    fprintf(stream, "  \"added_tokens\": [");
    for (size_t i = 0; i < tokenizer_num_added(t); i++) {
        const AddedToken *token = tokenizer_added(t, i);
        fprintf(stream, "%s\n    {\"id\": %d, \"content\": ", i > 0 ? "," : "", token->id);
        write_quoted(stream, token->content);
        fprintf(stream,
                ", \"single_word\": %s, \"lstrip\": %s, \"rstrip\": %s, \"normalized\": %s, \"special\": %s}",
                true_or_false(token->single_word), true_or_false(token->lstrip), true_or_false(token->rstrip),
                true_or_false(token->normalized), true_or_false(token->special));
    }
    fprintf(stream, "\n  ],\n");
}

static void write_model(FILE *stream, const Tokenizer *t) {
    fprintf(stream,
            "  \"model\": {\n    \"type\": \"BPE\",\n    \"dropout\": null,\n    \"unk_token\": null,\n"
            "    \"continuing_subword_prefix\": null,\n    \"end_of_word_suffix\": null,\n"
            "    \"fuse_unk\": false,\n    \"byte_fallback\": false,\n    \"ignore_merges\": false,\n"
            "    \"vocab\": {");
    const char *before = "";
    for (int32_t id = 0; id < tokenizer_vocab_size(t); id++) {
        if (!tokenizer_is_ordinary(t, id)) continue;
        fprintf(stream, "%s\n      \"", before);
        write_spelling(stream, t, id);
        fprintf(stream, "\": %d", id);
        before = ",";
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
    fprintf(stream, "  \"normalizer\": null,\n  \"pre_tokenizer\": %s,\n  \"post_processor\": %s,\n",
            byte_level, tokenizer_post_processor(t));
    fprintf(stream, "  \"decoder\": %s,\n", byte_level);
    write_model(stream, t);
}

int tokenizer_save(const Tokenizer *t, const char *path, Error *error) {
    FileWriter writer;
    if (file_writer_open(&writer, path, error) != 0) return -1;
    tokenizer_write(t, writer.stream);
    return file_writer_commit(&writer, error);
}

char *tokenizer_config_text(const Tokenizer *t) {
    const char *content = tokenizer_end_of_text_content(t);
    if (content == NULL || strcmp(content, END_OF_TEXT) == 0) return NULL;
    char *text = NULL;
    size_t size;
    FILE *stream = open_memstream(&text, &size);
    if (stream == NULL) die("out of memory");
    fprintf(stream, "{\n  \"tokenizer_class\": \"PreTrainedTokenizerFast\",\n  \"eos_token\": ");
    write_quoted(stream, content);
    fprintf(stream, "\n}\n");
    fclose(stream);
    return text;
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
    int same = text != NULL && file_read(path, MAX_TOKENIZER_BYTES, &data, &size, &ignored) == 0;
    if (same) {
        same = size == text_size && memcmp(data, text, size) == 0;
        free(data);
    }
    free(text);
    return same;
}
