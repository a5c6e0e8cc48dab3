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
#include "data/json/json.h"
#include "data/model/weight_files.h"

// ---- folders ----------------------------------------------------------------------------------------------

// Removes a folder of plain files. Its name contains the run's id, so all files are this run's.
static void folder_remove(const char *path) {
    DIR *folder = opendir(path);
    if (folder == NULL) return;
    for (struct dirent *entry; (entry = readdir(folder)) != NULL;)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            unlinkat(dirfd(folder), entry->d_name, 0);
    closedir(folder);
    rmdir(path);
}

// Return the folder in which a step's checkpoint is written, and the one in which it is removed. The caller frees
// them.
static char *writing_folder(const char *run, const char *run_id, int64_t step) {
    return format_text("%s/checkpoints/writing_%s_%08" PRId64, run, run_id, step);
}
static char *removing_folder(const char *run, const char *run_id, int64_t step) {
    return format_text("%s/checkpoints/removing_%s_%08" PRId64, run, run_id, step);
}

// Returns 1000 for "step_00001000", and -1 for any other name, including other spellings of the number.
static int64_t step_of_name(const char *name) {
    if (strncmp(name, "step_", 5) != 0) return -1;
    char spelled[32];
    int64_t step = strtoll(name + 5, NULL, 10);
    snprintf(spelled, sizeof(spelled), "step_%08" PRId64, step);
    return step >= 0 && strcmp(name, spelled) == 0 ? step : -1;
}

static int compare_descending(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return x < y ? 1 : x > y ? -1 : 0;
}

// Lists the steps of the run's checkpoints, newest first. Returns -1 with a sentence if the folder cannot be read.
// The caller frees `steps`, also on error.
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
    qsort(*steps, *count, sizeof(int64_t), compare_descending);
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

// A read error may be temporary and does not mean that the checkpoint is damaged: tries again after 1, 2 and 4 s.
static int verify_with_retries(const char *folder, Error *error) {
    for (int pause = 1; checkpoint_verify(folder, 1, error) != 0; pause *= 2) {
        if (error->status != EXIT_IO || pause > 4) return -1;
        warn("%s; trying again in %d s", error->text, pause);
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
        found = verify_with_retries(folder, error) == 0;
        disk_fails |= !found && error->status == EXIT_IO;
        if (!found) warn("checkpoint step_%08" PRId64 " is skipped: %s", *step, error->text);
        free(folder);
    }
    free(steps);
    if (found || result != 0) return result;
    fail(error, "there is no %scheckpoint in '%s/checkpoints'", count > 0 ? "intact " : "", run);
    if (disk_fails) error->status = EXIT_IO;
    return -1;
}

// Returns 1 if this run wrote the folder; then the manifest lists the files that it wrote. The caller frees the
// manifest in any case.
static int is_written_by_run(const char *folder, const char *run_id, Manifest *manifest) {
    Error ignored;
    return manifest_read(folder, manifest, &ignored) == 0 && strcmp(manifest->run_id, run_id) == 0;
}

// Renames a folder that contains files not written by this run to the first free name step_NNNNNNNN_kept_I, with a
// warning. Returns 0 on success, -1 on error.
static int set_aside(const char *folder, const char *run, int64_t step) {
    enum { MAX_ATTEMPTS = 100 };
    for (int i = 1; i <= MAX_ATTEMPTS; i++) {
        char *name = format_text("%s/checkpoints/step_%08" PRId64 "_kept_%d", run, step, i);
        const int moved = !file_exists(name) && rename(folder, name) == 0;
        if (moved)
            warn("'%s' now holds files that were found in the folder of the checkpoint of step %" PRId64
                 " but were not written by this run",
                 name, step);
        free(name);
        if (moved) return 0;
    }
    return -1;
}

