"""The file formats of an export, a class each: how a file is written, loaded and read by others.

- `Onnx`, https://onnx.ai: written by `torch.onnx.export(dynamo=True)`, run by onnxruntime on the
  CPU. One file, so at most 2 GiB.
- `TorchExport`, https://docs.pytorch.org/docs/stable/export.html: the network as a graph, which
  PyTorch loads without this toolkit.
- `Safetensors`: the run's own file, for `distill.load_student`.
- `PlainSafetensors`: the backbone's weights under torchvision's or timm's names. What reads it
  normalizes pixels by itself. Networks that neither library has (other widths, TensorFlow's
  padding, your own module) have no such file.

The graphs include the normalization of pixels; their batch is free, the side of the images fixed.

Shapes: B batch, S image side, D embedding width.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import logging
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.errors import DistillError
from distill.exports.record import sha256
from distill.models.libraries import AUXILIARY_HEADS
from distill.models.networks import EmbeddingNetwork, is_own_module, num_parameters
from teachers.load import load_trained

INPUT, OUTPUT = "pixels", "embeddings"
Embed = Callable[[Tensor], Tensor]  # float32 (B, 3, S, S) in [0, 1] -> float32 (B, D)


class ExportedNetwork(nn.Module):
    """An embedding network in evaluation mode, its normalization of pixels included.

    Args:
        network: The trained network; put into evaluation mode.
        l2_normalize: Whether embeddings are divided by their length.
    """

    def __init__(self, network: EmbeddingNetwork, *, l2_normalize: bool) -> None:
        super().__init__()
        self.network = network
        self.l2_normalize = l2_normalize
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        """Embed images.

        Args:
            pixels: float32 (B, 3, S, S), RGB in [0, 1], not normalized.

        Returns:
            float32 (B, D); rows of length 1 where that was asked for (a row of zeros stays one).
        """
        embeddings = self.network(pixels)
        return F.normalize(embeddings, dim=1) if self.l2_normalize else embeddings


def without_gradient(network: nn.Module) -> Embed:
    """Return the forward pass of `network` without gradients."""

    @torch.no_grad()
    def embed(pixels: Tensor) -> Tensor:
        return network(pixels)

    return embed


class FileFormat:
    """A kind of exported file, for one network.

    Args:
        network: The trained network, on the CPU; put into evaluation mode.
        weights: The run's file of its weights.
        l2_normalize: Whether a graph divides embeddings by their length.

    Attributes:
        name: As export.json has it.
        title: As the model card has it.
        ending: Of the file's name, after the stem of the weights file.
        packages: That write and load it, besides PyTorch.
    """

    name: ClassVar[Literal["onnx", "torch-export", "safetensors", "safetensors-plain"]]
    title: ClassVar[str]
    ending: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self, network: EmbeddingNetwork, weights: Path, *, l2_normalize: bool = False
    ) -> None:
        self.network = network
        self.weights = weights
        self.exported = ExportedNetwork(network, l2_normalize=l2_normalize)

    @property
    def file_name(self) -> str:
        """Of the file in the export folder."""
        return self.weights.stem + self.ending

    def write(self, path: Path) -> None:
        """Write the file.

        Raises:
            DistillError: The network does not fit the format.
        """
        raise NotImplementedError

    def load(self, path: Path) -> Embed:
        """Load a written file as a function."""
        raise NotImplementedError

    def snippet(self, file: str) -> list[str]:
        """Return lines of Python that load `file` and turn `pixels` into `embeddings`."""
        raise NotImplementedError

    def _example(self) -> Tensor:
        """Return two black images to trace with: one image would fix the batch at 1."""
        side = self.network.input.image_size
        return torch.zeros(2, 3, side, side)

    def _metadata(self) -> dict[str, str]:
        """Return the metadata of a graph's file."""
        return {
            "network": self.network.spec.name,
            "weights_sha256": sha256(self.weights),
            "input_range": "0 to 1",
            "input_channels": "RGB",
            "l2_normalize": str(self.exported.l2_normalize).lower(),
            **{name: str(value) for name, value in vars(self.network.input).items()},
        }


