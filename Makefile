# GPT training in C and CUDA. `make help` explains every target.
.DEFAULT_GOAL := all

# ---- options: make NAME=value -----------------------------------------------------------------------------
# cpu; cuda: an NVIDIA GPU; emulated: the CUDA kernels executed on the CPU, for tests. Without it: cuda where a GPU
# answers and nvcc is found, else cpu.
DEVICE   ?=
# of weights and activations where DEVICE is cuda or emulated: bf16 or fp32
PRECISION ?= bf16
# DEVICE=cuda: the toolkit, when it is not where dev/find_cuda.sh looks; GPUs to compile for (sm_80 sm_90a ...), without
# it those of this machine or else all; NCCL=0 leaves NCCL out; CUDNN=1 adds --attention cudnn (bf16 only)
CUDA_HOME  ?=
CUDA_PLACE ?= /usr/local/cuda
ARCH       ?=
NCCL       ?= 1
CUDNN      ?= 0
# DEVICE=cpu and emulated: processes talk over MPI where pkg-config finds it; MPI=0 leaves it out
MPI        ?= 1
# address, undefined, thread, or a comma-separated list
SANITIZE ?=
# the processor to compile for; MARCH=-march=x86-64-v3 for binaries that run elsewhere
MARCH    ?= -march=native
ifeq ($(origin CC),default)
CC       := gcc
endif
# seconds of fuzzing in `make test`, all readers together
FUZZ_SECONDS ?= 60

comma := ,
FIND_CUDA := CUDA_HOME='$(CUDA_HOME)' CUDA_PLACE='$(CUDA_PLACE)' NCCL='$(NCCL)' dev/find_cuda.sh
ifeq ($(DEVICE)$(SANITIZE),)
override DEVICE := $(and $(shell $(FIND_CUDA) gpu),$(shell $(FIND_CUDA) nvcc),cuda)
endif
ifeq ($(DEVICE),)
override DEVICE := cpu
endif
ifeq ($(filter cpu cuda emulated,$(DEVICE)),)
$(error DEVICE=$(DEVICE): cpu, cuda or emulated was expected)
endif
ifeq ($(filter bf16 fp32,$(PRECISION)),)
$(error PRECISION=$(PRECISION): bf16 or fp32 was expected)
endif
ifeq ($(filter 0 1,$(CUDNN)),)
$(error CUDNN=$(CUDNN): 0 or 1 was expected)
endif
# Other builds that this one starts are left without it.
HAS_CUDNN := $(and $(filter cuda-bf16,$(DEVICE)-$(PRECISION)),$(filter 1,$(CUDNN)))
ifeq ($(CUDNN)$(HAS_CUDNN)-$(MAKELEVEL),1-0)
$(error CUDNN=1 is for DEVICE=cuda PRECISION=bf16)
endif
ifneq ($(filter-out address undefined thread,$(subst $(comma), ,$(SANITIZE))),)
$(error SANITIZE=$(SANITIZE): address, undefined, thread or a comma-separated list was expected)
endif
ifeq ($(DEVICE)-$(if $(SANITIZE),sanitize),cuda-sanitize)
$(error SANITIZE is for cpu and emulated; on a GPU compute-sanitizer watches kernels: dev/gpu_check.sh sanitizer)
endif

