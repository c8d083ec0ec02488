"""Two thousand steps: memory and open files stay what they were."""

from __future__ import annotations

import json
import time
from pathlib import Path

import psutil
import pytest

STEPS_A_RUN = 2000
WARM = 400  # steps until allocators and caches have what they need
MOST_GROWTH = 8 * 2**20  # bytes


def last_step(output: Path) -> int:
    lines = (output / "log.jsonl").read_text().splitlines()
    try:
        return json.loads(lines[-1])["step"] if lines else 0
    except ValueError:  # it is being written
        return 0


@pytest.mark.soak
@pytest.mark.parametrize(
    "flags", ["--variant two-queue-momentum", "--method crd", "--num-workers 2"]
)
def test_nothing_grows(commands, make_folder, tmp_path, flags):
    output, data = tmp_path / "run", make_folder(num_train=16)
    argv = ["--teacher", "pixels", "--student", "timm:test_resnet", "--image-size", "32"]
    argv += ["--num-workers", "0", "--batch-size", "8", "--nn-every", "0", "--holdout", "0"]
    argv += ["--epochs", str(STEPS_A_RUN // 6 + 1), "--checkpoint-every", "20", *flags.split()]
    command = commands.start([*argv, "--data", str(data), "--output", str(output)])
    process, seen = psutil.Process(command.process), []
    assert command.wait_for_words("no nearest-neighbor check")
    while not command.has_ended():
        try:
            step, memory = last_step(output), process.memory_info().rss
            memory += sum(child.memory_info().rss for child in process.children())
            seen.append((step, memory, process.num_fds()))
        except (psutil.Error, FileNotFoundError):
            continue
        time.sleep(0.05)
    assert command.wait() == 0, command.printed
    assert max(step for step, *_ in seen) >= 0.9 * STEPS_A_RUN
    warm = [one for one in seen if WARM <= one[0] <= STEPS_A_RUN / 2]
    late = [one for one in seen if STEPS_A_RUN / 2 < one[0] <= STEPS_A_RUN * 0.95]
    assert len(warm) > 10
    assert len(late) > 10
    for place, allowed in ((1, MOST_GROWTH), (2, 0)):
        before, after = (sorted(one[place] for one in part) for part in (warm, late))
        growth = after[len(after) // 2] - before[len(before) // 2]
        print(f"{flags}: {('', 'bytes', 'files')[place]} {before[len(before) // 2]:,} {growth:+,}")
        assert growth <= allowed
