"""The launch scripts, linted, and executed against stand-ins for the cloud's command lines.

The stand-ins refuse what the real tools would refuse, and what a script runs on a worker is really
run, with a `cipo` that writes down its arguments. SkyPilot's own package, which brings many others,
reads skypilot.yaml where SKYPILOT_PYTHON names the interpreter of an environment that has it.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from cipo_jax.config import configfile
from cipo_jax.plan.hardware import OFFERS
from tests import ROOT

LAUNCH = ROOT / "launch"
STAND_INS = Path(__file__).parent / "stand_ins"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), LAUNCH / "slurm.sbatch"])


# Every variable of the environment that a script of the folder reads, but for PATH and PWD.
READ = {
    name
    for path in SCRIPTS
    for name in re.findall(r"\$\{?([A-Z][A-Z0-9_]+)", path.read_text())
    if name not in ("PATH", "PWD", "BASH_SOURCE")
}


def without_ours(environment) -> dict[str, str]:
    """An environment in which the person who runs the tests has set none of these."""
    return {name: value for name, value in environment.items() if name not in READ}


def test_the_variables_that_scripts_read_are_known() -> None:
    assert {"CIPO_VENV", "CIPO_EXTRAS", "JAX_PLATFORMS", "TPU_NAME", "PYTHON"} <= READ
    assert without_ours({"CIPO_VENV": "/elsewhere", "HOME": "/root"}) == {"HOME": "/root"}


class Cloud:
    """A cloud with a slice of two workers, and a PATH on which the stand-ins come first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "cloud"
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.workers = [self.folder / f"worker-{i}" for i in range(2)]
        for home in self.workers:
            (home / "cipo_jax" / ".venv" / "bin").mkdir(parents=True)
        for tool in ("gcloud", "xpk", "kubectl", "scontrol"):
            (self.bin / tool).symlink_to(STAND_INS / "cloud.py")
        self.environment = {
            **without_ours(os.environ),
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "STAND_IN_CALLS": str(folder / "calls"),
            "STAND_IN_CLOUD": str(self.folder),
        }

    def tool(self, folder: Path, name: str, script: str) -> None:
        path = folder / name
        path.write_text(f"#!/usr/bin/env bash\n{script}\n")
        path.chmod(0o755)

    def cipo(self, script: str) -> None:
        """What `cipo` does on the workers."""
        for home in self.workers:
            self.tool(home / "cipo_jax" / ".venv" / "bin", "cipo", script)

    def state(self, *states: str) -> None:
        (self.folder / "state").write_text("\n".join(states) + "\n")

    def run(self, script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["bash", str(LAUNCH / script), *arguments],
            capture_output=True, text=True, timeout=120, env={**self.environment, **variables},
            cwd=self.folder,
        )  # fmt: skip

    @property
    def calls(self) -> list[dict]:
        path = Path(self.environment["STAND_IN_CALLS"])
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def commands(self) -> list[str]:
        return [call["command"].rpartition("tpus ")[2] for call in self.calls]


@pytest.fixture
def cloud(tmp_path: Path) -> Cloud:
    return Cloud(tmp_path)


SLICE = ("--name", "mine", "--zone", "us-west4-a", "--project", "ours")


# --- form ---


