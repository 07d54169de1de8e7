"""Let the registry's torchvision 0.28.0 be imported beside a CPU build of torch.

The registry's Linux wheel is a CUDA build; its ``_C.so`` cannot load beside torch+cpu, and import then
fails with "operator torchvision::nms does not exist". Nothing here uses its operators. So: define the
two operators that are looked up at import, and drop the meta registrations that need them all.
torchvision's own ``+cpu`` wheel, or a CUDA torch, needs nothing: then this script changes nothing.
"""

import importlib.metadata
import importlib.util
import subprocess
import sys
from pathlib import Path

VERSION = "0.28.0"
DEFINITIONS = """

# --- added by arpo-replica's envs/cpu/repair_torchvision.py: operators without an implementation ---
if not _has_ops():
    import torch as _torch

    _definitions = _torch.library.Library("torchvision", "DEF")
    _definitions.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _definitions.define(
        "roi_align(Tensor input, Tensor rois, float spatial_scale, int pooled_height, int pooled_width, "
        "int sampling_ratio, bool aligned) -> Tensor"
    )
"""


def import_error() -> str | None:
    """Last line of what importing torchvision in a fresh interpreter says, or None if it works."""
    command = [sys.executable, "-c", "import torchvision"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    return (done.stderr.strip() or f"status {done.returncode}").splitlines()[-1]


problem = import_error()
if problem is not None and "torchvision::nms" not in problem:
    sys.exit(f"torchvision cannot be imported for another reason than the known one: {problem}")
if problem is not None:
    found = importlib.metadata.version("torchvision").split("+")[0]
    if found != VERSION:
        sys.exit(f"repair_torchvision.py is for torchvision {VERSION}, not {found}: revise it")
    spec = importlib.util.find_spec("torchvision")
    folder = Path(spec.submodule_search_locations[0])
    extension = folder / "extension.py"
    text = extension.read_text()
    if "def _has_ops" not in text:
        sys.exit("torchvision/extension.py has no _has_ops any more: repair_torchvision.py must be revised")
    extension.write_text(text + DEFINITIONS)
    (folder / "_meta_registrations.py").write_text("# emptied by arpo-replica's repair_torchvision.py\n")
    problem = import_error()
    if problem is not None:
        sys.exit(f"torchvision still cannot be imported, repair_torchvision.py must be revised: {problem}")
