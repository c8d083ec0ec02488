"""Fine-tuning and detection, on images of colored squares and with detectors that are made up."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from distill.data.voc import open_voc
from distill.embeddings.embed import InferenceConfig
from distill.errors import DistillError, NonFiniteLossError
from distill.evaluation.average_precision import Boxes
from distill.evaluation.detection import (
    Detections,
    detect,
    detection_aps,
    evaluation_batches,
    fine_tune,
    learning_rate_factor,
    mirrored,
    to_voc,
    training_batches,
)
from distill.evaluation.detector import build_detector
from students.registry import build_student

CPU = InferenceConfig(torch.device("cpu"), "fp32")


@pytest.fixture
def data(make_voc):
    return open_voc(make_voc())


def tiny_detector():
    torch.manual_seed(0)
    network = build_student("timm:test_resnet", image_size=64)
    return build_detector(network, 3, image_size=64, regions_per_image=32)


class Oracle(nn.Module):
    """Finds what is there, from a table by the image's pixels; labels count from 1."""

    def __init__(self, images, *, shift=0.0, sees_difficult=True):
        super().__init__()
        self.shift = shift
        self.sees_difficult = sees_difficult
        self.known = {
            np.asarray(images.load(i)).tobytes(): images.objects[i] for i in range(len(images))
        }

    def forward(self, pixels, targets=None):
        assert not self.training
        found = []
        for one in pixels:
            assert one.dtype == torch.float32
            key = (one * 255).round().byte().permute(1, 2, 0).contiguous().numpy().tobytes()
            objects = self.known[key]
            seen = ~objects.difficult | self.sees_difficult
            boxes = torch.from_numpy(objects.corners[seen] - [1, 1, 0, 0]) + self.shift
            scores = torch.linspace(0.9, 0.8, len(boxes))
            labels = torch.from_numpy(objects.classes[seen]) + 1
            found.append({"boxes": boxes, "labels": labels, "scores": scores})
        return found


def test_a_detector_that_knows_everything(data):
    found = detect(Oracle(data.val), data.val, np.arange(6), CPU)
    assert found.seen.tolist() == list(range(6))
    expected = np.concatenate([one.corners for one in data.val.objects])
    np.testing.assert_allclose(found.boxes.corners, expected)
    for values in detection_aps(found, data.val).values():
        np.testing.assert_allclose(values, [1, 1, 1])
    blind = detect(Oracle(data.val, sees_difficult=False), data.val, np.arange(6), CPU)
    assert len(blind.scores) < len(found.scores)
    for values in detection_aps(blind, data.val).values():
        np.testing.assert_allclose(values, [1, 1, 1])
    # Half a square away everything overlaps by less than a half.
    beside = detect(Oracle(data.val, shift=12.0), data.val, np.arange(6), CPU)
    assert max(values.max() for values in detection_aps(beside, data.val).values()) == 0


def test_classes_and_images_are_told_apart(data):
    one = data.val.objects[0]
    label = int(one.classes[0])
    others = sum(
        int(((each.classes == label) & ~each.difficult).sum()) for each in data.val.objects
    )

    def found(*, image, label):
        boxes = Boxes(np.array([image]), one.corners[:1])
        return Detections(boxes, np.array([label]), np.array([0.5]), np.arange(6))

    right = detection_aps(found(image=0, label=label), data.val)["area"]
    assert right[label] == pytest.approx(1 / others)
    assert np.delete(right, label).max() == 0
    assert detection_aps(found(image=0, label=(label + 1) % 3), data.val)["area"].max() == 0
    assert detection_aps(found(image=4, label=label), data.val)["area"].max() == 0


def test_images_that_cannot_be_read_do_not_count(data):
    oracle = Oracle(data.val)
    with open(data.val.path(2), "wb") as file:
        file.write(b"x")
    told = []
    found = detect(
        oracle,
        data.val,
        np.arange(6),
        InferenceConfig(torch.device("cpu"), "fp32", on_bad_images=told.extend),
    )
    assert found.seen.tolist() == [0, 1, 3, 4, 5]
    assert told == [data.val.path(2)]
    np.testing.assert_allclose(detection_aps(found, data.val)["area"], [1, 1, 1])


