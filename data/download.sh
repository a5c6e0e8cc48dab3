#!/bin/bash
# Fetches and prepares a data set to train on.
#
#     data/download.sh [--out DIR] NAME        (DIR: datasets/NAME)
#
#     tinyshakespeare         1.1 MB of Shakespeare, the first 90 % for training, the last 10 % for validation;
#                             each byte is a token
#     tinystories             2.2 GB of short stories written by GPT-4 (Eldan & Li 2023); trains a tokenizer with
#         [--vocab 4096]      a vocabulary of that size on them
#     fineweb10B [N]          N (1 to 103, default 1) ready-made shards of 100 M GPT-2 tokens each, 200 MB, of FineWeb's
#                             10 B sample, one for validation, and GPT-2's vocabulary
#     gpt2                    GPT-2's vocabulary alone: encoder.json and vocab.bpe
#
# At the end there are token shards and a tokenizer in DIR, and the command line to train with is printed. Files arrive
# as NAME.part and get their names once their size and SHA-256 are right; an interrupted download resumes where it
# stopped, and what exists is neither fetched nor prepared again. The checksums are in this script, or come with the
# download (Hugging Face sends the SHA-256 of its large files); where there is none, the script says so.
#
# Needs curl or wget, and for tinyshakespeare and tinystories the command data/tokenize, which `make` builds.
#
# Environment:
#     BUILD=build/cpu             where data/tokenize is
#     DOWNLOAD_BASE=http://HOST   replaces scheme and host of every address: a mirror with the same paths
#     DOWNLOAD_SHA256=FILE        checksums to use instead of those below, lines `SHA256 PATH`
set -u

fail() {
    echo "error: $*" >&2
    exit 1
}

# SHA-256 of the files below: from the repository's commit (tinyshakespeare), from Hugging Face's file pages
# (tinystories, fineweb10B), from tiktoken (gpt2).
shakespeare=https://raw.githubusercontent.com/karpathy/char-rnn/6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e/data/tinyshakespeare
stories=https://huggingface.co/datasets/roneneldan/TinyStories/resolve/f54c09fd23315a6f9c86f9dc80f725de7d8f9c64
fineweb=https://huggingface.co/datasets/kjj0/fineweb10B-gpt2/resolve/889765ea1f903759787add96995d81171b632d0c
gpt2=https://openaipublic.blob.core.windows.net/gpt-2/encodings/main
checksums='
86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed tinyshakespeare/input.txt
6418d412de72888f52b5142c761ac21a582f7d1166f0bfbdb5f03ccfdec90443 TinyStoriesV2-GPT4-train.txt
6874bae9a4c1a4e7edcf0e53b86c17817e9cf881fc75ff2368da457b80c0585d TinyStoriesV2-GPT4-valid.txt
5b95c8e0966f0861685b307b23dc5ae42b228ef74b28cb499784ae021f201640 fineweb_val_000000.bin
771fa4a99b9fe0946ffb6e848b4ba5c6a9b0fe87860ebf03bc2c1c7e45f8178e fineweb_train_000001.bin
196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783 main/encoder.json
1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5 main/vocab.bpe
'

# ---- fetching --------------------------------------------------------------------------------------------------------

# Headers of the server's answers, as recorded by curl or wget; each redirection is an answer. `field NAME`: the last
# value.
answers() { tr -d '\r' <"$headers" | sed 's/^ *//'; }
last_answer() { answers | awk '/^HTTP\// { text = "" } { text = text $0 "\n" } END { printf "%s", text }'; }
field() { sed -n "s/^$1: *//Ip" | tail -n 1; }
status() { last_answer | sed -n '1s/^HTTP[^ ]* \([0-9]*\).*/\1/p'; }

# Tries once to fetch ADDRESS, or its missing rest, into FILE.part. The exit status is that of curl or wget.
attempt() { # ADDRESS FILE
    : >"$headers"
    if command -v curl >/dev/null; then
        local look=(--silent)
        [ -t 2 ] && look=(--progress-bar)
        curl --fail --location "${look[@]}" --connect-timeout 30 --speed-limit 1000 --speed-time 60 \
            --continue-at - --dump-header "$headers" --output "$2.part" "$1"
    else
        local look=()
        [ -t 2 ] && look=(--show-progress)
        wget --quiet "${look[@]}" --server-response --output-file="$headers" --timeout=60 --tries=1 \
            --continue --output-document="$2.part" "$1"
    fi
}

