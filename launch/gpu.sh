#!/usr/bin/env bash
# A run on one machine with NVIDIA GPUs, from nothing: checks the driver, installs, looks whether
# everything is as it should be (cipo doctor), and trains on all GPUs.
#
#   bash launch/gpu.sh configs/quickstart.yaml --run-dir runs/first --train.steps 30
#
# The same line goes on with a run that was cut off. CIPO_VENV, PYTHON: as in launch/env.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

fail() {
  echo "gpu.sh: $*" >&2
  exit 2
}

# The newest CUDA that the driver can run. jax documents the least versions: 580 and 525.
cuda_extra() {
  local driver major
  command -v nvidia-smi >/dev/null ||
    fail "no nvidia-smi: install the NVIDIA driver, or in a container start it with --gpus all"
  driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>&1) ||
    fail "nvidia-smi finds no GPU: $driver"
  driver=${driver%%$'\n'*}
  major=${driver%%.*}
  [[ $major =~ ^[0-9]+$ ]] || fail "nvidia-smi names no driver version: $driver"
  if [ "$major" -ge 580 ]; then
    echo cuda13
  elif [ "$major" -ge 525 ]; then
    echo cuda12
  else
    fail "the NVIDIA driver is $driver; at least 525 is needed (CUDA 12), or 580 (CUDA 13)"
  fi
}

case ${1:-} in
  '' | -*) fail "usage: bash launch/gpu.sh CONFIG [--run-dir DIR] [--any.field value ...]" ;;
esac
extra=$(cuda_extra)
CIPO_EXTRAS=${CIPO_EXTRAS:-$extra}
cipo_environment
# With the CPU beside it, for what is computed on the host.
export JAX_PLATFORMS=${JAX_PLATFORMS:-cuda,cpu}
cipo doctor "$@"
exec cipo train "$@"
