"""Exact numbers in text: what a number looks like, which one is the last, what it is worth.

Every pattern is bounded and linear in the text, and no digit string is converted before its length
is known: hostile text costs what ordinary text of its length costs.
"""

from __future__ import annotations

import re
from fractions import Fraction

MAX_NUMBER_CHARS = 400
"""Longer numbers are no answers. Python refuses to convert more than 4,300 digits."""

MAX_EXPONENT = 400

_SAME = str.maketrans(
    "−﹣－–٫０１２３４５６７８９．／",
    "----.0123456789./",
    "\u200b\u200c\u200d\u2060\ufeff",  # characters that are not seen
)

_GROUPED = r"\d{1,3}(?:,\d{3}){1,40}(?!\d)"
_UNSIGNED = rf"(?:(?:{_GROUPED}|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{{1,20}}(?!\w))?"
_NUMBER = re.compile(rf"([-+]?)({_UNSIGNED})\.?", re.ASCII)
_RATIO = re.compile(rf"([-+]?)({_UNSIGNED})\s?/\s?({_UNSIGNED})", re.ASCII)
_IN_TEXT = re.compile(
    # Not in a name or an exponent, nor after `2.` in `1.2.3`; but after an ellipsis.
    rf"(?<![\w^])(?<!\d\.)(?:(?<!\.)|(?!\.))({_UNSIGNED})(?:\s?/\s?({_UNSIGNED}))?",
    re.ASCII,
)

_FRAC = re.compile(
    r"(?:(?<![\d.,^_])(\d{1,9})\s?)?\\[dt]?frac\s?"
    r"(?:\{\s?(-?)(\d{1,200})\s?\}\s?\{\s?(\d{1,200})\s?\}|()(\d)\s?(\d))",
    re.ASCII,
)
_REPEATING = re.compile(
    r"(?<![\d.,])(\d{0,40})\.(\d{0,40})\\(?:overline|bar)\s?\{\s?(\d{1,40})\s?\}", re.ASCII
)
_DOTTED = re.compile(r"\\dot\s?(?:\{(\d)\}|(\d))(?:(\d{0,40})\\dot\s?(?:\{(\d)\}|(\d)))?", re.ASCII)
_POWER_OF_TEN = re.compile(
    r"(?<=\d)\s{0,2}(?:\\times|\\cdot|×|·|\*)\s{0,2}10\s?\^\s?"
    r"(?:\{\s?([-+]?\d{1,4})\s?\}|([-+]?\d{1,4}))",
    re.ASCII,
)
_SPACED_GROUP = re.compile(r"(?<=\d)(?:\\[,!;: ]|\{,\}\s?)(?=\d)", re.ASCII)


def plain_digits(text: str) -> str:
    r"""`text` with LaTeX and Unicode forms of numbers spelled in ASCII: `\frac{1}{2}` as `1/2`,
    `1\frac{1}{2}` as `3/2`, `2\times 10^{-3}` as `2e-3`, `1{,}234` as `1,234`,
    `0.\overline{3}` as `3/9`.
    """
    if not text.isascii():
        text = text.translate(_SAME)
    if "\\" in text or "{,}" in text:
        text = _SPACED_GROUP.sub(lambda m: "," if "{" in m[0] else "", text)
        text = _REPEATING.sub(_repeating_text, _overlined(_FRAC.sub(_ratio_text, text)))
    return _POWER_OF_TEN.sub(lambda m: f"e{m[1] or m[2]}", text) if "^" in text else text


def as_latex(text: str) -> str:
    r"""The same for a formula that goes on: digits in ASCII, no separators of thousands, and mixed
    and repeating numbers as fractions; but `\frac{1}{4}` stays, since more may follow it.
    """
    if not text.isascii():
        text = text.translate(_SAME)
    if "\\" not in text and "{,}" not in text:
        return text
    text = _SPACED_GROUP.sub("", text)
    text = _FRAC.sub(lambda m: m[0] if m[1] is None else _as_frac(_ratio_text(m)), text)
    return _REPEATING.sub(lambda m: _as_frac(_repeating_text(m)), _overlined(text))


def _overlined(text: str) -> str:
    r"""Repeating decimals in the other notation, `0.1\dot{4}2\dot{8}`, with a line over them."""
    return _DOTTED.sub(lambda m: f"\\overline{{{''.join(filter(None, m.groups()))}}}", text)


def _as_frac(ratio: str) -> str:
    top, slash, bottom = ratio.partition("/")
    return f"\\frac{{{top}}}{{{bottom}}}" if slash else ratio


def _ratio_text(match: re.Match[str]) -> str:
    whole, minus, top, bottom = match[1], match[2] or "", match[3] or match[6], match[4] or match[7]
    if whole is None:
        return f"{minus}{top}/{bottom}"
    return match[0] if minus else f"{int(whole) * int(bottom) + int(top)}/{bottom}"


def _repeating_text(match: re.Match[str]) -> str:
    whole, fixed, repeated = match.groups()
    ratio = int(whole + fixed + repeated) - int((whole + fixed) or "0")
    return f"{ratio}/{'9' * len(repeated)}{'0' * len(fixed)}"


def rational(text: str) -> Fraction | None:
    """The exact value of a text that is one number and nothing else; None for any other text.

    Understood: sign, thousands separators, decimals, powers of ten (up to 10^400), `a/b`, LaTeX
    fractions, a full stop at the end. Numbers of more than 400 characters are not.
    """
    if len(text) > MAX_NUMBER_CHARS:
        return None
    text = plain_digits(text.strip()).strip()
    if match := _NUMBER.fullmatch(text):
        value = _value(match[2])
    elif match := _RATIO.fullmatch(text):
        top, bottom = _value(match[2]), _value(match[3])
        value = top / bottom if top is not None and bottom else None
    else:
        return None
    return -value if value is not None and match[1] == "-" else value


def _value(unsigned: str) -> Fraction | None:
    digits, _, exponent = unsigned.replace(",", "").lower().partition("e")
    if len(digits) > MAX_NUMBER_CHARS or (exponent and abs(int(exponent)) > MAX_EXPONENT):
        return None
    return Fraction(digits) * Fraction(10) ** int(exponent) if exponent else Fraction(digits)


def last_number(text: str) -> str | None:
    """The last number in `text`, as `rational` reads it; None if there is none.

    `a/b` is one number. Digits that belong to a name (`x2`) or are an exponent (`cm^2`) don't
    count. A minus is a sign where it touches the number and follows no operand (`5-3` ends in 3,
    `= -3` in -3), and where it is spaced, only after one of `= : , ( [ {`.
    """
    text = plain_digits(text)
    for match in reversed(list(_IN_TEXT.finditer(text))):
        before = text[max(0, match.start() - 8) : match.start()]
        if before.endswith(("^{", "^-", "^{-", "^(", "^(-")):
            continue
        return ("-" if _is_negated(before) else "") + match[0]
    return None


def _is_negated(before: str) -> bool:
    before = before.removesuffix("$").removesuffix("\\")
    if before.endswith("-"):
        return not re.search(r"[\w)\]}]$", before[:-1])
    head = before.rstrip(" ")
    return head.endswith("-") and head[:-1].rstrip(" ").endswith(("=", ":", ",", "(", "[", "{"))
