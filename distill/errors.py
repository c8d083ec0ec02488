"""Errors for people.

A request that cannot be met is a `DistillError`, a `ValueError`: the command line prints its
message as one sentence and exits with status 2. A run that fails is one of the `RuntimeError`s
below, status 1. Anything else that escapes is a defect.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_MAX_MESSAGE = 4000


class DistillError(ValueError):
    """A request that cannot be met; the message says what came, what is allowed and the remedy.

    It is one line; of a very long one the middle is left out.
    """

    def __init__(self, message: object = "") -> None:
        text = " ".join(str(message).splitlines())
        if len(text) > _MAX_MESSAGE:
            text = f"{text[: _MAX_MESSAGE // 2]} [...] {text[-_MAX_MESSAGE // 2 :]}"
        super().__init__(text)


class UnknownNameError(DistillError):
    """A name that no registry or folder knows; `unlisted` names are suggested, but not listed."""

    def __init__(
        self,
        kind: str,
        name: str,
        known: Iterable[str],
        remedy: str = "",
        *,
        unlisted: Iterable[str] = (),
    ) -> None:
        choices = sorted(known)
        nearest = nearest_match(name, [*choices, *unlisted])
        hint = f"did you mean {nearest!r}? " if nearest else ""
        message = f"unknown {kind} {name!r}: {hint}known: {', '.join(choices)}"
        super().__init__(message + (f"; {remedy}" if remedy else ""))


class BadImageError(DistillError):
    """An image file that cannot be decoded."""


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite; training stopped before the step was applied."""


class LoaderDiedError(RuntimeError):
    """A process that loads images died; what was saved before is intact."""


def nearest_match(name: str, choices: Iterable[str]) -> str | None:
    """Return the choice that looks most like `name`, or None when none comes close."""
    by_lower = {choice.lower(): choice for choice in choices}
    found = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[found[0]] if found else None
