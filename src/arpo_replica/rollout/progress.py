"""What a running job says about itself: a line every few seconds, and a heartbeat file."""

import json
import logging
import time
from collections import Counter
from pathlib import Path
from typing import get_args

from arpo_replica.base.files import write_atomically
from arpo_replica.rollout.records import Outcome

logger = logging.getLogger(__name__)

EVERY_S = 5.0
"""From one line to the next."""


class Progress:
    def __init__(self, total: int, kept: int, *, heartbeat: Path | None = None) -> None:
        """``total`` episodes of the job, ``kept`` of them from an earlier run."""
        self.total = total
        self.kept = kept
        self.heartbeat = heartbeat
        self.outcomes: Counter[str] = Counter()
        self.retries = 0
        self.restarts = 0
        """Desktops started after one broke."""
        self.desktops = 0
        """Desktops running now."""
        self.began: float | None = None
        """When the policy was ready: rate and ETA count from there."""
        self._said = float("-inf")
        self._line = ""

    @property
    def done(self) -> int:
        """Episodes on disk."""
        return self.kept + sum(self.outcomes.values())

    @property
    def rate(self) -> float:
        """Episodes per hour of this run."""
        seconds = 0.0 if self.began is None else time.monotonic() - self.began
        return 3600 * sum(self.outcomes.values()) / max(seconds, 1e-3)

    def policy_is_ready(self) -> None:
        self.began = time.monotonic()

    def finished(self, outcome: Outcome) -> None:
        """Count an episode; say so if it is time."""
        self.outcomes[outcome] += 1
        self.tick()

    def tick(self, *, now: bool = False) -> None:
        """Write the heartbeat; log the line if ``EVERY_S`` have passed or ``now``."""
        if not now and time.monotonic() - self._said < EVERY_S:
            return
        self._said = time.monotonic()
        if (line := self.line()) != self._line:  # not ten times that it waits for the policy
            self._line = line
            logger.info(line)
        if self.heartbeat is not None:
            write_atomically(self.heartbeat, (json.dumps(self.state()) + "\n").encode())

    def line(self) -> str:
        """``episodes 12/40 | 350/h | ETA 0:04:48 | success 3, failure 8, ... | retries 1, ...``."""
        counts = ", ".join(f"{name} {self.outcomes[name]}" for name in get_args(Outcome))
        kept = f" | kept {self.kept}" if self.kept else ""
        if self.began is None and self.done < self.total:
            return (
                f"episodes {self.done}/{self.total}{kept} | waiting for the policy | desktops {self.desktops}"
            )
        return (
            f"episodes {self.done}/{self.total}{kept} | {self.rate:.0f}/h | ETA {self.eta()} | {counts} | "
            f"retries {self.retries}, desktops {self.desktops}, restarts {self.restarts}"
        )

    def eta(self) -> str:
        """Time left as ``h:mm:ss``, ``?`` before the first episode."""
        if self.done >= self.total:
            return "0:00:00"
        if not sum(self.outcomes.values()):
            return "?"
        left = round(3600 * (self.total - self.done) / self.rate)
        return f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"

    def state(self) -> dict[str, object]:
        """The same for machines; ``time`` is Unix time, in seconds."""
        return {
            "time": time.time(),
            "done": self.done,
            "total": self.total,
            "kept": self.kept,
            "per_hour": self.rate,
            "outcomes": dict(self.outcomes),
            "retries": self.retries,
            "desktops": self.desktops,
            "restarts": self.restarts,
        }
