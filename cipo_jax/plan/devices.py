"""The devices of a slice that is not there, for the compiler."""

from __future__ import annotations

import importlib.util
import platform
import sys

import jax
from jax.experimental import topologies

from cipo_jax.plan.hardware import Slice

H100 = """
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
gpu_device_info {
  cuda_compute_capability { major: 9 minor: 0 }
  core_count: 132  fpus_per_core: 128  clock_rate_ghz: 1.98
  threads_per_warp: 32  threads_per_block_limit: 1024  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  registers_per_block_limit: 65536  registers_per_core_limit: 65536
  shared_memory_per_block: 49152  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  l2_cache_size: 52428800  memory_bandwidth: 3352320000000  device_memory_size: 84978434048
}
dnn_version_info { major: 9 minor: 8 patch: 0 }
"""
"""The properties of a GPU that XLA asks for, as the driver reports them for an H100 SXM."""


def check_compiler(wanted: Slice) -> None:
    """Raises ImportError with the way out if there is no compiler for the slice here."""
    machine = f"{platform.system()} {platform.machine()}"
    if wanted.chip.platform == "tpu":
        module, extra, what = "libtpu", "tpu", "The TPU compiler is in the package libtpu"
    else:
        module, extra, what = "jax_cuda12_plugin", "cuda12", "The GPU compiler is in jax[cuda12]"
    if importlib.util.find_spec(module) is not None:
        return
    if machine != "Linux x86_64" and not (wanted.chip.platform == "cuda" and "Linux" in machine):
        raise ImportError(
            f"{what}, which is not made for {machine}: plan on a Linux x86-64 machine or in a "
            "container of one. It needs no accelerator."
        )
    raise ImportError(
        f"{what}, which is not installed here: {sys.executable} -m pip install "
        f"'cipo-jax[{extra}]' (in a checkout: -e '.[{extra}]'). It needs no accelerator."
    )


def devices_of(wanted: Slice) -> list[jax.Device]:
    """Descriptions of the slice's devices, which programs can be compiled for and not run on.

    Raises: ValueError if the compiler knows no such slice.
    """
    try:
        if wanted.chip.platform == "cuda":
            described = topologies.get_topology_desc(
                "", "cuda", target_config=H100, topology=f"1x1x{wanted.num_chips}"
            )
        elif wanted.num_chips == 1:
            described = topologies.get_topology_desc(
                platform="tpu", topology_name=wanted.topology, chips_per_host_bounds=(1, 1, 1)
            )
        else:
            described = topologies.get_topology_desc(platform="tpu", topology_name=wanted.topology)
    except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
        raise ValueError(f"The compiler refuses {wanted.topology}: {error}") from error
    return list(described.devices)
