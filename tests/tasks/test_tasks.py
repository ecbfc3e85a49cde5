"""Task sources: what they ask, what counts as right, what is kept apart, what they refuse."""

import json
from fractions import Fraction
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cipo_jax import tasks
from cipo_jax.config import FileTask, GeneratedTask, GymTask, HubTask
from cipo_jax.tasks import programs
from cipo_jax.tasks.rows import parquet_files
from cipo_jax.verify.verdict import (
    AssertsReference,
    CallsReference,
    MathReference,
    NumberReference,
    StdioReference,
)

NUMBER_KINDS = ("addition", "subtraction", "multiplication", "maximum", "last_item")


# --- generated ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "question", "answer"),
    [
        ("addition", "What is 3 + 4 + (-2)?", "5"),
        ("subtraction", "What is 3 - 4 - (-2)?", "1"),
        ("multiplication", "What is 3 * 4 * (-2)?", "-24"),
        ("maximum", "What is the largest of the numbers 3, 4, -2?", "4"),
        ("last_item", "What is the last item of the list [3, 4, -2]?", "-2"),
    ],
)
def test_wording_and_answer(name, question, answer):
    cfg = GeneratedTask(name=name, low=-2, high=4, num_operands=3, num_held_out=1)
    by_question = {p.question: p for p in tasks.load(cfg).train}
    # One of 343 problems may be held out in this wording; then another seed shows it.
    if question not in by_question:
        cfg = GeneratedTask(name=name, low=-2, high=4, num_operands=3, num_held_out=1, split_seed=1)
        by_question = {p.question: p for p in tasks.load(cfg).train}
    problem = by_question[question]
    assert problem.reference == NumberReference(answer=answer)
    assert problem.answer_format == "Answer with just the number."
    assert not problem.is_code


@pytest.mark.parametrize("name", [*NUMBER_KINDS, "programs"])
def test_generated_problems_are_apart_and_reproducible(name):
    cfg = GeneratedTask(name=name, num_held_out=20)
    loaded = tasks.load(cfg)
    train_ids = {p.id for p in loaded.train}
    held_out_ids = {p.id for p in loaded.held_out}
    assert len(train_ids) == len(loaded.train)
    assert len(held_out_ids) == len(loaded.held_out) == 20
    assert not train_ids & held_out_ids
    assert tasks.load(cfg) == loaded
    # Control: the seed of the split does decide it.
    other = tasks.load(GeneratedTask(name=name, num_held_out=20, split_seed=1))
    assert {p.id for p in other.held_out} != held_out_ids


def test_a_sum_is_not_trained_on_in_another_order():
    def operands(problem):
        return tuple(sorted(problem.id.partition(":")[2].split(",")))

    loaded = tasks.load(GeneratedTask(name="addition"))
    assert not {operands(p) for p in loaded.train} & {operands(p) for p in loaded.held_out}
    # Control: of subtraction, both orders are problems of their own, and some are split.
    loaded = tasks.load(GeneratedTask(name="subtraction"))
    assert {operands(p) for p in loaded.train} & {operands(p) for p in loaded.held_out}


def test_the_whole_space_is_used():
    # 1..12 in order: 144 sums, 78 of them distinct; what is not held out is trained on.
    loaded = tasks.load(GeneratedTask(name="addition", num_held_out=77))
    assert len({p.reference.answer for p in loaded.train}) == 1
    assert len(loaded.train) in (1, 2)


def test_a_huge_space_is_drawn_from():
    loaded = tasks.load(GeneratedTask(name="multiplication", low=1, high=10**6))
    assert 60_000 < len(loaded.train) <= 65_536
    with pytest.raises(ValueError, match=r"lower tasks\.num_operands"):
        tasks.load(GeneratedTask(low=1, high=10**6, num_operands=4))


def test_too_small_a_space_is_refused_with_the_numbers():
    with pytest.raises(ValueError, match="has 6 distinct problems, and holding 32"):
        tasks.load(GeneratedTask(low=1, high=3))
    assert tasks.load(GeneratedTask(low=1, high=3, num_held_out=5)).train


def test_programs_say_what_their_tests_check():
    # Worked by hand: [3, 1, 2] + 2 = [5, 3, 4]; without those below 4: [5, 4].
    steps = [programs.Step(programs.OPERATIONS[0], 2), programs.Step(programs.OPERATIONS[2], 4)]
    problem = programs.problem(steps)
    assert "add 2 to every number, then drop every number below 4" in problem.question
    assert problem.is_code
    assert programs.behaviour(steps)[0] == (5, 4)
    assert programs.behaviour(steps[::-1])[0] == ()

    kinds = {type(p.reference) for p in tasks.load(GeneratedTask(name="programs")).train}
    assert kinds == {StdioReference, CallsReference}


