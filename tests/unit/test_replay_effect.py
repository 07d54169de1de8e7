"""What replay adds, per training and per pair: hand-worked values, libraries, and the registered analysis."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from scipy import stats

from arpo_replica import cli
from arpo_replica.base.errors import UserError
from arpo_replica.config import load_config
from arpo_replica.config.load import parse_config
from arpo_replica.evaluation import replay_effect as re_
from arpo_replica.evaluation import statistics
from arpo_replica.evaluation.claims import compare
from arpo_replica.evaluation.records import Curve, CurvePoint, Summary, TrainingOutcome
from arpo_replica.report import answer as first_screen
from arpo_replica.report import words
from synthetic_study import PAPER_FILES, Study, evaluate, make_study, render

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "benchmarks"))
import replay_points  # noqa: E402

PAGE = (ROOT / "docs/replay_study.md").read_text("utf-8")
STAGE = {"name": "train_32", "split": "train_32", "steps": 4}


def curve(arm: str, seed: int, success: list[float], swapped: list[int] | None = None) -> Curve:
    """One training of 4 groups x 4 rollouts an update."""
    points = [
        CurvePoint(step=i + 1, success=s, swapped_groups=w, other={"groups": 4, "rollouts": 16})
        for i, (s, w) in enumerate(zip(success, swapped or [0] * len(success), strict=True))
    ]
    return Curve(arm=arm, seed=seed, stage="train_32", source="metrics.jsonl", points=points)


def config(steps: int, seeds: list[int], **arms: Any):
    raw = {
        "study": "invented",
        "size": "nano",
        "seeds": seeds,
        "arms": {"base": {}, "grpo": {"replay": {"enabled": False}}, "arpo": {"replay": {"enabled": True}}}
        | arms,
        "training": {"tasks_per_step": 4, "stages": [STAGE | {"steps": steps}]},
        "tasks": {"root": "data/tasks", "splits": {"train_32": "data/splits/miniwob_train_32.json"}},
        "evaluation": {"splits": ["train_32"]},
    }
    return parse_config(raw, "invented")


def test_area_collapse_and_share_by_hand() -> None:
    """20 updates, a success in the fourth (seed 0: 17th from the end) or fifth (16th from the end).

    Area: the updates weigh by their rollouts: (16 x .25 + 8 x .5) / (19 x 16 + 8) = 8 / 312.
    """
    late, early = [0.0] * 20, [0.0] * 20
    early[3] = late[4] = 0.25
    found = curve("arpo", 0, early, [1] * 8 + [0] * 12)
    found.points[0] = CurvePoint(step=1, success=0.5, swapped_groups=1, other={"groups": 2, "rollouts": 8})
    rows = list(re_.training_outcomes(config(20, [0, 1]), [found, curve("arpo", 1, late)]))
    grpo, mine, other = rows[0], rows[2], rows[3]
    assert (grpo.arm, grpo.updates, grpo.area, grpo.collapsed) == ("grpo", 0, None, None), "not begun"
    assert (mine.collapsed, other.collapsed) == (True, False)
    assert mine.area == pytest.approx(8 / 312)
    assert mine.changed == pytest.approx(8 / 78)
    cut = next(r for r in re_.training_outcomes(config(21, [0]), [found]) if r.arm == "arpo")
    assert (cut.updates, cut.planned, cut.area, cut.collapsed) == (20, 21, None, None), "not ended"


def test_the_pilots_of_the_page_are_what_the_code_computes() -> None:
    """Areas over the updates that both arms reached, as docs/replay_study.md has them."""
    runs = json.loads((ROOT / "benchmarks/results/replay/pilots.json").read_bytes())["runs"]
    by_name = {run["name"]: run for run in runs}
    for regime, seed, updates in (("slow", 0, 79), ("slow", 1, 75), ("base600", 0, 54), ("base600", 1, 56)):
        sides = [by_name[f"{regime}_{arm}_{seed}"] for arm in ("grpo", "arpo")]
        curves = [curve(s["arm"], seed, s["success"][:updates], s["swapped_groups"][:updates]) for s in sides]
        grpo, arpo = re_.training_outcomes(config(updates, [seed]), curves)
        row = re.search(rf"\| `{regime}`(?:[^\n]*\n\| \|){{{seed}}}[^\n]*\| (0\.\d\d, 0\.\d\d) \|", PAGE)
        assert row, regime
        assert row[1] == f"{grpo.area:.2f}, {arpo.area:.2f}"
    dead = by_name["format0_grpo_0"]
    (outcome, _) = re_.training_outcomes(config(96, [0]), [curve("grpo", 0, dead["success"])])
    assert outcome.collapsed is dead["collapsed"] is True


def test_only_arms_that_differ_in_replay_alone_are_compared() -> None:
    """`slow` has another learning rate than arpo: no pair."""
    study = config(4, [0], slow={"replay": {"enabled": False}, "learning_rate": 1e-7})
    outcomes = list(re_.training_outcomes(study, [curve(a, 0, [0.5] * 4) for a in ("grpo", "arpo", "slow")]))
    assert [(e.arm, e.reference) for e in re_.replay_effects(study, outcomes)] == [("arpo", "grpo")]


def outcomes(arm: str, areas: list[float], dead: str, changed: float = 0.2) -> dict[int, TrainingOutcome]:
    """Trainings of seeds 2, 3, ... that ended; ``dead``: x for each that collapsed."""
    return {
        seed: TrainingOutcome(
            arm=arm, seed=seed, updates=96, planned=96, area=a, collapsed=d == "x", changed=changed
        )
        for seed, (a, d) in enumerate(zip(areas, dead, strict=True), start=2)
    }


def test_an_effect_by_hand_and_by_scipy() -> None:
    """Eight pairs; grpo collapsed in seven, arpo in one of them and not alone: 6 against 0, p = 2 / 64.

    1 of 8 with Clopper and Pearson: 0.3 to 52.7 %; 7 of 8: 47.3 to 99.7 %.
    """
    gains = [0.05, 0.11, 0.02, 0.07, 0.09, 0.01, 0.12, 0.03]
    ours = outcomes("arpo", [0.2 + gain for gain in gains], "x.......", changed=0.13)
    found = re_.replay_effect("arpo", "grpo", ours, outcomes("grpo", [0.2] * 8, "xxxxxxx."))
    assert found.area is not None
    expected = stats.ttest_1samp(gains, 0)
    interval = expected.confidence_interval(0.95)
    assert (found.area.low, found.area.high) == pytest.approx((interval.low, interval.high))
    assert found.area_p == pytest.approx(expected.pvalue)
    inner = expected.confidence_interval(0.90)
    paired = re_.over_pairs(gains)
    assert paired is not None
    assert paired.within == pytest.approx((inner.low, inner.high))
    assert (found.only_arm_collapsed, found.only_reference_collapsed) == (0, 6)
    assert found.collapse_p == pytest.approx(2 / 64)
    assert found.collapsed is not None
    assert (found.collapsed.low, found.collapsed.high) == pytest.approx((0.00316, 0.52651), abs=1e-5)
    assert found.reference_collapsed is not None
    assert (found.reference_collapsed.low, found.reference_collapsed.high) == pytest.approx(
        (0.47349, 0.99684), abs=1e-5
    )
    assert (found.changed, found.is_test) == (pytest.approx(0.13), True)


def test_with_few_pairs_there_is_no_test_and_below_the_gate_none_of_replay() -> None:
    ours = outcomes("arpo", [0.3] * 4, "....", changed=0.0799)
    found = re_.replay_effect("arpo", "grpo", ours, outcomes("grpo", [0.2] * 4, "xxxx"))
    assert (found.area, found.area_p, found.collapse_p) == (None, None, None)
    assert found.area_by_seed == pytest.approx(dict.fromkeys(range(2, 6), 0.1))
    assert found.is_test is False
    assert re_.sign_test(0, 0) == 1.0


# --- the registered analysis ---


def test_the_numbers_are_those_of_the_registered_page() -> None:
    assert "**A: 12 pairs, seeds 2 to 13.**" in PAGE
    assert (list(re_.SEEDS), list(re_.COLLAPSE_SEEDS)) == (list(range(2, 14)), list(range(2, 10)))
    assert "above 5.5 points, 12 more pairs are run (seeds 14 to 25)" in PAGE
    assert (re_.SPREAD_MOST, list(re_.MORE_SEEDS)) == (0.055, list(range(14, 26)))
    assert "**B: 8 pairs, seeds 2 to 9.**" in PAGE
    assert "fewer than 8 % of arpo's groups" in PAGE
    assert re_.CHANGED_LEAST == 0.08
    assert "no rollout of its last 16 updates succeeds" in PAGE
    assert re_.LAST == 16
    assert "**Smallest effect of interest**: 5 points" in PAGE
    assert re_.SMALLEST == 0.05
    assert load_config(ROOT / "configs/replay.yaml").seeds == [*re_.SEEDS, *re_.MORE_SEEDS]
    both = [ROOT / "configs/replay.yaml", ROOT / "configs/ablations/collapse.yaml"]
    assert load_config(*both).seeds == list(re_.COLLAPSE_SEEDS)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Invented: 12 pairs of 20 updates, evaluated on what they were trained on and on other tasks."""
    made = make_study(
        tmp_path_factory.mktemp("replay"),
        tasks=3,
        trials=1,
        seeds=tuple(re_.SEEDS),
        screenshots=False,
        overrides={
            "training": {"tasks_per_step": 4, "stages": [STAGE | {"steps": 20}]},
            "evaluation": {"splits": ["train_32", "test_in"], "trials": 1},
        },
    )
    with mock.patch.object(statistics, "RESAMPLES", 199):  # of intervals that nothing here looks at
        evaluate(made)
    return made


