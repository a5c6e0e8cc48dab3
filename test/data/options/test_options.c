// Options: types, bounds and suffixes, syntax, option files, help; settings written to a file are read back
// unchanged.
#include "data/options/options.h"
#include "test/harness/test.h"

#include <stddef.h>
#include <string.h>
#include <unistd.h>

typedef struct {
    int64_t steps, seed;
    double rate;
    const char *name, *missing;
    int schedule, verbose, save;
} Settings;

#define FIELD(name) offsetof(Settings, name)
static const Option table[] = {
    {"First", "steps", OPTION_INTEGER, FIELD(steps), "10", 1, 1e9, NULL, "How many."},
    {NULL, "seed", OPTION_INTEGER, FIELD(seed), "0", -5, 9e15, NULL, "Which."},
    {NULL, "learning-rate", OPTION_REAL, FIELD(rate), "6e-4", 0, 10, NULL, "How fast."},
    {"Second", "name", OPTION_TEXT, FIELD(name), "gpt", 0, 0, NULL, "What."},
    {NULL, "missing", OPTION_TEXT, FIELD(missing), NULL, 0, 0, NULL, "Nothing."},
    {NULL, "schedule", OPTION_CHOICE, FIELD(schedule), "linear", 0, 0, "cosine|linear|lin", "Which one."},
    {NULL, "verbose", OPTION_FLAG, FIELD(verbose), "0", 0, 0, NULL, "Whether."},
    {NULL, "save", OPTION_FLAG, FIELD(save), "1", 0, 0, NULL, "Whether too."},
};
enum { COUNT = sizeof(table) / sizeof(table[0]), MAX_ARGUMENTS = 20 };

static Settings settings;
static Error error;
static const char *words[2];
static int num_words;

// Parses the words, up to NULL, starting from the defaults.
static int parse(const char *const *given) {
    char *arguments[MAX_ARGUMENTS] = {"program"};
    int count = 1;
    for (; given[count - 1] != NULL; count++) arguments[count] = (char *)given[count - 1];
    error.text[0] = '\0';
    num_words = -1;
    options_defaults(table, COUNT, &settings);
    return options_parse(table, COUNT, &settings, count, arguments, words, 2, &num_words, &error);
}
#define PARSE(...) parse((const char *const[]){__VA_ARGS__, NULL})
#define ACCEPT(holds, ...)                                                                                   \
    EXPECT(PARSE(__VA_ARGS__) == 0 && (holds), "%s: '%s'", ((const char *const[]){__VA_ARGS__})[0],          \
           error.text)

static void refuse(int result, const char *wanted, const char *what) {
    EXPECT(result == -1 && strstr(error.text, wanted), "%s: wanted '%s', got '%s'", what, wanted, error.text);
}
#define REFUSE(wanted, ...) refuse(PARSE(__VA_ARGS__), wanted, ((const char *const[]){__VA_ARGS__})[0])

static void test_defaults(void) {
    EXPECT(parse((const char *const[]){NULL}) == 0 && num_words == 0, "%s", error.text);
    EXPECT(settings.steps == 10 && settings.seed == 0 && settings.rate == 6e-4 && settings.schedule == 1,
           "numbers");
    EXPECT(strcmp(settings.name, "gpt") == 0 && settings.missing == NULL, "texts");
    EXPECT(settings.verbose == 0 && settings.save == 1, "flags");
    EXPECT(!options_given(table, COUNT, "steps") && !options_given(table, COUNT, "nonsense"), "given");
    EXPECT(strcmp(option_choice_name(table, COUNT, &settings, "schedule"), "linear") == 0, "choice");
}

