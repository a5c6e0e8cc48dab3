// Writes the story corpus (see stories.h): train.txt, validation.txt and floor.json, in a folder.
//
// floor.json holds the information content of the validation stories under the grammar that generated them, in bits
// and in bits per byte (bytes of stories without STORY_END; the bits include the end of each story): on average no
// model can do better. It is measured by parsing the file. With --ngram, it also has the same measure for a byte
// n-gram model trained on train.txt. --parse reports which stories of a file, such as a model's samples, the grammar
// allows.
#define _GNU_SOURCE
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "data/stories/byte_ngram.h"
#include "layers/base/files.h"
#include "data/options/options.h"
#include "data/options/version.h"
#include "data/tokens/overwrite.h"
#include "layers/base/progress.h"
#include "data/stories/stories.h"

enum { TRAIN_STREAM, VALIDATION_STREAM }; // streams of random numbers

typedef struct {
    int64_t train_bytes, validation_stories, seed, ngram;
    const char *out, *parse;
    int write, overwrite;
} Settings;

#define FIELD(name) offsetof(Settings, name)
static const Option options[] = {
    {"What is written", "out", OPTION_TEXT, FIELD(out), "datasets/stories", 0, 0, NULL, "folder to write to"},
    {NULL, "train-bytes", OPTION_INTEGER, FIELD(train_bytes), "20M", 1, 10e9, NULL,
     "size of train.txt; the story that reaches it is the last"},
    {NULL, "validation-stories", OPTION_INTEGER, FIELD(validation_stories), "500", 1, 10e6, NULL,
     "number of stories in validation.txt"},
    {NULL, "seed", OPTION_INTEGER, FIELD(seed), "1", 0, 9e15, NULL, "the same seed writes the same stories"},
    {NULL, "write", OPTION_FLAG, FIELD(write), "1", 0, 1, NULL,
     "write the stories; --no-write measures the files that are there"},
    {NULL, "overwrite", OPTION_FLAG, FIELD(overwrite), "0", 0, 0, NULL,
     "replace train.txt, validation.txt and floor.json even if this program did not write them"},
    {"Measurements", "ngram", OPTION_INTEGER, FIELD(ngram), "0", 0, BYTE_NGRAM_MAX_ORDER, NULL,
     "order of the byte n-gram model to compare with, 0 for none"},
    {NULL, "parse", OPTION_TEXT, FIELD(parse), "", 0, 0, NULL,
     "file of stories to parse; nothing else is done"},
};
enum { NUM_OPTIONS = sizeof(options) / sizeof(options[0]) };

static void check(int status, const Error *error) {
    if (status != 0) die("%s", error->text);
}

// The stories of a file, in memory.
typedef struct {
    char *data;
    size_t size;
} Stories;

static Stories read_stories(const char *path) {
    Error error;
    Stories stories;
    check(file_read(path, SIZE_MAX / 2, &stories.data, &stories.size, &error), &error);
    return stories;
}

// Finds the next story; *at starts at 0. Returns 0 if there is none.
static int next_story(const Stories *stories, size_t *at, const char **text, size_t *length) {
    if (*at >= stories->size) return 0;
    *text = stories->data + *at;
    const char *end = memmem(*text, stories->size - *at, STORY_END, strlen(STORY_END));
    *length = end ? (size_t)(end - *text) : stories->size - *at;
    *at += *length + (end ? strlen(STORY_END) : 0);
    return 1;
}

// Writes stories until there are `max_stories` of them or `max_bytes` bytes. Returns their number.
static uint64_t write_stories(const char *path, uint64_t seed, uint64_t stream, uint64_t max_stories,
                              uint64_t max_bytes) {
    Error error;
    FileWriter writer;
    Progress progress;
    StoryRng rng;
    Story story;
    uint64_t num_stories = 0, bytes = 0;
    check(file_writer_open(&writer, path, &error), &error);
    progress_start(&progress, "writing stories", max_bytes == UINT64_MAX ? "stories" : "B",
                   max_bytes == UINT64_MAX ? max_stories : max_bytes);
    story_rng_seed(&rng, seed, stream);
    while (num_stories < max_stories && bytes < max_bytes && !ferror(writer.stream)) {
        story_generate(&rng, &story);
        fprintf(writer.stream, "%s%s", num_stories > 0 ? STORY_END : "", story.text); // between stories only
        num_stories++;
        bytes += story.length + strlen(STORY_END);
        progress_update(&progress, max_bytes == UINT64_MAX ? num_stories : bytes);
    }
    progress_finish(&progress);
    check(file_writer_commit(&writer, &error), &error);
    return num_stories;
}

