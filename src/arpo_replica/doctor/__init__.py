"""Says what a machine lacks for a config: many small checks, one line each, with the fix.

A check is one function, registered with ``@check`` (``registry``); it asks the ``Machine`` alone, so that
tests can give it any machine. To add a group, write ``checks_NAME.py`` and name it in ``registry.GROUPS``.
"""
