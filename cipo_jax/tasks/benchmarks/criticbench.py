"""CriticBench: say whether a response is right, then correct it.

Two prompts a row. The critique ends in a JSON verdict; the correction is asked for with the
critique shown, and answers in JSON. Forms of answers, judging by source, and both scores are
CriticBench's; the wording is ours.
"""

from __future__ import annotations

import ast
import json
import re
from typing import Any

from cipo_jax.tasks.benchmarks.benchmark import Benchmark, HubSplit, Item, Response
from cipo_jax.tasks.problem import Problem
from cipo_jax.tasks.references import Unusable, tested_function
from cipo_jax.tasks.rows import Row, abbreviated
from cipo_jax.verify.verdict import AssertsReference, MathReference, Reference, TextReference

RIGHT, WRONG = "correct", "wrong"

CRITIQUE_FORMAT = (
    "Go through the answer and look for mistakes. Give your analysis and your verdict as JSON: "
    '{"analysis": "your analysis", "verdict": "correct or wrong"}.'
)
_ANSWER_FORMAT = (
    "Correct the answer in the light of the analysis. Give the solution as JSON: "
    '{{"solution": "improved solution", "answer": "{what}"}}.'
)
_CODE_FORMAT = (
    'Correct the code in the light of the analysis. Give it as JSON: {"code": "improved code"}.'
)

_CODE = {"humaneval", "mbpp"}
_LETTERS = {"aqua", "csqa", "date", "penguins", "coloredobject"}
_TEXTS = {"hotpotqa", "ambignq", "repeatcopy", "strategyqa"}

_DECODER = json.JSONDecoder(strict=False)


def criticbench(row: Row) -> Item:
    label = row.value("response_label")
    if not isinstance(label, bool):
        raise ValueError(f"{row.where}: 'response_label' must be true or false, it is {label!r}.")
    source = row.text("question_source")
    reference = _reference(row, _key(source))
    return Item(
        problem=Problem(
            id=f"criticbench:{row.value('id')}",
            question=row.text("question"),
            answer_format=_form(_key(source)),
            reference=reference,
        ),
        tags={"question_type": row.text("question_type"), "question_source": source},
        response=Response(text=str(row.value("response")).strip(), is_right=label),
    )


def critique(item: Item) -> Problem:
    """The problem of judging the item's response."""
    return Problem(
        id=item.problem.id,
        question=_shown(item),
        answer_format=CRITIQUE_FORMAT,
        reference=TextReference(answers=(RIGHT if _response(item).is_right else WRONG,)),
    )


def correction(item: Item, written: str) -> Problem:
    """The problem of correcting the item's response, with a critique of it shown."""
    return Problem(
        id=item.problem.id,
        question=f"{_shown(item)}\n\nAnalysis and verdict:\n{written}",
        answer_format=item.problem.answer_format,
        reference=item.problem.reference,
    )


def verdict_text(completion: str) -> str:
    """The verdict that a critique states, `correct` or `wrong`; empty where it states neither."""
    said = str(_json_field(completion, "verdict") or "").strip().lower()
    return said if said in (RIGHT, WRONG) else ""


def said_right(verdict: str | None) -> bool | None:
    """Whether a verdict, as the verifier read it, calls the response right; None without one."""
    return {RIGHT: True, WRONG: False}.get(verdict or "")


def answer_text(completion: str) -> str:
    """What a correction gives as its answer, in the form that the verifiers read; the whole
    completion where it holds no such JSON."""
    code = _json_field(completion, "code")
    if isinstance(code, str):
        return code if "```" in code else f"```python\n{code}\n```"
    answer = _json_field(completion, "answer")
    return completion if answer is None else f"\\boxed{{{_as_text(answer)}}}"


def _json_field(text: str, name: str) -> Any:
    """The value of the last field of that name in what looks like JSON; None without one.

    A model's JSON is often cut, or has line breaks in its texts; its fields are read all the same.
    """
    for match in reversed(list(re.finditer(rf'"{name}"\s*:\s*', text))):
        try:
            return _DECODER.raw_decode(text, match.end())[0]
        except ValueError:
            continue
    return None


def _response(item: Item) -> Response:
    assert item.response is not None
    return item.response


def _shown(item: Item) -> str:
    return f"Question:\n{item.problem.question}\n\nAnswer:\n{_response(item).text}"


def _key(source: str) -> str:
    return re.sub(r"[\s_-]", "", source.lower())


def _form(source: str) -> str:
    if source in _CODE:
        return _CODE_FORMAT
    what = "the letter of one option" if source in _LETTERS else "your answer"
    return _ANSWER_FORMAT.format(what="yes or no" if source == "strategyqa" else what)


def _reference(row: Row, source: str) -> Reference:
    value = row.value("answer")
    answers = value if isinstance(value, list) else [value]
    if not answers or any(a is None or isinstance(a, dict | list) for a in answers):
        raise ValueError(
            f"{row.where}: 'answer' must be a list of texts, not {abbreviated(value)}."
        )
    if source in _CODE:
        return _tests(row, str(answers[0]))
    texts = tuple(_as_text(answer) for answer in answers)
    if source in _LETTERS | _TEXTS or not any(re.search(r"\d", text) for text in texts):
        return TextReference(answers=texts)
    return MathReference(answers=texts)


def _as_text(answer: Any) -> str:
    return {True: "yes", False: "no"}[answer] if isinstance(answer, bool) else str(answer)


def _tests(row: Row, tests: str) -> AssertsReference:
    try:
        tree = ast.parse(tests)
    except SyntaxError:
        raise Unusable("tests that are not Python") from None
    named = re.search(r"^check\((\w+)\)", tests, re.MULTILINE)
    function = named[1] if named else tested_function(tree)
    if not function or function == "candidate":
        raise Unusable("tests that do not name the function")
    # What calls `check` is the process that tests; here only the definition is wanted.
    tests = re.sub(r"^check\(\w+\)[ \t]*$", "", tests, flags=re.MULTILINE)
    # The prompt of HumanEval may give imports and a helper; MBPP's is a sentence.
    question = str(row.value("question"))
    prelude = question if re.search(r"^\s*(def|import|from)\b", question) else ""
    return AssertsReference(function=function, tests=tests, prelude=prelude)


BENCHMARKS = (
    Benchmark(
        name="criticbench",
        title="CriticBench",
        area="critique",
        source=HubSplit(dataset="llm-agents/CriticBench"),
        num_rows=3825,
        fields=(
            "id",
            "question",
            "question_type",
            "question_source",
            "answer",
            "response",
            "response_label",
        ),
        samples=1,
        read=criticbench,
    ),
)
