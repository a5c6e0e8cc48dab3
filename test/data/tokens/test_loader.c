// The loader: the order is a permutation of all sequences in every epoch and a pure function of seed and position,
// independent of the batch size, the number of processes and where a run resumes; damaged tokens and files are
// reported as errors at their position.
#include "data/tokens/loader.h"
#include "test/harness/arrays.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char folder[64];

static char *in_folder(const char *name) {
    return format_text("%s/%s", folder, name);
}

// ---- the permutation --------------------------------------------------------------------------------------

static size_t count_distinct(uint64_t count, uint64_t seed, uint64_t epoch) {
    char *seen = (char *)xcalloc((size_t)count, 1);
    size_t distinct = 0;
    for (uint64_t i = 0; i < count; i++) {
        uint64_t to = loader_permute(i, count, seed, epoch);
        if (to < count && !seen[to]) distinct++;
        if (to < count) seen[to] = 1;
    }
    free(seen);
    return distinct;
}

static size_t count_equal(uint64_t count, uint64_t seed1, uint64_t epoch1, uint64_t seed2, uint64_t epoch2) {
    size_t equal = 0;
    for (uint64_t i = 0; i < count; i++)
        equal += loader_permute(i, count, seed1, epoch1) == loader_permute(i, count, seed2, epoch2);
    return equal;
}

static void test_permutation(void) {
    const uint64_t counts[] = {1,  2,  3,    4,    5,     15,    16,    17,    63,
                               64, 65, 1000, 4096, 65535, 65536, 65537, 300000};
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++)
        for (uint64_t epoch = 0; epoch < 3; epoch++)
            EXPECT(count_distinct(counts[i], 42 + i, epoch) == counts[i],
                   "not a permutation of %llu in epoch %llu", (unsigned long long)counts[i],
                   (unsigned long long)epoch);
    // Two random permutations agree in one position on average.
    EXPECT(count_equal(10000, 1, 0, 1, 1) < 10, "epochs 0 and 1 alike");
    EXPECT(count_equal(10000, 1, 0, 2, 0) < 10, "seeds 1 and 2 alike");
    EXPECT(count_equal(10000, 1, 1, 2, 0) < 10, "seed 1 epoch 1 is like seed 2 epoch 0");
    EXPECT(count_equal(10000, 0, 0, 0, 1ull << 40) < 10, "far epochs alike");
    const uint64_t huge = (1ull << 62) + 12345;
    EXPECT(loader_permute(huge - 1, huge, 3, 4) < huge, "outside a huge domain");
}

// Neighbours in the order must not be neighbours in the data, and every region must occur early and late equally
// often.
static void test_permutation_is_even(void) {
    enum { COUNT = 40000, BINS = 20 };
    int bins[BINS] = {0}, neighbours = 0;
    for (uint64_t i = 0; i + 1 < COUNT; i++) {
        uint64_t here = loader_permute(i, COUNT, 5, 0), next = loader_permute(i + 1, COUNT, 5, 0);
        neighbours += here + 1 == next;
        if (i < COUNT / 4) bins[here * BINS / COUNT]++;
    }
    EXPECT(neighbours < 10, "%d neighbours stay neighbours", neighbours);
    double chi_squared = 0; // 19 degrees of freedom: exceeds 43.8 once in a thousand
    for (int b = 0; b < BINS; b++) {
        double expected = COUNT / 4.0 / BINS;
        chi_squared += (bins[b] - expected) * (bins[b] - expected) / expected;
    }
    EXPECT(chi_squared < 43.8, "the first quarter is spread unevenly: chi squared %.1f", chi_squared);
}

// ---- streams ----------------------------------------------------------------------------------------------

