// The trainer's options: what there is to set, what contradicts what, how they are read, saved and divided among processes.
#ifndef SETTINGS_CUH
#define SETTINGS_CUH

#include <inttypes.h>
#include "data/options.h"
#include "gpt.cuh"
#include "layers/schedule.h"

enum { MOST_THREADS = 4096 };
typedef enum { MODEL_FREE, MODEL_124M, MODEL_350M, MODEL_774M, MODEL_1558M } ModelName;

typedef struct {
    const char *run, *train, *validation, *tokenizer, *init_from, *ignore_key, *sample;
    int model, schedule, attention, attention_atomics, precision, matmul, matmul_search, recompute,
        stochastic_rounding, plan;
    int resume, validate_documents, overfit, profile;
    int shard, deterministic_reduce, save_synchronously;
    int plan_gpu;
    int64_t processes, global_batch, plan_node;
    int64_t num_layers, num_heads, channels, max_sequence_length, vocab_size;
    int64_t sequence_length, batch, accumulate, steps, warmup, cooldown, max_skips, seed, threads;
    int64_t save_every, rollback_after, keep, logits_memory, validate_every, validation_batches, sample_every,
        sample_tokens, top_k;
    double dropout, learning_rate, final_learning_rate, weight_decay, beta1, beta2, epsilon, clip;
    double validation_floor, temperature, top_p, init_embedding, init_matrices, deadline;
    double save_minutes, outlier;
    double plan_link, plan_network, plan_utilisation;
} Settings;

