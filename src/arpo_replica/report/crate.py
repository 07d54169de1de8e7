"""RO-Crate metadata of a published folder: what it is, what is in it, what made it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rocrate.model.contextentity import ContextEntity
from rocrate.rocrate import ROCrate

from arpo_replica.config.load import load_yaml
from arpo_replica.report.archive import files_of, sha256_of

METADATA = "ro-crate-metadata.json"
KINDS = {
    ".html": "text/html", ".json": "application/json", ".jsonl": "application/jsonl", ".csv": "text/csv",
    ".yaml": "application/yaml", ".webp": "image/webp", ".png": "image/png", ".txt": "text/plain",
    ".parquet": "application/vnd.apache.parquet", ".md": "text/markdown",
}  # fmt: skip
DESCRIPTIONS = {
    "index.html": "The report: verdicts, figures, trajectories, provenance. Opens without a network.",
    "data/summary.json": "Every rate, difference and curve with its interval.",
    "data/claims.json": "Verdict on each claim of the paper.",
    "data/provenance.json": "Commit, config, packages, hardware, hashes of tasks and models.",
    "data/config.resolved.yaml": "The study's config with every default.",
    "data/scores.csv": "One row per episode.",
}
PAPER = "https://arxiv.org/abs/2505.16282"
FOLDERS = ("trajectories/", "screenshots/", "osworld/", "offline/")
"""Listed as folders: they may hold very many files."""


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
    crate.description = (
        f"Results of the study “{study}” ({mark}) of a pipeline that checks ARPO, GRPO with experience "
        "replay for computer-use agents. The mark says how large the model was and what kind of desktop it "
        "used: a number with another mark than the paper's is no result about the paper."
    )
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
        if name in (METADATA, "SHA256SUMS") or name.startswith(FOLDERS):
            continue
        crate.add_file(path, name, properties=_properties(path, name))
    for name, text in (
        ("trajectories", "Every episode: steps, model text, actions, screenshots."),
        ("screenshots", "Screenshots that the page's budget left out, named by their hash."),
        ("osworld", "The episodes in the layout of OSWorld's own runner."),
        ("offline", "Recorded episodes of the base policy that offline arms learnt from; no measurement."),
    ):
        if (folder / name).is_dir():
            crate.add_dataset(folder / name, f"{name}/", properties={"name": name, "description": text})
    content = json.dumps(_sorted(crate.metadata.generate()), indent=1, ensure_ascii=False)
    out = folder / METADATA
    out.write_text(content + "\n", encoding="utf-8")
    return out


def _properties(path: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": name,
        "contentSize": str(path.stat().st_size),
        "sha256": sha256_of(path),
    }
    if path.suffix in KINDS:
        found["encodingFormat"] = KINDS[path.suffix]
    if name in DESCRIPTIONS:
        found["description"] = DESCRIPTIONS[name]
    return found


def _sorted(document: dict[str, Any]) -> dict[str, Any]:
    """Entities by id, the two that must come first first; keys by name."""
    first = {METADATA: 0, "./": 1}
    graph = sorted(document["@graph"], key=lambda entity: (first.get(entity["@id"], 2), entity["@id"]))
    return {
        "@context": document["@context"],
        "@graph": [{key: entity[key] for key in sorted(entity)} for entity in graph],
    }