# ---- flags --------------------------------------------------------------------------------------------------
# ThreadSanitizer knows OpenMP's barriers only with clang's runtime and its Archer tool. Emulated kernels are watched
# without OpenMP: there every CUDA thread is a thread to the sanitizer.
OPENMP := -fopenmp
ifneq ($(findstring thread,$(SANITIZE)),)
ifeq ($(DEVICE),cpu)
CC := clang
export OMP_TOOL_LIBRARIES := $(firstword $(wildcard /usr/lib/llvm-*/lib/libarcher.so))
endif
# A program that ends with an error ends beside its loader's thread: that is no leak.
export TSAN_OPTIONS := ignore_noninstrumented_modules=1 report_thread_leaks=0 allocator_may_return_null=1
endif
variant := $(if $(SANITIZE),-$(subst $(comma),-,$(SANITIZE)))$(if $(filter-out gcc,$(CC)),-$(notdir $(CC)))
BUILD := build/$(DEVICE)$(if $(filter cpu,$(DEVICE)),,-$(PRECISION))$(if $(filter emulated-standin,$(DEVICE)-$(NCCL)),-nccl)$(variant)
PACKAGES := libpcre2-8 libcjson
# Corpora may be compressed where these libraries are (data/spool.c): HAVE_ZLIB, HAVE_ZSTD.
OPTIONAL := $(foreach p,zlib libzstd,$(if $(shell pkg-config --exists $(p) 2>/dev/null && echo yes),$(p)))
OPTIONAL_FLAGS := $(addprefix -DHAVE_,$(patsubst zlib,ZLIB,$(patsubst libzstd,ZSTD,$(OPTIONAL))))
# Processes talk over NCCL in a CUDA build, else over MPI: Open MPI or MPICH, of those that are there the first. For its
# tests the emulated build can have NCCL's code with a stand-in for the library.
USES_MPI      := $(filter-out cuda 0,$(if $(filter cuda,$(DEVICE)),cuda,$(MPI)))
USES_STANDIN  := $(filter emulated-standin,$(DEVICE)-$(NCCL))
MPI_PACKAGE    = $(shell for p in ompi ompi-c mpich; do pkg-config --exists $$p 2>/dev/null && echo $$p && break; done)
MPI_FLAGS      = $(and $(USES_MPI),$(MPI_PACKAGE),$(if $(USES_STANDIN),-DHAVE_NCCL,-DHAVE_MPI) $(shell pkg-config --cflags $(MPI_PACKAGE)))
MPI_LIBS       = $(and $(USES_MPI),$(MPI_PACKAGE),-Wl$(comma)--as-needed $(shell pkg-config --libs $(MPI_PACKAGE)))
# Asked for when they are needed, not before: `make deps test` may have just installed them.
# No -ffast-math: NaN checks must work, and the order of sums is part of the result.
CFLAGS   = -std=gnu11 $(if $(SANITIZE),-O1 -fno-omit-frame-pointer,-O3) -g $(MARCH) $(OPENMP) -fno-math-errno \
           -fno-trapping-math -Wall -Wextra -Werror -I. $(OPTIONAL_FLAGS) $(shell pkg-config --cflags $(PACKAGES) $(OPTIONAL) 2>/dev/null)
LDFLAGS := $(OPENMP)
LDLIBS   = $(shell pkg-config --libs $(PACKAGES) $(OPTIONAL) 2>/dev/null) $(MPI_LIBS) -lm -lpthread
ifneq ($(SANITIZE),)
ifeq ($(DEVICE),emulated)
OPENMP  := -Wno-unknown-pragmas
LDFLAGS := -lgomp
endif
CFLAGS  += -fsanitize=$(SANITIZE) -fno-sanitize-recover=all
# A request for too much memory is answered with NULL, as it is without the sanitizer.
export ASAN_OPTIONS := allocator_may_return_null=1
# gcc's data-flow warnings are known to give false alarms on instrumented code.
ifeq ($(CC),gcc)
CFLAGS  += -Wno-stringop-overflow -Wno-stringop-overread -Wno-alloc-size-larger-than -Wno-maybe-uninitialized
endif
LDFLAGS += -fsanitize=$(SANITIZE)
endif

# How a .cu file is compiled: as C for the CPU, by nvcc, or as C++ with the emulator in place of CUDA's headers.
ifeq ($(DEVICE),cpu)
COMPILE_CU = $(CC) $(CFLAGS) -MMD -MP -x c
LINK       = $(CC)
else
DEVICE_FLAGS := -DDEVICE_CUDA $(if $(filter fp32,$(PRECISION)),-DPRECISION_IS_FP32)
endif
ifeq ($(DEVICE),emulated)
CXX_OF_CC  := $(if $(findstring clang,$(CC)),clang++,g++)
# Kernels look at the same memory as float and as float4.
CXXFLAGS    = -std=c++17 $(filter-out -std=%,$(CFLAGS)) -fno-strict-aliasing -Wno-psabi -Wno-unknown-pragmas \
              -Wno-missing-field-initializers $(DEVICE_FLAGS) \
              -Idev/cuda_on_cpu/include -include dev/cuda_on_cpu/cuda_on_cpu.h \
              $(if $(NVTX),-DHAVE_NVTX -idirafter $(NVTX))
