"""Container desktops by bubblewrap, without Docker: what they can, what they may not, what is left of them.

``make rootless`` builds their image first and demands these tests.
"""

import asyncio
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
from PIL import Image

from arpo_replica.actions.types import Click
from arpo_replica.base.environments import ROOT
from arpo_replica.base.errors import UserError
from arpo_replica.config import load_config
from arpo_replica.config.desktop import DesktopConfig, RootConfig
from arpo_replica.config.tasks import NoisyTasksConfig
from arpo_replica.providers import bwrap_engine, root_files
from arpo_replica.providers.bwrap_engine import why_no_network
from arpo_replica.providers.call_filter import owners_filter
from arpo_replica.providers.container import ContainerProvider
from arpo_replica.providers.pool import make_provider
from arpo_replica.providers.process import ProcessProvider
from arpo_replica.providers.root_files import RootFileSystem, rootfs_path
from arpo_replica.suites.noise import make_noisy
from arpo_replica.tasks.model import Task, load_task
from arpo_replica.tasks.splits import resolve
from arpo_replica.validation.validate import validate_tasks
from fakes import stop_server
from real_tasks import EXAMPLES, at_hand

pytestmark = pytest.mark.rootless
one_loop = pytest.mark.asyncio(loop_scope="module")
DOCKER = ROOT / "data/osworld/validation_container.json"
WAYS = ("noop", "fail", "oracle")
FAR = "198.18.7.1"
"""Of the addresses for tests between networks (RFC 2544)."""
APPS = os.environ.get("ARPO_ROOTLESS_APPS", "core")


def config(**settings):
    own = {"engine": "bwrap", "apps": APPS, "spares": 0, "processes": 300}
    return DesktopConfig(provider="container", screen=(1920, 1080), container=own, **settings)


def task(**raw):
    evaluator = {"func": "miniwob_reward", "result": {"type": "miniwob_episode"}}
    raw = {"id": "t", "instruction": "Do it.", "config": [], "evaluator": evaluator, **raw}
    return Task("t", "test", raw["instruction"], [], evaluator, raw, "")


@pytest.fixture(scope="session")
def image():
    path = rootfs_path(APPS)
    if not path.is_file():
        assert not os.environ.get("ARPO_REQUIRE_ROOTLESS"), f"{path} is missing"
        pytest.skip("the image is not built: make rootless")
    return path


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def desktop(image):
    desktop = await ContainerProvider(config()).start("test")
    await desktop.reset(task())
    yield desktop
    await desktop.close()


async def inside(desktop, line):
    result = await desktop.guest.execute(line, shell=True)
    return (result["output"] + result["error"]).strip()


@one_loop
async def test_it_shows_a_desktop_and_a_click_lands(desktop, image):
    way = "squashfuse" if root_files.can_mount() else "unpacked"
    sha256 = root_files.file_sha256(image)
    assert desktop.ran_on == {"engine": "bwrap", "root": way, "sudo": "stand-in", "image": sha256}
    picture = Image.open(io.BytesIO(await desktop.screenshot()))
    assert picture.size == (1920, 1080)
    assert len(picture.convert("RGB").getcolors(1 << 24)) > 50  # panels, icons: no blank screen
    await desktop.act(Click(700, 500), "click-1")
    place = await inside(desktop, "xdotool getmouselocation --shell")
    assert "X=700" in place and "Y=500" in place


@one_loop
async def test_it_may_not_leave(desktop):
    assert await inside(desktop, "id -un; id -u") == "user\n1000"
    assert (await inside(desktop, "getent hosts localhost")).startswith("127.0.0.1 ")
    assert await inside(desktop, "ls /sys/class/net 2>/dev/null; cat /proc/net/route | wc -l") in (
        "lo\n1",
        "1",
    )
    for place in ("/", "/etc", "/usr/bin", "/opt/desktop", "/run", "/dev"):
        assert "Read-only" in await inside(desktop, f"touch {place}/x"), place
    for line in ("unshare --user true", "mount -t tmpfs none /tmp", "mount -o remount,rw /"):
        assert (await desktop.guest.execute(line, shell=True))["returncode"] != 0, line
    assert await inside(desktop, "kill -9 1; kill -TERM 1; echo alive") == "alive"
    memfd = "python3 -c 'import os; os.memfd_create(\"x\")'"
    assert "Function not implemented" in await inside(desktop, memfd)
    status = await inside(desktop, "cat /proc/self/status")
    assert "CapBnd:\t0000000000000000" in status and "Seccomp:\t2" in status