def study_summary(study: Study) -> Summary:
    return Summary.model_validate_json((study.results / "summary.json").read_bytes())


class Changed:
    """The study's summary with other results, as a file."""

    def __init__(self, study: Study, folder: Path) -> None:
        self.summary = study_summary(study)
        self.file = folder / "summary.json"

    def gains(self, values: list[float]) -> Changed:
        """Success on the training tasks, arpo minus grpo, in the order of the seeds."""
        left = iter(values)
        for row in self.summary.differences:
            place = (row.arm, row.reference, row.split, row.protocol)
            if place == ("arpo", "grpo", "train_32", "hard") and row.seed is not None:
                row.difference = replace(row.difference, value=next(left))
        return self

    def trainings(self, arm: str, **values: Any) -> Changed:
        self.summary.trainings = [
            row.model_copy(update=values) if row.arm == arm else row for row in self.summary.trainings
        ]
        return self

    def write(self) -> Path:
        self.file.parent.mkdir(exist_ok=True)
        self.file.write_text(self.summary.model_dump_json())
        return self.file


GAINS = [0.09, 0.05, 0.02, 0.11, 0.06, 0.08, 0.03, 0.10, 0.07, 0.04, 0.12, 0.01]


def test_each_end_of_regime_a(study: Study, tmp_path: Path) -> None:
    """p counts twice: regime B has no p-value yet. Shifted by -6.5 points the mean is 0, SD 3.6 points."""
    expected = stats.ttest_1samp(GAINS, 0)
    a = re_.analyse(Changed(study, tmp_path).gains(GAINS).trainings("arpo", changed=0.1).write())["A"]
    primary = a["primary"]["success on train_32"]
    assert a["answer"] == ["replay helps here"]
    assert primary["p_value"] == pytest.approx(expected.pvalue)
    assert primary["p_holm"] == pytest.approx(2 * expected.pvalue)
    assert a["sd_of_first_pairs"] == pytest.approx(0.03606, abs=1e-5)
    assert a["twelve_more_pairs"] is False
    assert a["secondary"].keys() == {"area", "success on test_in"}
    for shift, answer in (
        (-0.065, ["no effect here"]),
        (-0.13, ["replay harms here"]),
        (-0.03, ["replay helps here"]),
        (-0.045, ["no effect here"]),  # the interval -0.3 to +4.3 holds 0
    ):
        changed = Changed(study, tmp_path).gains([gain + shift for gain in GAINS])
        assert re_.analyse(changed.trainings("arpo", changed=0.1).write())["A"]["answer"] == answer, shift
    assert re_.steady_answer(re_.over_pairs([0.3, -0.2, 0.1, -0.3, 0.2]), 1.0) == ["inconclusive"]


