"""Overlays of configs and the gates between stages, through Snakemake itself."""

from __future__ import annotations

import pytest
import yaml
from conftest import STUB

from arpo_replica.config import load_config

# A stage whose loss is no number.
OUTPUTS = """
import json
names = ("arm", "sha256", "size", "model")
manifest = {"seed": 0, "stage": snakemake.wildcards.stage, "step": 3, "parent": None}
manifest |= dict.fromkeys(names, "x") | {"weights": {}, "recipe": {}, "versions": {}}
Path(snakemake.output.manifest).write_text(json.dumps(manifest))
rows = [{"step": step, "loss": float("nan")} for step in (1, 2, 3)]
Path(snakemake.output.metrics).write_text("".join(json.dumps(row) + "\\n" for row in rows))
"""


def test_a_recipe_laid_over_the_demo_has_its_own_results(checkout):
    overlays = ("configs/demo.yaml", "configs/recipes/released_code.yaml")
    done = checkout.run("--dry-run", "--configfile", *overlays)
    assert done.returncode == 0, done.stderr
    shown = done.stdout + done.stderr
    assert "results/demo_released_code/models/arpo/seed_0/stage_train_4/manifest.json" in shown
    assert "results/demo/" not in shown


def test_an_overlay_drops_an_arm(checkout):
    planned = checkout.planned("--configfile", "configs/demo.yaml", "configs/recipes/grpo.yaml")
    assert planned["train_stage"] == 2
    assert planned["check_stage"] == 2
    assert planned["collect_rollouts"] == 2


def test_two_overlays_have_a_folder_that_is_named_by_both(checkout):
    """Two combinations that end with the same overlay do not share one; the scripts know its name too."""
    files = ["configs/demo.yaml", "configs/recipes/paper.yaml", "configs/ablations/first_slot.yaml"]
    name = "demo_paper_first_slot"
    made = f"results/{name}/config.resolved.yaml"
    done = checkout.run("--cores", "1", "--configfile", *files, "--", made)
    assert done.returncode == 0, done.stderr
    resolved = yaml.safe_load((checkout.root / made).read_text())
    assert resolved["variant"] == "paper_first_slot"
    assert load_config(*(checkout.root / file for file in files)).name == name
    assert resolved["training"]["replay"]["replaced_index"] == "first", "of two values the last one wins"
    more = checkout.run("--dry-run", "--config", "variant=mine", "--configfile", *files)
    assert f"results/{name}_mine/" in more.stdout + more.stderr


def test_another_threshold_judges_anew_and_trains_nothing(finished):
    finished.edit("configs/demo.yaml", "  save_every: 2", "  save_every: 2\n  gates: {varying_groups_min: 2}")
    planned = finished.planned()
    assert planned["check_stage"] == 4
    assert "train_stage" not in planned
    assert "collect_rollouts" not in planned


def test_how_often_checkpoints_are_saved_trains_nothing_again(finished):
    finished.edit("configs/demo.yaml", "  save_every: 2", "  save_every: 1")
    assert "train_stage" not in finished.planned()


@pytest.mark.parametrize("passed", [True, False])
def test_a_failed_gate_stops_the_next_stage(checkout, passed):
    """Scripts only write their outputs, but the second stage looks at the first one, as it does for real."""
    for script in (checkout.root / "scripts").glob("*.py"):
        if script.name != "train_stage.py":
            script.write_text(STUB)
    script = checkout.root / "scripts" / "train_stage.py"
    text = script.read_text()
    stub = "".join(f"    {line}\n" if line else "\n" for line in (STUB + OUTPUTS).strip().splitlines())
    script.write_text(text[: text.index("    train_stage(\n")] + stub)
    off = "gates: {checkpoint_loads: false, varying_groups_min: 0, loss_finite: false}"
    changes = off if passed else "gates: {checkpoint_loads: false, varying_groups_min: 0}"
    checkout.edit("configs/demo.yaml", "  save_every: 2", f"  save_every: 2\n  {changes}")
    target = "results/demo/models/grpo/seed_0/stage_train_32/manifest.json"
    done = checkout.run("--cores", "2", target)
    assert (done.returncode == 0) is passed, (done.stdout + done.stderr)[-3000:]
    assert (checkout.root / target).exists() is passed
    if not passed:
        shown = done.stdout + done.stderr
        assert "'grpo seed 0 stage train_4' does not meet its gates: loss of step 1 is nan" in shown
        assert "training.gates" in shown
        assert "Traceback" not in shown
