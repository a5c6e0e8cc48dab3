// Trains GPT-2 models: validation, the loop, setting up, main. The model itself is in gpt.cuh, the options in
// settings.cuh, checkpoints in saving.cuh, text from the model in generating.cuh, everything on disk in data/.
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <inttypes.h>
#include <signal.h>
#include <omp.h>
#include <sched.h>
#include <time.h>
#include <unistd.h>

#include "layers/launch/watchdog.h"
#include "layers/base/files.h"
#include "data/tokens/loader.h"
#include "layers/base/progress.h"
#include "data/run/run.h"
#include "data/tokens/shards.h"
#include "data/model/generation_config.h"
#include "data/tokenizer/tokenizer.h"
#include "data/tokenizer/generate.cuh"
#include "gpt.cuh"
#include "layers/host_memory.h"
#include "layers/outlier.h"
#include "plan.cuh"
#include "data/run/saving.cuh"
#include "data/options/settings.cuh"

// What checkpoints are made of.
static SavedModel saved_model(GPT *m) {
    SavedModel saved = {&m->config, &m->parameters, &m->shards, &m->optimizer, &m->run.matmul, m->run.stream};
    return saved;
}

// ---- signals ----------------------------------------------------------------------------------------------

static volatile sig_atomic_t stop_signal; // SIGINT, SIGTERM, SIGHUP or SIGUSR1, once it came

// The first one ends training after the step; one that comes later ends the program at once. What comes within a second or
// so is the same one, from a launcher and from its resource manager.
static void on_signal(int number) {
    static volatile time_t first;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    if (stop_signal == 0) {
        first = now.tv_sec;
        stop_signal = number;
    } else if (now.tv_sec - first > 1) {
        signal(number, SIG_DFL);
        raise(number);
    }
}

static void handle_signals(void) {
    signal(SIGINT, on_signal);
    signal(SIGTERM, on_signal);
    signal(SIGUSR1, on_signal); // what Slurm can be told to send before it takes the machine away
    if (signal(SIGHUP, SIG_IGN) != SIG_IGN)
        signal(SIGHUP, on_signal); // a connection that is lost; nohup ignores it
    signal(SIGPIPE, SIG_IGN);      // a reader of the output that went away
    signal(SIGXFSZ, SIG_IGN);      // a limit on the size of files: as a full disk
}

// ---- a run ------------------------------------------------------------------------------------------------

// A batch on its way to the device.
typedef struct {
    int32_t *tokens, *targets; // (B, T)
    Event copied;
} Batch;

// A step that the device has been given, and what will come of it.
typedef struct {
    StepMetrics metrics;
    StepOutcome *outcome;
    double *flags;                   // (TOTAL_SQUARES), without the loss: what this process tells the others
    int turn;                        // of Saving, when it was told
    int64_t position, next_position; // sequences consumed before the step, and after it
    Event started, done;
} PendingStep;

// The processes that train together, this one among them.
typedef struct {
    Launch launch;
    int64_t num_started; // --processes
    Comm *comm;
    Watchdog *watchdog;
    int speaker; // the process that reports the error all end with
} Processes;

// From token shards to batches on the device.
typedef struct {
    ShardSet train, validation;
    Loader *loader;
    Batch batches[2]; // one may still be on its way to the device while the next is filled
    size_t num_batches;
} Pipeline;

// The steps that the device was given.
typedef struct {
    PendingStep pending[2]; // one may still be computed while the next is queued
    size_t num_steps, num_finished;
} StepQueue;

// The run's folder, and where training stands.
typedef struct {
    RunLock lock;    // of process 0
    Metrics metrics; // of process 0
    TrainingState state;
    Saving saving;
    int64_t last_seen; // step of the last checkpoint when one was chosen, intact or not; -1: none
    int64_t validated; // step of the last validation; -1: none
    int save_due;      // a checkpoint is due as soon as the save under way is done and steps are good
    char *checkpoint;  // that training begins with, or NULL
    char *algorithms;  // file of the matmul library's choices, so that a resumed run repeats its bits
    char *tokenizer_text, *tokenizer_config, *generation_config; // contents of checkpoints' files, or NULL
} Run;

// What may make training end or go back.
typedef struct {
    int64_t rolled_back_to; // step; -1: none
    int rollbacks;          // to that step
    int stopping;           // processes have agreed to end
    int failed;       // a process had no data for a step: that step and all queued after it are discarded
    int has_no_data;  // this process
    Error data_error; // the reason
    int cannot_save;  // or should not
} Recovery;

typedef struct {
    Settings options;
    const char *program; // argv[0]
    Processes processes;
    GPT model;
    Tokenizer *tokenizer; // or NULL
    TokenList stops;      // tokens that end a sample, from the folder of the weights; none: end of text
    Pipeline data;
    StepQueue queue;
    Run run;
    Recovery recovery;
    double peak; // GFLOP/s, of this process
} Trainer;

static int is_main(const Trainer *t) {
    return t->processes.launch.rank == 0;
}

// Is the run to end? Several processes ask each other, once a step.
static int is_stopping(const Trainer *t) {
    return t->processes.launch.size > 1 ? t->recovery.stopping : stop_signal != 0;
}

// The next batch to fill: its last copy to the device is done.
static Batch *next_batch(Trainer *t) {
    Batch *batch = &t->data.batches[t->data.num_batches++ % 2];
    event_wait(batch->copied);
    return batch;
}

static void send_batch(GPT *m, Batch *batch) {
    const size_t bytes = m->acts.B * m->acts.T * sizeof(int32_t);
    copy_to_device(m->acts.model.tokens, batch->tokens, bytes, m->run.stream);
    copy_to_device(m->acts.model.targets, batch->targets, bytes, m->run.stream);
    event_record(&batch->copied, m->run.stream);
}

// ---- what all processes do together ----------------------------------------------------------------------

// All processes end, with the same status; `speaker` says why. The others let it speak first: a launcher ends all when one
// has ended.
static void exit_together(Trainer *t, int speaker, int status, const Error *error) {
    run_close(&t->run.lock);
    if (speaker != t->processes.launch.rank) {
        sleep(2);
        exit(status);
    }
    const Error named = name_process(speaker, error);
    die_of(&named);
}

// What process 0 says.
static int64_t broadcast_from_main(const Trainer *t, int64_t mine) {
    int64_t *all = (int64_t *)xcalloc((size_t)t->processes.launch.size, sizeof(int64_t));
    comm_exchange(t->processes.comm, &mine, sizeof(mine), all);
    const int64_t word = all[0];
    free(all);
    return word;
}

// What fails for one process fails for all: the first that has an error speaks for them.
static int agree(Trainer *t, int result, Error *error) {
    int mine = result != 0 ? error->status : 0, first = 0;
    int *all = (int *)xcalloc((size_t)t->processes.launch.size, sizeof(int));
    comm_exchange(t->processes.comm, &mine, sizeof(int), all);
    while (first < t->processes.launch.size && all[first] == 0) first++;
    const int failed = first < t->processes.launch.size;
    if (failed) {
        t->processes.speaker = first;
        error->status = all[first];
    }
    free(all);
    return failed ? -1 : 0;
}

static void agree_or_die(Trainer *t, int result, Error *error) {
    if (agree(t, result, error) == 0) return;
    watchdog_stop(t->processes.watchdog);
    exit_together(t, t->processes.speaker, error->status, error);
}

