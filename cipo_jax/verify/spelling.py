r"""Mathematics in one spelling: without what only concerns its looks, and in LaTeX throughout.

Models write `√2`, `x²`, `½` and `≤` as well; the computer algebra reads LaTeX only.
"""

from __future__ import annotations

import re
import unicodedata

from cipo_jax.verify.number import as_latex, plain_digits

_FORMATTING = re.compile(
    r"(?<!\\)\\(?:(?:left|right|displaystyle|quad|qquad)(?![A-Za-z])|[,!;:()\[\] ]|$)|[$~]|^\s*=\s*"
)
_LOOSE_SPACE = re.compile(r"(?<![A-Za-z0-9])\s+|\s+(?![A-Za-z0-9])")
_ONE_CHAR_GROUP = re.compile(r"([_^])\{(\w)\}")
_SPACED_THOUSANDS = re.compile(r"[-+]?\d{1,3}(?: \d{3}){1,40}(?:\.\d+)?", re.ASCII)

_COMMANDS = str.maketrans(
    {
        **{"∞": "\\infty ", "∪": "\\cup ", "∩": "\\cap ", "∈": "\\in ", "∅": "\\emptyset "},
        **{"≤": "\\le ", "≥": "\\ge ", "≠": "\\ne ", "≈": "\\approx ", "π": "\\pi "},
        **{"·": "\\cdot ", "⋅": "\\cdot ", "×": "\\times ", "÷": "/", "⁄": "/", "∕": "/"},
        **{"ℝ": "\\mathbb{R}", "ℤ": "\\mathbb{Z}", "ℕ": "\\mathbb{N}", "ℚ": "\\mathbb{Q}"},
        **{"°": "^\\circ "},
    }
)
_SUPERSCRIPTS = re.compile("[⁰¹²³⁴-⁹⁺⁻ⁿ]{1,20}")
_SUBSCRIPTS = re.compile("[₀-₉]{1,20}")
_FRACTIONS = re.compile("[¼-¾⅐-⅞↉]")
_ROOT = re.compile(
    r"([√∛])\s?(?:\(([^()√∛]{1,100})\)|\{([^{}√∛]{1,100})\}|(\d{1,50}(?:\.\d{1,50})?|[A-Za-z]))"
)


def formatless(text: str) -> str:
    """`text` without what only concerns its looks, numbers in plain digits: for comparing texts,
    and as the name of an answer.
    """
    return _squeezed(plain_digits(in_latex(text)))


def tidy(text: str) -> str:
    r"""The same for reading as mathematics: fractions stay LaTeX, since `1/4\pi` is not
    `\frac{1}{4}\pi`.
    """
    return _squeezed(as_latex(in_latex(text)))


def in_latex(text: str) -> str:
    r"""`text` with Unicode's mathematical characters as LaTeX: `2√3` as `2\sqrt{3}`, `x²` as
    `x^{2}`, `1½` as `1\frac{1}{2}`. Characters that are not among them stay.
    """
    if text.isascii():
        return text
    text = _FRACTIONS.sub(_fraction, text)
    text = _SUPERSCRIPTS.sub(lambda m: f"^{{{_plain(m[0])}}}", text)
    text = _SUBSCRIPTS.sub(lambda m: f"_{{{_plain(m[0])}}}", text)
    text = _ROOT.sub(_root, text)
    return text.translate(_COMMANDS)


def _squeezed(text: str) -> str:
    text = text.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    text = text.replace("\\varnothing", "\\emptyset").replace("\\%", "%").replace("\\$", "")
    text = _ONE_CHAR_GROUP.sub(r"\1\2", _FORMATTING.sub(" ", text).strip())
    if _SPACED_THOUSANDS.fullmatch(text):
        text = text.replace(" ", "")
    return _LOOSE_SPACE.sub("", text).rstrip(".")


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).replace("−", "-")


def _fraction(match: re.Match[str]) -> str:
    top, _, bottom = _plain(match[0]).partition("⁄")
    return f"\\frac{{{top}}}{{{bottom}}}"


def _root(match: re.Match[str]) -> str:
    degree = "[3]" if match[1] == "∛" else ""
    return f"\\sqrt{degree}{{{match[2] or match[3] or match[4]}}}"
