"""Rules touched by a change run again, others do not."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import make_checkout

from arpo_replica.base.processes import command_of, descendants, is_alive
from arpo_replica.cli import main
from arpo_replica.config.decides import table

AFTER_ROLLOUTS = {
    "score_episodes",
    "summarise_study",
    "compare_claims",
    "write_tables",
    "write_provenance",
    "render_report",
}


def test_nothing_to_do_after_a_finished_study(finished):
    assert finished.planned() == {}


def test_editing_the_report_template_renders_the_page_alone(finished):
    template = next((finished.root / "src/arpo_replica/report").rglob("*.j2"))
    template.write_text(template.read_text() + "\n")
    assert finished.planned() == {"render_report": 1}


def test_more_trials_collect_rollouts_but_train_nothing(finished):
    finished.edit("configs/demo.yaml", "  trials: 2", "  trials: 3")
    planned = finished.planned()
    assert planned["collect_rollouts"] == 3
    assert set(planned) == {"collect_rollouts", "write_config"} | AFTER_ROLLOUTS


def test_a_recipe_key_of_one_arm_leaves_the_other_arm_alone(finished):
    finished.edit(
        "configs/demo.yaml", "{replay: {enabled: true}}", "{replay: {enabled: true, capacity_per_task: 4}}"
    )
    planned = finished.planned()
    assert planned["train_stage"] == 2
    assert planned["collect_rollouts"] == 1
    assert "build_nano_model" not in planned


def test_a_changed_test_task_trains_nothing(finished):
    listed = (finished.root / "data/splits/miniwob_test_out.json").read_text()
    task = next(path for path in (finished.root / "data/tasks/miniwob").glob("*.json") if path.stem in listed)
    task.write_text(task.read_text().replace('"instruction"', ' "instruction"'))
    planned = finished.planned()
    assert planned["collect_rollouts"] == 3
    assert planned["resolve_split"] == 1
    assert "train_stage" not in planned


def test_more_steps_in_the_last_stage_keep_the_first(finished):
    finished.edit(
        "configs/demo.yaml",
        "name: train_32, split: train_32, steps: 3",
        "name: train_32, split: train_32, steps: 4",
    )
    planned = finished.planned()
    assert planned["train_stage"] == 2
    assert "record_demonstrations" not in planned


def test_the_number_of_desktops_changes_no_result(finished):
    finished.edit("configs/demo.yaml", "  count: 8", "  count: 3")
    planned = finished.planned()
    # The page shows the number beside the paper's two.
    assert set(planned) == AFTER_ROLLOUTS - {"score_episodes", "summarise_study"} | {"write_config"}


def test_leaving_out_a_test_task_trains_nothing(finished):
    """Only the split that loses a task is resolved again; why it does is a matter of the page."""
    split = json.loads((finished.root / "data/splits/miniwob_test_out.json").read_text())
    domain, ids = next(iter(split["tasks"].items()))
    reasons = {"because": "nobody can judge it", "tasks": {f"{domain}/{ids[0]}": "its evaluator"}}
    (finished.root / "left_out.yaml").write_text(json.dumps(reasons))
    overlay = {"tasks": {"leave_out": ["left_out.yaml"]}}
    (finished.root / "overlay.yaml").write_text(json.dumps(overlay))
    configs = ("--configfile", "configs/demo.yaml", "overlay.yaml")
    planned = finished.planned(*configs)
    assert planned["resolve_split"] == 1
    assert planned["collect_rollouts"] == 3
    assert "train_stage" not in planned

    done = finished.run("--cores", "2", "--quiet", "all", *configs)
    assert done.returncode == 0, done.stderr
    assert finished.planned(*configs) == {}
    reasons["because"] = "nobody at all can judge it"
    (finished.root / "left_out.yaml").write_text(json.dumps(reasons))
    assert set(finished.planned(*configs)) == AFTER_ROLLOUTS - {"score_episodes", "write_provenance"}


def test_provenance_that_was_deleted_is_written_anew_before_publishing(finished):
    """What ``report.published`` asks for when results were made from an uncommitted checkout."""
    assert "write_provenance" not in finished.planned("--", "publish")
    (finished.root / "results/demo/provenance.json").unlink()
    again = finished.planned("--", "publish")
    assert {"write_provenance", "publish_report"} <= set(again)
    assert not {"collect_rollouts", "train_stage"} & set(again)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("policy.api_key_variable", "OTHER_KEY"),
        ("training.micro_batch", 8),
        ("training.clip_low", 0.1),
        ("evaluation.top_p", 0.5),
        ("targets.environments", [2]),
        ("report.page_mb", 3),
    ],
)
def test_a_dry_run_plans_what_the_table_says(finished, key, value):
    """The rules of the key's row, what follows from them by Snakemake's own graph, and the config's file."""
    graph = finished.run("--rulegraph").stdout
    names = dict(re.findall(r'(\d+)\[label = "(\w+)"', graph))
    after: dict[str, set[str]] = {}
    for before, then in re.findall(r"(\d+) -> (\d+)", graph):
        after.setdefault(names[before], set()).add(names[then])
    expected = {rule for rule in table()[key].rules.split() if rule in names.values()} | {"write_config"}
    while more := {then for rule in expected for then in after.get(rule, ())} - expected:
        expected |= more
    section, _, name = key.partition(".")
    (finished.root / "overlay.yaml").write_text(json.dumps({section: {name: value}}))
    planned = finished.planned("--configfile", "configs/demo.yaml", "overlay.yaml")
    assert set(planned) == expected - {"all"}


