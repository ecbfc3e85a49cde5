r"""Mathematics in one spelling: without what only concerns its looks, and in LaTeX throughout.

Models write `√2`, `x²`, `½` and `≤` as well; the computer algebra reads LaTeX only.
"""

from __future__ import annotations

import re
import unicodedata

from cipo_jax.verify.answers.number import as_latex, plain_digits

_FORMATTING = re.compile(
    r"(?<!\\)\\(?:(?:left|right|displaystyle|quad|qquad)(?![A-Za-z])|[,!;:()\[\] ]|$)|[$~]|^\s*=\s*"
)
_DIGITS = re.compile(r"[-+]?\d[\d,/]*(?:\.\d*)?", re.ASCII)
_BOLD = re.compile(r"^\s*\*\*(.*)\*\*\s*$")
_FONT = re.compile(r"\\(?:bf|rm|it|sf|tt)(?![A-Za-z])")
_NAME_OF_QUANTITY = re.compile(r"^\s*\\(?:text|mathrm|mbox)\{[A-Za-z ]{1,60}\}\s*=")
_DOUBLE_BRACES = re.compile(r"\{(\{[^{}\\]*\})\}")
_TYPED_PI = re.compile(r"(?<![\\A-Za-z])pi(?![A-Za-z])")
_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)\s?\{([^{}]*)\}")
_LOOSE_SPACE = re.compile(r"(?<![A-Za-z0-9])\s+|\s+(?![A-Za-z0-9])")
_ONE_CHAR_GROUP = re.compile(r"([_^])\{(\w)\}")
_FINAL_STOP = re.compile(r"(?<!\.)\.$")
_ANGLE_IN_DEGREES = re.compile(r"(\d+(?:\.\d+)?)\s?\^\s?(?:\{\s?\\circ\s?\}|\\circ(?![A-Za-z]))")
_TRIGONOMETRIC = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")
_OUTWARD_INTERVAL = re.compile(r"([\[\]])([^\[\](),]{1,200}),([^\[\](),]{1,200})([\[\]])")
_SET_BUILDER = re.compile(
    r"^\s*\\\{\s*[A-Za-z]\s*(?:\\in\s*(?:\\mathbb\s?\{?R\}?|ℝ)\s*)?(?:\\mid|\\vert|\||:)"
    r"(.{1,400})\\\}\s*$"
)
_SPACED_THOUSANDS = re.compile(r"[-+]?\d{1,3}(?: \d{3}){1,40}(?:\.\d+)?", re.ASCII)

_USUAL = {
    **{"\\dfrac": "\\frac", "\\tfrac": "\\frac", "\\varnothing": "\\emptyset"},
    **{"\\%": "%", "\\$": "", "\\langle": "(", "\\rangle": ")", "**": "^", "{:}": ":"},
}
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
    text = _squeezed(as_latex(in_latex(text)))
    text = _OUTWARD_INTERVAL.sub(_inward, _SET_BUILDER.sub(r"\1", text))
    if _TRIGONOMETRIC.search(text):
        text = _ANGLE_IN_DEGREES.sub(r"{\\frac{\1\\pi}{180}}", text)
    return text


def unwrapped(text: str) -> str:
    r"""What `formatless` gives, without `\text{...}` and its kin around words."""
    return _squeezed(_TEXT.sub(r" \1 ", text)) if "{" in text else text


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
    if _DIGITS.fullmatch(text):
        return text.removesuffix(".")
    text = _NAME_OF_QUANTITY.sub("", _FONT.sub(" ", _BOLD.sub(r"\1", text)))
    text = _TYPED_PI.sub(r"\\pi ", text)
    for spelling, usual in _USUAL.items():
        text = text.replace(spelling, usual)
    while (single := _DOUBLE_BRACES.sub(r"\1", text)) != text:
        text = single
    text = _ONE_CHAR_GROUP.sub(r"\1\2", _FORMATTING.sub(" ", text).strip())
    if _SPACED_THOUSANDS.fullmatch(text):
        text = text.replace(" ", "")
    return _FINAL_STOP.sub("", _LOOSE_SPACE.sub("", text))


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).replace("−", "-")


def _inward(match: re.Match[str]) -> str:
    """An interval in brackets that turn outward where an end is open: `]0,1]` as `(0,1]`."""
    opening, low, high, closing = match.groups()
    if (opening, closing) == ("[", "]"):
        return match[0]
    return f"{'(' if opening == ']' else '['}{low},{high}{')' if closing == '[' else ']'}"


def _fraction(match: re.Match[str]) -> str:
    top, _, bottom = _plain(match[0]).partition("⁄")
    return f"\\frac{{{top}}}{{{bottom}}}"


def _root(match: re.Match[str]) -> str:
    degree = "[3]" if match[1] == "∛" else ""
    return f"\\sqrt{degree}{{{match[2] or match[3] or match[4]}}}"
