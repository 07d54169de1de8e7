"""The table of episodes and the summary: outcomes, denominators, what is refused."""

import json
from pathlib import Path

import pandas as pd
import pytest

from arpo_replica.base.errors import UserError
from arpo_replica.evaluation.records import RateRow, Summary
from arpo_replica.evaluation.scores import (
    COLUMNS,
    place_of,
    read_curve,
    read_scores,
    read_steps,
    score_episodes,
)
from arpo_replica.evaluation.summary import summarise_study
from synthetic_study import Study, evaluate, make_study


def one(summary: Summary, arm: str, split: str, protocol: str) -> RateRow:
    (row,) = [r for r in summary.rates if (r.arm, r.split, r.protocol) == (arm, split, protocol)]
    return row


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return make_study(tmp_path_factory.mktemp("study"), tasks=6, screenshots=False)


def score(study: Study, out: Path) -> pd.DataFrame:
    return score_episodes(study.config, [study.episodes], out / "scores.parquet")


def outcomes(root: Path, pattern: dict[str, str], **options: object) -> tuple[Study, Summary]:
    """A study in which the outcome depends on the task's page only."""
    study = make_study(
        root,
        tasks=5,
        screenshots=False,
        choose=lambda arm, task, trial: pattern.get(task.split("_")[0], "failure"),
        **options,  # type: ignore[arg-type]
    )
    return study, evaluate(study)


def test_table_has_a_row_per_episode_and_survives_the_disk(study: Study, tmp_path: Path) -> None:
    table = score(study, tmp_path)
    assert len(table) == 3 * 2 * (6 + 2)
    assert list(table.columns) == list(COLUMNS)
    again = read_scores(tmp_path / "scores.parquet")
    pd.testing.assert_frame_equal(table, again)
    assert len(pd.read_csv(tmp_path / "scores.csv")) == len(table)
    table.drop(columns="refusal").to_parquet(tmp_path / "older.parquet")
    with pytest.raises(UserError, match=r"older\.parquet has no column 'refusal'; make it again"):
        read_scores(tmp_path / "older.parquet")


def test_directory_leads_back_to_the_episode(study: Study, tmp_path: Path) -> None:
    for directory in score(study, tmp_path)["directory"]:
        assert (study.episodes / directory / "episode.json").is_file()


def test_same_input_same_bytes(study: Study, tmp_path: Path) -> None:
    score(study, tmp_path / "a")
    score(study, tmp_path / "b")
    for name in ("scores.parquet", "scores.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_env_error_is_null_and_never_zero(tmp_path: Path) -> None:
    study, summary = outcomes(tmp_path, {"click-button": "env_error", "click-tab": "success"})
    table = read_scores(study.results / "scores.parquet")
    broken = table[table["outcome"] == "env_error"]
    assert len(broken)
    assert broken["success_hard"].isna().all()
    assert not broken["valid"].any()
    row = one(summary, "arpo", "test_in", "hard")
    # 5 tasks x 2 trials: button without a score, tab solved, three failed.
    assert (row.expected, row.valid, row.env_errors, row.missing) == (10, 8, 2, 0)
    assert row.of_valid is not None
    assert row.of_valid.value == pytest.approx(2 / 8)
    assert (row.of_all_low, row.of_all_high) == pytest.approx((0.2, 0.4))


def test_success_comes_from_the_score_and_not_from_the_outcome(tmp_path: Path) -> None:
    """An episode cut at the limit in a correct state is a success under hard, not under standard."""
    study = make_study(tmp_path, tasks=5, trials=1, screenshots=False, choose=lambda *_: "truncated")
    for index in study.episodes.rglob("episodes.jsonl"):
        lines = [json.loads(line) for line in index.read_text().splitlines()]
        for line in lines:
            line["hard_score"] = 1.0
        index.write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = evaluate(study)
    assert one(summary, "base", "test_in", "hard").successes == 5
    assert one(summary, "base", "test_in", "standard").successes == 0
    assert one(summary, "base", "test_in", "hard").truncated == 5
    # test_out holds one infeasible task, which a forced FAIL wins.
    standard = one(summary, "base", "test_out", "standard")
    assert (standard.infeasible_successes, standard.successes) == (1, 1)


def test_missing_episodes_are_named_and_counted(tmp_path: Path) -> None:
    study, summary = outcomes(tmp_path, {"click-tab": ""})
    row = one(summary, "grpo", "test_in", "hard")
    assert (row.expected, row.valid, row.missing) == (10, 8, 2)
    assert "grpo, stage train_32, seed 0, test_in: 2 of 10 episodes were not run." in summary.not_run
    assert study.config.evaluation.trials == 2


def test_nothing_at_all(tmp_path: Path) -> None:
    study = make_study(tmp_path, trials=0, steps=0)
    summary = evaluate(study)
    assert {row.of_valid for row in summary.rates} == {None}
    assert summary.differences == []
    assert {(row.arm, row.split) for row in summary.rates} == {
        (arm, split) for arm in ("base", "grpo", "arpo") for split in ("test_in", "test_out")
    }
    assert len(summary.not_run) == 1 + 6


def test_differences_are_paired_and_compare_replay(tmp_path: Path) -> None:
    study = make_study(
        tmp_path,
        tasks=5,
        trials=1,
        screenshots=False,
        choose=lambda arm, task, trial: (
            "env_error"
            if (arm, task[:9]) == ("base", "click-tab")
            else "success"
            if arm == "arpo"
            else "failure"
        ),
    )
    summary = evaluate(study)
    pairs = {(row.arm, row.reference) for row in summary.differences}
    assert pairs == {("grpo", "base"), ("arpo", "base"), ("arpo", "grpo")}
    (row,) = [
        r
        for r in summary.differences
        if (r.arm, r.reference, r.split, r.protocol) == ("arpo", "base", "test_in", "hard")
    ]
    assert (row.tasks, len(row.dropped)) == (4, 1)
    assert row.difference.value == 1
    assert row.difference.low > 0


def test_several_seeds_are_shown_apart_and_together(tmp_path: Path) -> None:
    study = make_study(tmp_path, tasks=4, trials=1, seeds=(0, 1), screenshots=False)
    summary = evaluate(study)
    seeds = [r.seed for r in summary.rates if (r.arm, r.split, r.protocol) == ("arpo", "test_in", "hard")]
    assert seeds == [None, 0, 1]
    base = [r for r in summary.rates if (r.arm, r.split, r.protocol) == ("base", "test_in", "hard")]
    assert [(r.seed, r.expected) for r in base] == [(0, 4)]
    pooled = next(r for r in summary.rates if r.arm == "arpo" and r.seed is None and r.split == "test_in")
    assert pooled.expected == 8


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"size": "7b"}, "size mark '7b'"),
        ({"arm": "dpo"}, "'dpo' is not in arms"),
        ({"split": "test_on"}, "'test_on' is not in tasks.splits"),
        ({"outcome": "won"}, "is no episode record"),
        ({"hard_score": "high"}, "is no episode record"),
    ],
)
def test_foreign_episodes_are_refused(change: dict[str, object], words: str, tmp_path: Path) -> None:
    study = make_study(tmp_path, tasks=3, trials=1, arms=("base",), screenshots=False)
    index = next(study.episodes.rglob("episodes.jsonl"))
    first, *rest = index.read_text().splitlines()
    index.write_text("\n".join([json.dumps({**json.loads(first), **change}), *rest]))
    with pytest.raises(UserError, match=words) as caught:
        score(study, tmp_path)
    assert "line 1" in str(caught.value)


