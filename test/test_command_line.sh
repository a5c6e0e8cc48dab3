#!/bin/bash
# The commands as users run them: training from text to samples, resuming bit for bit, signals, and invalid input,
# each with its message and exit status.
#     BUILD=build/cpu test/test_command_line.sh
. "$(dirname "$0")/harness/test.sh"


train=$build/train_gpt
tokenize=$build/data/tokenize
small="--num-layers 2 --num-heads 2 --channels 32 --batch 4 --sequence-length 32 --warmup 2 --validate-every 4 --validation-batches 2 --sample-tokens 8 --save-every 0"

# ---- from text to a trained model ------------------------------------------------------------------------------------

"$build/data/write_stories" --train-bytes 100k --validation-stories 20 --out stories >/dev/null 2>&1 || fail "write_stories"
"$tokenize" train --input stories/train.txt --vocab 300 --out tokenizer.json >/dev/null 2>&1 || fail "tokenize train"
"$tokenize" encode --tokenizer tokenizer.json --input stories/train.txt --out train --shard-tokens 20k >/dev/null 2>&1 || fail "encode"
"$tokenize" encode --tokenizer tokenizer.json --input stories/validation.txt --out val >/dev/null 2>&1 || fail "encode"
data=(--train "train_*.bin" --validation "val_*.bin" --tokenizer tokenizer.json)

# Help: all options, in lines that fit the terminal; the most important ones on one screen of 24 rows; the version.
expect 0 "^Trains a GPT-2" "$train" --help
for columns in 80 100; do
    COLUMNS=$columns "$train" --help >help.txt
    [ "$(awk '{ print length }' help.txt | sort -n | tail -n 1)" -lt $columns ] && pass || fail "lines of --help longer than $columns"
done
COLUMNS=80 "$train" -h >usage.txt || fail "-h"
[ "$(wc -l <usage.txt)" -le 24 ] && [ "$(awk '{ print length }' usage.txt | sort -n | tail -n 1)" -lt 80 ] && pass || fail "-h is more than a screen"
for option in $(grep -oE -- '--[a-z][a-z-]+' usage.txt | sort -u); do
    grep -qE -- "^  --(\[no-\])?${option#--}( |$)" help.txt || [ "$option" = --help ] && pass || fail "-h has $option, --help has not"
done
expect 0 "^train_gpt [0-9]" "$train" --version
# Option names of other trainers are answered with ours, and a pattern expanded by a shell with a hint about quotes.
for pair in batch-size:batch lr:learning-rate max-steps:steps max-iters:steps block-size:sequence-length n-layer:num-layers \
    n_layer:num-layers n_embd:channels per_device_train_batch_size:batch eval-interval:validate-every output_dir:run \
    gradient_accumulation_steps:accumulate grad_clip:clip; do
    refuse "there is no option --${pair%:*}; here it is --${pair#*:}([,;]|$)" "$train" --"${pair%:*}" 4
done
refuse "there is no option --device: the build decides" "$train" --device cuda
refuse "there is no option -b; here it is --batch" "$train" -b 4
refuse "if --train was given a pattern like data/\*.bin, put quotes around it" "$train" --train train_*.bin
refuse "train needs a value, but --validation follows" "$train" --train --validation "val_*.bin"
expect 0 "step 8/8" "$train" --run whole $small "${data[@]}" --steps 8 --dropout 0.1 --accumulate 2 --clip 0.5
for file in options.txt metrics.jsonl; do [ -s "whole/$file" ] && pass || fail "whole/$file is missing"; done
for file in config.json model.safetensors tokenizer.json optimizer.safetensors training_state.json manifest; do
    [ -s "whole/checkpoints/step_00000008/$file" ] && pass || fail "$file is not in the checkpoint"
done
[ "$(grep -c '"loss"' whole/metrics.jsonl)" = 8 ] && pass || fail "metrics.jsonl has not 8 steps"
[ "$(grep -c '"validation_loss"' whole/metrics.jsonl)" = 2 ] && pass || fail "metrics.jsonl has not 2 validations"

