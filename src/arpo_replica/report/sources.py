"""Where a number on the page comes from: its file, the place in it, the rule, the hash, the commit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from arpo_replica.evaluation.provenance import rule_of
from arpo_replica.evaluation.records import InputFile, input_file

COMMITTED = "committed in data/paper"


@dataclass(frozen=True, slots=True)
class Source:
    """A file that numbers were computed from, as the page names it."""

    path: str
    sha256: str
    bytes: int
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
            Source(entry.path, entry.sha256, entry.bytes, made_by(entry.path, rules))
            for entry in sorted(unique.values(), key=lambda entry: entry.path)
        ),
        commit or "unknown",
    )
