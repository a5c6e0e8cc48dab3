#!/bin/sh
# Reports the tests that make skips because a tool is not installed.
#     SKIPPED="TEST:TOOL ..." test/harness/skipped.sh
count=0
for entry in $SKIPPED; do
    count=$((count + 1))
    echo "skipped: ${entry%%:*} (${entry#*:} is not installed)"
done
echo "0 passed, 0 failed, $count skipped"
