"""Desktops whose programs lie in another root file system, for machines that cannot install Chromium.

The provider ``process`` starts a desktop by ``setpriv``; here a program of that name on PATH enters the mount
namespace of the other root first. So nothing of the desktop changes; only the check for installed programs
does not hold, because they are not this machine's.
"""

from __future__ import annotations

import shutil

from arpo_replica.base.errors import UserError
from arpo_replica.config.desktop import DesktopConfig
from arpo_replica.providers.process import ProcessProvider


class RootedProvider(ProcessProvider):
    """See ``DesktopProvider``."""

    def check(self) -> None:
        """Raises ``UserError`` unless ``setpriv`` is the one that enters the other root."""
        program = shutil.which("setpriv")
        with open(program or "/dev/null", "rb") as file:  # noqa: PTH123
            if b"nsenter" not in file.read(200):
                raise UserError("The first setpriv on PATH does not enter another root; see docs/gpu.md.")


def make_provider(config: DesktopConfig) -> RootedProvider:
    """What ``Job.provider`` names."""
    return RootedProvider(config)
