"""`cipo doctor`: a healthy machine, and each fault provoked for real where that can be done."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path

import jax
import pytest

from cipo_jax import cli, doctor
from cipo_jax.config import RandomModel, Verify
from cipo_jax.doctor import devices, host, subject, verifier
from cipo_jax.doctor.diagnosis import Diagnosis, fail, merged, ok
from cipo_jax.evaluate.subject import open_subject
from cipo_jax.model.files import hf
from cipo_jax.model.files.load import load_model
from cipo_jax.model.presets import PRESETS
from cipo_jax.text.tokenizer import byte_tokenizer, save_tokenizer
from cipo_jax.verify.verdict import right, wrong
from tests import ROOT
from tests.hostile import elsewhere
from tests.weights import drawn

pytestmark = pytest.mark.slow

SMOKE = str(ROOT / "configs" / "smoke.yaml")
# Room for problems that ask for a program.
ROOM = (
    "--prompts.max-prompt-tokens", "512", "--prompts.max-correction-prompt-tokens", "768",
    "--train.row-tokens", "1024",
)  # fmt: skip

RUN = "import sys; from cipo_jax import cli; sys.exit(cli.main(sys.argv[1:]))"


def by_check(diagnoses: list[dict]) -> dict[str, dict]:
    return {diagnosis["check"]: diagnosis for diagnosis in diagnoses}


def examined(capsys, *arguments: str) -> tuple[int, dict[str, dict]]:
    """Exit status and diagnoses of `cipo doctor` in this process."""
    status = cli.main(["doctor", *arguments, "--json"])
    record = json.loads(capsys.readouterr().out)
    assert record["well"] == (status == 0)
    (diagnoses,) = record["processes"]
    return status, by_check(diagnoses)


def test_a_healthy_machine(capsys, tmp_path) -> None:
    """Programs are judged, so the sandbox is really used; the folder is left as it was found."""
    run_dir = tmp_path / "above" / "run"
    status, found = examined(
        capsys, SMOKE, "--tasks.name", "programs", "--run-dir", str(run_dir),
        *ROOM,
    )  # fmt: skip
    assert status == 0, [f for f in found.values() if f["status"] == "FAIL"]
    assert list(found) == [
        "python", "versions", "devices", "processes", "program", "model", "end of answer",
        "chat template", "problems", "device memory", "host memory", "sandbox", "hanging program",
        "run folder", "disk space",
    ]  # fmt: skip
    assert "8 x cpu" in found["devices"]["found"]
    assert "fsdp 8" in found["program"]["found"]
    assert found["end of answer"]["found"] == "258 <|im_end|>"
    assert "ended after" in found["hanging program"]["found"]
    assert "MB/s" in found["run folder"]["found"]
    assert list(tmp_path.iterdir()) == []


def test_without_a_config_and_as_a_table(capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert "nothing fails" in shown
    assert "ended after" in shown
    assert "end of answer" not in shown
    assert list(tmp_path.iterdir()) == []
    assert cli.main(["doctor", "--train.steps=3"]) == 2
    assert "name its file" in capsys.readouterr().err


def test_faults_of_a_config_and_its_folder(capsys, tmp_path) -> None:
    """Several at once, and all of them are found."""
    (tmp_path / "file").write_text("no folder")
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        status, found = examined(
            capsys, SMOKE, "--model.kind", "pretrained", "--model.path", str(tmp_path / "nowhere"),
            "--mesh.tensor", "3", "--run-dir", str(tmp_path / "file" / "run"),
            "--tasks.name", "programs", "--verify.service-url", url,
            "--verify.service-deadline-s", "0.5",
        )  # fmt: skip
    assert status == 1
    failed = {name: f["found"] for name, f in found.items() if f["status"] == "FAIL"}
    assert set(failed) == {"program", "model", "problems", "sandbox", "run folder"}
    assert "no such file" in failed["model"]
    assert "does not make 8 devices" in failed["program"]
    assert url in failed["sandbox"]
    assert "can't be written" in failed["run folder"]
    assert "objectUser" in found["run folder"]["way_out"]


def test_prompts_that_are_too_long(capsys, tmp_path) -> None:
    status, found = examined(
        capsys, SMOKE, "--prompts.max-prompt-tokens", "20", "--run-dir", str(tmp_path)
    )
    assert status == 1
    assert "prompts.max_prompt_tokens is 20" in found["problems"]["found"]


def test_fewer_problems_than_a_step_takes(capsys, tmp_path) -> None:
    status, found = examined(
        capsys, SMOKE, "--train.prompts-per-step", "100000", "--run-dir", str(tmp_path)
    )
    assert status == 1
    assert "train.prompts_per_step is 100000, but" in found["problems"]["found"]


def test_a_tokenizer_of_another_model(capsys, tmp_path) -> None:
    """Found before a run, and by what would use it: training and evaluation."""
    arch = dataclasses.replace(PRESETS["tiny-qwen2"], vocab_size=200)
    folder = tmp_path / "model"
    hf.save(drawn(arch), arch, folder)
    save_tokenizer(byte_tokenizer(), (258,), folder, RandomModel())
    message = "tokens and the model 200: they do not belong together"
    run = [SMOKE, "--model.kind", "pretrained", "--model.path", str(folder)]
    run += ["--run-dir", str(tmp_path / "run")]
    status, found = examined(capsys, *run)
    assert status == 1
    assert message in found["model"]["found"]
    assert cli.main(["train", *run]) == 2
    assert message in capsys.readouterr().err
    with pytest.raises(ValueError, match=message):
        open_subject(str(folder))


def test_a_kernel_without_any_sandbox(tmp_path) -> None:
    """Under a filter that refuses seccomp nothing holds; that fails where programs are judged."""
    no_seccomp = "317" if os.uname().machine == "x86_64" else "277"
    arguments = [
        "-m", "tests.hostile.crippled", no_seccomp, "cipo_jax.cli", "doctor", SMOKE, "--json",
        "--run-dir", str(tmp_path / "run"), "--tasks.name", "programs", *ROOM,
    ]  # fmt: skip
    done = subprocess.run(
        elsewhere.as_this_user(*arguments), capture_output=True, text=True, timeout=240, cwd=ROOT
    )
    record = json.loads(done.stdout[done.stdout.index("{") :])
    found = by_check(record["processes"][0])
    assert done.returncode == 1, done.stderr
    assert [name for name, f in found.items() if f["status"] == "FAIL"] == ["sandbox"]
    assert "verify.allow_unsandboxed" in found["sandbox"]["found"]


def test_a_sandbox_that_is_not_needed_is_no_fault() -> None:
    settings = Verify(service_url="http://127.0.0.1:9", service_deadline_s=0.5)
    for is_needed, status in ((True, "FAIL"), (False, "warn")):
        (found,) = verifier.sandbox(settings, is_needed=is_needed)
        assert found.status == status


class Judges:
    """A judge that gives the verdicts it is told."""

    report = "a judge"

    def __init__(self, *verdicts) -> None:
        self._verdicts = list(verdicts)

    def submit(self, completion, reference):
        future = Future()
        future.set_result(self._verdicts.pop(0))
        return future

    def close(self) -> None:
        pass


def test_a_hanging_program_that_is_not_ended_is_noticed() -> None:
    hung = wrong("timeout")
    assert verifier.hanging_program(Judges(right(), hung, right()), Verify()).status == "ok"
    for verdicts in (
        (right(), right(), right()),
        (right(), wrong("wrong_answer"), right()),
        (right(), hung, wrong("timeout")),
        (wrong("runtime_error"), hung, right()),
    ):
        assert verifier.hanging_program(Judges(*verdicts), Verify()).status == "FAIL", verdicts


def test_processes_that_stem_from_this_one_are_seen() -> None:
    child = subprocess.Popen(["sleep", "60"])
    try:
        assert child.pid in verifier.descendants()
    finally:
        child.kill()
        child.wait()
    assert child.pid not in verifier.descendants()


def test_too_little_memory_and_disk(tmp_path) -> None:
    (short,) = host.memory(2**60)
    assert short.status == "FAIL"
    assert "adapter.kind lora" in short.way_out
    assert [f.status for f in host.memory(1)] == ["ok"]
    written, full = host.run_folder(tmp_path, checkpoint_bytes=2**60, keep=2)
    assert (written.status, full.status) == ("ok", "FAIL")
    assert "3 checkpoints" in full.found
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_which_no_folder_can_be_renamed(tmp_path, monkeypatch) -> None:
    """As on a bucket without a hierarchical namespace."""

    def refuse(self, target):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(Path, "rename", refuse)
    found = list(host.run_folder(tmp_path, None, 2))
    assert found[0].status == "FAIL"
    assert "--enable-hierarchical-namespace" in found[0].way_out
    assert list(tmp_path.iterdir()) == []


def test_devices_that_are_there_and_not_used(monkeypatch) -> None:
    monkeypatch.setattr(devices, "attached", lambda: ["TPU v5e"] * 8)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    (found,) = devices.seen()
    assert found.status == "FAIL"
    assert "tpu" in found.way_out
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    (found,) = devices.seen()
    assert found.status == "warn"


def test_devices_that_cannot_be_opened(tmp_path) -> None:
    """What needs none is looked at all the same."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, "doctor", SMOKE, "--json", "--run-dir", str(tmp_path / "run")],
        cwd=ROOT, capture_output=True, text=True, timeout=240,
        env={**os.environ, "JAX_PLATFORMS": "cuda"},
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    found = by_check(json.loads(done.stdout)["processes"][0])
    assert [name for name, f in found.items() if f["status"] == "FAIL"] == ["devices"]
    assert "JAX_PLATFORMS" in found["devices"]["way_out"]
    assert {"model", "host memory", "hanging program", "disk space"} <= found.keys()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["train", "export"])
