#define _GNU_SOURCE
#include "safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "data/json/cjson.h"

enum { LARGEST_HEADER = 64 << 20, READ_CHUNK = 1 << 20 };

// ---- writing ----------------------------------------------------------------------------------------------

static size_t tensor_elements(const NamedTensor *t) {
    return (t->rows ? t->rows : 1) * t->columns;
}

static char *header_text(const NamedTensor *tensors, size_t count) {
    cJSON *header = cJSON_CreateObject(), *metadata = cJSON_AddObjectToObject(header, "__metadata__");
    cJSON_AddStringToObject(metadata, "format", "pt"); // transformers refuses files without it
    uint64_t offset = 0;
    for (size_t i = 0; i < count; i++) {
        cJSON *entry = cJSON_AddObjectToObject(header, tensors[i].name);
        cJSON_AddStringToObject(entry, "dtype", "F32");
        cJSON *shape = cJSON_AddArrayToObject(entry, "shape");
        if (tensors[i].rows > 0) cJSON_AddItemToArray(shape, cJSON_CreateNumber((double)tensors[i].rows));
        cJSON_AddItemToArray(shape, cJSON_CreateNumber((double)tensors[i].columns));
        cJSON *offsets = cJSON_AddArrayToObject(entry, "data_offsets");
        cJSON_AddItemToArray(offsets, cJSON_CreateNumber((double)offset));
        offset += tensor_elements(&tensors[i]) * sizeof(float);
        cJSON_AddItemToArray(offsets, cJSON_CreateNumber((double)offset));
    }
    char *text = cJSON_PrintUnformatted(header);
    cJSON_Delete(header);
    if (text == NULL) die("out of memory while writing a header of %zu tensors", count);
    return text;
}

void safetensors_write(FILE *stream, const NamedTensor *tensors, size_t count) {
    char *text = header_text(tensors, count);
    uint64_t length = strlen(text), padded = (length + 7) / 8 * 8;
    fwrite(&padded, sizeof(padded), 1, stream);
    fprintf(stream, "%-*s", (int)padded, text); // the format allows trailing blanks
    cJSON_free(text);
    for (size_t i = 0; i < count; i++)
        fwrite(tensors[i].data, sizeof(float), tensor_elements(&tensors[i]), stream);
}

// ---- reading ----------------------------------------------------------------------------------------------

typedef struct {
    const char *path;
    int descriptor;
    uint64_t size, data; // size of the file; offset of the tensors' data
    cJSON *header;
} SafetensorsFile;

static const char *without_prefix(const char *name) {
    static const char prefix[] = "transformer.";
    return strncmp(name, prefix, sizeof(prefix) - 1) == 0 ? name + sizeof(prefix) - 1 : name;
}

static int ends_with(const char *text, const char *end) {
    size_t n = strlen(text), m = strlen(end);
    return n >= m && strcmp(text + n - m, end) == 0;
}

// Buffers and tied weights that Hugging Face's GPT-2 also saves, although they follow from the rest.
static int is_redundant(const char *name) {
    if (strcmp(name, "__metadata__") == 0 || strcmp(name, "lm_head.weight") == 0) return 1;
    return strncmp(name, "h.", 2) == 0 &&
           (ends_with(name, ".attn.bias") || ends_with(name, ".attn.masked_bias"));
}

static int open_file(SafetensorsFile *file, Error *error) {
    file->descriptor = open(file->path, O_RDONLY | O_CLOEXEC);
    if (file->descriptor < 0) return fail_io(error, "cannot open '%s'", file->path);
    uint64_t length;
    if (file_size(file->path, &file->size, error) != 0) return -1;
    if (file->size < 8)
        return fail(error, "'%s' is not a safetensors file: it has only %" PRIu64 " bytes", file->path,
                    file->size);
    if (file_pread(file->descriptor, file->path, &length, 8, 0, error) != 0) return -1;
    if (length > file->size - 8 || length > LARGEST_HEADER)
        return fail(error,
                    "'%s' is not a safetensors file, or it is truncated: its first 8 bytes announce a header "
                    "of %" PRIu64 " bytes",
                    file->path, length);
    char *text = (char *)xmalloc(length + 1);
    int result = file_pread(file->descriptor, file->path, text, length, 8, error);
    text[length] = '\0';
    if (result == 0) {
        file->header = cJSON_ParseWithLength(text, length);
        if (!cJSON_IsObject(file->header))
            result = fail(error, "'%s' is damaged: its header is not a JSON object", file->path);
    }
    free(text);
    file->data = 8 + length;
    return result;
}

