import base64
import io

import numpy as np
import pytest
from PIL import Image

from distill.reports.content import is_tiny, png_uri, thumbnail_uri


def decoded(uri: str) -> Image.Image:
    head, _, data = uri.partition(",")
    assert head in ("data:image/png;base64", "data:image/jpeg;base64")
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert image.format == head[len("data:image/") : -len(";base64")].upper()
    return image


def test_tiny_images_are_kept_exactly():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 3)).astype(np.uint8)
    image = Image.fromarray(pixels)
    assert is_tiny(image)
    assert (np.asarray(decoded(thumbnail_uri(image)).convert("RGB")) == pixels).all()


@pytest.mark.parametrize(("size", "side"), [((400, 200), 96), ((50, 300), 50), ((96, 96), 96)])
def test_larger_images_become_the_middle_square_as_jpeg(size, side):
    image = Image.new("RGB", size, (255, 0, 0))
    middle = size[0] // 2 - min(size) // 2, size[1] // 2 - min(size) // 2
    image.paste((0, 0, 255), (*middle, middle[0] + min(size), middle[1] + min(size)))
    assert not is_tiny(image)
    shown = decoded(thumbnail_uri(image))
    assert shown.format == "JPEG"
    assert shown.size == (side, side)
    red, _, blue = np.asarray(shown).reshape(-1, 3).mean(axis=0)
    assert blue > 245
    assert red < 10


def test_a_thumbnail_of_noise_stays_under_ten_kilobytes():
    pixels = np.random.default_rng(0).integers(0, 256, (500, 500, 3)).astype(np.uint8)
    assert len(thumbnail_uri(Image.fromarray(pixels))) < 10_000


def test_a_transparent_picture_is_kept():
    pixels = np.zeros((2, 3, 4), np.uint8)
    pixels[1, 2] = (1, 2, 3, 4)
    assert (np.asarray(decoded(png_uri(pixels))) == pixels).all()
