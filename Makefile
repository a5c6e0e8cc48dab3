# GPT training in C and CUDA. `make help` explains every target.
.DEFAULT_GOAL := all

# ---- options: make NAME=value -----------------------------------------------------------------------------
DEVICE   ?= cpu
# address, undefined, thread, or a comma-separated list
SANITIZE ?=
# the processor to compile for; MARCH=-march=x86-64-v3 for binaries that run elsewhere
MARCH    ?= -march=native
ifeq ($(origin CC),default)
CC       := gcc
endif
# seconds of fuzzing in `make test`, all readers together
FUZZ_SECONDS ?= 60

ifneq ($(DEVICE),cpu)
$(error DEVICE=$(DEVICE) is not available: this version trains on the CPU (DEVICE=cpu))
endif
ifneq ($(filter-out address undefined thread,$(subst $(comma), ,$(SANITIZE))),)
$(error SANITIZE=$(SANITIZE): address, undefined, thread or a comma-separated list was expected)
endif

# ---- flags --------------------------------------------------------------------------------------------------
comma := ,
# ThreadSanitizer knows OpenMP's barriers only with clang's runtime and its Archer tool.
ifneq ($(findstring thread,$(SANITIZE)),)
CC := clang
endif
variant := $(if $(SANITIZE),-$(subst $(comma),-,$(SANITIZE)))$(if $(filter-out gcc,$(CC)),-$(notdir $(CC)))
BUILD := build/$(DEVICE)$(variant)
PACKAGES := libpcre2-8 libcjson
# No -ffast-math: NaN checks must work, and the order of sums is part of the result.
CFLAGS  := -std=gnu11 $(if $(SANITIZE),-O1 -fno-omit-frame-pointer,-O3) -g $(MARCH) -fopenmp -fno-math-errno \
           -fno-trapping-math -Wall -Wextra -Werror -I. $(shell pkg-config --cflags $(PACKAGES) 2>/dev/null)
LDFLAGS := -fopenmp
LDLIBS  := $(shell pkg-config --libs $(PACKAGES) 2>/dev/null) -lm -lpthread
ifneq ($(SANITIZE),)
CFLAGS  += -fsanitize=$(SANITIZE) -fno-sanitize-recover=all
LDFLAGS += -fsanitize=$(SANITIZE)
endif

# ---- programs, tests, and what they are made of ---------------------------------------------------------------
COMMON    := data/files.o data/options.o data/progress.o
TOKENIZER := data/tokenizer.o data/tokenizer_json.o data/tokenizer_split.o data/tokenizer_train.o
CORPUS    := data/stories.o data/byte_ngram.o
KERNELS   := layers/matmul_cpu.o attention/flash_cpu.o
TRAINER   := $(COMMON) $(TOKENIZER) $(KERNELS) data/shards.o data/loader.o data/safetensors.o data/checkpoint.o \
             data/metrics.o

PROGRAMS := train_gpt data/tokenize data/write_stories
PARTS_train_gpt          := $(TRAINER)
PARTS_data/tokenize      := $(COMMON) $(TOKENIZER) data/shards.o
PARTS_data/write_stories := $(COMMON) $(CORPUS)

TESTS_LAYERS    := test/layers/test_layers test/layers/test_matmul
TESTS_ATTENTION := test/attention/test_attention
TESTS_DATA      := test/data/test_shards test/data/test_loader test/data/test_tokenizer test/data/test_stories
TESTS           := $(TESTS_LAYERS) $(TESTS_ATTENTION) $(TESTS_DATA) test/test_train_gpt
PARTS_test/layers/test_layers       := data/files.o
PARTS_test/layers/test_matmul       := $(KERNELS)
PARTS_test/attention/test_attention := $(KERNELS) data/progress.o
PARTS_test/data/test_shards         := $(COMMON) data/shards.o
PARTS_test/data/test_loader         := $(COMMON) data/shards.o data/loader.o
PARTS_test/data/test_tokenizer      := $(COMMON) $(TOKENIZER)
PARTS_test/data/test_stories        := $(COMMON) $(CORPUS)
PARTS_test/test_train_gpt           := $(TRAINER)
# Needs programs; run with the build folder as its argument.
TESTS_SHELL :=

FUZZERS := test/data/fuzz_shards test/data/fuzz_tokenizer
PARTS_test/data/fuzz_shards    := $(COMMON) data/shards.o
PARTS_test/data/fuzz_tokenizer := $(COMMON) $(TOKENIZER)

# ---- building -----------------------------------------------------------------------------------------------------
.PHONY: all programs tests fuzzers
all: programs
	@echo 'built ./train_gpt; now: make train (two minutes, a trained GPT), make test, make help'

programs: $(addprefix $(BUILD)/,$(PROGRAMS))
	@$(if $(variant),,ln -sf $(BUILD)/train_gpt train_gpt)
tests: $(addprefix $(BUILD)/,$(TESTS))
fuzzers: $(addprefix $(BUILD)/,$(FUZZERS))

.SECONDEXPANSION:
$(addprefix $(BUILD)/,$(PROGRAMS) $(TESTS) $(FUZZERS)): $(BUILD)/%: $(BUILD)/%.o $$(addprefix $(BUILD)/,$$(PARTS_$$*))
	$(CC) $(LDFLAGS) $^ $(LDLIBS) -o $@

# Every source is compiled as C, whatever it is called; -MMD writes the header dependencies.
$(BUILD)/%.o: %.c Makefile
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -MMD -MP -c $< -o $@
$(BUILD)/%.o: %.cu Makefile
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -MMD -MP -x c -c $< -o $@
# test_train_gpt includes the trainer whole and does not use all of it.
$(BUILD)/test/test_train_gpt.o: CFLAGS += -Wno-unused-function
-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)

clean:
	rm -rf build train_gpt

# ---- testing ------------------------------------------------------------------------------------------------------
.PHONY: clean test test_layers test_attention test_data fuzz bench
# Each program's line, then one line that adds them up.
test: programs tests
	test/run.sh $(addprefix $(BUILD)/,$(TESTS)) $(TESTS_SHELL)
test_layers: $(addprefix $(BUILD)/,$(TESTS_LAYERS))
	test/run.sh $^
test_attention: $(addprefix $(BUILD)/,$(TESTS_ATTENTION))
	$^
test_data: $(addprefix $(BUILD)/,$(TESTS_DATA))
	test/run.sh $^

# ---- help -----------------------------------------------------------------------------------------------------------
.PHONY: help
