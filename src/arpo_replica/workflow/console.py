"""What Snakemake shows while a study runs: one line for each finished job, not the files and reasons of all.

Snakemake's own formatter does the rest (errors, tables of jobs), and its log file under ``.snakemake/log``
has everything. Dry runs and ``--verbose`` show what they always did. A formatter is less than a plug-in of
our own, and leaves ``--logger`` to those who have one.
"""

import logging
import re
import time
from html import unescape
from pathlib import Path
from typing import Any

from snakemake.common import NOTHING_TO_BE_DONE_MSG
from snakemake.logging import DefaultFormatter, get_event
from snakemake_interface_logger_plugins.common import LogEvent

HANDLER = "DefaultStreamHandler"
"""Snakemake's name for its handler of the terminal."""
LEFT_OUT = (LogEvent.WORKFLOW_STARTED, LogEvent.JOB_INFO, LogEvent.JOB_STARTED, LogEvent.JOB_FINISHED)
NOISE = ("Select jobs to execute", "Provided cores", "Rules claiming more", "Removing output files")
"""How messages begin that help nobody who waits for a study."""
HEAD = 8192
"""Bytes of a page that hold its ``<meta>`` elements."""


class OneLine(DefaultFormatter):
    """Snakemake's formatter, short about jobs; its ``filter`` is the handler's, too."""

    def __init__(self, show_failed_logs: bool, page: Path) -> None:
        super().__init__(show_failed_logs=show_failed_logs)
        self.started: dict[int, tuple[str, float]] = {}
        """Number of a running job -> what it is, and when it began (monotonic seconds)."""
        self.finished: list[str] = []
        self.page = page

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the terminal shows the record; what is not is kept for the line at a job's end."""
        event, told = get_event(record), record.__dict__
        if event == LogEvent.JOB_INFO:
            words = " ".join([told["rule_name"], *map(str, dict(told["wildcards"] or {}).values())])
            self.started[told["jobid"]] = (words, time.monotonic())
        elif event == LogEvent.JOB_FINISHED:
            words, begun = self.started.pop(told["job_id"], (record.getMessage(), time.monotonic()))
            self.finished.append(f"{words} ({time.monotonic() - begun:.0f} s)")
        elif event is None and str(record.msg).startswith(NOISE):
            return False
        return event not in LEFT_OUT

    def format_progress(self, msg: dict[str, Any]) -> str:
        """The jobs that ended since the last such message, one line each."""
        count = f"[{msg['done']:>{len(str(msg['total']))}}/{msg['total']}]"
        lines = [f"{count} {words}" for words in self.finished]
        self.finished.clear()
        return "\n".join(lines)

    def format_job_error(self, msg: dict[str, Any]) -> str:
        """Rule, log and error; the lists of files are in the log file."""
        return str(super().format_job_error({**msg, "msg": msg["rule_msg"], "input": [], "output": []}))

    def format(self, record: logging.LogRecord) -> str:
        """The text of a record; an empty one is not written."""
        text = str(super().format(record))
        return f"{text}\n{ending(self.page)}" if record.msg == NOTHING_TO_BE_DONE_MSG else text


def ending(page: Path) -> str:
    """Three lines for the end of a run: what came out, where the page is, what to do next.

    The page's own head says it: the libraries that worked it out take seconds to import. Empty where there
    is no page yet, as after ``snakemake table1``.
    """
    try:
        with page.open("rb") as file:
            head = file.read(HEAD).decode("utf-8", "replace")
    except OSError:
        return ""
    said = {name: unescape(text) for name, text in re.findall(r'<meta name="(\w+)" content="([^"]*)">', head)}
    if not {"description", "next"} <= said.keys():
        return ""  # of an older version
    lines = {"What came out": said["description"], "The page": page.resolve(), "Next": said["next"]}
    return "\n".join(f"{name + ':':<14} {text}" for name, text in lines.items())


def quieten(logger: logging.Logger, show_failed_logs: bool, page: Path) -> None:
    """Give Snakemake's terminal the short form, with the ending of a study that has this page already."""
    for handler in logger.handlers:
        if handler.name == HANDLER:
            short = OneLine(show_failed_logs, page)
            handler.setFormatter(short)
            handler.addFilter(short.filter)