def test_shellcheck_finds_nothing() -> None:
    command = ["shellcheck", "-x", "-P", "SCRIPTDIR", *map(str, SCRIPTS)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_shellcheck_would_find_something(tmp_path) -> None:
    (tmp_path / "bad.sh").write_text("#!/bin/bash\nrm -rf $1/*\n")
    done = subprocess.run(["shellcheck", str(tmp_path / "bad.sh")], capture_output=True)
    assert done.returncode == 1


def test_the_stand_in_refuses_what_the_real_tool_would(cloud) -> None:
    def gcloud(line: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["gcloud", *line.split()], env=cloud.environment, capture_output=True, text=True
        )

    good = "compute tpus tpu-vm create mine --zone=z --version=v"
    assert gcloud(good).returncode == 0
    for bad, why in (
        (f"{good} --acceleratortype=v6e-8", "unrecognized arguments: --acceleratortype"),
        (f"{good} other", "positional"),
        (f"{good} --spot=yes", "ignored explicit argument"),
        ("compute tpus tpu-vm create mine --zone=z", "must be specified"),
        ("compute tpus tpu-vm make mine", "Invalid choice"),
        ("compute tpus tpu-vm ssh mine --zone=z --command", "expected one argument"),
    ):
        done = gcloud(bad)
        assert done.returncode == 1
        assert why in done.stderr
    assert len(cloud.calls) == 1


# --- tpu_vm.sh ---


@pytest.mark.parametrize("script", ["tpu_vm.sh", "xpk.sh"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "usage:"),
        (("fly",), "no such action: fly"),
        (("create", "--speed", "9"), "no such option: --speed"),
        (("create", "--zone"), "--zone needs a value"),
        (("create", "--zone", "z"), "needs --"),
        (("create", "--zone", "z", "--name", "n", "--cluster", "c"), "needs --type"),
    ],
)
def test_bad_arguments(cloud, script, arguments, message) -> None:
    if script == "tpu_vm.sh" and "--cluster" in arguments:
        arguments = arguments[: arguments.index("--cluster")]
    done = cloud.run(script, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert not cloud.calls


@pytest.mark.parametrize("script", ["tpu_vm.sh", "xpk.sh"])
def test_help(cloud, script) -> None:
    done = cloud.run(script, "--help")
    assert done.returncode == 0
    assert "--dry-run" in done.stdout


@pytest.mark.parametrize("family", sorted({name.partition("-")[0] for name in OFFERS}))
def test_every_family_that_can_be_planned_for_has_an_image(cloud, family) -> None:
    done = cloud.run("tpu_vm.sh", "create", *SLICE, "--type", f"{family}-8")
    assert done.returncode == 0, done.stderr


def test_create_asks_for_what_was_said(cloud) -> None:
    assert cloud.run("tpu_vm.sh", "create", *SLICE, "--type", "v6e-16", "--spot").returncode == 0
    (call,) = cloud.calls
    assert call == {
        "command": "gcloud compute tpus tpu-vm create",
        "positional": ["mine"],
        "options": {
            "--version": "v2-alpha-tpuv6e",
            "--accelerator-type": "v6e-16",
            "--scopes": "https://www.googleapis.com/auth/cloud-platform",
            "--spot": "",
            "--zone": "us-west4-a",
            "--project": "ours",
        },
    }
    done = cloud.run("tpu_vm.sh", "create", *SLICE, "--type", "abacus-8")
    assert done.returncode == 2
    assert "--type abacus-8 is not known" in done.stderr


def test_a_queued_resource_is_waited_for(cloud) -> None:
    (cloud.folder / "queue").write_text("WAITING_FOR_RESOURCES\nPROVISIONING\nACTIVE\n")
    queued = ("--queued", "--type", "v5litepod-16", "--poll", "0.05")
    done = cloud.run("tpu_vm.sh", "create", *SLICE, *queued)
    assert done.returncode == 0, done.stderr
    assert "mine is WAITING_FOR_RESOURCES" in done.stdout
    assert cloud.commands == ["queued-resources create"] + ["queued-resources describe"] * 3
    assert cloud.calls[0]["options"]["--node-id"] == "mine"
    (cloud.folder / "queue").write_text("FAILED\n")
    done = cloud.run("tpu_vm.sh", "create", *SLICE, *queued)
    assert done.returncode == 2
    assert "mine is FAILED" in done.stderr


def test_a_dry_run_prints_what_is_run_and_runs_nothing(cloud) -> None:
    cloud.state("PREEMPTED")
    arguments = ("--spot", "--bucket", "gs://b", "--type", "v5litepod-16")
    run = ("--", "configs/smoke.yaml", "--train.steps", "3")
    dry = cloud.run("tpu_vm.sh", "keep", *SLICE, *arguments, "--dry-run", *run)
    assert dry.returncode == 0, dry.stderr
    assert not cloud.calls
    lines = [line for line in dry.stdout.splitlines() if line.startswith("gcloud")]
    assert [line.split()[3:5] for line in lines] == [
        ["tpu-vm", w] for w in ("describe", "create", "scp", "ssh", "ssh", "ssh")
    ]
    for line in lines:  # Each can be pasted into a shell, and is what gcloud takes.
        if "ssh" not in line:
            done = subprocess.run(["bash", "-c", line], env=cloud.environment, capture_output=True)
            assert done.returncode == 0, done.stderr
        else:
            (command,) = [w for w in shlex.split(shell_words(line)) if w.startswith("--command=")]
            assert is_bash(command.removeprefix("--command="))
    assert "~/bucket/runs/mine" in lines[-1]


def shell_words(line: str) -> str:
    """A line with $'...' in it, as bash itself spells its words out for other shells."""
    script = f'set -- {line}; for word; do python3 -c "import shlex,sys;print(shlex.quote(sys.argv[1]))" "$word"; done'  # noqa: E501
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True).stdout


