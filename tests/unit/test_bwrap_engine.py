"""Container desktops by bubblewrap, none started: the filter, the command, refusals, the choice of engine."""

import struct
from pathlib import Path
from types import SimpleNamespace

import pytest

from arpo_replica.base.errors import UserError
from arpo_replica.config.desktop import ContainerConfig, RootConfig
from arpo_replica.desktop import sandbox
from arpo_replica.desktop.sandbox import DataFiles
from arpo_replica.providers import call_filter, container, docker_engine, root_files
from arpo_replica.providers.bwrap_engine import BwrapEngine, sandbox_options
from arpo_replica.providers.container import needs_root, refuse_for_bubblewrap
from arpo_replica.providers.engine import ContainerSpec, chosen_engine
from arpo_replica.providers.root_files import RootFileSystem
from arpo_replica.tasks.model import Task


def root_files_of(image, **own):
    return RootFileSystem(image, RootConfig(**own), "desktop.container")


ALLOW, EPERM, ENOSYS = 0x7FFF0000, 0x50001, 0x50026


def answer(number, argument=0, arch=call_filter.X86_64, text=None):
    """What the kernel would answer: a small machine for the classic BPF that the filters use."""
    text = call_filter.desktop_filter() if text is None else text
    program = [struct.unpack("<HBBI", text[i : i + 8]) for i in range(0, len(text), 8)]
    memory = {0: number, 4: arch, 16: argument}
    at, accumulator = 0, 0
    while True:
        code, if_true, if_false, value = program[at]
        at += 1
        if code == 0x06:
            return value
        if code == 0x20:
            accumulator = memory[value]
            continue
        holds = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}[
            code
        ]
        at += if_true if holds else if_false


def test_the_filter_refuses_what_attacks_begin_with():
    read, fork_flags, new_user = 0, 0x1200011, 0x10000000
    assert answer(read) == ALLOW
    assert answer(call_filter.CLONE, fork_flags) == ALLOW
    assert answer(call_filter.CLONE, fork_flags | new_user) == EPERM
    assert {answer(number) for number in call_filter.CALLS["refused"].values()} == {EPERM}
    assert {answer(number) for number in call_filter.CALLS["absent"].values()} == {ENOSYS}
    assert answer(read, arch=0x40000003) == EPERM  # a program for 32-bit processors
    assert answer(call_filter.X32 | read) == EPERM


def test_a_lone_root_is_told_that_owners_were_changed():
    filter_ = call_filter.owners_filter()
    assert {answer(number, text=filter_) for number in call_filter.CALLS["owners"].values()} == {
        call_filter.DONE
    }
    assert answer(0, text=filter_) == ALLOW
    assert answer(92, arch=0x40000003, text=filter_) == ALLOW  # numbers of another processor


def command(**options):
    spec = ContainerSpec(
        name="d", image="", label="", control=Path("/c"), tmpfs={"/tmp": "rw,mode=1777,size=8m"}, **options
    )
    data = DataFiles()
    try:
        return sandbox_options(Path("/root"), spec, data)
    finally:
        data.close()


def test_the_command_closes_the_desktop_in():
    words = command(processes=77)
    assert {"--unshare-all", "--disable-userns", "--seccomp"} <= set(words)
    assert words[words.index("--cap-drop") + 1] == "ALL"
    assert "--share-net" not in words and "--die-with-parent" not in words
    assert "--nproc=77" in words and words.index("--nproc=77") > words.index(
        "--chdir"
    )  # inside the namespace
    assert words[words.index("/tmp") - 2 : words.index("/tmp")] == [str(8 << 20), "--tmpfs"]
    assert "/usr/bin/sudo" not in words
    assert "/usr/bin/sudo" in command(sudo=True)


def task(**raw):
    return Task("t1", "os", raw.get("instruction", ""), [], {}, raw, "")


@pytest.mark.parametrize(
    ("raw", "root"),
    [
        ({"config": [{"command": "echo password | sudo -S mkdir ~/Desktop/a"}]}, False),
        ({"config": [{"command": "sudo apt install -y xdotool"}]}, True),
        ({"instruction": "My password is 'password'."}, True),
        ({"instruction": "Open the browser."}, False),
    ],
)
def test_what_wants_root_is_known_by_its_commands(raw, root):
    assert needs_root(task(**raw)) is root


