"""The machine's own rate of float32 matrix products, with what is here of numpy, jax and torch.

    python tests/bench/peers/floor.py --out floor.jsonl

One JSON line per backend and shape: the best of ten in GFLOP/s, and GFLOP per CPU-second.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

SHAPES = {
    "square": (2048, 2048, 2048),
    "mlp of W2": (1280, 576, 1536),
    "head of W2": (1024, 576, 49_152),
    "mlp of W1": (4608, 256, 1024),
}


def products():
    """(backend, shape, a call that computes one product)."""
    import numpy as np

    arrays = {
        name: (np.ones((m, k), np.float32), np.ones((k, n), np.float32))
        for name, (m, k, n) in SHAPES.items()
    }
    for name, (a, b) in arrays.items():
        yield f"numpy {np.__version__}", name, lambda a=a, b=b: a @ b
    try:
        import jax
    except ImportError:
        pass
    else:
        product = jax.jit(lambda a, b: a @ b)
        for name, pair in arrays.items():
            a, b = map(jax.numpy.asarray, pair)
            yield f"jax {jax.__version__}", name, lambda a=a, b=b: product(a, b).block_until_ready()
    try:
        import torch
    except ImportError:
        return
    for name, pair in arrays.items():
        a, b = map(torch.from_numpy, pair)
        yield f"torch {torch.__version__}", name, lambda a=a, b=b: a @ b


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="floor.jsonl")
    args = parser.parse_args()
    for backend, name, product in products():
        m, k, n = SHAPES[name]
        gflop = 2 * m * k * n / 1e9
        product()
        seconds, cpu = [], time.process_time()
        for _ in range(10):
            start = time.perf_counter()
            product()
            seconds.append(time.perf_counter() - start)
        cpu = (time.process_time() - cpu) / 10
        line = {
            "backend": backend,
            "shape": name,
            "gflop_per_s": gflop / min(seconds),
            "gflop_per_cpu_s": gflop / cpu,
            "load": os.getloadavg()[0],
        }
        with Path(args.out).open("a") as file:
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
