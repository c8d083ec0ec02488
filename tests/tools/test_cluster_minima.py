"""The program that tells what k-means misses from what embeddings miss."""

import numpy as np

from distill.models.weights import save_network
from students.registry import build_student


def unit(angles):
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def blobs(rng, counts, places, widths):
    angles = [rng.normal(p, w, n) for n, p, w in zip(counts, places, widths, strict=True)]
    return unit(np.concatenate(angles)), np.repeat(np.arange(len(counts)), counts)


def test_where_k_means_finds_the_classes_all_three_agree(tool):
    rng = np.random.default_rng(0)
    made = [blobs(rng, (90, 60), (0.0, 1.5), (0.1, 0.1)) for _ in "tv"]
    found = tool("cluster_minima").compare_centroids(*made[0], *made[1])
    assert [one.name for one in found] == ["class means", "k-means", "k-means from class means"]
    assert [one.accuracy for one in found] == [1, 1, 1]
    assert [(one.largest, one.commonest) for one in found] == [(90, 90)] * 3
    np.testing.assert_allclose([one.distance for one in found], found[0].distance, rtol=1e-5)


def test_k_means_leaves_the_means_of_a_wide_class_and_two_near_each_other(tool):
    """Splitting the wide class saves more than telling the near ones apart."""
    rng = np.random.default_rng(0)
    made = [blobs(rng, (300, 40, 40), (0.0, 2.2, 2.45), (0.5, 0.03, 0.03)) for _ in "tv"]
    means, best, settled = tool("cluster_minima").compare_centroids(*made[0], *made[1])
    assert means.accuracy > 0.95
    assert best.accuracy < means.accuracy - 0.2
    assert best.distance < means.distance
    assert best.distance <= settled.distance * 1.001
    assert settled.distance < means.distance


def test_a_line_for_each_set_of_centroids(tool, make_folder, tmp_path, capsys):
    weights = tmp_path / "student.safetensors"
    save_network(build_student("timm:test_resnet", image_size=32), weights)
    assert tool("cluster_minima").main([str(weights), "--data", str(make_folder())]) == 0
    heading, *lines = capsys.readouterr().out.splitlines()[-4:]
    assert heading.startswith("centroids")
    assert [line[:26].strip() for line in lines] == [
        "class means",
        "k-means",
        "k-means from class means",
    ]
    assert all(0 <= float(line.split()[-3]) <= 1 for line in lines)
