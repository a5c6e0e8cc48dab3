#!/bin/bash
# data/download.sh against a local server that has small files under the same paths: each data set; downloads that are
# interrupted, damaged or refused; and that the printed command line trains.
#     BUILD=build/cpu test/data/test_download.sh
. "$(dirname "$0")/../harness/test.sh"
trap 'kill $server 2>/dev/null; rm -rf "$work"' EXIT
download() { BUILD=$build "$root/data/download.sh" "$@"; }
program=(download)

# ---- the server and its files ----------------------------------------------------------------------------------------

shakespeare=karpathy/char-rnn/6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e/data/tinyshakespeare
stories=datasets/roneneldan/TinyStories/resolve/f54c09fd23315a6f9c86f9dc80f725de7d8f9c64
fineweb=datasets/kjj0/fineweb10B-gpt2/resolve/889765ea1f903759787add96995d81171b632d0c
gpt2=gpt-2/encodings/main
mkdir -p served/{$shakespeare,$stories,$fineweb,$gpt2}
"$build/data/write_stories" --train-bytes 50k --validation-stories 20 --out text >/dev/null 2>&1 || fail "write_stories"
head -c 20001 text/train.txt >served/$shakespeare/input.txt
cp text/train.txt served/$stories/TinyStoriesV2-GPT4-train.txt
cp text/validation.txt served/$stories/TinyStoriesV2-GPT4-valid.txt
python3 - served/$gpt2 served/$fineweb <<'END'
import json, struct, sys
vocabulary, shards = sys.argv[1:]
printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
rest = [b for b in range(256) if b not in printable]
tokens = [chr(b) for b in printable] + [chr(256 + i) for i in range(len(rest))] + ["th", "<|endoftext|>"]
json.dump({token: i for i, token in enumerate(tokens)}, open(vocabulary + "/encoder.json", "w"))
open(vocabulary + "/vocab.bpe", "w").write("#version: 0.2\nt h\n")
for name in "val_000000", "train_000001", "train_000002":
    with open(f"{shards}/fineweb_{name}.bin", "wb") as file:
        file.write(struct.pack("<256i", 20240520, 1, 3000, *[0] * 253))
        file.write(struct.pack("<3000H", *[257 if i % 50 == 0 else i % 200 for i in range(3000)]))
