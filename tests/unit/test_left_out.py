"""Tasks that a study leaves out: named with a reason, gone everywhere, never a way to a better verdict."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from arpo_replica.base.errors import UserError
from arpo_replica.cluster.costs import rollout_estimate
from arpo_replica.config import load_config
from arpo_replica.config.models import StudyConfig
from arpo_replica.evaluation.osworld_export import export_osworld
from arpo_replica.evaluation.scores import score_episodes
from arpo_replica.suites.osworld import inventory
from arpo_replica.suites.osworld.inventory import read_version, why_not
from arpo_replica.suites.planned import check_tasks, planned_tasks
from arpo_replica.tasks.splits import (
    check_left_out,
    left_out_of,
    load_split,
    read_left_out,
    read_resolved,
    read_split,
    resolve,
    split_size,
    split_tasks,
)
from real_tasks import EXAMPLES, at_hand
from synthetic_study import Study, evaluate, make_study, render

ROOT = Path(__file__).parents[2]
LISTS = ("no_evaluator", "google_account", "text_recognition")
LARGE = ("paper", "subset32", "seed_2b")
TWO = ["click-button_test_in_0", "click-shape_test_in_6"]


def names(split: str) -> set[str]:
    listed = read_split(ROOT / f"data/splits/{split}.json").tasks
    return {f"{domain}/{task}" for domain, ids in listed.items() for task in ids}


def committed(name: str) -> dict:
    return yaml.safe_load((ROOT / f"data/osworld/left_out/{name}.yaml").read_text())


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> dict[str, StudyConfig]:
    """The configs on OSWorld's tasks, with the task files of this machine."""
    monkeypatch.chdir(ROOT)
    found = {name: load_config(ROOT / f"configs/{name}.yaml") for name in LARGE}
    for config in found.values():
        config.tasks.root = EXAMPLES
    return found


# --- the committed lists ---------------------------------------------------------------------------------


@at_hand
def test_the_lists_are_what_the_evaluators_cannot_judge_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inventory, "_reads_text", lambda: False)
    tasks = load_split(ROOT / "data/splits/osworld_369.json", EXAMPLES)
    reasons = {task.id: reason for task in tasks if (reason := why_not(task))}
    found = {f"{task.domain}/{task.id}": reasons[task.id] for task in tasks if task.id in reasons}
    assert set(found) == {task for name in LISTS for task in committed(name)["tasks"]}
    assert len(found) == 12
    for name, word in zip(LISTS, ("does not exist", "Google account", "easyocr"), strict=True):
        assert all(word in found[task] for task in committed(name)["tasks"])
    for task, detail in committed("no_evaluator")["tasks"].items():
        assert detail.split()[-1] in found[task]
    assert committed("no_evaluator")["because"].startswith(f"desktop-env {read_version()} ")


def test_the_google_list_is_osworlds_own() -> None:
    assert set(committed("google_account")["tasks"]) == names("osworld_369") - names("osworld_361")


@at_hand
def test_the_large_studies_run_once_the_files_are_there(
    large: dict[str, StudyConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inventory, "_reads_text", lambda: False)
    sizes = {}
    for name, config in large.items():
        check_left_out(config)
        for split in config.tasks.splits:
            tasks = planned_tasks(config, split)
            assert tasks is not None
            check_tasks(tasks)
            sizes[name, split] = len(tasks)
            assert split_size(config, split) == len(tasks)
    assert sizes["paper", "osworld_369"] == 357
    assert sizes["paper", "arpo_128"] == 127
    assert sizes["seed_2b", "seed_32"] == 31
    assert sizes["subset32", "arpo_32_candidate"] + sizes["subset32", "arpo_96_candidate"] == 127


@at_hand
def test_a_task_that_is_on_no_list_is_still_refused(large: dict[str, StudyConfig]) -> None:
    config = large["paper"]
    config.tasks.leave_out = [path for path in config.tasks.leave_out if path.stem != "google_account"]
    with pytest.raises(
        UserError, match=r"needs a Google account; leave it out by a list in tasks\.leave_out"
    ):
        check_tasks(planned_tasks(config, "osworld_369") or [])


# --- what a list must be ---------------------------------------------------------------------------------


def study_without(root: Path, tasks: list[str] | None = None, trials: int = 0, **lists: object) -> Study:
    """An invented study of 7 + 3 tasks whose config leaves tasks out."""
    without = [f"miniwob/{task}" for task in (TWO if tasks is None else tasks)]
    content = lists or {"out": {"because": "nobody can judge them", "tasks": dict.fromkeys(without, "here")}}
    study = make_study(
        root,
        tasks=7,
        trials=trials,
        steps=0,
        screenshots=False,
        choose=lambda arm, task, trial: "" if task in TWO else "success" if trial else "failure",
    )
    for name, text in content.items():
        (root / f"{name}.yaml").write_text(yaml.safe_dump(text))
    study.config.tasks.leave_out = [root / f"{name}.yaml" for name in content]
    return study


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"because": "", "tasks": {"miniwob/a": "b"}}, "no reason left empty"),
        ({"because": "b", "tasks": {"miniwob/a": ""}}, "no reason left empty"),
        ({"tasks": {"miniwob/a": "b"}}, "must be"),
        ({"because": "b", "tasks": {}}, "must be"),
        ({"because": "b", "tasks": {"miniwob/a": "b"}, "also": 1}, "must be"),
    ],
)
def test_a_list_without_a_reason_is_refused(tmp_path: Path, content: dict, message: str) -> None:
    config = study_without(tmp_path, out=content).config
    with pytest.raises(UserError, match=message):
        read_left_out(config)


