// Checkpoints of the trainer: what they contain, how they are written while training continues, and how they are read.
//
// A save goes through three phases, which all processes enter after the same step:
//
//     begin       the state is copied to host memory, in stream order, so that the next step need not wait
//     writing     the thread of each process (saver.h) writes the files of that process
//     committing  the thread of process 0 writes the manifest and gives the checkpoint its name
//
// A phase ends when the threads of all processes are done with it, which the processes learn from the totals of a step
// (SIGNAL_WRITTEN). No process waits, unless the next save is due before that (saving_finish). An error never ends a
// phase early: a save that failed in one process is discarded by all, with a warning, and tried again later.
#ifndef DATA_RUN_SAVING_CUH
#define DATA_RUN_SAVING_CUH

#include <unistd.h>
#include "data/json/cjson.h"
#include "layers/base/progress.h"
#include "layers/comm/processes.cuh"
#include "layers/matmul.cuh"
#include "layers/optimizer.cuh"
#include "metrics.h"
#include "recovery.h"
#include "saver.h"

// The parts of a model that its checkpoints contain.
typedef struct {
    const GPTConfig *config;
    const Parameters *parameters;
    Shards *shards;
    Optimizer *optimizer;
    MatmulContext *matmul; // has chosen algorithms, which a resumed run must use too
    Stream stream;
} SavedModel;

// ---- the tensors that a process writes --------------------------------------------------------------------

// A copy of the state in host memory. Each tensor is written whole by one process: if the state is divided, by the
// owner of the tensor's beginning, provided that it sees the run's folder; otherwise by process 0.
typedef struct {
    int writer_number;    // of this process among the writers, from 0; -1: it writes nothing
    int num_writers;      // number of processes that write
    int *writers;         // (number of parameter tensors) rank that writes each
    int *writer_numbers;  // (number of processes) writer number of each rank
    size_t num_tensors;   // number of parameter tensors that this process writes
    NamedTensor *tensors; // (NUM_SAVED, num_tensors) master weights, then each state of the optimizer
    float *memory;        // elements of these tensors
    Event copied;
    int device; // from which the state is copied
} Snapshot;

enum { NUM_SAVED = 1 + NUM_OPTIMIZER_STATES };

// Returns the memory of the master weights (0) or of a state of the optimizer (1 and up).
static float *saved_memory(const SavedModel *m, int which) {
    return which == 0 ? m->parameters->master : m->optimizer->states[which - 1];
}

// Returns the prefix of tensor names in the files. The caller frees it.
static char *saved_prefix(int which) {
    return which == 0 ? xstrdup("") : format_text("%s.", OPTIMIZER_STATES[which - 1].name);
}

static void name_tensor(const SavedModel *m, NamedTensor *t, size_t i, const char *prefix, float *data) {
    const Parameter *p = &m->parameters->tensors[i];
    const size_t length = (size_t)snprintf(t->name, sizeof(t->name), "%s", prefix);
    gpt_tensor_name(t->name + length, sizeof(t->name) - length, m->config->format, p->layer, p->name);
    t->data = data;
    t->rows = p->rows; // without padding
    t->columns = p->columns;
}

// Chooses the process that writes each tensor. `sees_folder` (number of processes): 1 for each process that sees the
// run's folder; process 0 always does.
static void choose_writers(Snapshot *s, const SavedModel *m, const int *sees_folder) {
    const int size = m->shards->num_processes, divided = m->shards->sharding != SHARD_NONE;
    s->writers = (int *)xcalloc(m->parameters->num_tensors, sizeof(int));
    s->writer_numbers = (int *)xcalloc((size_t)size, sizeof(int));
    s->writer_numbers[0] = 1; // which always writes: some files have no tensors
    for (size_t i = 0; i < m->parameters->num_tensors && divided; i++) {
        const int owner = m->shards->chunks[m->parameters->tensors[i].first_chunk].owner;
        s->writers[i] = sees_folder[owner] ? owner : 0;
        s->writer_numbers[s->writers[i]] = 1;
    }
    for (int r = 0; r < size; r++) s->writer_numbers[r] = s->writer_numbers[r] ? s->num_writers++ : -1;
    s->writer_number = s->writer_numbers[m->shards->rank];
    for (size_t i = 0; i < m->parameters->num_tensors; i++)
        s->num_tensors += s->writers[i] == m->shards->rank;
}

