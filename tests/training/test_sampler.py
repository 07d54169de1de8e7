"""What the sampler decides of a batch, with a dictionary in the place of TransferQueue."""

from __future__ import annotations

from collections import Counter, defaultdict
from types import SimpleNamespace
from typing import Any

import pytest

pytestmark = pytest.mark.cpu_env
pytest.importorskip("verl")

import torch  # noqa: E402
import transfer_queue  # noqa: E402

from arpo_replica.config.training import ReplayConfig  # noqa: E402
from arpo_replica.training.metrics import SequenceFacts  # noqa: E402
from arpo_replica.training.replay import ReplayBuffer, Stored  # noqa: E402
from arpo_replica.training.sampler import TRAIN, ReplaySampler, read_groups  # noqa: E402


def make_sampler(
    groups: dict[str, tuple[str, list[float]]], monkeypatch: pytest.MonkeyPatch, limit: int = 4
) -> ReplaySampler:
    """``groups``: uid -> (task, scores of the rollouts that are left of it). Two tasks a step."""
    rewards = {
        f"{uid}_{number}_0": (task, score)
        for uid, (task, scores) in groups.items()
        for number, score in enumerate(scores)
    }

    def get(keys: list[str], **_: object) -> dict[str, Any]:
        facts = [
            SequenceFacts(
                task=rewards[key][0],
                score=rewards[key][1],
                rollout=int(key.split("_")[1]),
                format_errors=0,
                attempts=1,
                turns=1,
                step=1,
                version=0,
                images=(0, 1),
            )
            for key in keys
        ]
        scores = torch.tensor([[rewards[key][1]] for key in keys])
        return {"rm_scores": scores, "extra_fields": [fact.to_extra_fields() for fact in facts]}

    monkeypatch.setattr(transfer_queue, "kv_batch_get", get)
    sampler = object.__new__(ReplaySampler)
    sampler.filter_groups_metric = "reward"
    sampler.partitions = defaultdict(dict, {TRAIN: {key: {} for key in rewards}})
    sampler.finished_keys = defaultdict(set, {TRAIN: set(groups)})
    sampler._dapo_classification_cache = defaultdict(dict)
    sampler.redrawn = 0
    recipe = SimpleNamespace(dynamic_sampling_max=limit, tasks_per_step=2)
    sampler.job = SimpleNamespace(recipe=recipe)  # type: ignore[assignment]
    sampler.buffer = ReplayBuffer(ReplayConfig(enabled=True), seed=0)
    return sampler


def test_groups_that_dynamic_sampling_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """All equal: given up, unless replay repairs the group or only one rollout is left of it."""
    groups = {
        "a": ("m/varied", [0.0, 1.0]),
        "b": ("m/failed", [0.0, 0.0]),
        "c": ("m/solved", [1.0, 1.0]),
        "d": ("m/repaired", [0.0, 0.0]),
        "e": ("m/alone", [0.0]),
    }
    sampler = make_sampler(groups, monkeypatch)
    sampler.buffer.store("m/repaired", Stored("x", 0))
    assert sampler._dapo_filtered_keys(TRAIN) == ({"b", "c"}, Counter({0.0: 1, 1.0: 1}))
    assert sampler.redrawn == 2


def test_a_group_that_lost_all_its_rollouts_does_not_end_the_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sampler = make_sampler({"a": ("m/failed", [0.0, 0.0]), "b": ("m/lost", [])}, monkeypatch)
    assert sampler._dapo_filtered_keys(TRAIN)[0] == {"a"}
    assert sampler.finished_keys[TRAIN] == {"a", "b"}, "it stays a finished group"


def test_a_step_gives_up_no_more_groups_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = {str(number): ("m/failed", [0.0, 0.0]) for number in range(5)}
    sampler = make_sampler(groups, monkeypatch, limit=1)
    assert len(sampler._dapo_filtered_keys(TRAIN)[0]) == 2
    assert sampler._dapo_filtered_keys(TRAIN)[0] == set()


def test_rows_come_in_any_order_and_are_read_in_that_of_their_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second rollout has twelve rows; the tenth comes after the ninth, not after the first."""
    keys = ["b_0_0", *(f"a_1_{row}" for row in reversed(range(12))), "a_0_0"]
    facts = {"format_errors": 0, "attempts": 1, "turns": 1, "step": 1, "version": 0, "score": 0.0}

    def get(keys: list[str], **_: object) -> dict[str, Any]:
        parts = [key.split("_") for key in keys]
        rows = [
            SequenceFacts(task=f"d/{group}", rollout=int(session), images=(int(row), 1), **facts)
            for group, session, row in parts
        ]
        scores = torch.tensor([[float(row)] for _, _, row in parts])
        return {"rm_scores": scores, "extra_fields": [row.to_extra_fields() for row in rows]}

    monkeypatch.setattr(transfer_queue, "kv_batch_get", get)
    first, second = read_groups(keys)
    assert [rollout.keys for rollout in second] == [("b_0_0",)]
    assert [rollout.keys for rollout in first] == [("a_0_0",), tuple(f"a_1_{row}" for row in range(12))]
    assert [start for start, _ in first[1].images] == list(range(12))
    assert first[1].reward == 11.0, "the last row's"