@pytest.fixture
def far(monkeypatch):
    """An address of this machine that nobody closes stands for one outside; only root can make it."""
    if os.geteuid() != 0:
        yield None
        return
    outside = bwrap_engine.outside()
    subprocess.run(["ip", "address", "replace", f"{FAR}/32", "dev", "lo"], check=True)
    monkeypatch.setattr(bwrap_engine, "outside", lambda: outside)
    yield FAR
    subprocess.run(["ip", "address", "delete", f"{FAR}/32", "dev", "lo"], check=True)


@one_loop
async def test_a_task_that_declares_a_network_gets_out_but_not_to_this_machine(image, far):
    if problem := why_no_network():
        assert not os.environ.get("ARPO_REQUIRE_ROOTLESS"), problem
        pytest.skip(problem)
    here = {one[4][0] for one in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    closed = {*bwrap_engine.outside()[-1].split(), *here, "127.0.0.1"} - {bwrap_engine.LINK_LOCAL}
    desktop = await ContainerProvider(config()).start("networked")
    try:
        await desktop.reset(task(proxy=True))
        process = next(iter(desktop._provider._engine._sandboxes.values())).process
        with socket.create_server(("", 0)) as server:
            port = server.getsockname()[1]

            async def reaches(address):
                line = f"timeout 3 bash -c '</dev/tcp/{address}/{port}' && echo reached"
                return "reached" in await inside(desktop, line)

            assert [address for address in closed if await reaches(address)] == []
            assert far is None or await reaches(far)
        assert "10.0.2.3" in await inside(desktop, "cat /etc/resolv.conf")
        assert "Operation not permitted" in await inside(desktop, "ip route flush all")
        assert "CapEff:\t0000000000000000" in await inside(desktop, "cat /proc/self/status")
    finally:
        await desktop.close()
    assert process.poll() is not None  # pasta, with all that it let out


async def test_noise_of_visited_pages_is_in_the_browsers_history_alone(image):
    launch = ["google-chrome", "--remote-debugging-port=1337"]
    clean = task(config=[{"type": "launch", "parameters": {"command": launch}}])
    clean = replace(clean, config=clean.raw["config"], domain="chrome")
    noisy = make_noisy(clean, NoisyTasksConfig(source="x", kinds=["browser_history"]))
    code = (
        "import shutil, sqlite3, time, json, urllib.request as u\n"
        "pages = json.load(u.urlopen('http://127.0.0.1:1337/json/list'))\n"
        "print(sum(page['type'] == 'page' for page in pages))\n"
        "for _ in range(40):\n"  # the browser writes its history down every ten seconds
        "    time.sleep(1)\n"
        "    shutil.copy('/home/user/.config/google-chrome/Default/History', '/tmp/history')\n"
        "    rows = sqlite3.connect('/tmp/history').execute('select url from urls where visit_count > 0')\n"
        "    urls = [url for url, in rows if url.startswith('data:')]\n"
        "    if len(urls) >= 4: break\n"
        "print(len(urls))\n"
    )
    desktop = await ContainerProvider(config()).start("history")
    try:
        await desktop.reset(task())
        await desktop.guest.launch(launch)
        visited = await desktop.guest.execute(noisy.config[1]["parameters"]["command"])
        assert visited["returncode"] == 0, visited["error"]
        told = await desktop.guest.execute(["python3", "-c", code])
        assert told["output"].split() == ["1", "4"], told
    finally:
        await desktop.close()


@one_loop
async def test_processes_and_files_have_limits(desktop):
    many = await inside(
        desktop, "n=0; while [ $n -lt 400 ]; do sleep 3 & n=$((n+1)); done 2>&1 | tail -1; true"
    )
    assert "fork" in many
    big = await inside(desktop, "dd if=/dev/zero of=/tmp/big bs=1M count=4000 2>&1; rm -f /tmp/big")
    assert "No space left" in big


@one_loop
async def test_a_desktop_that_eats_memory_ends_alone(desktop):
    greedy = await ContainerProvider(config(memory_mb=900)).start("greedy")
    hog = "python3 -c 'import time; b=[bytearray(b\"x\"*(100<<20)) for _ in range(40)]; time.sleep(30)'"
    eating = asyncio.ensure_future(greedy.guest.execute(hog, shell=True))
    for _ in range(150):
        if not greedy._running.alive:
            break
        await asyncio.sleep(0.1)
    assert not greedy._running.alive
    assert "memory" in greedy._running.last_words()
    eating.cancel()
    await asyncio.wait({eating})
    await greedy.close()
    assert await inside(desktop, "echo alive") == "alive"


OWNER = """
import asyncio, json, sys
from arpo_replica.config.desktop import DesktopConfig
from arpo_replica.providers.container import ContainerProvider, Kind
async def main():
    provider = ContainerProvider(DesktopConfig.model_validate_json(sys.argv[1]))
    desktop = await provider.start("orphan")
    if sys.argv[2]:
        await desktop._replace(Kind(network=True))
    engine = provider._engine
    print(json.dumps([s.process.pid for s in engine._sandboxes.values()]), engine._root.folder(), flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


@pytest.mark.parametrize("network", ["", "network"])
def test_nothing_is_left_of_a_killed_owner(image, network):
    if network and (problem := why_no_network()):
        pytest.skip(problem)
    command = [sys.executable, "-c", OWNER, config().model_dump_json(), network]
    owner = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    pids, root = owner.stdout.readline().rsplit(" ", 1)
    owner.kill()
    owner.wait()
    left = [Path("/proc", str(pid)) for pid in json.loads(pids)]
    assert left
    if "arpo-root-" in root:  # squashfuse's mount
        left.append(Path(root.strip()))
    deadline = time.monotonic() + 10
    # By name: the mount cannot be asked (ENOTCONN) between its server's end and its unmounting.
    while left := [path for path in left if path in path.parent.iterdir()]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.1)
    assert left == []


@one_loop
async def test_the_images_own_bubblewrap_stands_in_for_an_old_one(image, monkeypatch):
    monkeypatch.setattr(root_files, "OLDEST", (99,))
    provider = ContainerProvider(config())
    provider.check()
    desktop = await provider.start("old")
    try:
        assert await inside(desktop, "echo alive") == "alive"
    finally:
        await desktop.close()


REFUSED = """
import sys
from arpo_replica.base.errors import UserError
from arpo_replica.config.desktop import DesktopConfig as Config
from arpo_replica.desktop import sandbox
from arpo_replica.providers.pool import make_provider
sandbox.unprivileged = lambda number: []  # this root may not change its user
open(f"/proc/sys/user/{sys.argv[2]}", "w").write("0")
try:
    make_provider(Config.model_validate_json(sys.argv[1])).check()
except UserError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("kind", "setting"),
    [  # root of a user namespace needs no further one for provider process
        ("container", "max_user_namespaces"),
        ("container", "max_net_namespaces"),
        ("process", "max_net_namespaces"),
    ],
)
def test_a_machine_that_forbids_namespaces_is_told_what_to_change(kind, setting):
    desktops = config() if kind == "container" else DesktopConfig()
    make_provider(desktops).check()
    # A user namespace has such settings of its own: those of this machine stay.
    command = ["unshare", "--user", "--map-root-user", sys.executable, "-c", REFUSED]
    command += [desktops.model_dump_json(), setting]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.count("\n") == 1
    assert f"the administrator must raise user.{setting}" in said


