// Everything that uses layers/base/files.c, data/model/safetensors.c, data/run/checkpoint.c, data/run/run.c and data/run/metrics.c: data is
// read back as written, every kind of damage is detected and named, and failures leave the previous state.
#include "data/run/checkpoint.h"
#include "data/model/weight_files.h"
#include "data/run/metrics.h"
#include "data/run/run.h"
#include "test/harness/test.h"

#include <inttypes.h>
#include <math.h>
#include <signal.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

static char folder[64];
static Error error;

static char *in_folder(const char *name) {
    return format_text("%s/%s", folder, name);
}

static void remove_tree(const char *path) {
    char *command = format_text("rm -rf '%s'", path);
    if (system(command) != 0) printf("could not remove %s\n", path);
    free(command);
}

// Without the syncs of file_write, as the damage tests write thousands of times.
static void write_unsynced(const char *path, const void *data, size_t size) {
    FILE *stream = fopen(path, "wb");
    if (stream == NULL || fwrite(data, 1, size, stream) != size || fclose(stream) != 0)
        die("cannot write %s", path);
}

static void get(const char *path, char **data, size_t *size) {
    if (file_read(path, 1 << 24, data, size, &error) != 0) die("%s", error.text);
}

// ---- files.c ----------------------------------------------------------------------------------------------

static uint32_t crc32c_bitwise(const unsigned char *bytes, size_t size) {
    uint32_t state = ~0u;
    for (; size > 0; size--, bytes++) {
        state ^= *bytes;
        for (int bit = 0; bit < 8; bit++) state = (state >> 1) ^ (0x82F63B78u & (0u - (state & 1u)));
    }
    return ~state;
}

static void test_crc32c(void) {
    unsigned char bytes[64];
    memset(bytes, 0, 32);
    EXPECT(crc32c(0, bytes, 32) == 0x8a9136aa, "32 zeros: %08x", crc32c(0, bytes, 32));
    memset(bytes, 0xff, 32);
    EXPECT(crc32c(0, bytes, 32) == 0x62a8ab43, "32 times ff: %08x", crc32c(0, bytes, 32));
    for (int i = 0; i < 32; i++) bytes[i] = (unsigned char)i;
    EXPECT(crc32c(0, bytes, 32) == 0x46dd794e, "0 to 31: %08x", crc32c(0, bytes, 32));
    EXPECT(crc32c(0, "123456789", 9) == 0xe3069283, "the check value: %08x", crc32c(0, "123456789", 9));
    EXPECT(crc32c(0, "", 0) == 0, "of nothing");
    for (int i = 0; i < 64; i++) bytes[i] = (unsigned char)(i * 37 + 11);
    int differences = 0;
    for (size_t start = 0; start < 9; start++)
        for (size_t size = 0; start + size <= 64; size++) {
            uint32_t whole = crc32c_bitwise(bytes + start, size);
            differences += crc32c(0, bytes + start, size) != whole;
            differences += crc32c(crc32c(0, bytes + start, size / 3), bytes + start + size / 3,
                                  size - size / 3) != whole;
        }
    EXPECT(differences == 0, "%d alignments and lengths differ from the definition", differences);
}

// Makes every write beyond `bytes` fail, as on a full disk.
static void limit_file_size(rlim_t bytes) {
    struct rlimit limit = {bytes, RLIM_INFINITY};
    EXPECT(setrlimit(RLIMIT_FSIZE, &limit) == 0, "setrlimit");
}

static void test_files(void) {
    char *path = in_folder("file"), *data, large[20000];
    size_t size;
    EXPECT(file_write(path, "old", 3, &error) == 0, "%s", error.text);
    memset(large, 'x', sizeof(large));
    limit_file_size(10000);
    EXPECT(file_write(path, large, sizeof(large), &error) == -1, "a write beyond the limit");
    limit_file_size(RLIM_INFINITY);
    EXPECT(strstr(error.text, path) != NULL, "'%s' names the file", error.text);
    get(path, &data, &size);
    EXPECT(size == 3 && strcmp(data, "old") == 0, "a failed write leaves the old content, not '%.10s'", data);
    free(data);
    char *list = format_text("[ \"$(ls '%s')\" = file ]", folder);
    EXPECT(system(list) == 0, "a failed write leaves a temporary file");
    free(list);
    EXPECT(file_write(path, large, sizeof(large), &error) == 0, "%s", error.text);
    get(path, &data, &size);
    EXPECT(size == sizeof(large) && memcmp(data, large, size) == 0, "new content");
    free(data);
    EXPECT(file_read(path, 19999, &data, &size, &error) == -1 && data == NULL, "a file above the limit");
    EXPECT(file_read(folder, 1000, &data, &size, &error) == -1, "a folder read as a file");
    EXPECT(file_read("/dev/zero", 1000, &data, &size, &error) == -1, "a device read as a file");
    char *below = format_text("%s/below", path);
    EXPECT(file_write(below, "x", 1, &error) == -1 && strstr(error.text, below), "a file as a folder: %s",
           error.text);
    EXPECT(folder_create(below, &error) == -1 && strstr(error.text, path), "%s", error.text);
    EXPECT(folder_create(path, &error) == -1 && strstr(error.text, "a file of that name exists"), "%s",
           error.text);
    free(below);
    unlink(path);
    free(path);
    path = in_folder("a/b//c/");
    EXPECT(folder_create(path, &error) == 0 && file_exists(path), "%s", error.text);
    EXPECT(folder_create(path, &error) == 0, "a folder that is there: %s", error.text);
    free(path);
}

// ---- safetensors.c ----------------------------------------------------------------------------------------

static float one[6], two[4];
static const NamedTensor tensors[2] = {{"h.0.attn.c_attn.weight", one, 2, 3}, {"ln_f.bias", two, 0, 4}};
#define ENTRY_ONE "\"h.0.attn.c_attn.weight\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]}"
#define ENTRY_TWO "\"ln_f.bias\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[24,40]}"

static char *write_tensors(const char *header, uint64_t announced, size_t data_bytes) {
    char *path = in_folder("x.safetensors"), *bytes = (char *)xcalloc(1, 8 + strlen(header) + data_bytes);
    memcpy(bytes, &announced, 8);
    memcpy(bytes + 8, header, strlen(header));
    for (size_t i = 0; i < data_bytes; i++) bytes[8 + strlen(header) + i] = (char)(i % 50);
    write_unsynced(path, bytes, 8 + strlen(header) + data_bytes);
    free(bytes);
    return path;
}

