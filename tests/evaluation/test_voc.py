"""Transfer to VOC: what classifiers learn, choose and ignore, and `distill voc`."""

import re
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC

from distill.data.sources import BadImages
from distill.data.voc import open_voc
from distill.errors import DistillError
from distill.evaluation import detection
from distill.evaluation import voc as module
from distill.evaluation.average_precision import classification_ap
from distill.evaluation.base import describe_metric, evaluate
from distill.evaluation.voc import (
    COSTS,
    choose_cost,
    classification_aps,
    classify,
    standardized,
    voc_result,
)

CLASSES = ("cat", "dog")


def problem(*, num=60, width=8, noise=0.3, seed=0):
    """Embeddings that lean towards direction c where class c is shown."""
    rng = np.random.default_rng(seed)
    presence = np.where(rng.random((num, 2)) < 0.4, 1, -1)
    features = rng.normal(size=(num, width)) * noise
    features[:, :2] += presence
    return features.astype(np.float32), presence


@pytest.mark.parametrize("classifier", ["svm", "logistic"])
def test_classes_are_told_apart_each_for_itself(classifier):
    train, presence = problem()
    test, shown = problem(seed=1)
    scores, _costs = classify(train, presence, test, classes=CLASSES, classifier=classifier)
    assert scores.shape == (60, 2)
    for values in classification_aps(scores, shown).values():
        assert values.min() > 0.95
    swapped = classification_aps(scores[:, ::-1], shown)
    assert max(values.max() for values in swapped.values()) < 0.8
    again, _ = classify(train, presence, test, classes=CLASSES, classifier=classifier)
    np.testing.assert_array_equal(scores, again)


@pytest.mark.parametrize(
    ("classifier", "model"),
    [
        ("svm", partial(LinearSVC, dual=False)),
        ("logistic", partial(LogisticRegression, max_iter=1000)),
    ],
)
def test_both_signs_weigh_the_same(classifier, model):
    train, presence = problem(noise=1.0)
    test, _ = problem(noise=1.0, seed=1)
    presence[:40, 0] = -1  # rare now
    scores, costs = classify(train, presence, test, classes=CLASSES, classifier=classifier)
    rows, tested = standardized(train, test)
    is_present = presence[:, 0] == 1
    shares = {True: 30 / is_present.sum(), False: 30 / (~is_present).sum()}
    weights = np.array([shares[bool(one)] for one in is_present])
    fitted = model(C=costs[0]).fit(rows, is_present, sample_weight=weights)
    np.testing.assert_allclose(scores[:, 0], fitted.decision_function(tested), rtol=1e-5)


def test_difficult_images_take_no_part_in_learning():
    train, presence = problem()
    kept = np.ones(60, dtype=bool)
    kept[::4] = False
    difficult = presence.copy()
    difficult[~kept, 0] = 0
    scores, costs = classify(train, difficult, train, classes=CLASSES)
    # The embeddings still set the standard, but their rows and signs do not count.
    scale = standardized(train, train)[0]
    cost = choose_cost(scale[kept], presence[kept, 0] == 1, classifier="svm", seed=0)
    expected = module._fitted(scale[kept], presence[kept, 0] == 1, cost, "svm")
    np.testing.assert_allclose(scores[:, 0], expected.decision_function(scale))
    assert costs[0] == cost
    whole, _ = classify(train, presence, train, classes=CLASSES)
    np.testing.assert_array_equal(scores[:, 1], whole[:, 1])


def test_difficult_test_images_are_ignored():
    scores = np.array([[0.9], [0.8], [0.7]])
    presence = np.array([[0], [1], [-1]])
    assert classification_aps(scores, presence)["area"].tolist() == [1.0]
    assert classification_aps(scores, -np.abs(presence))["voc07"].tolist() == pytest.approx(
        [np.nan], nan_ok=True
    )


def test_rows_are_normalized_columns_standardized_by_the_training_images():
    rng = np.random.default_rng(0)
    train = rng.normal(2, 3, size=(50, 5)).astype(np.float32)
    train[:, 3] = 0  # constant, and zero after normalization as well
    test = rng.normal(size=(7, 5)).astype(np.float32)
    unit = train / np.linalg.norm(train, axis=1, keepdims=True)
    deviation = unit.std(axis=0)
    deviation[3] = np.inf
    found, found_test = standardized(train, test)
    np.testing.assert_allclose(found, (unit - unit.mean(0)) / deviation / 5**0.5, atol=1e-6)
    test_unit = test / np.linalg.norm(test, axis=1, keepdims=True)
    expected = (test_unit - unit.mean(0)) / deviation / 5**0.5
    np.testing.assert_allclose(found_test, expected, atol=1e-5)
    # 4 of 5 columns vary: the mean square of a row is 4/5.
    assert (found**2).sum(1).mean() == pytest.approx(4 / 5)
    scaled, _ = standardized(train * 7, test)
    np.testing.assert_allclose(scaled, found, atol=1e-6)


