"""Each table or figure of the paper plans what it needs and nothing else."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import yaml
from conftest import ROOT

from arpo_replica.config import parse_config
from arpo_replica.workflow.study import Study

PREPARE = {"record_demonstrations": 1, "build_nano_model": 1, "register_model": 1}
MADE = {"make_target": 1}
TRAIN_BOTH = {"train_stage": 4}
ROLLOUTS = {"collect_rollouts": 3}


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("table1", {**PREPARE, **TRAIN_BOTH, **ROLLOUTS}),
        ("readme128", {**PREPARE, **TRAIN_BOTH, **ROLLOUTS}),
        ("fig1b", {**PREPARE, **TRAIN_BOTH, **ROLLOUTS}),
        ("fig3", {**PREPARE, **TRAIN_BOTH}),
        ("fig4", {**PREPARE, **TRAIN_BOTH, **ROLLOUTS}),
        ("fig5", {**PREPARE, "train_stage": 2}),
        ("fig7", {**PREPARE, "measure_throughput": 1}),
    ],
)
def test_a_target_plans_exactly_what_it_needs(checkout, target, expected):
    planned = checkout.planned("--", target)
    # Splits and gates are cheap steps on the way of what is listed here.
    assert {rule: n for rule, n in planned.items() if rule not in {"resolve_split", "check_stage"}} == {
        **expected,
        **MADE,
        target: 1,
    }


REVISION = 'model: {revision: "0123456789abcdef0123456789abcdef01234567"}\n'
CHEAP = {"resolve_split", "check_stage", "fetch_model", "fetch_osworld_tasks", "register_model"}


@pytest.mark.parametrize(
    ("target", "configs", "expected"),
    [
        ("table1", ["paper"], {"train_stage": 2, "collect_rollouts": 3}),
        ("readme128", ["paper"], {"train_stage": 2, "collect_rollouts": 3}),
        ("fig1b", ["paper"], {"train_stage": 2, "collect_rollouts": 3}),
        ("fig3", ["paper"], {"train_stage": 2}),
        ("fig4", ["subset32"], {"train_stage": 2, "collect_rollouts": 3}),
        ("fig5", ["paper", "shapes/full_set"], {"train_stage": 2}),
        ("fig7", ["paper"], {"measure_throughput": 1}),
        ("table1", ["seed_2b"], {"train_stage": 6, "collect_rollouts": 3}),
        ("fig3", ["seed_2b"], {"train_stage": 6}),
    ],
)
def test_a_target_is_planned_at_the_size_that_was_published(checkout, target, configs, expected):
    (checkout.root / "model.yaml").write_text(REVISION)
    files = [f"configs/{name}.yaml" for name in configs]
    planned = checkout.planned("--configfile", *files, "model.yaml", "--", target)
    assert {"fetch_model", "fetch_osworld_tasks"} <= set(planned)
    left = {rule: n for rule, n in planned.items() if rule not in CHEAP}
    assert left == {**expected, **MADE, target: 1}


def test_a_stage_may_start_from_the_untrained_policy():
    raw = yaml.safe_load((ROOT / "configs/demo.yaml").read_text())
    stage = raw["training"]["stages"][1]
    before = Study(parse_config(raw, "demo.yaml"))
    first, last = (SimpleNamespace(arm="grpo", seed="0", stage=name) for name in ("train_4", "train_32"))
    assert before.previous_manifest(last).endswith("grpo/seed_0/stage_train_4/manifest.json")
    assert before.previous_metrics(last)
    stage["from_base"] = True
    study = Study(parse_config(raw, "demo.yaml"))
    assert study.previous_manifest(last) == study.previous_manifest(first)
    assert study.previous_metrics(last) == []


def test_a_finished_study_has_its_tables_at_once(finished):
    assert finished.planned("--", "table1") == {"make_target": 1, "table1": 1}
    assert finished.planned("--", "fig3") == {"make_target": 1, "fig3": 1}
    assert finished.planned("--", "fig7") == {"measure_throughput": 1, "make_target": 1, "fig7": 1}


def test_what_fig7_measured_is_compared_by_the_next_run(finished):
    assert not finished.planned()
    measured = finished.root / "results/demo/throughput.json"
    measured.write_text('{"points": []}')
    planned = finished.planned()
    assert planned["compare_claims"] == 1
    assert set(planned) <= {"compare_claims", "write_tables", "render_report"}


def test_a_target_that_the_study_lacks_parts_for_names_the_keys(checkout):
    done = checkout.run("--dry-run", "fig6")
    shown = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 2
    assert "its config lacks arms.rejection, arms.dpo, arms.kto; configs/arms/offline.yaml" in shown
    assert "Traceback" not in shown
    assert not (checkout.root / ".snakemake/locks").exists() or not list(
        (checkout.root / ".snakemake/locks").iterdir()
    )


def test_a_changed_margin_judges_again_and_renders(finished):
    claims = finished.root / "data/paper/claims.yaml"
    claims.write_text(re.sub(r"margin: 3$", "margin: 2.5", claims.read_text(), flags=re.MULTILINE))
    assert set(finished.planned()) <= {"compare_claims", "write_tables", "render_report", "publish_report"}
    assert finished.planned()["compare_claims"] == 1
