#define _GNU_SOURCE
#include "options.h"

#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>
#include "option_names.h"

// The options that were given, by position in the only table that a program parses.
enum { MAX_OPTIONS = 256, MAX_FILE_DEPTH = 8 };
static unsigned char given[MAX_OPTIONS];

// Copies a text value, which must live as long as the program; the list keeps values reachable that later settings
// replace.
static const char *copy_text(const char *value) {
    static char **texts;
    static size_t count, capacity;
    if (count == capacity) texts = (char **)xrealloc(texts, (capacity = 2 * capacity + 16) * sizeof(char *));
    return texts[count++] = xstrdup(value);
}

// The state of parsing.
typedef struct {
    const Option *table;
    size_t count;
    void *settings;
    const char **words;
    int max_words, num_words;
    int question;     // one of the questions in options.h; 0: none
    const char *last; // name of the text option that was parsed last
} Parser;

static const Option *find_option(const Option *table, size_t count, const char *name, size_t length) {
    for (size_t i = 0; i < count; i++)
        if (strlen(table[i].name) == length && memcmp(table[i].name, name, length) == 0) return &table[i];
    return NULL;
}

// Returns the number of letters that must be replaced, inserted, deleted or swapped with the next one to turn one
// word into the other (the "optimal string alignment" distance). Names longer than the buffer count as very distant.
static int edit_distance(const char *a, const char *b) {
    enum { MAX_NAME = 64 };
    size_t n = strlen(a), m = strlen(b);
    if (n >= MAX_NAME || m >= MAX_NAME) return MAX_NAME;
    int rows[3][MAX_NAME]; // for the letters i - 2, i - 1 and i of a, alternating
    for (size_t j = 0; j <= m; j++) rows[0][j] = (int)j;
    for (size_t i = 1; i <= n; i++) {
        int *row = rows[i % 3];
        const int *above = rows[(i - 1) % 3], *two_above = rows[(i + 1) % 3];
        row[0] = (int)i;
        for (size_t j = 1; j <= m; j++) {
            int smallest = above[j - 1] + (a[i - 1] != b[j - 1]);
            if (above[j] + 1 < smallest) smallest = above[j] + 1;
            if (row[j - 1] + 1 < smallest) smallest = row[j - 1] + 1;
            const int swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
            if (swapped && two_above[j - 2] + 1 < smallest) smallest = two_above[j - 2] + 1;
            row[j] = smallest;
        }
    }
    return rows[n % 3][m];
}

// Returns the distance of an unknown name from an option's: 0 for the beginning of its name; 1 if it begins with the
// option's name, or if one consists of whole words of the other ("max-steps" and "steps"); else 1 + the edit
// distance.
static int name_distance(const char *name, const char *option) {
    const size_t length = strlen(name), other = strlen(option);
    if (length > 0 && strncmp(name, option, length) == 0) return 0;
    if (other > 2 && strncmp(name, option, other) == 0) return 1;
    const char *shorter = length < other ? name : option, *longer = length < other ? option : name;
    const size_t part = strlen(shorter);
    for (const char *at = longer; part > 2 && (at = strstr(at, shorter)) != NULL; at++)
        if ((at == longer || at[-1] == '-') && (at[part] == '\0' || at[part] == '-')) return 1;
    return 1 + edit_distance(name, option);
}

// Returns the row for another trainer's option name, or NULL.
static const ForeignOption *find_foreign(const Parser *parser, const char *name) {
    for (size_t i = 0; i < sizeof(FOREIGN_OPTIONS) / sizeof(FOREIGN_OPTIONS[0]); i++) {
        const ForeignOption *foreign = &FOREIGN_OPTIONS[i];
        if (strcmp(foreign->theirs, name) != 0) continue;
        if (foreign->ours == NULL) return foreign;
        if (find_option(parser->table, parser->count, foreign->ours, strlen(foreign->ours)) != NULL)
            return foreign;
    }
    return NULL;
}

// `dashes` and `name`: as they were given.
static int fail_foreign(const ForeignOption *foreign, const char *dashes, const char *name, Error *error) {
    if (foreign->ours == NULL) return fail(error, "there is no option %s%s: %s", dashes, name, foreign->note);
    return fail(error, "there is no option %s%s; here it is --%s%s%s", dashes, name, foreign->ours,
                foreign->note ? ", " : "", foreign->note ? foreign->note : "");
}

