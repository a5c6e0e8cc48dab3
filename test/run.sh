#!/bin/sh
# Runs test programs one after the other and adds up their lines `N passed, N failed`; shows the output of those that
# fail. The last line is the sum; the exit status is 0 only if nothing failed and every program came to its end.
#     test/run.sh PROGRAM...
# Threads that wait sleep: tests run with more threads than cores, beside other work.
export OMP_WAIT_POLICY=passive
passed=0 failed=0
log=$(mktemp)
trap 'rm -f "$log"' EXIT
for program in "$@"; do
    started=$(date +%s)
    "$program" >"$log" 2>&1
    status=$?
    line=$(tail -n 1 "$log" | grep -E '^[0-9]+ passed, [0-9]+ failed$')
    p=$(echo "$line" | sed -n 's/ passed.*//p')
    f=$(echo "$line" | sed -n 's/.*passed, \([0-9]*\) failed/\1/p')
    if [ -z "$line" ]; then
        p=0 f=1
        line="ended with status $status before its last line"
    elif [ "$status" -ne 0 ] && [ "$f" -eq 0 ]; then
        f=1 # a leak or a crash at the very end
    fi
    [ "$f" -eq 0 ] || tail -n 60 "$log"
    printf '%-44s %s (%s s)\n' "$program" "$line" "$(($(date +%s) - started))"
    passed=$((passed + p)) failed=$((failed + f))
done
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
