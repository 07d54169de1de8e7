"""Sites of all kinds: what their Slurm lacks, forgets or refuses, and what the executor makes of it."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import subprocess
import sys
from base64 import urlsafe_b64encode
from pathlib import Path
from types import SimpleNamespace

import pytest
import snakemake_executor_plugin_slurm as executor

from arpo_replica.base import locks, slurm, upstream_guards
from arpo_replica.base.errors import UserError
from arpo_replica.base.slurm import JOBS_FILE, read_jobs, record_allocation
from arpo_replica.cluster import executor as taught
from arpo_replica.cluster import profile, resources
from arpo_replica.cluster.orphan_jobs import check_left, submitted
from arpo_replica.cluster.profile import Site, load_site, make_profile
from arpo_replica.config import load_config
from arpo_replica.training.process import attempt as attempts
from arpo_replica.training.process.ray_cluster import own_address

ROOT = Path(__file__).resolve().parents[2]
PARTITIONS = [
    slurm.Partition("compute", True, {}, 2880),
    slurm.Partition("accel", False, {"h200": 8}, 1440),
]


@pytest.fixture
def cluster(monkeypatch):
    """A cluster with two partitions and no accounting."""
    monkeypatch.setattr(slurm, "partitions", lambda ask: PARTITIONS)
    monkeypatch.setattr(slurm, "settings", lambda ask: {"AccountingStorageType": "accounting_storage/none"})
    monkeypatch.setattr(profile, "active", None)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_short_jobs_are_not_warned_as_soon_as_they_begin(cluster):
    made = make_profile(Site.model_validate({"max_minutes": {"gpu": 8}}))
    assert made.default_resources["slurm_extra"] == "'--signal=URG@120'"
    assert f"export {attempts.GRACE}=120" in made.node_lines
    assert "slurm_extra" not in make_profile(Site(warn_seconds=0)).default_resources


def test_a_checkout_under_a_path_with_a_space_is_refused(cluster, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/home/My Name/arpo-replica/envs/controller/.venv/bin/python")
    with pytest.raises(UserError, match="holds a space"):
        make_profile(Site())


def test_a_cluster_that_forgets_jobs_at_once_is_asked_sooner(cluster, monkeypatch):
    forgets = {"AccountingStorageType": "accounting_storage/none", "MinJobAge": "60 sec"}
    monkeypatch.setattr(slurm, "settings", lambda ask: forgets)
    with pytest.raises(UserError, match=r"check_seconds is 40, .* set it to 20\."):
        make_profile(Site())
    assert make_profile(Site(check_seconds=20)).status_command == "squeue"


def ask_executor(*answers: str) -> list[dict[str, str]]:
    """What the executor understands of what ``squeue`` (or ``sacct``) prints, asked once for each answer."""
    taught.teach_executor()
    found = []
    for answer in answers:
        program, _, lines = answer.partition(" ")
        said, _ = asyncio.run(executor.query_job_status(f"{program} {lines}", logging.getLogger()))
        found.append(said)
    return found


@pytest.fixture
def echoes(monkeypatch, tmp_path):
    """Programs named like Slurm's that print their arguments; an executor that nobody has taught."""
    for name in ("squeue", "sacct"):
        write(tmp_path / name, '#!/bin/sh\nprintf "%s\\n" "$@"\n').chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name in ("query_job_status", "query_job_status_sacct", "validate_account", "get_account"):
        plain = getattr(executor, name)
        monkeypatch.setattr(executor, name, getattr(plain, "plain", plain))


def test_jobs_that_ended_are_seen_to_end(echoes):
    (found,) = ask_executor("sacct '7|CANCELLED by 1000' '8|PREEMPTED' '9_2|COMPLETED' '10|RUNNING'")
    assert found == {"7": "CANCELLED", "8": "CANCELLED", "9_2": "COMPLETED", "10": "RUNNING"}
    assert "JobId,State" in executor.query_job_status_sacct("run"), "tasks of arrays by their own names"


def test_a_job_that_squeue_has_forgotten_has_ended(echoes):
    assert ask_executor("squeue '7|RUNNING' '8|PENDING'", "squeue '8|RUNNING'")[1] == {
        "7": "UNKNOWN", "8": "RUNNING"
    }  # fmt: skip
    assert ask_executor("sacct '7|RUNNING'", "sacct '8|RUNNING'")[1] == {"8": "RUNNING"}


