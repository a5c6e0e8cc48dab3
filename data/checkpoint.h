// A run folder on disk, and the checkpoints in it.
//
//     runs/NAME/options.txt                      the options of the run, readable as @file
//     runs/NAME/lock                             locked while a trainer uses the run
//     runs/NAME/metrics.jsonl                    one line a step, a validation
//     runs/NAME/checkpoints/step_00001000/       a Hugging Face GPT-2 folder, and training state beside it:
//         config.json  model.safetensors  tokenizer.json  optimizer.safetensors  training_state.json manifest
//
// A checkpoint appears under its name only when it is complete and on the disk: it is written into a
// temporary folder, every file is synced, then the folder is renamed. `manifest` has a line `crc32c size
// name` for every file, and a last line with its own CRC-32C: any changed byte is found before anything is
// loaded.
#ifndef DATA_CHECKPOINT_H
#define DATA_CHECKPOINT_H

#include <stdint.h>
#include "files.h"
#include "options.h"
#include "safetensors.h"

#ifdef __cplusplus
extern "C" {
#endif

// The shape of a GPT-2, as config.json has it.
typedef struct {
    int64_t max_sequence_length; // n_positions
    int64_t vocab_size;
    int64_t num_layers, num_heads, channels;
    int64_t end_of_text; // bos_token_id and eos_token_id; -1: none
} GPTConfig;

// Where training stands; what is needed besides weights and moments to go on.
typedef struct {
    int64_t step;     // steps done
    int64_t position; // sequences consumed
    int64_t skipped;  // steps skipped in all
    int64_t skipped_in_row;
} TrainingState;

typedef struct {
    char *run, *temporary; // folders
    int64_t step;
} CheckpointWriter;

// Creates the run's folder, locks it for as long as the process lives (one trainer at a time), and writes its
// options.txt. Unless `resume`, a run that has checkpoints is refused.
int run_open(const char *run, int resume, const Option *table, size_t count, const void *settings,
             Error *error);

// Creates the temporary folder of runs/NAME's checkpoint for `step`.
int checkpoint_begin(CheckpointWriter *writer, const char *run, int64_t step, Error *error);
// Writes one file of tensors, or of text, into it.
int checkpoint_tensors(CheckpointWriter *writer, const char *name, const NamedTensor *tensors, size_t count,
                       Error *error);
int checkpoint_text(CheckpointWriter *writer, const char *name, const char *text, Error *error);
// The path inside the temporary folder, for content written by others. Caller frees.
char *checkpoint_path(const CheckpointWriter *writer, const char *name);
// Manifest, sync, rename; then removes all but the newest `keep` checkpoints. On error nothing older is
// touched and the temporary folder is removed.
int checkpoint_commit(CheckpointWriter *writer, int64_t keep, Error *error);
void checkpoint_abandon(CheckpointWriter *writer);

// The newest checkpoint of a run, or an error when there is none. Caller frees.
char *checkpoint_newest(const char *run, Error *error);
// Compares every file with the manifest. A folder without one (written by others) passes when `required` is
// 0.
int checkpoint_verify(const char *folder, int required, Error *error);

// Bounds, and that the heads divide the channels into sizes that are multiples of 8, `largest_head` at most.
int gpt_config_check(const GPTConfig *config, int64_t largest_head, Error *error);
int gpt_config_read(const char *folder, GPTConfig *config, Error *error);
char *gpt_config_text(const GPTConfig *config); // caller frees
int training_state_read(const char *folder, TrainingState *state, Error *error);
char *training_state_text(const TrainingState *state); // caller frees

#ifdef __cplusplus
}
#endif
#endif
