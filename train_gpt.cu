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

#include "layers/launch/processes.cuh"
#include "layers/launch/signals.h"
#include "layers/base/files.h"
#include "data/tokens/validation.cuh"
#include "layers/base/progress.h"
#include "data/tokenizer/generate.cuh"
#include "gpt.cuh"
#include "layers/host_memory.h"
#include "data/model/choice.cuh"
#include "data/options/settings.cuh"
#include "data/run/recovery.h"
#include "data/run/training_run.cuh"

// What checkpoints are made of.
static SavedModel saved_model(GPT *m) {
    SavedModel saved = {&m->config, &m->parameters, &m->shards, &m->optimizer, &m->run.matmul, m->run.stream};
    return saved;
}

// ---- a run ------------------------------------------------------------------------------------------------

// A step that the device has been given, and what will come of it.
typedef struct {
    StepMetrics metrics;
    StepOutcome *outcome;
    double *flags;                   // (TOTAL_SQUARES), without the loss: what this process tells the others
    int turn;                        // of Saving, when it was told
    int64_t position, next_position; // sequences consumed before the step, and after it
    Event started, done;
} PendingStep;

// The steps that the device was given.
typedef struct {
    PendingStep pending[2]; // one may still be computed while the next is queued
    size_t num_steps, num_finished;
} StepQueue;

static void queue_open(StepQueue *q) {
    for (int i = 0; i < 2; i++) {
        q->pending[i].outcome = (StepOutcome *)host_alloc(sizeof(StepOutcome));
        q->pending[i].flags = (double *)host_alloc(TOTAL_SQUARES * sizeof(double));
        q->pending[i].started = event_create();
        q->pending[i].done = event_create();
    }
}

static void queue_close(StepQueue *q) {
    if (q->pending[0].outcome == NULL) return; // never opened
    for (int i = 0; i < 2; i++) {
        host_free(q->pending[i].outcome), host_free(q->pending[i].flags);
        event_destroy(q->pending[i].started), event_destroy(q->pending[i].done);
    }
}

typedef struct {
    Settings options;
    const char *program; // argv[0]
    int64_t num_started; // --processes
    Processes processes;
    GPT model;
    Tokenizer *tokenizer; // or NULL
    TokenList stops;      // tokens that end a sample, from the folder of the weights; none: end of text
    Pipeline data;
    StepQueue queue;
    TrainingRun run;
    Recovery recovery;
    double peak; // GFLOP/s, of this process
} Trainer;

// Is the run to end? Several processes ask each other, once a step.
static int is_stopping(const Trainer *t) {
    return t->processes.launch.size > 1 ? t->recovery.stopping : stop_signal != 0;
}

// ---- what all processes do together ----------------------------------------------------------------------

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

// Adds a batch's loss to the validation's total.
static void score_on_device(void *trainer, Batch *batch, int first) {
    GPT *m = &((Trainer *)trainer)->model;
    const size_t N = m->acts.B * m->acts.T;
    const int timing = m->run.profile.timing;
    m->run.profile.timing = 0;
    batch_send(batch, m->acts.model.tokens, m->acts.model.targets, N, m->run.stream);
    gpt_forward(m, &m->acts, &NO_TRAINING);
    gpt_losses(m, &m->acts);
    loss_add(&m->optimizer.totals[TOTAL_LOSS], m->acts.model.losses, N, 1.0, !first, m->run.stream);
    m->run.profile.timing = timing;
}

static int trainer_is_stopping(const void *trainer) {
    return is_stopping((const Trainer *)trainer);
}