def test_a_detector_that_finds_nothing(data):
    nothing = Boxes(np.zeros(0, np.int64), np.zeros((0, 4)))
    found = Detections(nothing, np.zeros(0, np.int64), np.zeros(0), np.arange(6))
    for values in detection_aps(found, data.val).values():
        assert values.tolist() == [0, 0, 0]


def test_the_schedule_warms_up_and_decays_twice():
    factor = learning_rate_factor(24_000)
    assert factor(0) == pytest.approx(1 / 101)
    assert factor(99) == pytest.approx(100 / 101)
    shares = [factor(step) for step in (100, 17_999, 18_000, 21_999, 22_000, 23_999)]
    assert shares == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    assert learning_rate_factor(20)(1) == pytest.approx(2 / 3)
    assert learning_rate_factor(5)(0) == 1


class Recorded(nn.Module):
    """A detector of one weight, whose loss is that weight times a constant."""

    def __init__(self, slope=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.0))
        self.slope = slope
        self.targets = []

    def forward(self, pixels, targets):
        assert self.training
        self.targets += targets
        return {"a": self.weight * self.slope, "b": 0 * self.weight}


def test_rates_and_targets(data):
    options = {"steps": 8, "batch_size": 4, "weight_decay": 0.0}
    detector = Recorded().eval()
    losses = fine_tune(detector, data.train, np.arange(12), CPU, **options)
    weight, velocity, expected = 1.0, 0.0, []
    for step in range(8):
        expected.append(weight)
        velocity = 0.9 * velocity + 1.0
        weight -= 0.02 * 4 / 16 * learning_rate_factor(8)(step) * velocity
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert len(detector.targets) == 32
    assert {int(label) for one in detector.targets for label in one["labels"]} == {1, 2, 3}
    faster = fine_tune(Recorded(), data.train, np.arange(12), CPU, steps=2, learning_rate=0.5)
    assert faster[1] == pytest.approx(0.5, abs=0.01)


def test_a_loss_that_is_not_finite_names_its_step(data):
    with pytest.raises(NonFiniteLossError, match="the detector's loss is nan at step 0; lower"):
        fine_tune(Recorded(math.nan), data.train, np.arange(12), CPU, steps=3)


def test_unreadable_training_images_are_told_and_left_out(data):
    for i in range(12):
        with open(data.train.path(i), "wb") as file:
            file.write(b"x")
    told = []
    how = InferenceConfig(torch.device("cpu"), "fp32", on_bad_images=told.extend)
    losses = fine_tune(Recorded(), data.train, np.arange(12), how, steps=3, batch_size=2)
    assert len(losses) == 0
    assert len(told) == 6


def test_a_few_steps_of_a_real_detector_are_repeatable(data):
    options = {"steps": 2, "batch_size": 1, "learning_rate": 0.01}
    losses = []
    for elsewhere in (1, 2):
        detector = tiny_detector()
        torch.manual_seed(elsewhere)
        losses.append(fine_tune(detector, data.train, np.arange(12), CPU, **options))
    first, second = losses
    np.testing.assert_array_equal(first, second)


@pytest.mark.slow
def test_colored_squares_are_learned_in_a_few_dozen_steps(make_voc):
    data = open_voc(make_voc("easy", num_train=24, num_test=12))
    detector = tiny_detector()
    everything = np.arange(12)
    before = detection_aps(detect(detector, data.val, everything, CPU), data.val)["voc07"].mean()
    options = {"steps": 40, "batch_size": 2, "learning_rate": 0.02}
    losses = fine_tune(detector, data.train, np.arange(24), CPU, **options)
    assert losses[-5:].mean() < 0.7 * losses[:5].mean()
    after = detection_aps(detect(detector, data.val, everything, CPU), data.val)["voc07"].mean()
    assert before < 0.05
    assert after > 0.3


