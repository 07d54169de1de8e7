"""Episodes on disk: one directory per episode, written whole or not at all.

    {root}/{domain}.{task_id}/episode.json   summary, one JSON object (``EpisodeRecord``)
    {root}/{domain}.{task_id}/steps.jsonl    one JSON object per reply (``StepRecord``)
    {root}/{domain}.{task_id}/step_000.webp  what the policy saw before reply 0, and so on;
                                             the last one shows the state that was evaluated

``episodes.jsonl`` beside the directories is the index, written last: its existence means "complete".
While an episode runs, ``.running-{domain}.{task_id}.json`` says how far it is (``Glimpse``).
"""

import asyncio
import base64
import io
import json
import math
import shutil
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict

from arpo_replica.base.files import flush_folder, write_atomically, write_flushed
from arpo_replica.tasks.model import Task

SCHEMA_VERSION = 1
RUNNING = ".running-"
"""How the name of the file about an episode in progress begins."""
GLIMPSE_WIDTH = 480
"""Most pixels that the screen in such a file is wide."""
GLIMPSE_SHARE = 0.02
"""Of one processor, at most, for such files of all episodes of a process: one of 1920x1080 takes 50 ms."""
_TURN = {"next": 0.0}
"""When the next one may be made (``time.monotonic``)."""
Outcome = Literal["success", "failure", "truncated", "env_error"]


def storable(text: Any) -> Any:
    """Text without lone surrogates, which a hostile policy can send and UTF-8 cannot hold."""
    return text.encode("utf-8", "replace").decode() if isinstance(text, str) else text


Text = Annotated[str, BeforeValidator(storable)]


class StepRecord(BaseModel):
    """One reply of the policy (a turn of the conversation) and what became of it."""

    model_config = ConfigDict(extra="forbid")

    index: int
    text: Text
    """Raw text of the policy, never trusted, never executed."""
    action: dict[str, Any] | None
    """``Action.to_json()`` in screen pixels, or None when the text was no valid action."""
    further: list[dict[str, Any]] = []
    """Actions of the same reply that ran after it (``policy.actions_per_reply: all``), without a screenshot
    between them."""
    discarded: list[Text] = []
    """Unparsable replies before this one, which was asked for in their place (``evaluation.reasks``)."""
    action_id: str | None
    format_error: str | None
    screenshot: str
    """File name of what the policy saw."""
    model_s: float
    """Seconds from the request to the whole reply."""
    env_s: float
    """Seconds of the action and the screenshot after it."""
    prompt_tokens: int
    completion_tokens: int
    weights: tuple[int, int] | None = None
    """Training: updates of the stage behind the weights that wrote the first and the last token."""

    @property
    def taken(self) -> int:
        """Steps of ``policy.max_steps`` that it used up: one per action, one for a reply that was none."""
        return 1 + len(self.further)

    def to_line(self) -> str:
        """The step as a line of ``steps.jsonl``; lists that most steps lack are left out when empty."""
        empty = {name for name in ("further", "discarded") if not getattr(self, name)}
        return self.model_dump_json(exclude=empty) + "\n"


class EpisodeRecord(BaseModel):
    """The summary of one episode."""

    model_config = ConfigDict(extra="forbid")

    schema_version: int = SCHEMA_VERSION
    task_id: str
    domain: str
    task_sha256: str
    instruction: str
    infeasible: bool
    arm: str
    seed: int
    stage: str
    split: str
    trial: int
    size: str
    """Size mark of the study (``nano``, ``2b``, ``7b``)."""
    desktop: str
    """Provider, e.g. ``process``."""
    ran_on: dict[str, str] = {}
    """Pool, engine, root, sudo and image of the desktop that counted (``desktop.interface.Desktop``). It says
    where the episode was made, never which one it is: another desktop of the same kind would do as well."""
    checkpoint_sha256: str
    sampling: dict[str, Any]
    outcome: Outcome
    hard_score: float | None
    """Evaluator's score of the state as it was left; None for ``env_error``."""
    standard_score: float | None
    """The same, but an episode cut at the step limit counts as FAIL (ARPO p. 6; OSWorld runner). One that the
    server cut does not: OSWorld's agents say DONE then."""
    expected: Text = ""
    """What the evaluator wanted, in words; empty where it does not say it (``desktop.interface.Score``)."""
    found: Text = ""
    """What it found."""
    format_errors: int
    n_steps: int
    """Actions, plus one for a reply that was none: what ``policy.max_steps`` limits."""
    attempts: int
    """1 + number of retries after an ``env_error``."""
    errors: list[Text]
    """One line for each attempt that ended in an ``env_error``."""
    refusal: Text = ""
    """What the server said when it refused to go on with the conversation (context full, too many images):
    the episode is ``truncated`` then, before its step limit. Empty: it did not."""
    final_screenshot: str | None
    started_at: float
    """Unix time, seconds."""
    duration_s: float
    """Seconds over all attempts."""
    reset_s: float = 0.0
    """Seconds until the desktop showed the task, in the attempt that counted."""
    evaluate_s: float = 0.0
    """Seconds of the evaluator."""
    synthetic: bool = False
    """True: invented by a generator, never measured; no such episode can be published."""


