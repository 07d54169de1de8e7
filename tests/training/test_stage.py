"""One stage through verl, vLLM and Ray, killed in the middle and gone on with. Two starts, about two minutes.

Fake desktops whose scores follow a rule: each task succeeds once, in the first episode ever, and fails from
then on; one task's desktop breaks every time. So step by step it is known what must happen.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytestmark = [pytest.mark.cpu_env, pytest.mark.timeout(900)]
pytest.importorskip("verl")

import torch  # noqa: E402
import transformers  # noqa: E402

from arpo_replica.base.checkout import code_version  # noqa: E402
from arpo_replica.base.environments import ROOT  # noqa: E402
from arpo_replica.config import load_config  # noqa: E402
from arpo_replica.config.models import StudyConfig  # noqa: E402
from arpo_replica.policy.manifest import read_manifest  # noqa: E402
from arpo_replica.rollout.records import finished_episodes, read_episode  # noqa: E402
from training.stage_process import StageProcess  # noqa: E402

STEPS = 4


class Stage(StageProcess):
    """The stage over fake desktops, one task's of which are broken."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, small_config(), provider="training.fake_desktop:FakeProvider")
        (folder / "state").mkdir()
        self.broken = self.tasks[0]
        self.variables = {"FAKE_STATE": str(folder / "state"), "FAKE_BREAK": self.broken.id}

    def forget_unfinished_steps(self) -> None:
        """The killed attempt may have begun step 2: its episodes were not the first ones ever."""
        done = {group["task"].partition("/")[2] for row in self.rows() for group in row["tasks"]}
        for path in (self.folder / "state").iterdir():
            if path.name not in done:
                path.unlink()


def small_config() -> StudyConfig:
    """Two tasks a step, so that four tasks last two steps and the position in the data shows."""
    config = load_config(ROOT / "configs" / "demo.yaml")
    config.tasks.root = config.tasks.root.absolute()
    config.tasks.splits = {name: path.absolute() for name, path in config.tasks.splits.items()}
    config.policy.max_new_tokens = 16
    config.training.tasks_per_step = 2
    config.training.minibatch_tasks = 2
    config.training.micro_batch = 4
    config.training.save_every = 1
    config.training.stages[0].steps = STEPS
    return StudyConfig.model_validate(config.model_dump())


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    """Trained: the first attempt is killed after step 1, the second one ends."""
    stage = Stage(tmp_path_factory.mktemp("study"))
    stage.kill_when(lambda: len(stage.rows()) >= 1)
    stage.forget_unfinished_steps()
    stage.finish()
    return stage


def test_each_step_is_there_once(stage: Stage) -> None:
    rows = stage.rows()
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    attempts = [row["attempt"] for row in rows]
    assert attempts[0] == 1 and attempts[-1] == 2 and attempts == sorted(attempts)


def test_the_data_go_on_where_they_were(stage: Stage) -> None:
    """The tasks of steps 1 and 2 are all four; so are those of 3 and 4. The broken one has no group."""
    rows = stage.rows()
    healthy = {f"{task.domain}/{task.id}" for task in stage.tasks} - {
        f"{stage.broken.domain}/{stage.broken.id}"
    }
    for first in (0, 2):
        names = [group["task"] for row in rows[first : first + 2] for group in row["tasks"]]
        assert sorted(names) == sorted(healthy)


def test_failed_groups_get_a_success_of_the_first_steps_back(stage: Stage) -> None:
    """Steps 1 and 2: one success per task, nothing to repair. Steps 3 and 4: all fail, all are repaired."""
    rows = stage.rows()
    for row in rows[:2]:
        assert row["swapped_groups"] == 0
        assert all(sorted(group["scores"]) == [0.0, 0.0, 0.0, 1.0] for group in row["tasks"])
    for row in rows[2:]:
        assert row["swapped_groups"] == row["failed_groups"] == row["groups"]
        assert row["score_before"] == 0.0
        assert row["score_after"] == pytest.approx(0.25)
        assert row["grad_norm"] > 0
        assert {swap["rollout"] for swap in row["swaps"]} == {0}
        assert all(swap["step"] in (1, 2) for swap in row["swaps"])
        assert row["replay_age"] > 0
    assert [row["buffer_size"] for row in rows][-2:] == [3, 3], "a replayed trajectory was stored again"
    at_step_1 = [swap for row in rows[2:] for swap in row["swaps"] if swap["step"] == 1]
    assert at_step_1, "the buffer of the killed attempt was lost"


