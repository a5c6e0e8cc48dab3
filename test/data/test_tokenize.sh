#!/bin/bash
# The tokenize command: text comes back byte for byte through every way to cut it into documents, splits and shards; what
# inspect says; and each mistake with its message and exit status.
#     BUILD=build/cpu test/data/test_tokenize.sh
. "$(dirname "$0")/../test.sh"
tokenize=$build/data/tokenize
program=("$tokenize")

# round TEXT WORD...: encodes with these words; decoding gives the text again.
round() {
    local text=$1
    shift
    rm -f x_*.bin
    accept "tokens" encode --tokenizer tokenizer.json --input "$text" --out x "$@"
    "$tokenize" decode --tokenizer tokenizer.json --input 'x_*.bin' --overwrite --out back.txt >out.txt 2>&1 || fail "decode: $(cat out.txt)"
    same "$text" back.txt "$@"
}

# ---- train ------------------------------------------------------------------------------------------------------------------

"$build/data/write_stories" --train-bytes 60k --validation-stories 20 --out text >/dev/null 2>&1 || fail "write_stories"
head -c 30000 text/train.txt >one.txt
tail -c +30001 text/train.txt >two.txt
accept "^tokenizer.json: 400 tokens, 143 merges, checksum" train --input text/train.txt --vocab 400
accept "^again.json: 400 tokens" train --input text/train.txt --vocab 400 --out again.json
same tokenizer.json again.json
accept "^bytes.json: 256 tokens, 0 merges" train --input one.txt --vocab 256 --out bytes.json
accept "^several.json: 300 tokens" train --input one.txt two.txt --vocab 300 --out several.json
accept "from 0.1 MB" train --input '{one,tw?}.txt' --vocab 300 --out pattern.json
same several.json pattern.json
printf 'ab<|endoftext|>ab#ab#ab<|endoftext|>' >separated.txt
accept "258 tokens, 1 merges" train --input separated.txt --vocab 258 --out separated.json
refuse "pair" train --input separated.txt --vocab 270 --out never.json
accept "tokens" train --input separated.txt --vocab 259 --separator '#' --out other.json
holds [ ! -e never.json ]

# ---- encode and decode ------------------------------------------------------------------------------------------------------

round text/validation.txt
documents=$(($(grep -o '<|endoftext|>' text/validation.txt | wc -l) + 1))
accept "^all: [0-9]+ tokens, $documents documents, ids [0-9]+ to 399 of 400, tokenizer checksum [0-9a-f]{8}$" \
    inspect --tokenizer tokenizer.json --input x_000000.bin
holds grep -qE '^x_000000.bin: [0-9]+ tokens, uint16$' out.txt
holds grep -qE '^begins with: <\|endoftext\|>' out.txt
"$tokenize" decode --tokenizer tokenizer.json --input x_000000.bin >back.txt && same text/validation.txt back.txt "to standard output"
round text/train.txt --shard-tokens 1k
shards=$(find . -name 'x_*.bin' | wc -l)
holds [ "$shards" -gt 10 ]
holds [ -z "$(find . -name 'x_*.bin' -size +3049c)" ]
accept "encoded" encode --tokenizer tokenizer.json --input text/train.txt --out x --shard-tokens 5k # fewer: the rest goes
holds [ "$(find . -name 'x_*.bin' | wc -l)" -lt "$shards" ]
"$tokenize" decode --tokenizer tokenizer.json --input 'x_*.bin' --overwrite --out back.txt
same text/train.txt back.txt "fewer shards than before"

printf '<|endoftext|><|endoftext|>a<|endoftext|>' >empty_documents.txt
printf 'no end of line, and half a separator <|endoftext' >no_end.txt
printf 'x' >short.txt
python3 -c "
import random, sys
random.seed(1)
sys.stdout.buffer.write(bytes(random.randrange(256) for _ in range(20000)) + b'\r\n\0\0<|endoftext|>\xff\xc3')" >binary.txt
for text in empty_documents.txt no_end.txt short.txt binary.txt; do
    round $text
    round $text --shard-tokens $(($(stat -c %s $text) / 50 + 1))
    round $text --whole-files
done
accept "3 documents" encode --tokenizer tokenizer.json --input separated.txt --out x --separator '#'
"$tokenize" decode --tokenizer tokenizer.json --input x_000000.bin --overwrite --out back.txt --separator '#'
same separated.txt back.txt "another separator, and <|endoftext|> as text"
"$tokenize" decode --tokenizer tokenizer.json --input x_000000.bin --separator $'\n--\n' >back.txt
same back.txt <(sed 's/#/\n--\n/g' separated.txt) "another separator on the way back"