static float from_half(uint16_t half) {
    int exponent = half >> 10 & 31, mantissa = half & 1023;
    float value = exponent == 31  ? (mantissa ? NAN : INFINITY)
                  : exponent == 0 ? ldexpf((float)mantissa, -24)
                                  : ldexpf((float)(1024 + mantissa), exponent - 25);
    return half & 0x8000 ? -value : value;
}

static float from_bfloat(uint16_t bits) {
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, sizeof(value));
    return value;
}

static int read_16bit(const SafetensorsFile *file, const NamedTensor *tensor, uint64_t offset, int is_half,
                      Error *error) {
    uint16_t *buffer = (uint16_t *)xmalloc(READ_CHUNK * sizeof(uint16_t));
    size_t elements = tensor_elements(tensor);
    int result = 0;
    for (size_t done = 0; done < elements && result == 0; done += READ_CHUNK) {
        size_t count = elements - done < READ_CHUNK ? elements - done : READ_CHUNK;
        result = file_pread(file->descriptor, file->path, buffer, 2 * count, offset + 2 * done, error);
        for (size_t i = 0; i < count && result == 0; i++)
            tensor->data[done + i] = is_half ? from_half(buffer[i]) : from_bfloat(buffer[i]);
    }
    free(buffer);
    return result;
}

// Returns a whole number >= 0 from JSON, or -1.
static double json_count(const cJSON *item) {
    double value = cJSON_IsNumber(item) ? item->valuedouble : -1;
    return value >= 0 && value < 9e15 && value == floor(value) ? value : -1;
}

static int check_shape(const SafetensorsFile *file, const NamedTensor *tensor, const cJSON *entry,
                       Error *error) {
    const cJSON *shape = cJSON_GetObjectItemCaseSensitive(entry, "shape");
    size_t wanted[2] = {tensor->rows ? tensor->rows : tensor->columns, tensor->columns};
    int dimensions = tensor->rows ? 2 : 1, equal = cJSON_GetArraySize(shape) == dimensions;
    for (int i = 0; i < dimensions && equal; i++)
        equal = json_count(cJSON_GetArrayItem(shape, i)) == (double)wanted[i];
    if (equal) return 0;
    char *found = cJSON_PrintUnformatted(shape);
    fail(error,
         dimensions == 2 ? "'%s': tensor %s has shape %.60s, expected [%zu,%zu]"
                         : "'%s': tensor %s has shape %.60s, expected [%zu]",
         file->path, tensor->name, found ? found : "none", wanted[0], wanted[1]);
    cJSON_free(found);
    return -1;
}

static int read_tensor(const SafetensorsFile *file, const NamedTensor *tensor, const cJSON *entry,
                       Error *error) {
    if (check_shape(file, tensor, entry, error) != 0) return -1;
    const char *type = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(entry, "dtype"));
    if (type == NULL) type = "missing";
    int is_single = strcmp(type, "F32") == 0, is_half = strcmp(type, "F16") == 0;
    if (!is_single && !is_half && strcmp(type, "BF16") != 0)
        return fail(error, "'%s': tensor %s has type %.20s, expected F32, F16 or BF16", file->path,
                    tensor->name, type);
    const cJSON *offsets = cJSON_GetObjectItemCaseSensitive(entry, "data_offsets");
    double begin = json_count(cJSON_GetArrayItem(offsets, 0)),
           end = json_count(cJSON_GetArrayItem(offsets, 1));
    double bytes = (double)tensor_elements(tensor) * (is_single ? 4 : 2);
    if (begin < 0 || end - begin != bytes || end > (double)(file->size - file->data))
        return fail(error, "'%s' is damaged or truncated: tensor %s lies outside it", file->path,
                    tensor->name);
    uint64_t offset = file->data + (uint64_t)begin;
    if (is_single)
        return file_pread(file->descriptor, file->path, tensor->data, (size_t)bytes, offset, error);
    return read_16bit(file, tensor, offset, is_half, error);
}