// Writes shards of these sizes; token i of all of them together is i, so that a sequence shows its position.
static void write_counting_shards(const char *name, const int *sizes, size_t count, int token_bytes) {
    int32_t next = 0;
    for (size_t s = 0; s < count; s++) {
        char *prefix = format_text("%s/%s_%zu", folder, name, s);
        int32_t *tokens = (int32_t *)xmalloc((size_t)sizes[s] * sizeof(int32_t));
        for (int i = 0; i < sizes[s]; i++) tokens[i] = next++;
        ShardWriter writer;
        Error error = {"", 0};
        EXPECT(shard_writer_open(&writer, prefix, SHARD_MAX_TOKENS, token_bytes, 0, &error) == 0, "%s",
               error.text);
        EXPECT(shard_writer_document(&writer, tokens, (size_t)sizes[s], &error) == 0, "%s", error.text);
        EXPECT(shard_writer_close(&writer, &error) == 0, "%s", error.text);
        free(tokens);
        free(prefix);
    }
}

static ShardSet open_shards(const char *name) {
    char *pattern = format_text("%s/%s_*.bin", folder, name);
    ShardSet set;
    Error error = {"", 0};
    if (!EXPECT(shards_open(&set, pattern, &error) == 0, "%s", error.text)) exit(test_finish());
    free(pattern);
    return set;
}

// Returns the first tokens of `count` sequences from `position` on; counts rows that are not T + 1 consecutive
// tokens.
static int32_t *read_stream(const ShardSet *set, LoaderConfig config, uint64_t position, size_t count,
                            int batch) {
    config.position = position;
    config.batch = batch;
    const size_t T = (size_t)config.T, B = (size_t)batch;
    Error error = {"", 0};
    Loader *loader = loader_open(set, &config, &error);
    if (!EXPECT(loader != NULL, "%s", error.text)) exit(test_finish());
    int32_t *stream = (int32_t *)xmalloc((count + B) * sizeof(int32_t));
    int32_t *inputs = (int32_t *)xmalloc(B * T * sizeof(int32_t)), *targets = (int32_t *)xmalloc(B * T * 4);
    size_t done = 0, wrong = 0;
    while (done < count) {
        if (!EXPECT(loader_next(loader, inputs, targets, &error) == 0, "%s", error.text)) exit(test_finish());
        for (size_t i = 0; i < B * T; i++)
            wrong += inputs[i] != inputs[i - i % T] + (int32_t)(i % T) || targets[i] != inputs[i] + 1;
        for (size_t row = 0; row < B; row++) stream[done++] = inputs[row * T];
    }
    EXPECT(wrong == 0, "%zu tokens are not the ones that follow", wrong);
    EXPECT(loader_position(loader) == position + done, "position %llu",
           (unsigned long long)loader_position(loader));
    loader_close(loader);
    free(inputs);
    free(targets);
    return stream;
}

static void check_epochs(const int32_t *stream, size_t sequences, size_t tokens) {
    for (int epoch = 0; epoch < 3; epoch++) {
        char *seen = (char *)xcalloc(tokens, 1);
        size_t distinct = 0;
        for (size_t i = 0; i < sequences; i++) distinct += !seen[stream[(size_t)epoch * sequences + i]]++;
        EXPECT(distinct == sequences, "epoch %d has %zu of %zu sequences", epoch, distinct, sequences);
        free(seen);
    }
    EXPECT(memcmp(stream, stream + sequences, sequences * sizeof(int32_t)) != 0, "epochs in the same order");
}

