"""Where in a completion the program stands: in a fenced block, as Markdown has them."""

from __future__ import annotations

import re

from cipo_jax.verify.thinking import without_thinking

MAX_COMPLETION = 2**20
"""Only the end of a longer completion is read."""

# One way to match a line, so that hostile text costs no more than its length.
_FENCE = re.compile(r"^([ \t]{0,32})(`{3,}|~{3,})([^\n`]*)$", re.MULTILINE)
_PYTHON = re.compile(r"\s{0,8}\{?\.?(?:python|py)[\d.]{0,8}(?![\w-])", re.IGNORECASE)
_BYTE_ORDER_MARK = "\ufeff"


def extract(completion: str, *, function: str = "") -> str:
    """The program in a completion: its last fenced Python block, or all of it where none is fenced.

    Thinking doesn't count (`thinking.py`). A block without a language is taken for Python
    only where none says that it is, since examples of output are often fenced as well. Where a
    function is asked for, the last block that defines it is taken, since an example of its use
    often follows. A block that is never closed runs to the next that begins, or to the end. Of a
    block in a list the fence's own indentation is taken off.
    """
    text = without_thinking(completion)[-MAX_COMPLETION:]
    named, nameless = [], []
    opening = None
    for fence in [*_FENCE.finditer(text), None]:
        if opening is not None and _ends(opening, fence):
            block = _block(text, opening, len(text) if fence is None else fence.start())
            if _PYTHON.match(opening[3]):
                named.append(block)
            elif not opening[3].strip():
                nameless.append(block)
            is_closing = fence is not None and not fence[3].strip()
            opening = None if is_closing else fence
        elif opening is None and fence is not None and _opens(fence):
            opening = fence
    if not named and not nameless:
        return text.removeprefix(_BYTE_ORDER_MARK)
    blocks = _defining(function, named) or _defining(function, nameless) or named or nameless
    return blocks[-1].removeprefix(_BYTE_ORDER_MARK)


def _opens(fence: re.Match[str]) -> bool:
    """Deeper than three columns, plain text may hold what looks like one."""
    return len(fence[1]) <= 3 or _PYTHON.match(fence[3]) is not None


def _ends(opening: re.Match[str], fence: re.Match[str] | None) -> bool:
    """Whether a block ends at this fence: at the end of the text, at the fence that closes it, or
    at one that begins a block of Python.
    """
    if fence is None:
        return True
    is_like = fence[2].startswith(opening[2]) and len(fence[1]) <= len(opening[1]) + 3
    return is_like and (not fence[3].strip() or _PYTHON.match(fence[3]) is not None)


def _block(text: str, opening: re.Match[str], end: int) -> str:
    block = text[opening.end() + 1 : end]
    indent = opening[1]
    return re.sub(rf"^{indent}", "", block, flags=re.MULTILINE) if indent else block


def _defining(function: str, blocks: list[str]) -> list[str]:
    """The blocks that define a function or class of this name."""
    name = re.escape(function)
    pattern = re.compile(rf"\b(def|class)\s+{name}\b|^{name}\s*=", re.MULTILINE)
    return [block for block in blocks if function and pattern.search(block)]
