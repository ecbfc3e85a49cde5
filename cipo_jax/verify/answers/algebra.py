r"""Whether two mathematical texts mean the same, by computer algebra.

math-verify (latex2sympy and sympy underneath) reads and compares. It can be kept busy for ever by
a short answer, and its own alarm neither works outside a main thread nor interrupts big-integer
arithmetic; so no limit of time is set here, and all of it belongs into a process that can be
killed.

Where it is too lenient, exact rules are applied before or after it: it drops the base of 12_5,
rounds to six decimals (so 1/3 = 0.333333, and any two quantities below 1e-7 are equal), and takes
50% for 50 and for 0.5. Of these only the last is kept, since problems that ask for a percentage are
answered either way. Where it is too strict, the texts are read once more: `i` as the imaginary
unit, decimals in a formula as fractions, inequalities in one unknown as the set that they describe.
"""

from __future__ import annotations

import functools
import logging
from fractions import Fraction
from typing import Any, NamedTuple

from cipo_jax.verify.answers.number import rational
from cipo_jax.verify.answers.spelling import tidy

SAME_DECIMAL = Fraction(1, 10**9)
"""Relative distance up to which a decimal may stand for an irrational number."""
SAME_NUMBER = Fraction(1, 10**50)
"""Relative distance up to which two irrational numbers count as one."""
DIGITS = 60
"""Decimal digits to which numbers are computed: exp(pi sqrt(163)) differs from an integer in the
31st."""


def is_readable(text: str) -> bool:
    """Whether the text is mathematics at all."""
    return rational(text.removesuffix("%").removesuffix("\\")) is not None or (
        _parsed(text) is not None
    )


def is_equal(answer: str, gold: str, tolerance: float) -> bool:
    """Whether the two mean the same; real numbers within a relative tolerance, where it isn't 0.

    May take for ever.
    """
    gold_expr, expr = _parsed(gold), _parsed(answer)
    try:
        return _is_same(expr, gold_expr, tolerance, has_percent="%" in answer + gold)
    except OverflowError:  # a number that no computer holds equals only its own text
        return False


def _is_same(expr: Any, gold: Any, tolerance: float, *, has_percent: bool) -> bool:
    if gold is None or expr is None or _is_untrue(expr):
        return False
    if _is_equation(expr) and _is_equation(gold):
        if expr.lhs != gold.lhs:
            return _verify(expr, gold) or _is_same_equation(expr, gold)
        expr, gold = expr.rhs, gold.rhs
    elif _is_equation(gold) and not _is_name(gold.lhs):
        return False  # 0 is not the line 2x - y + 3 = 0
    value, gold_value = (None, None) if has_percent else (_real(expr), _real(gold))
    if value is None or gold_value is None:
        return _verify(expr, gold) or _verify_otherwise_read(expr, gold)
    is_decimal = _has_decimals(expr) or _has_decimals(gold)
    return _is_close(value, gold_value, Fraction(tolerance), is_decimal=is_decimal)


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
    return _without_membership(found[0]) if found else None


def _without_membership(expr: Any) -> Any:
    r"""Of `x \in S`, which is read as an equation, the set."""
    import sympy

    is_member = isinstance(expr, sympy.Eq) and isinstance(expr.rhs, sympy.Set)
    return expr.rhs if is_member else expr


def _verify(expr: Any, gold: Any) -> bool:
    import math_verify

    # Its six decimals would take (0.333333, 1) for (1/3, 1).
    return bool(math_verify.verify(gold, expr, float_rounding=9, timeout_seconds=None))


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


def _is_same_equation(expr: Any, gold: Any) -> bool:
    """Whether one equation is the other times a number: `x + y = 3` and `2x = 6 - 2y`."""
    import sympy

    expr, gold = _exact(expr), _exact(gold)
    if not all(isinstance(side, sympy.Expr) for each in (expr, gold) for side in each.args):
        return False
    try:
        ratio = sympy.cancel((expr.lhs - expr.rhs) / (gold.lhs - gold.rhs))
    except (ArithmeticError, NotImplementedError, sympy.PolynomialError):
        return False
    return bool(ratio.is_number and ratio.is_finite and ratio.is_nonzero)


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


# --- numbers ------------------------------------------------------------------------------------


class _Real(NamedTuple):
    """A real number; is_exact: the value is no approximation, so the number is rational."""

    value: Fraction
    is_exact: bool


def _is_untrue(expr: Any) -> bool:
    """Whether this says that two numbers are equal that differ (`5 = 6`, `x = 5 = 6`). Of other
    equations the right side counts as the answer: `x = 5`, `m + n = 5`, `2 + 3 = 5`.
    """
    import sympy

    said = expr.args if isinstance(expr, sympy.And) else (expr,)
    sides = [(_real(each.lhs), _real(each.rhs)) for each in said if _is_equation(each)]
    return any(
        left and right and not _is_close(left, right, SAME_DECIMAL, is_decimal=False)
        for left, right in sides
    )


def _is_close(value: _Real, gold: _Real, tolerance: Fraction, *, is_decimal: bool) -> bool:
    """Whether two numbers count as equal: rational ones exactly, a decimal for an irrational one
    to nine digits, others to fifty, and any within a tolerance."""
    if not tolerance and not (value.is_exact and gold.is_exact):
        tolerance = SAME_DECIMAL if is_decimal else SAME_NUMBER
    if gold.value == 0:
        return value.value == 0 or (not value.is_exact and abs(value.value) < SAME_NUMBER)
    return abs(value.value - gold.value) <= tolerance * abs(gold.value)


def _real(expr: Any) -> _Real | None:
    """The value, to `DIGITS` digits where it is irrational; of an equation the right side's. None
    for what is no real number.

    Raises: OverflowError for a number that no computer holds.
    """
    import sympy

    expr = expr.rhs if isinstance(expr, sympy.Eq) else expr
    if not isinstance(expr, sympy.Expr) or not expr.is_number:
        return None
    value = _exact(expr).doit()
    is_exact = bool(value.is_Rational)
    if not is_exact:
        value = sympy.N(value, DIGITS)
    if not (value.is_Float or value.is_Rational):
        return None
    value = sympy.Rational(value)
    return _Real(Fraction(int(value.p), int(value.q)), is_exact)


def _is_name(side: Any) -> bool:
    r"""Whether the left side of an equation only names what the right side is: `x`, `f(x)`, `AB`,
    `\angle A`; but `xy` is part of a curve."""
    import sympy
    from sympy.core.function import AppliedUndef

    letters = side.args if isinstance(side, sympy.Mul) else ()
    are_points = bool(letters) and all(
        isinstance(each, sympy.Symbol) and each.name not in "xyz" for each in letters
    )
    return are_points or isinstance(side, sympy.Symbol | AppliedUndef)


def _has_decimals(expr: Any) -> bool:
    import sympy

    return bool(expr.atoms(sympy.Float))


def _is_equation(expr: Any) -> bool:
    import sympy

    return isinstance(expr, sympy.Eq)
