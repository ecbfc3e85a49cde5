#!/usr/bin/env bash
# Makes the plans of this folder anew, one after the other: bash docs/plans/make.sh [NAME ...]
#
# Needs the extra [tpu], no TPU, 8 GB of memory and about 15 minutes of CPU time for each.
# LARGEST=rows,prompts,length also searches for the largest settings that fit, which takes several
# times as long. PYTHON is the interpreter (default: python). Beside tables and picture everything is
# left as JSON, for scripts; git ignores it.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 2

# name | config | slice | settings that differ from the config
PLANS="
qwen3_4b_math.v5litepod-16      | qwen3_4b_math      | v5litepod-16 | --mesh.tensor 4 --train.rows-per-microbatch 4
qwen3_4b_math.v5litepod-64      | qwen3_4b_math      | v5litepod-64 | --mesh.tensor 4 --train.rows-per-microbatch 16
qwen3_4b_math.v5p-16            | qwen3_4b_math      | v5p-16       |
qwen3_4b_math.v6e-16            | qwen3_4b_math      | v6e-16       | --mesh.tensor 4 --train.rows-per-microbatch 4
qwen3_4b_math_lora.v5litepod-16 | qwen3_4b_math_lora | v5litepod-16 | --mesh.tensor 4 --train.rows-per-microbatch 4
qwen3_4b_math_lora.v5litepod-64 | qwen3_4b_math_lora | v5litepod-64 | --mesh.tensor 4 --train.rows-per-microbatch 16
qwen3_4b_math_lora.v5p-16       | qwen3_4b_math_lora | v5p-16       |
qwen3_4b_math_lora.v6e-16       | qwen3_4b_math_lora | v6e-16       | --mesh.tensor 4 --train.rows-per-microbatch 4
seed_coder_8b_code.v5litepod-16 | seed_coder_8b_code | v5litepod-16 | --mesh.tensor 8 --train.rows-per-microbatch 2 --optimizer.kind adafactor
seed_coder_8b_code.v5litepod-64 | seed_coder_8b_code | v5litepod-64 | --mesh.tensor 4 --train.rows-per-microbatch 16
seed_coder_8b_code.v5p-16       | seed_coder_8b_code | v5p-16       |
seed_coder_8b_code.v6e-16       | seed_coder_8b_code | v6e-16       | --mesh.tensor 4 --train.rows-per-microbatch 4
"

while IFS='|' read -r name config slice settings; do
  name=${name// /} config=${config// /} slice=${slice// /}
  [ -n "$name" ] || continue
  [ $# -eq 0 ] || [[ " $* " == *" $name "* ]] || continue
  echo "== $name: cipo plan configs/$config.yaml --topology $slice$settings"
  # shellcheck disable=SC2086  # the settings are words
  ${PYTHON:-python} -m cipo_jax.cli plan "configs/$config.yaml" --topology "$slice" $settings \
    --largest "${LARGEST:-none}" --json --text "docs/plans/$name.txt" \
    --picture "docs/plans/$name.png" >"docs/plans/$name.json.tmp" </dev/null
  status=$?
  case $status in
    0 | 1) mv "docs/plans/$name.json.tmp" "docs/plans/$name.json" ;;
    *) rm -f "docs/plans/$name.json.tmp" ;;
  esac
  echo "   exit status $status"
done <<<"$PLANS"
${PYTHON:-python} docs/plans/summarise.py
