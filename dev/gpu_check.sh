#!/bin/bash
# Checks everything that can be checked only on a GPU, in parts of less than nine minutes, most important first, and
# writes one report.
#     dev/gpu_check.sh                   all parts that have not yet passed
#     dev/gpu_check.sh tests racecheck   these parts, even if they have passed; `sanitizer` and `training` are groups
#     dev/gpu_check.sh --list            lists the parts
#     dev/gpu_check.sh --emulated        the parts that are useful without a GPU, on the emulated build
#     dev/gpu_check.sh --prepare         for a machine without network: downloads Debian packages into .carry/
# The report is appended to dev/gpu_report.txt, or to $OUT/report.txt if OUT is set. Next to it, the folder that ends in
# _logs contains the complete outputs, and the file that ends in _passed lists the parts that passed. A part that fails
# or is cut off does not prevent the next one from running.
#
# Other settings: DATA, a folder with train_*.bin, validation_*.bin and tokenizer.json to train on instead of
# datasets/stories, which is created; BATCH_124M, BATCH_350M; PART_SECONDS (540); PYTHON (python3), one that has torch.
cd "$(dirname "$0")/.." || exit 1
SANITIZER="memcheck racecheck synccheck initcheck"
TRAINING="training_124M training_350M"
PARTS="versions build tests conformance processes $SANITIZER kernels $TRAINING attention saving curve"
EMULATED_PARTS="versions build tests conformance processes training_tiny saving curve"
DEVICE=cuda
PYTHON=${PYTHON:-python3}
report=${OUT:+$OUT/report.txt}
report=${report:-dev/gpu_report.txt}
logs=${report%.txt}_logs
passed_file=${report%.txt}_passed
data=${DATA:-datasets/stories}
made=$([ -n "$DATA" ] || echo datasets/stories/validation_000000.bin) # created by make if it does not exist

# ---- running and reporting ------------------------------------------------------------------------------------------

say() { echo "$*" | tee -a "$report"; }

# try LINES COMMAND...: runs the command; writes it and the last LINES lines of its output to the report, and the whole
# output to the log of the part. If it fails, the part fails.
try() {
    local lines=$1 status
    shift
    say "\$ $*"
    "$@" >"$logs/last" 2>&1
    status=$?
    cat "$logs/last" >>"$logs/$part.log"
    tail -n "$lines" "$logs/last" | tee -a "$report"
    if [ "$status" -ne 0 ]; then
        say "FAILED with status $status"
        part_failed=1
    fi
    return "$status"
}
# Runs a measurement for comparison, which is skipped, without a failure, if the machine lacks the program for it.
try_if_there() { # try_if_there PROGRAM-OR-MODULE LINES COMMAND...
    if command -v "$1" >/dev/null || "$PYTHON" -c "import $1" 2>/dev/null; then
        try "${@:2}"
    else
        say "skipped: $1 is not installed on this machine"
    fi
}
export PACKAGES_CHECKED=yes # make installs nothing, because the machine may have no network; see --prepare
# Builds in bf16 include cuDNN's attention if cuDNN and its frontend are installed.
make_it() {
    local cudnn=0
    case "$DEVICE $*" in "cuda "*PRECISION=bf16*) [ -z "$(dev/find_cuda.sh cudnn-compile)" ] || cudnn=1 ;; esac
    make --no-print-directory -j"$(nproc)" DEVICE="$DEVICE" NO_LINKS=1 CUDNN=$cudnn "$@"
}
build_of() { echo "build/$DEVICE-$1"; }

# ---- the parts ------------------------------------------------------------------------------------------------------

part_versions() {
    if [ "$DEVICE" = cuda ]; then
        try 20 nvidia-smi --query-gpu=name,driver_version,memory.total,compute_cap,clocks.max.sm,clocks.max.mem --format=csv
        try 4 "$(dev/find_cuda.sh nvcc)" --version
        try 9 dev/find_cuda.sh link
        try_if_there torch 3 "$PYTHON" -c 'import torch; print("torch", torch.__version__, "cuDNN", torch.backends.cudnn.version(), "NCCL", torch.cuda.nccl.version())'
    fi
    try 1 sh -c 'g++ --version | head -n 1'
    try 4 uname -srm
}

