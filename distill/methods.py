"""The training methods as data: what each is, which options it has and their published defaults.

`compress` is the toolkit's own; the others are baselines (`distill.losses`), under the same engine,
data, cache and schedule. An option that is not among a method's is refused with it. Defaults that
follow the data (sizes of queues, numbers of negatives and clusters) are `distill.engine.resolve`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from distill.registry import Registry


@dataclass(frozen=True)
class Method:
    """A way to train a student.

    Attributes:
        summary: One line for lists.
        defaults: Values of its options that do not follow the data, by name.
        further_options: Names of its other options.
        teacher: Whether it looks at the teacher at every step, once before training, or never.
    """

    summary: str
    defaults: Mapping[str, float | int] = field(default_factory=dict)
    further_options: tuple[str, ...] = ()
    teacher: Literal["every step", "once", "never"] = "every step"

    @property
    def options(self) -> frozenset[str]:
        """Names of all options that it has, beside those that every run has."""
        return frozenset((*self.defaults, *self.further_options))


METHODS: Registry[Method] = Registry("method", remedy="`distill list methods` describes them")

_PLAIN = {"loss_weight": 1.0}

METHODS.add(
    "compress",
    Method(
        "CompRess: the teacher's neighbours among a queue of anchors (NeurIPS 2020)",
        {},
        (
            *(
                "temperature",
                "variant",
                "queue_size",
                "queue_init",
                "queue_dtype",
                "queue_sharding",
            ),
            *("student_temperature", "momentum", "mask_self", "projection_dim"),
            *("teacher_mean", "regression_share"),
            *("anchors", "predictor", "compression_beta", "kappa_e", "kappa_b"),
            "loss_implementation",
        ),
    ),
)
METHODS.add("reg", Method("regression through a linear layer (in CompRess, 2020)", _PLAIN))
METHODS.add("reg-bn", Method("regression of standardized embeddings (in CompRess, 2020)", _PLAIN))
METHODS.add("simreg", Method("SimReg: regression through an MLP (BMVC 2021)", _PLAIN))
METHODS.add(
    "cc",
    Method("CC, correlation congruence: Gaussian similarities in a batch (ICCV 2019)", _PLAIN),
)
METHODS.add(
    "cc-released",
    Method("CC as its authors' program computes it", {"head_dim": 128, **_PLAIN}),
)
METHODS.add(
    "crd",
    Method(
        "CRD: contrast with a memory of all images (ICLR 2020)",
        {"temperature": 0.07, "head_dim": 128, "memory_momentum": 0.5, **_PLAIN},
        ("num_negatives",),
    ),
)
METHODS.add(
    "rkd",
    Method(
        "RKD: distances and angles in a batch (CVPR 2019)",
        {"distance_weight": 25.0, "angle_weight": 50.0, **_PLAIN},
    ),
)
METHODS.add(
    "sp",
    # Near 1/B without a weight, where Adam's epsilon would count.
    Method("SP, similarity preserving: products in a batch (ICCV 2019)", {"loss_weight": 3000.0}),
)
METHODS.add(
    "seed",
    Method(
        "SEED: soft cross-entropy with the teacher's own embedding and a queue (ICLR 2021)",
        {"temperature": 1e-4, "student_temperature": 0.2, **_PLAIN},
        ("queue_size", "queue_dtype", "mask_self"),
    ),
)
METHODS.add(
    "clusterfit",
    Method(
        "ClusterFit: classes are k-means clusters of the teacher's embeddings (CVPR 2020)",
        _PLAIN,
        ("num_clusters",),
        teacher="once",
    ),
)
METHODS.add(
    "supervised",
    Method("cross-entropy on labels, the line to compare with", _PLAIN, teacher="never"),
)
