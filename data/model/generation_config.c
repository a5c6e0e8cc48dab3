#include "generation_config.h"

#include <stdlib.h>
#include "data/json/json.h"

static int add_stop(const cJSON *item, TokenList *stops, const char *path, Error *error) {
    if (!cJSON_IsNumber(item) || !(item->valuedouble >= 0 && item->valuedouble <= INT32_MAX) ||
        item->valuedouble != (int32_t)item->valuedouble)
        return fail(error, "'%s': eos_token_id must be a whole number or a list of whole numbers", path);
    stops->ids = (int32_t *)xrealloc(stops->ids, (stops->count + 1) * sizeof(int32_t));
    stops->ids[stops->count++] = (int32_t)item->valuedouble;
    return 0;
}

// Leaves `stops` unchanged if the file or the key is missing, or is null.
static int read_stops(const char *path, TokenList *stops, Error *error) {
    if (!file_exists(path)) return 0;
    cJSON *json = json_read(path, error);
    int result = json != NULL ? 0 : -1;
    const cJSON *eos = cJSON_GetObjectItemCaseSensitive(json, "eos_token_id");
    if (result == 0 && cJSON_IsArray(eos)) {
        for (const cJSON *item = eos->child; item != NULL && result == 0; item = item->next)
            result = add_stop(item, stops, path, error);
    } else if (result == 0 && eos != NULL && !cJSON_IsNull(eos)) {
        result = add_stop(eos, stops, path, error);
    }
    cJSON_Delete(json);
    return result;
}

int stop_tokens_read(const char *folder, TokenList *stops, Error *error) {
    static const char *const names[] = {"generation_config.json", "config.json"};
    int result = 0;
    for (int i = 0; i < 2 && result == 0 && stops->count == 0; i++) {
        char *path = format_text("%s/%s", folder, names[i]);
        result = read_stops(path, stops, error);
        free(path);
    }
    return result;
}

char *stop_tokens_text(const TokenList *stops) {
    char *list = xstrdup("");
    for (size_t i = 0; i < stops->count; i++) {
        char *longer = format_text("%s%s%d", list, i > 0 ? ", " : "", stops->ids[i]);
        free(list);
        list = longer;
    }
    char *text = format_text("{\n  \"eos_token_id\": [%s]\n}\n", list);
    free(list);
    return text;
}
