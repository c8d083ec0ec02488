"""The configuration of a distillation run, as frozen dataclasses.

Every option has one name, the same as a flag (`--image-size`), a YAML key (`image_size`), a keyword
of `distill.train` and a line of `config.yaml`; the groups below only order the help. An option that
is None follows the data: `distill.engine.resolve` fills it in. Unknown keys are refused. Images,
optimization and run are shared with pre-training (`distill.pretrain_config`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Precision = Literal["auto", "fp32", "bf16"]
Variant = Literal["two-queue-momentum", "two-queue", "one-queue"]
CacheDtype = Literal["fp16", "bf16", "fp32"]


@dataclass(frozen=True)
class TeacherOptions:
    """Which network teaches, and where its embeddings are kept."""

    teacher: str | None = None
    """Registry name (`distill list teachers`), timm:NAME, torchvision:NAME, a run directory or a
    converted .safetensors file."""
    teacher_weights: Path | None = None
    """Weights of the teacher: a safetensors, PyTorch or TensorFlow checkpoint, or an archive of the
    latter; None: the published ones, fetched on first use."""
    teacher_image_size: int | None = None
    """Side of the teacher's view in pixels; None: the side it was trained with."""
    teacher_batch_size: int | None = None
    """Images per forward pass of the teacher; None: by image size and device."""
    teacher_cache: Path | None = None
    """Folder that keeps the teacher's embeddings; None: in the cache folder, $DISTILL_CACHE or
    ~/.cache/distill."""
    cache_dtype: CacheDtype = "fp16"
    """Storage of the teacher's embeddings."""
    num_teacher_views: int = 1
    """Views of an image that the teacher has embedded: the centre crop and random crops, taken in
    turn over the epochs."""


@dataclass(frozen=True)
class NetworkOptions(TeacherOptions):
    """Which network teaches which."""

    teacher_view: Literal["centre", "student"] = "centre"
    """What the teacher sees: views of its own (--num-teacher-views), embedded once; or the
    student's crop, embedded at every step."""
    student: str | None = None
    """Registry name (`distill list students`), timm:NAME or torchvision:NAME."""
    student_weights: Path | None = None
    """Weights to start the student from; None: random."""
    student_init: Literal["random", "scaled"] | None = None
    """How random weights start. random: as the architecture draws them; scaled: every layer then
    scaled to mean 0 and variance 1 over some training images; None: scaled for a student without
    normalization layers, such as AlexNet."""


@dataclass(frozen=True)
class DataOptions:
    """Which images."""

    data: str | None = None
    """`digits`, a torchvision dataset (CIFAR10, CIFAR100, STL10), a folder with train/ and val/
    class folders, any folder of images, or tar shards: `train-{000..146}.tar`, or a folder or URL
    where train*.tar and val*.tar lie; None: $DISTILL_DATA, else digits."""
    on_bad_image: Literal["fail", "skip"] = "fail"
    """What to do about a file that cannot be decoded."""
    max_bad_images: int | None = None
    """How many may be skipped; None: a hundredth of the images, and at least ten."""
    num_workers: int | None = None
    """Processes that load images; None: by cores and data."""


@dataclass(frozen=True)
class ImageOptions(DataOptions):
    """Which images, and at which size."""

    image_size: int | None = None
    """Side of the trained network's view in pixels; None: 224 for folders, less for small sets."""
    holdout: float = 0.05
    """Share of the training images that is not trained on and serves the check between epochs."""


@dataclass(frozen=True)
class ViewOptions:
    """How the student sees the images."""

    augmentation: Literal["crop-flip", "crop", "none"] | None = None
    """crop-flip: random resized crop and flip, as published; crop: mild, no flip; none: centre
    crop; None: by data."""
    min_crop_area: float | None = None
    """Least share of an image's area that a crop shows; None: 0.5 for crop-flip (published: 0.08),
    0.6 for crop."""
    student_crops: int = 1
    """Views of an image that the student sees in a step, each compared with what the teacher says
    of the image; the loss is their mean, and the first is what is enqueued."""
    small_crops: int = 0
    """Further views, of 5 to 14 % of the image's area (crop-flip only)."""
    small_crop_size: int | None = None
    """Side of the small crops in pixels; None: 3/7 of --image-size, or the least that the student
    takes."""


