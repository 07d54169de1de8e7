"""Who is at work, from /proc."""

import pytest

from guest import processes


@pytest.mark.parametrize(
    ("states", "busy"),
    [("SS", False), ("SR", True), ("SD", True), ("SZ", False), ("", False)],
    ids=["asleep", "runs", "waits for the disk", "ended", "gone"],
)
def test_a_thread_that_runs_or_waits_for_the_disk_is_at_work(tmp_path, monkeypatch, states, busy):
    for thread, state in enumerate(states, start=7):
        folder = tmp_path / f"7/task/{thread}"
        folder.mkdir(parents=True)
        (folder / "stat").write_text(f"{thread} (odd ) R name) {state} 1 7 7 0 -1")
    monkeypatch.setattr(processes, "_PROC", str(tmp_path))
    assert processes.any_running([7]) is busy