static void expect_tensors(const char *header, size_t data_bytes, const char *words) {
    char *path = write_tensors(header, strlen(header), data_bytes);
    error.text[0] = '\0';
    int result = safetensors_read((const char *[]){path}, 1, tensors, 2, &error);
    if (words == NULL)
        EXPECT(result == 0, "%s: %s", header, error.text);
    else
        EXPECT(result == -1 && strstr(error.text, words) && strstr(error.text, path),
               "wanted '%s', got '%s' from %s", words, error.text, header);
    unlink(path);
    free(path);
}

static void test_round_trip(void) {
    char *path = in_folder("x.safetensors");
    float values[10] = {1, -2.5f, 3e-40f, INFINITY, -0.0f, 1e30f, 7, 8, 9, 10};
    memcpy(one, values, sizeof(one));
    memcpy(two, values + 6, sizeof(two));
    FILE *stream = fopen(path, "wb");
    safetensors_write(stream, tensors, 2);
    fclose(stream);
    memset(one, 0, sizeof(one));
    memset(two, 0, sizeof(two));
    EXPECT(safetensors_read((const char *[]){path}, 1, tensors, 2, &error) == 0, "%s", error.text);
    EXPECT(memcmp(one, values, sizeof(one)) == 0 && memcmp(two, values + 6, sizeof(two)) == 0,
           "values differ");
    char *data;
    size_t size;
    uint64_t length;
    get(path, &data, &size);
    memcpy(&length, data, 8);
    EXPECT(length % 8 == 0 && size == 8 + length + 40, "the data of %zu bytes begins at 8 + %" PRIu64, size,
           length);
    EXPECT(strstr(data + 8, "\"__metadata__\":{\"format\":\"pt\"}") != NULL, "%.100s", data + 8);
    int missed = 0;
    for (size_t cut = 0; cut < size; cut++) {
        write_unsynced(path, data, cut);
        missed += safetensors_read((const char *[]){path}, 1, tensors, 2, &error) != -1 ||
                  strstr(error.text, path) == NULL;
    }
    EXPECT(missed == 0, "%d of %zu cuts were accepted", missed, size);
    free(data);
    unlink(path);
    free(path);
}

static void test_accepted(void) {
    expect_tensors("{" ENTRY_ONE "," ENTRY_TWO "}", 40, NULL);
    expect_tensors("{" ENTRY_ONE "," ENTRY_TWO "}    ", 40, NULL);
    expect_tensors("{" ENTRY_TWO "," ENTRY_ONE ",\"__metadata__\":{}}", 40, NULL);
    expect_tensors("{\"transformer.h.0.attn.c_attn.weight\":{\"dtype\":\"F32\",\"shape\":[2,3],"
                   "\"data_offsets\":[0,24]},\"transformer.ln_f.bias\":{\"dtype\":\"F32\",\"shape\":[4],"
                   "\"data_offsets\":[24,40]}}",
                   40, NULL);
    expect_tensors("{" ENTRY_ONE "," ENTRY_TWO
                   ",\"transformer.h.0.attn.bias\":{\"dtype\":\"U8\",\"shape\":[3],"
                   "\"data_offsets\":[40,43]},\"h.11.attn.masked_bias\":{\"dtype\":\"F32\",\"shape\":[],"
                   "\"data_offsets\":[43,47]},\"lm_head.weight\":{\"dtype\":\"F32\",\"shape\":[1],"
                   "\"data_offsets\":[47,51]}}",
                   51, NULL);
    // 16-bit types: 1, -2, the smallest subnormal half, infinity, NaN, 65504.
    uint16_t halves[6] = {0x3c00, 0xc000, 0x0001, 0x7c00, 0x7e00, 0x7bff},
             bfloats[4] = {0x3f80, 0xc000, 0x7f80, 0x0001};
    const char
        *header = "{\"h.0.attn.c_attn.weight\":{\"dtype\":\"F16\",\"shape\":[2,3],\"data_offsets\":[0,12]},"
                  "\"ln_f.bias\":{\"dtype\":\"BF16\",\"shape\":[4],\"data_offsets\":[12,20]}}";
    char bytes[400], *path = in_folder("x.safetensors");
    uint64_t length = strlen(header);
    memcpy(bytes, &length, 8);
    memcpy(bytes + 8, header, length);
    memcpy(bytes + 8 + length, halves, 12);
    memcpy(bytes + 20 + length, bfloats, 8);
    write_unsynced(path, bytes, 28 + length);
    EXPECT(safetensors_read((const char *[]){path}, 1, tensors, 2, &error) == 0, "%s", error.text);
    EXPECT(one[0] == 1 && one[1] == -2 && one[2] == ldexpf(1, -24) && isinf(one[3]) && isnan(one[4]) &&
               one[5] == 65504,
           "F16: %g %g %g %g %g %g", one[0], one[1], one[2], one[3], one[4], one[5]);
    EXPECT(two[0] == 1 && two[1] == -2 && isinf(two[2]) && two[3] == ldexpf(1, -133), "BF16: %g %g %g %g",
           two[0], two[1], two[2], two[3]);
    free(path);
}