static void test_types(void) {
    ACCEPT(settings.steps == 7 && options_given(table, COUNT, "steps"), "--steps", "7");
    ACCEPT(settings.steps == 7, "--steps=7");
    ACCEPT(settings.steps == 7000, "--steps=7k");
    ACCEPT(settings.steps == 1500000, "--steps=1.5M");
    ACCEPT(settings.seed == 2000000000, "--seed=2G");
    ACCEPT(settings.steps == 1000, "--steps=1e3");
    ACCEPT(settings.steps == 1 && settings.seed == -5, "--steps=1", "--seed", "-5");
    ACCEPT(settings.seed == 9000000000000000, "--seed=9000000000000000");
    ACCEPT(settings.steps == 9, "--steps=7", "--steps=9");
    ACCEPT(settings.rate == 0.5, "--learning-rate", ".5");
    ACCEPT(settings.rate == 10, "--learning-rate=1e1");
    ACCEPT(strcmp(settings.name, "") == 0, "--name=");
    ACCEPT(strcmp(settings.name, "a=b c") == 0, "--name=a=b c");
    ACCEPT(strcmp(settings.name, "--steps") == 0, "--name=--steps");
    ACCEPT(settings.schedule == 0, "--schedule=cosine");
    ACCEPT(settings.schedule == 2, "--schedule", "lin");
    ACCEPT(settings.verbose == 1 && settings.save == 0, "--verbose", "--no-save");
    ACCEPT(settings.verbose == 0, "--verbose", "--no-verbose");
    ACCEPT(settings.verbose == 1 && settings.save == 0, "--verbose=1", "--save=0");
    ACCEPT(num_words == 2 && settings.verbose && strcmp(words[1], "-") == 0, "in.txt", "--verbose", "-");
}

static void test_refusals(void) {
    static const char *const wholes[] = {"",   "ten", "1.5", "1k2", "1kk",   "1K", "0x10",
                                         " 1", "1 ",  "nan", "inf", "1e400", "--"};
    for (size_t i = 0; i < sizeof(wholes) / sizeof(wholes[0]); i++)
        REFUSE("--steps takes a whole number", "--steps", wholes[i]);
    static const char *const reals[] = {"", "fast", "1k", "1e", "nan", "-inf", "1,5", "0x1p-3"};
    for (size_t i = 0; i < sizeof(reals) / sizeof(reals[0]); i++)
        REFUSE("--learning-rate takes a number", "--learning-rate", reals[i]);
    REFUSE("--steps must be between 1 and 1000000000, not 0", "--steps=0");
    REFUSE("--steps must be between", "--steps=1000000001");
    REFUSE("--steps must be between", "--steps=1e290G");
    REFUSE("--seed must be between -5 and", "--seed", "-6");
    REFUSE("--learning-rate must be between 0 and 10", "--learning-rate=10.01");
    REFUSE("--schedule must be one of cosine|linear|lin, not 'line'", "--schedule", "line");
    REFUSE("--schedule must be one of", "--schedule=cosine|linear");
    REFUSE("--schedule must be one of", "--schedule=");
    REFUSE("--verbose is a flag", "--verbose=yes");
    REFUSE("--verbose is a flag", "--verbose=");
    REFUSE("--steps needs a value", "--verbose", "--steps");
    REFUSE("there is no --no-steps", "--no-steps");
    REFUSE("there is no option --no-save; did you mean --save?", "--no-save=1");
    REFUSE("--name needs a value, but --steps follows; a value that begins with dashes is given as "
           "--name=--steps",
           "--name", "--steps");
    REFUSE("--steps needs a value, but --no-save follows", "--steps", "--no-save");
    REFUSE("'c' is not an option", "a", "b", "c");
    REFUSE("if --name was given a pattern like data/*.bin, put quotes around it", "--name", "a", "b", "c",
           "d");
    REFUSE("there is no option -x; here it is --steps", "-x", "5");
    REFUSE("there is no option -w: options begin with two dashes, like --steps", "-w");
    REFUSE("'' is not an option", "a", "b", "");
    REFUSE("did you mean --learning-rate?", "--learning-rat", "1");
    REFUSE("did you mean --learning-rate?", "--lr-learning-rate=1");
    REFUSE("did you mean --learning-rate?", "--learn");
    REFUSE("did you mean --schedule?", "--shcedule");
    REFUSE("did you mean --learning-rate?", "--learning_rate=1");
    REFUSE("did you mean --steps?", "--train-steps");
    REFUSE("there is no option --xyzzyxyzzy; --help lists all options", "--xyzzyxyzzy");
    REFUSE("there is no option --; --help lists all options", "--");
    REFUSE("there is no option --; --help lists all options", "--=5");
    // Names used by other trainers for which there is an option of that meaning.
    REFUSE("there is no option --lr; here it is --learning-rate", "--lr", "1");
    REFUSE("there is no option --max-steps; here it is --steps", "--max-steps=5");
    REFUSE("there is no option --max_iters; here it is --steps", "--max_iters=5");
    REFUSE("there is no option --device: the build decides", "--device", "cuda");
    REFUSE("there is no option --batch-size; --help lists", "--batch-size", "4");
    char longest[200] = "--";
    memset(longest + 2, 's', 197);
    REFUSE("there is no option --sss", longest);
    EXPECT(options_set(table, COUNT, &settings, "stepz", "5", &error) == -1 && strstr(error.text, "--steps?"),
           "%s", error.text);
}

