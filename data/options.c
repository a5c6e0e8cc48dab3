#define _GNU_SOURCE
#include "options.h"

#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

// Which options were given, by position in the one table a program parses.
enum { MAX_OPTIONS = 256, MAX_FILE_DEPTH = 8 };
static unsigned char given[MAX_OPTIONS];

// Text values live as long as the program; the list keeps those reachable that a later setting replaced.
static const char *keep_text(const char *value) {
    static char **texts;
    static size_t count, capacity;
    if (count == capacity) texts = (char **)xrealloc(texts, (capacity = 2 * capacity + 16) * sizeof(char *));
    return texts[count++] = xstrdup(value);
}

// What parsing carries around.
typedef struct {
    const Option *table;
    size_t count;
    void *settings;
    const char **words;
    int max_words, num_words;
    int help;
} Parser;

static const Option *find(const Option *table, size_t count, const char *name, size_t length) {
    for (size_t i = 0; i < count; i++)
        if (strlen(table[i].name) == length && memcmp(table[i].name, name, length) == 0) return &table[i];
    return NULL;
}

// Levenshtein distance of two short words; names longer than the buffer are simply far away.
static int edit_distance(const char *a, const char *b) {
    enum { LONGEST = 64 };
    size_t n = strlen(a), m = strlen(b);
    if (n >= LONGEST || m >= LONGEST) return LONGEST;
    int row[LONGEST];
    for (size_t j = 0; j <= m; j++) row[j] = (int)j;
    for (size_t i = 1; i <= n; i++) {
        int diagonal = row[0];
        row[0] = (int)i;
        for (size_t j = 1; j <= m; j++) {
            int substitute = diagonal + (a[i - 1] != b[j - 1]);
            int least = row[j] < row[j - 1] ? row[j] + 1 : row[j - 1] + 1;
            diagonal = row[j];
            row[j] = substitute < least ? substitute : least;
        }
    }
    return row[m];
}

