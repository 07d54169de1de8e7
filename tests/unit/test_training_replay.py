"""The replay rule: vectors of the released semantics (paper.md §3), FIFO, and the state's round trip."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arpo_replica.config.training import ReplayConfig
from arpo_replica.training.replay import Group, ReplayBuffer, Stored, Swap

ON = ReplayConfig(enabled=True)


def buffer(**options: object) -> ReplayBuffer:
    return ReplayBuffer(ON.model_copy(update=options), seed=0)


@pytest.mark.parametrize(
    ("scores", "failed"),
    [
        ([0.0] * 8, True),
        ([0.0] * 7 + [1.0], False),  # one success: mean 0.125 < 0.2, but std 0.33
        ([1.0] * 8, False),
        ([0.15] * 8, True),  # a success when stored, a failure here: the release's own contradiction
        ([0.2] * 8, False),  # the mean must be below
        ([0.1] * 4 + [0.199] * 4, True),  # population std 0.0495; the sample's would be 0.0529
        ([0.09] * 4 + [0.19] * 4, False),  # std 0.05 is not below 0.05
        ([0.0], True),
        ([], False),
    ],
)
def test_trigger(scores: list[float], failed: bool) -> None:
    assert buffer().failed(scores) is failed


@pytest.mark.parametrize("score", [math.nan, math.inf])
def test_a_score_that_is_no_number_is_refused(score: float) -> None:
    with pytest.raises(ValueError, match="no number"):
        Group("task", (score, 0.0))


def test_a_rollout_left_alone_gives_way_to_nothing() -> None:
    replay = buffer()
    replay.store("t", Stored("old", 3))
    plan = replay.plan([Group("t", (0.0,)), Group("t", (0.0, 0.0))])
    assert plan.failed_groups == 2
    assert [swap.group for swap in plan.swaps] == [1]


def test_the_format_term_plays_no_part() -> None:
    """All scores 0, half of the replies unparsable: rewards differ (std 0.5), the group has failed."""
    rewards = [0.0, -1.0] * 4
    assert statistics.pstdev(rewards) > ON.trigger_std_below
    assert buffer().failed([0.0] * 8)


def test_a_failed_group_gets_a_stored_success_in_its_first_place() -> None:
    replay = buffer()
    replay.store("t", Stored("old", 3))
    plan = replay.plan([Group("t", (0.0,) * 4), Group("t", (0.0, 1.0, 0.0, 0.0)), Group("u", (0.0,) * 4)])
    assert plan.swaps == [Swap(0, 0, Stored("old", 3))]
    assert plan.failed_groups == 2


def test_successes_serve_from_the_next_step_on() -> None:
    replay = buffer()
    plan = replay.plan([Group("t", (0.0, 1.0)), Group("t", (0.0, 0.0))])
    assert plan.swaps == []
    assert plan.store == [(0, 1)]
    replay.store("t", Stored("new", 1))
    assert replay.plan([Group("t", (0.0, 0.0))]).swaps[0].stored.name == "new"


def test_storing_is_by_score_above_the_threshold_and_never_of_what_was_replayed() -> None:
    replay = buffer()
    replay.store("t", Stored("old", 1))
    plan = replay.plan([Group("t", (0.0, 0.0)), Group("u", (0.1, 0.11, 1.0))])
    assert [swap.group for swap in plan.swaps] == [0]
    assert plan.store == [(1, 1), (1, 2)]


def test_the_buffer_is_filled_from_the_batch_before_its_replacements() -> None:
    """Scores of 0.15 are failures to the trigger and successes to the buffer: the rollout that gives way is
    stored like the others, and what replaced it is not."""
    replay = buffer()
    replay.store("t", Stored("old", 1))
    plan = replay.plan([Group("t", (0.15,) * 8)])
    assert plan.swaps == [Swap(0, 0, Stored("old", 1))]
    assert plan.store == [(0, rollout) for rollout in range(8)]
    assert replay.names() == {"old"}, "nothing is stored before all replacements are made"


def test_first_in_first_out_per_task() -> None:
    replay = buffer(capacity_per_task=3)
    dropped = [replay.store("t", Stored(f"s{i}", i)) for i in range(5)]
    replay.store("u", Stored("other", 0))
    assert [None if entry is None else entry.name for entry in dropped] == [None, None, None, "s0", "s1"]
    assert [stored.name for stored in replay.tasks["t"]] == ["s2", "s3", "s4"]
    assert len(replay) == 4
    assert replay.names() == {"s2", "s3", "s4", "other"}


def test_the_choice_is_uniform() -> None:
    replay = buffer()
    for i in range(4):
        replay.store("t", Stored(f"s{i}", i))
    group = [Group("t", (0.0,) * 4)]
    counts = Counter(replay.plan(group).swaps[0].stored.name for _ in range(4000))
    chi2 = sum((count - 1000) ** 2 / 1000 for count in counts.values())
    assert len(counts) == 4
    assert chi2 < 16.3  # 0.1 % point, 3 degrees of freedom


def test_the_papers_variant_replaces_any_rollout() -> None:
    replay = buffer(replaced_index="random")
    replay.store("t", Stored("s", 0))
    places = Counter(replay.plan([Group("t", (0.0,) * 4)]).swaps[0].rollout for _ in range(400))
    assert set(places) == {0, 1, 2, 3}


def test_switched_off_it_only_counts() -> None:
    replay = ReplayBuffer(ReplayConfig(enabled=False), seed=0)
    before = replay.random.getstate()
    plan = replay.plan([Group("t", (0.0, 0.0)), Group("u", (1.0, 0.0))])
    assert (plan.swaps, plan.store, plan.failed_groups) == ([], [], 1)
    assert replay.random.getstate() == before


@given(st.integers(0, 2**32), st.lists(st.sampled_from(["a", "b", "c"]), max_size=40))
def test_state_round_trip(seed: int, tasks: list[str]) -> None:
    """A restored buffer holds the same and draws the same."""
    replay = ReplayBuffer(ON.model_copy(update={"replaced_index": "random"}), seed)
    for number, task in enumerate(tasks):
        replay.store(task, Stored(f"s{number}", number))
    groups = [Group(task, (0.0,) * 5) for task in "abc"]
    replay.plan(groups)
    restored = ReplayBuffer(replay.config, seed=1)
    restored.restore(json.loads(json.dumps(replay.state())))
    assert restored.tasks == replay.tasks
    assert [restored.plan(groups) for _ in range(3)] == [replay.plan(groups) for _ in range(3)]


def test_a_state_of_another_schema_is_refused() -> None:
    with pytest.raises(ValueError, match="schema"):
        buffer().restore({"schema_version": 99})


def test_advantages_after_a_swap() -> None:
    """The sheet's vector: 8 zeros, one replaced by a success -> +2.475 and -0.354 (unbiased std)."""
    replay = buffer()
    replay.store("t", Stored("s", 0))
    scores = [0.0] * 8
    swap = replay.plan([Group("t", tuple(scores))]).swaps[0]
    scores[swap.rollout] = 1.0
    mean, std = statistics.fmean(scores), statistics.stdev(scores) + 1e-6
    advantages = [(score - mean) / std for score in scores]
    assert math.isclose(advantages[0], 2.475, abs_tol=1e-3)
    assert all(math.isclose(a, -0.354, abs_tol=1e-3) for a in advantages[1:])
