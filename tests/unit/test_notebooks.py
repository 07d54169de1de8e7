"""The notebooks for analysts run on committed data and find what the study's summary says."""

from __future__ import annotations

import json
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "notebooks"


def run(name: str, **parameters: object) -> str:
    """Execute a notebook with other parameters; the text of all its outputs. A cell that fails raises."""
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    cell.source += "".join(f"\n{key} = {value!r}" for key, value in parameters.items())
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(NOTEBOOKS)}}).execute()
    return "\n".join(
        output.get("text") or output.get("data", {}).get("text/plain", "")
        for cell in notebook.cells
        for output in cell.get("outputs", [])
    )


@pytest.mark.parametrize(("arm", "split"), [("arpo", "train_32"), ("grpo", "test_in")])
def test_a_difference_is_that_of_the_summary(arm, split):
    summary = json.loads((ROOT / "reports/nano/summary.json").read_text())
    (row,) = [
        row["difference"]
        for row in summary["differences"]
        if (row["arm"], row["reference"], row["split"]) == (arm, "base", split)
        and row["protocol"] == "hard"
        and row["seed"] is None
        and row["stage"] == "train_32"
    ]
    said = run("difference", ARM=arm, SPLIT=split)
    assert f"{row['value']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f})" in said


def test_replay_fired_in_arpo_alone():
    said = run("replay")
    assert "arpo seed_0" in said
    grpo = next(line for line in said.splitlines() if line.startswith("grpo"))
    assert grpo.split()[3] == "0"


def test_the_power_of_a_plan_grows_with_trainings_and_falls_with_their_spread():
    said = run("power", TRIALS=3)
    five = next(line for line in said.splitlines() if line.startswith("5 "))
    exact, *_, spread = map(float, five.split()[1:])
    assert exact > 0.5 > spread


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_committed_notebooks_hold_no_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells)
