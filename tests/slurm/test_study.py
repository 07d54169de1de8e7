"""A whole small study on a virtual cluster: real desktops, vLLM, verl, Ray, two accidents in the training.

First the job is told to end (as before a time limit or a pre-emption), later its node loses power. One run
serves all checks here.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import psutil
import pytest

from arpo_replica.cluster.allocation import read_jobs
from arpo_replica.cluster.plan import load_overlaid
from arpo_replica.config.models import StudyConfig
from arpo_replica.training.checkpoints import checkpoints
from slurm.cluster import Cluster
from slurm.conftest import SITE, Checkout

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1500)]
STAGE = "results/slurm/models/arpo/seed_0/stage_train_4"


class Story:
    """What happened."""

    def __init__(self, checkout: Checkout) -> None:
        self.checkout, self.stage = checkout, checkout.root / STAGE
        self.saved_at_notice: list[int] = []
        self.left_after_accident: list[str] = []
        self.jobs_of_training: list[str] = []

    def rows(self) -> list[dict]:
        """Steps of the training so far."""
        path = self.stage / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def steps_of(self, attempt: int) -> int:
        """Steps that an attempt has finished."""
        return sum(row["attempt"] == attempt for row in self.rows())

    def processes(self) -> list[str]:
        """Living processes of the training."""
        found = []
        for process in psutil.process_iter():
            try:
                ours = process.environ().get("ARPO_JOB", "").startswith(str(self.stage))
                if ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(" ".join(process.cmdline()))
            except psutil.Error:
                continue
        return found


def wait_for(condition: Callable[[], object], seconds: float, words: Callable[[], str]) -> None:
    """Poll until true; fails with ``words``."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, words()
        time.sleep(0.2)


def training_job(checkout: Checkout, but: list[str]) -> str:
    """Slurm's number of the training job that runs now."""
    for record in reversed(read_jobs(checkout.root / "results" / "slurm")):
        if record["rule"] == "train_stage" and record["job"] not in but:
            return str(record["job"])
    raise AssertionError(checkout.said()[-3000:])


@pytest.fixture(scope="module")
def story(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Story:
    """The study, from an empty folder to its report."""
    checkout = Checkout(tmp_path_factory.mktemp("study") / "checkout", cluster)
    story = Story(checkout)
    process = checkout.start("--set-resources", "train_stage:gres='gpu:2'")

    def words() -> str:
        logs = sorted((checkout.root / "results" / "slurm_logs").rglob("*.log"))
        return checkout.said()[-3000:] + "".join(path.read_text()[-2000:] for path in logs[-2:])

    def goes_on() -> bool:
        assert process.poll() is None, words()
        return True

    try:
        wait_for(lambda: goes_on() and story.steps_of(1) >= 2, 600, words)
        first = training_job(checkout, [])
        cluster.command("scancel", "--signal=URG", first)
        wait_for(lambda: first not in cluster.jobs(), 90, words)
        story.saved_at_notice = checkpoints(story.stage / "checkpoints")
        wait_for(lambda: goes_on() and story.steps_of(2) >= 1, 300, words)
        second = training_job(checkout, [first])
        node = cluster.show(second)["BatchHost"]
        cluster.lose_node(node)
        deadline = time.monotonic() + 40
        while story.processes() and time.monotonic() < deadline and second in cluster.jobs():
            time.sleep(0.2)
        story.left_after_accident = story.processes()
        cluster.start_node(node)
        cluster.command("scontrol", "update", f"nodename={node}", "state=resume")
        story.jobs_of_training = [first, second]
        status = process.wait(700)
        assert status == 0, words()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(120)
    return story


def test_a_training_that_is_told_to_end_saves_first(story: Story) -> None:
    assert len(story.saved_at_notice) == 1
    assert story.saved_at_notice[0] >= 2


def test_the_next_job_goes_on_from_there(story: Story) -> None:
    rows = story.rows()
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert {row["attempt"] for row in rows if row["step"] <= story.saved_at_notice[0]} == {1}
    assert rows[-1]["attempt"] == 3, "notice, node failure, end: three attempts"


def test_a_lost_node_leaves_no_process(story: Story) -> None:
    assert story.left_after_accident == []


def test_gpu_jobs_got_their_gpus_and_others_the_cpu_partition(story: Story) -> None:
    places = read_jobs(story.checkout.root / "results" / "slurm")
    trainings = [place for place in places if place["rule"] == "train_stage"]
    assert len({place["job"] for place in trainings}) == 3
    for place in trainings:
        assert len(place["gpus"].split(",")) == 2
        assert place["nodes"].startswith("gpu")
    rollouts = [place for place in places if place["rule"] == "collect_rollouts"]
    assert len(rollouts) == 2
    assert {(place["nodes"], place["gpus"]) for place in rollouts} == {("cpu1", "")}


def test_the_page_says_where_it_was_computed(story: Story) -> None:
    assert (story.checkout.root / "reports" / "slurm" / "index.html").is_file()
    origin = json.loads((story.checkout.root / "results" / "slurm" / "provenance.json").read_text())
    assert {job["rule"] for job in origin["cluster_jobs"]} >= {"train_stage", "collect_rollouts"}


def test_caches_stay_in_the_study(story: Story) -> None:
    assert (story.checkout.root / "results" / "_cache").is_dir()


def test_status_reads_the_finished_study(story: Story) -> None:
    from arpo_replica.cluster.status import study_status

    root = story.checkout.root
    config: StudyConfig = load_overlaid([root / "configs" / "ci.yaml", root / "small.yaml"])
    assert {line.state for line in study_status(config, root)} == {"done"}


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


def test_two_nodes_train_together(story: Story, cluster: Cluster) -> None:
    """verl over Ray over two nodes of one job: each holds half of the trainer's state."""
    checkout = story.checkout
    (checkout.root / "slurm" / "site.yaml").write_text(SITE + "partitions: {cpu: gpu}\nretries: 0\n")
    stage = "results/slurm/models/arpo/seed_0/stage_train_two"
    more = ("two_nodes.yaml", "--rerun-triggers", "mtime", "--", f"{stage}/manifest.json")
    assert checkout.run(*more) == 0, checkout.said()[-3000:]
    work = checkout.root / stage / "checkpoints"
    saved = sorted(path.name for path in (work / "global_step_2" / "actor").glob("model_world_size_2_*.pt"))
    assert saved == ["model_world_size_2_rank_0.pt", "model_world_size_2_rank_1.pt"]
    place = read_jobs(checkout.root / "results" / "slurm")[-1]
    assert place["rule"] == "train_stage" and place["host"]
    assert (work / "logs" / "ray_001.log").is_file()
    assert cluster.jobs() == []
