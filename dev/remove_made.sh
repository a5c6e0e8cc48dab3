#!/bin/sh
# Removes the files that make train and make profile created, and no other files in the same folders.
#     dev/remove_made.sh run FOLDER        a run: checkpoints with its id in their manifest, its metrics and options
#     dev/remove_made.sh stories FOLDER    the corpus of stories, its tokenizer and shards
# A folder that does not exist is ignored; one without its identifying file (run_id or floor.json) is an error.
fail() {
    echo "error: $*" >&2
    exit 1
}
kind=$1 folder=$2
[ -e "$folder" ] || exit 0
case $kind in
run)
    id=$(sed -n 's/^run \([0-9a-f]\{16\}\)$/\1/p' "$folder/run_id" 2>/dev/null)
    [ -n "$id" ] || fail "'$folder' is not the folder of a run: it has no run_id; remove it yourself if you mean it"
    for checkpoint in "$folder"/checkpoints/step_*; do
        [ "$(head -n 1 "$checkpoint/manifest" 2>/dev/null)" = "run $id" ] || continue
        sed -n 's/^[0-9a-f]\{8\} [0-9]* //p' "$checkpoint/manifest" | while read -r name; do rm -f "$checkpoint/$name"; done
        rm -f "$checkpoint/manifest"
        rmdir "$checkpoint" 2>/dev/null
    done
    rmdir "$folder/checkpoints" 2>/dev/null
    rm -f "$folder/metrics.jsonl" "$folder/options.txt" "$folder/matmul.txt" "$folder/lock" "$folder/run_id"
    ;;
stories)
    [ -f "$folder/floor.json" ] || fail "'$folder' is not a corpus of stories: it has no floor.json; remove it yourself if you mean it"
    for name in train validation; do rm -f "$folder/$name.txt" "$folder/$name"_[0-9][0-9][0-9][0-9][0-9][0-9].bin; done
    rm -f "$folder/tokenizer.json" "$folder/floor.json"
    ;;
*) fail "usage: dev/remove_made.sh run|stories FOLDER" ;;
esac
rmdir "$folder" 2>/dev/null || echo "'$folder' is kept: it has files that make did not make"
