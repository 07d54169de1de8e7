"""A desktop that cannot be reset costs its episode and nothing else."""

from __future__ import annotations

from dataclasses import replace

from test_pool import SETTINGS, collect, episodes, make_roots

from arpo_replica.base.errors import DesktopError
from fakes import FakeProvider


async def test_a_reset_that_fails_eight_times_fails_that_episode_alone(tmp_path):
    """The released code stops the whole training then."""
    tries = []

    def hook(event, desktop):
        if event == "reset" and desktop.task.id == "task-001":
            tries.append(desktop.name)
            raise DesktopError("the reset failed")

    roots, provider = make_roots(tmp_path, tasks=4, trials=1), FakeProvider(hook)
    progress = await collect(roots, provider, settings=replace(SETTINGS, retries=7))
    assert len(tries) == len(set(tries)) == 8  # each time a fresh desktop
    found = {record.task_id: record for record in episodes(roots[0])}
    lost = found.pop("task-001")
    assert (lost.outcome, lost.attempts, lost.hard_score) == ("env_error", 8, None)
    assert lost.errors == ["DesktopError: the reset failed"] * 8
    assert {record.outcome for record in found.values()} == {"success"}
    assert progress.outcomes == {"success": 3, "env_error": 1}
    assert all(desktop.closed for desktop in provider.desktops)
