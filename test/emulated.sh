#!/bin/sh
# The CUDA kernels, and the trainer on them, executed on the CPU (dev/cuda_on_cpu): in bf16 and fp32; on small shapes with
# AddressSanitizer and UndefinedBehaviorSanitizer, with threads and blocks in five other orders, and with
# ThreadSanitizer, which finds races.
unset MAKEFLAGS MFLAGS MAKELEVEL # of a make that calls this
passed=0 failed=0 skipped=0
log=$(mktemp)
trap 'rm -f "$log"' EXIT
suite() { # suite NAME WORD...: runs make, and adds up
    name=$1
    shift
    started=$(date +%s)
    make -s -j"$(nproc)" "$@" >"$log" 2>&1
    status=$?
    sums=$(awk '/^[0-9]+ passed, [0-9]+ failed(, [0-9]+ skipped)?$/ { p += $1; f += $3 } END { print p + 0, f + 0 }' "$log")
    skipped=$((skipped + $(grep -c '^skipped: ' "$log")))
    # A build that breaks, and a suite of which nothing is left, are failures too.
    case $status-$sums in 0-0\ * | [!0]*\ 0) sums="${sums% *} $((${sums#* } + 1))" ;; esac
    cat "$log"
    passed=$((passed + ${sums% *})) failed=$((failed + ${sums#* }))
    echo "---- $name: ${sums% *} passed, ${sums#* } failed ($(($(date +%s) - started)) s)"
}
suite "emulated, bf16" DEVICE=emulated PRECISION=bf16 test
suite "emulated, fp32" DEVICE=emulated PRECISION=fp32 test
export TEST_SMALL=1
suite "emulated, AddressSanitizer" DEVICE=emulated SANITIZE=address,undefined test
suite "emulated, five orders" DEVICE=emulated test_seeds
suite "emulated, ThreadSanitizer" DEVICE=emulated SANITIZE=thread test
echo "$passed passed, $failed failed$([ $skipped -eq 0 ] || echo ", $skipped skipped")"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
