#!/usr/bin/env bash
# Sets up like the quickstart, with the test tools, and runs the tests.
# Extra arguments go to pytest:   bash launch/test.sh tests/method/test_losses.py
#
#   CIPO_TEST_PROCESSES   how many test files run at a time (default: 2)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
CIPO_EXTRAS=${CIPO_EXTRAS:-test} cipo_environment
# In the order of the files: by itself xdist puts those with few tests last, which take longest.
exec python -m pytest -n "${CIPO_TEST_PROCESSES:-2}" --dist loadfile --no-loadscope-reorder "$@"