def test_the_cost_is_the_one_that_ranks_left_out_images_best():
    from sklearn.model_selection import StratifiedKFold

    train, presence = problem(num=40, width=20, noise=1.5, seed=3)
    rows, is_present = standardized(train, train)[0], presence[:, 0] == 1
    means = []
    for cost in COSTS:
        folds = StratifiedKFold(3, shuffle=True, random_state=5).split(rows, is_present)
        aps = []
        for learned, left in folds:
            model = LinearSVC(C=cost, class_weight="balanced", dual=False)
            model.fit(rows[learned], is_present[learned])
            scores = model.decision_function(rows[left])
            labels = np.where(is_present[left], 1, -1)
            aps.append(classification_ap(scores, labels, rule="area"))
        means.append(np.mean(aps))
    assert len(set(np.round(means, 6))) > 2  # else nothing is chosen
    found = choose_cost(rows, is_present, classifier="svm", seed=5)
    assert found == COSTS[int(np.argmax(np.round(means, 9)))]


def test_rare_classes():
    train, presence = problem(num=20)
    presence[:, 0] = -1
    presence[3, 0] = 1
    presence[:, 1] = 1
    presence[[4, 5], 1] = -1
    _scores, costs = classify(train, presence, train, classes=CLASSES)
    assert costs[0] == 1.0  # nothing can be left out
    assert costs[1] in COSTS


@pytest.mark.parametrize(
    ("value", "message"),
    [(1, "all training images show a dog"), (-1, "no training image shows a dog")],
)
def test_classes_without_one_of_both_signs(value, message):
    train, presence = problem()
    presence[:, 1] = value
    presence[0, 1] = 0
    with pytest.raises(DistillError, match=message):
        classify(train, presence, train, classes=CLASSES)


def test_what_cannot_be_classified():
    train, presence = problem()
    with pytest.raises(DistillError, match="8 wide and the validation embeddings 7"):
        classify(train, presence, train[:, :7], classes=CLASSES)
    train[3, 3] = np.nan
    with pytest.raises(DistillError, match="1 of 60 embeddings are not finite"):
        classify(train, presence, train, classes=CLASSES)


DETECTION = ["--task", "detection", "--steps", "2", "--batch-size", "1", "--detector-size", "64"]


@pytest.fixture
def data(make_voc):
    return make_voc(num_train=24, num_test=12)


@pytest.fixture
def complaint(command, capsys):
    """Return a function that runs `distill voc` and returns its one sentence."""

    def complain(*flags: str) -> str:
        assert command("voc", *flags) == 2
        error = capsys.readouterr().err
        assert error.startswith("distill: error: ")
        assert error.count("\n") == 1
        return error

    return complain


def test_classification_is_printed_kept_and_the_same_from_python(measure, weights, data, capsys):
    measured = measure("voc")
    printed = capsys.readouterr().out
    assert list(measured) == [
        "voc_classification_map",
        "voc_classification_map_area",
        "voc_classification_ap",
        "voc_classification_definition",
    ]
    definition = measured["voc_classification_definition"]
    assert re.fullmatch(r"12 images of .*test.*, trained on 24 of .*trainval.*", definition)
    by_class = measured["voc_classification_ap"]
    assert list(by_class) == ["blue", "green", "red"]
    for name, rule in (("map", "voc07"), ("map_area", "area")):
        mean = np.mean([precisions[rule] for precisions in by_class.values()])
        assert measured[f"voc_classification_{name}"] == pytest.approx(mean)
    assert measured["voc_classification_map_area"] > 0.6  # a third of the images show a class
    assert f"voc_classification_map       {measured['voc_classification_map']:.4f}" in printed
    blue = by_class["blue"]
    assert re.search(f"blue +{blue['voc07']:.4f} +{blue['area']:.4f}", printed)
    network = {"student": "timm:test_resnet", "image_size": 32, "num_workers": 0}
    assert evaluate("voc", weights, data=str(data), **network).metrics == measured


def test_logistic_and_detection_stand_beside_it(measure):
    measure("voc", "--classifier", "logistic")
    measured = measure("voc", *DETECTION)
    assert list(measured) == [
        "voc_classification_logistic_map",
        "voc_classification_logistic_map_area",
        "voc_classification_logistic_ap",
        "voc_classification_logistic_definition",
        "voc_detection_map",
        "voc_detection_map_area",
        "voc_detection_ap",
        "voc_detection_definition",
    ]
    assert "steps of" in measured["voc_detection_definition"]
    assert 0 <= measured["voc_detection_map"] <= 1
    assert all(describe_metric(name) is not None for name in measured)
    assert "logistic" in describe_metric("voc_classification_logistic_map_area").words


