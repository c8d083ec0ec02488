import pytest
import torch

from distill.device import autocast, images_per_pass, pick_device, pick_precision, require_memory
from distill.errors import DistillError

CPU = torch.device("cpu")


def test_auto_is_the_cpu_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == CPU


@pytest.mark.parametrize("name", ["gpu", "mps:3x", "meta", "cuda:99"])
def test_devices_that_are_not_there(name):
    with pytest.raises(DistillError, match=f"--device {name} is"):
        pick_device(name)


@pytest.mark.parametrize(("has_bf16", "expected"), [(True, "bf16"), (False, "fp32")])
def test_auto_precision_follows_the_instructions(monkeypatch, has_bf16, expected):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert pick_precision("auto", CPU) == expected
    assert pick_precision("fp32", CPU) == "fp32"


def test_autocast_runs_products_in_the_precision():
    product = torch.ones(2, 2)
    with autocast(CPU, "bf16"):
        assert (product @ product).dtype == torch.bfloat16
    with autocast(CPU, "fp32"):
        assert (product @ product).dtype == torch.float32


def test_passes_shrink_with_the_image():
    assert images_per_pass(224, CPU) == 32
    assert images_per_pass(64, CPU) > 200
    assert images_per_pass(2000, CPU) == 8


def test_memory_is_refused_with_need_and_remedy():
    require_memory(1, CPU, what="a queue", remedy="shrink it")
    with pytest.raises(
        DistillError, match=r"a queue needs 1048576\.0 GiB and .* free .*; shrink it"
    ):
        require_memory(2**50, CPU, what="a queue", remedy="shrink it")