async def test_slurm_is_asked_at_a_steady_pace(echoes, monkeypatch):
    taught.teach_executor()
    settings = SimpleNamespace(init_seconds_before_status_checks=40)
    asks = object.__new__(executor.Executor)
    asks.workflow = SimpleNamespace(executor_settings=settings)
    asks.next_seconds_between_status_checks = 150  # as after some looks at which no job had ended
    slept = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    await asks.sleep()
    assert slept == [40]


def test_another_executor_is_refused(echoes, monkeypatch):
    monkeypatch.setattr(upstream_guards, "version", lambda package: "2.9.0")
    with pytest.raises(upstream_guards.UpstreamChanged, match=r"written for .*slurm 2\.8\.0, but 2\.9\.0"):
        taught.teach_executor()


def test_accounts_need_no_programs_that_a_site_may_lack(echoes, monkeypatch, tmp_path):
    taught.teach_executor()
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    logger = logging.getLogger()
    assert executor.validate_account("p_arpo", logger) == "p_arpo"
    assert executor.get_account(logger) is None


def test_an_account_of_others_is_one_sentence(cluster, monkeypatch):
    monkeypatch.setattr(slurm, "has_accounting", lambda config: True)
    asked = []

    def ask(*command: str) -> str:
        asked.append(command)
        return "p_arpo\nP_Other\n"

    make_profile(Site(account="p_other"), ask)
    assert asked[-1][0] == "sacctmgr"
    with pytest.raises(UserError, match=r"account is 'mine', which is none of yours: P_Other, p_arpo\."):
        make_profile(Site(account="mine"), ask)


def test_a_site_that_tells_users_nothing_about_accounts_is_trusted(cluster, monkeypatch):
    monkeypatch.setattr(slurm, "has_accounting", lambda config: True)

    def ask(*command: str) -> str:
        raise UserError("Access denied")

    assert make_profile(Site(account="mine"), ask).site.account == "mine"


def test_only_snakemake_submits_again():
    profile_lines = (ROOT / "slurm" / "profile.yaml").read_text()
    assert "\nslurm-no-requeue: true" in profile_lines


