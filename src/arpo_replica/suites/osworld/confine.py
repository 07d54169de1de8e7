"""The sandbox around evaluators. They read files that a policy wrote, and one of them even runs those files
(``check_python_file_by_test_suite``): on this machine, not in the desktop.

bubblewrap shows them the programs of the system, their own packages and the downloads, all read-only, and one
private folder; as root they also become an unprivileged user. They keep the network: desktops are reached by
TCP, and some evaluators ask live sites. The metric that runs a policy's program loses even that
(``upstream``), and without bubblewrap it is refused.
"""

import functools
import logging
import os
import shutil
import subprocess
from pathlib import Path

from arpo_replica.base.environments import ROOT
from arpo_replica.desktop import sandbox

logger = logging.getLogger(__name__)

ETC = (*sandbox.ETC, "resolv.conf", "hosts", "host.conf", "gai.conf", "services", "protocols", "pki", "ssl")
VARIABLE = "ARPO_CONFINED"
"""Set inside the sandbox."""


@functools.cache
def can_confine() -> bool:
    """True if bubblewrap works here."""
    if shutil.which("bwrap") is None:
        return False
    test = ["bwrap", "--unshare-pid", "--ro-bind", "/", "/", "--proc", "/proc", "true"]
    return subprocess.run(test, capture_output=True, check=False, timeout=30).returncode == 0


def confined(command: list[str], folder: Path, downloads: Path) -> list[str]:
    """``command`` in the sandbox. It may write to ``folder``, which becomes its own, and read
    ``downloads``."""
    python = Path(command[0])
    base = Path(os.path.realpath(python)).parent.parent
    visible = [python.parent.parent, base, ROOT / "src", downloads]
    args = ["bwrap", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    args += sandbox.system_files(ETC)
    args += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]  # noqa: S108  # the sandbox's own
    parents = {parent for path in (*visible, folder) for parent in path.parents}
    for parent in sorted(parents - {Path("/"), Path("/usr"), Path("/tmp")}):  # noqa: S108
        args += ["--dir", str(parent)]  # bubblewrap's own would be root's alone
    for path in visible:
        if not path.is_relative_to("/usr"):
            args += ["--ro-bind", str(path), str(path)]
    args += ["--bind", str(folder), str(folder), "--chdir", str(folder), "--setenv", VARIABLE, "1", "--"]
    owner = sandbox.unprivileged_id(0)
    if owner is not None:
        os.chown(folder, owner, owner)
    return [*args, *sandbox.unprivileged(0), *command]


def run_without_network(function: object, *args: object, **options: object) -> float:
    """Call a metric in a child without any network; nothing that it starts outlives it.

    Raises ``RuntimeError`` where that cannot be.
    """
    if not os.environ.get(VARIABLE):
        raise RuntimeError(
            "this evaluator runs a program that the policy wrote; it needs bubblewrap to be kept in (apt-get "
            "install bubblewrap)"
        )
    assert callable(function)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _leave()
            # The first process of the new namespace: when it ends, whatever the program started ends too.
            if (first := os.fork()) == 0:
                os.write(writing, repr(float(function(*args, **options))).encode())
                os._exit(0)
            os._exit(os.waitstatus_to_exitcode(os.waitpid(first, 0)[1]) != 0)
        except BaseException as error:
            logger.error(f"evaluator: {error!r}")
        os._exit(1)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        answer = stream.read(64)
    _, status = os.waitpid(child, 0)
    if os.waitstatus_to_exitcode(status) != 0:
        raise RuntimeError("the evaluator's child process failed")
    return float(answer)


def _leave() -> None:
    """Namespaces of its own: users, network (no interface, not even a loopback that is up), processes."""
    import ctypes

    new_user, new_processes, new_network = 0x10000000, 0x20000000, 0x40000000
    if ctypes.CDLL(None, use_errno=True).unshare(new_user | new_processes | new_network) != 0:
        raise OSError(ctypes.get_errno(), "no namespaces")