part_build() {
    for precision in bf16 fp32; do
        try 3 make_it PRECISION=$precision programs tests &&
            say "$(du -b "$(build_of $precision)/train_gpt" | cut -f1) bytes, compiled by: $(sed -n "s/^device: //p" "$(build_of $precision)/flags" 2>/dev/null)"
    done
}

part_tests() {
    for precision in bf16 fp32; do try 15 make_it PRECISION=$precision test; done
}

# Compares the result of each instruction on this device with that of the emulator.
part_conformance() {
    try 2 make_it PRECISION=bf16 "$(build_of bf16)/test/attention/test_ptx" || return
    try 2 sh -c "$(build_of bf16)/test/attention/test_ptx --table >'$logs/table_$DEVICE.txt'; tail -n 1 '$logs/table_$DEVICE.txt'"
    [ "$DEVICE" = cuda ] || return
    local emulated=build/emulated-bf16/test/attention/test_ptx
    try 2 make --no-print-directory DEVICE=emulated "$emulated" || return
    try 2 sh -c "$emulated --table >'$logs/table_emulated.txt'; tail -n 1 '$logs/table_emulated.txt'"
    try 20 awk 'NF != 3 || $3 !~ /^[0-9a-f]+$/ { next }
        FNR == NR { emulated[$1 " " $2] = $3; next }
        !($1 " " $2 in emulated) { missing++; next }
        { compared++ }
        emulated[$1 " " $2] != $3 { different++; print $1, $2, "is", $3, "on the GPU and", emulated[$1 " " $2], "emulated" }
        END { print compared + 0, "values compared,", different + 0, "differ,", missing + 0, "are not in the emulator'\''s table"; exit different > 0 || compared == 0 }' \
        "$logs/table_emulated.txt" "$logs/table_$DEVICE.txt"
}

# pair WORD...: runs the command as two processes that share the GPU. NCCL rejects that on one host, so each process
# claims to be on a different host. Without a GPU, mpirun starts them, with the stand-in for NCCL.
pair() {
    local rank pids= pid status=0
    if [ "$DEVICE" != cuda ]; then
        OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 timeout 150 mpirun --oversubscribe -n 2 "$@"
        return
    fi
    for rank in 0 1; do
        RANK=$rank WORLD_SIZE=2 LOCAL_RANK=$rank LOCAL_WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=29500 \
            NCCL_HOSTID=host$rank NCCL_SOCKET_IFNAME=lo timeout 150 "$@" &
        pids="$pids $!"
    done
    for pid in $pids; do wait "$pid" || status=$?; done
    return $status
}
losses() { sed -n 's/.*"loss": \([0-9.]*\), .*/\1/p' "$1/metrics.jsonl"; }
same_losses() { # same_losses RUN RUN
    paste <(losses "$1") <(losses "$2") | awk -v name="$(basename "$2")" '
        { d = ($1 - $2) / $1; if (d < 0) d = -d; if (d > most) most = d; if (NF != 2) bad = 1 }
        END { print name ": losses of", NR, "steps differ by", most + 0, "at most"; exit bad || NR == 0 || most > 1e-5 }'
}
# Tests NCCL with one process, then with two on one GPU: first its operations, then training, which must give the same
# losses as one process.
part_processes() {
    local build shard shape
    shape=(--train "$data/train_*.bin" --num-layers 3 --num-heads 2 --channels 64 --vocab-size 3400 --global-batch 8 --sequence-length 64
        --warmup 2 --save-every 0 --dropout 0.1 --steps $([ "$DEVICE" = cuda ] && echo 20 || echo 3))
    build=$(build_of fp32)$([ "$DEVICE" = cuda ] || echo -nccl)
    try 2 make_it PRECISION=fp32 NCCL=$([ "$DEVICE" = cuda ] && echo 1 || echo standin) programs "$build/test/layers/comm/test_nccl" $made || return
    if [ "$DEVICE" = cuda ]; then try 3 "$build/test/layers/comm/test_nccl"; fi
    try 3 pair "$build/test/layers/comm/test_nccl"
    rm -rf "$logs"/pair_*
    try 3 "$build/train_gpt" --run "$logs/pair_alone" --batch 8 "${shape[@]}"
    for shard in none optimizer gradients; do
        try 3 pair "$build/train_gpt" --run "$logs/pair_$shard" --batch 2 --shard $shard --profile "${shape[@]}"
        try 3 pair "$build/train_gpt" --run "$logs/pair_in_order" --batch 2 --shard $shard --deterministic-reduce "${shape[@]}"
        try 1 same_losses "$logs/pair_alone" "$logs/pair_$shard"
        try 1 same_losses "$logs/pair_alone" "$logs/pair_in_order"
        rm -rf "$logs/pair_in_order"
    done
    rm -rf "$logs"/pair_*
}

