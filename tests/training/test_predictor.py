import pytest
import torch
from torch import nn

from distill import distributed
from distill.data.loader import Batch
from distill.losses.anchors import AnchorQueue
from distill.losses.compress import CompRess
from distill.models.networks import InputSpec, NetworkSpec, build_network
from distill.training.distillation import Distillation, build_predictor
from distill.training.teacher import OnlineTeacher

CPU = torch.device("cpu")


def test_linear_is_the_layer_of_earlier_checkpoints():
    torch.manual_seed(0)
    found = build_predictor("linear", 4, 5)
    torch.manual_seed(0)
    expected = nn.Linear(4, 5)
    assert list(found.state_dict()) == ["weight", "bias"]
    assert torch.equal(found.weight, expected.weight)


@pytest.mark.parametrize("kind", ["linear", "none"])
def test_without_a_width_there_are_no_layers(kind):
    assert build_predictor(kind, 4, 0) is None


def test_the_mlp_has_one_hidden_layer_of_twice_the_width():
    found = build_predictor("mlp", 4, 5)
    shapes = {name: tuple(tensor.shape) for name, tensor in found.named_parameters()}
    assert shapes == {
        "0.weight": (8, 4),
        "1.weight": (8,),
        "1.bias": (8,),
        "3.weight": (5, 8),
        "3.bias": (5,),
    }
    rows = torch.randn(6, 4)
    first, last = found[0].weight, found[3]
    hidden = rows @ first.T
    hidden = (hidden - hidden.mean(0)) / (hidden.var(0, unbiased=False) + 1e-5).sqrt()
    expected = hidden.clamp_min(0) @ last.weight.T + last.bias
    torch.testing.assert_close(found(rows), expected)


def gradients(counts: list[int]) -> list[torch.Tensor]:
    """Of one step behind an MLP, over ranks with so many images."""
    torch.manual_seed(0)
    layers = [nn.Flatten(), nn.Linear(12, 4)]
    spec = NetworkSpec("tiny", lambda size: nn.Sequential(*layers), input=InputSpec(2))
    student, network = build_network(spec), build_network(spec)
    shard = (distributed.rank(), distributed.world_size())
    objective = Distillation(
        student,
        OnlineTeacher(network, CPU, precision="fp32", batch_size=None),
        CompRess(AnchorQueue(20, 4, shard=shard), teacher_temperature=0.3, student_temperature=0.3),
        projection=build_predictor("mlp", 4, 4),
        momentum=None,
        device=CPU,
        precision="fp32",
    )
    start = sum(counts[: distributed.rank()])
    mine = slice(start, start + counts[distributed.rank()])
    for number in range(2):
        views = torch.rand(9, 3, 2, 2)[mine]
        index = (torch.arange(9) + 9 * number)[mine]
        loss = objective.loss(Batch(views, None, index, index, 0, ()))
        if loss is not None:
            loss.backward()
        objective.after_step(stepped=loss is not None)
    return [parameter.grad for parameter in objective.parameters()]


@pytest.mark.ddp
def test_its_batch_norm_sees_the_images_of_all_ranks(run_ranks):
    alone = gradients([9])
    for found in run_ranks(gradients, 2, [6, 3]):
        torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-6)
