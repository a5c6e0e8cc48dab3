#!/bin/sh
# Runs the CPU suite built with AddressSanitizer (leaks included) and UndefinedBehaviorSanitizer. In `make test_long`.
. test/harness/suites.sh
suite "sanitized" SANITIZE=address,undefined test
finish_suites
