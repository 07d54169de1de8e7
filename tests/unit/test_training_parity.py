"""Recipes say what the committed facts say, and verl is told what the recipes say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from arpo_replica.base.environments import ROOT
from arpo_replica.base.errors import UserError
from arpo_replica.config.models import StudyConfig
from arpo_replica.tasks.splits import Split
from arpo_replica.training.parity import actual, compose, read_facts, render_parity
from verl_keys import verl_values

FACTS = read_facts(ROOT)
STUDIES = ["paper", "subset32", "seed_2b"]
ABLATIONS = sorted((ROOT / "configs/ablations").glob("*.yaml"))
RECIPES = sorted((ROOT / "configs/recipes").glob("*.yaml"))


def drift(root: Path) -> list[str]:
    """One line for each value that is not what facts and exceptions ask for; empty if all is well."""
    facts = read_facts(root)
    found = []
    for recipe, paths in facts.recipes.items():
        config = compose(paths, root)
        for row in facts.rows:
            value, expected = actual(row, config), row.expected(recipe)
            if value != expected:
                found.append(f"{recipe}: {row.name} ({row.key}) is {value!r}, the facts ask for {expected!r}")
    return found


def test_recipes_say_what_the_facts_ask_for() -> None:
    assert drift(ROOT) == []


def test_a_drifted_recipe_is_named(tmp_path: Path) -> None:
    for name in ("configs", "data/paper"):
        target = tmp_path / name
        target.mkdir(parents=True)
        for path in (ROOT / name).rglob("*.yaml"):
            copy = target / path.relative_to(ROOT / name)
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(path.read_bytes())
    recipe = tmp_path / "configs/recipes/released_code.yaml"
    recipe.write_text(recipe.read_text().replace("0.5", "0.25"))
    (line,) = drift(tmp_path)
    assert "released_code: weight of the format penalty" in line and "0.25" in line and "0.5" in line


def test_the_committed_page_is_current() -> None:
    page = (ROOT / "docs/parity.md").read_text()
    assert page == render_parity(ROOT), "run arpo docs"


@pytest.mark.parametrize("recipe", FACTS.recipes)
def test_verl_gets_the_values(recipe: str) -> None:
    config = compose(FACTS.recipes[recipe], ROOT)
    told = verl_values(config)
    for row in FACTS.rows:
        if row.verl is not None:
            value = actual(row, config)
            expected = None if value == "none" else value
            assert told[row.verl] == expected, row.name


def test_every_setting_of_the_released_script_has_a_row() -> None:
    """osworld_full_arpo.sh sets something in its lines 16-54. Left out: the system prompt (16), a number of
    tokens that is checked and then not used (42), the run's name (47)."""
    cited: set[int] = set()
    for row in FACTS.rows:
        script, _, lines = row.code.place.partition(":") if row.code else ("", "", "")
        found = re.match(r"[\d, -]+", lines) if script == "FS" else None
        for part in found[0].split(",") if found else []:
            first, _, last = part.strip().partition("-")
            if first:
                cited |= set(range(int(first), int(last or first) + 1))
    assert set(range(16, 55)) - cited == {16, 42, 47}


def test_keys_left_open_are_shown_with_what_holds() -> None:
    """Packing is on for a GPU and off for a CPU unless a config says otherwise."""
    (row,) = [row for row in FACTS.rows if row.key == "training.speed.pack"]
    assert actual(row, compose(["configs/paper.yaml"], ROOT)) is True
    assert actual(row, compose(["configs/demo.yaml"], ROOT)) is False


def test_paper_and_released_code_differ_where_the_sources_do() -> None:
    paper, code = (compose(FACTS.recipes[name], ROOT) for name in ("paper", "released_code"))
    differing = {row.name for row in FACTS.rows if actual(row, paper) != actual(row, code)}
    assert differing == {
        "weight of the format penalty",
        "rollout that gives way",
        "tasks per step",
        "tasks per update",
        "desktops at once",
        "steps of the last stage",
    }


def leaves(value: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value."""
    if not isinstance(value, dict):
        return {prefix: value}
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= leaves(inner, f"{prefix}.{key}".lstrip("."))
    return found


@pytest.mark.parametrize("path", ABLATIONS, ids=lambda path: path.stem)
def test_an_ablation_is_one_change_that_some_study_does_not_have(path: Path) -> None:
    overlay = yaml.safe_load(path.read_text())
    assert overlay.pop("variant") == path.stem
    assert 1 <= len(leaves(overlay)) <= 2
    configs = [compose([f"configs/{name}.yaml"], ROOT) for name in ("demo", "seed_2b")]
    changed = [compose([f"configs/{name}.yaml", path], ROOT) for name in ("demo", "seed_2b")]
    assert any(
        a.model_dump(exclude={"variant"}) != b.model_dump(exclude={"variant"})
        for a, b in zip(configs, changed, strict=True)
    ) or path.stem in {"first_slot"}
    assert changed[0].name == f"demo_{path.stem}"


@pytest.mark.parametrize("study", ["demo", "nano", "ci", *STUDIES])
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_fits_every_study(study: str, recipe: Path) -> None:
    config = compose([f"configs/{study}.yaml", recipe], ROOT)
    check_shape(config)
    assert config.name != config.study


@pytest.mark.parametrize("study", STUDIES)
def test_studies_can_be_trained_as_far_as_configs_say(study: str) -> None:
    check_shape(compose([f"configs/{study}.yaml"], ROOT))


def test_the_staged_shape_goes_through_4_32_and_128_tasks() -> None:
    config = compose(["configs/paper.yaml", "configs/shapes/staged.yaml"], ROOT)
    check_shape(config)
    assert [size(config, stage.split) for stage in config.training.stages] == [4, 32, 128]


def size(config: StudyConfig, split: str) -> int:
    """Tasks that a split's list names."""
    found = Split.model_validate_json((ROOT / config.tasks.splits[split]).read_bytes())
    return sum(len(ids) for ids in found.tasks.values())


def check_shape(config: StudyConfig) -> None:
    """Lists exist, stages have enough tasks, verl's keys can be made for every arm and stage."""
    from test_training_recipe import make_job

    from arpo_replica.training.recipe import check_recipe

    for name in config.evaluation.splits:
        assert size(config, name) > 0
    for arm in (arm for arm in config.arms if arm != "base"):
        for stage in config.training.stages:
            job = make_job(ROOT, arm, config, stage_name=stage.name)
            check_recipe(job, size(config, stage.split))


def test_an_overlay_can_drop_an_arm() -> None:
    config = compose(["configs/demo.yaml", "configs/recipes/grpo.yaml"], ROOT)
    assert list(config.arms) == ["base", "grpo"]
    assert not config.recipe("grpo").replay.enabled


def test_an_unknown_key_of_an_overlay_is_refused(tmp_path: Path) -> None:
    overlay = tmp_path / "typo.yaml"
    overlay.write_text("training: {format_wait: 0.5}")
    with pytest.raises(UserError, match="format_wait"):
        compose(["configs/demo.yaml", overlay], ROOT)