static int fail_unknown(const Parser *parser, const char *name, Error *error) {
    const char *nearest = NULL;
    int distance = 1000;
    char *with_dashes = xstrdup(name); // other trainers use underscores
    for (char *c = with_dashes; *c != '\0'; c++)
        if (*c == '_') *c = '-';
    for (size_t i = 0; i < parser->count; i++) {
        int d = strcmp(with_dashes, parser->table[i].name) == 0
                    ? -1
                    : name_distance(with_dashes, parser->table[i].name);
        if (d < distance) {
            distance = d;
            nearest = parser->table[i].name;
        }
    }
    const ForeignOption *foreign = distance < 0 ? NULL : find_foreign(parser, with_dashes);
    const int close = distance <= 1 || distance <= 1 + (int)strlen(with_dashes) / 3;
    free(with_dashes);
    if (foreign != NULL) return fail_foreign(foreign, "--", name, error);
    if (nearest != NULL && close)
        return fail(error, "there is no option --%s; did you mean --%s?", name, nearest);
    return fail(error, "there is no option --%s; --help lists all options", name);
}

// Reports a word that begins with one dash.
static int fail_letter(const Parser *parser, const char *word, Error *error) {
    const ForeignOption *foreign = strlen(word) == 2 ? find_foreign(parser, word + 1) : NULL;
    if (foreign != NULL && foreign->ours != NULL) return fail_foreign(foreign, "-", word + 1, error);
    return fail(error, "there is no option %s: options begin with two dashes, like --%s; -h lists them", word,
                parser->table[0].name);
}

static int parse_number(const Option *option, const char *value, double *number, Error *error) {
    char *end;
    *number = strtod(value, &end);
    int valid = end != value && !isspace((unsigned char)value[0]);
    if (valid && option->type == OPTION_INTEGER && *end != '\0') {
        const char *suffixes = "kMG", *suffix = strchr(suffixes, *end);
        if (suffix != NULL) {
            for (int i = 0; i <= suffix - suffixes; i++) *number *= 1000;
            end++;
        }
    }
    valid = valid && *end == '\0' && isfinite(*number) && strpbrk(value, "xX") == NULL;
    if (valid && option->type == OPTION_INTEGER) valid = *number == floor(*number);
    if (!valid)
        return fail(error, "--%s takes %s, not '%s'", option->name,
                    option->type == OPTION_INTEGER ? "a whole number" : "a number", value);
    if (*number < option->minimum || *number > option->maximum)
        return fail(error, "--%s must be between %.10g and %.10g, not %s", option->name, option->minimum,
                    option->maximum, value);
    return 0;
}

// Returns the index of `value` in "a|b|c", or -1.
static int choice_index(const char *choices, const char *value) {
    size_t length = strlen(value);
    int index = 0;
    for (const char *choice = choices;; index++) {
        size_t n = strcspn(choice, "|");
        if (n == length && memcmp(choice, value, n) == 0) return index;
        if (choice[n] == '\0') return -1;
        choice += n + 1;
    }
}

// The value's present name.
static const char *renamed_value(const Option *option, const char *value) {
    for (size_t i = 0; i < sizeof(RENAMED_VALUES) / sizeof(RENAMED_VALUES[0]); i++)
        if (strcmp(RENAMED_VALUES[i].option, option->name) == 0 && strcmp(RENAMED_VALUES[i].old, value) == 0)
            return RENAMED_VALUES[i].value;
    return value;
}

static int set_value(const Option *option, void *settings, const char *value, Error *error) {
    char *field = (char *)settings + option->offset;
    double number;
    switch (option->type) {
    case OPTION_INTEGER:
        if (parse_number(option, value, &number, error) != 0) return -1;
        *(int64_t *)field = (int64_t)number;
        return 0;
    case OPTION_REAL:
        if (parse_number(option, value, &number, error) != 0) return -1;
        *(double *)field = number;
        return 0;
    case OPTION_TEXT:
        *(const char **)field = copy_text(value);
        return 0;
    case OPTION_CHOICE: {
        int index = choice_index(option->choices, renamed_value(option, value));
        if (index < 0)
            return fail(error, "--%s must be one of %s, not '%s'", option->name, option->choices, value);
        *(int *)field = index;
        return 0;
    }
    case OPTION_FLAG:
        if (strcmp(value, "1") != 0 && strcmp(value, "0") != 0)
            return fail(error, "--%s is a flag: --%s or --no-%s, not '%s'", option->name, option->name,
                        option->name, value);
        *(int *)field = value[0] == '1';
        return 0;
    }
    return -1;
}

