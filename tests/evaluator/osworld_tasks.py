"""Tasks in OSWorld's schema for fake guests, and the processes of workers."""

import time
from pathlib import Path

from arpo_replica.base.processes import descendants
from arpo_replica.suites.osworld import client
from arpo_replica.tasks.model import Task


def process_of(worker):
    """The worker's process id out here: inside its sandbox it has another one."""
    for server in client._SERVERS.values():
        for process in descendants(server._process.pid) if server._process else ():
            status = Path(f"/proc/{process.pid}/status").read_text()
            numbers = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()
            if server._downloads == worker.downloads and int(numbers[-1]) == worker.number:
                return process.pid
    raise AssertionError("the worker has no process")


def gone(pid, limit_s=5.0):
    """True when the process has ended, or ends in time."""
    deadline = time.monotonic() + limit_s
    while Path(f"/proc/{pid}").exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def command(output):
    """Evaluator state: what a command of the desktop prints."""
    return {"type": "vm_command_line", "command": output}


def expects(text):
    """Evaluator state: that text."""
    return {"type": "rule", "rules": {"expected": text}}


def make_task(evaluator=None, config=(), name="task"):
    """A task in OSWorld's schema; by default it expects the command ``true`` to print ``yes``."""
    evaluator = evaluator or {"func": "exact_match", "result": command("true"), "expected": expects("yes")}
    raw = {"id": name, "instruction": "Do it.", "config": list(config), "evaluator": evaluator}
    return Task(name, "os", "Do it.", raw["config"], evaluator, raw, "0")


def step(kind, **parameters):
    return {"type": kind, "parameters": parameters}