// The newest whole checkpoint of the run up to step `limit`, as process 0 sees it; NULL where a run that is resumed has not
// written one yet. Caller frees.
static char *choose_checkpoint(Trainer *t, int64_t limit) {
    const char *run = t->options.run;
    Error error;
    int64_t step = -1;
    int result = is_main(t) ? checkpoint_last(run, &t->run.last_seen, &error) : 0;
    if (result == 0 && is_main(t) && (t->run.last_seen >= 0 || t->options.sample != NULL))
        result = checkpoint_newest(run, limit, &step, &error);
    agree_or_die(t, result, &error);
    step = broadcast_from_main(t, step);
    char *folder = step >= 0 ? checkpoint_folder(run, step) : NULL;
    if (folder != NULL && !is_main(t)) result = checkpoint_verify(folder, 1, &error); // with its own eyes
    agree_or_die(t, result, &error);
    return folder;
}

// The weights that training begins with: the same everywhere, whatever each process made or read (another host's
// mathematical library may round otherwise).
static void agree_on_weights(Trainer *t) {
    GPT *m = &t->model;
    if (!is_divided(&m->shards, &m->parameters, m->parameters.master)) {
        Ticket ticket = comm_broadcast(m->shards.comm, m->parameters.master,
                                       m->parameters.num_elements * sizeof(float), 0, m->run.stream);
        comm_wait(m->shards.comm, ticket, m->run.stream);
    }
    gpt_round(m, t->options.stochastic_rounding && t->run.state.step > 0); // as the run left them
}

// ---- validation -------------------------------------------------------------------------------------------

typedef struct {
    double nats, bytes;
    int64_t tokens, cut, batches;
} Score;

// Bytes of text that a batch's targets stand for; end of text stands for none.
static double bytes_of(const Tokenizer *tokenizer, const int32_t *targets, size_t count) {
    double bytes = 0;
    for (size_t i = 0; i < count && tokenizer != NULL; i++) {
        size_t size = 0;
        if (targets[i] == IGNORE_TARGET || targets[i] == tokenizer_end_of_text(tokenizer)) continue;
        if (tokenizer_bytes(tokenizer, targets[i], &size) != NULL) bytes += (double)size;
    }
    return bytes;
}

static void score_batch(Trainer *t, Batch *batch, Score *score) {
    GPT *m = &t->model;
    const size_t N = m->acts.B * m->acts.T;
    int timing = m->run.profile.timing;
    m->run.profile.timing = 0;
    send_batch(m, batch);
    gpt_forward(m, &m->acts, &NO_TRAINING);
    gpt_losses(m, &m->acts);
    loss_add(&m->optimizer.totals[TOTAL_LOSS], m->acts.model.losses, N, 1.0, score->batches > 0,
             m->run.stream);
    m->run.profile.timing = timing;
    score->bytes += bytes_of(t->tokenizer, batch->targets, N);
    for (size_t i = 0; i < N; i++) score->tokens += batch->targets[i] != IGNORE_TARGET;
    score->batches++;
}

// The first validation batches in the order of the shards; processes take turns.
static int score_windows(Trainer *t, Score *score, Error *error) {
    GPT *m = &t->model;
    const size_t T = m->acts.T;
    const int64_t B = (int64_t)m->acts.B;
    LoaderConfig config = {
        B, (int64_t)T, (int32_t)m->dims.V, 0, 0, 0, 0, t->processes.launch.rank, t->processes.launch.size};
    Loader *loader = loader_open(&t->data.validation, &config, error);
    if (loader == NULL) return -1;
    const int64_t sequences = (int64_t)loader_sequences_per_epoch(loader);
    int result = 0;
    for (int64_t i = 0; i < t->options.validation_batches && result == 0 && !is_stopping(t); i++) {
        const int64_t first = (i * t->processes.launch.size + t->processes.launch.rank) * B;
        if (first >= sequences) break;
        Batch *batch = next_batch(t);
        result = loader_next(loader, batch->tokens, batch->targets, error);
        for (int64_t row = sequences - first; row < B; row++) // of the next epoch
            for (size_t c = 0; c < T; c++) batch->targets[(size_t)row * T + c] = IGNORE_TARGET;
        if (result == 0) score_batch(t, batch, score);
    }
    loader_close(loader);
    return result;
}

// The first validation documents, each whole from its start, its end included; processes read all and take turns.
static int score_documents(Trainer *t, Score *score, Error *error) {
    GPT *m = &t->model;
    DocumentReader reader;
    int rows = 1;
    documents_open(&reader, &t->data.validation, tokenizer_end_of_text(t->tokenizer));
    for (int64_t i = 0;
         rows > 0 && i < t->options.validation_batches * t->processes.launch.size && !is_stopping(t); i++) {
        Batch *batch = next_batch(t);
        int64_t cut = 0;
        rows = documents_batch(&reader, (int32_t)m->dims.V, m->acts.B, m->acts.T, batch->tokens,
                               batch->targets, &cut, error);
        if (rows <= 0 || i % t->processes.launch.size != t->processes.launch.rank) continue;
        score->cut += cut;
        score_batch(t, batch, score);
    }
    documents_close(&reader);
    return rows < 0 ? -1 : 0;
}

// All processes' scores together, in each.
static Score add_scores(const Trainer *t, const Score *mine) {
    Score sum = {0, 0, 0, 0, 0}, *all = (Score *)xcalloc((size_t)t->processes.launch.size, sizeof(Score));
    comm_exchange(t->model.shards.comm, mine, sizeof(Score), all);
    for (int r = 0; r < t->processes.launch.size; r++) {
        sum.nats += all[r].nats;
        sum.bytes += all[r].bytes;
        sum.tokens += all[r].tokens;
        sum.cut += all[r].cut;
        sum.batches += all[r].batches;
    }
    free(all);
    return sum;
}

static int validate(Trainer *t, Error *error) {
    GPT *m = &t->model;
    double started = seconds_now();
    Score score = {0, 0, 0, 0, 0};
    const int result = (t->options.validate_documents ? score_documents : score_windows)(t, &score, error);
    if (agree(t, result, error) != 0) return -1;
    if (is_stopping(t)) return 0; // half a score is none
    stream_wait(m->run.stream);
    double *nats = (double *)host_borrow(&m->optimizer.totals[TOTAL_LOSS], sizeof(double));
    if (score.batches > 0) score.nats = *nats;
    host_return(nats, &m->optimizer.totals[TOTAL_LOSS], sizeof(double), 0);
    score = add_scores(t, &score);
    if (score.tokens == 0) return fail(error, "'%s' has no documents to validate on", t->options.validation);
    ValidationMetrics v = {t->run.state.step,
                           score.nats / (double)score.tokens,
                           score.bytes > 0 ? score.nats / log(2.0) / score.bytes : -1,
                           t->options.validation_floor,
                           score.tokens,
                           score.cut,
                           seconds_now() - started};
    if (is_main(t)) metrics_validation(&t->run.metrics, &v);
    t->run.validated = t->run.state.step;
    return 0;
}

// ---- the loop ---------------------------------------------------------------------------------------------

// Forward and backward of all micro-steps; this process's part of the mean loss goes to the step's totals.
static void accumulate_gradients(Trainer *t) {
    GPT *m = &t->model;
    const Settings *o = &t->options;
    const size_t N = m->acts.B * m->acts.T;
    const double tokens = (double)N * (double)o->accumulate * t->processes.launch.size;
    const int divided = m->shards.sharding == SHARD_GRADIENTS;
    for (int64_t micro = 0; micro < o->accumulate; micro++) {
        profile_begin_pass(&m->run.profile, PASS_FORWARD);
        profile_enter(&m->run.profile, LAP_DATA, m->run.stream);
        Batch *batch = next_batch(t);
        if (loader_next(t->data.loader, batch->tokens, batch->targets, &t->recovery.data_error) != 0) {
            t->recovery.has_no_data = 1; // the others learn it from this step's totals
            memset(batch->tokens, 0, N * sizeof(int32_t));
            memset(batch->targets, 0, N * sizeof(int32_t));
        }
        send_batch(m, batch);
        profile_leave(&m->run.profile, m->run.stream);
        MicroStep s = {(uint32_t)t->run.state.step,
                       (uint32_t)((micro * t->processes.launch.size + t->processes.launch.rank) * o->batch),
                       dropout_threshold(o->dropout),
                       (float)(1.0 / tokens),
                       divided || micro == 0 ? MATMUL_OVERWRITE : MATMUL_ACCUMULATE,
                       micro == 0,
                       divided || micro + 1 == o->accumulate};
        gpt_forward(m, &m->acts, &s);
        gpt_backward(m, &s);
        loss_add(&m->optimizer.totals[TOTAL_LOSS], m->acts.model.losses, N, tokens, micro > 0, m->run.stream);
    }
}