# Ranges for profilers, where there is a toolkit; of its other headers those of the emulator come first.
NVTX       := $(shell $(FIND_CUDA) nvtx)
COMPILE_CU  = $(CXX_OF_CC) $(CXXFLAGS) -MMD -MP -x c++
LINK        = $(CXX_OF_CC)
endif
ifeq ($(DEVICE),cuda)
NVCC := $(shell $(FIND_CUDA) nvcc)
ifeq ($(NVCC)$(filter help clean% deps,$(MAKECMDGOALS)),)
$(error DEVICE=cuda needs NVIDIA's compiler nvcc, and there is none in $(shell $(FIND_CUDA) places); make DEVICE=cpu builds for the processor)
endif
ifeq ($(ARCH),)
override ARCH := $(strip $(shell $(FIND_CUDA) architectures))
endif
# Code for every architecture, and PTX of the lowest (sm_90a's would run on no other) for GPUs that come later.
lowest     := $(firstword $(ARCH))
TOOLKIT    := $(shell $(FIND_CUDA) compile)
NVCC_FLAGS  = -std=c++17 -O3 -lineinfo -Werror all-warnings -I. $(DEVICE_FLAGS) -DHAVE_CUBLAS $(TOOLKIT) \
              -Xcompiler -fopenmp,-fno-math-errno,-Wall,-Wno-unknown-pragmas
COMPILE_CU  = $(NVCC) $(NVCC_FLAGS) --threads 0 \
              $(foreach a,$(ARCH),-gencode arch=$(a:sm_%=compute_%),code=$(a)) \
              $(if $(filter-out %a,$(lowest)),-gencode arch=$(lowest:sm_%=compute_%)$(comma)code=$(lowest:sm_%=compute_%)) \
              -MMD -MP -x cu
LINK        = g++
LDLIBS     += $(shell $(FIND_CUDA) link)
ifneq ($(HAS_CUDNN),)
CUDNN_FLAGS := $(shell $(FIND_CUDA) cudnn-compile)
CUDNN_LINK  := $(shell $(FIND_CUDA) cudnn-link)
ifeq ($(and $(CUDNN_FLAGS),$(CUDNN_LINK))$(filter help clean% deps,$(MAKECMDGOALS)),)
$(error CUDNN=1 needs cuDNN 9 and the headers of its C++ frontend (pip install nvidia-cudnn-cu13 nvidia-cudnn-frontend), and they are not in $(shell $(FIND_CUDA) places))
endif
NVCC_FLAGS += -DHAVE_CUDNN
LDLIBS     += $(CUDNN_LINK)
# Not CFLAGS: the frontend's headers take a minute as it is.
$(BUILD)/attention/cudnn.o: attention/cudnn.cpp Makefile | $(AFTER_DEPS)
	@mkdir -p $(@D)
	g++ -std=c++17 -O1 -fPIC -Wall -Wextra -Werror -I. $(DEVICE_FLAGS) $(CUDNN_FLAGS) -MMD -MP -c $< -o $@
endif
# Hopper's instructions exist for sm_90a alone.
ifeq ($(ARCH),sm_90a)
$(BUILD)/test/attention/test_ptx.o: DEVICE_FLAGS += -DHOPPER
endif
# Changes when the compiler or the architectures do: then kernels are compiled again.
COMPILED_BY := $(BUILD)/compiled_by
$(shell mkdir -p $(BUILD); echo '$(COMPILE_CU)' | cmp -s - $(COMPILED_BY) || echo '$(COMPILE_CU)' >$(COMPILED_BY))
endif

# ---- programs, tests, and what they are made of ---------------------------------------------------------------
COMMON    := data/files.o data/options.o data/progress.o data/json_keys.o data/overwrite.o
TOKENIZER := data/tokenizer.o data/tokenizer_json.o data/tokenizer_split.o data/tokenizer_train.o
CORPUS    := data/stories.o data/byte_ngram.o
KERNELS   := layers/host_memory.o layers/matmul_cpu.o attention/flash_cpu.o $(if $(filter-out cpu,$(DEVICE)),attention/flash.o) \
             $(if $(filter cuda,$(DEVICE)),layers/matmul_cublas.o) $(if $(HAS_CUDNN),attention/cudnn.o)
CHECKPOINT := data/json.o data/manifest.o data/weight_files.o data/gpt_config.o data/safetensors.o data/checkpoint.o
COMM      := comm/comm.o comm/launch.o comm/control.o comm/watchdog.o comm/partition.o comm/plan.o \
             $(if $(filter cuda,$(DEVICE))$(USES_STANDIN),comm/nccl.o,comm/mpi.o) \
             $(if $(USES_STANDIN),test/comm/nccl_standin/nccl.o)
TRAINER   := $(COMM) $(COMMON) $(TOKENIZER) $(KERNELS) data/shards.o data/loader.o $(CHECKPOINT) \
             data/metrics.o data/run.o data/saver.o

PROGRAMS := train_gpt data/tokenize data/write_stories
BENCH    := dev/bench$(if $(filter-out cpu,$(DEVICE)),_kernels)
PARTS_train_gpt          := $(TRAINER)
PARTS_data/tokenize      := $(COMMON) $(TOKENIZER) data/shards.o
PARTS_data/write_stories := $(COMMON) $(CORPUS)
PARTS_dev/bench          := $(TRAINER)
PARTS_dev/bench_kernels  := $(KERNELS) data/files.o

TESTS_LAYERS    := test/layers/test_layers test/layers/test_matmul test/layers/test_host_memory
TESTS_ATTENTION := test/attention/test_attention
TESTS_DATA      := test/data/test_shards test/data/test_loader test/data/test_tokenizer test/data/test_stories \
                   test/data/test_checkpoint test/data/test_options
TESTS_COMM      := test/comm/test_partition test/comm/test_launch test/comm/test_control test/comm/test_watchdog \
                   test/comm/test_plan
TESTS_TRAINER   := test/test_train_gpt
# Of the kernels, where there are some; everything else is tested in the CPU's build.
ifneq ($(DEVICE),cpu)
TESTS_LAYERS    := test/layers/test_kernels test/layers/test_matmul_device
TESTS_ATTENTION := test/attention/test_attention test/attention/test_ptx
TESTS_DATA      :=
TESTS_COMM      :=
endif
ifeq ($(DEVICE),emulated)
TESTS_TRAINER   += test/test_cuda_on_cpu
endif
ifneq ($(filter cuda,$(DEVICE))$(USES_STANDIN),)
TESTS_COMM      := $(if $(filter 0,$(NCCL)),,test/comm/test_nccl)
endif
# Those that take longest come first: they run beside each other.
TESTS           := $(TESTS_COMM) $(TESTS_TRAINER) $(TESTS_ATTENTION) $(TESTS_LAYERS) $(TESTS_DATA)
PARTS_test/layers/test_layers       := data/files.o
PARTS_test/layers/test_host_memory  := layers/host_memory.o data/files.o
PARTS_test/layers/test_matmul       := $(KERNELS)
PARTS_test/layers/test_kernels      :=
PARTS_test/layers/test_matmul_device := $(KERNELS) data/files.o
PARTS_test/attention/test_ptx       :=
PARTS_test/test_cuda_on_cpu         :=
PARTS_test/attention/test_attention := $(KERNELS) data/files.o data/progress.o
PARTS_test/data/test_shards         := $(COMMON) data/shards.o
PARTS_test/data/test_loader         := $(COMMON) data/shards.o data/loader.o
PARTS_test/data/test_tokenizer      := $(COMMON) $(TOKENIZER)
PARTS_test/data/test_stories        := $(COMMON) $(CORPUS)
PARTS_test/data/test_checkpoint     := $(COMMON) $(CHECKPOINT) data/metrics.o data/run.o data/saver.o
PARTS_test/data/test_options        := $(COMMON)
PARTS_test/comm/test_partition      := comm/partition.o data/files.o
PARTS_test/comm/test_plan           := comm/plan.o
PARTS_test/comm/test_launch         := comm/launch.o comm/control.o data/files.o data/progress.o
PARTS_test/comm/test_control        := comm/control.o data/files.o data/progress.o
PARTS_test/comm/test_watchdog       := comm/watchdog.o comm/control.o data/files.o data/progress.o
PARTS_test/comm/test_nccl           := comm/nccl.o $(if $(USES_STANDIN),test/comm/nccl_standin/nccl.o) comm/control.o \
                                       comm/launch.o data/files.o data/progress.o
PARTS_test/test_train_gpt           := $(TRAINER)
# Of real processes, under mpirun: MPI's operations alone; the trainer over operations that are as late as they may be.
ifeq ($(USES_MPI)-$(USES_STANDIN),$(MPI)-)
MPI_PROGRAMS := test/comm/test_mpi test/comm/train_gpt_late
PARTS_test/comm/test_mpi       := $(COMM) data/files.o data/progress.o
PARTS_test/comm/train_gpt_late := train_gpt.o test/comm/late.o $(filter-out comm/mpi.o,$(TRAINER))
endif
# Sanitizers and a preloaded library do not go together.
TORTURE_NEEDS := $(if $(SANITIZE),,$(if $(filter cpu,$(DEVICE)),$(BUILD)/test/io_faults.so))
# Scripts; they find the programs in the folder BUILD.
TESTS_SHELL     := $(if $(USES_MPI),test/test_processes.sh) test/test_command_line.sh test/test_limits.sh test/test_saving.sh test/data/test_tokenize.sh \
                   test/data/test_download.sh $(if $(USES_MPI),$(if $(variant),,test/test_two_hosts.sh)) \
                   $(if $(TORTURE_NEEDS),test/torture.py)

FUZZERS := test/data/fuzz_shards test/data/fuzz_tokenizer test/data/fuzz_checkpoint test/data/fuzz_options
PARTS_test/data/fuzz_shards     := $(COMMON) data/shards.o data/loader.o
PARTS_test/data/fuzz_tokenizer  := $(COMMON) $(TOKENIZER)
PARTS_test/data/fuzz_checkpoint := $(COMMON) $(CHECKPOINT)
PARTS_test/data/fuzz_options    := $(COMMON)

# ---- building -----------------------------------------------------------------------------------------------------
.PHONY: all programs tests fuzzers
all: programs
	@echo 'built ./train_gpt; now: make train (two minutes, a trained GPT), make test, make help'

programs: $(addprefix $(BUILD)/,$(PROGRAMS))
	@$(if $(variant)$(filter-out cpu cuda,$(DEVICE))$(NO_LINKS),,for p in $(PROGRAMS); do ln -sf $(CURDIR)/$(BUILD)/$$p $$p; done)
tests: $(addprefix $(BUILD)/,$(TESTS) $(MPI_PROGRAMS)) $(TORTURE_NEEDS)
fuzzers: CFLAGS += -fsanitize=fuzzer-no-link
fuzzers: LDFLAGS += -fsanitize=fuzzer
fuzzers: $(addprefix $(BUILD)/,$(FUZZERS))
	@:

.SECONDEXPANSION:
$(addprefix $(BUILD)/,$(PROGRAMS) $(BENCH) $(TESTS) $(filter %_mpi,$(MPI_PROGRAMS)) $(FUZZERS)): $(BUILD)/%: $(BUILD)/%.o $$(addprefix $(BUILD)/,$$(PARTS_$$*))
	$(LINK) $(LDFLAGS) $^ $(LDLIBS) -o $@

$(addprefix $(BUILD)/,$(filter %_late,$(MPI_PROGRAMS))): $$(addprefix $(BUILD)/,$(PARTS_test/comm/train_gpt_late))
	$(LINK) $(LDFLAGS) $^ $(LDLIBS) -o $@
# Our attention for PyTorch's process (dev/bench_attention.py).
LIBRARY := $(addprefix $(BUILD)/,dev/attention_library.o $(filter attention/%,$(KERNELS)))
$(LIBRARY): CFLAGS += -fPIC
$(LIBRARY): NVCC_FLAGS += -Xcompiler -fPIC
$(BUILD)/dev/libattention.so: $(LIBRARY)
	$(LINK) -shared $(LDFLAGS) $^ -Wl,--as-needed $(LDLIBS) -o $@

$(BUILD)/test/io_faults.so: CFLAGS += -fPIC
$(BUILD)/test/io_faults.so: $(BUILD)/test/io_faults.o
	$(CC) -shared $< -o $@

# With `deps` among the goals, nothing is compiled before it is done, also under -j.
AFTER_DEPS := $(filter deps,$(MAKECMDGOALS))
# -MMD writes the header dependencies.
$(BUILD)/%.o: %.c Makefile | $(AFTER_DEPS)
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -MMD -MP -c $< -o $@
$(BUILD)/%.o: %.cu Makefile $(COMPILED_BY) | $(AFTER_DEPS)
	@mkdir -p $(@D)
	$(COMPILE_CU) -c $< -o $@
# What depends on MPI is compiled again when it comes or goes.
$(shell mkdir -p $(BUILD); echo '$(MPI_FLAGS)' | cmp -s - $(BUILD)/mpi_flags || echo '$(MPI_FLAGS)' >$(BUILD)/mpi_flags)
$(addprefix $(BUILD)/,$(filter %comm.o %mpi.o %nccl.o,$(COMM)) $(addprefix test/comm/,test_nccl.o test_mpi.o late.o)): CFLAGS += $(MPI_FLAGS) $(if $(USES_STANDIN),-Itest/comm/nccl_standin)
$(addprefix $(BUILD)/,$(filter %comm.o %mpi.o %nccl.o,$(COMM)) $(addprefix test/comm/,test_nccl.o test_mpi.o late.o)): $(BUILD)/mpi_flags
# These include the trainer whole and do not use all of it.
$(BUILD)/test/test_train_gpt.o $(BUILD)/dev/bench.o: CFLAGS += -Wno-unused-function
-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)

