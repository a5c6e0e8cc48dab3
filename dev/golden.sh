#!/bin/bash
# Shows that a refactoring changes no result: builds an old commit and this working tree, trains with both, and compares
# the results bit for bit. Bits depend on the vector instructions of the machine, so no golden results are stored.
#     dev/golden.sh COMMIT            seven runs of the CPU build and of the emulated ones in bf16 and fp32
#     dev/golden.sh COMMIT cpu        the runs of the CPU build only
# For each run this compares losses, gradient norms and validations of all steps (metrics.jsonl without times), and
# checksums of the weights, the optimizer state and the training state of the last checkpoint; for sampling, the text.
# The exit status is 0 if all are equal. Builds of the old commit are kept in build/golden.
root=$(cd "$(dirname "$0")/.." && pwd)
case $1 in '' | -*) sed -n '2,/^root=/{/^root=/d;s/^# \{0,1\}//p}' "$0" && exit 1 ;; esac
commit=$(git -C "$root" rev-parse --short --verify "$1^{commit}" 2>/dev/null) || { echo "error: there is no commit $1" >&2 && exit 1; }
devices=${2:-"cpu emulated-bf16 emulated-fp32"}
old=$root/build/golden/$commit
if [ ! -e "$old/.git" ]; then
    git clone -q --no-checkout "$root" "$old" && git -C "$old" checkout -q "$commit" || exit 1
fi
work=$(mktemp -d /dev/shm/golden.XXXXXX) && trap 'rm -rf "$work"' EXIT
for device in $devices; do
    for tree in "$old" "$root"; do
        words="NO_LINKS=1 DEVICE=${device%%-*}"
        [ "$device" = cpu ] || words="$words PRECISION=${device#*-}"
        (cd "$tree" && make -s -j"$(nproc)" $words programs) >"$work/build.txt" 2>&1 || { cat "$work/build.txt" && exit 1; }
    done
done
cd "$work" || exit 1
make_stories=$root/build/cpu/data/write_stories tokenize=$root/build/cpu/data/tokenize
"$make_stories" --out . --train-bytes 200k >/dev/null && "$tokenize" train --input train.txt --vocab 300 --out tokenizer.json >/dev/null &&
    "$tokenize" encode --tokenizer tokenizer.json --input train.txt --out data >/dev/null || exit 1

data=(--train "data_*.bin" --validation "data_*.bin" --tokenizer tokenizer.json --validate-every 5 --validation-batches 2
    --steps 20 --warmup 4 --learning-rate 3e-3 --sample-tokens 12)
small=(--num-layers 2 --num-heads 2 --channels 32 --batch 2 --sequence-length 24) # for emulated kernels
larger=(--num-layers 3 --num-heads 4 --channels 64 --batch 4 --sequence-length 40)
failed=0
train() { # train NAME DEVICE OPTION...: trains with both builds
    local name=$1 device=$2 tree which
    for which in old new; do
        tree=$root && [ $which = new ] || tree=$old
        "$tree/build/$device/train_gpt" --run "$which/$name" "${data[@]}" "${@:3}" >"$which-$name.txt" 2>&1 </dev/null ||
            { echo "error: $which, $name: $(tail -n 1 "$which-$name.txt")" && exit 1; }
    done
}
results() { # results WHICH/NAME: prints everything that must be equal
    sed 's/"seconds": [^,}]*//' "$1/metrics.jsonl"
    local folder
    folder=$(ls -d "$1"/checkpoints/step_* | tail -n 1)
    (cd "$folder" && cksum model*.safetensors optimizer*.safetensors training_state.json config.json)
}
compare() { # compare NAME DESCRIPTION: compares the results of both builds
    if cmp -s <(results "old/$1") <(results "new/$1"); then
        echo "equal: $2: last loss $(sed -n 's/.*"loss": \([0-9.]*\).*/\1/p' "new/$1/metrics.jsonl" | tail -n 1)," \
            "weights $(results "new/$1" | awk '/ model/ { print $1 }' | tr '\n' ' ')"
    else
        echo "DIFFERENT: $2" && diff <(results "old/$1") <(results "new/$1") | head -n 10
        failed=1
    fi
}
case " $devices " in *" cpu "*)
    train plain cpu "${larger[@]}"
    compare plain "CPU, fp32"
    train hard cpu "${larger[@]}" --dropout 0.1 --accumulate 2 --recompute block --logits-memory 40k
    compare hard "CPU, dropout, accumulation, --recompute block"
    train divided cpu "${larger[@]}" --processes 2 --shard gradients --dropout 0.1
    compare divided "CPU, two processes, --shard gradients"
    train resumed cpu "${larger[@]}" --dropout 0.1 --save-every 10 --steps 12
    rm -r {old,new}/resumed/checkpoints/step_00000012
    train resumed cpu --resume --steps 20
    compare resumed "CPU, resumed in the middle"
    for which in old new; do
        tree=$root && [ $which = new ] || tree=$old
        "$tree/build/cpu/train_gpt" --run $which/plain --sample "Once upon a time" --sample-tokens 60 >$which-text.txt 2>/dev/null || failed=1
    done
    if cmp -s old-text.txt new-text.txt; then echo "equal: sampling over a cache of keys and values"; else echo "DIFFERENT: sampling" && failed=1; fi
    ;;
esac
for precision in bf16 fp32; do
    case " $devices " in *" emulated-$precision "*)
        train $precision emulated-$precision "${small[@]}" --dropout 0.1 --accumulate 2
        compare $precision "emulated kernels, $precision"
        ;;
    esac
done
exit $failed
