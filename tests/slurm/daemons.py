"""Starting the virtual cluster's daemons and waiting for them."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence

HOST = "localhost"
"""What the daemons take for their host's name."""


def run_daemon(arguments: Sequence[str], environment: dict[str, str]) -> None:
    """Start a program that goes to the background, on a host that is named ``localhost`` for it alone.

    Slurm's daemons listen at the address that their host's name means: on Debian 127.0.1.1, elsewhere the
    network's or none at all. This name means loopback everywhere. Raises RuntimeError if the start fails.
    """
    named = ("unshare", "--uts", "sh", "-c", f'hostname {HOST} && exec "$@"', "sh")
    done = subprocess.run(
        [*named, *arguments], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)}: {done.stderr or done.stdout}")


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Poll until true. Raises RuntimeError naming ``what``."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"not within {seconds:g} s: {what}")
        time.sleep(0.1)