static void snapshot_open(Snapshot *s, const SavedModel *m, const int *sees_folder) {
    memset(s, 0, sizeof(*s));
    choose_writers(s, m, sees_folder);
    size_t size = 0;
    for (size_t i = 0; i < m->parameters->num_tensors; i++)
        size += s->writers[i] == m->shards->rank ? m->parameters->tensors[i].size : 0;
    s->tensors = (NamedTensor *)xcalloc(NUM_SAVED * s->num_tensors + 1, sizeof(NamedTensor));
    s->memory = (float *)host_alloc(NUM_SAVED * size * sizeof(float));
    s->copied = event_create();
    s->device = device_current();
    NamedTensor *next = s->tensors;
    float *data = s->memory;
    for (int which = 0; which < NUM_SAVED; which++) {
        char *prefix = saved_prefix(which);
        for (size_t i = 0; i < m->parameters->num_tensors; i++) {
            if (s->writers[i] != m->shards->rank) continue;
            name_tensor(m, next++, i, prefix, data);
            data += m->parameters->tensors[i].size;
        }
        free(prefix);
    }
}

static void snapshot_close(Snapshot *s) {
    if (s->writers == NULL) return; // never opened
    host_free(s->memory);
    event_destroy(s->copied);
    free(s->writers), free(s->writer_numbers), free(s->tensors);
}

// Returns where the process `writer` finds a tensor of `memory`: in `memory` or, if it does not own the whole tensor,
// in the memory of the gradients, where the tensor is gathered. All processes call it.
static const float *find_tensor(const SavedModel *m, size_t tensor, float *memory, int writer) {
    const Parameter *p = &m->parameters->tensors[tensor];
    if (!is_divided(m->shards, m->parameters, memory)) return memory + p->offset;
    const PartitionChunk *chunk = &m->shards->chunks[p->first_chunk];
    const size_t num_chunks = divide_up(p->size, ADAMW_CHUNK);
    CommPiece *pieces = (CommPiece *)xcalloc(num_chunks, sizeof(CommPiece));
    float *whole = sharding_gradient(m->shards, m->parameters, tensor);
    int is_split = 0; // among several owners
    for (size_t c = 0; c < num_chunks; c++) {
        CommPiece piece = {whole + c * ADAMW_CHUNK, memory + chunk[c].own, chunk[c].size, chunk[c].owner};
        pieces[c] = piece;
        is_split |= chunk[c].owner != chunk->owner;
    }
    const float *found = memory + chunk->own;
    if (is_split || writer != chunk->owner) {
        comm_wait(m->shards->comm,
                  comm_all_gather(m->shards->comm, pieces, num_chunks, sizeof(float), m->stream), m->stream);
        found = whole;
    }
    free(pieces);
    return found;
}

// Queues the copies to host memory. All processes call it after the same step.
static void snapshot_take(Snapshot *s, const SavedModel *m) {
    float *to = s->memory;
    sharding_wait_for_weights(m->shards, m->stream);
    for (int which = 0; which < NUM_SAVED; which++)
        for (size_t i = 0; i < m->parameters->num_tensors; i++) {
            const float *from = find_tensor(m, i, saved_memory(m, which), s->writers[i]);
            if (s->writers[i] != m->shards->rank) continue;
            copy_to_host(to, from, m->parameters->tensors[i].size * sizeof(float), m->stream);
            to += m->parameters->tensors[i].size;
        }
    event_record(&s->copied, m->stream);
}

// Returns the name of a writer's file of weights or moments. The caller frees it.
static char *part_name(const Snapshot *s, const char *name, int writer_number) {
    return s->num_writers == 1
               ? format_text("%s.safetensors", name)
               : format_text("%s-%05d-of-%05d.safetensors", name, writer_number + 1, s->num_writers);
}

// Returns Hugging Face's index of which file contains which tensor. The caller frees it.
static char *index_text(const Snapshot *s, const SavedModel *m) {
    cJSON *json = cJSON_CreateObject(), *metadata = cJSON_AddObjectToObject(json, "metadata");
    cJSON *map = cJSON_AddObjectToObject(json, "weight_map");
    double bytes = 0;
    for (size_t i = 0; i < m->parameters->num_tensors; i++) {
        NamedTensor tensor;
        char *file = part_name(s, "model", s->writer_numbers[s->writers[i]]);
        name_tensor(m, &tensor, i, "", NULL);
        cJSON_AddStringToObject(map, tensor.name, file);
        bytes += (double)((tensor.rows ? tensor.rows : 1) * tensor.columns * sizeof(float));
        free(file);
    }
    cJSON_AddNumberToObject(metadata, "total_size", bytes);
    char *text = cJSON_Print(json);
    CHECK(text != NULL);
    cJSON_Delete(json);
    return text;
}

