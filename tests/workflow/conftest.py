"""A copy of the workflow whose scripts only write their outputs: what runs again after which change."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from snakemake_server import run_snakemake

ROOT = Path(__file__).resolve().parents[2]
STUB = """
from pathlib import Path
for name in snakemake.output:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(str(name))
"""


class Workspace:
    """A checkout in an empty folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def run(
        self, *arguments: str, timeout: int = 300, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run snakemake here, with variables added to the environment."""
        return run_snakemake(arguments, self.root, {**os.environ, **environment}, timeout=timeout)

    def planned(self, *arguments: str, **environment: str) -> Counter[str]:
        """Rule -> number of jobs that a run would start."""
        done = self.run("--dry-run", "--quiet", "rules", *arguments, **environment)
        assert done.returncode == 0, done.stderr
        found = re.findall(r"^(\w+) +(\d+)$", done.stderr + done.stdout, flags=re.MULTILINE)
        return Counter({rule: int(count) for rule, count in found if rule not in {"total", "all"}})

    def edit(self, name: str, old: str, new: str) -> None:
        """Replace text in a file."""
        path = self.root / name
        text = path.read_text()
        assert old in text, f"{name} has no {old!r}"
        path.write_text(text.replace(old, new))


def make_checkout(root: Path) -> Workspace:
    """Copy the workflow as it stands into an empty folder."""
    for name in ("rules", "scripts", "profiles", "configs", "data", "src"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "Snakefile", root)
    return Workspace(root)


@pytest.fixture
def checkout(tmp_path: Path) -> Workspace:
    """The workflow as it stands, in an empty folder."""
    return make_checkout(tmp_path)


@pytest.fixture(scope="session")
def finished_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo study, 'finished' by scripts that only write their outputs."""
    workspace = make_checkout(tmp_path_factory.mktemp("finished"))
    for script in (workspace.root / "scripts").glob("*.py"):
        script.write_text(STUB)
    done = workspace.run("--cores", "4")
    assert done.returncode == 0, done.stderr[-3000:]
    return workspace.root


@pytest.fixture
def finished(finished_template: Path, tmp_path: Path) -> Workspace:
    """An own copy of the finished study, with its times and Snakemake's records."""
    root = tmp_path / "study"
    shutil.copytree(finished_template, root, copy_function=shutil.copy2)
    return Workspace(root)