static void test_refused(void) {
    expect_tensors("{" ENTRY_ONE "}", 24, "ln_f.bias is missing");
    expect_tensors("{" ENTRY_ONE "," ENTRY_TWO
                   ",\"h.0.x\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[40,44]}}",
                   44, "h.0.x is not part of this model");
    expect_tensors("{" ENTRY_ONE "," ENTRY_TWO "," ENTRY_TWO "}", 40, "ln_f.bias appears twice");
    expect_tensors("{" ENTRY_ONE "," ENTRY_TWO ",\"transformer."
                   "ln_f.bias\":{\"dtype\":\"F32\",\"shape\":[4],"
                   "\"data_offsets\":[40,56]}}",
                   56, "ln_f.bias appears twice");
    static const struct {
        const char *entry, *words;
    } cases[] = {
        {"{\"dtype\":\"F32\",\"shape\":[5],\"data_offsets\":[24,44]}", "expected [4]"},
        {"{\"dtype\":\"F32\",\"shape\":[4,1],\"data_offsets\":[24,40]}", "has shape [4,1]"},
        {"{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[24,40]}", "has shape []"},
        {"{\"dtype\":\"F32\",\"shape\":[4.5],\"data_offsets\":[24,40]}", "shape"},
        {"{\"dtype\":\"F32\",\"shape\":[\"4\"],\"data_offsets\":[24,40]}", "shape"},
        {"{\"dtype\":\"F32\",\"data_offsets\":[24,40]}", "has shape none"},
        {"{\"dtype\":\"F64\",\"shape\":[4],\"data_offsets\":[24,56]}", "has type F64"},
        {"{\"dtype\":7,\"shape\":[4],\"data_offsets\":[24,40]}", "has type missing"},
        {"{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[28,44]}", "lies outside it"},
        {"{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[24,41]}", "lies outside it"},
        {"{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[40,24]}", "lies outside it"},
        {"{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[-16,0]}", "lies outside it"},
        {"{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[1e300,1e300]}", "lies outside it"},
        {"{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[24.5,40.5]}", "lies outside it"},
        {"{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[24]}", "lies outside it"},
        {"{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":\"24\"}", "lies outside it"},
        {"{\"dtype\":\"F32\",\"shape\":[4]}", "lies outside it"},
        {"{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[8,24]}", "leave gaps or overlap"},
        {"[]", "shape"},
        {"7", "shape"},
        {"null", "shape"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char *header = format_text("{" ENTRY_ONE ",\"ln_f.bias\":%s}", cases[i].entry);
        expect_tensors(header, 16 + 24, cases[i].words);
        free(header);
    }
    expect_tensors("{" ENTRY_ONE "," ENTRY_TWO "}", 41, "leave gaps or overlap");
    expect_tensors("{" ENTRY_ONE ",\"ln_f.bias\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[28,44]}}",
                   44, "leave gaps or overlap");
}

static void test_headers(void) {
    static const char *const headers[] = {
        "", "[]", "7", "null", "{", "{\"a\":}", "\"text\"", "{\"ln_f.bias\":{}", "\xff\xfe"};
    for (size_t i = 0; i < sizeof(headers) / sizeof(headers[0]); i++)
        expect_tensors(headers[i], 40, "not a JSON object");
    expect_tensors("{}", 0, "is missing");
    static const uint64_t lengths[] = {43,         1000,       1ull << 31,    1ull << 40,
                                       1ull << 63, UINT64_MAX, UINT64_MAX - 7};
    for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
        char *path = write_tensors("{}", lengths[i], 40);
        EXPECT(safetensors_read((const char *[]){path}, 1, tensors, 2, &error) == -1 &&
                   strstr(error.text, "announce a header of"),
               "%" PRIu64 ": %s", lengths[i], error.text);
        free(path);
    }
    char *deep = (char *)xmalloc(200001);
    memset(deep, '[', 200000); // nested too deeply for a recursive parser
    deep[200000] = '\0';
    memcpy(deep, "{\"a\":", 5);
    expect_tensors(deep, 40, "not a JSON object");
    free(deep);
    EXPECT(safetensors_read((const char *[]){folder}, 1, tensors, 2, &error) == -1 &&
               strstr(error.text, folder),
           "%s", error.text);
    EXPECT(safetensors_read((const char *[]){"/nowhere"}, 1, tensors, 2, &error) == -1 &&
               strstr(error.text, "/nowhere"),
           "%s", error.text);
}

// ---- checkpoint.c -----------------------------------------------------------------------------------------

static GPTConfig config; // set by main
static const TrainingState state = {7, 6172839452835061, 98765, 3, 1, 2, 3, {5.25, 0.1 + 0.2, 1e-300}};

// Returns the folder of the newest intact checkpoint, or NULL.
static char *newest_of(const char *run) {
    int64_t step;
    return checkpoint_newest(run, INT64_MAX, &step, &error) == 0 ? checkpoint_folder(run, step) : NULL;
}

#define ID "0123456789abcdef"
#define OTHER_ID "fedcba9876543210"

static int save_as(const char *run, const char *run_id, int64_t step, int64_t keep) {
    CheckpointWriter writer;
    if (folder_create(run, &error) != 0) return -1;
    char *config_json = gpt_config_text(&config), *state_json = training_state_text(&state);
    int result = checkpoint_begin(&writer, run, run_id, step, &error);
    if (result == 0) {
        result = checkpoint_tensors(&writer, "model.safetensors", tensors, 2, &error);
        if (result == 0) result = checkpoint_text(&writer, "config.json", config_json, &error);
        if (result == 0) result = checkpoint_text(&writer, "training_state.json", state_json, &error);
        if (result == 0)
            result = checkpoint_commit(&writer, keep, &error);
        else
            checkpoint_abandon(&writer);
    }
    free(config_json);
    free(state_json);
    return result;
}

static int save(const char *run, int64_t step, int64_t keep) {
    return save_as(run, ID, step, keep);
}

static void expect_listing(const char *run, const char *wanted) {
    char *command = format_text("[ \"$(cd '%s/checkpoints' && echo *)\" = '%s' ]", run, wanted);
    EXPECT(system(command) == 0, "there should be just %s", wanted);
    free(command);
}

// Changes the file, expects verification to name it, and restores it.
static void expect_damage_found(const char *step, const char *path, char *data, size_t size) {
    int missed = 0;
    for (size_t i = 0; i < size; i++) {
        for (int bit = 0; bit < 8; bit += 7) {
            data[i] ^= (char)(1 << bit);
            write_unsynced(path, data, size);
            missed += checkpoint_verify(step, 1, &error) != -1 || strstr(error.text, path) == NULL;
            data[i] ^= (char)(1 << bit);
        }
        write_unsynced(path, data, i);
        missed += checkpoint_verify(step, 1, &error) != -1 || strstr(error.text, path) == NULL;
    }
    EXPECT(missed == 0, "of %zu changes and cuts of %s, %d were not found or not named", 3 * size, path,
           missed);
    char *longer = (char *)xcalloc(1, size + 1);
    memcpy(longer, data, size);
    write_unsynced(path, longer, size + 1);
    EXPECT(checkpoint_verify(step, 1, &error) == -1 && strstr(error.text, path), "%s with a byte more", path);
    free(longer);
    unlink(path);
    EXPECT(checkpoint_verify(step, 1, &error) == -1 && strstr(error.text, path), "%s removed: %s", path,
           error.text);
    write_unsynced(path, data, size);
    EXPECT(checkpoint_verify(step, 1, &error) == 0, "restored: %s", error.text);
}

static void test_manifest(void) {
    static const char *const names[] = {"model.safetensors", "config.json", "training_state.json",
                                        "manifest"};
    char *run = in_folder("run"), *step;
    EXPECT(save(run, 7, 2) == 0, "%s", error.text);
    step = newest_of(run);
    EXPECT(step && strstr(step, "step_00000007") && checkpoint_verify(step, 1, &error) == 0, "%s",
           error.text);
    for (int i = 0; i < 4; i++) {
        char *path = format_text("%s/%s", step, names[i]), *data;
        size_t size;
        get(path, &data, &size);
        expect_damage_found(step, path, data, size);
        free(data);
        free(path);
    }
    char *path = format_text("%s/manifest", step);
    unlink(path);
    EXPECT(checkpoint_verify(step, 0, &error) == 0, "a folder of others needs no manifest: %s", error.text);
    EXPECT(checkpoint_verify(step, 1, &error) == -1, "one of a run does");
    free(path);
    free(step);
    remove_tree(run);
    free(run);
}