def test_an_episode_in_two_indexes_is_refused(study: Study, tmp_path: Path) -> None:
    index = next(study.episodes.rglob("episodes.jsonl"))
    copy = tmp_path / "copy" / "episodes.jsonl"
    copy.parent.mkdir()
    copy.write_text(index.read_text())
    with pytest.raises(UserError, match="two indexes"):
        score_episodes(study.config, [study.episodes, copy], tmp_path / "scores.parquet")
    with pytest.raises(UserError, match="does not exist"):
        score_episodes(study.config, [tmp_path / "nowhere"], tmp_path / "scores.parquet")


def test_steps_keep_line_separators_of_the_model(tmp_path: Path) -> None:
    study = make_study(
        tmp_path,
        tasks=3,
        trials=1,
        arms=("base",),
        screenshots=False,
        choose=lambda *_: "success",
        text=lambda i: "a\u2028b\x85c\x1ed",
    )
    folder = next(study.episodes.rglob("steps.jsonl")).parent
    assert read_steps(folder)[0].text == "a\u2028b\x85c\x1ed"
    (folder / "steps.jsonl").write_text("{broken")
    assert read_steps(folder) == []


def test_curves_take_the_last_word_of_a_resumed_step(tmp_path: Path) -> None:
    path = tmp_path / "models/arpo/seed_3/stage_train_4/metrics.jsonl"
    path.parent.mkdir(parents=True)
    lines = [
        {"step": 1, "reward_before": 0.1, "seconds": {"rollout": 2.0, "note": "x"}, "grad_norm": 1.5},
        {"step": 2, "success": 0.4, "seconds": {"update": 3}, "entropy": float("nan")},
        {"step": 2, "success": 0.5, "seconds": {"update": 4}},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    curve = read_curve(path)
    assert (curve.arm, curve.seed, curve.stage) == ("arpo", 3, "train_4")
    assert [p.step for p in curve.points] == [1, 2]
    assert curve.points[0].seconds == {"rollout": 2.0}
    assert curve.points[0].other == {"grad_norm": 1.5}
    assert (curve.points[1].success, curve.points[1].entropy) == (0.5, None)
    assert curve.points[1].seconds == {"update": 4}
    path.write_text('{"reward_before": 1}\n')
    with pytest.raises(UserError, match="line 1, is no training step"):
        read_curve(path)
    with pytest.raises(UserError, match="seed_<seed>"):
        place_of(tmp_path / "metrics.jsonl")


def test_summary_is_a_closed_document_with_hashes_of_its_inputs(study: Study, tmp_path: Path) -> None:
    score(study, tmp_path)
    out = tmp_path / "summary.json"
    summary = summarise_study(study.config, tmp_path / "scores.parquet", study.metrics, study.manifests, out)
    assert Summary.model_validate_json(out.read_bytes()) == summary
    assert len(summary.inputs) == 1 + len(study.metrics) + len(study.manifests)
    assert str(tmp_path) not in out.read_text()
    assert {(m.arm, m.stage) for m in summary.models} >= {("base", "base"), ("arpo", "train_32")}
    text = out.read_bytes()
    summarise_study(study.config, tmp_path / "scores.parquet", study.metrics, study.manifests, out)
    assert out.read_bytes() == text
