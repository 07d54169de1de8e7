"""Policies without a model, the committed scripts, and the verdicts on tasks."""

import asyncio
import json
from pathlib import Path

import pytest
import yaml

from arpo_replica.actions.types import Click, Fail, Finished, Hotkey, Wait
from arpo_replica.base.errors import UserError
from arpo_replica.config import load_config
from arpo_replica.config.tasks import NoisyTasksConfig
from arpo_replica.suites.evaluate import CHROMIUM_WRITES_S, seconds_to_settle
from arpo_replica.suites.noise import make_noisy
from arpo_replica.tasks.model import Task, load_task
from arpo_replica.tasks.osworld_files import MANIFEST, read_task_manifest
from arpo_replica.tasks.splits import resolve
from arpo_replica.validation.scripted import (
    DONE,
    FAIL,
    FOLDER,
    PATIENCE,
    EndsAtOnce,
    Oracle,
    ScriptedOracle,
    find_oracles,
    load_oracle,
    screen_parser,
)
from arpo_replica.validation.validate import (
    KNOWN_ISSUES,
    compare_validations,
    judge,
    load_known_issues,
    tell,
    validate_tasks,
)
from fakes import SCREEN, FakeProvider, broken, png

PARSER = screen_parser((1920, 1080))
RED, BLUE = png((200, 10, 10)), png((10, 10, 200))
STEPS = [
    {"thought": "Preferences.", "action": "hotkey(key='ctrl p')"},
    {
        "thought": "A button.",
        "action": "click(point='<point>1041 248</point>')",
        "see": {"point": [3, 4], "color": "#0a0ac8"},
    },
]


def oracle(steps=STEPS, **keys):
    return {"task": "t", "task_sha256": "0" * 64, "screen": [1920, 1080], "steps": steps, **keys}


def replies(conversation, *screenshots):
    return [PARSER.parse(asyncio.run(conversation.reply(screenshot)).text) for screenshot in screenshots]


@pytest.mark.parametrize(("action", "expected"), [(DONE, Finished()), (FAIL, Fail("call_user"))])
def test_a_policy_that_ends_at_once(action, expected):
    policy = EndsAtOnce(action)
    for _ in range(2):
        assert replies(policy.start(None), RED) == [expected]


def start(steps=STEPS):
    class Named:
        id = "t"

    return ScriptedOracle({"t": Oracle.model_validate(oracle(steps))}).start(Named())


def test_a_script_is_replayed_in_pixels_of_the_screen():
    conversation = start()
    assert replies(conversation, RED, BLUE, BLUE) == [Hotkey(("ctrl", "p")), Click(1041, 248), Finished()]


def test_a_step_waits_for_what_it_has_to_see():
    conversation = start()
    found = replies(conversation, RED, RED, RED, BLUE)
    assert found == [Hotkey(("ctrl", "p")), Wait(), Wait(), Click(1041, 248)]


def test_a_script_that_never_sees_it_gives_up():
    conversation = start()
    found = replies(conversation, *[RED] * (PATIENCE + 2))
    assert found[1:-1] == [Wait()] * PATIENCE
    assert isinstance(found[-1], Fail)