# The same run again, with another number of threads, gives the same bits; so does one that is interrupted and
# resumed.
expect 0 "step 8/8" "$train" --run again $small "${data[@]}" --steps 8 --dropout 0.1 --accumulate 2 --clip 0.5 --threads 1
same whole/checkpoints/step_00000008/model.safetensors again/checkpoints/step_00000008/model.safetensors
same <(curve whole) <(curve again)
expect 0 "step 8/8" "$train" --run cut $small "${data[@]}" --steps 8 --dropout 0.1 --accumulate 2 --clip 0.5 --save-every 3
rm -rf cut/checkpoints/step_00000008 # back to step 6; the metrics include steps 7 and 8
expect 0 "step 8/8" "$train" --run cut --resume
same whole/checkpoints/step_00000008/model.safetensors cut/checkpoints/step_00000008/model.safetensors
same whole/checkpoints/step_00000008/optimizer.safetensors cut/checkpoints/step_00000008/optimizer.safetensors
same whole/checkpoints/step_00000008/training_state.json cut/checkpoints/step_00000008/training_state.json
same <(curve whole) <(curve cut)
expect 0 "has already done 8 steps" "$train" --run cut --resume
same <(curve whole) <(curve cut)
refuse "num-layers is a part of the run's model" "$train" --run cut --resume --num-layers 3
expect 0 "has already done 8 steps" "$train" --run cut --resume --num-layers 2
"$tokenize" train --input stories/validation.txt --vocab 300 --out other.json >/dev/null 2>&1
refuse "other.json' is not the tokenizer that this run was started with" "$train" --run cut --resume --tokenizer other.json
expect 0 "step 10/10" "$train" --run cut --resume --steps 10
# Recomputing or computing in parts changes nothing (beyond rounding, for parts); --plan allocates nothing.
for what in activation norm gelu layernorm block; do
    expect 0 "step 8/8" "$train" --run "again_$what" $small "${data[@]}" --steps 8 --dropout 0.1 --accumulate 2 --clip 0.5 --recompute "$what"
    same <(curve whole) <(curve "again_$what")
done
expect 0 "step 8/8" "$train" --run pieces $small "${data[@]}" --steps 8 --dropout 0.1 --accumulate 2 --clip 0.5 --logits-memory 100k
near pieces whole && pass || fail "logits in pieces change the losses"
# Validation of one model: four batches of two are two of four; logits whole or in parts.
validation() { grep -o '"validation_loss": [0-9.]*' "$1/metrics.jsonl" | cut -d' ' -f2; }
still="--learning-rate 0 --steps 1 --warmup 0"
expect 0 "step 1/1" "$train" --run by2 $small "${data[@]}" $still --validation-batches 4 --batch 2
expect 0 "step 1/1" "$train" --run by4 $small "${data[@]}" $still --validation-batches 2
expect 0 "step 1/1" "$train" --run by4pieces $small "${data[@]}" $still --validation-batches 2 --logits-memory 50k
echo "$(validation by2) $(validation by4) $(validation by4pieces)" |
    awk '{ exit NF != 3 || ($1 - $2) ^ 2 > 1e-10 || ($1 - $3) ^ 2 > 1e-10 }' &&
    pass || fail "validation by batches of 2 and 4, in pieces: $(validation by2) $(validation by4) $(validation by4pieces)"
refuse "too small: the logits of one token take" "$train" $small "${data[@]}" --logits-memory 100
expect 0 "^ +64 +[0-9.]+ +[0-9.]+ +[0-9.]+ +[0-9.]+ +[0-9]+ +[0-9]+ +0\.9[0-9]+$" "$build/dev/plan" --model gpt2-124M --vocab-size 50257 \
    --sequence-length 1024 --batch 64 --shard optimizer
