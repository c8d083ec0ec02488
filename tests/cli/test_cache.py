"""`distill cache` from the command line, in one process and under torchrun."""

import numpy as np
import pytest

from distill.cli.main import run
from distill.embeddings.store import open_table

TINY = ["cache", "--teacher", "pixels", "--num-workers", "0"]


@pytest.fixture(autouse=True)
def cold_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "embeddings"


def test_digits_without_a_word_about_data(cold_cache, capsys, monkeypatch):
    monkeypatch.delenv("DISTILL_DATA", raising=False)
    assert run(TINY) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "showing the pipeline on scikit-learn's 1,797 digits" in lines[0]
    assert lines[1].startswith("teacher, digits/train: 0 of 1,437 embeddings are in ")
    header, *rows = map(str.split, lines[-3:])
    assert header == ["split", "images", "width", "dtype", "size", "images/s", "seconds", "folder"]
    assert [row[:4] for row in rows] == [
        ["train", "1,437", "192", "fp16"],
        ["val", "360", "192", "fp16"],
    ]
    folders = sorted(str(path) for path in cold_cache.iterdir())
    assert [row[-1] for row in rows] == folders
    assert rows[0][4:6] == ["0.5", "MiB"]
    assert run(TINY) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "digits/train: all 1,437 embeddings are in" in lines[1]
    assert lines[-1].split()[6:8] == ["-", "-"]


@pytest.mark.parametrize(
    ("split", "folders"),
    [
        ("all", ["train", "val"]),
        ("train", ["train"]),
        ("val", ["val"]),
    ],
)
def test_splits_of_a_folder(make_folder, tmp_path, capsys, split, folders):
    flags = ["--data", str(make_folder()), "--teacher-cache", str(tmp_path / "mine")]
    flags += ["--split", split, "--cache-dtype", "fp32"]
    assert run([*TINY, *flags]) == 0
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == folders
    table = open_table(tmp_path / "mine" / folders[0])
    assert len(table) == (12 if split == "val" else 36)


def test_a_hundredth_of_the_images_may_be_skipped(make_folder, tmp_path, capsys):
    folder = make_folder(num_train=30, num_val=0, classes=1) / "train" / "class0"
    for i in range(1200):
        (folder / f"x{i:04d}.png").write_bytes((folder / "000.png").read_bytes())
    for i in range(11):
        (folder / f"x{i:04d}.png").write_bytes(b"")
    argv = [*TINY, "--data", str(folder), "--on-bad-image", "skip"]
    assert run(argv) == 0
    assert capsys.readouterr().out.count("skipped") == 11
    (folder / "x0011.png").write_bytes(b"")
    (folder / "x0012.png").write_bytes(b"")
    assert run(argv) == 2
    assert "at most 12 may be skipped" in capsys.readouterr().err


def test_images_without_validation(make_folder, tmp_path, capsys):
    folder = str(make_folder() / "train" / "class0")
    assert run([*TINY, "--data", folder]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert run([*TINY, "--data", folder, "--split", "val"]) == 2
    assert "class0 has no validation images; use --split train" in capsys.readouterr().err


@pytest.mark.ddp
def test_two_processes_make_the_rows_of_one(make_folder, tmp_path, run_command_on_ranks):
    data = str(make_folder())
    flags = [*TINY, "--data", data, "--cache-dtype", "fp32", "--precision", "fp32"]
    assert run([*flags, "--teacher-cache", str(tmp_path / "one")]) == 0
    folder = str(tmp_path / "two")
    printed = run_command_on_ranks(2, "cache", *flags[1:], "--teacher-cache", folder)
    assert "".join(printed).count("split ") == 1
    for split, number in (("train", 36), ("val", 12)):
        one, two = (open_table(tmp_path / name / split) for name in ("one", "two"))
        assert np.array_equal(one.rows(np.arange(number)), two.rows(np.arange(number)))
