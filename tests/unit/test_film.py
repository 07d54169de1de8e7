"""Side by side: where episodes part, and the animation of them."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from arpo_replica.actions.types import Action, Click, Finished, Hotkey, Scroll
from arpo_replica.cli import main
from arpo_replica.evaluation.scores import read_scores
from arpo_replica.report.film import MAGENTA, build_films, first_difference, first_films
from arpo_replica.report.gallery import END, Shot, StepView, build_gallery
from arpo_replica.report.matrix import build_matrix
from synthetic_study import Study, evaluate, make_study

SHOT = Shot("s", 200, 100)
"""The ring has a radius of 6.4 pixels on it."""


def frames(*actions: Action | None) -> list[StepView]:
    steps = [StepView("Step", "", "", "", "", SHOT, None, actions=(action,)) for action in actions]
    return [*steps, StepView(END, "", "", "", "", SHOT, None)]


@pytest.mark.parametrize(
    ("one", "other", "place"),
    [
        ((Click(10, 10), Finished("a")), (Click(16, 4), Finished("b")), None),  # within the ring; final words
        ((Click(10, 10), Finished()), (Click(17, 10), Finished()), 0),
        ((Click(10, 10), Click(50, 50)), (Click(10, 10), Scroll(50, 50, "down")), 1),
        ((Scroll(9, 9, "up"),), (Scroll(9, 9, "down"),), 0),
        ((Hotkey(("ctrl", "a")),), (Hotkey(("ctrl", "b")),), 0),
        ((Click(10, 10),), (Click(10, 10), Click(50, 50)), 1),  # one goes on where the other has ended
        ((None, Finished()), (None, Finished()), None),
        ((None,), (Finished(),), 0),
        ((), (Click(1, 1),), None),  # an environment failure before the first step parts from nothing
    ],
)
def test_first_difference(one: Any, other: Any, place: int | None) -> None:
    assert first_difference(frames(*one), frames(*other)) == place
    assert first_difference(frames(*other), frames(*one)) == place


def test_several_actions_of_one_reply_are_one_frame() -> None:
    both = [StepView("Step", "", "", "", "", SHOT, None, actions=(Click(1, 1), Finished()))]
    assert first_difference(both, frames(Click(1, 1))[:1]) == 0
    assert first_difference(both, both) is None


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    chosen = {"base": "truncated", "grpo": "env_error", "arpo": "success"}
    return make_study(
        tmp_path_factory.mktemp("film"), tasks=2, trials=1, steps=1, choose=lambda arm, *_: chosen[arm]
    )


def folder(study: Study, arm: str, task: int = 0) -> Path:
    return next(study.episodes.glob(f"{arm}/seed_0/stage_*/test_in/trial_0/*_test_in_{task}"))


@pytest.mark.parametrize("ending", ["webp", "gif"])
def test_animation_has_a_frame_a_step_and_marks_what_was_touched(
    study: Study, tmp_path: Path, ending: str
) -> None:
    out = tmp_path / f"new/film.{ending}"
    episodes = [folder(study, "base"), folder(study, "arpo")]
    command = ["export-episode", *map(str, episodes), "--out", str(out), "--width", "168", "--seconds", "0.5"]
    assert main(command) == 0
    with Image.open(out) as film:
        assert film.format == ending.upper()
        assert film.size[0] == 3 * 16 + 2 * 168
        assert film.n_frames == 4 + 1  # type: ignore[attr-defined]  # most steps of the two, and the end
        durations = []
        for place in range(5):
            film.seek(place)
            film.load()
            durations.append(film.info["duration"])
            if place == 0:
                first = film.convert("RGB")
    assert durations == [500] * 4 + [1500]
    red, green, blue = (int(MAGENTA[at : at + 2], 16) for at in (1, 3, 5))
    # A saved picture has its colours nearly.
    far = np.abs(np.asarray(first, dtype=int) - (red, green, blue)).sum(axis=2)
    near = np.nonzero((far < 60).any(axis=0))[0].tolist()
    assert min(near) < 168 < max(near)  # both screens have their mark


@pytest.mark.parametrize(
    ("choose", "out", "words"),
    [
        (lambda s: [folder(s, "base")], "film.mp4", "the ending says the format"),
        (lambda s: [folder(s, "base"), folder(s, "arpo", 1)], "film.gif", "of different tasks"),
        (lambda s: [s.episodes], "film.gif", "holds no episode that can be read"),
        (lambda s: [folder(s, "grpo")], "film.gif", "holds no screenshot"),
    ],
)
def test_what_cannot_be_shown_is_refused_in_one_sentence(
    study: Study, tmp_path: Path, caplog: pytest.LogCaptureFixture, choose: Any, out: str, words: str
) -> None:
    assert main(["export-episode", *map(str, choose(study)), "--out", str(tmp_path / out)]) == 2
    assert words in caplog.text
    assert not (tmp_path / out).exists()


def test_hostile_files_of_an_episode_are_left_out(study: Study, tmp_path: Path) -> None:
    """A screenshot that is none, and a name that leads out of the folder."""
    copy = tmp_path / "episode"
    shutil.copytree(folder(study, "arpo"), copy)
    (copy / "step_000.webp").write_bytes(b"no image")
    text = (copy / "episode.json").read_text()
    (copy / "episode.json").write_text(text.replace('"step_', '"../../../../etc/step_'))
    assert main(["export-episode", str(copy), "--out", str(tmp_path / "film.gif")]) == 0
    with Image.open(tmp_path / "film.gif") as film:
        assert film.n_frames == len(list(copy.glob("step_*.webp")))  # type: ignore[attr-defined]


def test_films_pair_the_arms_and_flips_come_first(tmp_path: Path) -> None:
    """Task 0 is gained in trial 1 only, task 1 lost in both; the untrained policy has one seed for both."""

    def choose(arm: str, task: str, trial: int) -> str:
        if task.endswith("_0"):
            return "success" if arm == "grpo" and trial else "failure"
        return "failure" if arm == "grpo" and task.endswith("_1") else "success"

    study = make_study(
        tmp_path, tasks=3, trials=2, steps=1, arms=("base", "grpo"), seeds=(0, 1), choose=choose,
        overrides={"evaluation": {"splits": ["test_in"], "trials": 2}},
    )  # fmt: skip
    evaluate(study)
    scores = read_scores(study.results / "scores.parquet")
    episodes = build_gallery(scores, study.episodes, budget_mb=1, width=400).episodes
    parts = build_matrix(episodes, ["base", "grpo"])
    films = build_films(parts)
    assert len(films) == 3 * 2 * 2
    for film in films:
        (base, unmarked), (grpo, _) = film.reels.values()
        same = ("split", "task_id", "trial")
        assert unmarked is None
        assert [base.row[name] for name in same] == [grpo.row[name] for name in same]
        assert (base.row["arm"], grpo.row["arm"], base.row["seed"]) == ("base", "grpo", 0)
        assert grpo.film is film
    # Every episode of an arm with seeds is in one film.
    assert len({film.reels["grpo", "train_32"][0].id for film in films}) == len(films)
    by_id = {film.id: film for film in films}
    rows = parts[0].domains[0].rows
    cells = {row.task_id[-1]: row.cells[1] for row in rows}
    assert [cells[name].flip for name in "012"] == ["mixed", "lost", "same"]
    shown = by_id[cells["1"].film]
    assert shown.shows_change(("grpo", "train_32"))
    assert not shown.shows_change(("base", "base"))
    assert cells["2"].film == ""
    first = first_films(films, 2)
    assert [film.row["task_id"][-1] for film in first] == ["1", "0"]
    assert first[0].flipped
    assert not first[1].flipped
