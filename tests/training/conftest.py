"""verl on the CPU, also for tests that import parts of it. Set before anything imports verl."""

from __future__ import annotations

import os

os.environ.setdefault("VERL_PLATFORM", "cpu")
os.environ.setdefault("VERL_ENGINE_DEVICE", "cuda")
os.environ.setdefault("VERL_USE_EXTERNAL_MODULES", "arpo_replica.training.verl_plugin")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
