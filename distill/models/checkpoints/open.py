"""Opens a weights file of any known format, recognized by content (.safetensors by its name)."""

from __future__ import annotations

import tempfile
from pathlib import Path

from torch import Tensor

from distill.errors import DistillError
from distill.files import cache_folder
from distill.models.checkpoints.archives import extract, is_archive
from distill.models.checkpoints.pytorch import PyTorchFile, is_zip_of_pytorch
from distill.models.checkpoints.safetensors import SUFFIX, SafetensorsFile
from distill.models.checkpoints.tensor_file import TensorFile
from distill.models.checkpoints.tensorflow import Bundle, bundle_prefix, is_bundle_file

KINDS = (
    "a .safetensors file, a PyTorch checkpoint (.pth), a TensorFlow checkpoint (its prefix, .index "
    "file or folder), or a zip or tar archive of one"
)


def open_checkpoint(path: Path) -> TensorFile:
    """Open a weights file of any known format.

    Args:
        path: A safetensors file, a PyTorch checkpoint, the prefix, a file or the folder of a
            TensorFlow checkpoint, or an archive of one.

    Raises:
        DistillError: The file is missing, of an unknown format, or damaged.
    """
    prefix = bundle_prefix(path)
    if prefix is not None:
        return Bundle(prefix, path)
    if path.is_dir():
        raise DistillError(f"{path} holds no TensorFlow checkpoint; give {KINDS}")
    if not path.is_file():
        raise DistillError(f"no weights file at {path}; give {KINDS}")
    if path.suffix == SUFFIX:
        return SafetensorsFile(path)
    if is_archive(path) and not is_zip_of_pytorch(path):
        return _ArchivedBundle(path)
    return PyTorchFile(path)


class _ArchivedBundle(TensorFile):
    """A TensorFlow checkpoint in an archive, extracted while it is open."""

    def __init__(self, archive: Path) -> None:
        cache_folder().mkdir(parents=True, exist_ok=True)  # /tmp may be too small for gigabytes
        self._folder = tempfile.TemporaryDirectory(dir=cache_folder(), prefix="extracted-")
        folder = Path(self._folder.name)
        try:
            extract(archive, folder, is_bundle_file)
            prefix = bundle_prefix(folder)
            if prefix is None:
                raise DistillError(
                    f"{archive} is an archive without a TensorFlow checkpoint; give {KINDS}"
                )
            self._bundle = Bundle(prefix, archive)
        except BaseException:
            self._folder.cleanup()
            raise
        super().__init__(archive, "tensorflow", self._bundle.shapes)

    def read(self, name: str) -> Tensor:
        return self._bundle.read(name)

    def close(self) -> None:
        self._folder.cleanup()
