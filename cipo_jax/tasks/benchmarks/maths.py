r"""Mathematics: AIME 2024 and 2025, AMC 2023, MATH-500, Minerva, OlympiadBench.

All are asked in the words of Qwen2.5-Math's evaluation and judged by the last `\boxed{...}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from cipo_jax.tasks.benchmarks.benchmark import Benchmark, HubSplit, Item, any_of, number_of
from cipo_jax.tasks.problem import Problem
from cipo_jax.tasks.rows import Row, abbreviated
from cipo_jax.verify.answers.extract import last_box
from cipo_jax.verify.answers.number import rational
from cipo_jax.verify.verdict import MathReference

BOXED = "Please reason step by step, and put your final answer within \\boxed{}."
ALL_BOXED = (
    "Please reason step by step. The problem has several answers: put all of them, separated by "
    "commas, within one \\boxed{}."
)

MINERVA_TOLERANCE = 1e-4
"""Relative, as in Qwen2.5-Math's grader; physical constants make exact answers a matter of luck."""


def _item(
    name: str,
    row: Row,
    reference: MathReference,
    *,
    question: str = "",
    answer_format: str = BOXED,
    tags: Mapping[str, str] | None = None,
) -> Item:
    identity = any_of(row, "unique_id", "id", "ID", "idx", "problem_idx")
    own = str(row.fields[identity]) if identity in row.fields else number_of(row)
    return Item(
        problem=Problem(
            id=f"{name}:{own}",
            question=question or row.text(any_of(row, "problem", "question", "Problem")),
            answer_format=answer_format,
            reference=reference,
        ),
        tags=tags or {},
    )


def _integer(name: str, row: Row, *, low: int, high: int) -> Item:
    """A competition whose answers are whole numbers; copies write them as 73, "073" or 73.0."""
    answer = row.text(any_of(row, "answer", "Answer"))
    value = rational(answer)
    if value is None or value.denominator != 1 or not low <= value <= high:
        raise ValueError(
            f"{row.where}: the answer of {name} is a whole number from {low} to {high}, this is "
            f"{abbreviated(answer)}."
        )
    return _item(name, row, MathReference(answers=(str(value),)))


def aime24(row: Row) -> Item:
    return _integer("aime24", row, low=0, high=999)


def aime25(row: Row) -> Item:
    return _integer("aime25", row, low=0, high=999)


def amc23(row: Row) -> Item:
    return _integer("amc23", row, low=-(10**9), high=10**9)


def math500(row: Row) -> Item:
    tags = {str(k): str(row.fields[k]) for k in ("subject", "level") if k in row.fields}
    return _item("math500", row, MathReference(answers=(row.text("answer"),)), tags=tags)


def minerva(row: Row) -> Item:
    """Undergraduate science. Copies without an `answer` have it in the solution's last box."""
    answer = row.text("answer") if "answer" in row.fields else last_box(row.text("solution"))
    if not answer:
        raise ValueError(f"{row.where}: neither an answer nor a box in the solution.")
    value, unit = _split_unit(answer)
    reference = MathReference(answers=(value,), tolerance=MINERVA_TOLERANCE, unit=unit)
    return _item("minerva", row, reference)


def _split_unit(answer: str) -> tuple[str, str]:
    r"""`5.3 \text{ cm}` as its value and its unit, which an answer may carry or leave out."""
    for opening in ("\\text{", "\\mathrm{", "\\mbox{"):
        head, found, tail = answer.rpartition(opening)
        unit = tail.strip().removesuffix("}").strip()
        if found and tail.strip().endswith("}") and rational(head.strip().rstrip("\\,~ ")):
            return head.strip().rstrip("\\,~ "), unit
    return answer, ""


def olympiadbench(row: Row) -> Item:
    """The open-ended text-only English maths problems of competitions."""
    answers = row.value("final_answer")
    if not isinstance(answers, list) or not answers or not all(isinstance(a, str) for a in answers):
        raise ValueError(
            f"{row.where}: 'final_answer' must be a list of texts, it is {abbreviated(answers)}."
        )
    is_multiple = bool(row.fields.get("is_multiple_answer")) or len(answers) > 1
    unit = str(row.fields.get("unit") or "")
    context = str(row.fields.get("context") or "").strip()
    question = row.text("question")
    reference = MathReference(
        answers=tuple(answers),
        all_of=is_multiple,
        unit=unit,
        tolerance=_relative(row.fields.get("error"), answers),
    )
    answer_format = ALL_BOXED if is_multiple else BOXED
    if unit:
        answer_format += f" The unit of the answer is {unit}."
    return _item(
        "olympiadbench",
        row,
        reference,
        question=f"{context}\n\n{question}" if context else question,
        answer_format=answer_format,
        tags={k: str(row.fields[k]) for k in ("subfield", "answer_type") if row.fields.get(k)},
    )


def _relative(error: Any, answers: list[str]) -> float:
    """The published absolute error as a relative one; 0 (exact) where none is given.

    Several errors belong to several answers; the smallest holds for all.
    """
    errors = [Fraction(part) for part in str(error or "").split(",") if part.strip()]
    golds = [rational(answer.strip().strip("$")) for answer in answers]
    if not errors or any(gold is None or gold == 0 for gold in golds):
        return 0.0
    return float(min(errors) / max(abs(gold) for gold in golds if gold is not None))


BENCHMARKS = (
    Benchmark(
        name="aime24",
        title="AIME 2024",
        area="maths",
        source=HubSplit(dataset="HuggingFaceH4/aime_2024", split="train"),
        num_rows=30,
        fields=("problem", "answer"),
        samples=32,
        read=aime24,
    ),
    Benchmark(
        name="aime25",
        title="AIME 2025",
        area="maths",
        source=HubSplit(dataset="math-ai/aime25"),
        num_rows=30,
        fields=("problem", "answer"),
        samples=32,
        read=aime25,
    ),
    Benchmark(
        name="amc23",
        title="AMC 2023",
        area="maths",
        source=HubSplit(dataset="math-ai/amc23"),
        num_rows=40,
        fields=("question", "answer"),
        samples=32,
        read=amc23,
    ),
    Benchmark(
        name="math500",
        title="MATH-500",
        area="maths",
        source=HubSplit(dataset="HuggingFaceH4/MATH-500"),
        num_rows=500,
        fields=("problem", "answer"),
        samples=4,
        read=math500,
    ),
    Benchmark(
        name="minerva",
        title="Minerva",
        area="maths",
        source=HubSplit(dataset="math-ai/minervamath"),
        num_rows=272,
        fields=("question", "answer"),
        samples=4,
        read=minerva,
    ),
    Benchmark(
        name="olympiadbench",
        title="OlympiadBench",
        area="maths",
        source=HubSplit(
            dataset="Hothan/OlympiadBench", subset="OE_TO_maths_en_COMP", split="train"
        ),
        num_rows=674,
        fields=("question", "final_answer", "is_multiple_answer", "unit", "error"),
        samples=4,
        read=olympiadbench,
    ),
)
