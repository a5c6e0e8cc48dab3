# Functions that the shell tests share. A test sources this file with BUILD set to the folder of the programs
# (build/cpu). It changes to a temporary folder, which is removed at the end.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
build=$(cd "${BUILD:-$root/build/cpu}" && pwd) || exit 1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
# By default, all jobs of Open MPI keep session files in one folder, where jobs that begin and end at the same time
# break each other.
mkdir .mpi && export OMPI_MCA_orte_tmpdir_base=$work/.mpi
passed=0 failed=0 skipped=0
program=() # words that precede every command of expect, accept and refuse

pass() { passed=$((passed + 1)); }
fail() {
    failed=$((failed + 1))
    echo "FAILED: $*"
}
# skip WHAT WHY: reports that something cannot be tested here.
skip() {
    skipped=$((skipped + 1))
    echo "skipped: $1 ($2)"
}
# holds COMMAND...: passes if the command succeeds.
holds() { if "$@"; then pass; else fail "$*"; fi; }
# same FILE FILE [WHAT]: passes if the files are equal.
same() { if cmp -s "$1" "$2"; then pass; else fail "$1 and $2 differ: ${*:3}"; fi; }

# written FILE: prints a file of a checkpoint without the id of the run, in which the manifests of equal runs differ.
written() { if [ "${1##*/}" = manifest ]; then grep -v -e '^run ' -e ' manifest$' "$1"; else cat "$1"; fi; }

# make_data BYTES VOCABULARY: creates stories, tokenizer.json and data_*.bin to train on.
make_data() {
    "$build/data/write_stories" --train-bytes "$1" --validation-stories 20 --out stories >/dev/null 2>&1 || fail "write_stories"
    "$build/data/tokenize" train --input stories/train.txt --vocab "$2" --out tokenizer.json >/dev/null 2>&1 || fail "tokenizer"
    "$build/data/tokenize" encode --tokenizer tokenizer.json --input stories/train.txt --out data >/dev/null 2>&1 || fail "encode"
}

# Time limit of any command, in seconds: only a hang reaches it, however busy the machine is.
hang=600
# until_holds COMMAND...: waits until the command succeeds; fails at the time limit.
until_holds() {
    local end=$((SECONDS + hang))
    until "$@"; do
        [ $SECONDS -lt $end ] || return 1
        sleep 0.1
    done
}
# wait_for_steps RUN [STEPS]: waits until a run has done this many steps (by default 3).
has_steps() { [ "$(cat "$1/metrics.jsonl" 2>/dev/null | grep -c '"loss"')" -ge "$2" ]; }
wait_for_steps() { until_holds has_steps "$1" "${2:-3}"; }

# expect STATUS PATTERN WORD...: runs the command; checks its exit status, and that a line of its output, which is kept
# in out.txt, matches.
expect() {
    local status=$1 pattern=$2 got
    shift 2
    "${program[@]}" "$@" >out.txt 2>&1 </dev/null
    got=$?
    if [ "$got" -ne "$status" ]; then
        fail "exit status $got, not $status, of: $*"
        tail -n 5 out.txt
    elif ! grep -qE -e "$pattern" out.txt; then
        fail "no line like '$pattern' from: $*"
        tail -n 5 out.txt
    else
        pass
    fi
}
# accept PATTERN WORD...: the command succeeds.
accept() { expect 0 "$@"; }

# refuse PATTERN WORD...: the command ends with exit status 1 and prints one line `error: <sentence>`.
refuse() {
    expect 1 "^error: .*$1" "${@:2}"
    if [ "$(grep -c '^error: ' out.txt)" -ne 1 ]; then fail "not one error line from: ${*:2}"; fi
}

# curve RUN: prints everything in a run's metrics except times. losses RUN: prints the losses of all steps.
# near RUN RUN [BOUND]: compares the losses of two runs, up to a relative difference (by default 1e-5).
curve() { sed 's/, "seconds": [0-9.]*//' "$1/metrics.jsonl"; }
losses() { sed -n 's/.*"loss": \([0-9.]*\), .*/\1/p' "$1/metrics.jsonl"; }
near() {
    paste <(losses "$1") <(losses "$2") | awk -v bound="${3:-1e-5}" '
        { d = ($1 - $2) / $2; if (NF != 2 || d < -bound || d > bound) bad = 1 } END { exit bad || NR == 0 }'
}

finish() {
    echo "$passed passed, $failed failed$([ "$skipped" -eq 0 ] || echo ", $skipped skipped")"
    [ "$failed" -eq 0 ]
}
