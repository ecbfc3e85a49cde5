#!/usr/bin/env python3
"""Stands in for gcloud, xpk, kubectl and scontrol, under whose names it is called.

It knows the options of the real commands (options.json, which says where they were read) and
refuses what they would refuse: a command or an option that there is not, a value that is missing, a
number of positional arguments that is wrong. Every call is recorded as a line of JSON.

    STAND_IN_CALLS   file of the calls
    STAND_IN_CLOUD   folder: `state` and `queue` hold what `describe` answers, a line for each call,
                     the last of them for good; `worker-N` are the homes of the workers. What is run
                     on a worker by `tpu-vm ssh --command` is really run there, by bash.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

COMMANDS = json.loads((Path(__file__).resolve().parent / "options.json").read_text())


def refuse(message: str) -> None:
    sys.exit(f"{Path(sys.argv[0]).name}: ERROR: {message}")


def find(words: list[str]) -> tuple[str, list[str]]:
    for length in range(len(words), 1, -1):
        name = " ".join(words[:length])
        if name in COMMANDS:
            return name, words[length:]
    refuse(f"Invalid choice: {' '.join(words[:5])}")


def parse(name: str, arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    known = COMMANDS[name]
    positional, given = [], {}
    rest = iter(arguments)
    for argument in rest:
        option, equals, value = argument.partition("=")
        if not argument.startswith("--"):
            positional.append(argument)
        elif option in known["flags"]:
            if equals and name.startswith("gcloud"):
                refuse(f"ignored explicit argument: {argument}")
            given[option] = value
        elif option in known["values"]:
            given[option] = value if equals else next(rest, "")
            if not given[option]:
                refuse(f"expected one argument: {option}")
        else:
            refuse(f"unrecognized arguments: {option}")
    if len(positional) != known["positional"]:
        refuse(f"{name} takes {known['positional']} positional arguments: {positional}")
    if missing := [option for option in known["required"] if option not in given]:
        refuse(f"must be specified: {missing}")
    return positional, given


def answer(path: Path) -> str:
    """The next line, which is taken away unless it is the last."""
    if not path.exists():
        refuse("NOT_FOUND: Requested entity was not found.")
    first, *others = path.read_text().splitlines()
    if others:
        path.write_text("\n".join(others) + "\n")
    return first


def on_workers(cloud: Path, which: str, command: str) -> int:
    homes = sorted(cloud.glob("worker-*"))
    chosen = homes if which == "all" else [homes[int(which)]]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("STAND_IN")}
    statuses = [
        subprocess.run(
            ["bash", "-c", command], cwd=home, env={**environment, "HOME": str(home)}
        ).returncode
        for home in chosen
    ]
    return max(statuses)


def switch_off(home: Path) -> None:
    """The machine is gone, with what runs on it and what lies on its disk, but not the bucket."""
    pid = home / "cipo.pid"
    if pid.exists():
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(pid.read_text()), signal.SIGKILL)
    for path in home.glob("cipo.*"):
        path.unlink()


def main() -> int:
    tool = Path(sys.argv[0]).name
    name, arguments = find([tool, *sys.argv[1:]])
    positional, given = parse(name, arguments)
    with open(os.environ["STAND_IN_CALLS"], "a") as calls:
        record = {"command": name, "positional": positional, "options": given}
        calls.write(json.dumps(record) + "\n")
    cloud = Path(os.environ["STAND_IN_CLOUD"])
    if name == "gcloud compute tpus tpu-vm describe":
        print(answer(cloud / "state"))
    elif name == "gcloud compute tpus queued-resources describe":
        print(answer(cloud / "queue"))
    elif name == "gcloud compute tpus tpu-vm delete":
        for home in cloud.glob("worker-*"):
            switch_off(home)
    elif name == "gcloud compute tpus tpu-vm ssh":
        return on_workers(cloud, given.get("--worker", "0"), given["--command"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
