"""Selection of tasks by what the untrained policy does on them (ARPO: at least one success of 16)."""

import json

import pytest
from pydantic import ValidationError

from arpo_replica.base.files import read_rows
from arpo_replica.config.tasks import SelectedTasksConfig, TasksConfig
from arpo_replica.rollout.records import write_index
from arpo_replica.rollout.select import Tried, count, selected_split
from arpo_replica.tasks.splits import Split


def episodes(**scores):
    """Records of tasks ``m/{name}`` with these hard scores; None is an environment failure."""
    return [
        {"domain": "m", "task_id": name, "hard_score": score} for name, row in scores.items() for score in row
    ]


def test_bounds_keep_what_is_done_sometimes():
    settings = SelectedTasksConfig(source="all", rollouts=4, successes_min=1, successes_max=2)
    tried = count(
        episodes(never=[0, 0, 0, 0], once=[0, 1, 0, 0], always=[1, 1, 1, 1], half=[1, 0.4, 0.5, 1]), 0.5
    )
    made = selected_split("rare", settings, tried, "abc")
    assert made["tasks"] == {"m": ["half", "once"]}
    assert "at least 1 and at most 2 successes in 4 episodes" in made["source"]
    assert made["checkpoint_sha256"] == "abc"
    assert made["tried"]["m/once"] == {"successes": 1, "failures": 3, "lost": 0}
    assert made["notes"] == []
    Split.model_validate(made)


def test_successes_are_read_from_the_indexes_that_rollouts_write(tmp_path):
    for trial, score in enumerate((1.0, 0.0, None)):
        (record,) = episodes(once=[score])
        (tmp_path / f"trial_{trial}" / "m.once").mkdir(parents=True)
        (tmp_path / f"trial_{trial}" / "m.once" / "episode.json").write_text(json.dumps(record))
        write_index(tmp_path / f"trial_{trial}")
    indexes = [tmp_path / f"trial_{trial}" / "episodes.jsonl" for trial in range(3)]
    tried = count([row for index in indexes for row in read_rows(index)], 0.5)
    assert tried == {("m", "once"): Tried(successes=1, failures=1, lost=1)}


def test_the_papers_rule_is_the_default():
    settings = SelectedTasksConfig(source="all")
    assert Tried(1, 15).verdict(settings) is True
    assert Tried(16, 0).verdict(settings) is True
    assert Tried(0, 16).verdict(settings) is False


def test_a_lost_episode_is_no_failure():
    settings = SelectedTasksConfig(source="all", rollouts=4, successes_min=1, successes_max=2)
    assert Tried(0, 3, lost=1).verdict(settings) is None
    assert Tried(1, 2, lost=1).verdict(settings) is True
    assert Tried(3, 0, lost=1).verdict(settings) is False
    made = selected_split("rare", settings, count(episodes(one=[1, 0, 0, 0], lost=[0, 0, 0, None]), 0.5), "")
    assert made["tasks"] == {"m": ["one"]}
    assert made["notes"] == ["Not kept, because lost episodes could decide: m/lost."]


@pytest.mark.parametrize(
    "bounds", [{"successes_min": 3, "successes_max": 2}, {"successes_min": 17}, {"successes_max": 17}]
)
def test_bounds_that_nothing_can_meet_are_refused(bounds):
    with pytest.raises(ValidationError, match="must be in this order"):
        SelectedTasksConfig(source="all", **bounds)


def test_a_selected_split_is_one_of_the_studys():
    tasks = TasksConfig.model_validate({"splits": {"all": "a.json"}, "selected": {"rare": {"source": "all"}}})
    with pytest.raises(ValueError, match=r"nothing uses the split of tasks\.selected\.rare"):
        tasks.add_made("s", [])
    tasks.add_made("s", ["rare"])
    assert tasks.splits["rare"].as_posix() == "results/s/selected/rare.json"
    unknown = TasksConfig.model_validate(
        {"splits": {"all": "a.json"}, "selected": {"rare": {"source": "none"}}}
    )
    with pytest.raises(ValueError, match="which is no split of"):
        unknown.add_made("s", ["rare"])
