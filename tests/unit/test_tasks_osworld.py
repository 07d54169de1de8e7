"""OSWorld's task files: fetched from a folder or from git, and nothing but the expected bytes."""

import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from arpo_replica.base.errors import UserError
from arpo_replica.base.files import write_document
from arpo_replica.config.tasks import OsworldTasksConfig
from arpo_replica.tasks.osworld_files import (
    INSIDE,
    MANIFEST,
    TaskManifest,
    fetch_osworld_tasks,
    read_files,
    read_task_manifest,
)
from arpo_replica.tasks.splits import load_split
from real_tasks import EXAMPLES, at_hand

ROOT = Path(__file__).parents[2]
FILES = {
    "chrome/a.json": b'{"id": "a"}\n',
    "os/b.json": b'{"id": "b",\r\n "instruction": "", "evaluator": {"func": "infeasible"}}',
}


@pytest.fixture
def source(tmp_path):
    """A folder as OSWorld's repository has it, and a manifest of its two task files."""
    folder = tmp_path / "source"
    for name, content in FILES.items():
        (folder / INSIDE / name).parent.mkdir(parents=True)
        (folder / INSIDE / name).write_bytes(content)
    (folder / "evaluation_examples/test_all.json").write_text("{}")
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}
    write_document(TaskManifest(source="test", files=hashes), tmp_path / "manifest.json")
    return folder


def fetch(source, tmp_path, **settings):
    settings = OsworldTasksConfig(source=str(source), **settings)
    return fetch_osworld_tasks(settings, tmp_path / "manifest.json", tmp_path / "out")


@pytest.mark.parametrize("below", [".", "evaluation_examples"])
def test_a_local_folder_gives_the_same_bytes(source, tmp_path, below):
    (tmp_path / "out/chrome").mkdir(parents=True)
    (tmp_path / "out/chrome/left-over.json").write_text("{}")
    assert fetch(source / below, tmp_path) == 2
    written = read_files(tmp_path / "out")
    assert json.loads(written.pop("manifest.json"))["files"].keys() == FILES.keys()
    assert written == FILES


def change(path):
    path.write_bytes(path.read_bytes().replace(b"\r\n", b"\n"))


def replace_by_link(path):
    path.unlink()
    path.symlink_to("/etc/hostname")


@pytest.mark.parametrize(
    ("name", "fault", "message"),
    [
        ("os/b.json", change, "other bytes: os/b.json"),
        ("os/b.json", replace_by_link, "other bytes: os/b.json"),
        ("chrome/a.json", lambda path: path.unlink(), "missing: chrome/a.json"),
        ("chrome/c.json", lambda path: path.write_text("{}"), "not expected: chrome/c.json"),
        ("chrome/.hidden", lambda path: path.write_text("{}"), "not expected: chrome/.hidden"),
    ],
)
def test_any_other_file_is_refused_by_name(source, tmp_path, name, fault, message):
    fault(source / INSIDE / name)
    with pytest.raises(UserError, match=message):
        fetch(source, tmp_path)
    assert not (tmp_path / "out/manifest.json").exists()


def test_a_source_that_is_not_there_is_refused(tmp_path, source):
    with pytest.raises(UserError, match="neither a folder nor"):
        fetch(tmp_path / "nothing", tmp_path)
    with pytest.raises(UserError, match=r"manifest \S*none\.json cannot be read"):
        fetch_osworld_tasks(OsworldTasksConfig(source=str(source)), tmp_path / "none.json", tmp_path / "out")


