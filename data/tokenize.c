// tokenize: the command that turns text into token shards and back. `tokenize --help` explains it.
//
// In plain text, documents are separated by a separator, by default the text of the end-of-text token: n separators
// make n + 1 documents, including empty ones, and every file begins a new document. Each line of JSON lines is one
// document. In the shards, each document begins with the end-of-text token. Decoding writes separators between
// documents, so that plain text is restored byte for byte. With a tokenizer that has no end-of-text token, documents
// are concatenated, and the separator is ordinary text.
#define _GNU_SOURCE // memmem
#include "data/tokens/tokenize_shards.h"
#include "data/corpus/corpus.h"
#include "layers/base/files.h"
#include "data/options/options.h"
#include "data/tokens/overwrite.h"
#include "layers/base/progress.h"
#include "data/tokens/shards.h"
#include "data/tokenizer/tokenizer.h"
#include "data/options/version.h"

#include <errno.h>
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

enum {
    MAX_WORDS = 100000,     // input files on a command line
    ENCODE_BYTES = 16 << 20 // bytes of text encoded at a time
};

#define COUNT(table) (sizeof(table) / sizeof((table)[0]))

// ---- options ----------------------------------------------------------------------------------------------

#define TEXT(name, member, default_text, help)                                                               \
    name, OPTION_TEXT, offsetof(Settings, member), default_text, 0, 0, NULL, help
#define FLAG(name, member, help) name, OPTION_FLAG, offsetof(Settings, member), "0", 0, 0, NULL, help
#define NUMBER(name, type, member, default_text, low, high, help)                                            \
    name, type, offsetof(Settings, member), default_text, low, high, NULL, help
// clang-format off
#define TOKENIZER_OPTIONS \
    {"Tokenizer", TEXT("tokenizer", tokenizer, "", "tokenizer.json, or a folder that contains one, or GPT-2's encoder.json and vocab.bpe")}, \
    {NULL, TEXT("end-of-text", end_of_text, NULL, "token that begins each document; by default tokenizer_config.json's eos_token, or else <|endoftext|>")}, \
    {NULL, TEXT("ignore-key", ignore_key, NULL, "keys of tokenizer.json, separated by commas, to ignore although this program does not know or support them")}
#define CORPUS_OPTIONS \
    {"Text", TEXT("input", input, "", "text files or .jsonl files, both also as .gz or .zst, patterns of them, or - for standard input; more may follow as words")}, \
    {NULL, TEXT("field", field, "text", "member of each line of a .jsonl file that is its text; if given, - and pipes are JSON lines too")}
#define SHARDS_INPUT {"Shards", TEXT("input", input, "", "token shards or patterns; more may follow as words")}
#define SEPARATOR_HELP "text between documents; by default that of the end-of-text token"

static const Option train_options[] = {
    CORPUS_OPTIONS,
    {NULL, TEXT("separator", separator, END_OF_TEXT, SEPARATOR_HELP)},
    {"Tokenizer", NUMBER("vocab", OPTION_INTEGER, vocab, "8192", 256, 1e8, "size of the vocabulary: 256 bytes, merges and <|endoftext|>; exactly 256 means bytes alone")},
    {NULL, TEXT("out", out, "tokenizer.json", "file to write")},
    {NULL, FLAG("overwrite", overwrite, "replace the file if it exists, even if this program did not write it")},
};

static const Option encode_options[] = {
    TOKENIZER_OPTIONS,
    CORPUS_OPTIONS,
    {NULL, TEXT("separator", separator, NULL, SEPARATOR_HELP)},
    {NULL, FLAG("whole-files", whole_files, "take each file as one document, and separators in it as text")},
    {"Shards", TEXT("out", out, "", "prefix of the shards: PREFIX_000000.bin and so on; with validation, PREFIX_train_000000.bin and PREFIX_val_000000.bin")},
    {NULL, NUMBER("shard-tokens", OPTION_INTEGER, shard_tokens, "100M", 1, SHARD_MAX_TOKENS, "tokens in a shard")},
    {NULL, FLAG("overwrite", overwrite, "replace shards of these names, even if this program did not write them")},
    {"Validation", NUMBER("validation-every", OPTION_INTEGER, validation_every, "0", 0, 1e15, "take every N-th document for validation; 0: none")},
    {NULL, NUMBER("validation-fraction", OPTION_REAL, validation_fraction, "0", 0, 0.999, "fraction of the documents to take for validation, evenly spread; of a single document, its end")},
};

