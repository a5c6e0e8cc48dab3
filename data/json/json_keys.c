#include "json_keys.h"

#include <string.h>

int key_is_ignored(const char *list, const char *key) {
    const size_t length = strlen(key);
    for (const char *name = list; name != NULL && *name != '\0';) {
        name += strspn(name, " ");
        size_t whole = strcspn(name, ","), end = whole;
        while (end > 0 && name[end - 1] == ' ') end--;
        if (end > 0 && end == length && memcmp(name, key, length) == 0) return 1;
        name += whole + (name[whole] == ',');
    }
    return 0;
}