@dataclass(frozen=True)
class MethodOptions:
    """The method; for CompRess: anchors, temperatures, momentum copy."""

    method: str = "compress"
    """compress, or a baseline (`distill list methods`)."""
    variant: Variant = "one-queue"
    """Where the student's anchors come from: its momentum copy, itself, or the teacher's queue."""
    anchors: Literal["queue", "dataset"] | None = None
    """queue: recent images, first in, first out; dataset: every training image, with one queue from
    the first step on, else from its first visit on (wants --teacher-view centre); None: dataset for
    one queue with at most 128,000 images, as far as nothing is said of a queue."""
    queue_size: int | None = None
    """Number of anchors in a queue; None: nine tenths of the training images, at most 128,000
    (seed: at most 65,536)."""
    queue_init: Literal["empty", "random", "prefill"] = "empty"
    """empty: only real anchors count; random: as published; prefill: one pass before training."""
    queue_dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Storage of the anchors."""
    queue_sharding: Literal["ranks", "none"] = "ranks"
    """Under torchrun. ranks: every process holds its share of the anchors; none: all of them."""
    temperature: float | None = None
    """Temperature of the teacher's softmax (crd: of both directions); None: for
    compress 0.04, as published, or 0.07 without the teacher's mean; 0.0001 for seed, 0.07 for
    crd."""
    student_temperature: float | None = None
    """Temperature of the student's softmax; None: the same as the teacher's, 0.2 for seed."""
    teacher_mean: Literal["keep", "subtract"] | None = None
    """What all of the teacher's unit embeddings share. subtract: compare without it (wants
    --teacher-view centre); keep: as published; None: subtract for one queue where it can be."""
    regression_share: float | None = None
    """Share of Reg-BN's regression in the loss, 0 to 1: the student's embedding and the teacher's,
    both standardized over the batch (one queue only); 0: the divergence alone, as published; None:
    0.8 for one queue."""
    momentum: float | None = None
    """Momentum m of the student's copy (two-queue-momentum only); None: by the number of steps."""
    mask_self: bool = True
    """Leave an image's own old embedding out of its anchors."""
    predictor: Literal["none", "linear", "mlp"] = "linear"
    """What the student is trained through, dropped after training. linear: a layer where
    --projection-dim has a width; mlp: before it a hidden layer of twice the student's width with
    BatchNorm; none: nothing."""
    projection_dim: int | None = None
    """Width that the predictor ends in; None: the teacher's for one queue and for mlp, else no
    layer (the published recipe: 8192 for ResNet-50); 0: no layer."""
    compression_beta: float = 0.0
    """Price per nat of what a student's embedding keeps of one view and the other does not tell, as
    in C-SimCLR; wants --student-crops 2."""
    kappa_e: float | None = None
    """Concentration of the embedding's own distribution; None: 1024 where there is a price."""
    kappa_b: float | None = None
    """Concentration of what the other view foretells; None: 10 where there is a price."""
    loss_implementation: Literal["auto", "blocked", "reference", "triton"] = "auto"
    """How the loss is computed."""


@dataclass(frozen=True)
class BaselineOptions:
    """Baselines (--method); each has some of these."""

    loss_weight: float | None = None
    """Factor of the loss, of every method but compress; None: 3000 for sp, else 1."""
    head_dim: int | None = None
    """Width of the linear layers after teacher and student (crd, cc-released); None: 128."""
    num_negatives: int | None = None
    """Other images that crd compares an image with; None: 16,384, or as many as there are."""
    memory_momentum: float | None = None
    """Share of the old embedding in crd's memory of an image; None: 0.5."""
    distance_weight: float | None = None
    """Weight of rkd's distances; None: 25."""
    angle_weight: float | None = None
    """Weight of rkd's angles; None: 50."""
    num_clusters: int | None = None
    """Clusters of clusterfit; None: one for 80 training images, from 2 to 16,000."""