def test_programs_with_the_same_behaviour_are_one_problem():
    add = programs.OPERATIONS[0]
    one = [programs.Step(add, 3), programs.Step(add, 4)]
    other = [programs.Step(add, 5), programs.Step(add, 2)]
    assert programs.behaviour(one) == programs.behaviour(other)
    loaded = tasks.load(GeneratedTask(name="programs", high=6, num_held_out=60))
    tests = [str(getattr(p.reference, "cases", "")) for p in loaded.train]
    assert not set(tests) & {str(p.reference.cases) for p in loaded.held_out}


@pytest.mark.parametrize("form", [StdioReference, CallsReference])
def test_program_references_accept_a_right_program(form):
    """Each step's plain Python, run on the cases of a problem with that step alone and one more."""
    code = {
        "add": "numbers = [x + {} for x in numbers]",
        "times": "numbers = [x * {} for x in numbers]",
        "at_least": "numbers = [x for x in numbers if x >= {}]",
        "cap": "numbers = [min(x, {}) for x in numbers]",
    }
    loaded = tasks.load(GeneratedTask(name="programs", high=4, num_held_out=1))
    chosen = [p for p in loaded.train if isinstance(p.reference, form)][:20]
    for problem in chosen:
        steps = [s.rstrip(")").split("(") for s in problem.id.rpartition(":")[2].split(",")]
        program = "\n".join(code[name].format(constant) for name, constant in steps)
        for given, expected in problem.reference.cases:
            is_stdio = form is StdioReference
            scope = {"numbers": [int(x) for x in given.split()] if is_stdio else given[0]}
            exec(program, scope)
            result = scope["numbers"]
            assert (" ".join(map(str, result)) + "\n" if is_stdio else result) == expected


# --- reasoning-gym ------------------------------------------------------------------------------


def test_gym_problems():
    pytest.importorskip("reasoning_gym")
    cfg = GymTask(dataset="chain_sum", size=40, num_held_out=8)
    loaded = tasks.load(cfg)
    assert len(loaded.held_out) == 8
    assert not {p.question for p in loaded.train} & {p.question for p in loaded.held_out}
    for problem in loaded.train:
        shown = problem.question.rpartition(":")[2].replace("=", "")
        assert Fraction(problem.reference.answer) == eval(shown)
    assert tasks.load(cfg) == loaded
    with pytest.raises(ValueError, match=r"'countdown'.*chain_sum"):
        tasks.load(GymTask(dataset="countdown"))


def test_every_listed_gym_data_set_loads():
    pytest.importorskip("reasoning_gym")
    for name in tasks.gym.NUMERIC:
        assert tasks.load(GymTask(dataset=name, size=6, num_held_out=2)).train


def test_missing_gym_package_names_the_install_line():
    try:
        import reasoning_gym  # noqa: F401
    except ImportError:
        with pytest.raises(ImportError, match=r"pip install 'cipo-jax\[gym\]'"):
            tasks.load(GymTask(dataset="chain_sum"))
    else:
        pytest.skip("reasoning-gym is installed")


# --- files --------------------------------------------------------------------------------------


def write(path: Path, rows) -> str:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(path)


def only_reference(tmp_path, answer, **settings):
    path = write(tmp_path / "one.jsonl", [{"question": "q?", "answer": answer}])
    held_out = write(tmp_path / "other.jsonl", [{"question": "other?", "answer": answer}])
    cfg = FileTask(path=path, held_out_path=held_out, **settings)
    return tasks.load(cfg).train[0].reference


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_file_problems_with_named_fields(tmp_path, suffix):
    rows = [{"text": f"What is {i}?", "gold": {"final": str(i)}} for i in range(10)]
    path = write(tmp_path / f"data{suffix}", rows)
    cfg = FileTask(path=path, num_held_out=3, question_field="text", answer_field="gold.final")
    loaded = tasks.load(cfg)
    assert (len(loaded.train), len(loaded.held_out)) == (7, 3)
    assert not {p.question for p in loaded.train} & {p.question for p in loaded.held_out}
    for problem in (*loaded.train, *loaded.held_out):
        number = problem.question[8:-1]
        assert problem.reference == MathReference(answers=(number,))
        assert problem.id == f"{path}:{int(number) + 1}"
    assert tasks.load(cfg) == loaded