// Loss and gradient of a step: good, skipped, an outlier?
static void judge_step(Trainer *t, const StepMetrics *s) {
    TrainingState *state = &t->run.state;
    const int outlier = is_outlier(s->loss, state->recent, state->num_recent, t->options.outlier);
    state->skipped += s->skipped;
    state->skipped_in_row = s->skipped ? state->skipped_in_row + 1 : 0;
    state->outliers_in_row = t->options.rollback_after > 0 && (outlier || s->skipped)
                                 ? state->outliers_in_row + 1
                                 : 0;
    outlier_add(s->loss, state->recent, &state->num_recent, RECENT_LOSSES);
}

// Enough outliers in a row, whatever was computed since?
static int must_roll_back(const Trainer *t) {
    return t->options.rollback_after > 0 && t->run.state.outliers_in_row >= t->options.rollback_after;
}

// Waits for the oldest step the device was given, and records it.
static void finish_step(Trainer *t) {
    PendingStep *p = &t->queue.pending[t->queue.num_finished++ % 2];
    StepMetrics *s = &p->metrics;
    event_wait(p->done);
    s->loss = p->outcome->loss;
    s->gradient_norm = p->outcome->norm;
    s->skipped = p->outcome->skipped;
    s->seconds = event_seconds(p->started, p->done);
    if (p->outcome->failed && !t->recovery.failed) {
        t->recovery.failed = 1;
        t->run.state.step = s->step - 1;
        t->run.state.position = p->position;
    }
    if (t->recovery.failed || must_roll_back(t)) return; // what was queued behind it never was
    judge_step(t, s);
    if (must_roll_back(t)) {
        t->run.state.step = s->step;
        t->run.state.position = p->next_position;
    }
    t->recovery.stopping |= p->outcome->stopping > 0;
    t->run.save_due |= p->outcome->saving > 0;
    watchdog_learn(t->processes.watchdog, s->seconds);
    if (is_main(t)) metrics_step(&t->run.metrics, s);
    if (p->outcome->written == t->processes.launch.size && p->turn == t->run.saving.turn)
        saving_advance(&t->run.saving);
}

static void finish_steps(Trainer *t) {
    while (t->queue.num_finished < t->queue.num_steps) finish_step(t);
}

// What this process tells the others with the step's totals.
static void send_flags(Trainer *t, PendingStep *p) {
    GPT *m = &t->model;
    p->flags[TOTAL_STOPPING] = stop_signal != 0;
    p->flags[TOTAL_SAVING] = saving_asks(&t->run.saving);
    p->flags[TOTAL_WRITTEN] = saving_is_done(&t->run.saving);
    p->flags[TOTAL_FAILED] = t->recovery.has_no_data;
    p->turn = t->run.saving.turn;
    copy_to_device(&m->optimizer.totals[TOTAL_STOPPING], &p->flags[TOTAL_STOPPING],
                   (TOTAL_SQUARES - TOTAL_STOPPING) * sizeof(double), m->run.stream);
}

// Queues one step on the device, then records an earlier one: the device always has work.
static void train_step(Trainer *t) {
    GPT *m = &t->model;
    const Settings *o = &t->options;
    PendingStep *p = &t->queue.pending[t->queue.num_steps % 2];
    StepMetrics metrics = {t->run.state.step + 1, o->global_batch * o->sequence_length, 0, 0, 0, 0, 0};
    LearningRate schedule = {
        (Schedule)o->schedule, o->learning_rate, o->final_learning_rate, o->steps, o->warmup, o->cooldown};
    metrics.learning_rate = learning_rate_at(&schedule, metrics.step);
    AdamW adamw = {metrics.learning_rate,  o->beta1,   o->beta2, o->epsilon, o->clip,
                   o->stochastic_rounding, m->run.seed};
    p->metrics = metrics;
    range_begin("step");
    watchdog_step(t->processes.watchdog, metrics.step);
    event_record(&p->started, m->run.stream);
    p->position = t->run.state.position;
    accumulate_gradients(t);
    send_flags(t, p);
    gpt_update(m, &adamw);
    copy_to_host(p->outcome, m->optimizer.outcome, sizeof(StepOutcome), m->run.stream);
    event_record(&p->done, m->run.stream);
    range_end();
    t->run.state.position = p->next_position = (int64_t)loader_position(t->data.loader);
    t->run.state.step++;
    t->queue.num_steps++;
    if (m->run.profile.timing) profile_collect(&m->run.profile);
    if (t->queue.num_steps - t->queue.num_finished > DEVICE_QUEUES) finish_step(t);
}

// From where training stands.
static Loader *open_loader(Trainer *t, Error *error) {
    const Settings *o = &t->options;
    LoaderConfig config = {o->batch,
                           o->sequence_length,
                           (int32_t)t->model.dims.V,
                           (uint64_t)o->seed,
                           (uint64_t)t->run.state.position,
                           !o->overfit,
                           o->overfit,
                           t->processes.launch.rank,
                           t->processes.launch.size};
    Loader *loader = loader_open(&t->data.train, &config, error);
    if (loader == NULL) return NULL;
    const int64_t sequences = (int64_t)loader_sequences_per_epoch(loader), before = t->run.state.sequences;
    if (before > 0 && before != sequences && is_main(t))
        warn("'%s' has %" PRId64 " sequences of %" PRId64 " tokens, but had %" PRId64
             " when the checkpoint was written: from now on they are read in a different order",
             o->train, sequences, o->sequence_length, before);
    t->run.state.sequences = sequences;
    return loader;
}

static TextModel text_model(GPT *m) {
    TextModel model = {gpt_next_logits, m, m->dims.V, m->dims.max_T};
    return model;
}

static Sampling sampling_of(const Settings *o) {
    Sampling sampling = {o->sample_tokens, (uint64_t)o->seed, o->temperature, (size_t)o->top_k, o->top_p};
    return sampling;
}

static void show_samples(Trainer *t) {
    if (t->tokenizer == NULL || !is_main(t)) return;
    metrics_end_line(&t->run.metrics);
    printf("---- sample after step %" PRId64 ":\n", t->run.state.step);
    const TextModel model = text_model(&t->model);
    const Sampling sampling = sampling_of(&t->options);
    const int64_t count = print_sample(&model, t->tokenizer, &t->stops, &sampling, "",
                                       (uint32_t)t->run.state.step, &stop_signal);
    puts(count < 0 ? "---- the model's logits are not finite" : "----");
}

// Is it time for something that happens every `every` steps (0: never)?
static int is_due(const Trainer *t, int64_t every) {
    return every > 0 && t->run.state.step % every == 0;
}

static int validation_is_due(const Trainer *t) {
    return t->data.validation.count > 0 &&
           (t->run.state.step == t->options.steps || is_due(t, t->options.validate_every));
}

// Has process 0 a validation of the step that its record now ends with?
static void find_last_validation(Trainer *t) {
    t->run.validated = broadcast_from_main(t, t->run.metrics.validated) ? t->run.state.step : -1;
}

static int is_unfinished(const Trainer *t) {
    return t->run.state.step < t->options.steps ||
           (validation_is_due(t) && t->run.validated != t->run.state.step);
}

