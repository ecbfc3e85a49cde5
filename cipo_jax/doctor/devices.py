"""Devices and the processes that share them. All processes call all of this, apart from `seen`."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cipo_jax.config import Config
from cipo_jax.doctor.diagnosis import Diagnosis, fail, ok, warn
from cipo_jax.doctor.host import attached, nvidia_driver
from cipo_jax.mesh import processes
from cipo_jax.mesh.sharding import check_divisible, make_mesh
from cipo_jax.model.files.load import load_architecture
from cipo_jax.plan.hardware import GIB
from cipo_jax.run.log.environment import environment
from cipo_jax.update import policy
from cipo_jax.update.train_step import abstract_state

ROUNDS = 5
SKEW_WARN_S = 1.0
SKEW_FAIL_S = 60.0
"""Cloud storage refuses requests whose clock is minutes off."""
_EDGE = 128
UNOPENED = (RuntimeError, AssertionError)
"""The errors of jax if devices can't be opened: another process holds them, the driver or the
plugin is missing (a bare assertion), or JAX_PLATFORMS names a device that isn't there."""
_CUDA = ("jax-cuda12-plugin", "jax-cuda13-plugin")
_PLUGINS = {"cuda": _CUDA, "gpu": _CUDA, "tpu": ("libtpu",)}
"""Platform of JAX_PLATFORMS -> packages of which jax needs one to open it."""


def are_open() -> bool:
    """Whether jax has devices in this process."""
    try:
        return bool(jax.devices())
    except UNOPENED:
        return False


def unopened(error: BaseException) -> tuple[str, str]:
    """The devices that were asked for with the packages that are installed, and the way out.

    Args:
      error: one of UNOPENED.
    """
    asked = os.environ.get("JAX_PLATFORMS", "")
    installed = environment()["versions"]
    present = [name for name in ("jax", *_CUDA, "libtpu") if name in installed]
    text = str(error) or f"JAX_PLATFORMS is {asked!r}, and jax finds no such device here"
    text += f" (installed: {', '.join(f'{name} {installed[name]}' for name in present)})"
    for platform, plugins in _PLUGINS.items():
        if platform in asked.split(",") and not set(plugins) & set(present):
            extra = "tpu" if platform == "tpu" else "cuda12"
            or_newer = "" if platform == "tpu" else " (cuda13 with a driver from 580 on)"
            return text, (
                f"Install jax's plugin, pip install 'cipo-jax[{extra}]'{or_newer}, or unset "
                "JAX_PLATFORMS."
            )
    return text, (
        "If another process holds the devices, end it (`sudo lsof -w /dev/accel* /dev/vfio/*` on a "
        "TPU VM, `nvidia-smi` on a GPU); else check the driver, or unset JAX_PLATFORMS."
    )


