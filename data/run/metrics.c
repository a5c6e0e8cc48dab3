#define _GNU_SOURCE
#include "metrics.h"

#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>
#include "layers/base/progress.h"

// Returns the step of a line of metrics.jsonl, which always begins with {"step": N; -1 for any other line.
static int64_t step_of_line(const char *line) {
    static const char start[] = "{\"step\": ";
    if (strncmp(line, start, sizeof(start) - 1) != 0) return -1;
    char *end;
    const long long step = strtoll(line + sizeof(start) - 1, &end, 10);
    return *end == ',' ? step : -1;
}

// Returns the number of bytes of the whole lines up to step `done`, which come first. Sets *validated if the last of
// these steps was validated.
static size_t measure_lines(const char *text, int64_t done, int *validated) {
    static const char word[] = "\"validation_loss\"";
    size_t bytes = 0;
    for (const char *line = text, *end; (end = strchr(line, '\n')) != NULL; line = end + 1) {
        const int64_t step = step_of_line(line);
        if (step > done) break;
        if (step < 0) continue; // damaged
        *validated |= step == done && memmem(line, (size_t)(end - line), word, sizeof(word) - 1) != NULL;
        bytes = (size_t)(end + 1 - text);
    }
    return bytes;
}

// Removes the lines of steps after `done`, in the file and among the pending ones. Needs no disk space.
static int truncate_after(Metrics *metrics, int64_t done, Error *error) {
    char *text = (char *)xmalloc(metrics->size + 1);
    const int result = file_pread(metrics->descriptor, metrics->path, text, metrics->size, 0, error);
    text[metrics->size] = '\0';
    metrics->validated = 0;
    if (result == 0) metrics->size = measure_lines(text, done, &metrics->validated);
    free(text);
    if (result != 0) return -1;
    if (metrics->num_pending > 0)
        metrics->num_pending = measure_lines(metrics->pending, done, &metrics->validated);
    if (ftruncate(metrics->descriptor, (off_t)metrics->size) == 0) return 0;
    return fail_io(error, "cannot truncate '%s' after step %" PRId64, metrics->path, done);
}