watch_with() { # watch_with TOOL: runs tests and the trainer under this tool of compute-sanitizer
    local program build
    build=$(build_of bf16)
    try 2 make_it PRECISION=bf16 programs tests $made || return
    export TEST_SMALL=1
    for program in layers/test_kernels layers/test_matmul_device attention/test_attention; do
        try 4 timeout 120 compute-sanitizer --tool "$1" --error-exitcode 9 "$build/test/$program"
    done
    rm -rf "$logs/run"
    try 4 timeout 120 compute-sanitizer --tool "$1" --error-exitcode 9 "$build/train_gpt" --run "$logs/run" \
        --train "$data/train_*.bin" --tokenizer "$data/tokenizer.json" --num-layers 2 --num-heads 2 \
        --channels 64 --batch 2 --sequence-length 64 --dropout 0.1 --steps 2 --sample-tokens 4
}
part_memcheck() { watch_with memcheck; }
part_racecheck() { watch_with racecheck; }
part_synccheck() { watch_with synccheck; }
part_initcheck() { watch_with initcheck; }

part_kernels() {
    try 2 make_it PRECISION=bf16 bench_program || return
    try 60 "$(build_of bf16)/dev/bench_kernels"
    try 60 "$(build_of bf16)/dev/bench_kernels" 8 1024 1024 50257
}

# train NAME OPTION...: runs our trainer; reports the median time of the steps after the first ones, and the peak
# memory.
train() {
    local name=$1 watcher figures
    shift
    rm -rf "$logs/$name"
    : >"$logs/memory"
    if [ "$DEVICE" = cuda ]; then
        while sleep 0.5; do nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits >>"$logs/memory" 2>/dev/null; done &
        watcher=$!
    fi
    try 40 "$(build_of bf16)/train_gpt" --run "$logs/$name" --train "$data/train_*.bin" --save-every 1000000 "$@"
    if [ -n "$watcher" ]; then kill "$watcher" && wait "$watcher" 2>/dev/null; fi
    figures=$(sed -n 's/.*"tokens": \([0-9]*\),.*"seconds": \([0-9.]*\)}/\2 \1/p' "$logs/$name/metrics.jsonl" | tail -n +"$((${skip:-10} + 1))" | sort -n |
        awk -v name="$name" '{ seconds[NR] = $1; tokens = $2 } END { if (NR == 0) exit 1
            middle = seconds[int((NR + 1) / 2)]
            printf "%s, ours: median of %d steps %.2f ms, %.0f tokens/s\n", name, NR, 1e3 * middle, tokens / middle }')
    say "${figures:-FAILED: no steps in metrics.jsonl}"
    [ -n "$figures" ] || part_failed=1
    [ "$DEVICE" != cuda ] || say "peak GPU memory in use: $(sort -n "$logs/memory" | tail -n 1) MiB"
    rm -rf "$logs/$name/checkpoints"
}

train_beside_torch() { # train_beside_torch MODEL BATCH
    try 2 make_it PRECISION=bf16 programs $made || return
    train "$1" --model "$1" --vocab-size 50257 --batch "$2" --sequence-length 1024 --steps 50 --profile
    try_if_there torch 6 "$PYTHON" dev/bench_torch.py --cuda --model "$1" --batch "$2" --sequence-length 1024 --variants compiled,eager
}
part_training_124M() { train_beside_torch gpt2-124M "${BATCH_124M:-16}"; }
part_training_350M() { train_beside_torch gpt2-350M "${BATCH_350M:-8}"; }
part_training_tiny() {
    try 2 make_it PRECISION=bf16 programs $made || return
    skip=1 train tiny --num-layers 2 --num-heads 2 --channels 32 --batch 2 --sequence-length 32 --steps 4 --vocab-size 3400
}

