r"""Where in a completion the final answer stands.

In this order: the last `\boxed{...}` (or `\boxed 5`); what follows the last "answer is" or
"answer:"; the last formula or number. Answers that are joined by a comma, *and* or *or* are one
answer with several parts, so that naming two candidates is not the same as naming the right one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from cipo_jax.verify.answers.number import last_number
from cipo_jax.verify.thinking import without_thinking

MAX_COMPLETION_CHARS = 65_536
"""Only the end of a longer completion is read."""

MAX_ANSWER_CHARS = 1_000
"""A longer box is cut to one character more than this, and its answer is judged wrong."""

_PHRASE_CHARS = 4_000
_PROSE_CHARS = 1_000
_MAX_BOXES = 64

_BOX = re.compile(r"\\(?:boxed|fbox)\s{0,3}\{")
_BARE_BOX = re.compile(
    r"\\(?:boxed|fbox)[ \t]{1,3}(?![\s{])([^$\n]{1,200}?)(?=\$|\\[)\]]|[.,;]?(?:\s|$))"
)
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_FORMULA = re.compile(
    r"\$\$((?:\\.|[^$\\]){1,500})\$\$|\$((?:\\.|[^$\n\\]){1,500})\$"
    r"|\\\(([^\n]{1,500}?)\\\)|\\\[(.{1,500}?)\\\]",
    re.DOTALL,
)
_AND_OR = r"\\(?:text|mbox)\{\s?(?:and|or)\s?\}|\b(?:and|or)(?![A-Za-z])"
_JOINT = re.compile(
    r"(?:[ \t$*,;]|\n(?!\s*\n)|\\[,;:()\[\] ]|\\q?quad|[A-Za-z](?:_\{?\w\}?)?\s?=|" + _AND_OR + ")*"
)
_MAX_JOINT_CHARS = 40
_ANSWER_IS = re.compile(
    r"\banswer\b[^.\n:=]{0,40}?(?:\bis\b(?!\s+not\b)|[:=])[\s:*]{0,8}", re.IGNORECASE
)
_SENTENCE_END = re.compile(r"\.(?:\s|$)|\n|[,;]?\s(?:because|since|as|so|which|where|when)\s")
_SEPARATOR = re.compile(r"\\[{}]|[{}()\[\]]|[,;]|" + _AND_OR)
_THOUSANDS = re.compile(r"(?<=\d)(?<!\d{4}),\d{3}(?!\d)")
_LEADING_WORDS = re.compile(r"^(?:[A-Za-z]{2,30}[ :]{1,3}){1,10}(?=\S*\d)")


class _Piece(NamedTuple):
    start: int
    end: int
    text: str


def final_answer(completion: str) -> str:
    """The text of the final answer; empty if there is none.

    Thinking doesn't count (`thinking.py`), nor does a box that isn't closed (the completion was
    cut), or its content.
    Takes time linear in the completion, whatever it holds.
    """
    text = said(completion)
    if boxed := _chains(text, list(_boxes(text))):
        return boxed[-1]
    if opening := _BOX.search(text):
        text = text[: opening.start()]
    tail = text[-_PHRASE_CHARS:]
    phrases = list(_ANSWER_IS.finditer(tail))
    if phrases and (answer := _phrased(tail[phrases[-1].end() :])):
        return answer
    return _last_mathematics(text[-_PROSE_CHARS:])


def last_box(completion: str) -> str:
    r"""The content of the last `\boxed{...}`, or in several that are joined; empty without any."""
    text = said(completion)
    return next(reversed(_chains(text, list(_boxes(text)))), "")


def said(completion: str) -> str:
    """The part of a completion that is read: its end, thinking left out."""
    return without_thinking(completion)[-MAX_COMPLETION_CHARS:]


def parts(answer: str) -> list[str]:
    """The parts of an answer with several: split at commas, semicolons, *and* and *or* that stand
    outside all brackets. `1,234` is one number.
    """
    found, depth, start = [], 0, 0
    for match in _SEPARATOR.finditer(answer):
        token = match[0]
        if token in ("{", "(", "[", "\\{"):
            depth += 1
        elif token in ("}", ")", "]", "\\}"):
            depth -= 1
        elif depth == 0 and not _THOUSANDS.match(answer, match.start()):
            found.append(answer[start : match.start()])
            start = match.end()
    found.append(answer[start:])
    return [part.strip() for part in found if part.strip()]


def _boxes(text: str) -> Iterator[_Piece]:
    bare = (_Piece(m.start(), m.end(), m[1]) for m in list(_BARE_BOX.finditer(text))[-_MAX_BOXES:])
    yield from sorted([*bare, *_braced(text)])


def _braced(text: str) -> Iterator[_Piece]:
    for opening in list(_BOX.finditer(text))[-_MAX_BOXES:]:
        depth = 1
        limit = opening.end() + MAX_ANSWER_CHARS
        for brace in _BRACE.finditer(text, opening.end()):
            depth += {"{": 1, "}": -1}.get(brace[0], 0)
            if depth == 0:
                content = text[opening.end() : min(brace.start(), limit + 1)].strip()
                if not _BOX.search(content):  # of nested boxes the inner one
                    yield _Piece(opening.start(), brace.end(), content)
                break
            if brace.start() > limit:
                yield _Piece(opening.start(), brace.end(), text[opening.end() : limit + 1])
                break


def _formulas(text: str) -> Iterator[_Piece]:
    for match in _FORMULA.finditer(text):
        if content := next(group for group in match.groups() if group is not None).strip():
            yield _Piece(match.start(), match.end(), content)


def _chains(text: str, pieces: list[_Piece]) -> list[str]:
    """Pieces with nothing but a comma, *and*, *or* or `x =` between them become one answer; the
    same piece twice is one.
    """
    chains: list[list[str]] = []
    end = None
    for piece in pieces:
        between = text[end : piece.start] if end is not None else None
        is_joined = (
            between is not None
            and len(between) <= _MAX_JOINT_CHARS
            and _JOINT.fullmatch(between) is not None
        )
        if not is_joined:
            chains.append([piece.text])
        elif piece.text not in chains[-1]:
            chains[-1].append(piece.text)
        end = piece.end
    return [", ".join(chain) for chain in chains]


def _phrased(rest: str) -> str:
    """The answer at the start of what follows "the answer is"."""
    rest = rest.lstrip()[:_PROSE_CHARS]
    if formula := next(_formulas(rest), None):
        before = rest[: formula.start]
        if not _SENTENCE_END.search(before) and not last_number(before):
            return _chains(rest, list(_formulas(rest)))[0]
    sentence = _SENTENCE_END.split(rest, maxsplit=1)[0].strip(" *_`$")
    sentence = _LEADING_WORDS.sub("", sentence, count=1) if last_number(sentence) else sentence
    return sentence[:MAX_ANSWER_CHARS].strip()


def _last_mathematics(text: str) -> str:
    formulas = list(_formulas(text))
    after = text[formulas[-1].end :] if formulas else text
    number = last_number(after)
    if number or not formulas:
        return number or ""
    return _chains(text, formulas)[-1]
