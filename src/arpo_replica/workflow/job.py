"""The frame of every job that Snakemake runs: config, log file, errors."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from arpo_replica.config import StudyConfig, parse_config
from arpo_replica.errors import UserError


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

    A ``UserError`` ends the job with its one sentence and status 2, without a traceback.
    """
    log = Path(snakemake.log[0])
    log.parent.mkdir(parents=True, exist_ok=True)
    stdout, stderr = sys.stdout, sys.stderr
    with log.open("w", buffering=1) as file:
        sys.stdout = Tee(stdout, file)  # type: ignore[assignment]
        sys.stderr = Tee(stderr, file)  # type: ignore[assignment]
        try:
            yield parse_config(snakemake.config, "of the run")
        except UserError as error:
            print(error, file=sys.stderr)
            sys.exit(2)
        finally:
            sys.stdout, sys.stderr = stdout, stderr