typedef struct {
    uintmax_t stories, bytes;
    double bits;
} Floor;

static Floor measure_floor(const Stories *validation, const char *path) {
    Floor floor = {0};
    const char *text;
    size_t at = 0, length;
    while (next_story(validation, &at, &text, &length)) {
        StoryParse parsed = story_parse(text, length);
        floor.stories++;
        if (parsed.num_parses != 1)
            die("story %ju of '%s' does not follow this grammar; write the files again",
                (uintmax_t)floor.stories, path);
        floor.bits += parsed.bits;
        floor.bytes += length;
    }
    if (floor.stories == 0) die("'%s' holds no stories; write the files again", path);
    return floor;
}

// Returns the bits per byte of the n-gram model on the validation stories.
static double measure_ngram(const Stories *train, const Stories *validation, int order, uint64_t bytes) {
    ByteNgram *model = byte_ngram_new(order);
    Progress progress;
    const char *text;
    size_t at = 0, length;
    progress_start(&progress, "counting n-grams", "B", train->size);
    while (next_story(train, &at, &text, &length)) {
        byte_ngram_add(model, text, length);
        progress_update(&progress, at);
    }
    progress_finish(&progress);
    double bits = 0;
    at = 0;
    while (next_story(validation, &at, &text, &length)) bits += byte_ngram_bits(model, text, length);
    byte_ngram_free(model);
    return bits / (double)bytes;
}

static void print_floor(FILE *stream, const Floor *floor, int order, double ngram) {
    fprintf(stream, "{\"bits_per_byte\": %.6f, \"stories\": %ju, \"bytes\": %ju, \"bits\": %.3f",
            floor->bits / (double)floor->bytes, (uintmax_t)floor->stories, (uintmax_t)floor->bytes,
            floor->bits);
    if (order > 0) fprintf(stream, ", \"ngram_order\": %d, \"ngram_bits_per_byte\": %.6f", order, ngram);
    fprintf(stream, "}\n");
}

static void write_floor(const char *path, const Floor *floor, int order, double ngram) {
    Error error;
    FileWriter writer;
    check(file_writer_open(&writer, path, &error), &error);
    print_floor(writer.stream, floor, order, ngram);
    check(file_writer_commit(&writer, &error), &error);
}

// Returns 1 if this program wrote the file of stories, proved by the grammar allowing all of them.
static int is_story_file(const char *path) {
    Error ignored;
    Stories stories;
    const char *text;
    size_t at = 0, length;
    if (file_read(path, SIZE_MAX / 2, &stories.data, &stories.size, &ignored) != 0) return 0;
    int ours = stories.size > 0;
    while (ours && next_story(&stories, &at, &text, &length))
        ours = story_parse(text, length).num_parses == 1;
    free(stories.data);
    return ours;
}

// Returns 1 if this program wrote the floor.json, proved by its numbers, printed again, giving the same text.
static int is_floor_file(const char *path) {
    Error ignored;
    char *data, *again = NULL;
    size_t size, again_size = 0;
    Floor floor = {0};
    int order = 0;
    double ngram = 0;
    if (file_read(path, 4096, &data, &size, &ignored) != 0) return 0;
    sscanf(data,
           "{\"bits_per_byte\": %*f, \"stories\": %ju, \"bytes\": %ju, \"bits\": %lf, \"ngram_order\": %d, "
           "\"ngram_bits_per_byte\": %lf}",
           &floor.stories, &floor.bytes, &floor.bits, &order, &ngram);
    FILE *stream = floor.bytes > 0 ? open_memstream(&again, &again_size) : NULL;
    if (stream != NULL) {
        print_floor(stream, &floor, order, ngram);
        fclose(stream);
    }
    int ours = again != NULL && again_size == size && memcmp(again, data, size) == 0;
    free(again);
    free(data);
    return ours;
}