// Among steps that may lead back to a checkpoint: that one stays the newest, and all since is done again.
static int may_roll_back(const Trainer *t) {
    return t->options.rollback_after > 0 && is_in_doubt(&t->run.state);
}

static int save_and_wait(Trainer *t, Error *error) {
    watchdog_step(t->processes.watchdog, 0);
    if (save_now(&t->run.saving, &t->run.state, error) == 0) return 0;
    t->recovery.cannot_save = 1;
    return -1;
}

static int stop_after_skips(Trainer *t, Error *error) {
    if (t->run.saving.saved_step < 0 && save_and_wait(t, error) != 0) return -1;
    t->recovery.cannot_save = 1; // or need not: a step that is skipped changes nothing
    fail(error,
         "%" PRId64 " steps in a row had a non-finite loss or gradient; training stopped after step %" PRId64
         ", and the newest checkpoint is that of step %" PRId64 ": resume with a lower --learning-rate",
         t->run.state.skipped_in_row, t->run.state.step, t->run.saving.saved_step);
    error->status = EXIT_SKIPPED;
    return -1;
}

static int load_checkpoint(Trainer *t, const char *folder, Error *error) {
    const SavedModel model = saved_model(&t->model);
    if (load_weights(&model, folder, error) != 0) return -1;
    return load_training_state(&model, folder, &t->run.state, error);
}

// What became of the data, and of the record, since the checkpoint that was just loaded.
static int skip_data(Trainer *t, int64_t from, int64_t position, Error *error) {
    const int64_t passed = position - t->run.state.position, step = t->run.state.step;
    t->run.state.position = position;
    loader_close(t->data.loader);
    if ((t->data.loader = open_loader(t, error)) == NULL) return -1;
    t->recovery.rollbacks = step == t->recovery.rolled_back_to ? t->recovery.rollbacks + 1 : 1;
    t->recovery.rolled_back_to = t->run.saving.saved_step = step;
    t->run.state.outliers_in_row = t->run.save_due = 0;
    if (!is_main(t)) return 0;
    metrics_end_line(&t->run.metrics);
    printf("%" PRId64 " steps in a row had losses that are outliers: returning from step %" PRId64
           " to step %" PRId64 " and skipping %" PRId64 " sequences\n",
           t->options.rollback_after, from, step, passed);
    return metrics_rollback(&t->run.metrics, step, from, passed, error);
}

// What is computed is copied first, then written beside training. While steps are bad, the checkpoints that are kept
// must not give way to ones that may be no better.
static void start_save(Trainer *t, int last) {
    enum { PATIENCE = 30 }; // seconds for the save before
    const Settings *o = &t->options;
    if (is_in_doubt(&t->run.state) && !last) return;
    if (!saving_finish(&t->run.saving, PATIENCE)) {
        t->run.saving.slow = 1;
        if (is_main(t)) metrics_end_line(&t->run.metrics);
        if (is_main(t))
            warn("the checkpoint of step %" PRId64
                 " is still being written after %.0f s; the next one will follow it",
                 t->run.saving.step, seconds_now() - t->run.saving.begun);
        return;
    }
    t->run.save_due = 0;
    if (t->run.saving.saved_step == t->run.state.step) return;
    saving_begin(&t->run.saving, &t->run.state);
    if (o->save_synchronously) saving_finish(&t->run.saving, -1);
}

// From a series of bad steps back to the last checkpoint.
static int roll_back(Trainer *t, Error *error) {
    enum { MOST_ROLLBACKS = 3 };
    const int64_t from = t->run.state.step, position = t->run.state.position;
    watchdog_step(t->processes.watchdog, 0);
    saving_finish(&t->run.saving, -1);
    if (t->run.saving.saved_step == t->recovery.rolled_back_to && t->recovery.rollbacks == MOST_ROLLBACKS) {
        t->recovery.cannot_save = 1; // nothing new is worth saving
        fail(error,
             "training returned to step %" PRId64
             " %d times without getting past it; resume with a lower --learning-rate",
             t->recovery.rolled_back_to, MOST_ROLLBACKS);
        error->status = EXIT_SKIPPED;
        return -1;
    }
    char *folder = choose_checkpoint(t, t->run.saving.saved_step);
    agree_or_die(t,
                 folder != NULL ? 0 : fail(error, "there is no longer a checkpoint in '%s'", t->options.run),
                 error);
    agree_or_die(t, load_checkpoint(t, folder, error), error);
    agree_on_weights(t);
    agree_or_die(t, skip_data(t, from, position, error), error);
    find_last_validation(t);
    free(folder);
    return 0;
}

// What is due between steps: validation, samples, a checkpoint.
static int after_step(Trainer *t, Error *error) {
    const Settings *o = &t->options;
    const int last = t->run.state.step == o->steps;
    const int validates = validation_is_due(t);
    const int samples = !last && is_due(t, o->sample_every);
    t->run.save_due |= last || is_due(t, o->save_every);
    const int saves = t->run.save_due && (t->run.saving.phase == SAVE_IDLE || !t->run.saving.slow);
    const int suspicious = t->run.state.skipped_in_row >= o->max_skips || must_roll_back(t);
    if (validates || samples || saves || suspicious) finish_steps(t);
    if (is_stopping(t) || t->recovery.failed) return 0;
    if (must_roll_back(t)) return roll_back(t, error);
    if (t->run.state.skipped_in_row >= o->max_skips) return stop_after_skips(t, error);
    if (validates || samples || saves) watchdog_step(t->processes.watchdog, 0);
    if (validates && validate(t, error) != 0) return -1;
    if (samples) show_samples(t);
    if (saves) start_save(t, last);
    return 0;
}

// The command that resumes the run.
static void print_resume_hint(const Trainer *t) {
    char *program = quote_for_shell(t->program), *run = quote_for_shell(t->options.run), *processes = NULL;
    if (t->processes.num_started > 0)
        processes = format_text(" --processes %" PRId64, t->processes.num_started);
    printf("interrupted after step %" PRId64 "; to resume: %s --run %s --resume%s\n", t->run.state.step,
           program, run, processes ? processes : "");
    free(program), free(run), free(processes);
}

static int train(Trainer *t, Error *error) {
    const Settings *o = &t->options;
    int64_t started_at = t->run.state.step;
    if (started_at >= o->steps && is_main(t))
        printf("this run has already done %" PRId64 " steps, and --steps is %" PRId64
               ": give a larger --steps to continue it\n",
               started_at, o->steps);
    if (o->rollback_after > 0 && t->run.saving.saved_step < 0 && save_and_wait(t, error) != 0) return -1;
    find_last_validation(t); // before which a run may have been interrupted
    if (started_at > 0 && validation_is_due(t) && t->run.validated != started_at && validate(t, error) != 0)
        return -1;
    while (t->run.state.step < o->steps && !is_stopping(t) && !t->recovery.failed) {
        train_step(t);
        profile_steady_steps(t->run.state.step - started_at, t->model.run.stream);
        if (after_step(t, error) != 0) return -1;
    }
    finish_steps(t);
    watchdog_step(t->processes.watchdog, 0);
    if (is_main(t)) metrics_end_line(&t->run.metrics);
    if (t->recovery.failed) {
        *error = t->recovery.data_error;
        return agree(t, t->recovery.has_no_data ? -1 : 0, error);
    }
    if (may_roll_back(t) && is_unfinished(t))
        saving_finish(&t->run.saving, -1);
    else if (save_and_wait(t, error) != 0)
        return -1;
    if (is_unfinished(t)) {
        if (is_main(t)) print_resume_hint(t);
        return 0;
    }
    if (!is_stopping(t)) show_samples(t);
    if (t->model.run.profile.timing && t->run.state.step > started_at && is_main(t))
        profile_print(&t->model.run.profile, (int)(t->run.state.step - started_at), t->peak);
    return 0;
}

// ---- setting up -------------------------------------------------------------------------------------------

