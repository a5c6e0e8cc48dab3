#define _GNU_SOURCE
#include "checkpoint.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cjson/cJSON.h>

enum { LARGEST_JSON = 16 << 20, READ_CHUNK = 1 << 20 };
static const char manifest_name[] = "manifest";

// ---- folders ----------------------------------------------------------------------------------------------

// Removes a folder of plain files.
static void folder_remove(const char *path) {
    DIR *folder = opendir(path);
    if (folder == NULL) return;
    for (struct dirent *entry; (entry = readdir(folder)) != NULL;)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            unlinkat(dirfd(folder), entry->d_name, 0);
    closedir(folder);
    rmdir(path);
}

// step_00001000 -> 1000; -1 for any other name, other spellings of the number included.
static int64_t step_of_name(const char *name) {
    if (strncmp(name, "step_", 5) != 0) return -1;
    char spelled[32];
    int64_t step = strtoll(name + 5, NULL, 10);
    snprintf(spelled, sizeof(spelled), "step_%08" PRId64, step);
    return step >= 0 && strcmp(name, spelled) == 0 ? step : -1;
}

static int descending(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return x < y ? 1 : x > y ? -1 : 0;
}

// The steps of the run's checkpoints, newest first. Caller frees, also on error: a folder that cannot be read.
static int list_steps(const char *run, int64_t **steps, size_t *count, Error *error) {
    size_t capacity = 16;
    char *path = format_text("%s/checkpoints", run);
    DIR *folder = opendir(path);
    int result = folder != NULL || errno == ENOENT ? 0 : fail_io(error, "cannot open '%s'", path);
    *steps = (int64_t *)xmalloc(capacity * sizeof(int64_t));
    *count = 0;
    errno = 0;
    for (struct dirent *entry; folder != NULL && (entry = readdir(folder)) != NULL; errno = 0) {
        int64_t step = step_of_name(entry->d_name);
        if (step < 0) continue;
        if (*count == capacity) *steps = (int64_t *)xrealloc(*steps, (capacity *= 2) * sizeof(int64_t));
        (*steps)[(*count)++] = step;
    }
    if (folder != NULL && errno != 0) result = fail_io(error, "cannot read '%s'", path);
    if (folder != NULL) closedir(folder);
    free(path);
    qsort(*steps, *count, sizeof(int64_t), descending);
    return result;
}

char *checkpoint_folder(const char *run, int64_t step) {
    return format_text("%s/checkpoints/step_%08" PRId64, run, step);
}

int checkpoint_last(const char *run, int64_t *step, Error *error) {
    int64_t *steps;
    size_t count;
    int result = list_steps(run, &steps, &count, error);
    *step = count > 0 ? steps[0] : -1;
    free(steps);
    return result;
}

// What the disk does not give at once may come a little later: it is not damaged.
static int verify_patiently(const char *folder, Error *error) {
    for (int pause = 1; checkpoint_verify(folder, 1, error) != 0; pause *= 2) {
        if (error->status != EXIT_IO || pause > 4) return -1;
        warn("%s; tried again in %d s", error->text, pause);
        sleep((unsigned)pause);
    }
    return 0;
}

int checkpoint_newest(const char *run, int64_t limit, int64_t *step, Error *error) {
    int64_t *steps;
    size_t count;
    int result = list_steps(run, &steps, &count, error), found = 0, disk_fails = 0;
    for (size_t i = 0; i < count && result == 0 && !found; i++) {
        if (steps[i] > limit) continue;
        char *folder = checkpoint_folder(run, steps[i]);
        *step = steps[i];
        found = verify_patiently(folder, error) == 0;
        disk_fails |= !found && error->status == EXIT_IO;
        if (!found) warn("checkpoint step_%08" PRId64 " is skipped: %s", *step, error->text);
        free(folder);
    }
    free(steps);
    if (found || result != 0) return result;
    fail(error, "there is no %scheckpoint in '%s/checkpoints'", count > 0 ? "whole " : "", run);
    if (disk_fails) error->status = EXIT_IO;
    return -1;
}