clean:
	rm -rf build $(PROGRAMS)

# ---- testing ------------------------------------------------------------------------------------------------------
.PHONY: clean test test_layers test_attention test_data fuzz fuzz_programs bench bench_program attention_library
# Each program's line, then one line that adds them up. Without SANITIZE= the CPU's suite runs twice, the second time
# with AddressSanitizer and UndefinedBehaviorSanitizer, then the CUDA kernels, emulated, and nvcc's build where nvcc is.
ifeq ($(DEVICE),cpu)
test: programs tests $(if $(variant),,fuzz_programs)
	BUILD=$(BUILD) $(FUZZ) ALONE="$(if $(variant),,test/fuzz.sh test/sanitized.sh test/emulated.sh test/test_cuda_build.sh)" \
	    test/run.sh $(TESTS_SHELL) $(addprefix $(BUILD)/,$(TESTS))
else
# The kernels; without SANITIZE= also the whole trainer beside the CPU's.
test: tests $(if $(variant),,programs cpu_programs)
	BUILD=build/cpu DEVICE_BUILD=$(BUILD) PRECISION=$(PRECISION) $(NCCL_BUILD) \
	    ALONE="$(if $(filter cuda,$(DEVICE)),$(TESTS_OF_DEVICE)) $(TESTS_MUTATIONS)" \
	    test/run.sh $(if $(filter cuda,$(DEVICE)),,$(TESTS_OF_DEVICE))
