# For scripts that run whole suites, each by its own make; sourced by them.
unset MAKEFLAGS MFLAGS MAKELEVEL BUILD # set by a make that calls this
passed=0 failed=0 skipped=0
log=$(mktemp)
trap 'rm -f "$log"' EXIT
suite() { # suite NAME WORD...: runs make, and adds its counts
    name=$1
    shift
    started=$(date +%s)
    make -s -j"$(nproc)" "$@" >"$log" 2>&1
    status=$?
    sums=$(awk '/^[0-9]+ passed, [0-9]+ failed(, [0-9]+ skipped)?$/ { p += $1; f += $3; s += $5 } END { print p + 0, f + 0, s + 0 }' "$log")
    read -r p f s <<END
$sums
END
    # A build that fails and a suite without results are failures too.
    case $status-$p-$f in 0-0-* | [!0]*-0) f=$((f + 1)) ;; esac
    cat "$log"
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
    echo "---- $name: $p passed, $f failed ($(($(date +%s) - started)) s)"
}
finish_suites() {
    echo "$passed passed, $failed failed$([ $skipped -gt 0 ] && echo ", $skipped skipped")"
    [ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
}