def is_bash(command: str) -> bool:
    """bash can parse it, and shellcheck finds no error in it."""
    checked = ["shellcheck", "-s", "bash", "-S", "error", "-"]
    return all(
        subprocess.run(program, input=command, text=True, capture_output=True).returncode == 0
        for program in (["bash", "-n"], checked)
    )


def test_install_copies_the_project_to_all_workers(cloud) -> None:
    """The folder is packed for real; gcloud gets it, and the workers' commands are parsed."""
    unpacked, said = cloud.folder / "unpacked", cloud.folder / "said"
    unpacked.mkdir()
    # A gcloud that unpacks what it is given to copy, and runs nothing on a worker.
    (cloud.bin / "gcloud").unlink()
    cloud.tool(
        cloud.bin,
        "gcloud",
        f'if [ "$4" = scp ]; then tar -xzf "$5" -C {unpacked}; else echo "$7" >> {said}; fi',
    )
    done = cloud.run("tpu_vm.sh", "install", *SLICE, "--bucket", "b")
    assert done.returncode == 0, done.stderr
    for path in ("setup.py", "launch/env.sh", "cipo_jax/cli/__init__.py", "configs/smoke.yaml"):
        assert (unpacked / path).read_text() == (ROOT / path).read_text()
    assert not (unpacked / ".git").exists()
    commands = said.read_text()
    assert "CIPO_EXTRAS=tpu" in commands
    assert "gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 b ~/bucket" in commands
    for command in commands.split("--command=")[1:]:
        assert is_bash(command)


SPEAKS = 'echo "$*" >> ~/arguments; echo "I am cipo"'


def wait_for(path: Path, seconds: float = 30.0) -> str:
    end = time.monotonic() + seconds
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < end, path
        time.sleep(0.05)
    return path.read_text()


def test_run_starts_the_same_command_on_all_workers(cloud) -> None:
    cloud.cipo(SPEAKS)
    run = ("--", "configs/smoke.yaml", "--prompts.system", "Say it's so.")
    done = cloud.run("tpu_vm.sh", "run", *SLICE, "--bucket", "b", *run)
    assert done.returncode == 0, done.stderr
    for home in cloud.workers:
        assert wait_for(home / "cipo.status") == "0\n"
        assert (home / "arguments").read_text() == (
            "train configs/smoke.yaml --prompts.system Say it's so. --distributed "
            f"--run-dir {home}/bucket/runs/mine\n"
        )
        assert (home / "cipo.log").read_text() == "I am cipo\n"
    assert cloud.run("tpu_vm.sh", "run", *SLICE).returncode == 2  # which configuration?


