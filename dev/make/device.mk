# How a .cu file is compiled for each DEVICE; the CUDA toolkit. Part of the Makefile.
ifeq ($(DEVICE),cpu)
COMPILE_CU = $(CC) $(C_FLAGS) -MMD -MP -x c
LINK       = $(CC)
else
DEVICE_FLAGS := -DDEVICE_CUDA $(if $(filter fp32,$(PRECISION)),-DPRECISION_IS_FP32)
endif
ifeq ($(DEVICE),emulated)
# Kernels look at the same memory as float and as float4.
CXX_FLAGS   = -std=c++17 $(filter-out -std=%,$(C_FLAGS)) -fno-strict-aliasing -Wno-psabi -Wno-unknown-pragmas \
              -Wno-missing-field-initializers $(DEVICE_FLAGS) \
              -Idev/cuda_on_cpu/include -include dev/cuda_on_cpu/cuda_on_cpu.h \
              $(if $(NVTX),-DHAVE_NVTX -idirafter $(NVTX)) $(CXXFLAGS)
# Ranges for profilers, where there is a toolkit; of its other headers those of the emulator come first.
NVTX       := $(shell $(FIND_CUDA) nvtx)
COMPILE_CU  = $(CXX) $(CXX_FLAGS) -MMD -MP -x c++
LINK        = $(CXX)
endif
ifeq ($(DEVICE),cuda)
NVCC := $(shell $(FIND_CUDA) nvcc)
ifeq ($(NVCC)$(filter help clean% deps,$(MAKECMDGOALS)),)
$(error DEVICE=cuda needs NVIDIA's compiler nvcc, but there is none in $(shell $(FIND_CUDA) places); to build for the CPU, run make DEVICE=cpu)
endif
ifeq ($(ARCH),)
override ARCH := $(strip $(shell $(FIND_CUDA) architectures))
endif
# Code for every architecture, and PTX of the lowest (sm_90a's would run on no other) for GPUs that come later.
lowest     := $(firstword $(ARCH))
TOOLKIT    := $(shell $(FIND_CUDA) compile)
NVCC_FLAGS  = -std=c++17 -O3 -lineinfo $(if $(ERRORS),-Werror all-warnings) -I. $(DEVICE_FLAGS) -DHAVE_CUBLAS $(TOOLKIT) \
              -Xcompiler -fopenmp,-fno-math-errno,-Wall,-Wno-unknown-pragmas $(DEFINES) $(HOST_COMPILER)
# nvcc calls g++ unless CC or CXX says otherwise.
HOST_COMPILER := $(if $(filter g++,$(CXX)),,-ccbin $(lastword $(filter-out -%,$(CXX))))
COMPILE_CU  = $(NVCC) $(NVCC_FLAGS) --threads 0 \
              $(foreach a,$(ARCH),-gencode arch=$(a:sm_%=compute_%),code=$(a)) \
              $(if $(filter-out %a,$(lowest)),-gencode arch=$(lowest:sm_%=compute_%)$(comma)code=$(lowest:sm_%=compute_%)) \
              -MMD -MP -x cu
LINK        = $(CXX)
CUDA_LIBS  := $(shell $(FIND_CUDA) link)
LIBS       += $(CUDA_LIBS)
ifneq ($(HAS_CUDNN),)
CUDNN_FLAGS := $(shell $(FIND_CUDA) cudnn-compile)
CUDNN_LINK  := $(shell $(FIND_CUDA) cudnn-link)
ifeq ($(and $(CUDNN_FLAGS),$(CUDNN_LINK))$(filter help clean% deps,$(MAKECMDGOALS)),)
$(error CUDNN=1 needs cuDNN 9 and the headers of its C++ frontend (pip install nvidia-cudnn-cu13 nvidia-cudnn-frontend), but they are not in $(shell $(FIND_CUDA) places))
endif
NVCC_FLAGS += -DHAVE_CUDNN
LIBS       += $(CUDNN_LINK)
# Not all flags: the frontend's headers take a minute as it is.
$(BUILD)/attention/cudnn.o: attention/cudnn.cpp $(STAMP) | $(LACKING)
	@mkdir -p $(@D)
	$(CXX) -std=c++17 -O1 -fPIC -Wall -Wextra $(ERRORS) -I. $(DEVICE_FLAGS) $(CUDNN_FLAGS) -MMD -MP -c $< -o $@
endif
# Hopper's instructions exist for sm_90a alone.
ifeq ($(ARCH),sm_90a)
$(BUILD)/test/attention/test_ptx.o: DEVICE_FLAGS += -DHOPPER
endif
endif
