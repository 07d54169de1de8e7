"""The generator of large studies: the layout that rules write, and a mark that publishing cannot miss."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from arpo_replica.base.errors import UserError
from arpo_replica.config import load_config
from arpo_replica.evaluation.records import Claims, Summary
from arpo_replica.evaluation.scores import read_scores
from arpo_replica.report.publish import refuse_synthetic
from arpo_replica.rollout.records import read_episode
from synthetic_study import Study, evaluate, make_full_study, make_study

SMALL: dict[str, Any] = {
    "tasks": 12, "arms": ("base", "grpo", "arpo"), "trials": 2, "screen": (160, 90), "steps": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    root = tmp_path_factory.mktemp("synthetic")
    return make_full_study(root, **SMALL)


def test_it_has_what_the_page_reads(study: Study) -> None:
    names = {path.name for path in study.results.iterdir()}
    assert {"scores.parquet", "summary.json", "claims.json", "provenance.json", "episodes"} <= names
    assert len(read_scores(study.results / "scores.parquet")) == 12 * 3 * 2
    assert load_config(study.root / "synthetic.yaml").study == "synthetic"
    record, steps = read_episode(next(path.parent for path in study.results.rglob("step_001.webp")))
    assert record.n_steps == len(steps)


def test_every_layer_says_that_it_is_invented(study: Study) -> None:
    for path in study.results.rglob("episode.json"):
        assert json.loads(path.read_bytes())["synthetic"] is True
    assert read_scores(study.results / "scores.parquet")["synthetic"].all()
    assert Summary.model_validate_json((study.results / "summary.json").read_bytes()).synthetic
    claims = Claims.model_validate_json((study.results / "claims.json").read_bytes())
    assert claims.mark.startswith("synthetic: invented")
    assert set(claims.counts) == {"not run"}


@pytest.mark.parametrize("hidden", [(), ("summary",), ("summary", "index")])
def test_publishing_is_refused_wherever_the_mark_is_left(
    study: Study, tmp_path: Path, hidden: tuple[str, ...]
) -> None:
    results = tmp_path / "results"
    shutil.copytree(study.results, results)
    if "summary" in hidden:
        path = results / "summary.json"
        path.write_text(path.read_text().replace('"synthetic": true', '"synthetic": false'))
    if "index" in hidden:
        for path in results.rglob("episodes.jsonl"):
            path.write_text(path.read_text().replace('"synthetic": true', '"synthetic": false'))
    with pytest.raises(UserError, match="synthetic"):
        refuse_synthetic(results)


def test_a_measured_study_is_not_refused(tmp_path: Path) -> None:
    real = make_study(tmp_path, tasks=2, screenshots=False)
    evaluate(real)
    refuse_synthetic(real.results)
    (real.results / "summary.json").write_text("{")
    with pytest.raises(UserError, match=r"summary\.json is no JSON"):
        refuse_synthetic(real.results)


def test_the_same_arguments_give_the_same_episodes(study: Study, tmp_path: Path) -> None:
    again = make_full_study(tmp_path, **SMALL)
    for path in study.results.rglob("step_00*.webp"):
        assert path.read_bytes() == (again.results / path.relative_to(study.results)).read_bytes()
    for path in study.results.rglob("episodes.jsonl"):
        assert path.read_bytes() == (again.results / path.relative_to(study.results)).read_bytes()
