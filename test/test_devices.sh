#!/bin/bash
# The trainer on other devices: a GPU build, usually the emulated one, compared with the CPU's. Every option that
# affects kernels; checkpoints that are moved between builds; insufficient memory.
#     BUILD=build/cpu DEVICE_BUILD=build/emulated-bf16 PRECISION=bf16 test/test_devices.sh
#
# In fp32, losses differ by the order of sums: 1e-5. In bf16, they differ by the effect of rounding weights and
# activations to 8 bits: each is off by at most 2^-9, at random, and a loss near ln V changes by much less than 2^-8
# of it.
device_build=$(cd "$DEVICE_BUILD" && pwd) || exit 1
. "$(dirname "$0")/harness/test.sh"

cpu=$build/train_gpt
gpu=$device_build/train_gpt
case $PRECISION in fp32) bound=1e-5 ;; *) bound=0.00390625 ;; esac
shape=(--num-layers 2 --num-heads 2 --channels 32 --batch 2 --sequence-length 24 --steps 3 --warmup 1 --learning-rate 1e-2
    --save-every 0 --validation-batches 1 --sample-tokens 3)
hard=(--dropout 0.1 --accumulate 2 --clip 0.5)

make_data 30k 270
data=(--train "data_*.bin" --validation "data_*.bin" --tokenizer tokenizer.json)

run() { # run PROGRAM FOLDER OPTION...
    "$1" --run "$2" "${data[@]}" "${shape[@]}" "${@:3}" >out.txt 2>&1 </dev/null || fail "$(tail -n 1 out.txt) of: $*"
}
close() { if near "$1" "$2" "$bound"; then pass; else fail "$1: losses" $(losses "$1") "and $2:" $(losses "$2"); fi; }

# ---- the same curve --------------------------------------------------------------------------------------------------

run "$cpu" cpu "${hard[@]}" --attention naive
run "$gpu" gpu "${hard[@]}"
close gpu cpu
run "$cpu" cpu_plain
run "$gpu" gpu_plain
close gpu_plain cpu_plain
validation() { grep -o '"validation_loss": [0-9.]*' "$1/metrics.jsonl" | cut -d' ' -f2; }
echo "$(validation gpu) $(validation cpu)" | awk -v bound=$bound '{ d = ($1 - $2) / $2; exit NF != 2 || d < -bound || d > bound }' &&
    pass || fail "validation: $(validation gpu) and $(validation cpu)"
# For one model, four batches of two are two of four; logits whole or in parts.
still=(--learning-rate 0 --steps 1 --warmup 0)
run "$gpu" by2 "${still[@]}" --validation-batches 4
run "$gpu" by4 "${still[@]}" --validation-batches 2 --batch 4
run "$gpu" by4pieces "${still[@]}" --validation-batches 2 --batch 4 --logits-memory 10k
echo "$(validation by2) $(validation by4) $(validation by4pieces)" |
    awk '{ exit NF != 3 || ($1 - $2) ^ 2 > 1e-10 || ($1 - $3) ^ 2 > 1e-10 }' &&
    pass || fail "validation by batches of 2 and 4, in pieces: $(validation by2) $(validation by4) $(validation by4pieces)"

# The same bits: in a repeated run, with blocks and threads in other orders, and with recomputed activations.
run "$gpu" again "${hard[@]}"
same <(curve gpu) <(curve again)
same gpu/checkpoints/step_00000003/model.safetensors again/checkpoints/step_00000003/model.safetensors
for seed in 1 2 3 4 5; do
    CUDA_EMULATION_SEED=$seed run "$gpu" "seed$seed" "${hard[@]}"
    same gpu/checkpoints/step_00000003/model.safetensors "seed$seed/checkpoints/step_00000003/model.safetensors" seed $seed
done
for what in activation norm block; do
    run "$gpu" "$what" "${hard[@]}" --recompute $what
    same <(curve gpu) <(curve $what) --recompute $what
    same gpu/checkpoints/step_00000003/model.safetensors "$what/checkpoints/step_00000003/model.safetensors" --recompute $what
done
run "$gpu" pieces "${hard[@]}" --logits-memory 10k --recompute block
close pieces cpu
run "$gpu" own "${hard[@]}" --matmul own --profile
close own cpu
grep -qE '^attention +[0-9.]+ ' out.txt && pass || fail "--profile shows no line for attention"
if [ "$PRECISION" = bf16 ]; then
    run "$gpu" stochastic "${hard[@]}" --stochastic-rounding
    close stochastic cpu
    cmp -s <(losses stochastic) <(losses gpu) && fail "--stochastic-rounding changes nothing" || pass
    run "$gpu" cut "${hard[@]}" --stochastic-rounding --save-every 2
    rm -r cut/checkpoints/step_00000003
    "$gpu" --run cut --resume >out.txt 2>&1 || fail "$(tail -n 1 out.txt)"
    same <(curve stochastic) <(curve cut) a resumed run rounds otherwise
