#define _GNU_SOURCE
#include "metrics.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>
#include "progress.h"

// The step of a line of metrics.jsonl, which always begins {"step": N; -1 for anything else.
static int64_t step_of_line(const char *line) {
    long long step;
    return sscanf(line, "{\"step\": %lld", &step) == 1 ? step : -1;
}

// Leaves only the whole lines of steps up to `done`.
static int cut_back(const char *path, int64_t done, Error *error) {
    FILE *in = fopen(path, "re");
    if (in == NULL) return 0; // nothing there yet
    FileWriter out;
    if (file_writer_open(&out, path, error) != 0) {
        fclose(in);
        return -1;
    }
    char *line = NULL;
    size_t capacity = 0;
    for (ssize_t length; (length = getline(&line, &capacity, in)) > 0;) {
        int64_t step = step_of_line(line);
        if (line[length - 1] == '\n' && step >= 0 && step <= done)
            fwrite(line, 1, (size_t)length, out.stream);
    }
    int failed = ferror(in), reason = errno;
    free(line);
    fclose(in);
    if (!failed) return file_writer_commit(&out, error);
    file_writer_abandon(&out); // what could not be read is not cut off
    return fail(error, "cannot read '%s': %s", path, strerror(reason));
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
    metrics->on_terminal = isatty(1) && isatty(2); // mpirun gives processes a terminal of its own for the first
    if (cut_back(metrics->path, done, error) != 0) return -1;
    metrics->stream = fopen(metrics->path, "ae");
    if (metrics->stream == NULL) return fail(error, "cannot write '%s': %s", metrics->path, strerror(errno));
    return 0;
}

void metrics_end_line(Metrics *metrics) {
    if (metrics->line_open) printf("\n");
    metrics->line_open = 0;
    fflush(stdout);
}

void metrics_close(Metrics *metrics) {
    metrics_end_line(metrics);
    if (metrics->stream != NULL) fclose(metrics->stream);
    free(metrics->path);
}

// JSON has no NaN.
static const char *json_number(char *text, size_t size, double value) {
    snprintf(text, size, isfinite(value) ? "%.9g" : "null", value);
    return text;
}

static int flush_line(Metrics *metrics, Error *error) {
    if (fflush(metrics->stream) == 0 && !ferror(metrics->stream)) return 0;
    return fail(error, "cannot write '%s': %s", metrics->path, strerror(errno));
}

// Columns of the terminal; a line of progress must fit into one row to be rewritten in place.
static int terminal_columns(void) {
    struct winsize size;
    return ioctl(1, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

static void show_step(Metrics *metrics, const StepMetrics *s, double now) {
    int64_t done = s->step - metrics->first_step, left = metrics->num_steps - s->step;
    double rate = (double)s->tokens / s->seconds, gflops = rate * metrics->flop_per_token / 1e9;
    char line[256];
    snprintf(line, sizeof(line),
             "step %" PRId64 "/%" PRId64
             " %.0f%% | %s left | loss %.4f%s | %.0f tokens/s | %.1f ms | lr %.2e | norm %.3f | "
             "%.0f GFLOP/s %.0f%%",
             s->step, metrics->num_steps, 100.0 * (double)s->step / (double)metrics->num_steps,
             format_duration((now - metrics->started) / (double)done * (double)left), s->loss,
             s->skipped ? " SKIPPED" : "", rate, 1e3 * s->seconds, s->learning_rate, s->gradient_norm, gflops,
             100 * gflops / metrics->peak);
    if (metrics->on_terminal)
        printf("\r\033[K%.*s", terminal_columns() - 1,
               line); // what does not fit is cut, the last fields first
    else
        printf("%s\n", line);
    metrics->line_open = metrics->on_terminal;
    fflush(stdout);
}

int metrics_step(Metrics *metrics, const StepMetrics *s, Error *error) {
    char loss[32], norm[32];
    fprintf(metrics->stream,
            "{\"step\": %" PRId64
            ", \"loss\": %s, \"learning_rate\": %.9g, \"gradient_norm\": %s, \"tokens\": %" PRId64
            ", \"skipped\": %s, \"seconds\": %.6f}\n",
            s->step, json_number(loss, sizeof(loss), s->loss), s->learning_rate,
            json_number(norm, sizeof(norm), s->gradient_norm), s->tokens, s->skipped ? "true" : "false",
            s->seconds);
    double now = seconds_now(), pause = metrics->on_terminal ? 0.1 : 5.0;
    if (now - metrics->shown >= pause || s->step == metrics->num_steps ||
        s->step == metrics->first_step + 1 || s->skipped) {
        show_step(metrics, s, now);
        metrics->shown = now;
    }
    return flush_line(metrics, error); // a checkpoint must not be ahead of the record, even after a kill
}

int metrics_validation(Metrics *metrics, const ValidationMetrics *v, Error *error) {
    metrics_end_line(metrics);
    printf("validation after step %" PRId64 ": %.4f nats per token", v->step, v->loss);
    if (v->bits_per_byte >= 0) printf(", %.4f bits per byte", v->bits_per_byte);
    if (v->bits_per_byte >= 0 && v->floor > 0)
        printf(" (floor %.4f, %+.1f %%)", v->floor, 100 * (v->bits_per_byte / v->floor - 1));
    printf(", %" PRId64 " tokens", v->tokens);
    if (v->cut > 0) printf(", %" PRId64 " documents cut at the sequence length", v->cut);
    printf(", %.1f s\n", v->seconds);
    char loss[32], bits[32];
    fprintf(metrics->stream,
            "{\"step\": %" PRId64 ", \"validation_loss\": %s, \"validation_bits_per_byte\": %s}\n", v->step,
            json_number(loss, sizeof(loss), v->loss),
            json_number(bits, sizeof(bits), v->bits_per_byte >= 0 ? v->bits_per_byte : NAN));
    return flush_line(metrics, error);
}
