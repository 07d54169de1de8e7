"""The paper as data: complete, consistent with its own arithmetic, refused with file and id when wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from arpo_replica.base.errors import UserError
from arpo_replica.evaluation.published import load_claims, load_contradictions
from arpo_replica.evaluation.targets import TARGETS
from synthetic_study import PAPER

CLAIMS, NUMBERS = load_claims(PAPER / "claims.yaml", PAPER / "results.yaml")
CONTRADICTIONS = load_contradictions(PAPER / "contradictions.yaml", NUMBERS)


def test_every_published_result_is_the_matter_of_a_claim() -> None:
    claimed = {name for claim in CLAIMS for name in claim.published}
    # Figure 3's plot and figure 7's batches are second readings of numbers that are claimed.
    second = {name for name in NUMBERS if name.startswith("f3_plot") or name.endswith("_batch")}
    second |= {"f7_256_text"}
    assert set(NUMBERS) - claimed == second


@pytest.mark.parametrize(
    ("target", "numbers"),
    [
        ("table1", 16),
        ("readme128", 3),
        ("fig1b", 3),
        ("fig3", 2),
        ("fig4", 6),
        ("fig5", 5),
        ("fig6", 6),
        ("fig7", 5),
    ],
)
def test_each_table_and_figure_has_all_its_numbers(target: str, numbers: int) -> None:
    mine = [claim for claim in CLAIMS if claim.target == target]
    assert len({name for claim in mine for name in claim.published}) == numbers
    assert {claim.target for claim in CLAIMS} == set(TARGETS)


def test_figure_1b_is_figure_4_pooled() -> None:
    """Arithmetic of the published rates: 14/32 + 53/96 = 67/128 = 52.34 %, 22 + 50 = 72, 26 + 54 = 80."""
    for arm, tasks in (("base", 67), ("grpo", 72), ("arpo", 80)):
        inside = round(NUMBERS[f"f4_{arm}_in"].value / 100 * 32)
        outside = round(NUMBERS[f"f4_{arm}_out"].value / 100 * 96)
        assert inside + outside == tasks
        assert NUMBERS[f"f1b_{arm}"].value == pytest.approx(100 * tasks / 128, abs=0.06)


def test_figure_7_is_hours_of_1024_trajectories() -> None:
    for envs in (8, 32, 64, 128, 256):
        minutes = NUMBERS[f"f7_{envs}_batch"].value
        assert NUMBERS[f"f7_{envs}"].value == pytest.approx(1024 / envs * minutes / 60, abs=0.06)


def test_the_contradictions() -> None:
    assert [entry.number for entry in CONTRADICTIONS] == list(range(1, 12))
    parts = {name for entry in CONTRADICTIONS for side in entry.sides for name in side.results}
    assert {"t1_arpo_standard", "f6_arpo", "readme_base_128", "f1b_base", "f7_256", "f3_plot_on"} <= parts


def test_a_claim_about_a_gain_says_the_gain_of_its_numbers() -> None:
    for claim in CLAIMS:
        if claim.measure is not None and claim.measure.kind == "difference":
            gain = NUMBERS[claim.published[0]].value - NUMBERS[claim.published[1]].value
            assert f"{abs(gain):.2f}".rstrip("0").rstrip(".") in claim.statement, claim.id
            assert ("loses" in claim.statement) == (gain < 0), claim.id


def edited(folder: Path, file: str, change: dict[str, object], index: int = 0) -> Path:
    """A copy of the committed files with one entry changed."""
    for name in ("claims.yaml", "results.yaml", "contradictions.yaml"):
        raw = yaml.safe_load((PAPER / name).read_text())
        if name == file:
            section = raw[Path(name).stem]
            section[index] = {**section[index], **change}
        (folder / name).write_text(yaml.safe_dump(raw))
    return folder / "claims.yaml"


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("results.yaml", {"value": 152.0}, "'t1_aria_standard'.*no percentage"),
        ("results.yaml", {"grade": "X"}, "results.yaml, 't1_aria_standard'.*grade"),
        ("results.yaml", {"source": "blog"}, "'t1_aria_standard'.*unknown source 'blog'"),
        ("results.yaml", {"id": "t1_base_hard"}, "'t1_base_hard' twice"),
        ("claims.yaml", {"published": ["nowhere"]}, "'table1_base_standard' names 'nowhere'"),
        ("claims.yaml", {"margin": -1}, "claims.yaml, 'table1_base_standard'.*margin"),
        ("claims.yaml", {"published": ["t1_base_standard", "f7_8"]}, "'table1_base_standard' compares"),
        (
            "claims.yaml",
            {"published": ["t1_base_standard", "t1_base_hard"]},
            "'table1_base_standard'.*one side",
        ),
        ("claims.yaml", {"published": ["f7_8"]}, "'table1_base_standard' measures a rate"),
        (
            "claims.yaml",
            {"measure": {"kind": "rate", "arm": "base"}},
            "'table1_base_standard'.*needs 'protocol'",
        ),
        ("claims.yaml", {"measure": {"kind": "guess"}}, "'table1_base_standard'.*kind"),
    ],
)
def test_a_mistake_names_file_and_id(tmp_path: Path, file: str, change: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        edited(tmp_path, file, change)
        load_claims(tmp_path / "claims.yaml", tmp_path / "results.yaml")


def test_a_contradiction_about_an_unknown_number_is_refused(tmp_path: Path) -> None:
    side = {"says": "1", "place": "p. 1", "results": ["nowhere"]}
    edited(tmp_path, "contradictions.yaml", {"sides": [side, side]})
    with pytest.raises(UserError, match="'arpo_on_osworld' names 'nowhere'"):
        load_contradictions(tmp_path / "contradictions.yaml", NUMBERS)
