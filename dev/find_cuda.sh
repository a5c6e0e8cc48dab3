#!/bin/sh
# Finds NVIDIA's compiler, libraries and tools, and prints what the Makefile asks for (nothing if it is not found):
#     dev/find_cuda.sh gpu             yes, if there is a GPU
#     dev/find_cuda.sh nvcc            the compiler
#     dev/find_cuda.sh compile         options for the headers of CUDA, cuBLASLt, NVTX and NCCL
#     dev/find_cuda.sh link            options for the libraries
#     dev/find_cuda.sh cudnn-compile   options for the headers of CUDA, cuDNN and cuDNN's C++ frontend
#     dev/find_cuda.sh cudnn-link      options for cuDNN
#     dev/find_cuda.sh nvtx            the folder with nvtx3/nvToolsExt.h
#     dev/find_cuda.sh architectures   that of the GPU, such as sm_90a; without a GPU, all of ours that nvcc knows
#     dev/find_cuda.sh nsys            the profiler
#     dev/find_cuda.sh places          the places that are searched, for a message
# Searches $CUDA_HOME, $CUDA_PLACE (/usr/local/cuda), the toolkit of an nvcc on PATH, and the packages of a Python
# environment (nvidia-cuda-nvcc, nvidia-cuda-runtime, nvidia-cublas, nvidia-nccl-cu13, nvidia-cudnn-cu13,
# nvidia-cudnn-frontend ...). NCCL=0 omits NCCL.

# Newer packages share one folder (nvidia/cu13), older ones have one each (nvidia/cublas); cuDNN's frontend is in
# include/.
python_roots() {
    command -v python3 >/dev/null || return
    python3 -c 'import sys; print("\n".join(p for p in sys.path if p))' 2>/dev/null | while read -r folder; do
        [ -d "$folder/nvidia" ] && printf '%s\n' "$folder/nvidia/cu13" "$folder"/nvidia/*
        [ ! -e "$folder/include/cudnn_frontend.h" ] || echo "$folder"
    done
}
roots() {
    [ -z "$CUDA_HOME" ] || echo "$CUDA_HOME"
    echo "${CUDA_PLACE:-/usr/local/cuda}"
    nvcc --dryrun -x cu /dev/null 2>&1 | sed -n 's,^#\$ TOP=\(.*[^/]\)/*bin/\.\.$,\1,p' # correct even if nvcc is a wrapper
    echo /usr
    python_roots
}
ROOTS=$(roots)

first_file() { # first_file PATH...: prints the first of these paths that exists, root by root
    for root in $ROOTS; do
        for path in "$@"; do [ -e "$root/$path" ] && echo "$root/$path" && return; done
    done
    return 1
}
nvcc() { first_file bin/nvcc; }
include_of() { # include_of HEADER: prints the folder that contains it
    header=$(first_file "include/$1" "include/$(uname -m)-linux-gnu/$1") && echo "${header%/"$1"}"
}
library() { # library NAME...: prints options that link the first one found; Python packages have only libNAME.so.13
    for root in $ROOTS; do
        for folder in "$root/lib64" "$root/lib" "$root"/targets/*/lib "$root/lib/$(uname -m)-linux-gnu"; do
            for name in "$@"; do
                for file in "$folder/lib$name.a" "$folder/lib$name.so" "$folder/lib$name.so".*; do
                    [ -e "$file" ] || continue
                    case $root in /usr) ;; *) printf '%s ' "-L$folder" "-Wl,-rpath,$folder" ;; esac
                    echo "-l:${file##*/}"
                    return
                done
            done
        done
    done
    return 1
}
has_nccl() { [ "$NCCL" != 0 ] && include_of nccl.h >/dev/null; }

case $1 in
gpu)
    { nvidia-smi -L 2>/dev/null | grep -q '^GPU' || [ -n "$(ls /proc/driver/nvidia/gpus 2>/dev/null)" ]; } && echo yes
    ;;
nvcc) nvcc ;;
compile)
    for header in cuda_runtime.h cublasLt.h nvtx3/nvToolsExt.h $(has_nccl && echo nccl.h); do include_of "$header"; done |
        sort -u | grep -v '^/usr/include$' | sed 's/^/-isystem /' | tr '\n' ' '
    include_of nvtx3/nvToolsExt.h >/dev/null && printf '%s ' -DHAVE_NVTX
    has_nccl && echo -DHAVE_NCCL
    ;;
link)
    library cublasLt || echo -lcublasLt # the linker then reports that it is missing
    # Linked even if nothing calls it, so that a missing library is reported at build time.
    has_nccl && echo "-Wl,--no-as-needed $(library nccl || echo -lnccl) -Wl,--as-needed"
    echo "$(library cudart_static cudart || echo -lcudart_static) -ldl -lrt"
    ;;
cudnn-compile)
    cuda=$(include_of cuda_runtime.h) && cudnn=$(include_of cudnn.h) && frontend=$(include_of cudnn_frontend.h) || exit 0
    printf '%s\n' "$cuda" "$cudnn" "$frontend" | awk '!seen[$0]++' | grep -v '^/usr/include' | sed 's/^/-isystem /' | tr '\n' ' '
    echo -DHAVE_CUDNN
    ;;
cudnn-link)
    # cuDNN loads its parts from its own folder. Its frontend may call NVRTC (newer versions do, for graphs that we do
    # not use).
    cudnn=$(library cudnn) && echo "-Wl,--as-needed $cudnn $(library nvrtc)"
    ;;
nvtx) include_of nvtx3/nvToolsExt.h ;;
architectures)
    known=" $("$(nvcc)" --list-gpu-arch 2>/dev/null | sed 's/compute_//' | tr '\n' ' ')"
    here=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | grep -E '^[0-9]+\.[0-9]$' | tr -d . | sort -nu)
    for number in $here; do case $known in *" $number "*) ;; *) here= ;; esac; done
    for number in ${here:-80 86 89 90 100 120}; do
        case $known in *" $number "*) echo "sm_$number" ;; esac
    done | sed 's/^sm_90$/sm_90a/' | tr '\n' ' '
    ;;
nsys)
    command -v nsys && exit
    for file in "${CUDA_HOME:-/usr/local/cuda}/bin/nsys" /usr/local/cuda*/bin/nsys \
        /opt/nvidia/nsight-systems/*/bin/nsys /opt/nvidia/nsight-systems/*/target-linux-x64/nsys \
        /opt/nvidia/nsight-systems*/bin/nsys /usr/local/cuda*/nsight-systems*/bin/nsys; do
        [ -x "$file" ] && echo "$file" && exit
    done
    ;;
places)
    echo "CUDA_HOME${CUDA_HOME:+ ($CUDA_HOME)}, ${CUDA_PLACE:-/usr/local/cuda}, PATH, and the packages of python3 (pip install nvidia-cuda-nvcc ...)"
    ;;
esac
exit 0