@pytest.fixture
def images(make_voc):
    return open_voc(make_voc(num_train=10, num_test=1)).train


def drawn(images, *, num_batches, batch_size=3, seed=0, index=None):
    index = np.arange(len(images)) if index is None else index
    return list(
        training_batches(
            images,
            index,
            num_batches=num_batches,
            batch_size=batch_size,
            seed=seed,
            num_workers=0,
        )
    )


def test_boxes_are_measured_from_the_images_corner_and_back(images):
    (batch,) = evaluation_batches(images, np.array([3]), batch_size=4, num_workers=0)
    (image,) = batch.images
    assert (image.pixels.dtype, image.pixels.shape) == (torch.uint8, (3, 64, 96))
    corners = images.objects[3].corners
    np.testing.assert_array_equal(image.boxes, corners - [1, 1, 0, 0])
    np.testing.assert_array_equal(to_voc(image.boxes.numpy()), corners)
    x1, y1, x2, y2 = image.boxes[0].long()
    inside = image.pixels[:, y1:y2, x1:x2].reshape(3, -1)
    assert (inside == inside[:, :1]).all()  # the square, and nothing but the square
    assert (image.pixels[:, y1:y2, x2] != inside[:, :1]).any()


def test_difficult_objects_are_not_learned(images):
    (batch,) = evaluation_batches(images, np.array([4]), batch_size=1, num_workers=0)
    is_learned = ~images.objects[4].difficult
    assert not is_learned.all()
    assert batch.images[0].classes.tolist() == images.objects[4].classes[is_learned].tolist()
    assert len(batch.images[0].boxes) == is_learned.sum()


def test_images_with_nothing_to_learn_are_left_out(images):
    for i in (1, 7):
        images.objects[i].difficult[:] = True
    batches = drawn(images, num_batches=8)
    assert {image.number for batch in batches for image in batch.images} == {0, 2, 3, 4, 5, 6, 8, 9}
    with pytest.raises(DistillError, match="no image of VOC2007/trainval has an object"):
        drawn(images, num_batches=1, index=np.array([1, 7]))


def test_every_image_once_before_any_a_second_time(images):
    batches = drawn(images, num_batches=7)
    assert [len(batch.images) for batch in batches] == [3] * 7
    numbers = [image.number for batch in batches for image in batch.images]
    assert sorted(numbers[:10]) == sorted(numbers[10:20]) == list(range(10))
    assert numbers[:10] != numbers[10:20]


def test_half_of_the_images_are_mirrored_by_the_seed(images):
    def boxes(seed):
        batches = drawn(images, num_batches=20, batch_size=2, seed=seed)
        return [(image.number, image.boxes) for batch in batches for image in batch.images]

    first, again, other = boxes(0), boxes(0), boxes(1)
    assert all(a[0] == b[0] and torch.equal(a[1], b[1]) for a, b in zip(first, again, strict=True))
    assert [number for number, _ in first] != [number for number, _ in other]
    upright = [
        np.array_equal(
            found, images.objects[i].corners[~images.objects[i].difficult] - [1, 1, 0, 0]
        )
        for i, found in first
    ]
    assert 8 < sum(upright) < 32


def test_a_mirrored_box_holds_the_same_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 9, 3), np.uint8)
    turned, boxes = mirrored(pixels, np.array([[1.0, 2, 4, 5]]))
    assert boxes.tolist() == [[5, 2, 8, 5]]
    np.testing.assert_array_equal(turned[2:5, 5:8], pixels[2:5, 1:4][:, ::-1])


def test_images_that_cannot_be_read_are_named(images):
    with open(images.path(1), "wb") as file:
        file.write(b"x")
    (batch,) = evaluation_batches(images, np.arange(3), batch_size=4, num_workers=1)
    assert [image.number for image in batch.images] == [0, 2]
    assert batch.bad == (images.path(1),)