def git(folder, *command):
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    done = subprocess.run(
        ["git", "-C", str(folder), *identity, *command], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def test_one_commit_of_a_git_repository_is_fetched(source, tmp_path):
    git(source, "init", "--quiet")
    git(source, "config", "uploadpack.allowAnySHA1InWant", "true")
    git(source, "config", "uploadpack.allowFilter", "true")
    git(source, "add", ".")
    git(source, "commit", "--quiet", "--message", "first")
    pinned = git(source, "rev-parse", "HEAD")
    change(source / INSIDE / "os/b.json")
    git(source, "commit", "--quiet", "--all", "--message", "second")
    later = git(source, "rev-parse", "HEAD")

    url = source.as_uri()
    assert fetch(url, tmp_path, commit=pinned) == 2
    assert (tmp_path / "out/os/b.json").read_bytes() == FILES["os/b.json"]
    with pytest.raises(UserError, match=r"other bytes: os/b\.json"):
        fetch(url, tmp_path, commit=later)
    with pytest.raises(UserError, match=r"^Commit 000000000000 of file://.*local folder"):
        fetch(url, tmp_path, commit="0" * 40)
    git(source, "mv", "evaluation_examples", "elsewhere")
    git(source, "commit", "--quiet", "--message", "third")
    with pytest.raises(UserError, match=f"no folder {INSIDE}"):
        fetch(url, tmp_path, commit=git(source, "rev-parse", "HEAD"))


@pytest.mark.parametrize("form", ["path", "URL"])
def test_a_bare_repository_on_this_machine_will_do(source, tmp_path, monkeypatch, form):
    """As git makes one, without any setting; and from a hook of git's own, which names another repository."""
    git(source, "init", "--quiet")
    git(source, "add", ".")
    git(source, "commit", "--quiet", "--message", "first")
    pinned = git(source, "rev-parse", "HEAD")
    git(source, "commit", "--quiet", "--allow-empty", "--message", "second")
    bare = tmp_path / "bare.git"
    git(tmp_path, "clone", "--quiet", "--bare", str(source), str(bare))
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "no/index"))
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path / "no/tree"))
    assert fetch(bare if form == "path" else bare.as_uri(), tmp_path, commit=pinned) == 2
    assert (tmp_path / "out/os/b.json").read_bytes() == FILES["os/b.json"]


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("file://{}/none.git", "does not appear to be a git repository"),
        ("{}/plain", "does not appear to be a git repository"),
        ("http://127.0.0.1:1/x.git", "127.0.0.1"),
        ("ssh://127.0.0.1:1/x.git", "(ssh|not found)"),
    ],
)
def test_git_s_reason_is_told_and_not_its_advice(source, tmp_path, place, reason):
    (tmp_path / "plain").mkdir()
    with pytest.raises(UserError, match=rf"cannot be fetched \(.*{reason}.*\); name another") as refused:
        fetch(place.format(tmp_path), tmp_path)
    assert "the repository exists" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_edited_afterwards_is_refused_when_it_is_loaded(source, tmp_path):
    fetch(source, tmp_path)
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"name": "x", "source": "test", "tasks": {"os": ["b"]}}))
    assert [task.infeasible for task in load_split(split, tmp_path / "out")] == [True]
    change(tmp_path / "out/os/b.json")
    with pytest.raises(UserError, match=r"os/b\.json was changed after it was made"):
        load_split(split, tmp_path / "out")


# -- the committed manifest -----------------------------------------------------------------------


def test_the_manifest_is_whole_and_its_digest_fits():
    manifest = read_task_manifest(ROOT / MANIFEST)
    assert len(manifest.files) == manifest.count == 369
    assert list(manifest.files) == sorted(manifest.files)
    assert all(len(value) == 64 for value in manifest.files.values())
    assert manifest.commit == OsworldTasksConfig().commit
    assert manifest.commit in manifest.source


@at_hand
def test_the_real_files_are_those_of_the_manifest(tmp_path):
    shutil.copytree(EXAMPLES, tmp_path / "examples", ignore=shutil.ignore_patterns("manifest.json"))
    settings = OsworldTasksConfig(source=str(tmp_path))
    assert fetch_osworld_tasks(settings, ROOT / MANIFEST, tmp_path / "out") == 369
    digest = hashlib.sha256()
    for name, content in sorted(read_files(tmp_path / "out").items()):
        if name != "manifest.json":
            digest.update(f"examples/{name}".encode() + b"\0" + content + b"\0")
    assert digest.hexdigest() == read_task_manifest(ROOT / MANIFEST).digest
