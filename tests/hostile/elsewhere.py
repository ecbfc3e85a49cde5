"""How to run a module of this folder as this user, or as one with no rights."""

from __future__ import annotations

import os
import shutil
import site
import sys

from tests import ROOT

UNPRIVILEGED = 65534

# The interpreter and the packages may be in a folder that only root can enter, so the other user
# sees them elsewhere, in a mount namespace that ends with the command. The interpreter may be a
# small program with a shared library, which then is elsewhere, too.
_MOUNTS = r"""
set -e
mount -t tmpfs tmpfs /mnt
mkdir /mnt/python /mnt/repository
mount --bind "$1" /mnt/python
mount --bind "$2" /mnt/repository
paths=/mnt/repository
shift 2
for folder in $(seq $1); do
  shift
  mkdir /mnt/packages$folder
  mount --bind "$1" /mnt/packages$folder
  paths=$paths:/mnt/packages$folder
done
shift
program=$1
shift
exec setpriv --reuid UID --regid UID --clear-groups \
  env PYTHONPATH=$paths LD_LIBRARY_PATH=/mnt/python/lib "$program" "$@"
"""


def as_this_user(*arguments: str) -> list[str]:
    """Command line of `python ARGUMENTS` with this folder's modules in reach."""
    return ["env", f"PYTHONPATH={ROOT}", sys.executable, *arguments]


def as_nobody(*arguments: str) -> list[str]:
    """The same for a user who owns nothing. Needs root, `unshare` and `setpriv`."""
    packages = [folder for folder in site.getsitepackages() if os.path.isdir(folder)]
    program = f"/mnt/python/bin/python{sys.version_info[0]}.{sys.version_info[1]}"
    script = _MOUNTS.replace("UID", str(UNPRIVILEGED))
    given = [sys.base_prefix, str(ROOT), str(len(packages)), *packages, program, *arguments]
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", *given]


def why_not_nobody() -> str:
    """Why `as_nobody` can't be used here; empty where it can."""
    if os.geteuid() != 0:
        return "only root can become another user"
    missing = [tool for tool in ("unshare", "setpriv", "mount") if not shutil.which(tool)]
    return f"{missing} not installed" if missing else ""