# Every file begins a document; with --whole-files it is one.
printf 'a<|endoftext|>b' >first.txt
printf 'c' >second.txt
accept "3 documents" encode --tokenizer tokenizer.json --input first.txt second.txt --out x
"$tokenize" decode --tokenizer tokenizer.json --input x_000000.bin >back.txt
same back.txt <(printf 'a<|endoftext|>b<|endoftext|>c') "two files"
accept "2 documents" encode --tokenizer tokenizer.json --whole-files first.txt second.txt --out x
accept "^all: [0-9]+ tokens, 2 documents" inspect --tokenizer tokenizer.json x_000000.bin
# A tokenizer of bytes alone has no end of text: a token a byte.
accept "tokens" encode --tokenizer bytes.json --input binary.txt --out x
holds [ "$(stat -c %s x_000000.bin)" = $((1024 + 2 * $(stat -c %s binary.txt))) ]
"$tokenize" decode --tokenizer bytes.json --input x_000000.bin --overwrite --out back.txt
same binary.txt back.txt "bytes alone"

# ---- what exists is not replaced ------------------------------------------------------------------------------------------


"$tokenize" encode --tokenizer tokenizer.json --input first.txt --out copied >/dev/null
for i in 1 2 3; do cp copied_000000.bin fw_train_00000$i.bin; done
refuse "fw_train_00000[123].bin' exists" encode --tokenizer tokenizer.json --input one.txt --out fw_train
holds [ "$(ls fw_train* | wc -l)" = 3 ] # nothing is written, either
for i in 1 2 3; do same copied_000000.bin fw_train_00000$i.bin "a shard that others wrote"; done
refuse "fw_train_00000[123].bin' exists" encode --tokenizer tokenizer.json --input two.txt one.txt --out fw --validation-every 2
accept "^warning: 'fw_train_00000[123].bin' is not of this set and is left" encode --tokenizer tokenizer.json --input one.txt --out fw_train --overwrite
holds [ "$(ls fw_train* | wc -l)" = 4 ]
echo '{}' >kept.json
cp one.txt kept.txt
cp tokenizer.json edited.json
echo >>edited.json
refuse "'kept.json' exists: .*--overwrite" train --input one.txt --vocab 300 --out kept.json
refuse "'edited.json' exists: .*--overwrite" train --input one.txt --vocab 300 --out edited.json
refuse "'kept.txt' exists: .*--overwrite" decode --tokenizer tokenizer.json x_000000.bin --out kept.txt
refuse "'/dev/null': it is not a regular file" decode --tokenizer tokenizer.json x_000000.bin --out /dev/null --overwrite
same kept.txt one.txt "a file that is there"
holds [ "$(cat kept.json)" = '{}' ]
accept "^again.json: 300 tokens" train --input one.txt --vocab 300 --out again.json # ours
accept "^kept.json: 300 tokens" train --input one.txt --vocab 300 --out kept.json --overwrite
holds cmp -s again.json kept.json
# write_stories replaces only its own files, too.
program=("$build/data/write_stories" --out corpus --validation-stories 20)
for name in train.txt validation.txt floor.json; do
    rm -rf corpus
    mkdir corpus
    cp one.txt corpus/$name
    echo more >>corpus/$name
    cp corpus/$name kept.txt
    refuse "'corpus/$name' exists: .*--overwrite" --train-bytes 20k
    same kept.txt corpus/$name "a file that others wrote"
    holds [ "$(ls corpus)" = "$name" ]
done
accept "20 validation stories" --train-bytes 20k --overwrite
accept "20 validation stories" --train-bytes 30k --ngram 2 # its own
accept "20 validation stories" --no-write
program=("$tokenize")

# ---- splits -----------------------------------------------------------------------------------------------------------------

# documents FILE: how many there are.
documents() { "$tokenize" inspect --tokenizer tokenizer.json "$1" | sed -n 's/^all: .* \([0-9]*\) documents.*/\1/p'; }
seq -s '<|endoftext|>' 100 | tr -d '\n' >numbers.txt
accept "^validation: [0-9]+ tokens, 20 documents" encode --tokenizer tokenizer.json --input numbers.txt --out s --validation-every 5
holds [ "$(documents s_train_000000.bin) $(documents s_val_000000.bin)" = "80 20" ]
"$tokenize" decode --tokenizer tokenizer.json s_val_000000.bin >back.txt
same back.txt <(seq -s '<|endoftext|>' 5 5 100 | tr -d '\n') "every fifth document"
accept "^training: [0-9]+ tokens, 97 documents" encode --tokenizer tokenizer.json --input numbers.txt --out s --validation-fraction 0.03
holds [ "$(documents s_train_000000.bin) $(documents s_val_000000.bin)" = "97 3" ]
accept "^validation: [0-9]+ tokens, 1 document" encode --tokenizer tokenizer.json --input text/train.txt --whole-files --out s \
    --validation-fraction 0.1 # a single document gives its end
