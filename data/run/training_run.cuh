// A run of the trainer: its folder, metrics, checkpoints and training state.
#ifndef DATA_RUN_TRAINING_RUN_CUH
#define DATA_RUN_TRAINING_RUN_CUH

#include "data/model/generation_config.h"
#include "data/options/settings.cuh"
#include "data/tokenizer/tokenizer.h"
#include "data/tokens/pipeline.cuh"
#include "layers/comm/processes.cuh"
#include "metrics.h"
#include "run.h"
#include "saving.cuh"

typedef struct {
    RunLock lock;    // of process 0
    Metrics metrics; // of process 0
    TrainingState state;
    Saving saving;
    int64_t last_seen; // step of the folder's last checkpoint, intact or not, when one was chosen; -1: none
    int64_t validated; // step of the last validation; -1: none
    int save_due;      // a checkpoint is due as soon as the save under way is done and steps are good
    char *checkpoint;  // folder of the checkpoint that training begins with, or NULL
    char *algorithms;  // file of the matmul library's choices, so that a resumed run repeats its bits
    CheckpointTexts texts;
} TrainingRun;

// Initialises a run of which nothing is open yet. The lock must not be moved afterwards.
static void training_run_init(TrainingRun *r) {
    r->saving.saved_step = r->validated = r->last_seen = -1;
    r->lock.descriptor = r->metrics.descriptor = -1;
}

static void training_run_close(TrainingRun *r) {
    saving_close(&r->saving);
    metrics_close(&r->metrics);
    run_close(&r->lock);
    free(r->texts.tokenizer), free(r->texts.tokenizer_config), free(r->texts.generation_config);
    free(r->algorithms), free(r->checkpoint);
}

// ---- joining other processes ------------------------------------------------------------------------------

static void release_lock(void *lock) {
    run_close((RunLock *)lock);
}

// Becomes one of the processes that train, with a device and a part of each batch, and joins the others.
static void join_processes(TrainingRun *r, Processes *p, Settings *o, int argc, char **argv) {
    const int alone = o->plan || o->sample != NULL; // work for one process
    const ProcessOptions options = {alone, o->processes, o->deterministic_reduce, o->deadline};
    Error error;
    p->release = release_lock;
    p->release_context = &r->lock;
    processes_start(p, &options, argc, argv);
    if (!o->plan && split_batch(o, p->launch.size, &error) != 0) die_once(p, &error);
    const char *refusal = o->plan ? NULL : device_open(argv, p->launch.local_rank);
    if (refusal != NULL && p->launch.size > 1) die("process %d: %s", p->launch.rank, refusal);
    if (refusal != NULL) die("%s", refusal);
    processes_join(p, &options);
    processes_set_threads(p, (int)o->threads);
}

// ---- which checkpoint -------------------------------------------------------------------------------------

// Returns the newest intact checkpoint of the folder `run` up to step `limit`, as process 0 sees it, which the caller
// frees; NULL if there is none yet, an error where one is `required`. Each process verifies its files independently.
static char *choose_checkpoint(TrainingRun *r, Processes *processes, const char *run, int required,
                               int64_t limit) {
    Error error;
    int64_t step = -1;
    int result = is_main(processes) ? checkpoint_last(run, &r->last_seen, &error) : 0;
    if (result == 0 && is_main(processes) && (r->last_seen >= 0 || required))
        result = checkpoint_newest(run, limit, &step, &error);
    agree_or_die(processes, result, &error);
    step = broadcast_from_main(processes, step);
    char *folder = step >= 0 ? checkpoint_folder(run, step) : NULL;
    if (folder != NULL && !is_main(processes)) result = checkpoint_verify(folder, 1, &error);
    agree_or_die(processes, result, &error);
    return folder;
}

// Computes a checksum of a checkpoint's manifest, which contains those of its files; 0 if there is no checkpoint.
static int checkpoint_checksum(const char *folder, int64_t *checksum, Error *error) {
    char *path = format_text("%s/manifest", folder ? folder : ""), *text = NULL;
    size_t size = 0;
    const int result = file_exists(path) ? file_read(path, 1 << 20, &text, &size, error) : 0;
    *checksum = text != NULL ? crc32c(0, text, size) : 0;
    free(path), free(text);
    return result;
}

// Ends all processes unless they begin with the same options, data and checkpoint. `folder`: the checkpoint, or NULL.
static void check_agreement(Processes *p, const Settings *o, const Pipeline *data, const char *folder) {
    static const char *const what[] = {"options", "training shards", "validation shards",
                                       "initial checkpoints"};
    enum { NUM = sizeof(what) / sizeof(what[0]) };
    Error error;
    int64_t mine[NUM] = {options_checksum(o), (int64_t)data->train.num_tokens,
                         (int64_t)data->validation.num_tokens, 0};
    int64_t *all = (int64_t *)xcalloc(NUM * (size_t)p->launch.size, sizeof(int64_t));
    int result = checkpoint_checksum(folder, &mine[3], &error);
    agree_or_die(p, result, &error);
    comm_exchange(p->comm, mine, sizeof(mine), all);
    for (int r = 1; r < p->launch.size && result == 0; r++)
        for (int i = 0; i < NUM && result == 0; i++)
            if (all[NUM * r + i] != all[i])
                result = fail(&error, "processes 0 and %d have different %s", r, what[i]);
    free(all);
    agree_or_die(p, result, &error);
}

