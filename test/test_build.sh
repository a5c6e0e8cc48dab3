#!/bin/bash
# The build itself, in copies of the tree: with any compiler, in a path with spaces; what is rebuilt, and when; where
# the programs are stored; libraries outside the system's folders; what dev/deps.sh prints on every distribution. Only
# the small data/write_stories is compiled.
#     BUILD=build/cpu test/test_build.sh
. "$(dirname "$0")/harness/test.sh"
unset MAKEFLAGS MFLAGS MAKELEVEL # set by a make that calls this
unset CC CXX CFLAGS CXXFLAGS CPPFLAGS DEFINES LDFLAGS LDLIBS MARCH SANITIZE PACKAGES_CHECKED WERROR
export DEVICE=cpu
gcc_is=$(command -v gcc) || gcc_is=$(command -v clang)
small=build/cpu/data/write_stories

# A checkout in a path with spaces, with every file that git tracks or would add.
tree="$work/a checkout/with spaces"
mkdir -p "$tree"
(cd "$root" && git ls-files -co --exclude-standard -z | while IFS= read -r -d '' file; do [ -f "$file" ] && printf '%s\0' "$file"; done |
    tar -c --null -T - -f -) | tar -x -C "$tree" || fail "no copy of the tree"
cd "$tree" || exit 1

stubs=$work/stubs
mkdir -p "$stubs"
stub() { # stub NAME TEXT: creates a program of that name, first on PATH
    printf '#!/bin/sh\n%s\n' "$2" >"$stubs/$1" && chmod +x "$stubs/$1"
}
with_stubs() { PATH=$stubs:$PATH "$@"; }
cat >"$work/print.mk" <<'END'
print-%: ; @printf '%s\n' '$($*)'
END
variable() { make -s -f Makefile -f "$work/print.mk" "BUILD=$work/printed" "print-$1" "${@:2}" 2>&1; }
equal() { if [ "$1" = "$2" ]; then pass; else fail "'$1' is not '$2': $3"; fi; }
# says PATTERN STATUS COMMAND...: like expect, but in this folder.
says() {
    local pattern=$1 status=$2 got
    shift 2
    "$@" >"$work/out.txt" 2>&1 </dev/null
    got=$?
    if [ "$got" -eq "$status" ] && grep -qE -e "$pattern" "$work/out.txt"; then
        pass
    else
        fail "status $got, not $status, or no line like '$pattern', from: $*"
        tail -n 5 "$work/out.txt"
    fi
}

# ---- make's version --------------------------------------------------------------------------------------------------

for version in 3.81 3.82 4.0 4.1 4.2 4.2.1; do says 'GNU make .* needs 4\.3 or later.* gmake' 2 make MAKE_VERSION=$version help; done
for version in 4.3 4.4 4.4.1 5.0; do says '^Targets:' 0 make MAKE_VERSION=$version help; done

# ---- what is rebuilt -------------------------------------------------------------------------------------------------

