"""Tests in the style of HumanEval, MBPP and EvalPlus, made fit for a process without packages."""

from __future__ import annotations

import re

_IMPORT = re.compile(r"^(?P<indent>[ \t]*)import numpy as np[ \t]*$", re.MULTILINE)

_STAND_IN = '''\
class np:
    """The part of numpy that EvalPlus's comparisons use."""
    ndarray = ()
    float32 = float64 = float

    @staticmethod
    def allclose(out, exp, rtol=1e-05, atol=1e-08):
        if isinstance(exp, dict):
            return False
        if isinstance(exp, (list, tuple)):
            return (
                isinstance(out, (list, tuple))
                and len(out) == len(exp)
                and all(np.allclose(o, e, rtol=rtol, atol=atol) for o, e in zip(out, exp))
            )
        return out == exp or abs(out - exp) <= atol + rtol * abs(exp)

    class testing:
        @staticmethod
        def assert_allclose(out, exp, rtol=1e-07, atol=0):
            assert np.allclose(out, exp, rtol=rtol, atol=atol)
'''


def without_numpy(tests: str) -> str:
    """The tests with the few functions of numpy that EvalPlus uses in place of its import: the
    process that runs tests has the standard library only."""
    return _IMPORT.sub("", f"{_STAND_IN}\n{tests}") if _IMPORT.search(tests) else tests