# Compares our attention with PyTorch's: backends, head sizes, lengths, dropout; also cuDNN's if its frontend is
# installed.
part_attention() {
    try 2 make_it PRECISION=bf16 attention_library || return
    try_if_there torch 200 "$PYTHON" dev/bench_attention.py
}

# Checks that runs that are killed resume bit for bit; measures the time without saves, and with three saves that are
# written in the background or synchronously.
part_saving() {
    local build how begun every=15 shape=(--model gpt2-124M --vocab-size 50257 --batch 16 --sequence-length 1024 --steps 59)
    if [ "$DEVICE" != cuda ]; then every=2 shape=(--num-layers 1 --num-heads 2 --channels 32 --batch 2 --sequence-length 32 --steps 7 --vocab-size 3400); fi
    build=$(build_of bf16)
    try 2 make_it PRECISION=bf16 programs "$build/test/harness/io_faults.so" $made || return
    try 4 env BUILD="$build" "$PYTHON" test/torture.py --only "one process" kills
    for how in "--save-every 0" "--save-every $every" "--save-every $every --save-synchronously"; do
        rm -rf "$logs/saving"
        begun=$(date +%s.%N)
        try 0 "$build/train_gpt" --run "$logs/saving" --train "$data/train_*.bin" $how "${shape[@]}"
        say "$how: $(echo "$(date +%s.%N) $begun" | awk '{ printf "%.2f s for all", $1 - $2 }'), in steps $(step_seconds "$logs/saving")"
    done
    rm -rf "$logs/saving"
}
step_seconds() { # prints the total seconds of the steps of a run
    sed -n 's/.*"tokens": .*"seconds": \([0-9.]*\)}/\1/p' "$1/metrics.jsonl" | awk '{ sum += $1 } END { printf "%.2f s\n", sum }'
}

part_curve() {
    local steps=300
    local shape=(--num-layers 6 --num-heads 6 --channels 384 --batch 32 --sequence-length 256)
    if [ "$DEVICE" != cuda ]; then steps=4 shape=(--num-layers 1 --num-heads 2 --channels 32 --batch 2 --sequence-length 32); fi
    try 2 make_it PRECISION=bf16 programs $made || return
    rm -rf "$logs/curve"
    try 12 "$(build_of bf16)/train_gpt" --run "$logs/curve" --train "$data/train_*.bin" --validation "$data/validation_*.bin" \
        --tokenizer "$data/tokenizer.json" --validation-batches 4 --save-every 1000000 --steps $steps "${shape[@]}"
    say "step, loss:"
    try 40 sh -c "sed -n 's/{\"step\": \([0-9]*\), \"\(.*\)loss\": \([0-9.]*\), .*/\1 \2 \3/p' '$logs/curve/metrics.jsonl' |
        tr -s '_ ' ' ' | awk '\$1 % 10 == 1 || NF == 3'"
    rm -rf "$logs/curve/checkpoints"
}

# ---- dependencies for a machine without network ---------------------------------------------------------------------

