"""Every check of the doctor on machines that are well and on machines that are not."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from arpo_replica import cli
from arpo_replica.base.environments import ROOT
from arpo_replica.base.errors import UserError
from arpo_replica.config.models import StudyConfig
from arpo_replica.doctor.examine import (
    Finding,
    Level,
    all_checks,
    check,
    examine,
    fill,
    run,
    table,
    to_json,
    to_text,
)
from arpo_replica.doctor.machine import Machine
from doctor_cases import (
    CASES,
    CONTAINER,
    CUDA,
    ELSEWHERE,
    FOLDER,
    NAMED,
    OSWORLD,
    REMOTE,
    SERVED,
    VMWARE,
    make,
)
from doctor_machine import FakeMachine

CHECKS = all_checks()
OK = Level.OK


def special(monkeypatch, ill: dict[str, Any]) -> dict[str, Any]:
    """Illnesses that no table can hold."""
    from arpo_replica.doctor import checks
    from fakes import make_task

    if kinds := ill.pop("kinds", None):
        tasks = [make_task(number) for number in range(4)]
        if kinds == "live":
            tasks[0].raw["proxy"] = True
        else:
            for task in tasks[: 1 if "few" in kinds else 4]:
                task.evaluator["func"] = "infeasible"
        monkeypatch.setattr(checks, "known_tasks", lambda config, splits: tasks)
    return ill


@pytest.mark.parametrize(
    ("name", "level", "changes", "ill", "words"),
    CASES,
    ids=[f"{number}-{case[0]}-{case[1]}" for number, case in enumerate(CASES)],
)
def test_a_check(name, level, changes, ill, words, monkeypatch):
    monkeypatch.chdir(ROOT)
    check, config = CHECKS[name], make(changes)
    machine = FakeMachine(**special(monkeypatch, dict(ill)))
    assert check.applies(config), "the check would not run for this config"
    found = check.run(config, machine)
    assert isinstance(found, Finding)
    assert (found.level, bool(found.fix)) == (level, level is not OK), found
    assert words in f"{found.found} {found.fix}", found


@pytest.mark.parametrize("name", CHECKS)
def test_every_check_is_tried_in_health_and_in_illness(name):
    levels = {case[1] for case in CASES if case[0] == name}
    assert OK in levels
    assert levels - {OK}, "no case in which it complains"


def test_no_case_is_for_a_check_that_does_not_exist():
    assert {case[0] for case in CASES} == set(CHECKS)


# --- who is asked what -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "there", "absent"),
    [
        ({}, {"study", "chromium", "cpu_instructions"}, {"docker_daemon", "kvm", "gpu", "connections"}),
        (CONTAINER, {"docker_daemon", "playwright_library"}, {"kvm", "chromium", "osworld_pins"}),
        (OSWORLD, {"docker_daemon", "kvm", "osworld_pins", "port_lock"}, {"chromium"}),
        (VMWARE, {"osworld_pins"}, {"docker_daemon", "kvm", "port_lock"}),
        (REMOTE, {"connections"}, {"docker_daemon", "chromium"}),
        (CUDA, {"gpu"}, {"cpu_instructions"}),
        (SERVED, {"connections", "cpu_instructions"}, {"gpu"}),
        (ELSEWHERE, {"connections"}, {"cpu_instructions"}),
        (ELSEWHERE | CUDA, {"connections"}, {"gpu"}),
    ],
)
def test_only_what_a_config_needs_is_checked(changes, there, absent):
    config = make(changes)
    asked = {name for name, check in CHECKS.items() if check.applies(config)}
    assert there <= asked
    assert not absent & asked


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"tasks.root": "/nowhere"}, "/nowhere"),
        ({"training.micro_batch": 7}, "training.micro_batch (7) must divide minibatch_tasks x"),
        ({"training.tasks_per_step": 8, "training.minibatch_tasks": 8}, "has only 4 tasks; lower it"),
        ({"policy.max_model_len": 300}, "policy.max_model_len"),
        (NAMED, "the hub does not answer"),
        (NAMED | {"size": "7b"}, "size"),
        (FOLDER, "policy.model '/m' is no model folder"),
        (SERVED, "http://127.0.0.1:1"),
        (CUDA, "envs/gpu is not installed"),
    ],
)
def test_what_a_study_refuses_is_what_the_doctor_says(changes, sentence, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    refused = Machine().refusals(make({"study": "never_run"} | changes))  # what is finished lacks nothing
    assert any(sentence in one for one in refused), refused
    assert all(one.endswith(".") for one in refused)


# --- the command -------------------------------------------------------------------------------------------


class BrokenMachine(Machine):
    """Every question ends in an exception."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(f"no {name}\nhere")


