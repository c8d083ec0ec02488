"""Where things lie that may be removed at any time: downloads, embeddings, measured plans.

$DISTILL_CACHE, else $XDG_CACHE_HOME/distill, else ~/.cache/distill.
"""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return the folder; it need not exist yet."""
    if os.environ.get("DISTILL_CACHE"):
        return Path(os.environ["DISTILL_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "distill"
