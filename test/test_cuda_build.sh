#!/bin/bash
# What can be tested of DEVICE=cuda without a GPU: how the compiler is found, that everything compiles and links, what
# the programs print without a GPU, the resources of each kernel; profiling; that dev/gpu_check.sh runs its parts and
# remembers them. With a GPU, the tests also run on it.
#     BUILD=build/cpu test/test_cuda_build.sh
. "$(dirname "$0")/harness/test.sh"
unset MAKEFLAGS MFLAGS MAKELEVEL DEVICE # set by a make that calls this
cd "$root" || exit 1
jobs=-j$(nproc)
stubs=$work/stubs
mkdir -p "$stubs"
out=$work/out.txt
stub() { # stub NAME TEXT: creates a program of that name, first on PATH
    printf '#!/bin/sh\n%s\n' "$2" >"$stubs/$1" && chmod +x "$stubs/$1"
}
# says PATTERN STATUS COMMAND...
says() {
    local pattern=$1 status=$2 got
    shift 2
    "$@" >"$out" 2>&1 </dev/null
    got=$?
    if [ "$got" -eq "$status" ] && grep -qE -e "$pattern" "$out"; then
        pass
    else
        fail "status $got, not $status, or no line like '$pattern', from: $*"
        tail -n 5 "$out"
    fi
}
no_gpu() { ! dev/find_cuda.sh gpu | grep -q yes; }

# ---- what is found ---------------------------------------------------------------------------------------------------

# A toolkit of empty files, and a GPU that responds, both as stubs; `variable` prints a variable of make.
toolkit=$work/toolkit
mkdir -p "$toolkit/bin" "$toolkit/include/nvtx3" "$toolkit/lib"
touch "$toolkit/include/"{cuda_runtime.h,cublasLt.h,nccl.h,nvtx3/nvToolsExt.h} "$toolkit/lib/"{libcublasLt.so.13,libnccl.so.2,libcudart_static.a}
cat >"$toolkit/bin/nvcc" <<'END'
#!/bin/sh
case $* in *--list-gpu-arch*) printf 'compute_%s\n' 75 80 86 89 90 100 ;; esac
END
chmod +x "$toolkit/bin/nvcc"
cat >"$work/print.mk" <<'END'
print-%: ; @printf '%s\n' '$($*)'
END
variable() { make -s -f Makefile -f "$work/print.mk" CUDA_PLACE=/nonexistent BUILD="$work/build" "print-$1" "${@:2}" 2>&1; }
equal() { if [ "$1" = "$2" ]; then pass; else fail "'$1' is not '$2': $3"; fi; }

stub nvidia-smi 'case $* in *compute_cap*) echo "${CAPABILITY:-9.0}" ;; *) echo "GPU 0: a GPU" ;; esac'
equal "$(PATH=$stubs:$PATH variable DEVICE CUDA_HOME="$toolkit")" cuda "a GPU and a compiler"
equal "$(PATH=$stubs:$PATH variable DEVICE CUDA_HOME="$toolkit" SANITIZE=address)" cpu "sanitizers are for the CPU"
equal "$(PATH=$stubs:$PATH variable ARCH DEVICE=cuda CUDA_HOME="$toolkit")" "sm_90a" "the GPU's architecture"
equal "$(PATH=$stubs:$PATH CAPABILITY=8.6 variable ARCH DEVICE=cuda CUDA_HOME="$toolkit")" "sm_86" "the GPU's architecture"
equal "$(PATH=$stubs:$PATH CAPABILITY=12.1 variable ARCH DEVICE=cuda CUDA_HOME="$toolkit")" "sm_80 sm_86 sm_89 sm_90a sm_100" \
    "a GPU that nvcc does not know yet gets all that it knows"
PATH=$stubs:$PATH CAPABILITY=8.6 variable COMPILE_CU DEVICE=cuda CUDA_HOME="$toolkit" >"$out"
holds grep -q 'arch=compute_86,code=sm_86 -gencode arch=compute_86,code=compute_86 ' "$out"
PATH=$stubs:$PATH variable COMPILE_CU DEVICE=cuda CUDA_HOME="$toolkit" >"$out"
holds grep -q 'arch=compute_90a,code=sm_90a *-MMD' "$out"
holds grep -q -e '-DHAVE_NVTX -DHAVE_NCCL' "$out"
stub nvidia-smi 'exit 9'
if no_gpu; then
    equal "$(PATH=$stubs:$PATH variable DEVICE CUDA_HOME="$toolkit")" cpu "no GPU"
    equal "$(PATH=$stubs:$PATH variable ARCH DEVICE=cuda CUDA_HOME="$toolkit")" "sm_80 sm_86 sm_89 sm_90a sm_100" "all that nvcc knows"
