"""When a claim of the paper may be judged (by a study that ran what it is about), and how it then is."""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import pytest

from arpo_replica.base.errors import UserError
from arpo_replica.config.models import StudyConfig
from arpo_replica.evaluation import statistics
from arpo_replica.evaluation.claims import compare
from arpo_replica.evaluation.records import ClaimResult, Claims, Curve, Interval, LeftOutRow, Summary
from arpo_replica.evaluation.scores import read_scores
from arpo_replica.evaluation.summary import summarise
from arpo_replica.report.publish import publish_report
from synthetic_study import PAPER, PAPER_FILES, RATES, make_paper_study, published_files, render
from synthetic_study import Study as Made

Study = tuple[StudyConfig, Summary]
ARPO = "table1_arpo_standard"
GAIN = "table1_gain_over_grpo"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Invented: the paper's config and recipe, 369 tasks, five trainings, two trials, Table 1 as printed."""
    return make_paper_study(
        tmp_path_factory.mktemp("paper"), trials=2, rates={"osworld_369": RATES["osworld_369"]}
    )


@pytest.fixture(scope="module")
def study(made: Made) -> Study:
    return made.config, Summary.model_validate_json((made.results / "summary.json").read_bytes())


def all_of(study: Study) -> dict[str, ClaimResult]:
    return {claim.id: claim for claim in compare(*study, PAPER_FILES).claims}


def judged(study: Study, name: str = ARPO) -> ClaimResult:
    return all_of(study)[name]


def changed(study: Study, changes: dict[str, Any]) -> Study:
    """The same study with other config values, e.g. ``training.stages.0.steps``."""
    raw = study[0].model_dump(mode="json")
    for key, value in changes.items():
        *path, last = key.split(".")
        place = raw
        for part in path:
            place = place[int(part)] if isinstance(place, list) else place.setdefault(part, {})
        place[last] = value
    return StudyConfig.model_validate(raw), study[1]


def estimated(study: Study, name: str, value: float, error: float, left_out: int = 0) -> Study:
    """The same with another result of one claim of Table 1, standard protocol, over five trainings."""
    reference = {ARPO: None, GAIN: "grpo"}[name]
    summary = study[1].model_copy(deep=True)
    rows = summary.rates if reference is None else summary.differences
    for row in rows:
        if (row.arm, row.protocol, row.split, row.seed) != ("arpo", "standard", "osworld_369", None):
            continue
        if reference is None or row.reference == reference:
            row.over_trainings = Interval(
                value, value, value, "Student's t over 5 trainings", "training seeds"
            )
            row.training_error, row.training_degrees = error, 4.0
            if reference is None:
                row.left_out = 10 * left_out
                row.valid = row.expected - row.left_out
                share = (369 - left_out) / 369
                row.of_all_low, row.of_all_high = value * share, value * share + 1 - share
            else:
                row.tasks = 369 - left_out
    out = {"split": "osworld_369", "tasks": 369, "because": "b", "detail": "d", "path": "list.yaml"}
    summary.left_out = [LeftOutRow(task=f"os/{i}", **out) for i in range(left_out)]
    return study[0], summary


def test_the_right_study_gets_verdicts(study: Study) -> None:
    found = all_of(study)
    assert {
        name: found[name].verdict for name in ("table1_base_standard", ARPO, "table1_gain_over_base")
    } == {
        "table1_base_standard": "within prediction interval",
        ARPO: "within prediction interval",
        "table1_gain_over_base": "same direction",
    }
    gain = found["table1_gain_over_base"]
    assert (gain.trainings, gain.fit) == (5, "within")
    assert gain.measured is not None
    assert gain.measured.about == "training seeds"
    assert set(gain.p_values) == {"same", "opposite", "outside", "equal"}
    assert gain.sources == [] or gain.sources
    assert found[ARPO].contradictions == ["arpo_on_osworld", "rates_that_are_no_counts"]
    assert found[ARPO].mean_score is not None
    assert found[ARPO].measured is not None
    assert found[ARPO].mean_score > found[ARPO].measured.value  # some failures have a score of 0.4
    assert found["table1_base_standard"].trainings == 0