END
(cd served && for file in $shakespeare/input.txt $stories/* $fineweb/*val* $fineweb/*1.bin $gpt2/*; do
    echo "$(sha256sum <"$file" | cut -d ' ' -f 1) $file"
done) >sums.txt
export DOWNLOAD_SHA256=$work/sums.txt

# Paths of Hugging Face are redirected, with the SHA-256 of the file, as there. Files control the answers: `cut`
# (bytes sent before the connection is dropped, and how often), `whole` (ranges are ignored), `status` (given to every
# request), `unlinked` (no SHA-256). `log` has a line for each request: range, path.
cat >server.py <<'END'
import hashlib, http.server, os

class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def answer(self, status, length, **fields):
        self.send_response(status)
        for name, value in {"Content-Length": length, **fields}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def do_GET(self):
        path = self.path.replace("/elsewhere", "")
        with open("log", "a") as log:
            log.write(f"{self.headers.get('Range', 'whole')} {self.path}\n")
        if os.path.exists("status"):
            return self.answer(int(open("status").read()), 0)
        if not os.path.isfile("served" + path):
            return self.answer(404, 0)
        content = open("served" + path, "rb").read()
        if self.path.startswith("/datasets"):
            sum = f'"{hashlib.sha256(content).hexdigest()}"'
            linked = {} if os.path.exists("unlinked") else {"X_Linked_ETag": sum}
            self.answer(302, 5, Location="/elsewhere" + path, **linked)
            return self.wfile.write(b"Found")
        begin = 0 if os.path.exists("whole") else int(self.headers.get("Range", "=0-").split("=")[1].split("-")[0])
        if begin >= len(content):
            return self.answer(416, 0, Content_Range=f"bytes */{len(content)}")
        if begin > 0:
            self.answer(206, len(content) - begin, Content_Range=f"bytes {begin}-{len(content) - 1}/{len(content)}")
        else:
            self.answer(200, len(content))
        self.wfile.write(content[begin : begin + self.limit(len(content))])

    def limit(self, size):
        if os.path.exists("cut"):
            size, times = map(int, open("cut").read().split())
            os.remove("cut")
            if times > 1:
                open("cut", "w").write(f"{size} {times - 1}")
        return size

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
with open("port.new", "w") as file:
    file.write(str(server.server_port))
os.rename("port.new", "port")
server.serve_forever()
END
python3 server.py &
server=$!
until_holds [ -e port ]
[ -e port ] || { echo "the server does not start"; exit 1; }
DOWNLOAD_BASE=http://127.0.0.1:$(cat port)
export DOWNLOAD_BASE

# No server answers: that takes a few attempts; the result is checked at the end.
(DOWNLOAD_BASE=http://127.0.0.1:1 "$root/data/download.sh" --out nobody gpt2 >nobody.txt 2>&1; echo $? >>nobody.txt) &
nobody=$!

requests() { wc -l <log; }

# A second call fetches nothing and changes nothing.
again() { # WORD...
    local before after
    before=$(requests; find datasets -type f -printf '%p %T@ %s\n' | sort)
    expect 0 "" "$@"
    after=$(requests; find datasets -type f -printf '%p %T@ %s\n' | sort)
    [ "$before" = "$after" ] && pass || fail "a second call of: $* does it again"
    [ -z "$(find . -name '*.part')" ] && pass || fail "left: $(find . -name '*.part')"
}

# The command line that was printed last trains.
trains() {
    local line
    line=$(grep '^  ./train_gpt' out.txt)
    eval "${line/.\/train_gpt/\"$build/train_gpt\"} $*" >trained.txt 2>&1 && pass || fail "$line: $(tail -n 2 trained.txt)"
}
small="--model free --num-layers 1 --num-heads 2 --channels 16 --batch 2 --accumulate 1 --sequence-length 32 --steps 2 --warmup 0"

# ---- each data set ---------------------------------------------------------------------------------------------------

expect 0 "^train with:" tinyshakespeare
same datasets/tinyshakespeare/input.txt served/$shakespeare/input.txt
same datasets/tinyshakespeare/input.txt <(cat datasets/tinyshakespeare/{train,validation}.txt)
holds [ "$(stat -c %s datasets/tinyshakespeare/train.txt)" = 18000 ]
holds [ "$(stat -c %s datasets/tinyshakespeare/validation_000000.bin)" = $((1024 + 2 * 2001)) ]
grep -q "no checksum" out.txt && fail "a checksum is said to be missing" || pass
trains "$small"
again tinyshakespeare

expect 0 "^train with:" --vocab 300 tinystories
same datasets/tinystories/train.txt text/train.txt
"$build/data/tokenize" decode --tokenizer datasets/tinystories --input 'datasets/tinystories/validation_*.bin' --out back.txt
same back.txt text/validation.txt
trains "$small"
again --vocab=300 tinystories
expect 0 "^train with:" tinystories --vocab 290 # another vocabulary: prepared again, not fetched again
holds grep -q '290 tokens' out.txt
grep -q fetching out.txt && fail "another vocabulary fetches the text again" || pass

expect 0 "^train with:" fineweb10B 2
same datasets/fineweb10B/fineweb_train_000002.bin served/$fineweb/fineweb_train_000002.bin
grep -q "no checksum" out.txt && fail "the checksum that came with the redirection was not used" || pass
trains "$small"
again fineweb10B
again fineweb10B 2

expect 0 "tokenize encode --tokenizer elsewhere/gpt2" --out elsewhere/gpt2 gpt2
same elsewhere/gpt2/encoder.json served/$gpt2/encoder.json
"$build/data/tokenize" encode --tokenizer elsewhere/gpt2 --input text/validation.txt --out own >/dev/null && pass || fail "gpt2"

# ---- interrupted connections -----------------------------------------------------------------------------------------

rm -rf datasets log
echo "7000 2" >"cut"
expect 0 "^train with:" tinyshakespeare
same datasets/tinyshakespeare/input.txt served/$shakespeare/input.txt
holds [ "$(cut -d ' ' -f 1 log | tr '\n' ' ')" = "whole bytes=7000- bytes=14000- " ]
rm -rf datasets log # a part left by an earlier call, here of a file that is redirected
mkdir -p datasets/tinystories
head -c 5000 text/train.txt >datasets/tinystories/train.txt.part
expect 0 "^train with:" tinystories --vocab 300
same datasets/tinystories/train.txt text/train.txt
holds grep -q '^bytes=5000- /elsewhere' log
rm -rf datasets # a complete part that was not renamed yet
mkdir -p datasets/gpt2
cp served/$gpt2/vocab.bpe datasets/gpt2/vocab.bpe.part
rm log
expect 0 "" gpt2
same datasets/gpt2/vocab.bpe served/$gpt2/vocab.bpe
holds [ "$(requests)" = 2 ]
rm -rf datasets # a server that sends only whole files
mkdir -p datasets/gpt2
touch whole
head -c 100 served/$gpt2/encoder.json >datasets/gpt2/encoder.json.part
expect 0 "" gpt2
same datasets/gpt2/encoder.json served/$gpt2/encoder.json
rm whole

# Without curl, wget does the same.
if command -v wget >/dev/null; then
    mkdir tools
    for tool in bash sed awk grep tr tail head stat cut seq cat mkdir mktemp rm mv sha256sum sleep sync wget; do
        ln -s "$(command -v $tool)" tools/$tool
    done
    rm -rf datasets log
    mkdir -p datasets/gpt2 datasets/fineweb10B
    echo "1000 2" >"cut"
    PATH=$work/tools expect 0 "^train with:" fineweb10B 2
    same datasets/fineweb10B/fineweb_train_000002.bin served/$fineweb/fineweb_train_000002.bin
    grep -q "no checksum" out.txt && fail "wget: the checksum that came with the redirection was not used" || pass
    holds [ "$(head -n 3 log | cut -d ' ' -f 1 | tr '\n' ' ')" = "whole bytes=1000- bytes=2000- " ]
    again fineweb10B 2
    head -c 100 served/$gpt2/encoder.json >datasets/gpt2/encoder.json.part
    cp served/$gpt2/vocab.bpe datasets/gpt2/vocab.bpe.part
    touch whole
    PATH=$work/tools expect 0 "encode your text" gpt2
    same datasets/gpt2/encoder.json served/$gpt2/encoder.json
    rm -rf datasets/gpt2 whole
    echo 403 >status
    PATH=$work/tools expect 1 "^error: .*status 403" gpt2
    rm -rf status datasets
fi

# ---- damaged or refused downloads ------------------------------------------------------------------------------------

missing() { [ ! -e "$1" ] && [ ! -e "$1.part" ] && pass || fail "$1 is there"; }

rm -rf datasets
mv served/$shakespeare/input.txt good.txt
tr a b <good.txt >served/$shakespeare/input.txt
refuse "input.txt .*does not have the SHA-256 $(sha256sum <good.txt | cut -d ' ' -f 1)" tinyshakespeare
missing datasets/tinyshakespeare/input.txt
mv good.txt served/$shakespeare/input.txt
mkdir -p datasets/tinyshakespeare # a part of another file
head -c 9000 text/validation.txt >datasets/tinyshakespeare/input.txt.part
refuse "does not have the SHA-256" tinyshakespeare
missing datasets/tinyshakespeare/input.txt
mkdir -p datasets/fineweb10B # a part that is too long: fetched again
head -c 9000 text/validation.txt >datasets/fineweb10B/fineweb_val_000000.bin.part
expect 0 "trying again" fineweb10B
same datasets/fineweb10B/fineweb_val_000000.bin served/$fineweb/fineweb_val_000000.bin
touch unlinked
expect 0 "fineweb_train_000002.bin: no checksum is published" fineweb10B 2
rm -rf datasets unlinked
mv served/$fineweb/fineweb_train_000002.bin away
refuse "fineweb_train_000002.bin: the server answers with status 404" fineweb10B 2
holds [ -e datasets/fineweb10B/fineweb_train_000001.bin ] # earlier files are kept
missing datasets/fineweb10B/fineweb_train_000002.bin
echo 403 >status
refuse "status 403" gpt2
missing datasets/gpt2/encoder.json
rm status

refuse "name a data set"
refuse "no data set 'mnist', only tinyshakespeare" mnist
refuse "there is no option --fast" --fast gpt2
refuse "needs a value" gpt2 --out
refuse "'2' is an unexpected argument" gpt2 2
refuse "'3' is an unexpected argument" fineweb10B 2 3
refuse "1 to 103 training shards, not '0'" fineweb10B 0
refuse "1 to 103 training shards, not '104'" fineweb10B 104
refuse "not 'many'" fineweb10B many
refuse "at least 257, not '256'" tinystories --vocab 256
refuse "cannot write into the folder /proc/here" --out /proc/here gpt2
refuse "cannot write into the folder log/here" --out log/here gpt2
expect 0 "fineweb10B \[N\]" --help
build_given=$build build=$work/nothing
refuse "run make first" tinyshakespeare
build=$build_given

wait $nobody
holds [ "$(tail -n 1 nobody.txt)" = 1 ]
holds grep -q "^error: cannot fetch http://127.0.0.1:1/.*no answer" nobody.txt
missing nobody/encoder.json

finish
