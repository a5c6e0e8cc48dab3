#!/bin/sh
# Installs missing dependencies of a build or of the tests, or says how to install them.
#     dev/deps.sh GOAL...    installs what these goals of make need (`deps`: what every build needs)
#     dev/deps.sh --print    installs nothing; if a build lacks anything, prints one sentence about it
# The exit status is 0 if everything required is installed at the end, else 1. Dependencies of only some tests (MPI,
# clang, curl, Python) are never required: those tests are skipped without them.
# On Debian and Ubuntu, packages are installed by root, or through sudo if it needs no password or there is a terminal
# to ask for it. On other systems, only the command to run is printed.
# CC and CXX name the compilers; OS_RELEASE replaces /etc/os-release, the file that names the distribution.
cd "$(dirname "$0")/.." || exit 1
if [ -z "$CC" ]; then
    for CC in gcc cc clang gcc; do command -v "$CC" >/dev/null && break; done
fi
case "$CC $($CC --version 2>/dev/null | head -n 1)" in *clang*) clang=yes ;; *) clang= ;; esac # cc may be gcc or clang
export CC

# One line for each dependency: its name in this script, its name in a sentence, and its packages.
#   apt|dnf|pacman|zypper|apk|brew|conda
THINGS='
gcc|a C compiler|gcc|gcc|gcc|gcc|gcc|gcc|c-compiler
clang|clang|clang|clang|clang|clang|clang|llvm|clang
headers|the headers of the C library|libc6-dev|glibc-devel|glibc|glibc-devel|musl-dev||sysroot_linux-64
g++|a C++ compiler|g++|gcc-c++|gcc|gcc-c++|g++|gcc|cxx-compiler
omp|OpenMP for clang|libomp-dev|libomp-devel|openmp|libomp-devel|openmp-dev|libomp|llvm-openmp
pkg-config|pkg-config|pkg-config|pkgconf-pkg-config|pkgconf|pkgconf-pkg-config|pkgconf|pkgconf|pkg-config
PCRE2|PCRE2|libpcre2-dev|pcre2-devel|pcre2|pcre2-devel|pcre2-dev|pcre2|pcre2
cJSON|cJSON|libcjson-dev|cjson-devel|cjson|cJSON-devel|cjson-dev|cjson|cjson
zlib|zlib|zlib1g-dev|zlib-devel|zlib|zlib-devel|zlib-dev|zlib|zlib
libzstd|libzstd|libzstd-dev|libzstd-devel|zstd|libzstd-devel|zstd-dev|zstd|zstd
MPI|MPI|libopenmpi-dev openmpi-bin|openmpi-devel|openmpi|openmpi4-devel|openmpi-dev openmpi|open-mpi|openmpi
fuzzer|clang with libFuzzer|clang libclang-rt-dev|clang compiler-rt|clang compiler-rt|clang|clang compiler-rt|llvm|clang compiler-rt
curl|curl|curl|curl|curl|curl|curl|curl|curl
pgrep|procps|procps|procps-ng|procps-ng|procps|procps||procps-ng
python|Python 3|python3|python3|python|python3|python3|python|python
'
column() { # column NUMBER NAME...: prints a column of the lines of these dependencies
    number=$1
    shift
    for name; do printf '%s\n' "$THINGS" | grep "^$name|" | cut -d '|' -f "$number"; done
}
packages() { # packages MANAGER NAME...: prints the packages of these dependencies, each once
    case $1 in apt) number=3 ;; dnf) number=4 ;; pacman) number=5 ;; zypper) number=6 ;; apk) number=7 ;; brew) number=8 ;; *) number=9 ;; esac
    shift
    column $number "$@" | tr ' ' '\n' | awk 'NF && !seen[$0]++ { printf "%s%s", space, $0; space = " " }'
}
listed() { # listed NAME...: prints the names as part of a sentence: a, b and c
    column 2 "$@" | awk '{ item[NR] = $0 }
        END { for (i = 1; i <= NR; i++) printf "%s%s", item[i], i == NR ? "" : i == NR - 1 ? " and " : ", " }'
}

# ---- missing dependencies -------------------------------------------------------------------------------------------

compiles() { "$@" -x c -fsyntax-only /dev/null 2>/dev/null; }
required() { # prints what a build needs and is missing
    compiles $CC || echo "${clang:+clang}" | sed 's/^$/gcc/'
    compiles $CC -include stdio.h || echo headers
    [ -z "$clang" ] || compiles $CC -fopenmp -include omp.h || echo omp
    dev/find_libraries.sh missing | tr ' ' '\n'
}
optional() { dev/find_libraries.sh optional | tr ' ' '\n'; } # missing libraries for optional features
for_tests() {
    ${CXX:-c++} -x c++ -fsyntax-only -include vector /dev/null 2>/dev/null || echo "${clang:+clang}" | sed 's/^$/g++/'
    { dev/find_libraries.sh mpi-libs | grep -q . && command -v mpirun >/dev/null; } || echo MPI
    echo 'int LLVMFuzzerTestOneInput(void) { return 0; }' |
        clang -x c -fsanitize=fuzzer,address,undefined - -o /dev/null 2>/dev/null || echo fuzzer
    compiles clang -fopenmp -include omp.h || echo omp
    command -v curl >/dev/null || echo curl
    command -v pgrep >/dev/null || echo pgrep
    command -v python3 >/dev/null || echo python
}
with_pkg_config() { # copies names from stdin; adds pkg-config if they include libraries
    things=$(awk 'NF && !seen[$0]++')
    case $things in
    *PCRE2* | *cJSON* | *zlib* | *libzstd* | *MPI*)
        command -v pkg-config >/dev/null || command -v pkgconf >/dev/null || echo pkg-config
        ;;
    esac
    printf '%s\n' "$things"
}

