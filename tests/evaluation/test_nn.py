"""Nearest-neighbor accuracy and the agreement of neighborhoods: definitions, `distill nn`."""

import csv
import tracemalloc

import numpy as np
import pytest

from distill.embeddings.cache import StoredEmbeddings
from distill.errors import DistillError
from distill.evaluation.agreement import neighbor_agreement
from distill.evaluation.base import evaluate
from distill.evaluation.nn import (
    VOTE_TEMPERATURE,
    confusion,
    nearest_neighbors,
    nn_accuracy,
    nn_predictions,
    winners,
)


@pytest.fixture
def digits(oracles):
    """Embeddings, and what the original program measured on them."""
    oracle = np.load(oracles / "evaluation_digits.npz")
    names = ("train_features", "train_labels", "val_features", "val_labels")
    return *(oracle[name] for name in names), float(oracle["nn_accuracy"])


def test_digits_agree_with_the_original_program_at_any_scale(digits):
    train, train_labels, val, val_labels, expected = digits
    assert nn_accuracy(train, train_labels, val, val_labels) == expected
    scales = np.random.default_rng(0).uniform(0.1, 10, size=(len(train), 1))
    assert nn_accuracy(train * scales, train_labels, val * 7, val_labels) == expected


def test_majority_and_weighted_votes_differ_where_they_should():
    labels = np.array([[0, 1, 1], [2, 1, 0], [1, 0, 0]])
    similarities = np.array([[0.9, 0.1, 0.1], [0.5, 0.5, 0.5], [0.9, 0.89, 0.88]], dtype=np.float32)
    # Row 1 is a draw: the nearest wins.
    assert list(winners(labels, similarities, vote="majority")) == [1, 2, 0]
    assert list(winners(labels, similarities, vote="weighted")) == [0, 2, 0]


def test_weighted_votes_follow_the_formula():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 4, size=(40, 9))
    similarities = -np.sort(-rng.uniform(-1, 1, size=(40, 9))).astype(np.float32)
    won = winners(labels, similarities, vote="weighted")
    for row, (classes, values) in enumerate(zip(labels, similarities, strict=True)):
        votes = dict.fromkeys(range(4), 0.0)
        for c, value in zip(classes, values, strict=True):
            votes[int(c)] += np.exp(float(value) / VOTE_TEMPERATURE)
        assert won[row] == max(votes, key=votes.get)


def test_one_search_serves_every_k(digits, monkeypatch):
    train, train_labels, val, val_labels, expected = digits
    searches = []

    def record(*arguments, k):
        searches.append(k)
        return nearest_neighbors(*arguments, k=k)

    monkeypatch.setattr("distill.evaluation.nn.nearest_neighbors", record)
    predicted = nn_predictions(train, train_labels, val, ks=(20, 1, 5, 5), vote="weighted")
    assert searches == [20]
    assert list(predicted) == [1, 5, 20]
    assert np.mean(predicted[1] == val_labels) == expected
    alone = nn_accuracy(train, train_labels, val, val_labels, k=5, vote="weighted")
    assert np.mean(predicted[5] == val_labels) == alone


def test_confusion_counts_true_classes_in_rows():
    labels, predicted = np.array([2, 2, 2, 2, 5, 5, 9]), np.array([2, 5, 5, 7, 5, 5, 2])
    classes, counts = confusion(labels, predicted)
    assert classes.tolist() == [2, 5, 7, 9]
    assert counts.tolist() == [[1, 2, 1, 0], [0, 2, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]]


def test_what_no_accuracy_can_be_measured_with():
    good, labels = np.eye(5), np.arange(5)
    for ks, message in (((), "no k was given"), ((1, 6), "k is 6, it must be between 1 and .* 5")):
        with pytest.raises(DistillError, match=message):
            nn_predictions(good, labels, good, ks=ks)
    with pytest.raises(DistillError, match="5 embeddings and 4 labels of the training images"):
        nn_accuracy(good, labels[:4], good, labels)
    with pytest.raises(DistillError, match="the training images are of 1 class"):
        nn_accuracy(good, labels * 0, good, labels)
    broken = np.eye(5)
    broken[2, 2] = np.nan
    with pytest.raises(DistillError, match="1 of 5 embeddings are not finite"):
        nn_accuracy(broken, labels, good, labels)


def agreement_by_definition(teacher: np.ndarray, student: np.ndarray, k: int, images) -> float:
    shares = []
    for i in images:
        nearest = []
        for rows in (teacher, student):
            units = rows / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
            others = [j for j in np.argsort(-(units @ units[i])) if j != i]
            nearest.append(set(others[:k]))
        shares.append(len(nearest[0] & nearest[1]) / k)
    return float(np.mean(shares))


