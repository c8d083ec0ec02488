"""A person's own datasets: what is read, what stands for it, what is refused with which remedy."""

import gc
import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from distill.data import objects
from distill.data.loader import TrainingViews, training_loader
from distill.data.sources import BadImages, open_data_object, open_images
from distill.data.views import training_view
from distill.errors import BadImageError, DistillError

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 12, 10, 3), np.uint8)
LABELS = [i % 3 for i in range(40)]


class Photos(Dataset):
    """Items made by a function of (image in RGB, label, position); counts what is read."""

    def __init__(self, change=lambda image, label, i: (image, label), number=40, **attributes):
        self.change, self.number, self.reads = change, number, Counter()
        self.__dict__.update(attributes)

    def __len__(self):
        return self.number

    def __getitem__(self, i):
        self.reads[i] += 1
        return self.change(Image.fromarray(PIXELS[i]), LABELS[i], i)


def tensor(image):
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)


def opened(change, **settings):
    return open_data_object(Photos(change), **settings).train


def fingerprint(change, **settings):
    return opened(change, **settings).fingerprint()


def test_images_and_labels_in_order():
    data = open_data_object(Photos())
    assert (data.name, data.val, data.native_size, data.horizontal_flip) == (
        "Photos", None, None, True,
    )  # fmt: skip
    assert data.source.startswith("dataset:")
    assert data.source.endswith("test_objects.Photos")
    train = data.train
    assert len(train) == 40
    assert train.labels.tolist() == LABELS
    assert train.classes == ("0", "1", "2")
    np.testing.assert_array_equal(np.asarray(train.load(17)), PIXELS[17])
    assert train.describe(3) == "Photos/train[3]"
    with pytest.raises(DistillError, match="give the object itself as data="):
        open_images(data.source)


@pytest.mark.parametrize(
    "item",
    [
        lambda image, label, i: (tensor(image), torch.tensor(label)),
        lambda image, label, i: [image, np.int64(label)],
    ],
)
def test_tensors_and_numbers_of_any_kind_are_the_same_set(item):
    assert fingerprint(item) == fingerprint(lambda image, label, i: (image, label))
    assert opened(item).labels.tolist() == LABELS


def test_gray_images():
    gray = {name: fingerprint(item) for name, item in {
        "2d": lambda image, label, i: tensor(image)[0],
        "3d": lambda image, label, i: tensor(image)[:1],
        "PIL": lambda image, label, i: Image.fromarray(PIXELS[i][..., 0]),
    }.items()}  # fmt: skip
    assert len(set(gray.values())) == 1


@pytest.mark.parametrize(
    "item",
    [
        lambda image, label, i: image,
        lambda image, label, i: (image,),
        lambda image, label, i: (image, None),
        lambda image, label, i: (image, -1),
    ],
)
def test_images_without_labels(item):
    train = opened(item)
    assert (train.labels, train.classes) == (None, None)


def test_class_names():
    names = ("cat", "dog", "ant")
    train = opened(lambda image, label, i: (image, names[label]))
    assert train.classes == ("ant", "cat", "dog")
    assert train.labels[:3].tolist() == [1, 2, 0]
    own = Photos(lambda image, label, i: (image, names[label]), classes=["dog", "cat", "ant", "x"])
    assert open_data_object(own).train.labels[:3].tolist() == [1, 0, 2]
    assert open_data_object(Photos(classes=["a", "b", "c"])).train.classes == ("a", "b", "c")
    assert open_data_object(Photos(classes=["a", "b"])).train.classes == ("0", "1", "2")


def test_validation_images_are_of_the_classes_of_training():
    names = ("cat", "dog", "ant")
    by_name = Photos(lambda image, label, i: (image, names[label]))
    data = open_data_object((by_name, Subset(by_name, [1, 4])), name="pets")
    assert (data.name, data.source, data.val.name) == ("pets", "dataset:pets", "pets/val")
    assert (data.val.classes, data.val.labels.tolist()) == (("ant", "cat", "dog"), [2, 2])
    for train in (Subset(by_name, [0, 1]), Photos(lambda image, label, i: image)):
        with pytest.raises(DistillError, match=r"val\[\d\] is of class '\w+', and training has"):
            open_data_object((train, by_name))


