"""Subcommands about this machine: ``doctor`` and ``serve-desktops``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from arpo_replica.cli_options import add_config
from arpo_replica.config import load_config


def add_machine_commands(commands: Any) -> None:
    """Add the subcommands; each sets ``run``, a function of the options that returns the exit status."""
    doctor = commands.add_parser(
        "doctor",
        help="say what this machine lacks for a config, one line each, with the fix",
        description="Exit status 0: nothing fails; 1: something does. All checks: docs/doctor.md.",
    )
    add_config(doctor)
    doctor.add_argument("--json", action="store_true", help="print one JSON document")
    doctor.add_argument("--only", default="", metavar="NAMES", help="run these checks only, comma-separated")
    doctor.add_argument("--list", action="store_true", help="list all checks and what each is for")
    doctor.set_defaults(run=run_doctor)
    serve = commands.add_parser(
        "serve-desktops",
        help="lend this machine's desktops to studies that run elsewhere (desktop.provider: remote)",
        description="Needs a token in the environment variable that desktop.remote.token_variable names.",
    )
    add_config(serve, required=True, more="; the section 'desktop' says what is lent")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default: loopback)")
    serve.add_argument("--port", type=int, default=8700, help="0: any free one")
    serve.add_argument("--allow-network", action="store_true", help="let --host be another than loopback")
    serve.add_argument("--lease-seconds", type=float, default=30.0, help="silence that ends a client's lease")
    serve.add_argument("--tasks", type=Path, action="append", default=[], help="further folder of task files")
    serve.set_defaults(run=run_service)


def run_service(options: argparse.Namespace) -> int:
    """Lend desktops until a signal ends it."""
    from arpo_replica.providers.remote_main import serve_desktops

    serve_desktops(
        load_config(*options.config),
        host=options.host,
        port=options.port,
        allow_network=options.allow_network,
        lease_s=options.lease_seconds,
        roots=options.tasks,
    )
    return 0


def run_doctor(options: argparse.Namespace) -> int:
    """Print the findings; 1 if any of them is a failure."""
    from arpo_replica.doctor.report import run

    return run(options.config, as_json=options.json, only=options.only, only_list=options.list)


def write_doctor_page(path: Path = Path("docs/doctor.md")) -> None:
    """Make the tables of the doctor's page anew, if this is a checkout."""
    from arpo_replica.doctor.report import fill

    if path.is_file():
        path.write_text(fill(path.read_text()))