def test_a_second_run_is_refused_and_stop_lets_the_first_save(cloud) -> None:
    """As cipo does: SIGTERM is noted, and the run ends by itself with status 0, unfinished."""
    cloud.cipo(
        "trap 'echo saved >> ~/saved; exit 0' TERM; echo up > ~/up; while :; do sleep 0.1; done"
    )
    cloud.state("READY")
    run = ("--", "configs/smoke.yaml")
    assert cloud.run("tpu_vm.sh", "run", *SLICE, *run).returncode == 0
    for home in cloud.workers:
        wait_for(home / "up")
    again = cloud.run("tpu_vm.sh", "run", *SLICE, *run)
    assert again.returncode == 1
    assert "stop it first" in again.stderr
    assert cloud.run("tpu_vm.sh", "status", *SLICE).stdout.count("running") == 2
    assert cloud.run("tpu_vm.sh", "resume", *SLICE, *run).stdout == "mine: the run is going on\n"
    assert cloud.run("tpu_vm.sh", "stop", *SLICE).returncode == 0
    for home in cloud.workers:
        assert wait_for(home / "cipo.status") == "0\n"
        assert (home / "saved").read_text() == "saved\n"
    time.sleep(0.2)
    assert cloud.run("tpu_vm.sh", "status", *SLICE).stdout.count("stopped 0") == 2


def test_keep_resumes_after_a_preemption_until_the_run_is_finished(cloud) -> None:
    """The slice is taken away, and the second run, in the same folder, comes to its end."""
    cloud.cipo(
        'folder="${!#}"; mkdir -p "$folder"; echo run >> "$folder/runs"; '
        'if [ "$(wc -l < "$folder/runs")" -ge 2 ]; then touch "$folder/finished.json"; '
        "else sleep 2; fi"
    )
    cloud.state("READY", "READY", "PREEMPTED", "PREEMPTED", "READY")
    # Installing takes a network; that it is asked for again is what is looked at here.
    script = (LAUNCH / "tpu_vm.sh").read_text()
    fake = cloud.folder / "launch" / "tpu_vm.sh"
    fake.parent.mkdir()
    fake.write_text(script.replace('  on all "$(install_command)"\n', "").replace(MOUNT, ""))
    assert fake.read_text().count("\n") == script.count("\n") - 2
    keep = ("keep", *SLICE, "--type", "v5litepod-16", "--spot", "--bucket", "b", "--poll", "0.3")
    done = subprocess.run(
        ["bash", str(fake), *keep, "--", "configs/smoke.yaml"],
        capture_output=True, text=True, timeout=120, env=cloud.environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "mine is PREEMPTED: making it anew" in done.stdout
    assert "the run is finished: ~/bucket/runs/mine" in done.stdout
    acted = [c for c in cloud.commands if c.split()[1] in ("create", "delete", "scp")]
    assert acted == ["tpu-vm delete", "tpu-vm create", "tpu-vm scp"]
    run_dir = cloud.workers[0] / "bucket" / "runs" / "mine"
    assert (run_dir / "runs").read_text() == "run\nrun\n"


MOUNT = '  [ -z "$bucket" ] || on all "$(mount_command)"\n'


def test_keep_gives_up_on_a_run_that_fails_by_itself(cloud) -> None:
    cloud.cipo("echo train.steps must be positive; exit 2")
    cloud.state("READY")
    keep = ("keep", *SLICE, "--bucket", "b", "--poll", "0.2", "--", "configs/smoke.yaml")
    done = cloud.run("tpu_vm.sh", *keep)
    assert done.returncode == 1
    assert "the run stopped 2, and mine is READY" in done.stderr
    assert "train.steps must be positive" in done.stdout + done.stderr
    assert not [c for c in cloud.commands if "create" in c or "delete" in c]


def test_a_cloud_that_cannot_be_asked_is_not_taken_for_an_absent_slice(cloud) -> None:
    (cloud.bin / "gcloud").unlink()
    cloud.tool(
        cloud.bin, "gcloud", f'echo "$*" >> {cloud.folder}/asked; echo no network >&2; exit 1'
    )
    run = ("--type", "v6e-8", "--bucket", "b", "--", "configs/smoke.yaml")
    done = cloud.run("tpu_vm.sh", "resume", *SLICE, *run)
    assert done.returncode == 2
    assert "no network" in done.stderr
    asked = (cloud.folder / "asked").read_text()
    assert "describe" in asked
    assert "create" not in asked
    assert "delete" not in asked


def test_delete_takes_the_queued_resource_with_it(cloud) -> None:
    assert cloud.run("tpu_vm.sh", "delete", *SLICE).returncode == 0
    assert cloud.run("tpu_vm.sh", "delete", *SLICE, "--queued").returncode == 0
    assert cloud.commands == ["tpu-vm delete", "queued-resources delete"]
    assert "--force" in cloud.calls[1]["options"]


def documented(script: str) -> list[list[str]]:
    """The command lines of docs/tpu.md that call a script: its arguments."""
    text = (ROOT / "docs" / "tpu.md").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.startswith(f"bash launch/{script} ")]
    return [shlex.split(line, comments=True)[2:] for line in lines]


