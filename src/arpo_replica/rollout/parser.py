"""How the episode loop turns a reply into actions."""

from __future__ import annotations

from typing import Protocol

from arpo_replica.actions.types import Action


class ReplyParser(Protocol):
    """Text of the policy -> actions in screen pixels."""

    def actions(self, text: str) -> list[Action]:
        """What the reply does, in order; never empty. Raises ``FormatError`` for anything else."""
