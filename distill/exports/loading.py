"""The lines of Python that load each exported format, as the model card shows them.

Every snippet takes `pixels` and leaves `embeddings`.
"""

from __future__ import annotations

from distill.exports.network import INPUT
from distill.exports.plain_weights import LibraryModel
from distill.exports.record import Artifact
from distill.networks import InputSpec


def loading_code(artifact: Artifact, spec: InputSpec, model: LibraryModel | None) -> list[str]:
    """Return the lines that load a file that lies in the working directory and use it.

    Args:
        artifact: The file.
        spec: What the network wants to see.
        model: For the plain file, the library's model that it fits.
    """
    if artifact.format == "onnx":
        return [
            "import onnxruntime",
            f'session = onnxruntime.InferenceSession("{artifact.name}")',
            f'(embeddings,) = session.run(None, {{"{INPUT}": pixels}})  # a NumPy array',
        ]
    if artifact.format == "torch-export":
        return [
            "import torch",
            f'network = torch.export.load("{artifact.name}").module()',
            "embeddings = network(pixels)",
        ]
    if artifact.format == "safetensors":
        return [
            "import distill",
            f'network = distill.load_student("{artifact.name}")',
            "embeddings = network(pixels)",
        ]
    assert model is not None, "a plain file was written for this model"
    mean, std = list(spec.mean), list(spec.std)
    return [
        f"import safetensors.torch, torch, {model.library}",
        *model.code,
        f'model.load_state_dict(safetensors.torch.load_file("{artifact.name}"), strict=True)',
        f"mean, std = torch.tensor({mean}), torch.tensor({std})",
        "normalized = (pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1)",
        "embeddings = model.eval()(normalized).flatten(1)",
    ]
