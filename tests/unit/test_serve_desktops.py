"""Options of ``serve-desktops`` that no service can have."""

from __future__ import annotations

import logging
import socket
from pathlib import Path

import pytest

from arpo_replica.base.errors import UserError
from arpo_replica.config import load_config
from arpo_replica.providers import remote_service
from fakes import FakeProvider


@pytest.fixture(autouse=True)
def token(monkeypatch):
    """The token; and the log's format stays what other tests expect."""
    monkeypatch.setenv("ARPO_DESKTOP_TOKEN", "a-token-of-the-tests")
    for handler in logging.getLogger("arpo_replica").handlers:
        monkeypatch.setattr(handler, "formatter", handler.formatter)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"port": -1}, "--port is -1; give 1 to 65535"),
        ({"port": 65_536}, "--port is 65536; give 1 to 65535"),
        ({"lease_s": 0.0}, "--lease-seconds is 0; give 1 to 3600"),
        ({"roots": [Path("no/such/folder")]}, "--tasks names no/such/folder, which is no folder"),
    ],
)
def test_options_that_no_service_can_have_are_refused(options, sentence):
    with pytest.raises(UserError, match=sentence):
        remote_service.serve_desktops(
            load_config(Path(__file__).parents[2] / "configs" / "demo.yaml"), **options
        )


def test_a_port_in_use_is_named(monkeypatch):
    monkeypatch.setattr(remote_service, "make_provider", lambda config: FakeProvider())
    config = load_config(Path(__file__).parents[2] / "configs" / "demo.yaml")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=rf"^Port {port} of 127\.0\.0\.1 cannot be used .*--port\.$"):
            remote_service.serve_desktops(config, port=port)
