"""What a step amounts to: hand-worked numbers, before and after replay."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from arpo_replica.config.training import ReplayConfig, StageConfig, TrainingConfig
from arpo_replica.training.metrics import (
    Rollout,
    common_reason,
    in_updates,
    lost_share,
    measure,
    rows_per_update,
    too_many_lost,
)
from arpo_replica.training.replay import Group, ReplayBuffer, Stored

RECIPE = TrainingConfig(
    stages=[StageConfig(name="s", split="s", steps=1)], tasks_per_step=2, rollouts_per_task=4
)


def group(
    task: str,
    scores: list[float],
    errors: list[int],
    attempts: int = 1,
    step: int = 1,
    version: int | None = None,
) -> list[Rollout]:
    """Rollouts under the paper's reward, score - (1 if unparsable)."""
    return [
        Rollout(
            session=number,
            keys=(f"{task}_{number}_0", f"{task}_{number}_1"),
            images=((0, 2), (1, 2)),
            task=task,
            rollout=number,
            score=score,
            reward=score - float(error > 0),
            format_errors=error,
            attempts=attempts,
            turns=3,
            step=step,
            version=step - 1 if version is None else version,
        )
        for number, (score, error) in enumerate(zip(scores, errors, strict=True))
    ]


def test_reward_and_score_before_and_after_a_replacement() -> None:
    """Failed group: scores 0, first two unparsable. Its first rollout gives way to a clean success.

    Before: rewards -1 -1 0 0 | 1 0 0 -1 -> mean -2/8; scores 0 0 0 0 | 1 0 0 0 -> 1/8.
    After:  rewards  1 -1 0 0 | 1 0 0 -1 -> mean  0/8; scores 1 0 0 0 | 1 0 0 0 -> 2/8.
    """
    groups = [group("a", [0, 0, 0, 0], [1, 1, 0, 0]), group("b", [1, 0, 0, 0], [0, 0, 0, 1])]
    buffer = ReplayBuffer(ReplayConfig(enabled=True), seed=0)
    buffer.store("a", Stored("old", 3))
    plan = buffer.plan([Group(g[0].task, tuple(r.score for r in g)) for g in groups])
    assert [(swap.group, swap.rollout) for swap in plan.swaps] == [(0, 0)]
    found = measure(
        plan, groups, {(0, 0): (1.0, 1.0)}, step=8, lost=0, retries=2, refills=0, success_above=0.5
    )
    assert found["arpo/reward_before"] == pytest.approx(-0.25)
    assert found["arpo/reward_after"] == pytest.approx(0.0)
    assert found["arpo/score_before"] == pytest.approx(0.125)
    assert found["arpo/score_after"] == pytest.approx(0.25)
    assert found["arpo/success"] == pytest.approx(0.125)
    assert found["arpo/unparsable"] == pytest.approx(3 / 8)
    assert found["arpo/replay_age"] == 5
    assert (found["arpo/failed_groups"], found["arpo/swapped_groups"]) == (1, 1)
    assert found["arpo/varying_groups"] == 2
    assert found["arpo/sequences"] == 16


def test_a_group_varies_by_its_rewards_after_replay() -> None:
    same = group("a", [0, 0, 0, 0], [0, 0, 0, 0])
    empty = ReplayBuffer(ReplayConfig(), seed=0).plan([Group("a", (0.0,) * 4)])
    options = {"step": 1, "lost": 0, "retries": 0, "refills": 0, "success_above": 0.5}
    assert measure(empty, [same], {}, **options)["arpo/varying_groups"] == 0
    assert measure(empty, [same], {(0, 0): (1.0, 1.0)}, **options)["arpo/varying_groups"] == 1
    # the same success by penalty alone
    penalty = group("a", [0, 0, 0, 0], [1, 0, 0, 0])
    assert measure(empty, [penalty], {}, **options)["arpo/varying_groups"] == 1


def test_lost_rollouts_count_all_their_attempts() -> None:
    plan = ReplayBuffer(ReplayConfig(), seed=0).plan([])
    groups = [group("a", [1, 0], [0, 0], attempts=2)]
    found = measure(plan, groups, {}, step=1, lost=2, retries=2, refills=0, success_above=0.5)
    assert found["arpo/lost_rollouts"] == 2
    assert found["arpo/env_errors"] == 2 * 1 + 2 * 3