class Onnx(FileFormat):
    """An ONNX graph with input `pixels` and output `embeddings`."""

    name = "onnx"
    title = "ONNX"
    ending = ".onnx"
    packages = ("onnx", "onnxscript", "onnxruntime")
    _MAX_BYTES = 2**31 - 2**24  # protobuf's limit less what the graph itself takes

    def write(self, path: Path) -> None:
        """Write the file, without the source lines of its nodes."""
        num_bytes = 4 * num_parameters(self.exported)
        if num_bytes > self._MAX_BYTES:
            raise DistillError(
                f"the network has {num_bytes / 2**30:.1f} GiB of weights and an ONNX file holds at "
                "most 2 GiB; use --format torch-export or --format safetensors"
            )
        with _quiet_exporter():
            program = torch.onnx.export(
                self.exported,
                (self._example(),),
                dynamo=True,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes={INPUT: {0: torch.export.Dim("batch")}},
                external_data=False,
                verbose=False,
            )
        assert program is not None, "dynamo=True returns the program"
        model = program.model_proto
        for node in model.graph.node:  # they hold paths of this machine
            del node.metadata_props[:]
        for name, value in self._metadata().items():
            model.metadata_props.add(key=name, value=value)
        path.write_bytes(model.SerializeToString())

    def load(self, path: Path) -> Embed:
        """Check the file against ONNX's rules; run it on as many CPU threads as PyTorch uses."""
        import onnx
        import onnxruntime

        onnx.checker.check_model(str(path), full_check=True)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )

        def embed(pixels: Tensor) -> Tensor:
            return torch.from_numpy(session.run([OUTPUT], {INPUT: pixels.numpy()})[0])

        return embed

    def snippet(self, file: str) -> list[str]:
        """See `FileFormat`."""
        return [
            "import onnxruntime",
            f'session = onnxruntime.InferenceSession("{file}")',
            f'(embeddings,) = session.run(None, {{"{INPUT}": pixels}})  # a NumPy array',
        ]


class TorchExport(FileFormat):
    """torch.export's .pt2 file, with our metadata as JSON in the extra file `METADATA`."""

    name = "torch-export"
    title = "torch.export"
    ending = ".pt2"
    METADATA = "distill.json"

    def write(self, path: Path) -> None:
        """See `FileFormat`."""
        with torch.no_grad():
            program = torch.export.export(
                self.exported,
                (self._example(),),
                dynamic_shapes={INPUT: {0: torch.export.Dim("batch")}},
            )
        for node in program.graph.nodes:  # they hold paths of this machine
            node.meta.pop("stack_trace", None)
        files = {self.METADATA: json.dumps(self._metadata())}
        torch.export.save(program, path, extra_files=files)

    def load(self, path: Path) -> Embed:
        """See `FileFormat`."""
        return without_gradient(torch.export.load(path).module())

    def snippet(self, file: str) -> list[str]:
        """See `FileFormat`."""
        return [
            "import torch",
            f'network = torch.export.load("{file}").module()',
            "embeddings = network(pixels)",
        ]


class Safetensors(FileFormat):
    """A copy of the run's own file."""

    name = "safetensors"
    title = "safetensors, for this toolkit"
    ending = ".safetensors"
    packages = ("safetensors",)

    def write(self, path: Path) -> None:
        """See `FileFormat`."""
        shutil.copyfile(self.weights, path)

    def load(self, path: Path) -> Embed:
        """See `FileFormat`."""
        module = copy.deepcopy(self.network.backbone) if self._is_own else None
        return without_gradient(load_trained(path, module=module))

    def snippet(self, file: str) -> list[str]:
        """See `FileFormat`."""
        module = ", module=module" if self._is_own else ""
        comment = "  # module: one of the class that was trained" if self._is_own else ""
        return [
            "import distill",
            f'network = distill.load_student("{file}"{module}){comment}',
            "embeddings = network(pixels)",
        ]

    @property
    def _is_own(self) -> bool:
        return is_own_module(self.network.spec.name)


