"""A whole small study on a virtual cluster: desktops, vLLM, verl, Ray, and four accidents (``story``)."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess

import pytest

from arpo_replica.base.environments import ROOT, python_of
from arpo_replica.base.slurm import read_jobs
from arpo_replica.config import load_config
from arpo_replica.config.models import StudyConfig
from arpo_replica.workflow.status import study_status
from slurm.cluster import Cluster, free_ports
from slurm.conftest import SITE, Checkout, end
from slurm.daemons import wait_until
from slurm.story import STUDY, Story, equal_parts

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1500)]
STEPS = 10


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, tiny_model, tmp_path_factory) -> Checkout:
    """The same study on this machine alone, without accidents."""
    checkout = Checkout(tmp_path_factory.mktemp("alone") / "checkout", cluster)
    checkout.prepare(tiny_model)
    return checkout


@pytest.fixture(scope="module")
def story(cluster: Cluster, tiny_model, undisturbed: Checkout, tmp_path_factory) -> Story:
    """The study, from an empty folder to its report; beside it the undisturbed one."""
    story = Story(Checkout(tmp_path_factory.mktemp("study") / "checkout", cluster))
    alone = undisturbed.start(options=["--cores", "1"])
    try:
        story.tell(tiny_model)
        assert alone.wait(600) == 0, undisturbed.said()[-3000:]
    finally:
        end(alone)
    return story


def test_a_training_that_is_told_to_end_saves_first(story: Story) -> None:
    assert len(story.saved_at_notice) == 1
    assert 1 <= story.saved_at_notice[0] < STEPS


def test_the_next_job_goes_on_from_there(story: Story) -> None:
    rows = story.rows()
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert {row["attempt"] for row in rows if row["step"] <= story.saved_at_notice[0]} == {1}
    assert rows[-1]["attempt"] == 3, "notice, node failure, end: three attempts"


def test_a_lost_node_leaves_no_process(story: Story) -> None:
    assert story.left_after_accident == []


def test_a_vllm_that_does_not_start_is_told_in_one_sentence(story: Story) -> None:
    said = story.said_without_vllm
    assert "mend what the end of its log names" in said
    assert "Traceback" not in said.split("vLLM ended with status")[0]


def test_a_full_disk_is_told_in_one_sentence(story: Story) -> None:
    said = story.said_with_full_disk
    assert "free space there and run again: what is finished is kept." in said
    assert "Traceback" not in said


def test_episodes_finished_before_the_disk_was_full_are_untouched(story: Story) -> None:
    names = {path.parent for path in story.kept}
    assert 1 <= len(names) < 8
    now = story.episodes()
    assert {path: now.get(path) for path in story.kept} == story.kept
    assert len({path.parent for path in now}) == 8, "4 tasks, 2 trials"


def test_the_report_is_that_of_the_undisturbed_study(story: Story, undisturbed: Checkout) -> None:
    here, there = equal_parts(story.root / STUDY), equal_parts(undisturbed.root / STUDY)
    for part in here:
        assert here[part] == there[part], part
    assert len(here["texts"]) == 16 and len(here["manifests"]) == 2
    trained = here["manifests"]["models/arpo/seed_0/stage_train_4/manifest.json"]
    assert json.loads(trained)["sha256"] != json.loads(trained)["parent"], "nothing was learnt"


def test_gpu_jobs_got_their_gpus_and_others_the_cpu_partition(story: Story) -> None:
    trainings = story.jobs("train_stage", "arpo")
    assert len({place["job"] for place in trainings}) == 3
    for place in trainings:
        assert len(place["gpus"].split(",")) == 2
        assert place["nodes"].startswith("gpu")
    rollouts = [*story.jobs("collect_rollouts", "base"), *story.jobs("collect_rollouts", "arpo")]
    assert len(rollouts) == 4, "no vLLM, no space, success; the trained policy"
    assert {(place["nodes"], place["gpus"]) for place in rollouts} == {("cpu1", "")}


def test_the_page_says_where_it_was_computed(story: Story) -> None:
    assert (story.root / "reports" / "slurm" / "index.html").is_file()
    origin = json.loads((story.root / STUDY / "provenance.json").read_text())
    assert {job["rule"] for job in origin["cluster_jobs"]} >= {"train_stage", "collect_rollouts"}


def test_caches_stay_in_the_study(story: Story) -> None:
    assert (story.root / "results" / "_cache").is_dir()
    assert not [path for path in story.home.rglob("*") if path.is_file()]


def test_status_reads_the_finished_study(story: Story) -> None:
    config: StudyConfig = load_config(story.root / "configs" / "ci.yaml", story.root / "small.yaml")
    assert {line.state for line in study_status(config, story.root)} == {"done"}


def test_editing_the_report_template_submits_nothing(story: Story) -> None:
    checkout = story.checkout
    template = next((checkout.root / "src" / "arpo_replica" / "report").rglob("*.j2"))
    template.write_text(template.read_text() + "\n")
    page = checkout.root / "reports" / "slurm" / "index.html"
    before, rendered = checkout.submitted(), page.stat().st_mtime_ns
    assert checkout.run() == 0, checkout.said()[-3000:]
    assert checkout.submitted() == before
    assert page.stat().st_mtime_ns > rendered


def test_nothing_is_left(story: Story, cluster: Cluster) -> None:
    assert story.processes() == []
    assert cluster.jobs() == []


def test_two_nodes_train_together_on_desktops_of_a_third(story: Story, cluster: Cluster) -> None:
    """verl over Ray over two nodes of one job; a job on the CPU partition lends them real desktops."""
    checkout, root = story.checkout, story.root
    token, (port,) = secrets.token_urlsafe(32), free_ports(1)
    shutil.copy(ROOT / "scripts" / "train_stage.py", root / "scripts" / "train_stage.py")
    (root / "slurm" / "site.yaml").write_text(SITE + "partitions: {cpu: gpu}\nretries: 0\n")
    remote = (
        f"desktop: {{provider: remote, remote: {{pools: ['http://127.0.0.1:{port}'], lends: process}}}}\n"
    )
    (root / "pool.yaml").write_text(remote)
    lend = f"{python_of('controller')} -m arpo_replica serve-desktops --config configs/ci.yaml --port {port}"
    pool = subprocess.run(
        ["sbatch", "--parsable", "-p", "cpu", "-o", str(root / "pool.log"), "--wrap", lend],
        env={**cluster.environment, "ARPO_DESKTOP_TOKEN": token},
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    try:
        said = root / "pool.log"
        wait_until(lambda: said.exists() and "127.0.0.1" in said.read_text(), 120, "a pool that listens")
        assert cluster.show(pool)["Partition"] == "cpu"
        stage = str(STUDY / "models/arpo/seed_0/stage_train_two")
        more = ("two_nodes.yaml", "pool.yaml", "--rerun-triggers", "mtime", "--", f"{stage}/manifest.json")
        status = checkout.run(*more, ARPO_DESKTOP_TOKEN=token)
        assert status == 0, checkout.said()[-3000:]
    finally:
        cluster.command("scancel", pool)
    work = root / stage / "checkpoints"
    saved = sorted(path.name for path in (work / "global_step_1" / "actor").glob("model_world_size_2_*.pt"))
    assert saved == ["model_world_size_2_rank_0.pt", "model_world_size_2_rank_1.pt"], "each holds half"
    place = read_jobs(root / STUDY)[-1]
    assert (place["rule"], place["nodes"]) == ("train_stage", "gpu[1-2]")
    assert (work / "logs" / "ray_001.log").is_file()
    rows = [json.loads(line) for line in (root / stage / "metrics.jsonl").read_text().splitlines()]
    assert [row["env_errors"] for row in rows] == [0], "the desktops were there"
    wait_until(lambda: cluster.jobs() == [], 60, "an empty queue")
    written = [*root.glob("results/slurm_logs/**/*.log"), *(root / stage).rglob("*.log"), checkout.log]
    assert not [path for path in written if token in path.read_text(errors="replace")]
    assert token not in os.environ.values()
