// libFuzzer target. The first byte of the input determines the meaning of the rest:
//     s  a safetensors file          h  the header of one; its length is put before it and data after it
//     c  config.json                 t  training_state.json
//     m  a manifest without its last line, the checksum; any other byte: a manifest with it
// Any input is either refused with a sentence that names the file, or read; what is read and written again is the
// same.
#include "data/run/checkpoint.h"
#include "fuzz.h"

static float one[6], two[4];
static const NamedTensor tensors[2] = {{"h.0.attn.c_attn.weight", one, 2, 3}, {"ln_f.bias", two, 0, 4}};
static const char zeros[sizeof one + sizeof two];
static const char content[] = "a file of the manifest";

// Writes fuzz_folder()/name from the parts before the data, the data, and the parts after it.
static char *write_input(const char *name, const void *before, size_t num_before, const uint8_t *data,
                         size_t size, const void *behind, size_t num_behind) {
    char *path = format_text("%s/%s", fuzz_folder(), name);
    FILE *stream = fopen(path, "wb");
    must(stream != NULL && fwrite(before, 1, num_before, stream) == num_before);
    must(fwrite(data, 1, size, stream) == size && fwrite(behind, 1, num_behind, stream) == num_behind);
    must(fclose(stream) == 0);
    return path;
}

static void read_tensors(const char *path) {
    Error error = {"", 0};
    must(safetensors_read((const char *[]){path}, 1, tensors, 2, &error) == 0 ||
         strstr(error.text, path) != NULL);
}

static void read_config(const char *path) {
    Error error = {"", 0};
    GPTConfig config, again;
    if (gpt_config_read(fuzz_folder(), NULL, &config, &error) != 0) {
        must(strstr(error.text, path) != NULL);
        return;
    }
    must(config.max_sequence_length >= 0 && config.vocab_size >= 0 && config.num_layers >= 0 &&
         config.num_heads >= 0 && config.channels >= 0 && config.end_of_text >= -1);
    char *text = gpt_config_text(&config);
    put_file(path, text, strlen(text));
    must(gpt_config_read(fuzz_folder(), NULL, &again, &error) == 0 &&
         memcmp(&again, &config, sizeof config) == 0);
    free(text);
}

static void read_state(const char *path) {
    Error error = {"", 0};
    TrainingState state, again;
    if (training_state_read(fuzz_folder(), &state, &error) != 0) {
        must(strstr(error.text, path) != NULL);
        return;
    }
    must(state.step >= 0 && state.position >= 0 && state.skipped >= 0 && state.skipped_in_row >= 0);
    char *text = training_state_text(&state);
    put_file(path, text, strlen(text));
    must(training_state_read(fuzz_folder(), &again, &error) == 0 &&
         memcmp(&again, &state, sizeof state) == 0);
    free(text);
}

static void verify(void) {
    static char *listed;
    Error error = {"", 0};
    if (listed == NULL) put_file(listed = format_text("%s/listed", fuzz_folder()), content, strlen(content));
    must(checkpoint_verify(fuzz_folder(), 1, &error) == 0 || strstr(error.text, fuzz_folder()) != NULL);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size-- == 0) return 0;
    char kind = (char)*data++, *path = NULL, last[64];
    uint64_t length = size;
    if (kind == 's' || kind == 'h') {
        path = write_input("x.safetensors", &length, kind == 'h' ? 8 : 0, data, size, zeros,
                           kind == 'h' ? sizeof zeros : 0);
        read_tensors(path);
    } else if (kind == 'c') {
        path = write_input("config.json", "", 0, data, size, "", 0);
        read_config(path);
    } else if (kind == 't') {
        path = write_input("training_state.json", "", 0, data, size, "", 0);
        read_state(path);
    } else {
        snprintf(last, sizeof last, "%08x manifest\n", crc32c(0, data, size));
        path = write_input("manifest", "", 0, data, size, last, kind == 'm' ? strlen(last) : 0);
        verify();
    }
    free(path);
    return 0;
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    GPTConfig config = gpt_config_gpt2(32, 300, 2, 4, 64);
    config.begin_of_text = 298, config.end_of_text = 299;
    static const TrainingState state = {7, 1234567890123, 98765, 3, 1, 2, 3, {5.25, 0.1, 1e-300}};
    char *text = gpt_config_text(&config), *bytes = NULL;
    size_t size;
    write_seed(*argc, *argv, "config", 'c', text, strlen(text));
    free(text);
    text = training_state_text(&state);
    write_seed(*argc, *argv, "state", 't', text, strlen(text));
    free(text);
    FILE *stream = open_memstream(&bytes, &size);
    safetensors_write(stream, tensors, 2);
    fclose(stream);
    write_seed(*argc, *argv, "tensors", 's', bytes, size);
    write_seed(*argc, *argv, "header", 'h', bytes + 8, size - 8 - 40);
    free(bytes);
    text = format_text("%08x %zu listed\n", crc32c(0, content, strlen(content)), strlen(content));
    write_seed(*argc, *argv, "manifest", 'm', text, strlen(text));
    free(text);
    return 0;
}
