#!/bin/bash
# Training with many processes, as users start it: real processes under mpirun, more than there are cores. Every
# number of processes and every kind of sharding gives the same curve; the same number gives the same bits;
# checkpoints can be resumed with another number; wrong environments are named; a process that dies or freezes ends
# the others.
#     BUILD=build/cpu test/test_processes.sh
#     BUILD=build/cpu DEVICE_BUILD=build/emulated-fp32 test/test_processes.sh             the kernels, in fewer runs
#     BUILD=build/cpu DEVICE_BUILD=... NCCL_BUILD=build/emulated-fp32-nccl test/test_processes.sh   also NCCL's code
device_build=$(cd "${DEVICE_BUILD:-$BUILD}" && pwd) || exit 1
nccl_build=${NCCL_BUILD:+$(cd "$NCCL_BUILD" && pwd)}
. "$(dirname "$0")/harness/test.sh"
if ! command -v mpirun >/dev/null || ! grep -q 'HAVE_MPI\|HAVE_NCCL' "$device_build/flags"; then
    skip "training by many processes" "MPI is not installed"
    finish
    exit
fi
gpt=$device_build/train_gpt
late=$device_build/test/layers/comm/train_gpt_late # runs operations when they are waited for, not before
quick=${DEVICE_BUILD:+yes}
case $build in *-address* | *-thread*) quick=yes ;; esac
case $device_build in *bf16*) bound=0.00390625 ;; *) bound=1e-5 ;; esac
# What --processes sets for mpirun, for direct calls of mpirun; and no launcher variables from the environment of this
# test.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1 \
    OMPI_MCA_hwloc_base_binding_policy=none PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe
# MPI leaks memory; this program's leaks are found by tests with one process.
export ASAN_OPTIONS="$ASAN_OPTIONS:detect_leaks=0"
unset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT

make_data 60k 400
data=(--train "data_*.bin" --validation "data_*.bin" --tokenizer tokenizer.json)
# Sizes that 3 processes cannot divide evenly; an embedding of more than one chunk.
shape=(--num-layers 3 --num-heads 2 --channels 80 --sequence-length 24 --global-batch 24 --steps 20 --warmup 2 --learning-rate 1e-2
    --dropout 0.1 --save-every 0 --validation-batches 2 --sample-tokens 3)
if [ -n "$quick" ]; then shape+=(--num-layers 2 --channels 32 --steps 4); fi

run() { # run PROGRAM N FOLDER OPTION...: under mpirun, or alone if N is 1
    local words=("$1" --run "$3" "${data[@]}" "${shape[@]}" "${@:4}")
    rm -rf "$3"
    if [ "$2" -gt 1 ]; then words=(mpirun -n "$2" "${words[@]}"); fi
    timeout -k 5 $hang "${words[@]}" >out.txt 2>&1 </dev/null || fail "$(grep -m 1 -E 'error|late:' out.txt || tail -n 1 out.txt) of: ${words[*]}"
}
close() { if near "$1" "$2" "$bound"; then pass; else fail "$1: losses" $(losses "$1") "and $2:" $(losses "$2"); fi; }
tensors() { "$root/test/harness/tensors.py" "$1"; } # of the newest checkpoint
same_bits() {
    same <(curve "$1") <(curve "$2") "${@:3}"
    same <(tensors "$1") <(tensors "$2") "${@:3}"
}

# ---- one curve -------------------------------------------------------------------------------------------------------

run "$gpt" 1 one --batch 24
run "$gpt" 1 pieces --batch 8
close pieces one
if [ -n "$quick" ]; then
    many="2 none 6:2 optimizer 12:3 gradients 4:4 gradients 6"
else
    many="2 none 12:2 optimizer 6:2 gradients 6:3 none 4:3 optimizer 8:3 gradients 2:4 none 6:4 optimizer 3:4 gradients 3:8 none 3:8 optimizer 1:8 gradients 3"