// ---- saving -----------------------------------------------------------------------------------------------

typedef enum { SAVE_IDLE, SAVE_WRITING, SAVE_COMMITTING } SavePhase;

// Texts that process 0 writes into every checkpoint, or NULL.
typedef struct {
    char *tokenizer;         // tokenizer.json
    char *tokenizer_config;  // tokenizer_config.json
    char *generation_config; // generation_config.json
} CheckpointTexts;

// The save under way, or the last one.
typedef struct {
    SavePhase phase;
    int phase_number; // counts phases, so that a signal about one is not taken for one about the next
    int64_t step;     // step that is being saved
    int is_unstable;  // 1: the steps before it were bad, so all older checkpoints are kept
    int failed;       // 1: the save has failed
    int slow;         // 1: training no longer waits for it
    Error error;      // why it failed
    double begun;     // time in seconds at which it began
} Save;

typedef struct {
    SavedModel model;
    Metrics *metrics;             // of process 0
    const CheckpointTexts *texts; // of process 0
    const char *algorithms;       // file of the matmul library's choices
    int64_t keep;                 // number of checkpoints to keep
    double every;                 // seconds between saves; 0: saves are due by steps only
    Snapshot snapshot;
    Saver *saver;
    Save current;
    int64_t saved_step; // step of the newest checkpoint; -1: none yet
    double retry_at;    // time in seconds of the next attempt after a failed save; 0: none
    double pause;       // seconds until an attempt after a failed save
} Saving;

enum { FIRST_PAUSE = 5, LONGEST_PAUSE = 600 }; // seconds until another attempt after a failed save

// The result of one process's part of a save.
typedef struct {
    Error error; // status 0: none
    size_t num_files;
    CheckpointFile files[SAVER_MOST_FILES];
} SavedPart;

// Opens the saving of checkpoints in the folder `run`, where `run_id` is that run's id. `sees_folder` (number of
// processes): 1 for each process that sees the folder. Returns 0, or -1 with a sentence.
static int saving_open(Saving *s, const SavedModel *m, const char *run, const char *run_id, RunLock *lock,
                       const int *sees_folder, Error *error) {
    s->model = *m;
    s->current.begun = seconds_now();
    s->pause = FIRST_PAUSE;
    snapshot_open(&s->snapshot, m, sees_folder);
    s->saver = saver_open(run, run_id, m->shards->rank == 0 ? lock : NULL, error);
    return s->saver != NULL ? 0 : -1;
}

static void saving_close(Saving *s) {
    saver_close(s->saver);
    snapshot_close(&s->snapshot);
}

static void add_text(SaverFile *files, size_t *count, const char *name, char *text) {
    SaverFile file = {"", NULL, 0, text};
    snprintf(file.name, sizeof(file.name), "%s", name);
    files[(*count)++] = file;
}

static void add_tensors(SaverFile *files, size_t *count, char *name, const NamedTensor *tensors,
                        size_t num_tensors) {
    SaverFile file = {"", tensors, num_tensors, NULL};
    snprintf(file.name, sizeof(file.name), "%s", name);
    if (num_tensors > 0) files[(*count)++] = file;
    free(name);
}

// Waits until the copies are done; called by the saver's thread.
static void wait_for_snapshot(void *argument) {
    const Snapshot *snapshot = (const Snapshot *)argument;
    device_use(snapshot->device);
    event_wait(snapshot->copied);
}

