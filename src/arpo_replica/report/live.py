"""One page that says how a study is doing while it runs, from its files alone. It has no script."""

import base64
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from markupsafe import Markup

from arpo_replica.base.errors import UserError
from arpo_replica.config.models import StudyConfig
from arpo_replica.report import figures, views
from arpo_replica.report.gallery import (
    EpisodeView,
    StepView,
    Store,
    action_of,
    describe_action,
    files_of,
    read_screenshots,
    view_of,
)
from arpo_replica.report.render import content_policy, static_file, template_environment
from arpo_replica.report.words import WORDS
from arpo_replica.rollout.records import RUNNING, Glimpse, read_episode

SCREENS = 12
"""Episodes whose last screens are shown, of those in progress and of those that are finished."""
FOLDERS = 200
"""Folders that were written to last and are searched for episodes."""
RUNS = "running"
"""The outcome of an episode in progress."""
LOOKED_AT = 60
"""Newest episodes that are searched for environment failures."""
LOGS = 8
"""Newest logs whose last line is shown."""
PICTURES = 3e6
"""Most that screenshots take in the page, bytes."""
TAIL = 4096
"""Bytes of a log that are read, from its end."""


@dataclass(frozen=True, slots=True)
class Tail:
    """The end of a log."""

    name: str
    age_s: float
    line: str


def live_page(
    config: StudyConfig, parts: Sequence[Any], jobs: Sequence[dict[str, Any]], results: Path, every_s: float
) -> str:
    """The page as it is now.

    ``parts``: lines of ``workflow.status``; ``jobs``: Slurm's; ``every_s``: seconds until a
    browser asks again.
    """
    now = time.time()
    store = Store(round(PICTURES), width=480)
    running = running_episodes(results, store, now - config.rollout.episode_timeout_s)
    shown: list[tuple[EpisodeView, float]] = []
    failures: list[tuple[EpisodeView, float, str]] = []
    for folder in newest_episodes(results, LOOKED_AT):
        view = _view(folder, store if len(shown) < SCREENS else None)
        if view is None:
            continue
        age = now - folder.stat().st_mtime
        shown += [(view, age)] if len(shown) < SCREENS else []
        failures += [(view, age, error) for error in view.errors]
    style = static_file("report.css")
    return (
        template_environment()
        .get_template("live.html.j2")
        .render(
            config=config,
            parts=parts,
            jobs=list(jobs)[-LOGS:],
            running=[(view, now - at) for view, at in running],
            episodes=shown,
            images=store.pictures(),
            failures=failures[:LOGS],
            logs=newest_logs(results / "logs", now),
            written=time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now)),
            every_s=0 if all(part.state == "done" for part in parts) else max(1, round(every_s)),
            outcomes={**WORDS["outcomes"], RUNS: ("▸", RUNS)},
            banner=views.banner(config, synthetic=False),
            colour=lambda arm: figures.arm_colour(arm, list(config.arms)),
            style=Markup(style),  # noqa: S704 - our own file
            policy=content_policy("data:", style),
        )
    )


def newest_episodes(results: Path, most: int) -> list[Path]:
    """Folders of finished episodes, of evaluations and trainings, newest first."""
    return _newest((child for folder in _folders(results) for child in folder.glob("[!.]*.*/")), most)


def running_episodes(results: Path, store: Store, since: float) -> list[tuple[EpisodeView, float]]:
    """Episodes in progress, newest screen first, and the times of these screens.

    A job that was killed leaves its own behind: without a new screen ``since`` then, an episode is over.
    """
    found = []
    files = (file for folder in _folders(results) for file in folder.glob(f"{RUNNING}*.json"))
    for file in _newest(files, SCREENS):
        try:
            at, seen = file.stat().st_mtime, Glimpse.model_validate_json(file.read_bytes())
            shots = store.add([("screen", base64.b64decode(seen.screen))]) or {}
        except (OSError, ValueError):
            continue  # it ended meanwhile
        action = action_of(seen.action or {})
        words = describe_action(action) if action else ("no action yet", "")
        frame = StepView("", *words, "", "", shots.get("screen"), None)
        row = {**seen.model_dump(exclude={"screen", "action"}), "outcome": RUNS}
        if at > since:
            found.append((EpisodeView("", row, [frame], [], thumbnail=frame if frame.shot else None), at))
    return found


def _folders(results: Path) -> list[Path]:
    # An episode that begins, goes on or ends gives its folder a new time: few of thousands are listed.
    return _newest(
        [*results.glob("episodes/*/*/*/*/trial_*"), *results.glob("models/*/*/*/episodes/*/*")], FOLDERS
    )


def newest_logs(folder: Path, now: float) -> list[Tail]:
    """The rules' logs that were written last, and their last lines."""
    tails = []
    for path in _newest(folder.rglob("[!.]*.log"), LOGS):
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL))
            lines = file.read().decode("utf-8", "replace").split("\n")
        line = next((line for line in reversed(lines) if line.strip()), "")
        name = path.relative_to(folder).with_suffix("").as_posix()
        if line:
            tails.append(Tail(name, now - path.stat().st_mtime, line[-300:]))
    return tails


def _newest(paths: Iterable[Path], most: int) -> list[Path]:
    times = {}
    for path in paths:
        try:
            times[path] = path.stat().st_mtime
        except OSError:
            continue  # it was discarded or moved meanwhile
    return sorted(times, key=times.__getitem__)[-most:][::-1]


def _view(folder: Path, store: Store | None) -> EpisodeView | None:
    """None for an episode that cannot be read. Without a ``store``, without its screens."""
    try:
        record, steps = read_episode(folder)
    except (OSError, ValueError):
        return None
    row = record.model_dump()
    # One screen of each: that of the last action at a point, else the last.
    last = next((step for step in reversed(steps) if step.action and "x" in step.action), None)
    chosen = [last] if last else steps[-1:]
    files = files_of(folder, chosen, {})
    shots = store.add(read_screenshots(files)) if store is not None and files else None
    return view_of(0, row, chosen, row, shots or {})


def serve(page: Callable[[], str], port: int) -> None:
    """Answer browsers of this machine, and those at the other end of ``ssh -L``, until a signal comes."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            """The page, made anew."""
            # A web site whose name was made to lead here is another host: it must not read a study.
            name = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
            if self.path != "/" or name not in ("localhost", "127.0.0.1", "[::1]"):
                self.send_error(404)
                return
            data = page().encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            """Nothing: the terminal is the reader's."""

    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except OSError as error:
        raise UserError(
            f"Port {port} cannot be used ({error.strerror}); give --serve another one."
        ) from error
    with server:
        print(f"http://127.0.0.1:{server.server_port}/ (from elsewhere: ssh -L)", flush=True)
        server.serve_forever()
