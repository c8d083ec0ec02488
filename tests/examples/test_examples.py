"""The examples run as their docstrings say, and a method from outside the package is a method."""

import re
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import yaml

from distill.cli.main import run
from distill.errors import DistillError
from distill.losses import METHODS, base, load_plugins

EXAMPLES = Path(__file__).parents[2] / "examples"
OWN_METHOD = EXAMPLES / "own_method.py"
STUDENT = ["--student", "timm:test_resnet", "--image-size", "32", "--num-workers", "0"]


@pytest.fixture
def own_registry(monkeypatch):
    """What is registered during a test is gone afterwards."""
    monkeypatch.setattr(METHODS, "_entries", dict(METHODS.items()))
    monkeypatch.setattr(base, "_loaded", set())


def test_a_loop_of_ones_own_teaches_the_student():
    lines = (EXAMPLES / "own_loop.py").read_text().splitlines()
    assert len(lines) <= 60
    done = subprocess.run(
        [sys.executable, EXAMPLES / "own_loop.py"], capture_output=True, text=True, check=True
    )
    first, *_, last = done.stdout.splitlines()
    untrained = float(first.split()[2].rstrip(","))
    assert float(last.split()[-1]) > untrained + 0.1


def test_a_method_from_a_file_trains_and_goes_on(own_registry, make_folder, tmp_path, monkeypatch):
    output = tmp_path / "run"
    flags = ["--plugin", str(OWN_METHOD), "--method", "cosine", "--margin", "0.1", "--epochs", "1"]
    data = ["--data", str(make_folder()), "--batch-size", "8", "--nn-every", "0"]
    given = ["--teacher", "pixels", *STUDENT, *data, "--output", str(output), *flags]
    assert run(given) == 0
    config = yaml.safe_load((output / "config.yaml").read_text())
    assert (config["method"], config["margin"]) == ("cosine", 0.1)
    assert config["plugin"] == [str(OWN_METHOD)]
    # Resumed by a process that has not seen the plugin.
    monkeypatch.setattr(METHODS, "_entries", {"compress": METHODS.get("compress")})
    monkeypatch.setattr(base, "_loaded", set())
    assert run(["--output", str(output), "--resume"]) == 0


def test_its_flags_are_its_own(own_registry, make_folder, tmp_path, capsys):
    given = ["--teacher", "pixels", *STUDENT, "--data", str(make_folder())]
    given += ["--output", str(tmp_path / "run"), "--plugin", str(OWN_METHOD)]
    for flags, message in (
        (["--method", "cosine", "--margin", "2"], "--margin is 2.0, it must be between 0 and 1"),
        (["--method", "cosine", "--head-dim", "2"], "--head-dim goes with --method"),
        (["--margin", "0.5"], "--margin goes with --method cosine, not with compress"),
    ):
        assert run([*given, *flags]) == 2
        assert message in capsys.readouterr().err


def test_a_method_of_an_installed_package_is_found(own_registry, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    point = EntryPoint("cosine", "own_method", base.ENTRY_POINTS)
    monkeypatch.setattr(base, "entry_points", lambda group: [point])
    load_plugins()
    assert "cosine" in METHODS
    sys.modules.pop("own_method")
    broken = EntryPoint("broken", "absent_module", base.ENTRY_POINTS)
    monkeypatch.setattr(base, "entry_points", lambda group: [broken])
    with pytest.raises(DistillError, match=r"installed method broken .* cannot be imported"):
        load_plugins()


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "is no Python file"), ("1 / 0", "ZeroDivisionError"), ("import absent_x", "absent_x")],
)
def test_a_plugin_that_cannot_be_had_is_one_sentence(own_registry, tmp_path, content, message):
    file = tmp_path / "plugin.py"
    if content is not None:
        file.write_text(content)
    with pytest.raises(DistillError, match=message):
        load_plugins([file])


def test_the_readme_names_the_method_of_the_example(own_registry):
    readme = (EXAMPLES.parent / "README.md").read_text()
    named = set(re.findall(r"--plugin examples/own_method\.py --method (\w+)", readme))
    before = set(dict(METHODS.items()))
    load_plugins([OWN_METHOD])
    assert named == set(dict(METHODS.items())) - before
