import copy
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill import distributed
from distill.errors import DistillError
from distill.training.batch_norm import GlobalBatchNorm, synchronize_batch_norm

CPU = torch.device("cpu")
CHANNELS = 3
STEPS = 2


@dataclass
class Case:
    """A layer and the sizes of the two local batches that it sees."""

    sizes: tuple[int, int]
    maps: tuple[int, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    offset: float = 2.0
    dtype: torch.dtype = torch.float32
    channels_last: bool = False

    def layer(self) -> nn.Module:
        torch.manual_seed(0)
        kind = nn.BatchNorm2d if self.maps else nn.BatchNorm1d
        layer = kind(CHANNELS, **self.options)
        if layer.affine:
            nn.init.uniform_(layer.weight, 0.5, 2)
            nn.init.normal_(layer.bias)
        return layer.double() if self.dtype == torch.float64 else layer

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return the global input and what the output is multiplied with in the loss."""
        torch.manual_seed(step + 1)
        shape = (sum(self.sizes), CHANNELS, *self.maps)
        inputs = (self.offset + torch.randn(shape) * (step + 1)).to(self.dtype)
        inputs[: self.sizes[0]] += 1  # no two ranks have the same mean
        if self.channels_last:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        return inputs, torch.randn(shape).bfloat16().to(self.dtype)


CASES = {
    "2-d": Case((5, 5)),
    "2-d, uneven": Case((7, 2)),
    "2-d, one row each": Case((1, 1)),
    "2-d, a rank without rows": Case((4, 0)),
    "2-d, far from zero": Case((6, 3), offset=1e5, options={"momentum": 1.0}),
    "4-d": Case((2, 2), (4, 3)),
    "4-d, uneven, channels last": Case((3, 1), (4, 3), channels_last=True),
    "4-d, bf16": Case((3, 2), (4, 3), dtype=torch.bfloat16),
    "4-d, bf16, channels last": Case((3, 2), (4, 3), dtype=torch.bfloat16, channels_last=True),
    "4-d, float64": Case((3, 2), (4, 3), dtype=torch.float64),
    "cumulative": Case((3, 2), options={"momentum": None}),
    "no affine": Case((3, 2), options={"affine": False, "eps": 0.1}),
    "no running statistics": Case((3, 2), (2, 2), options={"track_running_stats": False}),
}


def apply(layer: nn.Module, case: Any, part: slice) -> dict[str, Any]:
    """Train on `part` of the global batches; return everything of the last step."""
    for step in range(STEPS):
        layer.zero_grad()
        inputs, factors = (tensor[part] for tensor in case.batch(step))
        inputs = inputs.clone().requires_grad_()
        outputs = layer(inputs)
        (outputs * factors).sum().backward()
    return {
        "outputs": outputs.detach(),
        "inputs.grad": inputs.grad,
        "parameters.grad": [parameter.grad for parameter in layer.parameters()],
        "state": layer.state_dict(),
        "channels_last": outputs.is_contiguous(memory_format=torch.channels_last)
        if case.maps
        else None,
        "evaluated": layer.eval()(case.batch(9)[0]).detach(),
    }


def local(sizes: tuple[int, int]) -> slice:
    return slice(0, sizes[0]) if distributed.rank() == 0 else slice(sizes[0], None)


def encoder() -> nn.Sequential:
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(8), nn.BatchNorm1d(4, affine=False)
    return nn.Sequential(nn.Linear(6, 8), norm[0], nn.ReLU(), nn.Linear(8, 4), norm[1])


def contrastive(first: Tensor, second: Tensor) -> Tensor:
    """SimCLR's loss of the local rows of two views against the rows of all ranks."""
    first, second = F.normalize(first, dim=1), F.normalize(second, dim=1)
    others = torch.cat([distributed.all_gather(first), distributed.all_gather(second)])
    num_rows, total = len(first), len(others) // 2
    here = torch.arange(num_rows) + distributed.rank() * num_rows
    similarities = torch.cat([first, second]) @ others.t() / 0.2
    itself = F.one_hot(torch.cat([here, here + total]), 2 * total).bool()
    similarities = similarities.masked_fill(itself, float("-inf"))
    return F.cross_entropy(similarities, torch.cat([here + total, here]))


def train(network: nn.Module, part: slice) -> list[float]:
    """Take three steps on `part` of the batch; return the losses, averaged over the ranks."""
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    losses = []
    for step in range(3):
        torch.manual_seed(step)
        views = torch.randn(2, 8, 6)
        first, second = network(torch.cat([view[part] for view in views])).chunk(2)
        loss = contrastive(first, second)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(distributed.mean_over_ranks(loss.item()))
    return losses


def on_a_rank() -> dict[str, Any]:
    results: dict[str, Any] = {}
    for name, case in CASES.items():
        layer = synchronize_batch_norm(case.layer(), CPU)
        results[name] = apply(layer, case, local(case.sizes))
    lonely = synchronize_batch_norm(Case((1, 0)).layer(), CPU)
    try:
        lonely(torch.ones(1 - distributed.rank(), CHANNELS))
    except DistillError as error:
        results["lonely"] = str(error)
    network = nn.parallel.DistributedDataParallel(synchronize_batch_norm(encoder(), CPU))
    results["losses"] = train(network, local((4, 4)))
    results["network"] = network.module.state_dict()
    return results


@pytest.mark.ddp
def test_two_ranks_are_one_process_with_the_global_batch(run_ranks):
    ranks = run_ranks(on_a_rank, 2)
    for name, case in CASES.items():
        check_case(name, case, [result[name] for result in ranks])
    network = encoder()
    losses = train(network, slice(None))
    for result in ranks:
        assert result["lonely"].startswith("BatchNorm got 1 value per channel on all ranks")
        assert result["losses"] == pytest.approx(losses, rel=1e-5)
        torch.testing.assert_close(result["network"], network.state_dict(), rtol=1e-5, atol=1e-6)


def check_case(name: str, case: Case, ranks: list[dict[str, Any]]) -> None:
    """Compare with PyTorch's BatchNorm over the global batch in float64."""
    whole = apply(case.layer().double(), InFloat64(case), slice(None))
    rtol = 2e-2 if case.dtype == torch.bfloat16 else 1e-5
    if case.offset > 100:
        rtol = 2e-2  # where it is subtracted the mean is rounded to float32

    def compare(what: str, value: Any, wanted: Any, rtol: float) -> None:
        message = f"{name}, {what}: {{}}".format
        torch.testing.assert_close(value, wanted, rtol=rtol, atol=rtol, msg=message)

    for key in ("outputs", "inputs.grad"):
        joined = torch.cat([result[key] for result in ranks])
        assert joined.dtype == case.dtype, f"{name}, {key}"
        compare(key, joined.double(), whole[key], rtol)
    for i, wanted in enumerate(whole["parameters.grad"]):
        summed = sum(result["parameters.grad"][i].double() for result in ranks)
        compare(f"gradient of parameter {i}", summed, wanted, rtol)
    for result in ranks:
        assert result["channels_last"] in (None, case.channels_last), name
        state = {key: value.double() for key, value in result["state"].items()}
        compare("state", state, {k: v.double() for k, v in whole["state"].items()}, 2e-6)
        compare("eval", result["evaluated"].double(), whole["evaluated"], rtol)


@dataclass
class InFloat64:
    """A case whose inputs were widened after they were rounded to its dtype."""

    case: Case

    @property
    def maps(self) -> tuple[int, ...]:
        return self.case.maps

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        inputs, factors = self.case.batch(step)
        return inputs.double(), factors.double()


@pytest.fixture
def two_ranks(monkeypatch) -> None:
    """Let the conversion see two ranks; the converted layers are called outside or never."""
    monkeypatch.setattr(distributed, "world_size", lambda: 2)


def nested() -> nn.Sequential:
    inner = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, eps=0.1), nn.ReLU())
    return nn.Sequential(inner, nn.Flatten(), nn.Linear(4, 2), nn.BatchNorm1d(2, momentum=0.3))