@one_loop
@pytest.mark.parametrize("kind", ["file", "folder"])
async def test_provider_process_takes_its_programs_from_the_image(image, kind, monkeypatch):
    mounted = RootFileSystem(image, RootConfig(), "")
    if kind == "folder":  # as on a GPU node: its bubblewrap is not new enough either
        monkeypatch.setattr(root_files, "OLDEST", (99,))
    place = image if kind == "file" else mounted.folder()
    provider = ProcessProvider(DesktopConfig(screen=(168, 224), process={"image": place}))
    provider.check()
    facts = provider.describe()
    assert facts["browser"].startswith("Chromium ")
    assert (facts["image"] == "none, as a folder") is (kind == "folder")
    desktop = await provider.start("other")
    try:
        await desktop.reset(load_task(ROOT / "data/tasks/miniwob/click-button-s500.json"))
        assert "/opt/chrome/chrome" in await inside(desktop, "ps -eo args")
        before = await desktop.screenshot()
        await desktop.act(Click(80, 120), "click-1")
        assert await desktop.screenshot() != before
        libraries = await inside(desktop, "ls -d /usr/lib/libreoffice")  # in the image alone
        assert libraries == "/usr/lib/libreoffice"
    finally:
        await desktop.close()


def test_an_image_that_lacks_programs_is_refused(tmp_path):
    for name in ("usr/bin", "proc", "dev", "tmp"):
        (tmp_path / "root" / name).mkdir(parents=True)
    provider = ProcessProvider(DesktopConfig(process={"image": tmp_path / "root"}))
    with pytest.raises(UserError, match=r"desktop\.process\.image\) lacks xvfb, openbox"):
        provider.check()


