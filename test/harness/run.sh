#!/bin/bash
# Runs test programs, two at a time, and adds up their lines `N passed, N failed[, N skipped]`. While it runs, it
# prints a line for each program that has ended: how many have, the time so far, the result. For a program that fails,
# the end of its output is shown at once. At the end it prints all failures again, each with the command that runs
# this one test alone; the ten slowest programs; what was skipped and why; and the sum in the last line. The exit
# status is 0 only if nothing failed and every program ran to its end.
#     ALONE="PROGRAM..." test/harness/run.sh PROGRAM...
# Those in ALONE use all processors (or the one GPU): they run last, one after another. Those of layers/comm/ and layers/launch/, which mostly
# wait for deadlines, run concurrently with the others. A program may call this script in turn (a suite of another
# build): then the outermost script reports its failures and times. Waiting threads sleep, as tests run with more
# threads than cores.
export OMP_WAIT_POLICY=passive
alone=$ALONE
unset ALONE # not for programs that call this script
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
begun=$(date +%s)
outermost=${TEST_RECORD:+no}
export TEST_RECORD=${TEST_RECORD:-$logs} # the folder of the outermost script: failures, times, skipped
total=$(($# + $(wc -w <<<"$alone")))

# Prints the command that runs a program with the current settings.
command_of() {
    local name
    for name in BUILD DEVICE_BUILD PRECISION NCCL_BUILD FUZZERS FUZZ_SECONDS TEST_SMALL CUDA_EMULATION_SEED ASAN_OPTIONS TSAN_OPTIONS \
        OMP_TOOL_LIBRARIES MUTATION_COMPILE MUTATION_LINK; do
        [ -n "${!name}" ] && [ "$name" = "${name#MUTATION}" ] && printf '%s=%q ' "$name" "${!name}"
    done
    echo "$1"
}
judge() { # judge PROGRAM LOG STATUS SECONDS: prints the result of a program that has ended, and records its line
    local line elapsed=$(($(date +%s) - begun)) label=$1
    case $1 in *.sh | *.py) label="$1${BUILD:+ ($BUILD)}" ;; esac
    line=$(tail -n 1 "$2" | grep -E '^[0-9]+ passed, [0-9]+ failed(, [0-9]+ skipped)?$')
    grep '^skipped: ' "$2" >>"$TEST_RECORD/skipped"
    if [ -z "$line" ]; then
        line="0 passed, 1 failed"
        echo "$1 ended with status $3 before its last line" | tee -a "$2"
    elif [ "$3" -ne 0 ]; then # a leak or a crash at the end
        line=${line/, 0 failed/, 1 failed}
    fi
    if [[ $line != *", 0 failed"* ]]; then
        tail -n 60 "$2" | sed 's/^/  /'
        if ! grep -qE '^---- .*: [0-9]+ passed' "$2"; then # not a suite, whose own programs have already been reported
            { echo "$1: $line" && grep -E 'FAILED|error|before its last line' "$2" | head -n 20 && echo "  alone: $(command_of "$1")"; } \
                >>"$TEST_RECORD/failures"
        fi
    fi
    echo "$4 $label" >>"$TEST_RECORD/times"
    echo "$line" >"$2.line"
    printf '[%*d/%d %d:%02d] %-44s %s (%s s)\n' ${#total} "$(find "$logs" -name '*.line' | wc -l)" "$total" \
        $((elapsed / 60)) $((elapsed % 60)) "$1" "$line" "$4"
}
run() { # run PROGRAM
    local log started
    log=$(mktemp "$logs/XXXXXX")
    started=$(date +%s)
    "$1" >"$log" 2>&1
    judge "$1" "$log" $? $(($(date +%s) - started)) >"$log.shown"
    cat "$log.shown" # in one call, so that lines of other programs do not interleave
}
# xargs rather than `&`, with which programs would ignore SIGINT: some test it, and Ctrl-C must end all.
several() { xargs -r -n 1 -P "$1" bash -c 'run "$1"' run; } # several COUNT: runs programs from stdin, COUNT at a time

export logs begun total
export -f command_of judge run
printf '%s\n' "$@" | grep -E '/test/layers/(comm|launch)/' | several 0 &
printf '%s\n' "$@" | grep -vE '/test/layers/(comm|launch)/' | several 2
wait
for program in $alone; do run "$program"; done
if [ -z "$outermost" ]; then
    if [ "$total" -gt 10 ]; then
        echo "slowest:"
        sort -rn "$TEST_RECORD/times" | grep -vE ' test/(emulated|emulated_long|sanitized)\.sh' | head -n 10 | sed 's/^\([0-9]*\)/  \1 s /'
    fi
    sort -u "$TEST_RECORD/skipped" 2>/dev/null
    [ -s "$TEST_RECORD/failures" ] && echo "failures:" && cat "$TEST_RECORD/failures"
fi
cat "$logs"/*.line 2>/dev/null | awk -v programs="$total" '{ p += $1; f += $3; s += $5 }
    END { f += programs - NR; print p + 0 " passed, " f + 0 " failed" (s ? ", " s " skipped" : ""); exit f > 0 || p + s == 0 }'
