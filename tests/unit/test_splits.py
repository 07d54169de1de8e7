"""Splits: what may be in a list, and what the committed MiniWoB++ lists promise."""

import itertools
import json
import re
from pathlib import Path

import pytest
import yaml

from arpo_replica.base.errors import UserError
from arpo_replica.config import parse_config
from arpo_replica.config.models import NanoConfig
from arpo_replica.models.nano.demonstrations import page_counts, page_seeds
from arpo_replica.suites.evaluate import check_task
from arpo_replica.suites.miniwob.make_tasks import PLAN, read_plan
from arpo_replica.suites.miniwob.pages import (
    DEMONSTRATION_SEEDS,
    HELD_OUT_PAGES,
    KNOWN_PAGES,
    SPLIT_SEEDS,
    TRAINED_PAGES,
    script,
    task_json,
    to_bytes,
)
from arpo_replica.tasks.splits import load_split
from arpo_replica.workflow.study import Study

DATA = Path(__file__).parents[2] / "data"
SIZES = {"train_4": 4, "train_32": 32, "train_48": 48, "train_128": 128, "test_in": 20, "test_out": 10}


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


@pytest.mark.parametrize("name", SIZES)
def test_committed_splits_load_and_can_run(name):
    tasks = split(name)
    assert len(tasks) == SIZES[name]
    for task in tasks:
        check_task(task)
        assert task.instruction
        assert not task.infeasible
        assert int(task.id.rpartition("-s")[2]) in SPLIT_SEEDS


def test_training_and_test_never_meet():
    ids = {name: {task.id for task in split(name)} for name in SIZES}
    assert ids["train_4"] < ids["train_32"] < ids["train_48"] < ids["train_128"]
    assert not ids["train_128"] & (ids["test_in"] | ids["test_out"])
    assert not ids["test_in"] & ids["test_out"]
    pages = {name: {task.id.rpartition("-s")[0] for task in split(name)} for name in SIZES}
    assert len(pages["train_4"]) == 4
    assert pages["train_32"] == pages["train_128"] == pages["test_in"] == set(TRAINED_PAGES)
    assert pages["test_out"] == set(HELD_OUT_PAGES)
    assert not set(TRAINED_PAGES) & set(HELD_OUT_PAGES)


def test_every_task_file_belongs_to_a_split():
    assert set(read_plan(DATA / PLAN).splits) == set(SIZES)
    listed = {task.id for name in SIZES for task in split(name)}
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
    counts = page_counts(NanoConfig(demonstrations=count))
    assert sum(counts.values()) == count
    assert list(counts) == list(TRAINED_PAGES)
    assert list(counts.values()) == sorted(counts.values(), reverse=True)
    assert max(counts.values()) - min(counts.values()) <= 1


def test_a_page_type_has_the_demonstrations_that_the_config_gives_it():
    pages = {"click-button": None, "click-tab": 30, "click-option": 0, "enter-text": None}
    counts = page_counts(NanoConfig(demonstrations=101, pages=pages))
    assert counts == {"click-button": 36, "click-tab": 30, "click-option": 0, "enter-text": 35}
    assert list(counts) == list(pages), "in the order of the config"


def study(**nano):
    raw = yaml.safe_load((DATA.parent / "configs/demo.yaml").read_text())
    return Study(parse_config({**raw, "nano": nano}, "a.yaml"))


@pytest.mark.parametrize(
    ("pages", "message"),
    [
        ({"click-tap": None}, r"nano.pages has the page type 'click-tap'.*did you mean 'click-tab'\?"),
        (
            {"zzz": None},
            r"'zzz', which the scripted expert does not know; .*click-test-2, click",
        ),
        ({"click-tab": 30}, "nano.pages names 30 demonstrations, but nano.demonstrations is 24"),
        ({"click-tab": 12}, "names 12 demonstrations, but nano.demonstrations is 24"),
        ({"click-tab": -1}, "nano.pages.click-tab"),
    ],
)
def test_pages_that_cannot_be_demonstrated_are_refused(pages, message):
    with pytest.raises(UserError, match=message):
        study(demonstrations=24, pages=pages).check()


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (
            {"pages": {"click-buton": 1}},
            r"splits.mine.pages has the page type 'click-buton'.*'click-button'\?",
        ),
        ({"first_seed": 480}, r"click-tab is 6, but the 24 seeds from 480 on .* go beyond 500"),
        ({"first_seed": 1000}, r"go beyond 0"),
        ({"seed": 3}, "unknown key 'splits.mine.seed'"),
        ({"pages": {}}, "splits.mine.pages"),
    ],
)
def test_a_plan_that_cannot_be_made_is_refused(tmp_path, split, message):
    other = {"source": "ours", "first_seed": 500, "pages": {"click-test": 3}}
    mine = {"source": "ours", "first_seed": 0, "pages": {"click-tab": 6}}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump({"splits": {"mine": mine | split, "other": other}}))
    with pytest.raises(UserError, match=message):
        read_plan(tmp_path / "plan.yaml")


def test_the_expert_knows_the_pages_that_may_be_named():
    plans = re.findall(r'^    "([a-z0-9-]+)": \(\) =>', script("miniwob_expert.js"), re.MULTILINE)
    assert sorted(plans) == sorted(KNOWN_PAGES)
