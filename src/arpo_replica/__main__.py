"""``python -m arpo_replica``."""

import sys

from arpo_replica.cli import main

sys.exit(main())
