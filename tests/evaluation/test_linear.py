"""The linear protocol against its parts, and `distill linear`."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from distill.cli.main import run
from distill.embeddings.cache import StoredEmbeddings
from distill.errors import DistillError
from distill.evaluation import linear as module
from distill.evaluation import linear_heads
from distill.evaluation.base import describe_metric, evaluate
from distill.evaluation.label_subsets import class_balanced_subset
from distill.evaluation.linear import LabeledEmbeddings, linear_evaluation
from distill.evaluation.linear_heads import (
    PUBLISHED_SETTING,
    HeadBatch,
    HeadSetting,
    LinearSchedule,
    initial_heads,
    train_heads,
)

CPU = torch.device("cpu")
SHORT = LinearSchedule(num_epochs=4, batch_size=16, decay_epochs=(2,))


def made(num_train: int = 90, num_val: int = 60, *, noise: float = 1.0) -> LabeledEmbeddings:
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(6, 12))
    train, val = np.arange(num_train) % 6, np.arange(num_val) % 6
    return LabeledEmbeddings(
        (centers[train] + noise * rng.normal(size=(num_train, 12))).astype(np.float32),
        train,
        (centers[val] + noise * rng.normal(size=(num_val, 12))).astype(np.float32),
        val,
    )


def test_the_published_protocol_written_out():
    data = made()
    found = linear_evaluation(data, device=CPU, schedule=SHORT, seed=3)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in vars(data).values() if x.ndim > 1]
    mean, deviation = unit[0].mean(0), np.sqrt(unit[0].var(0, ddof=1) + 1e-5)
    train, val = (torch.from_numpy((rows - mean) / deviation).float() for rows in unit)
    batches = [
        HeadBatch(epoch, train[rows], torch.from_numpy(data.train_labels[rows]))
        for epoch in range(4)
        for rows in np.split(np.random.default_rng([3, epoch]).permutation(90), range(16, 90, 16))
    ]
    heads = initial_heads(1, num_classes=6, dim=12, seed=3, device=CPU)
    train_heads(heads, [PUBLISHED_SETTING], batches, SHORT)
    logits = heads.logits(val)[:, 0]
    labels = torch.from_numpy(data.val_labels)
    assert found.scores[""].accuracy == (logits.argmax(1) == labels).float().mean()
    loss = torch.nn.functional.cross_entropy(logits, labels)
    np.testing.assert_allclose(found.scores[""].loss, loss, rtol=1e-5)
    assert list(found.scores) == [""]
    assert found.held_out == {}


def test_a_sweep_chooses_on_held_out_training_rows_and_leaves_the_published_number():
    data = made(noise=2.0)
    sweep = [HeadSetting(1e-6, 0.0), HeadSetting(0.3, 1e-4)]
    alone = linear_evaluation(data, device=CPU, schedule=SHORT)
    found = linear_evaluation(data, device=CPU, schedule=SHORT, sweep=sweep)
    np.testing.assert_allclose(found.scores[""].loss, alone.scores[""].loss, rtol=1e-5)
    assert set(found.held_out) == {PUBLISHED_SETTING, *sweep}
    assert found.chosen == max(found.held_out, key=lambda one: found.held_out[one])
    assert found.chosen != sweep[0]
    # Labels of validation images decide nothing: with others the choice is the same.
    shuffled = LabeledEmbeddings(
        data.train_features, data.train_labels, data.val_features, data.val_labels[::-1].copy()
    )
    again = linear_evaluation(shuffled, device=CPU, schedule=SHORT, sweep=sweep)
    assert again.held_out == found.held_out
    assert again.chosen == found.chosen


def test_the_chosen_setting_is_trained_anew_on_all_rows(monkeypatch):
    data, good = made(), HeadSetting(0.1, 1e-3)
    monkeypatch.setattr(module, "PUBLISHED_SETTING", HeadSetting(1e-9, 0.0))
    found = linear_evaluation(data, device=CPU, schedule=SHORT, sweep=[good])
    assert found.chosen == good
    monkeypatch.setattr(module, "PUBLISHED_SETTING", good)
    alone = linear_evaluation(data, device=CPU, schedule=SHORT)
    np.testing.assert_allclose(found.scores["_sweep"].loss, alone.scores[""].loss, rtol=1e-5)


def test_held_out_rows_are_scored_and_not_trained_on(monkeypatch):
    trained, scored = [], []
    shuffled, score = module.shuffled_batches, module.score_heads

    def record_training(rows, labels, schedule, *, seed):
        trained.append(set(rows.rows.tolist()))
        return shuffled(rows, labels, schedule, seed=seed)

    def record_scores(heads, rows, labels):
        scored.append((rows.rows.tolist(), labels.tolist()))
        return score(heads, rows, labels)

    monkeypatch.setattr(module, "shuffled_batches", record_training)
    monkeypatch.setattr(module, "score_heads", record_scores)
    data, chosen = made(), np.arange(0, 90, 2)
    sweep = [HeadSetting(0.1, 0.0)]
    linear_evaluation(data, device=CPU, schedule=SHORT, rows=chosen, sweep=sweep)
    fitted, everything = trained
    (held_out, labels), (validation, _) = scored
    assert everything == set(chosen.tolist())
    assert fitted | set(held_out) == everything
    assert not fitted & set(held_out)
    assert len(fitted) == 45 - round(0.1 * 45)
    assert labels == data.train_labels[held_out].tolist()
    assert validation == list(range(60))


def test_only_the_chosen_rows_count():
    data = made()
    rows = np.arange(30, 60)
    part = LabeledEmbeddings(
        data.train_features[rows], data.train_labels[rows], data.val_features, data.val_labels
    )
    sweep = [HeadSetting(0.1, 0.0), HeadSetting(1e-5, 0.0)]
    found = linear_evaluation(data, device=CPU, schedule=SHORT, rows=rows, sweep=sweep)
    alone = linear_evaluation(part, device=CPU, schedule=SHORT, sweep=sweep)
    np.testing.assert_allclose(found.scores[""].loss, alone.scores[""].loss, rtol=1e-6)
    assert found.held_out == alone.held_out


def test_of_equally_accurate_settings_the_surer_is_chosen():
    sweep = [HeadSetting(0.02, 0.0), HeadSetting(0.1, 0.0), HeadSetting(0.03, 0.0)]
    found = linear_evaluation(made(noise=0.01), device=CPU, schedule=SHORT, sweep=sweep)
    assert set(found.held_out.values()) == {1.0}
    assert found.chosen == sweep[1]


def test_a_setting_that_diverges_is_not_chosen():
    sweep = [HeadSetting(1e30, 1.0)]
    found = linear_evaluation(made(), device=CPU, schedule=SHORT, sweep=sweep)
    assert found.held_out[sweep[0]] == 0
    assert found.chosen == PUBLISHED_SETTING


def test_half_precision_memory_maps_and_constant_dimensions(tmp_path):
    data = made()
    features = np.concatenate([data.train_features, np.zeros((90, 1))], 1).astype(np.float16)
    np.save(tmp_path / "rows.npy", features)
    mapped = LabeledEmbeddings(
        np.load(tmp_path / "rows.npy", mmap_mode="r"),
        data.train_labels,
        np.concatenate([data.val_features, np.ones((60, 1))], 1).astype(np.float16),
        data.val_labels,
    )
    found = linear_evaluation(mapped, device=CPU)
    assert np.isfinite(found.scores[""].loss)
    assert found.scores[""].accuracy > 0.5


def test_classes_that_training_does_not_have():
    data = made()
    known = data.train_labels < 5
    partial = LabeledEmbeddings(
        data.train_features[known], data.train_labels[known], data.val_features, data.val_labels
    )
    found = linear_evaluation(partial, device=CPU, schedule=SHORT)
    assert found.scores[""].per_class[5] == 0


def test_what_cannot_be_measured():
    data = made()
    values = dict(vars(data))
    broken = data.val_features.copy()
    broken[3, 2] = np.nan
    with pytest.raises(DistillError, match="1 of 60 embeddings are not finite"):
        LabeledEmbeddings(**{**values, "val_features": broken})
    broken = data.train_features.copy()
    broken[3, 2] = np.inf
    with pytest.raises(DistillError, match="1 of 90 embeddings are not finite"):
        LabeledEmbeddings(**{**values, "train_features": broken})
    with pytest.raises(DistillError, match="are of 1 class"):
        LabeledEmbeddings(**{**values, "train_labels": np.zeros(90, np.int64)})
    with pytest.raises(DistillError, match="have no labels"):
        LabeledEmbeddings(**{**values, "val_labels": np.full(60, -1)})
    with pytest.raises(DistillError, match="12 wide and the validation embeddings 11"):
        LabeledEmbeddings(**{**values, "val_features": data.val_features[:, :11]})
    with pytest.raises(DistillError, match="the labeled training images are of 1 class"):
        linear_evaluation(data, device=CPU, rows=np.array([0, 6]))


def test_the_command_prints_and_keeps_what_python_returns(measure, weights, data, capsys):
    measured = measure("linear", "--per-class")
    assert list(measured) == ["linear_accuracy"]  # three classes have no top-5
    assert 1 / 3 < measured["linear_accuracy"] <= 1
    shown = capsys.readouterr().out
    assert f"linear_accuracy  {measured['linear_accuracy']:.4f}" in shown
    of_classes = [line.split() for line in shown.splitlines() if line.startswith("class")]
    assert [name for name, _ in of_classes] == ["class", "class0", "class1", "class2"]
    mean = np.mean([float(share) for _, share in of_classes[1:]])  # classes of one size
    np.testing.assert_allclose(mean, measured["linear_accuracy"], atol=1e-4)
    network = {"student": "timm:test_resnet", "image_size": 32, "num_workers": 0}
    assert evaluate("linear", weights, data=str(data), **network).metrics == measured


def test_embeddings_are_read_from_the_disk_as_they_are_needed(measure, monkeypatch):
    def refuse(stored):
        raise AssertionError("all of them at once")

    in_memory = measure("linear")
    monkeypatch.setattr(StoredEmbeddings, "in_memory", refuse)
    monkeypatch.setattr(linear_heads, "_SHARE_OF_MEMORY", 0.0)
    assert measure("linear") == pytest.approx(in_memory)
    assert 0 < measure("linear", "--labels", "0.5")["linear_accuracy_labels_0.5"] <= 1


def test_digits_have_a_top5(weights):
    network = {"student": "timm:test_resnet", "image_size": 32, "num_workers": 0}
    measured = evaluate("linear", weights, data="digits", **network).metrics
    assert list(measured) == ["linear_accuracy", "linear_top5_accuracy"]
    assert 0.5 < measured["linear_accuracy"] < measured["linear_top5_accuracy"]


def test_a_sweep_keeps_the_published_number_and_says_what_it_chose(measure, capsys):
    published = measure("linear")["linear_accuracy"]
    grid = ["--learning-rates", "1e-6", "0.01", "0.1", "--weight-decays", "1e-5", "1e-4"]
    measured = measure("linear", "--sweep", *grid)
    assert list(measured) == [
        "linear_accuracy",
        "linear_accuracy_sweep",
        "linear_sweep_learning_rate",
        "linear_sweep_weight_decay",
    ]
    assert measured["linear_accuracy"] == published
    assert measured["linear_sweep_learning_rate"] in (0.01, 0.1)
    shown = capsys.readouterr().out
    assert "learning rate  weight decay  held out" in shown
    assert f"linear_sweep_weight_decay   {measured['linear_sweep_weight_decay']:g}" in shown


def test_few_labels_are_drawn_by_several_seeds(measure, capsys):
    measured = measure("linear", "--labels", "0.25", "--label-seeds", "3", "--seed", "7")
    names = ["linear_accuracy_labels_0.25", "linear_accuracy_labels_0.25_std"]
    assert list(measured) == names
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("by seed") + 2
    drawn = [line.split() for line in lines[start : start + 3]]
    assert [seed for seed, _ in drawn] == ["7", "8", "9"]
    shares = [float(share) for _, share in drawn]
    np.testing.assert_allclose(measured[names[0]], np.mean(shares), atol=1e-4)
    np.testing.assert_allclose(measured[names[1]], np.std(shares, ddof=1), atol=1e-4)


@pytest.fixture
def learned(monkeypatch) -> list[list[int]]:
    """The rows that heads learned from."""
    rows = []

    def record(data, **arguments):
        rows.append(arguments["rows"].tolist())
        return linear_evaluation(data, **arguments)

    monkeypatch.setattr(module, "linear_evaluation", record)
    return rows


def test_a_share_is_that_of_every_seed(measure, learned):
    measure("linear", "--labels", "0.25", "--label-seeds", "2", "--seed", "3")
    labels = np.repeat(np.arange(3), 12)
    assert learned == [class_balanced_subset(labels, 0.25, seed=seed).tolist() for seed in (3, 4)]


def test_a_list_and_images_that_cannot_be_read(measure, tmp_path, learned):
    (tmp_path / "photos/train/class0/000.png").write_bytes(b"")
    listed = tmp_path / "few.txt"
    listed.write_text("class2/003.png\nclass0/001.png\nclass0/000.png\n")
    measure("linear", "--labels", str(listed), "--label-seeds", "1", "--on-bad-image", "skip")
    assert learned == [[0, 26]]  # rows of the embedded images


def test_all_labels_are_a_share_too(measure):
    measured = measure("linear", "--labels", "1", "--label-seeds", "1")
    assert list(measured) == ["linear_accuracy_labels_1"]
    assert measured["linear_accuracy_labels_1"] == measure("linear")["linear_accuracy"]


def test_a_list_of_names(measure, command, tmp_path, learned, capsys):
    listed = tmp_path / "few.txt"
    listed.write_text("class2/003.png\nclass0/001.png\nclass2/001.png\n")
    measured = measure("linear", "--labels", str(listed), "--label-seeds", "2")
    assert list(measured) == ["linear_accuracy_labels_few", "linear_accuracy_labels_few_std"]
    assert learned == [[1, 25, 27]] * 2
    for content, data, message in (
        ("001.png", (), "several training images are called 001.png"),
        ("class0/099.png", (), "1 of 1 names are not among the training images"),
        ("class0/001.png", (), "the labeled training images are of 1 class"),
        ("class0/001.png", ("--data", "digits"), "digits/train are not files"),
    ):
        listed.write_text(content + "\n")
        assert command("linear", "--labels", str(listed), *data) == 2
        assert message in capsys.readouterr().err


def test_layers_are_measured_each(measure, capsys):
    measured = measure("linear", "--layers", "all")
    assert list(measured) == [f"linear_accuracy_layer_stage{i}" for i in range(1, 5)]
    assert "layer   width  linear_accuracy" in capsys.readouterr().out
    sweep = ("--sweep", "--learning-rates", "0.1")
    both = measure("linear", "--layers", "layer1.0.conv1", "stage4", *sweep)
    assert "linear_accuracy_layer_layer1.0.conv1" in both
    assert "linear_accuracy_sweep_layer_stage4" in both
    assert both["linear_accuracy_layer_stage4"] == measured["linear_accuracy_layer_stage4"]


def test_the_last_layer_is_the_embedding(measure):
    measured = measure("linear") | measure("linear", "--layers", "global_pool")
    assert measured["linear_accuracy_layer_global_pool"] == measured["linear_accuracy"]


def test_layers_that_memory_does_not_hold(command, monkeypatch, capsys):
    monkeypatch.setattr("distill.device.free_memory", lambda device: 1000)
    assert command("linear", "--layers", "all") == 2
    assert "name fewer of them with --layers" in capsys.readouterr().err


def test_augmented_images_are_embedded_at_every_step(measure, monkeypatch, tmp_path):
    short = replace(module.PUBLISHED_SCHEDULE, num_epochs=2)
    monkeypatch.setattr(module, "PUBLISHED_SCHEDULE", short)
    calls, original = [], module.augmented_batches

    def record(network, images, index, standardizer, inference, **settings):
        calls.append((index.tolist(), settings))
        return original(network, images, index, standardizer, inference, **settings)

    monkeypatch.setattr(module, "augmented_batches", record)
    assert list(measure("linear", "--augment", "--seed", "4")) == ["linear_accuracy_augmented"]
    settings = {"augmentation": "crop-flip", "schedule": short, "seed": 4}
    assert calls == [(list(range(36)), settings)]
    measured = measure("linear", "--augment", "--labels", "0.5", "--label-seeds", "1")
    assert "linear_accuracy_labels_0.5_augmented" in measured
    assert len(calls[1][0]) == 18
    (tmp_path / "photos/train/class0/000.png").write_bytes(b"")
    measure("linear", "--augment", "--on-bad-image", "skip")
    assert calls[2][0] == list(range(1, 36))


def test_weights_that_are_damaged(weights, data, tmp_path, capsys):
    state = torch.load(weights)
    state[next(name for name in state if name.endswith("weight"))][...] = torch.nan
    torch.save(state, tmp_path / "w.pth")
    flags = ["--student", "timm:test_resnet", "--image-size", "32", "--data", str(data)]
    assert run(["linear", str(tmp_path / "w.pth"), *flags]) == 2
    assert "000.png holds nan, computed in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--sweep --method logistic", "--sweep does not go with --method logistic; leave one out"),
        ("--labels 0.1 --layers all", "--labels does not go with --layers; leave one out"),
        ("--per-class --layers all", "--per-class does not go with --layers; leave one out"),
        ("--sweep --learning-rates 0", "--learning-rates is (0.0,), each must be positive"),
        ("--labels 2", "--labels is 2, it must be a share above 0 and at most 1"),
        ("--seed -1", "--seed is -1, it must be between 0 and"),
        ("--layers conv9", "unknown layer 'conv9'"),
    ],
)
def test_mistakes_are_one_sentence(command, capsys, flags, message):
    assert command("linear", *flags.split()) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_every_number_has_a_meaning():
    for name, words in (
        ("linear_accuracy", "accuracy on the validation images of a linear classifier, as publi"),
        ("linear_top5_accuracy_sweep", "share of the validation images whose class is among the"),
        ("linear_accuracy_logistic_labels_0.01", "accuracy on the validation images of a logist"),
        ("linear_accuracy_labels_few_augmented_std", "standard deviation over draws of the accur"),
        ("linear_top5_accuracy_layer_layer1.0.conv1", "share of the validation images whose cla"),
        ("linear_accuracy_sweep_layer_conv1", "accuracy on the validation images of a linear cl"),
        ("linear_sweep_learning_rate_augmented", "learning rate that a sweep"),
    ):
        assert describe_metric(name).words.startswith(words)
    assert describe_metric("linear_accuracy_labels_few_augmented_std").larger_is_better is None
    assert "0.01 of the labels" in describe_metric("linear_accuracy_labels_0.01").words
    assert describe_metric("linear_accuracies") is None