// Takes a checkpoint away under its name at once: half a checkpoint never stands there.
static void remove_step(const char *run, int64_t step) {
    char *old = checkpoint_folder(run, step), *doomed = format_text("%s/checkpoints/removing", run);
    if (rename(old, doomed) == 0) folder_remove(doomed);
    free(old);
    free(doomed);
}

void checkpoint_remove_leftovers(const char *run) {
    char *path = format_text("%s/checkpoints", run);
    DIR *folder = opendir(path);
    for (struct dirent *entry; folder != NULL && (entry = readdir(folder)) != NULL;) {
        if (strncmp(entry->d_name, "writing_", 8) != 0 && strcmp(entry->d_name, "removing") != 0) continue;
        char *left = format_text("%s/%s", path, entry->d_name);
        folder_remove(left);
        free(left);
    }
    if (folder != NULL) closedir(folder);
    free(path);
}

// ---- writing ----------------------------------------------------------------------------------------------

// A folder that may be there, below one that must.
static int join_folder(const char *path, Error *error) {
    return mkdir(path, 0777) == 0 || errno == EEXIST ? 0
                                                     : fail_io(error, "cannot create the folder '%s'", path);
}

int checkpoint_begin(CheckpointWriter *writer, const char *run, int64_t step, Error *error) {
    char *parent = format_text("%s/checkpoints", run);
    memset(writer, 0, sizeof(*writer));
    writer->run = xstrdup(run);
    writer->step = step;
    writer->temporary = format_text("%s/writing_%08" PRId64, parent, step);
    int result = join_folder(parent, error);
    if (result == 0) result = join_folder(writer->temporary, error);
    free(parent);
    if (result != 0) checkpoint_leave(writer);
    return result;
}

static int start_file(const CheckpointWriter *writer, const char *name, FileWriter *file, Error *error) {
    char *path = format_text("%s/%s", writer->temporary, name);
    int result = file_writer_open(file, path, error);
    free(path);
    return result;
}

static int finish_file(CheckpointWriter *writer, const char *name, FileWriter *file, Error *error) {
    CheckpointFile line;
    if (file_writer_commit(file, error) != 0) return -1;
    snprintf(line.name, sizeof(line.name), "%s", name);
    line.crc = file->crc;
    line.size = file->size;
    checkpoint_add(writer, &line);
    return 0;
}

int checkpoint_text(CheckpointWriter *writer, const char *name, const char *text, Error *error) {
    FileWriter file;
    if (start_file(writer, name, &file, error) != 0) return -1;
    fputs(text, file.stream);
    return finish_file(writer, name, &file, error);
}

int checkpoint_tensors(CheckpointWriter *writer, const char *name, const NamedTensor *tensors, size_t count,
                       Error *error) {
    FileWriter file;
    if (start_file(writer, name, &file, error) != 0) return -1;
    safetensors_write(file.stream, tensors, count);
    return finish_file(writer, name, &file, error);
}

void checkpoint_add(CheckpointWriter *writer, const CheckpointFile *file) {
    size_t bytes = (writer->num_files + 1) * sizeof(CheckpointFile);
    writer->files = (CheckpointFile *)xrealloc(writer->files, bytes);
    writer->files[writer->num_files++] = *file;
}

static int file_crc(const char *path, uint32_t *crc, uint64_t *size, Error *error) {
    if (file_size(path, size, error) != 0) return -1;
    int descriptor = open(path, O_RDONLY | O_CLOEXEC), result = 0;
    if (descriptor < 0) return fail_io(error, "cannot open '%s'", path);
    char *buffer = (char *)xmalloc(READ_CHUNK);
    *crc = 0;
    for (uint64_t done = 0; done < *size && result == 0; done += READ_CHUNK) {
        size_t count = *size - done < READ_CHUNK ? (size_t)(*size - done) : READ_CHUNK;
        result = file_pread(descriptor, path, buffer, count, done, error);
        if (result == 0) *crc = crc32c(*crc, buffer, count);
    }
    free(buffer);
    close(descriptor);
    return result;
}

