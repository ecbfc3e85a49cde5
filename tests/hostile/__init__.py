"""Programs that a verifier must survive: honest, buggy, greedy, cheating and hostile ones.

Each case says what the verdict must be. Programs that try to get out print `safe` only after every
attempt was refused, so that they, too, are right only if they really ran: a sandbox that refuses to
run anything would pass a collection in which everything must be wrong.

All of it is bounded (300 processes, 3 GiB, 25 s, loopback only) and is run in the sandbox only.
"""

from __future__ import annotations

from dataclasses import dataclass

from cipo_jax.verify import Reference, StdioReference


@dataclass(frozen=True, kw_only=True)
class Case:
    """One program. `reasons`: verdict reasons that are accepted; ("ok",) for a right one.

    `source` may name `CANARY`, a folder that everybody may write in, `SECRET`, a file there, and
    `PORT`, on which somebody listens: the test puts them in.
    """

    name: str
    source: str
    reference: Reference
    reasons: tuple[str, ...]


SAFE = StdioReference(cases=(("", "safe\n"),))


def collection() -> list[Case]:
    """Every case of every group."""
    from tests.hostile import cheats, escapes, greedy, habits, honest

    return [*honest.CASES, *habits.CASES, *greedy.CASES, *cheats.CASES, *escapes.CASES]
