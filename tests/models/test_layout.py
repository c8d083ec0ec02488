"""Layouts: where the weights of a network are in a file."""

import torch

from distill.models.layout import PyTorchLayout, TensorFlowLayout

KEYS = ["conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var", "fc.weight"]


def test_tensorflow_names_and_orders():
    layout = TensorFlowLayout(
        {"conv": "a/conv2d", "bn": "a/bn", "fc": "head/dense"}, "/VALUE", (r"global_step",)
    )
    assert layout.names([*KEYS, "bn.num_batches_tracked", "fc.bias"], ()) == {
        "conv.weight": "a/conv2d/kernel/VALUE",
        "bn.weight": "a/bn/gamma/VALUE",
        "bn.bias": "a/bn/beta/VALUE",
        "bn.running_mean": "a/bn/moving_mean/VALUE",
        "bn.running_var": "a/bn/moving_variance/VALUE",
        "fc.weight": "head/dense/kernel/VALUE",
        "fc.bias": "head/dense/bias/VALUE",
    }
    assert layout.ignores("global_step")
    assert not layout.ignores("global_step_2")  # whole names
    for shape in ((8, 4, 3, 5), (6, 2), (7,), ()):
        stored = layout.stored_shape(shape)
        assert layout.converted(torch.empty(stored)).shape == shape
    kernel = torch.randn(3, 5, 4, 8)  # H x W x in x out
    assert layout.converted(kernel)[6, 2, 1, 4] == kernel[1, 4, 2, 6]


def test_a_prefix_is_optional_and_parts_may_be_renamed():
    layout = PyTorchLayout("encoder_q.", {"fc.": "last."}, ignored=("queue", "head."))
    assert layout.names(["a.weight", "fc.weight"], ["encoder_q.a.weight", "queue"]) == {
        "a.weight": "encoder_q.a.weight",
        "fc.weight": "encoder_q.fc.weight",
    }
    assert layout.names(["a.weight", "fc.weight"], ["a.weight", "last.weight"]) == {
        "a.weight": "a.weight",
        "fc.weight": "last.weight",
    }
    assert layout.ignores("queue_ptr")
    assert layout.ignores("encoder_q.head.0.weight")
    assert not layout.ignores("encoder_q.a.weight")
