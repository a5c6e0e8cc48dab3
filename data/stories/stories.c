// See stories.h. The tables are first compiled into lists of entries, and entries into items; generator and parser
// both walk these items with a State (remembered words, used words, bits so far).
#include "stories.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include "layers/base/files.h"
#include "story_rules.h"
#include "story_words.h"

#define COUNT(array) ((int)(sizeof(array) / sizeof((array)[0])))

enum {
    NUM_WORD_LISTS = COUNT(word_lists),
    NUM_LISTS = NUM_WORD_LISTS + COUNT(rules), // word lists come first
    MAX_ENTRIES = 4096,
    MAX_ITEMS = 4096,
    MAX_VARIABLES = 32,
    MAX_NAME = 32, // bytes of a name in the tables, NUL included
    MAX_SLOT = 64, // bytes of a slot's text
};

// A part of an alternative: fixed text, a choice from a list, or a remembered word.
typedef struct {
    const char *text; // fixed text; NULL for a slot
    int length;
    int list;            // the list to choose from; -1: repeats the word of `variable`
    int variable;        // where the chosen word is remembered; -1: nowhere
    char form[MAX_NAME]; // the form of the word; "": the word itself
    int article, capital;
} Item;

// A word, or an alternative of a rule.
typedef struct {
    const char *text; // if it is a word
    int length;
    int list;
    int first_item, num_items; // if it is an alternative
} Entry;

typedef struct {
    const char *name, *forms;
    int first, count; // in grammar.entries
} List;

static struct {
    List lists[NUM_LISTS];
    Entry entries[MAX_ENTRIES];
    Item items[MAX_ITEMS];
    char variables[MAX_VARIABLES][MAX_NAME];
    int num_entries, num_items, num_variables;
} grammar;

// ---- compiling the tables ---------------------------------------------------------------------------------

static Entry *add_entry(int list) {
    if (grammar.num_entries == MAX_ENTRIES) die("story grammar: more than %d entries", MAX_ENTRIES);
    Entry *entry = &grammar.entries[grammar.num_entries++];
    entry->list = list;
    grammar.lists[list].count++;
    return entry;
}

static void compile_words(int list) {
    const char *words = word_lists[list].words;
    for (size_t at = 0; words[at];) {
        size_t length = strcspn(words + at, " ");
        Entry *entry = add_entry(list);
        entry->text = words + at;
        entry->length = (int)length;
        at += length + (words[at + length] == ' ');
    }
}

static int find_list(const char *name) {
    for (int i = 0; i < NUM_LISTS; i++) {
        if (strcmp(grammar.lists[i].name, name) == 0) return i;
    }
    return -1;
}

static int find_variable(const char *name) {
    for (int i = 0; i < grammar.num_variables; i++) {
        if (strcmp(grammar.variables[i], name) == 0) return i;
    }
    if (grammar.num_variables == MAX_VARIABLES) die("story grammar: more than %d names", MAX_VARIABLES);
    strcpy(grammar.variables[grammar.num_variables], name);
    return grammar.num_variables++;
}

static Item *add_item(void) {
    if (grammar.num_items == MAX_ITEMS) die("story grammar: more than %d items", MAX_ITEMS);
    Item *item = &grammar.items[grammar.num_items++];
    item->list = item->variable = -1;
    return item;
}

// Copies a name from the tables.
static void copy_name(char name[MAX_NAME], const char *text, size_t length) {
    if (length == 0 || length >= MAX_NAME) die("story grammar: bad name '%.*s'", (int)length, text);
    memcpy(name, text, length);
    name[length] = 0;
}

// Compiles `text`, the content of a pair of braces: [^][a ]list, [^][a ]variable=list or [^][a ]variable[.form].
static void compile_slot(const char *text, size_t length) {
    Item *item = add_item();
    const char *end = text + length;
    if (text < end && *text == '^') {
        item->capital = 1;
        text++;
    }
    if (end - text > 2 && memcmp(text, "a ", 2) == 0) {
        item->article = 1;
        text += 2;
    }
    char name[MAX_NAME];
    const char *equals = memchr(text, '=', end - text), *dot = memchr(text, '.', end - text);
    if (equals) {
        copy_name(name, text, equals - text);
        item->variable = find_variable(name);
        text = equals + 1;
    } else if (dot) {
        copy_name(item->form, dot + 1, end - dot - 1);
        end = dot;
    }
    copy_name(name, text, end - text);
    item->list = find_list(name);
    if (item->list < 0 && equals) die("story grammar: no list '%s'", name);
    if (item->list < 0) item->variable = find_variable(name);
    int word = item->list < NUM_WORD_LISTS;
    if (!word && (item->capital || item->article || item->variable >= 0))
        die("story grammar: bad slot '%s'", name);
}