prepare() {
    local carry=$PWD/.carry folder library
    folder=$(mktemp -d) || exit 1
    mkdir -p "$carry/bin" "$carry/lib" "$carry/include" &&
        (cd "$folder" && apt-get download -qq libpcre2-dev libpcre2-8-0 libcjson-dev libcjson1 make &&
            for package in *.deb; do dpkg -x "$package" . || exit 1; done) || exit 1
    cp -rL "$folder"/usr/include/pcre2.h "$folder"/usr/include/cjson "$carry/include/" &&
        cp -L "$folder"/usr/bin/make "$carry/bin/" || exit 1
    for library in libpcre2-8.a libcjson.so.1; do cp -L "$folder"/usr/lib/*/$library "$carry/lib/" || exit 1; done
    # Headers only; without them the comparison with --attention cudnn is omitted.
    if python3 -m pip download -q --no-deps --dest "$folder" nvidia-cudnn-frontend; then
        rm -rf "$carry/python" && mkdir "$carry/python" &&
            python3 -c 'import sys, zipfile; z = zipfile.ZipFile(sys.argv[1]); z.extractall(sys.argv[2], [n for n in z.namelist() if n.startswith("include/")])' \
                "$folder"/nvidia_cudnn_frontend-*.whl "$carry/python" || exit 1
    fi
    rm -rf "$folder"
    cat >"$carry/bin/pkg-config" <<'END'
#!/bin/sh
# Stands in for pkg-config, for the packages in this folder.
for word; do case $word in -* | libpcre2-8 | libcjson) ;; *) exit 1 ;; esac done
here=$(cd "$(dirname "$0")/.." && pwd)
case "$*" in
*--cflags*) echo "-I$here/include -I$here/include/cjson" ;;
*--libs*) echo "-L$here/lib -Wl,-rpath,$here/lib -l:libpcre2-8.a -l:libcjson.so.1" ;;
esac
END
    chmod +x "$carry/bin/pkg-config"
    echo ".carry holds libpcre2, libcjson and, where pip had it, cuDNN's frontend: copy it along with the project, $(du -sh "$carry" | cut -f1)"
}
use_carried() {
    [ ! -d .carry/python ] || export PYTHONPATH=$PWD/.carry/python${PYTHONPATH:+:$PYTHONPATH}
    command -v make >/dev/null || [ ! -x .carry/bin/make ] || PATH=$PATH:$PWD/.carry/bin
    pkg-config --exists libpcre2-8 libcjson 2>/dev/null && return
    if [ -x .carry/bin/pkg-config ]; then
        PATH=$PWD/.carry/bin:$PATH
    else
        say "libpcre2 and libcjson are not installed: run make deps, or dev/gpu_check.sh --prepare on a machine with network access"
    fi
}

# ---- running the parts ----------------------------------------------------------------------------------------------

run_part() { # runs in its own process, so that its time can be limited
    part=$1
    part_failed=0
    : >"$logs/$part.log"
    "part_$part"
    exit "$part_failed"
}

named=
for word in "$@"; do
    case $word in
    --list) echo "$PARTS" && exit ;;
    --prepare)
        prepare
        exit
        ;;
    --emulated) DEVICE=emulated PARTS=$EMULATED_PARTS ;;
    --part) break ;; # used when this script calls itself; handled below
    sanitizer) named="$named $SANITIZER" ;;
    training) named="$named $TRAINING" ;;
    -*) echo "error: unknown option $word; the options are --list, --emulated and --prepare" >&2 && exit 1 ;;
    *) named="$named $word" ;;
    esac
done
mkdir -p "$logs" || exit 1
if [ "$1" = --part ]; then
    DEVICE=$3
    run_part "$2"
fi
for part in $named; do
    case " $PARTS " in *" $part "*) ;; *) echo "error: there is no part '$part'; the parts are: $PARTS" >&2 && exit 1 ;; esac
done
touch "$passed_file"
if [ -z "$named" ]; then
    for part in $PARTS; do grep -qx "$DEVICE $part" "$passed_file" || named="$named $part"; done
fi
say "======== $(date -u '+%Y-%m-%d %H:%M') UTC, $DEVICE, $(nvidia-smi -L 2>/dev/null | head -n 1), commit $(git rev-parse --short HEAD 2>/dev/null):$named"
use_carried
export PATH
table=
for part in $named; do
    say "---- $part"
    started=$SECONDS
    timeout "${PART_SECONDS:-540}" dev/gpu_check.sh --part "$part" "$DEVICE"
    case $? in
    0) result=passed && echo "$DEVICE $part" >>"$passed_file" ;;
    124 | 137) result="cut off after ${PART_SECONDS:-540} s" ;;
    *) result=FAILED ;;
    esac
    table="$table$(printf '%-12s %-24s %5s s' "$part" "$result" $((SECONDS - started)))
"
done
say "---- summary"
say "$table"
if echo "$table" | grep -q -e FAILED -e 'cut off'; then exit 1; fi