// Several processes together read, in the order in which a step has its sequences, what one process reads.
static void check_processes(const ShardSet *set, LoaderConfig config, const int32_t *stream, size_t count,
                            int processes, uint64_t position) {
    const int batch = 1 + processes % 3;
    const size_t T = (size_t)config.T, B = (size_t)batch, round = B * (size_t)processes;
    int32_t *inputs = (int32_t *)xmalloc(B * T * sizeof(int32_t)), *targets = (int32_t *)xmalloc(B * T * 4);
    size_t wrong = 0;
    Error error = {"", 0};
    config.position = position;
    config.batch = batch;
    config.processes = processes;
    for (config.rank = 0; config.rank < processes; config.rank++) {
        Loader *loader = loader_open(set, &config, &error);
        if (!EXPECT(loader != NULL, "%s", error.text)) exit(test_finish());
        size_t first = position + (size_t)config.rank * B;
        for (; first + B <= count; first += round) {
            if (!EXPECT(loader_next(loader, inputs, targets, &error) == 0, "%s", error.text))
                exit(test_finish());
            for (size_t row = 0; row < B; row++) wrong += inputs[row * T] != stream[first + row];
        }
        EXPECT(loader_position(loader) == first - (size_t)config.rank * B, "process %d is at %llu",
               config.rank, (unsigned long long)loader_position(loader));
        loader_close(loader);
    }
    EXPECT(wrong == 0, "%d processes from %llu on read %zu other sequences than one", processes,
           (unsigned long long)position, wrong);
    free(inputs);
    free(targets);
}

static void test_streams(int token_bytes) {
    // T = 8: 12, 0, 0, 1, 124, 0 and 25 sequences; the 8-token shard lacks one token for a target.
    const int sizes[] = {100, 3, 8, 9, 1000, 1, 208};
    const size_t sequences = 12 + 1 + 124 + 25, count = 3 * sequences;
    const char *name = token_bytes == 2 ? "stream16" : "stream32";
    write_counting_shards(name, sizes, 7, token_bytes);
    ShardSet set = open_shards(name);
    LoaderConfig config = {0};
    config.T = 8;
    config.vocab_size = 1329;
    config.seed = 1234;
    config.shuffle = 1;
    int32_t *stream = read_stream(&set, config, 0, count, 1);
    check_epochs(stream, sequences, 1329);
    for (int batch = 2; batch <= 7; batch++) {
        int32_t *other = read_stream(&set, config, 0, count, batch);
        EXPECT(memcmp(stream, other, count * sizeof(int32_t)) == 0, "batch %d gives another stream", batch);
        free(other);
    }
    for (size_t position = 1; position < count; position += 37) { // some batches span epochs
        int32_t *rest = read_stream(&set, config, position, count - position, 1 + (int)(position % 6));
        EXPECT(memcmp(stream + position, rest, (count - position) * sizeof(int32_t)) == 0,
               "resuming at %zu gives another stream", position);
        free(rest);
    }
    for (int processes = 1; processes <= 8; processes++)
        check_processes(&set, config, stream, count, processes, processes % 2 ? 0 : 53);
    config.seed = 1235;
    int32_t *other = read_stream(&set, config, 0, count, 1);
    EXPECT(memcmp(stream, other, count * sizeof(int32_t)) != 0, "another seed gives the same stream");
    free(other);
    config.shuffle = 0;
    int32_t *ordered = read_stream(&set, config, 0, count, 5);
    size_t rising = 0;
    for (size_t i = 1; i < sequences; i++) rising += ordered[i] > ordered[i - 1];
    EXPECT(rising == sequences - 1, "not in order without shuffling");
    EXPECT(memcmp(ordered, ordered + sequences, sequences * sizeof(int32_t)) == 0,
           "epochs differ without shuffling");
    free(ordered);
    free(stream);
    shards_close(&set);
}

static void test_locate(void) {
    ShardSet set = open_shards("stream16");
    LoaderConfig config = {0};
    Error error = {"", 0};
    config.batch = 3;
    config.T = 8;
    config.vocab_size = 1329;
    Loader *loader = loader_open(&set, &config, &error);
    EXPECT(loader_sequences_per_epoch(loader) == 162, "sequences per epoch");
    const uint64_t expected[][3] = {{0, 0, 0},     {11, 0, 88}, {12, 3, 0},    {13, 4, 0},
                                    {136, 4, 984}, {137, 6, 0}, {161, 6, 192}, {162, 0, 0}};
    for (size_t i = 0; i < sizeof expected / sizeof expected[0]; i++) {
        uint64_t shard, offset;
        loader_locate(loader, expected[i][0], &shard, &offset);
        EXPECT(shard == expected[i][1] && offset == expected[i][2], "sequence %d is at shard %d token %d",
               (int)expected[i][0], (int)shard, (int)offset);
    }
    loader_close(loader);
    shards_close(&set);
}

