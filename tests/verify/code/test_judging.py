"""Taking programs out of completions, and comparing what they print."""

import time

import pytest

from cipo_jax.verify.code import fenced, judging

FENCE = "```"
DOCUMENTED = f"def f():\n    '''\n    {FENCE}\n    f()\n    {FENCE}\n    '''\n"


@pytest.mark.parametrize(
    ("completion", "function", "program"),
    [
        (f"Sure:\n{FENCE}python\nprint(1)\n{FENCE}\nDone.", "", "print(1)\n"),
        # The last of several blocks.
        (f"{FENCE}python\nold\n{FENCE}\nBetter:\n{FENCE}py\nnew\n{FENCE}", "", "new\n"),
        # A block in another language doesn't count.
        (f"{FENCE}python\nprint(1)\n{FENCE}\n{FENCE}text\n1\n{FENCE}", "", "print(1)\n"),
        # An example of use after the definition.
        (f"{FENCE}python\ndef f(): pass\n{FENCE}\n{FENCE}python\nf()\n{FENCE}", "f",
         "def f(): pass\n"),
        (f"{FENCE}python\nf = abs\n{FENCE}\n{FENCE}python\nf(1)\n{FENCE}", "f", "f = abs\n"),
        # Cut off by the length limit, or never closed.
        (f"{FENCE}python\nprint(1)", "", "print(1)"),
        # No fence at all.
        ("print(1)", "", "print(1)"),
        # Thoughts are no answer.
        (f"<think>{FENCE}python\nno\n{FENCE}</think>{FENCE}python\nyes\n{FENCE}", "", "yes\n"),
        # A longer fence may hold a shorter one.
        (f"````python\ns = '''\n{FENCE}\n'''\n````", "", f"s = '''\n{FENCE}\n'''\n"),
        ("", "", ""),
        # Examples of input and output are fenced as well.
        (f"{FENCE}python\nnew\n{FENCE}\nIt prints\n{FENCE}\n42\n{FENCE}", "", "new\n"),
        (f"{FENCE}\nold\n{FENCE}\n{FENCE}\nnew\n{FENCE}", "", "new\n"),
        # How the language is spelled.
        (f"{FENCE} Python3.11 title='x'\nnew\n{FENCE}", "", "new\n"),
        (f"{FENCE}{{.python}}\nnew\n{FENCE}", "", "new\n"),
        (f"{FENCE}python:main.py\r\nnew\r\n{FENCE}\r\n", "", "new\r\n"),
        (f"{FENCE}pycon\n>>> 1\n{FENCE}\n~~~py\nnew\n~~~", "", "new\n"),
        # In a list: without the indentation of the list.
        (f"1. So:\n\n   {FENCE}python\n   if x:\n       y\n\n   {FENCE}\nDone.", "",
         "if x:\n    y\n\n"),
        (f"- a\n      {FENCE}python\n      x\n      {FENCE}\n", "", "x\n"),
        # In the text of the program: no end of it.
        (f"{FENCE}python\n{DOCUMENTED}{FENCE}", "f", DOCUMENTED),
        (DOCUMENTED, "f", DOCUMENTED),
        # A draft that is never closed, then another.
        (f"{FENCE}python\nold\nNo:\n{FENCE}python\nnew\n{FENCE}\nDone.", "", "new\n"),
        (f"<think>a {FENCE}\nno\n</think>new", "", "new"),
        (f"<think>{FENCE}python\nno\n{FENCE}", "", ""),
        (f"{FENCE}python\nyes\n{FENCE}\n<think>Or {FENCE}python\nno\n{FENCE}", "", "yes\n"),
        (f"{FENCE}python\n\ufeffnew\n{FENCE}", "", "new\n"),
    ],
)  # fmt: skip
def test_extract(completion: str, function: str, program: str) -> None:
    assert fenced.extract(completion, function=function) == program


def test_extract_is_linear_in_hostile_text() -> None:
    """A second for a megabyte is a hundred times what it takes; quadratic work takes hours."""
    started = time.process_time()
    for text in (FENCE * 300_000, "```\n" * 250_000, "```python\n" * 100_000,
                 ("```" + " " * 1_000_000 + "`"), "def f " * 150_000, "def" + " " * 1_000_000,
                 "f\n" * 500_000, "   ```python\n" * 80_000, (" " * 40 + "\n") * 25_000,
                 "```py\n~~~\n" * 90_000, "```" + "py" * 500_000,
                 "</think>" * 100_000, "<think>" * 100_000):  # fmt: skip
        fenced.extract(text, function="f")
    assert time.process_time() - started < 8.0


@pytest.mark.parametrize(
    ("printed", "expected", "is_same"),
    [
        ("1 2\n3", "1 2\n3\n", True),
        ("1 2  \n3\n\n\n", "1 2\n3", True),
        ("1 2\n\n3", "1 2\n3", False),
        ("1  2", "1 2", False),
        ("0.5", "0.50", True),
        ("5e-1", "0.50", True),
        ("0.500000001", "0.50", False),
        # Digits without a point are text: a binary string is no number.
        ("10", "0010", False),
        ("1.0", "1", False),
        ("7", "The answer is 7", False),
        ("xx7xx", "7", False),
        ("nan", "0.5", False),
        ("1e999999999", "1.5", False),
        ("", "", True),
        ("YES", "yes", False),
        ("1_0.5", "10.5", False),
        ("\uff11.5", "1.5", False),
        ("1\r\n2\r\n", "1\n2", True),
        ("\ufeff1", "1", False),
        ("1\0", "1", False),
    ],
)
def test_same_output(printed: str, expected: str, is_same: bool) -> None:
    assert judging.same_output(printed, expected) is is_same
