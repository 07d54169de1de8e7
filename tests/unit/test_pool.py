"""The rollout pool: outcomes, retries, broken desktops and policies, SIGKILL and resume."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from arpo_replica.actions.coordinates import Frame
from arpo_replica.actions.parse import UITarsParser
from arpo_replica.base.errors import DesktopError, PolicyError, RefusedError, UserError
from arpo_replica.rollout import records
from arpo_replica.rollout.collect import Labels, OutputRoot, PoolSettings, collect_episodes
from arpo_replica.rollout.episode import EpisodeLimits
from arpo_replica.rollout.records import GLIMPSE_WIDTH, RUNNING, Glimpse, finished_episodes, read_episode
from fakes import CLICK, FINISHED, SCREEN, FakeProvider, ScriptedPolicy, broken, make_task, png

LABELS = Labels("base", 0, "base", "nano", "fake", "checkpoint", {"temperature": 0.6})
SETTINGS = PoolSettings(
    desktops=4,
    limits=EpisodeLimits(max_steps=3, success_above=0.5, timeout_s=10),
    retries=2,
    start_timeout_s=5,
)


def make_roots(folder: Path, *, tasks: int = 6, trials: int = 2) -> list[OutputRoot]:
    split = [make_task(number) for number in range(tasks)]
    return [OutputRoot(folder / f"trial_{trial}", "test_in", trial, split) for trial in range(trials)]


async def collect(roots, provider, policy=None, settings=SETTINGS, labels=LABELS, **options):
    policy = policy or ScriptedPolicy(CLICK, FINISHED)
    return await collect_episodes(
        roots,
        provider=provider,
        policy=lambda *_: policy,
        parser=UITarsParser(Frame("absolute", SCREEN, SCREEN)),
        labels=labels,
        settings=settings,
        **options,
    )


def episodes(root: OutputRoot) -> list:
    return [read_episode(path)[0] for path in finished_episodes(root.path).values()]


def index(root: OutputRoot) -> list[dict]:
    lines = (root.path / "episodes.jsonl").read_text().split("\n")
    return [json.loads(line) for line in lines if line]


def running(root: OutputRoot) -> list[Path]:
    return sorted(root.path.glob(f"{RUNNING}*"))


def digests(roots) -> dict[str, str]:
    return {
        str(file): hashlib.sha256(file.read_bytes()).hexdigest() + str(file.stat().st_mtime_ns)
        for root in roots
        for path in finished_episodes(root.path).values()
        for file in path.iterdir()
    }


async def test_all_episodes_of_all_roots_are_collected(tmp_path):
    roots, provider = make_roots(tmp_path), FakeProvider(delay_s=0.001)
    progress = await collect(roots, provider)
    assert (progress.done, progress.total, progress.outcomes["success"]) == (12, 12, 12)
    for root in roots:
        assert [row["task_id"] for row in index(root)] == [task.id for task in root.tasks]
        assert {row["trial"] for row in index(root)} == {root.trial}
    assert len(provider.desktops) == provider.most == SETTINGS.desktops
    assert all(desktop.closed for desktop in provider.desktops)
    assert sum(desktop.resets for desktop in provider.desktops) == 12


async def test_watching_takes_a_small_share_of_a_processor(tmp_path, monkeypatch):
    monkeypatch.setitem(records._TURN, "next", 0.0)
    times = iter([100.0, 100.05, 102.4, 102.6, 102.65])  # begun, made; too early; begun, made
    monkeypatch.setattr(records, "time", SimpleNamespace(monotonic=lambda: next(times)))
    with records.watched(tmp_path, make_task(), "arpo", 0) as show:
        seen = []
        for _ in range(3):
            await show(png(), [])
            seen += [path.stat().st_ino for path in tmp_path.glob(f"{RUNNING}*")]
    assert seen[0] == seen[1] != seen[2], "not 2.35 s after one that took 0.05 s"
    assert not list(tmp_path.iterdir())


async def test_an_episode_in_progress_shows_its_newest_screen_and_leaves_no_trace(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "GLIMPSE_SHARE", math.inf)
    monkeypatch.setitem(records._TURN, "next", 0.0)
    [root] = make_roots(tmp_path, tasks=1, trials=1)
    seen: list[Glimpse] = []

    def hook(event, desktop):
        if event in ("act", "evaluate"):
            seen.extend(Glimpse.model_validate_json(file.read_bytes()) for file in running(root))

    assert running(root) == []
    await collect([root], FakeProvider(hook=hook), ScriptedPolicy(CLICK, CLICK, FINISHED))
    assert [(glimpse.steps, (glimpse.action or {}).get("type")) for glimpse in seen] == [
        (0, None),
        (1, "click"),
        (2, "click"),
    ]
    assert {glimpse.arm for glimpse in seen} == {"base"}
    with Image.open(io.BytesIO(base64.b64decode(seen[0].screen))) as screen:
        assert screen.format == "WEBP"
        assert screen.width <= GLIMPSE_WIDTH
    assert running(root) == []


async def test_nobody_who_watches_costs_an_episode_anything(tmp_path, monkeypatch):
    [root] = make_roots(tmp_path, tasks=1, trials=1)
    monkeypatch.setattr(records, "_small_webp", lambda _: 1 / 0)
    monkeypatch.setitem(records._TURN, "next", 0.0)
    progress = await collect([root], FakeProvider())
    assert progress.outcomes["success"] == 1


async def test_a_desktop_is_never_shared_and_no_worker_waits_for_another(tmp_path):
    """A slow episode, here one that waits for all others, holds up its own desktop only."""
    slow, order, others_done = "task-000", [], asyncio.Event()

    def hook(event, desktop):
        if event == "evaluate":
            order.append(desktop.task.id)
            if len(order) == 8:
                others_done.set()

    class SlowFirst(FakeProvider):
        async def start(self, name):
            desktop = await super().start(name)
            reset = desktop.reset

            async def slowly(task):
                if task.id == slow:
                    await asyncio.wait_for(others_done.wait(), 60)
                await reset(task)

            desktop.reset = slowly
            return desktop

    roots = make_roots(tmp_path, tasks=9, trials=1)
    await collect(roots, SlowFirst(hook), settings=replace(SETTINGS, desktops=2))
    assert order[-1] == slow
    assert len(order) == 9


async def test_outcomes_are_recorded_as_they_are(tmp_path):
    policies = {0: ScriptedPolicy(FINISHED), 1: ScriptedPolicy(CLICK), 2: ScriptedPolicy("nonsense")}
    roots = make_roots(tmp_path, tasks=2, trials=3)
    await collect_episodes(
        roots,
        provider=FakeProvider(score=0.0),
        policy=lambda root, _: policies[root.trial],
        parser=UITarsParser(Frame("absolute", SCREEN, SCREEN)),
        labels=LABELS,
        settings=SETTINGS,
    )
    found = [{(row["outcome"], row["format_errors"], row["attempts"]) for row in index(r)} for r in roots]
    assert found == [{("failure", 0, 1)}, {("truncated", 0, 1)}, {("failure", 1, 1)}]


async def test_a_broken_desktop_is_replaced_and_the_episode_repeated(tmp_path):
    roots, provider = make_roots(tmp_path, tasks=3, trials=1), FakeProvider(broken("act", times=2))
    progress = await collect(roots, provider, settings=replace(SETTINGS, desktops=1))
    first, *others = episodes(roots[0])
    assert (first.outcome, first.attempts) == ("success", 3)
    assert first.errors == ["DesktopError: act broke"] * 2
    assert {(record.outcome, record.attempts) for record in others} == {("success", 1)}
    assert (progress.retries, progress.restarts) == (2, 2)
    assert [desktop.resets for desktop in provider.desktops] == [1, 1, 3]
    assert all(desktop.closed for desktop in provider.desktops)


@pytest.mark.parametrize("event", ["reset", "act", "evaluate"])
async def test_an_env_error_has_no_score_and_its_reasons(tmp_path, event):
    roots = make_roots(tmp_path, tasks=2, trials=1)
    progress = await collect(roots, FakeProvider(broken(event)))
    for record in episodes(roots[0]):
        assert (record.outcome, record.hard_score, record.standard_score) == ("env_error", None, None)
        assert record.errors == [f"DesktopError: {event} broke"] * 3
        assert (record.attempts, record.n_steps, record.final_screenshot) == (3, 0, None)
    assert progress.outcomes["env_error"] == 2
    assert len(index(roots[0])) == 2


async def test_an_unforeseen_error_is_an_env_error_too(tmp_path, capsys):
    def hook(event, desktop):
        if event == "evaluate" and desktop.task.id == "task-000":
            raise KeyError("odd page")

    roots = make_roots(tmp_path, tasks=3, trials=1)
    await collect(roots, FakeProvider(hook))
    outcomes = [record.outcome for record in episodes(roots[0])]
    assert outcomes == ["env_error", "success", "success"]
    assert "Traceback" in capsys.readouterr().err


async def test_a_failing_policy_is_an_env_error_and_the_server_is_asked_after(tmp_path):
    asked = []

    async def check():
        asked.append(1)

    roots = make_roots(tmp_path, tasks=1, trials=1)
    await collect(roots, FakeProvider(), ScriptedPolicy(CLICK, PolicyError("500")), check_policy=check)
    (record,) = episodes(roots[0])
    assert (record.outcome, record.errors) == ("env_error", ["PolicyError: 500"] * 3)
    assert len(asked) == 3


async def test_what_a_server_refuses_is_tried_once(tmp_path):
    roots = make_roots(tmp_path, tasks=1, trials=1)
    policy = ScriptedPolicy(CLICK, RefusedError("status 400: context full"))
    await collect(roots, FakeProvider(), policy)
    (record,) = episodes(roots[0])
    assert (record.outcome, record.attempts, record.errors) == ("truncated", 1, [])
    assert (record.hard_score, record.refusal) == (1.0, "status 400: context full")
    assert policy.conversations == 1
    roots = make_roots(tmp_path / "first", tasks=1, trials=1)
    await collect(roots, FakeProvider(), ScriptedPolicy(RefusedError("status 400: no such field")))
    (record,) = episodes(roots[0])
    assert (record.outcome, record.errors) == ("env_error", ["RefusedError: status 400: no such field"])


async def test_a_dead_server_ends_the_job_and_spoils_no_episode(tmp_path):
    async def check():
        raise RuntimeError("vLLM died")

    roots, provider = make_roots(tmp_path), FakeProvider()
    with pytest.raises(RuntimeError, match="vLLM died"):
        await collect(roots, provider, ScriptedPolicy(PolicyError("refused")), check_policy=check)
    assert not any(finished_episodes(root.path) for root in roots)
    assert all(desktop.closed for desktop in provider.desktops)
    assert not any((root.path / "episodes.jsonl").exists() for root in roots)


async def test_a_server_that_never_gets_ready_ends_the_job(tmp_path):
    async def ready():
        await asyncio.sleep(0.05)
        raise UserError("vLLM was not ready")

    roots, provider = make_roots(tmp_path), FakeProvider()
    with pytest.raises(UserError, match="not ready"):
        await collect(roots, provider, policy_ready=ready)
    assert provider.desktops
    assert all(desktop.closed for desktop in provider.desktops)
    assert not any(finished_episodes(root.path) for root in roots)


async def test_desktops_start_while_the_server_does(tmp_path):
    provider, before = FakeProvider(), []

    async def ready():
        await asyncio.sleep(0.05)
        before.append(len(provider.desktops))

    await collect(make_roots(tmp_path), provider, policy_ready=ready)
    assert before == [SETTINGS.desktops]


def failing(numbers) -> FakeProvider:
    def start(number):
        if number in numbers:
            raise DesktopError("no display")

    return FakeProvider(start=start)


async def test_a_desktop_that_does_not_start_is_an_env_error_of_its_episode(tmp_path):
    roots = make_roots(tmp_path, tasks=4, trials=1)
    provider = failing({2})
    provider.hook = broken("act", times=1)  # so that a second desktop is needed
    settings = replace(SETTINGS, desktops=1, retries=1)
    await collect(roots, provider, settings=settings)
    outcomes = [record.outcome for record in episodes(roots[0])]
    assert outcomes == ["env_error", "success", "success", "success"]
    first = episodes(roots[0])[0]
    assert first.errors == ["DesktopError: act broke", "the desktop did not start: DesktopError: no display"]


async def test_a_desktop_service_that_is_gone_ends_the_job_and_spoils_no_episode(tmp_path):
    roots = make_roots(tmp_path, tasks=8, trials=1)
    provider = failing(range(SETTINGS.desktops + 1, 10_000))

    def gone():
        if provider.attempts > SETTINGS.desktops:
            raise UserError("The desktop service does not answer; start it.")

    provider.check = gone
    provider.hook = broken("act", times=2)
    with pytest.raises(UserError, match=r"^The desktop service does not answer; start it\.$"):
        await collect(roots, provider)
    assert not [record for record in episodes(roots[0]) if record.outcome == "env_error"]


async def test_failed_first_starts_are_no_fault_of_an_episode(tmp_path):
    roots = make_roots(tmp_path, tasks=4, trials=1)
    progress = await collect(roots, failing({1, 2, 3, 4, 5}))
    assert progress.outcomes["success"] == 4
    assert {record.attempts for record in episodes(roots[0])} == {1}


async def test_if_no_desktop_can_start_the_job_says_so(tmp_path):
    roots, provider = make_roots(tmp_path), failing(range(10_000))
    with pytest.raises(UserError, match=r"No desktop could be started .*no display.*'desktop'"):
        await collect(roots, provider)
    assert SETTINGS.desktops * 3 <= provider.attempts <= SETTINGS.desktops * 4
    assert not any(finished_episodes(root.path) for root in roots)


async def test_a_hanging_start_and_a_hanging_close_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("arpo_replica.providers.pool.CLOSE_TIMEOUT_S", 0.05)

    class Hanging(FakeProvider):
        async def start(self, name):
            if self.attempts == 0:
                self.attempts += 1
                await asyncio.sleep(60)
            desktop = await super().start(name)

            async def never():
                await asyncio.sleep(60)

            desktop.close = never
            return desktop

    roots = make_roots(tmp_path, tasks=1, trials=1)
    progress = await collect(roots, Hanging(), settings=replace(SETTINGS, start_timeout_s=0.05))
    assert progress.outcomes["success"] == 1


async def test_finished_episodes_are_kept_byte_for_byte(tmp_path):
    roots = make_roots(tmp_path, tasks=4, trials=1)
    await collect([replace(roots[0], tasks=roots[0].tasks[:2])], FakeProvider())
    before = digests(roots)
    provider = FakeProvider(score=0.0)
    progress = await collect(roots, provider)
    assert (progress.kept, progress.done) == (2, 4)
    assert {name: digest for name, digest in digests(roots).items() if name in before} == before
    assert [row["outcome"] for row in index(roots[0])] == ["success", "success", "failure", "failure"]
    assert sum(desktop.resets for desktop in provider.desktops) == 2


async def test_a_complete_root_starts_nothing(tmp_path):
    roots, provider = make_roots(tmp_path), FakeProvider()
    await collect(roots, FakeProvider())
    before = digests(roots)

    async def never():
        raise AssertionError("the policy is not needed")

    await collect(roots, provider, policy_ready=never)
    assert provider.attempts == 0
    assert digests(roots) == before


@pytest.mark.parametrize(
    "change",
    [{"checkpoint_sha256": "other"}, {"sampling": {"temperature": 1.0}}, {"arm": "grpo"}],
    ids=lambda change: next(iter(change)),
)
async def test_episodes_of_another_question_are_replaced(tmp_path, change):
    roots = make_roots(tmp_path, tasks=2, trials=1)
    await collect(roots, FakeProvider())
    progress = await collect(roots, FakeProvider(score=0.0), labels=replace(LABELS, **change))
    assert (progress.kept, progress.outcomes["failure"]) == (0, 2)
    assert {row["outcome"] for row in index(roots[0])} == {"failure"}


async def test_episodes_of_tasks_no_longer_in_the_split_go(tmp_path):
    roots = make_roots(tmp_path, tasks=3, trials=1)
    await collect(roots, FakeProvider())
    fewer = [replace(roots[0], tasks=roots[0].tasks[:2])]
    progress = await collect(fewer, FakeProvider())
    assert (progress.kept, progress.total) == (2, 2)
    assert [row["task_id"] for row in index(roots[0])] == ["task-000", "task-001"]


async def test_cancelling_closes_every_desktop(tmp_path):
    running = asyncio.Event()
    provider = FakeProvider(delay_s=0.01)
    provider.hook = lambda event, desktop: running.set() if event == "act" else None
    job = asyncio.create_task(collect(make_roots(tmp_path), provider))
    await running.wait()
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    assert len(provider.desktops) == SETTINGS.desktops
    assert all(desktop.closed for desktop in provider.desktops)


async def test_progress_and_heartbeat(tmp_path, capsys):
    heartbeat = tmp_path / "heartbeat.json"
    await collect(make_roots(tmp_path), FakeProvider(broken("act", times=1)), heartbeat=heartbeat)
    state = json.loads(heartbeat.read_text())
    assert (state["done"], state["total"], state["desktops"]) == (12, 12, 0)
    assert state["outcomes"] == {"success": 12}
    last = capsys.readouterr().err.strip().split("\n")[-1]
    assert last.startswith("episodes 12/12 | ")
    assert "success 12, failure 0, truncated 0, env_error 0 | retries 1, desktops 0, restarts 1" in last
    assert "ETA 0:00:00" in last


JOB = """
import asyncio, sys
from pathlib import Path
from types import SimpleNamespace
from fakes import FakeProvider
from test_pool import collect, make_roots
asyncio.run(collect(make_roots(Path(sys.argv[1]), tasks=30, trials=2), FakeProvider(delay_s=0.01)))
"""


def test_killed_again_and_again_it_ends_with_what_it_had(tmp_path):
    """SIGKILL at three random moments; finished episodes keep every byte and are not run again."""
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": f"{here}:{here.parent}"}
    command = [sys.executable, "-c", JOB, str(tmp_path)]
    roots = make_roots(tmp_path, tasks=30, trials=2)
    generator = random.Random(5)
    kept: dict[str, str] = {}
    for _ in range(3):
        before = len(kept)
        job = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while len(digests(roots)) <= before and time.monotonic() < deadline and job.poll() is None:
            time.sleep(0.005)
        time.sleep(generator.uniform(0, 0.05))
        job.send_signal(signal.SIGKILL)
        assert job.wait() == -signal.SIGKILL, "the job ended before it was killed"
        now = digests(roots)
        assert {name: now[name] for name in kept} == kept
        assert len(now) > before
        kept = now
    assert not all((root.path / "episodes.jsonl").exists() for root in roots)
    subprocess.run(command, env=environment, check=True, stderr=subprocess.DEVNULL)
    now = digests(roots)
    assert {name: now[name] for name in kept} == kept
    for root in roots:
        assert len(index(root)) == 30
        assert not list(root.path.glob(".tmp-*"))
