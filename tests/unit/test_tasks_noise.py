"""Noisy tasks: steps are added, everything else is the task as it was."""

import json
import uuid
from pathlib import Path

import pytest
from pydantic import ValidationError

from arpo_replica.base.errors import UserError
from arpo_replica.config import load_config, parse_config
from arpo_replica.config.tasks import NoisyTasksConfig
from arpo_replica.suites.miniwob.pages import to_bytes
from arpo_replica.suites.noise import make_noisy, window_source
from arpo_replica.suites.planned import (
    check_tasks,
    make_noisy_tasks,
    planned_tasks,
    split_files,
)
from arpo_replica.tasks.model import load_task
from arpo_replica.tasks.splits import load_split
from real_tasks import EXAMPLES, at_hand

ROOT = Path(__file__).parents[2]
KINDS = ("notification", "extra_tab", "background_window", "distractor_file")
ALL = NoisyTasksConfig(source="x", per_task=4)
MINIWOB = load_split(ROOT / "data/splits/miniwob_test_in.json", ROOT / "data/tasks")


def osworld_task(tmp_path, config, evaluator, **more):
    """A task as OSWorld's are."""
    name = "030eeff7-b492-4218-b312-701ec99ee0cc"
    raw = {
        "id": name,
        "instruction": "Change a setting.",
        "config": config,
        "evaluator": evaluator,
        "proxy": False,
        **more,
    }
    path = tmp_path / f"chrome/{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(to_bytes(raw))
    return load_task(path)


LAUNCH = {
    "type": "launch",
    "parameters": {"command": ["google-chrome", "--remote-debugging-port=1337"]},
}
SOCAT = {"type": "launch", "parameters": {"command": ["socat", "tcp-listen:9222,fork", "tcp:localhost:1337"]}}
OPEN = {"type": "chrome_open_tabs", "parameters": {"urls_to_open": ["https://example.org"]}}
SETTING = {"func": "exact_match", "result": {"type": "enable_do_not_track"}, "expected": {"type": "rule"}}


def assert_only_steps_were_added(clean, noisy):
    """Deep equality of all but id, added steps, and the record of the noise itself."""
    rest = {key: value for key, value in noisy.raw.items() if key not in ("id", "config", "arpo_noise")}
    assert rest == {key: value for key, value in clean.raw.items() if key not in ("id", "config")}
    added = set(noisy.raw["arpo_noise"]["steps"])
    assert [step for index, step in enumerate(noisy.config) if index not in added] == clean.config
    assert noisy.raw["config"] == noisy.config
    assert noisy.instruction == clean.instruction == noisy.raw["instruction"]
    assert noisy.evaluator == clean.evaluator == noisy.raw["evaluator"]
    assert noisy.domain == clean.domain
    assert noisy.id != clean.id
    assert noisy.id == noisy.raw["id"]
    assert noisy.infeasible == clean.infeasible
    assert len(noisy.config) > len(clean.config)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("per_task", [1, 2, 4])
def test_a_miniwob_task_gets_steps_and_nothing_else(seed, per_task):
    settings = NoisyTasksConfig(source="x", seed=seed, per_task=per_task)
    for clean in MINIWOB:
        noisy = make_noisy(clean, settings)
        assert_only_steps_were_added(clean, noisy)
        assert len(noisy.raw["arpo_noise"]["kinds"]) == per_task
        assert noisy.raw["arpo_noise"]["of"] == clean.id
        assert noisy.id.rpartition("-s")[0] == clean.id.rpartition("-s")[0]
        check_tasks([noisy])


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others():
    def made(seed):
        settings = NoisyTasksConfig(source="x", seed=seed, per_task=2)
        return [to_bytes(make_noisy(task, settings).raw) for task in MINIWOB]

    assert made(1) == made(1)
    assert made(1) != made(2)
    one = {
        make_noisy(task, NoisyTasksConfig(source="x", seed=1)).raw["arpo_noise"]["kinds"][0]
        for task in MINIWOB
    }
    assert len(one) > 1, "tasks differ in their noise"


def test_the_noise_of_a_task_does_not_depend_on_the_other_tasks():
    settings = NoisyTasksConfig(source="x", per_task=2)
    alone = make_noisy(MINIWOB[3], settings)
    assert alone.raw == [make_noisy(task, settings) for task in reversed(MINIWOB)][-4].raw


def test_an_osworld_task_keeps_its_steps_and_gets_a_uuid(tmp_path):
    clean = osworld_task(tmp_path, [LAUNCH, SOCAT], SETTING)
    noisy = make_noisy(clean, ALL)
    assert_only_steps_were_added(clean, noisy)
    assert str(uuid.UUID(noisy.id)) == noisy.id
    commands = [step["parameters"]["command"] for step in noisy.config]
    launched = commands.index(LAUNCH["parameters"]["command"])
    tab = next(i for i, command in enumerate(commands) if "http://localhost:1337" in command)
    assert tab == launched + 1, "directly after the browser's start, before the task's other steps"
    before = [
        command for command in commands[:launched] if window_source() in command or "/bin/bash" in command
    ]
    assert len(before) == launched == 3
    assert {step["type"] for step in noisy.config} <= {"execute", "launch"}, "OSWorld knows these steps"


