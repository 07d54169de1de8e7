"""When a claim of the paper may be judged: only by measured results of its own size, desktops and tasks."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from arpo_replica.config.models import StudyConfig
from arpo_replica.evaluation.claims import compare
from arpo_replica.evaluation.schema import ClaimResult, Summary
from synthetic_study import PAPER, evaluate, make_study


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[StudyConfig, Summary]:
    """A study that says of itself that it is 7b on OSWorld's desktops with the 369 tasks.

    Its numbers are those of a small invented one; what is tested is which checks stand in the way.
    """
    study = make_study(tmp_path_factory.mktemp("study"), tasks=40, trials=3, screenshots=False)
    evaluate(study)
    raw = json.loads((study.results / "summary.json").read_text().replace('"test_in"', '"osworld_369"'))
    raw |= {"size": "7b", "desktop": "osworld", "desktops": {"osworld": 100}}
    facts = raw["splits"]["osworld_369"]
    facts["tasks"] = 369
    facts["list_sha256"] = hashlib.sha256((PAPER.parent / "splits/osworld_369.json").read_bytes()).hexdigest()
    for row in raw["rates"]:
        # Three runs of each of the 369 tasks, all with a score.
        row |= {
            "tasks": 369,
            "valid": 1107,
            "expected": 1107,
            "env_errors": 0,
            "missing": 0,
            "conditional_se": 0.008,
        }
    for row in raw["differences"]:
        row |= {"tasks": 369, "dropped": [], "conditional_se": 0.012}
    pinned = study.config.desktop.osworld.model_copy(
        update={"vm": "Ubuntu.qcow2", "vm_sha256": "a" * 64, "image_digest": f"sha256:{'b' * 64}"}
    )
    config = study.config.model_copy(
        update={
            "size": "7b",
            "desktop": study.config.desktop.model_copy(update={"provider": "osworld", "osworld": pinned}),
            "policy": study.config.policy.model_copy(
                update={"model": "models/UI-TARS-1.5-7B", "max_steps": 15}
            ),
            "training": study.config.training.model_copy(
                update={"stages": [study.config.training.stages[-1].model_copy(update={"split": "arpo_128"})]}
            ),
            "evaluation": study.config.evaluation.model_copy(update={"splits": ["osworld_369"]}),
        }
    )
    return config, Summary.model_validate(raw)


def judged(config: StudyConfig, summary: Summary, name: str = "table1_arpo_standard") -> ClaimResult:
    return next(claim for claim in compare(config, summary, PAPER / "claims.yaml").claims if claim.id == name)


def with_rate(summary: Summary, value: float, **change: Any) -> Summary:
    """The same with another rate of arpo under the standard protocol."""
    raw = json.loads(summary.model_dump_json())
    for row in raw["rates"]:
        if (row["arm"], row["protocol"], row["split"]) == ("arpo", "standard", "osworld_369"):
            row["of_valid"]["value"] = value
            row["conditional"] = {**row["of_valid"], "about": "this task set"}
            row |= {"of_all_low": value, "of_all_high": value, **change}
    return Summary.model_validate(raw)


@pytest.mark.parametrize(
    ("value", "verdict"), [(0.299, "consistent"), (0.20, "lower"), (0.42, "higher"), (0.345, "inconclusive")]
)
def test_the_right_study_gets_a_verdict(
    measured: tuple[StudyConfig, Summary], value: float, verdict: str
) -> None:
    """29.9 % of 369, ours from three runs with an error of 0.8 points; margin 5 points.

    Both errors: sqrt(2.38^2 + 0.8^2) = 2.51 points. At equality the 90 % interval is +-4.1: consistent;
    4.6 points off, the 95 % interval is about -0.4 to 9.4 and the 90 % one leaves the margin.
    """
    config, summary = measured
    claim = judged(config, with_rate(summary, value))
    assert claim.verdict == verdict, claim.reason
    assert claim.gap is not None
    assert claim.gap.value == pytest.approx(100 * value - 29.81, abs=0.02)  # 110 of 369 tasks
    assert (claim.gap.high - claim.gap.low) / 2 == pytest.approx(1.96 * 2.51, rel=0.04)
    assert (claim.equivalence_p is not None) and (claim.equivalence_p < 0.05) == (verdict == "consistent")
    assert claim.sources
    assert claim.contradictions == ["arpo_on_osworld"]


def test_a_judged_number_is_no_own_measurement(measured: tuple[StudyConfig, Summary]) -> None:
    config, summary = measured
    found = compare(config, summary, PAPER / "claims.yaml")
    own = {(row.what, row.arm, row.split, row.protocol) for row in found.own_measurements}
    assert ("success rate", "arpo", "osworld_369", "standard") not in own
    assert ("success rate", "arpo", "test_out", "standard") in own
    assert found.counts["not run"] < len(found.claims)


def test_what_the_other_model_of_table_1_did_is_not_run(measured: tuple[StudyConfig, Summary]) -> None:
    config, summary = measured
    claim = judged(config, summary, "table1_dpo_base_standard")
    assert (claim.verdict, claim.measured) == ("not run", None)
    assert "UI-TARS-7B-DPO" in claim.reason


def test_figure_4_waits_for_the_papers_own_list(measured: tuple[StudyConfig, Summary]) -> None:
    config, summary = measured
    claim = judged(config, summary, "figure4_base_in")
    assert claim.verdict == "not run"
    assert "unconfirmed" in claim.reason


@pytest.mark.parametrize(
    ("config_change", "summary_change", "words"),
    [
        ({}, {"synthetic": True}, "invented"),
        ({"size": "2b"}, {}, "size mark “2b”"),
        ({}, {"desktops": {"container": 10}}, "desktops are “container”"),
        ({}, {"desktops": {"osworld": 9, "osworld_unpinned": 1}}, "desktops are “osworld_unpinned”"),
        ({"policy.model": "models/UI-TARS-2B-SFT"}, {}, "policy.model is “UI-TARS-2B-SFT”"),
        ({"policy.max_steps": 50}, {}, "allows 50 steps"),
        ({"evaluation.splits": ["test_out"]}, {}, "osworld_369 is not evaluated"),
        ({"desktop.provider": "container"}, {}, "desktops are “container”"),
    ],
)
def test_any_other_study_is_not_run(
    measured: tuple[StudyConfig, Summary], config_change: dict, summary_change: dict, words: str
) -> None:
    config, summary = measured
    for key, value in config_change.items():
        section, _, name = key.rpartition(".")
        update = (
            {section: getattr(config, section).model_copy(update={name: value})} if section else {name: value}
        )
        config = config.model_copy(update=update)
    claim = judged(config, summary.model_copy(update=summary_change))
    assert (claim.verdict, claim.measured, claim.gap) == ("not run", None, None)
    assert words in claim.reason


@pytest.mark.parametrize(
    ("change", "words"), [({"tasks": 361}, "has 361 tasks"), ({"list_sha256": "0" * 64}, "not the committed")]
)
def test_another_list_of_that_name_is_not_run(
    measured: tuple[StudyConfig, Summary], change: dict, words: str
) -> None:
    config, summary = measured
    splits = {**summary.splits, "osworld_369": summary.splits["osworld_369"].model_copy(update=change)}
    claim = judged(config, summary.model_copy(update={"splits": splits}))
    assert claim.verdict == "not run"
    assert words in claim.reason


def test_training_on_other_tasks_is_not_run_but_base_is(measured: tuple[StudyConfig, Summary]) -> None:
    config, summary = measured
    stage = config.training.stages[-1].model_copy(update={"split": "arpo_32_candidate"})
    other = config.model_copy(update={"training": config.training.model_copy(update={"stages": [stage]})})
    assert "training ends on arpo_32_candidate" in judged(other, summary).reason
    assert judged(other, summary, "table1_base_standard").verdict != "not run"


def test_episodes_without_a_score_can_make_it_inconclusive(measured: tuple[StudyConfig, Summary]) -> None:
    """1,107 runs, 200 without a score: taken as failures the rate is 24.5 %, as successes 42.6 %."""
    config, summary = measured
    short = with_rate(summary, 0.299, valid=907, env_errors=200, of_all_low=0.245, of_all_high=0.426)
    claim = judged(config, short)
    assert claim.verdict == "inconclusive"
    assert "200 of 1107 episodes have no score" in claim.reason


def test_a_gain_is_compared_with_both_sides_noise(measured: tuple[StudyConfig, Summary]) -> None:
    config, summary = measured
    claim = judged(config, summary, "table1_gain_over_grpo")
    assert claim.gap is not None
    # The paper's two rates, unpaired: 3.3 points; ours 1.2: 1.96 x 3.5.
    assert (claim.gap.high - claim.gap.low) / 2 == pytest.approx(1.96 * 3.5, rel=0.05)
    assert "unpaired" in claim.reason
    assert claim.power is not None
    assert (claim.power.trials, claim.power.unpaired_episodes) == (3, 2075)


def test_curves_need_three_seeds(measured: tuple[StudyConfig, Summary], tmp_path: Path) -> None:
    config, summary = measured
    claim = judged(config, summary, "figure3_replay_on")
    assert claim.verdict == "inconclusive"
    assert "1 training seed" in claim.reason
    curves = [
        curve.model_copy(update={"seed": seed, "stage": "train_32"})
        for seed in range(3)
        for curve in summary.curves
        if curve.stage == "train_32"
    ]
    three = judged(config, summary.model_copy(update={"curves": curves}), "figure3_replay_on")
    assert three.gap is not None
    assert three.gap.about == "training seeds"
    assert judged(config, summary, "figure7_8").reason.startswith("The throughput was not measured")
