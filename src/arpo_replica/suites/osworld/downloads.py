"""Files that tasks download (start files, gold files): fetched once, whole, and shared read-only.

desktop-env keeps them beside an episode's results and takes whatever lies there, even half a file. Here the
client fetches them, before the worker needs them: each URL has one file, named by the URL's sha256, that
appears only when it is complete. Workers, which handle what a policy wrote, can only read them.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import aiohttp

from arpo_replica.base.errors import DesktopError
from arpo_replica.base.files import cache_folder

ATTEMPTS = 3
LIMITS = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=60)


def default_cache() -> Path:
    """Where downloads are kept."""
    return (cache_folder() / "osworld").resolve()


def urls_of(task: dict[str, Any]) -> set[str]:
    """Every URL whose content is a file of the task: ``download`` steps and ``cloud_file`` getters.

    Only these are shared. What an evaluator asks a live site for is never kept.
    """
    evaluator = task.get("evaluator") or {}
    found: set[str] = set()
    for step in [*(task.get("config") or []), *(evaluator.get("postconfig") or [])]:
        if step.get("type") == "download":
            found.update(file["url"] for file in step["parameters"]["files"])
    for key in ("result", "expected"):
        states = evaluator.get(key) or []
        for state in states if isinstance(states, list) else [states]:
            if state and state.get("type") == "cloud_file":
                paths = state["path"]
                found.update(paths if isinstance(paths, list) else [paths])
    return found


def path_of(folder: Path, url: str) -> Path:
    """Where the content of a URL lies, or would lie; to fill it by hand put the file there."""
    return folder / hashlib.sha256(url.encode()).hexdigest()


async def fetch_missing(folder: Path, urls: Iterable[str]) -> None:
    """Download what is not there yet. Raises ``DesktopError`` that names what cannot be had."""
    for url in urls:
        if not path_of(folder, url).is_file():
            await _fetch(url, path_of(folder, url))


async def _fetch(url: str, path: Path) -> None:
    """The complete file appears in one step; several processes may do it at once."""
    problem = ""
    for _ in range(ATTEMPTS):
        part = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            async with (
                aiohttp.ClientSession(timeout=LIMITS, trust_env=True, auto_decompress=False) as session,
                session.get(url, headers={"Accept-Encoding": "identity"}) as response,
            ):
                response.raise_for_status()
                if response.headers.get("Content-Encoding", "identity") != "identity":
                    raise aiohttp.ClientPayloadError("it comes encoded, not as the file itself")
                with part.open("wb") as file:
                    async for data in response.content.iter_chunked(1 << 16):
                        file.write(data)
            part.chmod(0o444)
            part.replace(path)
            return
        except (aiohttp.ClientError, OSError, ValueError) as error:
            problem = f"{type(error).__name__}: {error}"
        finally:
            part.unlink(missing_ok=True)
    raise DesktopError(f"{url} could not be downloaded ({problem[:200]}); its place is {path}")
