"""These tests need envs/cpu; in another environment they are not collected."""

import os
from importlib.util import find_spec

# Before torch loads OpenMP: threads that wait asleep, as in a study. On few cores those that spin take the
# time of those that work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
collect_ignore_glob = [] if find_spec("torch") and find_spec("transformers") else ["test_*.py"]