static const NamedTensor *find_tensor(const NamedTensor *tensors, size_t count, const char *name) {
    for (size_t i = 0; i < count; i++)
        if (strcmp(tensors[i].name, name) == 0) return &tensors[i];
    return NULL;
}

typedef struct {
    double begin, end;
} Extent;

static int ascending(const void *a, const void *b) {
    const Extent *x = (const Extent *)a, *y = (const Extent *)b;
    return x->begin != y->begin ? (x->begin < y->begin ? -1 : 1) : (x->end > y->end) - (x->end < y->end);
}

// The format requires the tensors' data to be contiguous from the header to the end of the file.
static int check_extents(const SafetensorsFile *file, Error *error) {
    size_t count = 0, capacity = (size_t)cJSON_GetArraySize(file->header);
    Extent *extents = (Extent *)xmalloc((capacity + 1) * sizeof(Extent));
    const cJSON *entry;
    cJSON_ArrayForEach(entry, file->header) {
        if (strcmp(entry->string, "__metadata__") == 0) continue;
        const cJSON *offsets = cJSON_GetObjectItemCaseSensitive(entry, "data_offsets");
        extents[count].begin = json_count(cJSON_GetArrayItem(offsets, 0));
        extents[count++].end = json_count(cJSON_GetArrayItem(offsets, 1));
    }
    qsort(extents, count, sizeof(Extent), ascending);
    double at = 0;
    int whole = 1;
    for (size_t i = 0; i < count; at = extents[i++].end)
        whole = whole && extents[i].begin == at && extents[i].end >= at;
    whole = whole && at == (double)(file->size - file->data);
    free(extents);
    return whole ? 0
                 : fail(error, "'%s' is damaged or truncated: its tensors leave gaps or overlap", file->path);
}

// Fills those tensors of the list that the file has; found[i] counts them.
static int read_file(const SafetensorsFile *file, const NamedTensor *tensors, size_t count,
                     unsigned char *found, Error *error) {
    const cJSON *entry;
    cJSON_ArrayForEach(entry, file->header) {
        const char *name = without_prefix(entry->string);
        const NamedTensor *tensor = find_tensor(tensors, count, name);
        if (tensor == NULL && is_redundant(name)) continue;
        if (tensor == NULL)
            return fail(error, "'%s': tensor %.60s is not part of this model", file->path, entry->string);
        if (found[tensor - tensors]++)
            return fail(error, "'%s': tensor %s appears twice", file->path, tensor->name);
        if (read_tensor(file, tensor, entry, error) != 0) return -1;
    }
    return 0;
}

int safetensors_read(const char *const *paths, size_t num_paths, const NamedTensor *tensors, size_t count,
                     Error *error) {
    unsigned char *found = (unsigned char *)xcalloc(count, 1);
    int result = 0;
    for (size_t i = 0; i < num_paths && result == 0; i++) {
        SafetensorsFile file = {paths[i], -1, 0, 0, NULL};
        result = open_file(&file, error);
        if (result == 0) result = read_file(&file, tensors, count, found, error);
        if (result == 0) result = check_extents(&file, error);
        cJSON_Delete(file.header);
        if (file.descriptor >= 0) close(file.descriptor);
    }
    for (size_t i = 0; i < count && result == 0; i++)
        if (!found[i])
            result = fail(error, "'%s'%s: tensor %s is missing", paths[0],
                          num_paths > 1 ? " and the files listed with it" : "", tensors[i].name);
    free(found);
    return result;
}