class PlainSafetensors(FileFormat):
    """The backbone's weights alone, loaded with `strict=True` into a library's own model."""

    name = "safetensors-plain"
    title = "safetensors, under a library's names"
    ending = "-plain.safetensors"
    packages = ("safetensors",)

    def write(self, path: Path) -> None:
        """See `FileFormat`."""
        backbone = self.network.backbone.state_dict()
        weights = {name: weight.detach().contiguous() for name, weight in backbone.items()}
        # Not save_file, whose files only their owner can read.
        path.write_bytes(safetensors.torch.save(weights, metadata={"format": "pt"}))

    def load(self, path: Path) -> Embed:
        """Build the model by the lines that `snippet` shows."""
        model = self._model().build()
        model.load_state_dict(safetensors.torch.load_file(path), strict=True)
        model.eval()
        spec = self.network.input
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (spec.mean, spec.std))

        @torch.no_grad()
        def embed(pixels: Tensor) -> Tensor:
            return model((pixels - mean) / std).flatten(1)

        return embed

    def snippet(self, file: str) -> list[str]:
        """See `FileFormat`."""
        model, spec = self._model(), self.network.input
        return [
            f"import safetensors.torch, torch, {model.library}",
            *model.code,
            f'model.load_state_dict(safetensors.torch.load_file("{file}"), strict=True)',
            f"mean, std = torch.tensor({list(spec.mean)}), torch.tensor({list(spec.std)})",
            "normalized = (pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1)",
            "embeddings = model.eval()(normalized).flatten(1)",
        ]

    def _model(self) -> LibraryModel:
        model = library_model(self.network)
        assert model is not None, "`files_of` asks for this format only where a library fits"
        return model


FILE_FORMATS: dict[str, type[FileFormat]] = {
    one.name: one for one in (Onnx, TorchExport, Safetensors, PlainSafetensors)
}
FORMATS = ("onnx", "torch-export", "safetensors")  # of `--format`


def files_of(
    export_format: str, network: EmbeddingNetwork, weights: Path, *, l2_normalize: bool
) -> list[FileFormat]:
    """Return the files that a format consists of for a network.

    Args:
        export_format: One of `FORMATS`.
        network: See `FileFormat`, as the next two.
        weights: See there.
        l2_normalize: See there.
    """
    kinds = [FILE_FORMATS[export_format]]
    if export_format == "safetensors" and library_model(network) is not None:
        kinds.append(PlainSafetensors)
    return [kind(network, weights, l2_normalize=l2_normalize) for kind in kinds]


def require_packages(export_format: str) -> None:
    """Refuse to go on without the packages that a format needs.

    Raises:
        DistillError: Naming those that are missing and how to install them.
    """
    packages = FILE_FORMATS[export_format].packages
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise DistillError(
            f"--format {export_format} needs {' and '.join(missing)}, which cannot be imported; "
            f"pip install 'distill-vision[{export_format}]'"
        )


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence logs and warnings of the ONNX exporter."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@dataclass(frozen=True)
class LibraryModel:
    """A model of torchvision or timm that a network's weights fit.

    Attributes:
        library: `torchvision` or `timm`.
        code: Lines of Python that make `model`, after the import of torch and the library.
    """

    library: str
    code: tuple[str, ...]

    def build(self) -> nn.Module:
        """Return the model, with random weights, in training mode."""
        scope: dict[str, nn.Module] = {}
        # Names in the lines are those of models that the library has built by that name before.
        exec("\n".join((f"import torch, {self.library}", *self.code)), scope)
        return scope["model"]


_TORCHVISION_NAMES = {
    "alexnet": "alexnet",
    "mobilenetv2": "mobilenet_v2",
    "resnet18": "resnet18",
    "resnet50": "resnet50",
}
_BACKBONE = re.compile(r"backbone:(resnet\d+)(-small)?")  # of width 1: wider ones are SimCLR's
_SMALL_STEM = (
    "model.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)",
    "model.maxpool = torch.nn.Identity()",
)


def library_model(network: EmbeddingNetwork) -> LibraryModel | None:
    """Return the library's model that the backbone of `network` is, None when there is none."""
    name = network.spec.name
    library, _, known = name.partition(":")
    if library == "timm":
        return LibraryModel("timm", (f"model = timm.create_model({known!r}, num_classes=0)",))
    if library != "torchvision":
        backbone = _BACKBONE.fullmatch(name)
        known = backbone[1] if backbone else _TORCHVISION_NAMES.get(name, "")
    if not known:
        return None
    from torchvision import models

    model = models.get_model(known)
    heads = [head for head in AUXILIARY_HEADS if getattr(model, head, None) is not None]
    classifier = [path for path, part in model.named_modules() if isinstance(part, nn.Linear)][-1]
    lines = [
        f"model = torchvision.models.get_model({known!r})",
        *(f"model.{head} = None" for head in heads),
        f'model.set_submodule("{classifier}", torch.nn.Identity())',
    ]
    if library != "torchvision" and known.startswith("resnet"):
        stem = network.get_submodule("backbone.conv1")
        lines += _SMALL_STEM if stem.kernel_size == (3, 3) else ()
    return LibraryModel("torchvision", tuple(lines))