void options_defaults(const Option *table, size_t count, void *settings) {
    Error error;
    if (count > MAX_OPTIONS)
        die("the options table has %zu entries, at most %d are possible", count, MAX_OPTIONS);
    memset(given, 0, sizeof(given));
    for (size_t i = 0; i < count; i++)
        if (table[i].type == OPTION_TEXT && table[i].default_text == NULL)
            *(const char **)((char *)settings + table[i].offset) = NULL;
        else if (set_value(&table[i], settings, table[i].default_text, &error) != 0)
            die("the default of an option is wrong: %s", error.text);
}

int options_set(const Option *table, size_t count, void *settings, const char *name, const char *value,
                Error *error) {
    Parser parser = {table, count, settings, NULL, 0, 0, 0, NULL};
    const Option *option = find_option(table, count, name, strlen(name));
    if (option == NULL) return fail_unknown(&parser, name, error);
    if (set_value(option, settings, value, error) != 0) return -1;
    given[option - table] = 1;
    return 0;
}

void options_forget_given(void) {
    memset(given, 0, sizeof(given));
}

int options_given(const Option *table, size_t count, const char *name) {
    const Option *option = find_option(table, count, name, strlen(name));
    return option != NULL && given[option - table];
}

// Parses one word that begins with "--", with the next word as its value if it needs one.
static int parse_option(Parser *parser, const char *word, const char *next, int *used_next, Error *error) {
    const char *name = word + 2, *equals = strchr(name, '=');
    size_t length = equals ? (size_t)(equals - name) : strlen(name);
    *used_next = 0;
    if (strcmp(name, "help") == 0 || strcmp(name, "version") == 0) {
        parser->question = name[0] == 'h' ? OPTIONS_HELP : OPTIONS_VERSION;
        return 0;
    }
    const Option *option = find_option(parser->table, parser->count, name, length);
    if (option == NULL && length > 3 && memcmp(name, "no-", 3) == 0 && equals == NULL) {
        option = find_option(parser->table, parser->count, name + 3, length - 3);
        if (option != NULL && option->type != OPTION_FLAG)
            return fail(error, "--%s is not a flag, so there is no --no-%s", option->name, option->name);
        if (option != NULL)
            return options_set(parser->table, parser->count, parser->settings, option->name, "0", error);
    }
    if (option == NULL) {
        char *copy = xstrdup(name);
        copy[length] = '\0';
        fail_unknown(parser, copy, error);
        free(copy);
        return -1;
    }
    const char *value = equals ? equals + 1 : option->type == OPTION_FLAG ? "1" : next;
    if (value == NULL) return fail(error, "--%s needs a value", option->name);
    if (value == next && strncmp(value, "--", 2) == 0 && isalpha((unsigned char)value[2]))
        return fail(error,
                    "--%s needs a value, but %s follows; a value that begins with dashes is given as --%s=%s",
                    option->name, value, option->name, value);
    if (option->type == OPTION_TEXT) parser->last = option->name;
    *used_next = equals == NULL && option->type != OPTION_FLAG;
    return options_set(parser->table, parser->count, parser->settings, option->name, value, error);
}

static int parse_words(Parser *parser, int count, char **words, int depth, Error *error);

// Splits text into words, in place, like a shell: blanks separate words, double quotes group them, \" and \\ inside
// quotes mean " and \, and '#' begins a comment. Returns the number of words, or -1 for an unclosed quote.
static int split_words(char *text, char **words) {
    int count = 0, inside = 0, quoted = 0;
    char *out = text; // never ahead of `in`: the terminating NUL replaces the blank after the word
    for (char *in = text;; in++) {
        int end = *in == '\0', blank = end || (!quoted && isspace((unsigned char)*in));
        if (!inside && !blank && *in == '#') {
            while (in[1] != '\0' && in[1] != '\n') in++;
            continue;
        }
        if (!inside && !blank) {
            words[count++] = out;
            inside = 1;
        }
        if (inside && blank) {
            *out++ = '\0';
            inside = 0;
        } else if (!blank && *in == '"') {
            quoted = !quoted;
        } else if (!blank) {
            if (quoted && *in == '\\' && (in[1] == '"' || in[1] == '\\')) in++;
            *out++ = *in;
        }
        if (end) return quoted ? -1 : count;
    }
}

static int parse_file(Parser *parser, const char *path, int depth, Error *error) {
    enum { LARGEST = 1 << 20 };
    char *text;
    size_t size;
    if (depth > MAX_FILE_DEPTH) return fail(error, "option files name each other too deeply at '@%s'", path);
    if (file_read(path, LARGEST, &text, &size, error) != 0) return -1;
    char **words = (char **)xmalloc((size / 2 + 2) * sizeof(char *));
    int result = 0, count = 0;
    if (strlen(text) != size)
        result = fail(error, "'%s' is not an option file: it has a byte of value 0", path);
    else if ((count = split_words(text, words)) < 0)
        result = fail(error, "'%s' has a quote that is not closed", path);
    else
        result = parse_words(parser, count, words, depth, error);
    free(words);
    free(text);
    return result;
}

