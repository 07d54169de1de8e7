"""What the service of remote desktops and its client agree on. All calls are HTTP POSTs with JSON bodies
but ``GET /v1/status``; a call is sent once and never again.

=================================  ==========================  ==========================================
call                               body                        answer
=================================  ==========================  ==========================================
GET /v1/status                                                 facts, count, leased, screen, lease_s
/v1/lease                          name, screen, wait_s        lease, lease_s; 503: all are taken
/v1/heartbeat                      leases                      alive: those of them that still exist
/v1/desktops/{lease}/reset         task                        {}
/v1/desktops/{lease}/screenshot    {}                          PNG
/v1/desktops/{lease}/act           action, id                  status: applied or duplicate
/v1/desktops/{lease}/evaluate      task, last_action           score
/v1/desktops/{lease}/close         {}                          {}
=================================  ==========================  ==========================================

A task is named by domain, id and sha256 of its file and read from the service's own folders, so a client
cannot make the service open other files. Failures: 400 no such body, 401 wrong token, 404 no such lease,
409 the two sides differ (screen, task file), 413 body too long, 500 the desktop failed; all with ``error``.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from arpo_replica.tasks.model import Task

VERSION = 2
MAX_BODY = 64 * 1024
"""Longest body of a call, in bytes; the longest text of an action has 4,096 characters."""
MAX_ANSWER = 64 * 1024 * 1024
"""Longest answer that a client reads, in bytes."""
LEASE_S = 30.0
"""A client not heard of for so long has lost its desktops."""
WAIT_S = 20.0
"""Longest time that one call for a desktop waits while all are taken."""
NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$"
"""A domain or an id: one name of a file, no path."""


class Body(BaseModel):
    """Any body; unknown fields are refused."""

    model_config = ConfigDict(extra="forbid")


class TaskName(Body):
    """Which task, and which version of its file."""

    domain: str = Field(pattern=NAME)
    id: str = Field(pattern=NAME)
    sha256: str = Field(max_length=64)

    @classmethod
    def of(cls, task: Task) -> TaskName:
        """The name of a task."""
        return cls(domain=task.domain, id=task.id, sha256=task.sha256)


class LeaseRequest(Body):
    """Ask for a desktop."""

    name: str = Field(max_length=100)
    screen: tuple[int, int]
    wait_s: float = Field(ge=0, le=WAIT_S)


class Heartbeat(Body):
    """The client of these leases is alive."""

    leases: list[str] = Field(max_length=1_000)


class ResetRequest(Body):
    """Make the desktop ready for a task."""

    task: TaskName


class ActRequest(Body):
    """One action, in ``Action.to_json``'s form, and its id."""

    action: dict[str, Any]
    id: str = Field(min_length=1, max_length=100)


class EvaluateRequest(Body):
    """Score the state as it is."""

    task: TaskName
    last_action: dict[str, Any] | None


class Nothing(Body):
    """No field at all."""
