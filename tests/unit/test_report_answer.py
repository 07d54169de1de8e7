"""The first screen's words: each rule on records made to meet it, and to miss it."""

from pathlib import Path
from typing import Any

import pytest

from arpo_replica.config.models import ElsewhereConfig, StudyConfig
from arpo_replica.evaluation.records import Claims, DifferenceRow, Interval, ReplayEffect, Summary
from arpo_replica.report.answer import answer, changes, forest, main_claims
from arpo_replica.report.views import arm_words, facts, question
from synthetic_study import evaluate, make_paper_study, make_study, render

NO_CLAIMS = Claims(study="s", size="nano", claims=[], inputs=[])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[StudyConfig, Summary]:
    study = make_study(tmp_path_factory.mktemp("study"), tasks=3, trials=1, steps=1, screenshots=False)
    return study.config, evaluate(study)


def difference(arm: str, reference: str, split: str, value: float, **more: Any) -> DifferenceRow:
    half = more.pop("half", 0.05)
    interval = Interval(value, value - half, value + half, "by hand")
    usual: dict[str, Any] = {
        "stage": "train_32", "reference_stage": "base" if reference == "base" else "train_32", "seed": None,
        "protocol": "hard", "tasks": 32, "dropped": [], "bootstrap": None, "p_value": 0.001, "trainings": 3,
    }  # fmt: skip
    return DifferenceRow(arm=arm, reference=reference, split=split, difference=interval, **{**usual, **more})


def study_of(
    made: tuple[StudyConfig, Summary], rows: list[DifferenceRow], share: float | None = 0.2
) -> Summary:
    """Three seeds; ``train`` holds training tasks, ``other`` none; replay changed ``share`` of the groups."""
    _, summary = made
    facts = next(iter(summary.splits.values()))
    splits = {
        "train": facts.model_copy(update={"tasks": 32, "tasks_trained_on": 32, "left_out": 0}),
        "other": facts.model_copy(update={"tasks": 20, "tasks_trained_on": 0, "left_out": 0}),
    }
    rates = [
        row.model_copy(
            update={
                "arm": arm, "split": split, "seed": None, "stage": "base" if arm == "base" else "train_32",
                "of_valid": Interval(value, 0.1, 0.9, "by hand"),
            }
        )
        for row in summary.rates[:1]
        for split in splits
        for arm, value in (("base", 0.56), ("grpo", 0.72), ("arpo", 0.77))
    ]  # fmt: skip
    effect = ReplayEffect(
        arm="arpo", reference="grpo", seeds=[0, 1, 2], left_out=[], changed=share,
        is_test=None if share is None else share >= 0.08, area_by_seed={}, area=None, area_p=None,
        collapsed=None, reference_collapsed=None, only_arm_collapsed=0, only_reference_collapsed=0,
        collapse_p=None,
    )  # fmt: skip
    return summary.model_copy(
        update={
            "splits": splits, "differences": rows, "rates": rates, "replay_effects": [effect], "not_run": [],
            "seeds": [0, 1, 2],
        }
    )  # fmt: skip


def said(
    made: tuple[StudyConfig, Summary], rows: list[DifferenceRow], **more: Any
) -> tuple[str, list[str], str]:
    found = answer(made[0], study_of(made, rows, **more), NO_CLAIMS)
    return " ".join(found.sentences), [card.answer for card in found.cards], found.scope


BOTH_LEARNT = [
    difference("grpo", "base", "train", 0.16),
    difference("arpo", "base", "train", 0.21),
    difference("arpo", "grpo", "train", 0.05, p_value=0.2, half=0.06),
    difference("arpo", "base", "other", -0.06, p_value=0.4, half=0.15),
]


