// What the fuzz targets share. libFuzzer calls LLVMFuzzerInitialize once; a target writes its seeds there,
// into the corpus folder that test/fuzz.sh names last on the command line, so that they come from the code
// that writes the format.
#ifndef TEST_DATA_FUZZ_H
#define TEST_DATA_FUZZ_H

#include "data/files.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

// Checks what must hold whatever the input.
static inline void must(int holds) {
    if (!holds) abort();
}

static inline void put_file(const char *path, const void *data, size_t size) {
    FILE *stream = fopen(path, "wb");
    must(stream != NULL && fwrite(data, 1, size, stream) == size && fclose(stream) == 0);
}

// `kind` (0: none) goes before the data.
static inline void write_seed(int argc, char **argv, const char *name, char kind, const void *data,
                              size_t size) {
    struct stat status;
    const char *corpus = argv[argc - 1];
    if (argc < 2 || stat(corpus, &status) != 0 || !S_ISDIR(status.st_mode)) return;
    char *path = format_text("%s/%s", corpus, name), *bytes = (char *)xmalloc(size + 1);
    bytes[0] = kind;
    memcpy(bytes + (kind != 0), data, size);
    put_file(path, bytes, size + (kind != 0));
    free(path);
    free(bytes);
}

// A folder for the files of this process; test/fuzz.sh removes it with all its temporary files.
static inline const char *fuzz_folder(void) {
    static char folder[256];
    if (folder[0] == '\0') {
        const char *parent = getenv("TMPDIR");
        snprintf(folder, sizeof folder, "%.200s/fuzz_XXXXXX", parent ? parent : "/tmp");
        must(mkdtemp(folder) != NULL);
    }
    return folder;
}

#endif