def test_what_is_held_out_does_not_depend_on_the_order_of_rows(tmp_path):
    rows = [{"question": f"What is {i}?", "answer": str(i)} for i in range(30)]
    cfg = FileTask(path=write(tmp_path / "a.jsonl", rows), num_held_out=5)
    turned = FileTask(path=write(tmp_path / "b.jsonl", rows[::-1]), num_held_out=5)
    assert [p.question for p in tasks.load(cfg).held_out] == [
        p.question for p in tasks.load(turned).held_out
    ]


def test_repeated_and_shared_questions_count_once(tmp_path):
    path = write(
        tmp_path / "train.jsonl",
        [{"question": q, "answer": a} for q, a in [("a", "1"), ("b", "2"), ("a", "3"), ("c", "4")]],
    )
    held_out = write(tmp_path / "test.jsonl", [{"question": " b ", "answer": "2"}])
    loaded = tasks.load(FileTask(path=path, held_out_path=held_out))
    assert [(p.question, p.reference.answers) for p in loaded.train] == [
        ("a", ("1",)),
        ("c", ("4",)),
    ]
    assert [p.question for p in loaded.held_out] == ["b"]


@pytest.mark.parametrize(
    ("judge", "answer", "expected"),
    [
        ("number", "She sells 16 - 3.\n#### 1,234", NumberReference(answer="1234")),
        ("number", "$12.50", NumberReference(answer="12.50")),
        ("number", 7, NumberReference(answer="7")),
        ("math", "#### 42", MathReference(answers=("42",))),
        ("math", [r"\frac12", "0.5"], MathReference(answers=(r"\frac12", "0.5"))),
        ("stdio", [["1\n", "2\n"]], StdioReference(cases=(("1\n", "2\n"),))),
        ("stdio", '[{"input": "1", "output": "2"}]', StdioReference(cases=(("1", "2"),))),
        ("stdio", {"inputs": ["1"], "outputs": ["2"]}, StdioReference(cases=(("1", "2"),))),
        (
            "asserts",
            ["assert set(twice([1])) == {2}", "assert twice([]) == []"],
            AssertsReference(
                function="twice", tests="assert set(twice([1])) == {2}\nassert twice([]) == []"
            ),
        ),
    ],
)
def test_answers_of_each_judge(tmp_path, judge, answer, expected):
    assert only_reference(tmp_path, answer, judge=judge) == expected


def test_function_and_prelude_fields(tmp_path):
    row = {
        "prompt": "def inc(x):\n    '''One more.'''\n",
        "test": "def check(candidate):\n    assert candidate(1) == 2\n",
        "entry_point": "inc",
    }
    rows = [row, {**row, "prompt": "def other(x):\n    pass\n"}]
    loaded = tasks.load(
        FileTask(
            path=write(tmp_path / "humaneval.jsonl", rows),
            num_held_out=1,
            judge="asserts",
            question_field="prompt",
            answer_field="test",
            function_field="entry_point",
            prelude_field="prompt",
        )
    )
    (problem,) = loaded.train
    assert problem.reference.function == "inc"
    assert problem.reference.prelude.strip() == problem.question


@pytest.mark.parametrize(
    ("judge", "answer"),
    [
        ("number", "about seven"),
        ("number", "1/0"),
        ("number", ""),
        ("number", None),
        ("math", []),
        ("math", ["1", ""]),
        ("stdio", []),
        ("stdio", "no json"),
        ("stdio", [["1", 2]]),
        ("stdio", {"inputs": ["1"], "outputs": []}),
        ("asserts", "assert ("),
        ("asserts", "assert 1 + 1 == 2"),
        ("asserts", 3),
    ],
)
def test_a_malformed_answer_names_line_and_field(tmp_path, judge, answer):
    with pytest.raises(ValueError, match=r"one\.jsonl:1: .*'answer'"):
        only_reference(tmp_path, answer, judge=judge)


def test_rows_for_another_judge_are_left_out(tmp_path, caplog):
    good = {"question": "read and print", "answer": [{"input": "1", "output": "1"}]}
    function = {"question": "call", "answer": {"fn_name": "f", "inputs": [[1]], "outputs": [1]}}
    typed = {"question": "x", "answer": [{"type": "function_call", "input": "", "output": ""}]}
    held_out = write(tmp_path / "test.jsonl", [{**good, "question": "other"}])
    path = write(tmp_path / "train.jsonl", [function, good, typed])
    with caplog.at_level("INFO"):
        loaded = tasks.load(FileTask(path=path, held_out_path=held_out, judge="stdio"))
    assert [p.question for p in loaded.train] == ["read and print"]
    assert "1 problems from 3 rows" in caplog.text
    write(tmp_path / "train.jsonl", [function, typed])
    with pytest.raises(ValueError, match=r"none of the 2 rows .*function_call"):
        tasks.load(FileTask(path=path, held_out_path=held_out, judge="stdio"))