TESTS_OF_DEVICE = $(if $(variant),,$(TESTS_PROCESSES)) $(addprefix $(BUILD)/,$(TESTS)) $(if $(variant),,test/test_devices.sh)
# In bf16 kernels meet processes; in fp32 also NCCL's code does, over a stand-in for its library.
ifeq ($(DEVICE)-$(USES_MPI)$(variant)$(USES_STANDIN),emulated-$(MPI))
TESTS_PROCESSES := test/test_processes.sh
ifeq ($(PRECISION),fp32)
test: standin
NCCL_BUILD := NCCL_BUILD=$(BUILD)-nccl
.PHONY: standin
standin: programs cpu_programs
	@$(MAKE) --no-print-directory NCCL=standin NO_LINKS=1 build/emulated-fp32-nccl/train_gpt build/emulated-fp32-nccl/test/comm/test_nccl
endif
endif
.PHONY: cpu_programs test_seeds
cpu_programs:
	@$(MAKE) --no-print-directory DEVICE=cpu NO_LINKS=1 programs
# Emulated attention with mistakes in it, which its test must find.
ifeq ($(DEVICE)-$(PRECISION)$(variant),emulated-bf16)
TESTS_MUTATIONS := test/attention/test_mutations.py
test test_mutations: export MUTATION_COMPILE = $(COMPILE_CU)
test test_mutations: export MUTATION_LINK = $(LINK) $(LDFLAGS) $(filter-out %/attention/flash.o,$(addprefix $(BUILD)/,\
    test/attention/test_attention.o $(PARTS_test/attention/test_attention))) $(LDLIBS)
