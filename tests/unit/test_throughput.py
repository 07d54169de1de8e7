"""Figure 7's arithmetic."""

from __future__ import annotations

from pathlib import Path

import pytest

from arpo_replica.rollout.records import EpisodeRecord
from arpo_replica.rollout.throughput import outputs_of, point_of
from arpo_replica.tasks.model import Task
from fakes import episode_record


def record(started_at: float, duration_s: float) -> EpisodeRecord:
    times = {"started_at": started_at, "duration_s": duration_s}
    return episode_record(outcome="failure", hard_score=0.0, standard_score=0.0, n_steps=3, **times)


def test_a_point_by_hand() -> None:
    """Two desktops, four trajectories of 30 s side by side: 60 s, 30 s per batch of two, 240 an hour."""
    point = point_of(2, [record(0, 30), record(1, 29), record(30, 30), record(31, 29)])
    assert point["seconds"] == 60
    assert point["minutes_per_batch"] == pytest.approx(0.5)
    assert point["trajectories_per_hour"] == pytest.approx(240)
    assert point["per_desktop_hour"] == pytest.approx(120)
    assert point["hours_per_epoch"] == pytest.approx(1024 / 240)


def test_tasks_take_turns(tmp_path: Path) -> None:
    tasks = [Task(str(i), "d", "", [], {}, {}, "a") for i in range(3)]
    outputs = list(outputs_of(tmp_path, "s", tasks, 7))
    assert [len(output.tasks) for output in outputs] == [3, 3, 1]
    assert [output.trial for output in outputs] == [0, 1, 2]
    assert outputs[2].path == tmp_path / "s/trial_2"
