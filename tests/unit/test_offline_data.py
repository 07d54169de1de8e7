"""What offline arms learn from, and what is refused before any training."""

from __future__ import annotations

from pathlib import Path

import pytest

from arpo_replica.base.errors import UserError
from arpo_replica.config.models import StudyConfig
from arpo_replica.evaluation.provenance import rule_of
from arpo_replica.policy.prompt import build_messages
from arpo_replica.training.job import OfflineJob
from arpo_replica.training.offline.data import digest, make_samples, read_rollouts
from arpo_replica.training.offline.run import episodes_config, prepare_work, train_offline
from offline_episodes import BAD, BASE_SHA256, END, GOOD, offline_config, write_indexes, write_rollout


@pytest.fixture
def indexes(tmp_path: Path) -> list[Path]:
    """Task t1: a success and a failure. t2: two failures, one cut off. t3: a success and a lost episode."""
    write_rollout(tmp_path, "t1", 0, [GOOD, END])
    write_rollout(tmp_path, "t1", 1, [GOOD, BAD, END], "failure")
    write_rollout(tmp_path, "t2", 0, [BAD, END], "failure")
    write_rollout(tmp_path, "t2", 1, [BAD, BAD], "truncated")
    write_rollout(tmp_path, "t3", 0, [END])
    write_rollout(tmp_path, "t3", 1, [BAD], "env_error")
    return write_indexes(tmp_path)


def test_rejection_sampling_takes_every_reply_of_the_successes(indexes: list[Path]) -> None:
    samples = make_samples(offline_config(), "rejection", 0, read_rollouts(indexes, BASE_SHA256))
    assert sorted(sample.turn.reply for sample in samples) == sorted([GOOD, END, END])
    assert all(sample.rejected is None and sample.label is None for sample in samples)


def test_a_prompt_is_what_the_policy_saw(indexes: list[Path]) -> None:
    """The history of replies and screenshots is built by the function that serving uses."""
    config = offline_config()
    config.policy.max_images = 1
    samples = make_samples(config, "rejection", 0, read_rollouts(indexes, BASE_SHA256))
    (last,) = [sample.turn for sample in samples if len(sample.turn.messages) > 1]
    assert last.messages == build_messages("Press t1.", [GOOD], config.policy)
    assert [path.name for path in last.images] == ["step_001.webp"]


def test_dpo_pairs_the_replies_in_which_two_episodes_of_a_task_part(indexes: list[Path]) -> None:
    (pair,) = make_samples(offline_config("dpo"), "dpo", 0, read_rollouts(indexes, BASE_SHA256))
    assert pair.rejected is not None
    assert (pair.turn.reply, pair.rejected.reply) == (END, BAD)
    assert pair.turn.messages == pair.rejected.messages
    assert "t1" in str(pair.turn.images[0])


def test_dpo_takes_as_many_pairs_as_asked_for_and_no_episode_twice(tmp_path: Path) -> None:
    for trial in range(3):
        write_rollout(tmp_path, "t1", trial, [GOOD, END])
    for trial in range(3, 5):
        write_rollout(tmp_path, "t1", trial, [BAD, END], "failure")
    rollouts = read_rollouts(write_indexes(tmp_path), BASE_SHA256)
    assert len(make_samples(offline_config("dpo"), "dpo", 0, rollouts)) == 1
    pairs = make_samples(offline_config("dpo", pairs_per_task=9), "dpo", 0, rollouts)
    assert len({pair.turn.images[0].parent for pair in pairs}) == len(pairs) == 2


def test_episodes_that_say_the_same_are_no_pair(tmp_path: Path) -> None:
    write_rollout(tmp_path, "t1", 0, [GOOD, END])
    write_rollout(tmp_path, "t1", 1, [GOOD, END], "failure")
    with pytest.raises(UserError, match="'dpo'"):
        make_samples(offline_config("dpo"), "dpo", 0, read_rollouts(write_indexes(tmp_path), BASE_SHA256))


def test_kto_labels_every_reply_by_its_episode(indexes: list[Path]) -> None:
    samples = make_samples(offline_config("kto"), "kto", 0, read_rollouts(indexes, BASE_SHA256))
    assert [sample.label for sample in samples].count(True) == 3
    assert [sample.label for sample in samples].count(False) == 3 + 2 + 2


def test_a_success_with_an_unparsable_reply_teaches_nothing(tmp_path: Path) -> None:
    write_rollout(tmp_path, "t1", 0, [GOOD, "?"], format_errors=1)
    write_rollout(tmp_path, "t2", 0, [END])
    rollouts = read_rollouts(write_indexes(tmp_path), BASE_SHA256)
    assert [s.turn.reply for s in make_samples(offline_config(), "rejection", 0, rollouts)] == [END]


