#!/bin/bash
# A tiny model from text to a sample: an interrupted run that is resumed with another number of threads gives the same
# bits as an uninterrupted one. In `make check`; test/test_command_line.sh and test/test_saving.sh test the rest.
#     BUILD=build/cpu test/test_resume.sh
. "$(dirname "$0")/harness/test.sh"

train=$build/train_gpt
make_data 100k 300
options=(--train "data_*.bin" --validation "data_*.bin" --tokenizer tokenizer.json --num-layers 2 --num-heads 2 --channels 32 --batch 4
    --sequence-length 32 --accumulate 2 --dropout 0.1 --validate-every 4 --validation-batches 2 --save-every 3 --sample-tokens 8)
expect 0 "step 8/8" "$train" --run whole "${options[@]}" --steps 8
expect 0 "step 8/8" "$train" --run resumed "${options[@]}" --steps 8 --threads 1
rm -r resumed/checkpoints/step_00000008
expect 0 "step 8/8" "$train" --run resumed --resume --threads 2
same <(curve whole) <(curve resumed) "metrics of an interrupted run"
for file in model.safetensors optimizer.safetensors training_state.json config.json tokenizer.json; do
    same {whole,resumed}/checkpoints/step_00000008/$file
done
expect 0 "^Once upon" "$train" --run whole --sample "Once upon" --sample-tokens 4
finish