def test_tasks_that_the_untrained_policy_ran_once(made: Made) -> None:
    """Their noise comes from the trainings, far below the bound of independent tasks: with one trial about
    sqrt(2) times that of two, with a single task run once a little more than that of two."""
    scores = read_scores(made.results / "scores.parquet")
    scores = scores[scores["arm"].isin(["base", "arpo"])]
    base = scores["arm"] == "base"

    def shared(table: pd.DataFrame) -> float:
        with mock.patch.object(statistics, "RESAMPLES", 99):
            rows = summarise(made.config, table, [], [], []).differences
        found = {row.seed: row for row in rows if (row.arm, row.protocol) == ("arpo", "hard")}
        error = found.pop(None).training_error
        assert error is not None
        return math.sqrt(error**2 - np.var([row.difference.value for row in found.values()], ddof=1) / 5)

    twice, once = shared(scores), shared(scores[~base | (scores["trial"] == 0)])
    rate = scores[base]["success_hard"].mean()
    assert 1.25 * twice < once < 0.8 * math.sqrt(rate * (1 - rate) / 369)
    assert twice < shared(scores.drop(index=scores.index[base][0])) < 1.3 * twice


def test_it_is_marked_as_invented_all_the_same(study: Study) -> None:
    found = compare(*study, PAPER_FILES)
    assert found.mark.startswith("synthetic: invented")


def test_a_study_that_did_not_run_arpo_is_refused(study: Study) -> None:
    """Everything that once passed: no replay, a learning rate of nothing, one step, greedy, a low bar."""
    broken = {
        "arms.arpo": {"replay": {"enabled": False}},
        "training.learning_rate": 1e-12,
        "training.stages.0.steps": 1,
        "training.format_weight": 0.0,
        "training.tasks_per_step": 1,
        "training.minibatch_tasks": 1,
        "training.rollouts_per_task": 2,
        "evaluation.temperature": 0.3,
        "evaluation.success_above": 0.01,
        "policy.max_images": 1,
    }
    found = all_of(changed(study, broken))
    for name in (ARPO, GAIN, "table1_gain_over_base", "figure3_replay", "table1_base_standard"):
        assert (found[name].verdict, found[name].measured, found[name].gap) == ("not run", None, None), name
    assert {claim.verdict for claim in found.values()} == {"not run"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"size": "2b"}, "size mark “2b”"),
        ({"policy.model": "models/UI-TARS-2B-SFT"}, "policy.model is “UI-TARS-2B-SFT”"),
        ({"policy.max_steps": 50}, "allows 50 steps"),
        ({"evaluation.splits": ["arpo_128"]}, "osworld_369 is not evaluated"),
        ({"evaluation.temperature": 0.3}, "evaluation.temperature = 0.3; the claim is about 0.6 or 0.0"),
        ({"evaluation.success_above": 0.01}, "evaluation.success_above = 0.01"),
        ({"arms.arpo": {"replay": {"enabled": False}}}, "The arm arpo has training.replay.enabled = off"),
        ({"training.learning_rate": 1e-12}, "training.learning_rate = 1e-12; the recipe paper has 1e-06"),
        ({"training.format_weight": 0.0}, "training.format_weight = 0.0"),
        ({"training.lora": {"rank": 8, "alpha": 8}}, "training.lora = rank=8 alpha=8 targets='all'"),
        ({"training.clip_high": 0.2}, "training.clip_high = 0.2"),
        ({"training.replay.capacity_per_task": 2}, "training.replay.capacity_per_task = 2"),
        ({"training.stages.0.steps": 1}, "training.stages.-1.steps = 1; the recipe paper has 60"),
        ({"training.stages.0.split": "osworld_369"}, "training ends on osworld_369"),
        ({"policy.max_images": 1}, "policy.max_images = 1"),
        ({"arms.arpo": {"format_weight": 0.5}}, "The arm arpo has training.format_weight = 0.5"),
    ],
)
def test_any_other_study_is_not_run_and_the_first_difference_is_named(
    study: Study, change: dict[str, Any], words: str
) -> None:
    claim = judged(changed(study, change))
    assert (claim.verdict, claim.measured, claim.gap) == ("not run", None, None)
    assert words in claim.reason


def test_either_recipe_counts_but_no_mixture(study: Study) -> None:
    """The paper's text and the released code are two recipes; half of each is neither."""
    code = {
        "training.format_weight": 0.5,
        "training.replay.replaced_index": "first",
        "training.tasks_per_step": 16,
        "training.minibatch_tasks": 8,
    }
    steps = {"training.stages.0.steps": 120}
    assert "has 60 of 120 updates on record" in judged(changed(study, code | steps)).reason
    assert (
        "training.stages.-1.steps = 60; the recipe released_code has 120"
        in judged(changed(study, code)).reason
    )


