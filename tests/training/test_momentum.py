import copy

import torch
from torch import nn

from distill.training.distillation import MomentumCopy


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))


def test_the_copy_is_the_moving_average_of_the_parameters():
    student = network()
    average = {k: v.clone() for k, v in student.named_parameters()}
    follower = MomentumCopy(student, momentum=0.9)
    for _ in range(3):
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(torch.randn_like(parameter))
        follower.update(student)
        average = {k: 0.9 * average[k] + 0.1 * v.detach() for k, v in student.named_parameters()}
    for name, parameter in follower.network.named_parameters():
        torch.testing.assert_close(parameter, average[name])
        assert not parameter.requires_grad


def test_batch_norm_keeps_statistics_of_its_own():
    student = network().train()
    follower = MomentumCopy(student, momentum=0.0)
    assert follower.network[1].training
    assert not follower.network[2].training  # no dropout in the anchors
    images = torch.randn(16, 3) + 5
    follower(images)
    assert not torch.equal(follower.network[1].running_mean, student[1].running_mean)
    student(images), student(images)
    before = follower.network[1].running_mean.clone()
    follower.update(student)
    assert torch.equal(follower.network[1].running_mean, before)


def test_it_gives_no_gradient_and_leaves_the_student_alone():
    student = network()
    before = copy.deepcopy(student.state_dict())
    follower = MomentumCopy(student, momentum=0.5)
    assert not follower(torch.randn(4, 3)).requires_grad
    assert all(torch.equal(before[k], v) for k, v in student.state_dict().items())


def test_state_round_trip():
    first, second = MomentumCopy(network(), momentum=0.5), MomentumCopy(network(), momentum=0.5)
    with torch.no_grad():
        first.network[0].weight.add_(1)
    first(torch.randn(8, 3))
    second.load_state_dict(first.state_dict())
    for key, value in second.state_dict().items():
        assert torch.equal(value, first.state_dict()[key])