class Glimpse(BaseModel):
    """An episode in progress, for those who watch (``arpo status``)."""

    model_config = ConfigDict(extra="forbid")

    arm: str
    trial: int
    domain: str
    task_id: str
    instruction: str
    steps: int
    """Actions so far."""
    action: dict[str, Any] | None
    """The last one, as in ``StepRecord``; None before the first."""
    screen: str
    """The newest screenshot, made smaller: base64 of a WebP."""


Show = Callable[[bytes, Sequence[StepRecord]], Awaitable[None]]
"""Tells those who watch: the newest screenshot, and the steps before it."""


async def unwatched(screen: bytes, steps: Sequence[StepRecord]) -> None:
    """The ``Show`` of an episode that nobody watches."""


@contextmanager
def watched(root: Path, task: Task, arm: str, trial: int) -> Iterator[Show]:
    """Gives what shows an episode that will be written to ``root``, until it is over."""
    path = root / f"{RUNNING}{task.domain}.{task.id}.json"

    def write(screen: bytes, steps: Sequence[StepRecord]) -> None:
        # No error, no flush to the disk: that somebody might watch must cost next to nothing.
        with suppress(Exception):
            seen = Glimpse(
                arm=arm,
                trial=trial,
                domain=task.domain,
                task_id=task.id,
                instruction=task.instruction,
                steps=sum(step.taken for step in steps),
                action=steps[-1].action if steps else None,
                screen=base64.b64encode(_small_webp(screen)).decode(),
            )
            root.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(".new")
            temporary.write_text(seen.model_dump_json(), encoding="utf-8")
            temporary.replace(path)

    async def show(screen: bytes, steps: Sequence[StepRecord]) -> None:
        # Most calls end here: many episodes of large screens take turns.
        began = time.monotonic()
        if began < _TURN["next"]:
            return
        _TURN["next"] = math.inf
        try:
            await asyncio.to_thread(write, screen, steps)
        finally:
            now = time.monotonic()
            _TURN["next"] = now + (now - began) / GLIMPSE_SHARE

    try:
        yield show
    finally:
        with suppress(OSError):
            path.unlink()


def _small_webp(image: bytes) -> bytes:
    """A screenshot for the eye: at most ``GLIMPSE_WIDTH`` wide, lossy."""
    from PIL import Image

    out = io.BytesIO()
    with Image.open(io.BytesIO(image), formats=["PNG", "WEBP"]) as picture:
        picture.thumbnail((GLIMPSE_WIDTH, 10 * GLIMPSE_WIDTH))
        picture.convert("RGB").save(out, "WEBP", quality=70)
    return out.getvalue()


def to_webp(image: bytes) -> bytes:
    """Lossless WebP of a PNG screenshot: what the policy saw can be recovered to the pixel.

    WebP is given back as it is. Takes some 5 ms at 224x168 and 150 ms at 1920x1080.
    """
    from PIL import Image

    if image[:4] == b"RIFF" and image[8:12] == b"WEBP":
        return image
    return encode_webp(Image.open(io.BytesIO(image)).convert("RGB"))


def encode_webp(picture: Any) -> bytes:
    """Lossless WebP of a picture (PIL)."""
    out = io.BytesIO()
    picture.save(out, "WEBP", lossless=True, quality=30, method=2)
    return out.getvalue()