for part in train val; do "$tokenize" decode --tokenizer tokenizer.json s_${part}_000000.bin --overwrite --out $part.txt; done
same text/train.txt <(cat train.txt val.txt) "the two parts of a single document"
holds [ $(($(stat -c %s val.txt) * 100 / $(stat -c %s text/train.txt))) -ge 9 ]
refuse "exclude each other" encode --tokenizer tokenizer.json --input numbers.txt --out s --validation-every 5 --validation-fraction 0.1
refuse "of 100 documents, 0 would be for validation" encode --tokenizer tokenizer.json --input numbers.txt --out s --validation-every 101
refuse "of 100 documents, 100 would be" encode --tokenizer tokenizer.json --input numbers.txt --out s --validation-every 1
refuse "without a place to cut" encode --tokenizer tokenizer.json --input short.txt --out s --validation-fraction 0.5

# ---- more than 65536 tokens ---------------------------------------------------------------------------------------------------

mkdir many
python3 - <<'END'
import json
printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
tokens = [chr(b) for b in printable] + [chr(256 + i) for i in range(68)]
tokens += [f"number{i}" for i in range(70000)] + ["th", "<|endoftext|>"]
json.dump({token: i for i, token in enumerate(tokens)}, open("many/encoder.json", "w"))
open("many/vocab.bpe", "w").write("#version: 0.2\nt h\n")
END
accept "tokens" encode --tokenizer many --input text/validation.txt --out wide
accept "^wide_000000.bin: [0-9]+ tokens, uint32$" inspect --tokenizer many wide_000000.bin
holds grep -qE 'ids [0-9]+ to 70257 of 70258' out.txt
"$tokenize" decode --tokenizer many wide_000000.bin --overwrite --out back.txt
same text/validation.txt back.txt "uint32"

# ---- mistakes ---------------------------------------------------------------------------------------------------------------

refuse "'learn' is not a command" learn
refuse "there is no option --vocabulary; did you mean --vocab" train --vocabulary 5
refuse "--vocab must be between 256 and" train --input one.txt --vocab 255
refuse "--input is missing" train --vocab 300
refuse "--tokenizer is missing" encode --input one.txt --out e
refuse "--out is missing" encode --tokenizer tokenizer.json --input one.txt
refuse "--separator is missing" encode --tokenizer tokenizer.json --input one.txt --out e --separator=
refuse "absent.txt" encode --tokenizer tokenizer.json --input absent.txt --out e
refuse "absent.txt" encode --tokenizer tokenizer.json one.txt absent.txt --out e
: >empty.txt
refuse "empty.txt is empty" encode --tokenizer tokenizer.json --input empty.txt --out e
refuse "text is not a file" encode --tokenizer tokenizer.json --input text --out e
refuse "absent.json" encode --tokenizer absent.json --input one.txt --out e
refuse "one.txt" encode --tokenizer one.txt --input one.txt --out e
refuse "text has no tokenizer|text" encode --tokenizer text --input one.txt --out e
refuse "/proc/e" encode --tokenizer tokenizer.json --input one.txt --out /proc/e
refuse "one.txt/e" encode --tokenizer tokenizer.json --input one.txt --out one.txt/e
refuse "/proc/t.json" train --input one.txt --vocab 300 --out /proc/t.json
refuse "--shard-tokens must be between" encode --tokenizer tokenizer.json --input one.txt --out e --shard-tokens 0
refuse "cannot write" decode --tokenizer tokenizer.json x_000000.bin --out /dev/full/x
refuse "token 0 of wide_000000.bin is 70257, expected 0 to 399" decode --tokenizer tokenizer.json wide_000000.bin --out never.txt
refuse "token 0 of wide_000000.bin is 70257" inspect --tokenizer tokenizer.json wide_000000.bin
refuse "one.txt" decode --tokenizer tokenizer.json one.txt --out never.txt
holds [ ! -e never.txt ]
holds [ -z "$(find . -name "e_*" -o -name "*.tmp")" ] # nothing is left by what was refused
"$tokenize" decode --tokenizer tokenizer.json x_000000.bin >/dev/full 2>out.txt && fail "a full disk is not noticed" || pass
holds grep -qE '^error: cannot write standard output' out.txt
for words in --help "train --help" "encode --help" "decode --help" "inspect --help"; do accept "usage: tokenize" $words; done
"$tokenize" >out.txt 2>&1 && fail "without a command it succeeds" || pass

finish