@dataclass(frozen=True)
class OptimizationOptions:
    """Optimizer, schedule, length."""

    epochs: int | None = None
    """Passes over the training images; None: 100, below 5,000 images 20 (pre-training: 200)."""
    batch_size: int | None = None
    """Images per step; None: a power of two from 32 to 256, by the number of images."""
    optimizer: Literal["sgd", "adamw", "muon", "lars"] = "muon"
    """Update rule; muon: orthogonalized steps of convolution kernels, adamw for the rest.
    Distillation was published with sgd, pre-training with lars. AlexNet, which has no BatchNorm,
    needs adamw or muon."""
    learning_rate: float | None = None
    """Peak learning rate; None: by optimizer, batch size and whether the student normalizes."""
    weight_decay: float = 1e-4
    """L2 (sgd, lars) or decoupled (adamw, muon) weight decay."""
    sgd_momentum: float = 0.9
    """Momentum of sgd, lars and muon."""
    schedule: Literal["cosine", "step"] = "cosine"
    """How the learning rate falls."""
    milestones: tuple[int, ...] = (90, 120)
    """Epochs after which the step schedule multiplies the learning rate by decay_factor."""
    decay_factor: float = 0.2
    """Factor of the step schedule."""
    warmup_epochs: float | None = None
    """Epochs of linear warm-up, fractions allowed; None: a twentieth of the epochs."""
    clip_grad_norm: float | None = None
    """Largest gradient norm; None: no clipping."""


@dataclass(frozen=True)
class ExecutionOptions:
    """How networks are run."""

    seed: int = 0
    """Seed of weights, order and views."""
    deterministic: bool = False
    """Use only algorithms that give the same bits every time; on a GPU slower. A CPU does anyhow,
    with the same number of threads."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: Precision = "auto"
    """Forward and backward passes of the networks; auto: bf16 where the device computes in it."""


@dataclass(frozen=True)
class RunOptions(ExecutionOptions):
    """Where the run is kept and how it is executed."""

    output: Path | None = None
    """Run directory; None: under runs/, named after networks and data."""
    resume: bool = False
    """Continue the run in the output directory from its last checkpoint, or begin it there."""
    recipe: str = "default"
    """Defaults by name (`distill list recipes`) or from a YAML file; flags override them."""
    nn_every: int | None = None
    """Epochs between nearest-neighbour checks on held-out images; None: five per run; 0: off."""
    measure: Literal["all", "trained", "none"] = "all"
    """What is looked up and clustered around training. all: the teacher and the untrained network,
    which the trained one is compared with; trained: the trained one alone."""
    log_every: int = 10
    """Steps between lines of log.jsonl."""
    checkpoint_every: int = 1
    """Epochs between checkpoints; the newest two and the best are kept."""
    keep_every: int = 0
    """Epochs between checkpoints that are kept, too; 0: none."""
    on_failed_checkpoint: Literal["continue", "stop"] = "continue"
    """What to do when the disk refuses a checkpoint; those before it stay intact."""


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a distillation run."""

    networks: NetworkOptions = field(default_factory=NetworkOptions)
    images: ImageOptions = field(default_factory=ImageOptions)
    views: ViewOptions = field(default_factory=ViewOptions)
    method: MethodOptions = field(default_factory=MethodOptions)
    baseline: BaselineOptions = field(default_factory=BaselineOptions)
    optimization: OptimizationOptions = field(default_factory=OptimizationOptions)
    run: RunOptions = field(default_factory=RunOptions)


@dataclass(frozen=True)
class SplitOptions:
    """Which part of the data."""

    split: Literal["all", "train", "val"] = "all"
    """Training images, validation images or both."""


@dataclass(frozen=True)
class CacheConfig:
    """Everything that decides which embeddings `distill cache` keeps."""

    teacher: TeacherOptions = field(default_factory=TeacherOptions)
    images: DataOptions = field(default_factory=DataOptions)
    split: SplitOptions = field(default_factory=SplitOptions)
    run: ExecutionOptions = field(default_factory=ExecutionOptions)
