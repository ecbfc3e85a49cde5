"""Writes README.md beside it: one row for each plan in this folder, from its JSON."""

import json
from pathlib import Path

HERE = Path(__file__).parent
GIB = 2**30
TOP = """\
# Plans of the shipped settings

Made by `bash docs/plans/make.sh` without a TPU; `docs/planning.md` says what they prove and what
they don't. Beside each name lie its tables (`.txt`), everything as data (`.json`) and the memory
over the cycle (`.png`). Memory is that of one device, at the fullest moment of a step or an
evaluation. Times are lower bounds under peak numbers and no measurements, with every completion at
its full length.

| plan | settings beside the config | fits | GiB of | fullest at | s a step, at least | versions |
|---|---|---|---|---|---|---|
"""


def settings_by_name() -> dict[str, str]:
    rows = [line.split("|") for line in (HERE / "make.sh").read_text().splitlines()]
    return {row[0].strip(): row[3].strip() for row in rows if len(row) == 4}


def row(path: Path, settings: str) -> str:
    plan = json.loads(path.read_text())
    refused = [f"{p['phase']}: {p['name']}" for p in plan["programs"] if p["is_refused"]]
    memory = f"{plan['peak_bytes'] / GIB:.2f} of {plan['hbm_bytes'] / GIB:.2f}"
    cells = (
        f"[{path.stem}]({path.stem}.txt)",
        f"`{settings}`" if settings else "none",
        "yes" if plan["fits"] else "**no**",
        memory if not refused else f"more than {plan['hbm_bytes'] / GIB:.2f}",
        ", ".join(refused) or plan["peak_at"],
        f"{plan['estimate']['step_s']:,.0f}" if plan["fits"] else "",
        f"jax {plan['versions']['jax']}, libtpu {plan['versions']['libtpu']}",
    )
    return f"| {' | '.join(cells)} |\n"


if __name__ == "__main__":
    settings = settings_by_name()
    made = [HERE / f"{name}.json" for name in settings if (HERE / f"{name}.json").exists()]
    (HERE / "README.md").write_text(TOP + "".join(row(p, settings[p.stem]) for p in made))