// One option a line: name, member of Settings, default, bounds or choices, help. Above the first of a group,
// its heading.
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
    {"Run", TEXT("run", run, "runs/gpt", "folder of the run: options, metrics, checkpoints")},
    {NULL, FLAG("resume", resume, "go on from the run's newest whole checkpoint, with its options where no others are given")},
    {NULL, TEXT("init-from", init_from, NULL, "begin with the weights of a Hugging Face GPT-2 folder")},
    {NULL, TEXT("ignore-key", ignore_key, NULL, "keys of config.json and tokenizer.json, separated by commas, to ignore although they are not known or have another value than this trainer's")},
    {NULL, INTEGER("steps", steps, "1000", 1, 1e12, "optimizer steps")},
    {NULL, INTEGER("save-every", save_every, "500", 0, 1e12, "steps between checkpoints; 0: none by steps")},
    {NULL, REAL("save-minutes", save_minutes, "15", 0, 1e6, "minutes between checkpoints; 0: none by time")},
    {NULL, FLAG("save-synchronously", save_synchronously, "training waits while a checkpoint is written, rather than go on beside it")},
    {NULL, INTEGER("keep", keep, "2", 1, 1e6, "how many checkpoints to keep")},
    {NULL, INTEGER("seed", seed, "1337", 0, 9e15, "random numbers of initialisation, order, dropout and sampling")},
    {NULL, INTEGER("threads", threads, "0", 0, MOST_THREADS, "0: one a core; results do not depend on it")},

    {"Data", TEXT("train", train, NULL, "token shards to train on (quote a pattern: 'data/x_train_*.bin')")},
    {NULL, TEXT("validation", validation, NULL, "token shards to validate on")},
    {NULL, TEXT("tokenizer", tokenizer, NULL, "tokenizer.json, or a folder with one; for text samples, bits per byte, V")},
    {NULL, INTEGER("validate-every", validate_every, "250", 0, 1e12, "steps between validations; 0: only at the end")},
    {NULL, INTEGER("validation-batches", validation_batches, "20", 1, 1e9, "batches of each process in a validation")},
    {NULL, FLAG("validate-documents", validate_documents, "validate on whole documents from their start")},
    {NULL, REAL("validation-floor", validation_floor, "0", 0, 100, "bits per byte to show beside the validation's; 0: none")},

    {"Model", CHOICE("model", model, "free", "free|gpt2-124M|gpt2-350M|gpt2-774M|gpt2-1558M", "a shape by name, or free")},
    {NULL, INTEGER("num-layers", num_layers, "4", 1, 1000, "L")},
    {NULL, INTEGER("num-heads", num_heads, "4", 1, 1000, "NH, divides the channels")},
    {NULL, INTEGER("channels", channels, "128", 8, 65536, "C")},
    {NULL, INTEGER("max-sequence-length", max_sequence_length, "0", 0, 1e6, "positions of the model; 0: the sequence length")},
    {NULL, INTEGER("vocab-size", vocab_size, "0", 0, 1e8, "V; 0: the tokenizer's")},
    {NULL, REAL("init-embedding", init_embedding, "0.02", 0, 10, "deviation of the initial token embedding; narrow models learn faster from more")},
    {NULL, REAL("init-matrices", init_matrices, "0.02", 0, 10, "of the blocks' matrices; those into the residual stream / sqrt(2 L)")},
    {NULL, REAL("dropout", dropout, "0", 0, 0.99, "on embedding, attention and both residual branches; steps of 1/256")},

    {"Training", INTEGER("batch", batch, "12", 1, 1e6, "B, sequences in a micro-step of one process")},
    {NULL, INTEGER("sequence-length", sequence_length, "256", 1, 1e6, "T")},
    {NULL, INTEGER("accumulate", accumulate, "1", 1, 1e6, "micro-steps in a step")},
    {NULL, INTEGER("global-batch", global_batch, "0", 0, 1e9, "sequences in a step, of all processes; sets --accumulate. 0: batch x accumulate x processes")},
    {NULL, REAL("learning-rate", learning_rate, "6e-4", 0, 10, "the highest, after warm-up")},
    {NULL, REAL("final-learning-rate", final_learning_rate, "0.1", 0, 1, "the last, as a fraction of the highest")},
    {NULL, CHOICE("schedule", schedule, "cosine", "cosine|linear|constant|wsd", "after warm-up; wsd: constant, then a linear cool-down")},
    {NULL, INTEGER("warmup", warmup, "100", 0, 1e9, "steps of linear warm-up; if not given, at most a tenth of the steps")},
    {NULL, INTEGER("cooldown", cooldown, "0", 0, 1e9, "steps of wsd's cool-down; 0: a fifth of the steps")},
    {NULL, REAL("weight-decay", weight_decay, "0.1", 0, 10, "on matrices and embeddings only")},
    {NULL, REAL("beta1", beta1, "0.9", 0, 0.999999, "of AdamW")},
    {NULL, REAL("beta2", beta2, "0.95", 0, 0.999999, "of AdamW")},
    {NULL, REAL("epsilon", epsilon, "1e-8", 1e-20, 1, "of AdamW")},
    {NULL, REAL("clip", clip, "1", 0, 1e9, "largest global gradient norm; 0: no clipping")},
    {NULL, INTEGER("max-skips", max_skips, "5", 1, 1e9, "steps with a non-finite loss or gradient skipped in a row before training stops")},
    {NULL, INTEGER("rollback-after", rollback_after, "0", 0, 1e9, "after so many steps in a row with a loss that is not finite or an outlier, go back to the last checkpoint and pass over that data; 0: never")},
    {NULL, REAL("outlier", outlier, "8", 0.1, 1e6, "deviations above the median of the last 128 losses that make one an outlier")},

    {"Speed and memory", CHOICE("attention", attention, "auto", "auto|naive|flash|cudnn", "changes speed and memory, not results, but for cudnn's dropout, which has masks of its own")},
    {NULL, FLAG("attention-atomics", attention_atomics, "flash on a GPU adds up gradients of queries in any order: faster, but not the same bits each time")},
    {NULL, CHOICE("precision", precision, "auto", "auto|fp32|bf16", "of matmul inputs on the CPU; on a GPU the build's; sums and master weights stay fp32")},
    {NULL, CHOICE("matmul", matmul, "auto", "auto|cublas|own", "whose matrix products; auto: cuBLAS where the build has it")},
    {NULL, FLAG("matmul-search", matmul_search, "time cuBLAS's proposals for every product before choosing, rather than take its first")},
    {NULL, CHOICE("recompute", recompute, "none", "none|gelu|layernorm|block", "activations that backward computes again, each including the ones before; results stay the same")},
    {NULL, INTEGER("logits-memory", logits_memory, "0", 0, 1e15, "the most bytes for logits, which are then computed in pieces; 0: no limit")},
    {NULL, FLAG("stochastic-rounding", stochastic_rounding, "round weights to bf16 up or down at random, right on average (bf16 builds)")},
    {NULL, FLAG("plan", plan, "no training: print the memory this model, batch and sequence length take, on the CPU and on GPUs, and a model of many GPUs")},
    {NULL, CHOICE("plan-gpu", plan_gpu, "h100", "a100-40|a100-80|h100|h200|b200|l40s|rtx4090|rtx5090", "of the plan for many")},
    {NULL, INTEGER("plan-node", plan_node, "8", 1, 1024, "GPUs in a node")},
    {NULL, REAL("plan-link", plan_link, "0", 0, 1e6, "GB/s between GPUs of a node, one direction; 0: what is usual for them")},
    {NULL, REAL("plan-network", plan_network, "0", 0, 1e6, "GB/s of network for each GPU; 0: what is usual")},
    {NULL, REAL("plan-utilisation", plan_utilisation, "0", 0, 1, "share of its peak that a GPU gives; 0: what others publish")},

    {"Many processes", INTEGER("processes", processes, "0", 0, 4096, "start so many here, on a GPU one each; 0: as torchrun, mpirun or srun started them, or one")},
    {NULL, CHOICE("shard", shard, "none", "none|optimizer|gradients", "what processes divide among them: optimizer state and master weights (ZeRO-1), gradients too (ZeRO-2)")},
    {NULL, FLAG("deterministic-reduce", deterministic_reduce, "add up gradients in the order of processes: the same bits each time (over MPI always)")},
    {NULL, REAL("deadline", deadline, "120", 0, 1e6, "seconds until processes that do not come, answer or finish a step count as lost; steps: or 10 usual ones; 0: never")},

    {"Samples", TEXT("sample", sample, NULL, "no training: continue this text with the run's newest checkpoint (or --init-from)")},
    {NULL, INTEGER("sample-every", sample_every, "0", 0, 1e12, "steps between samples while training; 0: only at the end")},
    {NULL, INTEGER("sample-tokens", sample_tokens, "200", 1, 1e6, "the most to generate")},
    {NULL, REAL("temperature", temperature, "0.8", 0, 100, "0: always the most probable token")},
    {NULL, INTEGER("top-k", top_k, "0", 0, 1e9, "only the k most probable tokens; 0: all")},
    {NULL, REAL("top-p", top_p, "1", 1e-6, 1, "only the most probable tokens that together have this probability")},

    {"Study", FLAG("overfit", overfit, "train on the first batch again and again")},
    {NULL, FLAG("profile", profile, "at the end, a table of where the time of a step went")},
};
// clang-format on
enum { NUM_OPTIONS = sizeof(OPTIONS) / sizeof(OPTIONS[0]) };

