"""A study as a folder and a zip that can be put on the web or into an archive."""

import json
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
from rocrate.model.contextentity import ContextEntity
from rocrate.rocrate import ROCrate

from arpo_replica.base.checkout import CHANGED, require_clean
from arpo_replica.base.environments import ROOT
from arpo_replica.base.errors import UserError
from arpo_replica.base.files import file_sha256
from arpo_replica.base.tables import load_yaml, table_of
from arpo_replica.base.unfinished import ASIDE
from arpo_replica.config.models import StudyConfig
from arpo_replica.evaluation.osworld_export import export_osworld
from arpo_replica.evaluation.records import Claims, Summary
from arpo_replica.evaluation.scores import read_scores
from arpo_replica.report.render import read_input
from arpo_replica.report.views import banner

WORDS = table_of(__file__)


@dataclass(frozen=True)
class PublishedFiles:
    """What goes along; the rule hands over each."""

    page: Path
    screenshots: Path
    """Folder of those that the page's budget left out; it may not be there."""
    summary: Path
    claims: Path
    provenance: Path
    config: Path
    scores: Path
    rows: Path
    """The scores as CSV."""
    tables: Sequence[Path]
    training: Sequence[Path]
    """Metrics, gates and manifests, each in the folder of its stage."""
    indexes: Sequence[Path]
    """Of the evaluation's episodes."""
    taught: Sequence[Path]
    """Of the episodes that offline arms learnt from."""
    results: Path
    """The study's folder: nothing in it may be invented, and its episodes go along."""


def publish_report(
    config: StudyConfig, files: PublishedFiles, folder: Path, archive: Path, *, repository: Path = ROOT
) -> None:
    """Write ``folder`` (anew) and ``archive``, the same as a zip.

    page and screenshots beside it, ``data/``, ``tables/``, ``training/`` (metrics, gates and manifests),
    ``episodes/`` (indexes), ``offline/`` (indexes of what offline arms learnt from), ``osworld/`` (OSWorld's
    layout), ``trajectories/`` if ``report.full_trajectories`` (and ``offline/`` in full),
    ``ro-crate-metadata.json``, ``SHA256SUMS``. The same results give the same bytes.

    Raises ``UserError`` for invented data and, with ``report.published``, for a checkout with uncommitted
    changes, now or when the results were made.
    """
    origin, scores = check_publishable(config, files, repository)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.copyfile(files.page, folder / "index.html")
    if files.screenshots.is_dir():
        shutil.copytree(files.screenshots, folder / files.screenshots.name)
    for path in (files.summary, files.claims, files.provenance, files.config, files.rows, files.scores):
        _copy(path, folder / "data")
    for path in files.tables:
        _copy(path, folder / "tables")
    for path in files.training:
        _copy(path, folder / "training", levels=3)  # arm, seed, stage
    for path in files.indexes:
        _copy(path, folder / "episodes", levels=5)  # arm, seed, stage, split, trial
    for path in files.taught:
        _copy(path, folder / "offline", levels=2)  # split, trial
    if files.indexes:
        export_osworld(config, files.results / "episodes", folder / "osworld")
    if config.report.full_trajectories:
        for source, target in (("episodes", "trajectories"), ("offline", "offline")):
            if (files.results / source).is_dir():
                hidden = shutil.ignore_patterns(".*", f"*{ASIDE}")
                shutil.copytree(files.results / source, folder / target, ignore=hidden, dirs_exist_ok=True)
    mark = banner(config)["tag"]
    commit = origin["git"]["commit"]
    readme = WORDS["readme"].format(study=config.study, mark=mark, commit=commit or "unknown")
    (folder / "README.txt").write_text(readme, encoding="utf-8")
    (folder / ".nojekyll").touch()  # static hosts must not skip files that begin with a dot or underscore
    write_crate(
        folder,
        study=config.name,
        mark=mark,
        commit=commit,
        finished=float(scores["started_at"].max()) if len(scores) else 0.0,
        citation=repository / "CITATION.cff",
    )
    write_hashes(folder)
    write_zip(folder, archive)


def check_publishable(
    config: StudyConfig, files: PublishedFiles, repository: Path
) -> tuple[dict[str, Any], pd.DataFrame]:
    """The provenance and the scores. Refuse what must not go out under the name of a measurement."""
    read_input(files.summary, Summary.model_validate_json)
    read_input(files.claims, Claims.model_validate_json)
    origin: dict[str, Any] = read_input(files.provenance, json.loads)
    scores = read_scores(files.scores)
    refuse_synthetic(files.results)
    if bool(scores["synthetic"].any()):
        raise UserError(
            f"{files.results} holds invented (synthetic) episodes; invented data are never published."
        )
    if config.report.published:
        _refuse_changes(origin, files)
        require_clean(repository)
    return origin, scores


def _refuse_changes(origin: dict[str, Any], files: PublishedFiles) -> None:
    if origin["git"]["commit"] is None or origin["git"]["dirty"]:
        raise UserError(
            f"report.published is true, but {files.results} was made from a checkout with uncommitted "
            "changes or outside git; commit, delete provenance.json there and run again."
        )
    for path in (path for path in files.training if path.name == "manifest.json"):
        if read_input(path, json.loads)["versions"].get("arpo-replica", "").endswith(CHANGED):
            raise UserError(
                f"report.published is true, but {path} was trained from a checkout with uncommitted changes; "
                "commit, remove its folder and run again."
            )
    last = {job["output"]: job for job in origin["cluster_jobs"]}
    for output, job in sorted(last.items()):
        if job.get("commit", "").endswith(CHANGED):
            raise UserError(
                f"report.published is true, but {output} was made by job {job['job']} from a checkout with "
                "uncommitted changes; commit, remove its folder and run again."
            )


