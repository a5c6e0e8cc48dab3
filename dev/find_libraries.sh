#!/bin/sh
# Finds the libraries that the host code needs, and MPI, and prints what the Makefile asks for:
#     dev/find_libraries.sh cflags       the compiler's options for PCRE2 and cJSON, and for zlib and libzstd where they are found
#     dev/find_libraries.sh libs         the linker's options for them
#     dev/find_libraries.sh missing      the names of those that are required (PCRE2, cJSON) and were not found
#     dev/find_libraries.sh optional     the names of those that are optional (zlib, libzstd) and were not found
#     dev/find_libraries.sh mpi-cflags   the compiler's options for Open MPI or MPICH; nothing where neither is found
#     dev/find_libraries.sh mpi-libs     the linker's options for it
# It asks pkg-config ($PKG_CONFIG), which honours PKG_CONFIG_PATH; then the compiler ($CC), which honours CPATH and
# LIBRARY_PATH; then it looks in an active conda environment ($CONDA_PREFIX). Libraries outside the system's folders
# get a run path, so that programs find them without LD_LIBRARY_PATH.
CC=${CC:-cc}
[ -n "$PKG_CONFIG" ] || { PKG_CONFIG=pkg-config && command -v pkg-config >/dev/null; } || PKG_CONFIG=pkgconf

known() { $PKG_CONFIG --exists "$1" 2>/dev/null; }
# compiles HEADER LIBRARY: whether the compiler finds both by itself.
compiles() {
    printf '#define PCRE2_CODE_UNIT_WIDTH 8\n#include <stddef.h>\n#include <%s>\nint main(void) { return 0; }\n' "$1" |
        $CC -x c - -o /dev/null "-l$2" 2>/dev/null
}
# place PACKAGE LIBRARY HEADER...: says where a library was found: pkg-config, compiler or conda.
place() {
    known "$1" && echo pkg-config && return
    library=$2
    shift 2
    for header; do compiles "$header" "$library" && echo compiler && return; done
    for header; do [ -n "$CONDA_PREFIX" ] && [ -e "$CONDA_PREFIX/include/$header" ] && echo conda && return; done
    return 1
}
# A run path for every folder that is named by -L.
with_run_paths() {
    sed 's/-L\(\([^\\ ]\|\\.\)*\)/& -Wl,-rpath,\1/g; s/-Wl,-rpath,\/usr\/lib[^ ]*//g'
}
# And for every folder of LIBRARY_PATH that has one of the libraries.
library_path_run_paths() {
    printf '%s\n' "$LIBRARY_PATH" | tr ':' '\n' | while read -r folder; do
        for library in pcre2-8 cjson z zstd; do
            [ -e "$folder/lib$library.so" ] || [ -e "$folder/lib$library.dylib" ] || continue
            printf '%s\n' "$folder" | sed 's/[^A-Za-z0-9_./+:@%=-]/\\&/g; s/^/-Wl,-rpath,/'
            break
        done
    done
}
# options cflags|libs PACKAGE LIBRARY DEFINE HEADER...
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
each() { # each COMMAND...: called with the words of every library's line
    "$@" libpcre2-8 pcre2-8 '' pcre2.h
    "$@" libcjson cjson '' cjson/cJSON.h cJSON.h
    "$@" zlib z -DHAVE_ZLIB zlib.h
    "$@" libzstd zstd -DHAVE_ZSTD zstd.h
}
# absent required|optional PACKAGE LIBRARY DEFINE HEADER...
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
mpi() { # mpi OPTION: of the first that is there
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