// ---- files ------------------------------------------------------------------------------------------------

static char folder[64];

static char *write_file(const char *name, const char *text, size_t size) {
    char *path = format_text("%s/%s", folder, name), *argument = format_text("@%s", path);
    FILE *stream = fopen(path, "wb");
    if (stream == NULL || fwrite(text, 1, size, stream) != size || fclose(stream) != 0)
        die("cannot write %s", path);
    free(path);
    return argument;
}

static char *file(const char *text) {
    return write_file("options.txt", text, strlen(text));
}

static void test_files(void) {
    char *path = file("# a comment with \"a quote\n--steps 7 --seed=8 # another\n\n\t--name \"two "
                      "words\"\r\n\"--learning-rate=0.5\"");
    ACCEPT(settings.steps == 7 && settings.seed == 8 && settings.rate == 0.5, path);
    EXPECT(strcmp(settings.name, "two words") == 0, "'%s'", settings.name);
    ACCEPT(settings.steps == 9 && settings.seed == 8, path, "--steps=9"); // later settings win
    ACCEPT(settings.steps == 7 && settings.seed == 8, "--steps=9", path);
    free(path);
    path = file("--name=a#b \"# no comment\" --missing=\"x\"\"y\"z \"\"");
    ACCEPT(strcmp(settings.name, "a#b") == 0 && strcmp(settings.missing, "xyz") == 0, path);
    EXPECT(num_words == 2 && strcmp(words[0], "# no comment") == 0 && words[1][0] == '\0', "%d words",
           num_words);
    free(path);
    path = file("--name=\"a \\\"b\\\" \\\\ \\n\" --missing=\\\\");
    ACCEPT(strcmp(settings.name, "a \"b\" \\ \\n") == 0 && strcmp(settings.missing, "\\\\") == 0, path);
    free(path);
    path = file("");
    ACCEPT(num_words == 0, path);
    free(path);
    path = file("# only this");
    ACCEPT(num_words == 0, path);
    REFUSE("not a regular file", "@/dev/null");
    REFUSE("cannot open", "@");
    REFUSE("cannot open '/nowhere'", "@/nowhere");
    free(path);
    path = file("--name \"open");
    REFUSE("a quote that is not closed", path);
    free(path);
    path = file("--steps");
    REFUSE("--steps needs a value", path, "7"); // a value cannot follow after the end of a file
    free(path);
    path = file("--nmae x");
    REFUSE("did you mean --name?", path);
    free(path);
    path = write_file("options.txt", "--steps 7\0--seed 8", 18);
    REFUSE("byte of value 0", path);
    free(path);
}

static void test_nesting(void) {
    char *inner = write_file("inner.txt", "--steps=7", 9), *text = format_text("--seed=1 %s --name=x", inner);
    char *outer = write_file("outer.txt", text, strlen(text));
    ACCEPT(settings.steps == 7 && settings.seed == 1 && strcmp(settings.name, "x") == 0, outer);
    free(write_file("outer.txt", outer, strlen(outer))); // it names itself
    REFUSE("too deeply", outer);
    free(text);
    text = format_text("%s", inner);
    free(write_file("outer.txt", text, strlen(text)));
    free(write_file("inner.txt", outer, strlen(outer))); // a cycle of two files
    REFUSE("too deeply", inner);
    free(inner);
    free(outer);
    free(text);
}

// ---- output -----------------------------------------------------------------------------------------------

