"""What is done to desktop-env: for one version only, and nothing more than is said."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import psutil
import pytest
from osworld_tasks import gone, make_task, process_of

from arpo_replica.base.environments import python_of
from arpo_replica.base.errors import DesktopError, UserError
from arpo_replica.base.processes import command_of
from arpo_replica.config.desktop import DesktopConfig
from arpo_replica.providers import osworld
from arpo_replica.providers.osworld import OSWorldProvider
from arpo_replica.suites.osworld import inventory
from arpo_replica.suites.osworld.client import OSWorldWorker
from fake_guest import SCREEN, FakeGuest
from fakes import stop_server


def in_evaluator(code):
    """What a script prints in envs/evaluator."""
    done = subprocess.run(
        [python_of("evaluator"), "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    return done.stdout.strip() or done.stderr.strip().splitlines()[-1]


def test_the_committed_inventory_is_what_desktop_env_has():
    listed = in_evaluator(Path(__file__).with_name("list_evaluators.py").read_text())
    assert json.loads(listed[listed.index("{") :]) == json.loads(inventory.PATH.read_text())


def test_another_version_is_refused():
    code = "from arpo_replica.suites.osworld import desktop_env as u; u.VERSION = '9.9'; u.prepare()"
    assert "desktop_env.py is for desktop-env 9.9, not 1.0.2" in in_evaluator(code)


def test_no_torch_and_a_stub_for_text_recognition():
    code = (
        "import sys, desktop_env.desktop_env, easyocr\n"
        "print('torch' in sys.modules, 'transformers' in sys.modules, flush=True)\n"
        "easyocr.Reader(['en'])"
    )
    assert in_evaluator(code).splitlines()[-1] in ("False False", "True True")


VMRUN = """#!/bin/sh
echo "$@" >> {log}
case "$*" in
  *list) echo {machine};;
  *never.vmx*) exec sleep 1000;;
  *getGuestIPAddress*) echo 127.0.5.1;;
esac
"""


@pytest.fixture
def vmrun(tmp_path, monkeypatch):
    """A ``vmrun`` whose one machine, ``Ubuntu.vmx``, runs and is at 127.0.5.1; the folder of both."""
    machine = tmp_path / "Ubuntu.vmx"
    machine.touch()
    (tmp_path / "vmrun").write_text(VMRUN.format(log=tmp_path / "log", machine=machine))
    (tmp_path / "vmrun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("ARPO_CACHE", str(tmp_path / "cache"))
    yield tmp_path
    stop_server()


async def test_vmware_through_desktop_envs_provider(vmrun, monkeypatch):
    def no_proc():
        raise FileNotFoundError("a Mac has no /proc")

    monkeypatch.setattr(osworld, "owner", no_proc)
    machine = vmrun / "Ubuntu.vmx"
    own = {"hypervisor": "vmware", "vm": machine, "settle_ms": 100}
    with pytest.raises(UserError, match=r"set desktop\.count to 1"):
        OSWorldProvider(DesktopConfig(provider="osworld", screen=SCREEN, osworld=own)).check()
    provider = OSWorldProvider(DesktopConfig(provider="osworld", screen=SCREEN, osworld=own, count=1))
    provider.check()
    assert provider.describe()["hypervisor"] == "vmware"
    async with FakeGuest("127.0.5.1", 5000):
        desktop = await provider.start("vm")
        assert (desktop.address.host, desktop.address.server) == ("127.0.5.1", 5000)
        for _ in range(2):
            await desktop.reset(make_task())
        assert await desktop.evaluate(make_task(), None) == 0.0
        await desktop.close()
    said = (vmrun / "log").read_text()
    assert said.count(f"revertToSnapshot {machine} init_state") == 1
    assert said.count(f"stop {machine}") == 1
    # A machine that never comes up costs its time and leaves nothing behind.
    keeper = await OSWorldWorker.start("x", confine=False)
    pid = process_of(keeper)
    with pytest.raises(DesktopError, match="longer than 2 s"):
        await keeper.start_desktop(
            2,
            hypervisor="vmware",
            vm=str(vmrun / "never.vmx"),
            snapshot="s",
            mark="m",
            screen=[1, 1],
            password="p",
        )
    assert gone(pid)
    assert "sleep 1000" not in [command_of(process) for process in psutil.process_iter()]
