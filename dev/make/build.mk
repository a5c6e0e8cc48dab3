# How programs are built. Part of the Makefile.
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
$(BUILD)/%.o: %.c $(MAKEFILES_READ) | $(AFTER_DEPS)
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -MMD -MP -c $< -o $@
$(BUILD)/%.o: %.cu $(MAKEFILES_READ) $(COMPILED_BY) | $(AFTER_DEPS)
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
