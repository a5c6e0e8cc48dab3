// The trainer's options: their table, checks that they do not contradict each other, how they are read, and how the
// sequences of a step are divided among processes.
#ifndef DATA_OPTIONS_SETTINGS_CUH
#define DATA_OPTIONS_SETTINGS_CUH

#include <inttypes.h>
#include "data/model/gpt_config.h"
#include "layers/dropout.h"
#include "layers/comm/processes.cuh"
#include "layers/matmul.cuh"
#include "layers/schedule.h"
#include "options.h"
#include "version.h"

typedef struct {
    const char *run, *train, *validation, *tokenizer, *init_from, *ignore_key, *sample, *prompt_ids, *end_of_text;
    int model, schedule, attention, attention_atomics, precision, matmul, matmul_search, recompute,
        stochastic_rounding, plan;
    int resume, validate_documents, overfit, profile;
    int shard, deterministic_reduce, save_synchronously;
    int64_t processes, global_batch;
    int64_t num_layers, num_heads, channels, max_sequence_length, vocab_size;
    int64_t sequence_length, batch, accumulate, steps, warmup, cooldown, max_skips, seed, threads;
    int64_t save_every, rollback_after, keep, logits_memory, validate_every, validation_batches, sample_every,
        sample_tokens, top_k;
    double dropout, learning_rate, final_learning_rate, weight_decay, beta1, beta2, epsilon, clip;
    double validation_floor, temperature, top_p, init_embedding, init_matrices, deadline;
    double save_minutes, outlier;
} Settings;

// One option per line: name, member of Settings, default, bounds or choices, help. The first option of a group is
// preceded by the group's heading.
#define INTEGER(name, member, standard, low, high, help)                                                     \
    name, OPTION_INTEGER, offsetof(Settings, member), standard, low, high, NULL, help
#define REAL(name, member, standard, low, high, help)                                                        \
    name, OPTION_REAL, offsetof(Settings, member), standard, low, high, NULL, help
#define TEXT(name, member, standard, help)                                                                   \
    name, OPTION_TEXT, offsetof(Settings, member), standard, 0, 0, NULL, help
#define FLAG(name, member, help) name, OPTION_FLAG, offsetof(Settings, member), "0", 0, 0, NULL, help
#define CHOICE(name, member, standard, choices, help)                                                        \
    name, OPTION_CHOICE, offsetof(Settings, member), standard, 0, 0, choices, help
