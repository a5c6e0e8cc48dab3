// The word lists of the story grammar (see stories.h); words are separated by blanks.
//
// Lists are typed by what can sensibly be said: things one can carry, things one can eat, places one can be
// in. No list may hold a word twice; no name may stand in two lists (the parser could not tell which was
// meant).
#ifndef DATA_STORY_WORDS_H
#define DATA_STORY_WORDS_H

typedef struct {
    const char *name;
    const char *forms; // pronouns for every word of the list, "he=she his=her", or ""
    const char *words;
} WordList;

#define SHE "he=she him=her his=her self=herself"
#define HE  "he=he him=him his=his self=himself"

static const WordList word_lists[] = {
    {"girl_word", "", "girl"},
    {"boy_word", "", "boy"},
    {"girl_name", SHE,
     "Ada Alice Amelia Anna Astrid Bella Bonnie Bridget Carmen Cecily Clara Cora Daisy Dora Edith Elena "
     "Elsa Emily Emma Esther Eva Fiona Flora Freya Gemma Greta Hannah Harriet Hazel Heidi Helen Ida Ingrid "
     "Irene Iris Isla Ivy Jane Jenny Josie Julia June Kate Kira Laura Leah Lena Lily Lina Lola Lucy Lydia "
     "Mabel Maria Martha Mary Maya Mia Mila Molly Nadia Nancy Nell Nina Nora Olga Pearl Petra Phoebe Polly "
     "Priya Rita Rosa Ruth Sally Sarah Selma Sofia Stella Susan Tara Tessa Thea Tilda Vera Wanda Yara Zoe"},
    {"boy_name", HE,
     "Adam Alan Albert Alfie Amir Andrew Anton Arthur Asher Ben Boris Bruno Caleb Carl Carlos Cyrus Daniel "
     "David Diego Dylan Eli Elliot Emil Eric Ethan Felix Finn Frank Fred Gabriel George Hans Harry Henry "
     "Hugo Isaac Ivan Jack Jacob James Jasper Joel Jonas Joseph Karl Kofi Kurt Leo Leon Liam Louis Lucas "
     "Luis Marcus Mark Martin Mateo Max Milo Nathan Ned Neil Nico Noah Oliver Omar Oscar Otto Owen Pablo "
     "Paul Pedro Peter Ravi Robert Rory Sam Simon Stefan Theo Thomas Tim Toby Tom Victor Walter Will "
     "Xavier Yusuf Zack"},
    {"she_pet", SHE,
     "Apple Bambi Berry Biscuit Blossom Bubbles Candy Cherry Clover Cookie Dolly Dotty Fern Flossie "
     "Flutter Ginger Gigi Honey Kiki Lulu Maple Minnie Misty Mimi Nutmeg Olive Pansy Peaches Peanut Pippa "
     "Poppy Posy Queenie Rosebud Sage Squeak Sugar Sunny Tansy Tilly Tulip Twinkle Velvet Willow"},
    {"he_pet", HE,
     "Acorn Ash Bandit Barley Barnaby Basil Bertie Bingo Boots Bramble Bumble Buster Button Cedar Chester "
     "Chip Comet Copper Crumble Dash Digger Domino Dusty Fidget Flint Fuzz Gizmo Gus Jumble Jupiter Monty "
     "Mopsy Muffin Nibbles Nugget Oats Patch Pebble Pepper Pickle Pip Pogo Puddle Rusty Scamp Smudge "
     "Sparky Teddy Tumble Ziggy"},
    {"animal", "",
     "alpaca badger bat bear beaver bee beetle calf camel cat crane cricket crow deer dog donkey dove duck "
     "duckling elephant fawn ferret finch fox frog gecko giraffe goat goose gosling hamster hare hedgehog "
     "heron jackdaw kangaroo kitten koala lamb lemur lion lizard llama lynx magpie mole monkey moose mouse "
     "newt otter owl panda parrot pelican penguin pigeon piglet pony puffin puppy rabbit raccoon raven "
     "reindeer robin seal sheep skunk sloth snail sparrow squirrel stork swallow swan tiger toad toucan "
     "turtle walrus weasel wolf wombat wren yak zebra"},
    {"trait", "",
     "active amiable bold brave bright busy calm careful caring cautious charming cheeky cheerful clever "
     "clumsy curious daring dainty devoted dreamy eager earnest faithful fearless friendly funny fussy "
     "generous gentle giggly graceful gracious handy hardy helpful honest hopeful humble jaunty jolly "
     "jovial keen kind lively loyal lucky mannerly merry mild modest neat nimble noble patient peppy perky "
     "playful plucky polite quick quiet ragged restless scruffy sensible serious shaggy sharp shy silly "
     "sleepy sly smart sociable solemn spirited spry steady stout stubborn sturdy tender tidy timid "
     "tireless trusty wise witty zany"},
    {"house_kind", "",
     "burrow cabin castle chalet cottage cave den hut lodge mansion shack shed tent tower villa wagon"},
    {"air", "",
     "airy ancient breezy busy chilly clean cool cosy creaky crooked dark dim dusty elegant empty foggy "
     "frosty grand grassy humble icy leafy lonely lovely misty mossy narrow noisy old plain quiet rickety "
     "roomy round rustic shabby shady silent sleepy snug sunny tall tidy tiny warm wide wild"},
    {"town_first", "",
     "Alder Amber Apricot Arrow Autumn Badger Barrel Beech Bell Birch Bishop Bracken Briar Bridge Candle "
     "Castle Cobble Coral Crow Crystal Dew Dragon Eagle Echo Elm Falcon Feather Fiddle Fox Frost Garden "
     "Goose Granite Harvest Hawk Heron Holly Iron Juniper King Kettle Lantern Lark Laurel Linden Marble "
     "Meadow Mill Moon Moss Nettle Oak Orchid Otter Owl Pepper Pine Plum Quail Queen Rain Raven Reed River "
     "Robin Rose Salt Shadow Shell Silver Snow Spring Star Stone Storm Summer Swan Thistle Thorn Timber "
     "Tower Turtle Violet Walnut Water Wheat Winter Wolf"},
    {"town_last", "",
     "Bay Beach Bend Bluff Brook Cliff Cove Creek Dale Falls Farm Field Ford Gate Glen Green Grove Harbor "
     "Haven Heath Hill Hollow Island Lake Landing Lane Marsh Park Pass Point Pond Ridge Rock Shore Springs "
     "Valley View Village Wood"},
    {"colour", "",
     "amber aqua azure beige black blue bronze brown copper coral cream crimson emerald golden green grey "
     "indigo ivory lilac lime maroon mauve navy ochre olive orange pink purple red rosy ruby scarlet "
     "silver tan teal violet white yellow"},
    {"look", "",
     "ancient antique big bright broad bulky chunky crisp curved cute dainty dusty elegant famous fancy "
     "fine flashy fragile glossy glowing grand heavy huge large light little lovely magic massive mighty "
     "modern odd old painted perfect plain pretty proper quaint rare round shiny silky simple sleek "
     "slender slim small smart smooth special spotted strange striped strong stylish superb thick thin "
     "tiny useful"},
    {"thing", "",
     "anchor axe badge bag banjo banner basin basket bead bell belt bicycle bonnet book bottle bowl box "
     "brooch broom brush bucket button cane canoe cap card carpet cart chair clock cloak coat coin comb "
     "compass crayon crown cup cushion diary doll drum easel fan feather fiddle flag flute fork globe "
     "goblet guitar hammer hammock harp hat helmet hoop horn jacket jar jewel journal jug kettle key kite "
     "ladder ladle lamp lantern locket lute magnet map marble medal mirror mitten mug net oar parasol pen "
     "pencil pendant piano pillow pipe pitcher plate pot puppet purse puzzle quilt racket rattle ribbon "
     "ring robe rocket rope ruler saddle sail scarf scooter shawl shovel sled slipper spade spoon stamp "
     "statue stool sword teacup teapot thimble ticket top torch train tray trophy trumpet trunk ukulele "
     "vase vest violin wallet watch whistle wreath yo-yo"},
    {"job", "",
     "acrobat archer artist author baker banker barber builder butcher captain carpenter carver chef clerk "
     "clown cobbler composer cook dancer dentist doctor drummer farmer fiddler florist gardener glazier "
     "goldsmith grocer guard hatter hunter innkeeper inventor janitor jeweler judge juggler knight "
     "librarian magician mason mayor merchant miller miner minister musician nurse painter peddler pilot "
     "piper plumber poet porter potter printer ranger sailor scholar sculptor shepherd singer soldier "
     "tailor teacher tinker trader weaver"},
    {"relative", "",
     "aunt brother cousin father godfather godmother grandfather grandmother grandpa granny mother nanny "
     "neighbor nephew niece sister uncle"},
    {"in_place", "",
     "alley attic backyard bakery barn barnyard basement bookshop cavern cellar chapel church classroom "
     "clearing cornfield courtyard factory fields forest gallery garage garden hallway hayloft jungle "
     "kitchen laundry library meadow monastery museum nursery orchard palace pantry parlor pasture plaza "
     "quarry ravine school shipyard shop smithy snowdrift stable storeroom street studio temple theater "
     "thicket tunnel vineyard warehouse workshop yard zoo"},
    {"by_place", "",
     "aqueduct beehives boathouse boulders bridge canal campfire cliffs coast dam docks dunes ferry fence "
     "fireplace flagpole footpath fort fountain gatehouse geyser glacier haystack hedge icehouse inlet "
     "jetty lagoon mailbox maypole moat oasis ocean pier quay railway rapids reservoir riverbank roadside "
     "ruins scarecrow signpost statues stream sundial swings volcano waterfall well wharf"},
    {"under_place", "",
     "bathtub bed bench blanket bookcase boards bushes cabinet couch counter cradle cupboard curtain desk "
     "doormat doorstep drawers dresser eaves ferns floor gravel hay icicles leaves log mattress mud oven "
     "planks porch rug sacks sand sink sofa stairs stones stove straw table tarp trapdoor trough tub "
     "wardrobe woodpile"},
    {"food", "",
     "almonds apples apricots bacon bananas barley beans beets berries biscuits bread broccoli buns butter "
     "cabbage cake candy carrots celery cheese cherries corn crackers currants custard dates eggs figs "
     "fudge garlic grapes gravy ham honey jam jelly lemons lentils lettuce melon milk mint muffins mustard "
     "noodles nuts oatmeal olives onions oranges pancakes parsley parsnips pasta peaches peanuts pears "
     "peas pickles plums popcorn porridge potatoes pretzels pumpkin radishes raisins rhubarb rice salad "
     "salt sausages spinach sugar syrup tea toast toffee tomatoes turnips vanilla vinegar waffles walnuts "
     "yogurt"},
    {"dish", "",
     "banquet broth buffet chowder cobbler crumble curry dessert dinner feast flan goulash hotpot loaf "
     "lunch meal omelet pastry pie pizza platter pudding quiche roast salad snack souffle soup stew "
     "strudel supper tart trifle"},
    {"taste", "",
     "bitter bland buttery cold creamy crispy crunchy fluffy fresh fruity greasy hot icy juicy lukewarm "
     "nutty peppery plain rich ripe salty savory smoky soft sour spicy steaming sticky strong sweet tangy "
     "tasty warm yummy zesty"},
    {"adverb", "",
     "boldly bravely briefly briskly brightly busily calmly carefully casually clearly cleverly clumsily "
     "coolly coyly curiously daringly deftly dreamily eagerly earnestly easily elegantly excitedly firmly "
     "fondly formally freely gaily gently gladly gleefully happily hastily heartily helpfully honestly "
     "hopefully humbly hurriedly joyfully keenly kindly lazily lightly loudly lovingly merrily mildly "
     "modestly nicely openly patiently playfully politely promptly proudly quickly quietly readily "
     "serenely sharply silently slowly slyly smoothly sneakily softly solemnly somberly sweetly swiftly "
     "tenderly urgently warmly wildly wisely"},
    {"sad_adverb", "",
     "absently angrily anxiously bashfully bleakly crossly dully fearfully gloomily glumly gravely grimly "
     "gruffly meekly nervously sadly shyly sternly tearfully timidly tiredly warily weakly wearily "
     "wistfully"},
    {"move", "",
     "ambled bounced bounded bustled charged climbed crawled crept danced darted dashed fled glided hiked "
     "hobbled hopped hurried jogged jumped leaped limped loped marched paced paraded plodded pranced raced "
     "rambled ran roamed rolled rushed skipped slid slipped sneaked sped stepped stomped strode swept "
     "tiptoed toddled tramped trekked trotted trudged tumbled twirled waddled walked waltzed went zoomed"},
    {"glad", "",
     "amazed amused blessed calm charmed cheered cheery content elated excited giddy glad happy hopeful "
     "joyful joyous loved lucky merry playful pleased proud radiant relaxed safe serene soothed touched "
     "upbeat warm welcome"},
    {"sad", "",
     "abandoned afraid alarmed alone angry annoyed anxious ashamed awful bored bothered cold confused "
     "cranky cross crushed dejected desperate dismal dizzy doubtful downcast exhausted fearful foolish "
     "forgotten forlorn furious gloomy glum grumpy helpless homesick hopeless hurt impatient irritated "
     "jealous lonely lost miserable moody mournful nervous panicky puzzled rattled sad scared shaky "
     "shocked sorrowful sorry sulky tearful tired troubled uneasy unhappy unlucky unwanted upset useless "
     "weary weepy worried wretched"},
    {"weather", "",
     "balmy bitter blazing bleak breezy bright brisk calm chilly clear cloudy cold cool crisp damp dark "
     "dewy drab dreary drizzly dry dull foggy fresh frosty gloomy golden gusty hazy hot humid icy mellow "
     "mild misty moist muggy murky pale quiet radiant rainy raw shadowy showery snowy soggy still stormy "
     "sultry sunny warm wet windy wintry"},
    {"storm", "",
     "bitter bleak chilly dark dismal drizzly foggy frosty gloomy gusty icy misty rainy snowy stormy wet "
     "windy"},
    {"month", "", "January February March April May June July August September October November December"},
    {"weekday", "", "Monday Tuesday Wednesday Thursday Friday Saturday Sunday"},
    {"day_part", "", "afternoon day evening morning"},
    {"bits", "",
     "acorns arrows badges beads bells blocks bolts bones books boots bottles bows boxes bricks brooms "
     "brushes bubbles buckles buttons candles cards chalks chains charms coins combs cones corks crayons "
     "cups daisies dolls erasers flags flutes forks gems gloves hats hooks keys kites knots labels letters "
     "lids magnets maps marbles masks matches medals mittens nails napkins needles notes paints pans "
     "pearls pebbles pencils pens petals photos pins pipes plates poems posters pots puppets puzzles "
     "ribbons riddles rings rocks scarves screws seeds shells shoes socks spoons springs stamps sticks "
     "stools strings tacks tassels teacups threads tickets tiles toys twigs wheels"},
    {"number", "", "two three four five six seven eight nine ten eleven twelve"},
    {"noise", "",
     "Bam Bang Boing Bonk Boom Bump Clang Clank Clatter Click Clunk Crack Crackle Crash Creak Crunch Ding "
     "Fizz Flap Gurgle Hiss Hush Jingle Klop Ping Plink Plop Poof Pop Rattle Ring Rip Rumble Rustle Scrape "
     "Slam Smack Snap Splash Splat Squelch Swish Swoosh Tap Thud Thump Thwack Tinkle Twang Whack Wham Whir "
     "Whizz Whoosh Zap Zing"},
    {"said", "",
     "bellowed blurted called cried croaked declared insisted mumbled murmured muttered panted said "
     "shouted squeaked yelled"},
    {"sad_said", "", "cried groaned moaned mumbled said sighed sniffed sobbed wailed"},
    {"glad_said", "", "called cheered chirped cried giggled laughed purred said sang shouted"},
    {"material", "",
     "bamboo brass brick canvas clay copper cork cotton glass gold iron leather marble metal oak paper "
     "pine rubber silk steel straw string tin wax wire wood wool"},
    {"clothes", "",
     "anorak apron ascot bathrobe beret blazer blouse bonnet cape cap cardigan cloak coat costume dress "
     "frock gown hat headband helmet hood jacket jersey jumpsuit kerchief kilt kimono necktie overcoat "
     "parka poncho pullover raincoat robe sash scarf shawl shirt skirt smock suit sunhat sweater toga "
     "tunic turban tuxedo uniform veil vest wig"},
    {"tool", "",
     "axe barrel basket blanket broom bucket chisel clamp crate crowbar drill funnel hammer hatchet hoe "
     "hook jack knife ladder ladle lantern lever mallet mop needle paddle pail pickaxe plank pole pulley "
     "rake rod rope sack saw scoop shovel sickle sieve spade stick stool trowel wedge wrench"},
    {"vehicle", "",
     "balloon barge bicycle boat bus canoe cart coach ferry gondola kayak liner rowboat raft scooter ship "
     "sled sleigh tandem taxi tractor train tram trolley truck van wagon yacht"},
    {"flower", "",
     "asters azaleas begonias bluebells buttercups camellias carnations clovers crocuses daffodils dahlias "
     "dandelions foxgloves gardenias geraniums gladioli heathers hollyhocks hyacinths hydrangeas irises "
     "jasmines larkspurs lavenders lilacs lilies lupins magnolias marigolds orchids pansies peonies "
     "petunias poppies primroses roses snowdrops sunflowers thistles tulips violets wisterias zinnias"},
    {"tree", "",
     "apple ash beech birch cedar cherry chestnut elm fig fir hazel holly lemon lime maple oak olive palm "
     "pear pine plum poplar spruce walnut willow yew"},
    {"game", "",
     "ball baseball bingo bowls cards charades checkers chess cricket croquet darts dominoes football golf "
     "handball hockey kickball leapfrog lacrosse marbles pinball polo quoits rounders rugby skittles snap "
     "soccer softball squash tag tennis"},
    {"virtue", "",
     "bravery cheer comfort courage courtesy curiosity fairness faith freedom fun goodness grace gratitude "
     "harmony health honesty honor hope humility humor joy justice kindness knowledge laughter learning "
     "love loyalty luck manners mercy modesty music order patience peace practice praise respect sharing "
     "silence skill strength talent teamwork thrift tidiness trust truth wisdom wit wonder"},
};

#endif
