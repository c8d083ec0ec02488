"""What people get wrong: one clear sentence, exit status 2, no traceback, nothing written."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from distill.cli.command import COMMANDS
from distill.cli.main import run
from distill.errors import LoaderDiedError
from students.registry import build_student

TINY = ["--teacher", "pixels", "--student", "timm:test_resnet"]
TINY += ["--image-size", "32", "--num-workers", "0"]


@pytest.fixture
def mistake(tmp_path, capsys, monkeypatch):
    """Return a function that runs a command and returns what it complained about."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DISTILL_DATA", raising=False)

    def complain(*argv: str, status: int = 2) -> str:
        before = sorted(tmp_path.rglob("*"))
        assert run(list(argv)) == status
        error = capsys.readouterr().err
        assert error.startswith("distill: error: ")
        assert len(error.strip().splitlines()) == 1
        assert sorted(tmp_path.rglob("*")) == before
        return error

    return complain


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("trian", "unknown command 'trian': did you mean 'train'"),
        ("--teacher r50-mocov --student alexnet", "did you mean 'r50-mocov2'"),
        ("--teacher pixels --student alexnett", "did you mean 'alexnet'"),
        ("--teacher pixels --student timm:resnet188", "did you mean 'resnet18'"),
        ("--teacher pixels --student resnet18 --data digit", "did you mean 'digits'"),
        ("--teacher pixels --student resnet18 --data ./absent", "absent"),
        ("--student resnet18", "--teacher is missing"),
        ("--teacher pixels --student resnet18 --learning-rate nan", "--learning-rate is nan"),
        (
            "--teacher pixels --student alexnet --image-size 32",
            "alexnet needs images of at least 64",
        ),
        ("--teacher pixels --student resnet18 --recipe publishd", "did you mean 'published'"),
        ("--teacher pixels --student resnet18 --device gpu", "--device gpu is unknown"),
        ("--teacher pixels --student resnet18 --device cuda:9", "--device cuda:9 is not there"),
        ("--teacher pixels --student resnet18 --resume", "--resume needs --output"),
        ("--output absent --resume", "absent holds no run to resume"),
        ("--teacher r50-c-simclr --student resnet18", "leads to the SimCLR checkpoint"),
        ("--teacher simclr_r50x4 --student resnet18", "did you mean 'simclr-r50x4'"),
        ("convert --teacher pixels --to x.pth", "must end in .safetensors"),
        (
            "convert --teacher pixels --to absent/x.safetensors",
            "is in a folder that does not exist",
        ),
        ("convert --teacher r50x5 --to x.safetensors", "did you mean 'r50x4'"),
        ("--teacher pixels --student resnet18 --teacher-weights absent.pth", "no weights file at"),
        ("--teacher pixels --student resnet18 --queue-size 9000000000", "lower --queue-size"),
        ("--teacher pixels --student resnet18 --projection-dim 7", "leave out --projection-dim"),
        ("--teacher pixels --student resnet18 --momentum 0.9", "--momentum 0.9 goes with"),
        (
            "--teacher pixels --student resnet18 --teacher-view student --teacher-cache c",
            "--teacher-cache goes with --teacher-view center",
        ),
        (
            "--teacher pixels --student resnet18 --anchors dataset --queue-size 9",
            "--queue-size 9 goes with --anchors queue",
        ),
        (
            "--teacher pixels --student resnet18 --anchors dataset --teacher-view student",
            "--anchors dataset goes with --teacher-view center",
        ),
        (
            "--teacher pixels --student resnet18 --anchors dataset --queue-init prefill",
            "--queue-init prefill goes with --anchors queue",
        ),
        (
            "--teacher pixels --student resnet18 --teacher-mean subtract --teacher-view student",
            "--teacher-mean subtract goes with --teacher-view center",
        ),
        ("--teacher pixels --student resnet18 --predictor mlp", "--predictor is gone: the student"),
        (
            "--teacher pixels --student resnet18 --projection-dim 0",
            "leave out --projection-dim, or",
        ),
        (
            "--teacher pixels --student resnet18 --compression-beta 1",
            "compares two views of an image and the student sees 1; add --student-crops 2",
        ),
        (
            "--teacher pixels --student resnet18 --kappa-e 5",
            "--kappa-e 5.0 goes with --compression-beta, which is 0",
        ),
        (
            "--teacher pixels --student resnet18 --student-crops 2 --compression-beta -1",
            "--compression-beta is -1.0, it must be at least 0",
        ),
        (
            "--teacher pixels --student resnet18 --regression-share 1.5",
            "--regression-share is 1.5, it must be between 0 and 1",
        ),
        (
            "--teacher pixels --student resnet18 --variant two-queue --regression-share 0.5",
            "--regression-share 0.5 goes with --variant one-queue",
        ),
        ("--teacher pixels --student resnet18 --student-crops 0", "--student-crops is 0, it must"),
        (
            "--teacher pixels --student alexnet --student-init scaled --student-weights w.pt",
            "--student-init scaled changes weights that --student-weights w.pt brings",
        ),
        ("--teacher pixels --student resnet18 --min-crop-area 1.5", "--min-crop-area is 1.5, it"),
        (
            "--teacher pixels --student resnet18 --student-crops 2 --augmentation none",
            "makes all --student-crops 2 of an image equal",
        ),
        ("cache", "--teacher is missing: name a teacher"),
        ("cache --teacher pixel", "did you mean 'pixels'"),
        ("cache --teacher pixels --data digit", "did you mean 'digits'"),
        ("cache --teacher pixels --teacher-image-size 0", "--teacher-image-size is 0, it must"),
        ("cache --teacher pixels --num-teacher-views 2", "--num-teacher-views is gone"),
        ("cache --teacher pixels --num-workers -1", "--num-workers is -1, it must be at least 0"),
        ("cache --teacher pixels --seed -1", "--seed is -1, it must be between"),
        ("cache --teacher pixels --device cuda:9", "--device cuda:9 is not there"),
        ("cache --teacher r50-c-simclr", "leads to the SimCLR checkpoint"),
        ("cache --teacher pixels --teacher-cache /dev/null/c", "/dev/null/c/train cannot hold"),
        ("pretrain --beta -1", "--beta is -1.0, it must be at least 0"),
        ("pretrain --kappa-b 0", "--kappa-b is 0.0, it must be between 0.001 and 10,000,000"),
        ("pretrain --kappa-e nan", "--kappa-e is nan, it must be between 0.001"),
        ("pretrain --batch-size 1", "--batch-size is 1, it must be at least 2"),
        ("pretrain --batch-size 2000", "do not fill one batch of 2000: lower --batch-size"),
        ("pretrain --augmentation none", "use photo or glyph"),
        ("pretrain --arch resnet51", "did you mean 'resnet50'"),
        ("pretrain --arch vgg16", "unknown architecture 'vgg16'"),
        ("pretrain --width 3", "--width is 3, it must be one of"),
        (
            "pretrain --method simclr --beta 1",
            "--beta goes with --method c-byol or c-simclr, not with simclr",
        ),
        ("pretrain --method c-simclr --target-momentum 0.9", "goes with --method byol or c-byol"),
        ("pretrain --batch-size 8 --accumulate 5", "parts of fewer than 2 images"),
        ("pretrain --projection-dim 1", "--projection-dim is 1, it must be at least 2"),
        ("pretrain --recipe published", "did you mean 'published-300'"),
        ("nn absent --data digits", "no run directory or weights file at absent"),
        ("clusters absent --data digits", "no run directory or weights file at absent"),
        ("linear absent --data digits", "no run directory or weights file at absent"),
        ("nn run --ivf --ivf-lists 3", "--ivf is gone: exact search was faster"),
        ("compare absent.yaml", "grid absent.yaml cannot be read"),
        ("compare absent --table", "absent holds no comparison; --table needs one"),
        ("compare . --table", "holds no comparison; name one, or the YAML file of a grid"),
    ],
)
def test_mistakes(mistake, argv: str, message: str):
    assert message in mistake(*argv.split())