size_of() { stat -c %s "$1" 2>/dev/null || echo 0; }

# Tries until the file is complete, up to four times without progress; fails at once if trying again cannot help.
fetch_part() { # ADDRESS FILE
    local tries=0 before code result
    while :; do
        before=$(size_of "$2.part")
        attempt "$1" "$2" && return
        result=$? code=$(status)
        [ -s "$2.part" ] || rm -f "$2.part"
        case $code,$result in
        408,* | 429,* | 416,*) ;;
        4*,*) fail "cannot fetch $1: the server answers with status $code" ;;
        *,23 | *,3) fail "cannot write $2.part" ;;
        esac
        [ "$code,$(expected_size)" != "416,$before" ] || return 0 # nothing was missing
        # A server that cannot send a range sends the whole file; one that finds the part too long refuses.
        case $code in 200 | 416) [ "$before" -eq 0 ] || rm -f "$2.part" ;; esac
        if [ "$(size_of "$2.part")" -gt "$before" ]; then tries=0; else tries=$((tries + 1)); fi
        [ $tries -lt 4 ] || fail "cannot fetch $1: ${code:+status }${code:-no answer}, and the transfer ended with exit status $result;" \
            "run the same command again to resume it"
        echo "the transfer failed, trying again" >&2
        sleep $tries
    done
}

# The size and the SHA-256 that the finished file must have; "" if unknown.
expected_size() {
    local range
    range=$(last_answer | field content-range)
    case $range in
    */[0-9]*) echo "${range##*/}" ;;
    *) last_answer | field content-length ;;
    esac
}

expected_checksum() { # ADDRESS
    local line
    line=$(while read -r sum path; do
        case $1 in */"$path") [ -n "$path" ] && echo "$sum" ;; esac
    done <<<"$checksums")
    [ -n "$line" ] || line=$(answers | field x-linked-etag | tr -d '"' | grep -E '^[0-9a-f]{64}$')
    echo "$line"
}