// clang-format off
static const Option OPTIONS[] = {
    {"Run", TEXT("run", run, "runs/gpt", "folder of the run: its options, metrics and checkpoints")},
    {NULL, FLAG("resume", resume, "resume the run from its newest intact checkpoint, with the options it was started with unless others are given")},
    {NULL, TEXT("init-from", init_from, NULL, "start from the weights in a Hugging Face GPT-2 folder")},
    {NULL, TEXT("ignore-key", ignore_key, NULL, "keys of config.json and tokenizer.json, separated by commas, to ignore although this trainer does not know or support them")},
    {NULL, INTEGER("steps", steps, "1000", 1, 1e12, "number of optimizer steps")},
    {NULL, INTEGER("save-every", save_every, "500", 0, 1e12, "steps between checkpoints; 0: no checkpoints by steps")},
    {NULL, REAL("save-minutes", save_minutes, "15", 0, 1e6, "minutes between checkpoints; 0: no checkpoints by time")},
    {NULL, FLAG("save-synchronously", save_synchronously, "pause training while a checkpoint is written")},
    {NULL, INTEGER("keep", keep, "2", 1, 1e6, "how many checkpoints to keep")},
    {NULL, INTEGER("seed", seed, "1337", 0, 9e15, "seed of all random numbers: initialization, data order, dropout, sampling")},
    {NULL, INTEGER("threads", threads, "0", 0, MAX_THREADS, "CPU threads; 0: one per core; results do not depend on it")},

    {"Data", TEXT("train", train, NULL, "token shards to train on; quote patterns: 'data/x_train_*.bin'")},
    {NULL, TEXT("validation", validation, NULL, "token shards to validate on")},
    {NULL, TEXT("tokenizer", tokenizer, NULL, "tokenizer.json, or a folder that contains one; needed for samples as text, for bits per byte and for the vocabulary size")},
    {NULL, TEXT("end-of-text", end_of_text, NULL, "token that separates documents; by default tokenizer_config.json's eos_token, or else <|endoftext|>")},
    {NULL, INTEGER("validate-every", validate_every, "250", 0, 1e12, "steps between validations; 0: only at the end")},
    {NULL, INTEGER("validation-batches", validation_batches, "20", 1, 1e9, "batches of each process in a validation")},
    {NULL, FLAG("validate-documents", validate_documents, "validate on whole documents, each from its start")},
    {NULL, REAL("validation-floor", validation_floor, "0", 0, 100, "lowest possible bits per byte, shown beside the validation's; 0: not known")},

    {"Model", CHOICE("model", model, "free", GPT_PRESET_NAMES, "shape by name; free: as the next options say")},
    {NULL, INTEGER("num-layers", num_layers, "4", 1, 1000, "number of layers, L")},
    {NULL, INTEGER("num-heads", num_heads, "4", 1, 1000, "number of attention heads, NH; must divide the channels")},
    {NULL, INTEGER("channels", channels, "128", 8, 65536, "width of the model, C")},
    {NULL, INTEGER("max-sequence-length", max_sequence_length, "0", 0, 1e6, "number of positions the model has; 0: the sequence length")},
    {NULL, INTEGER("vocab-size", vocab_size, "0", 0, 1e8, "number of tokens, V; 0: the tokenizer's")},
    {NULL, REAL("init-embedding", init_embedding, "0.02", 0, 10, "standard deviation of the initial token embedding; narrow models learn faster with more")},
    {NULL, REAL("init-matrices", init_matrices, "0.02", 0, 10, "standard deviation of the blocks' initial matrices; those that write to the residual stream are divided by sqrt(2 L)")},
    {NULL, REAL("dropout", dropout, "0", 0, 0.99, "dropout on the embedding, attention and both residual branches, in steps of 1/256")},

    {"Training", INTEGER("batch", batch, "12", 1, 1e6, "sequences in a micro-step of one process, B")},
    {NULL, INTEGER("sequence-length", sequence_length, "256", 1, 1e6, "tokens in a sequence, T")},
    {NULL, INTEGER("accumulate", accumulate, "1", 1, 1e6, "micro-steps in a step (gradient accumulation)")},
    {NULL, INTEGER("global-batch", global_batch, "0", 0, 1e9, "sequences in a step of all processes together, which sets --accumulate; 0: batch x accumulate x processes")},
    {NULL, REAL("learning-rate", learning_rate, "6e-4", 0, 10, "highest learning rate, reached after warm-up")},
    {NULL, REAL("final-learning-rate", final_learning_rate, "0.1", 0, 1, "last learning rate, as a fraction of the highest")},
    {NULL, CHOICE("schedule", schedule, "cosine", "cosine|linear|constant|wsd", "learning rate after warm-up; wsd: constant, then a linear cool-down")},
    {NULL, INTEGER("warmup", warmup, "100", 0, 1e9, "steps of linear warm-up; unless given, at most a tenth of the steps")},
    {NULL, INTEGER("cooldown", cooldown, "0", 0, 1e9, "steps of the cool-down of wsd; 0: a fifth of the steps")},
    {NULL, REAL("weight-decay", weight_decay, "0.1", 0, 10, "weight decay, on matrices and embeddings only")},
    {NULL, REAL("beta1", beta1, "0.9", 0, 0.999999, "AdamW's beta 1")},
    {NULL, REAL("beta2", beta2, "0.95", 0, 0.999999, "AdamW's beta 2")},
    {NULL, REAL("epsilon", epsilon, "1e-8", 1e-20, 1, "AdamW's epsilon")},
    {NULL, REAL("clip", clip, "1", 0, 1e9, "largest norm of the whole gradient; 0: no clipping")},
    {NULL, INTEGER("max-skips", max_skips, "5", 1, 1e9, "training stops after this many skipped steps in a row; a step with a non-finite loss or gradient is skipped")},
    {NULL, INTEGER("rollback-after", rollback_after, "0", 0, 1e9, "after this many steps in a row whose loss is an outlier or not finite, return to the last checkpoint and skip the data that led there; 0: never")},
    {NULL, REAL("outlier", outlier, "8", 0.1, 1e6, "a loss is an outlier if it is this many robust deviations above the median of the last 128")},

    {"Speed and memory", CHOICE("attention", attention, "auto", "auto|naive|flash|cudnn", "attention kernel; auto: flash; the choice changes speed and memory, not results (except cudnn, whose dropout masks differ)")},
    {NULL, FLAG("attention-atomics", attention_atomics, "let flash attention on a GPU add up the gradients of queries in any order: faster, but not bitwise reproducible")},
    {NULL, CHOICE("precision", precision, "auto", "auto|fp32|bf16", "precision of matmul inputs on the CPU (on a GPU, the build's); sums and master weights stay in fp32")},
    {NULL, CHOICE("matmul", matmul, "auto", "auto|cublas|own", "matrix product kernels on a GPU; auto: cuBLAS where the build has it")},
    {NULL, FLAG("matmul-search", matmul_search, "time all algorithms that cuBLAS proposes for each product, instead of taking the first")},
    {NULL, CHOICE("recompute", recompute, "none", "none|activation|norm|block", "activations that the backward pass computes again instead of storing them, each level including the ones before; results stay the same")},
    {NULL, INTEGER("logits-memory", logits_memory, "0", 0, 1e15, "most bytes for logits, which are then computed in pieces; 0: no limit")},
    {NULL, FLAG("stochastic-rounding", stochastic_rounding, "round weights to bf16 up or down at random, so that they are right on average (bf16 builds)")},
    {NULL, FLAG("plan", plan, "do not train, but print the memory that this model, batch and sequence length take, on the CPU and on GPUs (dev/plan predicts the speed of many GPUs)")},

    {"Many processes", INTEGER("processes", processes, "0", 0, 4096, "start this many processes here, on a GPU each; 0: those that torchrun, mpirun or srun started, or one")},
    {NULL, CHOICE("shard", shard, "none", "none|optimizer|gradients", "what is divided among processes: optimizer state and master weights (ZeRO-1), gradients too (ZeRO-2)")},
    {NULL, FLAG("deterministic-reduce", deterministic_reduce, "add up gradients in the order of processes, for the same bits every time (always so over MPI)")},
    {NULL, REAL("deadline", deadline, "120", 0, 1e6, "seconds after which a process that does not join, answer or finish a step counts as lost (for a step, at least 10 times its usual duration); 0: never")},

    {"Samples", TEXT("sample", sample, NULL, "do not train, but continue this text with the run's newest checkpoint (or --init-from)")},
    {NULL, TEXT("prompt-ids", prompt_ids, NULL, "do not train, but continue exactly these token ids, such as 464,3290")},
    {NULL, INTEGER("sample-every", sample_every, "0", 0, 1e12, "steps between samples during training; 0: only at the end")},
    {NULL, INTEGER("sample-tokens", sample_tokens, "200", 1, 1e6, "most tokens to generate")},
    {NULL, REAL("temperature", temperature, "0.8", 0, 100, "sampling temperature; 0: always the most probable token")},
    {NULL, INTEGER("top-k", top_k, "0", 0, 1e9, "sample from the k most probable tokens only; 0: from all")},
    {NULL, REAL("top-p", top_p, "1", 1e-6, 1, "sample from the most probable tokens that together have this probability")},

    {"Diagnosis", FLAG("overfit", overfit, "train on the first batch again and again")},
    {NULL, FLAG("profile", profile, "print at the end where the time of a step was spent")},
};
// clang-format on
enum { NUM_OPTIONS = sizeof(OPTIONS) / sizeof(OPTIONS[0]) };

