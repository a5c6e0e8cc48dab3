#!/bin/bash
# Two hosts on one machine: two network namespaces connected by a virtual cable, each with one process of one mpirun,
# whose launch agent enters the other namespace as ssh would enter the other host. Training over the cable gives the
# same curve as without; when the cable is cut during training, the remaining host exits by itself, with a status and
# a message that say why.
#     BUILD=build/cpu test/test_two_hosts.sh
# Needs root, ip (iproute2), unshare (util-linux) and Open MPI; skipped if namespaces are not allowed.
. "$(dirname "$0")/harness/test.sh"
gpt=$build/train_gpt

leave_out() {
    skip "training over two hosts" "$*"
    finish
    exit
}
[ "$(id -u)" = 0 ] || leave_out "namespaces need root"
for tool in ip unshare; do command -v $tool >/dev/null || leave_out "$tool is not installed"; done
mpirun --version 2>/dev/null | grep -q "Open MPI" || leave_out "Open MPI is not installed"
a=gpt-a-$$ b=gpt-b-$$
ip netns add $a 2>/dev/null || leave_out "network namespaces are not allowed here"
trap 'ip netns pids $b | xargs -r kill -9 2>/dev/null; ip netns del $a; ip netns del $b; rm -rf "$work"' EXIT
unshare --uts true 2>/dev/null || leave_out "namespaces for host names are not allowed here"
ip netns add $b && ip link add name eth_a netns $a type veth peer name eth_b netns $b || leave_out "veth is not available"
ip -n $a addr add 10.77.31.1/24 dev eth_a && ip -n $b addr add 10.77.31.2/24 dev eth_b
for host in $a:eth_a $b:eth_b; do
    ip -n "${host%:*}" link set lo up
    ip -n "${host%:*}" link set "${host#*:}" up
done

# Each command gets its own host name, folder for temporary files, and network.
cat >on_host <<'END'
#!/bin/sh
namespace=$1
shift
mkdir -p "$PWD/tmp_$namespace"
TMPDIR=$PWD/tmp_$namespace exec ip netns exec "$namespace" unshare --uts sh -c 'hostname "$0"; exec "$@"' "$namespace" "$@"
END
# Replaces ssh: `agent ADDRESS WORD...`.
cat >agent <<END
#!/bin/sh
shift
cd "$work" && exec ./on_host $b sh -c "\$*"
END
chmod +x on_host agent

export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive
export ASAN_OPTIONS="$ASAN_OPTIONS:detect_leaks=0" # leaks of MPI
make_data 60k 400
train=("$gpt" --train "$work/data_*.bin" --tokenizer "$work/tokenizer.json" --num-layers 2 --channels 48 --num-heads 2 --batch 4
    --sequence-length 32 --save-every 0 --sample-tokens 2)
two_hosts() { # two_hosts SECONDS OPTION...
    ./on_host $a timeout -k 1 "$1" mpirun --host 10.77.31.1:1,10.77.31.2:1 --mca plm_rsh_agent "$work/agent" --bind-to none -n 2 \
        --mca oob_tcp_if_include 10.77.31.0/24 --mca btl_tcp_if_include 10.77.31.0/24 -x OMP_NUM_THREADS -x OMP_WAIT_POLICY -x ASAN_OPTIONS \
        "${train[@]}" "${@:2}" </dev/null
}

"${train[@]}" --run alone --batch 8 --steps 10 >out.txt 2>&1 </dev/null || fail "alone: $(tail -n 1 out.txt)"
two_hosts $hang --run both --steps 10 --shard gradients >out.txt 2>&1 || fail "two hosts: $(tail -n 3 out.txt)"
near both alone && pass || fail "over two hosts: losses" $(losses both) "and on one:" $(losses alone)

two_hosts $hang --run cut --steps 1000000 --deadline 10 >out.txt 2>&1 &
launcher=$!
wait_for_steps cut && pass || fail "training over two hosts does not begin: $(tail -n 3 out.txt)"
pid=$(ip netns pids $a | while read -r p; do [ "$(readlink /proc/"$p"/exe)" = "$(readlink -f "$gpt")" ] && echo "$p"; done | head -n 1)
ip -n $b link set eth_b down
started=$SECONDS
while kill -0 "$pid" 2>/dev/null && [ $((SECONDS - started)) -lt $hang ]; do sleep 0.2; done
[ $((SECONDS - started)) -lt $hang ] && pass || fail "the host that is left goes on for $((SECONDS - started)) s"
until_holds grep -q "^error: process" out.txt # its output passes through mpirun
ip netns pids $a | xargs -r kill -9 # Open MPI's mpirun waits for the other host forever
wait $launcher
grep -qE "^error: process 1 \(host $b\) was lost (in step [0-9]+|before its first step): no heartbeat for [0-9.]+ s; this is process 0 \(host $a\)" out.txt &&
    pass || fail "nothing says which host is lost: $(tr '\r' '\n' <out.txt | grep -v '^.\[Kstep' | tail -n 5)"
finish
