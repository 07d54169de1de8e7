"""Snakemake's command line, looked at first: a slip gets one sentence with the nearest name.

Snakemake reads ``profiles/default`` before config files and the Snakefile, and a profile may call Python: the
one place ahead of the tracebacks with which Snakemake answers a missing ``--configfile`` or a bad
``--config``. Without that profile (``--workflow-profile none``) those are what a user sees.
"""

import difflib
from collections.abc import Collection

from arpo_replica.base.errors import UserError, refuse
from arpo_replica.config.load import known_keys, read_yaml, require_file

targets: list[str] = []
"""What this Snakemake is asked for; empty if the profile was not read. Its own object does not have them yet
while it reads the Snakefile, where all rules are known."""


def check_command_line() -> None:
    """For the profile: end Snakemake with one sentence and status 2 if its options cannot work."""
    from snakemake.cli import get_argument_parser

    options = get_argument_parser().parse_args()
    targets[:] = options.targets
    try:
        for path in options.configfile or ():
            require_file(path)
            read_yaml(path, f"Config {path}")  # Snakemake's own reader drops the first of two equal keys
        for entry in options.config or ():
            check_entry(entry)
    except UserError as error:
        refuse(error)


def runs_here() -> bool:
    """True if this Snakemake runs the jobs itself, False with another profile's or a cluster's executor."""
    from snakemake.cli import get_argument_parser

    options = get_argument_parser().parse_args()
    return not options.profile and options.executor in (None, "local")


def check_entry(entry: str) -> None:
    """Refuse what ``--config`` cannot take. Raises ``UserError`` with what to write in its place."""
    name, sign, value = entry.partition("=")
    if not sign:
        raise UserError(f"--config takes NAME=VALUE, not '{entry}'; if that is a target, put '--' before it.")
    first, *rest = name.split(".")
    if not rest:
        return
    location: list[str | int] = []
    for key in (first, *rest):
        location.append(next(iter(difflib.get_close_matches(key, known_keys(location), n=1)), key))
    for inner in reversed(location[1:]):
        value = f"{{{inner}: {value}}}"
    raise UserError(f"--config takes no dots, as in '{name}'; write --config '{location[0]}={value}'.")


def check_targets(rules: Collection[str]) -> None:
    """Refuse a target that is neither a rule nor a path. Raises ``UserError`` with the nearest rule."""
    for target in targets:
        if "/" not in target and target not in rules:
            close = difflib.get_close_matches(target, rules, n=1)
            hint = f"did you mean '{close[0]}'?" if close else "'snakemake --list-rules' names them all."
            raise UserError(f"There is no target '{target}'; {hint}")
