"""Change valid files at random: bytes and, where a file is a tree of values, values.

Changed bytes test the parser; values of another type in a well-formed file test the code after it.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

import yaml

FEARED = (
    *(b"\x00" * 8, b"\xff" * 8, b"\x80\x00\x00\x00", b"../" * 4, b"/etc/passwd", b"%s%n"),
    *(b"[" * 3000, b"{" * 3000, b"&a [*a, *a]", b"!!python/object/apply:os.system [x]", b"1e999"),
    *(b"9" * 5000, b"2001-99-99", b"NaN", b"-1", b"\xed\xa0\x80", b"<!ENTITY", b"\r\n"),
)
FEARED_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**63, 10**400, 0.5, -0.0, 1e308, float("inf"), float("nan")),
    *("", "x", "1", "<script>", "../../x", "/etc/passwd", "\x00", "\ud800", "a" * 3000, "\n"),
    *([], [1], [[]], ["x", None], {}, {"x": 1}, {"": {}}, {"1": [0.5, "x"]}),
)


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every container of a tree with each of its keys."""
    if isinstance(tree, (dict, list)):
        for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
            yield tree, key
            yield from _places(tree[key])


def _other_values(tree: Any, rng: random.Random) -> Any:
    """Return a tree with one to three of its values replaced, removed or moved."""
    root = [copy.deepcopy(tree)]
    for _ in range(rng.randint(1, 3)):
        places = list(_places(root))
        holder, key = rng.choice(places)
        kind = rng.randrange(4)
        if kind <= 1:
            holder[key] = copy.deepcopy(rng.choice(FEARED_VALUES))
        elif kind == 2 and holder is not root:
            del holder[key]
        else:
            other, name = rng.choice(places)
            holder[key] = copy.deepcopy(other[name])
    return root[0]


def _changed_values(content: bytes, syntax: str, rng: random.Random) -> bytes:
    if syntax == "json":
        return json.dumps(_other_values(json.loads(content), rng)).encode()
    if syntax == "jsonl":
        lines = content.splitlines()
        place = rng.randrange(len(lines))
        lines[place] = _changed_values(lines[place], "json", rng)
        return b"\n".join(lines) + b"\n"
    text = yaml.safe_dump(_other_values(yaml.safe_load(content), rng), allow_unicode=True)
    return text.encode("utf-8", "surrogatepass")


def changed(files: list[bytes], rng: random.Random, syntax: str | None = None) -> bytes:
    """Return one of the files, changed.

    Args:
        files: Whole ones.
        rng: What decides.
        syntax: `json`, `jsonl` or `yaml`: half of the files get other values, not other bytes.
    """
    if syntax is not None and rng.random() < 0.5:
        return _changed_values(rng.choice(files), syntax, rng)
    return _changed_bytes(files, rng)


def _changed_bytes(files: list[bytes], rng: random.Random) -> bytes:
    """Return one of the files, changed in one to four places."""
    content = bytearray(rng.choice(files))
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(content) + 1)
        length = min(rng.choice([1, 4, 16, 200]), len(content) - place)
        part = content[place : place + length]
        kind = rng.randrange(7)
        if kind == 0 and length:
            content[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            content[place : place + length] = rng.randbytes(length)
        elif kind == 2:
            del content[place : place + length]
        elif kind == 3:
            content[place:place] = part * rng.choice([1, 2, 50])
        elif kind == 4:
            content[place:place] = rng.choice(FEARED)
        elif kind == 5:
            other = rng.choice(files)
            start = rng.randrange(len(other))
            content[place : place + length] = other[start : start + rng.choice([4, 64, 1000])]
        elif rng.random() < 0.3:
            del content[place:]
    return bytes(content)