static int validate(Trainer *t, Error *error) {
    GPT *m = &t->model;
    double started = seconds_now();
    Score score = {0, 0, 0, 0, 0};
    const Scorer scorer = {t, score_on_device, trainer_is_stopping, m->acts.B, m->acts.T, (int64_t)m->dims.V};
    const int result = (t->options.validate_documents ? score_documents : score_windows)(
        &t->data, &t->options, &t->processes, t->tokenizer, &scorer, &score, error);
    if (agree(&t->processes, result, error) != 0) return -1;
    if (is_stopping(t)) return 0; // half a score is none
    stream_wait(m->run.stream);
    double *nats = (double *)host_borrow(&m->optimizer.totals[TOTAL_LOSS], sizeof(double));
    if (score.batches > 0) score.nats = *nats;
    host_return(nats, &m->optimizer.totals[TOTAL_LOSS], sizeof(double), 0);
    score = add_scores(&t->processes, &score);
    if (score.tokens == 0) return fail(error, "'%s' has no documents to validate on", t->options.validation);
    ValidationMetrics v = {t->run.state.step,
                           score.nats / (double)score.tokens,
                           score.bytes > 0 ? score.nats / log(2.0) / score.bytes : -1,
                           t->options.validation_floor,
                           score.tokens,
                           score.cut,
                           seconds_now() - started};
    if (is_main(&t->processes)) metrics_validation(&t->run.metrics, &v);
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
        Batch *batch = pipeline_next_batch(&t->data);
        if (loader_next(t->data.loader, batch->tokens, batch->targets, &t->recovery.data_error) != 0) {
            t->recovery.has_no_data = 1; // the others learn it from this step's totals
            memset(batch->tokens, 0, N * sizeof(int32_t));
            memset(batch->targets, 0, N * sizeof(int32_t));
        }
        batch_send(batch, m->acts.model.tokens, m->acts.model.targets, N, m->run.stream);
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
    if (t->recovery.failed || must_roll_back(&t->recovery, &t->run.state))
        return; // what was queued behind it never was
    recovery_judge(&t->recovery, &t->run.state, s->loss, s->skipped);
    if (must_roll_back(&t->recovery, &t->run.state)) {
        t->run.state.step = s->step;
        t->run.state.position = p->next_position;
    }
    t->recovery.stopping |= p->outcome->stopping > 0;
    t->run.save_due |= p->outcome->saving > 0;
    watchdog_learn(t->processes.watchdog, s->seconds);
    if (is_main(&t->processes)) metrics_step(&t->run.metrics, s);
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

static TextModel text_model(GPT *m) {
    TextModel model = {gpt_next_logits, m, m->dims.V, m->dims.max_T};
    return model;
}

static Sampling sampling_of(const Settings *o) {
    Sampling sampling = {o->sample_tokens, (uint64_t)o->seed, o->temperature, (size_t)o->top_k, o->top_p};
    return sampling;
}

static void show_samples(Trainer *t) {
    if (t->tokenizer == NULL || !is_main(&t->processes)) return;
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

static int is_unfinished(const Trainer *t) {
    return t->run.state.step < t->options.steps ||
           (validation_is_due(t) && t->run.validated != t->run.state.step);
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
    return fail_skipped(t->run.state.skipped_in_row, t->run.state.step, t->run.saving.saved_step, error);
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
    t->data.loader = NULL;
    if (pipeline_open_loader(&t->data, &t->options, (int64_t)t->model.dims.V, &t->processes, &t->run.state,
                             error) != 0)
        return -1;
    count_rollback(&t->recovery, step);
    t->run.saving.saved_step = step;
    t->run.state.outliers_in_row = t->run.save_due = 0;
    if (!is_main(&t->processes)) return 0;
    metrics_end_line(&t->run.metrics);
    printf("%" PRId64 " steps in a row had losses that are outliers: returning from step %" PRId64
           " to step %" PRId64 " and skipping %" PRId64 " sequences\n",
           t->options.rollback_after, from, step, passed);
    return metrics_rollback(&t->run.metrics, step, from, passed, error);
}

// From a series of bad steps back to the last checkpoint.
static int roll_back(Trainer *t, Error *error) {
    const int64_t from = t->run.state.step, position = t->run.state.position;
    watchdog_step(t->processes.watchdog, 0);
    saving_finish(&t->run.saving, -1);
    if (check_rollbacks(&t->recovery, t->run.saving.saved_step, error) != 0) {
        t->recovery.cannot_save = 1; // nothing new is worth saving
        return -1;
    }
    char *folder = choose_checkpoint(&t->run, &t->processes, t->options.run, 0, t->run.saving.saved_step);
    agree_or_die(&t->processes,
                 folder != NULL ? 0 : fail(error, "there is no longer a checkpoint in '%s'", t->options.run),
                 error);
    agree_or_die(&t->processes, load_checkpoint(t, folder, error), error);
    agree_on_weights(t);
    agree_or_die(&t->processes, skip_data(t, from, position, error), error);
    find_last_validation(&t->run, &t->processes);
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
    const int suspicious = t->run.state.skipped_in_row >= o->max_skips ||
                           must_roll_back(&t->recovery, &t->run.state);
    if (validates || samples || saves || suspicious) finish_steps(t);
    if (is_stopping(t) || t->recovery.failed) return 0;
    if (must_roll_back(&t->recovery, &t->run.state)) return roll_back(t, error);
    if (t->run.state.skipped_in_row >= o->max_skips) return stop_after_skips(t, error);
    if (validates || samples || saves) watchdog_step(t->processes.watchdog, 0);
    if (validates && validate(t, error) != 0) return -1;
    if (samples) show_samples(t);
    if (saves) start_save(&t->run, &t->processes, o->save_synchronously, last);
    return 0;
}

// The command that resumes the run.
static void print_resume_hint(const Trainer *t) {
    char *program = quote_for_shell(t->program), *run = quote_for_shell(t->options.run), *processes = NULL;
    if (t->num_started > 0) processes = format_text(" --processes %" PRId64, t->num_started);
    printf("interrupted after step %" PRId64 "; to resume: %s --run %s --resume%s\n", t->run.state.step,
           program, run, processes ? processes : "");
    free(program), free(run), free(processes);
}

static int train(Trainer *t, Error *error) {
    const Settings *o = &t->options;
    int64_t started_at = t->run.state.step;
    if (started_at >= o->steps && is_main(&t->processes))
        printf("this run has already done %" PRId64 " steps, and --steps is %" PRId64
               ": give a larger --steps to continue it\n",
               started_at, o->steps);
    if (o->rollback_after > 0 && t->run.saving.saved_step < 0 && save_and_wait(t, error) != 0) return -1;
    find_last_validation(&t->run, &t->processes); // before which a run may have been interrupted
    if (started_at > 0 && validation_is_due(t) && t->run.validated != started_at && validate(t, error) != 0)
        return -1;
    while (t->run.state.step < o->steps && !is_stopping(t) && !t->recovery.failed) {
        train_step(t);
        profile_steady_steps(t->run.state.step - started_at, t->model.run.stream);
        if (after_step(t, error) != 0) return -1;
    }
    finish_steps(t);
    watchdog_step(t->processes.watchdog, 0);
    if (is_main(&t->processes)) metrics_end_line(&t->run.metrics);
    if (t->recovery.failed) {
        *error = t->recovery.data_error;
        return agree(&t->processes, t->recovery.has_no_data ? -1 : 0, error);
    }
    if (may_roll_back(&t->recovery, &t->run.state) && is_unfinished(t))
        saving_finish(&t->run.saving, -1);
    else if (save_and_wait(t, error) != 0)
        return -1;
    if (is_unfinished(t)) {
        if (is_main(&t->processes)) print_resume_hint(t);
        return 0;
    }
    if (!is_stopping(t)) show_samples(t);
    if (t->model.run.profile.timing && t->run.state.step > started_at && is_main(&t->processes))
        profile_print(&t->model.run.profile, (int)(t->run.state.step - started_at), t->peak);
    return 0;
}

// ---- setting up -------------------------------------------------------------------------------------------

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
    uint64_t short_tokens;
    const size_t short_shards = count_short_shards(&t->data.train, o->sequence_length, &short_tokens);
    printf("data        %.3f M tokens in %zu shard%s, %" PRId64 " tokens per step, %.2f epochs in this run\n",
           (double)(t->data.train.num_tokens - short_tokens) * 1e-6, t->data.train.count - short_shards,
           t->data.train.count - short_shards == 1 ? "" : "s", per_step,
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
    if (choose_tokenizer(o, folder, &t->tokenizer, &t->stops, error) != 0) return -1;
    if (choose_config(o, folder, t->tokenizer, &config, ATTENTION_LARGEST_HEAD, error) != 0) return -1;
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

// All that training needs beside the model. `resume_from`: a checkpoint, or NULL.
static int set_up_training(Trainer *t, const char *resume_from, Error *error) {
    const Settings *o = &t->options;
    GPT *m = &t->model;
    optimizer_list_chunks(&m->optimizer, &m->shards, &m->parameters, o->weight_decay, m->run.stream);
    pipeline_open_batches(&t->data, m->acts.B * m->acts.T);
    queue_open(&t->queue);
    if (resume_from != NULL) {
        const SavedModel model = saved_model(m);
        if (load_training_state(&model, resume_from, &t->run.state, error) != 0) return -1;
        t->run.saving.saved_step = t->run.state.step;
    }
    if (is_main(&t->processes)) prepare_texts(&t->run, t->tokenizer, &t->stops, m->config.end_of_text);
    if (pipeline_open(&t->data, o, (int64_t)m->dims.V, t->tokenizer, &t->processes, &t->run.state, error) !=
        0)
        return -1;
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
    if (is_main(&t->processes)) metrics_end_line(&t->run.metrics);
    if (t->run.state.step > 0 && !may_roll_back(&t->recovery, &t->run.state) && !t->recovery.cannot_save) {
        const int saved = save_now(&t->run.saving, &t->run.state, &second) == 0;
        if (saved && is_main(&t->processes))
            printf("saved a checkpoint of step %" PRId64 "\n", t->run.state.step);
        if (!saved && is_main(&t->processes)) warn("%s", second.text);
    }
    if (is_main(&t->processes) && metrics_flush(&t->run.metrics, &second) != 0) warn("%s", second.text);
    comm_barrier(t->processes.comm); // nobody leaves before all are done
    exit_together(&t->processes, error);
}

static void close_down(Trainer *t) {
    training_run_close(&t->run);
    pipeline_close(&t->data);
    queue_close(&t->queue);
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
    agree_or_die(&t->processes, result, &error);
    comm_exchange(t->processes.comm, mine, sizeof(mine), all);
    for (int r = 1; r < t->processes.launch.size && result == 0; r++)
        for (int i = 0; i < NUM && result == 0; i++)
            if (all[NUM * r + i] != all[i])
                result = fail(&error, "processes 0 and %d have different %s", r, what[i]);
    free(all);
    agree_or_die(&t->processes, result, &error);
}

static int start_run(Trainer *t, Error *error) {
    const GPT *m = &t->model;
    if (!is_main(&t->processes)) return 0;
    if (open_run(&t->run, &t->options, flop_per_token(m, m->acts.T), t->peak * t->processes.launch.size,
                 error) != 0)
        return -1;
    print_banner(t);
    return 0;
}

// Model and data; where that fails for one process, all end.
static void set_up(Trainer *t, const char *folder) {
    const Settings *o = &t->options;
    Error error;
    const int samples = o->sample != NULL;
    int result = set_up_model(t, folder, &error);
    if (result == 0 && !samples) result = set_up_training(t, o->resume ? folder : NULL, &error);
    agree_or_die(&t->processes, result, &error);
    check_agreement(t, folder);
    agree_on_weights(t);
    if (samples) return;
    agree_or_die(&t->processes, start_run(t, &error), &error); // nothing is written before all agree
    const SavedModel model = saved_model(&t->model);
    agree_or_die(&t->processes, open_saving(&t->run, o, &t->processes, &model, &error), &error);
}

static void run_training(Trainer *t) {
    Error error;
    if (train(t, &error) != 0) die_saving(t, &error);
    comm_barrier(t->processes.comm); // nobody leaves before all are done
    watchdog_stop(t->processes.watchdog);
}

static void release_lock(void *lock) {
    run_close((RunLock *)lock);
}

// Becomes one of the processes that train, and joins the others.
static void join_processes(Trainer *t, int argc, char **argv) {
    Settings *o = &t->options;
    Processes *p = &t->processes;
    const int alone = o->plan || o->sample != NULL; // work for one
    const ProcessOptions options = {alone, o->processes, o->deterministic_reduce, o->deadline};
    Error error;
    p->release = release_lock;
    p->release_context = &t->run.lock;
    processes_start(p, &options, argc, argv);
    if (!o->plan && split_batch(o, p->launch.size, &error) != 0) die_once(p, &error);
    const char *refusal = o->plan ? NULL : device_open(argv, p->launch.local_rank);
    if (refusal != NULL && p->launch.size > 1) die("process %d: %s", p->launch.rank, refusal);
    if (refusal != NULL) die("%s", refusal);
    processes_join(p, &options);
    processes_set_threads(p, (int)o->threads);
}

// The folder that weights come from, or NULL.
static const char *choose_initial_folder(Trainer *t) {
    Settings *o = &t->options;
    if (o->resume || (o->sample != NULL && o->init_from == NULL)) {
        t->run.checkpoint = choose_checkpoint(&t->run, &t->processes, o->run, o->sample != NULL, INT64_MAX);
        if (t->run.checkpoint != NULL) return t->run.checkpoint;
        o->resume = 0;
        if (is_main(&t->processes))
            printf("'%s' has no checkpoint yet: starting again from step 0\n", o->run);
    }
    return o->init_from;
}

int main(int argc, char **argv) {
    static Trainer trainer;
    Trainer *t = &trainer;
    Settings *o = &t->options;
    Error error;
    t->program = argv[0];
    training_run_init(&t->run);
    open_standard_descriptors();
    host_memory_share_heap();
    int parsed = parse_options(o, argc, argv, &error);
    if (parsed > 0) {
        answer(parsed);
        close_output();
        return 0;
    }
    if (launch_read(&t->processes.launch, &error) != 0) die_of(&error);
    if (parsed < 0 || check_options(o, &error) != 0) die_once(&t->processes, &error);
    t->num_started = o->processes;
    join_processes(t, argc, argv);
    t->recovery.rolled_back_to = -1;
    t->recovery.rollback_after = o->rollback_after;
    t->recovery.outlier = o->outlier;

    if (!o->plan && o->sample == NULL)
        handle_signals(); // what takes long to set up is stopped after the first step
    const char *folder = choose_initial_folder(t);
    agree_or_die(&t->processes, describe_model(t, folder, &error), &error);
    if (o->plan) {
        const MemoryPlan plan = memory_plan(&t->model);
        const char *recompute = option_choice_name(OPTIONS, NUM_OPTIONS, o, "recompute");
        print_memory_plan(&plan, recompute, ATTENTIONS[t->model.run.attention]);
    } else {
        set_up(t, folder);
        if (o->sample != NULL)
            run_sample(t);
        else
            run_training(t);
    }
    const int interrupted = is_stopping(t) && is_unfinished(t);
    close_down(t);
    if (interrupted) return EXIT_INTERRUPTED;
    close_output();
    return 0;
}