def test_the_documented_lines_are_right(cloud) -> None:
    """Each makes the gcloud lines, and the configs and settings in it exist."""
    lines = documented("tpu_vm.sh")
    assert {line[0] for line in lines} >= {"create", "install", "doctor", "run", "log", "keep"}
    for action, *options in lines:
        done = cloud.run(
            "tpu_vm.sh", action, "--dry-run", *options, TPU_NAME="mine", ZONE="us-west4-a",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("gcloud compute tpus ") >= 1
        if "--" in options:
            config, *settings = options[options.index("--") + 1 :]
            assert configfile.load(ROOT / config, settings).name


# --- xpk.sh ---

CLUSTER = ("--cluster", "c", "--zone", "us-west4-a", "--name", "mine")


def test_xpk(cloud) -> None:
    run = ("--", "configs/smoke.yaml", "--prompts.system", "Say it's so.")
    create = (*CLUSTER, "--type", "v5litepod-16", "--bucket", "b", *run)
    for action, arguments in (
        ("storage", (*CLUSTER, "--bucket", "gs://b")),
        ("create", create),
        ("log", CLUSTER),
        ("list", CLUSTER),
        ("delete", CLUSTER),
    ):
        done = cloud.run("xpk.sh", action, *arguments)
        assert done.returncode == 0, done.stderr
    assert [call["command"] for call in cloud.calls] == [
        "xpk storage attach", "xpk workload create", "kubectl logs", "xpk workload list",
        "xpk workload delete",
    ]  # fmt: skip
    options = cloud.calls[1]["options"]
    assert options["--script-dir"] == str(ROOT)
    assert options["--tpu-type"] == "v5litepod-16"
    command = options["--command"]
    assert is_bash(command)
    assert shlex.split(command.partition("cipo train ")[2]) == [
        "configs/smoke.yaml", "--prompts.system", "Say it's so.", "--distributed", "--run-dir",
        "/bucket/runs/mine",
    ]  # fmt: skip
    before = len(cloud.calls)
    dry = cloud.run("xpk.sh", "create", "--dry-run", *create)
    assert dry.stdout.startswith("xpk workload create --cluster=c")
    assert len(cloud.calls) == before


# --- slurm.sbatch ---


@pytest.mark.parametrize("is_finished", [True, False])
def test_slurm(cloud, tmp_path, is_finished) -> None:
    """The job's body, with an srun that runs the step once; an unfinished run is queued again."""
    venv = cloud.folder / ".venv" / "bin"
    venv.mkdir(parents=True)
    end = 'touch "$4/finished.json"' if is_finished else ":"
    cloud.tool(venv, "cipo", f'echo "$*" > ~/said; mkdir -p "$4"; {end}')
    cloud.tool(cloud.bin, "srun", '[ "$1" = --kill-on-bad-exit=1 ] && shift && exec "$@"')
    run_dir = tmp_path / "run"
    done = cloud.run(
        "slurm.sbatch", "configs/smoke.yaml", "--run-dir", str(run_dir), SLURM_JOB_ID="7",
        SLURM_SUBMIT_DIR=str(cloud.folder), HOME=str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = (tmp_path / "said").read_text()
    assert said == f"train configs/smoke.yaml --run-dir {run_dir} --distributed\n"
    requeued = [] if is_finished else [{"command": "scontrol requeue", "positional": ["7"]}]
    assert [{k: call[k] for k in ("command", "positional")} for call in cloud.calls] == requeued
    refused = cloud.run("slurm.sbatch", "configs/smoke.yaml")
    assert refused.returncode == 2
    assert "--run-dir DIR" in refused.stderr


def test_slurm_starts_a_process_for_each_gpu() -> None:
    """jax gives each process of a node one of its GPUs under Slurm."""
    text = (LAUNCH / "slurm.sbatch").read_text()
    directives = dict(
        line.removeprefix("#SBATCH --").partition("=")[::2]
        for line in text.splitlines()
        if line.startswith("#SBATCH")
    )
    assert directives["ntasks-per-node"] == directives["gpus-per-node"]
    assert directives["signal"] == "TERM@300"


# --- gpu.sh ---


@pytest.mark.parametrize(
    ("driver", "extra"),
    [("580.65.06", "cuda13"), ("535.104.05", "cuda12"), ("525.60.13", "cuda12"), ("470.9", None)],
)
def test_gpu_installs_for_the_driver(cloud, driver, extra) -> None:
    """In a copy of the project whose environment is there already, with a cipo that says what it is
    told; pip is called with the extra."""
    project = cloud.folder / "project"
    (project / "launch").mkdir(parents=True)
    for name in ("launch/gpu.sh", "launch/env.sh", "requirements.txt", "setup.py"):
        shutil.copy(ROOT / name, project / name)
    venv = project / ".venv" / "bin"
    venv.mkdir(parents=True)
    cloud.tool(venv, "python", 'echo "python $*" >> ~/said')
    cloud.tool(venv, "cipo", 'echo "cipo $*, JAX_PLATFORMS=$JAX_PLATFORMS" >> ~/said')
    query = "--query-gpu=driver_version --format=csv,noheader"
    cloud.tool(cloud.bin, "nvidia-smi", f'[ "$*" = "{query}" ] && echo {driver} && echo {driver}')
    environment = {**cloud.environment, "HOME": str(cloud.folder)}
    done = subprocess.run(
        ["bash", str(project / "launch" / "gpu.sh"), "configs/smoke.yaml", "--train.steps", "2"],
        env=environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    if extra is None:
        assert done.returncode == 2
        assert "at least 525" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    said = (cloud.folder / "said").read_text().splitlines()
    assert f"-e .[{extra}]" in " ".join(said)
    line = "configs/smoke.yaml --train.steps 2, JAX_PLATFORMS=cuda,cpu"
    assert said[-2:] == [f"cipo doctor {line}", f"cipo train {line}"]


def test_gpu_without_a_driver_says_so(cloud) -> None:
    cloud.tool(cloud.bin, "nvidia-smi", "echo couldn\\'t communicate with the driver; exit 9")
    done = cloud.run("gpu.sh", "configs/smoke.yaml")
    assert done.returncode == 2
    assert "couldn't communicate" in done.stderr
    assert cloud.run("gpu.sh").returncode == 2


# --- skypilot.yaml ---


def test_skypilot_runs_the_same_command_line() -> None:
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    assert task["resources"]["accelerators"] == "tpu-v5litepod-16"
    assert (ROOT / task["envs"]["CONFIG"]).is_file()
    for script in (task["setup"], task["run"]):
        assert is_bash(script)
    assert "--distributed" in task["run"]
    assert task["file_mounts"]["/bucket"]["mode"] == "MOUNT"


@pytest.mark.skipif(
    "SKYPILOT_PYTHON" not in os.environ, reason="SKYPILOT_PYTHON names no interpreter with skypilot"
)
def test_skypilot_reads_it() -> None:
    program = (
        "import sky, sys; task = sky.Task.from_yaml(sys.argv[1]); (r,) = task.resources; "
        "print(r.use_spot, *r.accelerators, *task.storage_mounts)"
    )
    done = subprocess.run(
        [os.environ["SKYPILOT_PYTHON"], "-c", program, str(LAUNCH / "skypilot.yaml")],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "True tpu-v5litepod-16 /bucket"