static int write_manifest(CheckpointWriter *writer, Error *error) {
    char *text = xstrdup("");
    for (size_t i = 0; i < writer->num_files; i++) {
        const CheckpointFile *file = &writer->files[i];
        char *longer = format_text("%s%08x %" PRIu64 " %s\n", text, file->crc, file->size, file->name);
        free(text);
        text = longer;
    }
    char *whole = format_text("%s%08x %s\n", text, crc32c(0, text, strlen(text)), manifest_name);
    int result = checkpoint_text(writer, manifest_name, whole, error);
    free(whole);
    free(text);
    return result;
}

// Removes all but the newest `keep` checkpoints up to `newest`; what cannot be listed stays.
static void remove_old(const char *run, int64_t newest, int64_t keep) {
    int64_t *steps, kept = 0;
    size_t count;
    Error ignored;
    if (list_steps(run, &steps, &count, &ignored) != 0) count = 0;
    for (size_t i = 0; i < count; i++)
        if (steps[i] <= newest && kept++ >= keep) remove_step(run, steps[i]);
    free(steps);
}

// Gives the complete folder its name. What stands there (the same step, saved by a run that was then taken
// back to an earlier one) is out of the way for no longer than the two renames take.
static int publish(const CheckpointWriter *writer, Error *error) {
    char *final = checkpoint_folder(writer->run, writer->step),
         *parent = format_text("%s/checkpoints", writer->run);
    char *doomed = format_text("%s/removing", parent);
    folder_remove(doomed); // left by a removal that failed
    int result = 0, replaces = rename(final, doomed) == 0;
    if (rename(writer->temporary, final) != 0) {
        result = fail_io(error, "cannot rename '%s' to '%s'", writer->temporary, final);
        if (replaces && rename(doomed, final) != 0)
            warn("the checkpoint that was '%s' is now '%s': rename it", final, doomed);
    } else {
        result = folder_sync(parent, error);
        if (result == 0) result = folder_sync(writer->run, error); // of the first, its folder is new
        if (result == 0) folder_remove(doomed);
    }
    free(final);
    free(parent);
    free(doomed);
    return result;
}

int checkpoint_commit(CheckpointWriter *writer, int64_t keep, Error *error) {
    int result = write_manifest(writer, error);
    if (result == 0) result = folder_sync(writer->temporary, error);
    if (result == 0) result = publish(writer, error);
    if (result == 0) remove_old(writer->run, writer->step, keep);
    checkpoint_abandon(writer);
    return result;
}

void checkpoint_abandon(CheckpointWriter *writer) {
    if (writer->temporary != NULL) folder_remove(writer->temporary);
    checkpoint_leave(writer);
}

void checkpoint_leave(CheckpointWriter *writer) {
    free(writer->temporary);
    free(writer->run);
    free(writer->files);
    memset(writer, 0, sizeof(*writer));
}

// ---- verifying --------------------------------------------------------------------------------------------

// One line `crc size name` of the manifest.
static int verify_line(const char *folder, const char *line, Error *error) {
    uint32_t crc = 0, expected_crc;
    uint64_t size, expected_size;
    char name[128];
    if (sscanf(line, "%8" SCNx32 " %" SCNu64 " %127[^/\n]", &expected_crc, &expected_size, name) != 3)
        return fail(error, "'%s/%s' is damaged", folder, manifest_name);
    char *path = format_text("%s/%s", folder, name);
    int result = file_crc(path, &crc, &size, error);
    if (result == 0 && size != expected_size)
        result = fail(error, "'%s' is damaged: it has %" PRIu64 " bytes, %" PRIu64 " were written", path,
                      size, expected_size);
    else if (result == 0 && crc != expected_crc)
        result = fail(error,
                      "'%s' is damaged: its content is not what was written (CRC-32C %08x, %08x expected)",
                      path, crc, expected_crc);
    free(path);
    return result;
}