def test_what_the_untrained_policy_saw_counts_but_no_training(study: Study) -> None:
    other = changed(study, {"training.learning_rate": 1e-12, "training.stages.0.split": "osworld_369"})
    assert judged(other, "table1_base_standard").verdict != "not run"
    assert judged(changed(study, {"policy.max_images": 1}), "table1_base_standard").verdict == "not run"


def test_time_and_memory_are_nothing_that_a_claim_asks_for(study: Study) -> None:
    other = changed(study, {"desktop.count": 8, "training.micro_batch": 4, "training.offload": False})
    assert judged(other).verdict == judged(study).verdict != "not run"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.gates.clear(), "has no report of its gates"),
        (lambda s: setattr(s.gates[-1], "passed", False), "did not pass its gates"),
        (
            lambda s: [setattr(row, "fired", 0) for row in s.replay if row.seed == 3],
            "seed 3, stage train_128, never",
        ),
        (lambda s: s.curves.clear(), "has 0 of 60 updates on record"),
    ],
)
def test_a_training_must_have_passed_its_gates_and_rescued_something(
    study: Study, change: Any, words: str
) -> None:
    summary = study[1].model_copy(deep=True)
    change(summary)
    claim = judged((study[0], summary))
    assert claim.verdict == "not run"
    assert words in claim.reason


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"desktops": {"container": 10}}, "desktops are “container”"),
        ({"desktops": {"osworld": 9, "osworld_unpinned": 1}}, "desktops are “osworld_unpinned”"),
    ],
)
def test_desktops_are_what_the_episodes_say(study: Study, change: dict[str, Any], words: str) -> None:
    claim = judged((study[0], study[1].model_copy(update=change)))
    assert claim.verdict == "not run"
    assert words in claim.reason


@pytest.mark.parametrize(
    ("change", "words"), [({"tasks": 361}, "has 361 tasks"), ({"list_sha256": "0" * 64}, "not the committed")]
)
def test_another_list_of_that_name_is_not_run(study: Study, change: dict[str, Any], words: str) -> None:
    facts = study[1].splits["osworld_369"].model_copy(update=change)
    splits = {**study[1].splits, "osworld_369": facts}
    claim = judged((study[0], study[1].model_copy(update={"splits": splits})))
    assert claim.verdict == "not run"
    assert words in claim.reason


def test_what_is_about_other_studies_is_not_run(study: Study) -> None:
    found = all_of(study)
    assert "UI-TARS-7B-DPO" in found["table1_dpo_base_standard"].reason
    assert "unconfirmed" in found["figure4_base_in"].reason
    assert "training on arpo_32" in found["figure1b_arpo"].reason
    assert found["figure7_8"].reason.startswith("The throughput was not measured")


def test_released_weights_count_as_they_are(study: Study) -> None:
    """Weights that nobody trained here: judged by their runs, without recipe, gates or trainings."""
    summary = study[1].model_copy(deep=True)
    for model in summary.models:
        model.parent, model.step = None, 0
    summary.gates.clear()
    released = (study[0], summary)
    assert (judged(released).verdict, judged(released).trainings) == ("within prediction interval", 0)
    assert judged(released, "table1_dpo_arpo_standard").verdict == "not run"


def released(study: Study, weights: Any, **more: Any) -> Study:
    """The same results, but ARPO's are of weights that the config gives to an arm."""
    raw = study[1].model_dump(mode="json")
    for row in (*raw["rates"], *raw["differences"], *raw["models"]):
        if row["arm"] == "arpo":
            row |= {"arm": "arpo_released", "stage": "released"}
    arms = {"base": {}, "grpo": {}, "arpo_released": {"weights": weights}}
    config, _ = changed(study, {"arms": arms, **more})
    return config, Summary.model_validate(raw)


def test_an_arm_with_the_authors_weights_is_judged_as_released(study: Study) -> None:
    given = released(study, "ARPO_UITARS1.5_7B")
    claim = judged(given)
    assert (claim.verdict, claim.trainings) == ("within prediction interval", 0)
    assert "arpo_released" in claim.how
    assert claim.reach is not None and claim.reach.trainings == 0, "its power is that of trials"
    gain = judged(given, "table1_gain_over_base")
    assert (gain.verdict, gain.trainings) == ("same direction", 0)
    assert judged(given, "figure3_replay_on").verdict == "not run"


