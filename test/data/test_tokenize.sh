#!/bin/bash
# The tokenize command: text is restored byte for byte for all ways to divide it into documents, splits and shards;
# the output of inspect; and each user error with its message and exit status.
#     BUILD=build/cpu test/data/test_tokenize.sh
. "$(dirname "$0")/../harness/test.sh"
tokenize=$build/data/tokenize
program=("$tokenize")

# round TEXT WORD...: encodes with these words; decoding must restore the text.
round() {
    local text=$1
    shift
    rm -f x_*.bin
    accept "tokens" encode --tokenizer tokenizer.json --input "$text" --out x "$@"
    "$tokenize" decode --tokenizer tokenizer.json --input 'x_*.bin' --overwrite --out back.txt >out.txt 2>&1 || fail "decode: $(cat out.txt)"
    same "$text" back.txt "$@"
}

# ---- train -----------------------------------------------------------------------------------------------------------

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
accept "^warning: the text is too small for a vocabulary of 270 tokens: after 258, no pair" train --input separated.txt --vocab 270 --out small.json
holds grep -q "^small.json: 258 tokens, 1 merges" out.txt
accept "tokens" train --input separated.txt --vocab 259 --separator '#' --out other.json
accept "^new/folder/tokenizer.json: 300 tokens" train --input one.txt --vocab 300 --out new/folder/tokenizer.json

# ---- encode and decode -----------------------------------------------------------------------------------------------

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
# Fewer shards: the others are removed.
accept "encoded" encode --tokenizer tokenizer.json --input text/train.txt --out x --shard-tokens 5k
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

# Every file begins a document; with --whole-files it is a single one.
printf 'a<|endoftext|>b' >first.txt
printf 'c' >second.txt
accept "3 documents" encode --tokenizer tokenizer.json --input first.txt second.txt --out x
"$tokenize" decode --tokenizer tokenizer.json --input x_000000.bin >back.txt
same back.txt <(printf 'a<|endoftext|>b<|endoftext|>c') "two files"
accept "2 documents" encode --tokenizer tokenizer.json --whole-files first.txt second.txt --out x
accept "^all: [0-9]+ tokens, 2 documents" inspect --tokenizer tokenizer.json x_000000.bin
# A tokenizer of bytes only has no end-of-text token: one token per byte.
accept "^warning: bytes.json has no end-of-text token, so that documents are not separated" encode --tokenizer bytes.json --input binary.txt --out x
refuse "bytes.json has no token to put where --separator '#' stands: .*--end-of-text" encode --tokenizer bytes.json --input binary.txt --out x --separator '#'
holds [ "$(stat -c %s x_000000.bin)" = $((1024 + 2 * $(stat -c %s binary.txt))) ]
"$tokenize" decode --tokenizer bytes.json --input x_000000.bin --overwrite --out back.txt
same binary.txt back.txt "bytes alone"

# ---- formats of corpora ----------------------------------------------------------------------------------------------

# tokens_of FILE: prints a shard without its header, which depends on the name.
tokens_of() { tail -c +1025 "$1"; }
# Three documents as JSON lines, one with the separator and escapes, one empty; and the same documents as plain text.
python3 - <<'END'
import json, random
texts = ["a <|endoftext|> b \"\u00e9\u6587\U0001f600\n", "", "second\tline"]
open("lines.jsonl", "w").write("\n".join(json.dumps({"id": i, "text": t, "other": {"text": 1}}) for i, t in enumerate(texts)) + "\n\n")
open("body.jsonl", "w").write("\r\n".join(json.dumps({"body": t}, ensure_ascii=False) for t in texts))
for i, t in enumerate(texts): open(f"document{i}.txt", "w").write(t)
random.seed(2)
many = ["".join(random.choice("ab \u00e9<|>") for _ in range(random.randrange(400))) for _ in range(3000)]
open("many.jsonl", "w").write("".join(json.dumps({"text": t}) + "\n" for t in many))
open("many_documents.txt", "w").write("<|endoftext|>".join(many))
END
accept "^encoded: [0-9]+ tokens, 3 documents" encode --tokenizer tokenizer.json --input lines.jsonl --out lines
"$tokenize" decode --tokenizer tokenizer.json lines_000000.bin --separator '@@' >back.txt
same back.txt <(cat document0.txt; printf '@@'; printf '@@'; cat document2.txt) "JSON lines"
accept "3 documents" encode --tokenizer tokenizer.json --input body.jsonl --field body --out body
same <(tokens_of lines_000000.bin) <(tokens_of body_000000.bin) "another field"
accept "3000 documents" encode --tokenizer tokenizer.json --input many.jsonl --out many
accept "3000 documents" encode --tokenizer tokenizer.json --input many_documents.txt --out many_documents
same <(tokens_of many_000000.bin) <(tokens_of many_documents_000000.bin) "lines and separated documents"
accept "^validation: [0-9]+ tokens, 30 documents" encode --tokenizer tokenizer.json --input many.jsonl --out split --validation-fraction 0.01
for field in id other absent; do refuse "lines.jsonl: line 1 has no text named '$field' \(--field gives another name\)" encode --tokenizer tokenizer.json --input lines.jsonl --field $field --out e; done
accept "^lines.json: 300 tokens" train --input many.jsonl --vocab 300 --out lines.json

