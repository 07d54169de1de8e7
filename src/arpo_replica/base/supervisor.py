"""Runs a command so that nothing of it outlives its starter: ``python -IS supervisor.py OPTIONS -- COMMAND``.

A parent-death signal alone reaches one process, is lost when the *thread* that forked ends, and leaves
grandchildren (vLLM's engine and workers) behind. So this small process stands between: it adopts every
orphan below it (sub-reaper), notices the death of its starter (end of its standard input, or another
parent), ends the command's whole tree, removes its scratch folder, and only then ends itself. Should it be
killed, the kernel kills the command.

Standard library only, and of that little: it starts in some 30 ms.
"""

import ctypes
import os
import select
import shutil
import signal
import sys
import time
from collections.abc import Sequence

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
POLL_S = 0.2


def main(arguments: Sequence[str]) -> int:
    """``--grace SECONDS`` between SIGTERM and SIGKILL, ``--remove FOLDER`` when all is over."""
    split = arguments.index("--")
    options = dict(zip(arguments[:split:2], arguments[1:split:2], strict=True))
    parent = os.getppid()
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda received, _: asked.append(received))
    child = start(list(arguments[split + 1 :]), libc)
    status: int | None = None
    try:
        while not asked and os.getppid() == parent:
            status = reap(child)
            if status is not None or starter_is_gone():
                break
    finally:
        late = end_tree(child, float(options.get("--grace", "5")))
        if "--remove" in options:
            shutil.rmtree(options["--remove"], ignore_errors=True)
    return status if status is not None else late


def start(command: list[str], libc: ctypes.CDLL) -> int:
    """Process id of the command, started in a session of its own."""
    guard = os.getpid()
    child = os.fork()
    if child:
        return child
    try:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != guard:
            os._exit(1)
        os.setsid()
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.execvp(command[0], command)  # noqa: S606  # a list, no shell
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr, flush=True)
    os._exit(127)


def starter_is_gone() -> bool:
    """Wait a moment for the end of standard input, whose other end the starter holds."""
    try:
        readable, _, _ = select.select([0], [], [], POLL_S)
        return bool(readable) and not os.read(0, 64)
    except InterruptedError:
        return False


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
    signalled: set[int] = set()
    while True:
        found = reap(child)
        status = found if found is not None else status
        alive = descendants()
        if not alive:
            return status
        late = time.monotonic() > deadline
        for pid in alive:
            if late or pid not in signalled:
                signalled.add(pid)
                try:
                    os.kill(pid, signal.SIGKILL if late else signal.SIGTERM)
                except ProcessLookupError:
                    continue
        time.sleep(0.02)


def descendants() -> list[int]:
    """All living processes below this one, zombies left out."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):  # noqa: PTH208  # pathlib is not worth its import time here
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:  # noqa: PTH123
                    fields = file.read().rpartition(b")")[2].split()
            except OSError:
                continue
            if fields[0] != b"Z":  # a zombie's children are adopted at once, so nothing is below it
                children.setdefault(int(fields[1]), []).append(int(name))
    found: list[int] = []
    queue = [os.getpid()]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