// Removes the files that this run wrote from the removing_ folder of a step. The manifest is removed last, so that an
// interrupted removal can be finished. Any other files are kept.
static void finish_removal(const char *run, const char *run_id, int64_t step) {
    char *folder = removing_folder(run, run_id, step);
    Manifest manifest;
    if (is_written_by_run(folder, run_id, &manifest)) {
        CheckpointFile itself = {MANIFEST_NAME, 0, 0};
        manifest_add(&manifest, &itself);
        for (size_t i = 0; i < manifest.num_files; i++) {
            char *path = format_text("%s/%s", folder, manifest.files[i].name);
            unlink(path);
            free(path);
        }
    }
    manifest_free(&manifest);
    if (rmdir(folder) != 0 && errno == ENOTEMPTY)
        set_aside(folder, run, step);
    free(folder);
}

// Removes a checkpoint of this run. It is renamed first, so that its name never refers to an incomplete checkpoint.
static void remove_step(const char *run, const char *run_id, int64_t step) {
    char *old = checkpoint_folder(run, step), *removing = removing_folder(run, run_id, step);
    Manifest manifest;
    if (is_written_by_run(old, run_id, &manifest) && rename(old, removing) == 0)
        finish_removal(run, run_id, step);
    manifest_free(&manifest);
    free(old);
    free(removing);
}

// Returns the step of a name like writing_<run_id>_00001000 that starts with `beginning`; -1 for any other name.
static int64_t step_of_temporary(const char *name, const char *beginning, const char *run_id) {
    char *start = format_text("%s_%s_", beginning, run_id);
    const size_t length = strlen(start);
    const int matches = strncmp(name, start, length) == 0;
    free(start);
    if (!matches) return -1;
    char *as_step = format_text("step_%s", name + length);
    const int64_t step = step_of_name(as_step);
    free(as_step);
    return step;
}

void checkpoint_remove_leftovers(const char *run, const char *run_id) {
    char *path = format_text("%s/checkpoints", run);
    DIR *folder = opendir(path);
    for (struct dirent *entry; folder != NULL && (entry = readdir(folder)) != NULL;) {
        const int64_t written = step_of_temporary(entry->d_name, "writing", run_id);
        const int64_t removed = step_of_temporary(entry->d_name, "removing", run_id);
        if (removed >= 0) finish_removal(run, run_id, removed);
        if (written < 0) continue;
        char *leftover = format_text("%s/%s", path, entry->d_name);
        folder_remove(leftover);
        free(leftover);
    }
    if (folder != NULL) closedir(folder);
    free(path);
}

// ---- writing ----------------------------------------------------------------------------------------------

// Creates a folder unless it exists; its parent must exist.
static int create_folder(const char *path, Error *error) {
    return mkdir(path, 0777) == 0 || errno == EEXIST ? 0
                                                     : fail_io(error, "cannot create the folder '%s'", path);
}

int checkpoint_begin(CheckpointWriter *writer, const char *run, const char *run_id, int64_t step,
                     Error *error) {
    char *parent = format_text("%s/checkpoints", run);
    memset(writer, 0, sizeof(*writer));
    snprintf(writer->manifest.run_id, RUN_ID_SIZE, "%s", run_id);
    writer->run = xstrdup(run);
    writer->step = step;
    writer->temporary = writing_folder(run, run_id, step);
    int result = create_folder(parent, error);
    if (result == 0) result = create_folder(writer->temporary, error);
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
    manifest_add(&writer->manifest, file);
}

static int write_manifest(CheckpointWriter *writer, Error *error) {
    char *text = manifest_text(&writer->manifest);
    int result = checkpoint_text(writer, MANIFEST_NAME, text, error);
    free(text);
    return result;
}

// Removes the checkpoints of this run up to step `newest`, except the newest `keep`. If they cannot be listed, none
// is removed.
static void remove_old(const char *run, const char *run_id, int64_t newest, int64_t keep) {
    int64_t *steps, kept = 0;
    size_t count;
    Error ignored;
    if (list_steps(run, &steps, &count, &ignored) != 0) count = 0;
    for (size_t i = 0; i < count; i++)
        if (steps[i] <= newest && kept++ >= keep) remove_step(run, run_id, steps[i]);
    free(steps);
}