static const char *const PRECISIONS[] = {"fp32", "bf16"};
static const char *const ATTENTIONS[] = {"auto", "naive", "flash", "cudnn"};

static Precision precision_of(const Settings *o) {
    return o->precision == 0 ? (Precision)DEVICE_IS_BF16 : (Precision)(o->precision - 1);
}

static const struct {
    int64_t num_layers, num_heads, channels;
} MODEL_SHAPES[] = {{0, 0, 0}, {12, 12, 768}, {24, 16, 1024}, {36, 20, 1280}, {48, 25, 1600}};

// ---- what contradicts what --------------------------------------------------------------------------------

static int contradicts(const char *option, int64_t value, int64_t wanted) {
    return options_given(OPTIONS, NUM_OPTIONS, option) && value != wanted;
}

// Options that contradict each other or what the machine can do.
static int check_options(const Settings *o, Error *error) {
    if (dropout_threshold(o->dropout) == 0)
        return fail(error, "--dropout %g rounds to dropping nothing or everything; it has steps of 1/256",
                    o->dropout);
    if (!matmul_precision_available(precision_of(o)))
        return fail(error,
                    "this build, here, does not compute in %s: on a GPU build with make PRECISION=%s, on a "
                    "processor bf16 needs AVX512-BF16",
                    PRECISIONS[precision_of(o)], PRECISIONS[precision_of(o)]);
    if (!matmul_library_available((MatmulLibrary)o->matmul))
        return fail(error, "this build has no cuBLAS: use --matmul own");
    if (o->stochastic_rounding && sizeof(floatX) == sizeof(float))
        return fail(error, "--stochastic-rounding is for weights in bf16; this build has them in fp32");
    if (options_given(OPTIONS, NUM_OPTIONS, "init-from") && o->resume)
        return fail(error, "--init-from and --resume contradict each other");
    if (o->model && !o->resume &&
        (contradicts("num-layers", o->num_layers, MODEL_SHAPES[o->model].num_layers) ||
         contradicts("num-heads", o->num_heads, MODEL_SHAPES[o->model].num_heads) ||
         contradicts("channels", o->channels, MODEL_SHAPES[o->model].channels)))
        return fail(
            error,
            "--model sets the shape; give --num-layers, --num-heads and --channels only with --model free");
    if (o->validate_documents && o->tokenizer == NULL)
        return fail(error, "--validate-documents needs --tokenizer, to know the end of a document");
    if (o->sample == NULL && o->train == NULL && !o->plan)
        return fail(error, "nothing to train on: give --train SHARDS; see --help");
    if (o->sample == NULL && o->schedule == SCHEDULE_WSD && o->warmup + o->cooldown > o->steps)
        return fail(error, "--warmup %" PRId64 " and --cooldown %" PRId64 " do not fit into --steps %" PRId64,
                    o->warmup, o->cooldown, o->steps);
    if (o->sample == NULL && !o->resume && o->steps <= o->warmup &&
        options_given(OPTIONS, NUM_OPTIONS, "warmup"))
        return fail(error, "--warmup %" PRId64 " leaves nothing of --steps %" PRId64, o->warmup, o->steps);
    return 0;
}

