// The texts that a tokenizer is trained on and that are encoded, as corpora come:
//
//     plain text      documents may be separated inside it
//     NAME.jsonl      a JSON object on each line, whose member `field` is one document; blank lines are skipped
//     NAME.gz, .zst   one of the two, compressed
//     -, /dev/stdin, a pipe   plain text, or, with `lines`, JSON lines; compressed or not
//
// Everything is read, decompressed and checked before any of it is used. What is not a plain file of text lies in
// temporary files without names until the corpus is closed, in the folder TMPDIR or else the one given.
#ifndef DATA_CORPUS_H
#define DATA_CORPUS_H

#include "files.h"
#include "tokenizer.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
    const char *path;
    const char *data;
    size_t size;
    int is_document; // one document, whatever stands in it
} CorpusText;

typedef struct {
    const char *field,
        *folder; // of JSON lines; for temporary files while something is added. Set first, as is
    int lines;   // are pipes JSON lines?
    CorpusText *texts;
    size_t count, capacity;
    uint64_t size; // bytes in all
    struct CorpusFile *files;
    size_t num_files, num_problems;
    char *problems; // sentences about what cannot be used
} Corpus;           // begins with all zeros

// Adds what matches a path or pattern (see paths_match). What cannot be used is noted; an empty file is left out with a
// warning that names it.
void corpus_add(Corpus *corpus, const char *pattern);
// 0 if all that was added can be used and there is text in it; else -1 and one sentence that names everything that
// cannot.
int corpus_check(const Corpus *corpus, Error *error);
void corpus_close(Corpus *corpus);

#ifdef __cplusplus
}
#endif
#endif
