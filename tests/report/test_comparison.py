"""The table that a run ends with: before against after."""

import dataclasses

import pytest
import rich.console

from cipo_jax.evaluate.figures import HeldOut
from cipo_jax.evaluate.samples import SampleRow
from cipo_jax.report.comparison import comparison, figures, print_comparison
from tests.evaluate.rows import corrections_of_first, held_out, stream


def rows(num_right: list[int]) -> list[SampleRow]:
    """Four samples a problem, the last ones right, and a correct correction of the first."""
    letters = {f"p{q}": "W" * (4 - n) + "R" * n for q, n in enumerate(num_right)}
    return [
        *stream("greedy", **{p: samples[0] for p, samples in letters.items()}),
        *stream("sampled", **letters),
        *corrections_of_first(**dict.fromkeys(letters, "R")),
    ]


def evaluation(step: int, num_right: list[int]) -> HeldOut:
    return held_out(step, rows(num_right))


def printed(before: HeldOut, after: HeldOut) -> list[str]:
    console = rich.console.Console(width=120, record=True)
    console.print(comparison(before, after))
    return console.export_text().splitlines()


@pytest.mark.parametrize(
    ("after", "says"),
    [([3] * 8, "above 0"), ([0] * 8, "below 0"), ([1, 1, 1, 1, 0, 2, 0, 2], "contains 0")],
    ids=["better", "worse", "neither"],
)
def test_the_difference_says_what_the_interval_shows(
    after: list[int], says: str, capsys: pytest.CaptureFixture
) -> None:
    print_comparison(evaluation(0, [1] * 8), evaluation(5, after), seed=0)
    assert says in capsys.readouterr().out


def test_no_difference_where_every_verdict_is_unknown(capsys: pytest.CaptureFixture) -> None:
    unknown = [dataclasses.replace(r, status="unknown", answer=None) for r in rows([0] * 8)]
    print_comparison(evaluation(0, [1] * 8), held_out(5, unknown), seed=0)
    said = capsys.readouterr().out
    assert "0.0% before, 100.0% after" in said
    assert "no problem has known verdicts on both sides" in said


def test_a_difference_is_over_the_problems_of_both(capsys: pytest.CaptureFixture) -> None:
    """A run may continue with fewer held-out problems than it started with."""
    print_comparison(evaluation(0, [1, 1, 0]), evaluation(5, [3, 3]), seed=0)
    assert "same 2 problems: +0.500" in capsys.readouterr().out


def test_an_undefined_rate_is_a_dash() -> None:
    """No attempt was right, so there is no retention."""
    lines = printed(evaluation(0, [1] * 8), evaluation(5, [3] * 8))
    retention = next(line for line in lines if "retention" in line)
    assert retention.count("–") == 2


def test_a_figure_that_one_side_lacks_is_a_dash_there(capsys: pytest.CaptureFixture) -> None:
    """A model may first write nothing that can be read as an answer, and learn to."""
    unread = [dataclasses.replace(r, answer=None) for r in rows([0] * 8)]
    before, after = held_out(0, unread), evaluation(5, [3] * 8)
    assert "copy_rate" not in before["correction"]
    for first, second, dashes in ((before, after, (True, False)), (after, before, (False, True))):
        cells = {label: (x == "–", y == "–") for label, x, y in figures(first, second)}
        assert cells["maj@4"] == cells["corrections: wrong answer repeated"] == dashes
        print_comparison(first, second, seed=0)
    # The control: a figure that neither has, as for programs, has no row.
    labels = [label for label, _, _ in figures(before, before)]
    assert "pass@4" in labels
    assert not any("maj" in label or "repeated" in label for label in labels)