// ---- reading them -----------------------------------------------------------------------------------------

// Fields that belong to the model: a resumed run cannot change them.
static const char *changed_model_option(const Settings *a, const Settings *b) {
    if (a->model != b->model) return "model";
    if (a->num_layers != b->num_layers) return "num-layers";
    if (a->num_heads != b->num_heads) return "num-heads";
    if (a->channels != b->channels) return "channels";
    if (a->max_sequence_length != b->max_sequence_length) return "max-sequence-length";
    if (a->vocab_size != b->vocab_size) return "vocab-size";
    return NULL;
}

// A resumed run begins with its saved options; those given now win.
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
               ? fail(error, "--%s belongs to the model of the run and cannot change on --resume", changed)
               : result;
}

static int parse_options(Settings *o, int argc, char **argv, Error *error) {
    options_defaults(OPTIONS, NUM_OPTIONS, o);
    int result = options_parse(OPTIONS, NUM_OPTIONS, o, argc, argv, NULL, 0, NULL, error);
    if (result == 0 && o->resume) return parse_resumed(o, argc, argv, error);
    if (!options_given(OPTIONS, NUM_OPTIONS, "warmup") && o->warmup > o->steps / 10)
        o->warmup = o->steps / 10;
    return result;
}

static void print_help(void) {
    printf(
        "Trains a GPT-2 on token shards, or continues a text with a trained one.\n\n"
        "    ./train_gpt --train 'data_train_*.bin' --validation 'data_val_*.bin' --tokenizer "
        "tokenizer.json\n"
        "    ./train_gpt --run runs/x --resume\n"
        "    ./train_gpt --run runs/x --sample \"Once upon a time\"\n"
        "    ./train_gpt --processes 8 --train ...   (or started by torchrun --no-python, mpirun, srun)\n");
    options_help(OPTIONS, NUM_OPTIONS, stdout);
    printf("\nExit status: 0 done; %d an error that is yours to mend; %d the disk did not read or write; %d "
           "another "
           "process was lost;\n%d too many steps were skipped; %d interrupted by SIGINT, SIGTERM, SIGHUP or "
           "SIGUSR1, and "
           "saved (a second signal ends at once)\n",
           EXIT_USER, EXIT_IO, EXIT_LOST_PEER, EXIT_SKIPPED, EXIT_INTERRUPTED);
}

// ---- among processes --------------------------------------------------------------------------------------

// The sequences of a step over micro-steps of `size` processes: --global-batch is kept, also where a run is resumed with
// other processes than it had.
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
                    "--global-batch %" PRId64 " is no multiple of --batch %" PRId64 " times %" PRId64
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

// Of all options that must be the same everywhere: paths and threads may differ from host to host.
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
