"""``python -m arpo_replica.models.fetch HUB REVISION FOLDER``: a pinned model of the hub, no code."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from arpo_replica.base.errors import UserError
from arpo_replica.models.weights import FETCHED


def fetch(hub: str, revision: str, folder: Path) -> None:
    """Download into ``folder``, whole or not at all. Raises ``UserError`` if the hub cannot be reached."""
    os.environ["HF_HUB_OFFLINE"] = "0"  # this one process may ask; all others stay offline
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import snapshot_download

    partial = folder.with_name(f".{folder.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    try:
        snapshot_download(hub, revision=revision, local_dir=partial, allow_patterns=list(FETCHED))
    except Exception as error:
        # The library has a dozen errors for "no network", "no such commit" and "not allowed".
        brief = " ".join(str(error).split())[:200]
        raise UserError(
            f"{hub} at {revision[:12]} cannot be fetched ({type(error).__name__}: {brief}); fetch it on a "
            "machine that reaches the hub and set policy.model to the folder."
        ) from None
    shutil.rmtree(partial / ".cache", ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)  # only ever called for one that lacks its config.json
    partial.rename(folder)


def main(arguments: list[str]) -> int:
    """Status 2 and one sentence for a user's mistake."""
    try:
        fetch(arguments[0], arguments[1], Path(arguments[2]))
    except UserError as error:
        sys.stdout.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