def test_places_in_the_config_do_not_depend_on_the_order_of_kinds(tmp_path):
    clean = osworld_task(tmp_path, [SOCAT, LAUNCH, SOCAT], SETTING)
    for kinds in (KINDS, KINDS[::-1], ("extra_tab", "notification"), ("notification", "extra_tab")):
        noisy = make_noisy(clean, NoisyTasksConfig(source="x", kinds=list(kinds), per_task=len(kinds)))
        assert_only_steps_were_added(clean, noisy)
        assert noisy.raw["arpo_noise"]["kinds"] == list(kinds)
        at = noisy.config.index(LAUNCH)
        assert "http://localhost:1337" in noisy.config[at + 1]["parameters"]["command"]


@pytest.mark.parametrize(
    ("kind", "config", "evaluator"),
    [
        ("extra_tab", [LAUNCH], {"func": "is_expected_tabs", "result": {"type": "open_tabs_info"}}),
        ("extra_tab", [LAUNCH], {"func": "match", "result": [{"type": "active_url_from_accessTree"}]}),
        ("extra_tab", [LAUNCH, OPEN], SETTING),
        ("extra_tab", [], SETTING),
        (
            "notification",
            [LAUNCH],
            {"func": "check_accessibility_tree", "result": {"type": "accessibility_tree"}},
        ),
        (
            "background_window",
            [],
            {"func": "x", "result": {"type": "vm_command_line", "command": "wmctrl -l"}},
        ),
        ("browser_history", [LAUNCH], {"func": "check_history_deleted", "result": {"type": "history"}}),
        ("browser_history", [LAUNCH, {"type": "update_browse_history", "parameters": {}}], SETTING),
        ("browser_history", [], SETTING),
        ("distractor_file", [], {"func": "x", "result": {"type": "list_directory"}}),
        ("distractor_file", [], {"func": "x", "result": {"type": "vm_command_line", "command": "find ~"}}),
    ],
)
def test_noise_that_the_evaluator_could_see_is_refused(tmp_path, kind, config, evaluator):
    clean = osworld_task(tmp_path, config, evaluator)
    with pytest.raises(UserError, match="bears 0 of the kinds of noise"):
        make_noisy(clean, NoisyTasksConfig(source="x", kinds=[kind]))


def test_pages_are_visited_right_after_the_browsers_start(tmp_path):
    clean = osworld_task(tmp_path, [SOCAT, LAUNCH, OPEN], SETTING)
    noisy = make_noisy(clean, NoisyTasksConfig(source="x", kinds=["browser_history"]))
    assert_only_steps_were_added(clean, noisy)
    assert noisy.raw["arpo_noise"]["steps"] == [2], "the task's own tabs come after that"
    *_, base, first, second, third, fourth = noisy.config[2]["parameters"]["command"]
    assert base == "http://127.0.0.1:1337"
    pages = {first, second, third, fourth}
    assert len(pages) == 4 and all(page.startswith("data:text/html,<title>") for page in pages)
    assert not any(" " in page for page in pages)


def test_the_first_kinds_are_taken_where_that_is_asked_for(tmp_path):
    settings = NoisyTasksConfig(source="x", kinds=["browser_history", "distractor_file"], choice="first")
    with_browser = make_noisy(osworld_task(tmp_path, [LAUNCH], SETTING), settings)
    without = make_noisy(osworld_task(tmp_path, [], SETTING), settings)
    assert with_browser.raw["arpo_noise"]["kinds"] == ["browser_history"]
    assert without.raw["arpo_noise"]["kinds"] == ["distractor_file"]
    assert {make_noisy(task, settings).raw["arpo_noise"]["kinds"][0] for task in MINIWOB} == {
        "distractor_file"
    }


def test_a_distractor_lies_where_the_task_does_not_look(tmp_path):
    settings = NoisyTasksConfig(source="x", kinds=["distractor_file"])
    clean = osworld_task(tmp_path, [LAUNCH], SETTING, instruction="Move a.txt from desktop to Documents.")
    path = make_noisy(clean, settings).config[0]["parameters"]["command"][-2]
    assert path.startswith("/home/user/Downloads/")
    assert not path.endswith(".txt")
    everywhere = "Desktop Documents Downloads Pictures Public Templates"
    clean = osworld_task(tmp_path, [LAUNCH], SETTING, instruction=everywhere)
    with pytest.raises(UserError, match="kinds of noise"):
        make_noisy(clean, settings)


