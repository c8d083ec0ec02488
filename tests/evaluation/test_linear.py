"""The linear protocol against the same protocol written with PyTorch's parts."""

import numpy as np
import pytest
import torch

from distill.errors import DistillError
from distill.evaluation import linear as module
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
    assert found.published.accuracy == (logits.argmax(1) == labels).float().mean()
    loss = torch.nn.functional.cross_entropy(logits, labels)
    np.testing.assert_allclose(found.published.loss, loss, rtol=1e-5)
    assert found.best is None
    assert found.held_out == {}


def test_a_sweep_chooses_on_held_out_training_rows_and_leaves_the_published_number():
    data = made(noise=2.0)
    sweep = [HeadSetting(1e-6, 0.0), HeadSetting(0.3, 1e-4)]
    alone = linear_evaluation(data, device=CPU, schedule=SHORT)
    found = linear_evaluation(data, device=CPU, schedule=SHORT, sweep=sweep)
    np.testing.assert_allclose(found.published.loss, alone.published.loss, rtol=1e-5)
    assert set(found.held_out) == {PUBLISHED_SETTING, *sweep}
    assert found.best_setting == max(found.held_out, key=lambda one: found.held_out[one])
    assert found.best_setting != sweep[0]
    # Labels of validation images decide nothing: with others the choice is the same.
    shuffled = LabeledEmbeddings(
        data.train_features, data.train_labels, data.val_features, data.val_labels[::-1].copy()
    )
    again = linear_evaluation(shuffled, device=CPU, schedule=SHORT, sweep=sweep)
    assert again.held_out == found.held_out
    assert again.best_setting == found.best_setting


def test_the_chosen_setting_is_trained_anew_on_all_rows(monkeypatch):
    data, good = made(), HeadSetting(0.1, 1e-3)
    monkeypatch.setattr(module, "PUBLISHED_SETTING", HeadSetting(1e-9, 0.0))
    found = linear_evaluation(data, device=CPU, schedule=SHORT, sweep=[good])
    assert found.best_setting == good
    monkeypatch.setattr(module, "PUBLISHED_SETTING", good)
    alone = linear_evaluation(data, device=CPU, schedule=SHORT)
    np.testing.assert_allclose(found.best.loss, alone.published.loss, rtol=1e-5)


def test_held_out_rows_are_not_trained_on(monkeypatch):
    seen = []
    original = module._Probe._batches

    def record(self, rows, standardizer):
        seen.append(set(rows.tolist()))
        return original(self, rows, standardizer)

    monkeypatch.setattr(module._Probe, "_batches", record)
    chosen = np.arange(0, 90, 2)
    linear_evaluation(
        made(), device=CPU, schedule=SHORT, rows=chosen, sweep=[HeadSetting(0.1, 0.0)]
    )
    fitted, everything = seen
    assert everything == set(chosen.tolist())
    assert fitted < everything
    assert len(fitted) == 45 - round(0.1 * 45)


def test_only_the_chosen_rows_count():
    data = made()
    rows = np.arange(30, 60)
    part = LabeledEmbeddings(
        data.train_features[rows], data.train_labels[rows], data.val_features, data.val_labels
    )
    sweep = [HeadSetting(0.1, 0.0), HeadSetting(1e-5, 0.0)]
    found = linear_evaluation(data, device=CPU, schedule=SHORT, rows=rows, sweep=sweep)
    alone = linear_evaluation(part, device=CPU, schedule=SHORT, sweep=sweep)
    np.testing.assert_allclose(found.published.loss, alone.published.loss, rtol=1e-6)
    assert found.held_out == alone.held_out


def test_held_out_rows_are_scored(monkeypatch):
    scored = []
    original = module.score_heads

    def record(heads, rows, labels, *, num_classes):
        scored.append((rows.rows.tolist(), labels.tolist()))
        return original(heads, rows, labels, num_classes=num_classes)

    monkeypatch.setattr(module, "score_heads", record)
    data, chosen = made(), np.arange(30, 90)
    sweep = [HeadSetting(0.1, 0.0)]
    linear_evaluation(data, device=CPU, schedule=SHORT, rows=chosen, sweep=sweep)
    (held_out, labels), (everything, _) = scored
    assert len(held_out) == 6
    assert set(held_out) < set(chosen.tolist())
    assert labels == data.train_labels[held_out].tolist()
    assert everything == list(range(60))


def test_of_equally_accurate_settings_the_surer_is_chosen():
    sweep = [HeadSetting(0.02, 0.0), HeadSetting(0.1, 0.0), HeadSetting(0.03, 0.0)]
    found = linear_evaluation(made(noise=0.01), device=CPU, schedule=SHORT, sweep=sweep)
    assert set(found.held_out.values()) == {1.0}
    assert found.best_setting == sweep[1]


def test_a_setting_that_diverges_is_not_chosen():
    sweep = [HeadSetting(1e30, 1.0)]
    found = linear_evaluation(made(), device=CPU, schedule=SHORT, sweep=sweep)
    assert found.held_out[sweep[0]] == 0
    assert found.best_setting == PUBLISHED_SETTING


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
    assert np.isfinite(found.published.loss)
    assert found.published.accuracy > 0.5


def test_scores_do_not_depend_on_the_parts(monkeypatch):
    data = made()
    whole = linear_evaluation(data, device=CPU, schedule=SHORT)
    monkeypatch.setattr(module, "_LOGITS_AT_ONCE", 7 * 6)
    parts = linear_evaluation(data, device=CPU, schedule=SHORT)
    assert parts.published.accuracy == whole.published.accuracy
    np.testing.assert_array_equal(parts.published.per_class, whole.published.per_class)


def test_classes_that_training_does_not_have():
    data = made()
    known = data.train_labels < 5
    partial = LabeledEmbeddings(
        data.train_features[known], data.train_labels[known], data.val_features, data.val_labels
    )
    found = linear_evaluation(partial, device=CPU, schedule=SHORT)
    assert found.published.per_class[5] == 0


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
