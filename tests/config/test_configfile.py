"""Configuration files and overrides: what loads, what is refused, and what the refusal says."""

import dataclasses
import io
import re

import pytest
from rich.console import Console

from cipo_jax import config
from cipo_jax.config import (
    CipoReimpl,
    Config,
    FileTask,
    Fixed,
    GeneratedTask,
    Lora,
    RandomModel,
    configfile,
    meanings,
)
from tests import ROOT

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))

MINIMAL = """\
name: demo
model: {kind: random}
tasks: {kind: generated}
"""


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return path

    return write


# --- files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_file_loads_and_goes_round(path, tmp_path):
    cfg = configfile.load(path)
    configfile.dump(cfg, tmp_path / "again.yaml")
    assert configfile.load(tmp_path / "again.yaml") == cfg
    hash(cfg)
    # Control: a change does show.
    changed = configfile.load(path, ["--train.steps", str(cfg.train.steps + 1)])
    assert changed != cfg
    assert dataclasses.replace(changed, train=cfg.train) == cfg


def test_there_are_shipped_files():
    assert {"smoke", "quickstart", "qwen3_4b_math", "seed_coder_8b_code"} <= {
        path.stem for path in CONFIGS
    }


def test_a_minimal_file_has_the_defaults(write):
    expected = Config(name="demo", model=RandomModel(), tasks=GeneratedTask())
    assert configfile.load(write(MINIMAL)) == expected


def test_every_variant_goes_round(write, tmp_path):
    for controller in ("cipo_reimpl", "robust", "fixed", "failures_only"):
        for tasks in ("{kind: gym, dataset: gcd}", r"{kind: file, path: 'ü\b.jsonl'}"):
            text = f"name: '007'\nmodel: {{kind: random}}\ntasks: {tasks}\n"
            text += f"correction: {{controller: {{kind: {controller}}}}}\n"
            cfg = configfile.load(write(text))
            assert cfg.correction.controller.kind == controller
            configfile.dump(cfg, tmp_path / "again.yaml")
            assert configfile.load(tmp_path / "again.yaml") == cfg


