"""``copy``: take a study to another folder so that Snakemake goes on there instead of beginning anew.

What a finished result was made from (the values of its params, the sha256 of its inputs) Snakemake keeps in
``.snakemake/metadata``, a file for each output. Without it, times alone count, and in another checkout every
committed file is newer than every result.
"""

import shutil
from pathlib import Path

from arpo_replica.base.errors import UserError
from arpo_replica.cluster.orphan_jobs import about_outputs
from arpo_replica.config import StudyConfig

RECORDS = Path(".snakemake/metadata")


def folders_of(config: StudyConfig) -> list[Path]:
    """What a study has made or found here: results, page, OSWorld's task files, another study's policy."""
    wanted = [Path("results", config.name), Path("reports", config.name), Path("results/osworld")]
    model = Path(config.policy.model)
    if model.parts[0] == "results" and wanted[0] not in model.parents:
        wanted.append(model)
    return [folder for folder in wanted if folder.is_dir()]


def copy_study(config: StudyConfig, target: Path) -> list[Path]:
    """Copy the study's folders, times included, and Snakemake's records of them; the folders.

    ``target``: another checkout or working folder. Raises ``UserError`` if there is nothing to copy, if a
    Snakemake works here, or if the study is there already.
    """
    folders = folders_of(config)
    if folders[:1] != [Path("results", config.name)]:
        raise UserError(f"There is no study '{config.name}' under results/ here; run it first.")
    if any(Path(".snakemake/locks").glob("*.lock")):
        raise UserError(
            "Snakemake holds a lock here; wait for it, or, if it was killed, run 'snakemake --unlock'."
        )
    if (target / folders[0]).exists():
        raise UserError(f"{target / folders[0]} is there already; move it away, or name another folder.")
    for folder in folders:
        shutil.copytree(folder, target / folder, symlinks=True, dirs_exist_ok=True)
    for path, output in about_outputs(RECORDS):
        if any(folder in Path(output).parents for folder in folders):
            copied = target / path
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, copied)
    return folders
