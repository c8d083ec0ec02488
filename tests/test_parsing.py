"""JSON and YAML of others: what is none is a ValueError, and nothing is written out in full."""

from __future__ import annotations

from pathlib import Path

import pytest

from distill.errors import DistillError
from distill.options import read_yaml
from distill.parsing import parse_json, read_yaml_file, shown

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)


def yaml_of(tmp_path: Path, content: str | bytes) -> Path:
    file = tmp_path / "recipe.yaml"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' * 100_000, "{", "", "9" * 5000])
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
    from distill.recipes import load_recipe

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
