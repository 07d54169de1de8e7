"""The notebooks on nano: a training, its model served as by a GPU elsewhere, an evaluation against that."""

from __future__ import annotations

import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT, Workspace, make_checkout
from nbclient import NotebookClient

pytestmark = pytest.mark.study
NAME = "nano-elsewhere"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    workspace = make_checkout(tmp_path_factory.mktemp("notebooks"))
    shutil.copytree(ROOT / "notebooks", workspace.root / "notebooks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
        patch.setenv("ARPO_API_KEY", "a-key-of-the-test")
        yield workspace


@contextmanager
def running(place: Workspace, name: str, last: str | None = None, **parameters: object) -> Iterator[str]:
    """Execute a notebook with these parameters and give the text that it showed. While the body runs its
    kernel lives; ``last``: what then stands in the place of its last cell."""
    folder = place.root / "notebooks"
    notebook = nbformat.read(folder / f"{name}.ipynb", as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    cells[0].source = "\n".join(f"{key} = {value!r}" for key, value in parameters.items())
    client = NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(folder)}})
    with client.setup_kernel():
        for cell in cells if last is None else cells[:-1]:
            client.execute_cell(cell, notebook.cells.index(cell))
        try:
            yield "\n".join(
                output.get("text") or str(output.get("data", {}).get("text/html", output.get("data")))
                for cell in cells
                for output in cell.get("outputs", [])
            )
        finally:
            if last is not None:
                cells[-1].source = last
                client.execute_cell(cells[-1], notebook.cells.index(cells[-1]))


def test_a_training_a_server_and_an_evaluation_against_it(place):
    (place.root / "few.yaml").write_text("nano: {demonstrations: 200, epochs: 1}\n")  # it need not be good
    small = "configs/ci.yaml few.yaml"
    with running(place, "train_smoke", CONFIG=small, ARM="arpo", STAGE="train_4", CORES=2) as said:
        assert "2 of 2 steps are logged" in said
        assert "image/png" in said
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (place.root / "served.yaml").write_text(
        "study: served\narms: {grpo: null, arpo: null}\ntargets: {selected_curve: null, full_curve: null}\n"
        f"policy: {{model: served, endpoint: 'http://127.0.0.1:{port}/v1', served_model: {NAME}}}\n"
    )
    server = {
        "CONFIG": small,
        "MANIFEST": "results/ci/models/arpo/seed_0/stage_train_4/manifest.json",
        "NAME": NAME,
        "PORT": port,
        "REPOSITORY": "",
        "ENVIRONMENT": "cpu",
        "TUNNEL": "",
    }
    with running(place, "gpu_server", "server.terminate()\nserver.wait()", **server) as said:
        assert f"{NAME} is served at http://127.0.0.1:{port}/v1" in said
        assert "export ARPO_API_KEY=a-key-of-the-test" in said
        with running(place, "evaluate", CONFIG=f"{small} served.yaml") as said:
            assert "rollouts base" in said
            assert "../reports/served/index.html" in said
    scores = (place.root / "results/served/scores.csv").read_text().splitlines()
    assert len(scores) == 1 + 10
