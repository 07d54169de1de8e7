"""Each table or figure of the paper plans what it needs and nothing else."""

from __future__ import annotations

import re

import pytest

PREPARE = {"record_demonstrations": 1, "build_nano_model": 1, "register_base_model": 1}
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


def test_a_finished_study_has_its_tables_at_once(finished):
    assert finished.planned("--", "table1") == {"make_target": 1, "table1": 1}
    assert finished.planned("--", "fig3") == {"make_target": 1, "fig3": 1}
    assert finished.planned("--", "fig7") == {"measure_throughput": 1, "make_target": 1, "fig7": 1}


def test_a_target_that_the_study_lacks_parts_for_names_the_keys(checkout):
    done = checkout.run("--dry-run", "fig6")
    shown = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 2
    assert "its config lacks arms.rejection, arms.dpo, arms.kto." in shown
    assert "Traceback" not in shown
    assert not (checkout.root / ".snakemake/locks").exists() or not list(
        (checkout.root / ".snakemake/locks").iterdir()
    )


def test_with_the_arms_figure_6_is_planned(checkout):
    arms = "".join(f"\n  {arm}: {{replay: {{enabled: false}}}}" for arm in ("rejection", "dpo", "kto"))
    checkout.edit("configs/demo.yaml", "  base: {}", f"  base: {{}}{arms}")
    planned = checkout.planned("--", "fig6")
    assert planned["collect_rollouts"] == 6
    assert planned["make_target"] == 1


def test_a_changed_margin_judges_again_and_renders(finished):
    claims = finished.root / "data/paper/claims.yaml"
    claims.write_text(re.sub(r"margin: 3$", "margin: 2.5", claims.read_text(), flags=re.MULTILINE))
    assert set(finished.planned()) <= {"compare_claims", "write_tables", "render_report", "publish_report"}
    assert finished.planned()["compare_claims"] == 1
