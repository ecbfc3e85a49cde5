"""Rows of an evaluation from letters, one a sample, and evaluations made from them."""

from cipo_jax.evaluate.figures import HeldOut
from cipo_jax.evaluate.samples import SampleRow
from cipo_jax.evaluate.summary import per_problem, summarise

STATUS = {"R": "right", "W": "wrong", "U": "unknown"}


def row(stream: str, problem: str, sample: int, status: str, **fields) -> SampleRow:
    return SampleRow(
        **{
            "problem_id": problem,
            "tags": "{}",
            "stream": stream,
            "sample": sample,
            "prompt_tokens": 5,
            "tokens": 10,
            "is_finished": True,
            "completion": "",
            "status": STATUS[status],
            "reason": "timeout" if status == "U" else "ok",
            "answer": None,
            "response_is_right": None,
            **fields,
        }
    )


def stream(name: str, **by_problem: str) -> list[SampleRow]:
    """Rows of a stream from strings such as `RWWU`; right samples answer 7, wrong ones 8."""
    return [
        row(name, problem, g, letter, answer={"R": "7", "W": "8", "U": None}[letter])
        for problem, letters in by_problem.items()
        for g, letter in enumerate(letters)
    ]


def corrections_of_first(**by_problem: str) -> list[SampleRow]:
    """Several corrections of each problem's first sample, as of held-out problems."""
    return [
        row("corrected", problem, 0, letter, answer={"R": "7", "W": "8", "U": None}[letter])
        for problem, letters in by_problem.items()
        for letter in letters
    ]


def held_out(step: int, rows: list[SampleRow]) -> HeldOut:
    """An entry of evaluations.json."""
    return HeldOut(step=step, seconds=1.0, **summarise(rows, seed=0), per_problem=per_problem(rows))
