#!/bin/sh
# Runs test programs one after the other and adds up their lines `N passed, N failed`; shows the output of those that
# fail. The last line is the sum; the exit status is 0 only if nothing failed and every program came to its end.
#     test/run.sh PROGRAM...
# Those of comm/, which mostly wait for each other's deadlines, run beside the others.
# Threads that wait sleep: tests run with more threads than cores, beside other work.
export OMP_WAIT_POLICY=passive
passed=0 failed=0
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT

run() { # run PROGRAM NUMBER: leaves its output, status and seconds
    begun=$(date +%s)
    "$1" >"$logs/$2" 2>&1
    echo "$? $(($(date +%s) - begun))" >"$logs/$2.status"
}
count() { # count PROGRAM NUMBER
    read -r status seconds <"$logs/$2.status"
    line=$(tail -n 1 "$logs/$2" | grep -E '^[0-9]+ passed, [0-9]+ failed$')
    p=$(echo "$line" | sed -n 's/ passed.*//p')
    f=$(echo "$line" | sed -n 's/.*passed, \([0-9]*\) failed/\1/p')
    if [ -z "$line" ]; then
        p=0 f=1
        line="ended with status $status before its last line"
    elif [ "$status" -ne 0 ] && [ "$f" -eq 0 ]; then
        f=1 # a leak or a crash at the very end
    fi
    [ "$f" -eq 0 ] || tail -n 60 "$logs/$2"
    printf '%-44s %s (%s s)\n' "$1" "$line" "$seconds"
    passed=$((passed + p)) failed=$((failed + f))
}

number=0
for program in "$@"; do
    number=$((number + 1))
    case $program in */test/comm/*) run "$program" $number & ;; esac
done
number=0
for program in "$@"; do
    number=$((number + 1))
    case $program in */test/comm/*) continue ;; esac
    run "$program" $number
    count "$program" $number
done
wait
number=0
for program in "$@"; do
    number=$((number + 1))
    case $program in */test/comm/*) count "$program" $number ;; esac
done
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