def test_rules_on_the_login_node_keep_their_caches_in_the_study_too(cluster, echoes, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in profile.CACHES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HOME", "/large")
    profile.read_profile()
    assert os.environ["HF_HOME"] == "/large"
    assert os.environ["XDG_CACHE_HOME"] == str(tmp_path / "results" / "_cache" / "xdg")


def test_all_nodes_of_a_job_are_recorded(tmp_path, monkeypatch):
    write(tmp_path / "squeue", '#!/bin/sh\n[ "$3" = 12 ] && echo "gpu[1-2]"\n').chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "gpu1")  # what the job's step is told
    write(tmp_path / "nvidia-smi", '#!/bin/sh\necho "NVIDIA H200, 143771 MiB, 570.1"\n').chmod(0o755)
    record_allocation(tmp_path / "study", "train_stage", "out")
    monkeypatch.setenv("SLURM_JOB_ID", "13")
    record_allocation(tmp_path / "study", "train_stage", "out")
    jobs = read_jobs(tmp_path / "study")
    assert [job["nodes"] for job in jobs] == ["gpu[1-2]", "gpu1"]
    assert jobs[0]["gpu_names"] == ["NVIDIA H200, 143771 MiB, 570.1"]


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_file_systems_without_locks_stop_nothing(tmp_path, monkeypatch, capsys, number):
    def refuse(file: object, how: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    record_allocation(tmp_path / "study", "train_stage", "out")
    assert len(read_jobs(tmp_path / "study")) == 1
    with locks.locked(tmp_path / "train.lock"):
        pass
    assert "knows no locks" in capsys.readouterr().err


def test_a_lost_nodes_lock_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    asked = []

    def held_twice(file: object, how: int) -> None:
        asked.append(how)
        if len(asked) < 3:
            raise BlockingIOError

    monkeypatch.setattr(locks.fcntl, "flock", held_twice)
    monkeypatch.setattr(locks.time, "sleep", lambda seconds: None)
    with locks.locked(tmp_path / "train.lock"):
        assert len(asked) == 3
    asked.clear()
    monkeypatch.delenv("SLURM_JOB_ID")
    with pytest.raises(UserError, match=r"train\.lock"), locks.locked(tmp_path / "train.lock"):
        pass


@pytest.mark.parametrize(
    ("seen", "said", "address"),
    [
        ("10.0.0.7", "NodeName=n1 NodeAddr=10.1.1.1", "10.0.0.7"),
        ("127.0.0.1", "NodeName=n1 Arch=x86_64 NodeAddr=10.1.1.1 NodeHostName=n1", "10.1.1.1"),
        ("127.0.1.1", "NodeName=n1 NodeAddr=no.such.host.invalid", "127.0.1.1"),
    ],
)
def test_nodes_without_a_way_out_are_reached_by_the_address_that_slurm_knows(
    monkeypatch, seen, said, address
):
    ray = SimpleNamespace(util=SimpleNamespace(get_node_ip_address=lambda: seen))
    monkeypatch.setitem(sys.modules, "ray", ray)
    assert own_address("n1", lambda *command: said) == address


def test_jobs_of_an_earlier_run_are_found_before_and_after_their_start(cluster, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    results, markers = Path("results/mine"), Path(".snakemake/incomplete")
    results.mkdir(parents=True)
    (results / JOBS_FILE).write_text('{"job": "7"}\n{"job": "8_2"}\n')
    for output, number in (
        ("results/mine/" + "x" * 300, '"9"'),
        ("results/mine/begun", "null"),
        ("results/mine_too/a", '"10"'),
    ):
        name = urlsafe_b64encode(output.encode()).decode()
        parts = [*("@" + name[at : at + 254] for at in range(0, len(name) - 254, 254))]
        path = markers.joinpath(*parts, name[254 * len(parts) :])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"external_jobid": ' + number + "}")
    assert submitted(results) == {"7", "8", "9"}
    queue = "9 PENDING\n8 RUNNING\n8 RUNNING\n7 COMPLETING\n10 RUNNING\n"
    check_left(results, lambda *command: queue)  # no cluster
    on(monkeypatch, *PARTITIONS)
    with pytest.raises(UserError, match=r"earlier run of results/mine: 8, 9; .* 'scancel 8 9'\."):
        check_left(results, lambda *command: queue)
    check_left(results, lambda *command: "7 COMPLETING\n10 RUNNING\n")


def on(monkeypatch, *found: slurm.Partition, **site: object) -> None:
    """Let this be the cluster."""
    monkeypatch.setattr(slurm, "partitions", lambda ask: list(found))
    monkeypatch.setattr(profile, "active", make_profile(Site.model_validate(site)))


@pytest.mark.parametrize(
    ("gpu", "site", "words"),
    [
        ({"gpus": {"a100": 4}}, {}, r"training\.gpus is 8 \(grpo\), but .* 'gpu' has 4; lower it, or name"),
        ({"gpus": {"a": 2, "b": 8}}, {"gpu_model": "a"}, r"training\.gpus is 8 .* 'gpu' has 2;"),
        ({"gpus": {}}, {}, r"training\.gpus is 8 .* no partition of this cluster has GPUs"),
        ({"memory_mb": 64000}, {}, r"train_stage \(grpo\) asks for \d+ GB of memory, but .* 'gpu' has 64;"),
        ({"cpus": 1}, {}, r"threads is \d+, but a node of the partition 'gpu' has 1 processors; lower"),
    ],
)
def test_jobs_that_no_node_can_run_are_refused(cluster, monkeypatch, gpu, site, words):
    config = load_config(ROOT / "configs" / "paper.yaml")
    fits = {"gpus": {"h200": 8}, "memory_mb": 2_000_000, "cpus": 128}
    cpu = slurm.Partition("cpu", True, {}, None)
    on(monkeypatch, cpu, slurm.Partition("gpu", False, minutes=None, nodes=2, **fits))
    resources.check_jobs(config)
    on(monkeypatch, cpu, slurm.Partition("gpu", False, minutes=None, nodes=2, **(fits | gpu)), **site)
    with pytest.raises(UserError, match=words):
        resources.check_jobs(config)
    resources.check_jobs(config, {"train_stage", "collect_rollouts"})


def test_memory_grows_up_to_what_a_node_has(cluster, monkeypatch):
    assert [resources.grown(1000, attempt) for attempt in (1, 2, 9)] == [1000, 1250, 2000]
    on(monkeypatch, slurm.Partition("cpu", True, {}, None, memory_mb=1300))
    assert [resources.grown(1000, attempt) for attempt in (1, 2, 9)] == [1000, 1250, 1300]


def test_an_array_of_unlike_jobs_is_refused(cluster, monkeypatch):
    config = load_config(ROOT / "configs" / "paper.yaml")
    gpu = slurm.Partition("gpu", True, {"h200": 8}, None, nodes=2)
    on(monkeypatch, gpu, arrays=["collect_rollouts"])
    resources.check_jobs(config)
    config.policy.endpoint = "http://127.0.0.1:8000/v1"
    with pytest.raises(UserError, match="arrays names collect_rollouts"):
        resources.check_jobs(config)


def test_without_a_default_partition_jobs_without_gpus_go_where_no_gpus_are(cluster, monkeypatch):
    gpu = slurm.Partition("gpu", False, {"h200": 8}, None)
    shut = slurm.Partition("shut", False, {}, None, up=False)
    on(monkeypatch, slurm.Partition("old", False, {"h200": 8}, None, up=False), gpu, shut, PARTITIONS[0])
    assert (profile.active.cpu.name, profile.active.gpu.name) == ("compute", "gpu")
    on(monkeypatch, gpu, shut, slurm.Partition("slow", False, {}, None))
    assert profile.active.cpu.name == "slow"


def test_sizes_of_nodes_are_read():
    text = (
        "cpu*|60:00|3|(null)|64|256000+|up\ncpu*|60:00|1|(null)|128+|1000|up\nold|infinite|2|gpu:2|8|9|down\n"
    )
    cpu, old = slurm.partitions(lambda *command: text)
    assert (cpu.cpus, cpu.memory_mb, cpu.nodes, cpu.up) == (128, 256000, 4, True)
    assert (old.cpus, old.memory_mb, old.up) == (8, 9, False)


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("24:00:00", 1440),
        ("2-00:00:00", 2880),
        ("48h", 2880),
        ("90", 90),
        ("'30:00'", 30),
        ("UNLIMITED", None),
    ],
)
def test_times_are_taken_in_slurms_forms(tmp_path, text, minutes):
    path = write(tmp_path / "site.yaml", f"max_minutes: {{gpu: {text}}}\n")
    assert load_site(path).max_minutes.gpu == minutes


