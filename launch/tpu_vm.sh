#!/usr/bin/env bash
# A run on a TPU VM or a slice of several, from creating it to deleting it. docs/tpu.md walks
# through it. Nothing is remembered between calls but what the cloud itself knows: every call names
# the slice, and the run by its folder.
set -euo pipefail

usage() {
  cat <<'USAGE'
usage: bash launch/tpu_vm.sh ACTION --name NAME --zone ZONE [options] [-- cipo arguments]

  create    make the slice (with --queued: ask for it and wait)
  install   copy this folder to all workers, install cipo, mount the bucket
  doctor    cipo doctor on all workers;   cipo arguments: CONFIG [--any.field value ...]
  run       cipo train on all workers, in the background; cipo arguments as for doctor
  log       follow the log of worker 0 (--worker N: of another)
  status    the state of the slice, and of the run on each worker
  stop      SIGTERM to the run: it finishes its step, saves and ends
  resume    where the run is not running: make the slice anew if it was preempted, and run
  keep      create, install and run where needed, and resume after every preemption until the run
            is finished
  delete    delete the slice

  --name NAME           of the slice (or TPU_NAME)
  --zone ZONE           such as us-west4-a (or ZONE)
  --project PROJECT     (or PROJECT; default: gcloud's)
  --type TYPE           v5litepod-8, v6e-16, v5p-16, v4-16: for create, resume, keep
  --version VERSION     the VM's image (default: the one for TYPE)
  --spot                cheaper, and can be taken away at any time
  --queued              through a queued resource, which waits until there is capacity
  --bucket BUCKET       Cloud Storage bucket, mounted on every worker as ~/bucket
  --run-dir DIR         the run's folder on the workers; with a bucket, ~/bucket/runs/...
                        (default: ~/bucket/runs/NAME with a bucket, else ~/runs/NAME)
  --worker N            for log
  --poll SECONDS        between two looks at the slice, for --queued and keep (default: 60)
  --dry-run             print every gcloud line, run none
USAGE
}

fail() {
  echo "tpu_vm.sh: $*" >&2
  exit 2
}

name=${TPU_NAME:-} zone=${ZONE:-} project=${PROJECT:-}
type='' version='' spot='' queued='' bucket='' run_dir='' dry='' worker=0 poll=60
arguments=()

parse() {
  while [ $# -gt 0 ]; do
    case $1 in
      --spot) spot=1 ;;
      --queued) queued=1 ;;
      --dry-run) dry=1 ;;
      --name | --zone | --project | --type | --version | --bucket | --run-dir | --worker | --poll)
        [ $# -ge 2 ] || fail "$1 needs a value"
        case $1 in
          --name) name=$2 ;;
          --zone) zone=$2 ;;
          --project) project=$2 ;;
          --type) type=$2 ;;
          --version) version=$2 ;;
          --bucket) bucket=${2#gs://} ;;
          --run-dir) run_dir=$2 ;;
          --worker) worker=$2 ;;
          --poll) poll=$2 ;;
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

# --- gcloud ---

# Runs a gcloud command, or prints it as it could be pasted into a shell.
cloud() {
  local line=(gcloud compute tpus "$@" "--zone=$zone")
  [ -z "$project" ] || line+=("--project=$project")
  if [ -n "$dry" ]; then
    # Not to the standard output, which some callers read.
    printf '%s\n' "$(printf '%q ' "${line[@]}")" >&3
  else
    "${line[@]}"
  fi
}

# Runs a command line on worker $1 (a number or "all").
on() {
  cloud tpu-vm ssh "$name" "--worker=$1" "--command=$2"
}

# READY, CREATING, PREEMPTED, ... or ABSENT; a dry run finds it ABSENT.
state() {
  local found
  if [ -n "$dry" ]; then
    cloud tpu-vm describe "$name" '--format=value(state)'
    echo ABSENT
    return
  fi
  if found=$(cloud tpu-vm describe "$name" '--format=value(state)' 2>&1); then
    echo "$found"
  elif [[ $found == *NOT_FOUND* || $found == *"not found"* ]]; then
    echo ABSENT
  else
    echo "$found" >&2
    fail "gcloud can't describe $name: see above"
  fi
}

image() {
  case $1 in
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    v2-* | v3-* | v4-*) echo tpu-ubuntu2204-base ;;
    *) fail "--type $1 is not known: v5litepod-N, v5p-N, v6e-N, v4-N; or give --version, too" ;;
  esac
}

# --- actions ---