def related(num_images: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    teacher = rng.normal(size=(num_images, 9)).astype(np.float16)
    return teacher, teacher[:, :5] + rng.normal(size=(num_images, 5)).astype(np.float16)


@pytest.mark.parametrize("block_bytes", [36 * 7, 2**20])
def test_agreement_is_that_of_the_definition(block_bytes: int):
    teacher, student = related(60)
    agreement = neighbor_agreement(teacher, student, ks=(10, 1, 59, 3), block_bytes=block_bytes)
    assert list(agreement) == [1, 3, 10, 59]
    for k, share in agreement.items():
        assert share == pytest.approx(agreement_by_definition(teacher, student, k, range(60)))
    wider = np.hstack([teacher * 3.0, np.zeros((60, 2))])
    assert set(neighbor_agreement(teacher, wider).values()) == {1.0}


def test_a_sample_looks_for_neighbors_among_all_images():
    teacher, student = related(80)
    first, again, other = (
        neighbor_agreement(teacher, student, ks=(4,), num_sampled=30, seed=seed)[4]
        for seed in (1, 1, 2)
    )
    images = np.random.default_rng(1).permutation(80)[:30]
    assert first == again == pytest.approx(agreement_by_definition(teacher, student, 4, images))
    assert first != other


def test_memory_does_not_grow_with_the_images(tmp_path):
    peaks = []
    for num_images in (1500, 6000):
        teacher = np.random.default_rng(0).normal(size=(num_images, 64)).astype(np.float16)
        np.save(tmp_path / "rows.npy", teacher)
        mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
        tracemalloc.start()
        neighbor_agreement(mapped, mapped[:, :32], ks=(3,), block_bytes=2**17)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert max(peaks) < 1.3 * min(peaks)  # the numbers of the images, and no more


def test_neighborhoods_that_cannot_be_compared():
    teacher, student = related(20)
    for arguments, keywords, message in (
        ((teacher, student[:19]), {}, "teacher embedded 20 images and the student 19"),
        ((teacher[:1], student[:1]), {}, "there is 1 image and neighbors need at least 2"),
        ((teacher, student), {"ks": (20,)}, "k is 20, .* the number of other images, 19"),
        ((teacher, student), {"ks": ()}, "no k was given"),
        ((teacher, student), {"num_sampled": 0}, "number of sampled images is 0"),
        ((teacher, student), {"seed": -1}, "the seed is -1"),
    ):
        with pytest.raises(DistillError, match=message):
            neighbor_agreement(*arguments, **{"ks": (1,), **keywords})


PIXELS = ("--teacher", "pixels", "--teacher-image-size", "32")


def test_the_command_prints_and_keeps_what_python_returns(measure, weights, data, capsys):
    measured = measure("nn", "--k", "1", "3", "9")
    assert list(measured) == ["nn_accuracy", "nn_accuracy_k3", "nn_accuracy_k9"]
    assert f"nn_accuracy_k9  {measured['nn_accuracy_k9']:.4f}" in capsys.readouterr().out
    network = {"student": "timm:test_resnet", "image_size": 32, "num_workers": 0}
    again = evaluate("nn", weights, data=str(data), k=9, **network).metrics
    assert again == {"nn_accuracy_k9": measured["nn_accuracy_k9"]}
    assert "nn_accuracy_k3_weighted" in measure("nn", "--k", "3", "--vote", "weighted")


def test_embeddings_are_read_where_they_lie(command, monkeypatch):
    def refuse(stored):
        raise AssertionError("all of them at once")

    monkeypatch.setattr(StoredEmbeddings, "in_memory", refuse)
    assert command("nn") == 0


def test_classes_and_confusion_add_up(measure, tmp_path, capsys):
    file = tmp_path / "confusion.csv"
    flags = ("--k", "3", "1", "--per-class", "--confusion", str(file))
    accuracy = measure("nn", *flags)["nn_accuracy_k3"]
    header, *rows = csv.reader(file.open())
    assert header == ["true class", "class0", "class1", "class2"]
    assert [row[0] for row in rows] == header[1:]
    counts = np.array([row[1:] for row in rows], int)
    assert np.trace(counts) / 12 == pytest.approx(accuracy)
    out = capsys.readouterr().out
    assert "class   images  k = 3" in out
    for label, name in enumerate(header[1:]):
        line = next(line for line in out.splitlines() if line.startswith(name + " "))
        assert line.split()[1:3] == ["4", f"{counts[label, label] / 4:.4f}"]
    assert "true, then predicted  0  1  2" in out


def test_agreement_with_the_teacher(measure, capsys):
    measured = measure("nn", "--agreement", "--k", "1", "4", *PIXELS)
    assert list(measured)[-2:] == ["neighbor_agreement_k1", "neighbor_agreement_k4"]
    out = capsys.readouterr().out
    assert "12 of 12 images of photos/val, among each other" in out
    assert f"4  {measured['neighbor_agreement_k4']:.4f}     {4 / 11:.4f}" in out


def test_a_network_agrees_with_itself(make_student, data, tmp_path):
    run = tmp_path / "run"
    make_student(run)
    (run / "config.yaml").write_text(f"command: train\nteacher: pixels\ndata: {data}\n")
    options = {"agreement": True, "num_workers": 0}
    found = evaluate("nn", run, agreement_images=5, **options).metrics
    assert 0 <= found["neighbor_agreement_k1"] < 1  # the run's own teacher, unasked
    itself = evaluate("nn", run, teacher=str(run), k=(1, 5), **options).metrics
    assert itself["neighbor_agreement_k1"] == itself["neighbor_agreement_k5"] == 1


def test_agreement_needs_no_labels(make_folder, make_student, tmp_path):
    unlabeled = make_folder("more", num_val=0) / "train"
    options = {"agreement": True, "k": 3, "teacher": "pixels", "num_workers": 0}
    found = evaluate("nn", make_student(tmp_path), data=str(unlabeled), **options).metrics
    assert list(found) == ["neighbor_agreement_k3"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--agreement"], "w.pth names none; add --teacher"),
        (["--k"], "no k was given, name one or more between 1"),
        (["--k", "1", "37"], "k is 37, it must be between 1 and the number of indexed images, 36"),
        (
            ["--agreement", *PIXELS, "--k", "12"],
            "k is 12, it must be between 1 and the number of o",
        ),
        (["--agreement", *PIXELS, "--agreement-images", "0"], "--agreement-images is 0, it must"),
        (["--seed", "-1"], "seed is -1"),
        (["--confusion", "nowhere/c.csv"], "is in a folder that does not exist; name a file such"),
        (["--teacher-image-size", "32"], "names none; add --teacher"),
    ],
)
def test_mistakes_are_one_sentence(command, tmp_path, capsys, flags, message):
    assert command("nn", *flags) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "measured").exists()
