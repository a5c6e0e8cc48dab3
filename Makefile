# GPT training in C and CUDA. `make help` explains every target.
ifneq ($(filter 3.% 4.0 4.0.% 4.1 4.1.% 4.2 4.2.%,$(MAKE_VERSION)),)
$(error this is GNU make $(MAKE_VERSION), and the build needs 4.3 or later: install it and use gmake in place of make (macOS: brew install make))
endif
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
# The compiler (CC, CXX), and flags to add: CFLAGS, CXXFLAGS, CPPFLAGS, DEFINES, LDFLAGS, LDLIBS. MARCH is the processor to
# compile for: this machine's, without it; MARCH=-march=x86-64-v3 for binaries that run elsewhere. WERROR=1: warnings are errors.
# seconds of fuzzing in `make test_long`, all readers together
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
$(error DEVICE=$(DEVICE): expected cpu, cuda or emulated)
endif
ifeq ($(filter bf16 fp32,$(PRECISION)),)
$(error PRECISION=$(PRECISION): expected bf16 or fp32)
endif
ifeq ($(filter 0 1,$(CUDNN)),)
$(error CUDNN=$(CUDNN): expected 0 or 1)
endif
# Other builds that this one starts are left without it.
HAS_CUDNN := $(and $(filter cuda-bf16,$(DEVICE)-$(PRECISION)),$(filter 1,$(CUDNN)))
ifeq ($(CUDNN)$(HAS_CUDNN)-$(MAKELEVEL),1-0)
$(error CUDNN=1 needs DEVICE=cuda PRECISION=bf16)
endif
ifneq ($(filter-out address undefined thread,$(subst $(comma), ,$(SANITIZE))),)
$(error SANITIZE=$(SANITIZE): expected address, undefined, thread or a comma-separated list of them)
endif
ifeq ($(DEVICE)-$(if $(SANITIZE),sanitize),cuda-sanitize)
$(error SANITIZE works with DEVICE=cpu and DEVICE=emulated only; on a GPU, dev/gpu_check.sh sanitizer runs compute-sanitizer)
endif

# ---- packages first -------------------------------------------------------------------------------------------
# These goals install what is missing, in a make around the one that builds: only that one sees what has come.
INSTALLING := $(filter deps train profile check test test_long,$(MAKECMDGOALS))
GOALS := $(filter-out deps,$(MAKECMDGOALS))
# One goal is built by as many compilers at a time as there are processors, unless -j says otherwise.
JOBS = $(if $(and $(filter 1,$(words $(GOALS))),$(if $(filter -j%,$(MAKEFLAGS)),,yes)),-j$(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1))
DEPS = CC='$(if $(filter default,$(origin CC)),,$(CC))' PKG_CONFIG='$(PKG_CONFIG)' PKG_CONFIG_PATH='$(PKG_CONFIG_PATH)' CPATH='$(CPATH)' \
       LIBRARY_PATH='$(LIBRARY_PATH)' dev/deps.sh
ifneq ($(and $(INSTALLING),$(if $(PACKAGES_CHECKED),,yes)),)
.PHONY: packages $(MAKECMDGOALS)
$(MAKECMDGOALS): packages
	@:
packages:
	@$(DEPS) $(MAKECMDGOALS)
	$(if $(GOALS),@PACKAGES_CHECKED=yes $(MAKE) --no-print-directory $(JOBS) $(GOALS))
else

include dev/make/compiler.mk dev/make/device.mk

# ---- programs, tests, and what they are made of ---------------------------------------------------------------
BASE      := layers/base/error.o layers/base/files.o
COMMON    := $(BASE) data/options/options.o layers/base/progress.o data/json/json_keys.o data/tokens/overwrite.o
TOKENIZER := data/json/json.o data/tokenizer/tokenizer.o data/tokenizer/tokenizer_added.o data/tokenizer/tokenizer_json.o data/tokenizer/tokenizer_write.o data/tokenizer/tokenizer_split.o data/tokenizer/tokenizer_train.o
CORPUS    := data/stories/stories.o data/stories/byte_ngram.o
KERNELS   := layers/host_memory.o layers/matmul_cpu.o attention/flash_cpu.o $(if $(filter-out cpu,$(DEVICE)),attention/flash.o) \
             $(if $(filter cuda,$(DEVICE)),layers/matmul_cublas.o) $(if $(HAS_CUDNN),attention/cudnn.o)
