"""References and verdicts as text: for stored rollouts and for the verifier service.

References keep their exact types (`values.py`), so that a case `(1, 2)` doesn't come back as a
list. Text from outside is checked against the fields of the dataclass before it becomes one.
"""

from __future__ import annotations

import dataclasses
import json
import math
import typing
from typing import Any

from cipo_jax.config.schema import Schema
from cipo_jax.verify import values
from cipo_jax.verify.verdict import Reference, Status, Verdict

KINDS: dict[str, type[Reference]] = {
    kind.__name__.removesuffix("Reference").lower(): kind for kind in typing.get_args(Reference)
}
"""`number`, `math`, `stdio`, `calls`, `asserts`: every member of the union."""

_NAMES = {kind: name for name, kind in KINDS.items()}


_SCHEMAS = {name: Schema(kind, sequence=tuple) for name, kind in KINDS.items()}
_VERDICT = Schema(Verdict)


def encode_reference(reference: Reference) -> str:
    """The text of a reference. Raises: ValueError if its cases hold other than builtin types."""
    fields = {f.name: getattr(reference, f.name) for f in dataclasses.fields(reference)}
    return values.encode((_NAMES[type(reference)], fields))


def decode_reference(text: str) -> Reference:
    """The reference of a text. Raises: ValueError that says what is wrong with it."""
    match values.decode(text):
        case (str(name), dict(fields)) if name in KINDS:
            return _SCHEMAS[name].build(fields)
    raise ValueError(f"not a reference: {text[:80]!r}.")


def encode_verdict(verdict: Verdict) -> dict[str, Any]:
    """A JSON-able dict; the reward follows from the status and is left out."""
    return {
        "status": verdict.status.value,
        "reason": verdict.reason,
        "seconds": verdict.seconds,
        "detail": json.loads(json.dumps(dict(verdict.detail), default=str)),
    }


def decode_verdict(record: Any) -> Verdict:
    """The verdict of such a dict. Raises: ValueError if it isn't one."""
    try:
        status = Status(record["status"])
        return _VERDICT.build(
            {
                "status": status,
                "reward": {Status.RIGHT: 1.0, Status.WRONG: 0.0}.get(status, math.nan),
                "reason": record["reason"],
                "seconds": record["seconds"],
                "detail": record["detail"],
            }
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a verdict: {str(record)[:80]!r} ({error!r}).") from None
