"""Episodes on disk: whole or not at all, readable whatever the policy wrote."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from arpo_replica.base.files import write_atomically
from arpo_replica.rollout import records
from arpo_replica.rollout.records import (
    EpisodeRecord,
    StepRecord,
    clear_unfinished,
    discard_episode,
    finished_episodes,
    read_episode,
    to_webp,
    write_episode,
    write_index,
)
from fakes import episode_record, make_task, png, step_record


def make_record(number: int = 0, **changes) -> EpisodeRecord:
    fixed = {"desktop": "fake", "sampling": {"temperature": 0.6}, "final_screenshot": "step_001.webp"}
    return episode_record(make_task(number), **(fixed | changes))


def make_step(text: str = "Action: wait()") -> StepRecord:
    took = {"model_s": 0.1, "env_s": 0.1, "prompt_tokens": 1, "completion_tokens": 2}
    return step_record(0, text, action={"type": "wait"}, action_id="a", **took)


def write(root: Path, number: int = 0, **changes) -> Path:
    shots = {"step_000.webp": png(), "step_001.webp": png((1, 2, 3))}
    return write_episode(root, make_record(number, **changes), [make_step()], shots)


def test_an_episode_is_read_back(tmp_path):
    path = write(tmp_path)
    record, steps = read_episode(path)
    assert (record, steps) == (make_record(), [make_step()])
    assert path.name == "fake.task-000"
    assert sorted(file.name for file in path.iterdir()) == [
        *("episode.json", "step_000.webp", "step_001.webp", "steps.jsonl"),
    ]


def test_what_most_steps_lack_is_in_no_line_and_what_is_there_is_read_back(tmp_path):
    [line] = (write(tmp_path) / "steps.jsonl").read_text().splitlines()
    assert not {"further", "discarded"} & set(json.loads(line))
    more = {"further": [{"type": "wait"}], "discarded": ["Action: \ud800"]}
    step = StepRecord.model_validate(make_step().model_dump() | more)
    assert step.taken == 2
    again = StepRecord.model_validate_json(step.to_line())
    assert (again.further, again.discarded) == ([{"type": "wait"}], ["Action: ?"])


def test_screenshots_are_kept_to_the_pixel(tmp_path):
    source = Image.effect_noise((168, 224), 80).convert("RGB")
    buffer = io.BytesIO()
    source.save(buffer, "PNG")
    kept = Image.open(io.BytesIO(to_webp(buffer.getvalue())))
    assert kept.format == "WEBP"
    assert kept.convert("RGB").tobytes() == source.tobytes()
    assert to_webp(to_webp(png())) == to_webp(png())


def test_an_existing_episode_is_never_touched(tmp_path):
    path = write(tmp_path)
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    with pytest.raises(FileExistsError):
        write(tmp_path, outcome="failure")
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    assert list(tmp_path.glob(".tmp-*")) == []


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def fail(path, data):
        raise OSError("disk full")

    monkeypatch.setattr(records, "write_flushed", fail)
    with pytest.raises(OSError, match="disk full"):
        write(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text", ["a\u2028b\x85c\x0bd\x1ce", "\r\n\n\t\0", "\ud800 alone", '"}\n{"', "中文 🙂"]
)
def test_whatever_the_policy_wrote_can_be_read(tmp_path, text):
    path = write_episode(tmp_path, make_record(errors=[text]), [make_step(text), make_step()], {})
    record, steps = read_episode(path)
    expected = text.replace("\ud800", "?")
    assert [step.text for step in steps] == [expected, "Action: wait()"]
    assert record.errors == [expected]


def test_the_index_lists_all_episodes_in_order(tmp_path):
    for number in (2, 0, 1):
        write(tmp_path, number)
    (tmp_path / ".tmp-dead").mkdir()
    (tmp_path / ".tmp-dead" / "episode.json").write_text("{}")
    index = write_index(tmp_path)
    rows = [json.loads(line) for line in index.read_text().split("\n") if line]
    assert [row["task_id"] for row in rows] == ["task-000", "task-001", "task-002"]
    assert [row["directory"] for row in rows] == ["fake.task-000", "fake.task-001", "fake.task-002"]
    for row in rows:
        row.pop("directory")
        EpisodeRecord.model_validate(row)
    assert set(finished_episodes(tmp_path)) == {("fake", f"task-{n:03d}") for n in range(3)}


def test_a_file_that_cannot_be_replaced_leaves_nothing(tmp_path):
    (tmp_path / "index.html").mkdir()
    with pytest.raises(IsADirectoryError):
        write_atomically(tmp_path / "index.html", b"x")
    assert [entry.name for entry in tmp_path.iterdir()] == ["index.html"]


def test_leftovers_and_discarded_episodes_go(tmp_path):
    path = write(tmp_path)
    (tmp_path / ".tmp-dead").mkdir()
    clear_unfinished(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    discard_episode(path)
    assert list(tmp_path.iterdir()) == []


WRITER = """
import sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from test_records import make_record, make_step
from arpo_replica.rollout.records import write_episode
from fakes import png
shots = {f"step_{n:03d}.webp": png((n, 0, 0)) for n in range(12)}
number = 0
print("go", flush=True)
while True:
    write_episode(Path(sys.argv[1]), make_record(number), [make_step()] * 12, shots)
    number += 1
"""


def test_a_killed_writer_leaves_whole_episodes_only(tmp_path):
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": str(here.parent)}
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path), str(here)], stdout=subprocess.PIPE, env=environment
    )
    try:
        assert writer.stdout.readline() == b"go\n"
        deadline = time.monotonic() + 20
        while len(finished_episodes(tmp_path)) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
    found = finished_episodes(tmp_path)
    assert len(found) >= 3
    for path in found.values():
        _, steps = read_episode(path)
        assert len(steps) == 12
        assert len(list(path.glob("*.webp"))) == 12
        for shot in path.glob("*.webp"):
            Image.open(shot).verify()
    clear_unfinished(tmp_path)
    assert len(list(tmp_path.iterdir())) == len(found)
