"""Which demonstrations of an earlier recording are kept: those that this one would make again, whole ones."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest
from test_records import write

from arpo_replica.base.errors import DesktopError, UserError
from arpo_replica.config import load_config
from arpo_replica.models.nano import demonstrations
from arpo_replica.models.nano.demonstrations import _keep_valid, record_demonstrations
from arpo_replica.rollout.records import finished_episodes
from fakes import FakeProvider, make_task

MADE_WITH: dict[str, object] = {"seed": 0}
DEMO = load_config(Path(__file__).parents[2] / "configs" / "demo.yaml")


def kept(root: Path, made_with: dict[str, object] = MADE_WITH, tasks: int = 3) -> list[str]:
    return [name for _, name in _keep_valid(root, [make_task(n) for n in range(tasks)], made_with)]


def test_only_successes_of_this_very_recording_are_kept(tmp_path):
    assert kept(tmp_path) == []  # notes what decides the episodes
    for number, outcome in enumerate(("success", "env_error", "success", "success")):
        write(tmp_path, number, outcome=outcome)
    assert kept(tmp_path) == ["task-000", "task-002"]
    assert kept(tmp_path, {"seed": 1}) == []
    assert finished_episodes(tmp_path) == {}


def test_a_kill_while_an_old_one_is_removed_stops_no_later_recording(tmp_path, monkeypatch):
    kept(tmp_path)
    write(tmp_path, 0)
    path = write(tmp_path, 1, outcome="env_error")

    class Killed(BaseException):
        pass

    def killed(folder, **options):
        (Path(folder) / "steps.jsonl").unlink()
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(Killed):
            kept(tmp_path)
    assert not path.exists()
    assert kept(tmp_path) == ["task-000"]


def test_an_episode_that_cannot_be_read_is_recorded_anew(tmp_path):
    kept(tmp_path)
    path = write(tmp_path, 0)
    (path / "steps.jsonl").unlink()
    assert kept(tmp_path) == []
    assert not path.exists()


def test_a_desktop_that_does_not_start_is_named(tmp_path):
    def first(number: int) -> None:
        raise DesktopError("no display")

    with pytest.raises(DesktopError, match="no display"):
        asyncio.run(record_demonstrations(DEMO, tmp_path, FakeProvider(start=first)))


def test_an_expert_that_fails_leaves_no_index(tmp_path, monkeypatch):
    async def draw(devtools, nano):
        return [make_task(number) for number in range(20)]

    class Lost:
        def start(self, task):
            return self

        async def reply(self, screenshot):
            raise DesktopError("the expert's script is gone")

    monkeypatch.setattr(demonstrations, "draw_tasks", draw)
    monkeypatch.setattr(demonstrations, "Expert", lambda devtools, frame: Lost())
    monkeypatch.setattr("fakes.FakeDesktop.devtools", None, raising=False)
    provider = FakeProvider()
    with pytest.raises(DesktopError, match="the expert failed in 20 of 20 demonstrations"):
        asyncio.run(record_demonstrations(DEMO, tmp_path, provider))
    assert not (tmp_path / "episodes.jsonl").exists()
    assert all(desktop.closed for desktop in provider.desktops)


def test_what_ends_a_recording_is_one_error(tmp_path, monkeypatch):
    """Not a group of them, which the job would show as a traceback."""

    async def draw(devtools, nano):
        return [make_task(number) for number in range(nano.demonstrations)]

    def gone(event, desktop):
        if event == "reset" and desktop.task is not None and desktop.task.id.startswith("task-"):
            raise UserError("The image is gone; build it.")

    provider = FakeProvider(gone)
    monkeypatch.setattr(demonstrations, "draw_tasks", draw)
    monkeypatch.setattr("fakes.FakeDesktop.devtools", None, raising=False)
    with pytest.raises(UserError, match=r"^The image is gone; build it\.$"):
        asyncio.run(record_demonstrations(DEMO, tmp_path, provider))
    assert all(desktop.closed for desktop in provider.desktops)
