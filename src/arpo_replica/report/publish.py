"""A study as a folder and a zip that can be put on the web or into an archive."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from arpo_replica.base.checkout import CHANGED, require_clean
from arpo_replica.base.environments import ROOT
from arpo_replica.base.errors import UserError
from arpo_replica.base.unfinished import ASIDE
from arpo_replica.config.models import StudyConfig
from arpo_replica.evaluation.genuine import refuse_synthetic
from arpo_replica.evaluation.osworld_export import export_osworld
from arpo_replica.evaluation.records import Claims, Summary
from arpo_replica.evaluation.scores import read_scores
from arpo_replica.evaluation.tables import write_tables
from arpo_replica.report.archive import write_hashes, write_zip
from arpo_replica.report.crate import write_crate
from arpo_replica.report.render import FULL_SET, read_input
from arpo_replica.report.views import banner

DATA = (
    "summary.json",
    "claims.json",
    "provenance.json",
    "config.resolved.yaml",
    "scores.csv",
    "scores.parquet",
)


def publish_report(
    config: StudyConfig, results: Path, page: Path, folder: Path, archive: Path, *, repository: Path = ROOT
) -> None:
    """Write ``folder`` (anew) and ``archive``, the same as a zip.

    page and screenshots beside it, ``data/``, ``tables/``, ``training/`` (metrics, gates and manifests),
    ``episodes/`` (indexes), ``offline/`` (indexes of what offline arms learnt from), ``osworld/`` (OSWorld's
    layout), ``trajectories/`` if ``report.full_trajectories`` (and ``offline/`` in full),
    ``ro-crate-metadata.json``, ``SHA256SUMS``. The same results give the same bytes.

    Raises ``UserError`` for invented data and, with ``report.published``, for a checkout with uncommitted
    changes, now or when the results were made.
    """
    check_publishable(config, results, repository)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.copyfile(page, folder / "index.html")
    if (page.parent / FULL_SET).is_dir():
        shutil.copytree(page.parent / FULL_SET, folder / FULL_SET)
    for name in DATA:
        if (results / name).is_file():
            _copy(results / name, folder / "data" / name)
    write_tables(
        results / "summary.json", results / "claims.json", results / "scores.parquet", folder / "tables"
    )
    for pattern in ("metrics.jsonl", "learning.jsonl", "stage_report.json", "manifest.json"):
        for path in sorted((results / "models").glob(f"*/*/*/{pattern}")):
            _copy(path, folder / "training" / path.relative_to(results / "models"))
    _copy_episodes(config, results / "episodes", folder)
    origin = json.loads((results / "provenance.json").read_bytes())
    scores = read_scores(results / "scores.parquet")
    mark = banner(config)["tag"]
    (folder / "README.txt").write_text(_readme(config, mark, origin["git"]["commit"]), encoding="utf-8")
    (folder / ".nojekyll").touch()  # static hosts must not skip files that begin with a dot or underscore
    write_crate(
        folder,
        study=config.name,
        mark=mark,
        commit=origin["git"]["commit"],
        finished=float(scores["started_at"].max()) if len(scores) else 0.0,
        citation=repository / "CITATION.cff",
    )
    write_hashes(folder)
    write_zip(folder, archive)


def check_publishable(config: StudyConfig, results: Path, repository: Path) -> None:
    """Refuse what must not go out under the name of a measurement."""
    read_input(results / "summary.json", Summary.model_validate_json)
    read_input(results / "claims.json", Claims.model_validate_json)
    refuse_synthetic(results)
    if bool(read_scores(results / "scores.parquet")["synthetic"].any()):
        raise UserError(f"{results} holds invented (synthetic) episodes; invented data are never published.")
    if not config.report.published:
        return
    origin = read_input(results / "provenance.json", json.loads)
    if origin["git"]["commit"] is None or origin["git"]["dirty"]:
        raise UserError(
            f"report.published is true, but {results} was made from a checkout with uncommitted changes or "
            "outside git; commit, delete provenance.json there and run again."
        )
    for path in sorted(results.glob("models/*/seed_*/stage_*/manifest.json")):
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
    require_clean(repository)


def _copy_episodes(config: StudyConfig, episodes: Path, folder: Path) -> None:
    indexes = [path for path in sorted(episodes.rglob("episodes.jsonl")) if path.parent.suffix != ASIDE]
    for path in indexes:
        _copy(path, folder / "episodes" / path.relative_to(episodes))
    if indexes:
        export_osworld(config, episodes, folder / "osworld")
    taught = episodes.with_name("offline")
    for path in sorted(taught.rglob("episodes.jsonl")):
        _copy(path, folder / "offline" / path.relative_to(taught))
    if config.report.full_trajectories:
        for source, target in ((episodes, "trajectories"), (taught, "offline")):
            if source.is_dir():
                hidden = shutil.ignore_patterns(".*", f"*{ASIDE}")
                shutil.copytree(source, folder / target, ignore=hidden, dirs_exist_ok=True)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _readme(config: StudyConfig, mark: str, commit: str | None) -> str:
    return (
        f"Study {config.study} ({mark}) of arpo-replica, a pipeline that checks ARPO (arXiv 2505.16282).\n"
        f"Commit {commit or 'unknown'}.\n\n"
        "index.html               the report; open it in a browser, no network is needed\n"
        "data/                    summary, claims, provenance, resolved config, one row per episode\n"
        "tables/                  every table of the report as CSV and JSON\n"
        "training/                metrics of every update, gates and manifest of every finished stage\n"
        "episodes/                index of every set of episodes\n"
        "offline/                 what offline arms learnt from: indexes (in full like trajectories/)\n"
        "osworld/                 results in the layout of OSWorld's runner\n"
        "screenshots/             screenshots that the page's budget left out (if report.full_screenshots)\n"
        "trajectories/            every episode in full (if report.full_trajectories)\n"
        "ro-crate-metadata.json   the same list for machines (RO-Crate)\n"
        "SHA256SUMS               check a download with: sha256sum -c SHA256SUMS\n"
    )