.PHONY: test_mutations
test_mutations: $(BUILD)/test/attention/test_attention
	$(TESTS_MUTATIONS) $(MUTATIONS)
endif
# Emulated kernels with their threads in other orders.
test_seeds: tests
	@for seed in 1 2 3 4 5; do CUDA_EMULATION_SEED=$$seed test/run.sh \
	    $(addprefix $(BUILD)/,$(TESTS_LAYERS) $(TESTS_ATTENTION)) || exit 1; done
endif
# Of nvcc's build, which needs no GPU: every architecture that is supported, both precisions; and what the compiler says
# about each kernel of the trainer.
.PHONY: cuda_all_architectures kernel_resources
ALL_ARCHITECTURES := sm_80 sm_86 sm_89 sm_90a sm_100 sm_120
cuda_all_architectures:
	@for precision in bf16 fp32; do $(MAKE) --no-print-directory DEVICE=cuda PRECISION=$$precision ARCH='$(ALL_ARCHITECTURES)' \
	    BUILD=build/cuda-$$precision-all NO_LINKS=1 programs tests || exit 1; done
ifeq ($(DEVICE),cuda)
kernel_resources:
	@dev/kernel_resources.py --nvcc $(NVCC) --nvcc-flags="$(NVCC_FLAGS)" train_gpt.cu attention/flash.cu
else
kernel_resources:
	@$(MAKE) --no-print-directory DEVICE=cuda PRECISION=$(PRECISION) kernel_resources
endif
test_layers: $(addprefix $(BUILD)/,$(TESTS_LAYERS))
	test/run.sh $^
test_attention: $(addprefix $(BUILD)/,$(TESTS_ATTENTION))
	$^
test_data: $(addprefix $(BUILD)/,$(TESTS_DATA))
	test/run.sh $^

# Fuzzing: readers of files, built by clang with sanitizers into a folder of their own; left out without clang.
FUZZ_BUILD := build/$(DEVICE)-fuzz
HAVE_FUZZER = $(shell echo 'int LLVMFuzzerTestOneInput(void) { return 0; }' | \
    clang -x c -fsanitize=fuzzer,address,undefined - -o /dev/null 2>/dev/null && echo yes)
FUZZ = FUZZ_SECONDS=$(FUZZ_SECONDS) FUZZERS="$(if $(HAVE_FUZZER),$(addprefix $(FUZZ_BUILD)/,$(FUZZERS)))"
fuzz_programs: | $(AFTER_DEPS)
	@if [ -z "$(HAVE_FUZZER)" ]; then echo 'fuzzing is left out: clang with libFuzzer is not installed (make deps test)'; \
	else $(MAKE) --no-print-directory CC=clang SANITIZE=address,undefined BUILD=$(FUZZ_BUILD) fuzzers; fi
