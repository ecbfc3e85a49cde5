"""One rule for what was thought, wherever a completion is read."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cipo_jax.verify import MathReference, NumberReference, Status, StdioReference, TextReference
from cipo_jax.verify.answers.extract import final_answer
from cipo_jax.verify.answers.judging import fast_path
from cipo_jax.verify.code import fenced
from cipo_jax.verify.thinking import without_thinking

PROGRAM = "```python\nprint(7)\n```"
THOUGHT = "```python\nprint(8)\n```\nSo \\boxed{8}, 8"


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("7", "7"),
        ("", ""),
        ("<think>8</think>7", "7"),
        ("8</think>7", "7"),
        ("7<think>8", "7"),
        ("<think>8", ""),
        ("8</think>", ""),
        ("<think></think>7", "7"),
        ("a <think>8</think>b<think>8</think> c", "a b c"),
        ("7<think>8</think>", "7"),
        ("8</think>7<think>8</think>, 7", "7, 7"),
        ("<think>8</think>8</think>7", "7"),
        ("<think>8<think>8</think>7", "7"),
        ("<think>8</think>7<think>8", "7"),
        ("8</think>8</think>7", "7"),
        ("<Think>7</THINK>", "<Think>7</THINK>"),
    ],
)
def test_what_is_left(completion: str, answer: str) -> None:
    assert without_thinking(completion) == answer


PIECES = st.lists(st.sampled_from(["<think>", "</think>", "a", "b", "<", "think>"]), max_size=12)


@given(PIECES)
def test_it_is_the_rule_in_words(pieces: list[str]) -> None:
    """Closed blocks are taken out; then all before a tag that closes, all after one that opens."""
    completion = "".join(pieces)
    rest = re.sub("<think>.*?</think>", "\0", completion)
    said = rest.rpartition("</think>")[2].partition("<think>")[0].replace("\0", "")
    assert without_thinking(completion) == said


@pytest.mark.parametrize(
    ("before", "after"),
    [("", ""), ("<think>TH</think>", ""), ("TH</think>", ""), ("", "<think>TH"),
     ("<think>TH</think>", "<think>TH</think>")],
)  # fmt: skip
def test_every_reader_of_a_completion_follows_it(before: str, after: str) -> None:
    before, after = before.replace("TH", THOUGHT), after.replace("TH", THOUGHT)
    said = f"{before}so \\boxed{{7}}{after}"
    assert final_answer(said) == "7"
    for reference in (
        NumberReference(answer="7"), MathReference(answers=("7",)), TextReference(answers=("7",)),
    ):  # fmt: skip
        assert fast_path(said, reference).status is Status.RIGHT
    assert fenced.extract(before + PROGRAM + after) == "print(7)\n"


@pytest.mark.parametrize("length", [10, 2**21])
def test_what_is_only_thought_is_no_answer(length: int) -> None:
    """However long it is: the tag that opens it may be far before what is read."""
    thought = "<think>" + "x" * length + THOUGHT
    assert final_answer(thought) == ""
    assert fenced.extract(thought) == ""
    for reference in (NumberReference(answer="8"), TextReference(answers=("8",))):
        assert fast_path(thought, reference).reason == "no_answer"
    # The control: it would be one, had it been said.
    assert final_answer(thought.removeprefix("<think>")) == "8"


def test_a_program_that_is_only_thought_is_wrong(pool) -> None:
    eight = StdioReference(cases=(("", "8"),))
    verdict = pool.submit(f"<think>{THOUGHT}", eight).result()
    assert (verdict.status, verdict.reason) == (Status.WRONG, "no_answer")
    assert pool.submit(THOUGHT, eight).result().status is Status.RIGHT
