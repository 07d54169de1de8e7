"""arpo-replica: check a published result in reinforcement learning for computer-use agents.

Data flows one way: tasks -> episodes -> training -> checkpoints -> episodes -> scores -> report.

All modules say what they do through ``logging``. Their lines are shown here, as they are, on what is standard
error at that moment: a job has its own, which also goes to the rule's log. It is set up with the package
because Ray's workers, forked processes and Snakemake itself have no entry point of ours. What a user may pipe
(``arpo plan``, ``arpo doctor --json``) is printed on standard output by ``cli`` alone.
"""

import logging
import sys

__version__ = "0.1.0"


class _StandardError(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


_logger = logging.getLogger(__name__)
_logger.setLevel(logging.INFO)
_logger.addHandler(_StandardError())