create() {
  [ -n "$type" ] || fail "create needs --type, such as v5litepod-16"
  [ -n "$version" ] || version=$(image "$type")
  # The scope lets the workers write to the bucket.
  local options=("--accelerator-type=$type" --scopes=https://www.googleapis.com/auth/cloud-platform)
  [ -z "$spot" ] || options+=(--spot)
  if [ -n "$queued" ]; then
    cloud queued-resources create "$name" "--node-id=$name" "--runtime-version=$version" \
      "${options[@]}"
    wait_for_queue
  else
    cloud tpu-vm create "$name" "--version=$version" "${options[@]}"
  fi
}

wait_for_queue() {
  local found
  while true; do
    found=$(cloud queued-resources describe "$name" '--format=value(state.state)') || exit
    [ -z "$dry" ] || return 0
    case $found in
      ACTIVE) return ;;
      FAILED | SUSPENDED | SUSPENDING)
        fail "the queued resource $name is $found: delete it, and ask again" ;;
    esac
    echo "$(date +%T) $name is $found"
    sleep "$poll"
  done
}

delete() {
  # A slice from a queued resource goes with it; --force also takes the VMs.
  if [ -n "$queued" ]; then
    cloud queued-resources delete "$name" --force --quiet
  else
    cloud tpu-vm delete "$name" --quiet
  fi
}

install() {
  local here archive
  here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  archive=$(mktemp -d)/cipo_jax.tar.gz
  if [ -z "$dry" ]; then
    tar -czf "$archive" -C "$here" --exclude=./.git --exclude='./.venv*' --exclude=./runs \
      --exclude='*.egg-info' --exclude=__pycache__ --exclude='.*_cache' .
  fi
  cloud tpu-vm scp "$archive" "$name:cipo_jax.tar.gz" --worker=all
  rm -rf "$(dirname "$archive")"
  on all "$(install_command)"
  [ -z "$bucket" ] || on all "$(mount_command)"
}

# The images' own Python is older than 3.11, so uv brings one; env.sh does the rest.
install_command() {
  cat <<'REMOTE'
set -e; rm -rf ~/cipo_jax; mkdir ~/cipo_jax; tar -xzf ~/cipo_jax.tar.gz -C ~/cipo_jax
cd ~/cipo_jax; python3 -m pip install --quiet --user uv; python3 -m uv python install --quiet 3.12
export PYTHON="$(python3 -m uv python find 3.12)" CIPO_EXTRAS=tpu; source launch/env.sh
cipo_environment
cipo --version
REMOTE
}

# Caching of metadata is off: what one worker writes the others must see at once.
mount_command() {
  cat <<REMOTE
set -e; if ! command -v gcsfuse >/dev/null; then
  key=/usr/share/keyrings/cloud.google.asc site=https://packages.cloud.google.com/apt
  curl -fsS \$site/doc/apt-key.gpg | sudo tee \$key >/dev/null
  echo "deb [signed-by=\$key] \$site gcsfuse-\$(lsb_release -cs) main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  sudo apt-get -qq update; sudo apt-get -qq install -y gcsfuse
fi
mkdir -p ~/bucket
mountpoint -q ~/bucket ||
  gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 $(printf '%q' "$bucket") ~/bucket
REMOTE
}

# A cipo command in its environment; jax finds the other workers by itself.
cipo_command() {
  local quoted
  printf -v quoted ' %q' "${arguments[@]}"
  echo "cipo $1$quoted --distributed --run-dir $run_dir"
}