def test_what_is_shown_and_what_is_not(made: tuple[StudyConfig, Summary]) -> None:
    text, cards, scope = said(made, BOTH_LEARNT)
    assert text == (
        "Replay’s effect is not settled. grpo (56 → 72 %) and arpo (56 → 77 %) learnt the 32 training tasks. "
        "No change on other tasks is shown."
    )
    assert cards == ["yes", "not settled", "not settled"]
    assert scope == "About 3 trainings of each arm: what another training would do takes 5 of them."


def test_an_interval_alone_announces_nothing(made: tuple[StudyConfig, Summary]) -> None:
    """The interval leaves out 0 and the exact test does not agree: no word."""
    rows = [difference("arpo", "base", "train", 0.15, p_value=0.0625, trainings=1)]
    text, cards, _ = said(made, rows)
    assert text == "Everything ran. 3 updates of one training are too few to show learning."
    assert cards == ["not settled", "not measured", "not measured"]
    # Nor does the test alone.
    assert said(made, [difference("arpo", "base", "train", 0.15, half=0.2)])[1][0] == "not settled"


@pytest.mark.parametrize("trained", [False, True])
def test_released_weights_are_a_question_of_their_own(
    made: tuple[StudyConfig, Summary], trained: bool
) -> None:
    """Their results are shown whatever the training seeds, and no sentence speaks of a training of theirs."""
    arms = made[0].arms if trained else {"base": {}}
    arms = {**arms, "arpo_released": {"weights": {"model": "nano", "epochs": 4}}}
    config = StudyConfig.model_validate({**made[0].model_dump(), "arms": arms})
    given = {"stage": "released", "seed": 0, "trainings": 0}
    rows = [difference("arpo_released", "base", "other", 0.12, **given)]
    found = answer(config, study_of(made, [*rows, *(BOTH_LEARNT if trained else [])]), NO_CLAIMS)
    assert found.cards[0].question == "Are the released weights better?"
    assert (found.cards[0].answer, len(found.cards)) == ("yes", 4 if trained else 1)
    assert found.sentences[0] == (
        "Success is higher: +12.0 percentage points on other, arpo_released against base."
    )
    assert len(found.sentences) == (4 if trained else 1)
    open_ = [difference("arpo_released", "base", "other", 0.01, p_value=0.8, **given)]
    nothing = answer(config, study_of(made, open_), NO_CLAIMS)
    assert nothing.sentences[0] == (
        "No difference between the released weights and the base policy is shown."
    )
    assert nothing.cards[0].answer == "not settled"
    assert question(config).startswith("Does replay" if trained else "Do released weights")
    assert ("arpo_released", "as released") in arm_words(config)
    summary = (
        made[1] if trained else made[1].model_copy(update={"trainings": [], "curves": [], "offline": []})
    )
    labels = [label for label, _, _ in facts(summary, {"git": {"commit": None, "dirty": None}})]
    assert any(label.startswith("training") for label in labels) is trained


def test_many_comparisons_are_adjusted(made: tuple[StudyConfig, Summary]) -> None:
    rows = [
        difference(arm, "base", split, 0.1, p_value=0.02)
        for arm in ("grpo", "arpo")
        for split in ("train", "other")
    ]
    assert {change.direction for change in changes(made[0], study_of(made, rows))} == {"open"}
    (alone,) = changes(made[0], study_of(made, rows[:1]))
    assert (alone.direction, alone.p_holm) == ("higher", 0.02)


def test_a_fall_and_a_gain_are_named(made: tuple[StudyConfig, Summary]) -> None:
    rows = [
        difference("grpo", "base", "train", -0.2),
        difference("arpo", "grpo", "train", 0.3),
        difference("grpo", "base", "other", -0.1),
        difference("arpo", "base", "other", 0.1),
    ]
    text, cards, _ = said(made, rows)
    assert "Replay raised success: +30.0 percentage points on training tasks, arpo against grpo." in text
    assert "Success rose: +10.0 percentage points on other, arpo against base." in text
    assert "Success fell: −10.0 percentage points on other, grpo against base." in text
    assert "grpo (56 → 72 %) got worse on the 32 training tasks." in text
    assert cards == ["it fell", "yes", "up and down"]