static const char *const PRECISIONS[] = {"fp32", "bf16"};
static const char *const ATTENTIONS[] = {"auto", "naive", "flash", "cudnn"};

static Precision precision_of(const Settings *o) {
    return o->precision == 0 ? (Precision)DEVICE_IS_BF16 : (Precision)(o->precision - 1);
}

// ---- contradictions ---------------------------------------------------------------------------------------

// Returns 1 if the option was given on the command line with a value other than the one `wanted`.
static int contradicts(const char *option, int64_t value, int64_t wanted) {
    return options_given(OPTIONS, NUM_OPTIONS, option) && value != wanted;
}

// Refuses options that contradict each other or what this machine can do. Returns 0, or -1 with a sentence.
static int check_options(const Settings *o, Error *error) {
    if (dropout_threshold(o->dropout) == 0)
        return fail(error,
                    "--dropout %g is rounded to a multiple of 1/256, and that drops nothing or everything",
                    o->dropout);
    if (!matmul_precision_available(precision_of(o)))
        return fail(error,
                    "this build does not compute in %s on this machine: for a GPU, build with make "
                    "PRECISION=%s; on a "
                    "CPU, bf16 needs AVX512-BF16",
                    PRECISIONS[precision_of(o)], PRECISIONS[precision_of(o)]);
    if (!matmul_library_available((MatmulLibrary)o->matmul))
        return fail(error, "this build has no cuBLAS: use --matmul own");
    if (o->stochastic_rounding && sizeof(floatX) == sizeof(float))
        return fail(
            error, "--stochastic-rounding is for builds with weights in bf16, and this one has them in fp32");
    if (options_given(OPTIONS, NUM_OPTIONS, "init-from") && o->resume)
        return fail(error, "--init-from starts a new run and --resume continues one: give only one of them");
    if (o->model && !o->resume &&
        (contradicts("num-layers", o->num_layers, GPT_PRESETS[o->model].num_layers) ||
         contradicts("num-heads", o->num_heads, GPT_PRESETS[o->model].num_heads) ||
         contradicts("channels", o->channels, GPT_PRESETS[o->model].channels)))
        return fail(error, "--model sets the shape; --num-layers, --num-heads and --channels can be given "
                           "with --model free only");
    if (o->validate_documents && o->tokenizer == NULL && o->init_from == NULL && !o->resume)
        return fail(error, "--validate-documents needs --tokenizer, which says where a document ends");
    if (o->prompt_ids != NULL && o->sample[0] != '\0')
        return fail(error, "--prompt-ids and --sample are both prompts: give only one of them");
    if (o->sample == NULL && o->train == NULL && !o->plan)
        return fail(error, "there is nothing to train on: give --train 'PATTERN' of token shards (-h lists "
                           "the most important options)");
    if (o->sample == NULL && o->schedule == SCHEDULE_WSD && o->warmup + o->cooldown > o->steps)
        return fail(error, "--warmup %" PRId64 " and --cooldown %" PRId64 " do not fit into --steps %" PRId64,
                    o->warmup, o->cooldown, o->steps);
    if (o->sample == NULL && !o->resume && o->steps <= o->warmup &&
        options_given(OPTIONS, NUM_OPTIONS, "warmup"))
        return fail(error, "--warmup %" PRId64 " must be less than --steps %" PRId64, o->warmup, o->steps);
    return 0;
}

