"""JSON and YAML of others: what is none is a ValueError, and nothing is written out in full."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from distill.config import read_yaml
from distill.errors import DistillError
from distill.parsing import as_dataclass, checked, parse_json, read_yaml_file, shown

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)


def yaml_of(tmp_path: Path, content: str | bytes) -> Path:
    file = tmp_path / "recipe.yaml"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a": ' * 100_000, "{", "", "9" * 301, "-" + "9" * 5000]
)
def test_what_is_no_json(text):
    with pytest.raises(ValueError, match=r"."):
        parse_json(text)


@pytest.mark.parametrize(
    "content",
    [
        *("[" * 50_000, "a: 2001-99-99", "a: " + "9" * 5000, "a: [", "? [a]\n: b", b"\xff\xfe\xff"),
        *("a: !!python/object/apply:os.system [ls]", "a: *b", "x: " + "y" * (5 * 2**20)),
    ],
)
def test_what_is_no_recipe(tmp_path, content):
    file = yaml_of(tmp_path, content)
    with pytest.raises(ValueError, match=r"."):
        read_yaml_file(file)
    with pytest.raises(DistillError, match=r"^recipe .*yaml .*") as raised:
        read_yaml(file, kind="recipe")
    assert len(str(raised.value)) < 1000


@dataclass(frozen=True)
class Told:
    state: Literal["done", "failed"]
    numbers: Mapping[str, float] = field(default_factory=dict)
    curve: Sequence[Sequence[float]] = ()
    error: str | None = None


def test_a_key_stands_once_in_a_mapping_and_what_is_merged_may_lie_under_it(tmp_path):
    for content in ("a: 1\nb: 2\na: 3", "x: {a: 1, a: 1}", "x: [{<<: {}, <<: {}}]"):
        with pytest.raises(ValueError, match="stands there twice"):
            read_yaml_file(yaml_of(tmp_path, content))
    merged = "one: &one {a: 1, b: 2}\ntwo: {<<: *one, a: 3}\nthree: {<<: *one, c: 4}\n'1': 5\n1: 6"
    assert read_yaml_file(yaml_of(tmp_path, merged)) == {
        "one": {"a": 1, "b": 2},
        "two": {"a": 3, "b": 2},
        "three": {"a": 1, "b": 2, "c": 4},
        "1": 5,
        1: 6,
    }


def test_an_object_of_the_expected_values():
    content = parse_json('{"state": "done", "numbers": {"a": 1, "b": 0.5}, "curve": [[1, 0.5]]}')
    assert as_dataclass(Told, content) == Told("done", {"a": 1, "b": 0.5}, [[1, 0.5]])
    assert checked({"a": [None, "x"]}, dict[str, list[Any]]) == {"a": [None, "x"]}


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ([], "an object"),
        ("x", "an object"),
        ({}, "state"),
        ({"state": "open"}, "state"),
        ({"state": "done", "unheard": 1}, "unknown field unheard"),
        ({"state": "done", "numbers": {"a": 1, "b": "0.5"}}, "numbers.b: .*number"),
        ({"state": "done", "numbers": None}, "numbers"),
        ({"state": "done", "curve": [[1, 0.5], [2, "x"]]}, "curve.1.1: .*number"),
        ({"state": "done", "error": 3}, "error"),
        ({"state": "done", "error": "x", "y" * 5000: 1}, "unknown field yy"),
        ({"state": "done", "numbers": {"y" * 5000: "x"}}, "numbers.yy"),
    ],
)
def test_another_object_names_the_place(content, place):
    with pytest.raises(ValueError, match=place) as raised:
        as_dataclass(Told, content)
    assert len(str(raised.value)) < 500


def test_an_endless_file_is_not_read_to_its_end():
    with pytest.raises(ValueError, match="larger than 4 MiB"):
        read_yaml_file(Path("/dev/zero"))


def test_a_value_that_no_memory_holds_is_shown(tmp_path):
    content = read_yaml_file(yaml_of(tmp_path, BOMB))
    assert len(shown(content)) < 3000
    assert len(shown(content["a11"])) < 3000
    assert shown({"a": [1, 2.5, "x", None]}) == "{'a': [1, 2.5, 'x', None]}"


@pytest.mark.parametrize("option", ["epochs", "milestones", "data", "no_such_option"])
def test_such_a_value_of_an_option_is_refused(tmp_path, option):
    from distill.training.configuration import load_recipe

    content = "\n".join(BOMB.splitlines()).replace("a11:", f"{option}:")
    content = content.replace("a0:", "seed:", 1) if option == "no_such_option" else content
    with pytest.raises(DistillError) as raised:
        load_recipe(str(yaml_of(tmp_path, content)))
    assert len(str(raised.value)) < 5000


def test_a_message_is_one_line_of_some_length():
    assert str(DistillError("one\ntwo")) == "one two"
    text = str(DistillError("a" * 10_000 + "z"))
    assert len(text) < 4100
    assert text[0] == "a"
    assert text[-1] == "z"
