"""Where a number on the page comes from (file, rule, hash, commit), and the tables inside the page."""

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from arpo_replica.base.tables import grouped
from arpo_replica.evaluation.provenance import rule_of
from arpo_replica.evaluation.records import InputFile, input_file
from arpo_replica.evaluation.tables import as_csv

COMMITTED = "committed in data/paper"


@dataclass(frozen=True)
class PageFiles:
    """What the page is made of; the rule hands over each."""

    summary: Path
    claims: Path
    provenance: Path
    scores: Path
    tables: Sequence[Path]
    """Of ``write_tables``."""
    episodes: Path
    """Folder of all episodes; it may lack screenshots or be empty."""
    benchmarks: Path
    """Folder of Snakemake's timings; it may not be there."""
    deviations: Path
    hyperparameters: Path
    """Both of ``data/paper``."""


class Source(InputFile):
    """A file that numbers were computed from, as the page names it."""

    made_by: str

    @property
    def anchor(self) -> str:
        """Id of the file's row in the table of inputs."""
        return f"file-{self.sha256[:12]}"


@dataclass(frozen=True, slots=True)
class Sources:
    """All files behind the page, by path."""

    files: tuple[Source, ...]
    commit: str

    def named(self, name: str) -> Source | None:
        """The file of that name; of several the first."""
        return next((source for source in self.files if PurePosixPath(source.path).name == name), None)

    def hint(self, name: str, pointer: str = "") -> str:
        """One line for a reader who points at a number."""
        source = self.named(name)
        if source is None:
            return f"{name}{pointer}"
        return (
            f"{source.path}{' ' + pointer if pointer else ''}\n{source.made_by}\n"
            f"sha256 {source.sha256}\ncommit {self.commit}"
        )

    def anchor(self, name: str) -> str:
        """Where the page describes the file; the whole table if it is not among the inputs."""
        source = self.named(name)
        return source.anchor if source else "inputs"


def made_by(path: str, rules: Mapping[str, str]) -> str:
    """In words: the rule of a file of results (``rules``: as recorded), or that a person wrote it."""
    pure = PurePosixPath(path)
    if "benchmarks" in pure.parts:
        rule = pure.stem if pure.parent.name == "benchmarks" else pure.parent.name
        return f"measured by Snakemake, rule {rule}"
    rule = rules.get(path) or rule_of(path)
    if rule != "none":
        return f"rule {rule}"
    return COMMITTED if pure.suffix == ".yaml" else "input of the study"


def collect_sources(
    files: Sequence[Path],
    recorded: Sequence[InputFile],
    benchmarks: Path,
    commit: str | None,
    rules: Mapping[str, str],
) -> Sources:
    """``files`` and those below ``benchmarks`` are hashed now; ``recorded`` were when they were read."""
    measured = sorted(benchmarks.rglob("*.tsv")) if benchmarks.is_dir() else []
    entries = [*(input_file(path) for path in [*files, *measured]), *recorded]
    unique = {entry.path: entry for entry in reversed(entries)}
    return Sources(
        tuple(
            Source(**entry.model_dump(), made_by=made_by(entry.path, rules))
            for entry in sorted(unique.values(), key=lambda entry: entry.path)
        ),
        commit or "unknown",
    )


# --- files inside the page ---

GZIP_ABOVE = 60_000
"""Bytes above which a file is gzipped before it stands in the page."""


@dataclass(frozen=True, slots=True)
class Download:
    """A file inside the page."""

    name: str
    kind: str
    """CSV or JSON."""
    bytes: int
    """Of the file itself."""
    uri: str


@dataclass(frozen=True, slots=True)
class Twin:
    """A table with its two files."""

    name: str
    title: str
    rows: int
    files: list[Download]


def build_twins(tables: Sequence[Path], views: Mapping[str, Any], sources: Sources) -> dict[str, Twin]:
    """Name -> twin; a table without a row is left out.

    ``tables``: what ``write_tables`` wrote; ``views`` holds the rows of the page's own tables.
    """
    found = {}
    for name, paths in grouped(tables, lambda path: path.stem).items():
        files = {path.name: path.read_bytes() for path in paths}
        rows = len(json.loads(files[f"{name}.json"])["rows"])
        if rows:
            found[name] = _twin(name, name.replace("_", " ").capitalize(), rows, files)
    for name, title, own in _own(views, sources):
        if own:
            as_json = (json.dumps(own, indent=1, ensure_ascii=False) + "\n").encode()
            files = {f"{name}.csv": as_csv(None, own), f"{name}.json": as_json}
            found[name] = _twin(name, title, len(own), files)
    return found


def _twin(name: str, title: str, rows: int, files: Mapping[str, bytes]) -> Twin:
    kinds = {".csv": ("CSV", "text/csv"), ".json": ("JSON", "application/json")}
    found = [download(file, data, *kinds[Path(file).suffix]) for file, data in files.items()]
    return Twin(name, title, rows, found)


def download(name: str, data: bytes, kind: str, mime: str) -> Download:
    """A file as a data URI."""
    size = len(data)
    if size > GZIP_ABOVE:
        name, mime, data = f"{name}.gz", "application/gzip", gzip.compress(data, compresslevel=9, mtime=0)
    return Download(name, kind, size, f"data:{mime};base64,{base64.b64encode(data).decode()}")


def _own(views: Mapping[str, Any], sources: Sources) -> Sequence[tuple[str, str, list[dict[str, Any]]]]:
    """What only the page has: rows that come from other files than summary, claims and scores."""
    stages = [
        {"arm": row["curve"].arm, "stage": row["curve"].stage, "seed": row["curve"].seed}
        | {name: value for name, value in row.items() if name != "curve"}
        for row in views["stages"]
    ]
    return (
        ("training_stages", "Training by stage", stages),
        ("jobs", "Jobs of the workflow", list(views["jobs"])),
        ("deviations", "Deviations from the paper", list(views["deviations"])),
        ("parity", "Parity, setting by setting", list(views["parity"])),
        ("inputs", "Files behind the page", [source.model_dump() for source in sources.files]),
    )