def _copy(source: Path, folder: Path, levels: int = 0) -> None:
    """Copy a file into ``folder``, with the last ``levels`` folders that it lies in."""
    target = folder.joinpath(*source.parts[-1 - levels :])
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


# --- invented data is never published ---


def refuse_synthetic(results: Path) -> None:
    """Raise ``UserError`` if anything in a study's folder says that it was invented.

    Looks at the summary, at every index of episodes, at every episode's own record and at the models'
    manifests, so that removing the mark in one place hides nothing. A broken file hides nothing either: what
    cannot be read is refused as well.
    """
    for path, mark in _marks(results):
        if mark:
            raise UserError(
                f"{path} says that its data is synthetic; invented data are never published: publish a "
                "measured study."
            )


def _marks(results: Path) -> Iterator[tuple[Path, bool]]:
    for name in ("summary.json", "episodes.jsonl", "episode.json"):
        for path in sorted(results.rglob(name)):
            data = path.read_bytes()
            for record in filter(None, data.split(b"\n")) if name.endswith("l") else [data]:
                yield path, bool(_object(path, record).get("synthetic"))
    for path in sorted(results.rglob("manifest.json")):
        recipe = _object(path, path.read_bytes()).get("recipe")
        yield path, isinstance(recipe, dict) and bool(recipe.get("synthetic"))


def _object(path: Path, data: bytes) -> dict[str, object]:
    try:
        found = json.loads(data)
    except ValueError as error:
        raise UserError(f"{path} is no JSON, so nothing says that it was measured; make it again.") from error
    return found if isinstance(found, dict) else {}


# --- what is in the folder, for machines: RO-Crate, hashes, a zip ---

METADATA = "ro-crate-metadata.json"
PAPER = "https://arxiv.org/abs/2505.16282"


def write_crate(
    folder: Path, *, study: str, mark: str, commit: str | None, finished: float, citation: Path
) -> Path:
    """Write ``ro-crate-metadata.json`` into ``folder``; it lists every file there is.

    ``finished``: Unix time of the last episode, taken as the date of publication, so that the same results
    give the same bytes. ``citation``: the repository's CITATION.cff. Large sets of trajectories are listed
    as folders.
    """
    software = load_yaml(citation.read_text(encoding="utf-8")) if citation.is_file() else {}
    crate = ROCrate()
    crate.name = f"ARPO replication: study {study} ({mark})"
    crate.description = WORDS["about"].format(study=study, mark=mark)
    crate.datePublished = datetime.fromtimestamp(finished, tz=UTC)
    crate.license = str(software.get("license", "Apache-2.0"))
    crate.keywords = list(software.get("keywords", []))
    program = crate.add(
        ContextEntity(
            crate,
            "#arpo-replica",
            properties={
                "@type": "SoftwareApplication",
                "name": str(software.get("title", "arpo-replica")),
                "version": commit or "unknown",
            },
        )
    )
    paper = crate.add(
        ContextEntity(
            crate, PAPER, properties={"@type": "ScholarlyArticle", "name": "ARPO, arXiv 2505.16282"}
        )
    )
    crate.root_dataset["isBasedOn"] = paper
    crate.root_dataset["mentions"] = program
    for path in files_of(folder):
        name = path.relative_to(folder).as_posix()
        if name not in (METADATA, "SHA256SUMS") and name.partition("/")[0] not in WORDS["folders"]:
            crate.add_file(path, name, properties=_properties(path, name))
    for name, text in WORDS["folders"].items():
        if (folder / name).is_dir():
            crate.add_dataset(folder / name, f"{name}/", properties={"name": name, "description": text})
    described = crate.metadata.generate()
    first = {METADATA: 0, "./": 1}  # these two must come first
    described["@graph"].sort(key=lambda entity: (first.get(entity["@id"], 2), entity["@id"]))
    content = json.dumps(described, indent=1, ensure_ascii=False, sort_keys=True)
    out = folder / METADATA
    out.write_text(content + "\n", encoding="utf-8")
    return out


def _properties(path: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": name,
        "contentSize": str(path.stat().st_size),
        "sha256": file_sha256(path),
    }
    if path.suffix in WORDS["kinds"]:
        found["encodingFormat"] = WORDS["kinds"][path.suffix]
    if name in WORDS["files"]:
        found["description"] = WORDS["files"][name]
    return found


EPOCH = (1980, 1, 1, 0, 0, 0)
"""The first time that a zip can hold."""


def files_of(folder: Path) -> Iterator[Path]:
    """Every file below ``folder``, sorted by its path as text."""
    yield from sorted(
        (path for path in folder.rglob("*") if path.is_file()),
        key=lambda path: path.relative_to(folder).as_posix(),
    )


def write_hashes(folder: Path, name: str = "SHA256SUMS") -> Path:
    """``sha256sum``'s format: ``sha256sum -c`` checks a download."""
    out = folder / name
    out.unlink(missing_ok=True)
    lines = [f"{file_sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in files_of(folder)]
    out.write_text("".join(lines), encoding="utf-8")
    return out


def write_zip(folder: Path, out: Path) -> None:
    """Zip ``folder`` under its own name: sorted, one time, one mode: nothing depends on the machine."""
    temporary = out.with_name(f".{out.name}.part")
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for path in files_of(folder):
            name = f"{folder.name}/{path.relative_to(folder).as_posix()}"
            info = zipfile.ZipInfo(name, EPOCH)
            info.external_attr = 0o100644 << 16
            info.create_system = 3
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, path.read_bytes(), compresslevel=6)
    temporary.replace(out)