// ---- reading options --------------------------------------------------------------------------------------

// Returns the name of an option of the model that differs, because a resumed run cannot change those; NULL: none does.
static const char *changed_model_option(const Settings *a, const Settings *b) {
    if (a->model != b->model) return "model";
    if (a->num_layers != b->num_layers) return "num-layers";
    if (a->num_heads != b->num_heads) return "num-heads";
    if (a->channels != b->channels) return "channels";
    if (a->max_sequence_length != b->max_sequence_length) return "max-sequence-length";
    if (a->vocab_size != b->vocab_size) return "vocab-size";
    return NULL;
}

static int folder_contains(const char *folder, const char *name) {
    char *path = format_text("%s/%s", folder, name);
    const int exists = file_exists(path);
    free(path);
    return exists;
}

// Refuses the folder of a checkpoint where that of a run is expected, and vice versa.
static int check_folders(const Settings *o, Error *error) {
    const int uses_run = o->resume || ((o->sample != NULL || o->prompt_ids != NULL) && o->init_from == NULL);
    if (uses_run && !folder_contains(o->run, "checkpoints") && folder_contains(o->run, "config.json"))
        return fail(error,
                    "'%s' is the folder of a model, not of a run: give --run the folder above its "
                    "'checkpoints', or use "
                    "--init-from",
                    o->run);
    if (o->init_from != NULL && !folder_contains(o->init_from, "config.json") &&
        folder_contains(o->init_from, "checkpoints"))
        return fail(error,
                    "'%s' is the folder of a run: give --init-from one of the folders in '%s/checkpoints'",
                    o->init_from, o->init_from);
    return 0;
}

