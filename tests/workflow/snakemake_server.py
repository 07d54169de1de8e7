"""Snakemake's command in a process that has its libraries loaded already.

Most of a dry run's seconds are imports. A server process (``multiprocessing``'s fork server, which runs
nothing itself) imports them once; each call is a fork of it, with a folder, an environment and outputs of its
own, and runs the function behind the ``snakemake`` command.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["snakemake.cli", "arpo_replica.workflow.study"])


def run_snakemake(
    arguments: Sequence[str], folder: Path, environment: Mapping[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """``snakemake ARGUMENTS`` in ``folder``; raises ``TimeoutError`` after ``timeout`` seconds."""
    command = ["snakemake", *arguments]
    with tempfile.TemporaryDirectory() as scratch:
        said = [Path(scratch, name) for name in ("stdout", "stderr")]
        process = SERVER.Process(
            target=_call, args=(command, str(folder), dict(environment), *map(str, said))
        )
        process.start()
        process.join(timeout)
        if process.is_alive():
            process.kill()
            process.join()
            raise TimeoutError(f"{' '.join(command)} ran for more than {timeout} s")
        assert process.exitcode is not None
        stdout, stderr = (path.read_text() for path in said)
    return subprocess.CompletedProcess(command, process.exitcode, stdout, stderr)


def _call(command: list[str], folder: str, environment: dict[str, str], *said: str) -> None:
    for stream, name in zip((1, 2), said, strict=True):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = command
    from snakemake.cli import main

    main()