fi
IFS=: read -ra cases <<<"$many"
for case in "${cases[@]}"; do
    read -r n shard batch <<<"$case"
    run "$gpt" "$n" "many_${n}_$shard" --batch "$batch" --shard "$shard"
    close "many_${n}_$shard" one
    grep -qE "^processes +$n over MPI.*sharded: $shard" out.txt && pass || fail "the banner does not show $n processes: $(head -n 8 out.txt)"
    [ "$(grep -c '"loss"' "many_${n}_$shard/metrics.jsonl")" = "$(grep -c '"loss"' one/metrics.jsonl)" ] && pass ||
        fail "metrics of $n processes have other lines than those of one"
done
# A validation of the same number of sequences has one result, however they are distributed: all of them with twice
# the batch; documents; and 7 sequences, of which one of three processes has 3 and one none.
head -c $((1024 + 2 * 175)) data_000000.bin | perl -e 'undef $/; $_ = <>; substr($_, 8, 4) = pack("V", 175); print' >few.bin
validation() { tr '\r' '\n' <out.txt | sed -n 's/^validation after step 1: \([0-9.]*\) nats.*, \([0-9]*\) tokens.*/\1 \2/p'; }
for how in "" "--validate-documents --validation-batches 1" "--validation few.bin"; do
    run "$gpt" 1 whole --batch 12 --learning-rate 0 --steps 1 --warmup 0 $how
    whole=$(validation)
    run "$gpt" 3 shared --batch 4 --learning-rate 0 --steps 1 --warmup 0 $how
    echo "$whole $(validation)" |
        awk -v bound=1e-4 '{ d = ($1 - $3) / $3; exit NF != 4 || d < -bound || d > bound || $2 != $4 }' && pass ||
        fail "validation $how by one process and by three: $whole and $(validation)"
done

# ---- the same bits ---------------------------------------------------------------------------------------------------

few=(--batch 4 --steps 4)
run "$gpt" 3 first "${few[@]}" --shard gradients
run "$gpt" 3 second "${few[@]}" --shard gradients --deterministic-reduce
same_bits first second "three processes, again"
run "$gpt" 3 unsharded "${few[@]}"
run "$gpt" 3 sharded "${few[@]}" --shard optimizer
same_bits unsharded sharded "--shard optimizer changes the bits"
# Operations that run at the last moment, whose memory contains NaN until then.
for case in "none 4" "optimizer 2" "gradients 2"; do
    read -r shard batch <<<"$case"
    run "$gpt" 3 prompt "${few[@]}" --batch "$batch" --shard "$shard" --save-every 2
    run "$late" 3 late "${few[@]}" --batch "$batch" --shard "$shard" --save-every 2
    same_bits prompt late "--shard $shard, with operations as late as may be"
done
if [ -z "$quick" ]; then
    for n in 1 2 5; do
        timeout -k 5 $hang mpirun -n $n "$device_build/test/layers/comm/test_mpi" >out.txt 2>&1
        line=$(grep -E '^[0-9]+ passed, 0 failed$' out.txt) && passed=$((passed + ${line%% *})) || fail "test_mpi with $n processes: $(tail -n 5 out.txt)"
    done
fi
# The operations alone, then the other transport: the same sums in the same order, if that is requested.
if [ -n "$nccl_build" ]; then
    for n in 1 2 4; do
        timeout $hang mpirun -n $n "$nccl_build/test/layers/comm/test_nccl" >out.txt 2>&1
        line=$(grep -E '^[0-9]+ passed, 0 failed$' out.txt) && passed=$((passed + ${line%% *})) || fail "test_nccl with $n processes: $(tail -n 5 out.txt)"
    done
    for shard in none optimizer gradients; do
        run "$gpt" 3 over_mpi "${few[@]}" --shard $shard
        run "$nccl_build/train_gpt" 3 over_nccl "${few[@]}" --shard $shard --deterministic-reduce
        grep -q "over NCCL" out.txt && pass || fail "the build for NCCL uses something else"
        same_bits over_mpi over_nccl "--shard $shard over MPI and over NCCL"
        run "$nccl_build/train_gpt" 3 in_any_order "${few[@]}" --shard $shard
        close in_any_order over_mpi
    done
    cmp -s <(tensors in_any_order) <(tensors over_nccl) && fail "the stand-in for NCCL adds in the order of ranks: nothing was tested" || pass
