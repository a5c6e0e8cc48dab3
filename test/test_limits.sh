#!/bin/bash
# Limits of the machine: closed standard descriptors, output that cannot be written, limited memory.
#     BUILD=build/cpu test/test_limits.sh
. "$(dirname "$0")/harness/test.sh"

train=$build/train_gpt
make_data 100k 300
small=(--train "data_*.bin" --tokenizer tokenizer.json --num-layers 2 --num-heads 2 --channels 32 --batch 4 --sequence-length 32
    --steps 2 --sample-tokens 8)

# ---- standard descriptors --------------------------------------------------------------------------------------------

expect 0 "step 2/2" "$train" --run whole "${small[@]}"
holds bash -c '"$0" "$@" <&- >&- 2>&-' "$train" --run closed "${small[@]}"
same <(curve whole) <(curve closed) "the metrics of a run whose descriptors 0 to 2 were closed"
if [ -s closed/lock ]; then fail "output went into closed/lock: $(head -c 200 closed/lock)"; else pass; fi
holds bash -c '"$0" "$@" <&- >&- 2>&-' "$build/data/tokenize" encode --tokenizer tokenizer.json --input stories/train.txt --out silent
for shard in data_*.bin; do
    same <(tail -c +1025 "$shard") <(tail -c +1025 "silent${shard#data}") "shards of a tokenize whose descriptors were closed"
done
holds bash -c '"$0" "$@" <&- >&- 2>&-' "$build/data/write_stories" --train-bytes 100k --validation-stories 20 --out silent
same stories/train.txt silent/train.txt "stories of a program whose descriptors were closed"

# ---- output ----------------------------------------------------------------------------------------------------------

# unwritable WORD...: with output to a full device, and to a pipe without a reader, the command ends with status 2 and
# one sentence.
unwritable() {
    local status
    "$@" >/dev/full 2>errors.txt </dev/null
    status=$?
    if [ $status -eq 2 ] && grep -q "^error: cannot write .*No space left" errors.txt; then pass; else fail "status $status to /dev/full: $*: $(cat errors.txt)"; fi
    exec 7> >(exec true)
    wait $! # the pipe has no reader any more
    (trap '' PIPE && exec "$@" >&7 2>errors.txt </dev/null)
    status=$?
    exec 7>&-
    if [ $status -eq 2 ] && grep -q "^error: cannot write .*Broken pipe" errors.txt; then pass; else fail "status $status to a closed pipe: $*: $(cat errors.txt)"; fi
}
unwritable "$train" --help
unwritable "$train" --plan --model gpt2-124M --vocab-size 50257
unwritable "$train" --run whole --sample "A"
unwritable "$build/data/tokenize" --help
unwritable "$build/data/tokenize" inspect --tokenizer tokenizer.json --input "data_*.bin"
unwritable "$build/data/tokenize" decode --tokenizer tokenizer.json --input "data_*.bin"
unwritable "$build/data/write_stories" --help
# A sample ends when its output fails, not after all requested tokens.
expect 2 "^1 tokens?, " bash -c '"$0" "$@" >/dev/full' "$train" --run whole --sample "A" --sample-tokens 50 --temperature 0
# Training continues although its output is not read; in the end its exit status reports it.
rm -rf unread
"$train" --run unread "${small[@]}" >/dev/full 2>errors.txt
if [ $? -eq 2 ] && grep -q "^error: cannot write to standard output" errors.txt; then pass; else fail "unread: $(cat errors.txt)"; fi
same <(curve whole) <(curve unread) "the metrics of a run whose output was not read"

# ---- memory ----------------------------------------------------------------------------------------------------------

expect 1 "^error: OMP_NUM_THREADS asks for 99999 threads" env OMP_NUM_THREADS=99999 "$train" --run threads "${small[@]}"
case $build in *-address* | *-thread*) finish; exit ;; esac # these sanitizers reserve terabytes of address space

# Under every memory limit, the proposed largest batch can be trained.
limited() { # limited KILOBYTES WORD...
    local kilobytes=$1
    shift
    bash -c 'ulimit -v "$0" && exec "$@"' "$kilobytes" "$@" >out.txt 2>&1 </dev/null
}
refused=0 tried=0
for kilobytes in 130000 160000 200000 240000; do
    shape=(--run limited_$kilobytes "${small[@]}" --channels 64 --sequence-length 256)
    limited $kilobytes "$train" "${shape[@]}" --batch 100
    status=$?
    proposed=$(sed -n 's/^error: --batch 100 .* only .* GB are available: the largest batch that fits is --batch \([0-9]*\) .*/\1/p' out.txt)
    if [ $status -ne 1 ] || [ -z "$proposed" ]; then
        fail "status $status, and no batch proposed, with $kilobytes kB: $(tail -n 1 out.txt)"
        continue
    fi
    refused=$((refused + 1))
    if limited $kilobytes "$train" "${shape[@]}" --batch "$proposed"; then tried=$((tried + 1)); else fail "--batch $proposed, proposed with $kilobytes kB: $(tail -n 3 out.txt)"; fi
done
holds [ $refused -eq 4 ]
holds [ $tried -eq 4 ]
# A model whose weights fit, but not the other memory that training needs.
expect 1 "^error: --batch 1 .* not even --batch 1 fits" bash -c 'ulimit -v 350000 && exec "$@"' limit "$train" --run large "${small[@]}" \
    --num-layers 6 --num-heads 6 --channels 384 --sequence-length 256 --batch 1
finish
