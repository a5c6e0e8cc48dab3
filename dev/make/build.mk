# How programs are built. Part of the Makefile.
.PHONY: all programs tests fuzzers
all: programs
	@echo 'Built $(if $(LINKS),./train_gpt$(comma) data/tokenize and data/write_stories,$(addprefix $(BUILD)/,$(PROGRAMS)) (without links to them)).'
	@echo 'Next: make train (two minutes to a trained GPT), make test, make help'

# The programs of the last build for the CPU or a GPU have links where people look for them.
LINKS := $(if $(variant)$(filter emulated,$(DEVICE))$(NO_LINKS),,$(PROGRAMS))
TRAIN_GPT := $(if $(LINKS),./,$(BUILD)/)train_gpt
link_target = $(if $(filter /%,$(BUILD)),,$(if $(findstring /,$(1)),../))$(BUILD)/$(1)
programs: $(addprefix $(BUILD)/,$(PROGRAMS))
	@:$(foreach p,$(LINKS),; [ "$$(readlink $(p))" = $(call link_target,$(p)) ] || ln -sfn $(call link_target,$(p)) $(p))
tests: $(addprefix $(BUILD)/,$(if $(filter cpu,$(DEVICE)),dev/plan) $(TESTS) $(MPI_PROGRAMS)) $(TORTURE_NEEDS)
fuzzers: C_FLAGS += -fsanitize=fuzzer-no-link
fuzzers: LINK_FLAGS += -fsanitize=fuzzer
fuzzers: $(addprefix $(BUILD)/,$(FUZZERS))
	@:

.SECONDEXPANSION:
$(addprefix $(BUILD)/,$(PROGRAMS) $(BENCH) dev/plan $(TESTS) $(filter %_mpi,$(MPI_PROGRAMS)) $(FUZZERS)): $(BUILD)/%: $(BUILD)/%.o $$(addprefix $(BUILD)/,$$(PARTS_$$*)) Makefile
	$(LINK) $(LINK_FLAGS) $(filter %.o,$^) $(LIBS) -o $@

$(addprefix $(BUILD)/,$(filter %_late,$(MPI_PROGRAMS))): $$(addprefix $(BUILD)/,$(PARTS_test/layers/comm/train_gpt_late)) Makefile
	$(LINK) $(LINK_FLAGS) $(filter %.o,$^) $(LIBS) -o $@
# Our attention for PyTorch's process (dev/bench_attention.py).
LIBRARY := $(addprefix $(BUILD)/,dev/attention_library.o $(filter attention/%,$(KERNELS)))
$(LIBRARY): C_FLAGS += -fPIC
$(LIBRARY): NVCC_FLAGS += -Xcompiler -fPIC
$(BUILD)/dev/libattention.so: $(LIBRARY)
	$(LINK) -shared $(LINK_FLAGS) $^ $(LIBS) -o $@

$(BUILD)/test/harness/io_faults.so: C_FLAGS += -fPIC
$(BUILD)/test/harness/io_faults.so: $(BUILD)/test/harness/io_faults.o
	$(CC) -shared $(CFLAGS) $(LDFLAGS) $< -o $@

# All that shapes objects and programs beside their sources, in one file, which is written only when its content changes. That MARCH is native says nothing about the processor that it stands for.
define SHAPE
compilers: $(COMPILER); $(if $(filter-out cpu,$(DEVICE)),$(call version_of,$(CXX))); $(if $(NVCC),$(shell $(NVCC) --version 2>/dev/null | tail -n 1))
processor: $(if $(findstring native,$(MARCH)),$(shell sed -n '/^flags\|^Features/{p;q}' /proc/cpuinfo 2>/dev/null | cksum))
C: $(CC) $(C_FLAGS)
MPI: $(MPI_FLAGS)
device: $(COMPILE_CU)
link: $(LINK) $(LINK_FLAGS) $(LIBS)
paths: $(CPATH) $(C_INCLUDE_PATH) $(CPLUS_INCLUDE_PATH) $(LIBRARY_PATH) $(NVCC_PREPEND_FLAGS) $(NVCC_APPEND_FLAGS)
endef
ifneq ($(if $(LACKING),,$(filter-out help clean%,$(or $(MAKECMDGOALS),all))),)
ifneq ($(file <$(STAMP)),$(SHAPE))
$(shell mkdir -p $(BUILD))$(file >$(STAMP),$(SHAPE))
endif
endif
$(STAMP): ;
.PHONY: say_what_is_missing
say_what_is_missing:
	@$(DEPS) --print
# -MMD writes the header dependencies.
$(BUILD)/%.o: %.c dev/make/build.mk $(STAMP) | $(LACKING)
	@mkdir -p $(@D)
	$(CC) $(C_FLAGS) -MMD -MP -c $< -o $@
$(BUILD)/%.o: %.cu dev/make/build.mk $(STAMP) | $(LACKING)
	@mkdir -p $(@D)
	$(COMPILE_CU) -c $< -o $@
$(addprefix $(BUILD)/,$(filter %comm.o %mpi.o %nccl.o,$(COMM)) $(addprefix test/layers/comm/,test_nccl.o test_mpi.o late.o)): C_FLAGS += $(MPI_FLAGS) $(if $(USES_STANDIN),-Itest/layers/comm/nccl_standin)
# These include the trainer whole and do not use all of it.
$(BUILD)/test/test_train_gpt.o $(BUILD)/dev/bench.o $(BUILD)/dev/plan.o: C_FLAGS += -Wno-unused-function
-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)

clean:
	rm -rf build $(PROGRAMS)
