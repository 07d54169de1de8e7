"""The cluster's site file, profile, costs, plan, progress and the notice that ends a training."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from arpo_replica.base import slurm
from arpo_replica.base.checkout import code_version
from arpo_replica.base.environments import short_root
from arpo_replica.base.errors import Stopped, UserError
from arpo_replica.base.slurm import describe_allocation, read_jobs, record_allocation
from arpo_replica.cluster import profile, resources
from arpo_replica.cluster.costs import (
    CUDA_GIB,
    PRICES_FILE,
    JobEstimate,
    Rate,
    all_costs,
    estimate,
    memory_need,
    read_prices,
    rollout_estimate,
    stage_estimate,
)
from arpo_replica.cluster.profile import Site, load_site, make_profile
from arpo_replica.config import load_config
from arpo_replica.config.models import StudyConfig, merge
from arpo_replica.training.process import attempt as attempts
from arpo_replica.workflow.job import job
from arpo_replica.workflow.plan import SUBMITTED, Plan, PlannedJob, render
from arpo_replica.workflow.plan import read_jobs as planned_jobs
from arpo_replica.workflow.status import render as render_status
from arpo_replica.workflow.status import study_status

ROOT = Path(__file__).resolve().parents[2]
PARTITIONS = [
    slurm.Partition("compute", True, {}, 2880),
    slurm.Partition("accel", False, {"h200": 8}, 1440),
    slurm.Partition("old", False, {"v100": 4}, None),
]


@pytest.fixture
def cluster(monkeypatch):
    """A cluster with three partitions and no accounting."""
    monkeypatch.setattr(slurm, "partitions", lambda ask: PARTITIONS)
    monkeypatch.setattr(slurm, "settings", lambda ask: {"AccountingStorageType": "accounting_storage/none"})
    monkeypatch.setattr(profile, "active", None)


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_the_committed_site_file_is_the_default():
    assert load_site(ROOT / "slurm" / "site.yaml") == Site()


def test_a_missing_site_file_is_fine(tmp_path):
    assert load_site(tmp_path / "site.yaml") == Site()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("acount: x", "unknown key 'acount'"),
        ("partitions: {gpus: x}", "unknown key 'partitions.gpus'"),
        ("account: 'a; rm -rf /'", "'account'"),
        ("jobs: 0", "'jobs'"),
        ("scratch: $(id)", "'scratch'"),
        ("gpu_model: a 100", "'gpu_model'"),
        (
            "gpu_model: a100-sxm4",
            "'gpu_model' is 'a100-sxm4': the executor can ask for no type with a hyphen;",
        ),
        ('setup: ["a\\nb"]', "'setup'"),
        ("- a", "mapping"),
        ("a: [", "no valid YAML"),
        (b"account: \xff", "no text in UTF-8"),
    ],
)
def test_mistakes_in_the_site_file_name_their_key(tmp_path, text, words):
    with pytest.raises(UserError) as error:
        load_site(write(tmp_path / "site.yaml", text))
    assert words in str(error.value)
    assert "site.yaml" in str(error.value)


def test_with_nothing_set_slurm_decides(cluster):
    made = make_profile(Site())
    assert (made.cpu.name, made.gpu.name) == ("compute", "accel")
    assert made.status_command == "squeue"
    assert made.default_resources == {"mem_mb": 2000, "runtime": 60, "slurm_extra": "'--signal=URG@300'"}


def test_names_of_the_site_reach_the_jobs(cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    site = Site.model_validate(
        {
            "partitions": {"gpu": "old"},
            "account": "p_arpo",
            "scratch": "$SLURM_TMPDIR",
            "setup": ["module load cuda"],
        }
    )
    made = make_profile(site)
    assert made.default_resources["slurm_account"] == "'p_arpo'"
    assert made.node_lines.endswith("|| return\n{ :; module load cuda\n} || return\n")
    # Variables are the node's, whether a shell of the login node reads the command first or not.
    command = made.precommand()
    assert not set(command) & set('$`"\\')
    # Debian's sh does not inherit the login shell's function.
    (tmp_path / "init").mkdir()
    write(tmp_path / "init" / "sh", "module() { echo $ARPO_TMP; }")
    said = subprocess.run(
        ["sh", "-c", command],
        env={"SLURM_TMPDIR": "/node", "MODULESHOME": str(tmp_path)},
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert said == "/node\n"
    listed = (tmp_path / made.partition_file()).read_text()
    assert "compute:\n    max_gpu: 0" in listed and "old:\n    max_gpu: 4" in listed


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"partitions": {"cpu": "cpus"}}, "partitions.cpu is 'cpus'"),
        ({"partitions": {"gpu": "compute"}}, "no GPUs"),
        ({"gpu_model": "a100"}, "h200, v100"),
        ({"gpu_model": "h200", "partitions": {"gpu": "old"}}, "partition old"),
        ({"status_command": "sacct"}, "keeps no accounts"),
    ],
)
def test_a_site_file_that_this_cluster_refuses_is_one_sentence(cluster, raw, words):
    with pytest.raises(UserError) as error:
        make_profile(Site.model_validate(raw))
    assert words in str(error.value)


def test_accounting_is_asked_where_there_is_any(cluster, monkeypatch):
    monkeypatch.setattr(slurm, "has_accounting", lambda config: True)
    assert make_profile(Site()).status_command == "sacct"


def test_without_slurm_there_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="login node"):
        slurm.partitions()


def test_a_silent_controller_is_one_sentence(monkeypatch, tmp_path):
    program = write(tmp_path / "sinfo", "#!/bin/sh\necho 'slurm_load_partitions: refused' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(UserError, match="slurm_load_partitions: refused"):
        slurm.partitions()


@pytest.mark.parametrize(
    ("text", "gpus"),
    [
        ("(null)", {}),
        ("gpu:h200:8(S:0-1)", {"h200": 8}),
        ("gpu:2,craynetwork:4", {"": 2}),
        ("gpu:a:1,gpu:b:2", {"a": 1, "b": 2}),
        ("gpu:h100:no_consume:8", {"h100": 8}),
        ("gpu:no_consume:2(S:0)", {"": 2}),
    ],
)
def test_gres_is_read(text, gpus):
    assert slurm.read_gres(text) == gpus


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        *[("infinite", None), ("1:00:00", 60), ("30:00", 30), ("2-00:00:00", 2880), ("1-12:30:00", 2190)],
        *[("UNLIMITED", None), ("90", 90), ("24:00:00", 1440), ("2-0", 2880), ("1-12:30", 2190)],
        *[("48h", 2880), ("90m", 90), ("2d", 2880)],
    ],
)
def test_limits_are_read(text, minutes):
    assert slurm.read_minutes(text) == minutes


@pytest.mark.parametrize("text", ["two days", "1:2:3:4", "-1", "1.5", "12:", "1-2-3"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(ValueError, match="24:00:00"):
        slurm.read_minutes(text)


@pytest.mark.parametrize(("text", "number"), [("64", 64), ("64+", 64), ("1.5K", 1536), ("n/a", None)])
def test_numbers_of_sinfo_are_read(text, number):
    assert slurm.read_number(text) == number


def test_run_times_grow_with_attempts_and_end_at_the_partitions_limit(cluster, monkeypatch):
    estimate = JobEstimate(hours=10, gpus=8, disk_gb=0)
    assert [resources.minutes(estimate, attempt) for attempt in (1, 2)] == [900, 1800]
    monkeypatch.setattr(profile, "active", make_profile(Site.model_validate({"max_minutes": {"cpu": 100}})))
    assert [resources.minutes(estimate, attempt) for attempt in (1, 2)] == [900, 1440]
    assert resources.minutes(JobEstimate(hours=10, gpus=0, disk_gb=0), 1) == 100


def test_gpus_are_asked_for_by_model_if_the_site_names_one(cluster, monkeypatch):
    assert (resources.gres(0), resources.gres(4)) == ("", "gpu:4")
    monkeypatch.setattr(profile, "active", make_profile(Site(gpu_model="v100")))
    assert resources.gres(4) == "gpu:v100:4"


def test_rates_lie_between_the_known_points():
    rate = Rate(basis="published", source="", by_desktops={8: 160, 32: 274})
    assert rate.at(8) == 160 and rate.at(32) == pytest.approx(274) and rate.at(4) == 80
    assert rate.at(16) == pytest.approx((160 * 274) ** 0.5)
    assert rate.at(100) == 274, "nothing is known beyond"


def test_a_stage_costs_gpus_on_a_gpu_and_none_on_a_cpu():
    nano = load_config(ROOT / "configs" / "nano.yaml")
    paper = load_config(ROOT / "configs" / "paper.yaml")
    assert stage_estimate(nano, "arpo", "train_32").gpus == 0
    found = stage_estimate(paper, "arpo", "train_128")
    assert found.gpus == 16
    # 60 steps of 256 episodes at 768 an hour are 20 hours of rollouts (paper, Fig. 7).
    assert 20 < found.hours < 27
    assert rollout_estimate(paper, "base").gpus == 1
    assert estimate(paper, "measure_throughput").gpus == 1
    assert estimate(paper, "build_desktop_image").gpus == 0


DRY_RUN = """
[Mon]
rule train_stage:
    input: a
    output: b
    wildcards: arm=arpo, seed=0, stage=train_32
    resources: x=1

