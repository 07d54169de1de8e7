"""A folder as a zip that has the same bytes for the same files, and the list of its hashes."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator
from pathlib import Path

EPOCH = (1980, 1, 1, 0, 0, 0)
"""The first time that a zip can hold."""
CHUNK = 2**20


def files_of(folder: Path) -> Iterator[Path]:
    """Every file below ``folder``, sorted by its path as text."""
    yield from sorted(
        (path for path in folder.rglob("*") if path.is_file()),
        key=lambda path: path.relative_to(folder).as_posix(),
    )


def sha256_of(path: Path) -> str:
    """Hash of a file that may be large."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_hashes(folder: Path, name: str = "SHA256SUMS") -> Path:
    """``sha256sum``'s format: ``sha256sum -c`` checks a download."""
    out = folder / name
    out.unlink(missing_ok=True)
    lines = [f"{sha256_of(path)}  {path.relative_to(folder).as_posix()}\n" for path in files_of(folder)]
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
            info.file_size = path.stat().st_size
            with path.open("rb") as source, archive.open(info, "w") as target:
                while block := source.read(CHUNK):
                    target.write(block)
    temporary.replace(out)
