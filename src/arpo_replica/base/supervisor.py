"""Runs a command so that nothing of it outlives its starter: ``python -P -m MODULE OPTIONS -- COMMAND``.

A parent-death signal alone reaches one process, is lost when the *thread* that forked ends, and leaves
grandchildren (vLLM's engine and workers) behind. So this small process stands between: it adopts every
orphan below it (sub-reaper), notices the death of its starter (end of its standard input, or another
parent), ends the command's whole tree, removes its scratch folder, and only then ends itself. Should it be
killed, the kernel kills the command.
"""

import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from arpo_replica.base.environments import die_with_parent
from arpo_replica.base.processes import descendants, is_alive

PR_SET_CHILD_SUBREAPER = 36
POLL_S = 0.2


def guarded(command: Sequence[str], grace_s: float, *options: str) -> list[str]:
    """The command below a guard, this module: when the standard input of that ends, all processes do."""
    return [sys.executable, "-P", "-m", __name__, "--grace", str(grace_s), *options, "--", *command]


def start_guarded(
    command: Sequence[str], grace_s: float, *, log: Path, scratch: Path, cwd: Path, env: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Start a command below a guard, which then removes ``scratch``. ``log`` takes what they say.

    It has a session of its own, so that Ctrl-C goes to us alone: we stop it in order.
    """
    command = guarded(command, grace_s, "--remove", str(scratch))
    pipe = subprocess.PIPE  # its end tells the guard that we are gone
    with log.open("wb") as out:
        return subprocess.Popen(
            command,
            cwd=cwd,
            env=env,
            stdin=pipe,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def stop_guarded(guard: subprocess.Popen[bytes], patience_s: float) -> None:
    """End a guard and everything below it; returns when it has ended."""
    assert guard.stdin is not None
    guard.stdin.close()
    guard.terminate()
    try:
        guard.wait(patience_s)
    except subprocess.TimeoutExpired:
        guard.kill()
        guard.wait()


# --- the guard itself ----------------------------------------


def main(arguments: Sequence[str]) -> int:
    """``--grace SECONDS`` between SIGTERM and SIGKILL, ``--remove FOLDER`` when all is over."""
    split = arguments.index("--")
    options = dict(zip(arguments[:split:2], arguments[1:split:2], strict=True))
    command = list(arguments[split + 1 :])
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1)
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda received, _: asked.append(received))
    child, status = -1, None
    try:
        # Its handlers of signals are gone with the exec.
        started = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=die_with_parent,  # noqa: PLW1509  # one thread, one prctl call
        )
        child = started.pid
        while status is None and not asked and os.getppid() == parent and not starter_is_gone():
            status = reap(child)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr, flush=True)
        status = 127
    finally:
        late = end_tree(child, float(options.get("--grace", "5")))
        if "--remove" in options:
            shutil.rmtree(options["--remove"], ignore_errors=True)
    return status if status is not None else late


def starter_is_gone() -> bool:
    """Wait a moment for the end of standard input, whose other end the starter holds."""
    readable, _, _ = select.select([0], [], [], POLL_S)
    return bool(readable) and not os.read(0, 64)


def reap(child: int) -> int | None:
    """Collect ended children, adopted ones too; the exit status of ``child`` if it is among them."""
    status = None
    while True:
        try:
            pid, raw = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return status
        if pid == 0:
            return status
        if pid == child:
            code = os.waitstatus_to_exitcode(raw)
            status = code if code >= 0 else 128 - code


def end_tree(child: int, grace: float) -> int:
    """SIGTERM to all descendants, SIGKILL after ``grace`` seconds, until none is left.

    A descendant cannot get away: orphans become children of this process.
    """
    status = 0
    deadline = time.monotonic() + grace
    signalled = set[psutil.Process]()
    while True:
        found = reap(child)
        status = found if found is not None else status
        # A zombie's children are adopted at once, so nothing is below it.
        alive = [process for process in descendants(os.getpid()) if is_alive(process)]
        if not alive:
            return status
        late = time.monotonic() > deadline
        for process in alive:
            if late or process not in signalled:
                signalled.add(process)
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGKILL if late else signal.SIGTERM)
        time.sleep(0.02)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
