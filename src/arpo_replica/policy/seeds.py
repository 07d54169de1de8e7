"""Seeds of sampling requests."""

from __future__ import annotations

import hashlib


def request_seed(*parts: object) -> int:
    """A seed of 31 bits that depends on nothing but ``parts`` (Python's ``hash`` differs between runs)."""
    digest = hashlib.sha256("\0".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