def test_the_seed_alone_decides_the_order(indexes: list[Path]) -> None:
    rollouts = read_rollouts(indexes, BASE_SHA256)
    config = offline_config("kto")
    orders = [[s.turn for s in make_samples(config, "kto", seed, rollouts)] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize(
    ("method", "needs"),
    [
        ("rejection", "a success"),
        ("dpo", "a task with both a success and a failure"),
        ("kto", "both successes and failures"),
    ],
)
def test_nothing_to_learn_from_names_the_keys(tmp_path: Path, method: str, needs: str) -> None:
    write_rollout(tmp_path, "t1", 0, [BAD], "failure")
    rollouts = read_rollouts(write_indexes(tmp_path), BASE_SHA256)
    with pytest.raises(
        UserError, match=rf"needs {needs}, .* 1 episodes on 'one' 0 are successes and 1"
    ) as found:
        make_samples(offline_config(method), method, 0, rollouts)
    assert str(found.value).endswith("raise offline.rollouts_per_task or choose another offline.split.")
    assert "\n" not in str(found.value)


def test_episodes_of_another_policy_are_refused(tmp_path: Path) -> None:
    write_rollout(tmp_path, "t1", 0, [GOOD], checkpoint="c" * 64)
    with pytest.raises(UserError, match="was not recorded by the policy that training starts from; delete"):
        read_rollouts(write_indexes(tmp_path), BASE_SHA256)


def test_texts_outcomes_and_screenshots_decide_the_identity(indexes: list[Path]) -> None:
    rollouts = read_rollouts(indexes, BASE_SHA256)
    first = digest(rollouts)
    assert digest(read_rollouts(indexes, BASE_SHA256)) == first
    picture = rollouts[0].directory / rollouts[0].steps[0].screenshot
    picture.write_bytes(picture.read_bytes() + b"\0")
    assert digest(rollouts) != first


@pytest.mark.parametrize(
    ("method", "keys", "message"),
    [
        ("kto", {"micro_batch": 1}, "micro_batch must be at least 2"),
        ("dpo", {"batch_size": 6, "micro_batch": 4}, "no multiple of micro_batch"),
        ("ppo", {}, "arms.ppo.offline.method"),
        ("dpo", {"lr": 1}, r"unknown key 'arms\.dpo\.offline\.lr'"),
    ],
)
def test_wrong_keys_are_named(method: str, keys: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        offline_config(method, **keys)


def test_which_arms_are_offline_and_on_what() -> None:
    config = offline_config("dpo")
    assert (config.offline_arms, config.online_arms) == (["dpo"], ["grpo"])
    assert config.offline_split == "one"
    raw = config.model_dump() | {"offline": {"split": "two"}}
    with pytest.raises(ValueError, match=r"offline\.split names the split 'two'"):
        StudyConfig.model_validate(raw)


def test_episodes_are_sampled_as_in_training() -> None:
    config = offline_config()
    config.training.temperature, config.evaluation.temperature = 1.0, 0.6
    collected = episodes_config(config).evaluation
    assert (collected.temperature, collected.splits) == (1.0, ["one"])
    assert config.evaluation.temperature == 0.6


def test_another_recipe_or_half_a_checkpoint_is_dropped(tmp_path: Path) -> None:
    job = OfflineJob(
        config=offline_config(),
        arm="rejection",
        seed=0,
        parent_model=tmp_path,
        parent_sha256=BASE_SHA256,
        indexes=[],
        out=tmp_path / "out",
    )
    prepare_work(job, {"epochs": 1})
    (job.checkpoint(2) / "model").mkdir(parents=True)
    (job.checkpoint(2) / "complete.json").write_text("{}")
    job.checkpoint(4).mkdir()
    prepare_work(job, {"epochs": 1})
    assert job.checkpoint(2).is_dir() and not job.checkpoint(4).exists()
    prepare_work(job, {"epochs": 2})
    assert not job.checkpoint(2).exists()


def test_a_manifest_of_an_offline_arm_comes_from_its_own_rule() -> None:
    path = "results/x/models/dpo/seed_0/stage_one/manifest.json"
    assert rule_of(path, ["dpo"]) == "train_offline"
    assert rule_of(path) == "train_stage"
    assert rule_of("results/x/offline/one/trial_0/episodes.jsonl") == "collect_offline_episodes"


def test_a_missing_parent_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="build that model first"):
        train_offline(
            offline_config(),
            arm="rejection",
            seed=0,
            stage="one",
            parent=tmp_path / "manifest.json",
            indexes=[],
            out=tmp_path / "out",
        )
