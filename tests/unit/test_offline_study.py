"""Offline arms beside the others: figure 6, the page, where numbers come from, status, estimates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from arpo_replica.base.environments import ROOT
from arpo_replica.base.errors import UserError
from arpo_replica.cluster.costs import estimate
from arpo_replica.config.decides import decides
from arpo_replica.config.models import StudyConfig, merge
from arpo_replica.evaluation.scores import read_offline
from arpo_replica.evaluation.targets import episodes_of, target_of, trainings_of
from arpo_replica.report.make_target import TargetFiles, make_target
from arpo_replica.training.parity import compose
from arpo_replica.workflow.status import study_status
from arpo_replica.workflow.study import Study as Plan
from synthetic_study import PAPER_FILES, Study, evaluate, make_study, render

METHODS = ("rejection", "dpo", "kto")
ARMS = ("base", "grpo", "arpo", *METHODS)
OVERLAID = [Path("configs/demo.yaml"), Path("configs/arms/offline.yaml")]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    offline = {method: {"offline": {"method": method}} for method in METHODS}
    return make_study(
        tmp_path_factory.mktemp("study"),
        tasks=4,
        trials=1,
        steps=2,
        arms=ARMS,
        screenshots=False,
        overrides={
            "arms": {"base": {}, "grpo": {}, "arpo": {"replay": {"enabled": True}}, **offline},
            "targets": {"benchmark": "test_out", "selected_curve": {"arm": "dpo", "stage": "train_32"}},
        },
    )


@pytest.fixture
def demo() -> StudyConfig:
    """The demo study with the overlay that adds the offline arms."""
    return compose(OVERLAID, ROOT)


def test_kto_of_the_nano_policy_learns_slowly(demo: StudyConfig) -> None:
    nano = compose([OVERLAID[0], Path("configs/arms/offline_nano.yaml")], ROOT)
    assert nano.offline_arms == demo.offline_arms == list(METHODS)
    rates = {arm: nano.recipe(arm).learning_rate for arm in METHODS}
    assert rates["rejection"] == rates["dpo"] == pytest.approx(10 * rates["kto"])


def test_adapters_beside_an_offline_arm_are_refused_unless_it_has_none(demo: StudyConfig) -> None:
    adapted = StudyConfig.model_validate(
        merge(demo.model_dump(), {"training": {"lora": {"rank": 4, "alpha": 8}}})
    )
    with pytest.raises(UserError, match=r"arm 'rejection' learns offline.* lora: null"):
        Plan(adapted).check_training()
    for method in METHODS:
        adapted.arms[method]["lora"] = None
    Plan(adapted).check_training()


def test_figure_6_has_all_arms(study: Study, tmp_path: Path) -> None:
    target = target_of(study.config, "fig6")
    # Offline arms have no metrics; what the others' trainings did decides whether a claim may be judged.
    assert {arm for arm, _, _ in trainings_of(study.config, target)} == {"grpo", "arpo"}
    indexes = [
        study.episodes / arm / f"seed_{seed}" / f"stage_{stage}" / split / f"trial_{trial}/episodes.jsonl"
        for arm, seed, stage, split, trial in episodes_of(study.config, target)
    ]
    made = make_target(study.config, "fig6", TargetFiles(PAPER_FILES, indexes), tmp_path)
    for protocol in ("hard", "standard"):
        assert {row["arm"] for row in made.rows if row["protocol"] == protocol} == set(ARMS)
    assert all(row["gain_over_base"] is not None for row in made.rows if row["arm"] in METHODS)


def test_an_offline_arm_has_no_learning_curve(study: Study) -> None:
    with pytest.raises(UserError, match=r"arms\.dpo \(targets\.selected_curve\.arm\)"):
        target_of(study.config, "fig5")


def test_the_page_shows_offline_arms_and_the_rule_behind_them(study: Study) -> None:
    summary = evaluate(study)
    assert {row.arm for row in summary.rates} == set(ARMS)
    assert {curve.arm for curve in summary.curves} == {"grpo", "arpo"}
    rules = {file.path: file.rule for file in summary.files if "/models/" in file.path}
    assert {rule for path, rule in rules.items() if "/dpo/" in path} == {"train_offline"}
    assert {rule for path, rule in rules.items() if "/arpo/" in path} == {"train_stage", "check_stage"}
    page = render(study).read_text()
    assert all(page.count(arm) > 5 for arm in METHODS)
    words = " ".join(page.split())
    assert (
        "(8 for each task of <code>train_32</code>), and so without stages, gates and a curve of rewards"
        in words
    )
    assert 'not among the <a href="#episodes">episodes</a> below' in words


def test_what_an_offline_arm_learnt_from_and_its_loss_are_shown(study: Study) -> None:
    """Two updates with the losses 1 and 1/2."""
    summary = evaluate(study)
    assert [(t.arm, t.method, t.seed) for t in summary.offline] == [(m, m, 0) for m in METHODS]
    first = summary.offline[0]
    assert [(p.step, p.loss) for p in first.points] == [(1, 1.0), (2, 0.5)]
    assert first.points[0].other == {"epoch": 0.5, "grad_norm": 2.0}
    assert first.learnt_from == {"samples": 12, "inexact_replies": 0}
    assert {file.rule for file in summary.files if file.path.endswith("learning.jsonl")} == {"train_offline"}
    page = render(study).read_text()
    table = page.split('id="table-offline_curves"')[1].split("</table>")[0]
    assert table.count("<tr ") == 3
    assert "1.000 → 0.500" in table
    assert "samples 12" in table
    assert "Loss of the offline arms" in page


@pytest.mark.parametrize("text", ["{", '{"loss": 1}', '{"step": 1}', "[]"])
def test_a_broken_record_of_an_offline_arm_is_named(study: Study, tmp_path: Path, text: str) -> None:
    path = tmp_path / "dpo/seed_0/stage_train_32/learning.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text(f'{{"step": 1, "loss": NaN}}\n{text}\n')
    with pytest.raises(UserError, match=r"learning\.jsonl, line 2, is no update; train this arm again"):
        read_offline(path, "dpo")
    path.write_text('{"step": 1, "loss": NaN}\n')
    assert read_offline(path, "dpo").points[0].loss is None


def test_tasks_that_offline_arms_alone_learn_from_count_as_trained_on(demo: StudyConfig) -> None:
    assert demo.training_splits == ["train_4", "train_32"]
    moved = StudyConfig.model_validate(demo.model_dump() | {"offline": {"split": "test_in"}})
    assert moved.training_splits == ["train_4", "train_32", "test_in"]
    moved.arms = {arm: keys for arm, keys in moved.arms.items() if arm not in METHODS}
    assert moved.training_splits == ["train_4", "train_32"]


def test_what_decides_other_arms_does_not_know_of_offline_keys(demo: StudyConfig) -> None:
    plan = Plan(demo)
    assert not any("offline" in key for key in decides(plan.config, "train_stage")({"arm": "arpo"}))
    raw = merge(demo.model_dump(), {"arms": {"kto": {"learning_rate": 2e-5, "save_every": 1}}})
    other = Plan(StudyConfig.model_validate(raw))
    kto, dpo = {"arm": "kto"}, {"arm": "dpo"}
    assert decides(other.config, "train_offline")(kto)["training.learning_rate"] == 2e-5
    assert decides(other.config, "train_offline")(dpo) == decides(plan.config, "train_offline")(dpo)
    assert set(decides(other.config, "train_offline")(kto)) == set(decides(plan.config, "train_offline")(kto))


def test_status_follows_an_offline_arm(demo: StudyConfig, tmp_path: Path) -> None:
    folder = tmp_path / "results/demo/models/dpo/seed_0/stage_train_32"

    def line() -> tuple[str, str]:
        found = next(line for line in study_status(demo, tmp_path) if line.name == "train dpo seed 0")
        return found.state, found.progress

    assert line() == ("waiting", "0 updates saved")
    (folder / "checkpoints/checkpoint-4").mkdir(parents=True)
    (folder / "checkpoints/checkpoint-4/complete.json").write_text("{}")
    assert line() == ("running", "4 updates saved")
    (folder / "learning.jsonl").write_text(json.dumps({"step": 6, "loss": 0.5}) + "\n")
    (folder / "manifest.json").write_text("{}")
    assert line() == ("done", "6 updates")


def test_a_cluster_is_asked_for_the_time_of_the_episodes(demo: StudyConfig) -> None:
    collected, trained = (estimate(demo, rule) for rule in ("collect_offline_episodes", "train_offline"))
    assert collected.hours > 0 and trained.hours > 0 and trained.disk_gb > 0
    demo.offline.rollouts_per_task *= 10
    assert estimate(demo, "collect_offline_episodes").hours > collected.hours