# Pipes, plain and compressed; compressed files.
accept "tokens" encode --tokenizer tokenizer.json --input text/train.txt --out plain
tokens_of plain_000000.bin >plain.tokens
piped() {
    "$tokenize" encode --tokenizer tokenizer.json --out piped "$@" >out.txt 2>&1 || fail "a pipe: $(cat out.txt)"
    same plain.tokens <(tokens_of piped_000000.bin) "piped: $*"
}
cat text/train.txt | piped --input -
cat text/train.txt | piped /dev/stdin
piped <text/train.txt --input -
piped <(cat text/train.txt)
"$tokenize" encode --tokenizer tokenizer.json --field text --input - --out piped <many.jsonl >out.txt 2>&1 || fail "JSON lines from a pipe: $(cat out.txt)"
same <(tokens_of many_000000.bin) <(tokens_of piped_000000.bin) "JSON lines from a pipe"
can_read() { ! "$tokenize" encode --tokenizer tokenizer.json --input "$1" --out can 2>&1 | grep -q "was built without"; }
for kind in gz zst; do
    case $kind in gz) compress="gzip -c" library=zlib ;; zst) compress="zstd -qc" library=libzstd ;; esac
    command -v ${compress% *} >/dev/null || { echo "skipped: .$kind, there is no ${compress% *}"; continue; }
    $compress text/train.txt >train.txt.$kind
    $compress many.jsonl >many.jsonl.$kind
    if ! can_read train.txt.$kind; then
        refuse "train.txt.$kind is compressed with .*built without $library" encode --tokenizer tokenizer.json --input train.txt.$kind --out e
        continue
    fi
    piped --input train.txt.$kind
    cat train.txt.$kind | piped --input -
    (head -c 50000 text/train.txt | $compress; tail -c +50001 text/train.txt | $compress) >two_parts.$kind
    piped --input two_parts.$kind
    accept "3000 documents" encode --tokenizer tokenizer.json --input many.jsonl.$kind --out packed
    same <(tokens_of many_000000.bin) <(tokens_of packed_000000.bin) "JSON lines, .$kind"
    head -c 5000 train.txt.$kind >cut.txt.$kind
    (head -c 3000 train.txt.$kind; echo changed; tail -c +3010 train.txt.$kind) >changed.txt.$kind
    cp one.txt never_was.txt.$kind
    : | $compress >nothing.txt.$kind
    refuse "cut.txt.$kind is truncated" encode --tokenizer tokenizer.json --input cut.txt.$kind --out e
    refuse "changed.txt.$kind is damaged" encode --tokenizer tokenizer.json --input changed.txt.$kind --out e
    refuse "never_was.txt.$kind is damaged" encode --tokenizer tokenizer.json --input never_was.txt.$kind --out e
    accept "^warning: nothing.txt.$kind is empty" encode --tokenizer tokenizer.json nothing.txt.$kind one.txt --out with_empty
done

# All unusable inputs are named together, and nothing is written.
printf '{"text": "a"}\n{"text": 7}\n' >number.jsonl
printf '{"text": "a"}\n{"text": "b"' >half.jsonl
printf '{"text": "a\\u0000b"}\n' >nul.jsonl
printf '["text"]\n' >array.jsonl
refuse "6 inputs cannot be used: .*absent.txt'; .*number.jsonl: line 2 has no text.*half.jsonl: line 2 is not a JSON object.*nul.jsonl: line 1 contains a NUL.*array.jsonl: line 1 is not.*text is a folder" \
    encode --tokenizer tokenizer.json absent.txt one.txt number.jsonl half.jsonl nul.jsonl array.jsonl text --out new_folder/e
