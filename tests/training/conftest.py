"""verl on the CPU, also for tests that import parts of it. Set before anything imports verl."""

from __future__ import annotations

import os

os.environ.setdefault("VERL_PLATFORM", "cpu")
os.environ.setdefault("VERL_ENGINE_DEVICE", "cuda")
os.environ.setdefault("VERL_USE_EXTERNAL_MODULES", "arpo_replica.training.patches.verl_plugin")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Threads that wait asleep, as in a study: on few cores those that spin take the time of those that work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# TRL, once imported, silences the vLLM servers of later tests in the same process, whose logs are read.
os.environ.setdefault("VLLM_LOGGING_LEVEL", "INFO")
