"""OSWorld's own set-up steps, evaluators and providers (package ``desktop-env``), behind a process boundary.

``client`` and ``inventory`` run anywhere; ``server`` and ``desktop_env`` only in envs/evaluator.
"""
