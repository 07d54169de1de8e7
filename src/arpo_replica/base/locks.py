"""Lock files that the kernel drops with their process, on file systems that may not know them."""

import errno
import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from arpo_replica.base.errors import UserError

logger = logging.getLogger(__name__)

UNKNOWN = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}
"""What ``flock`` says on a Lustre without ``-o flock``, or an NFS without its lock manager."""
LOST_NODE_S = 120.0
"""On a cluster: NFS drops the locks of a node that is gone after 90 s."""


def lock(file: IO[str], *, wait: bool) -> bool:
    """Lock an open file until it is closed; False where the file system has no locks.

    Raises BlockingIOError if another process holds it and ``wait`` is false.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno not in UNKNOWN:
            raise
        return False
    return True


@contextmanager
def locked(path: Path, does: str = "trains this stage") -> Iterator[None]:
    """Hold a lock file. Raises ``UserError`` if another process keeps it. ``does``: what that one does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    patience_s = LOST_NODE_S if "SLURM_JOB_ID" in os.environ else 0.0
    deadline = time.monotonic() + patience_s
    with path.open("w") as file:
        while True:
            try:
                known = lock(file, wait=False)
                break
            except BlockingIOError as error:
                if time.monotonic() >= deadline:
                    raise UserError(
                        f"Another process {does} (it holds {path}); wait for it or stop it."
                    ) from error
            time.sleep(1)
        if not known:
            logger.warning(
                f"The file system of {path} knows no locks: see to it that no other process {does}."
            )
        yield