int checkpoint_verify(const char *folder, int required, Error *error) {
    char *path = format_text("%s/%s", folder, manifest_name), *text = NULL;
    size_t size;
    int result = 0, present = file_exists(path);
    if (present || required) result = file_read(path, LARGEST_JSON, &text, &size, error);
    if (result == 0 && text != NULL) {
        char *last = size > 1 ? (char *)memrchr(text, '\n', size - 1) : NULL;
        last = last ? last + 1 : text;
        char expected[64];
        snprintf(expected, sizeof(expected), "%08x %s\n", crc32c(0, text, (size_t)(last - text)),
                 manifest_name);
        if (strcmp(last, expected) != 0 || strlen(text) != size)
            result = fail(error, "'%s' is damaged: its last line is not its checksum", path);
        for (char *line = text; result == 0 && line < last; line = strchr(line, '\n') + 1)
            result = verify_line(folder, line, error);
    }
    free(text);
    free(path);
    return result;
}

// ---- tensors ----------------------------------------------------------------------------------------------

// How many files the name's tensors are divided among: of NAME-00001-of-0000N.safetensors; 0: there is none.
static int count_parts(const char *folder, const char *name) {
    char *pattern = format_text("%s-%%*5d-of-%%5d.safetensors", name);
    int parts = 0;
    DIR *opened = opendir(folder);
    for (struct dirent *entry; opened != NULL && parts == 0 && (entry = readdir(opened)) != NULL;)
        if (sscanf(entry->d_name, pattern, &parts) != 1 || parts < 1) parts = 0;
    if (opened != NULL) closedir(opened);
    free(pattern);
    return parts;
}

int checkpoint_read_tensors(const char *folder, const char *name, const NamedTensor *tensors, size_t count,
                            Error *error) {
    char *single = format_text("%s/%s.safetensors", folder, name);
    const int parts = file_exists(single) ? 0 : count_parts(folder, name);
    char **paths = (char **)xcalloc((size_t)parts + 1, sizeof(char *));
    for (int i = 0; i < parts; i++)
        paths[i] = format_text("%s/%s-%05d-of-%05d.safetensors", folder, name, i + 1, parts);
    if (parts == 0) paths[0] = xstrdup(single);
    int result = safetensors_read((const char *const *)paths, parts > 0 ? (size_t)parts : 1, tensors, count,
                                  error);
    for (int i = 0; i <= parts; i++) free(paths[i]);
    free(paths), free(single);
    return result;
}

// ---- config.json and training_state.json ------------------------------------------------------------------

static cJSON *json_read(const char *path, Error *error) {
    char *text;
    size_t size;
    if (file_read(path, LARGEST_JSON, &text, &size, error) != 0) return NULL;
    cJSON *json = cJSON_ParseWithLength(text, size);
    free(text);
    if (cJSON_IsObject(json)) return json;
    cJSON_Delete(json);
    fail(error, "'%s' is not a JSON object", path);
    return NULL;
}

// A whole number of the object; `fallback` (when >= 0) stands in for one that is missing.
static int json_integer(const cJSON *json, const char *path, const char *name, int64_t fallback,
                        int64_t *value, Error *error) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(json, name);
    *value = fallback;
    if (item == NULL && fallback >= 0) return 0;
    if (!cJSON_IsNumber(item) || !(item->valuedouble >= 0 && item->valuedouble < 9e15) ||
        item->valuedouble != floor(item->valuedouble))
        return fail(error, "'%s': %s must be a whole number", path, name);
    *value = (int64_t)item->valuedouble;
    return 0;
}

