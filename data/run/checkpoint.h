// Checkpoints: folders inside the folder of a run (data/run/run.h).
//
//     checkpoints/step_00001000/       a Hugging Face GPT-2 folder, plus the training state:
//         config.json  model.safetensors  tokenizer.json  optimizer.safetensors  training_state.json  manifest
//
// If several processes write, each writes its own files, named as Hugging Face names shards:
// model-00001-of-00004.safetensors, with model.safetensors.index.json, and optimizer-00001-of-00004.safetensors.
// Every tensor is complete in one file, so that any number of processes can read them.
//
// A checkpoint appears under its name only when it is complete and on disk: it is written into a temporary folder,
// every file is synced, then the folder is renamed. `manifest` has a line `crc32c size name` for every file
// (data/model/manifest.h), so any changed byte is detected before anything is loaded. Temporary names contain the run's id,
// and a checkpoint is replaced or removed only if its manifest says that this run wrote it; files that others have
// added to it are kept.
#ifndef DATA_RUN_CHECKPOINT_H
#define DATA_RUN_CHECKPOINT_H

#include <stdint.h>
#include "layers/base/files.h"
#include "data/model/gpt_config.h"
#include "data/model/manifest.h"
#include "data/model/safetensors.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { RECENT_LOSSES = 128 };

// The state of a training run except weights and moments, sufficient to resume it.
typedef struct {
    int64_t step;                            // completed steps
    int64_t position;                        // sequences consumed or skipped
    int64_t sequences;                       // in the training data, which determines their order; 0: unknown
    int64_t skipped;                         // total number of skipped steps
    int64_t skipped_in_row, outliers_in_row; // current streaks
    int64_t num_recent;
    double recent[RECENT_LOSSES]; // the latest losses, oldest first, which the next loss is compared with
} TrainingState;

typedef struct {
    char *run, *temporary; // folders
    int64_t step;
    Manifest manifest;
} CheckpointWriter;

// Creates the temporary folder of the checkpoint of runs/NAME at `step`, or joins the process that has created it.
// `run_id`: the run's id (data/run/run.h). runs/NAME itself must exist.
int checkpoint_begin(CheckpointWriter *writer, const char *run, const char *run_id, int64_t step,
                     Error *error);
// Write one file of tensors, or of text, into the temporary folder.
int checkpoint_tensors(CheckpointWriter *writer, const char *name, const NamedTensor *tensors, size_t count,
                       Error *error);
int checkpoint_text(CheckpointWriter *writer, const char *name, const char *text, Error *error);
// Adds a file that another process has written.
void checkpoint_add(CheckpointWriter *writer, const CheckpointFile *file);
// Writes the manifest, syncs, and renames the folder; then removes this run's checkpoints up to this step, except the
// newest `keep`. On error nothing older is touched and the temporary folder is removed.
int checkpoint_commit(CheckpointWriter *writer, int64_t keep, Error *error);
// Removes the temporary folder.
void checkpoint_abandon(CheckpointWriter *writer);
// Frees the writer only: another process commits the checkpoint.
void checkpoint_leave(CheckpointWriter *writer);
// Removes what this run has left partially written or partially removed when it was killed. Only the process that
// holds the run's lock may call this.
void checkpoint_remove_leftovers(const char *run, const char *run_id);

// Returns the path of a step's checkpoint. The caller frees it.
char *checkpoint_folder(const char *run, int64_t step);
// Finds the newest intact checkpoint up to step `limit`. Newer damaged ones are left unchanged, with a warning each.
// Returns -1 with a sentence if there is no intact one.
int checkpoint_newest(const char *run, int64_t limit, int64_t *step, Error *error);
int checkpoint_last(const char *run, int64_t *step, Error *error); // whole or not; -1: there is none
// Compares every file with the manifest. A folder without a manifest (written by other programs) passes if `required`
// is 0.
int checkpoint_verify(const char *folder, int required, Error *error);

// Reads the tensors from the folder's files for `name`: "model" or "optimizer" (data/model/weight_files.h).
int checkpoint_read_tensors(const char *folder, const char *name, const NamedTensor *tensors, size_t count,
                            Error *error);
int training_state_read(const char *folder, TrainingState *state, Error *error);
char *training_state_text(const TrainingState *state); // caller frees

#ifdef __cplusplus
}
#endif
#endif