fi
holds grep -q 'libnccl.so.2' <(CUDA_HOME=$toolkit dev/find_cuda.sh link)
equal "$(NCCL=0 CUDA_HOME=$toolkit dev/find_cuda.sh link | grep -c nccl)" 0 "NCCL=0"
equal "$(NCCL=0 CUDA_HOME=$toolkit dev/find_cuda.sh compile | grep -c NCCL)" 0 "NCCL=0"
# Python packages: a single folder, or in older ones a folder for each part.
packages=$work/packages
mkdir -p "$packages/nvidia/nccl" && mv "$toolkit" "$packages/nvidia/cu13" &&
    mv "$packages/nvidia/cu13/lib/libnccl.so.2" "$packages/nvidia/nccl/" && mkdir "$packages/nvidia/nccl/lib" &&
    mv "$packages/nvidia/nccl/libnccl.so.2" "$packages/nvidia/nccl/lib/"
only_packages=(env -u CUDA_HOME PYTHONPATH="$packages" CUDA_PLACE=/nonexistent)
mkdir "$work/bin"
for tool in sh env dirname uname sed grep ls sort tr readlink; do ln -s "$(command -v $tool)" "$work/bin/$tool"; done
ln -s "$(python3 -c 'import sys; print(sys.executable)')" "$work/bin/python3"
equal "$(PATH=$work/bin "${only_packages[@]}" dev/find_cuda.sh nvcc)" "$packages/nvidia/cu13/bin/nvcc" "nvcc among Python's packages"
PATH=$work/bin "${only_packages[@]}" dev/find_cuda.sh link >"$out"
holds grep -q "nvidia/cu13/lib -l:libcublasLt.so.13" "$out"
holds grep -q "nvidia/nccl/lib -l:libnccl.so.2" "$out"
mv "$packages/nvidia/cu13" "$packages/nvidia/cuda_nvcc"
equal "$(PATH=$work/bin "${only_packages[@]}" dev/find_cuda.sh nvcc)" "$packages/nvidia/cuda_nvcc/bin/nvcc" "nvcc in a package of its own"
# Neither.
PATH=$work/bin CUDA_HOME='' CUDA_PLACE=/nonexistent PYTHONPATH='' dev/find_cuda.sh nvcc >"$out"
if [ ! -s "$out" ]; then
    says "DEVICE=cuda needs NVIDIA's compiler nvcc, but there is none in CUDA_HOME, /nonexistent, PATH, and the packages of python3" 2 \
        env PATH="$work/bin" "$(command -v make)" DEVICE=cuda CUDA_HOME= CUDA_PLACE=/nonexistent
fi
says 'on a GPU, dev.gpu_check.sh sanitizer runs compute-sanitizer' 2 make DEVICE=cuda SANITIZE=address
says 'CUDNN=1 needs DEVICE=cuda PRECISION=bf16' 2 make DEVICE=cpu CUDNN=1
says 'CUDNN=yes: expected 0 or 1' 2 make DEVICE=cpu CUDNN=yes
stub nvidia-smi 'exit 9'

# ---- ranges for profilers --------------------------------------------------------------------------------------------

emulated=$root/build/emulated-bf16
(cd "$work" && "$build/data/write_stories" --train-bytes 30k --validation-stories 20 --out stories &&
    "$build/data/tokenize" train --input stories/train.txt --vocab 270 --out tokenizer.json &&
    "$build/data/tokenize" encode --tokenizer tokenizer.json --input stories/train.txt --out data) >"$out" 2>&1 || fail "no data to train on"
small=(--train "$work/data_*.bin" --tokenizer "$work/tokenizer.json" --num-layers 2 --num-heads 2 --channels 32 --batch 2
    --sequence-length 24 --sample-tokens 1 --save-every 0)
nvtx=$(dev/find_cuda.sh nvtx)
make -s $jobs DEVICE=emulated NO_LINKS=1 programs >"$out" 2>&1 || { fail "the emulated build" && cat "$out"; }
if [ -z "$nvtx" ]; then
    skip "ranges for profilers" "there is no nvtx3/nvToolsExt.h, which comes with CUDA"
