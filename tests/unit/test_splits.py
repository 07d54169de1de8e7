"""Splits: what may be in a list, and what the committed MiniWoB++ lists promise."""

import itertools
import json
from pathlib import Path

import pytest

from arpo_replica.base.errors import UserError
from arpo_replica.models.nano.demonstrations import page_counts, page_seeds
from arpo_replica.suites.evaluate import check_evaluator
from arpo_replica.suites.miniwob.make_tasks import PLAN
from arpo_replica.suites.miniwob.pages import (
    DEMONSTRATION_SEEDS,
    HELD_OUT_PAGES,
    SPLIT_SEEDS,
    TRAINED_PAGES,
    page_of,
    task_json,
    to_bytes,
)
from arpo_replica.suites.setup import check_setup
from arpo_replica.tasks.splits import load_split

DATA = Path(__file__).parents[2] / "data"
SIZES = {"train_4": 4, "train_32": 32, "test_in": 20, "test_out": 10}


def split(name):
    return load_split(DATA / f"splits/miniwob_{name}.json", DATA / "tasks")


@pytest.fixture
def tree(tmp_path):
    """A task root with two tasks, and a function that writes a split and loads it."""
    for seed in (1, 2):
        path = tmp_path / f"tasks/miniwob/click-tab-s00{seed}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(to_bytes(task_json("click-tab", seed, "Click on Tab #1.")))

    def load(tasks):
        path = tmp_path / "split.json"
        path.write_text(json.dumps({"name": "x", "source": "test", "tasks": tasks}))
        return load_split(path, tmp_path / "tasks")

    return load


def test_the_order_of_the_list_is_kept(tree):
    ids = ["click-tab-s002", "click-tab-s001"]
    assert [task.id for task in tree({"miniwob": ids})] == ids


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ({"miniwob": ["click-tab-s001", "nothing-s001"]}, "miniwob/nothing-s001"),
        ({"miniwob": ["click-tab-s001", "click-tab-s001"]}, "twice"),
        ({"miniwob": []}, "empty"),
        ({}, "no task"),
        ({"miniwob": "click-tab-s001"}, "must be"),
        ({"other": ["click-tab-s001"]}, "other/click-tab-s001"),
    ],
)
def test_a_wrong_list_is_refused_with_its_reason(tree, tasks, message):
    with pytest.raises(UserError, match=message):
        tree(tasks)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must be {name, source, tasks"),
        (b"[]", "must be"),
        (b'{"name": "x", "source": "y", "tasks": ', "must be"),
        (b'{"name": "x", "source": "y", "tasks": {"os": [1]}}', "must be"),
        (b'{"name": "x", "source": "\xff", "tasks": {"os": ["a"]}}', "must be"),
        (b"[" * 100_000, "must be"),
        (b'{"name": "x", "source": "y", "tasks": {"os": ["a"], "os": ["b"]}}', "has the key 'os' twice"),
        (None, "cannot be read: Is a directory; correct tasks.splits"),
    ],
    ids=range(8),
)
def test_a_file_that_is_no_list_is_refused(tmp_path, content, message):
    path = tmp_path / "odd.json"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(UserError) as refused:
        load_split(path, tmp_path)
    assert str(refused.value).startswith(f"Split {path} ")
    assert message in str(refused.value)


def test_a_missing_split_file_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"none\.json"):
        load_split(tmp_path / "none.json", tmp_path)


@pytest.mark.parametrize("name", PLAN)
def test_committed_splits_load_and_can_run(name):
    tasks = split(name)
    assert len(tasks) == SIZES[name]
    for task in tasks:
        check_setup(task)
        check_evaluator(task)
        assert task.instruction
        assert not task.infeasible
        assert int(task.id.rpartition("-s")[2]) in SPLIT_SEEDS


def test_training_and_test_never_meet():
    ids = {name: {task.id for task in split(name)} for name in PLAN}
    assert ids["train_4"] < ids["train_32"]
    assert not ids["train_32"] & (ids["test_in"] | ids["test_out"])
    assert not ids["test_in"] & ids["test_out"]
    pages = {name: {page_of(task) for task in split(name)} for name in PLAN}
    assert len(pages["train_4"]) == 4
    assert pages["train_32"] == pages["test_in"] == set(TRAINED_PAGES)
    assert pages["test_out"] == set(HELD_OUT_PAGES)
    assert not set(TRAINED_PAGES) & set(HELD_OUT_PAGES)


def test_every_task_file_belongs_to_a_split():
    listed = {task.id for name in PLAN for task in split(name)}
    assert {path.stem for path in (DATA / "tasks/miniwob").glob("*.json")} == listed


def test_demonstrations_use_no_seed_of_a_task_file():
    assert not set(SPLIT_SEEDS) & {DEMONSTRATION_SEEDS.start, DEMONSTRATION_SEEDS.stop - 1}
    assert SPLIT_SEEDS.stop <= DEMONSTRATION_SEEDS.start
    for page in TRAINED_PAGES:
        drawn = list(itertools.islice(page_seeds(page, 0), 300))
        assert len(set(drawn)) == 300
        assert all(seed in DEMONSTRATION_SEEDS for seed in drawn)


def test_demonstration_seeds_follow_from_the_seed():
    def draw(seed):
        return list(itertools.islice(page_seeds("click-tab", seed), 20))

    assert draw(0) == draw(0)
    assert not set(draw(0)) & set(draw(1))


@pytest.mark.parametrize("count", [1, 11, 12, 100, 1200])
def test_demonstrations_are_balanced_over_the_pages(count):
    counts = page_counts(count)
    assert sum(counts.values()) == count
    assert set(counts) == set(TRAINED_PAGES)
    assert max(counts.values()) - min(counts.values()) <= 1