holds [ ! -e new_folder ]
accept "tokens" encode --tokenizer tokenizer.json one.txt --out new_folder/below/f
holds [ -e new_folder/below/f_000000.bin ]
export TMPDIR=/proc
refuse "cannot write a temporary file in '/proc' \(TMPDIR names another folder\)" encode --tokenizer tokenizer.json --input - --out e
unset TMPDIR

# ---- other end-of-text tokens ----------------------------------------------------------------------------------------

mkdir other_end
sed 's/<|endoftext|>/<\/s>/g' tokenizer.json >other_end.json
cp other_end.json other_end/tokenizer.json
echo '{"eos_token": "</s>"}' >other_end/tokenizer_config.json
sed 's/<|endoftext|>/<\/s>/g' text/validation.txt >validation_s.txt
accept "tokens" encode --tokenizer tokenizer.json --input text/validation.txt --out first_end
for words in "--tokenizer other_end" "--tokenizer other_end/tokenizer.json" "--tokenizer other_end.json --end-of-text </s>" "--tokenizer other_end.json --separator </s>"; do
    accept "^encoded: [0-9]+ tokens, 20 documents" encode $words --input validation_s.txt --out second_end
    same <(tokens_of first_end_000000.bin) <(tokens_of second_end_000000.bin) "$words"
    "$tokenize" decode $words second_end_000000.bin >back.txt
    same validation_s.txt back.txt "$words"
done
accept "^encoded: [0-9]+ tokens, 20 documents" encode --tokenizer other_end --separator '<|endoftext|>' --input text/validation.txt --out second_end
same <(tokens_of first_end_000000.bin) <(tokens_of second_end_000000.bin) "another separator"
accept "^all: [0-9]+ tokens, 20 documents" inspect --tokenizer other_end second_end_000000.bin
refuse "no token '<x>', which --end-of-text names" encode --tokenizer other_end --end-of-text '<x>' --input one.txt --out e
refuse "other_end.json has no token to put where --separator '#' stands" encode --tokenizer other_end.json --separator '#' --input one.txt --out e
# Added tokens, and unknown keys.
sed 's/"special": true}/"special": true}, {"id": 400, "content": "    ", "single_word": false, "lstrip": false, "rstrip": false, "normalized": true, "special": false}/' tokenizer.json >spaces.json
printf 'if x:\n    return y\n' >code.txt
accept "^encoded" encode --tokenizer spaces.json --input code.txt --out code
holds [ "$(tokens_of code_000000.bin | od -An -tu2 -v | tr -s ' \n' '\n' | grep -c '^400$')" = 1 ]
"$tokenize" decode --tokenizer spaces.json code_000000.bin >back.txt
same code.txt back.txt "added tokens"
sed 's/"padding": null/"padding": {}/' tokenizer.json >padding.json
refuse "padding.json: padding adds .*--ignore-key padding ignores it" encode --tokenizer padding.json --input one.txt --out e
accept "^encoded" encode --tokenizer padding.json --ignore-key x,padding --input one.txt --out padded

# ---- existing files are not replaced ---------------------------------------------------------------------------------


"$tokenize" encode --tokenizer tokenizer.json --input first.txt --out copied >/dev/null
for i in 1 2 3; do cp copied_000000.bin fw_train_00000$i.bin; done
refuse "fw_train_00000[123].bin' exists" encode --tokenizer tokenizer.json --input one.txt --out fw_train
holds [ "$(ls fw_train* | wc -l)" = 3 ] # and nothing is written
for i in 1 2 3; do same copied_000000.bin fw_train_00000$i.bin "a shard that others wrote"; done
refuse "fw_train_00000[123].bin' exists" encode --tokenizer tokenizer.json --input two.txt one.txt --out fw --validation-every 2
accept "^warning: 'fw_train_00000[123].bin' is not part of this set of shards and is kept" encode --tokenizer tokenizer.json --input one.txt --out fw_train --overwrite
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
accept "^again.json: 300 tokens" train --input one.txt --vocab 300 --out again.json # written by this program
accept "^kept.json: 300 tokens" train --input one.txt --vocab 300 --out kept.json --overwrite
holds cmp -s again.json kept.json
# write_stories also replaces only its own files.
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

# ---- splits ----------------------------------------------------------------------------------------------------------