// Reads the saved options of the run that is resumed; those given on the command line override them.
static int parse_resumed(Settings *o, int argc, char **argv, Error *error) {
    char *file = format_text("@%s/options.txt", o->run), *words[] = {argv[0], file};
    if (!file_exists(file + 1)) return fail(error, "there is no run to resume in '%s'", o->run);
    options_defaults(OPTIONS, NUM_OPTIONS, o);
    int result = options_parse(OPTIONS, NUM_OPTIONS, o, 2, words, NULL, 0, NULL, error);
    free(file);
    options_forget_given();
    Settings saved = *o;
    if (result == 0) result = options_parse(OPTIONS, NUM_OPTIONS, o, argc, argv, NULL, 0, NULL, error);
    const char *changed = result == 0 ? changed_model_option(&saved, o) : NULL;
    return changed
               ? fail(error, "--%s is a part of the run's model and cannot be changed by --resume", changed)
               : result;
}

static int parse_options(Settings *o, int argc, char **argv, Error *error) {
    options_defaults(OPTIONS, NUM_OPTIONS, o);
    int result = options_parse(OPTIONS, NUM_OPTIONS, o, argc, argv, NULL, 0, NULL, error);
    if (result == 0) result = check_folders(o, error);
    if (result == 0 && o->resume) result = parse_resumed(o, argc, argv, error);
    if (o->prompt_ids != NULL && o->sample == NULL) o->sample = "";
    if (result != 0 || o->resume) return result;
    if (!options_given(OPTIONS, NUM_OPTIONS, "warmup") && o->warmup > o->steps / 10)
        o->warmup = o->steps / 10;
    return result;
}

// Prints the options that most people need, on one screen.
static void print_usage(void) {
    printf("usage: train_gpt --train 'x_train_*.bin' --validation 'x_val_*.bin' [options]\n"
           "       train_gpt --run FOLDER --resume\n"
           "       train_gpt --run FOLDER --sample \"Once upon a time\"\n"
           "  --run FOLDER            where options, metrics and checkpoints are kept\n"
           "  --train 'PATTERN'       token shards to train on (data/tokenize makes them)\n"
           "  --validation 'PATTERN'  token shards to validate on\n"
           "  --tokenizer FILE        tokenizer.json of the shards, for samples as text\n"
           "  --model gpt2-124M       a shape by name; or, for a shape of your own:\n"
           "  --num-layers N, --num-heads N, --channels N\n"
           "  --init-from FOLDER      start from the weights of a Hugging Face GPT-2\n"
           "  --sequence-length N     tokens in a sequence\n"
           "  --batch N               sequences in a micro-step of one process\n"
           "  --accumulate N          micro-steps in a step\n"
           "  --steps N               optimizer steps\n"
           "  --learning-rate X       the highest learning rate, after warm-up\n"
           "  --dropout X             dropout on embedding, attention and residual branches\n"
           "  --validate-every N      steps between validations\n"
           "  --save-every N          steps between checkpoints\n"
           "  --processes N           start N processes here, on a GPU each\n"
           "  --plan                  print the memory that this would take, and stop\n"
           "  --help                  all options, with defaults and bounds\n");
}

