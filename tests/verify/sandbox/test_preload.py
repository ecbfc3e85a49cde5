"""A nursery loads all that a worker needs, which may not be able to read a module."""

import json
import subprocess
import sys

LOCKED_IN = """
import json, sys
from cipo_jax.verify.answers import judging
from cipo_jax.verify.sandbox import preload
from cipo_jax.verify.verdict import MathReference

if sys.argv[1:] == ["little"]:
    preload._ALGEBRA = ""
preload.load("math")
finders = sys.meta_path[:]
missed = set()

class LockedIn:
    def find_spec(self, name, path=None, target=None):
        if any(finder.find_spec(name, path) for finder in finders):
            missed.add(name)
        raise ImportError(name)

sys.meta_path[:] = [LockedIn()]
statuses = []
for text, gold in json.load(sys.stdin):
    try:
        found = judging.judge(f"\\\\boxed{{{text}}}", MathReference(answers=(gold,)))
    except ImportError:
        statuses.append("ImportError")
    else:
        statuses.append(found.status.value)
print(json.dumps([statuses, sorted(missed)]))
"""
PAIRS = [line.split(" | ") for line in r"""
right | \int_0^1 x^2 e^x dx | e-2
right | \int_0^\infty e^{-x^2} dx | \frac{\sqrt{\pi}}{2}
right | \int_0^1 \int_0^1 xy dx dy | \frac14
wrong | \int_0^1 \sin(x^{x^{x}}) dx | 2
wrong | \int \frac{1}{x^4+1} dx | x
right | \sum_{n=1}^{\infty} \frac{1}{n^2} | \frac{\pi^2}{6}
right | \prod_{k=1}^{5} k | 120
wrong | \sum_{n=1}^{10} \delta_{n} | 1
right | \lim_{x \to 0} \frac{\sin x}{x} | 1
right | \lim_{n\to\infty} (1+\frac{1}{n})^n | e
right | \frac{d}{dx} x^3 | 3x^2
right | \{1,2\} \cup \{3\} | \{1,2,3\}
right | (-\infty, 2) \cup (3, \infty) | x<2 \text{ or } x>3
right | x \in [1,2] | 1 \le x \le 2
right | \mathbb{R} \setminus \{0\} | x \ne 0
right | \begin{vmatrix} 1 & 2 \\ 3 & 4 \end{vmatrix} | -2
wrong | \sqrt[3]{2+\sqrt5} | x
right | \frac{1}{1+\frac{1}{1+x}} | \frac{x+1}{x+2}
right | \gcd(4,6) | 2
""".strip().splitlines()]  # fmt: skip


def judged(*arguments: str) -> tuple[list[str], list[str]]:
    ran = subprocess.run(
        [sys.executable, "-c", LOCKED_IN, *arguments],
        input=json.dumps([pair for _, *pair in PAIRS]),
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-2000:]
    return json.loads(ran.stdout)


def test_algebra_imports_nothing_once_it_is_locked_in() -> None:
    statuses, missed = judged()
    assert missed == []
    assert statuses == [status for status, *_ in PAIRS]


def test_the_check_can_fail() -> None:
    """Of what sympy loads by itself, integrals lack a part."""
    statuses, missed = judged("little")
    assert "sympy.integrals.risch" in missed
    assert statuses[0] == "ImportError"
