"""Container desktops without a daemon: what a task gets, who owns what, what an image is made of."""

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml

from arpo_replica.config import parse_config
from arpo_replica.config.decides import decides
from arpo_replica.config.desktop import DesktopConfig
from arpo_replica.providers.container import (
    Kind,
    container_spec,
    guest_settings,
    kind_of,
    needs_sudo,
    opens_window,
)
from arpo_replica.providers.desktop_image import FOLDER, ImageInputs, image_files
from arpo_replica.providers.docker_engine import abandoned, owner
from arpo_replica.providers.relay import owner_of, relay
from arpo_replica.tasks.model import Task
from arpo_replica.workflow.study import Study
from guest.container_start import image_config
from guest.files import BACKGROUND, static_files, write_x_authority


def task(config=(), **raw):
    return Task("t", "os", raw.get("instruction", ""), list(config), {}, {"config": list(config), **raw}, "")


def launch(*command):
    return {"type": "launch", "parameters": {"command": list(command)}}


@pytest.mark.parametrize(
    ("raw", "network", "sudo"),
    [
        ({}, False, False),
        ({"proxy": True}, True, False),
        ({"proxy": False, "arpo_network": True}, True, False),
        ({"instruction": "My computer's password is 'password'."}, False, True),
        ({"config": [{"parameters": {"command": "echo {CLIENT_PASSWORD} | sudo -S apt"}}]}, False, True),
    ],
)
def test_a_task_gets_what_it_declares(raw, network, sudo):
    assert kind_of(task(**{"config": [], **raw}), DesktopConfig()) == Kind(network, sudo)
    never = DesktopConfig(container={"network": "never", "sudo": "never"})
    assert kind_of(task(**{"config": [], **raw}), never) == Kind()
    always = DesktopConfig(container={"network": "always", "sudo": "always"})
    assert kind_of(task(**{"config": [], **raw}), always) == Kind(True, True)


def test_sudo_is_looked_for_in_every_part_of_the_file():
    assert needs_sudo(task(evaluator={"postconfig": [{"command": ["sudo", "ls"]}]}))
    assert not needs_sudo(task(evaluator={"func": "exact_match"}))


def test_windows_are_awaited_for_programs_that_have_one():
    assert opens_window(task([launch("google-chrome", "--remote-debugging-port=1337")]))
    assert opens_window(task([{"type": "open", "parameters": {"path": "/home/user/a.xlsx"}}]))
    assert opens_window(task([{"type": "launch", "parameters": {"command": "vlc /home/user/a.mp4"}}]))
    assert not opens_window(task([launch("socat", "tcp-listen:9222,fork", "tcp:localhost:1337")]))
    assert not opens_window(task([{"type": "launch", "parameters": {"command": ""}}]))


def test_an_owner_is_one_process():
    mine = owner()
    assert mine == owner()
    assert not abandoned(mine)
    boot, namespace, pid, started = mine.split("/")
    assert abandoned(f"{boot}/{namespace}/{pid}/{int(started) + 1}")  # its number was given to another
    assert not abandoned(f"{boot}/1/{pid}/{int(started) + 1}")  # in another container: who knows
    assert not abandoned(f"other-boot/{namespace}/{pid}/{int(started) + 1}")
    assert not abandoned("")
    process = subprocess.Popen(["sleep", "60"])
    label = owner(process.pid)
    assert not abandoned(label)
    process.kill()
    process.wait()
    assert abandoned(label)


def test_a_container_is_given_limits():
    config = DesktopConfig(memory_mb=1000, disk_mb=400, container={"cpus": 1.5, "processes": 99})
    spec = container_spec(config, Kind(), name="n", label="l", control=Path("/c"), files={})
    assert (spec.memory_mb, spec.cpus, spec.processes, spec.shared_mb) == (1256, 1.5, 99, 100)
    assert "size=200m" in spec.tmpfs["/home/user"]
    assert all("nosuid" in options and "uid=1000" in options for options in spec.tmpfs.values())
    assert not spec.network
    assert not spec.sudo


def test_the_guest_looks_where_the_image_has_its_files():
    for screen, fullscreen in (((1920, 1080), False), ((168, 224), True)):
        settings = guest_settings(DesktopConfig(screen=screen))
        assert settings.fullscreen is fullscreen
        # What is written while the image is built does not depend on the screen.
        written = static_files(image_config((0, 0), fullscreen))
        assert static_files(settings) == written
        assert f"{settings.bin}/google-chrome" in written
        assert (f"{settings.share}/dock.tint2rc" in written) is not fullscreen


def test_bar_and_dock_have_the_size_of_osworlds():
    windowed = image_config((1920, 1080), fullscreen=False)
    bar, dock = (static_files(windowed)[f"{windowed.share}/{name}.tint2rc"].text for name in ("bar", "dock"))
    assert "panel_size = 100% 27" in bar
    assert "panel_size = 100% 70" in dock
    assert "/usr/share/applications/google-chrome.desktop" in dock
    assert f"background_color = {BACKGROUND} 100" in bar