expect 0 "^ +2 +.*! " "$build/dev/plan" --gpu rtx4090 --link 10 --model gpt2-1558M --vocab-size 50257 --sequence-length 1024 --batch 8
expect 0 "^total +[0-9.]+ +[0-9.]+ +[0-9.]+" "$train" --plan --model gpt2-1558M --vocab-size 50257 --sequence-length 1024 --batch 512
refuse "it is --gpu of dev/plan" "$train" --plan --plan-gpu h100
refuse "the size of the vocabulary is unknown" "$build/dev/plan" --model gpt2-124M
refuse "are options of train_gpt" "$build/dev/plan" --model gpt2-124M --vocab-size 50257 --resume
refuse "sets the shape" "$build/dev/plan" --model gpt2-124M --num-layers 3 --vocab-size 50257
refuse "no cuBLAS" "$train" $small "${data[@]}" --matmul cublas
refuse "weights in bf16" "$train" $small "${data[@]}" --stochastic-rounding
# Variants: the same curve up to rounding. Documents, floor, schedules, overfitting, a profile.
expect 0 "floor 0.5000" "$train" --run documents $small "${data[@]}" --steps 4 --validate-documents --validation-floor 0.5
expect 0 "attention +[0-9.]+" "$train" --run profile $small "${data[@]}" --steps 4 --schedule wsd --profile --attention naive
expect 0 "step 60/60" "$train" --run overfit $small "${data[@]}" --steps 60 --overfit --learning-rate 1e-2 --schedule constant
first=$(sed -n '1s/.*"loss": \([0-9]*\).*/\1/p' overfit/metrics.jsonl)
last=$(grep '"step": 60, "loss"' overfit/metrics.jsonl | sed 's/.*"loss": \([0-9]*\).*/\1/')
[ "$last" -lt "$first" ] && pass || fail "overfitting goes from $first to $last"
echo "--num-layers=1 # one
--steps 3 \"--run=from file\"" >options.txt
expect 0 "1 layer," "$train" $small "${data[@]}" @options.txt
[ -d "from file" ] && pass || fail "a quoted value in an option file"

# Splits of a batch; what validation and sampling must not change; what must differ.
run() { "$train" --run "$1" $small "${data[@]}" "${@:2}" >out.txt 2>&1 </dev/null || fail "$(tail -n 1 out.txt) of: $*"; }
run batch4 --steps 6 --dropout 0.2
run batch2 --steps 6 --dropout 0.2 --batch 2 --accumulate 2
run batch1 --steps 6 --dropout 0.2 --batch 1 --accumulate 4 --attention naive
near batch4 batch2 && pass || fail "two micro-steps of 2 do not give the losses of one of 4"
near batch4 batch1 && pass || fail "four micro-steps of 1 do not give the losses of one of 4"
run sampled --steps 6 --dropout 0.2 --sample-every 2 --validate-every 1
same batch4/checkpoints/step_00000006/model.safetensors sampled/checkpoints/step_00000006/model.safetensors
run still --steps 1 --warmup 0 --learning-rate 0
run still_dropped --steps 1 --warmup 0 --learning-rate 0 --dropout 0.5
same <(grep validation still/metrics.jsonl) <(grep validation still_dropped/metrics.jsonl)
run seed2 --steps 1 --warmup 0 --init-from whole/checkpoints/step_00000008 --seed 2
run seed3 --steps 1 --warmup 0 --init-from whole/checkpoints/step_00000008 --seed 3
[ "$(losses seed2)" != "$(losses seed3)" ] && pass || fail "the order of the data does not depend on the seed"
run rates --steps 6 --warmup 2 --learning-rate 1e-3
[ "$(sed -n 's/.*"learning_rate": \([0-9.e-]*\),.*/\1/p' rates/metrics.jsonl | sed -n '1p;2p;$p' | tr '\n' ' ')" = "0.0005 0.001 0.0001 " ] && pass || fail "learning rates"
run learnt --overfit --steps 9 --validate-every 4
run learnt_alone --overfit --steps 9 --validate-every 0
same <(losses learnt) <(losses learnt_alone)
# Bits per byte: with single bytes as tokens, nats of bytes and ends / ln 2 / number of bytes.
"$tokenize" train --input stories/train.txt --vocab 257 --out bytes.json >/dev/null 2>&1
"$tokenize" encode --tokenizer bytes.json --input stories/validation.txt --out bytes >/dev/null 2>&1
expect 0 "step 1/1" "$train" --run bytes $small --warmup 0 --train bytes_000000.bin --validation bytes_000000.bin --tokenizer bytes.json --steps 1 --validate-documents --sequence-length 1000 --validation-batches 100
text=$(sed 's/<|endoftext|>//' stories/validation.txt | wc -c)
grep validation_loss bytes/metrics.jsonl | tr -d ',}' | awk -v bytes="$text" '{ d = $6 - $4 * (bytes + 20) / bytes / log(2); exit d < -1e-4 || d > 1e-4 }' && pass || fail "bits per byte"