else
    gcc -shared -fPIC -Wall -Wextra -Werror -idirafter "$nvtx" test/harness/nvtx_recorder.c -o "$work/recorder.so" || fail "test/harness/nvtx_recorder.c"
    says "step 2/2" 0 env NVTX_INJECTION64_PATH="$work/recorder.so" NVTX_RECORDING="$work/ranges.txt" \
        "$emulated/train_gpt" --run "$work/ranges" "${small[@]}" --steps 2 --accumulate 3
    # Each range with its enclosing ranges, and how often it was opened; ranges of validation and samples are not
    # inside steps.
    awk '$1 == "push" { name = substr($0, 6); path[++depth] = (depth > 1 ? path[depth - 1] "/" : "") name; count[path[depth]]++ }
         $1 == "pop" { if (--depth < 0) exit 1 }
         END { if (depth != 0) exit 1; for (p in count) print count[p], p }' "$work/ranges.txt" >"$work/paths.txt"
    holds [ $? -eq 0 ] # every opened range was closed
    opened() { if grep -qxF "$1" "$work/paths.txt"; then pass; else fail "not opened so: $1; but: $(grep -F "${1#* }" "$work/paths.txt")"; fi; }
    # 2 steps of 3 micro-steps each, 2 layers.
    opened "2 step"
    opened "6 step/data"
    opened "6 step/forward"
    opened "6 step/forward/embedding"
    opened "12 step/forward/block forward"
    for leaf in "matmul qkv + bias" attention "matmul projection + bias" "matmul mlp up + bias + gelu" "matmul mlp down + bias"; do
        opened "12 step/forward/block forward/$leaf"
        opened "12 step/backward/block backward/$leaf"
    done
    opened "24 step/forward/block forward/residual + dropout + layernorm"
    opened "24 step/backward/block backward/residual + dropout + layernorm"
    opened "6 step/backward"
    opened "6 step/backward/softmax + cross-entropy"
    opened "12 step/backward/block backward"
    opened "6 step/backward/embedding"
    opened "2 step/optimizer"
    opened "4 step/optimizer/gradient norm + adamw" # before and after processes add up their parts
fi

# ---- make profile ----------------------------------------------------------------------------------------------------

says 'make DEVICE=cuda profile' 2 make DEVICE=cpu profile
if [ -z "$(dev/find_cuda.sh nsys)" ]; then says 'nsys is not on PATH.*install nsight-systems' 2 make DEVICE=emulated profile; fi
# The stub writes its arguments, runs the program, and creates the report's file; every other call is `stats`.
stub nsys 'echo "$@" >>"$NSYS_CALLS"; [ "$1" = profile ] || exit 0
for word; do shift; case $word in --output=*) : >"${word#--output=}.nsys-rep" ;; *train_gpt) exec "$word" "$@" ;; esac; done'
export NSYS_CALLS=$work/nsys.txt
says 'step 25/25' 0 env PATH="$stubs:$PATH" make DEVICE=emulated PROFILE="$work/profile" STORIES="$work/corpus" STORIES_VOCABULARY=300 \
    STORIES_BYTES=60k PROFILE_OPTIONS='--num-layers 1 --num-heads 2 --channels 32 --batch 1 --sequence-length 16' profile
holds grep -q '^profile --trace=cuda,nvtx,cublas --capture-range=cudaProfilerApi --capture-range-end=stop .*train_gpt .*--steps 25 .*--channels 32' "$NSYS_CALLS"
holds grep -q '^stats --report nvtx_sum --report cuda_gpu_kern_sum .*/profile/steps.nsys-rep$' "$NSYS_CALLS"

# ---- dev/gpu_check.sh ------------------------------------------------------------------------------------------------

check() { OUT=$work/check env PATH="$stubs:$PATH" dev/gpu_check.sh "$@" >"$out" 2>&1 </dev/null; }
mkdir "$work/check"
holds [ "$(dev/gpu_check.sh --list | wc -w)" -eq 15 ]
says "error: there is no part 'kernel'; the parts are: versions build" 1 dev/gpu_check.sh kernel
# GPU, compiler and programs are stubs that print their arguments: tests what is reported, remembered and repeated. A
# part that fails does not stop the next.
stub nvidia-smi 'echo "GPU 0: stub"'
stub compute-sanitizer 'echo "asked: $*"; case $* in *racecheck*matmul*) exit 9 ;; esac'
stub make 'echo "made: $*"'
stub sleep 'exec /bin/sleep 10'
if check versions sanitizer build; then fail "a race goes unnoticed"; else pass; fi
report=$work/check/report.txt
holds grep -q '^======== .* cuda, GPU 0: stub, commit .*: versions memcheck racecheck synccheck initcheck build$' "$report"
equal "$(grep -c '^asked: --tool .* --error-exitcode 9 build/cuda-bf16/' "$report")" 16 "four tools on four programs"
equal "$(grep -c '^FAILED with status 9' "$report")" 1 "one of them failed"
holds grep -q '^made: .*DEVICE=cuda .*PRECISION=fp32 programs tests' "$report"
holds grep -qE '^versions +passed|^versions +FAILED' "$report" # depends on whether torch is installed
holds grep -qE '^racecheck +FAILED' "$report"
holds grep -qE '^memcheck +passed' "$report"
holds grep -qE '^build +passed' "$report"
holds grep -qx 'cuda build' "$work/check/report_passed"
check && fail "the programs are not there" # all parts that have not passed, in order; the programs are missing
holds grep -qE '^======== .*: .*tests conformance processes racecheck kernels training_124M training_350M attention saving curve$' "$report"
equal "$(grep -c -- '^---- build$' "$report")" 1 "what has passed is not done again"
equal "$(grep -c -- '^---- tests$' "$report")" 1 "the tests' turn came"
if grep -q '^cuda tests$' "$work/check/report_passed"; then pass; else fail "the tests passed (by a stub), and it is forgotten"; fi
check build && pass || fail "build, named"
equal "$(grep -c -- '^---- build$' "$report")" 2 "a part that is named is done again"
stub make 'exec /bin/sleep 20'
PART_SECONDS=1 check build && fail "it should be cut off" || pass
holds grep -qE '^build +cut off after 1 s' "$report"
rm "$stubs/make" "$stubs/nvidia-smi" "$stubs/sleep" "$stubs/compute-sanitizer"
# With real programs, on the emulated build.
if DATA=$work/corpus check --emulated conformance training_tiny curve; then pass; else fail "dev/gpu_check.sh --emulated" && cat "$out"; fi
holds grep -qE '^tiny, ours: median of 3 steps [0-9.]+ ms, [0-9]+ tokens/s$' "$report"
holds grep -qE '^1 [0-9.]+$' "$report"
holds grep -qE '^4 validation [0-9.]+$' "$report"
holds grep -qE '^curve +passed' "$report"