@pytest.mark.parametrize("changes", [{}, CONTAINER, OSWORLD, VMWARE, REMOTE, CUDA | FOLDER | SERVED])
def test_no_state_of_a_machine_gives_a_traceback(changes, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    path = tmp_path / "demo.yaml"
    path.write_text(yaml.safe_dump(json.loads(make(changes).model_dump_json())))
    findings = examine([path], BrokenMachine(), CHECKS.values())
    text = to_text(findings)
    assert "the check itself broke: RuntimeError: no " in text
    assert len(text.splitlines()) == len(findings) + 1
    assert json.loads(to_json([path], findings))["failures"] > 10


@pytest.mark.parametrize("content", [None, "a: [", "study: 3", "- 1", "\0", "policy: {recipe: [1]}"])
def test_a_broken_config_is_one_failure_and_the_machine_is_still_checked(content, tmp_path):
    path = tmp_path / "x.yaml"
    if content is not None:
        path.write_text(content)
    text, status = run([path], machine=FakeMachine())
    assert status == 1
    lines = text.splitlines()
    assert lines[0].startswith("FAIL config")
    assert len(lines) == 2 + sum(check.when is None for check in CHECKS.values())
    assert lines[-1].endswith("0 warnings, 1 failures")


def test_exit_status_and_json(monkeypatch):
    monkeypatch.chdir(ROOT)
    demo = [Path("configs/demo.yaml")]
    text, status = run(demo, machine=FakeMachine())
    assert text.endswith("0 warnings, 0 failures") and status == 0
    text, status = run(demo, as_json=True, machine=FakeMachine(cores=1, soft_NPROC=9))
    assert text.isascii() and status == 1
    said = {entry["name"]: entry for entry in json.loads(text)["checks"]}
    assert said["cores"]["level"] == "WARN"
    assert (said["limits"]["level"], said["limits"]["fix"][:9]) == ("FAIL", "ulimit -u")
    text, status = run(demo, only="system,limits", machine=FakeMachine(soft_NPROC=9))
    assert [line[:5].strip() for line in text.splitlines()[:3]] == ["OK", "OK", "FAIL"] and status == 1
    with pytest.raises(UserError, match="'nonsense', which is no check"):
        run(demo, only="nonsense", machine=FakeMachine())


def test_the_command_line_on_this_machine(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert cli.main(["doctor", "--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(CHECKS)
    status = cli.main(["doctor", "--config", "configs/demo.yaml", "--only", "system,temp_folder,memory,git"])
    lines = capsys.readouterr().out.splitlines()
    assert status in (0, 1)
    assert len(lines) == 6
    assert all(re.match(r"(OK  |WARN|FAIL) ", line) for line in lines[:-1])
    assert cli.main(["doctor", "--only", "nonsense"]) == 2


def test_a_group_of_further_checks_is_easy_to_add_and_names_are_unique():
    with pytest.raises(ValueError, match="two checks are called git"):

        @check("again", when=None)
        def git(config: StudyConfig | None, machine: Machine) -> Finding:
            return Finding(OK, "")


# --- the page -----------------------------------------------------------------------------------------------


def test_the_page_is_what_the_code_says():
    page = (ROOT / "docs/doctor.md").read_text()
    assert table() in page, "run: arpo docs"
    assert fill(page) == page
