"""The errors that a user or the episode loop may meet, each with one meaning."""

import logging
import sys
from typing import NoReturn

logger = logging.getLogger(__name__)


def refuse(*sentences: object, status: int = 2) -> NoReturn:
    """End this process with sentences alone. Of an exception, Snakemake would show where it was raised."""
    for sentence in sentences:
        logger.error(str(sentence))
    sys.exit(status)


def brief(error: BaseException) -> str:
    """What an error of a library says, in one line of at most 200 characters, for a sentence of ours."""
    return " ".join(str(error).split())[:200] or type(error).__name__


class UserError(Exception):
    """A mistake in a config, file, id or endpoint.

    The message is one sentence that names the key or file and the fix. Entry points print it
    without a traceback and exit with status 2.
    """


class DesktopError(Exception):
    """The desktop, its set-up or its evaluator failed: the episode is an ``env_error``, never a score."""


class NoDesktopFree(DesktopError):
    """All desktops are taken at the moment. Nothing is wrong: it is asked again, and no attempt is
    counted."""


class PolicyError(Exception):
    """The policy's endpoint failed or did not answer: the episode is an ``env_error`` too."""


class RefusedError(PolicyError):
    """The endpoint has read the request and refuses it (context full, too many images): sent again, it would
    be refused again. After a first reply it ends the episode, which is then ``truncated``."""


class FormatError(ValueError):
    """Model text that is no valid action. The episode loop turns it into the format penalty."""


class Stopped(Exception):
    """A signal ended the job before it was done; what is finished is kept. Entry points exit with status 75.

    75 is EX_TEMPFAIL of ``sysexits.h``: Snakemake submits the job again (``retries``), and it goes on.
    """
