"""The page of a running study: what it says, from which files, and who may ask for it."""

import asyncio
import http.client
import io
import json
import math
import os
import socket
import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from arpo_replica.base.errors import UserError
from arpo_replica.cli import main
from arpo_replica.report import live
from arpo_replica.rollout import records
from arpo_replica.rollout.records import StepRecord, watched
from arpo_replica.workflow.status import study_status
from fakes import make_task
from synthetic_study import Study, make_study

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Its trainings are done, the rollouts of one policy are not."""
    root = tmp_path_factory.mktemp("live")
    study = make_study(root, tasks=3, trials=1, steps=3, instruction=HOSTILE, text=lambda _: HOSTILE)
    next(study.episodes.glob("base/**/episodes.jsonl")).unlink()
    log = study.results / "logs/train_stage/arpo.seed_0.train_4.log"
    log.parent.mkdir(parents=True)
    log.write_text(f"first\nThe disk is full {HOSTILE}\n\n")
    (log.parent / "empty.log").touch()
    return study


def page(study: Study, jobs: Any = (), every_s: float = 7) -> str:
    parts = study_status(study.config, study.root)
    return live.live_page(study.config, parts, jobs, study.results, every_s)


def test_the_page_says_how_far_the_study_is_and_runs_nothing(study: Study) -> None:
    text = page(study, [{"rule": "train_stage", "job": HOSTILE, "nodes": "gpu1", "gpus": ""}])
    assert "script-src &#39;none&#39;" in text
    assert '<meta http-equiv="refresh" content="7">' in text
    assert "<script" not in text
    assert "<img" not in text
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= live.SCREENS  # instructions, job, log
    rows = [json.loads(line) for line in study.metrics[0].read_text().splitlines()]
    assert f"reward {rows[-1]['reward_before']:.3f}" in text
    assert f'aria-label="from {rows[0]["reward_before"]:.2f} to {rows[-1]["reward_before"]:.2f}"' in text
    assert text.count('class="reel-frame"') == live.SCREENS
    assert text.count("<image ") >= 3
    assert "The disk is full" in text
    assert "first" not in text.partition('id="logs"')[2]
    assert "empty" not in text.partition('id="logs"')[2]


def test_a_finished_study_is_not_asked_for_again(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [line for line in study_status(study.config, study.root) if line.name.startswith("train")]
    assert {line.state for line in lines} == {"done"}
    assert {line.share for line in lines} == {1.0}
    text = live.live_page(study.config, lines, [], study.results, 7)
    assert 'http-equiv="refresh"' not in text
    assert "everything is done" in text


def test_newest_episodes_come_first_and_unfinished_ones_not_at_all(tmp_path: Path) -> None:
    now = time.time()
    names = [
        "episodes/arpo/seed_0/stage_x/test_in/trial_0/miniwob.old",
        "models/arpo/seed_0/stage_x/episodes/step_000001/rollout_000/miniwob.new",
        "episodes/arpo/seed_0/stage_x/test_in/trial_1/miniwob.middle",
        "episodes/arpo/seed_0/stage_x/test_in/trial_1/.tmp-0",
    ]
    for name, age in zip(names, (300, 10, 200, 1), strict=True):
        (tmp_path / name).mkdir(parents=True)
        os.utime(tmp_path / name, (now - age, now - age))
    found = [path.name for path in live.newest_episodes(tmp_path, 5)]
    assert found == ["miniwob.new", "miniwob.middle", "miniwob.old"]
    assert len(live.newest_episodes(tmp_path, 2)) == 2


def test_episodes_in_progress_show_their_newest_screens_first(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "GLIMPSE_SHARE", math.inf)
    monkeypatch.setitem(records._TURN, "next", 0.0)
    folders = [
        study.episodes / "base/seed_0/stage_base/test_in/trial_0",
        study.results / "models/arpo/seed_0/stage_x/episodes/step_000001/rollout_003",
    ]
    screen = io.BytesIO()
    Image.new("RGB", (1920, 1080), "red").save(screen, "PNG")
    step = StepRecord.model_validate_json(
        next(study.episodes.rglob("steps.jsonl")).read_text().split("\n")[0]
    )
    typed = step.model_copy(update={"action": {"type": "type_text", "text": HOSTILE}})
    task = replace(make_task(), instruction=HOSTILE)
    with ExitStack() as open_ones:
        for folder, arm in zip(folders, ("base", "arpo"), strict=True):
            show = open_ones.enter_context(watched(folder, task, arm, 3))
            asyncio.run(show(screen.getvalue(), [typed, typed]))
        text = page(study)
        assert text.count("running, step 2, ") == 2
        screens = text.partition('id="screens"')[2]
        assert screens.index("running, step 2") < screens.index('class="sign sign-failure"')
        assert screens.count('class="reel-frame"') == 2 + live.SCREENS
        assert 'width="480" height="270"' in screens
        assert "<script>" not in text
        assert "<img" not in text
        for folder in folders:  # of a job that was killed long ago; the second is no file of ours
            os.utime(file := next(folder.glob(".running-*")), (1, 1))
        file.write_text(HOSTILE)
        assert "running, step" not in page(study)
    assert not any(file.exists() for folder in folders for file in folder.glob(".running-*"))


def test_failures_are_named_and_a_broken_episode_is_left_out(tmp_path: Path) -> None:
    chosen = {"base": "env_error", "grpo": "success", "arpo": "success"}
    study = make_study(tmp_path, tasks=3, trials=1, steps=1, choose=lambda arm, *_: chosen[arm])
    assert page(study).count("the guest server did not answer within 15 s") == live.LOGS
    for record in study.episodes.glob("base/**/episode.json"):
        record.write_text('{"outcome": "no such"}')
    text = page(study)
    assert "did not answer" not in text
    assert "None in the newest episodes" in text


def test_watching_ends_with_the_study(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written: list[Any] = []
    states = iter(["running", "running", "done"])

    class Line:
        def __init__(self, state: str) -> None:
            self.state = state

    monkeypatch.setattr(live, "live_page", lambda _, lines, *more: written.append(lines) or "page")
    monkeypatch.setattr("arpo_replica.workflow.status.study_status", lambda *_: [Line(next(states))])
    config = Path(__file__).parents[2] / "configs/ci.yaml"
    assert main(["status", "--config", str(config), "--html", "out.html", "--watch", "0.01"]) == 0
    assert [lines[0].state for lines in written] == ["running", "running", "done"]
    assert Path("out.html").read_text() == "page"


def test_served_to_this_machine_only() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    threading.Thread(target=live.serve, args=(lambda: "päge", port), daemon=True).start()

    def ask(path: str, host: str) -> tuple[int, bytes]:
        end = time.monotonic() + 20
        while True:
            try:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
                connection.request("GET", path, headers={"Host": host})
                answer = connection.getresponse()
                return answer.status, answer.read()
            except ConnectionRefusedError:
                assert time.monotonic() < end
                time.sleep(0.05)

    assert ask("/", f"localhost:{port}") == (200, "päge".encode())
    assert ask("/", "127.0.0.1")[0] == 200
    assert ask("/", "rebound.example:80")[0] == 404
    assert ask("/../etc/passwd", "localhost")[0] == 404
    with pytest.raises(UserError, match="give --serve another"):
        live.serve(lambda: "", port)