// ---- a long run of many processes ---------------------------------------------------------------------------

enum { LONG_POSITIONS = 1000000, MOST_PROCESSES = 8, MOST_BATCH = 64, MOST_ROUNDS = 60, LONG_T = 4 };

static int random_between(int least, int most) {
    return least + (int)((test_random() + 1) / 2 * (most - least + 1));
}

// Returns the number of sequences of a batch that differ, in any token, from those that begin with the tokens of
// `stream`.
static size_t wrong_sequences(const int32_t *inputs, const int32_t *targets, int batch,
                              const int32_t *stream) {
    size_t wrong = 0;
    for (int row = 0; row < batch; row++) {
        int right = 1;
        for (int i = 0; i < LONG_T; i++)
            right &= inputs[row * LONG_T + i] == stream[row] + i &&
                     targets[row * LONG_T + i] == stream[row] + i + 1;
        wrong += !right;
    }
    return wrong;
}

// Opens this many loaders at once, which continue from config.position for `rounds` batches each. Returns the
// position of one of them at the end.
static uint64_t read_together(const ShardSet *set, LoaderConfig config, int rounds, const int32_t *stream) {
    int32_t inputs[MOST_BATCH * LONG_T], targets[MOST_BATCH * LONG_T];
    const int batch = (int)config.batch, processes = config.processes;
    const uint64_t end = config.position + (uint64_t)(rounds * batch * processes);
    Loader *loaders[MOST_PROCESSES];
    Error error = {"", 0};
    for (config.rank = 0; config.rank < processes; config.rank++)
        if (!EXPECT((loaders[config.rank] = loader_open(set, &config, &error)) != NULL, "%s", error.text))
            exit(test_finish());
    size_t wrong = 0;
    stream += config.position;
    for (int round = 0; round < rounds; round++)
        for (int rank = 0; rank < processes; rank++, stream += batch) {
            if (loader_next(loaders[rank], inputs, targets, &error) != 0) EXPECT(0, "%s", error.text);
            wrong += wrong_sequences(inputs, targets, batch, stream);
        }
    EXPECT(wrong == 0, "%d processes from %llu on read %zu other sequences than one", processes,
           (unsigned long long)config.position, wrong);
    const uint64_t position = loader_position(loaders[random_between(0, processes - 1)]);
    EXPECT(position == end, "the position is %llu, not %llu", (unsigned long long)position,
           (unsigned long long)end);
    for (int rank = 0; rank < processes; rank++) loader_close(loaders[rank]);
    return position;
}

// A million sequences, through several epochs: a run that is resumed again and again, each time with another number
// of processes and another batch size, reads what one uninterrupted process reads, each sequence once and in order.
static void test_long_run(void) {
    const int sizes[] = {150001, 3, 40000, 260, 4, 77777, 250003};
    write_counting_shards("long", sizes, 7, 4);
    ShardSet set = open_shards("long");
    LoaderConfig config = {.T = LONG_T, .vocab_size = 518049, .seed = 99, .shuffle = 1};
    const size_t most = LONG_POSITIONS + MOST_PROCESSES * MOST_BATCH * MOST_ROUNDS;
    int32_t *stream = read_stream(&set, config, 0, most, 128);
    check_epochs(stream, 37500 + 9999 + 64 + 19444 + 62500, 518049);
    int resumed[MOST_PROCESSES + 1] = {0};
    while (config.position < LONG_POSITIONS) {
        config.processes = random_between(1, MOST_PROCESSES);
        config.batch = random_between(1, MOST_BATCH);
        resumed[config.processes]++;
        config.position = read_together(&set, config, random_between(1, MOST_ROUNDS), stream);
    }
    for (int processes = 1; processes <= MOST_PROCESSES; processes++)
        EXPECT(resumed[processes] > 5, "%d processes had their turn %d times", processes, resumed[processes]);
    free(stream);
    shards_close(&set);
}