def test_numbers_as_people_write_them(write):
    for text in ("1e-6", "1E-6", "1.0e-6", "0.000001", "+1e-06"):
        cfg = configfile.load(
            write(MINIMAL + f"optimizer: {{kind: adamw, learning_rate: {text}}}\n")
        )
        assert cfg.optimizer.learning_rate == 1e-6
    cfg = configfile.load(write(MINIMAL + "optimizer: {kind: adamw, max_grad_norm: 2}\n"))
    assert isinstance(cfg.optimizer.max_grad_norm, float)
    assert configfile.load(write(MINIMAL + "train:\n")).train == config.Train()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must hold settings"),
        ("- a\n", "must hold settings"),
        ("name: [", "is not valid YAML"),
        (MINIMAL + "name: twice\n", "the key 'name' is given twice"),
        ("name: demo\ntasks: {kind: generated}\n", r"model is missing"),
        (
            "name: demo\nmodel: {preset: x}\ntasks: {kind: generated}\n",
            r"model\.kind is missing; choose one of pretrained, random",
        ),
        (
            MINIMAL + "optimizer: {kind: adamw, learing_rate: 1}\n",
            r"optimizer\.learing_rate is not a setting\. Did you mean optimizer\.learning_rate\?",
        ),
        (MINIMAL + "optimiser: {learning_rate: 1}\n", r"Did you mean optimizer\?"),
        (MINIMAL + "learning_rate: 1\n", r"Did you mean optimizer\.learning_rate\?"),
        (MINIMAL + "zzz: 1\n", r"zzz is not a setting\. The top level has: name, seed"),
        (MINIMAL + "log: {zzz: 1}\n", r"log\.zzz is not a setting\. log has: tensorboard"),
        (MINIMAL + "1: 1\n", r"1 is not a setting"),
        (MINIMAL + "[a]: 1\n", r"is not valid YAML"),
        (MINIMAL + "correction: {controller: {kind: [a]}}\n", r"kind is \['a'\]; choose one of"),
        (MINIMAL + "train: {steps: ten}\n", r"train\.steps is 'ten'; it must be a whole number"),
        (MINIMAL + "train: {steps: 1.5}\n", r"train\.steps is 1\.5; it must be a whole number"),
        (MINIMAL + "train: {steps: true}\n", r"train\.steps is True; it must be a whole number"),
        (MINIMAL + "train: {steps: }\n", r"train\.steps is None; it must be a whole number"),
        (MINIMAL + "train: {share_prompts: 1}\n", r"is 1; it must be true or false"),
        (MINIMAL + "train: 3\n", r"train is 3; it must hold settings of its own"),
        (MINIMAL + "kl: {weight: small}\n", r"kl\.weight is 'small'; it must be a number"),
        (MINIMAL + "kl: {weight: true}\n", r"kl\.weight is True; it must be a number"),
        (MINIMAL + "seed: {}\n", r"seed is \{\}; it must be a whole number"),
        (
            MINIMAL + "train: {remat: blocks}\n",
            r"train\.remat is 'blocks'; it must be none \| products \| attention \| block\. "
            r"Did you mean 'block'\?",
        ),
        (
            MINIMAL + "objective: {kind: grpo, ddof: true}\n",
            r"objective\.ddof is True; it must be 0 \| 1",
        ),
        (MINIMAL + "objective: {ddof: 1}\n", r"objective\.kind is missing; choose one of grpo"),
        (
            MINIMAL + "objective: {kind: rloo, ddof: 1}\n",
            r"objective\.ddof is not a setting of kind 'rloo', but of kind 'grpo'",
        ),
        (
            MINIMAL + "correction: {max_anchors_per_prompt: some}\n",
            r"'some'; it must be a whole number or all",
        ),
        (
            MINIMAL + "correction: {controller: {kind: fixd}}\n",
            r"controller\.kind is 'fixd'; choose one of cipo_reimpl,.*Did you mean 'fixed'\?",
        ),
        (
            MINIMAL + "correction: {controller: {kind: fixed, ratio_start: 1}}\n",
            r"ratio_start is not a setting of kind 'fixed', but of kind 'cipo_reimpl'",
        ),
        (
            MINIMAL + "kl: {weight: -1}\n",
            r"^[^\n]*run\.yaml: kl\.weight is -1\.0; it must be at least 0",
        ),
        (MINIMAL + "train: {row_tokens: 12}\n", r"raise train\.row_tokens"),
    ],
)
def test_a_mistake_is_named(write, text, message):
    with pytest.raises(ValueError, match=message) as caught:
        configfile.load(write(text))
    assert "run.yaml" in str(caught.value)
    assert "http" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no configuration file .*absent\.yaml"):
        configfile.load(tmp_path / "absent.yaml")


# --- overrides ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "read"),
    [
        (["--train.steps", "2"], lambda c: c.train.steps == 2),
        (["--train.steps=2"], lambda c: c.train.steps == 2),
        (["--optimizer.learning-rate", "1e-5"], lambda c: c.optimizer.learning_rate == 1e-5),
        (["--optimizer.learning_rate=1e-5"], lambda c: c.optimizer.learning_rate == 1e-5),
        (["--mesh.fsdp", "-1"], lambda c: c.mesh.fsdp == -1),
        (["--log.tensorboard", "false"], lambda c: c.log.tensorboard is False),
        (["--name", "007"], lambda c: c.name == "007"),
        (["--name=--x"], lambda c: c.name == "--x"),
        (["--prompts.system", "Be brief: yes"], lambda c: c.prompts.system == "Be brief: yes"),
        (
            ["--correction.max-anchors-per-prompt", "2"],
            lambda c: c.correction.max_anchors_per_prompt == 2,
        ),
        (
            ["--correction.max-anchors-per-prompt", "all"],
            lambda c: c.correction.max_anchors_per_prompt == "all",
        ),
        (["--train.steps", "2", "--train.steps", "3"], lambda c: c.train.steps == 3),
        (
            ["--correction.controller.ratio-min", "0.1"],
            lambda c: c.correction.controller == CipoReimpl(ratio_min=0.1),
        ),
        (
            ["--kl", "{weight: 0.5, estimator: k1}"],
            lambda c: c.kl == config.Kl(weight=0.5, estimator="k1"),
        ),
    ],
)
def test_overrides(write, overrides, read):
    path = write(MINIMAL)
    assert read(configfile.load(path, overrides))