def test_holm_takes_both_regimes_together(study: Study, tmp_path: Path) -> None:
    """A with p = .03 alone: shown beside a B that is shown (6 against 0), not beside one that is not run."""
    weak = [0.002 + 0.8 * (gain - 0.065) + 0.0168 for gain in GAINS]
    p_value = stats.ttest_1samp(weak, 0).pvalue
    assert 0.025 < p_value < 0.05
    a = Changed(study, tmp_path / "a").gains(weak).trainings("arpo", changed=0.1).write()
    alone = re_.analyse(a)
    assert alone["A"]["answer"] == ["no effect here"]
    assert alone["B"] == {"answer": ["not run"]}
    dead = Changed(study, tmp_path / "b").trainings("arpo", changed=0.1, collapsed=False)
    b = dead.trainings("grpo", collapsed=True).write()
    both = re_.analyse(a, b)
    assert both["B"]["primary"]["collapse_p"] == pytest.approx(2 / 256)
    assert both["B"]["primary"]["p_holm"] == pytest.approx(4 / 256)
    assert both["B"]["answer"] == ["trainings with replay collapse less often here"]
    assert both["A"]["answer"] == ["replay helps here", "no effect here"]
    assert both["A"]["primary"]["success on train_32"]["p_holm"] == pytest.approx(p_value)
    assert both["B"]["success_where_neither_collapsed"] == {"pairs": 0, "by_seed": {}, "mean": None}


