"""What the host holds while a checkpoint of 4 GB is read, beyond the parameters that it keeps.

    python tests/bench/import_memory.py [--dtype bfloat16] [--devices 4] [--folder DIR]

Writes a random Llama of 1.0 billion parameters in four safetensors files (4.0 GB in float32, 2.0 GB
in bfloat16) and reads it to float32 in a process of its own. On CPU devices the parameters lie in
host memory too, so they are subtracted:

    excess = peak of RssAnon - RssAnon before the load - bytes of the parameters

RssAnon, from /proc/self/status and read every 2 ms, does not count the pages of the mapped files,
which the system drops when it needs them; their peak is printed beside it. The load is done twice:
the first one also compiles the programs that put tensors into their places.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import threading
import time
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

GB = 1e9


def architecture():
    from cipo_jax.model.presets import of_family

    return of_family(
        "llama",
        vocab_size=32_000,
        model_dim=2048,
        num_layers=14,
        num_heads=16,
        num_kv_heads=8,
        head_dim=128,
        mlp_dim=8192,
        rope_theta=10_000.0,
        rope_scaling=None,
        norm_eps=1e-5,
        is_tied=False,
        max_position=2048,
    )


def write(folder: Path, dtype: str) -> None:
    from cipo_jax.model.files import hf, hf_config, layout

    arch = architecture()
    slots = list(layout.slots(hf.layout_of(arch), arch))
    rng = np.random.default_rng(0)
    names = {}
    for part in range(4):
        file = f"model-{part + 1}-of-4.safetensors"
        tensors = {
            slot.name: rng.standard_normal(slot.form.file_shape, np.float32).astype(dtype)
            for slot in slots[part::4]
        }
        save_file(tensors, folder / file)
        names |= dict.fromkeys(tensors, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    (folder / "config.json").write_text(json.dumps(hf_config.config_of(arch, dtype)))


def memory() -> dict[str, int]:
    lines = Path("/proc/self/status").read_text().splitlines()
    found = (line.split() for line in lines if line.startswith(("RssAnon", "RssFile")))
    return {key[:-1]: 1024 * int(value) for key, value, _ in found}


def read(folder: Path, num_devices: int) -> None:
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", num_devices)
    from cipo_jax import config
    from cipo_jax.mesh.sharding import PARAM_RULES, make_mesh, shardings_of
    from cipo_jax.model.files import hf, layout
    from cipo_jax.model.transformer import abstract

    arch = hf.architecture(folder)
    shardings = shardings_of(abstract(arch), make_mesh(config.MeshShape()), PARAM_RULES)
    largest = max(4 * np.prod(s.form.file_shape) for s in layout.slots(hf.layout_of(arch), arch))
    for name in ("first", "second"):
        before, peak, is_done = memory(), memory(), threading.Event()

        def watch(peak=peak, is_done=is_done) -> None:
            while not is_done.wait(0.002):
                peak.update({key: max(peak[key], value) for key, value in memory().items()})

        watcher = threading.Thread(target=watch)
        watcher.start()
        start, cpu = time.perf_counter(), time.process_time()
        params = jax.block_until_ready(hf.load(folder, arch, shardings))
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        is_done.set()
        watcher.join()
        kept = sum(x.nbytes for x in jax.tree.leaves(params))
        del params
        excess = peak["RssAnon"] - before["RssAnon"] - kept
        print(
            f"{num_devices} devices, {name} load: kept {kept / GB:.2f} GB, largest tensor in "
            f"float32 {largest / GB:.3f} GB, excess {excess / GB:.3f} GB = {excess / largest:.2f} "
            f"of it; pages of mapped files {peak['RssFile'] / GB:.2f} GB; {seconds:.1f} s, "
            f"{cpu:.1f} CPU-s"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    assert ml_dtypes.bfloat16  # gives numpy the dtype of this name
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        writer = spawn.Process(target=write, args=(Path(folder), args.dtype))
        writer.start()
        writer.join()
        size = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
        print(f"{args.dtype} files of {size / GB:.2f} GB")
        for num_devices in args.devices:
            reader = spawn.Process(target=read, args=(Path(folder), num_devices))
            reader.start()
            reader.join()