def test_a_task_that_cannot_be_solved_here_is_refused_by_name(monkeypatch, tmp_path):
    own = ContainerConfig()
    monkeypatch.setenv("PATH", str(tmp_path))
    refuse_for_bubblewrap([task(instruction="Open the browser.")], own)
    with pytest.raises(UserError, match=r"os/t1 wants a sudo that is root's.* Docker daemon"):
        refuse_for_bubblewrap([task(instruction="sudo apt install vlc")], own)
    with pytest.raises(UserError, match=r"wants a network \(pasta is missing: apt-get install passt\)"):
        refuse_for_bubblewrap([task(proxy=True)], own)
    refuse_for_bubblewrap([task(proxy=True)], ContainerConfig(network="never"))
    monkeypatch.setattr(container, "why_no_network", lambda: "")
    refuse_for_bubblewrap([task(proxy=True)], own)


@pytest.mark.parametrize(
    ("version", "enough"), [("0.4.1", False), ("0.8.0", True), ("0.11.0", True), ("", False)]
)
def test_an_old_bubblewrap_gives_way_to_the_images(version, enough, tmp_path, monkeypatch):
    old = tmp_path / "bwrap"
    old.write_text(f"#!/bin/sh\necho bubblewrap {version}\n")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    root = root_files_of(tmp_path / "image")
    monkeypatch.setattr(root, "folder", lambda: Path("/root-of-image"))
    program = root.bubblewrap()
    assert (program == ["bwrap"]) is enough
    assert enough or program[-1] == "/root-of-image/usr/bin/bwrap"


@pytest.mark.parametrize(("daemon", "engine"), [(True, "docker"), (False, "bwrap")])
def test_auto_takes_the_daemon_if_one_answers(monkeypatch, daemon, engine):
    monkeypatch.setattr(docker_engine, "answers", lambda: daemon)
    assert chosen_engine(ContainerConfig()) == engine
    assert chosen_engine(ContainerConfig(engine="docker")) == "docker"


@pytest.mark.parametrize(("part", "engine"), [("Engine", "docker"), ("Podman Engine", "bwrap")])
def test_podman_is_no_docker(monkeypatch, part, engine):
    client = SimpleNamespace(version=lambda: {"Components": [{"Name": part}]}, ping=lambda: True)
    monkeypatch.setattr(docker_engine.docker, "from_env", lambda timeout: client)
    assert chosen_engine(ContainerConfig()) == engine
    if engine == "bwrap":
        with pytest.raises(UserError, match=r"^Podman answers at .* set desktop\.container\.engine: bwrap"):
            docker_engine.DockerEngine().check()


def test_another_image_than_the_pinned_one_is_refused(tmp_path):
    image = tmp_path / "desktop.squashfs"
    with pytest.raises(UserError, match="no desktop image"):
        BwrapEngine(root_files_of(image)).image("")
    image.write_bytes(b"x")
    for place, words in (
        (image, r"but desktop\.container\.image_sha256 is"),
        (tmp_path, "has sha256 none, as a folder, but"),
    ):
        with pytest.raises(UserError, match=words):
            BwrapEngine(root_files_of(place, image_sha256="0" * 64)).image("")


@pytest.mark.parametrize(
    ("program", "free", "words"),
    [
        (None, 9 << 30, "squashfuse squashfs-tools"),
        ("/usr/bin/unsquashfs", 5 << 20, r"desktop\.container\.scratch. has 5 MiB free"),
        ("/bin/false", 9 << 30, r"cannot be unpacked to .*desktop\.container\.scratch"),
    ],
)
def test_an_image_that_cannot_be_unpacked_is_one_sentence(program, free, words, tmp_path, monkeypatch):
    monkeypatch.setattr(root_files, "can_mount", lambda: False)
    monkeypatch.setattr(root_files.shutil, "which", lambda name: program)
    monkeypatch.setattr(root_files.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    image = tmp_path / "desktop.squashfs"
    image.write_bytes(b"no squashfs")
    with pytest.raises(UserError, match=words) as caught:
        root_files_of(image, scratch=tmp_path / "scratch" / "new").folder()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("said", "settings", "fix"),
    [
        ("No space left on device", {"user/max_user_namespaces": "0"}, "user.max_user_namespaces"),
        ("No space left on device", {"user/max_net_namespaces": "0"}, "user.max_net_namespaces"),
        ("Operation not permitted", {"kernel/unprivileged_userns_clone": "0"}, "unprivileged_userns_clone=1"),
        ("setting up uid map", {"kernel/apparmor_restrict_unprivileged_userns": "1"}, "AppArmor"),
        ("Operation not permitted", {}, "Docker daemon"),
        ("Can't mount proc on /newroot/proc: Operation not permitted", {}, "procMount"),
        ("Can't find source path /r: Permission denied", {}, r"chmod o+x"),
    ],
)
def test_what_stops_bubblewrap_is_named_with_its_fix(said, settings, fix):
    assert fix in sandbox._fix(said, lambda name: settings.get(name, ""))