// What this trainer's GPT-2 takes for granted.
static int check_architecture(const cJSON *json, const char *path, Error *error) {
    const char *type = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(json, "model_type"));
    const char *activation = cJSON_GetStringValue(
        cJSON_GetObjectItemCaseSensitive(json, "activation_function"));
    if (type == NULL || strcmp(type, "gpt2") != 0)
        return fail(error, "'%s': model_type is %.40s, gpt2 was expected", path, type ? type : "missing");
    if (activation != NULL && strcmp(activation, "gelu_new") != 0 &&
        strcmp(activation, "gelu_pytorch_tanh") != 0)
        return fail(error, "'%s': activation_function is %.40s, gelu_new was expected", path, activation);
    if (cJSON_IsFalse(cJSON_GetObjectItemCaseSensitive(json, "tie_word_embeddings")))
        return fail(error, "'%s': tie_word_embeddings is false, the output head must be tied", path);
    const cJSON *epsilon = cJSON_GetObjectItemCaseSensitive(json, "layer_norm_epsilon");
    if (epsilon != NULL && !(cJSON_IsNumber(epsilon) && fabs(epsilon->valuedouble - 1e-5) < 1e-9))
        return fail(error, "'%s': layer_norm_epsilon must be 1e-05", path);
    return 0;
}

int gpt_config_read(const char *folder, GPTConfig *config, Error *error) {
    char *path = format_text("%s/config.json", folder);
    cJSON *json = json_read(path, error);
    int64_t inner = 0;
    int result = json == NULL ? -1 : check_architecture(json, path, error);
    if (result == 0)
        result = json_integer(json, path, "n_positions", -1, &config->max_sequence_length, error);
    if (result == 0) result = json_integer(json, path, "vocab_size", -1, &config->vocab_size, error);
    if (result == 0) result = json_integer(json, path, "n_layer", -1, &config->num_layers, error);
    if (result == 0) result = json_integer(json, path, "n_head", -1, &config->num_heads, error);
    if (result == 0) result = json_integer(json, path, "n_embd", -1, &config->channels, error);
    const cJSON *end = json ? cJSON_GetObjectItemCaseSensitive(json, "eos_token_id") : NULL;
    int known = cJSON_IsNumber(end) && end->valuedouble >= 0 && end->valuedouble < 1e9;
    config->end_of_text = known ? (int64_t)end->valuedouble : -1;
    const cJSON *item = json ? cJSON_GetObjectItemCaseSensitive(json, "n_inner") : NULL;
    if (result == 0 && item != NULL && !cJSON_IsNull(item)) {
        result = json_integer(json, path, "n_inner", -1, &inner, error);
        if (result == 0 && inner != 4 * config->channels)
            result = fail(error, "'%s': n_inner must be 4 * n_embd", path);
    }
    cJSON_Delete(json);
    free(path);
    return result;
}

int gpt_config_check(const GPTConfig *c, int64_t largest_head, Error *error) {
    if (c->num_layers < 1 || c->num_heads < 1 || c->channels < 1 || c->max_sequence_length < 1 ||
        c->vocab_size < 1 || c->num_layers > 1000 || c->channels > 65536 ||
        c->max_sequence_length > 1000000 || c->vocab_size > 100000000)
        return fail(error,
                    "a model of %" PRId64 " layers, %" PRId64 " heads, %" PRId64 " channels, %" PRId64
                    " positions and %" PRId64 " tokens is out of bounds",
                    c->num_layers, c->num_heads, c->channels, c->max_sequence_length, c->vocab_size);
    if (c->channels % c->num_heads != 0)
        return fail(error, "--num-heads %" PRId64 " does not divide --channels %" PRId64, c->num_heads,
                    c->channels);
    int64_t head = c->channels / c->num_heads;
    if (head % 8 != 0 || head > largest_head)
        return fail(error,
                    "the head size --channels / --num-heads is %" PRId64
                    "; it must be a multiple of 8, %" PRId64 " at most",
                    head, largest_head);
    return 0;
}

static char *json_text(cJSON *json) {
    char *printed = cJSON_Print(json), *text = format_text("%s\n", printed ? printed : "");
    if (printed == NULL) die("out of memory while writing JSON");
    cJSON_free(printed);
    cJSON_Delete(json);
    return text;
}