static void expect_config(const char *path, const char *text, const char *words) {
    GPTConfig read;
    write_unsynced(path, text, strlen(text));
    error.text[0] = '\0';
    int result = gpt_config_read(folder, NULL, &read, &error);
    if (words == NULL)
        EXPECT(result == 0 && memcmp(&read, &config, sizeof(read)) == 0, "%s: %s", text, error.text);
    else
        EXPECT(result == -1 && strstr(error.text, words) && strstr(error.text, path),
               "wanted '%s', got '%s' from %s", words, error.text, text);
}

#define SHAPE                                                                                                \
    "\"bos_token_id\":298,\"eos_token_id\":299,\"n_positions\":32,\"vocab_size\":300,\"n_layer\":2,\"n_"     \
    "head\":4,\"n_embd\":64"
static void test_config(void) {
    char *path = in_folder("config.json"), *text = gpt_config_text(&config);
    expect_config(path, text, NULL);
    for (size_t cut = 0; cut + 3 < strlen(text); cut++) {
        char *part = format_text("%.*s", (int)cut, text);
        expect_config(path, part, "not a JSON object");
        free(part);
    }
    free(text);
    expect_config(path, "{\"model_type\":\"gpt2\"," SHAPE ",\"n_inner\":null}", NULL);
    expect_config(path, "{\"model_type\":\"gpt2\"," SHAPE ",\"n_inner\":256}", NULL);
    expect_config(path, "{\"model_type\":\"gpt2\"," SHAPE ",\"n_inner\":255}", "n_inner");
    expect_config(path, "{" SHAPE "}", "model_type is missing");
    expect_config(path, "{\"model_type\":\"llama\"," SHAPE "}", "computes with \"gpt2\"");
    expect_config(path, "{\"model_type\":\"gpt2\"," SHAPE ",\"activation_function\":\"relu\"}", "gelu_new");
    expect_config(path, "{\"model_type\":\"gpt2\"," SHAPE ",\"tie_word_embeddings\":false}",
                  "tie_word_embeddings");
    expect_config(path, "{\"model_type\":\"gpt2\"," SHAPE ",\"layer_norm_epsilon\":1e-6}",
                  "layer_norm_epsilon");
    expect_config(path, "{\"model_type\":\"gpt2\",\"n_positions\":32}", "vocab_size is missing");
    expect_config(path, "{\"model_type\":\"gpt2\",\"n_positions\":-1}", "n_positions must be");
    expect_config(path, "{\"model_type\":\"gpt2\",\"n_positions\":1.5}", "n_positions must be");
    expect_config(path, "{\"model_type\":\"gpt2\",\"n_positions\":1e99}", "n_positions must be");
    expect_config(path, "{\"model_type\":\"gpt2\",\"n_positions\":\"32\"}", "n_positions must be");
    // Keys that change the model are refused by name, as are unknown keys, unless they are to be ignored.
    expect_config(path, "{\"model_type\":\"gpt2\"," SHAPE ",\"scale_attn_weights\":false}",
                  "scale_attn_weights is false");
    expect_config(path, "{\"model_type\":\"gpt2\"," SHAPE ",\"scale_attn_weights\":true}", NULL);
    expect_config(path, "{\"model_type\":\"gpt2\"," SHAPE ",\"scale_attn_by_inverse_layer_idx\":true}",
                  "scale_attn_by_inverse_layer_idx is true");
    expect_config(path, "{\"model_type\":\"gpt2\"," SHAPE ",\"pruned_heads\":{\"1\":[0]}}", "pruned_heads");
    expect_config(path, "{\"model_type\":\"gpt2\"," SHAPE ",\"quantization_config\":{\"bits\":4}}",
                  "quantization_config");
    expect_config(path, "{\"model_type\":\"gpt2\"," SHAPE ",\"rope_theta\":1e4}",
                  "does not know, rope_theta");
    expect_config(path, "{\"model_type\":\"gpt2\"," SHAPE ",\"n_layer\":3}", "n_layer twice");
    expect_config(path, "{\"hidden_size\":64,\"model_type\":\"llama\"}", "model_type is \"llama\"");
    expect_config(path,
                  "{\"model_type\":\"gpt2\"," SHAPE
                  ",\"attn_pdrop\":0.1,\"n_ctx\":16,\"reorder_and_upcast_attn\":true,"
                  "\"task_specific_params\":{\"text-generation\":{\"do_sample\":true}}}",
                  NULL);
    GPTConfig none = config, read_config;
    text = "{\"model_type\":\"gpt2\"," SHAPE ",\"rope_theta\":1e4,\"scale_attn_weights\":false}";
    write_unsynced(path, text, strlen(text));
    EXPECT(gpt_config_read(folder, "rope_theta, scale_attn_weights", &read_config, &error) == 0, "%s",
           error.text);
    EXPECT(gpt_config_read(folder, "rope_theta", &read_config, &error) == -1, "one of two keys is ignored");
    none.begin_of_text = none.end_of_text = -1;
    text = gpt_config_text(&none);
    write_unsynced(path, text, strlen(text));
    EXPECT(gpt_config_read(folder, NULL, &read_config, &error) == 0 &&
               memcmp(&read_config, &none, sizeof(none)) == 0,
           "no end of text: %s", error.text);
    free(text);
    unlink(path);
    EXPECT(gpt_config_read(folder, NULL, &read_config, &error) == -1 && strstr(error.text, path), "%s",
           error.text);
    free(path);
    path = in_folder("training_state.json");
    text = training_state_text(&state);
    TrainingState read;
    write_unsynced(path, text, strlen(text));
    EXPECT(training_state_read(folder, &read, &error) == 0 && memcmp(&read, &state, sizeof(read)) == 0, "%s",
           error.text);
    write_unsynced(path, "{\"step\":3,\"position\":5}", 23);
    EXPECT(training_state_read(folder, &read, &error) == 0 && read.step == 3 && read.skipped == 0, "%s",
           error.text);
    write_unsynced(path, "{\"step\":3}", 10);
    EXPECT(training_state_read(folder, &read, &error) == -1 && strstr(error.text, "position"), "%s",
           error.text);
    write_unsynced(path, "{\"step\":3,\"position\":5,\"recent_losses\":[1,1e999]}", 49);
    EXPECT(training_state_read(folder, &read, &error) == -1 && strstr(error.text, "recent_losses"), "%s",
           error.text);
    free(text);
    unlink(path);
    free(path);
}

