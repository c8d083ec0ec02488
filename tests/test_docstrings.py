"""The examples in the documentation of public names run, on a CPU and at once."""

from __future__ import annotations

import doctest
import importlib
import inspect
import logging
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import distill
import students
import teachers

PACKAGES = (distill, students, teachers)
NEEDS_A_GPU = "distill.kernels.fused"


def module_names() -> Iterator[str]:
    for package in PACKAGES:
        yield package.__name__
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            text = Path(module.module_finder.path, *module.name.split(".")[-1:])
            file = text / "__init__.py" if module.ispkg else text.with_suffix(".py")
            if ">>> " in file.read_text(encoding="utf-8"):
                yield module.name


def examples(module: ModuleType) -> list[doctest.DocTest]:
    found = doctest.DocTestFinder(exclude_empty=True).find(module, extraglobs={"distill": distill})
    return [test for test in found if test.examples]


@pytest.fixture(scope="session")
def folder_with_a_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder where runs/first is a finished run, as the examples suppose."""
    folder = tmp_path_factory.mktemp("examples")
    distill.train(
        teacher="pixels",
        student="timm:test_resnet",
        data="digits",
        epochs=1,
        batch_size=256,
        nn_every=0,
        num_workers=0,
        measure="none",
        output=folder / "runs" / "first",
    )
    return folder


@pytest.mark.parametrize("name", module_names())
def test_examples_run(name: str, folder_with_a_run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder_with_a_run)
    runner = doctest.DocTestRunner(
        optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE, verbose=False
    )
    said: list[str] = []
    monkeypatch.setattr(logging.getLogger("distill"), "disabled", True)
    monkeypatch.setattr(logging.getLogger("distill"), "handlers", [])
    for test in examples(importlib.import_module(name)):
        runner.run(test, out=said.append)
    assert runner.failures == 0, "".join(said)


def test_every_public_call_has_an_example():
    module = importlib.import_module("distill")
    documented = {test.name.removeprefix("distill.") for test in examples(module)}
    calls = {name for name in distill.__all__ if inspect.isfunction(vars(module).get(name))}
    assert len(calls) >= 10
    assert calls <= documented
