#!/bin/bash
# Runs libFuzzer targets, two at a time, FUZZ_SECONDS (60) of running time in total; prints a line for each, then `N
# passed, N failed`. An input that breaks a target is kept in build/findings and named.
#     FUZZ_SECONDS=60 FUZZERS="build/cpu-fuzz/test/data/fuzz/fuzz_shards ..." test/fuzz.sh
# Without targets, fuzzing is skipped.
set -- $FUZZERS
if [ $# -eq 0 ]; then
    echo "skipped: fuzzing (clang with libFuzzer is not installed)"
    echo "0 passed, 0 failed, 1 skipped"
    exit
fi
seconds=$((${FUZZ_SECONDS:-60} / ($# > 0 ? $# : 1)))
[ "$seconds" -ge 1 ] || seconds=1
findings=build/findings
memory=/dev/shm # if it exists: the targets write thousands of small files per second
[ -w "$memory" ] || memory=${TMPDIR:-/tmp}
work=$(mktemp -d -p "$memory")
running=()
trap 'kill "${running[@]}" 2>/dev/null; rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
passed=0 failed=0
export OMP_NUM_THREADS=1 TMPDIR=$work # for small inputs threads would only wait for each other

start() { # PROGRAM: writes its seeds into its own corpus folder
    local name=${1##*/}
    mkdir -p "$work/$name" "$findings"
    "$1" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -max_len=4096 -artifact_prefix="$findings/$name-" \
        -print_final_stats=1 "$work/$name" >"$work/$name.log" 2>&1 &
    running+=($!)
}

finish() { # PROGRAM PROCESS
    local name=${1##*/} log=$work/${1##*/}.log runs reproducer
    wait "$2"
    local status=$?
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    if [ "$status" -eq 0 ] && [ "${runs:-0}" -gt 0 ]; then
        passed=$((passed + 1))
        echo "$name: $runs inputs in $seconds s"
    else
        failed=$((failed + 1))
        reproducer=$(sed -n 's/.*Test unit written to //p' "$log")
        grep -E '^==.*ERROR|^ +#[0-9]+ |runtime error' "$log" | head -n 20
        echo "FAILED: $name ended with status $status; again with: $1 ${reproducer:-(no input was written)}"
    fi
}

while [ $# -gt 0 ]; do
    running=()
    start "$1"
    [ $# -lt 2 ] || start "$2"
    finish "$1" "${running[0]}"
    [ $# -lt 2 ] || finish "$2" "${running[1]}"
    shift $(($# < 2 ? 1 : 2))
done
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