doctor() {
  [ ${#arguments[@]} -gt 0 ] || fail "doctor needs -- CONFIG"
  on all "cd ~/cipo_jax; export PATH=~/cipo_jax/.venv/bin:\$PATH JAX_PLATFORMS=tpu,cpu; $(cipo_command doctor)"
}

run() {
  [ ${#arguments[@]} -gt 0 ] || fail "run needs -- CONFIG"
  on all "$(run_command)"
}

# Starts it detached, so that it outlives the connection; refuses a second one.
run_command() {
  cat <<REMOTE
set -e
if [ ! -e ~/cipo.status ] && kill -0 "\$(cat ~/cipo.pid 2>/dev/null)" 2>/dev/null; then
  echo "a run is going on here: stop it first" >&2; exit 1
fi
cd ~/cipo_jax; export PATH=~/cipo_jax/.venv/bin:\$PATH JAX_PLATFORMS=tpu,cpu; rm -f ~/cipo.status
nohup setsid bash -c 'trap : TERM; "\$@"; echo \$? > ~/cipo.status' cipo \\
  $(cipo_command train) >> ~/cipo.log 2>&1 < /dev/null &
echo \$! > ~/cipo.pid; echo "started; log: ~/cipo.log"
REMOTE
}

# running | finished | stopped STATUS. A run draws its plot when it is finished.
outcome_command() {
  cat <<REMOTE
status=\$(cat ~/cipo.status 2>/dev/null || true)
if [ -z "\$status" ] && kill -0 "\$(cat ~/cipo.pid 2>/dev/null)" 2>/dev/null; then echo running
elif [ "\$status" = 0 ] && [ -e $run_dir/finished.json ]; then echo finished
else echo "stopped \${status:-without a status}"; fi
REMOTE
}

# The outcome on worker 0, or why it can't be asked.
outcome() {
  local said
  if [ -n "$dry" ]; then
    on 0 "$(outcome_command)"
    echo unknown
  elif said=$(on 0 "$(outcome_command)" 2>/dev/null); then
    echo "${said##*$'\n'}"
  else
    echo unreachable
  fi
}

log() {
  on "$worker" 'tail -n 200 -F ~/cipo.log'
}

status() {
  local now
  now=$(state) || exit
  echo "$name is $now"
  [ "$now" != READY ] || on all "$(outcome_command)"
}

# The process group is the run's own, made by setsid.
stop() {
  # shellcheck disable=SC2016 # the workers' shells expand it
  on all 'kill -TERM -- "-$(cat ~/cipo.pid)"'
}

# Brings the slice back to a state in which a run can be started, and starts it.
resume() {
  local now
  [ ${#arguments[@]} -gt 0 ] || fail "$action needs -- CONFIG, as run does"
  [ -n "$bucket" ] || echo "tpu_vm.sh: without --bucket, a run is lost with its slice" >&2
  now=$(settled_state) || exit
  case $now in
    READY)
      case $(outcome) in
        running) echo "$name: the run is going on" ;;
        finished) echo "$name: the run is finished" ;;
        *) run ;;
      esac
      return
      ;;
    STOPPED) fail "$name is STOPPED: gcloud compute tpus tpu-vm start $name --zone=$zone" ;;
  esac
  echo "$(date +%T) $name is $now: making it anew"
  # What is left of a slice, or of the queued resource that it came from, keeps the name.
  [ "$now" = ABSENT ] && [ -z "$queued" ] || delete || true
  create
  install
  run
}

# The state once nothing is under way (CREATING, REPAIRING, DELETING, ...).
settled_state() {
  local now
  while true; do
    now=$(state) || return
    case $now in
      READY | ABSENT | STOPPED | PREEMPTED | TERMINATED)
        echo "$now"
        return
        ;;
    esac
    sleep "$poll"
  done
}

# Ends well when the run is finished; with 1 when it stops although the slice is there. A
# preemption that is only being noticed looks like that at first, so it takes two looks.
keep() {
  local now said before=''
  resume
  while [ -z "$dry" ]; do
    sleep "$poll"
    # Where the cloud can't be asked, nothing is known, and nothing is done.
    now=$(state) || continue
    if [ "$now" != READY ]; then
      before=''
      resume
      continue
    fi
    said=$(outcome)
    case $said in
      finished)
        echo "$(date +%T) the run is finished: $run_dir"
        return
        ;;
      stopped*)
        if [ "$before" = "$said" ]; then
          echo "$(date +%T) the run $said, and $name is READY. The end of its log:" >&2
          on 0 'tail -n 30 ~/cipo.log' >&2
          exit 1
        fi
        ;;
    esac
    before=$said
  done
}

# --- main ---

action=${1:-}
[ $# -eq 0 ] || shift
case $action in
  create | install | doctor | run | log | status | stop | resume | keep | delete) ;;
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
[ -n "$name" ] || fail "$action needs --name"
[ -n "$zone" ] || fail "$action needs --zone"
if [ -z "$run_dir" ]; then
  # Expanded by the workers' shells.
  # shellcheck disable=SC2088
  if [ -n "$bucket" ]; then run_dir="~/bucket/runs/$name"; else run_dir="~/runs/$name"; fi
fi
[[ $run_dir =~ ^[A-Za-z0-9_./~-]+$ ]] || fail "--run-dir $run_dir: letters, digits and _./~- only"
exec 3>&1
[ -n "$dry" ] || command -v gcloud >/dev/null ||
  fail "gcloud is not installed: https://cloud.google.com/sdk/docs/install (or say --dry-run)"
"$action"
