"""The guest's PNG encoder against Pillow's decoder."""

import io
import random

import pytest
from PIL import Image

from guest.png import STRIP_ROWS, PngEncoder


def picture(size, padding, seed):
    """Random pixels as the X server keeps them (rows padded), and the same as Pillow sees them. Half of
    the rows are as the one above."""
    rng = random.Random(seed)
    width, height = size
    rows = [rng.randbytes(4 * width)]
    while len(rows) < height:
        rows.append(rows[-1] if rng.random() < 0.5 else rng.randbytes(4 * width))
    image = Image.frombuffer("RGB", size, b"".join(rows), "raw", "BGRX", 4 * width, 1)
    return b"".join(row + b"\0" * padding for row in rows), image


def decode(png):
    image = Image.open(io.BytesIO(png))
    image.load()  # checks the checksums
    assert image.format == "PNG"
    return image


@pytest.mark.parametrize(
    "size", [(1, 1), (168, 224), (33, STRIP_ROWS), (7, STRIP_ROWS + 1), (640, 3 * STRIP_ROWS)]
)
@pytest.mark.parametrize("padding", [0, 8])
def test_pictures_come_back_as_they_were(size, padding):
    encoder = PngEncoder(size, 4 * size[0] + padding)
    for seed in range(3):
        pixels, image = picture(size, padding, seed)
        assert decode(encoder.encode(pixels)).tobytes() == image.tobytes()


def test_a_small_change_shows_and_an_equal_picture_has_equal_bytes():
    size = (168, 224)
    pixels, image = picture(size, 0, 1)
    encoder = PngEncoder(size, 4 * 168)
    first = encoder.encode(pixels)
    place = 4 * (168 * 100 + 5)
    changed = pixels[:place] + bytes([1, 2, 3, 0]) + pixels[place + 4 :]
    assert decode(encoder.encode(changed)).getpixel((5, 100)) == (3, 2, 1)
    assert encoder.encode(pixels) == first == PngEncoder(size, 4 * 168).encode(pixels)
    assert decode(first).tobytes() == image.tobytes()