def test_an_override_may_change_the_variant(write):
    text = MINIMAL + "correction: {controller: {kind: robust, ratio_start: 0.5, smoothing: 0.1}}\n"
    path = write(text)
    overrides = ["--correction.controller.ratio", "0.4", "--correction.controller.kind", "fixed"]
    assert configfile.load(path, overrides).correction.controller == Fixed(ratio=0.4)
    # Naming the variant that is there keeps its settings.
    kept = configfile.load(path, ["--correction.controller.kind", "robust"])
    assert kept == configfile.load(path)
    cfg = configfile.load(path, ["--tasks.path", "a.jsonl", "--tasks.kind", "file"])
    assert cfg.tasks == FileTask(path="a.jsonl")


def test_lists(write, tmp_path):
    options = ["--adapter.kind", "lora", "--adapter.projections", "[q, v]"]
    cfg = configfile.load(write(MINIMAL), options)
    assert cfg.adapter == Lora(projections=("q", "v"))
    assert hash(cfg) != hash(configfile.load(write(MINIMAL)))
    configfile.dump(cfg, tmp_path / "again.yaml")
    assert configfile.load(tmp_path / "again.yaml") == cfg


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["--adapter.kind", "lora", "--adapter.projections", "[q, w]"],
            r"adapter\.projections is \['q', 'w'\]; it must be a list \[\.\.\.\] of q \| k",
        ),
        (["--adapter.kind", "lora", "--adapter.projections", "q"], r"is 'q'; it must be a list"),
        (["--train.step", "3"], r"^train\.step is not a setting\. Did you mean train\.steps\?"),
        (["--steps", "3"], r"Did you mean train\.steps\?"),
        (["--trian.steps", "3"], r"Did you mean train\?"),
        (["--train.steps.x", "3"], r"--train\.steps\.x: train\.steps is a single value"),
        (["--train.steps"], r"--train\.steps has no value"),
        (["--train.steps", "--seed", "3"], r"--train\.steps has no value"),
        (["train.steps", "3"], r"'train\.steps' is not an option"),
        (["--", "3"], r"'--' is not an option"),
        (["--train.", "3"], r"train\. is not a setting"),
        (["--kl.weight", "[1"], r"--kl\.weight: '\[1' is not valid YAML"),
        (["--train.steps", "3.0"], r"train\.steps is 3\.0; it must be a whole number"),
        (["--train.compute-dtype", "bf16"], r"Did you mean 'bfloat16'\?"),
        (
            ["--model.path", "x"],
            r"model\.path is not a setting of kind 'random', but of kind 'pretr",
        ),
        (["--model.kind", "pretrained"], r"model\.path is missing"),
        (["--correction.controller.kind", "fixd"], r"Did you mean 'fixed'\?"),
        (
            ["--objective.kind", "ppo"],
            r"objective\.kind is 'ppo'; choose one of grpo, dr_grpo, dapo",
        ),
        (["--tasks", "3"], r"tasks is 3; it must hold settings"),
    ],
)
def test_a_mistaken_override_is_named(write, overrides, message):
    path = write(MINIMAL)
    with pytest.raises(ValueError, match=message):
        configfile.load(path, overrides)


