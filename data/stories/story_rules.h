// The rules of the story grammar (see stories.h): each is a list of alternatives, separated by '|' and chosen with
// equal probability. In an alternative
//     {list}         a choice from a word list or a rule
//     {name=list}    the same, and the chosen word is remembered under that name
//     {name}         repeats the remembered word: a reference back to an earlier sentence
//     {name.form}    a form of it: {hero.he} is "she" or "he"
//     {a x}  {^x}    x with its article, "a" or "an"; x capitalized; {^a x}: "A" or "An" and x
//     /              a line feed
// A story never uses the same word of a list twice, except as a reference back.
//
// No two derivations may give the same text: alternatives differ in their fixed words, and no word is optional. The
// tests count the parses of many stories.
//
// A word that is repeated comes from a short list of which the story uses no other word: there is only one word of
// its kind to look back for, which a small model learns within minutes. The long lists hold words that occur once. No
// line begins with a name, so that a name is the same token at every position.
#ifndef DATA_STORIES_STORY_RULES_H
#define DATA_STORIES_STORY_RULES_H

typedef struct {
    const char *name;
    const char *alternatives;
} Rule;

static const Rule rules[] = {
    // The four skeletons: a wish, a loss, a rescue, a party.
    {"story", "{open} {habit} {wishing} {obstacle}/{meeting} {advice} {winning}/{ending}/|"
              "{open} {habit} {treasure} {losing}/{meeting} {comfort} {finding}/{ending}/|"
              "{open} {habit} {walk} {trap}/{plea} {rescue} {reward}/{ending}/|"
              "{open} {habit} {party} {trouble}/{meeting} {comfort} {present}/{ending}/"},

    // Characters and places.
    {"open", "Once there was {a trait} and {trait} {someone} in {town_first} {town_last}.|"
             "In {town_first} {town_last} lived {a trait} and {trait} {someone}.|"
             "Long ago, in {town_first} {town_last}, there lived {a trait} and {trait} {someone}.|"
             "Once upon a time, {town_first} {town_last} was the home of {a trait} and {trait} {someone}."},
    {"someone", "{job} named {hero=girl_name}|{job} named {hero=boy_name}"},

    // Traits of the hero.
    {"habit", "{hero} loved {taste} {food}, {look} {bits}, {flower} and {virtue}.|"
              "{hero} wore {a look} {clothes} and sold {look} {bits} and {taste} {food}.|"
              "{hero} lived with {guest_name}, {guest_name}, {guest_name} and {a trait} {animal}.|"
              "{hero} was famous for {virtue}, {virtue}, {look} {bits} and {taste} {food}.|"
              "{hero} played {game} and {game} and planted {look} {flower} and {flower}."},

    // Wanting something, and getting it.
    {"wishing", "More than {look} {bits} and {taste} {food}, {hero} wanted {a colour} {wish=wish_thing}.|"
                "Every night {hero} dreamed of {a colour} {wish=wish_thing} and {look} {bits}.|"
                "One {weather} day {hero} saw {a colour} {wish=wish_thing} and {look} {bits} near the "
                "{place}."},
    {"obstacle", "{but} the {wish} cost {look} {bits}, {a look} {thing} and {taste} {food}.|"
                 "{but} {guest_name} wanted {look} {bits} and {taste} {food} for the {wish}.|"
                 "{but} the {wish} belonged to {a trait} {animal} in {a look} {clothes}."},
    {"advice", "\"Do not be {sad} and {sad}, {hero},\" {said} {friend} {adverb}.|"
               "\"You need {virtue}, {a look} {thing} and {taste} {food}, {hero},\" {said} {friend}.|"
               "{friend} listened {adverb} and gave {hero} {look} {bits} and {taste} {food}."},
    {"winning", "{hero} and {friend} {move} {adverb} to the {place} and got the {wish}.|"
                "With {virtue}, {look} {bits} and {a look} {thing}, they won the {wish}.|"
                "They traded {look} {bits}, {a look} {thing} and {taste} {food} for the {wish}."},

    // Losing something, and finding it.
    {"treasure", "{^hero.his} best treasure was {a colour} {wish=wish_thing} from {guest_name}.|"
                 "More than {look} {bits} and {taste} {food}, {hero} loved {a colour} {wish=wish_thing}.|"
                 "{hero} always carried {look} {bits}, {taste} {food} and {a colour} {wish=wish_thing}."},
    {"losing", "{but} {a trait} {animal} in {a look} {clothes} {move} {adverb} away with the {wish}.|"
               "{but} {hero} {move} {adverb} to the {place} and lost the {wish}.|"
               "{but} the {wish} fell between {look} {bits}, {a look} {thing} and {look} {flower}."},
    {"finding", "{hero} and {friend} {move} {adverb} to the {place} and found the {wish}.|"
                "Behind {look} {bits}, {a look} {thing} and {flower} lay the {wish}.|"
                "They looked {adverb} under {a look} {thing} and {flower}, and there was the {wish}."},

    // Helping someone who is caught.
    {"walk", "One {weather} day {hero} {move} {adverb} to the {place} to buy {taste} {food}.|"
             "One {weather} day {hero} was picking {look} {flower} and {flower} near the {place}.|"
             "One {weather} day {hero} put on {a look} {clothes} and {move} {adverb} to the {place}."},
    {"trap", "There {a trait} {animal} named {friend=pet_name} was stuck under {look} {bits}.|"
             "Behind {a look} {thing} lay {a trait} {animal} named {friend=pet_name}.|"
             "There {a trait} and {trait} {animal} named {friend=pet_name} was calling {adverb}."},
    {"plea", "\"I feel {sad}, {sad} and {sad},\" {said} {friend} {adverb}.|"
             "\"I only wanted {taste} {food}, {taste} {food} and {look} {bits},\" {said} {friend}.|"
             "\"Help me, {hero},\" {said} {friend} {adverb}, {sad} and {sad}."},
    {"rescue", "{hero} worked {adverb} with {look} {bits} and {a look} {thing}, and {friend} was free.|"
               "{hero} {move} {adverb} to the {place} for {look} {bits} and set {friend} free.|"
               "{hero} brought {a look} {thing} and {taste} {food}, and soon {friend} was free."},
    {"reward", "To say thank you, {friend} gave {hero} {a colour} {wish=wish_thing} and {look} {bits}.|"
               "The next day {friend} {move} {adverb} to {hero} with {a colour} {wish=wish_thing}.|"
               "\"Thank you, {hero},\" {said} {friend} {adverb}, and gave {hero.him} {a colour} "
               "{wish=wish_thing}."},

    // Giving a party.
    {"party", "For {hero.his} birthday {hero} made {taste} {food}, {taste} {food} and {taste} {food}.|"
              "One {weather} day {hero} gave a party for {guest_name}, {guest_name} and {guest_name}.|"
              "One {weather} day {hero} cooked {taste} {food} and {taste} {food} for {guest_name}."},
    {"trouble", "{but} nobody came, not even {guest_name} and the {trait} {animal}.|"
                "{but} {a trait} {animal} {move} {adverb} in and ate everything.|"
                "{but} everything tasted of {look} {bits} and {look} {flower}."},
    {"present",
     "{friend} brought {hero} {a colour} {wish=wish_thing}, {look} {bits} and {taste} {food}.|"
     "Behind {a look} {thing} {friend} had {adverb} hidden {a colour} {wish=wish_thing}.|"
     "\"Take my {colour} {wish=wish_thing} and {look} {bits}, {hero},\" {said} {friend} {adverb}."},

    // Synonyms.
    {"but", "But|Sadly,|Alas,|However,"},
    {"soon", "Soon|Then|At last|After a while"},

    // Shared by the skeletons.
    {"meeting", "Near the {place} {hero} met {a trait} and {trait} {animal} named {friend=pet_name}.|"
                "{soon} {a trait} {animal} named {friend=pet_name} {move} {adverb} over from the {place}.|"
                "In {a look} {clothes} came {a trait} and {trait} {animal} named {friend=pet_name}.|"
                "There sat {a trait} {animal} named {friend=pet_name}, eating {taste} {food} and {taste} "
                "{food}."},
    {"comfort", "{hero} told {friend} {adverb} and felt {sad}, {sad} and {sad}.|"
                "\"I am so {sad} and {sad}, {friend},\" {said} {hero} {adverb}.|"
                "\"Have {taste} {food} and {taste} {food}, {hero},\" {said} {friend} {adverb}."},
    {"ending", "From that day on, {hero} and {friend} shared {virtue}, {taste} {food} and the {wish}.|"
               "Now {hero} and {friend} play {game} and {game} with {guest_name} and {guest_name}.|"
               "Everyone knows {hero} and {friend} for {virtue}, {virtue} and {taste} {food}.|"
               "So {hero} {adverb} learned {virtue}, {virtue} and {virtue} from {friend}.|"
               "Now {hero} keeps the {wish} near the {place}, under {look} {flower} and {look} {bits}."},
};

#endif
