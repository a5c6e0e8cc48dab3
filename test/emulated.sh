#!/bin/sh
# Runs the CUDA kernels, and the trainer on them in one process, on the CPU (dev/cuda_on_cpu) in bf16. In `make test`.
. test/harness/suites.sh
suite "emulated, bf16" DEVICE=emulated PRECISION=bf16 TESTS_PROCESSES= test
finish_suites
