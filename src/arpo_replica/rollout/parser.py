"""How the episode loop turns a reply into an action."""

from __future__ import annotations

from typing import Protocol

from arpo_replica.actions.types import Action


class ReplyParser(Protocol):
    """Text of the policy -> action in screen pixels."""

    def parse(self, text: str) -> Action:
        """The action. Raises ``FormatError`` for anything else."""