fi

# ---- checkpoints -----------------------------------------------------------------------------------------------------

resume() { # resume N FOLDER OPTION...
    local words=("$gpt" --run "$2" --resume "${@:3}")
    if [ "$1" -gt 1 ]; then words=(mpirun -n "$1" "${words[@]}"); fi
    timeout -k 5 $hang "${words[@]}" >out.txt 2>&1 </dev/null || fail "$(grep -m 1 error out.txt || tail -n 1 out.txt) of: ${words[*]}"
}
for shard in none optimizer gradients; do
    run "$gpt" 2 straight --batch 6 --shard $shard --steps 4 --save-every 2
    cp -r straight cut
    rm -r cut/checkpoints/step_00000004
    cp -r cut elsewhere
    resume 2 cut
    same_bits straight cut "resumed with --shard $shard"
    resume 3 elsewhere # 24 sequences per step: 8 each, 4 at a time
    close elsewhere straight
    grep -qE "3 x 2 micro-steps of 4 sequences" out.txt && pass || fail "three processes go on with another step: $(grep ^processes out.txt)"
    rm -rf elsewhere
    cp -r straight elsewhere
    rm -r elsewhere/checkpoints/step_00000004
    resume 1 elsewhere --shard none
    close elsewhere straight
    rm -rf straight cut elsewhere
done

# ---- how it is started -----------------------------------------------------------------------------------------------

program=("$gpt" --run started "${data[@]}" "${shape[@]}" --steps 1 --warmup 0)
rm -rf started
accept "^processes +2 over MPI" --processes 2
mpi() { timeout -k 5 $hang mpirun -n "$1" "$gpt" --run "$2" "${data[@]}" "${shape[@]}" --steps 1 --warmup 0 "${@:3}"; }
program=()
refuse "WORLD_SIZE" env RANK=1 "$gpt" "${data[@]}" "${shape[@]}"
refuse "torchrun does not start" env RANK=0 WORLD_SIZE=2 LOCAL_RANK=0 LOCAL_WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=29500 \
    TORCHELASTIC_RUN_ID=x "$gpt" "${data[@]}" "${shape[@]}"
refuse "24 sequences .* cannot be divided evenly among 5" mpi 5 uneven
refuse "is not a multiple of --batch 24 times 2" mpi 2 uneven --batch 24
refuse "the launcher has already started 2 processes" mpi 2 uneven --processes 3
[ -e uneven ] && fail "a refused run leaves a folder" || pass
# An error of one process is reported once, by that process.
cp data_000000.bin elsewhere.bin
printf 'x' >>elsewhere.bin
cat >one_differs.sh <<'END'
#!/bin/sh
case $OMPI_COMM_WORLD_RANK$PMI_RANK in 1) shards=$1 ;; *) shards=data_000000.bin ;; esac
shift
exec "$@" --train "$shards"
END
chmod +x one_differs.sh
mpi_differs() { timeout $hang mpirun -n 2 ./one_differs.sh "$1" "$gpt" --run differs "${shape[@]}" --tokenizer tokenizer.json "${@:2}"; }
refuse "process 1: .*elsewhere.bin" mpi_differs elsewhere.bin
refuse "process 1: .*nowhere.bin" mpi_differs nowhere.bin
head -c $((1024 + 2 * 5000)) data_000000.bin | perl -e 'undef $/; $_ = <>; substr($_, 8, 4) = pack("V", 5000); print' >shorter.bin
refuse "processes 0 and 1 have different training shards" mpi_differs shorter.bin

