#!/bin/sh
# The whole suite once more, built with AddressSanitizer (leaks included) and UndefinedBehaviorSanitizer.
make -s SANITIZE=address,undefined test