// Returns the folder that weights come from, or NULL. A run that has no checkpoint yet is started instead of resumed.
static const char *choose_initial_folder(TrainingRun *r, Processes *processes, Settings *o) {
    if (o->resume || (o->sample != NULL && o->init_from == NULL)) {
        r->checkpoint = choose_checkpoint(r, processes, o->run, o->sample != NULL, INT64_MAX);
        if (r->checkpoint != NULL) return r->checkpoint;
        o->resume = 0;
        if (is_main(processes)) printf("'%s' has no checkpoint yet: starting again from step 0\n", o->run);
    }
    return o->init_from;
}

// ---- opening ----------------------------------------------------------------------------------------------

// Returns the contents of the tokenizer's tokenizer.json. The caller frees it.
static char *tokenizer_json_text(const Tokenizer *tokenizer) {
    char *text = NULL;
    size_t size;
    FILE *stream = open_memstream(&text, &size);
    CHECK(stream != NULL);
    tokenizer_write(tokenizer, stream);
    fclose(stream);
    return text;
}

// Prepares the files about text that process 0 writes into every checkpoint. `tokenizer` may be NULL.
static void prepare_texts(TrainingRun *r, const Tokenizer *tokenizer, const TokenList *stops,
                          int64_t end_of_text) {
    if (tokenizer != NULL) r->texts.tokenizer = tokenizer_json_text(tokenizer);
    if (tokenizer != NULL) r->texts.tokenizer_config = tokenizer_config_text(tokenizer);
    if (stops->count > 1 || (stops->count == 1 && stops->ids[0] != end_of_text))
        r->texts.generation_config = stop_tokens_text(stops); // config.json names only end_of_text
}

// Opens the run's folder, for process 0: options, metrics, checkpoints. `peak`: GFLOP/s of all processes.
static int open_run(TrainingRun *r, const Settings *o, double flop_per_token, double peak, Error *error) {
    Settings saved = *o;
    saved.resume = 0;
    saved.processes = 0; // chosen again when the run is resumed
    if (run_open(&r->lock, o->run, options_given(OPTIONS, NUM_OPTIONS, "resume"), r->last_seen, OPTIONS,
                 NUM_OPTIONS, &saved, error) != 0)
        return -1;
    return metrics_open(&r->metrics, o->run, r->state.step, o->steps, flop_per_token, peak, error);
}

// Opens saving, after finding out which processes see the folder that process 0 has opened and can write into it.
static int open_saving(TrainingRun *r, const Settings *o, const Processes *processes, const SavedModel *model,
                       Error *error) {
    typedef struct {
        char owner[200];          // as the lock file says
        char run_id[RUN_ID_SIZE]; // of process 0's lock
    } View;
    const size_t size = (size_t)processes->launch.size;
    View mine = {"", ""}, *all = (View *)xcalloc(size, sizeof(View));
    int *sees_folder = (int *)xcalloc(size, sizeof(int)), result = 0;
    char *owner = run_owner(o->run);
    if (owner != NULL) snprintf(mine.owner, sizeof(mine.owner), "%s", owner);
    memcpy(mine.run_id, r->lock.run_id, RUN_ID_SIZE);
    comm_exchange(processes->comm, &mine, sizeof(mine), all);
    for (size_t p = 0; p < size; p++) {
        sees_folder[p] = p == 0 || (all[0].owner[0] && strcmp(all[p].owner, all[0].owner) == 0);
        if (!sees_folder[p] && o->rollback_after > 0)
            result = fail(
                error,
                "--rollback-after: process %zu must see the same folder '%s' as process 0, but does not", p,
                o->run);
    }
    Saving *s = &r->saving;
    s->metrics = &r->metrics;
    s->texts = &r->texts;
    s->algorithms = r->algorithms;
    s->keep = o->keep;
    s->every = 60 * o->save_minutes;
    if (result == 0) result = saving_open(s, model, o->run, all[0].run_id, &r->lock, sees_folder, error);
    free(owner), free(all), free(sees_folder);
    return result;
}

// ---- while training ---------------------------------------------------------------------------------------

// Copies the state, and writes it while training continues. While steps are bad nothing is saved, so that a checkpoint
// that may be useless does not replace a good one. `last`: 1 for the last save of the run, which is made even then.
static void start_save(TrainingRun *r, const Processes *processes, int synchronously, int last) {
    enum { PATIENCE_SECONDS = 30 }; // for the previous save
    if (is_unstable(&r->state) && !last) return;
    if (!saving_finish(&r->saving, PATIENCE_SECONDS)) {
        r->saving.current.slow = 1;
        if (!is_main(processes)) return;
        metrics_end_line(&r->metrics);
        warn("the checkpoint of step %" PRId64
             " is still being written after %.0f s; the next one will follow it",
             r->saving.current.step, seconds_now() - r->saving.current.begun);
        return;
    }
    r->save_due = 0;
    if (r->saving.saved_step == r->state.step) return;
    saving_begin(&r->saving, &r->state);
    if (synchronously) saving_finish(&r->saving, -1);
}

// Finds out whether the metrics of process 0 end with a validation of the current step.
static void find_last_validation(TrainingRun *r, const Processes *processes) {
    r->validated = broadcast_from_main(processes, r->metrics.validated) ? r->state.step : -1;
}

// Prints the command that resumes the run. `started`: number of processes that the program started itself; 0: none.
static void print_resume_hint(const TrainingRun *r, const char *program, const char *run, int64_t started) {
    char *quoted = quote_for_shell(program), *folder = quote_for_shell(run), *processes = NULL;
    if (started > 0) processes = format_text(" --processes %" PRId64, started);
    printf("interrupted after step %" PRId64 "; to resume: %s --run %s --resume%s\n", r->state.step, quoted,
           folder, processes ? processes : "");
    free(quoted), free(folder), free(processes);
}

#endif