// Frees the checkpoint name of a step: an earlier checkpoint of this run of the same step (saved before a rollback)
// is renamed to its removing_ name, any other folder is set aside. Returns 1 if a checkpoint is to be removed, 0 if
// not, -1 on error.
static int clear_name(const char *run, const char *run_id, int64_t step, Error *error) {
    char *final = checkpoint_folder(run, step), *removing = removing_folder(run, run_id, step);
    Manifest manifest;
    finish_removal(run, run_id, step); // left by a removal that failed
    int result = 0;
    if (is_written_by_run(final, run_id, &manifest))
        result = rename(final, removing) == 0 ? 1 : fail_io(error, "cannot rename '%s'", final);
    else if (file_exists(final) && set_aside(final, run, step) != 0)
        result = fail_io(error, "cannot rename '%s'", final);
    manifest_free(&manifest);
    free(final);
    free(removing);
    return result;
}

// Renames the complete temporary folder to its final name. An older folder of that name is absent only between two
// renames.
static int publish(const CheckpointWriter *writer, Error *error) {
    const char *run_id = writer->manifest.run_id;
    const int replaces = clear_name(writer->run, run_id, writer->step, error);
    if (replaces < 0) return -1;
    char *final = checkpoint_folder(writer->run, writer->step),
         *parent = format_text("%s/checkpoints", writer->run);
    char *removing = removing_folder(writer->run, run_id, writer->step);
    int result = 0;
    if (rename(writer->temporary, final) != 0) {
        result = fail_io(error, "cannot rename '%s' to '%s'", writer->temporary, final);
        if (replaces && rename(removing, final) != 0)
            warn("the checkpoint that was '%s' is now '%s': rename it back", final, removing);
    } else {
        result = folder_sync(parent, error);
        // The first checkpoint has also created the folder `checkpoints`.
        if (result == 0) result = folder_sync(writer->run, error);
        if (result == 0 && replaces) finish_removal(writer->run, run_id, writer->step);
    }
    free(final);
    free(parent);
    free(removing);
    return result;
}

int checkpoint_commit(CheckpointWriter *writer, int64_t keep, Error *error) {
    int result = write_manifest(writer, error);
    if (result == 0) result = folder_sync(writer->temporary, error);
    if (result == 0) result = publish(writer, error);
    if (result == 0) remove_old(writer->run, writer->manifest.run_id, writer->step, keep);
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
    manifest_free(&writer->manifest);
    memset(writer, 0, sizeof(*writer));
}

// ---- verifying --------------------------------------------------------------------------------------------

int checkpoint_verify(const char *folder, int required, Error *error) {
    char *path = format_text("%s/%s", folder, MANIFEST_NAME);
    const int present = file_exists(path);
    free(path);
    if (!present && !required) return 0;
    Manifest manifest;
    int result = manifest_read(folder, &manifest, error);
    if (result == 0) result = manifest_verify(folder, &manifest, error);
    manifest_free(&manifest);
    return result;
}

// ---- tensors ----------------------------------------------------------------------------------------------

int checkpoint_read_tensors(const char *folder, const char *name, const NamedTensor *tensors, size_t count,
                            Error *error) {
    WeightFiles files;
    int result = weight_files_find(folder, name, &files, error);
    if (result == 0)
        result = safetensors_read((const char *const *)files.paths, files.count, tensors, count, error);
    weight_files_free(&files);
    return result;
}

// ---- training_state.json -----------------------------------------------------------------------------------

static int read_recent(const cJSON *json, const char *path, TrainingState *state, Error *error) {
    const cJSON *losses = cJSON_GetObjectItemCaseSensitive(json, "recent_losses"), *loss;
    state->num_recent = 0;
    memset(state->recent, 0, sizeof(state->recent));
    cJSON_ArrayForEach(loss, losses) {
        if (!cJSON_IsNumber(loss) || !isfinite(loss->valuedouble) || state->num_recent == RECENT_LOSSES)
            return fail(error, "'%s': recent_losses must be at most %d finite numbers", path, RECENT_LOSSES);
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

// cJSON prints a double with 15 digits if that is nearly exact, which is not enough for an int64_t.
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
