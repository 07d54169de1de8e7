"""What a container desktop may not do."""

import json
import socket
import subprocess

import pytest
import pytest_asyncio
from docker_helpers import IMAGE, facts, inside, name_of, provider, task

from arpo_replica.actions.types import Wait
from arpo_replica.base.errors import DesktopError, UserError
from arpo_replica.providers.container import SPARE_MB
from arpo_replica.providers.docker_engine import SUDO_CAPABILITIES

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="module")]

MANY = "import subprocess; [subprocess.Popen(['sleep', '2']) for _ in range(200)]"
ADDRESSES = subprocess.getoutput("hostname -I").split()[:3]
"""Where this machine can be reached from elsewhere."""
CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 2)"


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def desktop(engine):
    desktop = await provider().start("test")
    await desktop.reset(task())
    yield desktop
    await desktop.close()


@pytest.fixture(autouse=True)
def nothing_is_left():
    """The module's desktop outlives a test; ``test_container_lifecycle`` looks at what is left."""


async def test_no_network(engine, desktop):
    assert facts(engine, desktop)["HostConfig"]["NetworkMode"] == "none"
    assert await inside(desktop, "ls /sys/class/net") == "lo"
    with socket.create_server(("0.0.0.0", 0)) as server:
        port = str(server.getsockname()[1])
        for address in ADDRESSES:
            result = await desktop.guest.execute(["python3", "-c", CONNECT, address, port])
            assert result["returncode"] != 0
            assert "unreachable" in result["error"] or "Cannot assign" in result["error"], address
    assert facts(engine, desktop)["HostConfig"]["PortBindings"] in (None, {})


async def test_unprivileged_and_read_only(engine, desktop):
    assert await inside(desktop, "id -un; id -u") == "user\n1000"
    status = await inside(desktop, "cat /proc/self/status")
    values = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert int(values["CapBnd"], 16) == int(values["CapPrm"], 16) == 0
    assert values["NoNewPrivs"] == "1"
    assert values["Seccomp"] == "2"
    for place in ("/etc", "/usr/bin", "/opt/desktop/guest", "/"):
        assert "Read-only" in (await desktop.guest.execute(["touch", f"{place}/x"]))["error"]
    sudo = await desktop.guest.execute("echo password | sudo -S id -u", shell=True)
    assert sudo["returncode"] != 0
    assert "no new privileges" in sudo["error"]
    # Nothing of the way in is left to be found, neither the owner's socket nor the daemon's.
    assert (await desktop.guest.execute(["touch", "/run/arpo/x"]))["returncode"] != 0
    assert await inside(desktop, "ls -A /run/arpo; ls /var/run/docker.sock 2>/dev/null") == ""


async def test_the_guest_server_cannot_be_tampered_with(desktop):
    """A policy with a terminal is the same user; what the guest says decides the score."""
    attach = (
        "import ctypes; c = ctypes.CDLL(None, use_errno=True); "
        "print(c.ptrace(16, 1, 0, 0), ctypes.get_errno())"
    )
    assert (await desktop.guest.execute(["python3", "-c", attach]))["output"] == "-1 1\n"
    for place in ("/proc/1/mem", "/proc/1/environ", "/proc/1/fd"):
        assert (await desktop.guest.execute(f"ls {place}/ || cat {place}", shell=True))["returncode"] != 0
    assert (
        await inside(desktop, "for s in KILL STOP TERM INT; do kill -$s 1; done; sleep 0.3; echo alive")
        == "alive"
    )
    listening = await inside(desktop, "cat /proc/net/tcp /proc/net/tcp6 | awk '$4 == \"0A\"' | wc -l")
    assert listening == "1"  # the desktop's own site


async def test_limits(engine, desktop):
    limits = facts(engine, desktop)["HostConfig"]
    assert limits["Memory"] == limits["MemorySwap"] == (1500 + SPARE_MB) << 20
    assert limits["NanoCpus"] == 2_000_000_000
    assert limits["PidsLimit"] == 2048
    full = await desktop.guest.execute("head -c 2G /dev/zero > ~/large", shell=True)
    assert "No space left" in full["error"]
    await desktop.reset(task())


async def test_a_fork_bomb_fills_its_own_desktop_only(engine, desktop):
    other = await provider(container={"processes": 150}).start("test")
    try:
        await other.reset(task())
        many = await other.guest.execute(["python3", "-c", MANY])
        assert "Resource temporarily unavailable" in many["error"]
        assert (await desktop.guest.execute(["python3", "-c", MANY]))["returncode"] == 0
        await other.reset(task())
        assert await inside(other, "echo fine") == "fine"
    finally:
        await other.close()


async def test_too_much_memory_ends_the_desktop_and_says_so(engine):
    desktop = await provider(memory_mb=600).start("test")
    try:
        await desktop.reset(task())
        await desktop.guest.launch(["python3", "-c", "x = b'x' * (700 << 20); __import__('time').sleep(60)"])
        with pytest.raises(DesktopError, match="MiB of memory"):
            for _ in range(200):
                await desktop.act(Wait(), f"{_}")
        await desktop.reset(task())
        assert await inside(desktop, "echo alive") == "alive"
    finally:
        await desktop.close()


async def test_sudo_only_for_tasks_that_speak_of_it(engine):
    desktop = await provider().start("test")
    try:
        await desktop.reset(task(instruction="Install it; sudo's password is 'password'."))
        host = facts(engine, desktop)["HostConfig"]
        assert sorted(host["CapAdd"]) == sorted(SUDO_CAPABILITIES)
        assert host["CapDrop"] == ["ALL"]
        assert host["NetworkMode"] == "none"
        assert not host["Privileged"]
        assert await inside(desktop, "echo password | sudo -S id -u") == "0"
        assert await inside(desktop, "echo password | sudo -S useradd charles && id -un charles") == "charles"
        special = name_of(desktop)
        await desktop.reset(task())
        assert name_of(desktop) != special
        assert facts(engine, desktop)["HostConfig"]["CapAdd"] is None
    finally:
        await desktop.close()


async def test_network_only_for_tasks_that_declare_it(engine):
    desktop = await provider().start("test")
    try:
        await desktop.reset(task(proxy=True))
        assert "eth0" in await inside(desktop, "ls /sys/class/net")
        await desktop.reset(task(proxy=False))
        assert await inside(desktop, "ls /sys/class/net") == "lo"
    finally:
        await desktop.close()
    desktop = await provider(container={"network": "never"}).start("test")
    try:
        await desktop.reset(task(proxy=True))
        assert await inside(desktop, "ls /sys/class/net") == "lo"
    finally:
        await desktop.close()


async def test_what_is_missing_is_named(engine, monkeypatch):
    with pytest.raises(UserError, match=r"no image arpo-desktop:none.*container\.image"):
        provider(container={"image": "arpo-desktop:none"}).check()
    with pytest.raises(UserError, match="no image"):
        await provider(container={"image": "arpo-desktop:none"}).start("test")
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    with pytest.raises(UserError, match="No Docker daemon answers at unix:///nowhere"):
        provider(container={"engine": "docker"}).check()


async def test_provenance(engine):
    described = json.loads(json.dumps(provider().describe()))
    assert described["mark"] == "OSWorld-compatible, container desktop"
    assert described["image"] == engine.image(IMAGE)["id"]
    assert {"chromium", "gimp", "libreoffice-core", "vlc"} <= described["packages"].keys()