# documents FILE: prints their number.
documents() { "$tokenize" inspect --tokenizer tokenizer.json "$1" | sed -n 's/^all: .* \([0-9]*\) documents.*/\1/p'; }
seq -s '<|endoftext|>' 100 | tr -d '\n' >numbers.txt
accept "^validation: [0-9]+ tokens, 20 documents" encode --tokenizer tokenizer.json --input numbers.txt --out s --validation-every 5
holds [ "$(documents s_train_000000.bin) $(documents s_val_000000.bin)" = "80 20" ]
"$tokenize" decode --tokenizer tokenizer.json s_val_000000.bin >back.txt
same back.txt <(seq -s '<|endoftext|>' 5 5 100 | tr -d '\n') "every fifth document"
accept "^training: [0-9]+ tokens, 97 documents" encode --tokenizer tokenizer.json --input numbers.txt --out s --validation-fraction 0.03
holds [ "$(documents s_train_000000.bin) $(documents s_val_000000.bin)" = "97 3" ]
accept "^validation: [0-9]+ tokens, 1 document" encode --tokenizer tokenizer.json --input text/train.txt --whole-files --out s \
    --validation-fraction 0.1 # the end of a single document
for part in train val; do "$tokenize" decode --tokenizer tokenizer.json s_${part}_000000.bin --overwrite --out $part.txt; done
same text/train.txt <(cat train.txt val.txt) "the two parts of a single document"
holds [ $(($(stat -c %s val.txt) * 100 / $(stat -c %s text/train.txt))) -ge 9 ]
refuse "exclude each other" encode --tokenizer tokenizer.json --input numbers.txt --out s --validation-every 5 --validation-fraction 0.1
refuse "of 100 documents, 0 would be for validation" encode --tokenizer tokenizer.json --input numbers.txt --out s --validation-every 101
refuse "of 100 documents, 100 would be .*--validation-fraction" encode --tokenizer tokenizer.json --input numbers.txt --out s --validation-every 1
refuse "without a place to cut" encode --tokenizer tokenizer.json --input short.txt --out s --validation-fraction 0.5

# ---- more than 65536 tokens ------------------------------------------------------------------------------------------

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

# ---- user errors -----------------------------------------------------------------------------------------------------

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
accept "^warning: --separator '</s>' does not occur in the text" encode --tokenizer tokenizer.json --input one.txt --separator '</s>' --out without
accept "^warning: empty.txt is empty and is skipped" encode --tokenizer tokenizer.json --input '{empty,one}.txt' --out with_empty
refuse "there is no text in the input" encode --tokenizer tokenizer.json --input empty.txt --out e
refuse "text is a folder" encode --tokenizer tokenizer.json --input text --out e
refuse "absent.json" encode --tokenizer absent.json --input one.txt --out e
refuse "one.txt" encode --tokenizer one.txt --input one.txt --out e
refuse "text has no tokenizer|text" encode --tokenizer text --input one.txt --out e
refuse "/proc/e" encode --tokenizer tokenizer.json --input one.txt --out /proc/e
refuse "one.txt/e" encode --tokenizer tokenizer.json --input one.txt --out one.txt/e
refuse "/proc/t.json" train --input one.txt --vocab 300 --out /proc/t.json
refuse "--shard-tokens must be between" encode --tokenizer tokenizer.json --input one.txt --out e --shard-tokens 0
refuse "/dev/full" decode --tokenizer tokenizer.json x_000000.bin --out /dev/full/x
refuse "token 0 of wide_000000.bin is 70257, expected 0 to 399" decode --tokenizer tokenizer.json wide_000000.bin --out never.txt
refuse "token 0 of wide_000000.bin is 70257" inspect --tokenizer tokenizer.json wide_000000.bin
refuse "one.txt" decode --tokenizer tokenizer.json one.txt --out never.txt
holds [ ! -e never.txt ]
holds [ -z "$(find . -name "e_*" -o -name "*.tmp")" ] # refused commands leave no files
"$tokenize" decode --tokenizer tokenizer.json x_000000.bin >/dev/full 2>out.txt && fail "a full disk is not noticed" || pass
holds grep -qE '^error: cannot write standard output' out.txt
for words in --help "train --help" "encode --help" "decode --help" "inspect --help"; do accept "usage: tokenize" $words; done
"$tokenize" >out.txt 2>&1 && fail "without a command it succeeds" || pass

finish
