"""Starts a pool, judges one honest program, prints what protects it.

python -m tests.hostile.report
"""

import json
import sys

from cipo_jax.config import Verify
from cipo_jax.verify import SandboxError, StdioReference, VerifierPool

if __name__ == "__main__":
    settings = Verify(workers=1, allow_unsandboxed="--allow-unsandboxed" in sys.argv)
    try:
        with VerifierPool(settings) as pool:
            verdict = pool.submit("```\nprint(42)\n```", StdioReference(cases=(("", "42"),)))
            found = {
                "level": pool.report.level,
                "is_sandboxed": pool.report.is_sandboxed,
                "report": str(pool.report),
                "verdict": verdict.result().status.value,
            }
    except SandboxError as error:
        found = {"refused": str(error)}
    print(json.dumps(found))
