#!/bin/bash
# Continuing a run: checkpoints written during training and synchronously, at intervals of time, damaged or missing
# ones; outlier losses cause a rollback; preemption. Slow and randomized tests are in test/torture.py.
. "$(dirname "$0")/harness/test.sh"

train=$build/train_gpt
make_data 30k 300
shape=(--num-layers 2 --num-heads 2 --channels 32 --sequence-length 24 --batch 2 --steps 12 --warmup 2 --dropout 0.1 --sample-tokens 3
    --validation-batches 2 --keep 100)
data=(--train "data_*.bin" --validation "data_*.bin" --tokenizer tokenizer.json)
run() { # run FOLDER OPTION...
    expect 0 "step 12/12" "$train" --run "$1" "${data[@]}" "${shape[@]}" "${@:2}"
}
checkpoints() { ls "$1/checkpoints" | tr '\n' ' '; }

# ---- when and how ----------------------------------------------------------------------------------------------------

run waiting --save-every 2 --save-synchronously
run beside --save-every 2
same <(checkpoints waiting) <(checkpoints beside) the checkpoints there are
for file in waiting/checkpoints/*/*; do same <(written "$file") <(written "beside/${file#waiting/}") "$file, saved beside training"; done
run timed --save-every 0 --save-minutes 0.00001
[ "$(ls timed/checkpoints | wc -l)" -gt 1 ] && pass || fail "no checkpoints by time: $(checkpoints timed)"
same {timed,waiting}/checkpoints/step_00000012/optimizer.safetensors saved by time
run last --save-every 0 --save-minutes 0
[ "$(checkpoints last)" = "step_00000012 " ] && pass || fail "asked for none but the last: $(checkpoints last)"

# ---- resuming --------------------------------------------------------------------------------------------------------

# back FOLDER: resumes a copy of `waiting` after changes; it must reach the same end.
back() {
    expect 0 "step 12/12" "$train" --run "$1" --resume
    same <(curve waiting) <(curve "$1")
    for file in model.safetensors optimizer.safetensors training_state.json; do same {waiting,"$1"}/checkpoints/step_00000012/$file; done
}
rm -rf beside/checkpoints
back beside # killed before its first checkpoint
grep -q "has no checkpoint yet" out.txt && pass || fail "nothing says that it begins again"
cp -r waiting damaged
left=damaged/checkpoints id=$(sed 's/^run //' damaged/run_id)
mkdir "$left/writing_${id}_00000014" "$left/writing_thesis"
touch "$left/writing_${id}_00000014/model.safetensors" "$left/writing_thesis/1.md" damaged/notes.tmp
cp -r "$left/step_00000010" "$left/removing_${id}_00000008" # killed while it removed the checkpoint
truncate -s -1 damaged/checkpoints/step_00000012/optimizer.safetensors
echo >>damaged/checkpoints/step_00000010/config.json
back damaged
for pattern in "step_00000012 is skipped: .*optimizer.safetensors' is damaged" "step_00000010 is skipped: .*config.json' is damaged"; do
    grep -q "^warning: checkpoint $pattern" out.txt && pass || fail "nothing says: $pattern"
done
[ -z "$(find "$left" -name "writing_${id}*" -o -name "removing_*")" ] && pass || fail "left over: $(checkpoints damaged)"
[ -e "$left/writing_thesis/1.md" ] && [ -e damaged/notes.tmp ] && pass || fail "files of others are gone: $(checkpoints damaged)"
same {waiting,damaged}/checkpoints/step_00000010/config.json # written again

# make clean_stories and make profile remove a run's own files, and only those.
cp -r waiting cleaned
touch cleaned/notes.md cleaned/checkpoints/step_00000012/notes.md
cp -r cleaned foreign && rm foreign/run_id
expect 1 "^error: 'foreign' is not the folder of a run" "$root/dev/remove_made.sh" run foreign
[ -s foreign/checkpoints/step_00000012/model.safetensors ] && pass || fail "a folder without run_id was touched"
accept "'cleaned' is kept" "$root/dev/remove_made.sh" run cleaned
[ "$(find cleaned -type f | sort | xargs)" = "cleaned/checkpoints/step_00000012/notes.md cleaned/notes.md" ] && pass || fail "left: $(find cleaned -type f)"
cp -r waiting cleaned_whole
"$root/dev/remove_made.sh" run cleaned_whole && [ ! -e cleaned_whole ] && pass || fail "left: $(find cleaned_whole)"
mkdir corpus && cp stories/*.txt stories/floor.json tokenizer.json corpus && touch corpus/mine.txt
accept "'corpus' is kept" "$root/dev/remove_made.sh" stories corpus
[ "$(ls corpus)" = mine.txt ] && pass || fail "left: $(ls corpus)"

# Shards that were added later change the order, which is reported.
cp -r waiting grown
for shard in data_*.bin; do cp "$shard" "more_$shard"; done
expect 0 "^warning: '\*data_\*.bin' has .* sequences of 24 tokens, .* when the checkpoint was written" "$train" --run grown --resume \
    --train "*data_*.bin" --steps 13
rm more_data_*.bin
expect 0 "^warning: 'data_\*.bin' has" "$train" --run grown --resume --train "data_*.bin" --steps 14
expect 0 "step 15/15" "$train" --run grown --resume --steps 15
grep -q "^warning" out.txt && fail "the same shards are warned of" || pass

# A read that fails once during validation, by windows or by documents.
if [ -f "$build/test/harness/io_faults.so" ]; then
    mkdir validation
    cp data_000000.bin validation
    cp "$build/test/harness/io_faults.so" . # LD_PRELOAD does not accept a path with a space
    for how in "8" "6 --validate-documents"; do
        rm -rf again
        expect 0 "^warning: .*validation/data_000000.bin.*; trying again in 1 s" env IO_FAULTS_UNDER="$PWD/validation" IO_FAULTS_MODE=fail \
            IO_FAULTS_AT="${how%% *}" LD_PRELOAD="$PWD/io_faults.so" "$train" --run again "${data[@]}" "${shape[@]}" \
            --validation "validation/*.bin" ${how#[0-9]}
    done
    rm -rf again
fi

# Preemption: the run is saved and exits with its own status; any number of times.
rm -rf preempted && mkdir preempted
"$train" --run preempted "${data[@]}" "${shape[@]}" --steps 100000 --save-every 0 --validate-every 0 >out.txt 2>&1 &
wait_for_steps preempted
kill -USR1 $!
kill -USR1 $! # as launchers and Slurm may send it
wait $!
[ $? = 5 ] && pass || fail "exit status after SIGUSR1"
done_steps=$(grep -c '"loss"' preempted/metrics.jsonl)
[ "$(checkpoints preempted)" = "step_$(printf %08d "$done_steps") " ] && pass || fail "$done_steps steps, but $(checkpoints preempted)"
[ -s preempted/lock ] && fail "the lock is not given back" || pass

# ---- outliers --------------------------------------------------------------------------------------------------------

# Data of 12 sequences, six steps, that are outliers for the model: they cause one rollback, the remaining two do not.
spikes=(--vocab-size 256 --seed 5 --num-layers 1 --num-heads 2 --channels 32 --sequence-length 16 --batch 2 --steps 150 --warmup 2
    --learning-rate 1e-2 --save-every 10 --rollback-after 4 --validate-every 0 --keep 100)
"$root/test/harness/bad_shard.py" spike.bin 400 16 5 260 272 100
expect 0 "^4 steps in a row had losses that are outliers: returning from step 134 to step 130 and skipping 8 sequences" "$train" --run spike --train spike.bin "${spikes[@]}"
[ "$(grep -c '"loss"' spike/metrics.jsonl)" = 150 ] && pass || fail "not one line a step"
grep -q '{"step": 131, "rollback_from": 134, "rollback_to": 130, "sequences_skipped": 8}' spike/metrics.jsonl && pass ||
    fail "the rollback is not recorded"
grep -q '"position":.308' spike/checkpoints/step_00000150/training_state.json && pass || fail "not 8 sequences passed over"
# Killed after the rollback, before the next checkpoint: the result is the same.
cp -r spike again
rm -r again/checkpoints/step_000001[45]0
expect 0 "from step 134 to step 130" "$train" --run again --resume
same <(curve spike) <(curve again) killed after a rollback
same {spike,again}/checkpoints/step_00000150/model.safetensors
same {spike,again}/checkpoints/step_00000150/training_state.json
"$root/test/harness/bad_shard.py" worse.bin 400 16 5 260 400 100
expect 4 "^error: training returned to step 130 3 times" "$train" --run worse --train worse.bin "${spikes[@]}"
[ "$(ls worse/checkpoints | tail -n 1)" = step_00000130 ] && pass || fail "after three rollbacks: $(checkpoints worse)"
expect 0 "step 150/150" "$train" --run without --train spike.bin "${spikes[@]}" --rollback-after 0
grep -q rollback without/metrics.jsonl && fail "a rollback that nobody asked for" || pass
# Interrupted during outliers, while step 133 is written to the metrics: none of them is saved, and the resumed run
# meets them again.
if [ -f "$build/test/harness/io_faults.so" ]; then
    meddled() { # meddled RUN WORD...: a run whose outliers cause no rollback, while calls on its metrics are watched
        env "${@:2}" IO_FAULTS_UNDER="$PWD/$1/metrics.jsonl" LD_PRELOAD="$build/test/harness/io_faults.so" "$train" --run "$1" --train spike.bin \
            "${spikes[@]}" --rollback-after 1000 >out.txt 2>&1
    }
    meddled counted IO_FAULTS_MODE=count IO_FAULTS_LOG="$PWD/calls.txt"
    number=$(awk '$2 == "pwrite" && ++count == 133 { print $1 }' calls.txt)
    meddled midst IO_FAULTS_MODE=term IO_FAULTS_AT="$number"
    [ $? = 5 ] && pass || fail "exit status after SIGTERM among outliers"
    [ "$(ls midst/checkpoints | tail -n 1)" = step_00000130 ] && pass || fail "interrupted among outliers: $(checkpoints midst)"
    expect 0 "^4 steps in a row had losses that are outliers: returning from step 134 to step 130 and skipping 8 sequences" \
        "$train" --run midst --resume --rollback-after 4
    same {spike,midst}/checkpoints/step_00000150/model.safetensors
else
    echo "skipped: interrupted among outliers (sanitizers and a preloaded library do not go together)"
fi

finish
