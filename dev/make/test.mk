# Tests, fuzzing, torture, benchmarks. Part of the Makefile.
.PHONY: clean check test test_long test_layers test_attention test_data fuzz fuzz_programs bench bench_program plan attention_library
# Three sizes (dev/docs/testing.md): `check` after an edit, two minutes; `test`, what a user's machine can get wrong; and
# `test_long`, all the rest. They print each program's line, then one line that adds them up.
RUN_TESTS = SKIPPED='$(strip $(SKIPPED))' test/harness/run.sh
ifeq ($(DEVICE),cpu)
test: programs tests
	BUILD=$(BUILD) ALONE="$(filter-out $(LEFT_OUT),$(if $(variant),,test/emulated.sh))" \
	    $(RUN_TESTS) $(filter-out $(LEFT_OUT),$(TESTS_SHELL)) $(if $(LEFT_OUT),test/harness/skipped.sh) $(addprefix $(BUILD)/,$(TESTS))
test_long: programs tests fuzz_programs
	BUILD=$(BUILD) $(FUZZ) ALONE="$(filter-out $(LEFT_OUT),test/fuzz.sh test/sanitized.sh test/emulated_long.sh test/test_cuda_build.sh)" \
	    $(RUN_TESTS) $(if $(LEFT_OUT),test/harness/skipped.sh)
# Everything against its reference on the CPU, then the kernels, on small shapes.
EMULATED := $(addprefix build/emulated-bf16/test/,layers/test_kernels attention/test_attention)
CHECKS = $(addprefix $(BUILD)/,$(filter-out test/layers/comm/% test/layers/launch/%,$(TESTS)) test/layers/comm/test_partition)
.PHONY: emulated_checks
check: programs $(CHECKS) emulated_checks
	BUILD=$(BUILD) TEST_SMALL=1 $(RUN_TESTS) test/test_resume.sh test/test_old_run.sh $(CHECKS) $(if $(call lacks,$(firstword $(CXX)),x),,$(EMULATED))
emulated_checks:
	@$(if $(call lacks,$(firstword $(CXX)),x),,$(MAKE) --no-print-directory DEVICE=emulated PRECISION=bf16 $(EMULATED))
else
# The kernels; without SANITIZE= also the whole trainer beside the CPU's.
test: tests $(if $(variant),,programs cpu_programs)
	BUILD=build/cpu DEVICE_BUILD=$(BUILD) PRECISION=$(PRECISION) $(NCCL_BUILD) \
	    ALONE="$(if $(filter cuda,$(DEVICE)),$(TESTS_OF_DEVICE))" \
	    $(RUN_TESTS) $(if $(filter cuda,$(DEVICE)),,$(TESTS_OF_DEVICE)) $(if $(LEFT_OUT),test/harness/skipped.sh)
TESTS_OF_DEVICE = $(filter-out $(LEFT_OUT),$(if $(variant),,$(TESTS_PROCESSES))) $(addprefix $(BUILD)/,$(TESTS)) $(if $(variant),,test/test_devices.sh)
check: $(addprefix $(BUILD)/,$(TESTS_LAYERS) $(TESTS_ATTENTION))
	TEST_SMALL=1 $(RUN_TESTS) $^
test_long:
	@$(MAKE) --no-print-directory DEVICE=cpu test_long
# In bf16 kernels meet processes; in fp32 also NCCL's code does, over a stand-in for its library.
ifeq ($(DEVICE)$(variant)$(USES_STANDIN)-$(if $(MPI_LIBS),mpi),emulated-mpi)
TESTS_PROCESSES := test/test_processes.sh
ifeq ($(PRECISION),fp32)
test: standin
NCCL_BUILD := NCCL_BUILD=$(BUILD)-nccl
.PHONY: standin
standin: programs cpu_programs
	@$(MAKE) --no-print-directory NCCL=standin NO_LINKS=1 build/emulated-fp32-nccl/train_gpt build/emulated-fp32-nccl/test/layers/comm/test_nccl
endif
endif
.PHONY: cpu_programs test_seeds test_processes
test_processes: tests programs cpu_programs
	BUILD=build/cpu DEVICE_BUILD=$(BUILD) PRECISION=$(PRECISION) $(NCCL_BUILD) \
	    $(RUN_TESTS) $(if $(filter-out $(LEFT_OUT),$(TESTS_PROCESSES)),$(TESTS_PROCESSES),test/harness/skipped.sh)
cpu_programs:
	@$(MAKE) --no-print-directory DEVICE=cpu NO_LINKS=1 programs
# Emulated attention with mistakes in it, which its test must find.
ifeq ($(DEVICE)-$(PRECISION)$(variant),emulated-bf16)
TESTS_MUTATIONS := test/attention/test_mutations.py
test_mutations: export MUTATION_COMPILE = $(COMPILE_CU)
test_mutations: export MUTATION_LINK = $(LINK) $(LINK_FLAGS) $(filter-out %/attention/flash.o,$(addprefix $(BUILD)/,\
    test/attention/test_attention.o $(PARTS_test/attention/test_attention))) $(LIBS)
.PHONY: test_mutations
test_mutations: $(BUILD)/test/attention/test_attention
	$(if $(filter $(TESTS_MUTATIONS),$(LEFT_OUT)),test/harness/skipped.sh,$(TESTS_MUTATIONS) $(MUTATIONS))
endif
# Emulated kernels with their threads in other orders.
test_seeds: tests
	@for seed in 1 2 3 4 5; do CUDA_EMULATION_SEED=$$seed test/harness/run.sh \
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
	test/harness/run.sh $^
test_attention: $(addprefix $(BUILD)/,$(TESTS_ATTENTION))
	$^
test_data: $(addprefix $(BUILD)/,$(TESTS_DATA))
	test/harness/run.sh $^

# Fuzzing: readers of files, built by clang with sanitizers into a folder of their own; left out without clang.
FUZZ_BUILD := build/$(DEVICE)-fuzz
HAVE_FUZZER = $(shell echo 'int LLVMFuzzerTestOneInput(void) { return 0; }' | \
    clang -x c -fsanitize=fuzzer,address,undefined - -o /dev/null 2>/dev/null && echo yes)
FUZZ = FUZZ_SECONDS=$(FUZZ_SECONDS) FUZZERS="$(if $(HAVE_FUZZER),$(addprefix $(FUZZ_BUILD)/,$(FUZZERS)))"
fuzz_programs:
	@if [ -z "$(HAVE_FUZZER)" ]; then echo 'Fuzzing is skipped: clang with libFuzzer is not installed.'; \
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
# What many GPUs would make of a model: make plan PLAN='--model gpt2-124M --vocab-size 50257 --batch 64'
PLAN ?= --help
plan: $(BUILD)/dev/plan
	@$(BUILD)/dev/plan $(PLAN)
bench: bench_program
	$(BUILD)/$(BENCH) $(if $(filter cpu,$(DEVICE)),all)
