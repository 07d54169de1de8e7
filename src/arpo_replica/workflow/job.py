"""The frame of every job that Snakemake runs: config, log file, errors."""

from __future__ import annotations

import asyncio
import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from arpo_replica.base.allocation import describe_allocation, record_allocation
from arpo_replica.base.errors import DesktopError, Stopped, UserError
from arpo_replica.config import StudyConfig, parse_config

FULL = {errno.ENOSPC, errno.EDQUOT}
TRY_AGAIN = 75
"""EX_TEMPFAIL of sysexits.h: a signal ended the job; submitted again it goes on."""


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
        """Flush all."""
        for stream in self.streams:
            stream.flush()

    def isatty(self) -> bool:
        """Never a terminal: no colours, no cursor movement in logs."""
        return False


@contextmanager
def job(snakemake: Any) -> Iterator[StudyConfig]:
    """Give a script the checked config; copy what it prints to the rule's log.

    A ``UserError`` ends the job with its one sentence and status 2, without a traceback; so do desktops that
    fail where no episode can bear it, and a full disk.
    A job that a signal ended leaves with status 75. On a cluster the job's place is recorded.
    """
    log = Path(snakemake.log[0])
    log.parent.mkdir(parents=True, exist_ok=True)
    stdout, stderr = sys.stdout, sys.stderr
    with log.open("w", buffering=1) as file:
        sys.stdout = Tee(stdout, file)
        sys.stderr = Tee(stderr, file)
        try:
            config = parse_config(snakemake.config, "of the run")
            if describe_allocation() is not None:
                record_allocation(Path("results") / config.name, snakemake.rule, str(snakemake.output[0]))
            yield config
        except UserError as error:
            print(error, file=sys.stderr)
            sys.exit(2)
        except DesktopError as error:
            print(
                f"The desktops failed: {error}. What is finished is kept; 'arpo doctor' "
                "names what this machine lacks.",
                file=sys.stderr,
            )
            sys.exit(2)
        except (Stopped, asyncio.CancelledError) as stop:
            print(str(stop) or "Stopped by a signal; finished episodes are kept.", file=sys.stderr)
            sys.exit(TRY_AGAIN)
        except OSError as error:
            if error.errno not in FULL:
                raise
            print(
                f"The disk is full ({error.filename or Path.cwd()}); free space there and run again: what is "
                "finished is kept.",
                file=sys.stderr,
            )
            sys.exit(2)
        finally:
            sys.stdout, sys.stderr = stdout, stderr
