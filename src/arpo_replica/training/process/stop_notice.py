"""Leave in order when a cluster says so.

Before a job's time limit Slurm sends the signal that the profile names, to every process of the job. It is
SIGURG, because all others ignore it: SIGTERM would end Ray and vLLM as well. The training is then asked to
save after the step that it is at (``Job.save_file``; the sampler looks for it), and ends as soon as that
checkpoint is whole, or when the time that is left is over. After SIGTERM (pre-emption, ``scancel``) it ends
at once; the newest checkpoint is what a new run goes on from.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

VARIABLE = "ARPO_GRACE_S"
"""Environment variable: seconds between the warning and the end of the job. Set by the cluster's profile."""
WARNING = signal.SIGURG
"""What warns of the time limit; ``--signal=URG@seconds`` in the profile."""
RESERVE_S = 20.0
"""Of these, kept back for ending the processes."""


@dataclass
class Notice:
    """Whether, and when, a signal came."""

    grace_s: float = 0.0
    """Seconds that a checkpoint may take."""
    came_at: float | None = None
    """``time.monotonic()``."""

    @property
    def came(self) -> bool:
        """True once the job must end."""
        return self.came_at is not None

    def over(self) -> bool:
        """True if there is no more time to wait for a checkpoint."""
        return self.came_at is not None and time.monotonic() - self.came_at >= self.grace_s

    def give(self, *, at_once: bool = False) -> None:
        """A signal came; a second warning changes nothing. ``at_once``: no time is left."""
        if at_once:
            self.grace_s = 0.0
        if self.came_at is None:
            self.came_at = time.monotonic()


def grace_of(environment: Mapping[str, str] = os.environ) -> float:
    """Seconds in which a training may still save."""
    text = environment.get(VARIABLE, "")
    return max(0.0, float(text) - RESERVE_S) if text.replace(".", "", 1).isdigit() else 0.0


@contextmanager
def listening() -> Iterator[Notice]:
    """Turn ``WARNING`` and SIGTERM into a notice meanwhile; outside of the main thread nothing can listen."""
    notice = Notice(grace_of())
    if threading.current_thread() is not threading.main_thread():
        yield notice
        return

    def hear(number: int, frame: FrameType | None) -> None:
        notice.give(at_once=number == signal.SIGTERM)

    before = {number: signal.signal(number, hear) for number in (WARNING, signal.SIGTERM)}
    try:
        yield notice
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