# changes YES|NO WHAT VARIABLE...: checks whether make compiles and links again with these variables of make.
changes() {
    local expected=$1 what=$2
    shift 2
    make "$@" "$small" >"$work/out.txt" 2>&1 || { fail "$what: the build failed" && tail -n 3 "$work/out.txt"; }
    grep -q -e ' -c data/write_stories.c' "$work/out.txt" && compiled=YES || compiled=NO
    grep -q -e " -o $small\$" "$work/out.txt" && linked=YES || linked=NO
    equal "$compiled $linked" "$expected $expected" "compiled and linked again with $what"
}
changes YES "nothing there"
changes NO "nothing changed"
changes YES "CFLAGS" CFLAGS=-DSOMETHING
changes NO "the same CFLAGS" CFLAGS=-DSOMETHING
holds grep -q -e ' -DSOMETHING' build/cpu/flags
CFLAGS=-DSOMETHING changes NO "the same CFLAGS in the environment"
changes YES "CFLAGS taken away"
changes YES "MARCH" MARCH=
changes YES "DEFINES" DEFINES=-DOTHER
changes YES "LDFLAGS" LDFLAGS=-Wl,-O1
LDFLAGS=-Wl,-O1 changes NO "the same LDFLAGS in the environment"
changes YES "WERROR" WERROR=1
holds grep -q -e ' -Werror' build/cpu/flags
changes YES "no WERROR"
if grep -q -e '-Werror' build/cpu/flags; then fail "warnings are errors for everyone"; else pass; fi
# A compiler, in fact gcc, whose version changes while its name and size do not.
stub newer "case \$* in *--version*) echo \"newer (\$VERSION)\" ;; *) exec $gcc_is \"\$@\" ;; esac"
export VERSION=1
with_stubs changes YES "another CC" CC=newer
with_stubs changes NO "the same CC" CC=newer
VERSION=2 with_stubs changes YES "a new version of CC" CC=newer
# MPI becomes available and unavailable.
stub pkg-config "case \$* in *ompi*) [ -n \"\$MPI_IS_THERE\" ] || exit 1
case \$* in *--cflags*) echo -DMPI_HEADERS ;; *--libs*) echo -lmpi ;; esac ;; *) exit 1 ;; esac"
with_stubs changes YES "other libraries" MARCH=
with_stubs changes NO "the same libraries" MARCH=
MPI_IS_THERE=1 with_stubs make -n MARCH= build/cpu/layers/comm/comm.o >"$work/out.txt" 2>&1
holds grep -q -e '-DHAVE_MPI -DMPI_HEADERS.* -c layers/comm/comm.cu' "$work/out.txt"
rm "$stubs/pkg-config"
equal "$(grep -c . build/cpu/flags)" 7 "lines of the one file that says what shaped the build"

# ---- any compiler; make reports where the programs are ---------------------------------------------------------------

stub ccache 'exec "$@"'
builds_with() { # builds_with CC: set on the command line and in the environment
    rm -f data/write_stories
    with_stubs make -s "CC=$1" PROGRAMS=data/write_stories >"$work/out.txt" 2>&1 || { fail "make CC=$1" && tail -n 3 "$work/out.txt"; }
    holds grep -q '^Built ./train_gpt, data/tokenize and data/write_stories\.$' "$work/out.txt"
    CC=$1 with_stubs changes NO "CC=$1 in the environment"
    equal "$(readlink data/write_stories)" "../$small" "a relative link with CC=$1"
    holds data/write_stories --help >"$work/out.txt"
}
for compiler in cc "$gcc_is" "ccache $gcc_is" "$gcc_is -m64"; do
    case $compiler in *-m64) [ "$(uname -m)" = x86_64 ] || continue ;; esac
    builds_with "$compiler"
done
for compiler in gcc-12 gcc-13 gcc-14 clang; do ! command -v $compiler >/dev/null || builds_with $compiler; done
holds grep -q "ln -sfn build/cpu/train_gpt train_gpt" <(make -n programs 2>&1)
says "CC is 'gcc-none', but there is no program gcc-none" 2 make CC=gcc-none "$small"
changes YES "back to the default"

cxx_of() { variable CXX "CC=$1" DEVICE=emulated; }
equal "$(cxx_of gcc)" g++ "C++"
equal "$(cxx_of cc)" c++ "C++"
equal "$(cxx_of clang)" clang++ "C++"
equal "$(cxx_of gcc-12)" g++-12 "C++"
equal "$(cxx_of clang-14)" clang++-14 "C++"
equal "$(cxx_of /opt/gcc-12/bin/gcc)" /opt/gcc-12/bin/g++ "C++"
equal "$(cxx_of 'ccache gcc')" "ccache g++" "C++"
equal "$(cxx_of 'gcc -m64')" "g++ -m64" "C++"
equal "$(CC='ccache x86_64-linux-gnu-gcc-12' variable CXX DEVICE=emulated)" "ccache x86_64-linux-gnu-g++-12" "C++"
equal "$(variable CXX CXX=mine DEVICE=emulated)" mine "C++"
for compiler in "ccache gcc" "gcc -m64" /usr/bin/gcc; do
    equal "$(make -s -f Makefile -f "$work/print.mk" print-BUILD "CC=$compiler" 2>&1)" build/cpu "the build folder"