static const Option decode_options[] = {
    TOKENIZER_OPTIONS,
    SHARDS_INPUT,
    {"Text", TEXT("out", out, "-", "file to write; -: standard output")},
    {NULL, FLAG("overwrite", overwrite, "replace the file if it exists")},
    {NULL, TEXT("separator", separator, NULL, SEPARATOR_HELP)},
};

static const Option inspect_options[] = {
    TOKENIZER_OPTIONS,
    SHARDS_INPUT,
};
// clang-format on

int require_option(const char *value, const char *name, Error *error) {
    return value[0] != 0 ? 0 : fail(error, "--%s is missing; see --help", name);
}

int add_inputs(const Settings *settings, int (*add)(void *, const char *, Error *), void *target,
               Error *error) {
    if (settings->input[0] == 0 && settings->num_words == 0) return require_option("", "input", error);
    if (settings->input[0] != 0 && add(target, settings->input, error) != 0) return -1;
    for (int i = 0; i < settings->num_words; i++)
        if (add(target, settings->words[i], error) != 0) return -1;
    return 0;
}

static int add_corpus(void *target, const char *pattern, Error *error) {
    (void)error; // corpus_check reports all problems together
    corpus_add((Corpus *)target, pattern);
    return 0;
}

// Returns the folder of an output file. The caller frees it.
static char *folder_of(const char *out) {
    const char *slash = strrchr(out, '/');
    return slash == NULL  ? xstrdup(".")
           : slash == out ? xstrdup("/")
                          : format_text("%.*s", (int)(slash - out), out);
}

int create_folder_of(const char *out, Error *error) {
    char *folder = folder_of(out);
    int result = file_exists(folder) ? 0 : folder_create(folder, error);
    free(folder);
    return result;
}

// Adds --input and the words to the corpus. Temporary files are created in the folder of the output.
static int open_corpus(Corpus *corpus, const Settings *settings, const Option *options, size_t num_options,
                       Error *error) {
    char *folder = folder_of(settings->out);
    corpus->field = settings->field;
    corpus->folder = file_exists(folder) ? folder : ".";
    corpus->lines = options_given(options, num_options, "field");
    int result = require_option(settings->field, "field", error);
    if (result == 0) result = add_inputs(settings, add_corpus, corpus, error);
    if (result == 0) result = corpus_check(corpus, error);
    free(folder);
    return result;
}

Tokenizer *open_tokenizer(const Settings *settings, Error *error) {
    const TokenizerChoices choices = {settings->end_of_text, settings->separator, settings->ignore_key};
    if (require_option(settings->tokenizer, "tokenizer", error) != 0) return NULL;
    return tokenizer_open(settings->tokenizer, &choices, error);
}

int choose_separator(const Settings *settings, const Tokenizer *t, const char **separator, Error *error) {
    *separator = tokenizer_end_of_text_content(t);
    if (settings->separator == NULL) return 0;
    if (require_option(settings->separator, "separator", error) != 0) return -1;
    if (*separator == NULL)
        return fail(error,
                    "%s has no token to put where --separator '%s' stands: name its end-of-text token with "
                    "--end-of-text",
                    settings->tokenizer, settings->separator);
    *separator = settings->separator;
    return 0;
}

// ---- train ------------------------------------------------------------------------------------------------

static int train_on(const Corpus *corpus, const Settings *settings, Error *error) {
    // An output that cannot be written should be reported before the work, not after it.
    FileWriter writer;
    if (overwrite_check(settings->out, settings->overwrite, tokenizer_is_ours, error) != 0) return -1;
    if (file_writer_open(&writer, settings->out, error) != 0) return -1;
    file_writer_abandon(&writer);
    Text *texts = (Text *)xmalloc(corpus->count * sizeof(Text));
    for (size_t i = 0; i < corpus->count; i++) {
        Text text = {corpus->texts[i].data, corpus->texts[i].size};
        texts[i] = text;
    }
    Tokenizer *t = tokenizer_train(texts, corpus->count, (int32_t)settings->vocab, settings->separator,
                                   error);
    free(texts);
    if (t == NULL) return -1;
    if (tokenizer_vocab_size(t) < settings->vocab)
        warn(
            "the text is too small for a vocabulary of %lld tokens: after %d, no pair of tokens occurs twice",
            (long long)settings->vocab, tokenizer_vocab_size(t));
    int result = tokenizer_save(t, settings->out, error);
    if (result == 0)
        printf("%s: %d tokens, %zu merges, checksum %08x, from %.1f MB of text\n", settings->out,
               tokenizer_vocab_size(t), tokenizer_num_merges(t), tokenizer_checksum(t),
               (double)corpus->size / 1e6);
    tokenizer_free(t);
    return result;
}

