"""Which OSWorld tasks desktop-env can run, decided from committed data."""

import pytest

from arpo_replica.actions.types import Fail, Finished
from arpo_replica.base.errors import UserError
from arpo_replica.suites.evaluate import check_provider, check_task, uses_osworld, verdict
from arpo_replica.suites.miniwob.pages import blank_task
from arpo_replica.suites.osworld import inventory
from arpo_replica.suites.osworld.inventory import read_inventory, read_version, why_not
from arpo_replica.tasks.model import Task
from real_tasks import EXAMPLES, at_hand

GOOD = {"func": "exact_match", "result": {"type": "vm_command_line"}, "expected": {"type": "rule"}}


def make(evaluator, config=(), name="t"):
    raw = {"id": name, "instruction": "Do it.", "config": list(config), "evaluator": evaluator}
    return Task(name, "os", "Do it.", raw["config"], evaluator, raw, "0")


def test_the_committed_list_is_of_the_locked_version():
    lock = (inventory.ROOT / "envs" / "evaluator" / "requirements.txt").read_text()
    assert f"desktop-env=={read_version()} " in lock
    known = read_inventory()
    assert {"compare_table", "infeasible", "exact_match"} <= known["metrics"]
    assert {"vm_file", "cloud_file", "rule"} <= known["getters"]
    assert {"download", "launch", "execute", "command", "open"} <= known["set_up"]
    assert not {"act", "replay", "tidy_desktop", "proxy"} & known["set_up"]  # they only raise


@pytest.mark.parametrize(
    ("evaluator", "config", "message"),
    [
        (GOOD | {"func": "check_play_and_exit"}, [], "'check_play_and_exit' does not exist in desktop-env"),
        (GOOD | {"result": {"type": "none"}}, [], "state type 'none' does not exist"),
        (GOOD | {"expected": {"type": "none"}}, [], "state type 'none' does not exist"),
        (GOOD, [{"type": "replay", "parameters": {}}], "set-up step 'replay' does not exist"),
        (GOOD | {"postconfig": [{"type": "act"}]}, [], "set-up step 'act' does not exist"),
        (GOOD, [{"type": "login", "parameters": {}}], "'login' needs a Google account"),
        (GOOD | {"result": {"type": "googledrive_file"}}, [], "needs a Google account"),
        ({"func": ["exact_match"], "result": {"type": "rule"}}, [], "1 functions, but not as many"),
        (
            {"func": ["exact_match"] * 2, "result": [{"type": "rule"}] * 2, "conj": "xor"},
            [],
            "'conj' is 'xor'",
        ),
    ],
)
def test_what_desktop_env_cannot_run_is_refused_before_a_run(evaluator, config, message):
    task = make(evaluator, config)
    assert why_not(task) and why_not(make(GOOD)) is None
    with pytest.raises(UserError, match=message):
        check_task(task)


def test_text_recognition_is_an_extra(monkeypatch):
    task = make(GOOD | {"func": "compare_image_text"})
    monkeypatch.setattr(inventory, "_reads_text", lambda: False)
    with pytest.raises(UserError, match=r"needs easyocr, an extra \(docs/osworld\.md"):
        check_task(task)
    monkeypatch.setattr(inventory, "_reads_text", lambda: True)
    check_task(task)


def test_tasks_of_our_own_never_go_to_desktop_env():
    assert not uses_osworld(blank_task()), "demonstrations begin on it, in containers too"
    assert not uses_osworld(make({"func": "miniwob_reward", "result": {"type": "miniwob_episode"}}))
    for evaluator in (GOOD, {"func": "infeasible"}, {"func": ["exact_match"]}):
        assert uses_osworld(make(evaluator))


def test_tasks_are_refused_where_they_cannot_run():
    ours, theirs = make({"func": "miniwob_reward"}), make(GOOD)
    for kind, good, bad in (("process", ours, theirs), ("osworld", theirs, ours)):
        check_provider([good], kind)
        with pytest.raises(UserError, match=r"set desktop\.provider to 'container'"):
            check_provider([good, bad], kind)
    check_provider([ours, theirs], "container")


def test_fail_and_infeasible_are_decided_in_one_place():
    impossible, possible = make({"func": "infeasible"}), make(GOOD)
    assert [verdict(impossible, last) for last in (Fail(), Finished(), None)] == [1.0, 0.0, 0.0]
    assert [verdict(possible, last) for last in (Fail(), Finished(), None)] == [0.0, None, None]


@at_hand
def test_all_of_osworlds_tasks_but_those_known():
    from arpo_replica.tasks.model import load_task

    tasks = [load_task(path) for path in sorted(EXAMPLES.glob("*/*.json"))]
    reasons = {task.id: reason for task in tasks if (reason := why_not(task))}
    assert len(tasks) == 369
    assert sum("Google account" in reason for reason in reasons.values()) == 8
    missing = sorted(key[:8] for key, reason in reasons.items() if "does not exist" in reason)
    assert missing == ["5ac2891a", "93eabf48", "e8172110"]
    assert len(reasons) in (11, 12)  # with or without easyocr
