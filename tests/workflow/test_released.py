"""Studies of weights that are given: the nano twin of the noisy Chrome tasks, from nothing to its page, and
those of the other studies with its two policies."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from conftest import Workspace, make_checkout

pytestmark = [pytest.mark.study, pytest.mark.timeout(1800)]
CONFIGS = ("chrome_18_noisy", "twins/nano", "twins/noisy")
NAME = "chrome_18_noisy_nano"
SMALLER = {"nano": {"demonstrations": 100}}


def options(
    root: Path, name: str = "smaller", overlay: dict | None = None, configs: tuple[str, ...] = CONFIGS
) -> list[str]:
    """The twin with a file of ours laid over it."""
    path = root / f"configs/{name}.yaml"
    path.write_text(json.dumps(overlay or SMALLER))
    return ["--configfile", *(f"configs/{part}.yaml" for part in (*configs, name))]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = make_checkout(tmp_path_factory.mktemp("released"))
    done = workspace.run("--cores", "2", *options(workspace.root), timeout=1500)
    assert done.returncode == 0, done.stderr[-4000:]
    return workspace


def read(study: Workspace, name: str) -> dict:
    return json.loads((study.root / f"results/{NAME}/{name}").read_text())


def check_scores(study: Workspace, name: str, *splits: str) -> None:
    """Both arms did all ten tasks of these splits."""
    scores = pd.read_parquet(study.root / f"results/{name}/scores.parquet")
    assert {*zip(scores.arm, scores.stage, strict=True)} == {("base", "base"), ("arpo_released", "released")}
    assert scores.groupby(["arm", "split"]).size().to_dict() == {
        (arm, split): 10 for arm in ("base", "arpo_released") for split in splits
    }
    assert "env_error" not in set(scores.outcome)


def test_both_arms_are_measured_on_clean_and_noisy_tasks(study: Workspace) -> None:
    check_scores(study, NAME, "clean", "noisy")


def test_the_given_weights_are_others_and_say_where_they_come_from(study: Workspace) -> None:
    summary = read(study, "summary.json")
    models = {model["arm"]: model for model in summary["models"]}
    assert models["base"]["identity"] != models["arpo_released"]["identity"]
    assert [model["parent"] for model in models.values()] == [None, None]
    assert all(model["origin"] for model in models.values())
    compared = {(row["arm"], row["reference"], row["split"]) for row in summary["differences"]}
    assert compared == {("arpo_released", "base", split) for split in ("clean", "noisy")}
    assert {row["trainings"] for row in (*summary["rates"], *summary["differences"])} == {0}
    assert not summary["trainings"] and not summary["curves"]
    assert {claim["verdict"] for claim in read(study, "claims.json")["claims"]} == {"not run"}


def test_tasks_without_a_history_get_the_next_kind_of_noise(study: Workspace) -> None:
    made = read(study, "noisy/noisy.json")
    for domain, names in made["tasks"].items():
        for name in names:
            task = read(study, f"noisy/noisy/{domain}/{name}.json")
            assert task["arpo_noise"]["kinds"] == ["distractor_file"]


def test_the_page_compares_them_and_asks_for_no_training(study: Workspace) -> None:
    page = (study.root / f"reports/{NAME}/index.html").read_text()
    assert "Are the released weights better?" in page
    assert "Did it learn?" not in page and 'id="training"' not in page
    assert "says nothing about the paper" in page


def test_only_what_a_change_touches_runs_again(study: Workspace) -> None:
    assert study.planned(*options(study.root)) == {}
    other = {**SMALLER, "arms": {"arpo_released": {"weights": {"epochs": 5}}}}
    planned = study.planned(*options(study.root, "other", other))
    touched = {"build_nano_model": 1, "register_model": 1, "collect_rollouts": 1}
    assert {rule: planned[rule] for rule in (*touched, "record_demonstrations")} == touched | {
        "record_demonstrations": 0
    }


@pytest.mark.parametrize("config", ["chrome_10", "released", "offline_container"])
def test_the_twin_of_every_other_study_reaches_its_page(study: Workspace, config: str) -> None:
    """With policies that are there: making them takes most of a twin's time, and all twins make the same."""
    name = f"{config}_nano"
    shutil.copytree(study.root / f"results/{NAME}/nano", study.root / f"results/{name}/nano")
    twin = options(study.root, configs=(config, "twins/nano"))
    done = study.run("--cores", "2", *twin, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "build_nano_model" not in done.stdout + done.stderr
    check_scores(study, name, "test_out")
    assert "Are the released weights better?" in (study.root / f"reports/{name}/index.html").read_text()
    assert study.planned(*twin) == {}
