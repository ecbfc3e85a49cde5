"""Programs and the tests they are given: what either can do to a verdict, and what it can't."""

from collections.abc import Iterator

import pytest

from cipo_jax.config import Verify
from cipo_jax.verify import (
    AssertsReference,
    CallsReference,
    Status,
    StdioReference,
    VerifierPool,
)

FORTY_TWO = StdioReference(cases=(("", "42"),))


def program(source: str) -> str:
    return f"```python\n{source}\n```"


@pytest.fixture(scope="module")
def pool() -> Iterator[VerifierPool]:
    with VerifierPool(Verify(workers=2, deadline_s=5.0)) as pool:
        yield pool


def test_a_program_can_not_make_its_verdict_unknown(pool: VerifierPool) -> None:
    """Unknown samples are masked: a way to be unknown would be a way not to be punished."""
    exits = [program(f"import os\nos._exit({code})") for code in (1, 101, 114, 250, 255)]
    exits += [program("import os, signal\nsignal.raise_signal(signal.SIGKILL)")]
    for verdict in pool.map([(text, FORTY_TWO) for text in exits]):
        assert verdict.status is Status.WRONG
    tests = AssertsReference(function="f", tests="assert f() == 1")
    bodies = ["raise NameError('x')", "raise ImportError", "raise SyntaxError", "exit(114)",
              "import os; os._exit(114)", "raise MemoryError", "return lambda: 1"]  # fmt: skip
    for verdict in pool.map([(program(f"def f(): {body}"), tests) for body in bodies]):
        assert verdict.status is Status.WRONG, verdict


HOSTILE_TO_TESTS = [
    # (what the function returns, tests that a right function would pass)
    ("'x' * 3_000_000", "assert f() == 1, f'got {f()!r}'"),  # a complaint over the output limit
    ("'undefined'", "assert eval(f()) == 7"),
    ("'1 +'", "assert eval(f()) == 7"),
    ("'no_such_module'", "import importlib\nassert importlib.import_module(f()).x"),
    ("10**9", "assert [0] * (8 * f()) == [0]"),  # the memory of the tests' process
    ("[" * 60 + "]" * 60, "assert f([[[[f()]]]]) == 1"),  # given back, it is too deep to cross
    ("float('nan')", "assert not (f() < 0 or f() > 10)"),
    ("[1.0, {'x': float('nan')}]", "x = f()[1]['x']\nassert not abs(x - 3) > 0.1"),
    ("complex('nan')", "assert f() != 3"),
    # Names that the tests bind in what was returned only, or take from it.
    ("[]", "for x in f(): last = x\nassert last == 1"),
    ("[]", "def check(f):\n    for x in f(): last = x\n    assert last == 1"),
    ("1/0", "try: x = f()\nexcept Exception: pass\nassert x == 1"),
    ("'sys.nothing'", "assert __import__(f()).x"),
    ("2", "import sys\nif f() != 1: sys.exit('wrong')"),
    ("next(iter(()))", "assert all(map(lambda x: f(x) == x, [1, 2, 3]))"),  # StopIteration
]


@pytest.mark.parametrize(("returned", "tests"), HOSTILE_TO_TESTS)
def test_a_returned_value_breaks_the_tests_and_not_the_verdict(
    pool: VerifierPool, returned: str, tests: str
) -> None:
    reference = AssertsReference(function="f", tests=tests)
    verdict = pool.submit(program(f"def f(*x): return {returned}"), reference).result()
    assert verdict.status is Status.WRONG, verdict


def test_nan_is_right_where_the_tests_speak_of_it(pool: VerifierPool) -> None:
    source = program("def f(x): return float('nan') if x else 1.5")
    tests = "import math\nassert math.isnan(f(1))\nassert f(0) == 1.5"
    assert pool.submit(source, AssertsReference(function="f", tests=tests)).result().reward == 1.0


COLLIDING = ",".join(f'["i","{n * (2**61 - 1):#x}"]' for n in range(2000))


@pytest.mark.parametrize(
    "line",
    [
        '["f","0x1p99999"]',
        '["c","0x1p99999","0x0p0"]',
        '["i","12345678901234567890zz"]',
        '["l",[["f","nan"]',
        '["d",[[["l",[]],null]]]',
        '["s",[["i","-0x1"],["i","-0x2"],["d",[]]]]',
        "[" * 3000,
        "NaN",
        "\xff\xfe",
        f'["s",[{COLLIDING}]]',
    ],
)
def test_forged_results_are_wrong(pool: VerifierPool, line: str) -> None:
    """Whatever stands on the channel: no exception, no crash, no time taken here."""
    source = f"import os\ndef f():\n    os.write(4, {line.encode()!r} + b'\\n')\n    os._exit(0)"
    verdict = pool.submit(program(source), CallsReference(function="f", cases=(((), 1),))).result()
    assert verdict.status is Status.WRONG, verdict


def test_given_code_may_stand_before_imports_from_the_future(pool: VerifierPool) -> None:
    source = program("from __future__ import annotations\n\ndef f(x: Undefined): return g(x)")
    given = "def g(x):\n    return x + 1"
    tests = AssertsReference(function="f", tests="assert f(1) == 2", prelude=given)
    calls = CallsReference(function="f", cases=(((1,), 2),), prelude=given)
    assert [v.reward for v in pool.map([(source, tests), (source, calls)])] == [1.0, 1.0]


def test_broken_tests_are_unknown(pool: VerifierPool) -> None:
    for tests in ("assert undefined(f())", "import no_such_module", "def check(:", "x = 1",
                  "f()\nfrom math import nothing", "f()\nx = '\ud800'", "f()\nassert 1\0",
                  "f()\nraise SystemExit", "f(lambda: 1)"):  # fmt: skip
        reference = AssertsReference(function="f", tests=tests)
        verdict = pool.submit(program("def f(): return 1"), reference).result()
        assert (verdict.status, verdict.reason) == (Status.UNKNOWN, "infra"), tests


def test_what_has_no_form_to_come_back_in_is_unknown(pool: VerifierPool) -> None:
    """The reference asks for it, so no program is at fault. The control: what has one."""
    deep: list = []
    for _ in range(100):
        deep = [deep]
    reasons = []
    for expected in (deep, object(), [1]):
        reference = CallsReference(function="f", cases=(((), expected),))
        reasons.append(pool.submit(program("def f(): return [1]"), reference).result().reason)
    assert reasons == ["infra", "infra", "ok"]


def test_reasons_of_failed_assertions(pool: VerifierPool) -> None:
    caught = "try: x = f()\nexcept ValueError: x = None\nassert x == 1"
    pairs = [
        ("f()", "runtime_error"),
        ("assert f() == 1", "runtime_error"),
        (caught, "wrong_answer"),
    ]
    for tests, reason in pairs:
        reference = AssertsReference(function="f", tests=tests)
        verdict = pool.submit(program("def f(): raise ValueError"), reference).result()
        assert (verdict.status, verdict.reason) == (Status.WRONG, reason), tests
