"""Breakdowns, effort and provenance in ``summary.json``: counted by hand from a small invented table."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from arpo_replica.evaluation.records import Summary
from arpo_replica.evaluation.scores import read_curve, read_scores
from arpo_replica.evaluation.summary import covered, kind_of, replay_rows, solved, throughput_rows
from synthetic_study import Study, evaluate, make_study

PLAN = {
    # task number -> outcomes of base and of arpo, two trials each: s success, f failure, t truncated, e error
    0: ("ff", "ss"),
    1: ("ss", "ff"),
    2: ("ss", "ss"),
    3: ("ff", "tf"),
    4: ("sf", "ss"),
    5: ("ee", "ss"),
}
OUTCOMES = {"s": "success", "f": "failure", "t": "truncated", "e": "env_error"}


def plan(arm: str, task_id: str, trial: int) -> str:
    number = int(task_id.rsplit("_", 1)[1])
    return OUTCOMES[PLAN[number][arm == "arpo"][trial]]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    root = tmp_path_factory.mktemp("study")
    return make_study(root, tasks=6, arms=("base", "arpo"), choose=plan, screenshots=False)


@pytest.fixture(scope="module")
def summary(study: Study) -> Summary:
    return evaluate(study)


def test_flips_are_counted_by_the_majority_of_runs(summary: Summary) -> None:
    (row,) = [r for r in summary.flips if (r.split, r.protocol) == ("test_in", "hard")]
    names = {
        kind: [task.rsplit("_", 1)[1] for task in getattr(row, kind)] for kind in ("gained", "lost", "mixed")
    }
    assert names == {"gained": ["0"], "lost": ["1"], "mixed": ["4"]}
    assert (row.kept_solved, row.kept_failed) == (1, 1)
    assert [task.rsplit("_", 1)[1] for task in row.not_comparable] == ["5"]
    assert solved([True, True, False]) == "solved"


def test_domains_hold_every_task_and_holm_is_no_smaller(summary: Summary) -> None:
    (row,) = [r for r in summary.domains if (r.arm, r.split, r.protocol) == ("base", "test_in", "hard")]
    assert (row.domain, row.tasks, row.valid, row.successes) == ("miniwob", 6, 10, 5)
    assert all(r.p_holm >= r.p_value for r in summary.domain_differences)
    assert summary.domain_differences


def test_infeasible_tasks_stand_apart(summary: Summary) -> None:
    rows = {(r.subset, r.protocol): r for r in summary.subsets if (r.arm, r.split) == ("arpo", "test_out")}
    # test_out has two tasks, the last one infeasible: base and arpo as the plan says for 0 and 1.
    assert rows["infeasible", "hard"].tasks == 1
    assert rows["feasible", "hard"].successes == 2
    assert ("trained_on", "hard") not in rows
    assert rows["not_trained_on", "hard"].tasks == 2


def test_pass_at_k(summary: Summary) -> None:
    rows = {r.k: r for r in summary.pass_at_k if (r.arm, r.split, r.protocol) == ("base", "test_in", "hard")}
    # Successes 0, 2, 2, 0, 1 of two runs (task 5 has no valid run): pass@1 5/10, pass@2 3/5.
    assert rows[1].rate.value == pytest.approx(0.5)
    assert rows[2].rate.value == pytest.approx(0.6)
    assert rows[2].left_out == 0
    trained = [r for r in summary.pass_at_k if r.arm == "arpo"]
    assert {r.seed for r in trained} == set(summary.seeds)


def test_environment_errors_are_named_and_never_scored(summary: Summary) -> None:
    (row,) = [r for r in summary.env_errors if r.split == "test_in"]
    assert (row.arm, row.kind, row.attempts, row.lost, row.tasks) == ("base", "desktop", 6, 2, 1)
    (rate,) = [r for r in summary.rates if (r.arm, r.split, r.protocol) == ("base", "test_in", "hard")]
    assert (rate.valid, rate.env_errors) == (10, 2)
    assert (rate.of_all_low, rate.of_all_high) == (5 / 12, 7 / 12)
    assert kind_of("start 3 of 5 failed") == "start"


def test_throughput_by_hand(study: Study, summary: Summary) -> None:
    (row,) = [r for r in summary.throughput if r.phase == "training" and r.stage == "train_4"]
    lines = [json.loads(line) for line in study.metrics[0].read_text().splitlines()]
    hours = sum(line["seconds"]["rollout"] for line in lines) / 3600
    assert row.rollout_hours == pytest.approx(hours)
    clock = sum(line["seconds"]["total"] for line in lines) / 3600
    assert row.total_hours == pytest.approx(clock)
    assert row.trajectories_per_hour == pytest.approx(row.trajectories / clock)
    evaluation = [r for r in summary.throughput if r.phase == "evaluation"]
    assert {r.trajectories for r in evaluation} == {12, 4}
    assert all(0 < (r.desktop_busy or 0) <= 1 for r in evaluation)


def test_trials_side_by_side_count_their_time_once_and_idle_days_not_at_all(study: Study) -> None:
    """Two trials overlap from 100 s to 130 s, a third runs a day later for 50 s: 160 + 50 s, 3 episodes."""
    assert covered([]) == 0
    assert covered([(5, 12), (0, 10), (20, 21), (6, 7)]) == 13
    table = read_scores(study.results / "scores.parquet")
    rows = table[(table["arm"] == "arpo") & (table["split"] == "test_in")].head(3).copy()
    rows["trial"], rows["seed"] = [0, 1, 2], 0
    rows["started_at"], rows["duration_s"] = [0.0, 100.0, 86_400.0], [130.0, 60.0, 50.0]
    (row,) = throughput_rows(study.config, rows, [])
    assert row.rollout_hours == pytest.approx(210 / 3600)
    assert row.trajectories_per_hour == pytest.approx(3 * 3600 / 210)
    assert row.desktop_hours == pytest.approx(8 * 210 / 3600)
    assert row.desktop_busy == pytest.approx(240 / (8 * 210))


def test_replay_names_task_age_and_slot(tmp_path: Path) -> None:
    """Two swaps, of trajectories 1 and 3 updates old: mean 2, median 2, largest 3, first at update 2."""
    folder = tmp_path / "arpo/seed_0/stage_a"
    folder.mkdir(parents=True)
    rows = [
        {"step": 1, "groups": 2, "buffer_size": 1, "tasks": [{"task": "d/x", "scores": [1.0, 0.0]}],
         "swaps": []},
        {"step": 2, "groups": 2, "buffer_size": 2, "tasks": [{"task": "d/x", "scores": [0.0]}],
         "swaps": [{"group": 0, "rollout": 0, "name": "one", "step": 1}]},
        {"step": 4, "groups": 2, "buffer_size": 5, "tasks": [{"task": "d/y", "scores": [0.0]}],
         "swaps": [{"group": 0, "rollout": 1, "name": "two", "step": 1}]},
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    curve = read_curve(folder / "metrics.jsonl")
    (row,) = replay_rows([curve])
    assert (row.fired, row.first_step, row.groups) == (2, 2, 6)
    assert [swap.task for point in curve.points for swap in point.swaps] == ["d/x", "d/y"]
    assert (row.age_mean, row.age_median, row.age_max, row.buffer_size) == (2.0, 2.0, 3, 5)
    assert (curve.points[2].swaps[0].name, curve.points[2].swaps[0].rollout) == ("two", 1)
    # Scores 1 and 0: population standard deviation 1/2.
    assert curve.points[0].other["group_score_std"] == 0.5


def test_every_number_names_files_that_are_listed_with_their_hash(study: Study, summary: Summary) -> None:
    files = {entry.path: entry for entry in summary.files}
    assert {entry.rule for entry in summary.files} == {"score_episodes", "collect_rollouts", "train_stage",
                                                      "check_stage", "register_model"}  # fmt: skip
    for row in [*summary.rates, *summary.differences]:
        assert row.sources
        assert set(row.sources) <= set(files)
    path = next(study.episodes.rglob("episodes.jsonl"))
    shown = next(name for name in files if path.as_posix().endswith(name))
    assert files[shown].sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert not any(name.startswith("/") for name in files)


def test_splits_say_their_part_and_what_was_trained_on(summary: Summary) -> None:
    assert summary.splits["test_in"].tasks_trained_on == 0
    assert summary.desktops == {"process": 2 * (12 + 4)}