static void make_folder(const char *run, const char *name) {
    char *path = format_text("%s/checkpoints/%s", run, name), *file = format_text("%s/junk", path);
    EXPECT(folder_create(path, &error) == 0, "%s", error.text);
    write_unsynced(file, "junk", 4);
    free(path);
    free(file);
}

static void test_keep(void) {
    char *run = in_folder("run");
    EXPECT(newest_of(run) == NULL && strstr(error.text, run), "%s", error.text);
    for (int64_t step = 10; step <= 50; step += 10) EXPECT(save(run, step, 3) == 0, "%s", error.text);
    expect_listing(run, "step_00000030 step_00000040 step_00000050");
    // Left by runs that were killed: while writing step 60, while removing; and names that are not checkpoints.
    make_folder(run, "writing_" ID "_00000060");
    make_folder(run, "removing_" ID "_00000020");
    make_folder(run, "writing_" OTHER_ID "_00000060");
    make_folder(run, "removing");
    make_folder(run, "writing_thesis");
    make_folder(run, "step_99");
    make_folder(run, "step_99999999999999999999");
    make_folder(run, "step_");
    make_folder(run, "step_00000099x");
    checkpoint_remove_leftovers(run, ID);
    EXPECT(save(run, 70, 3) == 0, "%s", error.text);
    // Files that this run has not written are kept, as are those it cannot prove it wrote: the manifest is missing.
    expect_listing(run, "removing step_ step_00000020_kept_1 step_00000040 step_00000050 step_00000070 step_00000099x "
                        "step_99 step_99999999999999999999 writing_" OTHER_ID "_00000060 writing_thesis");
    char *newest = newest_of(run);
    EXPECT(newest && strstr(newest, "/step_00000070") && checkpoint_verify(newest, 1, &error) == 0, "%s",
           error.text);
    EXPECT(save(run, 70, 1) == 0 && checkpoint_verify(newest, 1, &error) == 0, "saved again: %s", error.text);
    free(newest);
    EXPECT(save(run, 123456789, 1) == 0, "more than eight digits: %s", error.text);
    newest = newest_of(run);
    EXPECT(newest && strstr(newest, "/step_123456789"), "%s", newest ? newest : error.text);
    free(newest);
    remove_tree(run);
    free(run);
}

// A run removes only what it has written: no other run's checkpoints, and no files added to its own.
static void test_foreign_files(void) {
    char *run = in_folder("foreign");
    EXPECT(save_as(run, OTHER_ID, 1, 1) == 0 && save_as(run, "", 2, 1) == 0 && save(run, 3, 1) == 0, "%s",
           error.text);
    make_folder(run, "step_00000003/notes");
    char *notes = format_text("%s/checkpoints/step_00000003/notes.md", run);
    write_unsynced(notes, "mine", 4);
    free(notes);
    EXPECT(save(run, 4, 1) == 0, "%s", error.text);
    expect_listing(run, "step_00000001 step_00000002 step_00000003_kept_1 step_00000004");
    char *command = format_text("cd '%s/checkpoints/step_00000003_kept_1' && [ \"$(echo *)\" = 'notes notes.md' ]", run);
    EXPECT(system(command) == 0, "the files of others, and only they, are kept");
    free(command);
    // A name that is already used by another run's checkpoint, or by a file.
    char *file = format_text("%s/checkpoints/step_00000005", run);
    write_unsynced(file, "mine", 4);
    EXPECT(save(run, 5, 9) == 0 && save(run, 1, 9) == 0 && save(run, 1, 9) == 0, "%s", error.text);
    expect_listing(run, "step_00000001 step_00000001_kept_1 step_00000002 step_00000003_kept_1 step_00000004 step_00000005 "
                        "step_00000005_kept_1");
    char *other = format_text("%s/checkpoints/step_00000001_kept_1", run);
    EXPECT(checkpoint_verify(other, 1, &error) == 0, "%s", error.text);
    remove_tree(run);
    free(other), free(file), free(run);
}

// Changes a byte in the middle of a checkpoint's file.
static void damage(const char *run, int64_t step, const char *name) {
    char *step_folder = checkpoint_folder(run, step), *path = format_text("%s/%s", step_folder, name), *data;
    size_t size;
    get(path, &data, &size);
    data[size / 2] ^= 4;
    write_unsynced(path, data, size);
    free(data), free(path), free(step_folder);
}

// Damaged checkpoints are skipped, kept until their step is written again, and not counted among the kept ones.
static void test_newest(void) {
    char *run = in_folder("run");
    int64_t step;
    EXPECT(checkpoint_last(run, &step, &error) == 0 && step == -1, "a checkpoint of nothing");
    for (step = 1; step <= 3; step++) EXPECT(save(run, step, 3) == 0, "%s", error.text);
    EXPECT(checkpoint_last(run, &step, &error) == 0 && step == 3 &&
               checkpoint_newest(run, INT64_MAX, &step, &error) == 0 && step == 3,
           "%s", error.text);
    EXPECT(checkpoint_newest(run, 2, &step, &error) == 0 && step == 2, "up to 2: %d", (int)step);
    damage(run, 3, "model.safetensors");
    EXPECT(checkpoint_newest(run, INT64_MAX, &step, &error) == 0 && step == 2, "step %d: %s", (int)step,
           error.text);
    damage(run, 2, "manifest");
    EXPECT(checkpoint_newest(run, INT64_MAX, &step, &error) == 0 && step == 1, "step %d: %s", (int)step,
           error.text);
    damage(run, 1, "config.json");
    EXPECT(checkpoint_newest(run, INT64_MAX, &step, &error) == -1 &&
               strstr(error.text, "no intact checkpoint"),
           "%s", error.text);
    expect_listing(run, "step_00000001 step_00000002 step_00000003");
    EXPECT(save(run, 2, 1) == 0, "%s", error.text);
    expect_listing(run, "step_00000002 step_00000002_kept_1 step_00000003"); // 2 had no valid manifest
    EXPECT(checkpoint_newest(run, INT64_MAX, &step, &error) == 0 && step == 2, "step %d: %s", (int)step,
           error.text);
    EXPECT(save(run, 3, 1) == 0 && checkpoint_newest(run, INT64_MAX, &step, &error) == 0 && step == 3, "%s",
           error.text);
    expect_listing(run, "step_00000002_kept_1 step_00000003");
    remove_tree(run);
    // An unreadable folder is not mistaken for a run without checkpoints.
    char *path = format_text("%s/checkpoints", run);
    EXPECT(mkdir(run, 0777) == 0, "mkdir");
    write_unsynced(path, "", 0);
    EXPECT(checkpoint_last(run, &step, &error) == -1 && strstr(error.text, path), "%s", error.text);
    EXPECT(checkpoint_newest(run, INT64_MAX, &step, &error) == -1 && strstr(error.text, path), "%s",
           error.text);
    remove_tree(run);
    free(path);
    free(run);
}

