"""The table of a run of this bench.

    python tests/bench/peers/report.py results.jsonl floor.jsonl

A row for each trainer and workload, over the measured steps of all its rounds; times faster are
against the faster of the others in that column.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path

from workload import WORKS, needed_flops

PHASES = ("rollout", "train", "step")
OURS = "cipo_jax"


def lines(path: str) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def main() -> None:
    results, floor = lines(sys.argv[1]), lines(sys.argv[2])
    measured: dict[tuple[str, str], list[dict]] = defaultdict(list)
    peak: dict[tuple[str, str], float] = defaultdict(float)
    for line in results:
        key = line["work"], line["trainer"]
        measured[key] += line["steps"][WORKS[line["work"]].warm_steps :]
        peak[key] = max(peak[key], line["peak_rss_gib"])
    best = max(f["gflop_per_s"] for f in floor if f["shape"] == "square")
    print(f"Matrix products of 2048^3: {best:.0f} GFLOP/s at best over all backends and rounds.\n")
    print("| work | trainer | steps | rollout s | train s | train CPU-s | step s | others | needed "
          "GFLOP/s in training (of the best) | peak GiB |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|---|")
    medians = {}
    for (work, trainer), steps in sorted(measured.items()):
        median = {
            key: statistics.median(s.get(key, 0.0) for s in steps)
            for key in [f"{p}_{u}" for p in PHASES for u in ("s", "cpu_s")] + ["others_share"]
        }
        medians[work, trainer] = median
        low, high = min(s["train_s"] for s in steps), max(s["train_s"] for s in steps)
        rate = needed_flops(WORKS[work])["train"] / median["train_s"] / 1e9
        rollout = "given" if WORKS[work].spread else f"{median['rollout_s']:.2f}"
        columns = [
            work,
            trainer,
            str(len(steps)),
            rollout,
            f"{median['train_s']:.2f} [{low:.2f}, {high:.2f}]",
            f"{median['train_cpu_s']:.2f}",
            f"{median['step_s']:.2f}",
            f"{median['others_share']:.0%}",
            f"{rate:.0f} ({rate / best:.0%})",
            f"{peak[work, trainer]:.2f}",
        ]
        print("| " + " | ".join(columns) + " |")
    print()
    for work in WORKS:
        others = [m for (w, trainer), m in medians.items() if w == work and trainer != OURS]
        if (work, OURS) not in medians or not others:
            continue
        ours = medians[work, OURS]
        for key in ("rollout_s", "train_s", "train_cpu_s"):
            if ours[key] > 0.05:
                print(f"{work} {key}: {min(m[key] for m in others) / ours[key]:.2f} times faster")


if __name__ == "__main__":
    main()
