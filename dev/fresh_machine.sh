#!/bin/bash
# Proves that the project works on a new machine: a Debian system with only a compiler, make and git, in its own folder
# (debootstrap and chroot), with a clean clone of the last commit. Each argument GOALS is one command `make GOALS`; they
# are run one after the other on one machine.
#     dev/fresh_machine.sh [OPTION...] [GOALS...]
#     dev/fresh_machine.sh                                     train, then test; and on another machine test, then train
#     dev/fresh_machine.sh --compiler clang train "test_layers test_data"
# Options:
#     --compiler gcc|clang   the only compiler that is installed (gcc)
#     --suite NAME           the release of Debian or Ubuntu (bookworm)
#     --as root|sudo|nobody  who builds: root, a user with passwordless sudo, or a user without sudo (root)
#     --folder DIR           where machines are created and logs are kept (build/fresh_machine)
#     --keep                 keep the machines; without it they are removed
# A line for every step, with its result and time, is written to the terminal and to DIR/log.txt; the output of each
# step is written to a file next to it. The exit status is 0 if every step succeeded. Needs root and debootstrap. The
# base system is created once and copied (DIR/base-SUITE-COMPILER; remove it to create it again).
root=$(cd "$(dirname "$0")/.." && pwd)
compiler=gcc suite=bookworm who=root folder=$root/build/fresh_machine keep=
error() { echo "error: $*" >&2 && exit 1; }
while [ $# -gt 0 ]; do
    case $1 in
    --keep) keep=yes ;;
    -h | --help) sed -n '2,/^root=/{/^root=/d;s/^# \{0,1\}//p}' "$0" && exit ;;
    --compiler | --suite | --as | --folder)
        [ $# -gt 1 ] || error "$1 needs a value"
        case $1 in --compiler) compiler=$2 ;; --suite) suite=$2 ;; --as) who=$2 ;; --folder) folder=$2 ;; esac
        shift
        ;;
    -*) error "unknown option $1; see dev/fresh_machine.sh --help" ;;
    *) break ;;
    esac
    shift
done
case $compiler in gcc | clang) ;; *) error "--compiler $compiler: expected gcc or clang" ;; esac
case $who in root | sudo | nobody) ;; *) error "--as $who: expected root, sudo or nobody" ;; esac
[ "$(id -u)" = 0 ] || error "dev/fresh_machine.sh needs root, for chroot"
for tool in debootstrap unshare chroot git; do
    command -v $tool >/dev/null || error "$tool is not installed (Debian, Ubuntu: apt-get install debootstrap util-linux git)"
done
mkdir -p "$folder" && folder=$(cd "$folder" && pwd) || exit 1
[ -z "$(git -C "$root" status --porcelain --untracked-files=no)" ] ||
    echo "note: uncommitted changes are not part of the clone"

# Prints the mirror that this machine uses for Debian or Ubuntu, from apt's lists in either format.
mirror() {
    local scheme=debian
    grep -q 'archive.ubuntu.com' "/usr/share/debootstrap/scripts/$suite" 2>/dev/null && scheme=ubuntu
    cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources 2>/dev/null |
        sed -n 's/^URIs: *\([^ ]*\).*/\1/p; s/^deb \(\[[^]]*\] \)\{0,1\}\([^ ]*\) .*/\2/p' |
        grep -E "/$scheme/?\$" | head -n 1 # nothing on a machine of the other kind: debootstrap then uses its default
}
base=$folder/base-$suite-$compiler
make_base() {
    [ ! -e "$base/etc/os-release" ] || return 0
    local components=main
    grep -q 'archive.ubuntu.com' "/usr/share/debootstrap/scripts/$suite" 2>/dev/null && components=main,universe
    rm -rf --one-file-system "$base.part"
    debootstrap --variant=minbase --components=$components --include="$compiler,make,git,ca-certificates,sudo" "$suite" "$base.part" \
        $(mirror) >"$folder/debootstrap.txt" 2>&1 || error "debootstrap failed; see $folder/debootstrap.txt"
    cp /etc/resolv.conf /etc/hosts "$base.part/etc/" # as an installer does; else MPI takes seconds to resolve names
    cat /etc/apt/apt.conf /etc/apt/apt.conf.d/* 2>/dev/null | grep -i '^Acquire::.*proxy' >"$base.part/etc/apt/apt.conf.d/proxy"
    mv "$base.part" "$base"
}

# inside MACHINE COMMAND: runs it in its own namespace, whose mounts and processes end with it.
inside() {
    unshare --mount --pid --fork --kill-child --propagation private bash -c '
        cd "$1" && mount -t proc proc proc && mount -t sysfs sysfs sys && mount -t devpts devpts dev/pts &&
            mount -t tmpfs tmpfs dev/shm && exec chroot . "${@:2}"' bash "$@"
}
new_machine() { # new_machine: creates a machine and sets $machine to its folder
    machine=$(mktemp -d "$folder/machine-XXXXXX") && cp -a "$base/." "$machine" || exit 1
    home=/root
    inside "$machine" useradd -m user
    [ $who = root ] || home=/home/user
    [ $who != sudo ] || echo 'user ALL=(ALL) NOPASSWD: ALL' >"$machine/etc/sudoers.d/user"
    git clone -q --no-hardlinks "$root" "$machine$home/gpt" || exit 1
    [ $who = root ] || inside "$machine" chown -R user: "$home/gpt"
}
say() { echo "$*" | tee -a "$folder/log.txt"; }
ordinal() { case $1 in 1) echo first ;; 2) echo second ;; 3) echo third ;; *) echo "${1}th" ;; esac; }
failures=0
run() { # run GOALS...: runs the commands on one new machine
    local number=0 goals output begun status words
    new_machine
    for goals; do
        number=$((number + 1))
        output=$folder/$(basename "$machine")-$number.txt
        words="cd $home/gpt && exec make $goals"
        begun=$(date +%s)
        if [ $who = root ]; then
            inside "$machine" env -i HOME=/root PATH="$PATH" http_proxy="$http_proxy" sh -c "$words"
        else
            inside "$machine" su user -s /bin/sh -c "$words"
        fi >"$output" 2>&1 </dev/null
        status=$?
        if [ $status -eq 0 ]; then
            say "$suite, $compiler, $who: make $goals as the $(ordinal $number) command: ok, $(($(date +%s) - begun)) s; its last line: $(tail -n 1 "$output" | cut -c 1-100)"
        else
            failures=$((failures + 1))
            say "$suite, $compiler, $who: make $goals as the $(ordinal $number) command: FAILED with status $status, $(($(date +%s) - begun)) s; its output: $output"
        fi
    done
    if [ -n "$keep" ]; then say "the machine is in $machine"; else rm -rf --one-file-system "$machine"; fi
}

make_base
say "$(date '+%Y-%m-%d %H:%M') commit $(git -C "$root" rev-parse --short HEAD)"
if [ $# -gt 0 ]; then
    run "$@"
else
    run train test
    run test train
fi
[ $failures -eq 0 ]
