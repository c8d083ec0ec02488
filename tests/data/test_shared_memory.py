import shutil
from types import SimpleNamespace

import pytest

from distill.data import workers as shared_memory
from distill.data.workers import require_shared_memory
from distill.errors import DistillError


@pytest.fixture(autouse=True)
def has_64_mib(monkeypatch, tmp_path):
    monkeypatch.setattr(shared_memory, "_SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=64 * 2**20))


@pytest.mark.parametrize(
    ("batch_size", "sizes", "workers", "processes", "fits"),
    [
        (256, [224], 0, 8, True),
        (64, [224], 2, 1, True),  # 6 batches of 9.2 MiB
        (64, [224], 3, 1, False),  # 8 of them
        (64, [224], 1, 2, False),  # 4 for each of two
        (64, [224, 64], 2, 1, True),  # 6 of 9.9
        (64, [224, 224], 2, 1, False),
    ],
)
def test_batches_must_fit(batch_size, sizes, workers, processes, fits):
    if fits:
        require_shared_memory(batch_size, sizes, workers, num_processes=processes)
        return
    with pytest.raises(DistillError, match=r"MiB at a time and .* has 64 MiB left; lower --num-w"):
        require_shared_memory(batch_size, sizes, workers, num_processes=processes)


def test_a_system_without_it_is_not_asked(monkeypatch, tmp_path):
    monkeypatch.setattr(shared_memory, "_SHARED_MEMORY", tmp_path / "absent")
    require_shared_memory(4096, [1024], 64)
