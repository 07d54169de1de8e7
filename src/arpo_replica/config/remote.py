"""Keys of ``desktop.remote``, and what keeps secrets out of configs."""

from __future__ import annotations

import re
from typing import Literal
from urllib.parse import urlsplit

from pydantic import field_validator

from arpo_replica.config.section import Section


def variable_name(name: str) -> str:
    """The name of an environment variable. The message does not repeat it: it may be a pasted secret."""
    if not re.fullmatch(r"[A-Z_][A-Z0-9_]{0,63}", name):
        raise ValueError("give the name of an environment variable (A-Z, 0-9, _), never the secret itself")
    return name


def plain_url(url: str) -> str:
    """An http(s) URL without user, password, query or fragment: it is written to results."""
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        raise ValueError("the port of a URL is a number from 1 to 65535") from None
    if port == 0 or parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("give a URL that begins with http:// or https:// and names a host")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError(
            "a URL in a config holds no user, password, query or fragment; keys come from the environment"
        )
    return url


class RemoteConfig(Section):
    """Desktops that `arpo serve-desktops` lends over the network."""

    url: str = "http://127.0.0.1:8700"
    """Where the service listens; over untrusted networks reach it through an SSH tunnel."""
    lends: Literal["process", "container", "osworld"] = "process"
    """What the service lends; results are marked with it, and a service that lends others is refused."""
    token_variable: str = "ARPO_DESKTOP_TOKEN"  # noqa: S105  # a name
    """Environment variable that holds the service's token; the same on both sides."""

    @field_validator("token_variable")
    @classmethod
    def _names_a_variable(cls, name: str) -> str:
        return variable_name(name)

    @field_validator("url")
    @classmethod
    def _without_secret(cls, url: str) -> str:
        return plain_url(url)