def test_a_lost_rollout_that_was_begun_again_counts_all_rounds() -> None:
    """Three attempts a round. One came in the second round, at its first attempt; two were lost in both."""
    plan = ReplayBuffer(ReplayConfig(), seed=0).plan([])
    groups = [group("a", [1, 0], [0, 0]), group("b", [1], [0], attempts=4)]
    found = measure(plan, groups, {}, step=1, lost=2, retries=2, refills=1, success_above=0.5)
    assert found["arpo/refilled_rollouts"] == 1
    assert found["arpo/lone_groups"] == 1
    assert found["arpo/env_errors"] == 3 + 2 * 6


def test_staleness_counts_updates_since_the_oldest_weights() -> None:
    """Step 5 updates the weights of version 4."""
    plan = ReplayBuffer(ReplayConfig(), seed=0).plan([])
    options = {"step": 5, "lost": 0, "retries": 0, "refills": 0, "success_above": 0.5}
    fresh = group("a", [1, 0], [0, 0], step=5)
    assert measure(plan, [fresh], {}, **options)["arpo/staleness_max"] == 0
    carried = group("b", [1, 0, 0, 0, 0, 0], [0] * 6, step=4, version=2)
    found = measure(plan, [fresh, carried], {}, **options)
    assert (found["arpo/staleness_max"], found["arpo/stale_rollouts"]) == (2, 6)
    assert found["arpo/staleness_mean"] == pytest.approx(1.5)


def test_the_share_of_lost_rollouts_is_over_four_steps(tmp_path: Path) -> None:
    assert lost_share([], RECIPE) == 0
    assert lost_share([8], RECIPE) == 1.0
    assert lost_share([8, 0, 0, 0], RECIPE) == 0.25
    assert lost_share([8, 0, 0, 0, 0], RECIPE) == 0.0
    assert too_many_lost([4], RECIPE, tmp_path) is None  # half is not more than half
    sentence = too_many_lost([5], RECIPE, tmp_path)
    assert sentence is not None and "62%" in sentence and "training.env_error_share_max (50%)" in sentence
    assert "\n" not in sentence


def test_a_stop_names_the_commonest_reason(tmp_path: Path) -> None:
    """Two conversations outgrew the context at different lengths: one reason, and it names the key."""
    reasons = [
        "PolicyError: the conversation has 2031 tokens, which leaves no room; raise policy.max_model_len",
        "DesktopError: broken.",
        "PolicyError: the conversation has 2047 tokens, which leaves no room; raise policy.max_model_len",
    ]
    for number, reason in enumerate([*reasons, None]):
        folder = tmp_path / f"rollout_{number:03d}" / "d_t"
        folder.mkdir(parents=True)
        record = {
            "outcome": "env_error" if reason else "success",
            "errors": ["first", reason] if reason else [],
        }
        (folder / "episode.json").write_text(json.dumps(record))
    assert common_reason(tmp_path) == reasons[2]
    assert common_reason(tmp_path / "none") is None
    sentence = too_many_lost([8], RECIPE, tmp_path)
    assert sentence is not None and "raise policy.max_model_len), more than" in sentence
    assert "\n" not in sentence


def test_several_updates_of_a_step_mix_the_domains() -> None:
    groups = [[name] for name in "aaaabbbb"]
    one = RECIPE.model_copy(update={"tasks_per_step": 8, "minibatch_tasks": 8})
    assert in_updates(groups, one, "0.1") == groups  # type: ignore[type-var, arg-type]
    two = one.model_copy(update={"minibatch_tasks": 4})
    mixed = [in_updates(groups, two, f"0.{step}") for step in range(8)]  # type: ignore[arg-type]
    assert all(sorted(order) == groups for order in mixed)
    assert len({str(order) for order in mixed}) > 4
    assert all({"a", "b"} == {name for (name,) in order[:4]} for order in mixed)


@pytest.mark.parametrize(
    ("updates", "parallel", "rows", "each"),
    [
        (1, 1, 16, 16),
        (1, 1, 13, 16),  # three rollouts lost
        (1, 1, 42, 44),  # a history that was cut: more rows than rollouts, one update
        (2, 1, 42, 24),
        (1, 3, 16, 24),
        (1, 32, 16, 64),
    ],
)
def test_a_step_has_the_updates_of_its_recipe(updates: int, parallel: int, rows: int, each: int) -> None:
    """4 tasks of 4 rollouts, micro batches of 2: as many rows to every GPU, in whole micro batches."""
    recipe = RECIPE.model_copy(
        update={
            **{"tasks_per_step": 4, "minibatch_tasks": 4 // updates},
            **{"rollouts_per_task": 4, "micro_batch": 2},
        }
    )
    assert rows_per_update(recipe, parallel, rows) == each
