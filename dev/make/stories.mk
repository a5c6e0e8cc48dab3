# A trained GPT from nothing. Part of the Makefile.
# Each file is made once; `make clean_stories` forgets them.
STORIES := datasets/stories
RUN     := runs/stories
STORIES_VOCABULARY := 3400
STORIES_BYTES := 12M
STORIES_OPTIONS := --run $(RUN) --train '$(STORIES)/train_*.bin' --validation '$(STORIES)/validation_*.bin' \
    --tokenizer $(STORIES)/tokenizer.json --validate-documents --validation-batches 1000 \
    --num-layers 3 --num-heads 4 --channels 128 --batch 7 --sequence-length 144 --steps 1400 --learning-rate 4e-3 \
    --schedule linear --final-learning-rate 0 --beta2 0.98 --warmup 50 --init-embedding 0.16 --init-matrices 0.08 \
    --validate-every 350

.PHONY: train stories_run clean_stories
train:
	@echo 'Building the programs, writing a corpus of stories, and training a tokenizer and a GPT on it: two minutes on two cores.'
	@$(MAKE) --no-print-directory stories_run || { echo 'error: make train has not finished; the lines above say why.' \
	    'Run it again to continue from what exists, or make clean_stories first to start over.' >&2; exit 1; }

$(STORIES)/floor.json: | programs
	$(BUILD)/data/write_stories --out $(STORIES) --train-bytes $(STORIES_BYTES) --ngram 5
$(STORIES)/tokenizer.json: $(STORIES)/floor.json | programs
	$(BUILD)/data/tokenize train --input $(STORIES)/train.txt --vocab $(STORIES_VOCABULARY) --out $@
$(STORIES)/validation_000000.bin: $(STORIES)/tokenizer.json | programs
	$(BUILD)/data/tokenize encode --tokenizer $< --input $(STORIES)/train.txt --out $(STORIES)/train
	$(BUILD)/data/tokenize encode --tokenizer $< --input $(STORIES)/validation.txt --out $(STORIES)/validation

stories_run: $(STORIES)/validation_000000.bin
	@if [ -d $(RUN)/checkpoints ]; then $(TRAIN_GPT) --run $(RUN) --resume; else $(TRAIN_GPT) $(STORIES_OPTIONS) \
	    --validation-floor $$(sed 's/.*"bits_per_byte": \([0-9.]*\).*/\1/' $(STORIES)/floor.json); fi
	@sed 's/.*"ngram_bits_per_byte": \([0-9.]*\).*/For comparison, an order-5 byte n-gram model has \1 bits per byte./' $(STORIES)/floor.json
	@echo 'To see more of what it writes: $(TRAIN_GPT) --run $(RUN) --sample "Once upon a time"'
clean_stories:
	dev/remove_made.sh run $(RUN)
	dev/remove_made.sh stories $(STORIES)
