"""desktop-env's own DockerProvider, unmodified, on our image under the genuine name."""

from __future__ import annotations

import asyncio
import json

import pytest
from docker_helpers import IMAGE, LARGE

from arpo_replica.actions.types import Click, Fail, Finished, TypeText, Wait
from arpo_replica.base.environments import ROOT
from arpo_replica.base.errors import DesktopError
from arpo_replica.config.desktop import DesktopConfig
from arpo_replica.providers import osworld
from arpo_replica.providers.osworld import OSWorldProvider
from arpo_replica.tasks.model import Task, load_task
from fakes import stop_server
from real_tasks import EXAMPLES, at_hand

TEXT = "if a<b & 'c' \"d\" \\n {x} $HOME `id`:\n\tÄé€ 漢字 >> <<ok>>"
EDITOR = """
import tkinter
root = tkinter.Tk()
root.geometry("900x500+0+0")
text = tkinter.Text(root)
text.pack(fill="both", expand=True)
def save():
    open("/tmp/typed", "w", encoding="utf-8").write(text.get("1.0", "end-1c"))
    root.after(50, save)
save()
root.mainloop()
"""


@pytest.fixture(scope="module")
def provider(engine):
    if not (ROOT / "envs" / "evaluator" / ".venv" / "prepared").is_file():
        pytest.skip("envs/evaluator is not installed (python3 envs/prepare.py evaluator)")
    image = engine._client.images.get(IMAGE)
    repository, _, tag = osworld.IMAGE.rpartition(":")
    image.tag(repository, tag)
    config = DesktopConfig(
        provider="osworld", screen=LARGE, start_timeout_s=120, osworld={"image_digest": image.id}
    )
    provider = OSWorldProvider(config)
    provider.check()
    yield provider
    stop_server()


def ours(desktops):
    """Containers of these desktops."""
    marks = {desktop.mark for desktop in desktops}
    return [one for one, mark in osworld.OSWorldEngine().marked().items() if mark in marks]


def typing():
    """A task with a plain text window that expects ``TEXT``."""
    raw = {
        "id": "typing",
        "instruction": "Type.",
        "config": [
            {"type": "launch", "parameters": {"command": ["python3", "-c", EDITOR]}},
            {
                "type": "execute",
                "parameters": {"command": ["test", "-e", "/tmp/typed"], "until": {"returncode": 0}},
            },
        ],
        "evaluator": {
            "func": "exact_match",
            "result": {"type": "vm_command_line", "command": ["cat", "/tmp/typed"]},
            "expected": {"type": "rule", "rules": {"expected": TEXT}},
        },
    }
    return Task("typing", "test", "Type.", raw["config"], raw["evaluator"], json.loads(json.dumps(raw)), "0")


async def test_what_is_typed_arrives_and_a_reset_forgets_it(provider):
    facts = provider.describe()
    assert facts["mark"] == "OSWorld-compatible, container desktop"
    assert facts["desktop_env"] == "1.0.2"
    desktop = await provider.start("one")
    try:
        task = typing()
        await desktop.reset(task)
        await desktop.act(Click(400, 250), "1")
        await desktop.act(TypeText(TEXT), "2")
        await desktop.act(TypeText(TEXT), "2")  # the same action again
        await desktop.act(Wait(), "3")
        assert (await desktop.screenshot()).startswith(b"\x89PNG")
        assert await desktop.evaluate(task, Finished()) == 1.0
        assert await desktop.evaluate(task, Fail()) == 0.0
        (before,) = ours([desktop])
        await desktop.reset(task)
        (after,) = ours([desktop])
        assert before != after
        assert await desktop.evaluate(task, Finished()) == 0.0
    finally:
        await desktop.close()
    assert ours([desktop]) == []


async def test_desktops_that_start_together_get_ports_of_their_own(provider, engine):
    desktops = await asyncio.gather(*(provider.start(f"many-{number}") for number in range(8)))
    try:
        ports = [port for desktop in desktops for port in (desktop.address.server, desktop.address.chromium)]
        assert len(set(ports)) == 16
        first, second = desktops[:2]
        await asyncio.gather(*(desktop.reset(typing()) for desktop in (first, second)))
        # One is killed in mid-episode: that is an error there, and nothing to the other one.
        (container,) = ours([first])
        engine.remove(container)
        with pytest.raises(DesktopError):
            await first.act(Click(1, 1), "1")
        with pytest.raises(DesktopError, match="the desktop is gone"):
            await first.evaluate(typing(), Finished())
        assert await second.evaluate(typing(), Finished()) == 0.0
    finally:
        await asyncio.gather(*(desktop.close() for desktop in desktops))
    assert ours(desktops) == []


@at_hand
async def test_real_task_files(provider):
    desktop = await provider.start("real")
    try:
        rename = load_task(EXAMPLES / "os" / "e0df059f-28a6-4169-924f-b9623e7184cc.json")
        await desktop.reset(rename)
        assert await desktop.evaluate(rename, Finished()) == 0.0
        move = "mv ~/Desktop/todo_list_Jan_1 ~/Desktop/todo_list_Jan_2"
        assert (await desktop.guest.execute(move, shell=True))["returncode"] == 0
        assert await desktop.evaluate(rename, Finished()) == 1.0
        infeasible = load_task(EXAMPLES / "os" / "c288e301-e626-4b98-a1ab-159dcb162af5.json")
        await desktop.reset(infeasible)
        assert await desktop.evaluate(infeasible, Fail()) == 1.0
        assert await desktop.evaluate(infeasible, Finished()) == 0.0
    finally:
        await desktop.close()
