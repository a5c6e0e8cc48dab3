# The compiler, its flags and the linker's, sanitizers, libraries. Part of the Makefile.

# CC may be anything that compiles: cc, /usr/bin/gcc, gcc-12, "ccache gcc", "gcc -m64", clang, from the environment or
# the command line. Without it: gcc, cc or clang, the first that is installed.
ifeq ($(if $(filter default undefined,$(origin CC)),,$(strip $(CC))),)
override CC := $(or $(shell for c in gcc cc clang; do command -v $$c && break; done | sed 's,.*/,,'),gcc)
endif
version_of = $(shell $(1) --version 2>/dev/null | head -n 1)
# ThreadSanitizer knows OpenMP's barriers only with clang's runtime and its Archer tool. Emulated kernels are watched
# without OpenMP: there every CUDA thread is a thread to the sanitizer.
ifneq ($(findstring thread,$(SANITIZE)),)
ifeq ($(DEVICE),cpu)
override CC := $(if $(findstring clang,$(CC)),$(CC),clang)
export OMP_TOOL_LIBRARIES := $(firstword $(wildcard /usr/lib/llvm-*/lib/libarcher.so))
endif
# A program that ends with an error ends beside its loader's thread: that is no leak.
export TSAN_OPTIONS := ignore_noninstrumented_modules=1 report_thread_leaks=0 allocator_may_return_null=1
endif
COMPILER := $(call version_of,$(CC))
IS_CLANG := $(findstring clang,$(COMPILER))
# The C++ compiler beside CC: g++-12 for gcc-12, "ccache g++" for "ccache gcc".
ifeq ($(if $(filter default undefined,$(origin CXX)),,$(strip $(CXX))),)
cxx_name = $(if $(filter cc,$(1)),c++,$(subst clang,clang++,$(subst gcc,g++,$(1))))
override CXX := $(foreach w,$(CC),$(if $(filter -%,$(w)),$(w),$(patsubst %$(notdir $(w)),%$(call cxx_name,$(notdir $(w))),$(w))))
endif
# The processor to compile for: this one, where the compiler knows how to say so.
OPENMP := -fopenmp
ifeq ($(origin MARCH),undefined)
probe := $(shell for m in -march=native -mcpu=native ''; do \
    $(CC) $$m $(OPENMP) -include stdio.h -include omp.h -x c -fsyntax-only /dev/null 2>/dev/null && echo "works $$m" && break; done)
MARCH := $(filter-out works,$(probe))
LACKS_TOOLS := $(if $(probe),,yes)
endif

variant := $(if $(SANITIZE),-$(subst $(comma),-,$(SANITIZE)))
BUILD := build/$(DEVICE)$(if $(filter cpu,$(DEVICE)),,-$(PRECISION))$(if $(filter emulated-standin,$(DEVICE)-$(NCCL)),-nccl)$(variant)
FIND_LIBRARIES := CC='$(CC)' PKG_CONFIG='$(PKG_CONFIG)' PKG_CONFIG_PATH='$(PKG_CONFIG_PATH)' CPATH='$(CPATH)' \
    LIBRARY_PATH='$(LIBRARY_PATH)' dev/find_libraries.sh
# Goes before every object where a build lacks something: it says what.
LACKING := $(if $(or $(LACKS_TOOLS),$(if $(COMPILER),,yes),$(strip $(shell $(FIND_LIBRARIES) missing))),say_what_is_missing)
# What every object depends on beside its sources (dev/make/build.mk).
STAMP := $(BUILD)/flags
# Processes talk over NCCL in a CUDA build, else over MPI: Open MPI or MPICH, of those that are there the first. For its
# tests the emulated build can have NCCL's code with a stand-in for the library.
USES_MPI      := $(filter-out cuda 0,$(if $(filter cuda,$(DEVICE)),cuda,$(MPI)))
USES_STANDIN  := $(filter emulated-standin,$(DEVICE)-$(NCCL))
MPI_LIBS      := $(if $(USES_MPI),$(strip $(shell $(FIND_LIBRARIES) mpi-libs)))
MPI_FLAGS     := $(if $(MPI_LIBS),$(if $(USES_STANDIN),-DHAVE_NCCL,-DHAVE_MPI) $(shell $(FIND_LIBRARIES) mpi-cflags))

# What a user sets (DEFINES, CPPFLAGS, CFLAGS, CXXFLAGS, LDFLAGS, LDLIBS) comes after our own flags.
# No -ffast-math: NaN checks must work, and the order of sums is part of the result.
ERRORS     := $(if $(filter 1,$(WERROR)),-Werror)
C_FLAGS     = -std=gnu11 $(if $(SANITIZE),-O1 -fno-omit-frame-pointer,-O3) -g $(MARCH) $(OPENMP) -fno-math-errno \
              -fno-trapping-math -Wall -Wextra $(ERRORS) -I. $(LIBRARY_FLAGS) $(SANITIZE_FLAGS) $(USER_FLAGS)
USER_FLAGS  = $(DEFINES) $(CPPFLAGS) $(CFLAGS)
LINK_FLAGS  = $(OPENMP_LINK) $(if $(SANITIZE),-fsanitize=$(SANITIZE)) $(CFLAGS) $(LDFLAGS)
LIBS        = -Wl,--as-needed $(LIBRARY_LIBS) $(MPI_LIBS) -lm -lpthread $(LDLIBS)
OPENMP_LINK := $(OPENMP)
LIBRARY_FLAGS := $(strip $(shell $(FIND_LIBRARIES) cflags))
LIBRARY_LIBS  := $(strip $(shell $(FIND_LIBRARIES) libs))
ifneq ($(SANITIZE),)
ifeq ($(DEVICE),emulated)
OPENMP      := -Wno-unknown-pragmas
OPENMP_LINK := $(if $(IS_CLANG),-lomp,-lgomp)
endif
# gcc's data-flow warnings are known to give false alarms on instrumented code.
SANITIZE_FLAGS := -fsanitize=$(SANITIZE) -fno-sanitize-recover=all $(if $(IS_CLANG),,-Wno-stringop-overflow -Wno-stringop-overread \
                  -Wno-alloc-size-larger-than -Wno-maybe-uninitialized)
# A request for too much memory is answered with NULL, as it is without the sanitizer.
export ASAN_OPTIONS := allocator_may_return_null=1
endif
