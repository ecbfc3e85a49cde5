"""The files around the code say the same as the code: workflow, version, changelog, citation."""

import re
import subprocess

import yaml

from cipo_jax import __version__
from tests import ROOT

WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
SETUP = (ROOT / "setup.py").read_text()


def shell_lines(text: str) -> list[str]:
    """The commands of the first block of a Markdown page that is about starting."""
    block = re.search(r"## Start\n\n```\n(.*?)```", text, flags=re.DOTALL)
    assert block
    return [line.split("#")[0].strip() for line in block[1].splitlines()]


def test_the_workflow_runs_the_readme_s_commands_on_every_python() -> None:
    commands = shell_lines((ROOT / "README.md").read_text())
    assert len(commands) == 2
    job = WORKFLOW["jobs"]["readme"]
    runs = [step["run"].strip() for step in job["steps"] if "run" in step]
    assert [run for run in runs if run in commands] == commands
    classified = re.findall(r"Programming Language :: Python :: (3\.\d+)", SETUP)
    assert job["strategy"]["matrix"]["python"] == classified
    assert job["strategy"]["matrix"]["jax"] == ["lowest", "newest"]
    oldest = re.search(r'python_requires=">=([\d.]+)"', SETUP)
    assert oldest
    assert oldest[1] == classified[0]


def test_the_workflow_has_limits_and_few_rights() -> None:
    assert WORKFLOW["permissions"] == {"contents": "read"}
    assert all("timeout-minutes" in job for job in WORKFLOW["jobs"].values())
    uses = [s["uses"] for j in WORKFLOW["jobs"].values() for s in j["steps"] if "uses" in s]
    assert uses
    assert all(re.fullmatch(r"actions/[\w-]+@v\d+", name) for name in uses)


def test_the_lowest_jax_is_found_in_the_requirements(tmp_path) -> None:
    """The step that writes the constraints, run as it is written."""
    steps = WORKFLOW["jobs"]["readme"]["steps"]
    (script,) = (s["run"] for s in steps if s.get("if") == "matrix.jax == 'lowest'")
    environment = {
        "RUNNER_TEMP": str(tmp_path),
        "GITHUB_ENV": str(tmp_path / "env"),
        "PATH": "/bin",
    }
    subprocess.run(["/bin/bash", "-ec", script], check=True, cwd=ROOT, env=environment)
    (lowest,) = re.findall(r"^jax>=(.*)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    written = (tmp_path / "lowest.txt").read_text()
    assert written == f"jax=={lowest}\njaxlib=={lowest}\n"
    assert (tmp_path / "env").read_text() == f"PIP_CONSTRAINT={tmp_path}/lowest.txt\n"


def test_the_version_is_the_same_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__
    changelog = (ROOT / "CHANGELOG.md").read_text()
    released = re.findall(r"^## \[(.+?)\] - (\d{4}-\d\d-\d\d)$", changelog, flags=re.MULTILINE)
    assert released[0] == (__version__, str(citation["date-released"]))
    assert "## [Unreleased]" in changelog


def test_the_hooks_before_a_commit_are_the_gates_of_ci() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    gates = (ROOT / ".ci" / "run").read_text()
    for hook in hooks:
        assert re.search(rf"^  {hook['entry']}( --check)?( \.)?$", gates, flags=re.MULTILINE), hook
