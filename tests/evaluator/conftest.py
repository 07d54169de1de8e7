"""Workers of envs/evaluator on fake guests; every test ends with no process left."""

from __future__ import annotations

from pathlib import Path

import pytest
from osworld_tasks import gone, process_of

from arpo_replica.base.environments import ROOT
from arpo_replica.suites.osworld.client import OSWorldWorker
from fake_guest import FakeGuest
from fakes import stop_server
from real_tasks import EXAMPLES, MISSING


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.evaluator_env)


@pytest.fixture(scope="session", autouse=True)
def _server():
    if not (ROOT / "envs" / "evaluator" / ".venv" / "prepared").is_file():
        pytest.skip("envs/evaluator is not installed (python3 envs/prepare.py evaluator)")
    yield
    stop_server()


@pytest.fixture
def examples():
    """OSWorld's task files."""
    if not (EXAMPLES / "os").is_dir():
        pytest.skip(MISSING)
    return EXAMPLES


@pytest.fixture
async def guest():
    async with FakeGuest() as running:
        yield running


@pytest.fixture(scope="session")
def downloads(tmp_path_factory):
    """One folder for all tests: a server belongs to a folder."""
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture
async def worker(downloads):
    one = await OSWorldWorker.start("test", downloads)
    pid = process_of(one)
    yield one
    await one.close()
    assert gone(pid)