# ---- the build -------------------------------------------------------------------------------------------------------

nvcc=$(dev/find_cuda.sh nvcc)
if [ -z "$nvcc" ]; then
    skip "the build with DEVICE=cuda" "there is no nvcc in $(dev/find_cuda.sh places)"
    finish
    exit
fi
if ! no_gpu; then
    for precision in bf16 fp32; do says '^[0-9]+ passed, 0 failed' 0 make $jobs DEVICE=cuda PRECISION=$precision NO_LINKS=1 test; done
    finish
    exit
fi
cuda=$root/build/cuda-test
make -s $jobs DEVICE=cuda ARCH='sm_80 sm_90a' BUILD=build/cuda-test NO_LINKS=1 programs tests bench_program >"$out" 2>&1
holds [ $? -eq 0 ]
if [ -s "$out" ]; then fail "the build is not silent" && head -n 20 "$out"; else pass; fi
readelf -d "$cuda/train_gpt" >"$out"
holds grep -q 'NEEDED.*libcublasLt\.so' "$out"
case $(dev/find_cuda.sh compile) in *HAVE_NCCL*) holds grep -q 'NEEDED.*libnccl\.so' "$out" ;; esac
if grep -q 'libcuda\.so' "$out"; then fail "libcuda.so is linked: the program cannot start without a driver"; else pass; fi
needs="needs an NVIDIA GPU, but no"
says "^error: this build $needs" 1 "$cuda/train_gpt" --train "$work/data_*.bin" --tokenizer "$work/tokenizer.json"
equal "$(wc -l <"$out")" 1 "one sentence"
says 'Trains a GPT-2' 0 "$cuda/train_gpt" --help
says '^total' 0 "$cuda/train_gpt" --plan --model gpt2-124M --vocab-size 50257 --sequence-length 1024
for program in layers/test_kernels attention/test_attention attention/test_ptx test_train_gpt; do says "$needs" 1 "$cuda/test/$program"; done
says "$needs" 0 "$cuda/test/layers/test_matmul_device" # it tests what is possible
says "$needs" 1 "$cuda/dev/bench_kernels"

# cuDNN's attention: compiled and linked if its frontend is installed; otherwise a message.
if [ -n "$(dev/find_cuda.sh cudnn-compile)" ]; then
    make -s $jobs DEVICE=cuda CUDNN=1 ARCH=sm_90a BUILD=build/cuda-cudnn NO_LINKS=1 programs >"$out" 2>&1
    holds [ $? -eq 0 ]
    holds grep -q 'NEEDED.*libcudnn\.so' <(readelf -d build/cuda-cudnn/train_gpt)
else
    says 'CUDNN=1 needs cuDNN 9 and the headers of its C\+\+ frontend .pip install' 2 make -n DEVICE=cuda CUDNN=1
fi

# Registers, shared memory and spills of every kernel.
for precision in bf16 fp32; do
    make -s PRECISION=$precision DEVICE=cuda kernel_resources >"$out" 2>"$work/errors.txt"
    sums=$(sed -n '$s/^\([0-9]*\) passed, \([0-9]*\) failed$/\1 \2/p' "$out")
    if [ -z "$sums" ]; then
        fail "make kernel_resources did not come to its end: $(tail -n 3 "$work/errors.txt")"
        continue
    fi
    grep FAILED "$out"
    passed=$((passed + ${sums% *})) failed=$((failed + ${sums#* }))
done
finish
