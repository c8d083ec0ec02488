import hashlib
import importlib.util
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "ship_teacher.py"


@pytest.fixture(scope="module")
def ship():
    spec = importlib.util.spec_from_file_location("ship_teacher", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ship


@pytest.fixture
def finished(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    for name in ("backbone.safetensors", "metrics.json"):
        (run / name).write_bytes(name.encode())
    (run / "config.yaml").write_text("method: c-byol\noutput: elsewhere\nresume: false\n")
    return run


def test_files_are_copied_with_their_sums(ship, finished, tmp_path):
    ship(finished, tmp_path / "shipped" / "a")
    lines = (tmp_path / "shipped" / "a" / "SHA256SUMS").read_text().splitlines()
    assert len(lines) == 3
    for line in lines:
        digest, name = line.split("  ")
        content = (tmp_path / "shipped" / "a" / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == digest
        if name != "config.yaml":
            assert content == (finished / name).read_bytes()
    assert (tmp_path / "shipped" / "a" / "config.yaml").read_text() == "method: c-byol\n"


def test_unfinished_and_oversized_runs_are_refused(ship, finished, tmp_path):
    (finished / "metrics.json").unlink()
    with pytest.raises(SystemExit, match=r"has no metrics\.json"):
        ship(finished, tmp_path / "a")
    (finished / "metrics.json").touch()
    (finished / "backbone.safetensors").write_bytes(bytes(3 * 2**20 + 1))
    with pytest.raises(SystemExit, match="at most 3,145,728"):
        ship(finished, tmp_path / "a")
    assert not (tmp_path / "a").exists()
