#!/bin/bash
# Runs test programs, two at a time, and adds up their lines `N passed, N failed`; shows the output of those that fail. The
# last line is the sum, after the lines `skipped: WHAT (WHY)` of what could not be tested here; the exit status is 0 only
# if nothing failed and every program came to its end.
#     ALONE="PROGRAM..." test/run.sh PROGRAM...
# Those in ALONE use all processors (or the one GPU): they come last, one after the other. Those of comm/, which mostly
# wait for each other's deadlines, run beside the others.
# Threads that wait sleep: tests run with more threads than cores, beside other work.
export OMP_WAIT_POLICY=passive
alone=$ALONE
unset ALONE # it is not for programs that call this again
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT

judge() { # judge PROGRAM LOG STATUS SECONDS: what is to be seen of a program that has ended; its line is kept
    line=$(tail -n 1 "$2" | grep -E '^[0-9]+ passed, [0-9]+ failed(, [0-9]+ skipped)?$')
    grep '^skipped: ' "$2" >>"$logs/skipped"
    if [ -z "$line" ]; then
        line="0 passed, 1 failed"
        echo "$1 ended with status $3 before its last line"
    elif [ "$3" -ne 0 ]; then # a leak or a crash at the very end
        line=${line/, 0 failed/, 1 failed}
    fi
    [[ $line == *", 0 failed"* ]] || tail -n 60 "$2"
    printf '%-44s %s (%s s)\n' "$1" "$line" "$4"
    echo "$line" >"$2.line"
}
run() { # run PROGRAM
    log=$(mktemp "$logs/XXXXXX")
    begun=$(date +%s)
    "$1" >"$log" 2>&1
    judge "$1" "$log" $? $(($(date +%s) - begun)) >"$log.shown"
    cat "$log.shown" # at once, not between the lines of others
}
# xargs rather than `&`, which would have programs ignore SIGINT: some test it, and Ctrl-C is to end all.
several() { xargs -r -n 1 -P "$1" bash -c 'run "$1"' run; } # several COUNT: of the programs on stdin so many at a time

export logs
export -f judge run
printf '%s\n' "$@" | grep /test/comm/ | several 0 &
printf '%s\n' "$@" | grep -v /test/comm/ | several 2
wait
for program in $alone; do run "$program"; done
set -- "$@" $alone
sort -u "$logs/skipped" 2>/dev/null
cat "$logs"/*.line 2>/dev/null | awk -v programs=$# '{ p += $1; f += $3; s += $5 }
    END { f += programs - NR; print p + 0 " passed, " f + 0 " failed" (s ? ", " s " skipped" : ""); exit f > 0 || p + s == 0 }'
