"""Pictures of a set of images, each made once."""

from __future__ import annotations

from distill.data.images import Images
from distill.report.content import Picture
from distill.report.pictures import is_tiny, thumbnail_uri


class Thumbnails:
    """Makes pictures of a set of images.

    Args:
        images: The set.
    """

    def __init__(self, images: Images) -> None:
        self.images = images
        self._made: dict[int, tuple[str, bool]] = {}

    def picture(self, i: int, *, is_right: bool | None = None) -> Picture:
        """Return image `i`, marked as right or wrong.

        Raises:
            BadImageError: It cannot be read.
        """
        if i not in self._made:
            image = self.images.load(i)
            self._made[i] = (thumbnail_uri(image), is_tiny(image))
        uri, tiny = self._made[i]
        return Picture(uri, self.name(i), is_right, tiny)

    def name(self, i: int) -> str:
        """Return what to call image `i`: its class, else the last part of its own name."""
        if self.images.classes is None or self.images.labels is None:
            return self.images.describe(i).replace("\\", "/").rsplit("/", 1)[-1]
        return self.images.classes[int(self.images.labels[i])]
