"""PNG of a screen of which little has changed since the last one.

The picture is cut into strips that are compressed on their own (RFC 1951 blocks after a full flush refer
to nothing before them), so that only strips that changed are compressed again. Rows that are as the one
above, most of a desktop's, cost little more than the comparison: what says so is compressed in advance.
"""

from __future__ import annotations

import itertools
import mmap
import struct
import zlib
from dataclasses import dataclass

from PIL import Image

STRIP_ROWS = 24
"""A pointer that moves touches one or two strips at either end; lower ones cost more than they save."""
LEVEL = 1
_ADLER_BASE = 65521
_HEADER = b"\x89PNG\r\n\x1a\n"
_ZLIB_HEAD, _LAST_BLOCK = b"\x78\x01", b"\x03\x00"
_AS_IS, _LIKE_ABOVE = b"\0", b"\2"
"""PNG's filters (ISO 15948, 9): each row starts with the number of its own."""


@dataclass(frozen=True)
class _Packed:
    """Rows after their filter: compressed, Adler-32 and length before that."""

    data: bytes
    adler: int
    length: int

    def __add__(self, other: _Packed) -> _Packed:
        adler = _adler_combine(self.adler, other.adler, other.length)
        return _Packed(self.data + other.data, adler, self.length + other.length)


_NOTHING = _Packed(b"", 1, 0)


class PngEncoder:
    """Encodes pictures of one size, 4 bytes per pixel: blue, green, red, unused."""

    def __init__(self, size: tuple[int, int], stride: int) -> None:
        """``stride``: bytes from one row to the next."""
        self._width, self._height = size
        self._stride = stride
        self._strips: dict[int, tuple[bytes, _Packed]] = {}
        blank = bytes(3 * self._width)
        self._like_above = [_pack([blank] * count, _LIKE_ABOVE) for count in range(STRIP_ROWS)]

    def encode(self, pixels: bytes | mmap.mmap, offset: int = 0) -> bytes:
        """The PNG of a whole picture, 8 bits RGB. ``offset``: of its first byte."""
        parts, adler = [_ZLIB_HEAD], 1
        for top in range(0, self._height, STRIP_ROWS):
            rows = min(STRIP_ROWS, self._height - top)
            start = offset + top * self._stride
            # Copied strip by strip: each is still in the processor's cache when it is compared.
            piece = pixels[start : start + rows * self._stride]
            seen, strip = self._strips.get(top, (b"", _NOTHING))
            if seen != piece:
                strip = self._compress(piece)
                self._strips[top] = piece, strip
            parts.append(strip.data)
            adler = _adler_combine(adler, strip.adler, strip.length)
        parts += [_LAST_BLOCK, struct.pack(">I", adler)]
        shape = struct.pack(">IIBBBBB", self._width, self._height, 8, 2, 0, 0, 0)
        return b"".join(
            [_HEADER, _chunk(b"IHDR", shape), _chunk(b"IDAT", b"".join(parts)), _chunk(b"IEND", b"")]
        )

    def _compress(self, piece: bytes) -> _Packed:
        lines = [piece[at : at + 4 * self._width] for at in range(0, len(piece), self._stride)]
        strip = _NOTHING
        pairs = zip([b"", *lines[:-1]], lines, strict=True)
        for repeated, group in itertools.groupby(pairs, lambda pair: pair[0] == pair[1]):
            some = [line for _, line in group]
            strip += self._like_above[len(some)] if repeated else _pack(self._rgb(some), _AS_IS)
        return strip

    def _rgb(self, lines: list[bytes]) -> list[bytes]:
        size, length = (self._width, len(lines)), 3 * self._width
        rgb = Image.frombuffer("RGB", size, b"".join(lines), "raw", "BGRX", 0, 1).tobytes()
        return [rgb[at : at + length] for at in range(0, len(rgb), length)]


def _pack(rows: list[bytes], number: bytes) -> _Packed:
    lines = b"".join(number + row for row in rows)
    packer = zlib.compressobj(LEVEL, zlib.DEFLATED, -15, 9)
    data = packer.compress(lines) + packer.flush(zlib.Z_FULL_FLUSH)
    return _Packed(data, zlib.adler32(lines), len(lines))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _adler_combine(first: int, second: int, second_length: int) -> int:
    """Adler-32 of two pieces in a row from those of each (zlib's adler32_combine)."""
    rest = second_length % _ADLER_BASE
    low = ((first & 0xFFFF) + (second & 0xFFFF) - 1) % _ADLER_BASE
    high = ((first >> 16) + (second >> 16) + rest * ((first & 0xFFFF) - 1)) % _ADLER_BASE
    return high << 16 | low
