"""Networks of timm and torchvision by name."""

import pytest
import safetensors.torch
import torch

from distill.errors import DistillError
from distill.exports.formats import PlainSafetensors, library_model
from distill.models.libraries import library_spec
from students.registry import build_student

CODE = "import torch, torchvision\n"


def test_auxiliary_heads_of_training_are_taken_off(tmp_path):
    network = build_student("torchvision:googlenet", image_size=64)
    images = torch.rand(2, 3, 64, 64)
    assert network.train()(images).shape == (2, 1024)  # one tensor, in training too
    network.eval()
    file = tmp_path / "plain.safetensors"
    PlainSafetensors(network, file).write(file)
    names: dict = {}
    exec(CODE + "\n".join(library_model(network).code), names)
    names["model"].load_state_dict(safetensors.torch.load_file(file), strict=True)
    pixels = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(names["model"].eval()(pixels), network.backbone(pixels))


def test_published_weights_with_auxiliary_heads_fit(monkeypatch):
    from torchvision import models

    source = models.googlenet(init_weights=False)
    make = models.get_model

    def with_weights(name, *, weights):
        return source if weights else make(name, weights=None, init_weights=False)

    monkeypatch.setattr(models, "get_model", with_weights)
    spec = library_spec("torchvision:googlenet")
    backbone = spec.build(64)
    spec.pretrained(backbone)
    assert torch.equal(backbone.conv1.conv.weight, source.conv1.conv.weight)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:resnet50.foo", "unknown timm model 'resnet50.foo'.*resnet50\\."),
        ("timm:resnet5", "unknown timm model 'resnet5'.*resnet50"),
        ("torchvision:resnet5", "unknown torchvision model 'resnet5'.*resnet50"),
    ],
)
def test_unknown_names(name, message):
    with pytest.raises(DistillError, match=message):
        library_spec(name)