char *gpt_config_text(const GPTConfig *config) {
    cJSON *json = cJSON_CreateObject();
    cJSON_AddItemToObject(json, "architectures",
                          cJSON_CreateStringArray((const char *[]){"GPT2LMHeadModel"}, 1));
    cJSON_AddStringToObject(json, "model_type", "gpt2");
    cJSON_AddStringToObject(json, "activation_function", "gelu_new");
    cJSON_AddNumberToObject(json, "layer_norm_epsilon", 1e-5);
    cJSON_AddNumberToObject(json, "n_positions", (double)config->max_sequence_length);
    cJSON_AddNumberToObject(json, "n_ctx", (double)config->max_sequence_length);
    cJSON_AddNumberToObject(json, "vocab_size", (double)config->vocab_size);
    cJSON_AddNumberToObject(json, "n_layer", (double)config->num_layers);
    cJSON_AddNumberToObject(json, "n_head", (double)config->num_heads);
    cJSON_AddNumberToObject(json, "n_embd", (double)config->channels);
    cJSON_AddNumberToObject(json, "initializer_range", 0.02);
    for (int i = 0; i < 2; i++) {
        const char *name = i == 0 ? "bos_token_id" : "eos_token_id";
        if (config->end_of_text >= 0)
            cJSON_AddNumberToObject(json, name, (double)config->end_of_text);
        else
            cJSON_AddNullToObject(json, name);
    }
    cJSON_AddBoolToObject(json, "tie_word_embeddings", 1);
    cJSON_AddStringToObject(json, "torch_dtype", "float32");
    return json_text(json);
}

static int read_recent(const cJSON *json, const char *path, TrainingState *state, Error *error) {
    const cJSON *losses = cJSON_GetObjectItemCaseSensitive(json, "recent_losses"), *loss;
    state->num_recent = 0;
    memset(state->recent, 0, sizeof(state->recent));
    cJSON_ArrayForEach(loss, losses) {
        if (!cJSON_IsNumber(loss) || !isfinite(loss->valuedouble) || state->num_recent == RECENT_LOSSES)
            return fail(error, "'%s': recent_losses must be %d finite numbers at most", path, RECENT_LOSSES);
        state->recent[state->num_recent++] = loss->valuedouble;
    }
    return 0;
}

int training_state_read(const char *folder, TrainingState *state, Error *error) {
    char *path = format_text("%s/training_state.json", folder);
    cJSON *json = json_read(path, error);
    int result = json == NULL ? -1 : json_integer(json, path, "step", -1, &state->step, error);
    if (result == 0) result = json_integer(json, path, "position", -1, &state->position, error);
    if (result == 0) result = json_integer(json, path, "sequences", 0, &state->sequences, error);
    if (result == 0) result = json_integer(json, path, "skipped", 0, &state->skipped, error);
    if (result == 0) result = json_integer(json, path, "skipped_in_row", 0, &state->skipped_in_row, error);
    if (result == 0) result = json_integer(json, path, "outliers_in_row", 0, &state->outliers_in_row, error);
    if (result == 0) result = read_recent(json, path, state, error);
    cJSON_Delete(json);
    free(path);
    return result;
}

// cJSON's own numbers have 15 digits where that is nearly right.
static void add_integer(cJSON *json, const char *name, int64_t value) {
    char text[32];
    snprintf(text, sizeof(text), "%" PRId64, value);
    cJSON_AddRawToObject(json, name, text);
}

char *training_state_text(const TrainingState *state) {
    cJSON *json = cJSON_CreateObject();
    add_integer(json, "step", state->step);
    add_integer(json, "position", state->position);
    add_integer(json, "sequences", state->sequences);
    add_integer(json, "skipped", state->skipped);
    add_integer(json, "skipped_in_row", state->skipped_in_row);
    add_integer(json, "outliers_in_row", state->outliers_in_row);
    cJSON *losses = cJSON_AddArrayToObject(json, "recent_losses");
    for (int64_t i = 0; i < state->num_recent; i++) {
        char text[32];
        snprintf(text, sizeof(text), "%.17g", state->recent[i]);
        cJSON_AddItemToArray(losses, cJSON_CreateRaw(text));
    }
    return json_text(json);
}