def test_a_command_says_that_there_are_no_such_devices(command, tmp_path) -> None:
    """jax's own answer is an assertion without a word."""
    arguments = {
        "train": [SMOKE, "--run-dir", str(tmp_path / "run")],
        "export": [str(tmp_path / "model"), str(tmp_path / "out"), "--no-check"],
    }[command]
    params, arch = load_model(RandomModel(preset="tiny-qwen2"))
    hf.save(params, arch, tmp_path / "model")
    save_tokenizer(byte_tokenizer(), (258,), tmp_path / "model", RandomModel())
    done = subprocess.run(
        [sys.executable, "-c", RUN, command, *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=240,
        env={**os.environ, "JAX_PLATFORMS": "cuda"},
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith(f"cipo {command}: ")]
    assert "JAX_PLATFORMS is 'cuda'" in line
    assert f"installed: jax {jax.__version__}" in line
    assert line.endswith("or unset JAX_PLATFORMS.")


def test_the_way_out_depends_on_what_is_installed(monkeypatch) -> None:
    def way_out(asked: str, *plugins: str) -> str:
        monkeypatch.setenv("JAX_PLATFORMS", asked)
        installed = {"jax": "1", **dict.fromkeys(plugins, "2")}
        monkeypatch.setattr(devices, "environment", lambda: {"versions": installed})
        return devices.unopened(AssertionError())[1]

    assert "pip install 'cipo-jax[cuda12]'" in way_out("cuda")
    assert "pip install 'cipo-jax[cuda12]'" in way_out("gpu", "libtpu")
    assert "pip install 'cipo-jax[tpu]'" in way_out("tpu", "jax-cuda12-plugin")
    # Installed: it is the driver, or another process.
    assert "pip" not in way_out("cuda", "jax-cuda13-plugin")
    assert "pip" not in way_out("tpu", "libtpu")
    extras = (ROOT / "setup.py").read_text()
    assert all(f'"{extra}": ["jax[{extra}]' in extras for extra in ("cuda12", "cuda13", "tpu"))


def test_a_template_that_does_not_keep_the_prompt() -> None:
    tokenizer = byte_tokenizer()
    assert subject.template(tokenizer, thinking=False).status == "ok"
    tokenizer.chat_template += "{% if add_generation_prompt %}<think></think>{% endif %}"
    changed = subject.template(tokenizer, thinking=False)
    assert changed.status == "warn"
    assert "'<think></think>'" in changed.found


def test_diagnoses_of_many_processes_in_one_table() -> None:
    well, ill = ok("disk space", "much"), fail("disk space", "little [0 B]", "delete something")
    same = ok("python", "3.12")
    everywhere = [[same, well], [same, ill], [same, well]]
    assert merged(everywhere) == [([0, 1, 2], same), ([1], ill), ([0, 2], well)]
    assert not doctor.is_well(everywhere)
    assert doctor.is_well([[same, well], [same]])
    assert doctor.table(everywhere).row_count == 3


LATE = f"import time; now = time.time; time.time = lambda: now() + 120; {RUN}"


def start_two(
    tmp_path: Path, programs: tuple[str, str], arguments: list[list[str]], variables: list[dict]
) -> list[tuple[int, str, str]]:
    """Status, output and errors of two processes, each with a program of its own."""
    running = [
        subprocess.Popen(
            [
                sys.executable, "-c", program, "doctor", SMOKE, "--json", "--run-dir",
                str(tmp_path / "run"), *own,
            ],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1", **environment},
        )
        for program, own, environment in zip(programs, arguments, variables, strict=True)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=240) for process in running]
    return [(p.returncode, *o) for p, o in zip(running, outputs, strict=True)]


