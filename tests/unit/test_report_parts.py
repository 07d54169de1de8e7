"""What the page is made of: flips, order, compressed cards, room for screenshots, tables as files."""

import base64
import gzip
import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from markupsafe import Markup

from arpo_replica.base.environments import ROOT
from arpo_replica.config import load_config
from arpo_replica.config.models import StudyConfig, merge
from arpo_replica.evaluation.records import Curve, CurvePoint, Summary
from arpo_replica.evaluation.scores import read_scores
from arpo_replica.evaluation.tables import as_csv
from arpo_replica.report import gallery
from arpo_replica.report.figures import adjusted_success
from arpo_replica.report.gallery import EpisodeView, build_gallery
from arpo_replica.report.matrix import build_matrix
from arpo_replica.report.pack import json_block, pack
from arpo_replica.report.views import (
    banner,
    chart_data,
    cost_rows,
    facts,
    protocols,
    staleness,
    told_once,
)
from arpo_replica.rollout.records import StepRecord
from synthetic_study import Study, evaluate, make_study


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    study = make_study(tmp_path_factory.mktemp("study"), tasks=5, trials=2, steps=3)
    evaluate(study)
    return study


def test_flips_of_the_matrix_are_those_of_the_summary(study: Study) -> None:
    scores = read_scores(study.results / "scores.parquet")
    gallery = build_gallery(scores, study.episodes, budget_mb=0, width=960)
    summary = json.loads((study.results / "summary.json").read_bytes())
    compared = 0
    for part in build_matrix(gallery.episodes, list(study.config.arms)):
        assert part.reference == ("base", "base")
        for index, (arm, _) in enumerate(part.columns):
            rows = [row for domain in part.domains for row in domain.rows]
            for flip in ("gained", "lost", "mixed"):
                marked = [f"{r.domain}/{r.task_id}" for r in rows if r.cells[index].flip == flip]
                said = [
                    row[flip] for row in summary["flips"]
                    if (row["arm"], row["reference"], row["split"], row["protocol"])
                    == (arm, "base", part.split, "hard")
                ]  # fmt: skip
                assert [sorted(marked)] * len(said) == [sorted(tasks) for tasks in said]
                compared += len(said) * max(1, len(marked))
    assert compared > 8


def test_order_of_episodes_does_not_matter(study: Study) -> None:
    scores = read_scores(study.results / "scores.parquet")
    options = {"budget_mb": 0.05, "width": 960}
    one = build_gallery(scores, study.episodes, **options)
    two = build_gallery(scores.sample(frac=1, random_state=3), study.episodes, **options)
    assert one == two


def test_cards_beyond_the_limit_are_compressed_whole(study: Study) -> None:
    scores = read_scores(study.results / "scores.parquet")
    gallery = build_gallery(scores, study.episodes, budget_mb=0, width=960)

    def card(view: EpisodeView) -> Markup:
        return Markup(f"<details class='card' id='{view.id}'>" + "ü" * 200 + "</details>")

    packed = pack(gallery, [], study.config, card, plain_bytes=1000)
    plain = [str(html) for group in packed.groups for html in group.cards]
    squeezed = [json.loads(gzip.decompress(base64.b64decode(chunk))) for chunk in packed.chunks]
    index = json.loads(packed.index)
    assert len(plain) == packed.plain == 4
    seen = 0
    for group in index["groups"]:
        for name, _, _, _, _, chunk, place, *_ in group["episodes"]:
            html = next(h for h in plain if f"'{name}'" in h) if chunk < 0 else squeezed[chunk][place]
            assert f"id='{name}'" in html
            seen += 1
    assert seen == len(gallery.episodes) == len(plain) + sum(map(len, squeezed))
    assert "<" not in json_block({"a": "</script><!--"})
    assert json.loads(json_block({"a": "</script>&"})) == {"a": "</script>&"}


def test_screenshots_give_way_to_text(study: Study, tmp_path: Path) -> None:
    wordy = make_study(tmp_path, tasks=3, trials=1, steps=0, text=lambda i: os.urandom(200_000).hex())
    evaluate(wordy)
    scores = read_scores(wordy.results / "scores.parquet")
    options = {"budget_mb": 12, "width": 960}
    assert build_gallery(scores, wordy.episodes, **options, page_mb=14.5).budget_bytes < 2e6
    assert build_gallery(scores, wordy.episodes, **options).budget_bytes == 12e6


