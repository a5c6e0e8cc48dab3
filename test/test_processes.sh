#!/bin/bash
# Training by many processes, as users start it: real processes under mpirun, more than there are cores. Every number of
# processes and every way of sharding gives the same curve; the same number the same bits; checkpoints go from one number to
# another; wrong environments are named; a process that dies or freezes ends the others.
#     BUILD=build/cpu test/test_processes.sh
#     BUILD=build/cpu DEVICE_BUILD=build/emulated-fp32 test/test_processes.sh             the kernels, in fewer runs
#     BUILD=build/cpu DEVICE_BUILD=... NCCL_BUILD=build/emulated-fp32-nccl test/test_processes.sh   also NCCL's code
device_build=$(cd "${DEVICE_BUILD:-$BUILD}" && pwd) || exit 1
nccl_build=${NCCL_BUILD:+$(cd "$NCCL_BUILD" && pwd)}
. "$(dirname "$0")/test.sh"
if ! command -v mpirun >/dev/null; then
    echo "without mpirun (Open MPI or MPICH: make deps test) nothing here can run"
    exit 1
fi
gpt=$device_build/train_gpt
quick=${DEVICE_BUILD:+yes}
case $build in *-address* | *-thread*) quick=yes ;; esac
case $device_build in *bf16*) bound=0.00390625 ;; *) bound=1e-5 ;; esac
# What --processes sets for mpirun, for when mpirun is called here; and no variable of a launcher around this test.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1 \
    OMPI_MCA_hwloc_base_binding_policy=none PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe
export ASAN_OPTIONS="$ASAN_OPTIONS:detect_leaks=0" # MPI leaves memory behind; ours is looked at in tests of one process
unset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT

"$build/data/write_stories" --train-bytes 60k --validation-stories 20 --out stories >/dev/null 2>&1 || fail "write_stories"
"$build/data/tokenize" train --input stories/train.txt --vocab 400 --out tokenizer.json >/dev/null 2>&1 || fail "tokenizer"
"$build/data/tokenize" encode --tokenizer tokenizer.json --input stories/train.txt --out data >/dev/null 2>&1 || fail "encode"
data=(--train "data_*.bin" --validation "data_*.bin" --tokenizer tokenizer.json)
# No size is a multiple of 3 or 8 processes' parts; an embedding of more than one chunk is cut.
shape=(--num-layers 3 --num-heads 2 --channels 48 --sequence-length 24 --global-batch 24 --steps 20 --warmup 2 --learning-rate 1e-2
    --dropout 0.1 --save-every 0 --validation-batches 2 --sample-tokens 3)
if [ -n "$quick" ]; then shape+=(--num-layers 2 --channels 32 --steps 4); fi

run() { # run PROGRAM N FOLDER OPTION...: under mpirun, or alone
    local words=("$1" --run "$3" "${data[@]}" "${shape[@]}" "${@:4}")
    rm -rf "$3"
    if [ "$2" -gt 1 ]; then words=(mpirun -n "$2" "${words[@]}"); fi
    timeout 120 "${words[@]}" >out.txt 2>&1 </dev/null || fail "$(grep -m 1 error out.txt || tail -n 1 out.txt) of: ${words[*]}"
}
close() { if near "$1" "$2" "$bound"; then pass; else fail "$1: losses" $(losses "$1") "and $2:" $(losses "$2"); fi; }
newest() { ls -d "$1"/checkpoints/step_*/model.safetensors | tail -n 1; } # weights of the newest checkpoint
same_bits() {
    same <(curve "$1") <(curve "$2") "${@:3}"
    same "$(newest "$1")" "$(newest "$2")" "${@:3}"
}
validation() { grep -o '"validation_loss": [0-9.]*' "$1/metrics.jsonl" | cut -d' ' -f2; }

# ---- one curve --------------------------------------------------------------------------------------------------------

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
# A validation of as many sequences has one result, however they are shared out.
run "$gpt" 1 whole --batch 12 --learning-rate 0 --validation-batches 2 --steps 1 --warmup 0
run "$gpt" 3 shared --batch 4 --learning-rate 0 --validation-batches 2 --steps 1 --warmup 0
echo "$(validation whole) $(validation shared)" | awk -v bound=$bound '{ d = ($1 - $2) / $2; exit NF != 2 || d < -bound || d > bound }' &&
    pass || fail "validation by one process and by three: $(validation whole) and $(validation shared)"
run "$gpt" 1 whole --validate-documents --batch 12 --learning-rate 0 --validation-batches 1 --steps 1 --warmup 0
run "$gpt" 2 shared --validate-documents --batch 6 --learning-rate 0 --validation-batches 1 --steps 1 --warmup 0
echo "$(validation whole) $(validation shared)" | awk -v bound=$bound '{ d = ($1 - $2) / $2; exit NF != 2 || d < -bound || d > bound }' &&
    pass || fail "validation on documents by one process and by two: $(validation whole) and $(validation shared)"

# ---- the same bits ----------------------------------------------------------------------------------------------------

few=(--batch 4 --steps 4)
run "$gpt" 3 first "${few[@]}" --shard gradients
run "$gpt" 3 second "${few[@]}" --shard gradients --deterministic-reduce
same_bits first second "three processes, again"
run "$gpt" 3 unsharded "${few[@]}"
run "$gpt" 3 sharded "${few[@]}" --shard optimizer
same_bits unsharded sharded "--shard optimizer changes the bits"
if [ -n "$nccl_build" ]; then # the operations alone, then the other transport: the same sums in the same order, where that is asked for
    for n in 1 2 4; do
        timeout 100 mpirun -n $n "$nccl_build/test/comm/test_nccl" >out.txt 2>&1
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
    cmp -s "$(newest in_any_order)" "$(newest over_nccl)" && fail "the stand-in for NCCL adds in the order of ranks: nothing was tested" || pass
