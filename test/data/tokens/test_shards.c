// Token shards: data is read back as written; every kind of damage is refused with a sentence that names the file;
// documents are complete whatever the shard boundaries.
#include "data/tokens/shards.h"
#include "test/harness/test.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char folder[64];

static char *in_folder(const char *name) {
    return format_text("%s/%s", folder, name);
}

static void remove_folder(void) {
    char *command = format_text("rm -rf '%s'", folder);
    if (system(command) != 0) printf("could not remove %s\n", folder);
    free(command);
}

// Writes a shard with any header, followed by any number of bytes.
static char *write_raw(const char *name, int32_t magic, int32_t version, int32_t count, size_t bytes) {
    char *path = in_folder(name), *data = (char *)xcalloc(1, 1024 + bytes);
    int32_t header[3] = {magic, version, count};
    Error error;
    memcpy(data, header, sizeof header);
    EXPECT(file_write(path, data, 1024 + bytes, &error) == 0, "%s", error.text);
    free(data);
    return path;
}

static void expect_refused(const char *path, const char *words) {
    ShardSet set;
    Error error = {"(no message)", 0};
    EXPECT(shards_open(&set, path, &error) == -1, "%s was accepted", path);
    EXPECT(strstr(error.text, words) != NULL, "wanted '%s', got '%s'", words, error.text);
    EXPECT(strstr(error.text, path) != NULL, "'%s' does not name %s", error.text, path);
    EXPECT(set.count == 0 && set.shards == NULL, "set not closed after an error");
}

static void expect_raw_refused(int32_t magic, int32_t version, int32_t count, size_t bytes,
                               const char *words) {
    char *path = write_raw("damaged.bin", magic, version, count, bytes);
    expect_refused(path, words);
    EXPECT(unlink(path) == 0, "unlink");
    free(path);
}

// The hint at nanoGPT's files is given only if the file may be one.
static void test_hint(void) {
    Error error;
    ShardSet set;
    static const struct {
        int32_t first;
        size_t bytes;
        int hinted;
    } cases[] = {{7 << 16 | 7, 20, 1}, {7 << 16 | 7, 21, 0}, {50256, 20, 1}, {50257, 20, 0}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char *path = write_raw("headerless.bin", cases[i].first, 0, 0, cases[i].bytes);
        EXPECT(shards_open(&set, path, &error) == -1, "%s was accepted", path);
        EXPECT((strstr(error.text, "files of nanoGPT have no header") != NULL) == cases[i].hinted, "%d: '%s'",
               cases[i].first, error.text);
        EXPECT(unlink(path) == 0, "unlink");
        free(path);
    }
}

static void test_damage(void) {
    Error error;
    char *path = in_folder("absent.bin");
    expect_refused(path, "no token shard matches");
    free(path);
    path = in_folder("empty.bin");
    EXPECT(file_write(path, "", 0, &error) == 0, "%s", error.text);
    expect_refused(path, "is empty");
    EXPECT(file_write(path, "short", 5, &error) == 0, "%s", error.text);
    expect_refused(path, "is truncated");
    EXPECT(unlink(path) == 0, "unlink");
    free(path);
    expect_refused(folder, "is not a file");
    expect_raw_refused(7, 1, 10, 20, "begins with 7, expected 20240520");
    expect_raw_refused(20240520, 2, 10, 20, "version 2, expected version 1");
    expect_raw_refused(20240801, 1, 10, 40, "version 1, expected version 7");
    expect_raw_refused(20240520, 1, 10, 19, "is truncated");
    expect_raw_refused(20240520, 1, 10, 21, "longer than its header says");
    expect_raw_refused(20240801, 7, 10, 20, "is truncated");
    expect_raw_refused(20240520, 1, 0, 0, "says that it has 0 tokens");
    expect_raw_refused(20240520, 1, -5, 20, "says that it has -5 tokens");
}