def test_a_reply_of_several_actions_is_one_frame_of_several_steps() -> None:
    values = {"text": "x", "format_error": None, "screenshot": "", "model_s": 1, "env_s": 1}
    values |= {"prompt_tokens": 1, "completion_tokens": 1, "action_id": None}
    click, word = {"type": "click", "x": 1, "y": 2}, {"type": "type_text", "text": "<b>"}
    steps = [
        StepRecord(index=0, action=click, further=[word, {"type": "explode"}], **values),
        StepRecord(index=1, action=word, **values),
        StepRecord(index=2, action=None, **values),
    ]
    view = gallery.view_of(0, {}, steps, {}, {})
    assert [(frame.title, frame.action, frame.detail) for frame in view.steps] == [
        ("Steps 1 to 3", "click at (1, 2), then type text, then unknown action", "<b>"),
        ("Step 4", "type text", "<b>"),
        ("Step 5", "no valid action", ""),
    ]


def test_a_formula_in_a_table_is_text() -> None:
    rows = [{"a": "=1+1", "b": {"d": -1, "c": "@x"}, "e": None}, {"a": "x", "f": ["@x", 2]}]
    assert as_csv(None, rows).decode() == ('a,b,e,f\n\'=1+1,"{""c"": ""@x"", ""d"": -1}",,\nx,,,\'@x; 2\n')


def test_the_age_of_rollouts_is_shown_for_trainings_that_record_it() -> None:
    points = [CurvePoint(step=step, other={"staleness_mean": mean}) for step, mean in ((1, 0.0), (2, 1.0))]
    assert staleness(points) == 0.5
    assert staleness([CurvePoint(step=1)]) is None


def test_splits_stand_in_the_order_of_the_config(study: Study) -> None:
    scores = read_scores(study.results / "scores.parquet")
    gallery = build_gallery(scores, study.episodes, budget_mb=0, width=960)
    arms, splits = list(study.config.arms), study.config.evaluation.splits
    assert [part.split for part in build_matrix(gallery.episodes, arms, splits)] == splits
    assert [part.split for part in build_matrix(gallery.episodes, arms, splits[::-1])] == splits[::-1]


def test_a_task_of_two_lists_counts_once(study: Study) -> None:
    summary = Summary.model_validate_json((study.results / "summary.json").read_bytes())
    places = sum(split.tasks for split in summary.splits.values())
    assert summary.distinct_tasks == places
    origin = {"git": {"commit": None, "dirty": None}}
    shared = summary.model_copy(update={"distinct_tasks": places - 2})
    assert facts(shared, origin)[1][1] == str(places - 2)
    assert f"{places} places in {len(summary.splits)} lists that share tasks" in facts(shared, origin)[1][2]
    assert "share" not in facts(summary, origin)[1][2]


def test_the_banner_does_not_deny_the_papers_own_size(study: Study) -> None:
    osworld = study.config.desktop.osworld.model_copy(
        update={"vm": "Ubuntu.qcow2", "vm_sha256": "a" * 64, "image_digest": f"sha256:{'b' * 64}"}
    )
    desktop = study.config.desktop.model_copy(update={"provider": "osworld", "osworld": osworld})
    papers = study.config.model_copy(update={"size": "7b", "desktop": desktop})
    assert "The paper's size and desktops" in banner(papers)["text"]
    for other in (papers.model_copy(update={"size": "2b"}), study.config.model_copy(update={"size": "7b"})):
        assert "Not the paper's set-up" in banner(other)["text"]


