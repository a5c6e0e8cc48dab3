// Checkpoints: folders below that of a run (data/run.h).
//
//     checkpoints/step_00001000/       a Hugging Face GPT-2 folder, and training state beside it:
//         config.json  model.safetensors  tokenizer.json  optimizer.safetensors  training_state.json  manifest
//
// Where several processes write, each has files of its own, in Hugging Face's names for that:
// model-00001-of-00004.safetensors, with model.safetensors.index.json, and optimizer-00001-of-00004.safetensors; each
// tensor is whole in one of them, so that any number of processes can read them.
//
// A checkpoint appears under its name only when it is complete and on the disk: it is written into a temporary
// folder, every file is synced, then the folder is renamed. `manifest` has a line `crc32c size name` for every
// file (data/manifest.h): any changed byte is found before anything is loaded. Temporary names carry the run's id, and a
// checkpoint is replaced or removed only where its manifest says that this run wrote it; other files that somebody has put
// into it stay.
#ifndef DATA_CHECKPOINT_H
#define DATA_CHECKPOINT_H

#include <stdint.h>
#include "files.h"
#include "gpt_config.h"
#include "manifest.h"
#include "safetensors.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { RECENT_LOSSES = 128 };

// Where training stands; what is needed besides weights and moments to go on.
typedef struct {
    int64_t step;      // steps done
    int64_t position;  // sequences consumed, or passed over
    int64_t sequences; // of the training data, which their order depends on; 0: not known
    int64_t skipped;   // steps skipped in all
    int64_t skipped_in_row, outliers_in_row; // so far
    int64_t num_recent;
    double recent[RECENT_LOSSES]; // losses, the oldest first, that the next one is compared with
} TrainingState;

typedef struct {
    char *run, *temporary; // folders
    int64_t step;
    Manifest manifest;
} CheckpointWriter;

// Creates the temporary folder of runs/NAME's checkpoint for `step`, or joins the process that did. `run_id`: of the run
// (data/run.h). runs/NAME itself must exist.
int checkpoint_begin(CheckpointWriter *writer, const char *run, const char *run_id, int64_t step,
                     Error *error);
// Writes one file of tensors, or of text, into it.
int checkpoint_tensors(CheckpointWriter *writer, const char *name, const NamedTensor *tensors, size_t count,
                       Error *error);
int checkpoint_text(CheckpointWriter *writer, const char *name, const char *text, Error *error);
// One that another process has written.
void checkpoint_add(CheckpointWriter *writer, const CheckpointFile *file);
// Manifest, sync, rename; then removes all but the newest `keep` checkpoints up to this one, of those that this run wrote.
// On error nothing older is touched and the temporary folder is removed.
int checkpoint_commit(CheckpointWriter *writer, int64_t keep, Error *error);
// Removes the temporary folder.
void checkpoint_abandon(CheckpointWriter *writer);
// Forgets it only: another process commits it.
void checkpoint_leave(CheckpointWriter *writer);
// Removes what this run, when it was killed, has left half written or half removed. By the process that has the run's lock.
void checkpoint_remove_leftovers(const char *run, const char *run_id);

// The folder of a step's checkpoint. Caller frees.
char *checkpoint_folder(const char *run, int64_t step);
// The step of the newest checkpoint, of those up to step `limit`, that is whole. Warns of every newer one, which stays as
// it is: what is damaged in it. With an error when there is none.
int checkpoint_newest(const char *run, int64_t limit, int64_t *step, Error *error);
int checkpoint_last(const char *run, int64_t *step, Error *error); // whole or not; -1: there is none
// Compares every file with the manifest. A folder without one (written by others) passes when `required` is
// 0.
int checkpoint_verify(const char *folder, int required, Error *error);

// Reads the tensors out of the folder's files for `name`, "model" or "optimizer" (data/weight_files.h).
int checkpoint_read_tensors(const char *folder, const char *name, const NamedTensor *tensors, size_t count,
                            Error *error);
int training_state_read(const char *folder, TrainingState *state, Error *error);
char *training_state_text(const TrainingState *state); // caller frees

#ifdef __cplusplus
}
#endif
#endif