CHECKPOINT := data/json/json.o data/model/manifest.o data/model/weight_files.o data/model/gpt_config.o data/model/safetensors.o data/run/checkpoint.o
COMM      := layers/comm/comm.o layers/launch/launch.o layers/launch/control.o layers/launch/watchdog.o layers/comm/partition.o \
             $(if $(filter cuda,$(DEVICE))$(USES_STANDIN),layers/comm/nccl.o,layers/comm/mpi.o) \
             $(if $(USES_STANDIN),test/layers/comm/nccl_standin/nccl.o)
TRAINER   := $(COMM) $(COMMON) $(TOKENIZER) $(KERNELS) data/tokens/shards.o data/tokens/loader.o $(CHECKPOINT) \
             data/run/metrics.o data/run/run.o data/run/saver.o data/model/generation_config.o

PROGRAMS := train_gpt data/tokenize data/write_stories
BENCH    := dev/bench$(if $(filter-out cpu,$(DEVICE)),_kernels)
PARTS_train_gpt          := $(TRAINER)
PARTS_data/tokenize      := $(COMMON) $(TOKENIZER) data/tokens/tokenize_shards.o data/tokens/shards.o data/corpus/corpus.o data/corpus/spool.o
PARTS_data/write_stories := $(COMMON) $(CORPUS)
PARTS_dev/bench          := $(TRAINER)
PARTS_dev/plan           := $(TRAINER) dev/cluster.o
PARTS_dev/bench_kernels  := $(KERNELS) $(BASE)

TESTS_LAYERS    := test/layers/test_layers test/layers/test_matmul test/layers/test_host_memory
TESTS_ATTENTION := test/attention/test_attention
TESTS_DATA      := test/data/tokens/test_shards test/data/tokens/test_loader test/data/tokenizer/test_tokenizer test/data/stories/test_stories \
                   test/data/run/test_checkpoint test/data/options/test_options
TESTS_COMM      := test/layers/comm/test_partition test/layers/launch/test_launch test/layers/launch/test_control test/layers/launch/test_watchdog \
                   test/dev/test_cluster
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
TESTS_COMM      := $(if $(filter 0,$(NCCL)),,test/layers/comm/test_nccl)
endif
# Those that take longest come first: they run beside each other.
TESTS           := $(TESTS_COMM) $(TESTS_TRAINER) $(TESTS_ATTENTION) $(TESTS_LAYERS) $(TESTS_DATA)
PARTS_test/layers/test_layers       := $(BASE)
PARTS_test/layers/test_host_memory  := layers/host_memory.o $(BASE)
PARTS_test/layers/test_matmul       := $(KERNELS)
PARTS_test/layers/test_kernels      :=
PARTS_test/layers/test_matmul_device := $(KERNELS) $(BASE)
PARTS_test/attention/test_ptx       :=
PARTS_test/test_cuda_on_cpu         :=
PARTS_test/attention/test_attention := $(KERNELS) $(BASE) layers/base/progress.o
PARTS_test/data/tokens/test_shards         := $(COMMON) data/tokens/shards.o
PARTS_test/data/tokens/test_loader         := $(COMMON) data/tokens/shards.o data/tokens/loader.o
PARTS_test/data/tokenizer/test_tokenizer      := $(COMMON) $(TOKENIZER) data/model/generation_config.o
PARTS_test/data/stories/test_stories        := $(COMMON) $(CORPUS)
PARTS_test/data/run/test_checkpoint     := $(COMMON) $(CHECKPOINT) data/run/metrics.o data/run/run.o data/run/saver.o
PARTS_test/data/options/test_options        := $(COMMON)
PARTS_test/layers/comm/test_partition      := layers/comm/partition.o $(BASE)
PARTS_test/dev/test_cluster         := dev/cluster.o
PARTS_test/layers/launch/test_launch         := layers/launch/launch.o layers/launch/control.o $(BASE) layers/base/progress.o
PARTS_test/layers/launch/test_control        := layers/launch/control.o $(BASE) layers/base/progress.o
PARTS_test/layers/launch/test_watchdog       := layers/launch/watchdog.o layers/launch/control.o $(BASE) layers/base/progress.o
PARTS_test/layers/comm/test_nccl           := layers/comm/nccl.o $(if $(USES_STANDIN),test/layers/comm/nccl_standin/nccl.o) layers/launch/control.o \
                                       layers/launch/launch.o $(BASE) layers/base/progress.o
