"""Who is at work, from /proc."""

import os
import shutil
import subprocess
import time
from pathlib import Path

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
    assert processes.Threads().any_running([7]) is busy


def test_who_has_worked_shows_it_once_asleep():
    worker = subprocess.Popen(
        ["sh", "-c", "while read go; do echo done; done"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    clock = processes.processor_clock(worker.pid)

    def worked():
        deadline = time.monotonic() + 10
        while not processes.is_asleep(worker.pid) and time.monotonic() < deadline:
            time.sleep(0.001)
        return time.clock_gettime_ns(clock)

    try:
        for _ in range(20):
            before = worked()
            time.sleep(0.01)
            assert worked() == before
            worker.stdin.write(b"go\n")
            worker.stdin.flush()
            assert worker.stdout.readline() == b"done\n"
            assert worked() > before
    finally:
        worker.kill()
        worker.communicate()
    with pytest.raises(OSError, match="clock_getcpuclockid"):
        processes.processor_clock(worker.pid)


def open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


def test_files_that_stay_open_tell_of_now(monkeypatch):
    monkeypatch.setattr(processes, "MOST_FILES", 1)
    watched, before = processes.Threads(), open_files()
    sleeper = subprocess.Popen(["sh", "-c", "read go; while :; do :; done"], stdin=subprocess.PIPE)
    second = subprocess.Popen(["sleep", "60"])
    pids = [sleeper.pid, second.pid]  # one with its file kept, one beyond the most
    try:
        deadline = time.monotonic() + 10
        while watched.any_running(pids) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert watched.any_running(pids) is False
        sleeper.stdin.write(b"go\n")
        sleeper.stdin.flush()
        while not watched.any_running(pids) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert watched.any_running(pids) is True
    finally:
        for process in (sleeper, second):
            process.kill()
            process.wait()
    assert watched.any_running(pids) is False
    sleeper.stdin.close()
    assert open_files() == before  # no file of a thread that has ended


def test_another_thread_of_the_same_number_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "_PROC", str(tmp_path))
    watched, folder = processes.Threads(), tmp_path / "7/task/7"
    folder.mkdir(parents=True)
    (folder / "stat").write_text("7 (x) S 1 7 7 0 -1")
    assert watched.any_running([7]) is False
    os.close(next(iter(watched._files.values())))  # reads of an ended thread's file fail, as of a closed one
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "stat").write_text("7 (y) R 1 7 7 0 -1")
    assert watched.any_running([7]) is True
