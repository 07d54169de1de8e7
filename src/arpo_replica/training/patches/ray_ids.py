"""Ray's random ids in forked processes (``fork_server``). Needs nothing but Ray.

Ray 2.60 draws the ids of tasks and objects from a generator of its native library, which a fork copies: if it
was used before, all children draw the same ids, and two of them can put different objects under one id. Seen
as a trainer that received a list in the place of its batch. What uses it before the fork is the class id that
``ray.actor`` draws for every class under ``@ray.remote`` when its module is imported.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray.actor
from ray import ActorClassID, JobID, TaskID

from arpo_replica.base.upstream_guards import UpstreamChanged


class SystemRandom:
    """In the place of ``ActorClassID`` in ``ray.actor``: ids from the kernel."""

    @staticmethod
    def from_random() -> ActorClassID:
        """As ``ActorClassID.from_random``."""
        return ActorClassID(os.urandom(ActorClassID.size()))


@contextmanager
def generator_unused() -> Iterator[None]:
    """Modules can be imported in here without a use of Ray's generator.

    Raises ``UpstreamChanged`` at the end if something used it all the same.
    """
    if getattr(ray.actor, "ActorClassID", None) is not ActorClassID:
        raise UpstreamChanged(f"{__name__} replaces ray.actor.ActorClassID, which is another one now.")
    ray.actor.ActorClassID = SystemRandom
    try:
        yield
    finally:
        ray.actor.ActorClassID = ActorClassID
    if first_id_of_child() == first_id_of_child():
        raise UpstreamChanged(
            "something imported before the fork has used Ray's generator of ids, so that all forked "
            "processes would draw the same ids; see arpo_replica.training.patches.ray_ids."
        )


def first_id_of_child() -> bytes:
    """The first task id that a process forked now draws."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writer, TaskID.for_fake_task(JobID.from_int(1)).binary())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        drawn = file.read()
    os.waitpid(pid, 0)
    return drawn
