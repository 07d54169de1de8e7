"""What goes over the socket between a client and its worker: JSON, each message after its length."""

from __future__ import annotations

import json
import socket
import struct
from typing import Any

LENGTH = struct.Struct("!I")
LIMIT = 64 << 20
"""Largest message in bytes: a task file or an answer is far smaller."""


def pack(message: dict[str, Any]) -> bytes:
    """A message as it is sent."""
    payload = json.dumps(message).encode()
    if len(payload) > LIMIT:
        raise ValueError(f"a message of {len(payload)} bytes is too large")
    return LENGTH.pack(len(payload)) + payload


def unpack_length(header: bytes) -> int:
    """Size of the message that follows. Raises ValueError for one that nobody sends."""
    length: int = LENGTH.unpack(header)[0]
    if length > LIMIT:
        raise ValueError(f"a message of {length} bytes is too large")
    return length


def unpack(payload: bytes) -> dict[str, Any]:
    """The message. Raises ValueError if it is no JSON object."""
    message = json.loads(payload)
    if not isinstance(message, dict):
        raise ValueError("a message must be a JSON object")
    return message


def send(channel: socket.socket, message: dict[str, Any]) -> None:
    """Send, blocking (the worker's side)."""
    channel.sendall(pack(message))


def receive(channel: socket.socket) -> dict[str, Any] | None:
    """The next message, blocking (the worker's side); None when the client is gone."""
    header = _read(channel, LENGTH.size)
    payload = _read(channel, unpack_length(header)) if header else b""
    return unpack(payload) if payload else None


def _read(channel: socket.socket, length: int) -> bytes:
    """Exactly ``length`` bytes, or none if the stream ended."""
    data = bytearray()
    while len(data) < length:
        part = channel.recv(length - len(data))
        if not part:
            return b""
        data += part
    return bytes(data)