// Begins a save, while none is under way. All processes call it after the same step, which is done and recorded.
static void saving_begin(Saving *s, const TrainingState *state) {
    const SavedModel *m = &s->model;
    Snapshot *snapshot = &s->snapshot;
    SaverFile files[SAVER_MOST_FILES];
    size_t count = 0;
    Error error;
    snapshot_take(snapshot, m);
    if (m->shards->rank == 0 && matmul_save_algorithms(m->matmul, s->algorithms, &error) != 0)
        warn("%s", error.text);
    if (snapshot->writer_number >= 0) {
        const size_t n = snapshot->num_tensors;
        add_tensors(files, &count, part_name(snapshot, "model", snapshot->writer_number), snapshot->tensors,
                    n);
        add_tensors(files, &count, part_name(snapshot, "optimizer", snapshot->writer_number),
                    snapshot->tensors + n, NUM_OPTIMIZER_STATES * n);
    }
    if (m->shards->rank == 0) {
        add_text(files, &count, "config.json", gpt_config_text(m->config));
        add_text(files, &count, "training_state.json", training_state_text(state));
        if (snapshot->num_writers > 1)
            add_text(files, &count, "model.safetensors.index.json", index_text(snapshot, m));
        if (s->texts->tokenizer != NULL)
            add_text(files, &count, "tokenizer.json", xstrdup(s->texts->tokenizer));
        if (s->texts->tokenizer_config != NULL)
            add_text(files, &count, "tokenizer_config.json", xstrdup(s->texts->tokenizer_config));
        if (s->texts->generation_config != NULL)
            add_text(files, &count, "generation_config.json", xstrdup(s->texts->generation_config));
    }
    s->current.step = state->step;
    s->current.is_unstable = is_unstable(state);
    s->current.failed = s->current.slow = 0;
    s->current.begun = seconds_now();
    s->retry_at = 0;
    s->current.phase = SAVE_WRITING;
    s->current.phase_number++;
    saver_write(s->saver, state->step, files, count, wait_for_snapshot, snapshot);
}

// Returns 1 if this process has done its part of the phase under way (SIGNAL_WRITTEN).
static int saving_part_is_done(const Saving *s) {
    return s->current.phase != SAVE_IDLE && saver_wait(s->saver, 0);
}

// Returns 1 when process 0 should ask for a save (SIGNAL_SAVE).
static int saving_is_due(const Saving *s) {
    const double now = seconds_now();
    if (s->model.shards->rank != 0 || s->current.phase != SAVE_IDLE) return 0;
    return (s->every > 0 && now - s->current.begun >= s->every) || (s->retry_at > 0 && now >= s->retry_at);
}

// Schedules another attempt after a failed save.
static void schedule_retry(Saving *s) {
    s->retry_at = seconds_now() + s->pause;
    if (s->model.shards->rank == 0 && s->pause > 0) {
        metrics_end_line(s->metrics);
        warn("cannot save step %" PRId64 ": %s; trying again in %.0f s", s->current.step,
             s->current.error.text, s->pause);
    }
    s->pause = fmin(2 * s->pause, LONGEST_PAUSE);
}

// Returns the results of all processes' parts (number of processes), which the caller frees. The save fails with the
// error of the first process that has one.
static SavedPart *exchange_parts(Saving *s) {
    const SavedModel *m = &s->model;
    SavedPart mine, *all = (SavedPart *)xcalloc((size_t)m->shards->num_processes, sizeof(SavedPart));
    memset(&mine, 0, sizeof(mine));
    if (saver_result(s->saver, &mine.error) == 0 && m->shards->rank == 0 && s->current.phase == SAVE_WRITING)
        metrics_flush(s->metrics, &mine.error); // on disk, metrics must include the step of a checkpoint
    const CheckpointFile *files = saver_files(s->saver, &mine.num_files);
    for (size_t i = 0; i < mine.num_files; i++) mine.files[i] = files[i];
    comm_exchange(m->shards->comm, &mine, sizeof(mine), all);
    for (int r = 0; r < m->shards->num_processes && !s->current.failed; r++) {
        if (all[r].error.status == 0) continue;
        s->current.failed = 1;
        s->current.error = name_process(r, &all[r].error);
    }
    return all;
}

// Has process 0's thread commit the checkpoint, with the files that the other processes have written.
static void commit_parts(Saving *s, const SavedPart *all) {
    const size_t size = (size_t)s->model.shards->num_processes;
    CheckpointFile *files = (CheckpointFile *)xcalloc(size * SAVER_MOST_FILES, sizeof(CheckpointFile));
    size_t count = 0;
    for (size_t r = 1; r < size; r++)
        for (size_t i = 0; i < all[r].num_files; i++) files[count++] = all[r].files[i];
    saver_commit(s->saver, files, count, s->metrics->descriptor,
                 s->current.is_unstable ? INT64_MAX : s->keep);
    free(files);
}

// Goes to the next phase when the threads of all processes are done. All processes call it at the same point.
static void saving_advance(Saving *s) {
    SavedPart *all = exchange_parts(s);
    s->current.phase_number++;
    if (s->current.phase == SAVE_WRITING) {
        s->current.phase = SAVE_COMMITTING;
        if (s->current.failed || s->model.shards->rank > 0)
            saver_leave(s->saver, s->current.failed);
        else
            commit_parts(s, all);
    } else {
        s->current.phase = SAVE_IDLE;
        if (s->current.failed) {
            schedule_retry(s);
        } else {
            s->saved_step = s->current.step;
            s->pause = FIRST_PAUSE;
        }
    }
    free(all);
}