def test_a_finished_study_copied_to_another_checkout_plans_nothing(
    finished_template, tmp_path, monkeypatch, capsys
):
    """All files of the other checkout are newer: what they say counts, not when they were written."""
    other = make_checkout(tmp_path / "other")
    for path in other.root.rglob("*"):
        os.utime(path)
    monkeypatch.chdir(finished_template)
    assert main(["copy", "--to", str(other.root)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{name}/demo -> {other.root}/{name}/demo" for name in ("results", "reports")
    ]
    assert other.planned() == {}
    other.edit("configs/demo.yaml", "  trials: 2", "  trials: 3")
    assert {"train_stage", "resolve_split"}.isdisjoint(planned := other.planned())
    assert planned["collect_rollouts"] == 3
    assert main(["copy", "--to", str(other.root)]) == 2
    assert "results/demo is there already; move it away" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    assert main(["copy", "--config", str(other.root / "configs/demo.yaml"), "--to", "x"]) == 2
    assert "There is no study 'demo' under results/ here" in capsys.readouterr().err


def test_a_rules_script_and_what_it_started_end_within_seconds_of_their_snakemakes_kill(checkout):
    (checkout.root / "scripts/resolve_split.py").write_text(
        "import subprocess, time\n"
        "from pathlib import Path\n"
        "from arpo_replica.base.environments import die_with_parent\n"
        "from arpo_replica.workflow.job import job\n"
        "with job(snakemake):\n"
        "    Path(snakemake.output[0]).write_text('half')\n"
        "    subprocess.run(['sleep', '600'], preexec_fn=die_with_parent)\n"
    )
    split = "results/demo/splits/train_4.json"
    command = [str(Path(sys.executable).with_name("snakemake")), "--", split]
    with (checkout.root / "said").open("w") as log:
        snakemake = subprocess.Popen(command, cwd=checkout.root, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 120
        while not any(command_of(process) == "sleep 600" for process in descendants(snakemake.pid)):
            assert snakemake.poll() is None, (checkout.root / "said").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        below = descendants(snakemake.pid)
    finally:
        snakemake.kill()
        snakemake.wait()
    deadline = time.monotonic() + 10
    while any(map(is_alive, below)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert [command_of(process) for process in below if is_alive(process)] == []
    checkout.run("--unlock")
    assert checkout.planned("--", split)["resolve_split"] == 1  # half an output is none