ANOTHER_ID = 64999
"""A user without an account, without subordinate ids."""


def build_as_user(folder, way):
    """Build a small system as an ordinary user: the finished process, the image's path.

    It has a package with a file, and a finish that makes a user and gives it a folder.
    """
    user = ANOTHER_ID if os.geteuid() == 0 else os.geteuid()
    context, out = folder / "context", folder / "out"
    for place in (context, out):
        place.mkdir()
    (context / "apt-image.txt").write_text("tree\n")
    (context / "finish.sh").write_text("useradd -m user && chown -R user /opt/build && rm -r /opt/build\n")
    (context / "owners.bpf").write_bytes(owners_filter())
    shutil.copy(ROOT / "envs/desktop/rootfs.sh", context)
    for place in (folder, context, out):
        os.chown(place, user, user)
    image = out / "system.squashfs"
    build = ["bash", str(context / "rootfs.sh"), str(context), str(image), "core", way]
    if user != os.geteuid():
        build = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", *build]
    places = {"HOME": str(out), "TMPDIR": str(out)}
    return subprocess.run(build, cwd=out, env=os.environ | places, capture_output=True, text=True), image


@pytest.fixture
def open_folder():
    """A folder that other users reach, as pytest's own are not."""
    with tempfile.TemporaryDirectory(prefix="arpo-way-") as name:
        yield Path(name)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("way", ["single", pytest.param("fakechroot", marks=pytest.mark.slow)])
def test_an_ordinary_user_builds_a_system(way, open_folder):
    done, image = build_as_user(open_folder, way)
    assert done.returncode == 0, done.stderr[-2000:]
    tree = RootFileSystem(image, RootConfig(scratch=image.parent), "")._unpack()
    assert (tree / "usr/bin/tree").is_file()
    assert (tree / "home/user").is_dir()
    assert list((tree / "dev").iterdir()) == []


@pytest.mark.parametrize(
    ("way", "obstacle"), [("root", "this is not root"), ("unshare", "/etc/subuid has no line")]
)
def test_why_a_way_to_build_is_closed_is_said(way, obstacle, open_folder):
    if os.geteuid() != 0:
        pytest.skip("needs root, to be a user who may nothing")
    done, image = build_as_user(open_folder, way)
    assert done.returncode == 1 and not image.exists()
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"no way to install packages as this user: {way}: {obstacle}")


@pytest.mark.timeout(1200)
@at_hand
def test_osworld_tasks_are_scored_as_by_docker(image, tmp_path):
    if not (ROOT / "envs/evaluator/.venv/prepared").is_file():
        pytest.skip("envs/evaluator is not installed (python3 envs/prepare.py evaluator)")
    study = load_config(ROOT / "configs" / "smoke.yaml")
    study.tasks.root = EXAMPLES
    study.desktop = config(count=2, start_timeout_s=120)
    out = tmp_path / "validation.json"
    try:
        validate_tasks(study, resolve(study, "provider_8"), out, trials=1)
    finally:
        stop_server()
    docker = {one["task"]: one for one in json.loads(DOCKER.read_text())["tasks"]}
    here = json.loads(out.read_text())
    assert here["desktop"]["engine"] == "bwrap"
    assert len(here["tasks"]) == 8
    for one in here["tasks"]:
        # Its script clicks in the full image's bar, which has an icon more.
        ways = ("noop", "fail") if APPS == "core" and one["task"].startswith("os/e0df") else WAYS
        for way in ways:
            theirs = {run["score"] for run in docker[one["task"]].get(way) or []}
            assert {run["score"] for run in one.get(way) or []} == theirs, (one["task"], way)
