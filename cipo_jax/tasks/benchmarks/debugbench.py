"""DebugBench: fix a LeetCode solution with a planted bug.

Its own judge is LeetCode's web site. Here the Python rows are judged by the examples in their
problem texts, or by test cases that a row carries in a field of ours, `tests`: a list of
`[[argument, ...], expected]`. Examples are fewer and easier than LeetCode's tests, so scores are
upper bounds of the published ones and not comparable with them.
"""

from __future__ import annotations

import ast
import re
from typing import Any

from cipo_jax.tasks.benchmarks.benchmark import Benchmark, HubSplit, Item
from cipo_jax.tasks.benchmarks.livecodebench import IMPORTS
from cipo_jax.tasks.problem import Problem
from cipo_jax.tasks.references import Unusable
from cipo_jax.tasks.rows import Row
from cipo_jax.verify.verdict import CallsReference

FORMAT = "Write the complete mended class, with its imports, in one ```python code block."

_EXAMPLE = re.compile(
    r"input\s*:?\s*(?P<given>.*?)\s*output\s*:?\s*(?P<expected>.*?)\s*(?:explanation.*)?\Z",
    re.IGNORECASE | re.DOTALL,
)
_NAME = re.compile(r"(?:^|,)\s*([A-Za-z_]\w*)\s*=(?!=)")
_OWN_TYPES = re.compile(r"\b(ListNode|TreeNode|Node|NestedInteger)\b")
_WORDS = {"null": "None", "true": "True", "false": "False"}


def debugbench(row: Row) -> Item:
    language = row.text("language")
    if language != "python3":
        raise Unusable(f"language {language}")
    buggy = row.text("buggy_code")
    function, parameters = _method(row)
    shown = row.fields.get("examples") or []
    examples = [str(example) for example in (shown if isinstance(shown, list) else [shown])]
    tests = row.fields.get("tests")
    if tests:
        cases = tuple((tuple(arguments), expected) for arguments, expected in tests)
    else:
        cases = tuple(_case(example, parameters) for example in examples)
    if not cases:
        raise Unusable("neither examples nor tests")
    parts = [
        row.text("question"),
        *(f"Example: {example.strip()}" for example in examples),
        str(row.fields.get("constraints") or "").strip(),
        f"This solution has a bug:\n```python\n{buggy}\n```\nFind it and mend the solution.",
    ]
    return Item(
        problem=Problem(
            id=f"debugbench:{row.text('slug')}:{row.text('subtype')}",
            question="\n\n".join(part for part in parts if part),
            answer_format=FORMAT,
            reference=CallsReference(
                function=function, cases=cases, prelude=IMPORTS, case_s=6.0, tuple_is_list=True
            ),
        ),
        tags={k: row.text(k) for k in ("category", "level") if k in row.fields},
    )


def _method(row: Row) -> tuple[str, list[str]]:
    """Name and parameters of the method that is called, from the right solution."""
    source = row.text("solution")
    fenced = re.search(r"```(?:python3?)?\n(.*?)```", source, re.DOTALL)
    try:
        tree = ast.parse(fenced[1] if fenced else source)
    except SyntaxError:
        raise Unusable("a solution that is not Python") from None
    if _OWN_TYPES.search(ast.unparse(tree)):
        raise Unusable("arguments of LeetCode's own types")
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == "Solution":
            methods = [m for m in node.body if isinstance(m, ast.FunctionDef)]
            public = [m for m in methods if not m.name.startswith("_")]
            # Helpers come first as often as last; the one that no other calls is the entry.
            called = {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)}
            entries = [m for m in public if m.name not in called] or public
            if entries:
                return entries[0].name, [a.arg for a in entries[0].args.args[1:]]
    raise Unusable("no method of a class Solution")


def _case(example: str, parameters: list[str]) -> tuple[tuple[Any, ...], Any]:
    """Arguments and result in an example's text, `Input: nums = [1,2], k = 3 Output: [2]`."""
    match = _EXAMPLE.search(example)
    if match is None:
        raise Unusable("examples that can't be read")
    given = _assignments(match["given"])
    try:
        if given.keys() == set(parameters):
            arguments = tuple(_value(given[name]) for name in parameters)
        elif not given and len(parameters) == 1:
            arguments = (_value(match["given"]),)
        else:
            raise Unusable("examples whose arguments are not the method's")
        return arguments, _value(match["expected"])
    except (ValueError, SyntaxError):
        raise Unusable("examples that can't be read") from None


def _assignments(text: str) -> dict[str, str]:
    names = list(_NAME.finditer(text))
    ends = [match.start() for match in names[1:]] + [len(text)]
    return {
        match[1]: text[match.end() : end].strip().rstrip(",")
        for match, end in zip(names, ends, strict=True)
    }


def _value(text: str) -> Any:
    words = re.sub(r"\b(null|true|false)\b", lambda m: _WORDS[m[0]], text.strip())
    return ast.literal_eval(words)


BENCHMARKS = (
    Benchmark(
        name="debugbench",
        title="DebugBench (Python, examples as tests)",
        area="code",
        source=HubSplit(dataset="Rtian/DebugBench"),
        num_rows=4253,
        fields=("slug", "subtype", "language", "question", "examples", "solution", "buggy_code"),
        samples=4,
        read=debugbench,
        note="1414 of 4253 rows are Python; the official judge is LeetCode's web site",
    ),
)