fuzz: fuzz_programs
	$(FUZZ) test/fuzz.sh

# What can happen to a run, for an hour; TORTURE='--seed 1 kills': other arguments of test/torture.py.
.PHONY: torture
TORTURE ?= --soak-csv $(BUILD)/soak.csv
ifneq ($(TORTURE_NEEDS),)
torture: programs $(TORTURE_NEEDS)
	BUILD=$(BUILD) test/torture.py --long $(TORTURE)
else
torture:
	@$(MAKE) --no-print-directory DEVICE=cpu SANITIZE= torture
endif

attention_library: $(BUILD)/dev/libattention.so
bench_program: $(BUILD)/$(BENCH)
bench: bench_program
	$(BUILD)/$(BENCH) $(if $(filter cpu,$(DEVICE)),all)

# ---- profiling ------------------------------------------------------------------------------------------------------
# Steps 10 .. 19 of a short training (layers/profile.h says when), by the ranges of the trainer and by kernels.
PROFILE := runs/profile
PROFILE_OPTIONS ?= --num-layers 6 --num-heads 6 --channels 384 --batch 16 --sequence-length 256
.PHONY: profile profile_run
ifeq ($(DEVICE),cpu)
profile:
	@echo 'error: make profile shows what a GPU does: make DEVICE=cuda profile; on the CPU: ./train_gpt --profile' >&2; exit 1
else
profile: deps_if_missing
	@if [ -z "$$($(FIND_CUDA) nsys)" ]; then echo 'error: the profiler nsys is not on PATH, in CUDA_HOME or in /opt/nvidia:' \
	    'install nsight-systems from NVIDIA (https://developer.nvidia.com/nsight-systems)' >&2; exit 1; fi
	@$(MAKE) --no-print-directory profile_run
endif
profile_run: programs $$(STORIES)/validation_000000.bin
	@rm -rf $(PROFILE) && mkdir -p $(PROFILE)
	nsys=$$($(FIND_CUDA) nsys) && "$$nsys" profile --trace=cuda,nvtx,cublas --capture-range=cudaProfilerApi \
	    --capture-range-end=stop --force-overwrite=true --output=$(PROFILE)/steps \
	    $(BUILD)/train_gpt --run $(PROFILE)/run --train '$(STORIES)/train_*.bin' --tokenizer $(STORIES)/tokenizer.json \
	    --steps 25 --sample-tokens 1 $(PROFILE_OPTIONS) && \
	"$$nsys" stats --report nvtx_sum --report cuda_gpu_kern_sum $(PROFILE)/steps.nsys-rep

# ---- packages -------------------------------------------------------------------------------------------------------
# What the goals named on the command line need; clang and its runtimes are for fuzzing and for the tests built with it.
DEBIAN := gcc g++ libc6-dev make pkg-config libpcre2-dev libcjson-dev
ifneq ($(filter test% fuzz torture,$(MAKECMDGOALS)),)
DEBIAN += libopenmpi-dev openmpi-bin clang libclang-rt-dev libomp-dev curl python3
endif
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
.PHONY: deps deps_if_missing
deps:
	@missing=$$(for p in $(DEBIAN); do dpkg -s $$p >/dev/null 2>&1 || echo $$p; done); \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if ! command -v apt-get >/dev/null; then \
		echo "please install, by the names your system has for them: $(DEBIAN)" >&2; \
		pkg-config --exists $(PACKAGES); exit $$?; fi; \
	echo "installing" $$missing; \
	$(SUDO) apt-get update -qq && $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null
deps_if_missing:
	@pkg-config --exists $(PACKAGES) 2>/dev/null || $(MAKE) --no-print-directory deps

# ---- a trained GPT from nothing ----------------------------------------------------------------------------------------
# Each file is made once; `make clean_stories` forgets them.
STORIES := datasets/stories
RUN     := runs/stories
STORIES_VOCABULARY := 3400
STORIES_BYTES := 12M
STORIES_OPTIONS := --run $(RUN) --train '$(STORIES)/train_*.bin' --validation '$(STORIES)/validation_*.bin' \
    --tokenizer $(STORIES)/tokenizer.json --validate-documents --validation-batches 1000 \
    --num-layers 3 --num-heads 4 --channels 128 --batch 7 --sequence-length 144 --steps 1400 --learning-rate 4e-3 \
    --schedule linear --final-learning-rate 0 --beta2 0.98 --warmup 50 --init-embedding 0.16 --init-matrices 0.08 \
    --validate-every 350

