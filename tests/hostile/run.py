"""Runs the collection in one isolation and says what went wrong.

    python -m tests.hostile.run LEVEL

A process of its own, so that it can be run as another user, with fewer capabilities, or killed.
Prints one JSON object.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import shutil
import socket
import stat
import tempfile
from pathlib import Path

from cipo_jax.config import Verify
from cipo_jax.verify import SandboxError, Status, VerifierPool
from tests.hostile import Case, collection

SECRET = "hunter2"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("level")
    parser.add_argument("--skip-timeouts", action="store_true")
    parser.add_argument("--deadline", type=float, default=3.0)
    arguments = parser.parse_args()
    os.environ["CIPO_HOSTILE_SECRET"] = SECRET
    cases = [
        case
        for case in collection()
        if not (arguments.skip_timeouts and "timeout" in case.reasons and len(case.reasons) < 5)
    ]
    settings = Verify(workers=2, isolation=arguments.level)
    try:
        print(json.dumps(judge(cases, settings, limit_s=arguments.deadline)))
    except SandboxError as error:
        print(json.dumps({"refused": str(error)}))


def judge(cases: list[Case], settings: Verify, *, limit_s: float) -> dict[str, object]:
    """Judges the cases with a canary folder and listeners about. Those that may end at the limit
    get a short one; the others have time, however busy the machine is.
    """
    canary = Path(tempfile.mkdtemp(prefix="cipo-canary-", dir="/var/tmp"))
    secret = canary / "secret.txt"
    secret.write_text(SECRET)
    secret.chmod(0o666)
    canary.chmod(0o777)
    before = _snapshot(canary)
    tcp = socket.create_server(("127.0.0.1", 0))
    port = tcp.getsockname()[1]
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("127.0.0.1", port))
    abstract = socket.socket(socket.AF_UNIX)
    abstract.bind(f"\0cipo-hostile-{port}")
    abstract.listen()
    problems = []
    try:
        for is_limited in (False, True):
            some = [case for case in cases if ("timeout" in case.reasons) == is_limited]
            # Honest programs then follow hostile ones in the same cells.
            random.Random(0).shuffle(some)
            deadline_s = limit_s if is_limited else 20.0
            with VerifierPool(dataclasses.replace(settings, deadline_s=deadline_s)) as pool:
                report = pool.report
                pairs = [
                    (f"```python\n{_placed(case.source, canary, port)}\n```", case.reference)
                    for case in some
                ]
                verdicts = pool.map(pairs)
            for case, verdict in zip(some, verdicts, strict=True):
                should_be = Status.RIGHT if case.reasons == ("ok",) else verdict.status
                is_late = verdict.seconds > deadline_s + 5.0
                if verdict.reason not in case.reasons or verdict.status != should_be or is_late:
                    problems.append(f"{case.name}: {verdict}")
                if SECRET in str(verdict):
                    problems.append(f"{case.name}: the secret is in the verdict")
        for listener in (tcp, udp, abstract):
            listener.setblocking(False)
            try:
                listener.recv(1) if listener is udp else listener.accept()
                problems.append(f"somebody reached {listener}")
            except BlockingIOError:
                pass
        if _snapshot(canary) != before:
            problems.append(f"the canary changed: {_snapshot(canary)}")
    finally:
        shutil.rmtree(canary)
        for listener in (tcp, udp, abstract):
            listener.close()
    return {
        "problems": problems,
        "judged": len(cases),
        "level": report.level,
        "report": str(report),
        "failed": [str(examined) for examined in report.failed],
    }


def _placed(source: str, canary: Path, port: int) -> str:
    return (
        source.replace("SECRET", str(canary / "secret.txt"))
        .replace("CANARY", str(canary))
        .replace("PORT", str(port))
    )


def _snapshot(folder: Path) -> list[tuple[object, ...]]:
    entries = []
    for path in sorted([folder, *folder.rglob("*")]):
        status = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
        entries.append((path.name, status.st_mode, status.st_uid, status.st_mtime_ns, content))
    return entries


if __name__ == "__main__":
    main()