// Shards with fewer tokens than a sequence and the token after it give none: how many they are, and their tokens.
static size_t count_short_shards(const ShardSet *set, int64_t T) {
    size_t count = 0;
    for (size_t i = 0; i < set->count; i++) count += set->shards[i].num_tokens <= (uint64_t)T;
    return count;
}
static uint64_t tokens_in_short_shards(const ShardSet *set, int64_t T) {
    uint64_t tokens = 0;
    for (size_t i = 0; i < set->count; i++)
        if (set->shards[i].num_tokens <= (uint64_t)T) tokens += set->shards[i].num_tokens;
    return tokens;
}

static void warn_of_short_shards(const ShardSet *set, int64_t T) {
    const size_t count = count_short_shards(set, T);
    size_t first = 0;
    if (count == 0) return;
    while (set->shards[first].num_tokens > (uint64_t)T) first++;
    warn("skipping %zu of %zu shards for having too few tokens for a sequence (--sequence-length %" PRId64
         "); the first is '%s'",
         count, set->count, T, set->shards[first].path);
}

static void print_banner(const Trainer *t) {
    const GPT *m = &t->model;
    const Settings *o = &t->options;
    const size_t *of = m->run.arena.of;
    char device[320];
    device_describe(device, sizeof(device));
    int64_t per_step = o->global_batch * o->sequence_length;
    printf("model       %zu layer%s, %zu head%s, %zu channels, %" PRId64
           " positions, vocabulary %zu: %.2f M parameters\n",
           m->dims.L, m->dims.L == 1 ? "" : "s", m->dims.NH, m->dims.NH == 1 ? "" : "s", m->dims.C,
           m->config.max_sequence_length, m->dims.V, (double)m->parameters.count * 1e-6);
    printf("memory      %.1f MB: weights %.1f, gradients %.1f, optimizer %.1f, activations %.1f (%.1f kB per "
           "token)\n",
           (double)m->run.arena.used * 1e-6, (double)(of[MEMORY_WEIGHTS] + of[MEMORY_MASTER]) * 1e-6,
           (double)of[MEMORY_GRADIENTS] * 1e-6, (double)of[MEMORY_MOMENTS] * 1e-6,
           (double)(of[MEMORY_BLOCKS] + of[MEMORY_LOGITS] + of[MEMORY_OTHER]) * 1e-6,
           (double)(of[MEMORY_BLOCKS] + of[MEMORY_LOGITS] + of[MEMORY_OTHER]) * 1e-3 /
               (double)(m->acts.B * m->acts.T));
    const size_t short_shards = count_short_shards(&t->data.train, o->sequence_length);
    printf("data        %.3f M tokens in %zu shard%s, %" PRId64 " tokens per step, %.2f epochs in this run\n",
           (double)(t->data.train.num_tokens - tokens_in_short_shards(&t->data.train, o->sequence_length)) *
               1e-6,
           t->data.train.count - short_shards, t->data.train.count - short_shards == 1 ? "" : "s", per_step,
           (double)o->steps * (double)o->global_batch / (double)loader_sequences_per_epoch(t->data.loader));
    if (t->processes.launch.size > 1)
        printf("processes   %d over %s, each step %d x %" PRId64 " micro-step%s of %" PRId64
               " sequence%s, sharded: %s\n",
               t->processes.launch.size, comm_transport(m->shards.comm), t->processes.launch.size,
               o->accumulate, o->accumulate == 1 ? "" : "s", o->batch, o->batch == 1 ? "" : "s",
               option_choice_name(OPTIONS, NUM_OPTIONS, o, "shard"));
    printf("machine     %s, %s matmul inputs, measured peak %.0f GFLOP/s, attention %s\n", device,
           PRECISIONS[precision_of(o)], t->peak, ATTENTIONS[m->run.attention]);
    if (dropout_threshold(o->dropout) < DROPOUT_NONE)
        printf("dropout     %.4f (requested: %g)\n", 1 - dropout_threshold(o->dropout) / 256.0, o->dropout);
    fflush(stdout);
}

// Shape of the model: by name, from the options, or of the folder that weights come from.
static int model_config(const Settings *o, const char *folder, const Tokenizer *tokenizer, GPTConfig *config,
                        Error *error) {
    int64_t V = tokenizer ? tokenizer_vocab_size(tokenizer) : 0;
    if (folder != NULL) {
        if (gpt_config_read(folder, o->ignore_key, config, error) != 0) return -1;
    } else {
        const GPTPreset free_shape = {o->num_layers, o->num_heads, o->channels};
        const GPTPreset *shape = o->model ? &GPT_PRESETS[o->model] : &free_shape;
        const int64_t positions = o->max_sequence_length ? o->max_sequence_length
                                  : o->model             ? 1024
                                                         : o->sequence_length;
        *config = gpt_config_gpt2(positions, o->vocab_size ? o->vocab_size : V, shape->num_layers,
                                  shape->num_heads, shape->channels);
    }
    if (folder == NULL || config->end_of_text < 0)
        config->end_of_text = tokenizer ? tokenizer_end_of_text(tokenizer) : -1;
    if (folder == NULL) config->begin_of_text = config->end_of_text; // documents begin with it
    if (config->vocab_size < 1)
        return fail(error, "the size of the vocabulary is unknown: give --tokenizer or --vocab-size");
    if (V > config->vocab_size)
        return fail(error,
                    "the tokenizer%s%s has %" PRId64 " tokens, but the model%s%s has %" PRId64
                    ": a model's vocabulary may be larger than its tokenizer's, not smaller",
                    o->tokenizer ? " " : "", o->tokenizer ? o->tokenizer : "", V, folder ? " in " : "",
                    folder ? folder : "", config->vocab_size);
    return gpt_config_check(config, ATTENTION_LARGEST_HEAD, error);
}

// The tokenizer beside weights: its file or, where it is two files, their folder. NULL if there is none; caller frees.
static char *tokenizer_beside(const char *folder) {
    static const char *const names[] = {"tokenizer.json", "encoder.json", "vocab.json"};
    for (int i = 0; folder != NULL && i < 3; i++) {
        char *path = format_text("%s/%s", folder, names[i]);
        const int found = file_exists(path);
        if (found && i == 0) return path;
        free(path);
        if (found) return xstrdup(folder);
    }
    return NULL;
}

// The tokenizer of the checkpoint that is resumed, else the one that is given, else the one beside the weights.
static int set_up_tokenizer(Trainer *t, const char *folder, Error *error) {
    const Settings *o = &t->options;
    char *beside = tokenizer_beside(folder);
    const char *path = beside != NULL && (o->resume || o->tokenizer == NULL) ? beside : o->tokenizer;
    const TokenizerChoices choices = {o->end_of_text, NULL, o->ignore_key};
    int result = folder != NULL ? stop_tokens_read(folder, &t->stops, error) : 0;
    if (result == 0 && path != NULL && (t->tokenizer = tokenizer_open(path, &choices, error)) == NULL)
        result = -1;
    if (result == 0 && path != NULL && path == beside && options_given(OPTIONS, NUM_OPTIONS, "tokenizer")) {
        Tokenizer *given = tokenizer_open(o->tokenizer, &choices, error);
        if (given == NULL)
            result = -1;
        else if (tokenizer_checksum(given) != tokenizer_checksum(t->tokenizer))
            result = fail(error, "'%s' is not the tokenizer that this run was started with", o->tokenizer);
        if (given != NULL) tokenizer_free(given);
    }
    free(beside);
    return result;
}