PARTS_test/test_train_gpt           := $(TRAINER)
# Of real processes, under mpirun: MPI's operations alone; the trainer over operations that are as late as they may be.
ifneq ($(and $(MPI_LIBS),$(if $(USES_STANDIN),,yes)),)
MPI_PROGRAMS := test/layers/comm/test_mpi test/layers/comm/train_gpt_late
PARTS_test/layers/comm/test_mpi       := $(COMM) $(BASE) layers/base/progress.o
PARTS_test/layers/comm/train_gpt_late := train_gpt.o test/layers/comm/late.o $(filter-out layers/comm/mpi.o,$(TRAINER))
endif
# Sanitizers and a preloaded library do not go together.
TORTURE_NEEDS := $(if $(SANITIZE),,$(if $(filter cpu,$(DEVICE)),$(BUILD)/test/harness/io_faults.so))
# Scripts; they find the programs in the folder BUILD.
TESTS_SHELL     := $(if $(USES_MPI),test/test_processes.sh) $(if $(variant),,test/test_build.sh) test/test_command_line.sh \
                   $(if $(variant),,test/test_docs.py) test/test_limits.sh test/test_saving.sh test/test_old_run.sh test/data/test_tokenize.sh test/data/test_download.sh \
                   $(if $(USES_MPI),$(if $(variant),,test/test_two_hosts.sh)) $(if $(TORTURE_NEEDS),test/torture.py)
# Those that need a tool which is not installed are left out and named (test/harness/skipped.sh): TEST:TOOL.
lacks = $(if $(shell command -v $(1)),,$(addsuffix :$(1),$(2)))
SKIPPED := $(call lacks,python3,test/test_docs.py test/test_processes.sh test/test_command_line.sh test/test_saving.sh test/data/test_tokenize.sh \
                                test/data/test_download.sh test/torture.py test/attention/test_mutations.py) \
           $(call lacks,curl,test/data/test_download.sh) $(call lacks,pgrep,test/test_processes.sh) $(call lacks,$(firstword $(CXX)),test/emulated.sh test/test_cuda_build.sh)
LEFT_OUT := $(foreach s,$(SKIPPED),$(firstword $(subst :, ,$(s))))

FUZZERS := test/data/fuzz/fuzz_shards test/data/fuzz/fuzz_tokenizer test/data/fuzz/fuzz_checkpoint test/data/fuzz/fuzz_options
PARTS_test/data/fuzz/fuzz_shards     := $(COMMON) data/tokens/shards.o data/tokens/loader.o
PARTS_test/data/fuzz/fuzz_tokenizer  := $(COMMON) $(TOKENIZER)
PARTS_test/data/fuzz/fuzz_checkpoint := $(COMMON) $(CHECKPOINT)
PARTS_test/data/fuzz/fuzz_options    := $(COMMON)

include dev/make/build.mk dev/make/test.mk dev/make/profile.mk dev/make/stories.mk dev/make/help.mk
endif
