// Command-line options described by one table: parsing, bounds, help, saved configuration.
//
// Accepted are `--name value`; `--name=value`; `--name` and `--no-name` for flags; `@file`, whose words are read as
// if they were on the command line (one or more per line; "double quotes" group words, with \" and \\ in them for "
// and \; '#' begins a comment); `-h`, `--help` and `--version`. A value that begins with "--" is written
// `--name=value`. Later settings win. An unknown name is refused, with a suggestion; a value out of bounds is
// refused, with the bounds.
#ifndef DATA_OPTIONS_OPTIONS_H
#define DATA_OPTIONS_OPTIONS_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include "layers/base/files.h"

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
    const char *group; // heading in --help; NULL: the same as that of the option above
    const char *name;  // without the leading "--"
    OptionType type;
    size_t offset;            // of the field in the struct of settings
    const char *default_text; // may be NULL for OPTION_TEXT
    double minimum, maximum;
    const char *choices; // "cosine|linear|constant"
    const char *help;    // one phrase; the default and the bounds are appended
} Option;

// Sets all fields of `settings` to their defaults.
void options_defaults(const Option *table, size_t count, void *settings);
// What options_parse returns if the user asked for information instead of work.
enum {
    OPTIONS_HELP = 1, // --help: all options
    OPTIONS_USAGE,    // -h: the most important options, on one screen
    OPTIONS_VERSION,  // --version
};
// Parses argv[1..]. Returns 0 on success, one of the values above as soon as it is asked for, -1 with a sentence on
// error. Words that do not begin with "--" or "@" are stored in `words` (at most max_words; more are refused).
int options_parse(const Option *table, size_t count, void *settings, int argc, char **argv,
                  const char **words, int max_words, int *num_words, Error *error);
// Sets one option from text; checks type and bounds.
int options_set(const Option *table, size_t count, void *settings, const char *name, const char *value,
                Error *error);
// Returns 1 if the option was given on the command line or in a file, 0 if it has its default.
int options_given(const Option *table, size_t count, const char *name);
// Resets options_given: only options parsed later count as given. For settings that were saved with a run.
void options_forget_given(void);
// Prints all options with their defaults and bounds, wrapped to the width of the terminal (80 columns if there is
// none).
void options_help(const Option *table, size_t count, FILE *stream);
// Writes every option as `--name=value`, one per line, quoted if needed, so that it can be read back as @file.
void options_write(const Option *table, size_t count, const void *settings, FILE *stream);
// Returns the word quoted for a shell if it needs quotes. The caller frees it.
char *quote_for_shell(const char *word);
// Returns the value of a choice as text ("cosine").
const char *option_choice_name(const Option *table, size_t count, const void *settings, const char *name);

#ifdef __cplusplus
}
#endif
#endif