def test_broken_files_are_refused_by_name_and_line(tmp_path):
    path = tmp_path / "data.jsonl"
    good = '{"question": "a", "answer": "1"}\n'
    for content, message in [
        ("", "is empty"),
        ("\n\n", "is empty"),
        (good + "\n{broken\n", r"data\.jsonl:3: not valid JSON"),
        (good + "[1, 2]\n", r"data\.jsonl:2: a line must hold one JSON object"),
        (good + '{"question": "b"}\n', r"jsonl:2: no field 'answer' \(tasks\.answer_field\)"),
        ('{"questions": "a", "answer": "1"}\n', r"jsonl:1: no field 'question'.*'questions'\?"),
        ('{"question": " ", "answer": "1"}\n', r"jsonl:1: field 'question'.*not empty"),
        ('{"question": "\\ud800", "answer": "1"}\n', r"jsonl:1: field 'question'.*Unicode"),
        (good, "1 distinct problems, and holding 64"),
    ]:
        path.write_text(content)
        with pytest.raises(ValueError, match=message):
            tasks.load(FileTask(path=str(path)))
    with pytest.raises(ValueError, match=r"tasks\.path: there is no file"):
        tasks.load(FileTask(path=str(tmp_path / "missing.jsonl")))
    (tmp_path / "data.csv").write_text("a,b\n")
    with pytest.raises(ValueError, match=r"none of \.jsonl, \.jsonl\.gz, \.json, \.parquet"):
        tasks.load(FileTask(path=str(tmp_path / "data.csv")))
    (tmp_path / "data.parquet").write_text("text")
    with pytest.raises(ValueError, match="not a parquet file"):
        tasks.load(FileTask(path=str(tmp_path / "data.parquet")))


# --- hub ----------------------------------------------------------------------------------------


def test_parquet_files_of_a_hub_data_set():
    files = [
        ".gitattributes",
        "en/train/0001.parquet",
        "en/train/0000.parquet",
        "en/test/0000.parquet",
        "default/train/0000.parquet",
    ]
    chosen = parquet_files(files, dataset="a/b", subset="en", split="train")
    assert chosen == ["en/train/0000.parquet", "en/train/0001.parquet"]
    assert parquet_files(files, dataset="a/b", subset="", split="train") == [
        "default/train/0000.parquet"
    ]
    assert parquet_files(files[:4], dataset="a/b", subset="", split="test") == [
        "en/test/0000.parquet"
    ]
    with pytest.raises(ValueError, match="no subset 'fr'; it has: default, en"):
        parquet_files(files, dataset="a/b", subset="fr", split="train")
    with pytest.raises(ValueError, match="no split 'validation'; it has: test, train"):
        parquet_files(files, dataset="a/b", subset="en", split="validation")


def test_a_split_of_its_own_is_held_out(tmp_path, monkeypatch):
    """Real parquet files behind the calls of the hub's client, which would need a network."""
    rows = {"train": ["1 + 1?", "2 + 2?", "3 + 3?"], "test": ["3 + 3?", "4 + 4?"]}
    for split, questions in rows.items():
        table = pa.table({"question": questions, "answer": [str(q) for q in range(len(questions))]})
        path = tmp_path / "default" / split / "0000.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(table, path)
    files = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.parquet")]
    monkeypatch.setattr("huggingface_hub.list_repo_files", lambda **_: files)
    monkeypatch.setattr(
        "huggingface_hub.hf_hub_download", lambda filename, **_: tmp_path / filename
    )
    loaded = tasks.load(HubTask(dataset="a/b", held_out_split="test"))
    assert [p.question for p in loaded.held_out] == ["3 + 3?", "4 + 4?"]
    assert [p.question for p in loaded.train] == ["1 + 1?", "2 + 2?"]
    # Control: without one, rows of the split that is trained on are kept apart.
    loaded = tasks.load(HubTask(dataset="a/b", num_held_out=1))
    assert len(loaded.held_out) == 1
    assert {p.question for p in (*loaded.train, *loaded.held_out)} == set(rows["train"])