static void compile_alternative(int list, const char *text, size_t length) {
    int first = grammar.num_items;
    const char *end = text + length;
    while (text < end) {
        size_t fixed = 0;
        while (text + fixed < end && text[fixed] != '{' && text[fixed] != '/') fixed++;
        if (fixed > 0) {
            Item *item = add_item();
            item->text = text;
            item->length = (int)fixed;
            text += fixed;
        } else if (*text == '/') {
            Item *item = add_item();
            item->text = "\n";
            item->length = 1;
            text++;
        } else {
            const char *close = memchr(text, '}', end - text);
            if (!close) die("story grammar: '{' without '}' in rule %s", grammar.lists[list].name);
            compile_slot(text + 1, close - text - 1);
            text = close + 1;
        }
    }
    Entry *entry = add_entry(list);
    entry->first_item = first;
    entry->num_items = grammar.num_items - first;
}

static void compile_grammar(void) {
    for (int i = 0; i < NUM_LISTS; i++) {
        int word = i < NUM_WORD_LISTS;
        grammar.lists[i].name = word ? word_lists[i].name : rules[i - NUM_WORD_LISTS].name;
        grammar.lists[i].forms = word ? word_lists[i].forms : "";
    }
    for (int i = 0; i < NUM_LISTS; i++) {
        grammar.lists[i].first = grammar.num_entries;
        if (i < NUM_WORD_LISTS) {
            compile_words(i);
            continue;
        }
        const char *text = rules[i - NUM_WORD_LISTS].alternatives;
        for (;;) {
            size_t length = strcspn(text, "|");
            compile_alternative(i, text, length);
            if (!text[length]) break;
            text += length + 1;
        }
    }
}

static void ensure_grammar(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, compile_grammar);
}

// ---- shared by generator and parser -----------------------------------------------------------------------

typedef struct {
    int bound[MAX_VARIABLES];        // the remembered entry, plus 1; 0: none
    unsigned char used[MAX_ENTRIES]; // 1 for words that the story already contains
    int num_used[NUM_LISTS];         // per list
    double bits;
} State;

static int is_word_list(int list) {
    return list < NUM_WORD_LISTS;
}

// Finds the form of a word in the forms of its list: the form "he" is "she" in "he=she him=her". Returns its length.
static int find_form(const Entry *entry, const char *form, const char **text) {
    size_t length = strlen(form);
    for (const char *at = grammar.lists[entry->list].forms; *at;) {
        size_t all = strcspn(at, " ");
        if (all > length && memcmp(at, form, length) == 0 && at[length] == '=') {
            *text = at + length + 1;
            return (int)(all - length - 1);
        }
        at += all + (at[all] == ' ');
    }
    die("story grammar: '%.*s' has no form '%s'", entry->length, entry->text, form);
}

static int begins_with(const char *word, int length, const char *start) {
    int n = (int)strlen(start);
    return length >= n && memcmp(word, start, n) == 0;
}

// Returns 1 if the article is "an": before a vowel sound. Few words differ from their spelling.
static int takes_an(const char *word, int length) {
    static const char *const said_with_consonant[] = {"uku", "uni", "use", "one", "eu"};
    static const char *const said_with_vowel[] = {"hour", "honest"};
    for (int i = 0; i < COUNT(said_with_consonant); i++) {
        if (begins_with(word, length, said_with_consonant[i])) return 0;
    }
    for (int i = 0; i < COUNT(said_with_vowel); i++) {
        if (begins_with(word, length, said_with_vowel[i])) return 1;
    }
    return strchr("aeiouAEIOU", word[0]) != NULL;
}

// Returns the text of a slot for an entry: the word itself, or a text built in `buffer`.
static const char *slot_text(const Item *item, const Entry *entry, char buffer[MAX_SLOT], int *length) {
    const char *word = entry->text;
    int at = 0;
    *length = entry->length;
    if (item->form[0]) *length = find_form(entry, item->form, &word);
    if (!item->article && !item->capital) return word;
    if (*length > MAX_SLOT - 3) die("story grammar: '%.*s' is too long", *length, word);
    if (item->article) {
        buffer[at++] = 'a';
        if (takes_an(word, *length)) buffer[at++] = 'n';
        buffer[at++] = ' ';
    }
    memcpy(buffer + at, word, *length);
    *length += at;
    if (item->capital && buffer[0] >= 'a' && buffer[0] <= 'z') buffer[0] -= 'a' - 'A';
    return buffer;
}

