"""Detectors on the backbones of students: maps, anchors, heads, and what learns."""

import pytest
import torch
from torch import nn

from distill.errors import DistillError
from distill.evaluation.detector import build_detector
from students.registry import build_student
from teachers.resnet import build_backbone

TINY = "timm:test_resnet"


def build(name, *, image_size=64, student_size=64, **options):
    torch.manual_seed(0)
    network = build_student(name, image_size=student_size).eval()
    return network, build_detector(network, 3, image_size=image_size, **options)


def one_step(detector, side=80):
    images = [torch.rand(3, side, 100), torch.rand(3, 90, side)]
    box = torch.tensor([[10.0, 10, 50, 60]])
    targets = [{"boxes": box, "labels": torch.tensor([label])} for label in (1, 3)]
    sum(detector(images, targets).values()).backward()


def test_a_resnet_has_a_pyramid_of_its_four_stages():
    network, detector = build("resnet18", regions_per_image=8)
    maps = detector.model.backbone(torch.zeros(1, 3, 128, 128))
    assert {name: tuple(one.shape[1:]) for name, one in maps.items()} == {
        "0": (256, 32, 32),
        "1": (256, 16, 16),
        "2": (256, 8, 8),
        "3": (256, 4, 4),
        "pool": (256, 2, 2),
    }
    sizes = detector.model.rpn.anchor_generator.sizes
    assert sizes == ((32,), (64,), (128,), (256,), (512,))
    assert detector.model.roi_heads.box_roi_pool.featmap_names == ["0", "1", "2", "3"]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    one_step(detector)
    assert all(parameter.grad is not None for parameter in detector.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_the_stem_for_small_images_has_smaller_anchors():
    _, detector = build("resnet18", student_size=32)
    assert detector.model.rpn.anchor_generator.sizes == ((8,), (16,), (32,), (64,), (128,))


def test_a_pre_trained_backbone_has_a_pyramid_too():
    network = build_backbone("resnet18x0.125-small", image_size=32)
    maps = build_detector(network, 3, image_size=64).model.backbone.body(torch.zeros(1, 3, 64, 64))
    assert [tuple(one.shape[1:]) for one in maps.values()] == [
        (8, 64, 64),
        (16, 32, 32),
        (32, 16, 16),
        (64, 8, 8),
    ]


def test_the_weights_are_the_students():
    network, detector = build(TINY)
    body = detector.model.backbone.body
    assert torch.equal(body["layer1"][0].conv1.weight, network.backbone.layer1[0].conv1.weight)
    assert body["layer1"][0].conv1.weight is not network.backbone.layer1[0].conv1.weight
    assert detector.model.transform.image_mean == list(network.input.mean)
    assert detector.model.transform.image_std == list(network.input.std)
    assert detector.model.transform.min_size == (64,)
    assert detector.model.transform.max_size == 107
    assert detector.model.roi_heads.box_predictor.cls_score.out_features == 4


def test_batch_norm_learns_scale_and_shift_but_no_statistics():
    _, detector = build(TINY, regions_per_image=8)
    norms = [module for module in detector.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [norm.running_mean.clone() for norm in norms]
    detector.train()
    assert detector.training
    assert detector.model.rpn.training
    one_step(detector)
    assert norms
    for norm, mean in zip(norms, before, strict=True):
        assert not norm.training
        assert torch.equal(norm.running_mean, mean)
        assert norm.weight.grad is not None


def test_alexnet_keeps_fc6_and_fc7_for_the_regions():
    network, detector = build("alexnet", image_size=96, regions_per_image=8)
    heads = detector.model.roi_heads
    weight = network.backbone.classifier[1].weight
    (fc6, fc7) = [one for one in heads.box_head.modules() if isinstance(one, nn.Linear)]
    assert torch.equal(fc6.weight, weight)
    assert fc7.out_features == heads.box_predictor.cls_score.in_features == 4096
    assert tuple(heads.box_roi_pool.output_size) == (6, 6)
    assert detector.model.backbone(torch.zeros(1, 3, 224, 224)).shape == (1, 256, 13, 13)
    assert detector.model.rpn.anchor_generator.sizes == ((5, 10, 20, 41, 82),)
    one_step(detector)
    assert fc7.weight.grad is not None


@pytest.mark.parametrize(("name", "side"), [("mobilenetv2", 4), ("timm:test_efficientnet", 4)])
def test_other_networks_give_one_map(name, side):
    _, detector = build(name, regions_per_image=8)
    assert detector.model.backbone(torch.zeros(1, 3, 128, 128)).shape == (1, 256, side, side)
    one_step(detector)
    assert all(
        parameter.grad is not None
        for path, parameter in detector.model.backbone.named_parameters()
        if "classifier" not in path and "fc." not in path
    )


@pytest.mark.parametrize("name", ["timm:test_vit", "torchvision:swin_t"])
def test_networks_without_a_map(name):
    network = build_student(name, image_size=160)
    with pytest.raises(DistillError, match=f"{name} has no feature map for images"):
        build_detector(network, 3, image_size=64)
