"""Code: HumanEval, MBPP, and their EvalPlus versions with many more tests."""

from __future__ import annotations

import ast

from cipo_jax.tasks.benchmarks.benchmark import Benchmark, HubSplit, Item, any_of
from cipo_jax.tasks.benchmarks.evalplus import without_numpy
from cipo_jax.tasks.problem import Problem
from cipo_jax.tasks.references import tested_function
from cipo_jax.tasks.rows import Row, abbreviated
from cipo_jax.verify.verdict import AssertsReference


def humaneval(row: Row) -> Item:
    """A signature with its docstring, to be completed. What the prompt gives beside it (imports, a
    helper function) is put before the model's program."""
    # Not `text`: the white space at its end belongs to a completion that is only a body.
    prompt = str(row.value("prompt"))
    function = row.text("entry_point")
    return Item(
        problem=Problem(
            id=row.text("task_id"),
            question=f"Complete the following Python function.\n```python\n{prompt.strip()}\n```",
            answer_format="Write the complete function, with its imports, in one ```python code "
            "block.",
            reference=AssertsReference(
                function=function, tests=without_numpy(row.text("test")), prelude=prompt
            ),
        )
    )


def mbpp(row: Row) -> Item:
    """A task in a sentence, with its tests shown as in the MBPP paper, since they alone tell the
    function's name."""
    shown = [str(test) for test in row.value("test_list")]
    imports = row.fields.get("test_imports") or row.fields.get("test_setup_code") or ""
    setup = "\n".join(map(str, imports)) if isinstance(imports, list) else str(imports)
    function = _function(row, shown)
    tests = without_numpy(row.text("test")) if row.fields.get("test") else "\n".join(shown)
    return Item(
        problem=Problem(
            id=f"MBPP/{row.text('task_id')}",
            question=f"{row.text(any_of(row, 'text', 'prompt'))}\nYour code should pass these "
            "tests:\n```python\n" + "\n".join(shown) + "\n```",
            answer_format=f"Write the function `{function}`, with its imports, in one ```python "
            "code block.",
            reference=AssertsReference(function=function, tests=f"{setup}\n{tests}".strip()),
        )
    )


def _function(row: Row, tests: list[str]) -> str:
    try:
        name = tested_function(ast.parse("\n".join(tests)))
    except SyntaxError:
        name = ""
    if not name:
        raise ValueError(
            f"{row.where}: 'test_list' must hold assertions that call one function, it is "
            f"{abbreviated(tests)}."
        )
    return name


BENCHMARKS = (
    Benchmark(
        name="humaneval",
        title="HumanEval",
        area="code",
        source=HubSplit(dataset="openai/openai_humaneval"),
        num_rows=164,
        fields=("task_id", "prompt", "entry_point", "test"),
        samples=8,
        read=humaneval,
    ),
    Benchmark(
        name="mbpp",
        title="MBPP",
        area="code",
        source=HubSplit(dataset="google-research-datasets/mbpp", subset="full"),
        num_rows=500,
        fields=("task_id", "text", "test_list"),
        samples=8,
        read=mbpp,
    ),
)

PLUS = (
    Benchmark(
        name="humaneval+",
        title="HumanEval+",
        area="code",
        source=HubSplit(dataset="evalplus/humanevalplus"),
        num_rows=164,
        fields=("task_id", "prompt", "entry_point", "test"),
        samples=8,
        read=humaneval,
    ),
    Benchmark(
        name="mbpp+",
        title="MBPP+",
        area="code",
        source=HubSplit(dataset="evalplus/mbppplus"),
        num_rows=378,
        fields=("task_id", "prompt", "test_list", "test"),
        samples=8,
        read=mbpp,
    ),
)