int metrics_open(Metrics *metrics, const char *run, int64_t done, int64_t num_steps, double flop_per_token,
                 double peak, Error *error) {
    memset(metrics, 0, sizeof(*metrics));
    metrics->path = format_text("%s/metrics.jsonl", run);
    metrics->num_steps = num_steps;
    metrics->first_step = done;
    metrics->flop_per_token = flop_per_token;
    metrics->peak = peak;
    metrics->started = seconds_now();
    // mpirun gives the first process a terminal as standard output only.
    metrics->on_terminal = isatty(1) && isatty(2);
    struct stat status;
    metrics->descriptor = open(metrics->path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (metrics->descriptor < 0 || fstat(metrics->descriptor, &status) != 0)
        return fail_io(error, "cannot write '%s'", metrics->path);
    metrics->size = (uint64_t)status.st_size;
    return truncate_after(metrics, done, error);
}

int metrics_flush(Metrics *metrics, Error *error) {
    if (metrics->num_pending == 0) return 0;
    // Writes at its offset, not at the end of the file, to overwrite half a line that a full disk has left.
    if (file_pwrite(metrics->descriptor, metrics->pending, metrics->num_pending, metrics->size) != 0)
        return fail_io(error, "cannot write '%s'", metrics->path);
    metrics->size += metrics->num_pending;
    metrics->num_pending = 0;
    metrics->warned = 0;
    return 0;
}

// Each line is written to the file at once, so that a checkpoint is never ahead of the record, even after a kill.
static void add_line(Metrics *metrics, char *line) {
    Error error;
    const size_t length = strlen(line);
    metrics->pending = (char *)xrealloc(metrics->pending, metrics->num_pending + length + 1);
    memcpy(metrics->pending + metrics->num_pending, line, length + 1);
    metrics->num_pending += length;
    free(line);
    if (metrics_flush(metrics, &error) == 0 || metrics->warned) return;
    metrics_end_line(metrics);
    warn("%s; its lines are kept in memory and will be written later", error.text);
    metrics->warned = 1;
}

void metrics_end_line(Metrics *metrics) {
    if (metrics->line_open) printf("\n");
    metrics->line_open = 0;
    fflush(stdout);
}

void metrics_close(Metrics *metrics) {
    metrics_end_line(metrics);
    if (metrics->descriptor >= 0) close(metrics->descriptor);
    metrics->descriptor = -1;
    free(metrics->pending), free(metrics->path);
    metrics->pending = metrics->path = NULL;
}

int metrics_rollback(Metrics *metrics, int64_t done, int64_t step, int64_t sequences, Error *error) {
    if (truncate_after(metrics, done, error) != 0) return -1;
    if (done < metrics->first_step) metrics->first_step = done;
    // Has the number of a step that is repeated, so that a run resumed before the next checkpoint removes it and
    // writes it again.
    add_line(metrics, format_text("{\"step\": %" PRId64 ", \"rollback_from\": %" PRId64
                                  ", \"rollback_to\": %" PRId64 ", \"sequences_skipped\": %" PRId64 "}\n",
                                  done + 1, step, done, sequences));
    return 0;
}

// Formats a number; JSON has no NaN.
static const char *json_number(char *text, size_t size, double value) {
    snprintf(text, size, isfinite(value) ? "%.9g" : "null", value);
    return text;
}

// Returns the width of the terminal. A progress line must fit into one row to be rewritten in place.
static int terminal_columns(void) {
    struct winsize size;
    return ioctl(1, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

// Prints as many of the fields, from the first on, as fit into one row of the terminal.
static void print_row(char fields[][48], int num_fields) {
    int left = terminal_columns() - 1;
    printf("\r\033[K");
    for (int i = 0; i < num_fields; i++) {
        const int length = (int)strlen(fields[i]) + (i > 0 ? 3 : 0);
        if (length > left) break;
        printf("%s%s", i > 0 ? " | " : "", fields[i]);
        left -= length;
    }
}

static void show_step(Metrics *metrics, const StepMetrics *s, double now) {
    enum { FIELDS = 8 };
    int64_t done = s->step - metrics->first_step, left = metrics->num_steps - s->step;
    double rate = (double)s->tokens / s->seconds, gflops = rate * metrics->flop_per_token / 1e9;
    char fields[FIELDS][48];
    const size_t size = sizeof(fields[0]);
    snprintf(fields[0], size, "step %" PRId64 "/%" PRId64 " %.0f%%", s->step, metrics->num_steps,
             100.0 * (double)s->step / (double)metrics->num_steps);
    snprintf(fields[1], size, "%s left",
             format_duration((now - metrics->started) / (double)done * (double)left));
    snprintf(fields[2], size, "loss %.4f%s", s->loss, s->skipped ? " SKIPPED" : "");
    snprintf(fields[3], size, "%.0f tokens/s", rate);
    snprintf(fields[4], size, "%.1f ms", 1e3 * s->seconds);
    snprintf(fields[5], size, "lr %.2e", s->learning_rate);
    snprintf(fields[6], size, "norm %.3f", s->gradient_norm);
    snprintf(fields[7], size, "%.0f GFLOP/s %.0f%%", gflops, 100 * gflops / metrics->peak);
    if (metrics->on_terminal) {
        print_row(fields, FIELDS);
    } else {
        for (int i = 0; i < FIELDS; i++) printf("%s%s", i > 0 ? " | " : "", fields[i]);
        printf("\n");
    }
    metrics->line_open = metrics->on_terminal;
    fflush(stdout);
}

void metrics_step(Metrics *metrics, const StepMetrics *s) {
    char loss[32], norm[32];
    add_line(
        metrics,
        format_text("{\"step\": %" PRId64
                    ", \"loss\": %s, \"learning_rate\": %.9g, \"gradient_norm\": %s, \"tokens\": %" PRId64
                    ", \"skipped\": %s, \"seconds\": %.6f}\n",
                    s->step, json_number(loss, sizeof(loss), s->loss), s->learning_rate,
                    json_number(norm, sizeof(norm), s->gradient_norm), s->tokens,
                    s->skipped ? "true" : "false", s->seconds));
    double now = seconds_now(), pause = metrics->on_terminal ? 0.1 : 5.0;
    if (now - metrics->shown >= pause || s->step == metrics->num_steps ||
        s->step == metrics->first_step + 1 || s->skipped) {
        show_step(metrics, s, now);
        metrics->shown = now;
    }
}

void metrics_validation(Metrics *metrics, const ValidationMetrics *v) {
    metrics_end_line(metrics);
    printf("validation after step %" PRId64 ": %.4f nats per token", v->step, v->loss);
    if (v->bits_per_byte >= 0) printf(", %.4f bits per byte", v->bits_per_byte);
    if (v->bits_per_byte >= 0 && v->floor > 0)
        printf(" (floor %.4f, %+.1f %%)", v->floor, 100 * (v->bits_per_byte / v->floor - 1));
    printf(", %" PRId64 " tokens", v->tokens);
    if (v->cut > 0) printf(", %" PRId64 " documents cut off at the sequence length", v->cut);
    printf(", %.1f s\n", v->seconds);
    char loss[32], bits[32];
    add_line(metrics,
             format_text("{\"step\": %" PRId64
                         ", \"validation_loss\": %s, \"validation_bits_per_byte\": %s}\n",
                         v->step, json_number(loss, sizeof(loss), v->loss),
                         json_number(bits, sizeof(bits), v->bits_per_byte >= 0 ? v->bits_per_byte : NAN)));
}