# Fetches ADDRESS to FILE unless FILE exists.
fetch() { # ADDRESS FILE
    local address=$1 sum size
    [ ! -e "$2" ] || return 0
    [ -z "${DOWNLOAD_BASE:-}" ] || address=${DOWNLOAD_BASE%/}/${1#*://*/}
    echo "fetching $2 from $address"
    fetch_part "$address" "$2"
    size=$(expected_size) sum=$(expected_checksum "$address")
    if [ -n "$size" ] && [ "$size" != "$(size_of "$2.part")" ]; then
        size="$(size_of "$2.part") bytes, not $size"
        rm -f "$2.part"
        fail "$2 as fetched from $address has $size; it was removed"
    fi
    if [ -z "$sum" ]; then
        echo "$2: no checksum is published, so only its size was checked"
    elif [ "$(sha256sum <"$2.part" | cut -d ' ' -f 1)" != "$sum" ]; then
        rm -f "$2.part"
        fail "$2 as fetched from $address does not have the SHA-256 $sum; it was removed"
    fi
    sync "$2.part" && mv "$2.part" "$2" || fail "cannot write $2"
}

# ---- preparing -------------------------------------------------------------------------------------------------------

tokenize() { "$tokenize" "$@" || exit 1; } # it has reported the error

# Creates tokenizer.json, train_*.bin and validation_*.bin from train.txt and validation.txt, once.
prepare() { # VOCAB TRAIN_TEXT VALIDATION_TEXT
    local done=$out/prepared.txt
    [ "$(cat "$done" 2>/dev/null)" != "vocab $1" ] || return 0
    rm -f "$done"
    tokenize train --input "$2" --vocab "$1" --out "$out/tokenizer.json"
    tokenize encode --tokenizer "$out/tokenizer.json" --input "$2" --out "$out/train"
    tokenize encode --tokenizer "$out/tokenizer.json" --input "$3" --out "$out/validation"
    echo "vocab $1" >"$done" || fail "cannot write $done"
}

suggest() { # TRAIN VALIDATION TOKENIZER OPTIONS
    echo "train with:"
    echo "  ./train_gpt --run runs/$name --train '$out/$1' --validation '$out/$2' --tokenizer $3 $4"
}

tinyshakespeare() {
    fetch $shakespeare/input.txt "$out/input.txt"
    local size
    size=$(size_of "$out/input.txt")
    if [ ! -e "$out/prepared.txt" ]; then
        head -c $((size * 9 / 10)) "$out/input.txt" >"$out/train.txt" &&
            tail -c +$((size * 9 / 10 + 1)) "$out/input.txt" >"$out/validation.txt" || fail "cannot write $out/train.txt"
    fi
    prepare 256 "$out/train.txt" "$out/validation.txt"
    suggest 'train_*.bin' 'validation_*.bin' "$out/tokenizer.json" "--num-layers 4 --num-heads 4 --channels 128 \
--sequence-length 128 --batch 16 --steps 2000 --learning-rate 1e-3 --dropout 0.1"
}

tinystories() {
    fetch $stories/TinyStoriesV2-GPT4-train.txt "$out/train.txt"
    fetch $stories/TinyStoriesV2-GPT4-valid.txt "$out/validation.txt"
    prepare "$vocab" "$out/train.txt" "$out/validation.txt"
    suggest 'train_*.bin' 'validation_*.bin' "$out/tokenizer.json" "--validate-documents --num-layers 8 --num-heads 8 \
--channels 256 --sequence-length 512 --batch 16 --steps 20000 --learning-rate 1e-3"
}

gpt2() {
    fetch $gpt2/encoder.json "$out/encoder.json"
    fetch $gpt2/vocab.bpe "$out/vocab.bpe"
}

fineweb10B() {
    local i file
    gpt2
    for i in 0 $(seq "$shards"); do
        file=$(printf 'fineweb_%s_%06d.bin' "$([ "$i" = 0 ] && echo val || echo train)" "$i")
        fetch "$fineweb/$file" "$out/$file"
    done
    suggest 'fineweb_train_*.bin' 'fineweb_val_*.bin' "$out" "--model gpt2-124M --sequence-length 1024 --batch 4 \
--accumulate 128 --steps 20000 --warmup 700"
}

# ---- the command line ------------------------------------------------------------------------------------------------

help() { sed -n '2,/^set -u/{/^#/s/^# \{0,1\}//p}' "$0"; }

name='' out='' vocab=4096 shards=''
while [ $# -gt 0 ]; do
    case $1 in
    --help | -h) help; exit 0 ;;
    --out | --vocab) [ $# -gt 1 ] || fail "$1 needs a value" ;;&
    --out) out=$2 && shift ;;
    --out=*) out=${1#*=} ;;
    --vocab) vocab=$2 && shift ;;
    --vocab=*) vocab=${1#*=} ;;
    -*) fail "there is no option $1; see --help" ;;
    *)
        if [ -z "$name" ]; then name=$1
        elif [ -z "$shards" ]; then shards=$1
        else fail "'$1' is an unexpected argument; see --help"; fi
        ;;
    esac
    shift
done
case $name in
'') fail "name a data set: tinyshakespeare, tinystories, fineweb10B or gpt2; see --help" ;;
tinyshakespeare | tinystories | fineweb10B | gpt2) ;;
*) fail "there is no data set '$name', only tinyshakespeare, tinystories, fineweb10B and gpt2" ;;
esac
[ "$name" = fineweb10B ] || [ -z "$shards" ] || fail "'$shards' is an unexpected argument; see --help"
shards=${shards:-1}
[[ $shards =~ ^[0-9]{1,3}$ ]] && [ "$shards" -ge 1 ] && [ "$shards" -le 103 ] ||
    fail "fineweb10B has 1 to 103 training shards, not '$shards'"
[[ $vocab =~ ^[0-9]{1,8}$ ]] && [ "$vocab" -ge 257 ] || fail "--vocab is a whole number of at least 257, not '$vocab'"
command -v curl >/dev/null || command -v wget >/dev/null || fail "neither curl nor wget is installed"
if [ -n "${DOWNLOAD_SHA256:-}" ]; then checksums=$(cat "$DOWNLOAD_SHA256") || fail "cannot read $DOWNLOAD_SHA256"; fi
tokenize=${BUILD:-build/cpu}/data/tokenize
case $name in
tiny*) [ -x "$tokenize" ] || fail "$tokenize is missing: run make first" ;;
esac
out=${out:-datasets/$name}
mkdir -p "$out" 2>/dev/null && [ -w "$out" ] || fail "cannot write into the folder $out"
headers=$(mktemp) || fail "cannot write temporary files"
trap 'rm -f "$headers"' EXIT
$name
[ "$name" != gpt2 ] || echo "encode your text with: $tokenize encode --tokenizer $out --input TEXT --out PREFIX"
