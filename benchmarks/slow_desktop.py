"""Scripted desktops; the first ``SLOW_DESKTOPS`` take ``SLOW_S`` seconds for an action, others none."""

from __future__ import annotations

import asyncio
import os

from arpo_replica.actions.types import Action
from arpo_replica.config.desktop import DesktopConfig
from arpo_replica.desktop.interface import Desktop
from scripted_desktop import ScriptedDesktop, ScriptedProvider


class SlowDesktop(ScriptedDesktop):
    """See ``Desktop``."""

    async def act(self, action: Action, action_id: str) -> None:
        await asyncio.sleep(float(os.environ["SLOW_S"]))
        await super().act(action, action_id)


class SlowProvider(ScriptedProvider):
    """See ``DesktopProvider``."""

    def __init__(self, config: DesktopConfig) -> None:
        super().__init__(config)
        self.started = 0

    async def start(self, name: str) -> Desktop:
        self.started += 1
        slow = self.started <= int(os.environ["SLOW_DESKTOPS"])
        return (SlowDesktop if slow else ScriptedDesktop)(self.config.screen, name)