def seen() -> Iterator[Diagnosis]:
    """The devices that jax sees, and whether the machine has others."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    try:
        devices = jax.devices()
    except UNOPENED as error:
        yield fail("devices", *unopened(error))
        return
    kinds = sorted({device.device_kind for device in devices})
    runtime = " ".join(devices[0].client.platform_version.split())
    driver = nvidia_driver()
    text = (
        f"{len(devices)} x {', '.join(kinds)} ({devices[0].platform}), "
        f"{jax.local_device_count()} of them here; runtime: {runtime}"
        + (f"; NVIDIA driver {driver}" if driver else "")
    )
    unused = attached() if devices[0].platform == "cpu" else []
    if not unused:
        yield ok("devices", text)
        return
    text += f"; this machine has {len(unused)} accelerators ({unused[0]}) that jax does not use"
    if platforms:
        yield warn("devices", text, f"JAX_PLATFORMS is {platforms!r}: unset it to use them.")
    else:
        extra = "tpu" if unused[0].startswith("TPU") else "cuda12 (driver 525) or cuda13 (580)"
        yield fail("devices", text, f"Install the extra {extra}: pip install -e '.[EXTRA]'.")


def meeting(arguments: object) -> Iterator[Diagnosis]:
    """All processes meet: same versions and arguments, the time of a barrier, and their clocks.

    Clocks are compared by the time that each process reads after a barrier, the median of a few
    rounds. That is exact to about the time that the barrier takes.

    Raises: PeerError if the processes were started differently.
    """
    processes.meet(arguments)
    if processes.count() == 1:
        yield ok("processes", "1")
        return
    processes.gathered(0)  # Compiles it.
    clocks, seconds = [], []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        processes.gathered(0)
        clocks.append(time.time())
        seconds.append(time.perf_counter() - start)
    # One row for each process, one column for each round.
    clock = np.asarray(processes.gathered(clocks))
    skew = float(np.ptp(np.median(clock - clock[:1], axis=1)))
    yield clock_diagnosis(
        skew,
        f"{processes.count()} with the same versions and arguments; a barrier takes "
        f"{np.median(seconds) * 1e3:.0f} ms; clocks within {skew * 1e3:.0f} ms",
    )


def clock_diagnosis(skew: float, text: str) -> Diagnosis:
    """The diagnosis for clocks that differ by up to `skew` seconds."""
    way_out = "Set the clocks by NTP (`timedatectl set-ntp true`)."
    if skew > SKEW_FAIL_S:
        return fail("processes", text, f"{way_out} Cloud storage refuses clocks that are far off.")
    if skew > SKEW_WARN_S:
        return warn("processes", text, f"{way_out} Times in logs can't be compared.")
    return ok("processes", text)


def program(cfg: Config | None) -> Iterator[Diagnosis]:
    """Compiles a small program for the run's mesh and runs it on all devices: a product on each,
    and one sum over all.

    Raises: ValueError if the config's mesh or batch does not fit the devices.
    """
    start = time.perf_counter()
    if cfg is None:
        mesh = Mesh(np.asarray(jax.devices()), ("all",))
    else:
        mesh = make_mesh(cfg.mesh)
        check_divisible(cfg, mesh)
    # Small whole numbers and sums of multiples of 2**21: exact in any precision.
    number = np.arange(mesh.size) % 4 + 1
    shape = (mesh.size, _EDGE, _EDGE)
    squares = np.broadcast_to(number[:, None, None].astype(np.float32), shape)
    product = jax.jit(
        lambda x: jnp.sum(x @ x),
        out_shardings=NamedSharding(mesh, PartitionSpec()),
    )
    by_device = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    placed = jax.make_array_from_callback(shape, by_device, lambda piece: squares[piece])
    result = float(product(placed))
    expected = float(_EDGE**3 * (number**2).sum())
    axes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    text = f"compiled and run on {axes} in {time.perf_counter() - start:.1f} s"
    if result == expected:
        yield ok("program", text)
    else:
        yield fail(
            "program",
            f"{text}; the result is {result}, and should be {expected}",
            "A device or a link computes wrongly: recreate the machine.",
        )


def state_bytes(cfg: Config) -> tuple[int, int]:
    """Bytes of a checkpoint, on all devices together; and bytes of the run's state on one device,
    frozen parameters included.

    Raises: ValueError as `make_mesh` and `load_architecture` do.
    """
    mesh = make_mesh(cfg.mesh)
    arch = load_architecture(cfg.model)
    state = jax.tree.leaves(abstract_state(cfg, arch, mesh))
    frozen = jax.tree.leaves(policy.abstract_frozen(cfg, arch, mesh))
    saved = sum(x.size * x.dtype.itemsize for x in state)
    local = sum(
        int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize for x in (*state, *frozen)
    )
    return saved, local


def memory(resident_bytes: int | None) -> Iterator[Diagnosis]:
    """Free memory of the fullest of this process's devices.

    Args:
      resident_bytes: size of the run's state on one device; None if unknown.
    """
    frees = []
    for device in jax.local_devices():
        stats = device.memory_stats() or {}
        if "bytes_limit" in stats:
            frees.append(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    state = (
        "" if resident_bytes is None else f"the run's state takes {resident_bytes / GIB:.2f} GiB"
    )
    if not frees:
        yield ok("device memory", "; ".join(filter(None, ("the host's own", state))))
        return
    text = "; ".join(filter(None, (f"{min(frees) / GIB:.2f} GiB free on each", state)))
    if resident_bytes is not None and resident_bytes > min(frees):
        yield fail(
            "device memory",
            text,
            "Take more devices, raise mesh.fsdp or mesh.tensor, or train an adapter (adapter.kind "
            "lora); `cipo plan` says what fits.",
        )
    else:
        yield ok("device memory", text)


def shared(folder: Path, name: str) -> Iterator[Diagnosis]:
    """Whether all processes see a file that the first one writes to the run's folder.

    Raises: PeerError that names the processes that don't.
    """
    if processes.count() == 1:
        return
    path = folder / name
    processes.from_first(lambda: path.write_text("seen by all?\n"))
    try:
        processes.check_shared(path)
        yield ok("shared folder", f"all {processes.count()} processes see {folder}")
    finally:
        if processes.is_first():
            path.unlink(missing_ok=True)
