// The rules of the story grammar (see stories.h): each is a list of alternatives, separated by '|' and chosen
// with equal probability. In an alternative
//     {list}         a choice from a word list or a rule
//     {name=list}    the same, and the word chosen is remembered under that name
//     {name}         the word remembered, again: a reference back to an earlier sentence
//     {name.form}    a form of it: {hero.he} is "she" or "he"
//     {a x}  {^x}    x with its article, "a" or "an"; x with a capital letter; {^a x}: "A" or "An" and x
//     /              a new line
// A story never takes the same word twice from a list, except as a reference back.
//
// No two ways through the rules may lead to the same text: alternatives differ in their fixed words, and no
// word is optional. The tests count the parses of many stories.
#ifndef DATA_STORY_RULES_H
#define DATA_STORY_RULES_H

typedef struct {
    const char *name;
    const char *alternatives;
} Rule;

static const Rule rules[] = {
    // The five skeletons, two orders each.
    {"story", "{open} {habit} {wishing} {obstacle}/{meeting} {offer} {winning}/{keeping} {ending}/|"
              "{open} {wishing} {obstacle} {sorrow}/{meeting} {offer} {winning}/{joy} {ending}/|"
              "{open} {habit} {treasure} {losing}/{searching} {meeting} {finding}/{keeping} {ending}/|"
              "{open} {treasure} {losing} {sorrow}/{meeting} {comfort} {finding}/{joy} {keeping} {ending}/|"
              "{open} {habit} {cooking} {recipe}/{mishap} {meeting} {saving}/{serving} {ending}/|"
              "{open} {cooking} {recipe} {mishap}/{sorrow} {meeting} {saving}/{eating} {ending}/|"
              "{open} {habit} {walk} {trap}/{plea} {rescue} {reward}/{keeping} {ending}/|"
              "{open} {walk} {trap} {plea}/{rescue} {reward} {joy}/{ending}/|"
              "{open} {habit} {companion} {trip}/{trouble} {repair} {arrival}/{keeping} {ending}/|"
              "{open} {companion} {trip} {packing}/{trouble} {sorrow} {repair}/{arrival} {ending}/"},

    // Who and where.
    {"open", "Once there was {a nature=trait} {someone} who lived in {home}.|"
             "Once upon a time, in {home}, there lived {a nature=trait} {someone}.|"
             "In {home} lived {a nature=trait} {someone}.|"
             "Long ago, {a nature=trait} {someone} lived in {home}.|"
             "{hero_is} who lived in {home}.|"
             "{^a nature=trait} {someone} lived in {home}."},
    {"someone", "{kind=girl_word} {named} {hero=girl_name}|"
                "{kind=boy_word} {named} {hero=boy_name}|"
                "{kind=animal} {named} {hero=she_pet}|"
                "{kind=animal} {named} {hero=he_pet}"},
    {"hero_is", "{hero=girl_name} was {a nature=trait} {kind=girl_word}|"
                "{hero=boy_name} was {a nature=trait} {kind=boy_word}|"
                "{hero=she_pet} was {a nature=trait} {kind=animal}|"
                "{hero=he_pet} was {a nature=trait} {kind=animal}"},
    {"home", "{a aspect=air} {house=house_kind} {near} {town=town_first} {tail=town_last}"},
    {"near", "near|outside|behind|above|beyond"},
    {"friend_who", "{breed=animal} {named} {friend=she_pet}|"
                   "{breed=animal} {named} {friend=he_pet}"},
    {"gift", "{a form=look} {hue=colour} {wish=thing}"},
    {"day", "One {weather} {day_part}|"
            "One {weather} {weekday}|"
            "One {month} {day_part}|"
            "On {a weather} {day_part}|"
            "Early one {weather} {weekday}|"
            "On the last {weekday} of {month}"},

    // What the hero is like.
    {"habit",
     "{^hero.he} {liked} {game}, {game}, {taste} {food} and {colour} {bits}.|"
     "{^hero.he} {liked} {taste} {food}, {taste} {food} and {food} with {food}.|"
     "{^hero.he} wore {a colour} {clothes}, {a colour} {clothes} and {a look} {clothes}.|"
     "Every {weekday}, {hero.he} {move} {adverb} to the {air} {in_place} to sell {bits} and {taste} {food}.|"
     "{hero} kept {number} {look} {colour} {bits} and {a look} {tool} under the {look} {under_place}.|"
     "{^hero.his} {relative}, {a trait} {job}, taught {hero.him} {game} and {virtue}.|"
     "{^hero.he} was as {trait} as {a animal} and as {trait} as {a animal}.|"
     "Around the {house} grew {colour} {flower}, {colour} {flower} and {tree} trees.|"
     "{hero} worked for {a trait} {job} who sold {bits}, {bits} and {colour} {bits}."},

    // Wishing for something, and getting it.
    {"wishing", "More than anything, {hero} {wanted} {gift}.|"
                "{^hero.his} greatest dream was to have {gift}.|"
                "{day}, {hero} saw {gift} in the shop of {a trait} {job}.|"
                "{day}, {hero.his} {trait} {relative} told {hero.him} about {gift}.|"
                "Every {day_part}, {hero.he} {wanted} {gift}."},
    {"obstacle",
     "{but} the {wish} cost {number} {colour} {bits}, and {hero.he} had only {bits} and {food}.|"
     "{but} {a trait} {job} wanted {number} {look} {bits} and {taste} {food} for the {wish}.|"
     "{but} {a trait} {job} kept the {hue} {wish} under the {look} {under_place}.|"
     "{but} the {wish} was locked in the {air} {in_place}, and {a trait} {animal} guarded the door.|"
     "{but} nobody in {town} {tail} could make one, not even the {job}, the {job} or the {job}.|"
     "\"We need {food} and {bits} more than {a wish},\" {hero.his} {trait} {relative} {said} {adverb}."},
    {"winning",
     "{soon} they {move} to the {air} {in_place} and traded {number} {colour} {bits} for the {hue} {wish}.|"
     "{friend} {found} {number} {bits} under the {look} {under_place} and bought the {wish}.|"
     "With {a tool}, {a tool} and {material}, {friend} and {hero} made {a hue} {wish}.|"
     "{soon} they sold {taste} {food}, {food} and {bits} to pay for the {wish}.|"
     "{soon} they washed {bits} and {bits} for {a trait} {job}, who {gave} them the {hue} {wish}.|"
     "{friend} sang {adverb} by the {air} {by_place}, and {a trait} {job} {gave} them the {form} {wish}.|"
     "{soon} they went by {vehicle} to the {air} {in_place}, where {a trait} {job} {gave} them the {wish}."},

    // Losing something, and finding it.
    {"treasure", "{^hero.his} best treasure was {gift}, a present from {hero.his} {trait} {relative}.|"
                 "{^hero.he} had {gift} that once belonged to {a trait} {job}.|"
                 "What {hero.he} loved most was {gift}.|"
                 "In {month}, {a trait} {job} had given {hero.him} {gift}."},
    {"losing", "{day}, {hero} {move} to the {air} {in_place} and lost the {wish}.|"
               "{day}, the {hue} {wish} was gone.|"
               "{day}, {a trait} {animal} {move} away with the {hue} {wish}.|"
               "{day}, {hero} left the {form} {wish} under {a tree} tree, and it was gone."},
    {"searching",
     "{^hero.he} {searched} {adverb} under the {under_place}, by the {by_place} and in the {in_place}.|"
     "{^hero.he} asked the {trait} {job}, the {trait} {job} and {a trait} {animal}, but nobody had seen it.|"
     "Under the {look} {under_place} {hero.he} {found} only {number} {bits} and {a colour} {clothes}.|"
     "{^hero.he} {move} from the {air} {in_place} to the {air} {by_place} and called {adverb}.|"
     "In the {air} {in_place} there were {colour} {bits}, {bits} and {bits}, but no {wish}."},
    {"finding",
     "{friend} {searched} {adverb} in the {air} {in_place}, and there was the {wish}, under some {bits}.|"
     "With {a tool}, {friend} pulled the {hue} {wish} out from under the {look} {under_place}.|"
     "\"I saw {a hue} {wish} by the {air} {by_place},\" {friend} {said}, and there it was.|"
     "{soon} they {move} to the {air} {in_place} and {found} the {wish} between {colour} {bits} and {colour} "
     "{bits}.|"
     "{^a trait} {job} had put the {form} {wish} in {a colour} {vehicle}, and soon gave it back."},

    // Cooking for someone.
    {"cooking",
     "{day}, {hero} {planned} to make {a savor=taste} {meal=dish} for {hero.his} {trait} {relative}.|"
     "{day}, {hero} {planned} to cook {a savor=taste} {meal=dish} for {a trait} {job}.|"
     "{day}, {a trait} {job} of {town} {tail} asked {hero} for {a savor=taste} {meal=dish}."},
    {"recipe", "{^hero.he} mixed {food}, {food} and {taste} {food} in {a look} {colour} bowl.|"
               "{^hero.he} {fetched} {food}, {food}, {taste} {food} and {taste} {food}.|"
               "The recipe called for {taste} {food}, {taste} {food} and a lot of {food}.|"
               "First came the {food}, then the {taste} {food}, and last of all the {taste} {food}."},
    {"mishap", "{noise}! {noise}! The {meal} fell on the floor of the {house}.|"
               "{but} {a trait} {animal} had eaten the {food} and the {taste} {food}.|"
               "{but} {hero} {move} {adverb} to the {air} {in_place}, and the {meal} burned.|"
               "{but} {a trait} {animal} {move} in and ate the {savor} {meal} {adverb}.|"
               "{but} the {meal} tasted of {bits}, {bits} and {material}."},
    {"saving", "{friend} brought {food}, {food} and {taste} {food} in {a colour} {vehicle}.|"
               "{friend} put on {a colour} {clothes}, stirred {adverb} and added {food} and {food}.|"
               "\"Try {taste} {food} and {taste} {food},\" {friend} {said}, and {hero} did so {adverb}.|"
               "{soon} they made a new {meal} out of {food}, {food} and {taste} {food}."},
    {"eating", "{soon} the {savor} {meal} stood on the table beside {food}, {flower} and {food}.|"
               "The {meal} was {savor}, {taste} and {taste}, and {hero} {felt} {glad}.|"
               "Everyone came to eat the {meal}: the {job}, the {trait} {job} and even {a trait} {animal}.|"
               "{hero} and {friend} {ate} the {meal} {adverb} by the {air} {by_place}."},
    {"serving", "{hero} still makes {a savor} {meal} with {food} and {food} every {month}.|"
                "Every {weekday} {friend} asks for {a meal} with {taste} {food} and {food}.|"
                "The recipe for the {savor} {meal} hangs in the {house}, next to {a look} {tool}."},

    // Helping someone who is caught.
    {"walk", "{day}, {hero} {move} past the {air} {by_place} with {a tool} and {a colour} {clothes}.|"
             "{day}, {hero} was looking for {bits}, {flower} and {flower} by the {air} {by_place}.|"
             "{day}, {hero} took {a colour} {vehicle} to the {air} {in_place} to buy {food} and {bits}."},
    {"trap",
     "{noise}! {^a temper=trait} {friend_who} was {stuck} under the {look} {under_place}.|"
     "There {hero.he} {found} {a temper=trait} {friend_who}, {sad} and {sad}, {stuck} under {a look} {tool}.|"
     "\"Help!\" cried {a temper=trait} {friend_who} from the {air} {in_place}."},
    {"plea", "\"I am {sad}, {sad} and {sad},\" {sad_said} {friend}.|"
             "\"I only wanted {taste} {food} and {food},\" {friend} {said} {adverb}.|"
             "The {breed} had lost {friend.his} {colour} {clothes} and {felt} {sad} and {sad}.|"
             "\"I was looking for {number} {colour} {bits},\" {said} the {breed}."},
    {"rescue",
     "{hero} {fetched} {a tool} and {a look} {tool}, worked {adverb}, and {friend} was free.|"
     "{hero} {move} to {a trait} {job}, came back with {a tool} and set {friend} free.|"
     "{hero} {gave} {friend} {taste} {food}, {a colour} {clothes} and a hug, and set {friend.him} free.|"
     "\"You are {a trait} {breed}, {friend},\" {hero} {said}, and lifted the {breed} out {adverb}."},
    {"reward", "To say thank you, {friend} {gave} {hero} {gift}.|"
               "The next {day_part}, {friend} {move} to the {house} with {gift}.|"
               "\"You are {trait} and {trait},\" {friend} {said}, and {gave} {hero.him} {gift}.|"
               "On {weekday}, {hero} {found} {gift} outside the {house}, with a letter from {friend}."},

    // Going somewhere together.
    {"companion", "{^hero.his} best friend was {a temper=trait} {friend_who}.|"
                  "Next door lived {a temper=trait} {friend_who}.|"
                  "{^a temper=trait} {friend_who} lived there too."},
    {"trip",
     "{day}, the two friends set off in {a paint=colour} {ride=vehicle} to see the {air} {goal=by_place}.|"
     "{day}, {hero} and {friend} took {a paint=colour} {ride=vehicle} to the {air} {goal=by_place}.|"
     "{day}, {friend} bought {a paint=colour} {ride=vehicle} to visit the {job} by the {air} "
     "{goal=by_place}."},
    {"packing",
     "{hero} {packed} {food}, {bits} and {a tool}, and {friend} {packed} {food} and {a colour} {clothes}.|"
     "They {packed} {a tool}, {a look} {tool}, {number} {bits} and {taste} {food}.|"
     "{friend} wore {a colour} {clothes}, and {hero} wore {a look} {colour} {clothes}."},
    {"trouble", "{noise}! {noise}! The {paint} {ride} broke down by the {air} {by_place}.|"
                "{but} the weather turned {storm} and {storm}, and the {ride} got stuck.|"
                "{but} {a trait} {animal} and {a trait} {animal} would not let the {ride} pass.|"
                "{but} the {paint} {ride} took a wrong turn and stopped behind the {air} {in_place}."},
    {"repair",
     "{friend} mended the {ride} with {a tool}, {material} and {bits}.|"
     "{^a trait} {job} came by with {a tool} and {a tool} and helped them {adverb}.|"
     "\"We need {virtue} and {a tool},\" {friend} {said}, and they set to work {adverb}.|"
     "{hero} {move} to the {air} {in_place} and came back with {a trait} {job} and {a look} {tool}."},
    {"arrival", "By the {goal}, under {colour} {flower}, they {found} {gift}.|"
                "{soon} they came to the {goal}, where {a trait} {job} {gave} them {gift}.|"
                "{soon} they searched the {goal} {adverb} and {found} {gift}."},

    // Ways of saying the same.
    {"but", "But|Sadly,|Alas,|However,"},
    {"soon", "Soon|Then|At last|Finally,|After a while|In the end,"},
    {"ever", "From that day on,|Ever since,|From then on,|After that,"},
    {"named", "named|called"},
    {"liked", "loved|liked|enjoyed|adored"},
    {"wanted", "wished for|longed for|hoped for|dreamed of|thought of"},
    {"planned", "wanted|began|decided|promised|hoped|planned"},
    {"felt", "felt|was|looked|seemed"},
    {"found", "found|saw|noticed|spotted|discovered"},
    {"gave", "gave|handed|offered|brought"},
    {"stuck", "stuck|trapped|caught|pinned"},
    {"fetched", "fetched|got|bought|borrowed"},
    {"packed", "packed|took|carried|brought"},
    {"searched", "searched|looked|hunted"},
    {"ate", "ate|shared|enjoyed|finished"},
    {"learned", "learned|saw|understood|agreed"},

    // Shared by the skeletons.
    {"sorrow", "{hero} {felt} {sad}, {sad} and {sad}.|"
               "{hero} sat under {a tree} tree and {felt} {sad} and {sad}.|"
               "\"I feel so {sad} and {sad},\" {sad_said} {hero} {sad_adverb}.|"
               "The {kind} {felt} {sad} and hugged {hero.his} {look} {colour} {clothes}.|"
               "{hero} was too {sad} and {sad} to eat {hero.his} {taste} {food}."},
    {"meeting",
     "{soon} {a temper=trait} {friend_who} {move} {adverb} out of the {air} {in_place}.|"
     "By the {air} {by_place} {hero.he} met {a temper=trait} {friend_who}.|"
     "{soon} {a temper=trait} {friend_who} came by in {a look} {colour} {vehicle}.|"
     "Under the {look} {under_place} sat {a temper=trait} {friend_who}, eating {taste} {food} and {food}.|"
     "{noise}! {^a temper=trait} {friend_who} in {a colour} {clothes} came in {adverb}.|"
     "In the {air} {in_place}, {a temper=trait} {friend_who} was looking for {bits} and {a tool}."},
    {"offer", "\"Why are you so {sad}, {hero}?\" asked {friend} {adverb}.|"
              "\"Do not be {sad} and {sad}, {hero},\" {said} the {breed}.|"
              "\"All you need is {virtue}, {virtue} and {a tool},\" {friend} {said} {adverb}.|"
              "{friend} listened {adverb} and offered {hero} {food}, {bits} and {virtue}."},
    {"comfort", "\"I am {sad} and {sad},\" {sad_said} {hero}, and {friend} nodded {sad_adverb}.|"
                "\"Have {taste} {food} and {food}, {hero},\" {friend} {said} {adverb}.|"
                "{friend} {gave} {hero} {taste} {food}, {food} and {a colour} {clothes}.|"
                "\"{^virtue} and {virtue} will help us, {hero},\" {said} the {breed}."},
    {"joy", "{^glad} and {glad}, {hero} {move} {adverb} around the {air} {in_place}.|"
            "\"Now I feel {glad} and {glad},\" {glad_said} {hero}.|"
            "\"Thank you, {friend},\" {hero} {glad_said} {adverb}.|"
            "{friend} {felt} {glad} and {glad}, and {hero} {felt} {glad} too.|"
            "The {kind} and the {breed} played {game}, {game} and {game}.|"
            "{soon} they {ate} {taste} {food}, {taste} {food} and {a taste} {dish}."},
    {"keeping", "The {hue} {wish} is still in the {aspect} {house}, between {a tool} and {colour} {flower}.|"
                "{hero} and {friend} share the {wish}, {a look} {tool} and {number} {colour} {bits}.|"
                "{hero} named the {hue} {wish} {^virtue} and keeps it under the {look} {under_place}.|"
                "On the {form} {wish} they painted {number} {bits}, {colour} {flower} and {a animal}.|"
                "Now the {trait} {job} and the {trait} {job} want {a hue} {wish} too."},
    {"ending",
     "{ever} {hero} and {friend} played {game}, {game} and {game} near {town} {tail}.|"
     "In {town} {tail} you may meet {hero} in {a colour} {clothes} and {friend} in {a look} {colour} "
     "{clothes}.|"
     "{^glad} and {glad}, {hero} slept in the {house} and dreamed of {bits}, {flower} and {friend}.|"
     "So the {kind} and the {breed} {learned} that {virtue} needs {virtue}, {virtue} and {virtue}.|"
     "Now all of {town} {tail} knows {hero} and {friend} for their {virtue}, {virtue} and {virtue}.|"
     "{friend} moved into the {house}, and they live on {taste} {food}, {taste} {food} and {food}.|"
     "{soon} {hero} and {friend} painted the {house} {colour}, {colour} and {colour}."},
};

#endif
