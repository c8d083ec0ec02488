import base64
import io

import numpy as np
import pytest
from PIL import Image

from distill.reports.content import png_uri, thumbnail_uri


def decoded(uri: str) -> Image.Image:
    head, _, data = uri.partition(",")
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert head == f"data:image/{image.format.lower()};base64"
    return image


def test_tiny_images_are_kept_exactly():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 3)).astype(np.uint8)
    shown = decoded(thumbnail_uri(Image.fromarray(pixels)))
    assert (np.asarray(shown.convert("RGB")) == pixels).all()
    transparent = np.zeros((2, 3, 4), np.uint8)
    transparent[1, 2] = (1, 2, 3, 4)
    assert (np.asarray(decoded(png_uri(transparent))) == transparent).all()


@pytest.mark.parametrize(("size", "side"), [((400, 200), 96), ((50, 300), 50)])
def test_larger_images_become_the_middle_square_as_a_small_jpeg(size, side):
    image = Image.new("RGB", size, (255, 0, 0))
    middle = size[0] // 2 - min(size) // 2, size[1] // 2 - min(size) // 2
    image.paste((0, 0, 255), (*middle, middle[0] + min(size), middle[1] + min(size)))
    uri = thumbnail_uri(image)
    shown = decoded(uri)
    assert (shown.format, shown.size) == ("JPEG", (side, side))
    red, _, blue = np.asarray(shown).reshape(-1, 3).mean(axis=0)
    assert (red < 10, blue > 245) == (True, True)
    assert len(uri) < 10_000
