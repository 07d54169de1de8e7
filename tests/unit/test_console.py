"""The terminal of a run: one line a job, errors without walls of files, the ending of a finished study."""

from __future__ import annotations

import io
import logging
import subprocess
import sys

import pytest
from snakemake.common import NOTHING_TO_BE_DONE_MSG
from snakemake.logging import ColorizingTextHandler
from snakemake_interface_logger_plugins.common import LogEvent

from arpo_replica.workflow.console import HANDLER, ending, quieten

JOB = {
    "rule_name": "train_stage",
    "wildcards": {"arm": "arpo", "seed": "0"},
    "rule_msg": None,
    "input": [f"in_{number}" for number in range(60)],
    "output": [f"out_{number}" for number in range(60)],
    "log": [],
    "conda_env": None,
    "shellcmd": None,
    "aux": {},
}


@pytest.fixture
def terminal(tmp_path):
    """(a logger as Snakemake's, what it wrote)."""
    handler = ColorizingTextHandler(nocolor=True, stream=io.StringIO())
    handler.name = HANDLER
    logger = logging.Logger("snakemake")
    logger.addHandler(handler)
    quieten(logger, True, tmp_path / "index.html")
    return logger, handler.stream


def test_a_job_is_one_line_with_its_place_its_name_and_its_time(terminal):
    logger, said = terminal
    logger.info("Select jobs to execute...")
    logger.info(None, extra={"event": LogEvent.JOB_INFO, "jobid": 7, **JOB})
    assert said.getvalue() == ""
    logger.info("Finished jobid: 7", extra={"event": LogEvent.JOB_FINISHED, "job_id": 7})
    logger.info(None, extra={"event": LogEvent.PROGRESS, "done": 3, "total": 25})
    assert said.getvalue() == "[ 3/25] train_stage arpo 0 (0 s)\n"


def test_a_failed_job_names_its_rule_and_no_wall_of_files(terminal):
    logger, said = terminal
    logger.error("failed", extra={"event": LogEvent.JOB_ERROR, "jobid": 7, "rule": None, **JOB})
    assert "Error in rule train_stage" in said.getvalue()
    assert "None" not in said.getvalue()
    assert "in_3" not in said.getvalue()
    assert "out_3" not in said.getvalue()


def test_other_words_of_snakemake_stay(terminal):
    logger, said = terminal
    logger.warning("A run would refuse to start: no disk")
    assert said.getvalue() == "A run would refuse to start: no disk\n"


def test_a_finished_study_says_how_it_came_out(terminal, tmp_path):
    logger, said = terminal
    page = tmp_path / "index.html"
    page.write_text('<meta name="description" content="&#34;1&#34; of 2"><meta name="next" content="go on">')
    logger.info(NOTHING_TO_BE_DONE_MSG)
    assert said.getvalue().endswith(f'What came out: "1" of 2\nThe page:      {page}\nNext:          go on\n')
    page.write_text("<title>A page of an older version</title>")
    assert ending(page) == ""


def test_what_a_study_that_is_done_says_takes_no_library_of_the_page():
    """They take two seconds of processor time to import."""
    code = "import sys, arpo_replica.workflow.study, arpo_replica.workflow.console as c; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    heavy = {"matplotlib", "pandas", "jinja2", "scipy", "PIL", "pyarrow"}
    assert heavy.isdisjoint(found.stdout.split())