def test_small_squares_have_a_native_size():
    def of(*shapes):
        images = [torch.zeros(3, *shape, dtype=torch.uint8) for shape in shapes]
        return open_data_object(images).native_size

    assert of((8, 8), (8, 8)) == 8
    assert of((8, 8), (9, 9)) is None
    assert of((8, 9)) is None
    assert of((97, 97)) is None


def test_the_hash_follows_pixels_labels_and_order():
    def changed(image, label, i):
        image.putpixel((9, 11), (1, 2, 3)) if i == 23 else None
        return image, label

    found = {
        fingerprint(lambda image, label, i: (image, label)),
        fingerprint(changed),
        fingerprint(lambda image, label, i: (image, label + (i == 39))),
        fingerprint(lambda image, label, i: image),
        fingerprint(lambda image, label, i: (image.transpose(Image.Transpose.ROTATE_90), label)),
        fingerprint(lambda image, label, i: (image.reduce(2), label)),
        open_data_object(Subset(Photos(), range(39))).train.fingerprint(),
        open_data_object(Subset(Photos(), range(39, -1, -1))).train.fingerprint(),
    }
    assert len(found) == 8
    assert open_data_object(Photos(), name="other").train.fingerprint() in found


def test_a_key_stands_for_the_content():
    data = open_data_object((Photos(), Photos()), data_key="mine")
    assert data.train.fingerprint() != data.val.fingerprint()
    others = [fingerprint(lambda image, label, i: image, data_key=key) for key in ("mine", "yours")]
    assert [other == data.train.fingerprint() for other in others] == [True, False]
    with pytest.raises(DistillError, match="data_key is empty"):
        open_data_object(Photos(), data_key="")


def test_with_a_key_and_targets_few_items_are_read():
    with_targets = Photos(targets=LABELS)
    assert open_data_object(with_targets, data_key="mine").train.labels.tolist() == LABELS
    assert len(with_targets.reads) == objects.NUM_TRIED
    wrong = Photos(targets=LABELS[::-1])  # for example of another transform
    assert open_data_object(wrong, data_key="mine").train.labels.tolist() == LABELS


def test_an_object_is_read_once_while_it_lives_and_stays_the_same():
    photos = Photos()
    first = open_data_object(photos).train.fingerprint()
    reads = photos.reads.total()
    assert open_data_object(photos).train.fingerprint() == first
    assert photos.reads.total() == reads + 2 * objects.NUM_TRIED
    photos.change = lambda image, label, i: (image.reduce(2), label)
    assert open_data_object(photos).train.fingerprint() != first
    place = id(photos)
    assert place in objects._CONTENTS
    del photos
    gc.collect()
    assert place not in objects._CONTENTS


class Stream(IterableDataset):
    def __iter__(self):
        yield Image.new("RGB", (4, 4)), 0