else
    refuse "weights in bf16" "$gpu" "${data[@]}" "${shape[@]}" --stochastic-rounding
fi

# A checkpoint that is written during training belongs to the step in its name.
run "$gpu" beside "${hard[@]}" --save-every 1
run "$gpu" waiting "${hard[@]}" --save-every 1 --save-synchronously
for file in waiting/checkpoints/*/*; do same <(written "$file") <(written "beside/${file#waiting/}") "$file, saved beside training"; done

# Attention with several tiles of queries and keys: naive, flash, and flash with nondeterministic sums learn alike.
long=(--sequence-length 144 --steps 6)
for dropout in 0 0.1; do
    run "$cpu" long_cpu "${long[@]}" --dropout $dropout
    for attention in "naive" "flash" "flash --attention-atomics"; do
        rm -rf long
        run "$gpu" long "${long[@]}" --dropout $dropout --attention $attention
        close long long_cpu
        grep -q "attention ${attention%% *}$" out.txt && pass || fail "--attention $attention trains with another"
    done
    mv long_cpu "long_cpu_$dropout"
done
if "$gpu" "${data[@]}" "${shape[@]}" --attention cudnn --sequence-length 1 2>&1 | grep -q "has no cuDNN"; then pass; else
    run "$gpu" long_cudnn "${long[@]}" --dropout 0 --attention cudnn # its dropout masks differ from the others'
    close long_cudnn long_cpu_0
fi

# ---- checkpoints cross builds ----------------------------------------------------------------------------------------

run "$cpu" whole "${hard[@]}" --steps 5
for way in "$cpu $gpu" "$gpu $cpu"; do
    set -- $way
    rm -rf crossed
    run "$1" crossed "${hard[@]}" --steps 3 --schedule constant
    cp -r crossed stayed
    "$2" --run crossed --resume --steps 5 >out.txt 2>&1 || fail "resuming in the other build: $(tail -n 1 out.txt)"
    "$1" --run stayed --resume --steps 5 >out.txt 2>&1 || fail "resuming: $(tail -n 1 out.txt)"
    close crossed stayed
    [ "$(losses crossed | wc -l)" = 5 ] && pass || fail "a run that crosses builds has $(losses crossed | wc -l) steps"
    rm -rf stayed
done
# Both builds continue a prompt from a checkpoint alike (with the most probable token each time).
for program_at in "$cpu" "$gpu"; do
    "$program_at" --run whole --sample "Once upon" --temperature 0 --sample-tokens 4 2>/dev/null
done >samples.txt
[ "$(sort -u samples.txt | grep -c Once)" = 1 ] && pass || fail "samples differ: $(cat samples.txt)"

# ---- what is refused -------------------------------------------------------------------------------------------------

program=("$gpu" "${data[@]}" "${shape[@]}")
case $PRECISION in fp32) other=bf16 ;; *) other=fp32 ;; esac
refuse "make PRECISION=$other" --precision $other
refuse "--attention cudnn: " --attention cudnn --dropout 0 --sequence-length 1
case $(basename "$device_build") in emulated*) # the size of memory can be set
    refuse "no cuBLAS" --matmul cublas
    export CUDA_EMULATION_MEMORY=60000000
    refuse "the largest batch that fits is --batch [0-9]+" --run large --batch 4000
    fits=$(sed -n 's/.*that fits is --batch \([0-9]*\).*/\1/p' out.txt)
    refuse "the largest batch that fits is --batch $fits " --run large --batch $((fits + 1))
    expect 0 "step 1/1 " --run fits --batch "$fits" --sequence-length 1 --steps 1 --warmup 0
    refuse "not even --batch 1 fits" --run large --channels 512 --num-layers 20
    unset CUDA_EMULATION_MEMORY
    ;;
esac
# Weights that diverge: the checkpoint and the metrics agree on skipped steps.
program=()
"$gpu" --run diverged "${data[@]}" "${shape[@]}" --steps 60 --warmup 0 --schedule constant --learning-rate 10 \
    --weight-decay 10 --clip 0 --max-skips 3 >out.txt 2>&1 && fail "training goes on with weights that blew up" || pass
said=$(grep -oh '"skipped":[^,]*' diverged/checkpoints/*/training_state.json | head -n 1 | tr -dc 0-9)
[ "$said" = "$(grep -c '"skipped": true' diverged/metrics.jsonl)" ] && pass || fail "the checkpoint says $said skipped steps"
finish