// ---- errors -----------------------------------------------------------------------------------------------

static void expect_open_error(const ShardSet *set, int64_t batch, int64_t T, int32_t vocab_size,
                              const char *words) {
    LoaderConfig config = {0};
    Error error = {"(no message)", 0};
    config.batch = batch;
    config.T = T;
    config.vocab_size = vocab_size;
    Loader *loader = loader_open(set, &config, &error);
    EXPECT(loader == NULL, "accepted, expected '%s'", words);
    EXPECT(strstr(error.text, words) != NULL, "wanted '%s', got '%s'", words, error.text);
    loader_close(loader);
}

static void test_bad_configurations(void) {
    ShardSet set = open_shards("stream16"), none = {0};
    expect_open_error(&set, 0, 8, 1329, "a batch cannot have 0 ");
    expect_open_error(&set, -1, 8, 1329, "a batch cannot have -1 ");
    expect_open_error(&set, 1, 0, 1329, "a sequence cannot have 0 ");
    expect_open_error(&set, 1, 8, 0, "a vocabulary cannot have 0 ");
    expect_open_error(&set, INT32_MAX, INT32_MAX - 1, 1329, "too large");
    expect_open_error(&none, 1, 8, 1329, "no token shards");
    expect_open_error(&set, 1, 1000, 1329, "one shard must have at least 1001");
    expect_open_error(&set, 1, 1000, 1329, "stream16_5_000000.bin', has 1 and the longest");
    expect_open_error(&set, 1, 1000, 1329, "stream16_4_000000.bin', has 1000");
    shards_close(&set);
}

static void overwrite(const char *name, int token_bytes, uint64_t index, uint32_t value) {
    char *path = in_folder(name);
    int descriptor = open(path, O_WRONLY);
    EXPECT(pwrite(descriptor, &value, (size_t)token_bytes, (off_t)(1024 + index * (uint64_t)token_bytes)) ==
               token_bytes,
           "pwrite");
    close(descriptor);
    free(path);
}

// Calls loader_next until it fails; returns the number of batches before the error.
static int batches_before_error(const ShardSet *set, LoaderConfig config, int most, Error *error) {
    int32_t *inputs = (int32_t *)xmalloc((size_t)(config.batch * config.T) * 4),
            *targets = (int32_t *)xmalloc((size_t)(config.batch * config.T) * 4);
    Loader *loader = loader_open(set, &config, error);
    int batches = 0;
    while (loader != NULL && batches < most && loader_next(loader, inputs, targets, error) == 0) batches++;
    if (batches < most) {
        Error again;
        uint64_t position = loader_position(loader);
        EXPECT(loader_next(loader, inputs, targets, &again) == -1 && strcmp(again.text, error->text) == 0,
               "the error does not stay: '%s'", again.text);
        EXPECT(position == (uint64_t)(batches * config.batch) && loader_position(loader) == position,
               "position");
    }
    loader_close(loader);
    free(inputs);
    free(targets);
    return batches;
}