done
# Without gcc: the first of cc and clang that is installed.
mkdir "$work/bin"
for tool in sh env sed grep cat head tr cut awk uname dirname find mkdir id cksum make printf mktemp; do
    ln -s "$(type -P $tool)" "$work/bin/$tool"
done
printf '#!/bin/sh\necho clang version 99\n' >"$work/bin/clang" && chmod +x "$work/bin/clang"
equal "$(PATH=$work/bin variable CC)" clang "no gcc and no cc"
equal "$(PATH=$work/bin variable CXX DEVICE=emulated)" clang++ "no gcc and no cc"
# Tests for which a tool is missing are skipped, counted and named.
left_out=$(PATH=$work/bin variable SKIPPED)
for entry in test/torture.py:python3 test/test_command_line.sh:python3 test/data/test_download.sh:curl test/emulated.sh:clang++; do
    case " $left_out " in *" $entry "*) pass ;; *) fail "$entry is not in: $left_out" ;; esac
done
equal "$(variable MPI_PROGRAMS PKG_CONFIG=false)" "" "without MPI, programs for it are not built"
env -u TEST_RECORD SKIPPED="test/torture.py:python3 test/emulated.sh:g++" test/harness/run.sh test/harness/skipped.sh >"$work/out.txt" 2>&1
holds grep -qx 'skipped: test/torture.py (python3 is not installed)' "$work/out.txt"
equal "$(tail -n 1 "$work/out.txt")" "0 passed, 0 failed, 2 skipped" "counted"
rm "$work/bin/clang"
# A compiler that does not support -march=native, and one that does not support -mcpu=native either.
stub arm 'case $* in *-march=native*) exit 1 ;; *--version*) echo arm ;; esac'
equal "$(with_stubs variable MARCH CC=arm)" -mcpu=native "-march=native is not known"
stub arm 'case $* in *native*) exit 1 ;; *--version*) echo arm ;; esac'
equal "$(with_stubs variable MARCH CC=arm)" "" "neither is known"
equal "$(with_stubs variable MARCH CC=arm MARCH=-march=x86-64-v3)" -march=x86-64-v3 "MARCH is what a user says"

# ---- libraries outside the system's folders --------------------------------------------------------------------------

away="$work/env with space"
mkdir -p "$away/lib/pkgconfig" "$away/include/cjson"
for package in libpcre2-8 libcjson; do
    printf 'prefix=%s\nName: %s\nDescription: x\nVersion: 1\nLibs: -L${prefix}/lib -l%s\nCflags: -I${prefix}/include\n' \
        "$(printf '%s' "$away" | sed 's/ /\\ /g')" $package ${package#lib} >"$away/lib/pkgconfig/$package.pc"
done
find_libraries() { PKG_CONFIG_PATH='' CPATH='' LIBRARY_PATH='' env "$@"; }
if command -v pkg-config >/dev/null; then
    equal "$(find_libraries "PKG_CONFIG_PATH=$away/lib/pkgconfig" dev/find_libraries.sh libs | sed 's/ -[Ll]/\n&/g' |
        grep -o -- '-Wl,-rpath,.*space/lib' | sort -u)" \
        "-Wl,-rpath,$(printf '%s' "$away" | sed 's/ /\\ /g')/lib" "a run path for what pkg-config names"
    holds grep -q -- "space/include" <(find_libraries "PKG_CONFIG_PATH=$away/lib/pkgconfig" dev/find_libraries.sh cflags)
    holds grep -q -- "space/include" <(variable C_FLAGS "PKG_CONFIG_PATH=$away/lib/pkgconfig")