static void test_round_trip(int token_bytes) {
    enum { COUNT = 20011, PER_SHARD = 3000 };
    const int32_t limit = token_bytes == 2 ? 65536 : 2000000000;
    char *prefix = in_folder("trip"), *pattern = in_folder("trip_*.bin");
    int32_t *tokens = (int32_t *)xmalloc(COUNT * sizeof(int32_t)), *back = (int32_t *)xmalloc(COUNT * 4);
    for (int i = 0; i < COUNT; i++) tokens[i] = (int32_t)((uint64_t)i * 2654435761u % (uint64_t)limit);
    tokens[1] = limit - 1;
    Error error = {"", 0};
    ShardWriter writer;
    EXPECT(shard_writer_open(&writer, prefix, PER_SHARD, token_bytes, 0, &error) == 0, "%s", error.text);
    for (size_t done = 0; done < COUNT;) {
        size_t part = COUNT - done < 7001 ? COUNT - done : 7001;
        EXPECT(shard_writer_document(&writer, tokens + done, part, &error) == 0, "%s", error.text);
        done += part;
    }
    EXPECT(writer.num_tokens == COUNT, "counts");
    EXPECT(shard_writer_close(&writer, &error) == 0, "%s", error.text);
    ShardSet set;
    EXPECT(shards_open(&set, pattern, &error) == 0, "%s", error.text);
    EXPECT(set.count == 7 && set.num_tokens == COUNT, "%zu shards, %llu tokens", set.count,
           (unsigned long long)set.num_tokens);
    for (size_t i = 0; i < set.count; i++) {
        EXPECT(set.shards[i].token_bytes == token_bytes, "shard %zu", i);
        EXPECT(shard_read(&set.shards[i], 0, set.shards[i].num_tokens, back + i * PER_SHARD, &error) == 0,
               "%s", error.text);
    }
    EXPECT(memcmp(tokens, back, COUNT * sizeof(int32_t)) == 0, "tokens differ");
    EXPECT(shard_read(&set.shards[2], 17, 5, back, &error) == 0, "%s", error.text);
    EXPECT(memcmp(tokens + 2 * PER_SHARD + 17, back, 5 * 4) == 0, "tokens from the middle differ");
    EXPECT(shard_read(&set.shards[0], PER_SHARD - 2, 3, back, &error) == -1, "read beyond the end");
    EXPECT(shard_read(&set.shards[0], PER_SHARD + 1, 1, back, &error) == -1, "read from beyond the end");
    shards_close(&set);
    free(tokens);
    free(back);
    free(prefix);
    free(pattern);
}

static void test_writer(void) {
    char *prefix = in_folder("trip"), *pattern = in_folder("{trip_0000*,trip_000000}.bin");
    Error error = {"", 0};
    ShardWriter writer;
    int32_t tokens[3] = {1, 2, 65536};
    EXPECT(shard_writer_open(&writer, prefix, 0, 2, 0, &error) == -1, "0 tokens a shard");
    EXPECT(shard_writer_open(&writer, prefix, 1ull << 31, 2, 0, &error) == -1, "2^31 tokens a shard");
    EXPECT(shard_writer_open(&writer, prefix, 10, 3, 0, &error) == -1, "3 bytes a token");

    // The round trip has left seven shards; two must remain after this run.
    EXPECT(shard_writer_open(&writer, prefix, 1, 2, 0, &error) == 0, "%s", error.text);
    EXPECT(shard_writer_document(&writer, tokens, 2, &error) == 0, "%s", error.text);
    EXPECT(shard_writer_close(&writer, &error) == 0, "%s", error.text);
    ShardSet set;
    EXPECT(shards_open(&set, pattern, &error) == 0, "%s", error.text);
    EXPECT(set.count == 2 && set.num_tokens == 2, "%zu shards, expected 2 (each once)", set.count);
    shards_close(&set);

    // A token that does not fit; the existing shards remain, and no temporary file is left.
    EXPECT(shard_writer_open(&writer, prefix, 10, 2, 0, &error) == 0, "%s", error.text);
    EXPECT(shard_writer_document(&writer, tokens, 3, &error) == -1, "65536 in 16 bits");
    EXPECT(strstr(error.text, "token 65536 does not fit") != NULL, "'%s'", error.text);
    shard_writer_abandon(&writer);
    char *everything = in_folder("*");
    EXPECT(shards_open(&set, everything, &error) == 0, "%s", error.text);
    EXPECT(set.count == 2, "%zu files", set.count);
    shards_close(&set);

    char *nowhere = in_folder("no/such/folder/shard");
    EXPECT(shard_writer_open(&writer, nowhere, 10, 2, 0, &error) == 0, "%s", error.text);
    EXPECT(shard_writer_document(&writer, tokens, 2, &error) == -1, "wrote into a missing folder");
    EXPECT(strstr(error.text, nowhere) != NULL, "'%s'", error.text);
    shard_writer_abandon(&writer);
    free(nowhere);
    free(everything);
    free(prefix);
    free(pattern);
}