def test_a_wide_spread_asks_for_twelve_more_before_any_mean(study: Study, tmp_path: Path) -> None:
    wide = Changed(study, tmp_path).gains([2 * gain for gain in GAINS]).trainings("arpo", changed=0.1)
    a = re_.analyse(wide.write())["A"]
    assert (a["twelve_more_pairs"], a["pairs_planned"], a["answer"]) == (True, 24, ["not finished"])
    assert a["sd_of_first_pairs"] == pytest.approx(0.07211, abs=1e-5)
    assert a["unfinished"] == [f"seed {seed}: not a seed of this study" for seed in re_.MORE_SEEDS]
    assert not {"primary", "secondary"} & a.keys()
    assert a["so_far"]["success on train_32"]["mean"] == pytest.approx(2 * sum(GAINS) / 12)
    given_up = re_.analyse(wide.write(), without=list(re_.MORE_SEEDS))["A"]
    assert given_up["given_up"] == list(re_.MORE_SEEDS)
    assert given_up["answer"] == ["replay helps here"]


def test_a_pair_that_is_not_finished_withholds_the_answer(study: Study, tmp_path: Path) -> None:
    changed = Changed(study, tmp_path).gains(GAINS).trainings("arpo", changed=0.1)
    for row in changed.summary.trainings:
        if (row.arm, row.seed) == ("grpo", 5):
            row.updates = 7
    for row in changed.summary.rates:
        if (row.arm, row.seed, row.split) == ("arpo", 9, "train_32"):
            row.missing = 3
    a = re_.analyse(changed.write())["A"]
    assert a["unfinished"] == [
        "seed 5: grpo has 7 of 20 updates",
        "seed 9: 3 of 8 episodes of arpo on train_32",
    ]
    assert (a["answer"], a["sd_of_first_pairs"]) == (["not finished"], None)
    assert not {"primary", "so_far"} & a.keys()
    a = re_.analyse(changed.write(), without=[5, 9])["A"]
    assert (a["given_up"], len(a["pairs"])) == ([5, 9], 10)
    kept = [gain for seed, gain in zip(re_.SEEDS, GAINS, strict=True) if seed not in (5, 9)]
    assert a["primary"]["success on train_32"]["mean"] == pytest.approx(sum(kept) / 10)


