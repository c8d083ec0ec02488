"""The contenders of the benchmarks compute one loss, and the truth is the kernels' reference."""

import pytest
import torch

SHAPE = (8, 900, 24, 16)


@pytest.fixture(scope="module")
def contenders(tool):
    return tool("contenders")


@pytest.fixture(params=["whole", "masked", "one bank"])
def inputs(request, contenders):
    if request.param == "one bank":
        return contenders.make_inputs((8, 900, 24, 24), one_bank=True)
    made = contenders.make_inputs(SHAPE)
    return made.masked(871) if request.param == "masked" else made


def test_the_exact_answer_is_the_reference(contenders, inputs, monkeypatch):
    monkeypatch.setattr(contenders, "_ANCHORS_AT_ONCE", 100)
    exact = contenders.exact_step(inputs)
    wide = inputs.with_embeddings(torch.float64)
    found = contenders.errors(contenders.step(contenders.kernel_loss("reference"), wide), exact)
    assert found["loss_error"] < 1e-7  # its loss is float32
    assert found["gradient_error"] < 1e-13


def test_all_contenders_agree(contenders, inputs):
    exact = contenders.exact_step(inputs)
    for loss in (contenders.plain_loss, contenders.kernel_loss("blocked")):
        found = contenders.errors(contenders.step(loss, inputs), exact)
        assert found["loss_error"] < 1e-5
        assert found["gradient_error"] < 1e-4


def test_masks_exclude_anchors(contenders):
    masked = contenders.make_inputs(SHAPE).masked(871)
    image_index, anchor_index = masked.self_mask
    assert len(masked.student_anchors) == len(anchor_index) == 871
    assert (image_index[:, None] == anchor_index).sum() == (anchor_index >= 0).sum() // 2
    unmasked = contenders.plain_loss(*masked.tensors)
    assert contenders.plain_loss(*masked.tensors, masked.self_mask) != unmasked


def test_one_bank_stays_one(contenders):
    inputs = contenders.make_inputs((8, 900, 24, 24), one_bank=True)
    for made in (inputs, inputs.with_banks(torch.bfloat16), inputs.masked(800)):
        assert made.teacher_anchors is made.student_anchors


def test_embeddings_are_rounded_in_turn(contenders):
    inputs = contenders.make_inputs(SHAPE)
    rounded = inputs.with_embeddings(torch.bfloat16, torch.float32)
    assert rounded.student.requires_grad
    assert torch.equal(rounded.student, inputs.student.bfloat16().float())
    assert not torch.equal(rounded.student, inputs.student)
