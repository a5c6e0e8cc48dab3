// The texts that a tokenizer is trained on or that are encoded, in the common formats:
//
//     plain text              may contain separators between documents
//     NAME.jsonl              one JSON object per line, whose member `field` is one document; blank lines are skipped
//     NAME.gz, NAME.zst       either of these, compressed
//     -, /dev/stdin, a pipe   plain text or, with `lines`, JSON lines; compressed or not
//
// All input is read, decompressed and checked before any of it is used. Until the corpus is closed, whatever is not a
// plain text file is stored in unnamed temporary files in the folder TMPDIR or, if that is not set, `folder`.
// temporary files without names until the corpus is closed, in the folder TMPDIR or else the one given.
#ifndef DATA_CORPUS_CORPUS_H
#define DATA_CORPUS_CORPUS_H

#include "layers/base/files.h"
#include "data/tokenizer/tokenizer.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
    const char *path;
    const char *data;
    size_t size;
    int is_document; // the whole text is one document, even if it contains separators
} CorpusText;

typedef struct {
    const char *field;  // member of JSON lines; set before the first corpus_add
    const char *folder; // for temporary files; set before the first corpus_add
    // 1 if pipes contain JSON lines; set before the first corpus_add.
    int lines;
    CorpusText *texts;
    size_t count, capacity;
    uint64_t size; // total bytes
    struct CorpusFile *files;
    size_t num_files, num_problems;
    char *problems; // sentences about unusable inputs
} Corpus;           // initially all zeros

// Adds the files that match a path or pattern (see paths_match). Unusable files are recorded for corpus_check; an
// empty file is skipped with a warning that names it.
void corpus_add(Corpus *corpus, const char *pattern);
// Returns 0 if all added files are usable and contain text; else -1 with one sentence that names all unusable ones.
int corpus_check(const Corpus *corpus, Error *error);
void corpus_close(Corpus *corpus);

#ifdef __cplusplus
}
#endif
#endif