# ---- agreement among processes ---------------------------------------------------------------------------------------

# Processes must start from the same state: an older checkpoint on one of them, or none, is detected.
run "$gpt" 2 seen --batch 6 --save-every 2 --steps 4
cp -r seen older
rm -r older/checkpoints/step_00000004
cat >other_run.sh <<'END'
#!/bin/sh
case $OMPI_COMM_WORLD_RANK$PMI_RANK in 0) run=$1 ;; *) run=$2 ;; esac
shift 2
exec "$@" --run "$run"
END
chmod +x other_run.sh
refuse "process 1: cannot open 'older/" timeout $hang mpirun -n 2 ./other_run.sh seen older "$gpt" --resume --steps 6
run "$gpt" 2 other --batch 6 --save-every 2 --steps 4 --seed 7
cp seen/options.txt other
refuse "processes 0 and 1 have different initial checkpoints" timeout $hang mpirun -n 2 ./other_run.sh seen other "$gpt" --resume --steps 6
# The others write for a process that does not see the run's folder.
expect 0 "step 4/4" timeout $hang mpirun -n 2 ./other_run.sh here elsewhere "$gpt" "${data[@]}" "${shape[@]}" --batch 6 --steps 4 --shard optimizer
run "$gpt" 2 both --batch 6 --steps 4 --shard optimizer
same <(tensors here) <(tensors both) written by one process
[ -f here/checkpoints/step_00000004/model.safetensors ] && [ ! -d elsewhere/checkpoints ] && pass || fail "two folders: $(find here elsewhere)"
refuse "process 1: there is no run to resume" timeout $hang mpirun -n 2 ./other_run.sh seen nowhere "$gpt" --resume --steps 6

# It could not roll back to their checkpoints.
refuse "rollback-after: process 1 must see the same folder 'here2' as process 0" timeout $hang mpirun -n 2 ./other_run.sh here2 elsewhere "$gpt" \
    "${data[@]}" "${shape[@]}" --batch 6 --rollback-after 3

md5sum seen/options.txt >before.txt
refuse "processes 0 and 1 have different options" timeout $hang mpirun -n 1 "$gpt" --run seen --resume --learning-rate 0.5 : \
    -n 1 "$gpt" --run seen --resume
holds md5sum -c --quiet before.txt # a refused command leaves the run unchanged
refuse "process 1: there is no option" timeout $hang mpirun -n 1 "$gpt" --run seen --resume : -n 1 "$gpt" --run seen --resume --bogus 5

# A process reads an invalid token: all stop before that step, and save.
"$root/test/harness/bad_shard.py" token.bin 400 24 1337 30 32 4000
bad=(--train token.bin --vocab-size 107 --num-layers 1 --num-heads 2 --channels 32 --sequence-length 24 --global-batch 8 --batch 2)
expect 1 "^error: process 3: token [0-9]+ of 'token.bin' is [0-9]+" mpirun -n 4 "$gpt" --run bad_token "${bad[@]}" --steps 20
[ "$(grep -c '"loss"' bad_token/metrics.jsonl)" = 3 ] && [ -f bad_token/checkpoints/step_00000003/manifest ] && pass ||
    fail "not saved before the bad token: $(ls bad_token/checkpoints)"
grep -q '"position":.24' bad_token/checkpoints/step_00000003/training_state.json && pass || fail "the step without data counts as done"

# The same in validation, where process 3 begins with sequence 6.
"$root/test/harness/bad_shard.py" good.bin 400 24 1337 0 0 0
cp good.bin validation.bin
printf '\xa0\x0f' | dd of=validation.bin bs=1 seek=$((1024 + 2 * (6 * 24 + 10))) conv=notrunc status=none
bad[1]=good.bin
expect 1 "^error: process 3: token 154 of 'validation.bin' is 4000" mpirun -n 4 "$gpt" --run bad_validation "${bad[@]}" --steps 20 \
    --validation validation.bin --validate-every 5
