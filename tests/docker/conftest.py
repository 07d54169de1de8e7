"""Docker tests run wherever a daemon answers; ARPO_REQUIRE_DOCKER=1 makes its absence a failure."""

import os

import pytest
from docker_helpers import IMAGE, owned

from arpo_replica.base.errors import UserError


@pytest.fixture(scope="session")
def engine():
    docker = pytest.importorskip("docker")
    assert docker is not None
    from arpo_replica.providers.docker_engine import DockerEngine

    engine = DockerEngine()
    try:
        engine.check()
    except UserError as error:
        if os.environ.get("ARPO_REQUIRE_DOCKER"):
            pytest.fail(str(error))
        pytest.skip(str(error))
    engine.image(IMAGE)  # a missing image is a failure that says how to build it
    return engine


@pytest.fixture(autouse=True)
def nothing_is_left(engine):
    """No test leaves a container of this process behind."""
    yield
    assert owned(engine) == []