@at_hand
def test_osworlds_own_tasks():
    settings = NoisyTasksConfig(source="offline_desktop")
    tasks = load_split(ROOT / "data/splits/offline_desktop.json", EXAMPLES)
    made = [make_noisy(task, settings) for task in tasks]
    for clean, noisy in zip(tasks, made, strict=True):
        assert_only_steps_were_added(clean, noisy)
        uuid.UUID(noisy.id)
    assert len({task.id for task in made} | {task.id for task in tasks}) == 2 * len(tasks)
    many = [make_noisy(task, NoisyTasksConfig(source="x", seed=seed)) for seed in range(5) for task in tasks]
    assert {kind for task in many for kind in task.raw["arpo_noise"]["kinds"]} == set(KINDS)


# -- the study ------------------------------------------------------------------------------------


def study(tmp_path, monkeypatch, **noisy):
    """The demo with a noisy split, its results in a folder of the test."""
    raw = load_config(ROOT / "configs/demo.yaml").model_dump(mode="json")
    raw["tasks"]["root"] = str(ROOT / "data/tasks")
    raw["tasks"]["splits"] = {name: str(ROOT / path) for name, path in raw["tasks"]["splits"].items()}
    raw["tasks"]["noisy"] = {"test_noisy": {"source": "test_in", "seed": 3, "per_task": 2} | noisy}
    raw["evaluation"]["splits"] = ["test_in", "test_noisy"]
    monkeypatch.chdir(tmp_path)
    return raw


def test_a_noisy_split_is_made_and_loads_as_any_other(tmp_path, monkeypatch):
    config = parse_config(study(tmp_path, monkeypatch), "test")
    before = planned_tasks(config, "test_noisy")
    assert not Path("results").exists()
    assert make_noisy_tasks(config, "test_noisy") == len(before) == 20
    made = load_split(config.tasks.splits["test_noisy"], config.tasks.root)
    assert [(task.raw, task.sha256) for task in made] == [(task.raw, task.sha256) for task in before]
    assert [Path(name).is_file() for name in split_files(config, "test_noisy")] == [True]
    again = parse_config(config.model_dump(mode="json"), "written by the study itself")
    assert again.tasks == config.tasks
    written = {path: path.read_bytes() for path in Path("results").rglob("*.json")}
    make_noisy_tasks(config, "test_noisy")
    assert {path: path.read_bytes() for path in Path("results").rglob("*.json")} == written
    victim = Path(split_files(config, "test_noisy")[0]).parent / "miniwob" / f"{made[0].id}.json"
    victim.write_bytes(victim.read_bytes() + b" ")
    with pytest.raises(UserError, match="was changed after it was made"):
        load_split(config.tasks.splits["test_noisy"], config.tasks.root)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": "nothing"}, "no split of tasks.splits"),
        ({"kinds": ["notification"], "per_task": 2}, "exceeds the number"),
        ({"kinds": ["notification", "notification"], "per_task": 1}, "exceeds the number"),
        ({"kinds": ["earthquake"]}, "earthquake"),
        ({"per_task": 0}, "per_task"),
    ],
)
def test_a_wrong_config_is_refused(tmp_path, monkeypatch, change, message):
    with pytest.raises(UserError, match=message):
        parse_config(study(tmp_path, monkeypatch, **change), "test")


def test_a_noisy_split_that_nothing_uses_is_refused(tmp_path, monkeypatch):
    raw = study(tmp_path, monkeypatch)
    raw["evaluation"]["splits"] = ["test_in"]
    with pytest.raises(UserError, match="nothing uses"):
        parse_config(raw, "test")
    raw = study(tmp_path, monkeypatch)
    raw["tasks"]["splits"]["test_noisy"] = raw["tasks"]["splits"]["test_in"]
    with pytest.raises(UserError, match="rename one"):
        parse_config(raw, "test")


def test_kinds_are_a_closed_set():
    with pytest.raises(ValidationError):
        NoisyTasksConfig(source="x", kinds=["notification", "other"])


def test_tasks_that_are_still_to_be_fetched_are_checked_by_the_manifest(tmp_path, monkeypatch):
    raw = study(tmp_path, monkeypatch)
    raw["tasks"]["root"] = "results/osworld/tasks"
    raw["tasks"]["splits"]["test_in"] = str(ROOT / "data/splits/smoke_4.json")
    Path("data").symlink_to(ROOT / "data")
    config = parse_config(raw, "test")
    assert planned_tasks(config, "test_in") is None
    assert planned_tasks(config, "test_noisy") is None
    assert split_files(config, "test_in") == ["results/osworld/tasks/manifest.json"]
    wrong = tmp_path / "wrong.json"
    wrong.write_text(json.dumps({"name": "x", "source": "x", "tasks": {"os": ["a", "b"]}}))
    config.tasks.splits["test_in"] = wrong
    with pytest.raises(UserError, match="os/a, os/b"):
        planned_tasks(config, "test_in")