# ---- a vocabulary larger than the tokenizer's, other end-of-text tokens ----------------------------------------------

# 400 ids for a tokenizer of 300: trained, resumed and sampled.
expect 0 "step 3/3" "$train" --run larger $small "${data[@]}" --vocab-size 400 --warmup 1 --steps 3 --validate-documents
holds grep -q '"vocab_size":[[:space:]]*400' larger/checkpoints/step_00000003/config.json
expect 0 "step 4/4" "$train" --run larger --resume --steps 4
expect 0 "^A" "$train" --init-from larger/checkpoints/step_00000004 --sample A --sample-tokens 60 --temperature 100
"$tokenize" train --input stories/train.txt --vocab 401 --out too_large.json >/dev/null 2>&1
refuse "too_large.json has 401 tokens, but the model in larger/.* has 400" "$train" --init-from larger/checkpoints/step_00000004 --sample A --tokenizer too_large.json
# Exact ids as a prompt, and equivalent text.
ids=$(python3 -c "
import json; v = json.load(open('tokenizer.json'))['model']['vocab']; print(299, v['O'], v['n'], v['c'], sep=',')")
"$train" --run whole --prompt-ids "$ids" --temperature 0 --sample-tokens 20 >a.txt 2>/dev/null
"$train" --run whole --sample Onc --temperature 0 --sample-tokens 20 >b.txt 2>/dev/null
holds [ "$(head -c 16 a.txt)" = "<|endoftext|>Onc" ]
same <(tail -c +14 a.txt) b.txt "a prompt of ids and one of text"
for ids in 300 -1 x 1,,2 "1 2" ""; do refuse "--prompt-ids '$ids' is not a list of token ids, expected numbers from 0 to 299" "$train" --run whole --prompt-ids "$ids"; done
refuse "both prompts" "$train" --run whole --prompt-ids 1 --sample A
# A tokenizer with another end-of-text token: named by tokenizer_config.json, kept in checkpoints, or by
# --end-of-text.
mkdir other_end
sed 's/<|endoftext|>/<\/s>/g' tokenizer.json >other_end/tokenizer.json
cp other_end/tokenizer.json other_end.json
echo '{"eos_token": {"content": "</s>"}}' >other_end/tokenizer_config.json
sed 's/<|endoftext|>/<\/s>/g' stories/validation.txt >validation_s.txt
"$tokenize" encode --tokenizer other_end --input validation_s.txt --out ends >/dev/null 2>&1
same <(tail -c +1025 val_000000.bin) <(tail -c +1025 ends_000000.bin) "another spelling of the same end"
expect 0 "step 1/1" "$train" --run ends $small --warmup 0 --train ends_000000.bin --validation ends_000000.bin --tokenizer other_end --steps 1 --validate-documents
holds grep -q '"eos_token": "</s>"' ends/checkpoints/step_00000001/tokenizer_config.json
holds grep -q '"eos_token_id":[[:space:]]*299' ends/checkpoints/step_00000001/config.json
expect 0 "This run|already|has done" "$train" --run ends --resume
refuse "needs a token that separates documents, but the tokenizer other_end.json has no <|endoftext|>: name its own token with --end-of-text" "$train" --run ends2 $small \
    --warmup 0 --train ends_000000.bin --validation ends_000000.bin --tokenizer other_end.json --steps 1 --validate-documents
expect 0 "step 1/1" "$train" --run ends2 $small --warmup 0 --train ends_000000.bin --validation ends_000000.bin --tokenizer other_end.json --steps 1 \
    --validate-documents --end-of-text "</s>"
refuse "has no token '</x>', which --end-of-text names" "$train" --run ends2 $small --train ends_000000.bin --tokenizer other_end.json --end-of-text "</x>"
refuse "the token ~, which precedes each, does not occur in it" "$train" --run ends3 $small --train train_000000.bin --validation val_000000.bin --tokenizer tokenizer.json \
    --end-of-text "~" --validate-documents
# The tokenizer next to the weights determines what a document is.
expect 0 "step 1/1" "$train" --run beside $small --warmup 0 --train "train_*.bin" --validation "val_*.bin" --init-from whole/checkpoints/step_00000008 \
    --steps 1 --validate-documents
cp -r whole/checkpoints/step_00000008 without
rm without/manifest without/tokenizer.json
refuse "needs --tokenizer: there is none in the folder of the weights" "$train" --run beside2 $small --warmup 0 --train "train_*.bin" --validation "val_*.bin" --init-from without \
    --steps 1 --validate-documents
# The folder determines what ends a sample: here, the most probable token after the prompt.
cp -r whole/checkpoints/step_00000008 stops
rm stops/manifest
first=$("$train" --init-from stops --sample Onc --temperature 0 --sample-tokens 1 2>/dev/null | head -c 4 | tail -c 1)
python3 - "$first" <<'END'
import json, sys
vocabulary = json.load(open("tokenizer.json"))["model"]["vocab"]
json.dump({"eos_token_id": [i for token, i in vocabulary.items() if token.startswith(sys.argv[1].replace(" ", "\u0120"))]}, open("stops/generation_config.json", "w"))
END
expect 0 "^1 tokens" "$train" --init-from stops --sample Onc --temperature 0 --sample-tokens 20
expect 0 "step 1/1" "$train" --run stopped $small --train "train_*.bin" --init-from stops --warmup 0 --steps 1
same <(python3 -c "import json; print(json.load(open('stops/generation_config.json')))") \
    <(python3 -c "import json; print(json.load(open('stopped/checkpoints/step_00000001/generation_config.json')))") "the tokens that stop, in a checkpoint"
# A tokenizer of two files next to the weights.
cp -r whole/checkpoints/step_00000008 pair
rm pair/manifest pair/tokenizer.json
python3 - <<'END'
import json
tokenizer = json.load(open("tokenizer.json"))["model"]
json.dump(tokenizer["vocab"], open("pair/vocab.json", "w"))
open("pair/merges.txt", "w").write("#version: 0.2\n" + "".join(merge + "\n" for merge in tokenizer["merges"]))
END
"$train" --init-from pair --sample "<|endoftext|>Onc" --temperature 0 --sample-tokens 20 >b.txt 2>/dev/null
same a.txt b.txt "the tokenizer of two files"
# A tokenizer with the same vocabulary and other merges is a different one.
python3 - <<'END'
import json
tokenizer = json.load(open("tokenizer.json"))
tokenizer["model"]["merges"].reverse()
json.dump(tokenizer, open("reversed.json", "w"))
END
refuse "reversed.json' is not the tokenizer that this run was started with" "$train" --run whole --resume --tokenizer reversed.json
# Unknown keys of tokenizer.json.
sed 's/"truncation": null/"truncation": {"max_length": 5}/' tokenizer.json >truncates.json
refuse "truncates.json: truncation shortens long texts, expected null; --ignore-key truncation ignores it" "$train" --run keys $small --train "train_*.bin" --tokenizer truncates.json
expect 0 "step 1/1" "$train" --run keys $small --warmup 0 --train "train_*.bin" --tokenizer truncates.json --ignore-key truncation --steps 1

# ---- samples ---------------------------------------------------------------------------------------------------------

expect 0 "^Once upon" "$train" --run whole --sample "Once upon" --sample-tokens 10
expect 0 "tokens/s" "$train" --run whole --sample "Once upon" --sample-tokens 100 --top-k 5 --top-p 0.9 --temperature 1.2
"$train" --run whole --sample "A" --seed 3 >a.txt 2>/dev/null && "$train" --run whole --sample "A" --seed 3 >b.txt 2>/dev/null
same a.txt b.txt
expect 0 "A" "$train" --init-from whole/checkpoints/step_00000008 --sample "A" --temperature 0
refuse "no checkpoint" "$train" --run nowhere --sample "A"

# ---- signals ---------------------------------------------------------------------------------------------------------

for signal in INT:5 TERM:5 USR1:5; do
    run=signal_${signal%:*}
    "$train" --run "$run" $small "${data[@]}" --steps 1000000 --validate-every 0 >log.txt 2>&1 &
    pid=$!
    wait_for_steps "$run" 1
    kill -"${signal%:*}" $pid
    wait $pid
    status=$?
    [ "$status" = "${signal#*:}" ] && pass || fail "exit status $status after SIG${signal%:*}"
    grep -q "to resume: $train --run $run --resume" log.txt && pass || fail "no word how to resume after SIG${signal%:*}"
    [ -s "$run"/checkpoints/step_*/manifest ] && pass || fail "no checkpoint after SIG${signal%:*}"
done

# Signals ignored by nohup stay ignored.
nohup "$train" --run nohup $small "${data[@]}" --steps 1000000 --validate-every 0 >log.txt 2>&1 &
pid=$!
wait_for_steps nohup 1
steps=$(grep -c '"loss"' nohup/metrics.jsonl)
kill -HUP $pid
wait_for_steps nohup $((steps + 20)) && kill -0 $pid && pass || fail "nohup does not protect a run"
kill -TERM $pid
wait $pid

# ---- invalid options -------------------------------------------------------------------------------------------------

refuse "did you mean --learning-rate" "$train" --learning-rat 1
refuse "there is no option --xyzzy" "$train" --xyzzy 1
refuse "needs a value" "$train" --steps
refuse "whole number, not 'ten'" "$train" --steps ten
refuse "whole number, not '1.5'" "$train" --steps 1.5
refuse "between" "$train" --steps 0
refuse "between" "$train" --batch -1
refuse "a number, not 'nan'" "$train" --learning-rate nan
refuse "between" "$train" --dropout 1.5
refuse "one of auto\|naive\|flash" "$train" --attention slow
refuse "not an option" "$train" stray
refuse "there is no --no-steps" "$train" --no-steps
refuse "cannot open 'nofile'" "$train" @nofile
refuse "give --train" "$train"
refuse "does not divide" "$train" $small "${data[@]}" --num-heads 3
refuse "multiple of 8" "$train" $small "${data[@]}" --num-heads 8
refuse "a multiple of 1/256" "$train" $small "${data[@]}" --dropout 0.001
refuse "more than the model's 16 positions" "$train" $small "${data[@]}" --max-sequence-length 16
refuse "give only one of them" "$train" $small "${data[@]}" --resume --init-from whole/checkpoints/step_00000008 --run whole
refuse "with --model free only" "$train" $small "${data[@]}" --model gpt2-124M
refuse "vocabulary is unknown" "$train" $small --train "train_*.bin"
refuse "needs --tokenizer" "$train" $small --train "train_*.bin" --vocab-size 300 --validate-documents
refuse "the tokenizer tokenizer.json has 300 tokens, but the model has 299: " "$train" $small "${data[@]}" --vocab-size 299
refuse "must be less than --steps" "$train" $small "${data[@]}" --steps 2 --warmup 2
refuse "no run to resume" "$train" --run nowhere --resume
refuse "is the folder of a model, not of a run" "$train" --run whole/checkpoints/step_00000008 --resume
refuse "is the folder of a model, not of a run" "$train" --run whole/checkpoints/step_00000008 --sample "A"
refuse "is the folder of a run: give --init-from one of the folders in 'whole/checkpoints'" "$train" $small "${data[@]}" --run other --init-from whole
# A model with fewer positions than the default sequence length determines the sequence length. A shard that is too
# short is named.
expect 0 "step 1/1 " "$train" --run short ${small/--sequence-length 32/} "${data[@]}" --init-from whole/checkpoints/step_00000008 --steps 1 --warmup 0 --sample-tokens 1
grep -q -- "--sequence-length=32" short/options.txt && pass || fail "the sequence length of a model with 32 positions"
head -c 1064 train_000000.bin >short_000000.bin # 20 tokens
printf '\24\0\0\0' | dd of=short_000000.bin bs=1 seek=8 conv=notrunc 2>/dev/null
expect 0 "^warning: skipping 1 of [0-9]+ shards for having too few tokens for a sequence .* the first is 'short_000000.bin'" "$train" --run with_short $small \
    "${data[@]}" --train "*_00000?.bin" --steps 1 --warmup 0 --sample-tokens 1
expect 0 "this run has already done 8 steps, and --steps is 4" "$train" --run whole --resume --steps 4
refuse "has checkpoints of an earlier run" "$train" --run whole $small "${data[@]}"
same <(curve whole) <(curve again)
refuse "the largest batch that fits is --batch [0-9]+" "$train" --run huge $small "${data[@]}" --batch 1000000
refuse "not even --batch 1 fits" "$train" --run huge $small "${data[@]}" --channels 16384 --num-heads 128 --num-layers 500
refuse "would take .* GB" "$train" --run huge $small "${data[@]}" --batch 1000000 --channels 65536 --num-heads 512 --num-layers 1000

# ---- losses that are not finite --------------------------------------------------------------------------------------

cp -r whole/checkpoints/step_00000008 poisoned && rm poisoned/manifest
python3 -c "
f = open('poisoned/model.safetensors', 'r+b')
f.seek(-4, 2)
f.write(bytes([0, 0, 0xc0, 0x7f]))" # sets the last weight to NaN
poisoned=(--run poisoned_run $small --init-from poisoned "${data[@]}" --steps 20 --validate-every 0 --max-skips 3)
expect 4 "^error: 3 steps in a row had a non-finite loss.*stopped after step 3" "$train" "${poisoned[@]}"
[ -s poisoned_run/checkpoints/step_00000003/manifest ] && pass || fail "no checkpoint after too many skips"
[ "$(grep -c '"loss": null.*"skipped": true' poisoned_run/metrics.jsonl)" = 3 ] && pass || fail "the skipped steps are not in the metrics"
# The checkpoint has the NaN: there is nothing better to save.
expect 4 "^error: .*stopped after step 6" "$train" --run poisoned_run --resume
[ -d poisoned_run/checkpoints/step_00000006 ] && fail "a checkpoint is saved while steps are skipped" || pass
refuse "not finite" "$train" --run poisoned_run --sample "A"
expect 4 "^error: .*stopped after step 3" "$train" "${poisoned[@]}" --run poisoned_samples --sample-every 1
grep -q "^---- the model's logits are not finite" out.txt && pass || fail "a sample does not say that the weights are not finite"

# ---- invalid shards --------------------------------------------------------------------------------------------------

# shard FILE MAGIC VERSION COUNT TOKEN...: writes a file in llm.c's format, with any count in its header.
shard() {
    python3 - "$@" <<'EOF'
import struct, sys
path, magic, version, count, *tokens = sys.argv[1:]
with open(path, "wb") as f:
    f.write(struct.pack("<256i", int(magic), int(version), int(count), *[0] * 253))
    f.write(struct.pack(f"<{len(tokens)}H", *map(int, tokens)))
EOF
}
many=$(seq 0 99 | tr '\n' ' ')
try() { refuse "$1" "$train" --run bad $small --vocab-size 100 --train "$2"; }
shard good.bin 20240520 1 100 $many
shard magic.bin 1234 1 100 $many
shard version.bin 20240520 2 100 $many
shard longer.bin 20240520 1 101 $many
shard shorter.bin 20240520 1 99 $many
shard negative.bin 20240520 1 -5 $many
shard short.bin 20240520 1 20 $(seq 0 19)
shard token.bin 20240520 1 100 $(seq 5 104) # 100 is at position 95
head -c 100 good.bin >truncated.bin
: >empty.bin
expect 0 "step 2/2" "$train" --run good $small --vocab-size 100 --train good.bin --steps 2 --warmup 0
try "missing.bin" missing.bin
try "magic.bin" magic.bin
try "version.bin" version.bin
try "longer.bin" longer.bin
try "shorter.bin" shorter.bin
try "negative.bin" negative.bin
try "truncated.bin" truncated.bin
try "empty.bin" empty.bin
try "33" short.bin
refuse "token 95 of 'token.bin' is 100" "$train" --run bad $small --vocab-size 100 --train token.bin --steps 3 --warmup 0 --batch 1
mkdir folder.bin
try "folder.bin" folder.bin

# ---- damaged checkpoints ---------------------------------------------------------------------------------------------

checkpoint=whole/checkpoints/step_00000008
damaged() { # PATTERN FILE COMMAND...: the command damages a copy of the file
    rm -rf broken && cp -r whole broken
    (cd broken/checkpoints/step_00000008 && eval "$3")
    expect 1 "^warning: checkpoint step_00000008 is skipped: .*$1" "$train" --run broken --resume --steps 20
    expect 1 "^error: there is no intact checkpoint" "$train" --run broken --sample "A"
}
flip() { python3 -c "
import sys
f = open(sys.argv[1], 'r+b'); f.seek(int(sys.argv[2])); b = f.read(1); f.seek(int(sys.argv[2])); f.write(bytes([b[0] ^ 1]))" "$1" "$2"; }
export -f flip
for file in model.safetensors optimizer.safetensors config.json training_state.json tokenizer.json manifest; do
    size=$(stat -c %s "$checkpoint/$file")
    for at in 0 $((size / 2)) $((size - 1)); do damaged "$file" "$file" "flip $file $at"; done
    damaged "$file" "$file" "truncate -s $((size / 2)) $file"
    damaged "$file" "$file" "rm $file"
done
# Folders of other programs have no manifest: what is read is checked nevertheless.
foreign() { # PATTERN, then commands that damage it
    rm -rf foreign && cp -r "$checkpoint" foreign && rm foreign/manifest
    (cd foreign && eval "$2")
    refuse "$1" "$train" --run bad $small --init-from foreign "${data[@]}"
}
expect 0 "step 2/2" "$train" --run warm $small --init-from "$checkpoint" "${data[@]}" --steps 2 --warmup 0
foreign "config.json" "echo '{' >config.json"
foreign "n_layer" "sed -i 's/\"n_layer\"/\"n_layers\"/' config.json"
foreign "model_type" "sed -i 's/\"gpt2\"/\"llama\"/' config.json"
foreign "shape|expected" "sed -i 's/\"n_positions\":.*/\"n_positions\": 40,/' config.json"
foreign "missing" "sed -i 's/\"n_layer\":.*/\"n_layer\": 3,/' config.json"
foreign "not part of this model" "sed -i 's/\"n_layer\":.*/\"n_layer\": 1,/' config.json"
foreign "does not divide|multiple of 8" "sed -i 's/\"n_head\":.*/\"n_head\": 3,/' config.json"
foreign "out of bounds" "sed -i 's/\"n_embd\":.*/\"n_embd\": 0,/' config.json"
foreign "cut|damaged" "truncate -s -1000 model.safetensors"
foreign "safetensors" ": >model.safetensors"
foreign "model.safetensors" "rm model.safetensors"
echo '[]' >list.json
refuse "list.json" "$train" --run bad $small "${data[@]}" --tokenizer list.json

# ---- a full disk -----------------------------------------------------------------------------------------------------

refuse "cannot create the folder" "$train" --run /proc/run $small "${data[@]}" --steps 2 --warmup 0
refuse "cannot create the folder" "$train" --run options.txt $small "${data[@]}" --steps 2 --warmup 0
# A full disk: a small file system if one may be mounted, else a limit on the size of files. The previous checkpoint
# stays intact, nothing partial is left, and with space available the run continues.
full() { # COMMAND...: resumes where the next checkpoint does not fit
    expect 2 "^error: cannot save step 12: cannot write" "$@"
    ls "$full/checkpoints" | grep -qv '^step_00000008$' && fail "left over: $(ls "$full/checkpoints")" || pass
    expect 0 "^A" "$train" --run "$full" --sample "A" --sample-tokens 3
}
mkdir disk
if mount -t tmpfs -o size=900k tmpfs disk 2>/dev/null; then
    trap 'umount "$work/disk"; rm -rf "$work"' EXIT
    full=disk/run
    cp -r whole $full
    full "$train" --run $full --resume --steps 12
    mount -o remount,size=5m disk
else
    full=limited
    cp -r whole $full
    full bash -c "trap '' XFSZ; ulimit -f 100; exec $train --run $full --resume --steps 12" # in kB
fi
expect 0 "step 12/12" "$train" --run $full --resume --steps 12

# ---- the other commands ----------------------------------------------------------------------------------------------

refuse "missing.txt" "$tokenize" train --input missing.txt --vocab 300 --out t.json
refuse "missing" "$tokenize" encode --tokenizer missing.json --input stories/train.txt --out x
refuse "between" "$tokenize" train --input stories/train.txt --vocab 0 --out t.json
refuse "" "$tokenize" encode --tokenizer tokenizer.json --input stories/train.txt --out /proc/x
refuse "between" "$build/data/write_stories" --train-bytes -1
expect 0 "" "$tokenize" inspect --tokenizer tokenizer.json --input "val_*.bin"
"$tokenize" decode --tokenizer tokenizer.json --input "val_*.bin" --out back.txt >/dev/null 2>&1
same stories/validation.txt back.txt

finish
