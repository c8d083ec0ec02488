"""Images with boxes as a detector takes them."""

import numpy as np
import pytest
import torch

from distill.data.voc import open_voc
from distill.errors import DistillError
from distill.evaluation.detection import evaluation_batches, mirrored, to_voc, training_batches


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