static void write_set(const char *name, int num_shards, int overwrite) {
    char *prefix = in_folder(name);
    Error error = {"", 0};
    ShardWriter writer;
    EXPECT(shard_writer_open(&writer, prefix, 1, 2, overwrite, &error) == 0, "%s", error.text);
    for (int32_t token = 0; token < num_shards; token++)
        EXPECT(shard_writer_document(&writer, &token, 1, &error) == 0, "%s", error.text);
    EXPECT(shard_writer_close(&writer, &error) == 0, "%s", error.text);
    free(prefix);
}

static void copy_file(const char *from, const char *to) {
    char *source = in_folder(from), *target = in_folder(to), *data;
    size_t size;
    Error error;
    EXPECT(file_read(source, 1 << 20, &data, &size, &error) == 0, "%s", error.text);
    EXPECT(file_write(target, data, size, &error) == 0, "%s", error.text);
    free(data);
    free(source);
    free(target);
}

// A set "kept" must not be written because of the file `name`, which is not changed.
static void expect_foreign(const char *name, const char *why) {
    char *prefix = in_folder("kept"), *path = in_folder(name), *before, *after;
    size_t size, size_after;
    Error error = {"(no message)", 0};
    ShardWriter writer;
    EXPECT(file_read(path, 1 << 20, &before, &size, &error) == 0, "%s", error.text);
    EXPECT(shard_writer_open(&writer, prefix, 1, 2, 0, &error) == -1, "%s: replaced", why);
    EXPECT(strstr(error.text, path) != NULL && strstr(error.text, "--overwrite") != NULL, "%s: '%s'", why,
           error.text);
    EXPECT(file_read(path, 1 << 20, &after, &size_after, &error) == 0, "%s", error.text);
    EXPECT(size == size_after && memcmp(before, after, size) == 0, "%s: changed", why);
    EXPECT(unlink(path) == 0, "unlink");
    free(before);
    free(after);
    free(prefix);
    free(path);
}

// Shards written by other programs, whatever their names, are neither replaced nor removed.
static void test_foreign_shards(void) {
    write_set("kept", 3, 0);
    write_set("kept", 2, 0); // this program's own shards
    char *third = in_folder("kept_000002.bin");
    EXPECT(!file_exists(third), "a shard of the earlier set is left");
    copy_file("kept_000000.bin", "kept_000007.bin");
    expect_foreign("kept_000007.bin", "a copy of ours under another number");
    write_set("other", 3, 0);
    copy_file("other_000002.bin", "kept_000002.bin");
    expect_foreign("kept_000002.bin", "a copy of ours under another prefix");
    free(write_raw("kept_000001.bin", 20240520, 1, 3, 6));
    expect_foreign("kept_000001.bin", "a shard without a marker");
    free(write_raw("kept_000001.bin", 7, 1, 3, 6));
    expect_foreign("kept_000001.bin", "no shard");
    write_set("kept", 2, 0);
    char *second = in_folder("kept_000001.bin");
    int descriptor = open(second, O_WRONLY);
    EXPECT(pwrite(descriptor, "x", 1, 1024) == 1 && close(descriptor) == 0, "pwrite");
    expect_foreign("kept_000001.bin", "one of ours that was changed");
    EXPECT(symlink("other_000001.bin", second) == 0, "symlink");
    expect_foreign("kept_000001.bin", "a link");
    // With --overwrite, names of the new set are replaced, others are kept.
    free(write_raw("kept_000001.bin", 20240520, 1, 3, 6));
    free(write_raw("kept_000002.bin", 20240520, 1, 3, 6));
    write_set("kept", 2, 1);
    EXPECT(file_exists(third), "a foreign shard was removed");
    EXPECT(unlink(third) == 0, "unlink");
    write_set("kept", 1, 0); // kept_000001.bin is now this program's
    EXPECT(!file_exists(second), "a shard of ours is left");
    char *command = format_text("cd '%s' && rm -f kept_* other_*", folder);
    EXPECT(system(command) == 0, "rm");
    free(command);
    free(second);
    free(third);
}

