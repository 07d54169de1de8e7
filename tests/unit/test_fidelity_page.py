"""The page on container desktops says what the committed results say."""

import json
import re
import shutil

import pytest

from arpo_replica.base.environments import ROOT
from arpo_replica.tasks.osworld_files import MANIFEST, read_task_manifest
from arpo_replica.validation import fidelity_page
from arpo_replica.validation.fidelity_page import PAGE, VALIDATION, render_fidelity
from arpo_replica.validation.validate import judge


@pytest.fixture
def validation():
    return json.loads((ROOT / VALIDATION).read_text())


def test_the_page_is_up_to_date():
    assert (ROOT / PAGE).read_text() == render_fidelity(ROOT), "run: arpo docs"


def test_the_committed_result_is_of_osworlds_task_files_and_judged_by_these_rules(validation):
    files = read_task_manifest(ROOT / MANIFEST).files
    assert len(validation["tasks"]) == 40
    for row in validation["tasks"]:
        assert row["sha256"] == files[f"{row['task']}.json"]
        attempts = {mode: row[mode] for mode in ("noop", "fail", "oracle") if mode in row}
        assert judge(row["infeasible"], attempts) == row["verdict"], row["task"]
    assert validation["unexpected"] == []


def test_the_goals_of_the_container_desktops_are_met(validation):
    rows = validation["tasks"]
    solved = [row["task"] for row in rows if row["verdict"] == "ok"]
    assert len(solved) >= 12
    assert len({name.partition("/")[0] for name in solved}) >= 4
    assert sum(row["verdict"] == "infeasible_ok" for row in rows) >= 14
    for row in rows:
        if row["verdict"] == "false_positive":
            assert row["known"]


def test_another_result_gives_another_page(tmp_path, validation):
    for name in ("data", "docs"):
        (tmp_path / name).mkdir()
    shutil.copytree(ROOT / "data" / "osworld", tmp_path / "data" / "osworld")
    (tmp_path / "data" / "splits").mkdir()
    shutil.copy(ROOT / fidelity_page.SPLIT, tmp_path / fidelity_page.SPLIT)
    assert render_fidelity(tmp_path) == render_fidelity(ROOT)
    solved = next(row for row in validation["tasks"] if row["verdict"] == "ok")
    solved["verdict"] = "oracle_failed"
    (tmp_path / VALIDATION).write_text(json.dumps(validation))
    count = r"Solved by their scripts: (\d+)"
    before, after = (int(re.search(count, render_fidelity(root))[1]) for root in (ROOT, tmp_path))
    assert after == before - 1