class WithoutLength(Dataset):
    def __getitem__(self, i):
        return Image.new("RGB", (4, 4)), 0


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Stream(), "Stream, whose items cannot be read by number; give a torch Dataset"),
        (DataLoader(Photos()), r"of a DataLoader its \.dataset"),
        (WithoutLength(), "cannot be read by number"),
        ([], "list/train has no items"),
        (Photos(number=0), "Photos/train has no items"),
    ],
)
def test_what_is_no_dataset_is_refused(data, message):
    with pytest.raises(DistillError, match=message):
        open_data_object(data)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (lambda image, label, i: (tensor(image) / 255, label), "of float32; .* without normaliz"),
        (lambda image, label, i: tensor(image).permute(1, 2, 0), r"shape \(12, 10, 3\); .*permute"),
        (lambda image, label, i: tensor(image)[:2], r"shape \(2, 12, 10\); return \(3, H, W\)"),
        (lambda image, label, i: tensor(image)[:, :0], r"shape \(3, 0, 10\)"),
        (lambda image, label, i: np.asarray(image), "numpy.ndarray; return a PIL image or a uint8"),
        (lambda image, label, i: {"image": image}, "of type builtins.dict; return a PIL image"),
        (lambda image, label, i: (image, label, i), r"has 3 parts; return \(image, label\)"),
        (lambda image, label, i: (image, 0.5), "label is '0.5' of type float; return an integer"),
        (lambda image, label, i: (image, torch.eye(3)[label]), "of type Tensor; return an integer"),
        (lambda image, label, i: (image, -2), "label is '-2'"),
        (lambda image, label, i: (image, None if i == 7 else label), "1 of 40 items have no label"),
        (lambda image, label, i: (image, "x" if i == 7 else label), "class names and numbers"),
        (
            lambda image, label, i: (image, label) if i != 37 else 1 / 0,
            r"Photos/train\[37\]: division by zero; correct the dataset, or leave the item out",
        ),
    ],
)
def test_items_that_are_refused(item, message):
    with pytest.raises(DistillError, match=message) as caught:
        opened(item)
    assert "\n" not in str(caught.value)


def test_items_that_change_are_refused():
    def flipped(image, label, i):
        chance = torch.rand(()) < 0.5
        return (image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if chance else image), label

    def relabeled(image, label, i):
        return image, int(torch.randint(3, ()))

    for change in (flipped, relabeled):
        with pytest.raises(DistillError, match="not the same when it is read twice; remove random"):
            opened(change, data_key="mine")


def test_items_that_fail_later_are_bad_images():
    broken = set()
    photos = Photos(lambda image, label, i: (image, label) if i not in broken else 1 / 0)
    train = open_data_object(photos).train
    broken.add(21)
    with pytest.raises(BadImageError, match=r"train\[21\]: division by zero"):
        train.load(21)
    assert BadImages("fail").good_indices(train).tolist() == list(range(40))  # not decoded again
    views = TrainingViews(train, np.arange(40), training_view(8), seed=0)
    batches = list(training_loader(views, batch_size=40, num_epochs=1, num_workers=0))
    assert [list(batch.bad) for batch in batches] == [["Photos/train[21]"]]


def batches_of(train, **settings):
    views = TrainingViews(train, np.arange(40), training_view(8), seed=0)
    settings = {"batch_size": 9, "num_epochs": 2, **settings}
    return [(b.index, b.view, b.label) for b in training_loader(views, **settings)]


def test_views_do_not_depend_on_workers_resuming_or_ranks():
    train = opened(lambda image, label, i: (image, label), num_workers=2)  # hashed by workers, too
    assert train.fingerprint() == opened(lambda image, label, i: (image, label)).fingerprint()
    whole = batches_of(train, num_workers=0)
    for rest, same in (
        (batches_of(train, num_workers=2), whole),
        (batches_of(train, num_workers=0, start_epoch=1, start_batch=2), whole[7:]),
    ):
        for ours, theirs in zip(rest, same, strict=True):
            assert all(map(torch.equal, ours, theirs))
    ranks = [batches_of(train, num_workers=0, shard=(rank, 2)) for rank in range(2)]
    for first, second, both in zip(*ranks, whole, strict=True):
        assert torch.equal(torch.cat([first[1], second[1]]), both[1])


def test_a_set_that_was_opened_can_be_pickled():
    dataset = TensorDataset(torch.zeros(4, 3, 5, 5, dtype=torch.uint8), torch.arange(4))
    train = open_data_object(dataset).train
    copy = pickle.loads(pickle.dumps(train))
    assert copy.fingerprint() == train.fingerprint()
    assert copy.load(3).size == (5, 5)
