// Reading and writing files: whole, atomically, at an offset; folders; checksums. Errors are those of error.h.
#ifndef LAYERS_BASE_FILES_H
#define LAYERS_BASE_FILES_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include "error.h"

#ifdef __cplusplus
extern "C" {
#endif

// Reads a whole file of at most `limit` bytes. *data ends with a NUL that *size does not count; the caller frees it.
int file_read(const char *path, size_t limit, char **data, size_t *size, Error *error);
// Writes a whole file atomically: at any moment, even after a power failure, `path` has the old content or the new.
// Writes a temporary file in the same folder, syncs it, renames it, and syncs the folder.
int file_write(const char *path, const void *data, size_t size, Error *error);

// The steps of file_write, for content that is produced piece by piece. Must not be moved after it was opened,
// because the stream points to it.
typedef struct {
    FILE *stream; // the content is written here
    char *path;   // the final path
    char *temporary;
    int descriptor;
    int reason;    // errno of the first failure; 0: none
    uint32_t crc;  // CRC-32C of the bytes written to the file, in order
    uint64_t size; // number of these bytes
} FileWriter;
// Opens the temporary file PATH.PROCESS.tmp. Returns 0, or -1 with a sentence.
int file_writer_open(FileWriter *writer, const char *path, Error *error);
// Like file_writer_open, but the temporary file is PATH.TAG.tmp.
int file_writer_open_tagged(FileWriter *writer, const char *path, const char *tag, Error *error);
// Flushes, syncs and renames the file; on error it is removed. `crc` and `size` remain valid.
int file_writer_commit(FileWriter *writer, Error *error);
void file_writer_abandon(FileWriter *writer); // removes the temporary file

// Returns 1 if the file exists. Also returns 1 if existence cannot be determined: opening it will report the reason.
int file_exists(const char *path);
int file_size(const char *path, uint64_t *size, Error *error);
// Reads exactly `size` bytes at `offset`. A file that ends before is an error, as is an I/O error. `path` is for the
// message.
int file_pread(int descriptor, const char *path, void *data, size_t size, uint64_t offset, Error *error);
// Writes all of `data` at `offset`. Returns 0, or -1 with errno.
int file_pwrite(int descriptor, const void *data, size_t size, uint64_t offset);
// Creates a folder and its parents.
int folder_create(const char *path, Error *error);
// Syncs the folder itself, which makes renames and new files in it durable.
int folder_sync(const char *path, Error *error);

// Returns the CRC-32C (Castagnoli, polynomial 0x1EDC6F41 reflected; RFC 3720 appendix B.4), as used by iSCSI and
// ext4. `crc`: 0, or the returned value to continue with more data.
uint32_t crc32c(uint32_t crc, const void *data, size_t size);

#ifdef __cplusplus
}
#endif
#endif