static int train(const Settings *settings, Error *error) {
    Corpus corpus = {0};
    int result = require_option(settings->out, "out", error);
    if (result == 0) result = require_option(settings->separator, "separator", error);
    if (result == 0) result = open_corpus(&corpus, settings, train_options, COUNT(train_options), error);
    if (result == 0) result = create_folder_of(settings->out, error);
    if (result == 0) result = train_on(&corpus, settings, error);
    corpus_close(&corpus);
    return result;
}

// ---- encode -----------------------------------------------------------------------------------------------

enum { TRAINING, VALIDATION };

typedef struct {
    const Settings *settings;
    Tokenizer *tokenizer;
    const char *separator; // NULL: every file is one document
    ShardWriter writers[2];
    int current;
    uint64_t num_documents, documents_in[2], bytes_done;
    int cut_single; // a single document is cut: the first part is for training, the rest for validation
    Progress progress;
} Encoding;

static int is_split(const Settings *settings) {
    return settings->validation_every > 0 || settings->validation_fraction > 0;
}

static uint64_t validation_documents(const Settings *settings, uint64_t documents) {
    if (settings->validation_every > 0) return documents / (uint64_t)settings->validation_every;
    return (uint64_t)floor((double)documents * settings->validation_fraction + 1e-9);
}

static uint64_t count_documents(const Corpus *corpus, const char *separator) {
    uint64_t documents = 0;
    for (size_t i = 0; i < corpus->count; i++) {
        const char *at = corpus->texts[i].data, *end = at + corpus->texts[i].size;
        documents++;
        while (separator != NULL && !corpus->texts[i].is_document &&
               (at = (const char *)memmem(at, (size_t)(end - at), separator, strlen(separator)))) {
            documents++;
            at += strlen(separator);
        }
    }
    return documents;
}

// Chooses the set of the next document, and writes the token that it begins with.
static int begin_document(Encoding *e, Error *error) {
    if (e->cut_single)
        e->current = e->num_documents == 0 ? TRAINING : VALIDATION;
    else if (validation_documents(e->settings, e->num_documents + 1) >
             validation_documents(e->settings, e->num_documents))
        e->current = VALIDATION;
    else
        e->current = TRAINING;
    e->num_documents++;
    e->documents_in[e->current]++;
    const int32_t end_of_text = tokenizer_end_of_text(e->tokenizer);
    if (end_of_text < 0) return 0;
    return shard_writer_document(&e->writers[e->current], &end_of_text, 1, error);
}

static int write_ids(Encoding *e, const TokenList *ids, Error *error) {
    const int32_t end_of_text = tokenizer_end_of_text(e->tokenizer);
    for (size_t start = 0; start < ids->count;) {
        size_t end = start;
        while (end < ids->count && ids->ids[end] != end_of_text) end++;
        if (shard_writer_document(&e->writers[e->current], ids->ids + start, end - start, error) != 0)
            return -1;
        if (end < ids->count && begin_document(e, error) != 0) return -1;
        start = end + 1;
    }
    return 0;
}

static int encode_text(Encoding *e, const char *text, size_t size, Error *error) {
    TokenList ids = {0};
    int result = begin_document(e, error);
    while (size > 0 && result == 0) {
        size_t part = tokenizer_cut(e->tokenizer, text, size, e->separator, ENCODE_BYTES);
        ids.count = 0;
        tokenizer_encode(e->tokenizer, text, part, e->separator, &ids);
        result = write_ids(e, &ids, error);
        text += part;
        size -= part;
        e->bytes_done += part;
        progress_update(&e->progress, e->bytes_done);
    }
    free(ids.ids);
    return result;
}

static int encode_single(Encoding *e, const CorpusText *text, Error *error) {
    size_t least = (size_t)((double)text->size * (1 - e->settings->validation_fraction));
    size_t cut = tokenizer_cut(e->tokenizer, text->data, text->size, e->separator, least > 0 ? least : 1);
    if (cut >= text->size)
        return fail(error, "%s is one document without a place to cut off %g of it for validation",
                    text->path, e->settings->validation_fraction);
    e->cut_single = 1;
    if (text->is_document) e->separator = NULL;
    if (encode_text(e, text->data, cut, error) != 0) return -1;
    return encode_text(e, text->data + cut, text->size - cut, error);
}