def test_a_list_that_is_not_there_is_named(tmp_path: Path) -> None:
    config = study_without(tmp_path).config
    config.tasks.leave_out = [tmp_path / "gone.yaml"]
    with pytest.raises(UserError, match=r"gone\.yaml cannot be read: No such file"):
        read_left_out(config)


def test_a_wrong_id_hides_nothing(tmp_path: Path) -> None:
    config = study_without(tmp_path, ["click-button_test_in_0", "click-buton_test_in_1"]).config
    with pytest.raises(
        UserError, match="leaves out miniwob/click-buton_test_in_1: there is no such task file"
    ):
        check_left_out(config)


def test_two_lists_with_one_task_are_refused(tmp_path: Path) -> None:
    same = {"because": "b", "tasks": {"miniwob/click-button_test_in_0": "c"}}
    with pytest.raises(UserError, match="both leave out miniwob/click-button_test_in_0"):
        read_left_out(study_without(tmp_path, one=same, two=same).config)


def test_a_split_of_which_nothing_remains_is_refused(tmp_path: Path) -> None:
    config = study_without(tmp_path).config
    every = {
        f"miniwob/{task.id}": "x" for task in load_split(config.tasks.splits["test_out"], config.tasks.root)
    }
    (tmp_path / "out.yaml").write_text(yaml.safe_dump({"because": "b", "tasks": every}))
    with pytest.raises(UserError, match="leaves no task of the split 'test_out'"):
        split_tasks(config, "test_out")


# --- what a list does ------------------------------------------------------------------------------------


def test_everything_that_runs_tasks_sees_the_shorter_list(tmp_path: Path) -> None:
    config = study_without(tmp_path).config
    everything = load_split(config.tasks.splits["test_in"], config.tasks.root)
    run = split_tasks(config, "test_in")
    assert [task.id for task in run] == [task.id for task in everything if task.id not in TWO]
    assert planned_tasks(config, "test_in") == run
    resolve(config, "test_in").write(tmp_path / "made.json")
    resolved = read_resolved(tmp_path / "made.json")
    assert resolved.load() == run
    assert list(resolved.hashes()) == [f"miniwob/{task.id}" for task in run]
    assert [entry.task for entry in left_out_of(config, "test_in")] == [f"miniwob/{task}" for task in TWO]
    assert left_out_of(config, "test_out") == []
    assert (split_size(config, "test_in"), split_size(config, "test_out")) == (5, 3)
    costs = rollout_estimate(config, "base").hours
    config.tasks.leave_out = []
    assert rollout_estimate(config, "base").hours > costs


def test_the_numbers_say_of_how_many(tmp_path: Path) -> None:
    """7 tasks, 2 left out; 5 x 2 runs of which one half succeeds: 50 % of valid, 5/14 to 9/14 of all."""
    study = study_without(tmp_path, trials=2)
    summary = evaluate(study)
    row = next(r for r in summary.rates if (r.arm, r.split, r.protocol) == ("arpo", "test_in", "hard"))
    assert (row.tasks, row.tasks_valid, row.expected, row.valid) == (7, 5, 14, 10)
    assert (row.left_out, row.missing, row.env_errors) == (4, 0, 0)
    assert row.of_valid is not None
    assert row.of_valid.value == 0.5
    assert (row.of_all_low, row.of_all_high) == (pytest.approx(5 / 14), pytest.approx(9 / 14))
    assert not any("test_in" in line for line in summary.not_run)
    facts = summary.splits["test_in"]
    assert (facts.tasks, facts.left_out, facts.size) == (7, 2, "5 of 7 tasks")
    assert [(r.split, r.tasks, r.task, r.because, r.detail) for r in summary.left_out] == [
        ("test_in", 7, f"miniwob/{task}", "nobody can judge them", "here") for task in TWO
    ]
    flips = next(r for r in summary.flips if (r.arm, r.split, r.protocol) == ("arpo", "test_in", "hard"))
    assert flips.not_comparable == []
    assert next(r for r in summary.domains if r.split == "test_in").tasks == 5

    page = render(study).read_text()
    words = " ".join(page.split())
    assert "5 of the 7 tasks of <code>test_in</code> were run." in words
    assert "Left out are 2 because nobody can judge them" in words
    assert 'id="table-left_out"' in page
    assert all(f"miniwob/{task}" in page for task in TWO)
    assert "+ 4 left out" in page

    # Two studies that run other tasks are not compared task set by task set.
    study.config.tasks.leave_out = []
    full = evaluate(study)
    assert full.splits["test_in"].tasks_sha256 != facts.tasks_sha256
    assert full.splits["test_in"].list_sha256 == facts.list_sha256
    assert any("test_in: 4 of 14 episodes were not run" in line for line in full.not_run)


def test_the_export_for_osworlds_tools_names_what_is_left_out(tmp_path: Path) -> None:
    study = study_without(tmp_path, trials=1)
    out = export_osworld(study.config, study.episodes, tmp_path / "exported")
    run = next(run for run in out.runs if (run.arm, run.split, run.trial) == ("arpo", "test_in", 0))
    assert (run.tasks, run.missing) == (7, [])
    assert run.left_out == {f"miniwob/{task}": "nobody can judge them" for task in TWO}


def test_a_study_without_a_list_says_nothing_of_it(tmp_path: Path) -> None:
    study = make_study(tmp_path, tasks=4, steps=1, screenshots=False)
    assert evaluate(study).left_out == []
    page = render(study).read_text()
    assert "table-left_out" not in page
    assert "left out</span>" not in page


def test_an_episode_of_a_left_out_task_is_refused(tmp_path: Path) -> None:
    study = study_without(tmp_path, ["click-tab_test_in_1"], trials=1)
    with pytest.raises(UserError, match="an episode of the task click-tab_test_in_1, which tasks"):
        score_episodes(study.config, [study.episodes], tmp_path / "scores.parquet")