// Reports a word that is neither an option nor an option's value: most often a shell has expanded an unquoted
// pattern.
static int fail_word(const Parser *parser, const char *word, Error *error) {
    if (word[0] == '-' && word[1] != '\0') return fail_letter(parser, word, error);
    if (parser->last != NULL)
        return fail(
            error,
            "'%s' is not an option; if --%s was given a pattern like data/*.bin, put quotes around it: --%s "
            "'data/*.bin'",
            word, parser->last, parser->last);
    return fail(error, "'%s' is not an option: options begin with two dashes, like --%s; -h lists them", word,
                parser->table[0].name);
}

// Returns 1 for a line "--name=value" of an option that there is no more.
static int is_retired(const char *word) {
    for (size_t i = 0; i < sizeof(RETIRED_OPTIONS) / sizeof(RETIRED_OPTIONS[0]); i++) {
        const size_t length = strlen(RETIRED_OPTIONS[i]);
        if (strncmp(word, "--", 2) == 0 && strncmp(word + 2, RETIRED_OPTIONS[i], length) == 0 &&
            word[2 + length] == '=')
            return 1;
    }
    return 0;
}

static int parse_words(Parser *parser, int count, char **words, int depth, Error *error) {
    for (int i = 0; i < count && !parser->question; i++) {
        int used_next = 0;
        if (depth > 0 && is_retired(words[i])) continue;
        if (strcmp(words[i], "-h") == 0) {
            parser->question = OPTIONS_USAGE;
        } else if (words[i][0] == '@') {
            if (parse_file(parser, words[i] + 1, depth + 1, error) != 0) return -1;
        } else if (words[i][0] == '-' && words[i][1] == '-') {
            const char *next = i + 1 < count ? words[i + 1] : NULL;
            if (parse_option(parser, words[i], next, &used_next, error) != 0) return -1;
        } else if (parser->num_words < parser->max_words && (words[i][0] != '-' || words[i][1] == '\0')) {
            parser->words[parser->num_words++] = depth > 0 ? copy_text(words[i]) : words[i];
        } else {
            return fail_word(parser, words[i], error);
        }
        i += used_next;
    }
    return 0;
}

int options_parse(const Option *table, size_t count, void *settings, int argc, char **argv,
                  const char **words, int max_words, int *num_words, Error *error) {
    Parser parser = {table, count, settings, words, max_words, 0, 0, NULL};
    int result = parse_words(&parser, argc - 1, argv + 1, 0, error);
    if (num_words != NULL) *num_words = parser.num_words;
    return result != 0 ? -1 : parser.question;
}

// ---- help -------------------------------------------------------------------------------------------------

// Returns the width of the terminal that the stream is, clamped to readable limits; else that of COLUMNS, else 80.
static int terminal_columns(FILE *stream) {
    enum { NARROW = 40, USUAL = 80, WIDE = 120 };
    struct winsize size;
    const char *variable = getenv("COLUMNS");
    int columns = variable != NULL ? atoi(variable) : 0;
    if (fileno(stream) >= 0 && ioctl(fileno(stream), TIOCGWINSZ, &size) == 0) columns = size.ws_col;
    if (columns <= 0) columns = USUAL;
    return columns < NARROW ? NARROW : columns > WIDE ? WIDE : columns;
}

// Prints the words of a text from column `at` on, in lines that begin at column `indent` and end before `columns`.
static void print_wrapped(FILE *stream, const char *text, int at, int indent, int columns) {
    int begun = 0; // 1 if the line has a word
    while (*text != '\0') {
        const int length = (int)strcspn(text, " ");
        if (begun && at + 1 + length > columns - 1) {
            fprintf(stream, "\n%*s", indent, "");
            at = indent;
            begun = 0;
        }
        at += fprintf(stream, "%s%.*s", begun ? " " : "", length, text);
        begun = 1;
        text += length;
        text += strspn(text, " ");
    }
    fprintf(stream, "\n");
}

// Returns the default and the bounds as text; the caller frees it.
static char *describe_values(const Option *option) {
    if (option->type == OPTION_FLAG)
        return format_text(" (default: %s)", option->default_text[0] == '1' ? "on" : "off");
    if (option->type == OPTION_INTEGER || option->type == OPTION_REAL)
        return format_text(" (default: %s; %.6g to %.6g)", option->default_text, option->minimum,
                           option->maximum);
    const int has_default = option->default_text != NULL && option->default_text[0] != '\0';
    return has_default ? format_text(" (default: %s)", option->default_text) : xstrdup("");
}