rule render_report:
    input: c
"""


def test_jobs_are_read_from_the_dry_run():
    config = load_config(ROOT / "configs" / "nano.yaml")
    jobs = planned_jobs(config, DRY_RUN)
    assert [(job.rule, job.local) for job in jobs] == [("train_stage", False), ("render_report", True)]
    assert jobs[0].wildcards == {"arm": "arpo", "seed": "0", "stage": "train_32"}
    prices = read_prices(PRICES_FILE)
    text = render(Plan(config, jobs, ["No Docker."]), prices)
    assert "train_stage" in text and "measured" in text
    assert text.endswith("\nA run here would refuse to start: No Docker.\n")
    assert render(Plan(config, [], []), prices) == "Study 'nano': nothing to do.\n"


def test_all_other_rules_are_local():
    submitted = set()
    for path in (ROOT / "rules").glob("*.smk"):
        for text in path.read_text().split("\nrule ")[1:]:
            body = text.split("\nrule ")[0]
            name = body.split(":", 1)[0].strip()
            if "localrule: True" not in body:
                submitted.add(name)
    assert submitted == SUBMITTED


def test_overlays_are_laid_over_one_another(tmp_path):
    over = write(tmp_path / "over.yaml", "seeds: [3]\narms: {grpo: null}\n")
    config = load_config(ROOT / "configs" / "ci.yaml", over)
    assert config.seeds == [3] and set(config.arms) == {"base", "arpo"}
    with pytest.raises(UserError, match="nowhere"):
        load_config(tmp_path / "nowhere.yaml")


def test_status_says_how_far_each_part_is(tmp_path):
    config = load_config(ROOT / "configs" / "ci.yaml")
    results = tmp_path / "results" / "ci"
    stage = results / "models" / "arpo" / "seed_0" / "stage_train_4"
    (stage / "checkpoints" / "logs").mkdir(parents=True)
    row = {"step": 1, "reward_before": 0.25, "success": 0.5, "env_errors": 2, "seconds": {"total": 36.0}}
    (stage / "metrics.jsonl").write_text(json.dumps(row) + '\n{"step": 2, "rew')
    base = results / "episodes" / "base" / "seed_0" / "stage_base"
    base.mkdir(parents=True)
    beat = {"time": time.time() - 1000, "done": 5, "total": 20, "per_hour": 60.0, "outcomes": {"success": 5}}
    (base / "heartbeat.json").write_text(json.dumps(beat))
    lines = {line.name: line for line in study_status(config, tmp_path)}
    training = lines["train arpo seed 0 train_4"]
    assert (training.state, training.progress) == ("running", "1/2 steps")
    assert training.details == "reward 0.250, success 0.50, 1600 episodes/h, env errors 2, ETA 0:00:36"
    rollouts = lines["rollouts base seed 0 base"]
    assert (rollouts.state, rollouts.progress) == ("silent", "5/20 episodes")
    assert rollouts.details == "success 5, 60 episodes/h, ETA 0:15:00"
    (base / "heartbeat.json").write_text(json.dumps({**beat, "kept": 3, "outcomes": {"success": 2}}))
    again = {line.name: line for line in study_status(config, tmp_path)}["rollouts base seed 0 base"]
    assert again.details.startswith("kept 3, success 2, "), "what earlier jobs finished is kept"
    assert lines["train grpo seed 0 train_4"].state == "waiting"
    text = render_status(
        config, lines.values(), [{"rule": "train_stage", "job": "7", "nodes": "gpu1", "gpus": "0,1"}]
    )
    many = [{"rule": "train_stage", "job": str(job), "nodes": "gpu1", "gpus": ""} for job in range(1, 41)]
    shown = render_status(config, lines.values(), many)
    assert "(28 before these)" in shown and "job 29 on" in shown and "job 28 on" not in shown
    assert "1 running, 1 silent, 5 waiting" in text
    assert "train_stage: job 7 on gpu1, GPUs 0,1" in text


def test_a_slurm_job_records_its_place(tmp_path, monkeypatch):
    assert describe_allocation({}) is None
    for name, value in {
        "SLURM_JOB_ID": "12", "SLURM_ARRAY_JOB_ID": "10", "SLURM_ARRAY_TASK_ID": "2",
        "SLURM_JOB_NODELIST": "gpu[1-2]", "CUDA_VISIBLE_DEVICES": "0,1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    record_allocation(tmp_path / "study", "train_stage", "out")
    record_allocation(tmp_path / "study", "train_stage", "out")
    jobs = read_jobs(tmp_path / "study")
    assert len(jobs) == 2
    assert (jobs[0]["job"], jobs[0]["nodes"], jobs[0]["gpus"]) == ("10_2", "gpu[1-2]", "0,1")
    assert jobs[0]["commit"] == code_version()


def test_signals_are_a_notice_while_listening(monkeypatch):
    monkeypatch.setenv(attempts.GRACE, "80")
    before = signal.getsignal(signal.SIGTERM)
    with attempts.listening() as heard:
        assert not heard.came and not heard.over()
        os.kill(os.getpid(), attempts.WARNING)
        assert heard.came and not heard.over()
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard.over(), "SIGTERM leaves no time"
    assert signal.getsignal(signal.SIGTERM) is before


def test_without_a_time_a_notice_ends_at_once(monkeypatch):
    monkeypatch.delenv(attempts.GRACE, raising=False)
    heard = attempts.Notice(attempts.grace_of())
    heard.give()
    assert heard.over()


def test_other_threads_cannot_listen():
    found = []

    def listen() -> None:
        with attempts.listening() as heard:
            found.append(heard.came)

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert found == [False]


def test_scratch_folders_must_have_short_paths(monkeypatch, tmp_path):
    monkeypatch.setenv("ARPO_TMP", str(tmp_path / ("x" * 50)))
    with pytest.raises(UserError, match="slurm/site"):
        short_root()
    monkeypatch.delenv("ARPO_TMP")
    assert short_root() == Path("/tmp")


def test_every_key_of_the_site_file_is_documented():
    page = (ROOT / "docs" / "cluster.md").read_text()
    missing = [name for name in Site.model_fields if f"`{name}" not in page]
    assert missing == []


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (Stopped("The training was stopped by a signal."), 75, "stopped by a signal"),
        (asyncio.CancelledError(), 75, "finished episodes are kept"),
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), 2, "The disk is full (/x/y)"),
    ],
)
def test_a_job_that_ends_early_says_so_in_one_sentence(tmp_path, monkeypatch, capsys, error, status, words):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    raw = yaml.safe_load((ROOT / "configs" / "ci.yaml").read_text())
    with pytest.raises(SystemExit) as ended, job(SimpleNamespace(config=raw, log=[str(tmp_path / "log")])):
        raise error
    assert ended.value.code == status
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1


def test_other_errors_of_files_are_not_hidden(tmp_path):
    raw = yaml.safe_load((ROOT / "configs" / "ci.yaml").read_text())
    with pytest.raises(FileNotFoundError), job(SimpleNamespace(config=raw, log=[str(tmp_path / "log")])):
        (tmp_path / "nowhere").read_text()


def test_more_nodes_than_a_partition_has_are_refused(cluster, monkeypatch):
    config = load_config(ROOT / "configs" / "paper.yaml")
    resources.check_nodes(config)
    monkeypatch.setattr(profile, "active", make_profile(Site()))
    with pytest.raises(UserError, match=r"training\.nodes is 2 \(grpo\), but the partition 'accel' has 1"):
        resources.check_nodes(config)


def test_partitions_are_read():
    text = "cpu*|1:00:00|3|(null)\ngpu|infinite|2|gpu:h200:4\ngpu|infinite|1|gpu:h200:8(S:0)\n"
    cpu, gpu = slurm.partitions(lambda *command: text)
    assert (cpu.name, cpu.default, cpu.gpus, cpu.minutes, cpu.nodes) == ("cpu", True, {}, 60, 3)
    assert (gpu.name, gpu.gpus, gpu.minutes, gpu.nodes) == ("gpu", {"h200": 8}, None, 3)


def with_training(name: str, **keys: Any) -> StudyConfig:
    raw = load_config(ROOT / "configs" / f"{name}.yaml").model_dump()
    return StudyConfig.model_validate(merge(raw, keys))


@pytest.mark.parametrize("run", ["r1_2b", "r2_2b", "r5a_2b_seed", "r5b_2b_seed", "r6_2b", "u3_7b_x2"])
def test_the_memory_of_an_update_is_that_of_the_measured_runs(run: str) -> None:
    found = json.loads((ROOT / "benchmarks" / "results" / "gpu" / f"{run}.json").read_bytes())
    policy = ("max_images", "max_steps", "max_new_tokens", "max_pixels", "max_model_len")
    config = with_training(
        "seed_2b",
        size=found["shape"],
        desktop={"screen": found["screenshot"][:2]},
        policy={key: found["policy"][key] for key in policy},
        training={key: found["training"][key] for key in ("speed", "gpus", "offload", "micro_batch")},
    )
    need = memory_need(config, "arpo")
    measured = found["steps"][-1]["verl"]["actor/perf/max_memory_allocated_gb"]  # which are GiB
    assert need is not None and need.basis == "measured"
    assert need.update - CUDA_GIB == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize("line", (ROOT / "benchmarks/results/gpu/memory.jsonl").read_text().splitlines())
def test_the_memory_of_adapters_is_the_measured_one(line: str) -> None:
    found = json.loads(line)
    size, _, tower = found["case"].split("_")
    config = with_training(
        "seed_2b",
        size=size,
        desktop={"screen": found["screen"]},
        policy={
            "max_images": found["screens"],
            "max_steps": found["screens"],
            "max_model_len": found["tokens"],
        },
        training={
            "lora": {"rank": found["rank"], "alpha": 64},
            "speed": {"freeze_vision": tower == "frozen"},
        },
    )
    need = memory_need(config, "arpo")
    assert need is not None and need.basis == "measured"
    assert need.update - CUDA_GIB == pytest.approx(found["peak_gib"], rel=0.02)
    assert 1.1 < found["reserved_gib"] / found["peak_gib"] < 1.3  # SLACK


def test_adapters_make_room_and_what_is_not_measured_says_so() -> None:
    small, full = (memory_need(with_training(name), "arpo") for name in ("seed_2b_small", "seed_2b"))
    assert small is not None and full is not None
    assert small.most < 22.5 < full.most
    assert "from measured runs: cards of" in str(small) and "24 GB" in str(small)
    assert "24 GB" not in str(full) and "80 GB" in str(full)
    tower = with_training("seed_2b_small", training={"speed": {"freeze_vision": False}})
    assert memory_need(tower, "arpo").update > small.update  # type: ignore[union-attr]
    both = with_training("seed_2b_small", training={"offload": False})
    assert memory_need(both, "arpo").rollouts > small.rollouts  # type: ignore[union-attr]
    whole = memory_need(with_training("seed_2b", size="7b"), "arpo")
    assert "an estimate: no single card" in str(whole)
    assert memory_need(load_config(ROOT / "configs" / "nano.yaml"), "arpo") is None


@pytest.mark.parametrize(
    ("size", "quantization", "said"),
    [
        ("7b", None, "about 20 GiB at least."),
        ("7b_fp8", "fp8", "about 13 GiB at least (serving.quantization: fp8)."),
        ("7b_4bit", "bitsandbytes", "about 10 GiB at least (serving.quantization: bitsandbytes)."),
    ],
)
def test_what_serves_reduced_weights_needs_less_memory(size, quantization, said) -> None:
    config = load_config(ROOT / "configs" / "chrome_10.yaml")
    serving = config.serving.model_copy(update={"quantization": quantization})
    reduced = StudyConfig.model_validate(
        config.model_copy(update={"size": size, "serving": serving}).model_dump()
    )
    job = PlannedJob("collect_rollouts", False, {}, JobEstimate(hours=5, gpus=1, disk_gb=0, episodes=200))
    text = render(Plan(reduced, [job], []), read_prices(PRICES_FILE))
    assert f"Memory of each GPU that serves: computed, {said}" in text


def test_what_reduced_weights_save_is_what_vllm_said_of_the_7b() -> None:
    def took(name: str) -> float:
        ran = json.loads((ROOT / f"benchmarks/results/gpu/serving_7b_{name}.json").read_bytes())
        return float(ran["ours"]["by_log"]["weights_gib"])

    memory = all_costs()["7b"].memory_gib
    assert memory is not None and took("weights") < memory.serving
    assert {name: took("weights") - took(name) for name in memory.saved} == pytest.approx(
        memory.saved, abs=0.1
    )


def test_money_energy_and_tokens_are_those_of_the_users_prices(tmp_path: Path) -> None:
    prices = read_prices(
        write(tmp_path / "p.yaml", "source: ours\ncard: L4\nusd_per_gpu_hour: [1, 2]\nwatts: 100\n")
    )
    config = load_config(ROOT / "configs" / "seed_2b.yaml")
    job = PlannedJob("train_stage", False, {}, JobEstimate(hours=5, gpus=2, disk_gb=0, episodes=200))
    text = render(Plan(config, [job], []), prices)
    assert "Money: 10.0 GPU-hours of an L4 are 10 to 20 USD (ours)" in text
    assert "Energy of the GPUs: 1.0 kWh (100 W, not stated)" in text
    assert "other cards" not in text
    theirs = render(Plan(config, [job], []), read_prices(PRICES_FILE))
    assert "may take more of them: A100 80 GB 1.19 to 3.67, " in theirs and "A40 48 GB 0.44, " in theirs
    assert "Tokens of 200 episodes of 15 steps, at most: 0.3 million written" in text
    for broken, says in (("card: [", "no YAML|YAML"), ("card: L4\n", "'source': .*data/cluster/prices")):
        with pytest.raises(UserError, match=rf"p\.yaml.*({says})"):
            read_prices(write(tmp_path / "p.yaml", broken))
