#!/bin/sh
# Finds the libraries that the host code needs, and MPI, and prints what the Makefile asks for:
#     dev/find_libraries.sh cflags       compiler options for PCRE2, cJSON and, if they are found, zlib and libzstd
#     dev/find_libraries.sh libs         linker options for them
#     dev/find_libraries.sh missing      the names of those that are required (PCRE2, cJSON) and were not found
#     dev/find_libraries.sh optional     the names of those that are optional (zlib, libzstd) and were not found
#     dev/find_libraries.sh mpi-cflags   compiler options for Open MPI or MPICH; nothing if neither is found
#     dev/find_libraries.sh mpi-libs     linker options for it
# Libraries are searched with pkg-config ($PKG_CONFIG), which honours PKG_CONFIG_PATH; then with the compiler ($CC),
# which honours CPATH and LIBRARY_PATH; then in an active conda environment ($CONDA_PREFIX). Libraries outside the
# system's folders get a run path, so that programs find them without LD_LIBRARY_PATH.
CC=${CC:-cc}
[ -n "$PKG_CONFIG" ] || { PKG_CONFIG=pkg-config && command -v pkg-config >/dev/null; } || PKG_CONFIG=pkgconf

known() { $PKG_CONFIG --exists "$1" 2>/dev/null; }
# compiles HEADER LIBRARY: succeeds if the compiler finds both without options.
compiles() {
    printf '#define PCRE2_CODE_UNIT_WIDTH 8\n#include <stddef.h>\n#include <%s>\nint main(void) { return 0; }\n' "$1" |
        $CC -x c - -o /dev/null "-l$2" 2>/dev/null
}
# place PACKAGE LIBRARY HEADER...: prints where a library was found: pkg-config, compiler or conda.
place() {
    known "$1" && echo pkg-config && return
    library=$2
    shift 2
    for header; do compiles "$header" "$library" && echo compiler && return; done
    for header; do [ -n "$CONDA_PREFIX" ] && [ -e "$CONDA_PREFIX/include/$header" ] && echo conda && return; done
    return 1
}
# Adds a run path for every folder that is named by -L.
with_run_paths() {
    sed 's/-L\(\([^\\ ]\|\\.\)*\)/& -Wl,-rpath,\1/g; s/-Wl,-rpath,\/usr\/lib[^ ]*//g'
}
# Prints a run path for every folder of LIBRARY_PATH that contains one of the libraries.
library_path_run_paths() {
    printf '%s\n' "$LIBRARY_PATH" | tr ':' '\n' | while read -r folder; do
        for library in pcre2-8 cjson z zstd; do
            [ -e "$folder/lib$library.so" ] || [ -e "$folder/lib$library.dylib" ] || continue
            printf '%s\n' "$folder" | sed 's/[^A-Za-z0-9_./+:@%=-]/\\&/g; s/^/-Wl,-rpath,/'
            break
        done
    done
}
# options cflags|libs PACKAGE LIBRARY DEFINE HEADER...: prints options for a library, or nothing if it is not found.
options() {
    kind=$1 package=$2 library=$3 define=$4
    shift 4
    where=$(place "$package" "$library" "$@") || return
    [ "$kind" = libs ] || [ -z "$define" ] || echo "$define"
    case $where-$kind in
    pkg-config-cflags) $PKG_CONFIG --cflags "$package" ;;
    pkg-config-libs) $PKG_CONFIG --libs "$package" | with_run_paths ;;
    conda-cflags) echo "-I$CONDA_PREFIX/include" ;;
    conda-libs) echo "-L$CONDA_PREFIX/lib -l$library" | with_run_paths ;;
    compiler-libs) echo "-l$library" ;;
    esac
}
each() { # each COMMAND...: calls it with the arguments of every library
    "$@" libpcre2-8 pcre2-8 '' pcre2.h
    "$@" libcjson cjson '' cjson/cJSON.h cJSON.h
    "$@" zlib z -DHAVE_ZLIB zlib.h
    "$@" libzstd zstd -DHAVE_ZSTD zstd.h
}
# absent required|optional PACKAGE LIBRARY DEFINE HEADER...: prints the name of a library of this kind that is missing.
absent() {
    case $1-$4 in required- | optional-?*) ;; *) return ;; esac
    package=$2 library=$3
    shift 4
    place "$package" "$library" "$@" >/dev/null || case $package in
    libpcre2-8) echo PCRE2 ;;
    libcjson) echo cJSON ;;
    *) echo "$package" ;;
    esac
}
mpi() { # mpi OPTION: prints what pkg-config answers for the first implementation found
    for package in ompi ompi-c mpich; do known $package && $PKG_CONFIG "$1" $package && return; done
}

case $1 in
cflags) each options cflags ;;
libs) each options libs && library_path_run_paths ;;
missing) each absent required ;;
optional) each absent optional ;;
mpi-cflags) mpi --cflags ;;
mpi-libs) mpi --libs | with_run_paths ;;
esac | tr '\n' ' '