def test_names_of_digits_are_names(tmp_path):
    assert load_site(write(tmp_path / "site.yaml", "account: 012345\nqos: 17\n")).account == "012345"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("max_minutes: {gpu: soon}", "'max_minutes.gpu' is 'soon': give minutes or a time as Slurm takes it"),
        ("gpu_model: gpu:h100", "'gpu_model' is 'gpu:h100': give the type alone"),
        ("gpu_model: h100:8", "give the type alone, without 'gpu:' and a number (sinfo -o %G), e.g. h100."),
        ("partitions: gpu", "'partitions' is 'gpu': it has keys of its own, write them below it: cpu, gpu."),
        ("account: my lab", "'account' is 'my lab': give its name alone"),
        ("scratch: tmp", "'scratch' is 'tmp': give a path from '/' or '$' on"),
        ("acount: x", "unknown key 'acount'; did you mean 'account'?"),
        ("jobs: 3\njobs: 4", "'jobs' stands twice, in lines 1 and 2; keep one"),
    ],
)
def test_a_slip_in_the_site_file_is_one_sentence_with_the_form_to_write(tmp_path, text, words):
    with pytest.raises(UserError) as caught:
        load_site(write(tmp_path / "site.yaml", text + "\n"))
    assert words in str(caught.value)
    assert "^" not in str(caught.value)


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_a_comment_among_the_setup_lines_hides_nothing(cluster, tmp_path, shell):
    site = Site(setup=["export A=1  # first", "# only a comment", "export B=2 # last"])
    path = write(tmp_path / "node.sh", make_profile(site).node_lines)
    done = subprocess.run(
        [shell, "-c", f". {path} && echo $A$B"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "12\n", "")


def test_a_setup_line_that_fails_ends_the_job(cluster, tmp_path):
    site = Site(setup=["false # no such module", "export B=2"])
    path = write(tmp_path / "node.sh", make_profile(site).node_lines)
    done = subprocess.run(["sh", "-c", f". {path} && echo on"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
