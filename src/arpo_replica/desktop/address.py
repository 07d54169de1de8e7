"""Where a desktop's services are reached over TCP, for OSWorld's own client and evaluators."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DesktopAddress:
    """Host and TCP ports of one desktop."""

    host: str
    server: int
    """The guest server (OSWorld's HTTP API; 5000 inside)."""
    chromium: int
    """Chrome's DevTools (9222 inside)."""
    vlc: int
    """VLC's HTTP interface (8080 inside)."""
