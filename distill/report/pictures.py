"""Images as data URIs, so that a report needs no other file."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from PIL import Image, ImageOps

THUMBNAIL_SIDE = 96
TINY_SIDE = 32  # up to which pixels are kept exactly, and shown enlarged
_QUALITY = 80


def thumbnail_uri(image: Image.Image) -> str:
    """Return the middle square of an image as a data URI.

    Args:
        image: RGB; sides up to `TINY_SIDE` are kept losslessly, larger ones become a JPEG of at
            most `THUMBNAIL_SIDE` pixels.
    """
    if is_tiny(image):
        return _uri(image, "PNG", optimize=True)
    side = min(*image.size, THUMBNAIL_SIDE)
    square = ImageOps.fit(image, (side, side), Image.Resampling.LANCZOS)
    return _uri(square, "JPEG", quality=_QUALITY, optimize=True)


def is_tiny(image: Image.Image) -> bool:
    """Say whether an image has so few pixels that it is shown enlarged."""
    return max(image.size) <= TINY_SIDE


def png_uri(pixels: np.ndarray) -> str:
    """Return an array (H, W, 4) uint8 as the data URI of a PNG."""
    return _uri(Image.fromarray(pixels), "PNG", optimize=True)


def _uri(image: Image.Image, kind: str, **options: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f"data:image/{kind.lower()};base64,{encoded}"