fi

# ---- checkpoints ------------------------------------------------------------------------------------------------------

resume() { # resume N FOLDER OPTION...
    local words=("$gpt" --run "$2" --resume "${@:3}")
    if [ "$1" -gt 1 ]; then words=(mpirun -n "$1" "${words[@]}"); fi
    timeout 120 "${words[@]}" >out.txt 2>&1 </dev/null || fail "$(grep -m 1 error out.txt || tail -n 1 out.txt) of: ${words[*]}"
}
for shard in none optimizer gradients; do
    run "$gpt" 2 straight --batch 6 --shard $shard --steps 4 --save-every 2
    cp -r straight cut
    rm -r cut/checkpoints/step_00000004
    cp -r cut elsewhere
    resume 2 cut
    same_bits straight cut "resumed with --shard $shard"
    resume 3 elsewhere # 24 sequences a step: 8 each, of which 4 at a time
    close elsewhere straight
    grep -qE "3 x 2 micro-steps of 4 sequences" out.txt && pass || fail "three processes go on with another step: $(grep ^processes out.txt)"
    rm -rf elsewhere
    cp -r straight elsewhere
    rm -r elsewhere/checkpoints/step_00000004
    resume 1 elsewhere --shard none
    close elsewhere straight
    rm -rf straight cut elsewhere
done

# ---- how it is started ------------------------------------------------------------------------------------------------

program=("$gpt" --run started "${data[@]}" "${shape[@]}" --steps 1 --warmup 0)
rm -rf started
accept "^processes +2 over MPI" --processes 2
mpi() { timeout 100 mpirun -n "$1" "$gpt" --run "$2" "${data[@]}" "${shape[@]}" --steps 1 --warmup 0 "${@:3}"; }
program=()
refuse "WORLD_SIZE" env RANK=1 "$gpt" "${data[@]}" "${shape[@]}"
refuse "torchrun does not start" env RANK=0 WORLD_SIZE=2 LOCAL_RANK=0 LOCAL_WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=29500 \
    TORCHELASTIC_RUN_ID=x "$gpt" "${data[@]}" "${shape[@]}"
refuse "24 sequences .* cannot be divided evenly among 5" mpi 5 uneven
refuse "is no multiple of --batch 24 times 2" mpi 2 uneven --batch 24
refuse "there are 2, started by a launcher" mpi 2 uneven --processes 3
[ -e uneven ] && fail "a refused run leaves a folder" || pass
# What fails for one of them is said once, by that one.
cp data_000000.bin elsewhere.bin
printf 'x' >>elsewhere.bin
cat >one_differs.sh <<'END'
#!/bin/sh
case $OMPI_COMM_WORLD_RANK$PMI_RANK in 1) shards=$1 ;; *) shards=data_000000.bin ;; esac
shift
exec "$@" --train "$shards"
END
chmod +x one_differs.sh
mpi_differs() { timeout 100 mpirun -n 2 ./one_differs.sh "$1" "$gpt" --run differs "${shape[@]}" --tokenizer tokenizer.json "${@:2}"; }
refuse "process 1: .*elsewhere.bin" mpi_differs elsewhere.bin
refuse "process 1: .*nowhere.bin" mpi_differs nowhere.bin
head -c $((1024 + 2 * 5000)) data_000000.bin | perl -e 'undef $/; $_ = <>; substr($_, 8, 4) = pack("V", 5000); print' >shorter.bin
refuse "processes 0 and 1 have different training shards" mpi_differs shorter.bin

# ---- who is lost ------------------------------------------------------------------------------------------------------

# lost SIGNAL PATTERN: training of three processes, of which one gets the signal in the middle; the rest end within seconds.
lost() {
    rm -rf lost
    timeout -k 5 100 mpirun -n 3 "$gpt" --run lost "${data[@]}" "${shape[@]}" --batch 4 --steps 1000000 --deadline 3 >out.txt 2>&1 </dev/null &
    local launcher=$! victim status
    for i in $(seq 200); do
        [ "$(cat lost/metrics.jsonl 2>/dev/null | grep -c '"loss"')" -ge 3 ] && break
        sleep 0.1
    done
    victim=$(pgrep -P "$(pgrep -P "$launcher")" | sed -n 2p)
    kill "-$1" "$victim" || fail "no process to send $1 to"
    local started=$SECONDS
    wait $launcher
    status=$?
    [ $((SECONDS - started)) -le 20 ] && pass || fail "after $1 the others go on for $((SECONDS - started)) s"
    [ $status -ne 0 ] && pass || fail "after $1 the launcher's exit status is 0"
    grep -qE "$2" out.txt && pass || fail "after $1 nothing says '$2': $(grep -v '^step' out.txt | tail -n 5)"
    pgrep -f -- "--run lost" >/dev/null && fail "after $1 processes are left: $(pgrep -fa -- '--run lost')" || pass
    kill -9 "$victim" 2>/dev/null
}
lost STOP "^error: process [12] .*(no heartbeat|frozen|not answer)"
lost KILL "(signal 9|^error: process [12] )"

finish