def test_from_five_trainings_on_the_training_is_the_unit(made: tuple[StudyConfig, Summary]) -> None:
    over = Interval(0.1, 0.02, 0.18, "by hand", "training seeds")
    wide = Interval(0.1, -0.02, 0.22, "by hand", "training seeds")
    shared = {"trainings": 6, "training_degrees": 5.0, "p_value": 0.9}
    rows = [difference("arpo", "base", "train", 0.3, over_trainings=over, training_error=0.03, **shared)]
    _, cards, scope = said(made, rows)
    assert cards[0] == "yes"
    assert scope == "About new trainings: 6 of each arm were run."
    open_rows = [
        difference("arpo", "base", "train", 0.3, over_trainings=wide, training_error=0.047, **shared)
    ]
    assert said(made, open_rows)[0] == "Everything ran. Neither learning nor an effect of replay is shown."


def test_replay_that_hardly_fired_was_not_tested(made: tuple[StudyConfig, Summary]) -> None:
    text, cards, _ = said(made, BOTH_LEARNT, share=0.04)
    assert text.startswith("Replay was not tested: it hardly ever fired.")
    assert cards[1] == "not tested"
    assert said(made, [])[0] == "No two arms have been compared yet."


def test_earlier_stages_and_the_other_protocol_are_not_on_the_first_screen(
    made: tuple[StudyConfig, Summary],
) -> None:
    rows = [
        difference("arpo", "base", "train", 0.2, stage="train_4"),
        difference("arpo", "base", "train", 0.2, protocol="standard"),
        difference("arpo", "base", "train", 0.2, seed=1),
    ]
    assert changes(made[0], study_of(made, rows)) == []
    drawn = forest(made[0], study_of(made, rows))
    assert [(part["title"], [line["arm"] for line in part["lines"]]) for part in drawn] == [
        ("training tasks", ["base", "grpo", "arpo"]),
        ("other", ["base", "grpo", "arpo"]),
    ]


def test_a_judged_study_counts_its_verdicts(tmp_path: Path) -> None:
    study = make_paper_study(tmp_path)
    summary = Summary.model_validate_json((study.results / "summary.json").read_bytes())
    claims = Claims.model_validate_json((study.results / "claims.json").read_bytes())
    judged = [claim for claim in claims.claims if claim.verdict != "not run"]
    text = answer(study.config, summary, claims).sentences
    assert text[0].startswith(f"Of {len(judged)} claims that this study may judge: ")
    (gain,) = [claim for claim in claims.claims if claim.id == "table1_gain_over_grpo"]
    assert text[1].endswith(f"percentage points, published +3.9: {gain.verdict}.")
    assert [row["claim"].id for row in main_claims(claims.claims)][:2] == [
        "table1_base_standard",
        "table1_grpo_standard",
    ]
    assert main_claims([claim.model_copy(update={"measured": None}) for claim in claims.claims]) == []


def test_what_others_report_stands_beside_ours_or_beside_not_run(tmp_path: Path) -> None:
    study = make_study(tmp_path, tasks=3, trials=1, steps=1, screenshots=False)
    evaluate(study)
    split = study.config.evaluation.splits[0]
    other = next(name for name in study.config.tasks.splits if name not in study.config.evaluation.splits)
    study.config.report.elsewhere = [
        ElsewhereConfig(arm="arpo", split=name, successes=1, episodes=5, minutes=4.5, source="<b>them</b>")
        for name in (split, other)
    ]
    page = render(study).read_text()
    table = page.partition('id="elsewhere"')[2].partition("</table>")[0]
    ours, none = table.partition("<tbody>")[2].split("</tr>")[:2]
    assert "20.0" in ours and "0.5 to 71.6" in ours and "4.5" in ours
    assert "not run" not in ours and "hard" in ours and "standard" in ours
    assert none.count("not run") == 2 and other in none
    assert "<b>them" not in table
