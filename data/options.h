// Command-line options from one table: parsing, bounds, help, the saved configuration.
//
// Accepted: `--name value`, `--name=value`, `--name` and `--no-name` for flags; `@file`, whose words are read as if they
// stood on the command line (one or many on a line; "double quotes" hold a word together, with \" and \\ in them for " and
// \; '#' begins a comment); `-h`, `--help` and `--version`. A value that begins with "--" is written `--name=value`. Later
// settings win. An unknown name is refused, with the name of the option that was probably meant; a value out of bounds is
// refused, with the bounds.
#ifndef DATA_OPTIONS_H
#define DATA_OPTIONS_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include "files.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum {
    OPTION_INTEGER, // int64_t; takes suffixes k, M, G (powers of 1000)
    OPTION_REAL,    // double; must be finite
    OPTION_TEXT,    // const char *
    OPTION_CHOICE,  // int, index into `choices`
    OPTION_FLAG,    // int, 0 or 1
} OptionType;

typedef struct {
    const char *group; // heading in --help; NULL: the same as the option above
    const char *name;  // without the leading "--"
    OptionType type;
    size_t offset;        // of the field in the settings struct
    const char *standard; // default, as text
    double minimum, maximum;
    const char *choices; // "cosine|linear|constant"
    const char *help;    // one sentence; the default and the bounds are appended
} Option;

// Fills `settings` with the defaults.
void options_defaults(const Option *table, size_t count, void *settings);
// What options_parse returns where a question takes the place of work.
enum {
    OPTIONS_HELP = 1, // --help: all options
    OPTIONS_USAGE,    // -h: the most important ones, on one screen
    OPTIONS_VERSION,  // --version
};
// Parses argv[1..]. Returns 0 on success, one of the above as soon as it comes, -1 with a sentence on error.
// Words that do not start with "--" or "@" go to `words` (at most max_words of them; more are refused).
int options_parse(const Option *table, size_t count, void *settings, int argc, char **argv,
                  const char **words, int max_words, int *num_words, Error *error);
// Sets one option from text, checking type and bounds.
int options_set(const Option *table, size_t count, void *settings, const char *name, const char *value,
                Error *error);
// Was the option given on the command line or in a file (rather than left at its default)?
int options_given(const Option *table, size_t count, const char *name);
// From here on only what is parsed later counts as given: for settings that were saved with a run.
void options_forget_given(void);
// Prints all options with their defaults and bounds, in lines as wide as the terminal (80 columns where there is none).
void options_help(const Option *table, size_t count, FILE *stream);
// Writes every option as `--name=value`, one a line, quoted where needed: readable back as @file.
void options_write(const Option *table, size_t count, const void *settings, FILE *stream);
// The word as a shell reads it back, in quotes where it needs them. The caller frees it.
char *quote_for_shell(const char *word);
// The value of a choice as text ("cosine").
const char *option_choice_name(const Option *table, size_t count, const void *settings, const char *name);

#ifdef __cplusplus
}
#endif
#endif
