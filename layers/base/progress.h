// A progress line for work of known size: rewritten in place on a terminal (at most ten times a second), otherwise a
// plain line every ten seconds; nothing for work that takes less than a second. Writes to stderr.
#ifndef LAYERS_BASE_PROGRESS_H
#define LAYERS_BASE_PROGRESS_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
    const char *label; // the current work: "training merges"
    const char *unit;  // for example "merges"; "B" is shown as kB, MB, GB
    uint64_t total;
    double started, shown; // seconds
    int on_terminal, visible;
} Progress;

void progress_start(Progress *progress, const char *label, const char *unit, uint64_t total);
void progress_update(Progress *progress, uint64_t done);
void progress_finish(Progress *progress); // clears the line; prints a last one if anything was shown

// Formats a duration as "1:02:03" or "4:05", in a static ring of buffers.
const char *format_duration(double seconds);
double seconds_now(void); // monotonic

#ifdef __cplusplus
}
#endif
#endif
