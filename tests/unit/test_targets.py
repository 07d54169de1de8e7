"""The paper's tables and figures from a study: content, mark, determinism, and what is missing."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import jsonschema
import pytest
from PIL import Image

from arpo_replica.base.errors import UserError
from arpo_replica.config.models import StudyConfig, TargetsConfig
from arpo_replica.evaluation.tables import render_schema
from arpo_replica.evaluation.targets import TARGETS, episodes_of, missing_keys, target_of, trainings_of
from arpo_replica.report.make_target import TargetFiles, make_target, rate_panels
from synthetic_study import PAPER_FILES, Study, make_study

PARTS = {
    "benchmark": "test_out",
    "selected": "test_in",
    "in_domain": "test_in",
    "out_of_domain": "test_out",
    "selected_curve": {"arm": "grpo", "stage": "train_4"},
    "full_curve": {"arm": "grpo", "stage": "train_32"},
    "environments": [2, 4],
}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    arms = ("base", "grpo", "arpo")
    return make_study(
        tmp_path_factory.mktemp("study"), tasks=6, arms=arms, screenshots=False, overrides={"targets": PARTS}
    )


def files_of(study: Study, name: str, folder: Path) -> TargetFiles:
    """The files that the rule would hand over, and no other."""
    target = target_of(study.config, name)
    indexes = [
        study.episodes / arm / f"seed_{seed}" / f"stage_{stage}" / split / f"trial_{trial}" / "episodes.jsonl"
        for arm, seed, stage, split, trial in episodes_of(study.config, target)
    ]
    metrics = [
        study.results / "models" / arm / f"seed_{seed}" / f"stage_{stage}" / "metrics.jsonl"
        for arm, seed, stage in trainings_of(study.config, target)
    ]
    throughput = folder / "throughput.json"
    point = {
        "minutes_per_batch": 1.5,
        "hours_per_epoch": 3.2,
        "trajectories": 4,
        "trajectories_per_hour": 320.0,
    }
    throughput.write_text(json.dumps({"points": [{"desktops": count, **point} for count in (2, 4)]}))
    return TargetFiles(PAPER_FILES, indexes, metrics, throughput=[throughput] if target.throughput else [])


@pytest.mark.parametrize("name", [name for name in TARGETS if name != "fig6"])
def test_each_target_is_made_with_its_mark(study: Study, tmp_path: Path, name: str) -> None:
    files = files_of(study, name, tmp_path)
    made = make_target(study.config, name, files, tmp_path / name)
    document = json.loads((tmp_path / name / f"{name}.json").read_bytes())
    jsonschema.validate(document, json.loads(render_schema("target")))
    assert document["mark"].startswith("nano, process desktops, at most 4 steps")
    assert made.rows
    with (tmp_path / name / f"{name}.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(made.rows)
    assert {row["size"] for row in rows} == {"nano"}
    assert "nano, process desktops" in (tmp_path / name / f"{name}.svg").read_text()
    with Image.open(tmp_path / name / f"{name}.png") as image:
        assert image.info["Description"] == document["mark"]
        assert len(image.convert("L").getcolors() or []) > 10
    # No published number beside a nano study's own, only the reason why not.
    assert document["comparison"] == []
    assert any("size mark “nano”" in reason for reason in document["not_compared"])


def test_figure_4_has_both_parts_and_protocols(study: Study, tmp_path: Path) -> None:
    made = make_target(study.config, "fig4", files_of(study, "fig4", tmp_path), tmp_path / "out")
    keys = {(row["part"], row["split"], row["protocol"], row["arm"]) for row in made.rows}
    assert len(keys) == len(made.rows) == 2 * 2 * 3
    assert ("in_domain", "test_in", "hard", "arpo") in keys


def test_protocols_that_agree_are_drawn_once(study: Study, tmp_path: Path) -> None:
    rows = make_target(study.config, "fig4", files_of(study, "fig4", tmp_path), tmp_path / "out").rows
    # Only the second list has tasks on which the protocols differ: infeasible ones.
    assert [(protocol, own[0]["part"], len(own)) for protocol, own in rate_panels(rows)] == [
        ("hard and standard", "in_domain", 3),
        ("hard", "out_of_domain", 3),
        ("standard", "out_of_domain", 3),
    ]
    changed = [{**row, "valid": row["valid"] + (row["protocol"] == "hard")} for row in rows]
    assert len(rate_panels(changed)) == 4
    svg = (tmp_path / "out/fig4.svg").read_text()
    assert svg.count("hard and standard protocol") == 1


def test_the_same_files_give_the_same_bytes(study: Study, tmp_path: Path) -> None:
    files = files_of(study, "table1", tmp_path)
    for folder in ("a", "b"):
        make_target(study.config, "table1", files, tmp_path / folder)
    for suffix in ("csv", "json", "svg", "png"):
        assert (tmp_path / f"a/table1.{suffix}").read_bytes() == (
            tmp_path / f"b/table1.{suffix}"
        ).read_bytes()


def test_what_a_study_lacks_is_named(study: Study) -> None:
    with pytest.raises(UserError, match=r"fig6 .*lacks arms\.rejection, arms\.dpo, arms\.kto"):
        target_of(study.config, "fig6")
    bare = study.config.model_copy(update={"targets": TargetsConfig()})
    assert list(missing_keys(bare, TARGETS["fig4"])) == ["targets.in_domain", "targets.out_of_domain"]
    assert list(missing_keys(bare, TARGETS["fig5"])) == ["targets.selected_curve", "targets.full_curve"]
    assert list(missing_keys(bare, TARGETS["fig7"])) == ["targets.environments"]
    assert list(missing_keys(bare, TARGETS["fig3"])) == []


def test_parts_that_the_study_does_not_have_are_named(study: Study) -> None:
    parts = TargetsConfig.model_validate(
        {**PARTS, "benchmark": "train_4", "full_curve": {"arm": "x", "stage": "y"}}
    )
    config: StudyConfig = study.config.model_copy(update={"targets": parts})
    assert list(missing_keys(config, TARGETS["table1"])) == [
        "'train_4' (targets.benchmark) in evaluation.splits"
    ]
    assert list(missing_keys(config, TARGETS["fig5"])) == ["arms.x (targets.full_curve.arm)"]


def test_a_target_needs_no_more_than_its_own(study: Study) -> None:
    figure_3, table_1 = TARGETS["fig3"], TARGETS["table1"]
    assert episodes_of(study.config, figure_3) == []
    assert {arm for arm, _, _ in trainings_of(study.config, figure_3)} == {"grpo", "arpo"}
    assert {split for _, _, _, split, _ in episodes_of(study.config, table_1)} == {"test_out"}
    assert trainings_of(study.config, table_1) == [("grpo", 0, "train_32"), ("arpo", 0, "train_32")]