def test_replayed_tokens_keep_the_probabilities_of_the_policy_that_sampled_them(stage: Stage) -> None:
    """What is stored holds them; where it is replayed, the trainer's newer policy differs from them."""
    items = sorted((stage.out / "checkpoints" / "replay_items").glob("*.pt"))
    assert len(items) == 3
    for path in items:
        (item,) = torch.load(path, weights_only=False)
        sampled = item["fields"]["rollout_log_probs"][0]
        mask = item["fields"]["response_mask"][0]
        assert sampled.shape == mask.shape
        assert float(sampled[mask > 0].max()) < 0
    rows = stage.rows()
    apart = [row["probability_difference_mean"] for row in rows]
    assert min(apart[2:]) > max(apart[:2]), "the behaviour policy's were replaced by the current policy's"


def test_reward_is_the_score_minus_the_format_penalty(stage: Stage) -> None:
    """The model speaks nonsense, so every episode pays the penalty of 1."""
    for row in stage.rows():
        assert row["unparsable"] == 1.0
        assert row["reward_before"] == pytest.approx(row["score_before"] - 1.0)


def test_broken_desktops_are_counted_and_not_trained_on(stage: Stage) -> None:
    with_broken = [row for row in stage.rows() if row["groups"] == 1]
    assert len(with_broken) == 2
    attempts = stage.config.rollout.env_error_retries + 1
    for row in with_broken:
        assert (row["lost_rollouts"], row["env_errors"], row["rollouts"]) == (4, 4 * attempts, 4)
    for row in stage.rows():
        if row["groups"] == 2:
            assert (row["lost_rollouts"], row["env_errors"], row["rollouts"]) == (0, 0, 8)


def test_episodes_of_training_are_recorded(stage: Stage) -> None:
    outcomes = []
    for step in range(1, STEPS + 1):
        for rollout in range(4):
            root = stage.out / "episodes" / f"step_{step:06d}" / f"rollout_{rollout:03d}"
            found = finished_episodes(root)
            assert len(found) == 2
            for path in found.values():
                record, steps = read_episode(path)
                assert len(steps) == record.n_steps
                outcomes.append(record.outcome)
                if record.task_id == stage.broken.id:
                    assert record.hard_score is None and len(record.errors) == 3
    assert outcomes.count("env_error") == 8


def test_trainer_and_vllm_agree_on_probabilities(stage: Stage) -> None:
    """Before anything was replayed. Weights do arrive: it holds after updates too."""
    for row in stage.rows()[:2]:
        assert row["probability_correlation"] > 0.99
        assert row["probability_difference_mean"] < 0.01


def test_weights_are_published(stage: Stage) -> None:
    manifest = read_manifest(stage.out / "manifest.json", verify=True)
    assert (manifest.step, manifest.parent, manifest.seed) == (STEPS, stage.parent.sha256, 5)
    assert manifest.versions["verl"] == "0.9.1"
    assert manifest.versions["arpo-replica"] == code_version()
    folder = manifest.model_path(stage.out / "manifest.json")
    new, old = (
        transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(path, dtype=torch.float32)
        for path in (folder, stage.folder / "model")
    )
    changed = [
        name
        for (name, a), (_, b) in zip(new.named_parameters(), old.named_parameters(), strict=True)
        if not torch.equal(a, b)
    ]
    assert len(changed) > 20
    transformers.AutoProcessor.from_pretrained(folder)


def test_nothing_is_left_behind(stage: Stage) -> None:
    assert stage.processes() == []
    assert not Path(json.loads((stage.out / "checkpoints" / "job.json").read_text())["scratch"]).exists()
    kept = sorted(path.name for path in (stage.out / "checkpoints").glob("global_step_*"))
    assert kept == ["global_step_3", "global_step_4"]
