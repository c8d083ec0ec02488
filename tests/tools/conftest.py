"""Programs under tools/ import what they share from their own folder."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture(scope="module")
def tool() -> Callable[[str], ModuleType]:
    """Return a function that imports a program by name, as `python tools/NAME.py` finds it."""
    before = list(sys.path)
    sys.path.insert(0, str(TOOLS))
    yield importlib.import_module
    sys.path[:] = before
