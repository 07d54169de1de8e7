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
from arpo_replica.doctor.machine import Machine
from arpo_replica.doctor.registry import Finding, Level, all_checks, check_machine
from arpo_replica.doctor.report import examine, fill, run, table, to_json, to_text
from doctor_cases import CASES, CONTAINER, CUDA, ELSEWHERE, FOLDER, OSWORLD, REMOTE, SERVED, VMWARE, make
from doctor_machine import FakeMachine

CHECKS = all_checks()
OK = Level.OK


def special(monkeypatch, tmp_path, ill: dict[str, Any]) -> dict[str, Any]:
    """Illnesses that no table can hold."""
    from arpo_replica.doctor import checks_study
    from fakes import make_task

    if kinds := ill.pop("kinds", None):
        tasks = [make_task(number) for number in range(4)]
        if kinds == "live":
            tasks[0].raw["proxy"] = True
        elif kinds == "google":
            tasks[0].config.append({"type": "googledrive"})
        else:
            for task in tasks[: 1 if "few" in kinds else 4]:
                task.evaluator["func"] = "infeasible"
        monkeypatch.setattr(checks_study, "known_tasks", lambda config: tasks)
    monkeypatch.setenv("ARPO_CACHE", str(tmp_path))
    from arpo_replica.suites.osworld.downloads import default_cache

    if ill.pop("empty_cache", False):
        default_cache().mkdir(parents=True, exist_ok=True)
        (default_cache() / "half").write_text("")
        ill |= {"found": {"**/*": ["half"]}, "sizes": {"half": 0}}
    if ill.get("closed") == "cache":
        ill["closed"] = (str(default_cache()),)
    if ill.get("containers") == "abandoned":
        from arpo_replica.providers.docker_engine import OWNER, owner

        parts = owner().split("/")
        ill["containers"] = [{OWNER: "/".join([*parts[:2], "999999999", "1"])}]
    return ill


@pytest.mark.parametrize(
    ("name", "level", "changes", "ill", "words"),
    CASES,
    ids=[f"{number}-{case[0]}-{case[1]}" for number, case in enumerate(CASES)],
)
def test_a_check(name, level, changes, ill, words, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    check, config = CHECKS[name], make(changes)
    machine = FakeMachine(**special(monkeypatch, tmp_path, dict(ill)))
    assert check.when(config), "the check would not run for this config"
    found = check.run_anyway(machine) if check.run_anyway else check.run(config, machine)
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
        ({}, {"user_namespaces", "cpu_instructions"}, {"docker_daemon", "kvm", "gpu", "endpoint"}),
        (CONTAINER, {"docker_daemon", "desktop_image"}, {"kvm", "user_namespaces", "osworld_image"}),
        (OSWORLD, {"docker_daemon", "kvm", "osworld_vm"}, {"desktop_image", "vmware"}),
        (VMWARE, {"vmware", "osworld_vm"}, {"docker_daemon", "kvm", "osworld_image"}),
        (REMOTE, {"remote_desktops"}, {"docker_daemon", "user_namespaces", "desktop_provider"}),
        (CUDA, {"gpu", "gpu_memory"}, {"cpu_instructions"}),
        (SERVED, {"endpoint", "heavy_packages"}, {"model_folder"}),
        (ELSEWHERE, {"endpoint"}, {"heavy_packages", "cpu_instructions", "named_model", "model_folder"}),
        (ELSEWHERE | CUDA, {"endpoint"}, {"heavy_packages", "gpu", "gpu_memory", "gpu_access"}),
    ],
)
def test_only_what_a_config_needs_is_checked(changes, there, absent):
    config = make(changes)
    asked = {name for name, check in CHECKS.items() if check.when(config)}
    assert there <= asked
    assert not absent & asked


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
def test_a_broken_config_is_one_failure_and_the_machine_is_still_checked(content, tmp_path, capsys):
    path = tmp_path / "x.yaml"
    if content is not None:
        path.write_text(content)
    assert run([path], machine=FakeMachine()) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("FAIL config")
    assert len(lines) == 2 + sum(check.run_anyway is not None for check in CHECKS.values())
    assert lines[-1].endswith("0 warnings, 1 failures")


def test_exit_status_and_json(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    demo = [Path("configs/demo.yaml")]
    assert run(demo, machine=FakeMachine()) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("0 warnings, 0 failures")
    assert run(demo, as_json=True, machine=FakeMachine(cores=1, soft_NPROC=9)) == 1
    out = capsys.readouterr().out
    assert out.isascii()
    said = {entry["name"]: entry for entry in json.loads(out)["checks"]}
    assert said["cores"]["level"] == "WARN"
    assert (said["processes"]["level"], said["processes"]["fix"][:9]) == ("FAIL", "ulimit -u")
    assert run(demo, only="system,processes", machine=FakeMachine(soft_NPROC=9)) == 1
    assert [line[:5].strip() for line in capsys.readouterr().out.splitlines()[:3]] == ["OK", "OK", "FAIL"]
    with pytest.raises(UserError, match="'nonsense', which is no check"):
        run(demo, only="nonsense", machine=FakeMachine())


def test_the_command_line_on_this_machine(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert cli.main(["doctor", "--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(CHECKS)
    status = cli.main(
        ["doctor", "--config", "configs/demo.yaml", "--only", "system,python_version,memory,git"]
    )
    lines = capsys.readouterr().out.splitlines()
    assert status in (0, 1)
    assert len(lines) == 6
    assert all(re.match(r"(OK  |WARN|FAIL) ", line) for line in lines[:-1])
    assert cli.main(["doctor", "--only", "nonsense"]) == 2


def test_a_group_of_further_checks_is_easy_to_add_and_names_are_unique():
    with pytest.raises(ValueError, match="two checks are called git"):

        @check_machine("again")
        def git(machine: Machine) -> Finding:
            return Finding(OK, "")


# --- the page -----------------------------------------------------------------------------------------------


def test_the_page_is_what_the_code_says():
    page = (ROOT / "docs/doctor.md").read_text()
    assert table() in page, "run: arpo docs"
    assert fill(page) == page