.PHONY: train stories_run clean_stories
train: deps_if_missing
	@$(MAKE) --no-print-directory stories_run

$(STORIES)/floor.json: | programs
	$(BUILD)/data/write_stories --out $(STORIES) --train-bytes $(STORIES_BYTES) --ngram 5
$(STORIES)/tokenizer.json: $(STORIES)/floor.json | programs
	$(BUILD)/data/tokenize train --input $(STORIES)/train.txt --vocab $(STORIES_VOCABULARY) --out $@
$(STORIES)/validation_000000.bin: $(STORIES)/tokenizer.json | programs
	$(BUILD)/data/tokenize encode --tokenizer $< --input $(STORIES)/train.txt --out $(STORIES)/train
	$(BUILD)/data/tokenize encode --tokenizer $< --input $(STORIES)/validation.txt --out $(STORIES)/validation

stories_run: $(STORIES)/validation_000000.bin
	@if [ -d $(RUN)/checkpoints ]; then ./train_gpt --run $(RUN) --resume; else ./train_gpt $(STORIES_OPTIONS) \
	    --validation-floor $$(sed 's/.*"bits_per_byte": \([0-9.]*\).*/\1/' $(STORIES)/floor.json); fi
	@sed 's/.*"ngram_bits_per_byte": \([0-9.]*\).*/for comparison: an order-5 byte n-gram has \1 bits per byte/' $(STORIES)/floor.json
	@echo 'more: ./train_gpt --run $(RUN) --sample "Once upon a time"'
clean_stories:
	rm -rf $(STORIES) $(RUN)

# ---- help -----------------------------------------------------------------------------------------------------------
.PHONY: help
help:
	@echo 'Targets:'
	@echo '  make                   build ./train_gpt, data/tokenize and data/write_stories (links into $(BUILD))'
	@echo '  make train             from nothing to a trained GPT in about two minutes: packages, corpus, tokenizer,'
	@echo '                         shards, training, samples; a second time it goes on from what exists'
	@echo '  make test              build and run every test; the last line is "N passed, N failed"'
	@echo '  make test_attention    after changing an attention kernel: one line a case, with errors and times'
	@echo '  make DEVICE=emulated test_mutations   plants mistakes in flash attention, each of which its test must find'
	@echo '  make test_layers       after changing a layer'
	@echo '  make test_data         after changing data/'
	@echo '  make fuzz              fuzz the readers of files for FUZZ_SECONDS=$(FUZZ_SECONDS) in all (needs clang)'
	@echo '  make torture           kills, damages and starves runs for an hour (make test: for a minute and a half)'
	@echo '  make bench             speed against a measured peak: of matmul, attention and whole steps; on a GPU, of every kernel'
	@echo '  make attention_library our attention as a library for dev/bench_attention.py, which times it beside that of PyTorch'
	@echo '  make profile           ten steps on a GPU under nsys, then time by ranges and kernels; PROFILE_OPTIONS="--channels 768 ..."'
	@echo '  make kernel_resources  registers, shared memory, spills and occupancy of every kernel (needs nvcc, no GPU)'
	@echo '  make cuda_all_architectures  the CUDA build, both precisions, for $(ALL_ARCHITECTURES)'
	@echo '  dev/gpu_check.sh       all that only a GPU can prove, in parts, into one report'
	@echo '  make deps              install what is missing (Debian, Ubuntu)'
	@echo '  make clean             remove what was built; make clean_stories: corpus and run of `make train`'
	@echo 'Options:'
	@echo '  DEVICE=cpu             train on the processor; cuda: on an NVIDIA GPU; emulated: the CUDA kernels, executed on the CPU,'
	@echo '                         for tests. Without it: cuda where a GPU answers and nvcc is found, else cpu (here: $(DEVICE))'
	@echo '  PRECISION=bf16         of weights and activations on a GPU (the default, with fp32 master weights), or fp32'
	@echo '  ARCH="sm_80 sm_90a"    GPUs to compile for; without it those of this machine, else all'
	@echo '  CUDA_HOME=DIR          the CUDA toolkit; without it /usr/local/cuda, PATH, packages of python3 (nvidia-cuda-nvcc ...)'
	@echo '  NCCL=0                 leaves NCCL out of the CUDA build: one process'
	@echo '  MPI=0                  leaves MPI out of the CPU build and the emulated one: one process'
	@echo '  CUDNN=1                adds --attention cudnn to it, in bf16, to compare with (needs cuDNN 9 and nvidia-cudnn-frontend)'
	@echo '  SANITIZE=address,undefined or thread: every target with sanitizers, in a build folder of its own'
	@echo '  CC=clang               the compiler; MARCH=-march=x86-64-v3: the processor to compile for'