// Sizes must not overflow; what is merely too large is found when memory is asked for.
static int check_size(const Settings *o, const GPTConfig *c, Error *error) {
    const Dims d = dims_of(c);
    double of_block = (double)(5 * d.C + d.QKV + d.Q + d.UP + d.F) +
                      (double)d.NH * (double)o->sequence_length;
    double floats = (double)o->batch * (double)o->sequence_length *
                    ((double)c->num_layers * of_block + (double)c->vocab_size);
    if (floats <= 1e16) return 0;
    return fail(error,
                "--batch %" PRId64 " --sequence-length %" PRId64 " would take %.3g GB: use smaller values",
                o->batch, o->sequence_length, floats * 4e-9);
}

// A model whose weights alone do not fit is refused before anything is made for each part of it.
static int check_parameters(const Settings *o, const GPTConfig *c, int sharing, Error *error) {
    enum { MOST_PLANNED = 200 }; // billion
    const double parameters = count_parameters(c);
    size_t available, total;
    if (o->plan && parameters > MOST_PLANNED * 1e9)
        return fail(error, "a model of %.3g parameters is too large for --plan: expected at most %d billion",
                    parameters, MOST_PLANNED);
    if (o->plan) return 0;
    device_memory(&available, &total, sharing);
    if (parameters * sizeof(floatX) <= (double)available) return 0;
    return fail(error,
                "%.3g parameters take %.4g GB, but only %.4g GB are available, and not even --batch 1 fits: "
                "try a smaller model",
                parameters, parameters * sizeof(floatX) * 1e-9, (double)available * 1e-9);
}

// Tokenizer and the model's shape. `folder`: where weights come from, or NULL for fresh ones.
static int describe_model(Trainer *t, const char *folder, Error *error) {
    Settings *o = &t->options;
    GPTConfig config;
    if (folder != NULL && folder == o->init_from && checkpoint_verify(folder, 0, error) != 0) return -1;
    if (set_up_tokenizer(t, folder, error) != 0) return -1;
    if (model_config(o, folder, t->tokenizer, &config, error) != 0) return -1;
    if (!options_given(OPTIONS, NUM_OPTIONS, "sequence-length") &&
        o->sequence_length > config.max_sequence_length)
        o->sequence_length = config.max_sequence_length;
    if (o->sample == NULL && o->sequence_length > config.max_sequence_length)
        return fail(error, "--sequence-length %" PRId64 " is more than the model's %" PRId64 " positions",
                    o->sequence_length, config.max_sequence_length);
    if (DEVICE_IS_GPU && config.channels > LARGEST_LAYERNORM)
        return fail(error, "on a GPU a model can have at most %d channels", LARGEST_LAYERNORM);
    if (check_size(o, &config, error) != 0 ||
        check_parameters(o, &config, t->processes.launch.local_size, error) != 0)
        return -1;
    const size_t row = round_up((size_t)config.vocab_size, VOCAB_MULTIPLE) * sizeof(floatX);
    if (o->logits_memory > 0 && (size_t)o->logits_memory < row)
        return fail(error, "--logits-memory %" PRId64 " is too small: the logits of one token take %zu bytes",
                    o->logits_memory, row);
    o->num_layers = config.num_layers; // as they are saved with the run
    o->num_heads = config.num_heads;
    o->channels = config.channels;
    o->max_sequence_length = config.max_sequence_length;
    o->vocab_size = config.vocab_size;
    Shape shape = {o->sample ? 0 : (size_t)o->batch, (size_t)o->sequence_length,
                   (Recompute)o->recompute,          (size_t)o->logits_memory,
                   (AttentionVariant)o->attention,   o->sample ? SHARD_NONE : (Sharding)o->shard,
                   t->processes.launch.size,         t->processes.comm,
                   t->processes.launch.local_size};
    gpt_describe(&t->model, &config, &shape);
    t->model.run.seed = (uint64_t)o->seed;
    t->model.run.attention_atomics = o->attention_atomics;
    return 0;
}

static int check_attention(const GPT *m, const Settings *o, Error *error) {
    const MicroStep step = {0, 0, dropout_threshold(o->dropout), 0, MATMUL_OVERWRITE, 1, 0};
    if (m->acts.B == 0) return 0;
    Attention attention = attention_of(m, &m->acts, 0, &step);
    const char *refusal = attention_refusal(m->run.attention, &attention);
    return refusal == NULL ? 0 : fail(error, "--attention %s: %s", ATTENTIONS[m->run.attention], refusal);
}

// Memory, and the weights in it.
static int set_up_model(Trainer *t, const char *folder, Error *error) {
    const Settings *o = &t->options;
    GPT *m = &t->model;
    if (check_attention(m, o, error) != 0) return -1;
    if (gpt_allocate(m, (MatmulLibrary)o->matmul, precision_of(o), error) != 0) return -1;
    matmul_search_algorithms(&m->run.matmul, o->matmul_search);
    const SavedModel saved = saved_model(m);
    if (folder != NULL) return load_weights(&saved, folder, error);
    gpt_initialise(m, o->init_embedding, o->init_matrices);
    return 0;
}

// What would otherwise be found out at the first validation: shards too short, no documents.
static int check_validation(Trainer *t, Error *error) {
    const Settings *o = &t->options;
    LoaderConfig config = {1, o->sequence_length, (int32_t)t->model.dims.V, 0, 0, 0, 0, 0, 1};
    if (t->data.validation.count == 0) return 0;
    if (o->validate_documents && t->tokenizer == NULL)
        return fail(error, "--validate-documents needs --tokenizer: there is none in the folder of the weights");
    if (o->validate_documents && tokenizer_end_of_text(t->tokenizer) < 0)
        return fail(
            error,
            "--validate-documents needs a token that separates documents, but the tokenizer%s%s has no "
            "%s: name its own token with --end-of-text",
            o->tokenizer ? " " : "", o->tokenizer ? o->tokenizer : "", END_OF_TEXT);
    if (!o->validate_documents) {
        Loader *loader = loader_open(&t->data.validation, &config, error);
        if (loader != NULL) loader_close(loader);
        return loader != NULL ? 0 : -1;
    }
    DocumentReader reader;
    int32_t token;
    size_t count = 0;
    int found = 1;
    documents_open(&reader, &t->data.validation, tokenizer_end_of_text(t->tokenizer));
    while (found == 1 && count == 0) found = documents_next(&reader, &token, 1, &count, error);
    documents_close(&reader);
    return found == 0   ? fail(error,
                               "'%s' has no documents to validate on: the token %s, which precedes each, does "
                                 "not occur in it",
                               o->validation, tokenizer_end_of_text_content(t->tokenizer))
           : found == 1 ? 0
                        : -1;
}

static int open_data(Trainer *t, Error *error) {
    const Settings *o = &t->options;
    if (shards_open(&t->data.train, o->train, error) != 0) return -1;
    if (o->validation != NULL && shards_open(&t->data.validation, o->validation, error) != 0) return -1;
    if (check_validation(t, error) != 0) return -1;
    if (is_main(t)) warn_of_short_shards(&t->data.train, o->sequence_length);
    if (is_main(t) && !o->validate_documents) warn_of_short_shards(&t->data.validation, o->sequence_length);
    return (t->data.loader = open_loader(t, error)) != NULL ? 0 : -1;
}

static void open_queues(Trainer *t) {
    const size_t bytes = t->model.acts.B * t->model.acts.T * sizeof(int32_t);
    for (int i = 0; i < 2; i++) {
        t->data.batches[i].tokens = (int32_t *)host_alloc(bytes);
        t->data.batches[i].targets = (int32_t *)host_alloc(bytes);
        t->data.batches[i].copied = event_create();
        t->queue.pending[i].outcome = (StepOutcome *)host_alloc(sizeof(StepOutcome));
        t->queue.pending[i].flags = (double *)host_alloc(TOTAL_SQUARES * sizeof(double));
        t->queue.pending[i].started = event_create();
        t->queue.pending[i].done = event_create();
    }
}