static void test_bad_tokens(void) {
    const int sizes[] = {100, 400};
    LoaderConfig config = {0};
    config.batch = 2;
    config.T = 8;
    config.vocab_size = 500;
    write_counting_shards("bad16", sizes, 2, 2);
    overwrite("bad16_1_000000.bin", 2, 203, 60000); // sequence 12 + 25, batch 18
    ShardSet set = open_shards("bad16");
    Error error = {"(no message)", 0};
    int batches = batches_before_error(&set, config, 100, &error);
    EXPECT(batches == 18, "%d batches before the error", batches);
    EXPECT(strstr(error.text, "token 203 of ") &&
               strstr(error.text, "bad16_1_000000.bin' is 60000, expected 0 to 499"),
           "'%s'", error.text);
    shards_close(&set);

    write_counting_shards("bad32", sizes, 2, 4);
    overwrite("bad32_0_000000.bin", 4, 8, 4000000000u); // the last target of the first sequence
    set = open_shards("bad32");
    batches = batches_before_error(&set, config, 100, &error);
    EXPECT(batches == 0, "%d batches before the error", batches);
    EXPECT(strstr(error.text, "token 8 of ") && strstr(error.text, "is 4000000000, expected 0 to 499"),
           "'%s'", error.text);
    shards_close(&set);
}

static void test_truncated_while_running(void) {
    const int sizes[] = {100000};
    write_counting_shards("cut", sizes, 1, 4);
    ShardSet set = open_shards("cut");
    LoaderConfig config = {0};
    config.batch = 2;
    config.T = 8;
    config.vocab_size = 100000;
    char *path = in_folder("cut_0_000000.bin");
    EXPECT(truncate(path, 1024 + 4 * 5000) == 0, "truncate");
    Error error = {"(no message)", 0};
    int batches = batches_before_error(&set, config, 100000, &error);
    EXPECT(batches == 312, "%d batches before the error", batches); // sequences 0 .. 623 end at token 4992
    EXPECT(strstr(error.text, path) != NULL, "'%s' does not name %s", error.text, path);
    free(path);
    shards_close(&set);
}

static void test_largest_shard(void) {
    const int sizes[] = {3};
    write_counting_shards("large", sizes, 1, 2);
    char *path = in_folder("large_0_000000.bin");
    const int32_t count = 2147483647;
    const uint16_t last[3] = {11, 22, 33};
    int descriptor = open(path, O_WRONLY);
    EXPECT(pwrite(descriptor, &count, 4, 8) == 4, "pwrite");
    EXPECT(ftruncate(descriptor, (off_t)(1024 + (uint64_t)count * 2)) == 0, "ftruncate");
    EXPECT(pwrite(descriptor, last, 6, (off_t)(1024 + ((uint64_t)count - 3) * 2)) == 6, "pwrite");
    close(descriptor);
    ShardSet set = open_shards("large");
    LoaderConfig config = {0};
    Error error = {"", 0};
    int32_t inputs[2], targets[2];
    config.batch = 1;
    config.T = 2;
    config.vocab_size = 100;
    config.position = 1073741822; // the last of 1073741823 sequences
    Loader *loader = loader_open(&set, &config, &error);
    EXPECT(loader_sequences_per_epoch(loader) == 1073741823, "sequences per epoch");
    EXPECT(loader_next(loader, inputs, targets, &error) == 0, "%s", error.text);
    EXPECT(inputs[0] == 11 && inputs[1] == 22 && targets[0] == 22 && targets[1] == 33, "wrong tokens");
    EXPECT(loader_next(loader, inputs, targets, &error) == 0, "%s", error.text);
    EXPECT(inputs[0] == 0 && targets[1] == 2, "the next epoch begins elsewhere");
    loader_close(loader);
    shards_close(&set);
    EXPECT(unlink(path) == 0, "unlink");
    free(path);
}

int main(void) {
    snprintf(folder, sizeof folder, "/tmp/test_loader_%d", (int)getpid());
    mkdir(folder, 0700);
    test_permutation();
    test_permutation_is_even();
    test_streams(2);
    test_streams(4);
    test_long_run();
    test_locate();
    test_bad_configurations();
    test_bad_tokens();
    test_truncated_while_running();
    test_largest_shard();
    char *command = format_text("rm -rf '%s'", folder);
    if (system(command) != 0) printf("could not remove %s\n", folder);
    free(command);
    return test_finish();
}