static void test_help(void) {
    char *text = NULL;
    size_t size;
    FILE *stream = open_memstream(&text, &size);
    options_help(table, COUNT, stream);
    fclose(stream);
    for (int i = 0; i < COUNT; i++)
        EXPECT(strstr(text, table[i].name) && strstr(text, table[i].help), "%s", table[i].name);
    EXPECT(strstr(text, "\nFirst\n") && strstr(text, "\nSecond\n"), "groups");
    EXPECT(strstr(text, "(default: 10; 1 to 1e+09)") && strstr(text, "(default: linear)"), "%s", text);
    EXPECT(strstr(text, "--[no-]save") && strstr(text, "(default: on)") && strstr(text, "cosine|linear|lin"),
           "%s", text);
    free(text);
    EXPECT(PARSE("--help") == OPTIONS_HELP && PARSE("-h") == OPTIONS_USAGE &&
               PARSE("--version") == OPTIONS_VERSION,
           "questions");
    EXPECT(PARSE("--steps=7", "--help", "--nonsense") == OPTIONS_HELP, "help ends parsing");
    // Lines are as wide as COLUMNS says.
    setenv("COLUMNS", "50", 1);
    static const Option wordy[] = {{NULL, "long", OPTION_TEXT, FIELD(name), NULL, 0, 0, NULL,
                                    "Words that go on for longer than the line of a narrow terminal."}};
    stream = open_memstream(&text, &size);
    options_help(wordy, 1, stream);
    fclose(stream);
    EXPECT(strcmp(text, "  --long TEXT\n        Words that go on for longer than the line\n        of a "
                        "narrow terminal.\n") == 0,
           "%s", text);
    free(text);
    unsetenv("COLUMNS");
}

// Writes the parsed settings, reads them back over the defaults, and compares.
static void expect_same(const char *const *given) {
    EXPECT(parse(given) == 0, "%s", error.text);
    Settings written = settings;
    char *path = file("");
    FILE *stream = fopen(path + 1, "w");
    options_write(table, COUNT, &settings, stream);
    fclose(stream);
    EXPECT(PARSE(path) == 0, "%s", error.text);
    EXPECT(settings.steps == written.steps && settings.seed == written.seed && settings.rate == written.rate,
           "numbers");
    EXPECT(settings.schedule == written.schedule && settings.verbose == written.verbose &&
               settings.save == written.save,
           "choices and flags");
    EXPECT(strcmp(settings.name, written.name) == 0, "'%s' for '%s'", settings.name, written.name);
    EXPECT((settings.missing == NULL) == (written.missing == NULL), "missing");
    free(path);
}

static void test_write(void) {
    static const char *const names[] = {
        "",   "x",          "two words", "--steps=5",       "@file",        "#",        "a \"b\" c",
        "\\", "a\\\"b\\\\", "\"",        "line\nline\ttab", "\xc3\xa9\xff", "'single'", "$HOME `x`"};
    expect_same((const char *const[]){NULL});
    expect_same((const char *const[]){"--steps=1M", "--seed=8999999999999999", "--learning-rate=0.1",
                                      "--missing=there", "--schedule=lin", "--verbose", "--no-save", NULL});
    expect_same((const char *const[]){"--learning-rate=0.30000000000000004", "--seed=-3", NULL});
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        char *word = format_text("--name=%s", names[i]);
        expect_same((const char *const[]){word, NULL});
        free(word);
    }
}

static void test_quoting(void) {
    static const char *const pairs[][2] = {
        {"runs/x", "runs/x"}, {"", "''"}, {"a b", "'a b'"}, {"it's", "'it'\\''s'"}, {"$HOME", "'$HOME'"}};
    for (size_t i = 0; i < sizeof(pairs) / sizeof(pairs[0]); i++) {
        char *quoted = quote_for_shell(pairs[i][0]);
        EXPECT(strcmp(quoted, pairs[i][1]) == 0, "%s", quoted);
        free(quoted);
    }
}

int main(void) {
    const char *parent = getenv("TMPDIR");
    snprintf(folder, sizeof(folder), "%.40s/options_XXXXXX", parent ? parent : "/tmp");
    if (mkdtemp(folder) == NULL) die("cannot create %s", folder);
    test_defaults();
    test_types();
    test_refusals();
    test_files();
    test_nesting();
    test_help();
    test_write();
    test_quoting();
    static const char *const left[] = {"options.txt", "inner.txt", "outer.txt"};
    for (int i = 0; i < 3; i++) {
        char *path = format_text("%s/%s", folder, left[i]);
        unlink(path);
        free(path);
    }
    rmdir(folder);
    return test_finish();
}