// Files of several writers: each tensor is in one of them, and none may be missing.
static void test_parts(void) {
    char *run = in_folder("run"), *folder_of_step = checkpoint_folder(run, 1);
    CheckpointWriter first, second;
    float values[10] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
    memcpy(one, values, sizeof(one));
    memcpy(two, values + 6, sizeof(two));
    EXPECT(checkpoint_begin(&first, run, ID, 1, &error) == -1 && strstr(error.text, run),
           "a run's folder that is not there is not made: %s", error.text);
    EXPECT(folder_create(run, &error) == 0 && checkpoint_begin(&first, run, ID, 1, &error) == 0 &&
               checkpoint_begin(&second, run, ID, 1, &error) == 0 &&
               checkpoint_tensors(&first, "model-00001-of-00002.safetensors", tensors, 1, &error) == 0 &&
               checkpoint_tensors(&second, "model-00002-of-00002.safetensors", tensors + 1, 1, &error) == 0,
           "%s", error.text);
    EXPECT(second.manifest.num_files == 1, "%zu files", second.manifest.num_files);
    checkpoint_add(&first, &second.manifest.files[0]);
    checkpoint_leave(&second);
    EXPECT(checkpoint_commit(&first, 1, &error) == 0 && checkpoint_verify(folder_of_step, 1, &error) == 0,
           "%s", error.text);
    // A part that does not belong to this checkpoint: from an earlier save by another number of processes, in a
    // copied folder.
    char *stale = format_text("%s/model-00001-of-00003.safetensors", folder_of_step);
    write_unsynced(stale, "stale", 5);
    memset(one, 0, sizeof(one));
    memset(two, 0, sizeof(two));
    EXPECT(checkpoint_read_tensors(folder_of_step, "model", tensors, 2, &error) == 0 &&
               memcmp(one, values, sizeof(one)) == 0 && memcmp(two, values + 6, sizeof(two)) == 0,
           "read from two files: %s", error.text);
    EXPECT(checkpoint_read_tensors(folder_of_step, "optimizer", tensors, 2, &error) == -1 &&
               strstr(error.text, "optimizer.safetensors"),
           "%s", error.text);
    EXPECT(checkpoint_read_tensors(folder_of_step, "model", tensors, 1, &error) == -1 &&
               strstr(error.text, "not part of this model"),
           "%s", error.text);
    damage(run, 1, "model-00002-of-00002.safetensors");
    EXPECT(checkpoint_verify(folder_of_step, 1, &error) == -1 && strstr(error.text, "model-00002"), "%s",
           error.text);
    char *path = format_text("%s/model-00002-of-00002.safetensors", folder_of_step);
    unlink(path);
    EXPECT(checkpoint_read_tensors(folder_of_step, "model", tensors, 2, &error) == -1 &&
               strstr(error.text, path),
           "%s", error.text);
    remove_tree(run);
    free(stale), free(path), free(folder_of_step), free(run);
}

static void put_in(const char *name, const char *text) {
    char *path = format_text("%s/%s", folder, name);
    write_unsynced(path, text, strlen(text));
    free(path);
}

// Expects the space-separated names of the files that hold the tensors "model", or the reason why there are none.
static void expect_files(const char *wanted, const char *words) {
    WeightFiles files;
    error.text[0] = '\0';
    const int result = weight_files_find(folder, "model", &files, &error);
    char *found = xstrdup("");
    for (size_t i = 0; i < files.count; i++) {
        char *longer = format_text("%s%s%s", found, i > 0 ? " " : "", strrchr(files.paths[i], '/') + 1);
        free(found);
        found = longer;
    }
    if (words == NULL)
        EXPECT(result == 0 && strcmp(found, wanted) == 0, "wanted %s, found %s: %s", wanted, found,
               error.text);
    else
        EXPECT(result == -1 && strstr(error.text, words), "wanted '%s', got '%s'", words, error.text);
    free(found);
    weight_files_free(&files);
}

// The index is authoritative; without it there is one file, and files of other names are ignored.
static void test_weight_files(void) {
    char *command = format_text("rm -rf '%s'/*", folder);
    expect_files(NULL, "neither model.safetensors nor model.safetensors.index.json");
    put_in("pytorch_model.bin", "x");
    expect_files(NULL, "pytorch_model.bin, but only safetensors can be read");
    put_in("model-00001-of-00002.safetensors", "x");
    put_in("model-00002-of-00002.safetensors", "x");
    put_in("model.safetensors", "x");
    expect_files("model.safetensors", NULL);
    put_in("model.safetensors.index.json",
           "{\"weight_map\":{\"a\":\"model.safetensors\",\"b\":\"model.safetensors\"}}");
    expect_files("model.safetensors", NULL);
    put_in("model.safetensors.index.json",
           "{\"weight_map\":{\"a\":\"first.safetensors\",\"b\":\"second.safetensors\"}}");
    expect_files(NULL, "first.safetensors' is missing");
    put_in("first.safetensors", "x");
    expect_files(NULL, "second.safetensors' is missing");
    put_in("second.safetensors", "x");
    expect_files(NULL, "contradict each other");
    char *single = in_folder("model.safetensors");
    unlink(single);
    expect_files("first.safetensors second.safetensors", NULL);
    put_in("model.safetensors.index.json", "{\"weight_map\":{\"a\":\"../first.safetensors\"}}");
    expect_files(NULL, "the name of a file in the same folder");
    put_in("model.safetensors.index.json", "{\"weight_map\":{\"a\":1}}");
    expect_files(NULL, "the name of a file in the same folder");
    put_in("model.safetensors.index.json", "{\"weight_map\":{}}");
    expect_files(NULL, "no weight_map");
    put_in("model.safetensors.index.json", "[");
    expect_files(NULL, "not a JSON object");
    EXPECT(system(command) == 0, "rm");
    free(command), free(single);
}