def test_an_override_does_not_hide_a_mistake_of_the_file(write):
    path = write(MINIMAL + "train: 3\nlog:\n")
    with pytest.raises(ValueError, match=r"train is 3; it must hold settings of its own"):
        configfile.load(path, ["--train.steps", "5"])
    with pytest.raises(ValueError, match=r"train is 3; it must hold settings of its own"):
        configfile.load(path)
    # Control: a section with nothing below it is no mistake.
    cfg = configfile.load(write(MINIMAL + "train:\n"), ["--train.steps", "5"])
    assert cfg.train.steps == 5


# --- ranges -------------------------------------------------------------------------------------

KINDS = ["--adapter.kind", "lora", "--correction.controller.kind", "robust", "--tasks.kind", "gym"]
KINDS += ["--tasks.dataset", "gcd"]


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("adapter.rank", "0", "at least 1"),
        ("adapter.alpha", "0.0", "positive"),
        ("tasks.size", "0", "at least 1"),
        ("prompts.max_attempt_tokens", "0", "at least 1"),
        ("sampling.max_new_tokens", "0", "at least 1"),
        ("verify.memory_mb", "127", "at least 128"),
        ("verify.deadline_s", "0.0", "positive"),
        ("correction.risk_penalty", "-0.5", "at least 0"),
        ("correction.controller.min_samples", "0", "at least 1"),
        ("correction.controller.max_log_step", "0.0", "positive"),
        ("correction.controller.retention_target", "1.5", "in [0, 1]"),
        ("correction.controller.gain_drop", "-0.5", "at least 0"),
        ("objective.std_eps", "-1.0", "at least 0"),
        ("objective.clip_low", "1.0", "in [0, 1)"),
        ("optimizer.weight_decay", "-1.0", "at least 0"),
        ("optimizer.beta2", "1.0", "in [0, 1)"),
        ("optimizer.eps", "0.0", "positive"),
        ("optimizer.eps", "nan", "positive"),
        ("train.logprob_chunk", "0", "at least 1"),
        ("mesh.tensor", "0", "at least 1"),
        ("mesh.fsdp", "0", "at least 1, or -1 for the devices that are left"),
        ("evaluation.max_new_tokens", "0", "at least 1"),
        ("checkpoint.keep", "0", "at least 1"),
        ("log.rollouts_every", "-1", "at least 0"),
    ],
)
def test_a_value_out_of_its_range_is_named(write, name, value, rule):
    path = write(MINIMAL)
    given = "--" + name.replace("_", "-"), f".{value}" if value == "nan" else value
    with pytest.raises(ValueError, match=re.escape(f"{name} is {value}; it must be {rule}")):
        configfile.load(path, [*KINDS, *given])


# --- help ---------------------------------------------------------------------------------------


def test_help_shows_every_setting_with_value_type_and_meaning(write):
    cfg = configfile.load(write(MINIMAL), ["--optimizer.learning-rate", "3e-5"])
    console = Console(width=400, record=True, file=io.StringIO())
    meanings.print_fields(cfg, console)
    lines = {line.split()[0]: line for line in console.export_text().splitlines() if line.strip()}
    assert "3e-05" in lines["--optimizer.learning-rate"]
    assert "(a number)" in lines["--optimizer.learning-rate"]
    assert "Length T of a packed row" in lines["--train.row-tokens"]
    assert "cipo_reimpl | robust | fixed" in lines["--correction.controller.kind"]
    assert "--correction.controller.smoothing" not in lines

    def leaves(part, names=()):
        for field in dataclasses.fields(part):
            value = getattr(part, field.name)
            if dataclasses.is_dataclass(value):
                yield from leaves(value, (*names, field.name))
            else:
                yield "--" + ".".join((*names, field.name)).replace("_", "-")

    assert set(lines) - {"setting"} == set(leaves(cfg))
