#!/usr/bin/env bash
# A run on TPU slices of a GKE cluster, through xpk (pip install xpk). The cluster is there already:
#
#   xpk cluster create --cluster CLUSTER --tpu-type v5litepod-16 --num-slices 1 --spot \
#     --enable-workload-identity --enable-gcsfuse-csi-driver --zone ZONE --project PROJECT
set -euo pipefail

usage() {
  cat <<'USAGE'
usage: bash launch/xpk.sh ACTION --cluster CLUSTER --name NAME [options] [-- cipo arguments]

  storage   make the bucket known to the cluster, once; mounted as /bucket
  create    build an image from this folder, and train;  cipo arguments: CONFIG [...]
  log       follow the log of worker 0
  list      the cluster's workloads
  delete    end it; the same `create` goes on with the run

  --cluster CLUSTER    (or CLUSTER)
  --name NAME          of the workload, and of the run
  --zone ZONE          (or ZONE)
  --project PROJECT    (or PROJECT; default: gcloud's)
  --type TYPE          v5litepod-16, v6e-64, ...: for create
  --slices N           for create; with more than one, set --mesh.slices N, too (default: 1)
  --bucket BUCKET      Cloud Storage bucket of the runs: for storage and create
  --restarts N         after preemptions (default: 100)
  --dry-run            print every line, run none
USAGE
}

fail() {
  echo "xpk.sh: $*" >&2
  exit 2
}

cluster=${CLUSTER:-} zone=${ZONE:-} project=${PROJECT:-}
name='' type='' slices=1 bucket='' restarts=100 dry=''
arguments=()

parse() {
  while [ $# -gt 0 ]; do
    case $1 in
      --dry-run) dry=1 ;;
      --cluster | --name | --zone | --project | --type | --slices | --bucket | --restarts)
        [ $# -ge 2 ] || fail "$1 needs a value"
        case $1 in
          --cluster) cluster=$2 ;;
          --name) name=$2 ;;
          --zone) zone=$2 ;;
          --project) project=$2 ;;
          --type) type=$2 ;;
          --slices) slices=$2 ;;
          --bucket) bucket=${2#gs://} ;;
          --restarts) restarts=$2 ;;
        esac
        shift
        ;;
      --)
        shift
        arguments=("$@")
        return
        ;;
      *) fail "no such option: $1 (cipo's own arguments follow after --)" ;;
    esac
    shift
  done
}

# Runs a command line, or prints it as it could be pasted into a shell.
perform() {
  if [ -n "$dry" ]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

place() {
  where=("--cluster=$cluster" "--zone=$zone")
  [ -z "$project" ] || where+=("--project=$project")
}

storage() {
  [ -n "$bucket" ] || fail "storage needs --bucket"
  # Caching of metadata is off: what one worker writes the others must see at once. The size (GiB)
  # has to be said, and limits nothing.
  perform xpk storage attach cipo-runs "${where[@]}" --type=gcsfuse "--bucket=$bucket" \
    --size=1000 --mount-point=/bucket --readonly=false --auto-mount=false \
    --mount-options=implicit-dirs,metadata-cache:ttl-secs:0
}

create() {
  [ -n "$type" ] || fail "create needs --type, such as v5litepod-16"
  [ -n "$bucket" ] || fail "create needs --bucket: a pod's own disk is lost with the pod"
  [ ${#arguments[@]} -gt 0 ] || fail "create needs -- CONFIG"
  local quoted here
  here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  printf -v quoted ' %q' "${arguments[@]}"
  # xpk copies the folder into the image, under /app. By default a workload starts again where a
  # pod ends with 42 or 127 to 255: a lost peer ends the others with 134, a faulty config with 2.
  perform xpk workload create "${where[@]}" "--workload=$name" "--tpu-type=$type" \
    "--num-slices=$slices" --base-docker-image=python:3.12 "--script-dir=$here" \
    --storage=cipo-runs "--max-restarts=$restarts" \
    "--command=cd /app && CIPO_EXTRAS=tpu source launch/env.sh && CIPO_EXTRAS=tpu cipo_environment && exec env JAX_PLATFORMS=tpu,cpu cipo train$quoted --distributed --run-dir /bucket/runs/$name"
}

log() {
  perform kubectl logs --follow --tail=200 --container=jax-tpu \
    "--selector=xpk.google.com/workload=$name,batch.kubernetes.io/job-completion-index=0"
}

list() {
  perform xpk workload list "${where[@]}"
}

delete() {
  perform xpk workload delete "${where[@]}" "--workload=$name" --force
}

action=${1:-}
[ $# -eq 0 ] || shift
case $action in
  storage | create | log | list | delete) ;;
  -h | --help | help)
    usage
    exit 0
    ;;
  *)
    usage >&2
    [ -z "$action" ] || fail "no such action: $action"
    exit 2
    ;;
esac
parse "$@"
[ -n "$cluster" ] || fail "$action needs --cluster"
[ -n "$zone" ] || fail "$action needs --zone"
[ -n "$name" ] || [[ $action = storage || $action = list ]] || fail "$action needs --name"
[ -n "$dry" ] || command -v xpk >/dev/null || fail "xpk is not installed: pip install xpk"
place
"$action"
