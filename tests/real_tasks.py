"""OSWorld's task files for tests: those that `make osworld-tasks` fetches, or of the folder that the variable
ARPO_OSWORLD_TASKS names (OSWorld's repository, its `evaluation_examples`, or a fetched folder)."""

import os
from pathlib import Path

import pytest

from arpo_replica.tasks.osworld_files import INSIDE, ROOT

FOLDER = Path(os.environ.get("ARPO_OSWORLD_TASKS") or Path(__file__).parents[1] / ROOT).absolute()
EXAMPLES = next(
    (found for found in (FOLDER / INSIDE, FOLDER / "examples") if found.is_dir()),
    FOLDER,
)
"""`{domain}/{id}.json`."""
MISSING = f"no task files of OSWorld in {FOLDER}: 'make osworld-tasks', or ARPO_OSWORLD_TASKS"
at_hand = pytest.mark.skipif(not (EXAMPLES / "os").is_dir(), reason=MISSING)