// Returns the help text with the choices inserted; the caller frees it.
static char *list_choices(const Option *option, const char *values) {
    char *text = format_text("%s; one of", option->help);
    for (const char *choice = option->choices; *choice != '\0';) {
        const int length = (int)strcspn(choice, "|");
        char *longer = format_text("%s %.*s%s", text, length, choice, choice[length] == '|' ? "," : values);
        free(text);
        text = longer;
        choice += length + (choice[length] == '|');
    }
    return text;
}

static void print_option(FILE *stream, const Option *option, int columns) {
    enum { INDENT = 32 };
    static const char *const kinds[] = {" N", " X", " TEXT", " ", ""};
    char left[160], *values = describe_values(option);
    snprintf(left, sizeof(left), "  --%s%s%s%s", option->type == OPTION_FLAG ? "[no-]" : "", option->name,
             kinds[option->type], option->type == OPTION_CHOICE ? option->choices : "");
    char *text = format_text("%s%s", option->help, values);
    const int indent = columns < 2 * INDENT ? 8 : INDENT;
    if (option->type == OPTION_CHOICE &&
        (int)strlen(left) >= columns) { // choices separated by blanks can be wrapped
        snprintf(left, sizeof(left), "  --%s NAME", option->name);
        free(text);
        text = list_choices(option, values);
    }
    const int length = (int)strlen(left);
    if (length + 2 > indent)
        fprintf(stream, "%s\n%*s", left, indent, "");
    else
        fprintf(stream, "%-*s", indent, left);
    print_wrapped(stream, text, indent, indent, columns);
    free(text);
    free(values);
}

void options_help(const Option *table, size_t count, FILE *stream) {
    const int columns = terminal_columns(stream);
    for (size_t i = 0; i < count; i++) {
        if (table[i].group != NULL) fprintf(stream, "\n%s\n", table[i].group);
        print_option(stream, &table[i], columns);
    }
}

const char *option_choice_name(const Option *table, size_t count, const void *settings, const char *name) {
    static char text[64];
    const Option *option = find_option(table, count, name, strlen(name));
    if (option == NULL || option->type != OPTION_CHOICE) die("'%s' is not an option with choices", name);
    int index = *(const int *)((const char *)settings + option->offset);
    const char *choice = option->choices;
    while (index-- > 0) choice += strcspn(choice, "|") + 1;
    snprintf(text, sizeof(text), "%.*s", (int)strcspn(choice, "|"), choice);
    return text;
}

char *quote_for_shell(const char *word) {
    static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-+=./,:@%";
    if (word[0] != '\0' && word[strspn(word, plain)] == '\0') return xstrdup(word);
    char *quoted = (char *)xmalloc(4 * strlen(word) + 3), *out = quoted;
    *out++ = '\'';
    for (; *word != '\0'; word++) {
        if (*word == '\'') { // yields 'it'\''s'
            memcpy(out, "'\\'", 3);
            out += 3;
        }
        *out++ = *word;
    }
    memcpy(out, "'", 2);
    return quoted;
}

// Writes an option in the syntax that split_words reads.
static void write_quoted(const char *name, const char *value, FILE *stream) {
    fprintf(stream, "\"--%s=", name);
    for (; *value != '\0'; value++) {
        if (*value == '"' || *value == '\\') fputc('\\', stream);
        fputc(*value, stream);
    }
    fprintf(stream, "\"\n");
}

void options_write(const Option *table, size_t count, const void *settings, FILE *stream) {
    for (size_t i = 0; i < count; i++) {
        const char *field = (const char *)settings + table[i].offset;
        switch (table[i].type) {
        case OPTION_INTEGER:
            fprintf(stream, "--%s=%lld\n", table[i].name, (long long)*(const int64_t *)field);
            break;
        case OPTION_REAL:
            fprintf(stream, "--%s=%.17g\n", table[i].name, *(const double *)field);
            break;
        case OPTION_FLAG:
            fprintf(stream, "--%s%s\n", *(const int *)field ? "" : "no-", table[i].name);
            break;
        case OPTION_CHOICE:
            fprintf(stream, "--%s=%s\n", table[i].name,
                    option_choice_name(table, count, settings, table[i].name));
            break;
        case OPTION_TEXT:
            if (*(const char *const *)field != NULL)
                write_quoted(table[i].name, *(const char *const *)field, stream);
            break;
        }
    }
}
