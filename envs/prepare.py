"""Make one locked Python environment: ``python3 envs/prepare.py controller|cpu|gpu``.

Runs under any Python 3.11 or 3.12 with nothing installed. Does nothing, in milliseconds, when the
environment already matches its lock. Each environment is ``envs/{name}/.venv``:

- packages come from ``requirements.txt`` (exact versions, sha256 of every file), without their
  dependencies: the lock is complete; ``exclude.txt`` lists what is left out and why;
- torch (cpu only) is looked for as a CPU build wherever pip is configured to look (an extra index or
  a folder of wheels, by PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS). Where there is none, the registry's
  CUDA build is taken, with its gigabytes of CUDA packages: larger, but it works as well;
- the package `arpo_replica` itself is found in ``src/``; the controller has its command ``arpo``, too;
- ``repair_*.py`` beside the lock mend upstream faults, each alone, each refusing other versions.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ENVS = Path(__file__).resolve().parent
ROOT = ENVS.parent
CUDA_ONLY = re.compile(r"(nvidia|cuda)-|triton$")
TORCH = "2.13.0"


def main() -> int:
    """Prepare the environment named on the command line."""
    names = sorted(path.parent.name for path in ENVS.glob("*/requirements.txt"))
    if len(sys.argv) != 2 or sys.argv[1] not in names:
        print(f"usage: python3 envs/prepare.py {'|'.join(names)}", file=sys.stderr)
        return 2
    if not (3, 11) <= sys.version_info[:2] < (3, 13):
        print(f"Python 3.11 or 3.12 is needed, this is {sys.version.split()[0]}: set PYTHON=python3.11.")
        return 2
    folder = ENVS / sys.argv[1]
    stamp = folder / ".venv" / "prepared"
    wanted = fingerprint(folder)
    if stamp.is_file() and stamp.read_text() == wanted:
        return 0
    try:
        prepare(folder)
    except subprocess.CalledProcessError as error:
        command = " ".join(str(part) for part in error.cmd[:6])
        print(f"envs/{folder.name}: '{command} ...' failed with status {error.returncode}.", file=sys.stderr)
        return 1
    stamp.write_text(wanted)
    print(f"envs/{folder.name} is ready")
    return 0


def fingerprint(folder: Path) -> str:
    """Hash of everything that decides what lies in the environment."""
    digest = hashlib.sha256(f"{sys.version_info[:2]} {ROOT}".encode())
    for path in [Path(__file__), *sorted(folder.glob("*.txt")), *sorted(folder.glob("repair_*.py"))]:
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def prepare(folder: Path) -> None:
    """Build the environment anew."""
    print(f"envs/{folder.name}: installing", flush=True)
    venv = folder / ".venv"
    shutil.rmtree(venv, ignore_errors=True)
    run(sys.executable, "-m", "venv", venv)
    python = venv / "bin" / "python"
    lock = read_lock(folder / "requirements.txt")
    left_out = {line.split("#")[0].strip() for line in (folder / "exclude.txt").read_text().splitlines()}
    uv_lock = read_lock(ENVS / "controller" / "requirements.txt")["uv"]
    with tempfile.TemporaryDirectory() as scratch:
        uv_file = Path(scratch, "uv.txt")
        uv_file.write_text(uv_lock)
        run(python, "-m", "pip", "install", "--quiet", "--require-hashes", "--no-deps", "-r", uv_file)
        if "torch" in left_out:
            if install_cpu_torch(python):
                left_out |= {name for name in lock if CUDA_ONLY.match(name)}
            else:
                left_out.discard("torch")
        rest = Path(scratch, "requirements.txt")
        rest.write_text("".join(text for name, text in lock.items() if name not in left_out | {"uv"}))
        run(
            *(venv / "bin" / "uv", "pip", "install", "--quiet", "--python", python),
            *("--require-hashes", "--no-deps", "--compile-bytecode", "-r", rest),
        )
    site = Path(output(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"))
    (site / "arpo_replica.pth").write_text(f"{ROOT / 'src'}\n")
    if folder.name == "controller":
        command = venv / "bin" / "arpo"
        command.write_text(f'#!/bin/sh\nexec "{python}" -m arpo_replica "$@"\n')
        command.chmod(0o755)
    for repair in sorted(folder.glob("repair_*.py")):
        run(python, repair)


def install_cpu_torch(python: Path) -> bool:
    """Install torch's CPU build from wherever pip finds one; say so and return False if nowhere."""
    command = [python, "-m", "pip", "install", "--quiet", "--no-deps", f"torch=={TORCH}+cpu"]
    if subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 0:
        return True
    print(
        "No CPU build of torch where pip looks: taking the CUDA build, about 3 GB more. To avoid that, set "
        "PIP_EXTRA_INDEX_URL to PyTorch's index of CPU wheels (pytorch.org, 'Get started') and run again.",
        flush=True,
    )
    return False


def read_lock(path: Path) -> dict[str, str]:
    """Package name -> its lines (version, marker, hashes) in a locked requirements file."""
    entries: dict[str, str] = {}
    name = ""
    for line in path.read_text().splitlines(keepends=True):
        if line[0].isalnum():
            name = re.split(r"[=\[ ;]", line)[0]
        if name and not line.startswith("#"):
            entries[name] = entries.get(name, "") + line  # one version per marker: several entries
    return entries


def run(*command: object) -> None:
    """Run a command; its output is shown."""
    environment = {**os.environ, "UV_PYTHON_DOWNLOADS": "never", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    subprocess.run([str(part) for part in command], check=True, env=environment)


def output(*command: object) -> str:
    """Output of a command."""
    done = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True)
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