def test_two_processes_that_slurm_started(tmp_path) -> None:
    """With the variables that srun sets, from which jax finds the others."""
    job = {
        "SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2",
    }  # fmt: skip
    variables = [{**job, "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)} for i in range(2)]
    first, second = start_two(tmp_path, (RUN, RUN), [["--distributed"]] * 2, variables)
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    assert second[1] == ""  # one of them speaks
    everywhere = json.loads(first[1])["processes"]
    assert len(everywhere) == 2
    for diagnoses in everywhere:
        found = by_check(diagnoses)
        assert "2 with the same versions" in found["processes"]["found"]
        assert "fsdp 2" in found["program"]["found"]
        assert "all 2 processes see" in found["shared folder"]["found"]
    assert not (tmp_path / "run").exists()


def test_two_processes_with_clocks_two_minutes_apart(tmp_path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    others = ["--coordinator", f"127.0.0.1:{port}", "--num-processes", "2", "--process-id"]
    first, second = start_two(tmp_path, (RUN, LATE), [[*others, "0"], [*others, "1"]], [{}, {}])
    assert (first[0], second[0]) == (1, 1)
    found = by_check(json.loads(first[1])["processes"][0])
    assert found["processes"]["status"] == "FAIL"
    assert "NTP" in found["processes"]["way_out"]


def test_a_diagnosis_is_json() -> None:
    diagnosis = fail("a", "b", "c")
    assert Diagnosis(**json.loads(json.dumps(diagnosis.to_json()))) == diagnosis