// A checkpoint that cannot be written, wherever it fails, leaves earlier ones unchanged.
static void test_failed_commit(void) {
    char *run = in_folder("run");
    EXPECT(save(run, 1, 1) == 0, "%s", error.text);
    for (rlim_t bytes = 0; bytes < 300; bytes += 60) {
        limit_file_size(bytes);
        int result = save(run, 2, 1);
        limit_file_size(RLIM_INFINITY);
        EXPECT(result == -1 && strstr(error.text, "cannot write"), "with %d bytes: %s", (int)bytes,
               error.text);
        expect_listing(run, "step_00000001");
    }
    char *path = format_text("%s/checkpoints/step_00000001", run);
    EXPECT(checkpoint_verify(path, 1, &error) == 0, "%s", error.text);
    free(path);
    remove_tree(run);
    free(run);
}

// ---- run.c ------------------------------------------------------------------------------------------------

static const Option no_options[1];

static int open_run(RunLock *lock, const char *run) {
    return run_open(lock, run, 0, -1, no_options, 0, NULL, &error);
}

// Tries to open the run in a separate process. Returns its exit status: 0: opened, and exited without releasing it;
// 1: refused.
static int open_elsewhere(const char *run) {
    int status;
    fflush(stdout);
    pid_t process = fork();
    if (process == 0) {
        RunLock lock;
        _exit(open_run(&lock, run) == 0 ? 0 : strstr(error.text, "another trainer is using") ? 1 : 2);
    }
    waitpid(process, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

// Simulates the lock of a trainer on another host, which is touched `times` times, twice a second.
static int simulate_other_host(const char *run, int times) {
    char *path = format_text("%s/lock", run);
    write_unsynced(path, "elsewhere 77 123\n", 17);
    pid_t process = fork();
    if (process == 0) {
        for (int i = 0; i < times; i++) {
            usleep(500000);
            utimes(path, NULL);
        }
        _exit(0);
    }
    RunLock lock;
    int result = open_run(&lock, run);
    run_close(&lock);
    waitpid(process, NULL, 0);
    free(path);
    return result;
}

static void test_lock(void) {
    char *run = in_folder("locked"), *moved = in_folder("moved"), *path = format_text("%s/lock", run);
    RunLock lock;
    EXPECT(open_elsewhere(run) == 0 && open_elsewhere(run) == 0,
           "a lock that a process has left behind is not taken over");
    EXPECT(open_run(&lock, run) == 0, "%s", error.text);
    run_close(&lock);
    char *left = format_text("%s/options.txt.%s.tmp", run, lock.run_id), *notes = format_text("%s/notes.tmp", run);
    write_unsynced(left, "half", 4);
    write_unsynced(notes, "mine", 4);
    EXPECT(open_run(&lock, run) == 0, "%s", error.text);
    EXPECT(!file_exists(left) && file_exists(notes), "'%s' is left, or '%s' is not", left, notes);
    free(left), free(notes);
    EXPECT(open_elsewhere(run) == 1, "two trainers in one run");
    char *owner = run_owner(run), *self = format_text(" %ld ", (long)getpid());
    EXPECT(owner != NULL && strstr(owner, self) != NULL, "the owner is '%s'", owner);
    EXPECT(run_check(&lock, &error) == 0, "%s", error.text);
    EXPECT(rename(run, moved) == 0 && run_check(&lock, &error) == -1 && strstr(error.text, "has disappeared"),
           "%s", error.text);
    EXPECT(mkdir(run, 0777) == 0, "mkdir");
    write_unsynced(path, "", 0);
    EXPECT(run_check(&lock, &error) == -1 && strstr(error.text, "another folder"), "%s", error.text);
    remove_tree(run);
    EXPECT(rename(moved, run) == 0 && run_check(&lock, &error) == 0, "%s", error.text);
    run_close(&lock);
    EXPECT(save(run, 4, 1) == 0 && open_run(&lock, run) == -1 && strstr(error.text, "resume it with --resume"),
           "%s", error.text);
    EXPECT(run_open(&lock, run, 1, 3, no_options, 0, NULL, &error) == -1 && strstr(error.text, "meanwhile resumed"),
           "%s", error.text);
    EXPECT(run_open(&lock, run, 1, 4, no_options, 0, NULL, &error) == 0, "%s", error.text);
    run_close(&lock);
    remove_tree(run);
    EXPECT(open_run(&lock, run) == 0, "%s", error.text);
    run_close(&lock);
    free(owner);
    owner = run_owner(run);
    EXPECT(owner != NULL && owner[0] == '\0', "given back, it is still that of '%s'", owner);
    EXPECT(simulate_other_host(run, 8) == -1 && strstr(error.text, "process 77 on host elsewhere"),
           "a lock that another host touches: %s", error.text);
    remove_tree(run);
    free(owner), free(self), free(path), free(run), free(moved);
}

// A folder with a file that the trainer would overwrite is not a run's folder, unless it has a run's id.
static void test_foreign_folder(void) {
    static const char *const names[] = {"options.txt", "metrics.jsonl", "matmul.txt", "lock", "run_id"};
    char *run = in_folder("others");
    RunLock lock;
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        char *path = format_text("%s/%s", run, names[i]), *data;
        size_t size;
        EXPECT(folder_create(run, &error) == 0, "%s", error.text);
        write_unsynced(path, "mine", 4);
        EXPECT(open_run(&lock, run) == -1 && strstr(error.text, path), "%s: %s", path, error.text);
        get(path, &data, &size);
        EXPECT(size == 4 && memcmp(data, "mine", 4) == 0, "'%s' was changed", path);
        free(data), free(path);
        remove_tree(run);
    }
    // The beginning of an id was being written by a trainer that was killed; a run of an earlier version has no id.
    char *path = format_text("%s/run_id", run), *options = format_text("%s/options.txt", run);
    EXPECT(folder_create(run, &error) == 0, "%s", error.text);
    for (size_t size = 0; size <= 6; size += 6) { // a truncated id proves nothing about other files
        write_unsynced(path, "run 01", size), write_unsynced(options, "mine", 4);
        EXPECT(open_run(&lock, run) == -1 && strstr(error.text, options), "%s", error.text);
    }
    unlink(options);
    EXPECT(open_run(&lock, run) == 0 && strlen(lock.run_id) == RUN_ID_SIZE - 1, "%s", error.text);
    run_close(&lock);
    unlink(path);
    EXPECT(open_run(&lock, run) == -1 && strstr(error.text, options), "%s", error.text);
    EXPECT(run_open(&lock, run, 1, -1, no_options, 0, NULL, &error) == 0, "%s", error.text);
    run_close(&lock);
    char first[RUN_ID_SIZE];
    memcpy(first, lock.run_id, sizeof(first));
    EXPECT(open_run(&lock, run) == 0 && strcmp(lock.run_id, first) == 0, "the id changes: %s", error.text);
    run_close(&lock);
    remove_tree(run);
    free(path), free(options), free(run);
}

// ---- metrics.c --------------------------------------------------------------------------------------------

static void run_steps(const char *run, int64_t done, int64_t last, double loss) {
    Metrics metrics;
    if (!EXPECT(metrics_open(&metrics, run, done, last, 1, 1, &error) == 0, "%s", error.text)) return;
    for (int64_t step = done + 1; step <= last; step++) {
        StepMetrics s = {step, 100, loss, 1e-3, step == 2 ? NAN : 0.5, 0.01, step == 2};
        metrics_step(&metrics, &s);
    }
    ValidationMetrics v = {last, loss, -1, 0, 1000, 0, 1};
    metrics_validation(&metrics, &v);
    EXPECT(metrics_flush(&metrics, &error) == 0, "%s", error.text);
    metrics_close(&metrics);
}

static int count(const char *text, const char *words) {
    int times = 0;
    for (; (text = strstr(text, words)) != NULL; text++) times++;
    return times;
}

// Lines that the disk rejects, or accepts only half of, are written when it accepts data again; a rollback removes
// the lines of the steps that it discards.
static void expect_full_disk(const char *path) {
    Metrics metrics;
    char *text;
    size_t size;
    EXPECT(metrics_open(&metrics, folder, 0, 10, 1, 1, &error) == 0, "%s", error.text);
    for (int64_t step = 1; step <= 6; step++) {
        StepMetrics s = {step, 100, 3, 1e-3, 0.5, 0.01, 0};
        limit_file_size(step >= 3 && step <= 5 ? 300 : RLIM_INFINITY);
        metrics_step(&metrics, &s);
        EXPECT((metrics_flush(&metrics, &error) == 0) == (step < 3 || step > 5), "step %d", (int)step);
    }
    get(path, &text, &size);
    EXPECT(count(text, "\n") == 6 && count(text, "\"step\": 4,") == 1 && size == metrics.size, "%s", text);
    free(text);
    EXPECT(metrics_rollback(&metrics, 4, 6, 24, &error) == 0, "%s", error.text);
    StepMetrics again = {5, 100, 2, 1e-3, 0.5, 0.01, 0};
    metrics_step(&metrics, &again);
    get(path, &text, &size);
    EXPECT(count(text, "\n") == 6 && count(text, "\"rollback_from\": 6, \"rollback_to\": 4") == 1 &&
               count(text, "\"loss\": 2,") == 1,
           "%s", text);
    free(text);
    limit_file_size(size + 10); // also while the disk rejects writes
    for (again.step = 6; again.step <= 8; again.step++) metrics_step(&metrics, &again);
    EXPECT(metrics_rollback(&metrics, 6, 8, 24, &error) == 0, "%s", error.text);
    EXPECT(metrics_flush(&metrics, &error) == -1, "the disk is full");
    limit_file_size(RLIM_INFINITY);
    EXPECT(metrics_flush(&metrics, &error) == 0, "%s", error.text);
    get(path, &text, &size);
    EXPECT(count(text, "\n") == 8 && count(text, "\"step\": 6, \"loss\"") == 1 &&
               count(text, "\"step\": 7, \"rollback_from\": 8, \"rollback_to\": 6") == 1 &&
               count(text, "\"step\": 8,") == 0,
           "%s", text);
    free(text);
    char *moved = in_folder("moved.jsonl"); // moved by the user: it remains the record
    EXPECT(rename(path, moved) == 0 && metrics_rollback(&metrics, 2, 6, 24, &error) == 0, "%s", error.text);
    get(moved, &text, &size);
    EXPECT(count(text, "\n") == 3 && count(text, "\"rollback_to\": 2") == 1 && !file_exists(path), "%s",
           text);
    free(text);
    metrics_close(&metrics);
    unlink(moved);
    free(moved);
}

static void test_metrics(void) {
    char *path = in_folder("metrics.jsonl"), *text;
    size_t size;
    run_steps(folder, 0, 5, 3);
    get(path, &text, &size);
    EXPECT(count(text, "\n") == 6 && count(text, "\"loss\": 3,") == 5, "%s", text);
    EXPECT(count(text, "\"gradient_norm\": null") == 1 && count(text, "\"skipped\": true") == 1, "NaN: %s",
           text);
    EXPECT(count(text, "\"validation_bits_per_byte\": null") == 1 && count(text, "nan") == 0, "%s", text);
    free(text);
    FILE *stream = fopen(path, "a"); // as a killed run may leave it
    fprintf(stream, "{\"step\": 6, \"loss\": 3}\nnonsense\n{\"step\": 2, \"loss\"");
    fclose(stream);
    run_steps(folder, 3, 6, INFINITY);
    get(path, &text, &size);
    EXPECT(count(text, "\n") == 7 && count(text, "\"step\": 4,") == 1 && count(text, "\"step\": 6,") == 2,
           "%s", text);
    EXPECT(count(text, "\"loss\": 3,") == 3 && count(text, "\"loss\": null") == 3 &&
               count(text, "nonsense") == 0,
           "%s", text);
    free(text);
    Metrics metrics;
    for (int64_t done = 5; done <= 6; done++) { // only step 6 was validated; downwards, as lines are removed
        EXPECT(metrics_open(&metrics, folder, 11 - done, 9, 1, 1, &error) == 0 &&
                   metrics.validated == (done == 5),
               "step %d: validated: %d", (int)(11 - done), metrics.validated);
        metrics_close(&metrics);
    }
    unlink(path);
    expect_full_disk(path);
    EXPECT(mkdir(path, 0777) == 0, "mkdir");
    EXPECT(metrics_open(&metrics, folder, 0, 1, 1, 1, &error) == -1 && strstr(error.text, path), "%s",
           error.text);
    metrics_close(&metrics);
    free(path);
}

int main(void) {
    config = gpt_config_gpt2(32, 300, 2, 4, 64);
    config.begin_of_text = 298, config.end_of_text = 299;
    // In memory if possible, as files are synced hundreds of times.
    snprintf(folder, sizeof(folder), "%s/checkpoint_XXXXXX",
             access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
    if (mkdtemp(folder) == NULL) die("cannot create %s", folder);
    signal(SIGXFSZ, SIG_IGN);
    test_crc32c();
    test_files();
    test_round_trip();
    test_accepted();
    test_refused();
    test_headers();
    test_manifest();
    test_config();
    test_keep();
    test_foreign_files();
    test_newest();
    test_parts();
    test_weight_files();
    test_failed_commit();
    test_lock();
    test_foreign_folder();
    test_metrics();
    remove_tree(folder);
    return test_finish();
}