def test_one_mistake_is_one_complaint(mistake):
    assert "--accumulate" not in mistake("pretrain", "--batch-size", "1")


def test_fused_kernels_without_a_gpu(mistake, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    found = mistake(*TINY, "--device", "cpu", "--loss-implementation", "triton")
    assert "triton cannot run: the operands are on cpu" in found or "not installed" in found


def test_an_empty_folder(mistake, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    assert "empty" in mistake(*TINY, "--data", "empty")


@pytest.mark.parametrize("command", ["nn", "clusters", "linear"])
def test_labels_that_an_evaluation_needs(mistake, tmp_path: Path, make_folder, command: str):
    data = make_folder(classes=1)
    unlabeled = data / "train" / "class0"
    torch.save(
        build_student("timm:test_resnet", image_size=32).backbone.state_dict(), tmp_path / "w.pth"
    )
    evaluate = [command, "w.pth", "--student", "timm:test_resnet", "--image-size", "32", "--data"]
    assert "has no validation images" in mistake(*evaluate, str(unlabeled))
    assert "are of 1 class" in mistake(*evaluate, str(data))
    assert "name the architecture with --student" in mistake(command, "w.pth", "--data", str(data))
    assert "leave out --student" in mistake(command, ".", *evaluate[2:], str(data))
    assert "--image-size goes with --student" in mistake(command, "w.pth", "--image-size", "32")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("nn --k 99", "k is 99, it must be between 1 and the number of indexed images, 36"),
        ("clusters --num-clusters 99", "the number of clusters is 99, it must be between 1 and"),
        ("clusters --num-clusters 0", "--num-clusters is 0, it must be at least 1"),
        ("clusters --seed -1", "--seed is -1, it must be between 0 and 2,147,483,647"),
        ("linear --seed -1", "--seed is -1, it must be between 0 and 2,147,483,647"),
        ("linear --labels 0", "--labels is 0, it must be a share above 0 and at most 1"),
        ("linear --labels 2", "--labels is 2, it must be a share above 0 and at most 1"),
        ("linear --labels nan", "--labels is nan, it must be a share above 0 and at most 1"),
        ("linear --labels absent.txt", "neither a number nor a list that can be read (No such"),
        ("linear --labels 0.1 --label-seeds 0", "--label-seeds is 0, it must be at least 1"),
        ("linear --labels 0.01 --sweep", "none of 3 labeled images can be held out"),
        ("linear --sweep --learning-rates 0", "--learning-rates is (0.0,), each must be positive"),
        (
            "linear --sweep --weight-decays -1",
            "--weight-decays is (-1.0,), each must be at least 0",
        ),
        ("linear --sweep --learning-rates", "--sweep needs a value of --learning-rates"),
        ("linear --sweep --method logistic", "--sweep does not go with --method logistic"),
        ("linear --augment --method logistic", "--augment does not go with --method logistic"),
        ("linear --augment --layers all", "--augment does not go with --layers"),
        ("linear --labels 0.1 --layers all", "--labels does not go with --layers"),
        ("linear --per-class --layers all", "--per-class does not go with --layers"),
        ("linear --layers stage9", "unknown layer 'stage9': did you mean 'stage"),
        ("linear --layers layer1.0.conv9", "did you mean 'layer1.0.conv"),
    ],
)
def test_numbers_that_an_evaluation_cannot_take(
    mistake, tmp_path: Path, make_folder, argv: str, message: str
):
    torch.save(
        build_student("timm:test_resnet", image_size=32).backbone.state_dict(), tmp_path / "w.pth"
    )
    command, *flags = argv.split()
    network = ["--student", "timm:test_resnet", "--image-size", "32"]
    assert message in mistake(command, "w.pth", *network, "--data", str(make_folder()), *flags)