@pytest.mark.parametrize(
    ("action", "named"),
    [
        ("hotkey(key='ctrl alt t')", "leaves the programs"),
        ("hotkey(key='alt f2')", "leaves the programs"),
        ("click(point='<point>35 550</point>')", "terminal"),
        ("click(start_box='(35,550)')", "terminal"),
        ("left_double(point='35 550')", "terminal"),
        ("click(start_box='[1, 540, 69, 560]')", "terminal"),
        ("finished()", "ends by itself"),
        ("call_user()", "ends by itself"),
        ("import os", "expected"),
    ],
)
def test_a_script_may_only_do_what_is_meant(tmp_path, action, named):
    path = tmp_path / "t.yaml"
    path.write_text(yaml.safe_dump(oracle([{"thought": "Hm.", "action": action}])))
    with pytest.raises(UserError, match=named) as error:
        load_oracle(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("load", [load_oracle, load_known_issues])
def test_a_file_that_is_no_text_is_refused(tmp_path, load):
    path = tmp_path / "odd.yaml"
    path.write_bytes(b"task: \xff")
    with pytest.raises(UserError, match=r"odd\.yaml is no text in UTF-8"):
        load(path)


def test_committed_scripts_are_for_osworlds_task_files():
    files = read_task_manifest(MANIFEST).files
    paths = sorted(FOLDER.glob("*/*.yaml"))
    assert len(paths) >= 12
    assert len({path.parent.name for path in paths}) >= 4
    for path in paths:
        script = load_oracle(path)
        assert script.task == path.stem
        assert files[f"{path.parent.name}/{path.stem}.json"] == script.task_sha256, path


def test_known_issues_name_osworlds_tasks_once():
    files = read_task_manifest(MANIFEST).files
    issues = load_known_issues(KNOWN_ISSUES)
    assert {f"{issue.task}.json" for issue in issues} <= set(files)
    assert len({(issue.task, issue.verdict) for issue in issues}) == len(issues)
    for issue in issues:
        if issue.verdict == "unsolvable":
            assert not (FOLDER / f"{issue.task}.yaml").exists()


def test_a_known_issues_file_with_a_wrong_key_is_refused(tmp_path):
    path = tmp_path / "known.yaml"
    path.write_text("- {task: a/b, verdict: odd, desktops: [], reason: none}")
    with pytest.raises(UserError, match=str(path)):
        load_known_issues(path)


def scores(**modes):
    return {mode: [{"score": score} for score in found] for mode, found in modes.items()}


@pytest.mark.parametrize(
    ("infeasible", "made", "verdict"),
    [
        (False, scores(noop=[0], fail=[0], oracle=[1]), "ok"),
        (False, scores(noop=[0], fail=[0]), "no_oracle"),
        (False, scores(noop=[0, 1], fail=[0, 0], oracle=[1, 1]), "false_positive"),
        (False, scores(noop=[0.2], fail=[0]), "false_positive"),
        (False, scores(noop=[0], fail=[1]), "fail_scored"),
        (False, scores(noop=[0, 0], fail=[0, 0], oracle=[1, 0]), "oracle_failed"),
        (False, scores(noop=[0], fail=[0], oracle=[0.9]), "oracle_failed"),
        (False, scores(noop=[0], fail=[0], oracle=[None]), "env_error"),
        (True, scores(noop=[0], fail=[1]), "infeasible_ok"),
        (True, scores(noop=[0, 0], fail=[1, 0]), "infeasible_wrong"),
        (True, scores(noop=[1], fail=[1]), "infeasible_wrong"),
        (True, scores(noop=[None], fail=[1]), "env_error"),
    ],
)
def test_verdicts(infeasible, made, verdict):
    assert judge(infeasible, made) == verdict


@pytest.fixture
def study(tmp_path):
    """A split of three tasks, one infeasible, and a script for the first."""
    root = tmp_path / "tasks"
    (root / "apps").mkdir(parents=True)
    for name, func in (("one", "f"), ("two", "f"), ("never", "infeasible")):
        raw = {"id": name, "instruction": "Do it.", "config": [], "evaluator": {"func": func}}
        (root / "apps" / f"{name}.json").write_text(json.dumps(raw))
    split = tmp_path / "few.json"
    split.write_text(json.dumps({"name": "few", "source": "", "tasks": {"apps": ["one", "two", "never"]}}))
    scripts = tmp_path / "oracles"
    (scripts / "apps").mkdir(parents=True)
    one = load_task(root / "apps" / "one.json")
    script = oracle(STEPS[:1], task="one", task_sha256=one.sha256, screen=list(SCREEN))
    (scripts / "apps" / "one.yaml").write_text(yaml.safe_dump(script))
    config = load_config(Path("configs/demo.yaml"))
    config.tasks.root = root
    config.tasks.splits["few"] = split
    config.desktop.count = 1
    config.rollout.env_error_retries = 0
    known = tmp_path / "known.yaml"
    known.write_text("[]")
    return config, scripts, known


def by_actions(event, desktop):
    """A task is solved by any action."""
    if event == "evaluate":
        desktop.score = float(bool(desktop.actions))


def run(study, tmp_path, hook=by_actions, trials=1):
    config, scripts, known = study
    out = tmp_path / "validation" / "few.json"
    provider = FakeProvider(hook)
    document = validate_tasks(
        config, resolve(config, "few"), out, trials=trials, provider=provider, oracles=scripts, known=known
    )
    assert json.loads(out.read_text()) == document
    return document, provider


def test_a_split_is_validated(study, tmp_path, capsys):
    document, _ = run(study, tmp_path, trials=2)
    assert {row["task"]: row["verdict"] for row in document["tasks"]} == {
        "apps/one": "ok",
        "apps/two": "no_oracle",
        "apps/never": "infeasible_ok",
    }
    assert [len(document["tasks"][0][mode]) for mode in ("noop", "fail", "oracle")] == [2, 2, 2]
    assert document["unexpected"] == []
    assert document["mark"] == "process desktop, not OSWorld"
    assert tell(document) == 0
    assert "apps/one: ok (noop 0/0 fail 0/0 oracle 1/1)" in capsys.readouterr().err
    kept = tmp_path / "validation" / "episodes" / "oracle" / "few" / "trial_1" / "apps.one"
    assert (kept / "step_000.webp").is_file()


def test_what_is_there_is_kept_until_its_script_changes(study, tmp_path):
    run(study, tmp_path)
    _, idle = run(study, tmp_path)
    assert idle.desktops == []
    _, scripts, _ = study
    path = scripts / "apps" / "one.yaml"
    path.write_text(path.read_text().replace("ctrl p", "ctrl q"))
    document, provider = run(study, tmp_path)
    assert sum(desktop.resets for desktop in provider.desktops) == 1
    assert document["tasks"][0]["verdict"] == "ok"


def test_false_positives_are_unexpected_until_they_are_known(study, tmp_path):
    def generous(event, desktop):
        desktop.score = 1.0

    document, _ = run(study, tmp_path, generous)
    assert document["unexpected"] == ["apps/one", "apps/two"]
    assert tell(document) == 1
    known = [
        {"task": f"apps/{name}", "verdict": "false_positive", "desktops": ["process"], "reason": "Odd."}
        for name in ("one", "two")
    ]
    study[2].write_text(yaml.safe_dump(known))
    document, _ = run(study, tmp_path, generous)
    assert document["unexpected"] == []
    assert document["tasks"][0]["known"] == "Odd."
    study[2].write_text(yaml.safe_dump([{**known[0], "desktops": ["container"]}, known[1]]))
    document, _ = run(study, tmp_path, generous)
    assert document["unexpected"] == ["apps/one"]


def test_an_environment_error_is_no_score(study, tmp_path):
    document, _ = run(study, tmp_path, broken("reset"))
    assert {row["verdict"] for row in document["tasks"]} == {"env_error"}
    assert document["tasks"][0]["noop"][0]["score"] is None
    assert "reset" in document["tasks"][0]["noop"][0]["errors"][0]
    assert len(document["unexpected"]) == 3


def test_a_script_of_another_task_file_is_refused(study, tmp_path):
    config, scripts, _ = study
    path = scripts / "apps" / "one.yaml"
    path.write_text(path.read_text().replace(load_oracle(path).task_sha256, "f" * 64))
    task = load_task(config.tasks.root / "apps" / "one.json")
    with pytest.raises(UserError, match="another task file than apps/one"):
        find_oracles([task], SCREEN, scripts)


def test_a_noisy_task_has_the_script_of_its_clean_one(study):
    config, scripts, _ = study
    clean = load_task(config.tasks.root / "apps" / "one.json")
    noisy = make_noisy(clean, NoisyTasksConfig(source="all", kinds=["distractor_file"]))
    assert noisy.id != clean.id
    assert find_oracles([noisy], SCREEN, scripts) == {noisy.id: find_oracles([clean], SCREEN, scripts)["one"]}
    noisy.raw["arpo_noise"]["of_sha256"] = "f" * 64
    with pytest.raises(UserError, match="another task file than apps/one"):
        find_oracles([noisy], SCREEN, scripts)


def test_a_script_for_another_screen_is_not_used(study):
    config, scripts, _ = study
    task = load_task(config.tasks.root / "apps" / "one.json")
    assert find_oracles([task], (800, 600), scripts) == {}


def test_no_trial_at_all_is_refused(study, tmp_path):
    for trials in (0, -1):
        with pytest.raises(UserError, match=rf"--trials is {trials}; give 1 or more"):
            validate_tasks(
                study[0],
                resolve(study[0], "few"),
                tmp_path / "out.json",
                provider=FakeProvider(),
                trials=trials,
            )


def test_an_unknown_split_is_refused(study, tmp_path):
    with pytest.raises(UserError, match=r"no split 'other'.*few"):
        resolve(study[0], "other")


def result(path, score, sha256="a", task="apps/one"):
    row = {"task": task, "sha256": sha256, "infeasible": False, "noop": [{"score": score}]}
    path.write_text(json.dumps({"kind": path.stem, "tasks": [row]}))
    return path


def test_two_kinds_of_desktop_are_compared(tmp_path):
    first = result(tmp_path / "first.json", 0)
    same = compare_validations(first, result(tmp_path / "same.json", 0))
    assert same["different"] == []
    assert same["tasks"][0]["noop"] == {"first": [0], "second": [0]}
    other = compare_validations(first, result(tmp_path / "other.json", None))
    assert other["different"] == ["apps/one: noop"]
    assert other["second"] == {"kind": "other"}


@pytest.mark.parametrize(
    ("change", "named"), [({"sha256": "b"}, "two versions"), ({"task": "apps/two"}, "no task in common")]
)
def test_what_cannot_be_compared_is_refused(tmp_path, change, named):
    first = result(tmp_path / "first.json", 0)
    with pytest.raises(UserError, match=named):
        compare_validations(first, result(tmp_path / "second.json", 0, **change))


@pytest.mark.parametrize(
    "content", ["{}", "", "[]", '{"kind": "a", "tasks": [1]}', '{"kind": "a", "tasks": [{"task": "a/b"}]}']
)
def test_a_file_that_is_no_validation_is_refused(tmp_path, content):
    path = tmp_path / "odd.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"odd\.json is no result"):
        compare_validations(path, path)


def test_only_what_kills_chromium_waits_for_its_writes(monkeypatch):
    killed = {"postconfig": [{"type": "launch", "parameters": {"command": ["pkill", "chrome"]}}]}
    other = {"postconfig": [{"type": "launch", "parameters": {"command": ["pkill", "vlc"]}}]}
    chrome, vlc = (Task("t", "apps", "", [], evaluator, {}, "") for evaluator in (killed, other))
    monkeypatch.setattr("time.monotonic", lambda: 100.0)
    assert seconds_to_settle(chrome, 99.0) == CHROMIUM_WRITES_S - 1
    assert seconds_to_settle(chrome, 90.0) == 0
    assert seconds_to_settle(chrome, None) == 0
    assert seconds_to_settle(vlc, 99.9) == 0
