"""The host without its devices: versions, drivers, memory, and the file system of the run."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from cipo_jax.doctor.diagnosis import Diagnosis, fail, ok, warn
from cipo_jax.mesh.host import free_memory
from cipo_jax.plan.hardware import GIB
from cipo_jax.run.log.environment import environment

TEST_BYTES = 64 * 2**20
SLOW_BYTES_PER_S = 20e6

# The PCI devices of Google that are TPUs; jax has the same list (its hardware_utils.py).
_TPU_PCI_IDS = {
    "0x0027": "TPU v3", "0x005e": "TPU v4", "0x0062": "TPU v5p", "0x0063": "TPU v5e",
    "0x006f": "TPU v6e", "0x0076": "TPU 7x",
}  # fmt: skip


def versions() -> Iterator[Diagnosis]:
    """Python and the packages that a bug report must name."""
    yield ok("python", f"{platform.python_version()} ({sys.executable}), {platform.platform()}")
    record = environment()
    installed = record["versions"]
    shown = ("cipo-jax", "jax", "jaxlib", "libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin")
    text = ", ".join(f"{name} {installed[name]}" for name in shown if name in installed)
    commit = f", commit {record['commit'][:12]}" if record["commit"] else ""
    yield ok("versions", f"{text}{commit}")


def attached() -> list[str]:
    """The accelerators of this machine, whether or not jax sees them."""
    found = []
    for device in Path("/sys/bus/pci/devices").glob("*"):
        if _text(device / "vendor") == "0x1ae0" and _text(device / "device") in _TPU_PCI_IDS:
            found.append(_TPU_PCI_IDS[_text(device / "device")])
    if nvidia_driver() is not None:
        found.append("NVIDIA GPU")
    return found


def nvidia_driver() -> str | None:
    """The version of the loaded NVIDIA driver; None without one."""
    match = re.search(r"Module.*?\s(\d+\.\d+[\d.]*)", _text(Path("/proc/driver/nvidia/version")))
    return match[1] if match else None


def memory(saved_bytes: int | None) -> Iterator[Diagnosis]:
    """Free memory of the host.

    Args:
      saved_bytes: size of the copy that this host makes for a checkpoint; None if unknown.
    """
    free = free_memory()
    if free is None:
        yield warn("host memory", "this system does not say how much is free")
        return
    text = f"{free / GIB:.1f} GiB free"
    if saved_bytes is None:
        yield ok("host memory", text)
        return
    text += f"; saving a checkpoint takes {saved_bytes / GIB:.2f} GiB on each host"
    if free < saved_bytes:
        yield fail(
            "host memory",
            text,
            "End what else runs here, take machines with more memory or more of them, or train an "
            "adapter (adapter.kind lora), whose checkpoints are small.",
        )
    else:
        yield ok("host memory", text)


def run_folder(folder: Path, checkpoint_bytes: int | None, keep: int) -> Iterator[Diagnosis]:
    """Uses the folder as a run does: writes and reads back, appends, renames a folder with files.

    The folder remains, and nothing else.

    Args:
      checkpoint_bytes: size of one checkpoint; None if unknown.
      keep: checkpoints that are kept; one more is on disk while it is written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield from _writes(folder)
        free = shutil.disk_usage(folder).free
        text = f"{free / GIB:.1f} GiB free on the file system of {folder}"
        if checkpoint_bytes is not None:
            needed = checkpoint_bytes * (keep + 1)
            text += f"; {keep + 1} checkpoints take {needed / GIB:.2f} GiB"
            if free < needed:
                yield fail(
                    "disk space",
                    text,
                    "Give a --run-dir on a larger disk or a bucket, or lower checkpoint.keep.",
                )
                return
        yield ok("disk space", text)
    except OSError as error:
        yield fail(
            "run folder",
            f"{folder} can't be written: {error}",
            "Give a --run-dir that this user may write; on a bucket, mount it first and give the "
            "machine's service account the role roles/storage.objectUser.",
        )


def _writes(folder: Path) -> Iterator[Diagnosis]:
    probe = folder / f".doctor-{uuid.uuid4().hex[:8]}"
    probe.mkdir()
    try:
        data = os.urandom(TEST_BYTES)
        start = time.perf_counter()
        with (probe / "data").open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        write_s = time.perf_counter() - start
        with (probe / "lines").open("a") as file:
            file.write("one\n")
        with (probe / "lines").open("a") as file:
            file.write("two\n")
        if (probe / "data").read_bytes() != data or (probe / "lines").read_text() != "one\ntwo\n":
            yield fail(
                "run folder",
                f"what was written to {folder} is not what is read back",
                "This file system can't hold a run: give a --run-dir on another.",
            )
            return
        try:
            probe = probe.rename(probe.with_name(f"{probe.name}-renamed"))
        except OSError as error:
            yield fail(
                "run folder",
                f"{folder} takes files, but a folder with files in it can't be renamed ({error}), "
                "which is how a checkpoint is completed",
                "On Cloud Storage, make the bucket with --enable-hierarchical-namespace "
                "--uniform-bucket-level-access.",
            )
            return
        speed = TEST_BYTES / write_s
        text = f"{folder}: written at {speed / 1e6:.0f} MB/s, appended, read back, renamed"
        if speed < SLOW_BYTES_PER_S:
            yield warn("run folder", text, "Checkpoints will be slow; raise checkpoint.every.")
        else:
            yield ok("run folder", text)
    finally:
        shutil.rmtree(probe, ignore_errors=True)


@contextlib.contextmanager
def left_as_found(folder: Path) -> Iterator[None]:
    """Removes the folder at the end, and those above it, if they were not there before and are
    empty."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    finally:
        # It may be missing or not empty, or another process was first.
        with contextlib.suppress(OSError):
            for path in made:
                path.rmdir()


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