static void close_queues(Trainer *t) {
    if (t->data.batches[0].tokens == NULL) return; // never opened
    for (int i = 0; i < 2; i++) {
        host_free(t->data.batches[i].tokens), host_free(t->data.batches[i].targets);
        host_free(t->queue.pending[i].outcome), host_free(t->queue.pending[i].flags);
        event_destroy(t->data.batches[i].copied);
        event_destroy(t->queue.pending[i].started), event_destroy(t->queue.pending[i].done);
    }
}

// Process 0 keeps the run's folder: options, metrics, checkpoints.
static int open_run(Trainer *t, Error *error) {
    const Settings *o = &t->options;
    const GPT *m = &t->model;
    Settings saved = *o;
    saved.resume = 0;
    saved.processes = 0; // those that there are when it is resumed
    if (!is_main(t)) return 0;
    if (run_open(&t->run.lock, o->run, options_given(OPTIONS, NUM_OPTIONS, "resume"), t->run.last_seen,
                 OPTIONS, NUM_OPTIONS, &saved, error) != 0)
        return -1;
    print_banner(t);
    return metrics_open(&t->run.metrics, o->run, t->run.state.step, o->steps, flop_per_token(m, m->acts.T),
                        t->peak * t->processes.launch.size, error);
}

// Which processes see the folder that process 0 has opened: those can write into it.
static int open_saving(Trainer *t, Error *error) {
    const Settings *o = &t->options;
    typedef struct {
        char owner[200];          // as the lock's file says
        char run_id[RUN_ID_SIZE]; // of process 0's lock
    } View;
    View mine = {"", ""}, *all = (View *)xcalloc((size_t)t->processes.launch.size, sizeof(View));
    int *sees = (int *)xcalloc((size_t)t->processes.launch.size, sizeof(int));
    char *owner = run_owner(o->run);
    if (owner != NULL) snprintf(mine.owner, sizeof(mine.owner), "%s", owner);
    memcpy(mine.run_id, t->run.lock.run_id, RUN_ID_SIZE);
    comm_exchange(t->processes.comm, &mine, sizeof(mine), all);
    int result = 0;
    for (int r = 0; r < t->processes.launch.size; r++) {
        sees[r] = r == 0 || (all[0].owner[0] && strcmp(all[r].owner, all[0].owner) == 0);
        if (!sees[r] && o->rollback_after > 0)
            result = fail(
                error,
                "--rollback-after: process %d must see the same folder '%s' as process 0, but does not", r,
                o->run);
    }
    const SavedModel model = saved_model(&t->model);
    t->run.saving.metrics = &t->run.metrics;
    t->run.saving.tokenizer = t->run.tokenizer_text;
    t->run.saving.tokenizer_config = t->run.tokenizer_config;
    t->run.saving.generation_config = t->run.generation_config;
    t->run.saving.algorithms = t->run.algorithms;
    t->run.saving.keep = o->keep;
    t->run.saving.every = 60 * o->save_minutes;
    if (result == 0)
        result = saving_open(&t->run.saving, &model, o->run, all[0].run_id, &t->run.lock, sees, error);
    free(owner), free(all), free(sees);
    return result;
}

// What is written with each checkpoint.
static char *text_of(const Tokenizer *tokenizer) {
    char *text = NULL;
    size_t size;
    FILE *stream = open_memstream(&text, &size);
    CHECK(stream != NULL);
    tokenizer_write(tokenizer, stream);
    fclose(stream);
    return text;
}

// All that training needs beside the model. `resume_from`: a checkpoint, or NULL.
static int set_up_training(Trainer *t, const char *resume_from, Error *error) {
    const Settings *o = &t->options;
    GPT *m = &t->model;
    optimizer_list_chunks(&m->optimizer, &m->shards, &m->parameters, o->weight_decay, m->run.stream);
    open_queues(t);
    if (resume_from != NULL) {
        const SavedModel model = saved_model(m);
        if (load_training_state(&model, resume_from, &t->run.state, error) != 0) return -1;
        t->run.saving.saved_step = t->run.state.step;
    }
    if (t->tokenizer != NULL && is_main(t)) t->run.tokenizer_text = text_of(t->tokenizer);
    if (t->tokenizer != NULL && is_main(t)) t->run.tokenizer_config = tokenizer_config_text(t->tokenizer);
    if (is_main(t) &&
        (t->stops.count > 1 || (t->stops.count == 1 && t->stops.ids[0] != m->config.end_of_text)))
        t->run.generation_config = stop_tokens_text(&t->stops); // what config.json does not say
    if (open_data(t, error) != 0) return -1;
    t->run.algorithms = format_text("%s/matmul.txt", o->run);
    if (resume_from != NULL && file_exists(t->run.algorithms) &&
        matmul_load_algorithms(&m->run.matmul, t->run.algorithms, error) != 0)
        return -1;
    char *activations = (char *)m->acts.model.tokens; // nothing is in them yet
    t->peak = matmul_peak(&m->run.matmul, activations,
                          (size_t)(m->run.arena.base + m->run.arena.used - activations));
    m->run.profile.timing = o->profile;
    set_work(m, m->acts.B * m->acts.T * (size_t)o->accumulate);
    return 0;
}

// Ends with the error's sentence, but not without the steps that were done. The error is that of all processes.
static void die_saving(Trainer *t, const Error *error) {
    Error second;
    finish_steps(t);
    watchdog_step(t->processes.watchdog, 0);
    saving_finish(&t->run.saving, -1);
    if (is_main(t)) metrics_end_line(&t->run.metrics);
    if (t->run.state.step > 0 && !may_roll_back(t) && !t->recovery.cannot_save) {
        const int saved = save_now(&t->run.saving, &t->run.state, &second) == 0;
        if (saved && is_main(t)) printf("saved a checkpoint of step %" PRId64 "\n", t->run.state.step);
        if (!saved && is_main(t)) warn("%s", second.text);
    }
    if (is_main(t) && metrics_flush(&t->run.metrics, &second) != 0) warn("%s", second.text);
    comm_barrier(t->processes.comm); // nobody leaves before all are done
    watchdog_stop(t->processes.watchdog);
    exit_together(t, t->processes.speaker, error->status, error);
}

static void close_down(Trainer *t) {
    saving_close(&t->run.saving);
    metrics_close(&t->run.metrics);
    run_close(&t->run.lock);
    if (t->data.loader != NULL) loader_close(t->data.loader);
    shards_close(&t->data.train);
    shards_close(&t->data.validation);
    close_queues(t);
    free(t->run.algorithms), free(t->run.tokenizer_text), free(t->run.tokenizer_config),
        free(t->run.generation_config);
    free(t->stops.ids);
    gpt_free(&t->model);
    comm_close(t->processes.comm);
    if (t->tokenizer != NULL) tokenizer_free(t->tokenizer);
}

// --prompt-ids: as --sample, of exact tokens.
static int64_t print_sample_of_ids(Trainer *t) {
    TokenList text = {NULL, 0, 0};
    Error error;
    if (parse_ids(t->options.prompt_ids, (int64_t)t->model.dims.V, &text, &error) != 0) die_of(&error);
    for (size_t i = 0; i < text.count; i++) print_token(t->tokenizer, text.ids[i]);
    const TextModel model = text_model(&t->model);
    const Sampling sampling = sampling_of(&t->options);
    int64_t count = continue_text(&model, t->tokenizer, &t->stops, &sampling, &text, 0, &stop_signal);
    free(text.ids);
    return count;
}

// --sample: prints a continuation of the text and how fast it came.
static void run_sample(Trainer *t) {
    if (t->tokenizer == NULL) die("there is no tokenizer in the folder of the weights: give --tokenizer");
    const TextModel model = text_model(&t->model);
    const Sampling sampling = sampling_of(&t->options);
    double started = seconds_now();
    int64_t count = t->options.prompt_ids != NULL ? print_sample_of_ids(t)
                                                  : print_sample(&model, t->tokenizer, &t->stops, &sampling,
                                                                 t->options.sample, 0, &stop_signal);
    if (count < 0) die("the model's logits are not finite: its weights have diverged");
    fprintf(stderr, "%" PRId64 " tokens, %.1f tokens/s\n", count, (double)count / (seconds_now() - started));
}