@pytest.mark.parametrize(
    ("weights", "more", "words"),
    [
        (
            "/models/other",
            {},
            "The weights of arpo_released are “other”; the claim is about ARPO_UITARS1.5_7B.",
        ),
        ({"endpoint": "http://127.0.0.1:9", "served_model": "ARPO"}, {}, "are “served”; the claim is about"),
        ("ARPO_UITARS1.5_7B", {"size": "7b_fp8", "serving.quantization": "fp8"}, "the size mark “7b_fp8”"),
    ],
)
def test_other_or_reduced_weights_are_never_judged(
    study: Study, weights: Any, more: dict[str, Any], words: str
) -> None:
    claim = judged(released(study, weights, **more))
    assert claim.verdict == "not run"
    assert words in claim.reason


# --- the page ----------------------------------------------------------------------------------------------


def test_a_judged_page_of_invented_numbers_is_marked_and_never_published(made: Made, tmp_path: Path) -> None:
    """Verdicts are seen at work; every number of ours carries the mark; no hidden mark lets it out."""
    page = render(made)
    text = page.read_text("utf-8")
    assert '<span class="verdict verdict-same-direction">' in text
    assert "Nothing on this page was measured" in text
    numbers = re.findall(r'<td class="num measured"[^>]*>(.*?)</td>', text, re.DOTALL)
    assert sum("not run" not in cell for cell in numbers) > 10
    assert all("invented" in cell for cell in numbers if "not run" not in cell)
    results = tmp_path / "results"
    shutil.copytree(made.results, results)
    for hidden in (False, True):
        if hidden:
            path = results / "summary.json"
            path.write_text(path.read_text().replace('"synthetic": true', '"synthetic": false'))
        with pytest.raises(UserError, match="invented data are never published"):
            publish_report(
                made.config, published_files(results, page), tmp_path / "out", tmp_path / "out.zip"
            )
        assert not (tmp_path / "out").exists()
        assert not (tmp_path / "out.zip").exists()


# --- the words ---------------------------------------------------------------------------------------------


def test_fewer_than_five_trainings_give_no_verdict(study: Study) -> None:
    summary = study[1].model_copy(deep=True)
    for row in [*summary.rates, *summary.differences]:
        if row.trainings:
            row.trainings, row.over_trainings, row.training_error = 4, None, None
    found = all_of((study[0], summary))
    assert (found[ARPO].verdict, found[GAIN].verdict) == ("too few trainings", "too few trainings")
    assert "4 trainings (n = 4)" in found[ARPO].reason
    assert found[ARPO].measured is not None
    before, after = all_of(study)["table1_base_standard"], found["table1_base_standard"]
    assert after.p_values["equal"] >= before.p_values["equal"], "the family keeps its size"
    assert after.verdict == before.verdict == "within prediction interval"


@pytest.mark.parametrize(
    ("value", "error", "verdict", "fit"),
    [
        (0.300, 0.005, "within prediction interval", "within"),
        (0.420, 0.005, "contradicted", "outside"),
        (0.200, 0.005, "contradicted", "outside"),
        (0.310, 0.060, "inconclusive", "within"),  # 16 points on either side: tells nothing
    ],
)
def test_a_rate_is_judged_against_the_printed_value(
    study: Study, value: float, error: float, verdict: str, fit: str
) -> None:
    """29.9 % as printed, no count rebuilt; its noise 2.38 points at most; margin 5."""
    claim = judged(estimated(study, ARPO, value, error))
    assert (claim.verdict, claim.fit) == (verdict, fit), claim.reason
    assert claim.gap is not None
    assert claim.gap.value == pytest.approx(100 * value - 29.9)


@pytest.mark.parametrize(
    ("value", "error", "verdict"),
    [
        (0.039, 0.006, "same direction"),
        (0.039, 0.020, "inconclusive"),
        (-0.060, 0.006, "contradicted"),
        (0.0, 0.006, "inconclusive"),  # 3.9 points lower than published, whose own noise is 3.3
    ],
)
def test_a_difference_is_first_asked_for_its_sign(
    study: Study, value: float, error: float, verdict: str
) -> None:
    assert judged(estimated(study, GAIN, value, error), GAIN).verdict == verdict


