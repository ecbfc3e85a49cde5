"""Verdicts on completions, given on the host: mathematics and programs. Never imports jax."""

from cipo_jax.verify.opening import verify
from cipo_jax.verify.pool import Protection, VerifierPool
from cipo_jax.verify.sandbox.host import SandboxError
from cipo_jax.verify.verdict import (
    AssertsReference,
    CallsReference,
    MathReference,
    NumberReference,
    Reason,
    Reference,
    Status,
    StdioReference,
    TextReference,
    Verdict,
)

__all__ = [
    "AssertsReference",
    "CallsReference",
    "MathReference",
    "NumberReference",
    "Protection",
    "Reason",
    "Reference",
    "SandboxError",
    "Status",
    "StdioReference",
    "TextReference",
    "Verdict",
    "VerifierPool",
    "verify",
]
