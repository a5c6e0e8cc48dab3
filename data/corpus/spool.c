#define _GNU_SOURCE // O_TMPFILE
#include "spool.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#ifdef HAVE_ZLIB
#include <zlib.h>
#endif
#ifdef HAVE_ZSTD
#include <zstd.h>
#endif

enum { SPOOL_BYTES = 256 << 10 }; // read and written at a time

FILE *spool_create(const char *folder, Error *error) {
    int descriptor = open(folder, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (descriptor < 0) { // not every file system supports unnamed files
        char *path = format_text("%s/spool_XXXXXX", folder);
        descriptor = mkostemp(path, O_CLOEXEC);
        if (descriptor >= 0) unlink(path);
        free(path);
    }
    FILE *stream = descriptor < 0 ? NULL : fdopen(descriptor, "w+");
    if (stream == NULL)
        fail_io(error, "cannot write a temporary file in '%s' (TMPDIR names another folder)", folder);
    return stream;
}

static int ends_with(const char *text, const char *end) {
    const size_t length = strlen(text), size = strlen(end);
    return length > size && strcmp(text + length - size, end) == 0;
}

Compression compression_of_name(const char *path) {
    return ends_with(path, ".gz") ? GZIP : ends_with(path, ".zst") ? ZSTANDARD : NOT_COMPRESSED;
}

// A part of the input, and the destination of the output.
typedef struct {
    int descriptor;
    const char *path;
    unsigned char *input, *output; // (SPOOL_BYTES)
    size_t size;                   // bytes in `input`
    FILE *out;
    uint64_t *bytes;
    Error *error;
} Spool;

// Reads the next part of the input; `size` is 0 at the end.
static int refill(Spool *s) {
    ssize_t count;
    do count = read(s->descriptor, s->input, SPOOL_BYTES);
    while (count < 0 && errno == EINTR);
    if (count < 0) return fail_io(s->error, "cannot read %s", s->path);
    s->size = (size_t)count;
    return 0;
}

static int write_output(Spool *s, const unsigned char *data, size_t size) {
    *s->bytes += size;
    if (fwrite(data, 1, size, s->out) == size) return 0;
    return fail_io(s->error, "cannot write the text of %s to a temporary file (TMPDIR names another folder)",
                   s->path);
}

static int copy_plain(Spool *s) {
    while (s->size > 0)
        if (write_output(s, s->input, s->size) != 0 || refill(s) != 0) return -1;
    return 0;
}

#ifdef HAVE_ZLIB
// Decompresses concatenated members, as gzip does.
static int copy_gzip(Spool *s) {
    z_stream z = {0};
    int state = Z_STREAM_END, result = 0;
    if (inflateInit2(&z, 15 + 16) != Z_OK) die("out of memory");
    while (result == 0 && s->size > 0) {
        z.next_in = s->input;
        z.avail_in = (uInt)s->size;
        while (result == 0 && (z.avail_in > 0 || z.avail_out == 0)) {
            z.next_out = s->output;
            z.avail_out = SPOOL_BYTES;
            if (state == Z_STREAM_END && z.avail_in > 0) inflateReset(&z);
            state = inflate(&z, Z_NO_FLUSH);
            if (state != Z_OK && state != Z_STREAM_END && state != Z_BUF_ERROR)
                result = fail(s->error, "%s is damaged: it is not gzip data, or was changed", s->path);
            else
                result = write_output(s, s->output, SPOOL_BYTES - z.avail_out);
            if (state == Z_BUF_ERROR) break; // all output has been produced
        }
        if (result == 0) result = refill(s);
    }
    if (result == 0 && state != Z_STREAM_END) result = fail(s->error, "%s is truncated", s->path);
    inflateEnd(&z);
    return result;
}
#else
static int copy_gzip(Spool *s) {
    return fail(
        s->error,
        "%s is compressed with gzip, and this program was built without zlib: install it (zlib1g-dev) "
        "and run make again, or decompress the file",
        s->path);
}
#endif

#ifdef HAVE_ZSTD
static int copy_zstandard(Spool *s) {
    ZSTD_DStream *z = ZSTD_createDStream();
    if (z == NULL) die("out of memory");
    size_t expected = 0;
    int result = 0;
    while (result == 0 && s->size > 0) {
        ZSTD_inBuffer in = {s->input, s->size, 0};
        ZSTD_outBuffer out = {s->output, SPOOL_BYTES, SPOOL_BYTES};
        while (result == 0 && (in.pos < in.size || out.pos == out.size)) {
            out.pos = 0;
            const size_t before = in.pos;
            const size_t needs = ZSTD_decompressStream(z, &out, &in);
            if (ZSTD_isError(needs))
                result = fail(s->error, "%s is damaged: %s", s->path, ZSTD_getErrorName(needs));
            else
                result = write_output(s, s->output, out.pos);
            if (in.pos > before || out.pos > 0) expected = needs; // 0: a frame is complete
            if (in.pos == before && out.pos == 0) break;
        }
        if (result == 0) result = refill(s);
    }
    if (result == 0 && expected != 0) result = fail(s->error, "%s is truncated", s->path);
    ZSTD_freeDStream(z);
    return result;
}
#else
static int copy_zstandard(Spool *s) {
    return fail(s->error,
                "%s is compressed with zstd, and this program was built without libzstd: install it "
                "(libzstd-dev) and run make again, or decompress the file",
                s->path);
}
#endif

int spool_copy(int descriptor, const char *path, Compression compression, int guess, FILE *out,
               uint64_t *bytes, Error *error) {
    static const unsigned char gzip[] = {0x1F, 0x8B}, zstandard[] = {0x28, 0xB5, 0x2F, 0xFD};
    Spool s = {descriptor,
               path,
               (unsigned char *)xmalloc(SPOOL_BYTES),
               (unsigned char *)xmalloc(SPOOL_BYTES),
               0,
               out,
               bytes,
               error};
    int result = refill(&s);
    if (guess && s.size > sizeof gzip && memcmp(s.input, gzip, sizeof gzip) == 0) compression = GZIP;
    if (guess && s.size > sizeof zstandard && memcmp(s.input, zstandard, sizeof zstandard) == 0)
        compression = ZSTANDARD;
    if (result == 0)
        result = compression == GZIP        ? copy_gzip(&s)
                 : compression == ZSTANDARD ? copy_zstandard(&s)
                                            : copy_plain(&s);
    free(s.input);
    free(s.output);
    return result;
}
