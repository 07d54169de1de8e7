"""Run ``snakemake --lint`` and fail on anything but what cannot be met without conda or containers.

Every rule here runs in a locked environment under ``envs/``; the linter only knows conda, containers
and environment modules, so its two titles on them are the only ones let through.
"""

import re
import subprocess
import sys
from pathlib import Path

ALLOWED = (
    "Specify a conda environment or container for each rule.",
    "Additionally specify a conda environment",
)

done = subprocess.run(
    [str(Path(sys.executable).with_name("snakemake")), "--lint"], capture_output=True, text=True, check=False
)
titles = re.findall(r"^ {4}\* (.+?):?$", done.stderr, flags=re.MULTILINE)
refused = [title for title in titles if not title.startswith(ALLOWED)]
if refused or (done.returncode and not titles):
    print(done.stderr, file=sys.stderr)
    sys.exit(f"snakemake --lint: {len(refused)} findings: {sorted(set(refused))}")
print(f"snakemake --lint: {len(titles)} allowed findings, no other")
