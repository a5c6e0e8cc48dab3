#!/bin/bash
# Tests that a run of an earlier version can be resumed: the weights are read exactly, and further steps have the losses
# that the earlier version computed. The run (test/old_run) has options that no longer exist, and other names of the
# levels of --recompute.
#     BUILD=build/cpu test/test_old_run.sh
. "$(dirname "$0")/harness/test.sh"

train=$build/train_gpt
cp -r "$root/test/old_run/." .
checkpoint=run/checkpoints/step_00000004
# A step with a learning rate of 0 saves the weights exactly as they were read.
expect 0 "step 1/1" "$train" --run read --init-from $checkpoint --train data_000000.bin --batch 1 --sequence-length 16 --steps 1 \
    --learning-rate 0 --sample-tokens 1
same $checkpoint/model.safetensors read/checkpoints/step_00000001/model.safetensors "weights that were read"
same $checkpoint/tokenizer.json read/checkpoints/step_00000001/tokenizer.json
expect 0 "step 8/8" "$train" --run run --tokenizer $checkpoint/tokenizer.json --resume --steps 8
near run expected 1e-5 && pass || fail "losses after an old checkpoint: $(losses run); expected: $(losses expected)"
finish
