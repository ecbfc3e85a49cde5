"""Writes README.md beside it: one row for each plan in this folder, from its tables."""

import re
from pathlib import Path

HERE = Path(__file__).parent
TOP = """\
# Plans of the shipped settings

Made by `bash docs/plans/make.sh` without a TPU; `docs/planning.md` says what they prove and what
they don't. Each plan is its tables (`.txt`) and the memory over the cycle (`.png`). Memory is that
of one device, at the fullest moment of a step or an evaluation. Times are lower bounds under peak
numbers and no measurements, with every completion at its full length.

| plan | settings beside the config | fits | GiB of | fullest at | s a step, at least | versions |
|---|---|---|---|---|---|---|
"""


def settings_by_name() -> dict[str, str]:
    rows = [line.split("|") for line in (HERE / "make.sh").read_text().splitlines()]
    return {row[0].strip(): row[3].strip() for row in rows if len(row) == 4}


def said(pattern: str, text: str) -> tuple[str, ...]:
    match = re.search(pattern, text)
    if match is None:
        raise ValueError(f"No {pattern!r} in the plan that begins {text[:80]!r}: make it anew.")
    return match.groups()


def row(name: str, settings: str) -> str:
    # Lines are broken where the terminal ends.
    text = " ".join((HERE / f"{name}.txt").read_text().split())
    end = r" (?:note: |Memory of a device)"
    if " fits: " in text:
        *sizes, fullest = said(rf" fits: ([\d.]+) GiB of ([\d.]+) GiB .*? moment, (.*?){end}", text)
        (seconds,) = said(r" no measurement: ([\d,.]+) s a step", text)
        cells = ["yes", " of ".join(sizes), fullest, f"{float(seconds.replace(',', '')):,.0f}"]
    elif ": refused " in text:
        available, refused = said(rf" fit into ([\d.]+) GiB .*?: refused (.*?){end}", text)
        cells = ["**no**", f"more than {available}", refused, ""]
    else:
        *sizes, fullest = said(rf" fit: ([\d.]+) GiB, where ([\d.]+) GiB .*?, at (.*?){end}", text)
        cells = ["**no**", " of ".join(sizes), fullest, ""]
    versions = said(r", jax ([\w.]+), .*libtpu ([\w.]+)", text)
    set_beside = f"`{settings}`" if settings else "none"
    made_by = "jax {}, libtpu {}".format(*versions)
    return f"| [{name}]({name}.txt) | {set_beside} | {' | '.join(cells)} | {made_by} |\n"


if __name__ == "__main__":
    rows = [
        row(name, settings)
        for name, settings in settings_by_name().items()
        if (HERE / f"{name}.txt").exists()
    ]
    (HERE / "README.md").write_text(TOP + "".join(rows))