def test_p_values_are_adjusted_over_the_family(study: Study) -> None:
    """Six differences of one model in Table 1: the smallest p-value is multiplied by six at most."""
    lone = estimated(study, GAIN, 0.03, 0.0095)  # t = 3.16 with 4 degrees: p = .034 alone
    claim = judged(lone, GAIN)
    assert claim.p_values["same"] > 0.0341
    assert claim.verdict == "inconclusive"


@pytest.mark.parametrize(
    ("name", "value", "count", "verdict"),
    [
        (ARPO, 0.300, 12, "within prediction interval"),
        (ARPO, 0.230, 0, "contradicted"),
        (ARPO, 0.230, 12, "within prediction interval"),  # 22.3 to 25.5 % of all, in -12.5 to +0.4
        (GAIN, 0.060, 0, "same direction"),
        (GAIN, 0.060, 12, "inconclusive"),  # +2.6 to +9.1 points of all, error 0.6, six claims
    ],
)
def test_left_out_tasks_count_as_lost_and_as_gained(
    study: Study, name: str, value: float, count: int, verdict: str
) -> None:
    claim = judged(estimated(study, name, value, 0.006, count), name)
    assert claim.verdict == verdict, (claim.reason, claim.p_values)
    assert ("(tasks.leave_out)" in claim.reason) == bool(count)


def test_what_training_did_without_is_said(study: Study) -> None:
    summary = study[1].model_copy(deep=True)
    out = {"split": "arpo_128", "tasks": 128, "because": "b", "detail": "d", "path": "list.yaml"}
    summary.left_out = [LeftOutRow(task="os/1", **out)]
    words = "Training left out 1 of the 128 tasks of arpo_128 (tasks.leave_out)."
    assert words in judged((study[0], summary)).reason
    assert words not in judged((study[0], summary), "table1_base_standard").reason


# --- curves ------------------------------------------------------------------------------------------------


def with_curves(study: Study, reward: float, apart: float = 0.002, left_out: int = 0) -> Study:
    """Five trainings of arpo whose reward is the same at every update."""
    summary = study[1].model_copy(deep=True)
    out = {"split": "arpo_128", "tasks": 128, "because": "b", "detail": "d", "path": "list.yaml"}
    summary.left_out = [LeftOutRow(task=f"os/{i}", **out) for i in range(left_out)]

    def flat(curve: Curve) -> None:
        for point in curve.points:
            point.reward_before = reward + apart * curve.seed
            point.reward_after = reward + 0.1 + apart * curve.seed

    for curve in summary.curves:
        flat(curve)
    return study[0], summary


@pytest.mark.parametrize(
    ("reward", "count", "verdict"),
    [
        (0.75, 0, "equivalent"),
        (0.75, 1, "equivalent"),  # one task of 128 moves a mean reward by 0.016 at most
        (0.75, 4, "inconclusive"),  # four by 0.063: more than the margin
        (0.85, 1, "contradicted"),
        (0.85, 4, "inconclusive"),
    ],
)
def test_a_curve_is_judged_by_its_trainings(study: Study, reward: float, count: int, verdict: str) -> None:
    found = all_of(with_curves(study, reward, left_out=count))
    assert found["figure3_replay_on"].verdict == verdict, found["figure3_replay_on"].reason
    assert ("could move it by" in found["figure3_replay_on"].reason) == bool(count)
    after = found["figure3_replay_on_after"]
    assert after.gap is not None
    assert after.gap.value == pytest.approx(reward + 0.104 - 0.75)


def test_trainings_that_do_not_differ_show_no_noise(study: Study) -> None:
    claim = judged(with_curves(study, 0.75, apart=0.0), "figure3_replay_on")
    assert (claim.verdict, claim.gap) == ("inconclusive", None)
    assert "no noise was seen" in claim.reason


def test_every_claim_on_a_trained_arm_names_its_recipe() -> None:
    from arpo_replica.evaluation.published import load_claims

    for claim in load_claims(PAPER / "claims.yaml", PAPER / "results.yaml")[0]:
        if claim.measure is not None and claim.measure.kind != "throughput":
            assert claim.needs.recipe == ["paper", "released_code"], claim.id
            assert claim.needs.settings["evaluation.temperature"] == [0.6, 0.0]


def test_what_is_written_is_what_is_read(study: Study, tmp_path: Path) -> None:
    found = compare(*study, PAPER_FILES)
    assert Claims.model_validate_json(found.model_dump_json()) == found