// An error that all processes run into is told by the first.
static void die_once(const Trainer *t, const Error *error) {
    if (t->processes.launch.rank == 0) die_of(error);
    watchdog_stop(t->processes.watchdog);
    sleep(3); // the first has said the same by then, and its launcher ended this process
    die("process %d: %s", t->processes.launch.rank, error->text);
}

// Cores that a process may use, and how to tell hosts apart.
typedef struct {
    uint64_t host;
    cpu_set_t cores;
} Seat;

// Threads: as asked for, or this process's part of the cores that it shares with others.
static void set_threads(const Trainer *t) {
    Seat mine = {0, {{0}}}, *all = (Seat *)xcalloc((size_t)t->processes.launch.size, sizeof(Seat));
    int sharing = 0, threads = (int)t->options.threads;
    char name[256] = "";
    gethostname(name, sizeof(name) - 1);
    mine.host = crc32c(0, name, strlen(name));
    sched_getaffinity(0, sizeof(mine.cores), &mine.cores);
    comm_exchange(t->processes.comm, &mine, sizeof(mine), all);
    for (int r = 0; r < t->processes.launch.size; r++) {
        cpu_set_t common;
        CPU_AND(&common, &mine.cores, &all[r].cores);
        sharing += all[r].host == mine.host && CPU_COUNT(&common) > 0;
    }
    if (threads == 0 && sharing > 1) threads = CPU_COUNT(&mine.cores) / sharing;
    if (threads == 0 && omp_get_max_threads() > MOST_THREADS)
        die("OMP_NUM_THREADS asks for %d threads, but at most %d are possible", omp_get_max_threads(),
            MOST_THREADS);
    if (threads > 0 || sharing > 1) omp_set_num_threads(threads > 0 ? threads : 1);
    free(all);
#pragma omp parallel
    {} // from here on their stacks count as memory that is taken
}

// Of the list of a checkpoint's files, which has their checksums; 0: there is none.
static int checkpoint_checksum(const char *folder, int64_t *checksum, Error *error) {
    char *path = format_text("%s/manifest", folder ? folder : ""), *text = NULL;
    size_t size = 0;
    const int result = file_exists(path) ? file_read(path, 1 << 20, &text, &size, error) : 0;
    *checksum = text != NULL ? crc32c(0, text, size) : 0;
    free(path), free(text);
    return result;
}

// Do all processes train the same thing? What they begin with must agree.
static void check_agreement(Trainer *t, const char *folder) {
    static const char *const what[] = {"options", "training shards", "validation shards",
                                       "initial checkpoints"};
    enum { NUM = sizeof(what) / sizeof(what[0]) };
    Error error;
    int64_t mine[NUM] = {options_checksum(&t->options), (int64_t)t->data.train.num_tokens,
                         (int64_t)t->data.validation.num_tokens, 0};
    int64_t *all = (int64_t *)xcalloc(NUM * (size_t)t->processes.launch.size, sizeof(int64_t));
    int result = checkpoint_checksum(folder, &mine[3], &error);
    agree_or_die(t, result, &error);
    comm_exchange(t->processes.comm, mine, sizeof(mine), all);
    for (int r = 1; r < t->processes.launch.size && result == 0; r++)
        for (int i = 0; i < NUM && result == 0; i++)
            if (all[NUM * r + i] != all[i])
                result = fail(&error, "processes 0 and %d have different %s", r, what[i]);
    free(all);
    agree_or_die(t, result, &error);
}

// Model and data; where that fails for one process, all end.
static void set_up(Trainer *t, const char *folder) {
    const Settings *o = &t->options;
    Error error;
    const int samples = o->sample != NULL;
    int result = set_up_model(t, folder, &error);
    if (result == 0 && !samples) result = set_up_training(t, o->resume ? folder : NULL, &error);
    agree_or_die(t, result, &error);
    check_agreement(t, folder);
    agree_on_weights(t);
    if (samples) return;
    agree_or_die(t, open_run(t, &error), &error); // nothing is written before all agree
    agree_or_die(t, open_saving(t, &error), &error);
}

static void run_training(Trainer *t) {
    Error error;
    if (train(t, &error) != 0) die_saving(t, &error);
    comm_barrier(t->processes.comm); // nobody leaves before all are done
    watchdog_stop(t->processes.watchdog);
}

// Becomes one of the processes that train, and joins the others.
static void join_processes(Trainer *t, int argc, char **argv) {
    Settings *o = &t->options;
    Error error;
    if (o->plan || o->sample != NULL) { // work for one
        if (t->processes.launch.rank > 0) exit(EXIT_SUCCESS);
        t->processes.launch.size = t->processes.launch.local_size = 1;
    } else if (comm_start(&t->processes.launch, (int)o->processes, argc, argv, &error) != 0) {
        die_once(t, &error);
    }
    if (!o->plan && split_batch(o, t->processes.launch.size, &error) != 0) die_once(t, &error);
    const char *refusal = o->plan ? NULL : device_open(argv, t->processes.launch.local_rank);
    if (refusal != NULL && t->processes.launch.size > 1)
        die("process %d: %s", t->processes.launch.rank, refusal);
    if (refusal != NULL) die("%s", refusal);
    t->processes.comm = comm_open(&t->processes.launch, o->deterministic_reduce,
                                  o->deadline > 0 ? o->deadline : 1e9, &error);
    if (t->processes.comm == NULL) die_of(&error);
    const Watched watched = {t->processes.comm, comm_progress, comm_abort};
    t->processes.watchdog = watchdog_start(comm_control(t->processes.comm), &watched, o->deadline);
    set_threads(t);
}

// The folder that weights come from, or NULL.
static const char *choose_initial_folder(Trainer *t) {
    Settings *o = &t->options;
    if (o->resume || (o->sample != NULL && o->init_from == NULL)) {
        t->run.checkpoint = choose_checkpoint(t, INT64_MAX);
        if (t->run.checkpoint != NULL) return t->run.checkpoint;
        o->resume = 0;
        if (is_main(t)) printf("'%s' has no checkpoint yet: starting again from step 0\n", o->run);
    }
    return o->init_from;
}

int main(int argc, char **argv) {
    static Trainer trainer;
    Trainer *t = &trainer;
    Settings *o = &t->options;
    Error error;
    t->program = argv[0];
    open_standard_descriptors();
    host_memory_share_heap();
    int parsed = parse_options(o, argc, argv, &error);
    if (parsed > 0) {
        answer(parsed);
        close_output();
        return 0;
    }
    if (launch_read(&t->processes.launch, &error) != 0) die_of(&error);
    if (parsed < 0 || check_options(o, &error) != 0) die_once(t, &error);
    t->processes.num_started = o->processes;
    join_processes(t, argc, argv);
    t->run.saving.saved_step = t->recovery.rolled_back_to = t->run.validated = t->run.last_seen = -1;
    t->run.lock.descriptor = t->run.metrics.descriptor = -1;

    if (!o->plan && o->sample == NULL)
        handle_signals(); // what takes long to set up is stopped after the first step
    const char *folder = choose_initial_folder(t);
    agree_or_die(t, describe_model(t, folder, &error), &error);
    if (o->plan) {
        print_plan(&t->model, o);
    } else {
        set_up(t, folder);
        if (o->sample != NULL)
            run_sample(t);
        else
            run_training(t);
    }
    const int interrupted = is_stopping(t) && is_unfinished(t);
    free(t->run.checkpoint);
    close_down(t);
    if (interrupted) return EXIT_INTERRUPTED;
    close_output();
    return 0;
}
