r"""Whether two mathematical texts mean the same, by computer algebra.

math-verify (latex2sympy and sympy underneath) reads and compares. It can be kept busy for ever by
a short answer, and its own alarm neither works outside a main thread nor interrupts big-integer
arithmetic; so no limit of time is set here, and all of it belongs into a process that can be
killed.

Where it is too lenient, exact rules stand before or after it: it drops the base of 12_5, rounds to
six decimals (so 1/3 = 0.333333, and any two quantities below 1e-7 are equal), and takes 50% for 50
and for 0.5. Of these only the last is kept, since problems that ask for a percentage are answered
either way. Where it is too strict, the texts are read once more: `i` as the imaginary unit,
decimals in a formula as fractions, inequalities in one unknown as the set that they describe.
"""

from __future__ import annotations

import functools
import logging
from fractions import Fraction
from typing import Any

from cipo_jax.verify.number import rational
from cipo_jax.verify.spelling import tidy

SAME_DECIMAL = Fraction(1, 10**9)
"""Relative distance up to which a decimal may stand for an irrational number."""


def is_readable(text: str) -> bool:
    """Whether the text is mathematics at all."""
    return rational(text) is not None or _parsed(text) is not None


def is_equal(answer: str, gold: str, tolerance: float) -> bool:
    """Whether the two mean the same; real numbers within a relative tolerance, where it isn't 0.

    May take for ever.
    """
    gold_expr, expr = _parsed(gold), _parsed(answer)
    if gold_expr is None or expr is None or _is_untrue(expr):
        return False
    has_percent = "%" in answer + gold
    distance = None if has_percent else _relative_distance(expr, gold_expr)
    if tolerance and distance is not None:
        return distance <= Fraction(tolerance)
    if not (_verify(expr, gold_expr) or _verify_otherwise_read(expr, gold_expr)):
        return False
    # It rounds to six decimals and cuts off below 1e-15, which makes all small quantities equal.
    return distance is None or distance <= SAME_DECIMAL


@functools.lru_cache(maxsize=1024)
def _parsed(text: str) -> Any:
    """The sympy expression that math-verify reads in the text of one answer; None if it can't."""
    import math_verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that no alarm is set
    found = math_verify.parse(
        "\\boxed{" + tidy(text) + "}",
        [math_verify.LatexExtractionConfig()],
        fallback_mode="no_fallback",
        parsing_timeout=None,
    )
    return found[0] if found else None


def _verify(expr: Any, gold: Any) -> bool:
    import math_verify

    return bool(math_verify.verify(gold, expr, timeout_seconds=None))


def _verify_otherwise_read(expr: Any, gold: Any) -> bool:
    import sympy

    if not (isinstance(expr, sympy.Basic) and isinstance(gold, sympy.Basic)):
        return False
    exact, exact_gold = _exact(expr), _exact(gold)
    if (exact, exact_gold) != (expr, gold) and _verify(exact, exact_gold):
        return True
    if expr.free_symbols and gold.free_symbols and expr.free_symbols != gold.free_symbols:
        return False
    regions = _region(expr), _region(gold)
    return None not in regions and regions[0] == regions[1]


def _exact(expr: Any) -> Any:
    """`i` as the imaginary unit, and decimals as the fractions that they are."""
    import sympy

    otherwise = {each: sympy.Rational(str(each)) for each in expr.atoms(sympy.Float)}
    otherwise |= {each: sympy.I for each in expr.free_symbols if each.name == "i"}
    return expr.xreplace(otherwise)


def _region(expr: Any) -> Any:
    """The set of reals that inequalities in one unknown describe, or that the text is; or None."""
    import sympy

    if isinstance(expr, sympy.Interval | sympy.Union):
        return expr
    if isinstance(expr, sympy.FiniteSet):  # x < 1, x > 2
        expr = (
            sympy.Or(*expr)
            if all(isinstance(each, sympy.Rel | sympy.And) for each in expr)
            else None
        )
    is_inequality = isinstance(expr, sympy.Rel | sympy.And | sympy.Or) and not expr.atoms(sympy.Eq)
    if not is_inequality or len(expr.free_symbols) != 1:
        return None
    try:
        # The symbols are not known to be real, which the solver insists on.
        unknown = expr.free_symbols.pop()
        return expr.xreplace({unknown: sympy.Symbol("x", real=True)}).as_set()
    except (NotImplementedError, TypeError, ValueError):
        return None


def _is_untrue(expr: Any) -> bool:
    """Whether this is an equation between two numbers that differ (`5 = 6`). Of other equations
    the right side counts as the answer: `x = 5`, `m + n = 5`, `2 + 3 = 5`.
    """
    import sympy

    return isinstance(expr, sympy.Eq) and _relative_distance(expr.lhs, expr.rhs) not in (0, None)


def _relative_distance(expr: Any, gold: Any) -> Fraction | None:
    """|expr - gold| / |gold| of two real numbers, to about 30 digits; None for anything else."""
    import sympy

    values = []
    for each in (expr, gold):
        if isinstance(each, sympy.Eq):
            each = each.rhs
        if not isinstance(each, sympy.Expr) or not each.is_number:
            return None
        try:
            value = sympy.N(each.doit(), 30)
        except OverflowError:  # a number that no computer holds equals only its own text
            return Fraction(1)
        if not value.is_Float and not value.is_Integer and not value.is_Rational:
            return None
        values.append(sympy.Rational(value))
    value, gold_value = (Fraction(int(v.p), int(v.q)) for v in values)
    if gold_value == 0:
        return Fraction(0) if value == 0 else Fraction(1)
    return abs(value - gold_value) / abs(gold_value)
