"""Markdown in which text from elsewhere stays text.

Source: CommonMark 0.31: a backslash before any ASCII punctuation takes away its meaning, and
entities stand for the characters of HTML.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

# Also what common extensions of Markdown give a meaning: tables, links without brackets, mentions,
# emoji, formulas.
_MARKUP = re.compile(r"[\\`*_{}\[\]#|~$!@:^=]|(?<=[wW]{3})\.")
_HTML = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})


def cleaned(text: str) -> str:
    """Return `text` on one line, without control, format and unpaired surrogate characters.

    File names may hold line breaks, characters that turn the direction of what follows, and bytes
    that are no text.
    """
    return "".join(
        "\N{REPLACEMENT CHARACTER}"
        if unicodedata.category(character).startswith("C")
        else character
        for character in " ".join(text.split())
    )


def escaped(text: str) -> str:
    r"""Return `text` so that Markdown shows it as it is, within a line: no markup, link or cell.

    Example:
        >>> print(escaped("a|b *c* <d>"))
        a\|b \*c\* &lt;d&gt;
    """
    return _MARKUP.sub(r"\\\g<0>", cleaned(text).translate(_HTML))


def code(text: str) -> str:
    """Return `text` of our own, without backticks and bars, as code."""
    assert not set("`|\n") & set(text)
    return f"`{text}`"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table whose cells are Markdown already."""
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines]