def test_the_options_of_detection_arrive(measure, monkeypatch):
    received = []

    def build(network, num_classes, *, image_size):
        received.append((num_classes, image_size, torch.initial_seed()))
        return torch.nn.Identity()

    def tune(detector, images, index, inference, **settings):
        assert isinstance(inference.on_bad_images, BadImages)
        assert inference.num_workers == 0
        received.append((images.name, len(index), settings))

    def find(detector, images, index, inference):
        nothing = detection.Boxes(np.zeros(0, np.int64), np.zeros((0, 4)))
        received.append((images.name, len(index)))
        return detection.Detections(nothing, np.zeros(0), np.zeros(0), index)

    monkeypatch.setattr(module, "build_detector", build)
    monkeypatch.setattr(module, "fine_tune", tune)
    monkeypatch.setattr(module, "detect", find)
    flags = "--steps 7 --batch-size 3 --learning-rate 0.5 --detector-size 96 --seed 5"
    measured = measure("voc", "--task", "detection", *flags.split())
    settings = {"steps": 7, "batch_size": 3, "learning_rate": 0.5, "seed": 5}
    tuned = ("VOC2007/trainval", 24, settings)
    assert received == [(3, 96, 5), tuned, ("VOC2007/test", 12)]
    assert measured["voc_detection_map"] == 0


@pytest.fixture
def classified(monkeypatch) -> list[tuple]:
    """What classifiers learned from."""
    received = []

    def record(train, presence, test, **options):
        received.append((train.shape, presence.tolist(), test.shape, options))
        return classify(train, presence, test, **options)

    monkeypatch.setattr(module, "classify", record)
    return received


def test_the_seed_and_classifier_of_classification_arrive(measure, data, classified):
    measure("voc", "--seed", "3", "--classifier", "logistic", "--test-split", "trainval")
    ((train_shape, presence, test_shape, options),) = classified
    assert train_shape == test_shape == (24, train_shape[1])
    assert presence == open_voc(data).train.presence().tolist()
    assert options == {"classes": ("blue", "green", "red"), "classifier": "logistic", "seed": 3}


def test_unreadable_images_end_it_or_are_skipped(command, data, complaint, capsys, classified):
    (data / "VOC2007/JPEGImages/trainval003.png").write_bytes(b"x")
    (data / "VOC2007/JPEGImages/test002.png").write_bytes(b"x")
    assert "trainval003.png" in complaint()
    for flags in ([], DETECTION):
        assert command("voc", *flags, "--on-bad-image", "skip") == 0
        printed = capsys.readouterr().out
        assert printed.count("trainval003.png: cannot be read") == 1
        assert printed.count("test002.png: cannot be read") == 1
    ((_, presence, test_shape, _),) = classified
    train = open_voc(data).train.presence().tolist()
    assert presence == train[:3] + train[4:]  # what images show stays theirs
    assert test_shape[0] == 11


def test_a_class_without_a_test_object_is_shown_as_such():
    per_class = {"voc07": np.array([0.5, np.nan]), "area": np.array([0.25, np.nan])}
    result = voc_result("voc_detection", ("cat", "dog"), per_class, "of what")
    assert result.metrics == {
        "voc_detection_map": 0.5,
        "voc_detection_map_area": 0.25,
        "voc_detection_ap": {
            "cat": {"voc07": 0.5, "area": 0.25},
            "dog": {"voc07": None, "area": None},
        },
        "voc_detection_definition": "of what",
    }
    assert result.tables[0].rows[1] == ["dog", "no object", "no object"]


def test_data_that_cannot_be_taken(complaint, data, make_folder, weights, tmp_path):
    with pytest.raises(DistillError, match="--data is missing: name a VOCdevkit folder"):
        evaluate("voc", weights)
    assert "no folder at" in complaint("--data", str(tmp_path / "absent"))
    assert "is not in VOC layout" in complaint("--data", str(make_folder()))
    assert "unknown split 'tset': did you mean 'test'" in complaint("--test-split", "tset")
    path = data / "VOC2007/Annotations/trainval000.xml"
    path.write_bytes(path.read_bytes()[:-10])
    assert "trainval000.xml is no whole XML file" in complaint()


def test_numbers_out_of_range(complaint):
    flags = "--steps 0 --batch-size 0 --detector-size 31 --learning-rate 0 --seed -1"
    error = complaint(*flags.split())
    for message in (
        "--steps is 0, it must be at least 1",
        "--batch-size is 0, it must be at least 1",
        "--detector-size is 31, it must be at least 32",
        "--learning-rate is 0.0, it must be positive",
        "--seed is -1, it must be between 0 and",
    ):
        assert message in error


def test_a_loss_that_is_not_finite_ends_with_1(command, capsys):
    assert command("voc", *DETECTION, "--steps", "20", "--learning-rate", "1e30") == 1
    assert "the detector's loss is" in capsys.readouterr().err
