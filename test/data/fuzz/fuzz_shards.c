// libFuzzer target: the input is a shard. It is either refused with a sentence or read to its end, by offset, by
// document and by the loader.
#define _GNU_SOURCE // memfd_create
#include "data/tokens/loader.h"
#include "data/tokens/shards.h"
#include "fuzz.h"

#include <sys/mman.h>
#include <unistd.h>

static void read_tokens(const Shard *shard) {
    Error error;
    size_t count = (size_t)shard->num_tokens;
    int32_t *all = (int32_t *)xmalloc(count * sizeof(int32_t)), one;
    must(shard_read(shard, 0, count, all, &error) == 0);
    for (size_t i = 0; i < count; i += 7) must(shard_read(shard, i, 1, &one, &error) == 0 && one == all[i]);
    must(shard_read(shard, 1, count, all, &error) == -1);
    free(all);
}

static void read_documents(const ShardSet *set, int32_t end_of_text) {
    Error error;
    int32_t tokens[8];
    size_t count, total = 0, documents = 0;
    DocumentReader reader;
    documents_open(&reader, set, end_of_text);
    while (documents_next(&reader, tokens, 8, &count, &error) == 1) {
        total += count + 1;
        documents++;
    }
    must(total <= set->num_tokens && documents <= set->num_tokens);
    documents_close(&reader);
}

static void load_batches(const ShardSet *set) {
    LoaderConfig config = {3, 4, 50257, 1, 0, 1, 0, 0, 1};
    Error error;
    int32_t inputs[12], targets[12];
    Loader *loader = loader_open(set, &config, &error);
    if (loader == NULL) return;
    for (int i = 0; i < 5 && loader_next(loader, inputs, targets, &error) == 0; i++)
        for (int j = 0; j < 12; j++)
            must(inputs[j] >= 0 && inputs[j] < 50257 && targets[j] >= 0 && targets[j] < 50257);
    loader_close(loader);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char path[64];
    Error error = {"", 0};
    ShardSet set;
    int descriptor = memfd_create("shard", MFD_CLOEXEC);
    must(descriptor >= 0 && write(descriptor, data, size) == (ssize_t)size);
    snprintf(path, sizeof path, "/proc/self/fd/%d", descriptor);
    if (shards_open(&set, path, &error) == 0) {
        read_tokens(&set.shards[0]);
        read_documents(&set, 0);
        read_documents(&set, 50256);
        load_batches(&set);
        shards_close(&set);
    } else {
        must(strstr(error.text, path) != NULL);
    }
    close(descriptor);
    return 0;
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    for (int wide = 0; wide < 2; wide++) {
        unsigned char shard[1024 + 160] = {0};
        int32_t header[3] = {wide ? 20240801 : 20240520, wide ? 7 : 1, wide ? 40 : 80};
        memcpy(shard, header, sizeof header);
        for (int i = 0; i < 160; i += 4) shard[1024 + i] = (unsigned char)(i % 20);
        write_seed(*argc, *argv, wide ? "uint32" : "uint16", 0, shard, sizeof shard);
    }
    return 0;
}