// Checks that both training and validation get at least one document.
static int check_split(const Settings *settings, uint64_t documents, Error *error) {
    const uint64_t validation = validation_documents(settings, documents);
    if (validation > 0 && validation < documents) return 0;
    return fail(
        error,
        "of %llu document%s, %llu would be for validation, but it must be at least one and not all of "
        "them: --validation-fraction 0.1 takes a part of them, even of a single one",
        (unsigned long long)documents, documents == 1 ? "" : "s", (unsigned long long)validation);
}

// Encodes documents from `first` on that are whole texts, about ENCODE_BYTES of them, on all cores. Returns their
// number, or -1.
static int64_t encode_documents(Encoding *e, const Corpus *corpus, size_t first, Error *error) {
    size_t count = 0, bytes = 0;
    while (first + count < corpus->count && corpus->texts[first + count].is_document && bytes < ENCODE_BYTES)
        bytes += corpus->texts[first + count++].size;
    Text *texts = (Text *)xmalloc(count * sizeof(Text));
    TokenList *lists = (TokenList *)xcalloc(count, sizeof(TokenList));
    for (size_t i = 0; i < count; i++) {
        Text text = {corpus->texts[first + i].data, corpus->texts[first + i].size};
        texts[i] = text;
    }
    tokenizer_encode_texts(e->tokenizer, texts, count, lists);
    int result = 0;
    for (size_t i = 0; i < count; i++) {
        if (result == 0) result = begin_document(e, error);
        if (result == 0) result = write_ids(e, &lists[i], error);
        free(lists[i].ids);
    }
    free(lists);
    free(texts);
    e->bytes_done += bytes;
    progress_update(&e->progress, e->bytes_done);
    return result == 0 ? (int64_t)count : -1;
}

static int encode_corpus(Encoding *e, const Corpus *corpus, Error *error) {
    const Settings *settings = e->settings;
    if (is_split(settings)) {
        uint64_t documents = count_documents(corpus, e->separator);
        if (documents == 1 && settings->validation_fraction > 0)
            return encode_single(e, &corpus->texts[0], error);
        if (check_split(settings, documents, error) != 0) return -1;
    }
    for (size_t i = 0; i < corpus->count;) {
        const CorpusText *text = &corpus->texts[i];
        int64_t done = 1;
        if (text->is_document)
            done = encode_documents(e, corpus, i, error);
        else if (encode_text(e, text->data, text->size, error) != 0)
            done = -1;
        if (done < 0) return -1;
        i += (size_t)done;
    }
    return 0;
}

// Completes the last shard and reports what was written.
static int finish_shards(ShardWriter *writer, const char *name, uint64_t documents, Error *error) {
    char *first = format_text("%s_000000.bin", writer->prefix);
    int result = shard_writer_close(writer, error);
    if (result == 0)
        printf("%s: %llu tokens, %llu document%s, %u shard%s: %s%s\n", name,
               (unsigned long long)writer->num_tokens, (unsigned long long)documents,
               documents == 1 ? "" : "s", writer->shard_index,
               writer->shard_index == 1 ? "" : "s", first, writer->shard_index == 1 ? "" : ", ...");
    free(first);
    return result;
}

static int encode_to_shards(Encoding *e, const Corpus *corpus, Error *error) {
    static const char *const names[2] = {"training", "validation"}, *const suffixes[2] = {"_train", "_val"};
    const int num_writers = is_split(e->settings) ? 2 : 1;
    const int token_bytes = tokenizer_vocab_size(e->tokenizer) <= 65536 ? 2 : 4;
    int result = create_folder_of(e->settings->out, error), opened = 0;
    for (; opened < num_writers && result == 0; opened++) {
        char *prefix = format_text("%s%s", e->settings->out, num_writers == 2 ? suffixes[opened] : "");
        result = shard_writer_open(&e->writers[opened], prefix, (uint64_t)e->settings->shard_tokens,
                                   token_bytes, e->settings->overwrite, error);
        free(prefix);
    }
    progress_start(&e->progress, "encoding", "B", corpus->size);
    if (result == 0) result = encode_corpus(e, corpus, error);
    progress_finish(&e->progress);
    for (int i = 0; i < opened && result == 0; i++)
        result = finish_shards(&e->writers[i], num_writers == 2 ? names[i] : "encoded", e->documents_in[i],
                               error);
    for (int i = 0; i < opened; i++) shard_writer_abandon(&e->writers[i]);
    return result;
}

