"""What the worker makes of desktops and evaluators that misbehave: an error, never a score."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from aiohttp import web
from osworld_tasks import command, expects, gone, make_task, process_of, step

from arpo_replica.actions.types import Fail, Finished
from arpo_replica.base.environments import ROOT
from arpo_replica.base.errors import DesktopError
from arpo_replica.base.processes import descendants
from arpo_replica.suites.evaluate import verdict
from arpo_replica.suites.osworld import client
from arpo_replica.suites.osworld.client import OSWorldWorker
from arpo_replica.tasks.model import load_task
from fake_guest import SCREEN, FakeGuest, executed


async def score(worker, guest, task, failed=False):
    return await worker.evaluate(task, guest.address, SCREEN, failed)


# -- scores ---------------------------------------------------------------------------------------


async def test_set_up_and_score_go_through_desktop_env(worker, guest):
    guest.answers["/execute"] = lambda _: executed("yes")
    words = ["echo", "{SCREEN_WIDTH}x{SCREEN_HEIGHT_HALF} {CLIENT_PASSWORD}"]
    task = make_task(config=[step("execute", command=words)])
    assert await worker.set_up(task, guest.address, SCREEN) == []
    assert await score(worker, guest, task) == 1.0
    guest.answers["/execute"] = lambda _: executed("no")
    found = await score(worker, guest, task)
    assert found == 0.0
    assert found.expected.startswith("exact_match {'expected': 'yes'}")
    assert found.found == "'no'"
    sent = [body["command"] for _, path, body in guest.calls if path == "/setup/execute"]
    assert sent == [["echo", "320x120 password"]]


@pytest.mark.parametrize(
    ("conj", "prints", "expected"),
    [
        ("and", "yy", 1.0),
        ("and", "yn", 0.0),
        ("and", "ny", 0.0),
        ("or", "ny", 1.0),
        ("or", "yn", 1.0),
        ("or", "nn", 0.0),
    ],
)
async def test_conjunctions(worker, guest, conj, prints, expected):
    guest.answers["/execute"] = lambda body: executed(prints[int(body["command"])])
    evaluator = {
        "func": ["exact_match", "exact_match"],
        "conj": conj,
        "result": [command("0"), command("1")],
        "expected": [expects("y"), expects("y")],
    }
    assert await score(worker, guest, make_task(evaluator)) == expected


async def test_partial_scores_are_kept(worker, guest):
    guest.answers["/execute"] = lambda _: executed("yes")
    evaluator = {
        "func": ["exact_match", "fuzzy_match"],
        "result": [command("0"), command("1")],
        "expected": [expects("yes"), expects("yep")],
    }
    value = await score(worker, guest, make_task(evaluator))
    assert value == pytest.approx((1 + 2 * 2 / 6) / 2, abs=1e-3)


@pytest.mark.parametrize("size", [0, 5_000_000])
async def test_what_an_evaluator_prints_never_reaches_the_channel(worker, guest, size):
    # The getter prints the whole answer; lengths and JSON of ours in it must not matter.
    text = '\x00\x00\x00\x05{"result": 1}\n' + "x" * size
    guest.answers["/execute"] = lambda _: executed(text)
    assert await score(worker, guest, make_task()) == 0.0


async def test_real_infeasible_tasks_fail_is_right_and_done_is_wrong(worker, guest, examples):
    found = [load_task(path) for path in sorted(examples.glob("*/*.json"))]
    infeasible = [task for task in found if task.infeasible]
    assert len(infeasible) == 29
    for task in infeasible:
        assert await score(worker, guest, task, failed=True) == verdict(task, Fail()) == 1.0
        assert await score(worker, guest, task) == verdict(task, Finished()) == 0.0
    assert guest.calls == []
    # The same by desktop-env's own rule, which this repository's must agree with.
    task = next(task for task in infeasible if not task.evaluator.get("postconfig"))
    place = (guest.address, SCREEN, "p")
    for failed, wanted in ((True, 1.0), (False, 0.0)):
        episode = await worker._episode(task, *place)
        answer = await worker._call(9, "evaluate", failed=failed, **episode)
        assert answer["score"] == wanted
    episode = await worker._episode(make_task(), *place)
    answer = await worker._call(9, "evaluate", failed=True, **episode)
    assert answer["score"] == verdict(make_task(), Fail()) == 0.0


async def test_episodes_do_not_share_result_files(downloads, guest):
    # Getters write fixed names; a file of another desktop, or of an earlier episode, must not be scored.
    evaluator = {
        "func": "exact_match",
        "result": {"type": "cache_file", "path": "out.txt"},
        "expected": expects("x"),
    }
    make_it = step("execute", command=["echo"], stdout="out.txt")
    workers = [await OSWorldWorker.start(f"w{i}", downloads) for i in range(2)]
    try:
        await workers[0].set_up(make_task(evaluator, [make_it]), guest.address, SCREEN)
        bare = make_task(evaluator)
        await workers[1].set_up(bare, guest.address, SCREEN)
        with pytest.raises(DesktopError, match="AssertionError"):
            await score(workers[1], guest, bare)
        await workers[0].set_up(bare, guest.address, SCREEN)
        with pytest.raises(DesktopError, match="AssertionError"):
            await score(workers[0], guest, bare)
    finally:
        await asyncio.gather(*(one.close() for one in workers))


async def test_another_address_is_no_other_episode(worker, guest):
    # A relay opens other ports for the evaluation than for the set-up.
    guest.answers["/setup/execute"] = lambda _: executed("yes")
    evaluator = {
        "func": "file_contains",
        "result": {"type": "cache_file", "path": "out.txt"},
        "expected": {"type": "rule", "rules": {"expected": ["yes"]}},
    }
    task = make_task(evaluator, [step("execute", command=["echo"], stdout="out.txt")])
    await worker.set_up(task, guest.address, SCREEN)
    async with FakeGuest() as other:
        assert await score(worker, other, task) == 1.0
        assert other.count("/setup/execute") == 0


# -- broken desktops ------------------------------------------------------------------------------


async def test_a_desktop_that_does_not_answer_is_an_error_at_once(worker, guest):
    task = make_task()
    await worker.set_up(task, guest.address, SCREEN)
    await guest.stop()
    began = time.monotonic()
    with pytest.raises(DesktopError, match="the desktop is gone"):
        await score(worker, guest, task)
    with pytest.raises(DesktopError, match="the desktop is gone"):
        await worker.set_up(task, guest.address, SCREEN)
    assert time.monotonic() - began < 3


async def test_a_file_that_cannot_be_fetched_is_no_missing_file(worker, guest):
    # desktop-env takes both for "no such file" and scores 0.
    evaluator = {
        "func": "check_include_exclude",
        "result": {"type": "vm_file", "path": "/a", "dest": "a"},
        "expected": {"type": "rule", "rules": {"include": ["x"]}},
    }
    task = make_task(evaluator)
    began = time.monotonic()
    assert await score(worker, guest, task) == 0.0  # 404: there is none
    assert guest.count("/file") == 1
    assert time.monotonic() - began < 3  # upstream asks three times, 5 s apart

    guest.answers["/file"] = lambda _: DroppedResponse()
    with pytest.raises(DesktopError, match="no answer to POST /file"):
        await score(worker, guest, task)


class DroppedResponse(web.StreamResponse):
    """An answer that promises more than it sends."""

    async def prepare(self, request):
        self.content_length = 1000
        writer = await super().prepare(request)
        await self.write(b"part")
        request.transport.abort()
        return writer


async def test_no_screenshot_is_an_error(worker, guest):
    guest.answers["/screenshot"] = lambda _: web.Response(status=500)
    with pytest.raises(DesktopError, match="no screenshot after the reset"):
        await worker.set_up(make_task(), guest.address, SCREEN)
    with pytest.raises(DesktopError, match="no screenshot"):
        await score(worker, guest, make_task())


@pytest.mark.parametrize(
    "bad",
    [
        step("execute", command=["no-such-program"]),
        step("command", command=["no-such-program"]),
        step("launch", command=["no-such-program"]),
        step("open", path="/none"),
        step("change_wallpaper", path="/none"),
        step("upload_file", files=[{"local_path": "/none", "path": "/b"}]),
        step("download", files=[{"url": "http://127.0.0.1:1/a", "path": "/a"}]),
        step("no_such_step"),
    ],
    ids=lambda bad: bad["type"],
)
async def test_a_failed_step_fails_the_set_up(worker, guest, bad):
    for name in ("execute", "launch", "open_file", "change_wallpaper"):
        guest.answers[f"/setup/{name}"] = lambda _: web.json_response({"message": "cannot"}, status=500)
    with pytest.raises(DesktopError, match=bad["type"]):
        await worker.set_up(make_task(config=[bad]), guest.address, SCREEN)
    assert guest.count("/setup/execute") <= 1
    assert guest.count("/setup/launch") <= 1


async def test_window_steps_may_fail_and_are_told(worker, guest):
    guest.answers["/setup/activate_window"] = lambda _: web.Response(status=404, text="no window")
    task = make_task(config=[step("activate_window", window_name="x")])
    warnings = await worker.set_up(task, guest.address, SCREEN)
    assert warnings == ["/setup/activate_window answered 404: no window"]


async def test_a_postconfig_that_the_policy_made_impossible_is_scored(worker, guest):
    guest.answers["/setup/launch"] = lambda _: web.Response(status=500)
    guest.answers["/execute"] = lambda _: executed("no")
    task = make_task()
    task.evaluator["postconfig"] = [step("launch", command=["x"])]
    assert await score(worker, guest, task) == 0.0


async def test_a_refused_command_is_sent_once(worker, guest):
    # desktop-env sends it up to three times.
    guest.answers["/execute"] = lambda _: web.Response(status=500)
    evaluator = {
        "func": "exact_match",
        "result": {"type": "default_video_player"},
        "expected": expects("x"),
    }
    with pytest.raises(DesktopError):
        await score(worker, guest, make_task(evaluator))
    assert guest.count("/execute") == 1


# -- broken evaluators and workers ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("evaluator", "message"),
    [
        (
            {"func": "exact_match", "result": command("x"), "expected": {"type": "rule", "rules": {}}},
            "KeyError",
        ),
        ({"func": "no_such_metric", "result": command("x")}, "no_such_metric"),
        ({"func": "exact_match", "result": {"type": "no_such_state"}}, "no_such_state"),
        ({"func": "exact_match", "result": {"type": "cache_file", "path": "none"}}, "AssertionError"),
    ],
)
async def test_an_evaluator_that_crashes_is_no_zero(worker, guest, evaluator, message):
    with pytest.raises(DesktopError, match=message):
        await score(worker, guest, make_task(evaluator))
    # The worker goes on with the next task.
    guest.answers["/execute"] = lambda _: executed("yes")
    assert await score(worker, guest, make_task(name="next")) == 1.0


async def test_a_killed_worker_is_an_error(worker, guest):
    started = asyncio.Event()

    async def hang(_):
        started.set()
        await asyncio.sleep(30)

    guest.answers["/execute"] = hang
    working = asyncio.create_task(score(worker, guest, make_task()))
    await started.wait()
    os.kill(process_of(worker), signal.SIGKILL)
    with pytest.raises(DesktopError, match="process ended: status -9"):
        await working
    with pytest.raises(DesktopError, match="has ended"):
        await score(worker, guest, make_task())


async def test_a_worker_that_hangs_is_killed_with_all_it_started(worker, guest, monkeypatch):
    async def hang(_):
        await asyncio.sleep(30)

    guest.answers["/execute"] = hang
    monkeypatch.setattr(client, "EVALUATE_S", 1.0)
    pid = process_of(worker)
    with pytest.raises(DesktopError, match="longer than 1 s"):
        await score(worker, guest, make_task())
    assert gone(pid)


async def test_a_cancelled_call_ends_the_worker(worker, guest):
    started = asyncio.Event()

    async def hang(_):
        started.set()
        await asyncio.sleep(30)

    guest.answers["/terminal"] = hang
    task = asyncio.create_task(worker.set_up(make_task(), guest.address, SCREEN))
    await started.wait()
    pid = process_of(worker)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert gone(pid)


async def test_nothing_outlives_a_client_that_is_killed(tmp_path):
    script = (
        "import asyncio, os\n"
        "from pathlib import Path\n"
        "from arpo_replica.suites.osworld import client\n"
        "async def main():\n"
        f"    worker = await client.OSWorldWorker.start('x', Path({str(tmp_path)!r}))\n"
        "    server = next(iter(client._SERVERS.values()))\n"
        "    print(server._process.pid, server._path, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stdout=subprocess.PIPE, cwd=ROOT
    )
    server, path = (await process.stdout.readline()).split()
    pids = [int(server), *(child.pid for child in descendants(int(server)))]
    assert len(pids) >= 3  # bubblewrap, the server, a worker
    process.kill()
    await process.wait()
    for pid in pids:
        assert await asyncio.to_thread(gone, pid)
    # The folder itself is the sandbox's root there; the next client removes it.
    assert {left.name for left in Path(path.decode()).parent.glob("*")} == set()
    client._sweep()
    assert not Path(path.decode()).parent.exists()
