// The word lists of the story grammar (see stories.h); words are separated by blanks.
//
// Lists are typed so that sentences make sense: things to carry, things to eat, places to be near. No list may
// contain a word twice; no name may occur in two lists (the parser could not tell which was meant).
#ifndef DATA_STORIES_STORY_WORDS_H
#define DATA_STORIES_STORY_WORDS_H

typedef struct {
    const char *name;
    const char *forms; // pronouns for every word of the list, "he=she his=her", or ""
    const char *words;
} WordList;

#define SHE "he=she him=her his=her"
#define HE  "he=he him=him his=his"

static const WordList word_lists[] = {
    {"girl_name", SHE,
     "Anna Emma Lily Lucy Mary Molly Rosa Sally"},
    {"boy_name", HE,
     "Ben Jack Leo Max Noah Peter Sam Tom"},
    {"pet_name", "",
     "Apple Bingo Bubbles Cookie Domino Ginger Honey Muffin Patch Pebble Rusty Sunny"},
    {"wish_thing", "",
     "bell clock crown drum guitar kite lamp lantern mirror piano rocket wagon"},
    {"guest_name", "",
     "Ada Adam Alan Albert Alfie Alice Amelia Amir Andrew Anton Arthur Asher Astrid Bella Bonnie Boris "
     "Bridget Bruno Caleb Carl Carlos Carmen Cecily Clara Cora Cyrus Daisy Daniel David Diego Dora Dylan "
     "Edith Elena Eli Elliot Elsa Emil Emily Eric Esther Ethan Eva Felix Finn Fiona Flora Frank Fred Freya "
     "Gabriel Gemma George Greta Hannah Hans Harriet Harry Hazel Heidi Helen Henry Hugo Ida Ingrid Irene "
     "Iris Isaac Isla Ivan Ivy Jacob James Jane Jasper Jenny Joel Jonas Joseph Josie Julia June Karl Kate "
     "Kira Kofi Kurt Laura Leah Lena Leon Liam Lina Lola Louis Lucas Luis Lydia Mabel Marcus Maria Mark "
     "Martha Martin Mateo Maya Mia Mila Milo Nadia Nancy Nathan Ned Neil Nell Nico Nina Nora Olga Oliver "
     "Omar Oscar Otto Owen Pablo Paul Pearl Pedro Petra Phoebe Polly Priya Ravi Rita Robert Rory Ruth Sarah "
     "Selma Simon Sofia Stefan Stella Susan Tara Tessa Thea Theo Thomas Tilda Tim Toby Vera Victor Walter "
     "Wanda Will Xavier Yara Yusuf Zack Zoe"},
    {"colour", "",
     "amber aqua azure beige black blue bronze brown crimson emerald golden green grey indigo ivory lilac "
     "maroon mauve navy ochre pink purple red ruby scarlet silver tan teal violet white yellow"},
    {"thing", "",
     "anchor badge bag banjo banner basin basket bead belt bicycle blanket book bottle bowl brooch broom "
     "brush bucket button canoe carpet cart chair chisel clamp coin comb compass crayon crowbar cup cushion "
     "diary doll drill easel fan feather fiddle flag flute funnel globe goblet hammer hammock harp hatchet "
     "hoop horn jack jar jewel journal jug kettle key knife ladder ladle lever locket lute magnet mallet map "
     "marble medal mitten mug needle net oar paddle parasol pen pencil pendant pickaxe pillow pipe pitcher "
     "plank plate pot pulley puppet purse puzzle quilt racket rake rattle ribbon ring rope ruler sack saddle "
     "scoop scooter shovel sickle sieve sled slipper spade spoon stamp statue stool sword teacup teapot "
     "thimble ticket top torch tray trophy trowel trumpet trunk ukulele vase violin wallet watch wedge "
     "whistle wreath wrench yo-yo"},
    {"town_first", "",
     "Alder Amber Apricot Arrow Autumn Barrel Beech Bell Birch Bracken Briar Bridge Candle Castle Cobble "
     "Coral Crow Crystal Dew Dragon Eagle Echo Elm Falcon Feather Fiddle Fox Frost Garden Goose Granite "
     "Harvest Hawk Heron Holly Iron Juniper Kettle King Lantern Lark Laurel Linden Marble Meadow Mill Moon "
     "Moss Oak Orchid Otter Owl Pine Plum Quail Queen Rain Reed River Robin Rose Salt Shadow Shell Silver "
     "Snow Spring Star Stone Storm Summer Swan Thistle Thorn Timber Tower Turtle Violet Water Wheat Winter "
     "Wolf"},
    {"town_last", "",
     "Bay Beach Bend Bluff Brook Cliff Cove Creek Dale Falls Farm Field Ford Gate Glen Green Grove Harbor "
     "Haven Heath Hill Hollow Island Lake Landing Lane Marsh Park Pass Point Pond Ridge Rock Shore Springs "
     "Valley View Village Wood"},
    {"animal", "",
     "alpaca badger bear beaver bee beetle camel cat cricket crow deer dog donkey dove duck duckling "
     "elephant fawn ferret finch fox frog gecko giraffe goat goose gosling hamster hare hedgehog heron "
     "jackdaw kangaroo kitten koala lamb lemur lion lizard llama lynx magpie mole monkey moose mouse newt "
     "otter owl panda parrot pelican penguin pigeon piglet pony puffin puppy rabbit raccoon raven reindeer "
     "robin seal sheep skunk sloth snail sparrow squirrel stork swan tiger toad toucan turtle walrus weasel "
     "wolf wombat yak zebra"},
    {"food", "",
     "almonds apples bacon bananas barley beans beets berries biscuits bread broccoli buns butter cabbage "
     "cake candy carrots celery cheese cherries corn crackers custard eggs figs fudge garlic grapes gravy "
     "ham honey jam jelly lemons lentils lettuce melon milk muffins mustard noodles nuts oatmeal olives "
     "onions oranges pancakes parsley parsnips pasta peaches peanuts pears peas pickles plums popcorn "
     "porridge potatoes pretzels pumpkin radishes raisins rhubarb rice salad salt sausages spinach sugar "
     "syrup tea toast toffee tomatoes turnips vanilla vinegar waffles walnuts yogurt"},
    {"taste", "",
     "baked boiled buttered buttery chilled chopped creamy crispy crumbly crunchy fluffy fresh fried frozen "
     "fruity greasy grilled hot juicy lukewarm mashed melted nutty peppery ripe roasted salty savory sliced "
     "smoky soft sour spicy steaming stewed sticky sugared sweet sweetened tangy toasted yummy zesty"},
    {"trait", "",
     "active agile alert amiable bold brave busy calm careful caring cautious charming cheeky cheerful "
     "clever clumsy curious dainty daring devoted dreamy eager earnest faithful fearless friendly funny "
     "fussy gallant generous gentle giggly graceful gracious handy hardy helpful honest hopeful humble "
     "jaunty jolly jovial keen kind lively loyal lucky mannerly merry mild modest neat nimble noble patient "
     "peppy perky playful plucky polite restless scruffy sensible serious shaggy shy silly sleepy sly smart "
     "sociable solemn spirited spry stout stubborn sturdy tender thoughtful tidy timid tireless trusty "
     "truthful wise witty zany"},
    {"look", "",
     "antique big bright bulky chunky clean crisp crooked curved cute dark dusty elegant empty famous fancy "
     "fine flashy fragile frosty glossy glowing grand heavy huge icy little lovely magic modern odd old "
     "perfect plain pretty quaint quiet rare rickety round shabby shiny silky simple sleek slim small smooth "
     "special spotted strange striped stylish superb tall thick thin tiny useful"},
    {"job", "",
     "acrobat archer artist author baker banker barber builder butcher captain carpenter carver chef clerk "
     "clown cobbler composer cook dancer dentist doctor drummer farmer fiddler florist gardener glazier "
     "goldsmith grocer guard hatter hunter innkeeper inventor janitor jeweler judge juggler knight librarian "
     "magician mason mayor merchant miller miner minister musician nurse painter peddler pilot piper plumber "
     "poet porter potter printer ranger sailor scholar sculptor shepherd singer soldier tailor teacher "
     "tinker trader weaver"},
    {"place", "",
     "alley attic backyard bakery barn barnyard basement boathouse bookshop boulders bridge campfire canal "
     "cavern cellar chapel church classroom clearing coast cornfield courtyard dam factory fence ferry "
     "fireplace flagpole footpath fort fountain gallery garage garden gatehouse geyser glacier hallway "
     "hayloft hedge icehouse inlet jetty jungle kitchen lagoon laundry library maypole meadow moat monastery "
     "museum nursery oasis ocean palace pantry parlor pasture pier plaza quarry quay railway ravine "
     "reservoir riverbank roadside school shipyard shop signpost smithy stable storeroom stream street "
     "studio sundial temple theater thicket tunnel vineyard volcano warehouse waterfall well wharf workshop "
     "yard zoo"},
    {"adverb", "",
     "angrily anxiously bashfully boldly bravely briefly brightly briskly busily calmly carefully casually "
     "clearly cleverly clumsily coyly curiously daringly deftly dreamily eagerly earnestly easily elegantly "
     "excitedly fearfully firmly fondly gaily gently gladly gleefully gloomily glumly grimly happily hastily "
     "heartily helpfully honestly hopefully humbly hurriedly joyfully keenly kindly lazily loudly lovingly "
     "meekly merrily modestly nervously patiently playfully politely promptly proudly quickly quietly "
     "serenely sharply shyly silently slowly slyly smoothly sneakily softly solemnly sweetly swiftly "
     "tearfully tenderly timidly tiredly warily warmly weakly wearily wildly wisely wistfully"},
    {"move", "",
     "ambled bounced bounded bustled charged climbed crawled crept danced darted dashed glided hiked hobbled "
     "hopped hurried jogged jumped leaped limped loped marched paced paraded plodded pranced raced rambled "
     "ran roamed rolled rushed skipped slid slipped sneaked sped stepped stomped strode swept tiptoed "
     "toddled tramped trekked trotted trudged tumbled twirled waddled walked waltzed went zoomed"},
    {"sad", "",
     "afraid alarmed alone angry annoyed anxious ashamed bored bothered confused cranky dejected dismal "
     "dizzy doubtful downcast exhausted fearful foolish forgotten forlorn furious gloomy glum grumpy "
     "helpless homesick hopeless hurt impatient jealous lonely lost miserable moody mournful nervous sad "
     "scared shaky sorrowful sorry sulky tearful tired troubled uneasy unhappy unlucky unwanted upset weary "
     "worried"},
    {"bits", "",
     "acorns arrows badges beads bells blocks bolts bones books boots bottles boxes bricks brooms brushes "
     "bubbles buckles buttons candles cards chains chalks charms coins combs corks crayons cups daisies "
     "dolls flags flutes forks gems gloves hats hooks keys kites knots labels letters lids magnets maps "
     "marbles masks medals mittens napkins needles notes pans pearls pebbles pencils pens petals photos pins "
     "pipes plates poems posters pots puppets puzzles ribbons riddles rings rocks scarves screws seeds "
     "shells shoes socks spoons springs stamps sticks stools strings tacks tassels teacups threads tickets "
     "tiles toys twigs wheels"},
    {"clothes", "",
     "anorak apron ascot bathrobe beret blazer blouse bonnet cap cape cardigan cloak coat dress frock gown "
     "hat headband helmet hood jacket jersey jumpsuit kerchief kilt kimono necktie overcoat parka poncho "
     "pullover raincoat robe sash scarf shawl shirt skirt smock sunhat sweater toga tunic turban tuxedo vest "
     "wig"},
    {"flower", "",
     "asters azaleas begonias bluebells buttercups camellias carnations clovers crocuses daffodils dahlias "
     "dandelions foxgloves gardenias geraniums gladioli heathers hollyhocks hyacinths hydrangeas irises "
     "jasmines larkspurs lavenders lilacs lilies lupins magnolias marigolds orchids pansies peonies petunias "
     "poppies primroses roses snowdrops sunflowers thistles tulips violets wisterias zinnias"},
    {"virtue", "",
     "bravery comfort courage courtesy curiosity fairness faith freedom goodness grace gratitude harmony "
     "health honesty honor hope humility humor joy justice kindness knowledge laughter learning love loyalty "
     "luck manners mercy modesty music patience peace practice praise respect sharing silence skill strength "
     "talent teamwork thrift tidiness trust truth wisdom wonder"},
    {"weather", "",
     "balmy blazing breezy brisk chilly clear cloudy damp dewy dreary drizzly foggy gusty hazy humid mellow "
     "misty moist muggy murky rainy shadowy showery snowy soggy stormy sultry sunny windy wintry"},
    {"game", "",
     "ball baseball bingo bowls charades checkers chess croquet darts dominoes football handball hockey "
     "kickball leapfrog lacrosse pinball rounders rugby skittles soccer softball squash tag tennis"},
    {"said", "",
     "called cried croaked exclaimed gasped mumbled murmured muttered panted said shouted sighed squeaked "
     "stammered whispered yelled"},
};

#endif