static int encode_with(Encoding *e, const Corpus *corpus, Error *error) {
    const Settings *settings = e->settings;
    if (choose_separator(settings, e->tokenizer, &e->separator, error) != 0) return -1;
    if (e->separator == NULL)
        warn("%s has no end-of-text token, so that documents are not separated; --end-of-text names a token "
             "for it",
             settings->tokenizer);
    if (settings->whole_files) e->separator = NULL;
    if (settings->separator != NULL && e->separator != NULL &&
        count_documents(corpus, e->separator) == count_documents(corpus, NULL))
        warn("--separator '%s' does not occur in the text, and separates nothing", settings->separator);
    return encode_to_shards(e, corpus, error);
}

static int encode(const Settings *settings, Error *error) {
    Encoding encoding = {0};
    Corpus corpus = {0};
    encoding.settings = settings;
    int result = require_option(settings->out, "out", error);
    if (result == 0 && settings->separator != NULL)
        result = require_option(settings->separator, "separator", error);
    if (result == 0 && settings->validation_every > 0 && settings->validation_fraction > 0)
        result = fail(
            error, "--validation-every and --validation-fraction exclude each other: give only one of them");
    if (result == 0 && (encoding.tokenizer = open_tokenizer(settings, error)) == NULL) result = -1;
    if (result == 0) result = open_corpus(&corpus, settings, encode_options, COUNT(encode_options), error);
    if (result == 0) result = encode_with(&encoding, &corpus, error);
    tokenizer_free(encoding.tokenizer);
    corpus_close(&corpus);
    return result;
}

// ---- main -------------------------------------------------------------------------------------------------

typedef struct {
    const char *name;
    int (*run)(const Settings *settings, Error *error);
    const Option *options;
    size_t num_options;
    const char *help;
} Command;

static const Command commands[] = {
    {"train", train, train_options, COUNT(train_options),
     "learn a vocabulary from text and write tokenizer.json"},
    {"encode", encode, encode_options, COUNT(encode_options), "turn text into token shards"},
    {"decode", decode_shards, decode_options, COUNT(decode_options), "turn token shards into text"},
    {"inspect", inspect_shards, inspect_options, COUNT(inspect_options),
     "check every token of shards and say what is in them"},
};

static void print_help(void) {
    printf("usage: tokenize COMMAND [options] [files]\n\n");
    for (size_t i = 0; i < COUNT(commands); i++) printf("  %-8s %s\n", commands[i].name, commands[i].help);
    printf("\n`tokenize COMMAND --help` lists the options of a command.\n");
}

static int run_command(const Command *command, int argc, char **argv) {
    Settings settings = {0};
    Error error;
    settings.words = (const char **)xmalloc(MAX_WORDS * sizeof(char *));
    options_defaults(command->options, command->num_options, &settings);
    int parsed = options_parse(command->options, command->num_options, &settings, argc, argv, settings.words,
                               MAX_WORDS, &settings.num_words, &error);
    if (parsed < 0) die_of(&error);
    if (parsed == OPTIONS_VERSION) {
        printf("tokenize %s\n", VERSION);
    } else if (parsed > 0) {
        printf("usage: tokenize %s [options] [files]: %s\n\n", command->name, command->help);
        options_help(command->options, command->num_options, stdout);
    } else if (command->run(&settings, &error) != 0) {
        die_of(&error);
    }
    free(settings.words);
    close_output();
    return 0;
}

int main(int argc, char **argv) {
    open_standard_descriptors();
    const int version = argc > 1 && strcmp(argv[1], "--version") == 0;
    if (argc < 2 || strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 || version) {
        if (version)
            printf("tokenize %s\n", VERSION);
        else
            print_help();
        close_output();
        return argc < 2;
    }
    for (size_t i = 0; i < COUNT(commands); i++)
        if (strcmp(argv[1], commands[i].name) == 0) return run_command(&commands[i], argc - 1, argv + 1);
    die("'%s' is not a command of tokenize: use train, encode, decode or inspect", argv[1]);
}
