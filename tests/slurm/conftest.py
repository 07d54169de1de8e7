"""The virtual cluster, and checkouts whose jobs go to it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm.cluster import Cluster, missing

ROOT = Path(__file__).resolve().parents[2]
SNAKEMAKE = Path(sys.executable).with_name("snakemake")
SITE = "first_check_seconds: 2\nwarn_seconds: 120\n"
STUB = """
import os
from pathlib import Path
for name in snakemake.output:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(str(name))
place = " ".join(os.environ.get(name, "-") for name in ("SLURMD_NODENAME", "CUDA_VISIBLE_DEVICES", "HF_HOME"))
task = os.environ.get("SLURM_ARRAY_TASK_ID", "-")
with open("places.txt", "a") as file:
    file.write(f"{snakemake.rule} {place} {task}\\n")
"""


class Checkout:
    """The workflow as it stands in a folder of its own, with a cluster."""

    def __init__(self, root: Path, cluster: Cluster, site: str = SITE) -> None:
        self.root, self.cluster = root, cluster
        for name in ("rules", "scripts", "profiles", "configs", "data", "src", "slurm"):
            shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "Snakefile", root)
        for path in (ROOT / "tests" / "slurm").glob("*.yaml"):
            shutil.copy(path, root)
        (root / "slurm" / "site.yaml").write_text(site)
        self.log = root / "snakemake.log"

    def use_stubs(self) -> None:
        """Scripts then only write their outputs and where they ran."""
        for script in (self.root / "scripts").glob("*.py"):
            script.write_text(STUB)

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """``snakemake --profile slurm`` with the smallest study."""
        command = [str(SNAKEMAKE), "--profile", "slurm"]
        command += ["--configfile", "configs/ci.yaml", "small.yaml", *arguments]
        with self.log.open("ab") as log:
            return subprocess.Popen(
                command, cwd=self.root, env=self.cluster.environment, stdout=log, stderr=log
            )

    def run(self, *arguments: str, timeout: float = 600) -> int:
        """The same until its end; its status."""
        process = self.start(*arguments)
        try:
            return process.wait(timeout)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(60)

    def said(self) -> str:
        """All that Snakemake said so far."""
        return self.log.read_text(errors="replace")

    def submitted(self) -> int:
        """Jobs that were sent to Slurm so far (an array counts once)."""
        return self.said().count("submitted with SLURM jobid") + self.said().count("array job")


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A cluster of three virtual nodes."""
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    root = Path(tempfile.mkdtemp(prefix="sl-", dir="/tmp"))
    made = Cluster(root)
    try:
        made.start()
        os.environ["SLURM_CONF"] = str(made.conf)
        yield made
    finally:
        made.stop()
        os.environ.pop("SLURM_CONF", None)
        shutil.rmtree(root, ignore_errors=True)
