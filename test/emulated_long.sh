#!/bin/sh
# Runs the emulated CUDA kernels (see test/emulated.sh) with several processes; in fp32, with NCCL's code; mutations
# of flash attention; and, on small shapes, with AddressSanitizer and UndefinedBehaviorSanitizer, with threads and
# blocks in five other orders, and with ThreadSanitizer, which finds races. In `make test_long`.
. test/harness/suites.sh
suite "emulated, processes" DEVICE=emulated PRECISION=bf16 test_processes
suite "emulated, fp32" DEVICE=emulated PRECISION=fp32 test
suite "mutations of flash attention" DEVICE=emulated PRECISION=bf16 test_mutations
export TEST_SMALL=1
suite "emulated, AddressSanitizer" DEVICE=emulated SANITIZE=address,undefined test
suite "emulated, five orders" DEVICE=emulated test_seeds
suite "emulated, ThreadSanitizer" DEVICE=emulated SANITIZE=thread test
finish_suites
