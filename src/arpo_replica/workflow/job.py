"""The frame of every job that Snakemake runs: config, log file, errors."""

import asyncio
import errno
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import IO, Any, TypeVar

import psutil

from arpo_replica.base.errors import DesktopError, Stopped, UserError, refuse
from arpo_replica.base.slurm import describe_allocation, record_allocation
from arpo_replica.cluster.pools import prepare
from arpo_replica.config import StudyConfig, parse_config
from arpo_replica.config.decides import ACTING

logger = logging.getLogger(__name__)

FULL = {errno.ENOSPC, errno.EDQUOT}
TRY_AGAIN = 75
"""EX_TEMPFAIL of sysexits.h: a signal ended the job; submitted again it goes on."""
SNAKEMAKE = "ARPO_SNAKEMAKE"
"""Variable with the process id of the Snakemake that runs this script (set in ``rules/common.smk``)."""
WATCH_S = 0.5
GRACE_S = 3.0
"""Seconds that a job has to close its desktops and models once its Snakemake is gone."""


def end_with_snakemake() -> None:
    """End this process within seconds of the death of the Snakemake that runs it.

    Where a shell stands between the two, no signal of the kernel tells the script; and a signal for the death
    of a parent comes when the parent's *thread* ends, of which Snakemake has many. So a thread looks whether
    Snakemake is still an ancestor of this process: once it or the shell has ended it never is again, which
    also holds if that was before the thread began. On a cluster each job has a Snakemake of its own, so the
    death of the one that submitted it ends nothing.
    """
    snakemake = int(os.environ.get(SNAKEMAKE, "0"))
    if not snakemake:
        return  # not a script of a rule

    def watch() -> None:
        while any(parent.pid == snakemake for parent in psutil.Process().parents()):
            time.sleep(WATCH_S)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_S)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="end-with-snakemake", daemon=True).start()


class Tee:
    """Writes to several streams: the rule's log and the terminal."""

    def __init__(self, *streams: IO[str]) -> None:
        self.streams = streams

    def write(self, text: str) -> int:
        """Write to all; a whole line is shown at once, also where output is no terminal."""
        for stream in self.streams:
            stream.write(text)
        if "\n" in text:
            self.flush()
        return len(text)

    def flush(self) -> None:
        for stream in self.streams:
            stream.flush()

    def isatty(self) -> bool:
        """Never a terminal: no colours, no cursor movement in logs."""
        return False


Files = TypeVar("Files")


def given(kind: type[Files], snakemake: Any, **more: Any) -> Files:
    """A dataclass of paths, filled from the rule's inputs and parameters of the same names."""
    named = {**dict(snakemake.params.items()), **dict(snakemake.input.items())}
    found = {
        name: Path(value) if isinstance(value, str) else [Path(path) for path in value]
        for name, value in named.items()
        if name in kind.__annotations__
    }
    return kind(**found, **more)


@contextmanager
def job(snakemake: Any) -> Iterator[StudyConfig]:
    """Give a script the checked config; copy what it prints to the rule's log.

    A ``UserError`` ends the job with its one sentence and status 2, without a traceback; so do desktops that
    fail where no episode can bear it, and a full disk.
    A job that a signal ended leaves with status 75, one whose Snakemake dies is ended like this. On a cluster
    the job's place is recorded, and the pools of desktops that it may need are prepared.
    """
    end_with_snakemake()
    log = Path(snakemake.log[0])
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        log.open("w", buffering=1) as file,
        redirect_stdout(Tee(sys.stdout, file)),
        redirect_stderr(Tee(sys.stderr, file)),
    ):
        try:
            config = parse_config(snakemake.config, "of the run")
            if describe_allocation() is not None:
                record_allocation(Path("results") / config.name, snakemake.rule, str(snakemake.output[0]))
            if config.desktop.pool_jobs is not None and snakemake.rule in ACTING.split():
                prepare(config)
            yield config
        except UserError as error:
            refuse(error)
        except DesktopError as error:
            refuse(
                f"The desktops failed: {error}. What is finished is kept; 'arpo doctor' names what this "
                "machine lacks."
            )
        except (Stopped, asyncio.CancelledError) as stop:
            refuse(str(stop) or "Stopped by a signal; finished episodes are kept.", status=TRY_AGAIN)
        except OSError as error:
            if error.errno not in FULL:
                raise
            refuse(
                f"The disk is full ({error.filename or Path.cwd()}); free space there and run again: what is "
                "finished is kept."
            )