def test_one_rank_leaves_the_network_alone():
    network = nested()
    layers = list(network.modules())
    assert synchronize_batch_norm(network, CPU) is network
    assert all(a is b for a, b in zip(layers, network.modules(), strict=True))


@pytest.mark.usefixtures("two_ranks")
@pytest.mark.parametrize(("device", "kind"), [("cpu", GlobalBatchNorm), ("cuda", nn.SyncBatchNorm)])
def test_parameters_and_buffers_stay_the_same_objects(device, kind):
    network = nested()
    network[3].eval()
    before = network.state_dict(keep_vars=True)
    assert synchronize_batch_norm(network, torch.device(device)) is network
    after = network.state_dict(keep_vars=True)
    assert list(before) == list(after)
    assert all(before[key] is after[key] for key in before)
    first, second = network[0][1], network[3]
    assert type(first) is type(second) is kind
    assert (first.eps, second.momentum) == (0.1, 0.3)
    assert (first.training, second.training) == (True, False)
    assert synchronize_batch_norm(network, torch.device(device))[3] is second  # once is enough


@pytest.mark.usefixtures("two_ranks")
def test_a_batch_norm_of_unknown_behavior_is_refused():
    class Scaled(nn.BatchNorm2d):
        def forward(self, input):
            return 2 * super().forward(input)

    with pytest.raises(DistillError, match="Scaled cannot be synchronized"):
        synchronize_batch_norm(nn.Sequential(Scaled(3)), CPU)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_timms_activation_stays(monkeypatch, device):
    from timm.layers import BatchNormAct2d

    original = nn.Sequential(BatchNormAct2d(3, act_layer=nn.PReLU))
    converted = copy.deepcopy(original)
    with monkeypatch.context() as patch:
        patch.setattr(distributed, "world_size", lambda: 2)
        synchronize_batch_norm(converted, torch.device(device))
    assert type(converted[0]) is not BatchNormAct2d
    assert list(converted.state_dict()) == list(original.state_dict())
    images = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(converted.eval()(images), original.eval()(images))
    if device == "cpu":
        torch.testing.assert_close(converted.train()(images), original.train()(images))


@pytest.mark.parametrize("train", [True, False])
def test_an_input_without_channels_is_refused(train):
    with pytest.raises(DistillError, match="input of 1 dimensions"):
        GlobalBatchNorm(3).train(train)(torch.ones(3))


def test_bf16_autocast_keeps_float32_statistics():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    ours = copy.deepcopy(plain)
    ours[1] = GlobalBatchNorm(4)
    images, outputs = torch.randn(8, 3, 6, 6), []
    for network in (plain, ours):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs.append(network(images))
        outputs[-1].float().square().sum().backward()
    assert outputs[0].dtype == outputs[1].dtype == torch.bfloat16
    torch.testing.assert_close(outputs[1], outputs[0])
    assert ours[1].running_var.dtype == ours[1].weight.grad.dtype == torch.float32
    torch.testing.assert_close(ours[1].running_mean, plain[1].running_mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours[1].running_var, plain[1].running_var, rtol=1e-5, atol=1e-6)
