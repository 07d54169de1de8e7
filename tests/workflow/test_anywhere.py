"""The workflow from an empty folder, as a module of another one, and as snakedeploy puts it into a folder."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest
import yaml
from conftest import ROOT, Workspace

SPLIT = "results/demo/splits/train_4.json"
MODULE = """
configfile: "config/config.yaml"

module arpo_replica:
    snakefile:
        {snakefile}
    config:
        config

use rule * from arpo_replica"""
"""What snakedeploy 0.17 writes."""
REMOTE = "https://github.com/someone/arpo-replica"
CONFIGS = ROOT / "configs"
FOR_THE_PAPER = ("shapes/full_set", "shapes/released_code", "shapes/staged", "arms/offline")
UNDER = {f"{name}.yaml": ["paper.yaml"] for name in FOR_THE_PAPER} | {
    "arms/served.yaml": ["chrome_10.yaml"],
    "twins/noisy.yaml": ["chrome_18_noisy.yaml", "twins/nano.yaml"],
}
"""Overlay -> what it is laid over; all others fit the demo."""
COMMITTED = [
    *([path.name] for path in sorted(CONFIGS.glob("*.yaml"))),
    *(
        [*UNDER.get(overlay, ["demo.yaml"]), overlay]
        for overlay in sorted(f"{path.parent.name}/{path.name}" for path in CONFIGS.glob("*/*.yaml"))
    ),
]


@pytest.fixture
def folder(tmp_path) -> Workspace:
    return Workspace(tmp_path)


def made(folder: Workspace, *arguments: str, **environment: str) -> list[dict[str, str]]:
    """Plan the whole study, run one cheap rule of it and return the tasks in its output."""
    dry = folder.run("--dry-run", "--quiet", "rules", *arguments, **environment)
    assert dry.returncode == 0, dry.stderr
    assert "train_stage" in dry.stdout + dry.stderr
    done = folder.run("--cores", "1", *arguments, "--", SPLIT, **environment)
    assert done.returncode == 0, done.stderr
    return json.loads((folder.root / SPLIT).read_text())["tasks"]


@pytest.mark.parametrize("snakefile", ["Snakefile", "workflow/Snakefile"])
def test_an_empty_folder(folder, snakefile):
    tasks = made(
        folder, "--snakefile", str(ROOT / snakefile), "--configfile", str(ROOT / "configs/demo.yaml")
    )
    assert len(tasks) == 4
    assert {path.name for path in folder.root.iterdir()} <= {"results", ".snakemake"}


def test_without_a_config_it_is_the_demo(folder):
    assert made(folder, "--snakefile", str(ROOT / "Snakefile"))


def test_an_own_list_is_found_in_the_working_folder(folder):
    (folder.root / "data/splits").mkdir(parents=True)
    own = json.loads((ROOT / "data/splits/miniwob_train_4.json").read_text())
    own["tasks"] = {domain: ids[::-1] for domain, ids in own["tasks"].items()}
    (folder.root / "data/splits/own.json").write_text(json.dumps(own))
    text = (ROOT / "configs/demo.yaml").read_text()
    (folder.root / "own.yaml").write_text(text.replace("data/splits/miniwob_train_4", "data/splits/own"))
    tasks = made(folder, "--snakefile", str(ROOT / "Snakefile"), "--configfile", "own.yaml")
    assert [task["id"] for task in tasks] == own["tasks"]["miniwob"]


def test_a_module_of_another_workflow(folder):
    """Its rules carry a prefix, its config is a part of the other's, which calls a run's checks."""
    (folder.root / "config").mkdir()
    raw = {"arpo": yaml.safe_load((ROOT / "configs/demo.yaml").read_text()), "other": 1}
    raw["arpo"]["policy"]["endpoint"] = "http://127.0.0.1:1/v1"
    (folder.root / "config/config.yaml").write_text(yaml.safe_dump(raw))
    text = MODULE.format(snakefile=repr(str(ROOT / "Snakefile")))
    text = text.replace("        config\n", '        config["arpo"]\n') + " as arpo_*\n"
    (folder.root / "Snakefile").write_text(text)
    assert made(folder, "--no-hooks")
    (folder.root / "Snakefile").write_text(text + "\nonstart:\n    arpo_replica.onstart()\n")
    done = folder.run("--cores", "1", "--", "arpo_write_config")
    assert done.returncode != 0
    assert "policy.endpoint" in done.stderr


def test_snakedeploys_layout(folder, tmp_path_factory):
    """The rules come from a tag of a repository (here a local one in GitHub's place), data and package from
    the checkout whose environment runs Snakemake."""
    source = tmp_path_factory.mktemp("source")
    listed = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split("\0"):
        if name.startswith(("Snakefile", "workflow/", "rules/", "scripts/", "config/", "configs/")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name, follow_symlinks=False)
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org", "-C", str(source)]
    for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "x"], ["tag", "v1"]):
        subprocess.run([*git, *arguments], check=True)
    shutil.copytree(source / "config", folder.root / "config")
    (folder.root / "workflow").mkdir()
    declared = f'github("{REMOTE.removeprefix("https://github.com/")}", path="workflow/Snakefile", tag="v1")'
    (folder.root / "workflow/Snakefile").write_text(MODULE.format(snakefile=declared))
    redirected = {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.file://{source}.insteadOf",
        "GIT_CONFIG_VALUE_0": REMOTE,
        "XDG_CACHE_HOME": str(folder.root / "cache"),
    }
    assert made(folder, **redirected)


def test_the_catalogues_rules():
    """https://github.com/snakemake/snakemake-workflow-catalog: standardized usage."""
    usage = yaml.safe_load((ROOT / ".snakemake-workflow-catalog.yml").read_text())["usage"]
    assert usage["software-stack-deployment"].keys() == {"conda", "apptainer", "apptainer+conda", "report"}
    assert (ROOT / "workflow/Snakefile").is_file() and (ROOT / "config/README.md").is_file()
    readme = (ROOT / "README.md").read_text().lower()
    assert "snakemake" in readme and "workflow" in readme
    assert (ROOT / "config/config.yaml").read_text() == (ROOT / "configs/demo.yaml").read_text()


@pytest.mark.parametrize("files", COMMITTED, ids=" ".join)
def test_every_config_is_planned_with_the_controllers_environment_alone(folder, files, tmp_path):
    """No program of a desktop, no Docker, no model: a dry run names what is missing, and plans."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("git", "sh", "bash"):
        (tools / name).symlink_to(str(shutil.which(name)))
    done = folder.run(
        *("--dry-run", "--quiet", "rules", "--snakefile", str(ROOT / "Snakefile")),
        *("--configfile", *(str(CONFIGS / name) for name in files)),
        PATH=str(tools),
        DOCKER_HOST="unix:///nonexistent/docker.sock",
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "A run would refuse to start: " in said
    assert re.search(r"^total +\d+$", said, flags=re.MULTILINE)
