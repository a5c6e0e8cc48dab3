# Flags of the compiler and the linker, sanitizers, libraries. Part of the Makefile.
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
           -fno-trapping-math -Wall -Wextra -Werror -I. $(shell pkg-config --cflags $(PACKAGES) 2>/dev/null)
LDFLAGS := $(OPENMP)
LDLIBS   = $(shell pkg-config --libs $(PACKAGES) 2>/dev/null) $(MPI_LIBS) -lm -lpthread
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