static int choices_left(const State *state, int list) {
    return grammar.lists[list].count - state->num_used[list];
}

// Records that the item chose this entry of its list: adds the bits, marks the word as used, and remembers it.
static void choose(State *state, const Item *item, int entry) {
    state->bits += log2(choices_left(state, item->list));
    if (!is_word_list(item->list)) return;
    state->used[entry] = 1;
    state->num_used[item->list]++;
    if (item->variable >= 0) state->bound[item->variable] = entry + 1;
}

// Undoes choose(), except for the bits, which the caller restores exactly.
static void undo_choice(State *state, const Item *item, int entry) {
    if (!is_word_list(item->list)) return;
    state->used[entry] = 0;
    state->num_used[item->list]--;
    if (item->variable >= 0) state->bound[item->variable] = 0;
}

static const Entry *remembered(const State *state, const Item *item) {
    int bound = state->bound[item->variable];
    if (!bound) die("story grammar: {%s} is used before it is chosen", grammar.variables[item->variable]);
    return &grammar.entries[bound - 1];
}

// ---- generating -------------------------------------------------------------------------------------------

// SplitMix64 (Steele, Lea, Flood 2014): a counter and a mixing function.
static uint64_t mix(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

void story_rng_seed(StoryRng *rng, uint64_t seed, uint64_t stream) {
    rng->state = mix(mix(seed + 0x9E3779B97F4A7C15u) + stream * 0xD1342543DE82EF95u);
}

// Returns a uniform integer in [0, n), n > 0: Lemire's multiplication method (2019), made exact by rejection.
static int random_below(StoryRng *rng, int n) {
    uint32_t threshold = (uint32_t)-n % (uint32_t)n;
    for (;;) {
        uint64_t product = (mix(rng->state += 0x9E3779B97F4A7C15u) >> 32) * (uint64_t)n;
        if ((uint32_t)product >= threshold) return (int)(product >> 32);
    }
}

static void append(Story *story, const char *text, int length) {
    if (story->length + length > STORY_LIMIT)
        die("story grammar: a story is longer than %d bytes", STORY_LIMIT);
    memcpy(story->text + story->length, text, length);
    story->length += length;
}

// Returns a random unused entry of the list.
static int draw_entry(StoryRng *rng, const State *state, int list) {
    int left = choices_left(state, list);
    if (left <= 0) die("story grammar: list %s has no entries left", grammar.lists[list].name);
    int skip = random_below(rng, left), entry = grammar.lists[list].first;
    while (state->used[entry] || skip-- > 0) entry++;
    return entry;
}

static void generate(StoryRng *rng, State *state, Story *story, const Entry *alternative) {
    for (int i = 0; i < alternative->num_items; i++) {
        const Item *item = &grammar.items[alternative->first_item + i];
        const Entry *word;
        if (item->text) {
            append(story, item->text, item->length);
            continue;
        }
        if (item->list >= 0) {
            int entry = draw_entry(rng, state, item->list);
            choose(state, item, entry);
            word = &grammar.entries[entry];
            if (!is_word_list(item->list)) {
                generate(rng, state, story, word);
                continue;
            }
        } else {
            word = remembered(state, item);
            story->num_references += item->form[0] == 0;
        }
        char buffer[MAX_SLOT];
        int length;
        const char *text = slot_text(item, word, buffer, &length);
        append(story, text, length);
    }
}

// Returns the item for a whole story.
static const Item *start_item(void) {
    static Item start = {.list = NUM_WORD_LISTS, .variable = -1};
    return &start;
}

void story_generate(StoryRng *rng, Story *story) {
    ensure_grammar();
    State state = {0};
    memset(story, 0, sizeof(*story));
    int entry = draw_entry(rng, &state, start_item()->list);
    choose(&state, start_item(), entry);
    generate(rng, &state, story, &grammar.entries[entry]);
    story->bits = state.bits;
}

// ---- parsing ----------------------------------------------------------------------------------------------

// What remains to be matched: the items from `item` to `end`, then those of `up`, of the enclosing rules.
typedef struct Rest {
    const Item *item, *end;
    const struct Rest *up;
} Rest;

typedef struct {
    State state;
    const char *begin, *end; // of the text
    StoryParse result;
} Parser;

static void parse(Parser *parser, const char *at, Rest rest);

// Returns 1 if the text continues with these bytes.
static int text_matches(Parser *parser, const char *at, const char *text, int length) {
    int same = 0;
    while (same < length && at + same < parser->end && at[same] == text[same]) same++;
    size_t reached = (size_t)(at - parser->begin) + same;
    if (reached > parser->result.furthest) parser->result.furthest = reached;
    return same == length;
}

// Tries every entry of the list that the first item of `rest` chooses from.
static void parse_choice(Parser *parser, const char *at, const Rest *rest) {
    const Item *item = rest->item;
    const List *list = &grammar.lists[item->list];
    const Rest after = {item + 1, rest->end, rest->up};
    double bits = parser->state.bits;
    for (int entry = list->first; entry < list->first + list->count; entry++) {
        const Entry *e = &grammar.entries[entry];
        if (is_word_list(item->list)) {
            char buffer[MAX_SLOT];
            int length;
            if (parser->state.used[entry]) continue;
            const char *text = slot_text(item, e, buffer, &length);
            if (!text_matches(parser, at, text, length)) continue;
            choose(&parser->state, item, entry);
            parse(parser, at + length, after);
        } else {
            const Item *first = &grammar.items[e->first_item];
            choose(&parser->state, item, entry);
            parse(parser, at, (Rest){first, first + e->num_items, &after});
        }
        undo_choice(&parser->state, item, entry);
        parser->state.bits = bits;
    }
}

static void parse(Parser *parser, const char *at, Rest rest) {
    for (;;) {
        while (rest.item == rest.end) {
            if (!rest.up) {
                if (at != parser->end) return;
                parser->result.num_parses++;
                parser->result.bits = parser->state.bits;
                return;
            }
            rest = *rest.up;
        }
        const Item *item = rest.item;
        char buffer[MAX_SLOT];
        const char *text = item->text;
        int length = item->length;
        if (!text) {
            if (item->list >= 0) {
                parse_choice(parser, at, &rest);
                return;
            }
            text = slot_text(item, remembered(&parser->state, item), buffer, &length);
        }
        if (!text_matches(parser, at, text, length)) return;
        at += length;
        rest.item++;
    }
}

StoryParse story_parse(const char *text, size_t length) {
    ensure_grammar();
    Parser parser = {.begin = text, .end = text + length};
    const Item *start = start_item();
    parse(&parser, text, (Rest){start, start + 1, NULL});
    return parser.result;
}

// ---- inspecting the grammar -------------------------------------------------------------------------------

int story_num_lists(void) {
    return NUM_WORD_LISTS;
}

int story_num_words(int list) {
    ensure_grammar();
    return grammar.lists[list].count;
}

const char *story_list_name(int list) {
    return word_lists[list].name;
}

const char *story_word(int list, int word, size_t *length) {
    ensure_grammar();
    const Entry *entry = &grammar.entries[grammar.lists[list].first + word];
    *length = (size_t)entry->length;
    return entry->text;
}

// ---- counting words ---------------------------------------------------------------------------------------

static int is_letter(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

// A set of 64-bit hashes (FNV-1a); with thousands of words the probability of a collision is below 1e-12.
typedef struct {
    uint64_t *hashes;   // 0: free
    size_t size, count; // `size` is a power of two
} WordSet;

static void add_word(WordSet *set, uint64_t hash) {
    size_t i = hash & (set->size - 1);
    while (set->hashes[i] && set->hashes[i] != hash) i = (i + 1) & (set->size - 1);
    set->count += set->hashes[i] == 0;
    set->hashes[i] = hash;
}

static void grow_set(WordSet *set) {
    WordSet larger = {xcalloc(set->size * 2, sizeof(uint64_t)), set->size * 2, 0};
    for (size_t i = 0; i < set->size; i++) {
        if (set->hashes[i]) add_word(&larger, set->hashes[i]);
    }
    free(set->hashes);
    *set = larger;
}

size_t story_distinct_words(const char *text, size_t length) {
    WordSet set = {xcalloc(4096, sizeof(uint64_t)), 4096, 0};
    for (size_t i = 0; i < length;) {
        uint64_t hash = 0xCBF29CE484222325u;
        size_t start = i;
        while (i < length && (is_letter(text[i]) || (i > start && text[i] == '-'))) {
            hash = (hash ^ (uint64_t)(text[i++] | 0x20)) * 0x100000001B3u;
        }
        if (i == start)
            i++;
        else
            add_word(&set, hash | 1);
        if (set.count * 2 > set.size) grow_set(&set);
    }
    free(set.hashes);
    return set.count;
}