static void write_corpus(const Settings *settings) {
    Error error;
    char *train_path = format_text("%s/train.txt", settings->out);
    char *validation_path = format_text("%s/validation.txt", settings->out);
    char *floor_path = format_text("%s/floor.json", settings->out);
    uint64_t seed = (uint64_t)settings->seed;
    check(overwrite_check(floor_path, settings->overwrite, is_floor_file, &error), &error);
    if (settings->write) {
        check(overwrite_check(train_path, settings->overwrite, is_story_file, &error), &error);
        check(overwrite_check(validation_path, settings->overwrite, is_story_file, &error), &error);
        check(folder_create(settings->out, &error), &error);
        uint64_t stories = write_stories(train_path, seed, TRAIN_STREAM, UINT64_MAX,
                                         (uint64_t)settings->train_bytes);
        write_stories(validation_path, seed, VALIDATION_STREAM, (uint64_t)settings->validation_stories,
                      UINT64_MAX);
        printf("wrote %ju stories to %s\n", (uintmax_t)stories, train_path);
    }
    Stories train = read_stories(train_path), validation = read_stories(validation_path);
    Floor floor = measure_floor(&validation, validation_path);
    double ngram = 0;
    if (settings->ngram > 0) ngram = measure_ngram(&train, &validation, (int)settings->ngram, floor.bytes);
    write_floor(floor_path, &floor, (int)settings->ngram, ngram);
    printf("%s: %zu bytes, %zu different words; %ju validation stories, floor %.4f bits/byte", settings->out,
           train.size, story_distinct_words(train.data, train.size), (uintmax_t)floor.stories,
           floor.bits / (double)floor.bytes);
    if (settings->ngram > 0) printf(", order-%d byte n-gram %.4f bits/byte", (int)settings->ngram, ngram);
    printf("\n");
    free(train.data);
    free(validation.data);
    free(train_path);
    free(validation_path);
    free(floor_path);
}

// Reports for every story of the file whether the grammar allows it. Empty lines around a story are ignored.
static void parse_file(const char *path) {
    Stories stories = read_stories(path);
    const char *text;
    size_t at = 0, length, num_stories = 0, num_parsed = 0, bytes = 0;
    double bits = 0;
    while (next_story(&stories, &at, &text, &length)) {
        for (; length > 0 && text[0] == '\n'; text++) length--;
        while (length > 1 && text[length - 1] == '\n' && text[length - 2] == '\n') length--;
        if (length == 0) continue;
        StoryParse parsed = story_parse(text, length);
        num_stories++;
        if (parsed.num_parses > 0) {
            num_parsed++;
            bits += parsed.bits;
            bytes += length;
            printf("story %zu: %.1f bits, %.4f bits/byte\n", num_stories, parsed.bits,
                   parsed.bits / (double)length);
            continue;
        }
        size_t start = parsed.furthest > 40 ? parsed.furthest - 40 : 0;
        printf("story %zu: departs from the grammar after byte %zu: '%.*s'\n", num_stories, parsed.furthest,
               (int)(parsed.furthest - start), text + start);
    }
    printf("stories that follow the grammar: %zu of %zu", num_parsed, num_stories);
    if (num_parsed > 0) printf(", %.4f bits/byte", bits / (double)bytes);
    printf("\n");
    free(stories.data);
}

int main(int argc, char **argv) {
    static Settings settings; // static: its texts of options live as long as the program
    Error error;
    int num_words;
    open_standard_descriptors();
    options_defaults(options, NUM_OPTIONS, &settings);
    int status = options_parse(options, NUM_OPTIONS, &settings, argc, argv, NULL, 0, &num_words, &error);
    if (status < 0) die("%s", error.text);
    if (status == OPTIONS_VERSION)
        printf("write_stories %s\n", VERSION);
    else if (status > 0)
        options_help(options, NUM_OPTIONS, stdout);
    else if (settings.parse[0])
        parse_file(settings.parse);
    else
        write_corpus(&settings);
    close_output();
    return 0;
}