[ -f bad_validation/checkpoints/step_00000005/manifest ] && pass || fail "not saved: $(ls bad_validation/checkpoints)"
# A disk that takes longer for the last save than the deadline of steps.
bad[1]=token.bin
if [ -f "$build/test/harness/io_faults.so" ]; then
    cp "$build/test/harness/io_faults.so" . # LD_PRELOAD does not accept a path with a space
    slow=(IO_FAULTS_UNDER=$work/slow/checkpoints IO_FAULTS_MODE=hang IO_FAULTS_AT=1 IO_FAULTS_COUNT=all IO_FAULTS_SECONDS=0.1)
    expect 1 "^error: process 3: token" env "${slow[@]}" mpirun -n 4 -x LD_PRELOAD="$work/io_faults.so" "$gpt" --run slow "${bad[@]}" --steps 20 \
        --save-every 0 --save-minutes 0 --deadline 2
    [ -f slow/checkpoints/step_00000003/manifest ] && pass || fail "not saved by a slow disk: $(ls slow/checkpoints)"
fi

# Weights that are not finite: process 0 has its checkpoint before any process exits, and one process reports why.
mkdir infinite
cp seen/checkpoints/step_00000004/{model.safetensors,config.json} infinite
perl -e 'open F, "+<", "infinite/model.safetensors"; binmode F; read F, $n, 8; $n = unpack "Q<", $n; read F, $h, $n;
    $h =~ /"ln_f.bias":\{[^}]*"data_offsets":\s*\[\s*(\d+)/ or die; seek F, 8 + $n + $1, 0; print F pack "f", 9**9**9'
expect 4 "^error: [34] steps in a row" mpi 3 skips --batch 4 --steps 50 --init-from infinite --max-skips 3
[ -f skips/checkpoints/step_0000000[34]/manifest ] && pass || fail "no checkpoint of what was skipped: $(ls skips/checkpoints)"
cp -r bad_token doubtful # skipped steps also count as done when the data ends
rm -r doubtful/checkpoints
cp -r bad_token/checkpoints/step_00000003 diverged && rm diverged/manifest
printf '\0\0\300\177' | dd of=diverged/model.safetensors bs=1 seek=$(($(stat -c %s diverged/model.safetensors) - 4)) conv=notrunc status=none
expect 1 "^error: process 3: token" mpirun -n 4 "$gpt" --run doubtful "${bad[@]:0:2}" --init-from diverged --sequence-length 24 --global-batch 8 --batch 2 --steps 20
[ -f doubtful/checkpoints/step_00000003/manifest ] && pass || fail "not saved after skipped steps: $(ls doubtful/checkpoints)"

# stopped VICTIM SHARD: one of three processes is asked to stop; all stop after the same step, save it, and can be
# resumed.
stopped() {
    rm -rf stopped
    timeout -k 5 $hang mpirun -n 3 "$gpt" --run stopped "${data[@]}" "${shape[@]}" --batch 4 --steps 1000000 --shard "$2" --deadline 60 >out.txt 2>&1 </dev/null &
    local launcher=$!
    wait_for_steps stopped
    kill -TERM "$(pgrep -P "$(pgrep -P "$launcher")" | sed -n "$1p")" || { fail "no process to stop" && kill $launcher; }
    local started=$SECONDS
    wait $launcher
    [ $((SECONDS - started)) -le $((hang / 2)) ] && pass || fail "asked to end, they go on for $((SECONDS - started)) s"
    local steps
    steps=$(grep -c '"loss"' stopped/metrics.jsonl)
    [ -f "stopped/checkpoints/step_$(printf %08d "$steps")/manifest" ] && pass || fail "step $steps is not saved: $(ls stopped/checkpoints)"
    grep -aq "^error" out.txt && fail "asked to end: $(grep -a -m 1 ^error out.txt)" || pass
    resume 3 stopped --steps $((steps + 1)) && pass
}
stopped 1 none
stopped 2 gradients

# The process group of --processes gets the signal: all processes stop at once, and save; the status is that of an
# interrupted run.
for signal in TERM INT; do
    rm -rf asked
    timeout -k 5 $hang perl -e '$SIG{INT} = "DEFAULT"; exec @ARGV' "$gpt" --processes 2 --run asked "${data[@]}" "${shape[@]}" --batch 4 --steps 1000000 >out.txt 2>&1 &
    launcher=$!
    wait_for_steps asked
    kill -$signal "$(pgrep -P $launcher)"
    SECONDS=0
    wait $launcher
    status=$?
    [ $status = 5 ] && [ $SECONDS -le $((hang / 2)) ] && pass || fail "asked to end by SIG$signal: status $status after $SECONDS s: $(tail -n 1 out.txt)"
    [ -f "asked/checkpoints/step_$(printf %08d "$(grep -c '"loss"' asked/metrics.jsonl)")/manifest" ] && pass || fail "not saved: $(ls asked/checkpoints)"
done

# ---- lost processes --------------------------------------------------------------------------------------------------

# lost SIGNAL PATTERN: one of three training processes gets the signal; the others end within seconds.
lost() {
    rm -rf lost_$$
    timeout -k 5 $hang mpirun -n 3 "$gpt" --run lost_$$ "${data[@]}" "${shape[@]}" --batch 4 --steps 1000000 --deadline 10 >out.txt 2>&1 </dev/null &
    local launcher=$! victim status
    wait_for_steps lost_$$
    victim=$(pgrep -P "$(pgrep -P "$launcher")" | sed -n 2p)
    kill "-$1" "$victim" || { fail "no process to send $1 to" && kill $launcher; }
    local started=$SECONDS
    wait $launcher
    status=$?
    [ $((SECONDS - started)) -le $((hang / 2)) ] && pass || fail "after $1 the others go on for $((SECONDS - started)) s"
    [ $status -ne 0 ] && pass || fail "after $1 the launcher's exit status is 0"
    grep -qE "$2" out.txt && pass || fail "after $1 nothing says '$2': $(grep -v '^step' out.txt | tail -n 5)"
    pgrep -f -- "--run lost_$$" >/dev/null && fail "after $1 processes are left: $(pgrep -fa -- '--run lost_$$')" || pass
    kill -9 "$victim" 2>/dev/null
}
# A process that freezes before it has connected to the others.
cat >frozen.sh <<'END'
#!/bin/sh
case $OMPI_COMM_WORLD_RANK$PMI_RANK in 1) kill -STOP $$ ;; esac
exec "$@"
END
chmod +x frozen.sh
expect 3 "^error: connecting all processes over MPI has taken more than 2 s" timeout -k 5 $hang mpirun -n 3 ./frozen.sh "$gpt" --run frozen \
    "${data[@]}" "${shape[@]}" --batch 4 --deadline 2
if [ -n "$nccl_build" ]; then # an operation that never ends: during setup, during validation
    for call in 4 12; do
        started=$SECONDS
        NCCL_STANDIN_HANG=1:$call timeout -k 5 $hang mpirun -n 2 "$nccl_build/train_gpt" --run hangs_$call "${data[@]}" "${shape[@]}" \
            --batch 12 --steps 1 --warmup 0 --deadline 1 >out.txt 2>&1 </dev/null
        [ $? = 3 ] && [ $((SECONDS - started)) -le $((hang / 2)) ] && grep -q "^error: " out.txt && pass ||
            fail "call $call of NCCL hangs for $((SECONDS - started)) s: $(tail -n 5 out.txt)"
    done
fi
lost STOP "^error: process [12] .*(no heartbeat|frozen|not answer)"
lost KILL "(signal 9|^error: process [12] )"

finish
