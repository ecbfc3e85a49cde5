#!/usr/bin/env bash
# Sets up like the quickstart, with the test tools, and runs the tests.
# Extra arguments go to pytest:   bash launch/test.sh tests/method/test_losses.py
#
#   --fast                without the slow tests: the loop of daily work; it needs no torch
#   CIPO_TEST_PROCESSES   how many test files run at a time (default: 2)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
extras="test"
for argument in "$@"; do
  [ "$argument" != --fast ] || extras="test-fast"
done
CIPO_EXTRAS=${CIPO_EXTRAS:-$extras} cipo_environment
# In the order of the files: by itself xdist puts those with few tests last, which take longest.
exec python -m pytest -n "${CIPO_TEST_PROCESSES:-2}" --dist loadfile --no-loadscope-reorder "$@"
