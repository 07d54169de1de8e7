"""Which class a ``desktop.provider`` of the config is."""

from __future__ import annotations

import importlib

from arpo_replica.config.desktop import DesktopConfig
from arpo_replica.desktop.interface import DesktopProvider

PROVIDERS = {
    "container": "arpo_replica.providers.container:ContainerProvider",
    "process": "arpo_replica.providers.process:ProcessProvider",
    "osworld": "arpo_replica.providers.osworld:OSWorldProvider",
    "remote": "arpo_replica.providers.remote:RemoteProvider",
}
"""Name in the config -> ``module:class``, imported only when used, called with the config's section."""


def make_provider(desktop: DesktopConfig) -> DesktopProvider:
    """The provider that the config names, not yet checked."""
    module, _, name = PROVIDERS[desktop.provider].partition(":")
    provider: DesktopProvider = getattr(importlib.import_module(module), name)(desktop)
    return provider