static int fail_unknown(const Parser *parser, const char *name, Error *error) {
    const char *nearest = NULL;
    int distance = 1000;
    for (size_t i = 0; i < parser->count; i++) {
        int d = edit_distance(name, parser->table[i].name);
        if (name[0] != '\0' && strncmp(name, parser->table[i].name, strlen(name)) == 0)
            d = 0; // an abbreviation is close
        if (d < distance) {
            distance = d;
            nearest = parser->table[i].name;
        }
    }
    if (nearest != NULL && distance <= 1 + (int)strlen(name) / 2)
        return fail(error, "there is no option --%s; did you mean --%s?", name, nearest);
    return fail(error, "there is no option --%s; see --help", name);
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

// Index of value in "a|b|c", or -1.
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
        *(const char **)field = keep_text(value);
        return 0;
    case OPTION_CHOICE: {
        int index = choice_index(option->choices, value);
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
        if (table[i].type == OPTION_TEXT && table[i].standard == NULL)
            *(const char **)((char *)settings + table[i].offset) = NULL;
        else if (set_value(&table[i], settings, table[i].standard, &error) != 0)
            die("the default of an option is wrong: %s", error.text);
}

int options_set(const Option *table, size_t count, void *settings, const char *name, const char *value,
                Error *error) {
    Parser parser = {table, count, settings, NULL, 0, 0, 0};
    const Option *option = find(table, count, name, strlen(name));
    if (option == NULL) return fail_unknown(&parser, name, error);
    if (set_value(option, settings, value, error) != 0) return -1;
    given[option - table] = 1;
    return 0;
}

void options_forget_given(void) {
    memset(given, 0, sizeof(given));
}

int options_given(const Option *table, size_t count, const char *name) {
    const Option *option = find(table, count, name, strlen(name));
    return option != NULL && given[option - table];
}

// One word that starts with "--"; takes the next word as its value where it needs one.
static int parse_option(Parser *parser, const char *word, const char *next, int *used_next, Error *error) {
    const char *name = word + 2, *equals = strchr(name, '=');
    size_t length = equals ? (size_t)(equals - name) : strlen(name);
    *used_next = 0;
    if (length == 4 && memcmp(name, "help", 4) == 0) {
        parser->help = 1;
        return 0;
    }
    const Option *option = find(parser->table, parser->count, name, length);
    if (option == NULL && length > 3 && memcmp(name, "no-", 3) == 0 && equals == NULL) {
        option = find(parser->table, parser->count, name + 3, length - 3);
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
    *used_next = equals == NULL && option->type != OPTION_FLAG;
    return options_set(parser->table, parser->count, parser->settings, option->name, value, error);
}

static int parse_words(Parser *parser, int count, char **words, int depth, Error *error);

// Splits text into words, in place, as a shell would: blanks separate, double quotes hold together, \" and \\ inside
// them stand for " and \, '#' begins a comment. Returns how many there are, -1 for a quote that is not closed.
static int split_words(char *text, char **words) {
    int count = 0, inside = 0, quoted = 0;
    char *out = text; // never ahead of `in`: a word's end replaces the blank after it
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

static int parse_words(Parser *parser, int count, char **words, int depth, Error *error) {
    for (int i = 0; i < count && !parser->help; i++) {
        int used_next = 0;
        if (words[i][0] == '@') {
            if (parse_file(parser, words[i] + 1, depth + 1, error) != 0) return -1;
        } else if (words[i][0] == '-' && words[i][1] == '-') {
            const char *next = i + 1 < count ? words[i + 1] : NULL;
            if (parse_option(parser, words[i], next, &used_next, error) != 0) return -1;
        } else if (parser->num_words < parser->max_words) {
            parser->words[parser->num_words++] = depth > 0 ? keep_text(words[i]) : words[i];
        } else {
            return fail(error, "'%s' is not an option (options start with --); see --help", words[i]);
        }
        i += used_next;
    }
    return 0;
}

int options_parse(const Option *table, size_t count, void *settings, int argc, char **argv,
                  const char **words, int max_words, int *num_words, Error *error) {
    Parser parser = {table, count, settings, words, max_words, 0, 0};
    int result = parse_words(&parser, argc - 1, argv + 1, 0, error);
    if (num_words != NULL) *num_words = parser.num_words;
    if (result != 0) return -1;
    return parser.help ? 1 : 0;
}

void options_help(const Option *table, size_t count, FILE *stream) {
    static const char *kinds[] = {"N", "X", "TEXT", "", ""};
    for (size_t i = 0; i < count; i++) {
        const Option *option = &table[i];
        if (option->group != NULL) fprintf(stream, "\n%s\n", option->group);
        char left[128];
        snprintf(left, sizeof(left), "--%s%s %s", option->type == OPTION_FLAG ? "[no-]" : "", option->name,
                 option->type == OPTION_CHOICE ? option->choices : kinds[option->type]);
        fprintf(stream, "  %-30s %s", left, option->help);
        if (option->type == OPTION_FLAG)
            fprintf(stream, " (default: %s)\n", option->standard[0] == '1' ? "on" : "off");
        else if (option->type == OPTION_INTEGER || option->type == OPTION_REAL)
            fprintf(stream, " (default: %s; %.6g to %.6g)\n", option->standard, option->minimum,
                    option->maximum);
        else
            fprintf(stream, option->standard ? " (default: %s)\n" : "\n", option->standard);
    }
}

const char *option_choice_name(const Option *table, size_t count, const void *settings, const char *name) {
    static char text[64];
    const Option *option = find(table, count, name, strlen(name));
    if (option == NULL || option->type != OPTION_CHOICE) die("'%s' is not an option with choices", name);
    int index = *(const int *)((const char *)settings + option->offset);
    const char *choice = option->choices;
    while (index-- > 0) choice += strcspn(choice, "|") + 1;
    snprintf(text, sizeof(text), "%.*s", (int)strcspn(choice, "|"), choice);
    return text;
}

// As split_words reads it back.
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
