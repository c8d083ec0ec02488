"""Rows against numpy's float64, heads against PyTorch's SGD, scores counted by hand, views."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from distill.data.loader import TrainingViews
from distill.data.sources import open_images
from distill.data.views import training_view
from distill.embeddings.embed import InferenceConfig
from distill.errors import BadImageError, DistillError
from distill.evaluation import linear_heads as module
from distill.evaluation.linear_heads import (
    PUBLISHED_SCHEDULE,
    PUBLISHED_SETTING,
    HeadBatch,
    HeadSetting,
    LinearHeads,
    LinearSchedule,
    StandardizedRows,
    Standardizer,
    augmented_batches,
    fit_standardizer,
    initial_heads,
    require_finite,
    score_heads,
    train_heads,
)
from students.registry import build_student

CPU = torch.device("cpu")
SCHEDULE = LinearSchedule(num_epochs=6, batch_size=8, decay_epochs=(2, 4))


@pytest.fixture
def features() -> np.ndarray:
    return np.random.default_rng(0).normal(1.0, 2.0, size=(50, 7)).astype(np.float32)


def expected(features: np.ndarray, rows: np.ndarray) -> np.ndarray:
    unit = features.astype(np.float64)
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    fitted = unit[rows]
    return (unit - fitted.mean(0)) / np.sqrt(fitted.var(0, ddof=1) + 1e-5)


def test_rows_are_standardized_by_the_statistics_of_the_fitted_ones(features):
    rows = np.arange(0, 50, 3)
    standardizer = fit_standardizer(features, rows, device=CPU)
    found = StandardizedRows(features, np.arange(50), standardizer, device=CPU)
    np.testing.assert_allclose(
        found(np.array([4, 9, 2])), expected(features, rows)[[4, 9, 2]], rtol=1e-4, atol=1e-5
    )


def test_chunks_and_lack_of_memory_change_nothing(features, monkeypatch):
    rows = np.array([3, 1, 8, 40])
    whole = StandardizedRows(
        features, rows, fit_standardizer(features, rows, device=CPU), device=CPU
    )
    monkeypatch.setattr(module, "_CHUNK_BYTES", 3 * 4 * 7)
    monkeypatch.setattr(module, "free_memory", lambda device: 0)
    parts = StandardizedRows(
        features, rows, fit_standardizer(features, rows, device=CPU), device=CPU
    )
    assert whole._all is not None
    assert parts._all is None
    assert len(parts) == 4
    places = np.array([1, 3])
    np.testing.assert_allclose(parts(places), whole(places), rtol=1e-5, atol=1e-6)


def test_held_rows_are_those_of_their_places_in_several_chunks(features, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK_BYTES", 3 * 4 * 7)
    rows = np.arange(49, -1, -1)
    standardizer = fit_standardizer(features, rows, device=CPU)
    found = StandardizedRows(features, rows, standardizer, device=CPU)
    assert found._all is not None
    np.testing.assert_allclose(
        found(np.arange(50)), expected(features, rows)[::-1], rtol=1e-4, atol=1e-5
    )


def test_half_precision_memory_maps(features, tmp_path):
    np.save(tmp_path / "rows.npy", features.astype(np.float16))
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    rows = np.arange(50)
    standardizer = fit_standardizer(mapped, rows, device=CPU)
    found = StandardizedRows(mapped, rows, standardizer, device=CPU)(rows)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(
        found, expected(features.astype(np.float16), rows), rtol=1e-4, atol=1e-5
    )


def test_a_constant_dimension_says_nothing():
    features = np.zeros((6, 3), np.float32)
    features[:, 0] = [1, 1, 1, 1, 2, 2]
    features[:, 1] = [1, 2, 3, 4, 5, 6]
    standardizer = fit_standardizer(features, np.arange(6), device=CPU)
    assert standardizer.scale[2] == 0
    assert (standardizer.scale[:2] > 0).all()
    other = standardizer(torch.tensor([[0.0, 1.0, 5.0]]))
    assert other.isfinite().all()
    assert other[0, 2] == 0
    same = np.tile(np.random.default_rng(0).normal(size=(1, 5)), (4, 1)).astype(np.float32)
    assert (fit_standardizer(same, np.arange(4), device=CPU).scale == 0).all()


def test_a_row_of_zeros_and_a_single_row():
    features = np.zeros((2, 3), np.float32)
    features[1] = 1
    assert fit_standardizer(features, np.arange(2), device=CPU).mean.isfinite().all()
    assert fit_standardizer(features, np.array([1]), device=CPU).scale.isfinite().all()


def test_rows_that_are_not_finite_are_counted_over_chunks(features, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK_BYTES", 3 * 4 * 7)
    require_finite(features)
    features[[2, 30], 1] = np.nan
    features[49, 0] = np.inf
    with pytest.raises(DistillError, match="3 of 50 embeddings are not finite"):
        require_finite(features)


def batches(num_epochs: int, *, dim: int = 5, classes: int = 3) -> list[HeadBatch]:
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(20, dim, generator=generator)
    labels = torch.randint(classes, (20,), generator=generator)
    return [
        HeadBatch(epoch, rows[part], labels[part])
        for epoch in range(num_epochs)
        for part in (slice(0, 8), slice(8, 16), slice(16, 20))
    ]


def start(num_heads: int) -> LinearHeads:
    return initial_heads(num_heads, num_classes=3, dim=5, seed=0, device=CPU)


def trained_by_pytorch(setting: HeadSetting, schedule: LinearSchedule) -> torch.nn.Linear:
    head = torch.nn.Linear(5, 3)
    first = start(1)
    head.load_state_dict({"weight": first.weight[0], "bias": first.bias[0]})
    optimizer = torch.optim.SGD(
        head.parameters(),
        lr=setting.learning_rate,
        momentum=schedule.momentum,
        weight_decay=setting.weight_decay,
    )
    scheduler = torch.optim.lr_scheduler.MultiStepLR(
        optimizer, milestones=list(schedule.decay_epochs), gamma=schedule.decay_factor
    )
    epoch = 0
    for batch in batches(schedule.num_epochs):
        if batch.epoch > epoch:
            scheduler.step()
            epoch = batch.epoch
        optimizer.zero_grad()
        F.cross_entropy(head(batch.rows), batch.labels).backward()
        optimizer.step()
    return head


def test_every_head_of_a_sweep_is_what_pytorch_trains_alone():
    settings = [HeadSetting(0.01, 1e-4), HeadSetting(0.3, 0.0), HeadSetting(0.1, 0.05)]
    heads = train_heads(start(3), settings, batches(6), SCHEDULE)
    for g, setting in enumerate(settings):
        alone = trained_by_pytorch(setting, SCHEDULE)
        torch.testing.assert_close(heads.weight[g], alone.weight, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(heads.bias[g], alone.bias, rtol=1e-5, atol=1e-6)


def test_a_head_that_diverges_leaves_the_others_alone():
    both = [HeadSetting(1e30, 1.0), PUBLISHED_SETTING]
    heads = train_heads(start(2), both, batches(6), SCHEDULE)
    alone = train_heads(start(1), [PUBLISHED_SETTING], batches(6), SCHEDULE)
    assert not heads.weight[0].isfinite().all()
    torch.testing.assert_close(heads.weight[1], alone.weight[0])


def test_the_published_schedule():
    assert (PUBLISHED_SETTING.learning_rate, PUBLISHED_SETTING.weight_decay) == (0.01, 1e-4)
    assert (PUBLISHED_SCHEDULE.num_epochs, PUBLISHED_SCHEDULE.batch_size) == (40, 256)
    assert PUBLISHED_SCHEDULE.momentum == 0.9
    factors = [PUBLISHED_SCHEDULE.factor(epoch) for epoch in (0, 14, 15, 29, 30, 39)]
    np.testing.assert_allclose(factors, [1, 1, 0.1, 0.1, 0.01, 0.01])


def test_heads_start_equal_and_by_the_seed():
    heads = initial_heads(2, num_classes=4, dim=100, seed=3, device=CPU)
    assert torch.equal(heads.weight[0], heads.weight[1])
    assert torch.equal(heads.bias[0], heads.bias[1])
    assert 0.09 < heads.weight.abs().max() <= 0.1
    other = initial_heads(1, num_classes=4, dim=100, seed=4, device=CPU)
    assert not torch.equal(heads.weight[0], other.weight[0])


def test_logits_are_those_of_each_head():
    heads = LinearHeads(torch.randn(2, 3, 5), torch.randn(2, 3))
    rows = torch.randn(4, 5)
    for g in range(2):
        alone = F.linear(rows, heads.weight[g], heads.bias[g])
        torch.testing.assert_close(heads.logits(rows)[:, g], alone)


def scored(logits: torch.Tensor, labels: list[int]) -> list[module.ClassScores]:
    """Score heads by their logits (B, G, C): rows are unit vectors, which pick a column each."""
    num_rows = len(logits)
    heads = LinearHeads(logits.permute(1, 2, 0).contiguous(), torch.zeros(logits.shape[1:]))
    unit = Standardizer(torch.zeros(num_rows), torch.ones(num_rows))
    rows = StandardizedRows(
        np.eye(num_rows, dtype=np.float32), np.arange(num_rows), unit, device=CPU
    )
    return score_heads(heads, rows, np.array(labels))


@pytest.mark.parametrize("at_once", [2**24, 3 * 7])
def test_top1_top5_and_classes_by_hand(at_once: int, monkeypatch):
    monkeypatch.setattr(module, "_LOGITS_AT_ONCE", at_once)
    order = [[0, 1, 2, 3, 4], [1, 0, 2, 3, 4], [5, 4, 3, 2, 1], [6, 5, 4, 3, 2]]
    logits = torch.zeros(4, 1, 7)
    for row, classes in enumerate(order):
        logits[row, 0, classes] = torch.arange(10.0, 5.0, -1)
    (scores,) = scored(logits, [0, 0, 1, 1])
    assert scores.accuracy == 1 / 4
    assert scores.top5_accuracy == 3 / 4
    assert scores.per_class[0] == 0.5
    assert scores.per_class[1] == 0
    assert np.isnan(scores.per_class[2:]).all()


def test_five_classes_have_no_top5():
    assert scored(torch.randn(5, 1, 5), [0, 1, 2, 3, 4])[0].top5_accuracy is None
    assert scored(torch.randn(6, 1, 6), [0, 1, 2, 3, 4, 5])[0].top5_accuracy is not None


def test_heads_are_scored_apart():
    right, wrong = torch.eye(3), torch.eye(3)[[1, 2, 0]]
    scores = scored(torch.stack([wrong, right], 1), [0, 1, 2])
    assert [one.accuracy for one in scores] == [0, 1]
    expected = F.cross_entropy(right, torch.arange(3))
    np.testing.assert_allclose(scores[1].loss, expected, rtol=1e-6)


def test_what_is_not_finite_hits_nothing():
    logits = torch.zeros(2, 2, 7)
    logits[:, 0] = torch.nan
    scores = scored(logits, [0, 0])
    assert scores[0].accuracy == scores[0].top5_accuracy == 0
    assert scores[0].loss == float("inf")
    assert scores[1].accuracy == 1


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return build_student("timm:test_resnet", image_size=32)


def augmented(network, images, index, standardizer=None, **inference) -> list[HeadBatch]:
    standardizer = standardizer or Standardizer(torch.zeros(network.embedding_dim), torch.ones(1))
    return list(
        augmented_batches(
            network,
            images,
            index,
            standardizer,
            InferenceConfig(CPU, "fp32", **inference),
            augmentation="crop-flip",
            schedule=LinearSchedule(num_epochs=2, batch_size=8),
            seed=5,
        )
    )


def test_batches_are_standardized_embeddings_of_training_views(network, make_folder):
    images = open_images(make_folder()).train
    index = np.arange(3, 23)[::-1]
    standardizer = Standardizer(torch.full((network.embedding_dim,), 0.01), torch.tensor(3.0))
    network.train()
    batches = augmented(network, images, index, standardizer)
    assert network.training
    network.eval()
    assert [len(batch.labels) for batch in batches] == [8, 8, 4] * 2
    assert [batch.epoch for batch in batches] == [0] * 3 + [1] * 3
    views = TrainingViews(images, index, training_view(32), seed=5)
    for epoch in range(2):
        order = np.random.default_rng([5, epoch]).permutation(index)
        pixels = torch.stack([views[epoch, int(image)].view for image in order[:8]])
        with torch.no_grad():
            expected = standardizer(network(pixels))
        torch.testing.assert_close(batches[3 * epoch].rows, expected, rtol=1e-4, atol=1e-5)
        assert batches[3 * epoch].labels.tolist() == images.labels[order[:8]].tolist()


def test_images_that_cannot_be_read(network, make_folder):
    folder = make_folder()
    (folder / "train" / "class0" / "000.png").write_bytes(b"")
    images = open_images(folder).train
    index = np.arange(len(images))
    batches = augmented(network, images, index)
    assert sum(len(batch.labels) for batch in batches) == 2 * (len(images) - 1)

    def fail(names):
        raise BadImageError(names[0])

    with pytest.raises(BadImageError, match=r"000\.png"):
        augmented(network, images, index, on_bad_images=fail)
