"""Claims of the paper: the committed files, and when a claim may be judged at all."""

import json
from pathlib import Path

import pytest
import yaml

from arpo_replica.base.checkout import git_state
from arpo_replica.base.errors import UserError
from arpo_replica.evaluation.claims import compare_claims
from arpo_replica.evaluation.published import PaperFiles, load_claims
from arpo_replica.evaluation.records import Claims, Summary
from synthetic_study import PAPER, Study, evaluate, make_study, write_origin


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    study = make_study(tmp_path_factory.mktemp("study"), tasks=6, screenshots=False)
    evaluate(study)
    return study


def test_committed_numbers_are_in_order() -> None:
    claims, published = load_claims(PAPER / "claims.yaml", PAPER / "results.yaml")
    assert published["t1_arpo_standard"].value == 29.9
    assert published["readme_arpo_128"].grade == "R"
    used = {name for claim in claims for name in claim.published}
    assert used <= set(published)
    assert {claim.needs.size for claim in claims} == {"7b"}


def test_table1_gains_are_what_the_statements_say() -> None:
    claims, published = load_claims(PAPER / "claims.yaml", PAPER / "results.yaml")
    by_id = {claim.id: claim for claim in claims}
    for name, gain in (
        ("table1_gain_over_base", 6.4),
        ("table1_gain_over_grpo", 3.9),
        ("figure6_offline", 2.7),
        ("figure4_in_domain", 12.45),
    ):
        first, second = (published[i].value for i in by_id[name].published)
        assert first - second == pytest.approx(gain)


def test_a_nano_study_is_never_compared(study: Study) -> None:
    found = Claims.model_validate_json((study.results / "claims.json").read_bytes())
    assert len(found.claims) == len(load_claims(PAPER / "claims.yaml", PAPER / "results.yaml")[0])
    assert {claim.verdict for claim in found.claims} == {"not run"}
    assert {claim.measured for claim in found.claims} == {None}
    planner = [claim for claim in found.claims if "GPT-4o" in claim.statement]
    assert len(planner) == 4
    assert all("size mark “nano”" in claim.reason for claim in found.claims if claim not in planner)
    assert found.mark.startswith("nano, process desktops")


def write_claims(folder: Path, **change: object) -> PaperFiles:
    """A claim that the synthetic study itself may speak about (as if the paper were about nano)."""
    claim = {
        "id": "c",
        "statement": "s",
        "published": ["p"],
        "measure": {"kind": "rate", "arm": "arpo", "protocol": "hard"},
        "needs": {"size": "nano", "desktop": "process", "split": "test_in", "max_steps": 4},
        "margin": 5,
        **change,
    }
    number = {
        "id": "p", "value": 0.0, "unit": "percent", "n": 6, "tasks": "t", "protocol": "hard", "model": "m",
        "arm": "arpo", "source": "paper", "place": "p. 1", "grade": "P",
    }  # fmt: skip
    numbers = {
        "sources": {"paper": {"title": "t", "url": "u"}},
        "results": [number, {**number, "id": "q", "value": 100.0}],
    }
    (folder / "results.yaml").write_text(yaml.safe_dump(numbers))
    (folder / "claims.yaml").write_text(yaml.safe_dump({"claims": [claim]}))
    return PaperFiles(folder / "claims.yaml", folder / "results.yaml")


def judged(study: Study, tmp_path: Path, **change: object) -> Claims:
    paper = write_claims(tmp_path, **change)
    return compare_claims(study.config, study.results / "summary.json", paper, tmp_path / "claims.json")


def test_a_rate_of_an_untrained_policy_is_judged_by_its_runs(study: Study, tmp_path: Path) -> None:
    summary = Summary.model_validate_json((study.results / "summary.json").read_bytes())
    row = next(r for r in summary.rates if (r.arm, r.split, r.protocol) == ("base", "test_in", "hard"))
    (claim,) = judged(study, tmp_path, measure={"kind": "rate", "arm": "base", "protocol": "hard"}).claims
    assert claim.measured == row.conditional
    assert claim.measured is not None
    assert claim.measured.about == "this task set"
    assert claim.verdict != "not run"
    assert claim.trainings == 0
    assert claim.gap is not None
    assert claim.gap.value == pytest.approx(100 * row.of_valid.value)  # type: ignore[union-attr]


def test_one_training_gives_a_number_and_no_verdict(study: Study, tmp_path: Path) -> None:
    rate = judged(study, tmp_path).claims[0]
    measure = {"kind": "difference", "arm": "arpo", "reference": "base", "protocol": "hard"}
    gain = judged(study, tmp_path, measure=measure, published=["q", "p"], margin=1).claims[0]
    for claim in (rate, gain):
        assert (claim.verdict, claim.trainings, claim.gap, claim.p_values) == (
            "too few trainings",
            1,
            None,
            {},
        )
        assert claim.measured is not None
        assert "One training (n = 1)" in claim.reason


@pytest.mark.parametrize(
    ("needs", "words"),
    [
        ({"size": "7b"}, "size mark"),
        ({"desktop": "osworld"}, "desktops"),
        ({"split": "osworld_369"}, "not evaluated"),
        ({"max_steps": 15}, "15"),
    ],
)
def test_the_wrong_study_is_not_run(study: Study, tmp_path: Path, needs: dict, words: str) -> None:
    right = {"size": "nano", "desktop": "process", "split": "test_in", "max_steps": 4}
    (claim,) = judged(study, tmp_path, needs={**right, **needs}).claims
    assert claim.verdict == "not run"
    assert words in claim.reason


def test_what_no_arm_measures_is_not_run(study: Study, tmp_path: Path) -> None:
    assert judged(study, tmp_path, measure=None).claims[0].verdict == "not run"
    missing = {"kind": "rate", "arm": "dpo", "protocol": "hard"}
    assert judged(study, tmp_path, measure=missing).claims[0].verdict == "not run"


@pytest.mark.parametrize(
    ("change", "words"),
    [({"published": ["nowhere"]}, "'nowhere'"), ({"margin": 0}, "margin"), ({"extra": 1}, "extra")],
)
def test_wrong_claims_are_refused(study: Study, tmp_path: Path, change: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        judged(study, tmp_path, **change)


def test_provenance_names_code_models_and_tasks_without_absolute_paths(study: Study, tmp_path: Path) -> None:
    out = study.results / "provenance.json"
    found = json.loads(out.read_bytes())
    assert found["config"]["study"] == "synthetic"
    assert set(found["tasks"]) == set(study.config.tasks.splits)
    assert len(found["tasks"]["test_in"]) == 6
    assert len(found["models"]) == len(study.manifests)
    assert found["packages"]["controller"]["scipy"] == "1.17.1"
    before = out.read_bytes()
    write_origin(study)
    assert out.read_bytes() == before
    assert git_state(tmp_path) == {"commit": None, "dirty": None, "changed": []}
