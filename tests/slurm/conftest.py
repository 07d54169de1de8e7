"""The virtual cluster, and checkouts whose jobs go to it.

Each module has a cluster of its own, which starts in a second or two; ``ACCOUNTING = True`` in a module gives
it slurmdbd as well.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from arpo_replica.base.environments import ROOT, python_of
from slurm import accounting
from slurm.cluster import Cluster, missing, search_path

HERE = Path(__file__).parent
SNAKEMAKE = Path(sys.executable).with_name("snakemake")
SITE = "check_seconds: 2\nwarn_seconds: 120\n"
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
    """The workflow as it stands in a folder of its own, with a cluster. ``user``: id of who runs it."""

    def __init__(self, root: Path, cluster: Cluster, site: str = SITE, user: int | None = None) -> None:
        self.root, self.cluster, self.user = root, cluster, user
        for name in ("rules", "scripts", "profiles", "configs", "data", "src", "slurm"):
            shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "Snakefile", root)
        for path in HERE.glob("*.yaml"):
            shutil.copy(path, root)
        (root / "slurm" / "site.yaml").write_text(site)
        self.log = root / "snakemake.log"

    def use_stubs(self) -> None:
        """Scripts then only write their outputs and where they ran."""
        for script in (self.root / "scripts").glob("*.py"):
            script.write_text(STUB)

    def prepare(self, model: Path) -> None:
        """Give it the random policy, and desktops for its training that answer alike every time."""
        shutil.copytree(model, self.root / "tiny")
        shutil.copy(HERE / "scripted_train_stage.py", self.root / "scripts" / "train_stage.py")

    def start(
        self, *arguments: str, options: Sequence[str] = ("--profile", "slurm"), **variables: str
    ) -> subprocess.Popen[bytes]:
        """``snakemake --profile slurm`` with the smallest study. ``variables``: for its environment."""
        command = [str(SNAKEMAKE), *options, "--configfile", "configs/ci.yaml", "small.yaml", *arguments]
        # Where the scripted desktops are.
        variables = {"PYTHONPATH": f"{ROOT}/src:{ROOT}/tests", **variables}
        if self.user is not None:
            command = ["setpriv", f"--reuid={self.user}", f"--regid={self.user}", "--clear-groups", *command]
            name = pwd.getpwuid(self.user).pw_name
            variables |= {"HOME": f"{self.root}/home", "USER": name, "LOGNAME": name}
            (self.root / "home").mkdir(exist_ok=True)
            for path in (self.root, *self.root.rglob("*")):
                os.chown(path, self.user, self.user, follow_symlinks=False)
        with self.log.open("ab") as log:
            return subprocess.Popen(
                command,
                cwd=self.root,
                env={**self.cluster.environment, **variables},
                stdout=log,
                stderr=log,
            )

    def run(self, *arguments: str, timeout: float = 600, **variables: str) -> int:
        """The same until its end; its status."""
        process = self.start(*arguments, **variables)
        try:
            return process.wait(timeout)
        finally:
            end(process)

    def said(self) -> str:
        """All that Snakemake said so far."""
        return self.log.read_text(errors="replace")

    def submitted(self) -> int:
        """Jobs that were sent to Slurm so far (an array counts once)."""
        return self.said().count("submitted with SLURM jobid") + self.said().count("array job")


def end(process: subprocess.Popen[bytes]) -> None:
    """End a Snakemake that still runs. At SIGINT it cancels its jobs; at SIGTERM it may wait for them."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A cluster of three virtual nodes, or with as many CPU nodes as the module's ``CPU_NODES`` says."""
    wanted = getattr(request.module, "ACCOUNTING", False)
    reason = missing() or (accounting.missing(search_path()) if wanted else None)
    if reason is not None:
        # `make slurm` has installed all that is needed: there a run without a single test is no success.
        (pytest.fail if "ARPO_REQUIRE_SLURM" in os.environ else pytest.skip)(reason)
    root = Path(tempfile.mkdtemp(prefix="sl-", dir="/tmp"))
    made = Cluster(root, cpu_nodes=getattr(request.module, "CPU_NODES", 1), accounting=wanted)
    try:
        made.start()
        yield made
    finally:
        made.stop()
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random policy of a million weights."""
    folder = tmp_path_factory.mktemp("policy") / "tiny"
    code = "import sys, pathlib, tiny_model; tiny_model.build_tiny_model(pathlib.Path(sys.argv[1]))"
    subprocess.run(
        [str(python_of("cpu")), "-c", code, str(folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests" / "training")},
        check=True,
        timeout=300,
    )
    return folder