# ---- installation ---------------------------------------------------------------------------------------------------

manager() { # prints the package manager of this system, or nothing if it is not known
    if [ -n "$CONDA_PREFIX" ] && [ "$(id -u)" != 0 ]; then echo conda && return; fi
    for kind in $(sed -n 's/^ID\(_LIKE\)\{0,1\}=//p' "${OS_RELEASE:-/etc/os-release}" 2>/dev/null | tr -d "\"'"); do
        case $kind in
        debian | ubuntu) echo apt ;;
        fedora | rhel | centos | rocky | almalinux | amzn) echo dnf ;;
        arch | archlinux | manjaro) echo pacman ;;
        suse | opensuse* | sles | sled) echo zypper ;;
        alpine) echo apk ;;
        macos | darwin) echo brew ;;
        conda) echo conda ;;
        *) continue ;;
        esac
        return
    done
    for tool in brew conda; do command -v $tool >/dev/null && echo $tool && return; done
}
command_for() { # command_for MANAGER NAME...: prints the command that installs these dependencies
    case $1 in
    apt) words="apt-get install -y" ;;
    dnf) words="dnf install -y" ;;
    pacman) words="pacman -S --needed" ;;
    zypper) words="zypper install -y" ;;
    apk) words="apk add" ;;
    brew) words="brew install" ;;
    conda) words="conda install -c conda-forge" ;;
    esac
    case $1 in brew | conda) ;; *) [ "$(id -u)" = 0 ] || words="sudo $words" ;; esac
    echo "$words $(packages "$@")"
}
as_root() { # as_root COMMAND...: runs it as root, or fails if that is impossible
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif sudo -n true 2>/dev/null; then
        sudo -n "$@"
    elif [ -t 0 ] && [ -t 2 ] && command -v sudo >/dev/null; then
        sudo "$@"
    else
        return 1
    fi
}
install_by_apt() { # install_by_apt NAME...: installs those of the packages that this release of the system has
    [ "$(manager)" = apt ] && command -v apt-get >/dev/null && as_root true || return
    echo "Installing $(packages apt "$@")."
    log=$(mktemp) found=
    apt="env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=120"
    as_root $apt update >"$log" 2>&1
    for package in $(packages apt "$@"); do apt-cache show "$package" >/dev/null 2>&1 && found="$found $package"; done
    as_root $apt install -y --no-install-recommends $found >>"$log" 2>&1 || grep '^[EW]:' "$log" | head -n 5 >&2
    rm -f "$log"
}
explain() { # explain WORD NAME...: prints WORD (error: or note:) and a sentence that names what is missing
    word=$1 which=$(manager)
    shift
    verb=is
    [ $# -eq 1 ] || verb=are
    if [ -n "$printing" ] && [ "$which" = apt ] && { [ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null; }; then
        how="to install what is missing, run: make deps"
    elif [ -n "$which" ]; then
        how="to install what is missing, run: $(command_for "$which" "$@")"
    else
        how="install what is missing with the package manager of your system"
    fi
    echo "$word $(listed "$@") $verb not installed; $how" >&2
}

# ---- the goals ------------------------------------------------------------------------------------------------------

# A compiler that the user named is not replaced by another one.
if ! command -v "${CC%% *}" >/dev/null; then
    case $CC in gcc | cc | clang) ;; *) echo "error: CC is '$CC', but there is no program ${CC%% *}" >&2 && exit 1 ;; esac
fi
needed=$(required | with_pkg_config)
printing=
if [ "$1" = --print ]; then
    printing=yes
    [ -n "$needed" ] || exit 0
    explain error: $needed
    exit 1
fi
wanted() {
    required
    case " $* " in *" deps "* | *" test"* | *" check "*) optional ;; *) [ -z "$needed" ] || optional ;; esac
    case " $* " in *" test"* | *" check "* | *" fuzz "* | *" torture "*) for_tests ;; esac
}
missing=$(wanted "$@" | with_pkg_config)
if [ -z "$missing" ]; then
    [ "$*" != deps ] || echo "Everything that a build needs is installed."
    exit 0
fi
if install_by_apt $missing; then
    needed=$(required | with_pkg_config)
    missing=$(wanted "$@" | with_pkg_config)
fi
if [ -n "$needed" ]; then
    explain error: $missing
    exit 1
fi
[ -z "$missing" ] || explain "note: some features or tests are left out, because" $missing
