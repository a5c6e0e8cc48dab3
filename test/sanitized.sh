#!/bin/sh
# The whole suite once more, built with AddressSanitizer (leaks included) and UndefinedBehaviorSanitizer.
unset MAKEFLAGS MFLAGS MAKELEVEL # of a make that calls this
make -s -j"$(nproc)" SANITIZE=address,undefined test
