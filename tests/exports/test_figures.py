import math

from distill.exports.figures import figures, is_accuracy, meaning


def test_numbers_with_what_they_mean():
    metrics = {"nn_accuracy": 0.66213, "num_steps": 12345, "note": "x", "nan": math.nan, "ok": True}
    metrics["nested"] = {"a": 1}
    assert [(name, value) for name, value, _ in figures(metrics)] == [
        ("nn_accuracy", "0.6621"),
        ("num_steps", "12,345"),
    ]
    assert "nearest training image by cosine" in figures(metrics)[0][2]


def test_whose_numbers_they_are():
    for prefix, words in (
        ("teacher_", "the teacher: "),
        ("untrained_", "the same network before training: "),
        ("backbone_", "at the embedding: "),
    ):
        assert meaning(f"{prefix}cluster_alignment") == words + meaning("cluster_alignment")
    assert meaning("teacher_surprise") == meaning("surprise") == ""


def test_variants_say_how_many():
    assert "from a vote of the 5 nearest training images" in meaning("nn_accuracy_k5")
    assert "from a weighted vote of the 20 nearest" in meaning("nn_accuracy_k20_weighted")
    assert "stands for (36 clusters, matched" in meaning("cluster_alignment_k36")
    assert "(as many clusters as classes, matched" in meaning("cluster_alignment")


def test_the_network_s_own_accuracies():
    names = ["nn_accuracy", "nn_accuracy_k5_weighted", "cluster_alignment_k4"]
    assert all(is_accuracy(name) for name in names)
    assert not any(
        is_accuracy(name) for name in ("teacher_nn_accuracy", "num_steps", "xnn_accuracy")
    )