def test_tables_of_two_protocols_that_agree_are_one(study: Study) -> None:
    summary = Summary.model_validate_json((study.results / "summary.json").read_bytes())
    hard = [row for row in summary.rates if row.protocol == "hard"]
    same = [*hard, *(row.model_copy(update={"protocol": "standard"}) for row in hard)]
    assert protocols(same) == [("Hard and standard protocol, which agree here", "hard")]
    assert [(place, word) for place, _, word in told_once(same)] == [(i, "both") for i in range(len(hard))]
    other = [*same[:-1], same[-1].model_copy(update={"truncated": 99})]
    assert [protocol for _, protocol in protocols(other)] == ["hard", "standard"]
    assert [word for _, _, word in told_once(other)] == ["both"] * (len(hard) - 1) + ["hard", "standard"]


def test_success_of_a_training_does_not_hang_on_the_tasks_that_an_update_draws() -> None:
    """An easy task (1.0) and a hard one (0.2), drawn by turns: the plain curve saws, the other is flat."""
    points = [
        CurvePoint(step=i, success=1.0 if i % 2 else 0.2, tasks={"easy": 1.0} if i % 2 else {"hard": 0.2})
        for i in range(1, 21)
    ]
    curve = Curve(arm="arpo", seed=0, stage="s", source="", points=points)
    found = adjusted_success([curve])["arpo", 0, "s"]
    assert [round(value, 6) for _, value, _ in found] == [60.0] * 20
    assert {error for _, _, error in found} == {None}
    # Drawn too rarely to know the tasks: plain.
    few = adjusted_success([curve.model_copy(update={"points": points[:6]})])["arpo", 0, "s"]
    assert [round(value) for _, value, _ in few] == [100, 20, 100, 20, 100, 20]
    # A policy that gets better shows as such, with an error over the groups of an update.
    better = [
        CurvePoint(step=i, tasks={"easy": 0.5 + 0.02 * i, "hard": 0.02 * i, "other": 0.25 + 0.02 * i})
        for i in range(1, 13)
    ]
    rising = adjusted_success([curve.model_copy(update={"points": better})])["arpo", 0, "s"]
    assert rising[-1][1] - rising[0][1] == pytest.approx(22)
    assert all(error == pytest.approx(0, abs=1e-9) for _, _, error in rising)


def test_chart_has_every_metric_and_stages_one_after_the_other(study: Study) -> None:
    summary = Summary.model_validate_json((study.results / "summary.json").read_bytes())
    data = chart_data(summary, ["base", "grpo", "arpo"], ["train_4", "train_32"])
    assert data is not None
    known = {curve.stage: len(curve.points) for curve in summary.curves}
    at = 0
    for stage in data["stages"]:
        assert (stage["from"], stage["steps"]) == (at, known[stage["name"]])
        at += known[stage["name"]]
    assert data["metrics"][0]["key"] == "adjusted"
    keys = {entry["key"] for entry in data["metrics"]}
    assert {"success", "reward_before", "entropy", "rollouts_per_hour", "s rollout"} <= keys
    for curve, drawn in zip(summary.curves, data["curves"], strict=True):
        assert drawn["values"]["reward_before"] == [
            None if p.reward_before is None else float(f"{p.reward_before:.4g}") for p in curve.points
        ]
    assert chart_data(summary.model_copy(update={"curves": []}), [], []) is None


def test_gpu_hours_and_their_cost_are_those_of_the_jobs_that_kept_gpus() -> None:
    raw = load_config(ROOT / "configs" / "paper.yaml").model_dump()
    config = StudyConfig.model_validate(merge(raw, {"report": {"usd_per_gpu_hour": 2.5}}))
    training = config.training.nodes * config.training.gpus
    jobs = [
        {"job": name, "seconds": 3600.0, "cpu_seconds": 0.0}
        for name in ("train_stage/arpo.seed_0.train_128", "collect_rollouts/base.seed_0.base", "fetch_model")
    ]
    summary = SimpleNamespace(effort=[])
    rows = {label: value for label, value, _ in cost_rows(summary, jobs, config)}
    serving = config.serving.tensor_parallel * config.serving.data_parallel
    assert rows["Accelerator time"] == f"{training + serving:.2f} GPU-hours"
    assert rows["Cost"] == f"{2.5 * (training + serving):,.2f} USD"
    on_cpu = load_config(ROOT / "configs" / "demo.yaml")
    assert not {"Accelerator time", "Cost"} & {label for label, _, _ in cost_rows(summary, jobs, on_cpu)}
