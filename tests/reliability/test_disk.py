"""Real disks that are full, read-only or go away: nothing whole is lost, and then it goes on."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from distill.models.weights import read_state_dict
from distill.training.checkpoints import checkpoints, load_newest

MIB = 2**20
TINY = ["--teacher", "pixels", "--student", "timm:test_resnet", "--image-size", "32"]
TINY += ["--num-workers", "0", "--batch-size", "8", "--nn-every", "0", "--epochs", "3"]
TINY += ["--optimizer", "adamw"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of eight megabytes: a checkpoint of 4.5 and little else."""
    place = tmp_path / "small"
    place.mkdir()
    mount("-t", "tmpfs", "-o", f"size={8 * MIB}", "tmpfs", str(place))
    yield place
    unmount(place)


class Share:
    """A folder that is seen through a mount, as that of a server is."""

    def __init__(self, folder: Path) -> None:
        self.server, self.place = folder / "server", folder / "share"
        for path in (self.server, self.place):
            path.mkdir()
        self.is_there = False

    def appear(self) -> None:
        mount("--bind", str(self.server), str(self.place))
        self.is_there = True

    def vanish(self) -> None:
        unmount(self.place)
        self.is_there = False


@pytest.fixture
def share(tmp_path: Path) -> Iterator[Share]:
    """Mount a folder; it may be vanished at the end of the test."""
    found = Share(tmp_path)
    found.appear()
    yield found
    if found.is_there:
        found.vanish()


def mount(*argv: str) -> None:
    if subprocess.run(["mount", *argv], capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system is not allowed here")


def unmount(place: Path) -> None:
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place: Path, num_bytes: int) -> Path:
    filler = place / "filler"
    filler.write_bytes(bytes(num_bytes))
    return filler


def test_training_goes_on_and_room_lets_it_finish(commands, make_folder, tmp_path, small_disk):
    argv = [*TINY, "--data", str(make_folder())]
    assert commands.start([*argv, "--output", str(tmp_path / "whole")]).wait() == 0
    filler, output = fill(small_disk, 5 * MIB // 2), small_disk / "run"
    command = commands.start([*argv, "--output", str(output)])
    assert command.wait() == 2
    assert command.printed.count("no checkpoint was written") == 2
    assert "student.safetensors cannot be written: No space left on device" in command.printed
    assert "Traceback" not in command.printed
    assert len(checkpoints(output / "checkpoints")) == 1
    assert load_newest(output / "checkpoints") is not None
    assert not list(output.rglob("*.partial"))
    filler.unlink()
    command = commands.start(["--output", str(output), "--resume"])
    assert command.wait() == 0, command.printed
    whole, mended = (
        read_state_dict(run / "student.safetensors") for run in (tmp_path / "whole", output)
    )
    assert all(torch.equal(whole[name], mended[name]) for name in whole)


def test_training_stops_when_asked_to(commands, make_folder, small_disk):
    output = small_disk / "run"
    argv = [*TINY, "--data", str(make_folder()), "--output", str(output)]
    command = commands.start([*argv, "--on-failed-checkpoint", "stop"])
    assert command.wait() == 2
    error = command.printed.splitlines()[-1]
    assert error.startswith("distill: error: after step 10 no checkpoint was written")
    assert error.endswith(f"then go on with --output {output} --resume")
    assert len(checkpoints(output / "checkpoints")) == 1


@pytest.mark.parametrize("state", ["full", "read-only"])
def test_a_run_that_cannot_begin_says_so(commands, make_folder, small_disk, state):
    if state == "full":
        fill(small_disk, 8 * MIB)
    else:
        subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    argv = [*TINY, "--data", str(make_folder()), "--output", str(small_disk / "run")]
    command = commands.start(argv)
    assert command.wait() == 2
    words = {"full": "No space left on device", "read-only": "Read-only file system"}[state]
    assert words in command.printed.splitlines()[-1]
    assert "Traceback" not in command.printed


@pytest.mark.parametrize("comes_back", [True, False], ids=["back-at-once", "back-later"])
def test_a_mount_that_vanishes(commands, make_folder, tmp_path, share, comes_back):
    argv = [*TINY, "--data", str(make_folder()), "--epochs", "12"]
    assert commands.start([*argv, "--output", str(tmp_path / "whole")]).wait() == 0
    output = share.place / "run"
    command = commands.start([*argv, "--output", str(output)])
    assert command.wait_for_words("epoch 2/12")
    share.vanish()
    assert command.wait_for_words("no checkpoint was written")
    if comes_back:
        share.appear()
    else:
        assert command.wait() == 2
        assert "Traceback" not in command.printed
        assert not list(share.place.iterdir())  # nothing was put where the mount had been
        share.appear()
        assert load_newest(output / "checkpoints") is not None
        command = commands.start(["--output", str(output), "--resume"])
    assert command.wait() == 0, command.printed
    one, other = (
        read_state_dict(run / "student.safetensors") for run in (tmp_path / "whole", output)
    )
    assert all(torch.equal(one[name], other[name]) for name in one)
