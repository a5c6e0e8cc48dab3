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

ifneq ($(DEVICE),cpu)
$(error DEVICE=$(DEVICE) is not available: this version trains on the CPU (DEVICE=cpu))
endif

# ---- flags --------------------------------------------------------------------------------------------------
comma := ,
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

# ---- programs and what they are made of -----------------------------------------------------------------------
COMMON    := data/files.o data/options.o data/progress.o
TOKENIZER := data/tokenizer.o data/tokenizer_json.o data/tokenizer_split.o data/tokenizer_train.o
CORPUS    := data/stories.o data/byte_ngram.o
KERNELS   := layers/matmul_cpu.o attention/flash_cpu.o
TRAINER   := $(COMMON) $(TOKENIZER) $(KERNELS) data/shards.o data/loader.o data/safetensors.o data/checkpoint.o \
             data/metrics.o

PROGRAMS := train_gpt data/tokenize data/write_stories
$(BUILD)/train_gpt: $(addprefix $(BUILD)/,train_gpt.o $(TRAINER))
$(BUILD)/data/tokenize: $(addprefix $(BUILD)/,data/tokenize.o $(COMMON) $(TOKENIZER) data/shards.o)
$(BUILD)/data/write_stories: $(addprefix $(BUILD)/,data/write_stories.o $(COMMON) $(CORPUS))

# ---- targets ----------------------------------------------------------------------------------------------------
.PHONY: all programs help clean
all: programs

programs: $(addprefix $(BUILD)/,$(PROGRAMS))
	@$(if $(variant),,ln -sf $(BUILD)/train_gpt train_gpt)

$(addprefix $(BUILD)/,$(PROGRAMS)):
	$(CC) $(LDFLAGS) $^ $(LDLIBS) -o $@

# Every source is compiled as C, whatever it is called; -MMD writes the header dependencies.
$(BUILD)/%.o: %.c Makefile
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -MMD -MP -c $< -o $@
$(BUILD)/%.o: %.cu Makefile
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -MMD -MP -x c -c $< -o $@
-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)

clean:
	rm -rf build train_gpt
