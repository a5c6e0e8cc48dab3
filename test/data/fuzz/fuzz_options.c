// libFuzzer target: the input is an option file. It is either refused with a sentence, or gives settings within their
// bounds that are unchanged when written and read back.
#include "data/options/options.h"
#include "fuzz.h"

#include <stddef.h>

typedef struct {
    int64_t steps;
    double rate;
    const char *name;
    int schedule, verbose;
} Settings;

#define FIELD(name) offsetof(Settings, name)
static const Option table[] = {
    {"Options", "steps", OPTION_INTEGER, FIELD(steps), "10", -1000, 9e15, NULL, ""},
    {NULL, "learning-rate", OPTION_REAL, FIELD(rate), "6e-4", -1, 1e300, NULL, ""},
    {NULL, "name", OPTION_TEXT, FIELD(name), "gpt", 0, 0, NULL, ""},
    {NULL, "schedule", OPTION_CHOICE, FIELD(schedule), "linear", 0, 0, "cosine|linear|constant", ""},
    {NULL, "verbose", OPTION_FLAG, FIELD(verbose), "0", 0, 0, NULL, ""},
};
enum { COUNT = sizeof table / sizeof table[0] };

static int read_back(char *argument, Settings *settings, Error *error) {
    char *arguments[2] = {"program", argument};
    const char *words[4];
    int num_words;
    options_defaults(table, COUNT, settings);
    return options_parse(table, COUNT, settings, 2, arguments, words, 4, &num_words, error);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char *argument = format_text("@%s/options.txt", fuzz_folder());
    Settings settings, again;
    Error error = {"", 0};
    put_file(argument + 1, data, size);
    int result = read_back(argument, &settings, &error);
    must(result != -1 || error.text[0] != '\0');
    if (result == 0) {
        must(settings.steps >= -1000 && settings.steps <= 9000000000000000 && settings.rate >= -1 &&
             settings.rate <= 1e300);
        must(settings.schedule >= 0 && settings.schedule <= 2 && (settings.verbose | 1) == 1);
        FILE *stream = fopen(argument + 1, "w");
        options_write(table, COUNT, &settings, stream);
        fclose(stream);
        must(read_back(argument, &again, &error) == 0);
        must(again.steps == settings.steps && again.rate == settings.rate &&
             again.schedule == settings.schedule && again.verbose == settings.verbose &&
             strcmp(again.name, settings.name) == 0);
    }
    free(argument);
    return 0;
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    static const char seed[] =
        "# comment\n--steps 5k --learning-rate=1e-3\n\"--name=a \\\"b\\\" \\\\\" --schedule=cosine\n"
        "--no-verbose --verbose word \"two words\"\n";
    write_seed(*argc, *argv, "options", 0, seed, strlen(seed));
    return 0;
}
