#!/usr/bin/env bash
# Every trainer on every workload, alternating:   tests/bench/peers/run.sh [ROUNDS]
#
#   CIPO_PYTHON, TUNIX_PYTHON, TRL_PYTHON   interpreters of the three environments (README.md)
#   OUT     folder of the results (default: a new one under /tmp)
#   WORKS   which workloads (default: W1 W2 W3)
#
# All run with the same allocator setting, that of launch/env.sh.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=${OUT:-$(mktemp -d)}
mkdir -p "$out"
cd "$here" || exit 1
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1} JAX_PLATFORMS=cpu
export PYTHONPATH=$here/../../..
cipo=${CIPO_PYTHON:-$PYTHONPATH/.venv/bin/python} tunix=$TUNIX_PYTHON trl=$TRL_PYTHON

run() { # trainer, interpreter, workload
  # Trainers also print what they please; the line that counts is their last.
  if "$2" "run_$1.py" "$3" --out "$out/results.jsonl" >"$out/said.log" 2>>"$out/errors.log"; then
    tail -n 1 "$out/said.log"
  else
    echo "$1 $3 failed, see $out/errors.log"
  fi
}

for _ in $(seq "${1:-2}"); do
  for work in ${WORKS:-W1 W2 W3}; do
    for python in "$cipo" "$trl"; do
      "$python" floor.py --out "$out/floor.jsonl"
    done
    run cipo "$cipo" "$work"
    run tunix "$tunix" "$work"
    run trl "$trl" "$work"
  done
done
"$cipo" report.py "$out/results.jsonl" "$out/floor.jsonl" | tee "$out/table.md"
echo "results: $out"
