"""What a guest is made of: settings, wrapper, policy, site, archives."""

import json
import subprocess
import zipfile
from dataclasses import asdict

import pytest

from arpo_replica.desktop.sandbox import pack_folder, pack_guest
from guest.config import GuestConfig
from guest.files import POLICY, static_files
from guest.processes import descendants, private_memory_mb, runs
from guest.site import StaticSite

SMALL = GuestConfig(screen=(168, 224), fullscreen=True)
LARGE = GuestConfig(screen=(1920, 1080), fullscreen=False)


def test_settings_travel_as_json():
    config = GuestConfig(screen=(10, 20), fullscreen=True, assets={"a": "/a"}, memory_folders=("/tmp",))
    assert GuestConfig.from_json(json.dumps(asdict(config))) == config
    with pytest.raises(ValueError, match="colour"):
        GuestConfig.from_json('{"screen": [1, 2], "fullscreen": true, "colour": 1}')


def run_wrapper(config, tmp_path, *arguments):
    """Arguments that the browser would get."""
    program = tmp_path / "browser"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    config = GuestConfig(**{**asdict(config), "chromium": str(program)})
    wrapper = tmp_path / "google-chrome"
    wrapper.write_text(static_files(config)[f"{config.bin}/google-chrome"].text)
    return subprocess.check_output(["sh", wrapper, *arguments], text=True).splitlines()


def test_the_wrapper_passes_flags_and_arguments(tmp_path):
    small = run_wrapper(SMALL, tmp_path, "a b", "--remote-debugging-port=1337")
    assert "--kiosk" in small
    assert "--user-data-dir=/home/user/.config/google-chrome" in small
    assert small[-2:] == ["a b", "--remote-debugging-port=1337"]
    large = run_wrapper(LARGE, tmp_path)
    assert "--kiosk" not in large
    assert "--start-maximized" in large
    assert not any(flag.startswith("--remote-debugging-port") for flag in large)


def test_without_a_network_of_its_own_the_port_cannot_be_overruled(tmp_path):
    shared = GuestConfig(screen=(9, 9), fullscreen=True, private_network=False, devtools_port=4711)
    flags = run_wrapper(shared, tmp_path, "--remote-debugging-port=1337")
    assert flags[-1] == "--remote-debugging-port=4711"


def test_only_a_full_screen_browser_is_bound_to_its_site():
    policy = json.loads(static_files(SMALL)[POLICY].text)
    assert "*" in policy["URLBlocklist"]
    assert "localhost:8000" in policy["URLAllowlist"]
    assert POLICY not in static_files(LARGE)


@pytest.fixture
def site(tmp_path):
    folder = tmp_path / "pages"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "a.html").write_text("<p>a</p>")
    archive = tmp_path / "pages.zip"
    archive.write_bytes(pack_folder(folder))
    return StaticSite({"zip": str(archive)})


def test_the_site_serves_its_files(site):
    assert site.read("zip", "sub/a.html") == b"<p>a</p>"


@pytest.mark.parametrize("asset", ["zip", "other"])
@pytest.mark.parametrize("path", ["none", "sub", "", "../secret", "/etc/passwd", "sub/../../secret"])
def test_the_site_serves_nothing_else(site, asset, path):
    with pytest.raises(KeyError):
        site.read(asset, path)


def test_archives_are_the_same_bytes_each_time(tmp_path):
    (tmp_path / "b").write_text("b")
    (tmp_path / "a").write_text("a")
    assert pack_folder(tmp_path) == pack_folder(tmp_path)
    names = zipfile.ZipFile(__import__("io").BytesIO(pack_guest())).namelist()
    assert {"guest/__main__.py", "guest/settings/openbox.xml"} <= set(names)
    assert all(name.startswith("guest/") and "__pycache__" not in name for name in names)


def test_processes_are_found_below_their_parent():
    child = subprocess.Popen(["sh", "-c", "sleep 100 & wait"], text=True)
    try:
        import os
        import time

        deadline = time.monotonic() + 5
        found = descendants(child.pid)
        while not any(p.name == "sleep" for p in found.values()) and time.monotonic() < deadline:
            found = descendants(child.pid)
        sleeper = next(p for p in found.values() if p.name == "sleep")
        assert sleeper.parent == child.pid
        assert sleeper.alive
        assert runs(sleeper.pid, os.path.realpath("/usr/bin/sleep"))
        assert private_memory_mb([os.getpid()]) > 1
        os.kill(sleeper.pid, 9)
    finally:
        child.kill()
        child.wait()
