"""How a run is asked to stop."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass
class Interrupt:
    """Set by the first Ctrl-C or SIGTERM: the step is finished, saved, and the run ends well. A
    second Ctrl-C interrupts at once."""

    requested: bool = False

    @contextlib.contextmanager
    def watching(self) -> Iterator[Interrupt]:
        def request(signum: int, frame: object) -> None:
            if self.requested and signum == signal.SIGINT:
                raise KeyboardInterrupt
            self.requested = True
            print("\nfinishing this step, then saving; Ctrl-C again stops at once", flush=True)

        before = {s: signal.signal(s, request) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)
