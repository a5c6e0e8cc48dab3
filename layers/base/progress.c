#define _GNU_SOURCE
#include "progress.h"

#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

double seconds_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

const char *format_duration(double seconds) {
    static char ring[4][32];
    static int next;
    char *text = ring[next++ & 3];
    long whole = seconds < 0 || seconds > 1e9 ? 0 : (long)(seconds + 0.5);
    if (whole >= 3600)
        snprintf(text, sizeof(ring[0]), "%ld:%02ld:%02ld", whole / 3600, whole / 60 % 60, whole % 60);
    else
        snprintf(text, sizeof(ring[0]), "%ld:%02ld", whole / 60, whole % 60);
    return text;
}

// Formats 12345678 "B" as "12.3 MB"; other units as plain numbers.
static void format_amount(char *text, size_t size, uint64_t amount, const char *unit) {
    if (strcmp(unit, "B") != 0)
        snprintf(text, size, "%llu %s", (unsigned long long)amount, unit);
    else if (amount >= 1000000000)
        snprintf(text, size, "%.2f GB", (double)amount / 1e9);
    else if (amount >= 1000000)
        snprintf(text, size, "%.1f MB", (double)amount / 1e6);
    else
        snprintf(text, size, "%.1f kB", (double)amount / 1e3);
}

void progress_start(Progress *progress, const char *label, const char *unit, uint64_t total) {
    memset(progress, 0, sizeof(*progress));
    progress->label = label;
    progress->unit = unit;
    progress->total = total;
    progress->started = seconds_now();
    progress->on_terminal = isatty(2);
    progress->shown = progress->started + (progress->on_terminal ? 0.9 : 0.0);
}

void progress_update(Progress *progress, uint64_t done) {
    double now = seconds_now();
    if (now - progress->shown < (progress->on_terminal ? 0.1 : 10.0)) return;
    progress->shown = now;
    progress->visible = 1;
    double elapsed = now - progress->started,
           share = progress->total ? (double)done / (double)progress->total : 0;
    char amount[64], total[64];
    format_amount(amount, sizeof(amount), done, progress->unit);
    format_amount(total, sizeof(total), progress->total, progress->unit);
    fprintf(stderr, "%s%s: %3.0f %%, %s of %s, %s left%s", progress->on_terminal ? "\r\033[K" : "",
            progress->label, 100 * share, amount, total,
            share > 0 ? format_duration(elapsed / share - elapsed) : "?", progress->on_terminal ? "" : "\n");
    fflush(stderr);
}

void progress_finish(Progress *progress) {
    if (!progress->visible) return;
    char total[64];
    format_amount(total, sizeof(total), progress->total, progress->unit);
    fprintf(stderr, "%s%s: %s in %s\n", progress->on_terminal ? "\r\033[K" : "", progress->label, total,
            format_duration(seconds_now() - progress->started));
}
