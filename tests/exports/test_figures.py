import math

from distill.exports.model_card import figures, is_accuracy, meaning


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


def test_every_measure_of_a_student_is_explained():
    for name, words in (
        ("nn_accuracy_k5_ivf", "5 nearest training images by cosine, searched through inverted"),
        ("nn_accuracy_ivf", "from the nearest training image by cosine, searched through"),
        ("cluster_alignment_k14_count_spherical_minibatch", "(14 clusters, spherical mini-batch"),
        ("cluster_alignment_count", "matched to classes by count on the training"),
        ("cluster_nmi", "normalized mutual information of k-means clusters"),
        ("cluster_ari_k4", "adjusted Rand index of k-means clusters and classes of the validation"),
        ("neighbor_agreement_k20", "share of the teacher's 20 nearest images"),
        ("linear_accuracy_labels_0.01", "from a share of 0.01 of the labels"),
        ("linear_accuracy_labels_1percent", "learned from the labels of 1percent"),
        ("linear_accuracy_labels_0.01_std", "standard deviation over draws of the accuracy"),
        (
            "voc_detection_map_area",
            "precision of detection on PASCAL VOC or a set in its layout, a",
        ),
        ("teacher_robustness_gap", "the teacher: error under corruption minus"),
        ("linear_accuracy@flowers", "as published; on flowers"),
    ):
        assert words in meaning(name)
    assert meaning("surprise@flowers") == ""


def test_the_network_s_own_accuracies():
    names = ["nn_accuracy", "nn_accuracy_k5_weighted", "cluster_alignment_k4", "linear_accuracy"]
    assert all(is_accuracy(name) for name in names)
    assert not any(
        is_accuracy(name)
        for name in ("teacher_nn_accuracy", "num_steps", "xnn_accuracy", "nn_accuracy@b")
    )
