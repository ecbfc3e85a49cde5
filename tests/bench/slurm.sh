#!/usr/bin/env bash
# launch/slurm.sbatch under a real Slurm of one node: two processes find each other by jax's own
# detection, are asked to stop before their time is over, save, are queued again and go on.
#
#   bash tests/bench/slurm.sh DIR
#
# Needs root, Slurm and munge (Debian and Ubuntu: apt-get install slurm-wlm munge), an installed
# .venv, no GPU, and a quarter of an hour: Slurm waits two minutes before it starts a job again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
dir=$(realpath -m "${1:?slurm.sh: usage: bash tests/bench/slurm.sh DIR}")
mkdir -p "$dir"/{state,spool} /run/munge
node=$(hostname -s)

cat >"$dir/slurm.conf" <<EOF
ClusterName=one
SlurmctldHost=$node(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
AccountingStorageType=accounting_storage/none
MpiDefault=none
NodeName=$node NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=main Nodes=$node Default=YES MaxTime=INFINITE State=UP
EOF
export SLURM_CONF=$dir/slurm.conf JAX_PLATFORMS=cpu NPROC=16
munge -n >/dev/null 2>&1 || munged --force
trap 'kill "$(cat "$dir/slurmd.pid")" "$(cat "$dir/slurmctld.pid")"' EXIT
slurmctld
slurmd
sinfo --version

# Asked to stop 100 to 160 seconds before its three minutes are over.
job=$(sbatch --parsable --nodes=1 --gpus-per-node=0 --ntasks-per-node=2 --cpus-per-task=1 \
  --time=00:03:00 --signal=TERM@100 --output="$dir/job.log" \
  launch/slurm.sbatch configs/smoke.yaml --run-dir "$dir/run" --train.steps 60 \
  --checkpoint.every 10)
while squeue --noheader --job "$job" 2>/dev/null | grep -q .; do sleep 5; done
cat "$dir/job.log"

for said in "stopped after step" "the job is queued again" "step 60/60" "plot:"; do
  grep -q "$said" "$dir/job.log" || { echo "slurm.sh: nothing in job.log says '$said'" >&2 && exit 1; }
done
.venv/bin/python - "$dir/run" <<'EOF'
import json, pathlib, sys

run = pathlib.Path(sys.argv[1])
steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
assert steps == list(range(1, 61)), steps
processes = json.loads((run / "environment.json").read_text())["devices"]["processes"]
assert processes == 2, processes
print("60 steps, each once, by two processes")
EOF