// 2^31 - 1 tokens, 4 GiB, sparse except for the last three.
static void test_largest_shard(void) {
    const uint64_t count = SHARD_MAX_TOKENS;
    char *path = write_raw("large.bin", 20240520, 1, (int32_t)count, 0);
    const uint16_t last[3] = {11, 22, 33};
    int descriptor = open(path, O_WRONLY);
    EXPECT(ftruncate(descriptor, (off_t)(1024 + count * 2)) == 0, "ftruncate");
    EXPECT(pwrite(descriptor, last, 6, (off_t)(1024 + (count - 3) * 2)) == 6, "pwrite");
    close(descriptor);
    ShardSet set;
    Error error = {"", 0};
    int32_t tokens[4] = {-1, -1, -1, -1};
    EXPECT(shards_open(&set, path, &error) == 0, "%s", error.text);
    EXPECT(set.num_tokens == count, "%llu tokens", (unsigned long long)set.num_tokens);
    EXPECT(shard_read(&set.shards[0], count - 4, 4, tokens, &error) == 0, "%s", error.text);
    EXPECT(tokens[0] == 0 && tokens[1] == 11 && tokens[2] == 22 && tokens[3] == 33, "wrong tokens");
    shards_close(&set);
    EXPECT(unlink(path) == 0, "unlink");
    free(path);
}

// Documents of these lengths; the tokens of document d are d; -1 ends the list.
static const int document_lengths[] = {3, 0, 1, 70000, 0, 5, 0, -1};
enum { END = 999 };

static void write_documents(const char *prefix, uint64_t per_shard) {
    ShardWriter writer;
    Error error = {"", 0};
    int32_t *tokens = (int32_t *)xmalloc(80000 * sizeof(int32_t));
    EXPECT(shard_writer_open(&writer, prefix, per_shard, 2, 0, &error) == 0, "%s", error.text);
    tokens[0] = 7; // the end of a document that began elsewhere
    EXPECT(shard_writer_document(&writer, tokens, 1, &error) == 0, "%s", error.text);
    for (int d = 0; document_lengths[d] >= 0; d++) {
        tokens[0] = END;
        for (int i = 0; i < document_lengths[d]; i++) tokens[1 + i] = d;
        EXPECT(shard_writer_document(&writer, tokens, 1 + (size_t)document_lengths[d], &error) == 0, "%s",
               error.text);
    }
    EXPECT(shard_writer_close(&writer, &error) == 0, "%s", error.text);
    free(tokens);
}

static void test_documents(uint64_t per_shard, size_t capacity) {
    char *prefix = in_folder("doc"), *pattern = in_folder("doc_*.bin");
    write_documents(prefix, per_shard);
    ShardSet set;
    Error error = {"", 0};
    EXPECT(shards_open(&set, pattern, &error) == 0, "%s", error.text);
    DocumentReader reader;
    documents_open(&reader, &set, END);
    int32_t *tokens = (int32_t *)xmalloc((capacity + 1) * sizeof(int32_t));
    size_t count;
    int d = 0;
    for (; document_lengths[d] >= 0; d++) {
        const size_t length = (size_t)document_lengths[d], stored = length < capacity ? length : capacity;
        tokens[stored] = -77;
        EXPECT(documents_next(&reader, tokens, capacity, &count, &error) == 1, "document %d is missing", d);
        EXPECT(count == length, "document %d has %zu tokens, expected %zu", d, count, length);
        size_t right = 0;
        while (right < stored && tokens[right] == d) right++;
        EXPECT(right == stored && tokens[stored] == -77, "document %d: %zu tokens right", d, right);
    }
    EXPECT(documents_next(&reader, tokens, capacity, &count, &error) == 0 && count == 0,
           "more than %d documents", d);
    EXPECT(documents_next(&reader, tokens, capacity, &count, &error) == 0, "a document after the end");
    documents_close(&reader);
    shards_close(&set);
    free(tokens);
    free(prefix);
    free(pattern);
}

int main(void) {
    snprintf(folder, sizeof folder, "/tmp/test_shards_%d", (int)getpid());
    mkdir(folder, 0700);
    test_damage();
    test_hint();
    test_round_trip(4);
    test_round_trip(2);
    test_writer();
    test_foreign_shards();
    test_largest_shard();
    test_documents(100000000, 100000);
    test_documents(997, 100000);
    test_documents(500, 2);
    test_documents(3333, 0);
    test_documents(66000, 69000);
    remove_folder();
    return test_finish();
}