static void print_help(void) {
    printf("Trains a GPT-2 on token shards, or continues a text with a trained model.\n\n"
           "    train_gpt --train 'data_train_*.bin' --validation 'data_val_*.bin' \\\n"
           "              --tokenizer tokenizer.json\n"
           "    train_gpt --run runs/x --resume\n"
           "    train_gpt --run runs/x --sample \"Once upon a time\"\n"
           "    train_gpt --processes 8 --train ...  (or torchrun, mpirun, srun)\n\n"
           "Options may also be read from a file, @FILE, with one or more on a line.\n");
    options_help(OPTIONS, NUM_OPTIONS, stdout);
    printf("\nExit status\n"
           "  0  success\n"
           "  %d  user error (see the message)\n"
           "  %d  a disk could not be read or written\n"
           "  %d  another process was lost\n"
           "  %d  too many steps were skipped\n"
           "  %d  interrupted by SIGINT, SIGTERM, SIGHUP or SIGUSR1, after saving\n"
           "     (a second signal ends the program at once)\n",
           EXIT_USER, EXIT_IO, EXIT_LOST_PEER, EXIT_SKIPPED, EXIT_INTERRUPTED);
}

static void print_version(void) {
    static const char *const device = !DEVICE_IS_GPU   ? "the CPU"
                                      : DEVICE_IS_BF16 ? "GPUs, in bf16"
                                                       : "GPUs, in fp32";
    printf("train_gpt %s, built for %s\n", VERSION, device);
}

// Prints what -h, --help or --version asks for. `question`: the result of options_parse.
static void answer(int question) {
    if (question == OPTIONS_HELP)
        print_help();
    else if (question == OPTIONS_USAGE)
        print_usage();
    else
        print_version();
}

// ---- among processes --------------------------------------------------------------------------------------

// Divides the sequences of a step among the micro-steps of `size` processes. --global-batch is kept, even if a run is
// resumed with another number of processes. Returns 0, or -1 with a sentence.
static int split_batch(Settings *o, int64_t size, Error *error) {
    const int batch_given = options_given(OPTIONS, NUM_OPTIONS, "batch");
    const int accumulate_given = options_given(OPTIONS, NUM_OPTIONS, "accumulate");
    const int global_given = options_given(OPTIONS, NUM_OPTIONS, "global-batch");
    if (o->global_batch == 0 || ((batch_given || accumulate_given) && !global_given))
        o->global_batch = o->batch * o->accumulate * size;
    const int64_t each = o->global_batch / size;
    if (o->global_batch % size != 0)
        return fail(error,
                    "a step of %" PRId64 " sequences (--global-batch) cannot be divided evenly among %" PRId64
                    " processes",
                    o->global_batch, size);
    if (batch_given && each % o->batch != 0)
        return fail(error,
                    "--global-batch %" PRId64 " is not a multiple of --batch %" PRId64 " times %" PRId64
                    " processes",
                    o->global_batch, o->batch, size);
    if (o->batch > each) o->batch = each;
    while (each % o->batch != 0) o->batch--;
    if (global_given && accumulate_given && o->accumulate != each / o->batch)
        return fail(error,
                    "--global-batch %" PRId64 " takes %" PRId64 " micro-steps, not --accumulate %" PRId64,
                    o->global_batch, each / o->batch, o->accumulate);
    o->accumulate = each / o->batch;
    return 0;
}

// Returns a checksum of the options that must be the same in all processes. Paths and threads may differ between hosts.
static int64_t options_checksum(const Settings *o) {
    Settings same = *o;
    char *text = NULL;
    size_t size = 0;
    FILE *stream = open_memstream(&text, &size);
    same.run = same.train = same.validation = same.tokenizer = same.init_from = NULL;
    same.threads = 0;
    options_write(OPTIONS, NUM_OPTIONS, &same, stream);
    fclose(stream);
    uint32_t checksum = crc32c(0, text, size);
    free(text);
    return checksum;
}

#endif