def test_below_the_gate_there_is_no_answer(study: Study, tmp_path: Path) -> None:
    a = re_.analyse(Changed(study, tmp_path).gains(GAINS).trainings("arpo", changed=0.07).write())["A"]
    assert a["answer"] == ["no test of replay"]
    assert a["primary"]["success on train_32"]["p_holm"] == 1.0


def test_the_page_says_whether_it_is_a_test_of_replay(study: Study, tmp_path: Path) -> None:
    """Below the gate no card has another word; above it the area stands with its interval."""
    made = Changed(study, tmp_path)
    for effect in made.summary.replay_effects:
        effect.changed, effect.is_test = 0.041, False
    claims = compare(study.config, made.summary, PAPER_FILES)
    gates = [card.gate for card in first_screen.answer(study.config, made.summary, claims).cards]
    assert "No test of replay: replay changed 4.1 % of the groups of arpo, less than 8 %." in gates
    page = render(study).read_text("utf-8")
    (effect,) = study_summary(study).replay_effects
    assert effect.area is not None
    part = page[page.index('id="replay-effect-arpo-grpo"') :][:6000]
    assert f"{words.points(effect.area.low)} to {words.points(effect.area.high)}" in part
    assert "enough for a test of replay" in part
    assert "0 : 0" in part


def test_the_command_prints_what_the_rules_wrote(study: Study, tmp_path: Path, capsys: Any) -> None:
    """Straight from the files: metrics of 12 pairs, episodes, summary."""
    assert cli.main(["replay-study", str(study.results)]) == 0
    a = json.loads(capsys.readouterr().out)["A"]
    rows = [json.loads(line) for path in study.metrics if "/arpo/" in str(path) for line in path.open()]
    assert a["changed"] == pytest.approx(sum(row["swapped_groups"] for row in rows) / (4 * len(rows)))
    assert a["pairs"] == list(re_.SEEDS)
    assert (a["size"], a["synthetic"], a["desktops"].keys()) == ("nano", False, {"process"})
    other = tmp_path / "summary.json"
    other.write_text("{}")
    assert cli.main(["replay-study", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"{other} is no summary of this version; make it again")
    with pytest.raises(UserError, match="lacks trainings of arpo and grpo"):
        untrained = Changed(study, tmp_path)
        untrained.summary.trainings = []
        re_.analyse(untrained.write())


def test_the_secondary_studies_are_those_of_the_figure() -> None:
    for point in replay_points.POINTS:
        overlay = ROOT / f"configs/regimes/{point.study.removeprefix('replay_')}.yaml"
        config = load_config(ROOT / "configs/replay.yaml", *([overlay] if overlay.is_file() else []))
        assert (config.name, config.seeds) == (point.study, list(point.seeds))
        (stage,) = config.training.stages
        rollouts, tasks = config.training.rollouts_per_task, config.training.tasks_per_step
        assert rollouts == point.group
        assert stage.steps * tasks == point.visits * replay_points.TASKS


def test_the_toy_gains_by_replay_where_success_is_rare_only() -> None:
    rare, common = replay_points.POINTS[0], replace(replay_points.POINTS[0], base=0.9)

    def gain(point: replay_points.Point) -> float:
        ours, theirs = (replay_points.train(point, 2.0, replay=on)[0] for on in (True, False))
        return float((ours - theirs).mean())

    assert gain(rare) > 0.06
    assert abs(gain(common)) < 0.02
    assert replay_points.train(rare, 2.0, replay=False)[1] == 0, "nothing was replayed"


def test_an_unfinished_point_of_the_figure_is_not_looked_at(study: Study) -> None:
    summary = study_summary(study)
    point = replace(replay_points.POINTS[0], seeds=tuple(re_.SEEDS))
    found = replay_points.measured(point, summary)
    assert found is not None and found["low"] <= found["gain"] <= found["high"] and found["pairs"] == 12
    assert replay_points.measured(replace(point, seeds=(*re_.SEEDS, 14)), summary) is None
