// libFuzzer target. An input that begins with '{' is a tokenizer.json: it is either refused with a sentence, or gives
// a tokenizer that can be saved, loaded again unchanged, and used. Any other input is text for a tokenizer trained
// beforehand: it is restored byte for byte, and cutting it changes nothing. Text that begins with 't' is also used
// for training.
#define _GNU_SOURCE // memfd_create, memmem
#include "data/tokenizer/tokenizer.h"
#include "fuzz.h"
#include "test/data/tokenizer/tokenizer_table.h"

#include <sys/mman.h>
#include <unistd.h>

// White space next to added tokens may be dropped; then text is not restored.
static int drops_white_space(const Tokenizer *t) {
    for (size_t i = 0; i < tokenizer_num_added(t); i++)
        if (tokenizer_added(t, i)->lstrip || tokenizer_added(t, i)->rstrip) return 1;
    return 0;
}

static void check_decoding(const Tokenizer *t, const TokenList *ids, const char *text, size_t size) {
    size_t at = 0, length;
    for (size_t i = 0; i < ids->count; i++) {
        const char *bytes = tokenizer_bytes(t, ids->ids[i], &length);
        must(bytes != NULL && length <= size - at && memcmp(text + at, bytes, length) == 0);
        at += length;
    }
    must(at == size);
}

static void encode(Tokenizer *t, const char *text, size_t size, size_t least) {
    TokenList whole = {NULL, 0, 0}, parts = {NULL, 0, 0};
    tokenizer_encode(t, text, size, END_OF_TEXT, &whole);
    if (!drops_white_space(t)) check_decoding(t, &whole, text, size);
    for (size_t start = 0, cut; start < size; start += cut) {
        cut = tokenizer_cut(t, text + start, size - start, END_OF_TEXT, least);
        must(cut > 0 && cut <= size - start);
        tokenizer_encode(t, text + start, cut, END_OF_TEXT, &parts);
    }
    must(whole.count == parts.count &&
         (whole.count == 0 || memcmp(whole.ids, parts.ids, whole.count * sizeof(int32_t)) == 0));
    free(whole.ids);
    free(parts.ids);
}

static void load(const uint8_t *data, size_t size) {
    char path[64];
    Error error = {"", 0};
    int descriptor = memfd_create("tokenizer", MFD_CLOEXEC);
    must(descriptor >= 0 && write(descriptor, data, size) == (ssize_t)size);
    snprintf(path, sizeof path, "/proc/self/fd/%d", descriptor);
    Tokenizer *t = tokenizer_load(path, &error);
    close(descriptor);
    if (t == NULL) {
        must(strstr(error.text, path) != NULL);
        return;
    }
    encode(t, TABLE_TEXT, sizeof TABLE_TEXT - 1, 100);
    char *saved = format_text("%s/saved.json", fuzz_folder());
    must(tokenizer_save(t, saved, &error) == 0);
    Tokenizer *again = tokenizer_load(saved, &error);
    must(again != NULL && tokenizer_checksum(again) == tokenizer_checksum(t));
    unlink(saved);
    free(saved);
    tokenizer_free(again);
    tokenizer_free(t);
}

static Tokenizer *train(const char *text, size_t size, int32_t vocab_size) {
    Error error;
    Text input = {text, size};
    return tokenizer_train(&input, 1, vocab_size, END_OF_TEXT, &error);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static Tokenizer *trained;
    if (trained == NULL) trained = train(TABLE_TEXT, sizeof TABLE_TEXT - 1, TABLE_VOCAB);
    const char *text = (const char *)data;
    if (size == 0) return 0;
    if (data[0] == '{') {
        load(data, size);
        return 0;
    }
    encode(trained, text, size, 1 + size % 17);
    Tokenizer *t = data[0] == 't' ? train(text, size, 257 + (int32_t)(size % 16)) : NULL;
    if (t != NULL) encode(t, text, size, 1 + size % 17);
    tokenizer_free(t);
    return 0;
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    char *path = format_text("%s/seed.json", fuzz_folder()), *json = NULL;
    size_t size = 0;
    Error error;
    Tokenizer *t = train(TABLE_TEXT, sizeof TABLE_TEXT - 1, 260);
    must(t != NULL && tokenizer_save(t, path, &error) == 0 &&
         file_read(path, 1 << 20, &json, &size, &error) == 0);
    write_seed(*argc, *argv, "json", 0, json, size);
    char *end = strstr(json, "\n  ]"); // of added_tokens
    must(end != NULL);
    char *added = format_text(
        "%.*s, {\"id\": 260, \"content\": \" the\", \"single_word\": true, \"lstrip\": true, "
        "\"rstrip\": true, \"normalized\": true, \"special\": false}%s",
        (int)(end - json), json, end);
    write_seed(*argc, *argv, "added", 0, added, strlen(added));
    free(added);
    write_seed(*argc, *argv, "text", 't', TABLE_TEXT, sizeof TABLE_TEXT - 1);
    free(json);
    free(path);
    tokenizer_free(t);
    return 0;
}
