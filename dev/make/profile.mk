# Profiling on a GPU. Part of the Makefile.
# Steps 10 .. 19 of a short training (layers/profile.h says when), by the ranges of the trainer and by kernels.
PROFILE := runs/profile
PROFILE_OPTIONS ?= --num-layers 6 --num-heads 6 --channels 384 --batch 16 --sequence-length 256
.PHONY: profile profile_run
ifeq ($(DEVICE),cpu)
profile:
	@echo 'error: make profile needs a build for a GPU: use make DEVICE=cuda profile, or ./train_gpt --profile on the CPU' >&2; exit 1
else
profile:
	@if [ -z "$$($(FIND_CUDA) nsys)" ]; then echo 'error: the profiler nsys is not on PATH, in CUDA_HOME or in /opt/nvidia;' \
	    'install nsight-systems from NVIDIA (https://developer.nvidia.com/nsight-systems)' >&2; exit 1; fi
	@$(MAKE) --no-print-directory profile_run
endif
profile_run: programs $$(STORIES)/validation_000000.bin
	@dev/remove_made.sh run $(PROFILE)/run && mkdir -p $(PROFILE)
	nsys=$$($(FIND_CUDA) nsys) && "$$nsys" profile --trace=cuda,nvtx,cublas --capture-range=cudaProfilerApi \
	    --capture-range-end=stop --force-overwrite=true --output=$(PROFILE)/steps \
	    $(BUILD)/train_gpt --run $(PROFILE)/run --train '$(STORIES)/train_*.bin' --tokenizer $(STORIES)/tokenizer.json \
	    --steps 25 --sample-tokens 1 $(PROFILE_OPTIONS) && \
	"$$nsys" stats --report nvtx_sum --report cuda_gpu_kern_sum $(PROFILE)/steps.nsys-rep
