"""Processes that are forked from one that imported Ray classes draw different ids."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.cpu_env
pytest.importorskip("ray")

SCRIPT = """
import sys
from arpo_replica.training.patches import ray_ids
sys.path.insert(0, sys.argv[2])
if sys.argv[1] == "kept":
    with ray_ids.generator_unused():
        import a_module_with_an_actor
else:
    import a_module_with_an_actor
    assert ray_ids.first_id_of_child() == ray_ids.first_id_of_child(), "Ray no longer needs this"
    with ray_ids.generator_unused():
        pass
"""


def run(how: str, folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "a_module_with_an_actor.py").write_text("import ray\n@ray.remote\nclass Actor: pass\n")
    command = [sys.executable, "-c", SCRIPT, how, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_classes_that_are_imported_leave_the_generator_alone(tmp_path: Path) -> None:
    found = run("kept", tmp_path)
    assert found.returncode == 0, found.stderr


def test_a_generator_that_was_used_is_noticed(tmp_path: Path) -> None:
    found = run("used", tmp_path)
    assert found.returncode != 0
    assert "UpstreamChanged: something imported before the fork" in found.stderr