def test_weights_that_do_not_fit(mistake, tmp_path: Path, make_folder):
    torch.save(
        build_student("timm:test_resnet", image_size=32).backbone.state_dict(), tmp_path / "w.pth"
    )
    error = mistake(
        *TINY[:2],
        "--student",
        "resnet18",
        "--student-weights",
        "w.pth",
        "--data",
        str(make_folder()),
    )
    assert "missing (conv1.weight" in error
    assert "unexpected" in error


def test_an_output_in_use(mistake, tmp_path: Path, make_folder):
    data = str(make_folder())
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("x")
    assert "is not empty and holds no run" in mistake(*TINY, "--data", data, "--output", "thesis")


def test_a_second_run_into_a_finished_one(mistake, tmp_path: Path, make_folder):
    argv = [
        *TINY,
        "--data",
        str(make_folder()),
        "--output",
        "run",
        "--batch-size",
        "8",
        "--epochs",
        "1",
    ]
    assert run(argv) == 0
    assert "holds a run already" in mistake(*argv)
    error = mistake("--output", "run", "--resume", "--temperature", "0.1")
    assert "--temperature is 0.07 in the run and 0.1 was asked for" in error


def test_one_image_is_not_enough(mistake, tmp_path: Path):
    (tmp_path / "one").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "one" / "a.png")
    assert "at least 2 are needed" in mistake(*TINY, "--data", "one")


@pytest.mark.parametrize(
    "argv", ["--tescher x", "--epochs ten", "nn", "list techers", "cache --cache-dtype fp8"]
)
def test_flags_that_cannot_be_read_exit_with_2_and_no_traceback(argv: str, tmp_path: Path):
    child = subprocess.run(
        [sys.executable, "-m", "distill", *argv.split()],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert child.returncode == 2
    assert "Traceback" not in child.stderr
    assert child.stderr


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (
            "--epochs ten",
            "Error parsing --epochs: 'ten' is not a whole number, such as 10, or None",
        ),
        ("--seed 1.5", "Error parsing --seed: '1.5' is not a whole number, such as 10"),
        ("--learning-rate x", "--learning-rate: 'x' is not a number, such as 0.1 or 1e-4, or None"),
    ],
)
def test_what_is_no_number_is_said_in_words(argv: str, words: str, capsys):
    with pytest.raises(SystemExit) as end:
        run(argv.split())
    assert end.value.code == 2
    said = " ".join(line.strip("│ ") for line in capsys.readouterr().err.splitlines())
    assert words in said
    assert "no type matching" not in said


@pytest.mark.parametrize(
    "argv",
    [
        "",
        "--help",
        "help",
        "--version",
        "train --help",
        "nn --help",
        "clusters --help",
        "linear --help",
        "cache --help",
        "list --help",
        "list",
    ],
)
def test_help_needs_nothing(argv: str):
    child = subprocess.run(
        [sys.executable, "-m", "distill", *argv.split()],
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0
    assert child.stderr == ""
    if "--help" in argv and argv != "--help":
        assert "xamples:" in child.stdout


def test_a_loader_that_died_is_one_sentence(mistake, monkeypatch):
    def die(argv):
        raise LoaderDiedError("a process that loads images died")

    monkeypatch.setitem(COMMANDS, "report", COMMANDS["report"]._replace(run=die))
    assert mistake("report", "run", status=1) == (
        "distill: error: a process that loads images died\n"
    )