def episode_dir(root: Path, domain: str, task_id: str) -> Path:
    return root / f"{domain}.{task_id}"


def write_episode(
    root: Path, record: EpisodeRecord, steps: Iterable[StepRecord], screenshots: dict[str, bytes]
) -> Path:
    """Write an episode whole or not at all: temporary directory, flush, rename.

    ``screenshots`` maps file name to PNG (or WebP) bytes. An episode that exists is never touched: raises
    FileExistsError. Encodes and waits for the disk: call it in a thread.
    """
    final = episode_dir(root, record.domain, record.task_id)
    if final.exists():
        raise FileExistsError(final)
    root.mkdir(parents=True, exist_ok=True)
    temporary = root / f".tmp-{uuid.uuid4().hex}"
    temporary.mkdir()
    try:
        lines = "".join(step.to_line() for step in steps)
        files = {name: to_webp(image) for name, image in screenshots.items()}
        files["steps.jsonl"] = lines.encode()
        files["episode.json"] = (record.model_dump_json(indent=1) + "\n").encode()
        for name, data in files.items():
            write_flushed(temporary / name, data)
        flush_folder(temporary)
        temporary.rename(final)
        flush_folder(root)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return final


def read_episode(path: Path) -> tuple[EpisodeRecord, list[StepRecord]]:
    record = EpisodeRecord.model_validate_json((path / "episode.json").read_bytes())
    # Not splitlines(): model text may hold U+2028 and the like, which end no line of JSON.
    lines = (path / "steps.jsonl").read_text(encoding="utf-8").split("\n")
    return record, [StepRecord.model_validate_json(line) for line in lines if line]


@dataclass(frozen=True, slots=True)
class RecordedEpisode:
    """An episode as it was recorded, for learning from it."""

    directory: Path
    record: EpisodeRecord
    steps: list[StepRecord]

    @property
    def task(self) -> str:
        return f"{self.record.domain}/{self.record.task_id}"

    @property
    def good(self) -> bool:
        """A success whose every reply could be parsed."""
        return self.record.outcome == "success" and not self.record.format_errors

    @property
    def bad(self) -> bool:
        """A failure, or cut at the step limit."""
        return self.record.outcome in ("failure", "truncated")

    def screenshot(self, index: int) -> Path:
        """What the policy saw before that reply."""
        return self.directory / self.steps[index].screenshot


def read_rollout(directory: Path) -> RecordedEpisode:
    return RecordedEpisode(directory, *read_episode(directory))


def read_summary(path: Path) -> dict[str, Any]:
    """``episode.json`` of one episode directory as it is; empty if it cannot be read."""
    try:
        summary = json.loads((path / "episode.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return summary if isinstance(summary, dict) else {}


def discard_episode(path: Path) -> None:
    """Remove an episode whole or not at all: renamed first, so that a kill leaves no part of it."""
    doomed = path.with_name(f".tmp-{uuid.uuid4().hex}")
    path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def finished_episodes(root: Path) -> dict[tuple[str, str], Path]:
    """(domain, task id) -> directory of every finished episode under ``root``."""
    found = {}
    for path in sorted(root.glob("*/episode.json")):
        if not path.parent.name.startswith(".tmp-"):
            domain, _, task_id = path.parent.name.partition(".")
            found[domain, task_id] = path.parent
    return found


def clear_unfinished(root: Path) -> None:
    """Remove what a killed writer left behind."""
    for path in root.glob(".tmp-*"):
        shutil.rmtree(path, ignore_errors=True)
    for path in root.glob(f"{RUNNING}*"):
        path.unlink(missing_ok=True)


def write_index(root: Path) -> Path:
    """Write ``episodes.jsonl``: the summaries of all episodes, sorted by domain and task id."""
    lines = []
    root.mkdir(parents=True, exist_ok=True)
    for path in finished_episodes(root).values():
        record = json.loads((path / "episode.json").read_bytes())
        lines.append(json.dumps({**record, "directory": path.name}, sort_keys=True) + "\n")
    index = root / "episodes.jsonl"
    write_atomically(index, "".join(lines).encode())
    return index
