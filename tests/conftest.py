"""For all tests."""

import contextlib

with contextlib.suppress(ImportError):  # envs/gpu is without it
    from hypothesis import settings

    # No test is timed: a busy machine would fail it.
    settings.register_profile("untimed", deadline=None)
    settings.load_profile("untimed")
