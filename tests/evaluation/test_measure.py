"""`distill measure` from the command line, on tiny networks that were never trained."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from distill.cli.main import run
from distill.errors import DistillError
from distill.evaluation import lipschitz as ascent
from distill.evaluation import measure as job
from distill.evaluation.base import describe_metric, evaluate

FEW = ["--data", "digits", "--num-images", "12", "--num-workers", "0", "--device", "cpu"]
FEW_OPTIONS = {"data": "digits", "num_images": 12, "num_workers": 0, "device": "cpu"}
NAMES = (
    *("residual_information", "residual_constant", "information_y_z", "entropy_e", "entropy_b"),
    *("view_kl", "view_cosine", "lipschitz_sampled", "lipschitz_ascended"),
    *("kl_lipschitz_sampled", "kl_lipschitz_ascended", "measure_definition"),
)


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr(ascent.ascend, "__kwdefaults__", {"num_steps": 3})


def measure(run_or_weights: Path, **options) -> dict:
    return evaluate("measure", run_or_weights, **options).metrics


def kept(output: Path) -> dict:
    return json.loads((output / "metrics.json").read_text())


def test_numbers_are_printed_kept_and_the_same_again(make_pretraining_run, capsys):
    path = make_pretraining_run(beta=0.1)
    assert run(["measure", str(path), *FEW]) == 0
    printed = capsys.readouterr().out
    found = kept(path)
    assert tuple(found) == NAMES
    assert all(math.isfinite(found[name]) for name in NAMES[:-1])
    for name in NAMES:
        assert describe_metric(name) is not None
        assert describe_metric(f"backbone_{name}").words.startswith("at the embedding: ")
    assert found["lipschitz_ascended"] > found["lipschitz_sampled"] > 0
    assert found["kl_lipschitz_ascended"] > found["kl_lipschitz_sampled"] > 0
    row = printed.splitlines()[-1].split()
    assert row[:3] == [str(path), "c-byol", "0.1"]
    shown = [name for name in NAMES[:-1] if name not in ("residual_constant", "entropy_e")]
    assert row[3:] == [f"{found[name]:.4g}" for name in shown]
    for line in found["measure_definition"].split("; "):
        assert line in printed
    for words in (
        "D = 6",
        "kappa_e = 1024",
        "glyph",
        "12 images of digits/val",
        "16 px",
        ">= 0.01",
    ):
        assert words in found["measure_definition"]
    assert measure(path, **FEW_OPTIONS) == found
    assert measure(path, **FEW_OPTIONS, seed=1) != found


def test_the_numbers_are_those_of_the_two_views(make_pretraining_run, monkeypatch):
    from distill.data.distortions import distort
    from distill.data.loader import TrainingViews
    from distill.data.sources import open_images
    from distill.data.views import two_views
    from distill.evaluation.projection import through_heads
    from distill.losses.von_mises_fisher import mean_cosine
    from teachers.load import load_trained

    path = make_pretraining_run()
    found = measure(path, **{**FEW_OPTIONS, "num_images": 10_000}, kappa_e=64.0)
    digits, views = open_images("digits").val, two_views(16, "glyph")
    everything = TrainingViews(
        digits, np.arange(360), views.view, views.second_view, distortion=views.draw, seed=0
    )
    items = [everything[0, i] for i in range(360)]
    encode = through_heads(load_trained(path), path)
    with torch.no_grad():
        x, y = (
            encode(distort(torch.stack(view), torch.stack([i.distortion[k] for i in items])))
            for k, view in enumerate(
                ([item.view for item in items], [item.second_view for item in items])
            )
        )
    cosine = float((x.double() * y).sum(1).mean())
    assert found["view_cosine"] == pytest.approx(cosine, abs=1e-5)
    expected = 10 * mean_cosine(6, 64.0) * (1 - cosine)
    assert found["residual_information"] == pytest.approx(expected, abs=1e-4)
    assert "360 images" in found["measure_definition"]


def test_the_backbone_has_names_of_its_own(make_pretraining_run):
    path = make_pretraining_run()
    assert run(["measure", str(path), *FEW]) == 0
    projection = kept(path)
    assert run(["measure", str(path), *FEW, "--layer", "backbone"]) == 0
    both = kept(path)
    assert tuple(both) == (*NAMES, *(f"backbone_{name}" for name in NAMES))
    assert {name: both[name] for name in NAMES} == projection
    assert "D = 64" in both["backbone_measure_definition"]
    bare = measure(path / "backbone.safetensors", **FEW_OPTIONS)
    assert bare == {name: both[name] for name in both if name.startswith("backbone_")}


def test_a_row_for_each_run_and_a_plot(make_pretraining_run, tmp_path, capsys):
    runs = [
        make_pretraining_run("a", beta=0.1, seed=1),
        make_pretraining_run("b", beta=1.0, seed=2),
        make_pretraining_run("c", method="simclr", seed=3),
    ]
    plot = tmp_path / "sweep.png"
    assert run(["measure", *map(str, runs), *FEW, "--plot", str(plot)]) == 0
    printed = capsys.readouterr().out.splitlines()
    header = next(i for i, line in enumerate(printed) if line.startswith("run "))
    rows = [line.split() for line in printed[header + 1 : header + 4]]
    assert [row[:3] for row in rows] == [
        [str(runs[0]), "c-byol", "0.1"],
        [str(runs[1]), "c-byol", "1"],
        [str(runs[2]), "simclr", "-"],
    ]
    assert sum(line.startswith("x, y: ") for line in printed) == 1  # one definition for all
    assert not any("not comparable" in line for line in printed)
    with Image.open(plot) as image:
        assert min(image.size) >= 500


def test_runs_that_do_not_compare_are_told(make_pretraining_run, capsys):
    wide = make_pretraining_run("wide", projection_dim=7)
    large = make_pretraining_run("large", image_size=20)
    assert run(["measure", str(wide), str(large), *FEW]) == 0
    printed = capsys.readouterr().out
    warning = printed.splitlines()[-1]
    assert warning.startswith("not comparable")
    assert "width (6, 7)" in warning
    assert "image size (16, 20)" in warning
    assert "layer" not in warning
    assert printed.count("f: L2-normalized") == 2


def test_the_augmentation_follows_the_data_unless_given(make_pretraining_run, make_folder):
    path, data = make_pretraining_run(), str(make_folder())
    few, definition = {**FEW_OPTIONS, "data": data}, f"{NAMES[-1]}@photos"
    assert "(photo) of 12 images of photos/val" in measure(path, **few)[definition]
    glyph = measure(path, **few, augmentation="glyph")
    assert "(glyph) of 12" in glyph[definition]
    unlabeled = {**few, "data": f"{data}/train/class0"}
    found = measure(path, **unlabeled)
    assert "of 12 images of class0" in found[f"{NAMES[-1]}@class0"]
    # Numbers of other images stand beside the run's own.
    own = measure(path, **FEW_OPTIONS)
    assert kept(path).items() >= {**own, **glyph, **found}.items()
    assert not own.keys() & found.keys()


def test_networks_run_in_full_float32(make_pretraining_run, monkeypatch):
    path = make_pretraining_run(precision="bf16")
    seen = []

    def spy(encode, images, **arguments):
        with torch.no_grad():
            hidden = encode.network.backbone(images)
        seen.append((hidden.dtype, torch.backends.cudnn.allow_tf32))
        return original(encode, images, **arguments)

    original = job.lipschitz_bounds
    monkeypatch.setattr(job, "lipschitz_bounds", spy)
    before = torch.backends.cudnn.allow_tf32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = measure(path, **FEW_OPTIONS)
    assert seen == [(torch.float32, False)]
    assert inside == measure(path, **FEW_OPTIONS)
    assert torch.backends.cudnn.allow_tf32 == before


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("RUN --kappa-b 0", "--kappa-b is 0.0, it must be between 0.001 and 10,000,000"),
        ("RUN --kappa-e nan", "--kappa-e is nan, it must be"),
        ("RUN --num-images 1", "--num-images is 1, it must be at least 2"),
        ("RUN --seed -1", "--seed is -1, it must be between 0 and"),
        ("RUN absent", "no run directory or weights file at absent"),
        ("", "name at least one run directory"),
        ("RUN RUN --output x", "--output x has room for the numbers of one run"),
        ("RUN --plot sweep.pdf", "--plot sweep.pdf must end in .png or .svg"),
        ("RUN/backbone.safetensors --layer projection", "so it has no projection"),
    ],
)
def test_mistakes(make_pretraining_run, capsys, monkeypatch, argv: str, message: str):
    path = make_pretraining_run()
    monkeypatch.setattr(job, "embed_views", None)  # nothing is computed
    files = sorted(path.rglob("*"))
    assert run(["measure", *FEW, *argv.replace("RUN", str(path)).split()]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert sorted(path.rglob("*")) == files


def test_a_distilled_student_has_a_backbone_only(make_student, tmp_path, make_folder, capsys):
    output, data = tmp_path / "student", str(make_folder(num_train=4, num_val=2))
    make_student(output)
    (output / "config.yaml").write_text(f"command: train\nteacher: pixels\ndata: {data}\n")
    few = ["--num-images", "6", "--num-workers", "0"]
    assert run(["measure", str(output), *few, "--layer", "projection"]) == 2
    assert "only a finished run of `distill pretrain` has one" in capsys.readouterr().err
    assert run(["measure", str(output), *few]) == 0
    assert f"{output}  distilled  -" in capsys.readouterr().out
    assert set(kept(output)) == {f"backbone_{name}" for name in NAMES}


def test_an_unknown_layer(make_pretraining_run):
    path = make_pretraining_run()
    with pytest.raises(SystemExit, match="2"):
        run(["measure", str(path), *FEW, "--layer", "projektion"])
    with pytest.raises(DistillError, match="layer the value 'projektion'; allowed: projection"):
        measure(path, **FEW_OPTIONS, layer="projektion")
