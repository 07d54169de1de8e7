"""The rules that make task files: OSWorld's, and noisy variants; only for the studies that use them."""

import hashlib
import json
import shutil
import subprocess

import pytest

from arpo_replica.base.files import write_document
from arpo_replica.config import load_config
from arpo_replica.tasks.osworld_files import TaskManifest
from arpo_replica.tasks.splits import load_split

LAUNCH = {"type": "launch", "parameters": {"command": ["google-chrome", "--remote-debugging-port=1337"]}}
# Evaluators of ours: this study's desktops are processes, which OSWorld's evaluators do not know.
TASKS = {
    "chrome/00000000-0000-4000-8000-000000000001": {
        "func": "miniwob_reward",
        "result": {"type": "miniwob_episode"},
    },
    "os/00000000-0000-4000-8000-000000000002": {
        "func": "miniwob_reward",
        "result": {"type": "miniwob_episode"},
        "options": {},
    },
}
NO_COMMIT = "0" * 40
SPLITS = ("results/two/splits/both.json", "results/two/splits/noisy.json")


@pytest.fixture
def two(checkout):
    """A study on two tasks of a make-believe OSWorld, clean and noisy."""
    hashes, lists = {}, {}
    for name, evaluator in TASKS.items():
        domain, _, task_id = name.partition("/")
        path = checkout.root / f"osworld/evaluation_examples/examples/{name}.json"
        path.parent.mkdir(parents=True)
        config = [LAUNCH] if domain == "chrome" else []
        raw = {"id": task_id, "instruction": "Do it.", "config": config, "evaluator": evaluator}
        path.write_text(json.dumps(raw))
        hashes[f"{name}.json"] = hashlib.sha256(path.read_bytes()).hexdigest()
        lists[domain] = [task_id]
    write_document(TaskManifest(source="test", files=hashes), checkout.root / "data/osworld/manifest.json")
    split = {"name": "both", "source": "test", "tasks": lists}
    (checkout.root / "data/splits/both.json").write_text(json.dumps(split))
    study = {
        "study": "two",
        "size": "nano",
        "desktop": {"screen": [168, 224]},
        "tasks": {
            "root": "results/osworld/tasks",
            "splits": {"both": "data/splits/both.json"},
            "osworld": {"source": "osworld"},
            "noisy": {"noisy": {"source": "both", "kinds": ["notification", "distractor_file"]}},
        },
        "training": {"stages": [{"name": "one", "split": "both", "steps": 1}]},
        "evaluation": {"splits": ["both", "noisy"]},
    }
    (checkout.root / "configs/two.yaml").write_text(json.dumps(study))
    return checkout


def run(checkout, *arguments):
    """Exit status and all that was said."""
    done = checkout.run("--cores", "1", "--configfile", "configs/two.yaml", *arguments)
    return done.returncode, done.stdout + done.stderr


def test_task_files_are_fetched_made_noisy_and_checked(two, monkeypatch):
    status, said = run(two, "--", *SPLITS)
    assert status == 0, said[-3000:]
    monkeypatch.chdir(two.root)
    config = load_config(two.root / "configs/two.yaml")
    both, noisy = (load_split(config.tasks.splits[name], config.tasks.root) for name in ("both", "noisy"))
    assert [f"{task.domain}/{task.id}" for task in both] == list(TASKS)
    assert [task.raw["arpo_noise"]["of"] for task in noisy] == [task.id for task in both]
    assert [task.evaluator for task in noisy] == [task.evaluator for task in both]
    # Another seed makes the noisy tasks anew and leaves the clean ones alone.
    two.edit("configs/two.yaml", '"kinds"', '"seed": 7, "kinds"')
    planned = two.planned("--configfile", "configs/two.yaml", "--", *SPLITS)
    assert planned == {"make_noisy_tasks": 1, "resolve_split": 1}


def test_task_files_come_from_one_commit_of_a_git_repository(two):
    def git(*command):
        identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
        done = subprocess.run(
            ["git", "-C", str(two.root / "osworld"), *identity, *command],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        return done.stdout.strip()

    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "first")
    pinned = git("rev-parse", "HEAD")
    git("rm", "-r", "--quiet", "evaluation_examples/examples/os")
    git("commit", "--quiet", "--message", "second")
    git("clone", "--quiet", "--bare", ".", "../osworld.git")
    shutil.rmtree(two.root / "osworld")
    source = '"source": "osworld"'
    two.edit("configs/two.yaml", source, f'"source": "osworld.git", "commit": "{NO_COMMIT}"')
    status, said = run(two, "--", SPLITS[0])
    assert status != 0
    assert "Commit 000000000000 of osworld.git cannot be fetched" in said
    assert "Traceback" not in said
    two.edit("configs/two.yaml", NO_COMMIT, pinned)
    status, said = run(two, "--", SPLITS[0])
    assert status == 0, said[-3000:]
    assert json.loads((two.root / SPLITS[0]).read_text())["tasks"]


def test_another_byte_stops_the_run_and_is_named(two):
    path = two.root / "osworld/evaluation_examples/examples/os/00000000-0000-4000-8000-000000000002.json"
    path.write_text(path.read_text() + " ")
    status, said = run(two, "--", *SPLITS)
    assert status != 0
    assert "other bytes: os/00000000-0000-4000-8000-000000000002.json" in said
    assert "Traceback" not in said
    assert not (two.root / SPLITS[0]).exists()


def test_an_id_that_does_not_exist_stops_the_run_before_anything_is_fetched(two):
    two.edit("data/splits/both.json", "000000000002", "000000000003")
    shutil.rmtree(two.root / "osworld")
    status, said = run(two, "--dry-run", "--", *SPLITS)
    assert status != 0
    assert "os/00000000-0000-4000-8000-000000000003" in said
    assert "Traceback" not in said


def test_a_study_on_other_tasks_fetches_nothing(checkout):
    planned = checkout.planned()
    assert planned["resolve_split"]
    assert not planned["fetch_osworld_tasks"] + planned["make_noisy_tasks"]