// Waits for the save under way, if any, at most `seconds` (< 0: as long as it takes) in each of its phases. Returns 1
// if none is under way any more. All processes call it, and get the same result.
static int saving_finish(Saving *s, int seconds) {
    const SavedModel *m = &s->model;
    int *all = (int *)xcalloc((size_t)m->shards->num_processes, sizeof(int)), done_by_all = 1;
    while (s->current.phase != SAVE_IDLE && done_by_all) {
        const int done = saver_wait(s->saver, seconds);
        comm_exchange(m->shards->comm, &done, sizeof(int), all);
        for (int r = 0; r < m->shards->num_processes; r++) done_by_all &= all[r];
        if (done_by_all) saving_advance(s);
    }
    free(all);
    return done_by_all;
}

// Saves and waits until the save is complete; tries a few times more if it fails. All processes call it. Returns 0, or
// -1 with a sentence.
static int save_now(Saving *s, const TrainingState *state, Error *error) {
    static const int pauses[] = {1, 2, 4, 0}; // seconds until the next try
    saving_finish(s, -1);
    for (size_t t = 0; t < sizeof(pauses) / sizeof(pauses[0]) && s->saved_step != state->step; t++) {
        s->pause = pauses[t];
        saving_begin(s, state);
        saving_finish(s, -1);
        if (s->current.failed) sleep((unsigned)pauses[t]);
    }
    if (s->saved_step == state->step) return 0;
    fail(error, "cannot save step %" PRId64 ": %s", state->step, s->current.error.text);
    error->status = EXIT_IO;
    return -1;
}

// ---- reading ----------------------------------------------------------------------------------------------

// Names all tensors, after a prefix, and points them to their parts of `memory`, which has one element per parameter.
// Returns the end of the list.
static NamedTensor *name_all(const SavedModel *m, const char *prefix, float *memory, NamedTensor *next) {
    for (size_t i = 0; i < m->parameters->num_tensors; i++)
        name_tensor(m, next++, i, prefix, memory + m->parameters->tensors[i].offset);
    return next;
}

// Reads the weights of a checkpoint into the master weights. Returns 0, or -1 with a sentence.
static int load_weights(const SavedModel *m, const char *folder, Error *error) {
    NamedTensor *weights = (NamedTensor *)xcalloc(m->parameters->num_tensors, sizeof(NamedTensor));
    float *host = state_borrow(m->shards, m->parameters, m->parameters->master, m->stream);
    name_all(m, "", host, weights);
    int result = checkpoint_read_tensors(folder, "model", weights, m->parameters->num_tensors, error);
    state_return(m->shards, m->parameters, host, m->parameters->master, m->stream);
    free(weights);
    return result;
}

// Reads the optimizer's states and the training state of a checkpoint. Returns 0, or -1 with a sentence.
static int load_training_state(const SavedModel *m, const char *folder, TrainingState *state, Error *error) {
    const size_t count = NUM_OPTIMIZER_STATES * m->parameters->num_tensors;
    NamedTensor *tensors = (NamedTensor *)xcalloc(count, sizeof(NamedTensor)), *next = tensors;
    float *hosts[NUM_OPTIMIZER_STATES];
    for (int i = 0; i < NUM_OPTIMIZER_STATES; i++) {
        char *prefix = saved_prefix(1 + i);
        hosts[i] = state_borrow(m->shards, m->parameters, m->optimizer->states[i], m->stream);
        next = name_all(m, prefix, hosts[i], next);
        free(prefix);
    }
    int result = checkpoint_read_tensors(folder, "optimizer", tensors, count, error);
    if (result == 0) result = training_state_read(folder, state, error);
    for (int i = 0; i < NUM_OPTIMIZER_STATES; i++)
        state_return(m->shards, m->parameters, hosts[i], m->optimizer->states[i], m->stream);
    free(tensors);
    state->skipped_in_row = 0; // counted anew, perhaps with other options
    StepOutcome *outcome = (StepOutcome *)host_borrow(m->optimizer->outcome, sizeof(StepOutcome));
    outcome->updates = state->step - state->skipped;
    host_return(outcome, m->optimizer->outcome, sizeof(StepOutcome), 1);
    return result;
}

#endif
