"""How a running job speaks to whoever watches it."""

from __future__ import annotations

import sys


def say(line: str) -> None:
    """Print a line at once."""
    print(line, file=sys.stderr, flush=True)
