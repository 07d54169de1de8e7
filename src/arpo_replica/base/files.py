"""Files: written whole or not at all, hashed, and read while another job writes them."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import BaseModel


def latest(paths: Iterable[Path]) -> float:
    """Unix time of the newest of these files that exist; 0 if none does."""
    return max((path.stat().st_mtime for path in paths if path.exists()), default=0.0)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; none if it is not there. A line that is being written is left out."""
    rows = []
    # Not splitlines(): text of a model may hold U+2028, which is no end of a line of JSON.
    for line in path.read_text("utf-8").split("\n") if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty if it is not there."""
    return dict(json.loads(path.read_bytes())) if path.is_file() else {}


def read_tensor_header(path: Path) -> dict[str, Any]:
    """Tensor -> its entry in the header of a safetensors file.

    Raises ``ValueError`` that says of a file that is not whole what is wrong with it.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        data = path.stat().st_size - 8 - length
        if length < 2 or data < 0:
            raise ValueError("is no safetensors file")
        try:
            header = dict(json.loads(file.read(length)))
            header.pop("__metadata__", None)
            end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        except (ValueError, KeyError, TypeError, IndexError):
            raise ValueError("has a broken header") from None
    if end != data:
        raise ValueError("is shorter or longer than its header says")
    return header


def file_sha256(path: Path) -> str:
    """sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remembered_sha256(path: Path) -> str:
    """sha256 of a large file, remembered between programs for as long as the file is not changed."""
    path = path.resolve()
    facts = path.stat()
    key = f"{path}|{facts.st_size}|{facts.st_mtime_ns}|{facts.st_ctime_ns}|{facts.st_ino}"
    note = cache_folder() / "sha256" / f"{hashlib.sha256(str(path).encode()).hexdigest()[:16]}.json"
    try:
        known = json.loads(note.read_text())
        if known["key"] == key:
            return str(known["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # no note, or not ours: read the file
    found = file_sha256(path)
    write_atomically(note, json.dumps({"key": key, "sha256": found}).encode())
    return found


def write_atomically(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data`` so that a reader sees the old or the new file, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        write_flushed(temporary, data)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_document(document: BaseModel, path: Path) -> None:
    """Write a model as JSON that is the same for the same content."""
    write_atomically(path, (document.model_dump_json(indent=1) + "\n").encode())


def write_flushed(path: Path, data: bytes) -> None:
    """Write a file whose bytes are on the disk afterwards."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def flush_folder(path: Path) -> None:
    """Bring the names in a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cache_folder() -> Path:
    """What studies share and can be made anew: $ARPO_CACHE, or a folder in the user's own."""
    chosen = os.environ.get("ARPO_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "arpo-replica"
