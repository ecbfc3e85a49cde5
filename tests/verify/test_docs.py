"""docs/verifiers.md: its recipe for a new verifier, followed to the letter in a copy."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests import ROOT

USE = r"""
from cipo_jax.config import Verify
from cipo_jax.verify import VerifierPool, verdict, wire
reference = verdict.ChoiceReference(letter="B")
assert wire.decode_reference(wire.encode_reference(reference)) == reference
with VerifierPool(Verify(workers=1)) as pool:
    said = ["It isn't (A), so (B).", "It isn't (B), so (A).", "I give up."]
    print([judged.reward for judged in pool.map([(text, reference) for text in said])])
"""


def test_a_verifier_is_added_as_the_page_says(tmp_path: Path) -> None:
    page = (ROOT / "docs/verifiers.md").read_text()
    section = page.split("## Adding a verifier")[1].split("\n## ")[0]
    record, branch = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len((record + branch).split("\n")) <= 12  # ten lines, and the ends of two blocks

    package = tmp_path / "cipo_jax"
    shutil.copytree(ROOT / "cipo_jax", package, ignore=shutil.ignore_patterns("__pycache__"))
    verdict, worker = package / "verify/verdict.py", package / "verify/worker.py"
    text = verdict.read_text()
    assert text.count("\nReference = (\n") == 1
    text = text.replace(
        "\nReference = (\n", f"\n{record}\n\nReference = (\n    ChoiceReference\n    | "
    )
    verdict.write_text(text)
    text = worker.read_text()
    assert text.count("        match reference:\n") == 1
    text = text.replace("        match reference:\n", f"        match reference:\n{branch}")
    text = text.replace("import json\n", "import json\nimport re\n")
    text = text.replace("    AssertsReference,\n", "    AssertsReference,\n    ChoiceReference,\n")
    worker.write_text(text)

    done = subprocess.run(
        [sys.executable, "-c", USE], capture_output=True, text=True, cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.stdout.strip() == "[1.0, 0.0, 0.0]", done.stdout + done.stderr


def test_the_page_s_first_example_runs() -> None:
    page = (ROOT / "docs/verifiers.md").read_text()
    example = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    assert example is not None
    done = subprocess.run(
        [sys.executable, "-c", example[1]], capture_output=True, text=True, cwd=ROOT
    )
    assert "Status.RIGHT" in done.stdout, done.stdout + done.stderr
    assert "verifier sandbox:" in done.stdout
