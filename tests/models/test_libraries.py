"""Networks of timm and torchvision by name."""

import os
import re
import subprocess
import sys
from pathlib import Path

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


def test_published_weights_are_copied_or_the_remedy_is_named(monkeypatch):
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

    def without_network(*_, **__):
        raise OSError("no route to host\nand more")

    monkeypatch.setattr(models, "get_model", without_network)
    with pytest.raises(DistillError, match=r"could not be fetched \(no route to host\); connect"):
        spec.pretrained(backbone)


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


def test_a_torchvision_that_does_not_fit_torch_is_one_sentence(tmp_path: Path):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(  # as that of a mismatched pair does
        "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    code = """if True:
        from distill.errors import DistillError
        from distill.models.libraries import library_spec
        for name in ("views", "timm:resnet18", "torchvision:resnet18"):
            try:
                __import__("distill.data.views") if name == "views" else library_spec(name)
            except DistillError as error:
                print(error)
    """
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    environment = {**os.environ, "PYTHONPATH": path}
    command = [sys.executable, "-c", code]
    printed = subprocess.check_output(command, env=environment, cwd=tmp_path, text=True)
    found = re.findall(r"torchvision \S+ does not fit torch \S+: .* install a matching", printed)
    assert len(found) == 3