fi
# Without pkg-config: the compiler's own paths; both locations of cJSON's header. With real libraries, then empty
# ones.
mkdir -p "$work/libs" "$work/headers/cjson"
touch "$work/headers/pcre2.h" "$work/headers/cjson/cJSON.h"
for name in pcre2-8 cjson; do echo 'int nothing;' | $gcc_is -shared -fPIC -x c - -o "$work/libs/lib$name.so" || fail "lib$name.so"; done
none=(PKG_CONFIG=false "CC=$gcc_is" CONDA_PREFIX=)
by_compiler() { find_libraries "${none[@]}" "CPATH=$work/headers" "LIBRARY_PATH=$work/libs" dev/find_libraries.sh "$1"; }
equal "$(by_compiler missing)" "" "the compiler finds them"
holds grep -q -e "-lpcre2-8 -lcjson .*-Wl,-rpath,$work/libs" <(by_compiler libs)
mv "$work/headers/cjson/cJSON.h" "$work/headers/"
equal "$(by_compiler missing)" "" "the other place of cJSON.h"
for layout in cjson ''; do # the sources find either
    rm -rf "$work/layout" && mkdir -p "$work/layout/$layout"
    cp "$(printf '#include "data/json/cjson.h"\n' | $gcc_is -I. $(dev/find_libraries.sh cflags) -x c -M - | tr ' \\' '\n\n' | grep 'cJSON\.h$')" "$work/layout/$layout/"
    printf '#include "data/json/cjson.h"\ncJSON *x;\n' >"$work/layout.c"
    holds "$gcc_is" -nostdinc -isystem "$($gcc_is -print-file-name=include)" -I. -I"$work/layout" -fsyntax-only "$work/layout.c"
done
# Libraries of conda, found without pkg-config.
mkdir -p "$work/conda/include/cjson" && touch "$work/conda/include/pcre2.h" "$work/conda/include/cjson/cJSON.h"
stub lacking "case \$* in *pcre2* | *cjson* | *' - '*) exit 1 ;; *) exec $gcc_is \"\$@\" ;; esac"
holds grep -q -e "-L$work/conda/lib -lpcre2-8 *-L$work/conda/lib -lcjson" <(with_stubs find_libraries PKG_CONFIG=false CC=lacking \
    "CONDA_PREFIX=$work/conda" dev/find_libraries.sh libs | sed 's/-Wl,-rpath,[^ ]* //g' | tr -s ' ')

# ---- packages --------------------------------------------------------------------------------------------------------

# A machine with none of the packages, without root and sudo: the command depends on the distribution.
rm -f "$work/bin/id" && printf '#!/bin/sh\necho 1000\n' >"$work/bin/id" && chmod +x "$work/bin/id"
for tool in apt-get dnf pacman zypper apk brew conda; do
    printf '#!/bin/sh\necho "$0 $*" >>"%s"\n' "$work/tried.txt" >"$work/bin/$tool" && chmod +x "$work/bin/$tool"