def test_x_authority_is_read_by_x_programs(tmp_path):
    path = tmp_path / ".Xauthority"
    write_x_authority(path, "0")
    if shutil.which("xauth") is None:
        assert b"MIT-MAGIC-COOKIE-1" in path.read_bytes()
        return
    listed = subprocess.run(["xauth", "-f", str(path), "list"], capture_output=True, text=True, check=True)
    assert "unix:0  MIT-MAGIC-COOKIE-1" in listed.stdout


def test_an_image_is_known_by_all_that_goes_into_it(tmp_path):
    folder = tmp_path / "desktop"
    shutil.copytree(FOLDER, folder)
    digest = ImageInputs(folder, "full", "base").digest()
    assert digest == ImageInputs(FOLDER, "full", "base").digest()
    assert digest != ImageInputs(folder, "core", "base").digest()
    assert digest != ImageInputs(folder, "full", "other").digest()
    (folder / "home" / ".config" / "vlc" / "vlcrc").write_text("changed")
    assert digest != ImageInputs(folder, "full", "base").digest()
    assert {"envs/desktop/Dockerfile", "src/guest/server.py"} <= set(image_files())


def test_only_studies_with_our_containers_build_an_image():
    raw = yaml.safe_load(Path("configs/demo.yaml").read_text())
    assert Study(parse_config(raw, "demo")).desktop_image() == []
    for image, needed in (("arpo-desktop:latest", ["<results>/desktop_image.json"]), ("mine:1", [])):
        desktop = {**raw.get("desktop", {}), "provider": "container", "container": {"image": image}}
        study = Study(parse_config({**raw, "desktop": desktop}, "demo"))
        assert study.desktop_image() == needed
        assert decides(study.config, "collect_rollouts")({})["desktop.container.image"] == image


def test_studies_without_containers_need_no_docker_package():
    code = (
        "import sys; sys.modules['docker'] = None\n"
        "import arpo_replica.workflow.study\n"
        "import arpo_replica.providers.desktop_image, arpo_replica.providers.process\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


ANOTHER_USER = """
import os, socket, sys
os.setuid(65533)  # neither ours nor the evaluators'
with socket.socket() as connection:
    connection.connect(("127.0.0.1", int(sys.argv[1])))
    try:
        connection.send(b"text")
        print("answered", connection.recv(99))
    except ConnectionError:
        print("answered b''")
"""


TABLE = """  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1001        0 11 1 0 100 0 0 10
   1: 0100007F:C350 0100007F:1F90 01 00000000:00000000 00:00000000 00000000  1002        0 12 1 0 20 4 30 10
   2: 0100007F:1F90 0100007F:C350 01 00000000:00000000 00:00000000 00000000  1001        0 13 1 0 20 4 30 10
   3: 0100007F:C351 0100007F:1F90 05 00000000:00000000 00:00000000 00000000     0        0 0 1 0 20 4 30 10
"""


def test_the_kernel_says_whose_a_connection_is():
    ours, theirs, left = (("127.0.0.1", port) for port in (8080, 50000, 50001))
    assert owner_of(TABLE, theirs, ours) == 1002
    assert owner_of(TABLE, left, ours) is None  # its process has gone: the table says 0, which is no maker
    assert owner_of(TABLE, ("127.0.0.2", 50000), ours) is None


async def test_a_relay_carries_both_directions_and_ends():
    async def upper(reader, writer):
        writer.write((await reader.read()).upper())
        await writer.drain()
        writer.close()

    with tempfile.TemporaryDirectory(prefix="t-") as folder:
        server = await asyncio.start_unix_server(upper, f"{folder}/a")
        async with server:
            async with relay(f"{folder}/a", f"{folder}/a", f"{folder}/none") as address:
                assert address.host == "127.0.0.1"
                ports = (address.server, address.chromium, address.vlc)
                assert len(set(ports)) == 3
                for port in ports[:2]:
                    reader, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.write(b"text")
                    writer.write_eof()
                    assert await reader.read() == b"TEXT"
                    writer.close()
                reader, writer = await asyncio.open_connection("127.0.0.1", address.vlc)
                assert await reader.read() == b""  # nobody there
                writer.close()
                if os.geteuid() == 0:
                    asked = [sys.executable, "-c", ANOTHER_USER, str(address.server)]
                    answer = await asyncio.to_thread(subprocess.check_output, asked, text=True, timeout=20)
                    assert answer == "answered b''\n"
                lasting = await asyncio.open_connection("127.0.0.1", address.server)
            assert await asyncio.wait_for(lasting[0].read(), 5) == b""
            with pytest.raises(OSError, match=r"refused|Connect"):
                await asyncio.open_connection("127.0.0.1", ports[0])
            lasting[1].close()
