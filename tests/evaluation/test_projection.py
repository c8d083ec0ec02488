import pytest
import safetensors.torch
import torch
from torch.nn import functional as F

from distill.errors import DistillError
from distill.evaluation.projection import Projection, through_heads
from teachers.load import load_trained


def images(number: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (number, 3, 16, 16), dtype=torch.uint8, generator=generator)


def head(tensors: dict[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    """Linear, BatchNorm with its statistics, ReLU, linear: by hand, in float64."""
    part = {
        key.removeprefix(f"{name}."): value.double()
        for key, value in tensors.items()
        if key.startswith(f"{name}.")
    }
    x = x @ part["0.weight"].T
    x = (x - part["1.running_mean"]) / (part["1.running_var"] + 1e-5).sqrt()
    return (x * part["1.weight"] + part["1.bias"]).clamp_min(0) @ part["3.weight"].T


@pytest.mark.parametrize(
    ("method", "names"),
    [
        ("simclr", ["head"]),
        ("c-simclr", ["head"]),
        ("byol", ["head", "predictor"]),
        ("c-byol", ["head", "projector"]),
    ],
)
def test_the_projection_is_what_the_method_compares(make_pretraining_run, method: str, names):
    run = make_pretraining_run(method=method)
    expected = load_trained(run)(images()).double()
    tensors = safetensors.torch.load_file(run / "heads.safetensors")
    for name in names:
        expected = head(tensors, name, expected)
    found = through_heads(load_trained(run), run)(images())
    assert found.dtype == torch.float32
    assert found.shape == (5, 6)
    torch.testing.assert_close(found, F.normalize(expected).float(), atol=1e-5, rtol=1e-5)


def test_it_is_frozen_and_only_images_take_a_gradient(make_pretraining_run):
    run = make_pretraining_run()
    encoder = through_heads(load_trained(run), run)
    assert not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    x = (images().float() / 255).requires_grad_()
    encoder(x)[:, 0].sum().backward()
    assert float(x.grad.abs().max()) > 0
    torch.testing.assert_close(encoder(x).detach(), encoder(images()))
    torch.testing.assert_close(encoder(x[:1]), encoder(x)[:1])  # no statistics of the batch


def test_without_heads_it_is_the_normalized_embedding(make_pretraining_run):
    network = load_trained(make_pretraining_run())
    expected = F.normalize(network(images()))
    torch.testing.assert_close(Projection(network)(images()), expected)


def test_a_run_without_heads_has_no_projection(make_pretraining_run):
    run = make_pretraining_run()
    (run / "heads.safetensors").unlink()
    with pytest.raises(DistillError, match="has no projection: only a finished run of `distill"):
        through_heads(load_trained(run), run)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda heads: heads.pop("head.0.weight"), r"1 missing \(head.0.weight\)"),
        (lambda heads: heads.update(extra=torch.zeros(1)), r"1 unexpected \(extra\)"),
        (lambda heads: heads.update({"predictor.weight": torch.zeros(2, 2)}), r"is \(2, 2\)"),
    ],
)
def test_heads_fit_exactly(make_pretraining_run, change, message: str):
    run = make_pretraining_run()
    heads = safetensors.torch.load_file(run / "heads.safetensors")
    change(heads)
    safetensors.torch.save_file(heads, run / "heads.safetensors")
    with pytest.raises(DistillError, match=message):
        through_heads(load_trained(run), run)