done
bare() { env -i PATH="$work/bin" OS_RELEASE="$work/os-release" "$@"; }
on() { # on ID COMMAND
    printf 'NAME="Any Linux"\nID=%s\nVERSION_ID="1"\n' "$1" >"$work/os-release"
    says "^error: .*cJSON.* are not installed; to install what is missing, run: $2 .*pcre2[^ ]* .*c[jJ][sS][oO][nN]" 1 bare dev/deps.sh deps
    equal "$(wc -l <"$work/out.txt")" 1 "one sentence on $1"
}
on debian 'sudo apt-get install -y'
on ubuntu 'sudo apt-get install -y'
on '"linuxmint"\nID_LIKE="ubuntu debian"' 'sudo apt-get install -y'
on fedora 'sudo dnf install -y'
on '"rocky"\nID_LIKE="rhel centos fedora"' 'sudo dnf install -y'
on arch 'sudo pacman -S --needed'
on '"opensuse-leap"' 'sudo zypper install -y'
on alpine 'sudo apk add'
on macos 'brew install'
on conda 'conda install -c conda-forge'
on none 'brew install' # depends on the installed package manager
rm "$work/bin/brew"
on none 'conda install -c conda-forge'
rm "$work/bin/conda"
says '^error: .* install what is missing with the package manager of your system' 1 bare dev/deps.sh deps
printf 'ID=fedora\n' >"$work/os-release"
says 'run: conda install -c conda-forge .*pcre2' 1 bare CONDA_PREFIX=/c dev/deps.sh deps
# make prints the same before it compiles anything, and `deps` installs no more than that.
printf 'ID=debian\n' >"$work/os-release"
for goal in all train deps test "deps test"; do
    says '^error: .*cJSON.* are not installed; .* sudo apt-get install -y .*libcjson-dev' 2 bare make BUILD=build/none $goal
done
if [ -e "$work/tried.txt" ]; then fail "it was tried: $(cat "$work/tried.txt")"; else pass; fi
# Users who can install packages are told the shorter command.
printf '#!/bin/sh\necho 0\n' >"$work/bin/id"
says '^error: .*cJSON.* are not installed; to install what is missing, run: make deps$' 1 bare dev/deps.sh --print
printf '#!/bin/sh\necho 1000\n' >"$work/bin/id"
# sudo is tried if it needs no password, with apt-get only.
printf '#!/bin/sh\n[ "$1" != -n ] || shift\nexec "$@"\n' >"$work/bin/sudo" && chmod +x "$work/bin/sudo"
printf '#!/bin/sh\n' >"$work/bin/apt-cache" && chmod +x "$work/bin/apt-cache"
ln -s "$(type -P true)" "$work/bin/true"
ln -s "$(type -P rm)" "$work/bin/rm"
says 'Installing pkg-config gcc libc6-dev libpcre2-dev libcjson-dev' 1 bare dev/deps.sh train
holds grep -q 'apt-get .*update' "$work/tried.txt"
holds grep -q 'apt-get .*install -y .* gcc libc6-dev libpcre2-dev libcjson-dev' "$work/tried.txt"
# What `deps` installs is used by the build of the same command, even if an earlier build was made without it.
stub lacking "case \$* in *' - '*) exit 1 ;; *) exec $gcc_is \"\$@\" ;; esac"
stub pkg-config "case \$* in *ompi* | *mpich* | *zstd*) exit 1 ;; *zlib*) [ -e '$work/came' ] ;; esac"
stub apt-get "case \$* in *install*) touch '$work/came' ;; esac"
stub apt-cache 'exit 0'
stub id 'echo 0'
with_stubs changes YES "no zlib" CC=lacking
OS_RELEASE=$work/os-release with_stubs changes YES "zlib, which comes with deps" CC=lacking deps
holds grep -q -e ' -DHAVE_ZLIB .*-c data/write_stories.c' "$work/out.txt"
with_stubs changes NO "zlib, which has come" CC=lacking
rm "$stubs/pkg-config"
# If everything required is installed, nothing is requested; what only tests need is named as optional.
stub sudo 'exit 1'
stub id 'echo 1000'
stub curl 'exit 0'
if [ -z "$(dev/find_libraries.sh missing)" ]; then
    says '^$' 0 with_stubs sh -c 'dev/deps.sh train; status=$?; echo; exit $status'
    equal "$(wc -l <"$work/out.txt")" 1 "nothing is said"
    stub mpirun 'exit 1'
    says '^note: .* left out, because .*MPI.* not installed; to install what is missing, run: .*openmpi' 0 \
        with_stubs env PKG_CONFIG="$stubs/no_mpi" dev/deps.sh test
fi
finish
