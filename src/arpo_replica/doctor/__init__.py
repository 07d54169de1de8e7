"""Says what a machine lacks for a config: what a study itself would refuse, all of it at once, and what it
does not look at: limits of the machine, and values that users have met as silent traps.

A check is one function, registered with ``@check`` (``examine``); it asks the ``Machine`` alone, so that
tests can give it any machine. They all stand in ``checks``.
"""
