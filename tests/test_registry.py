import pytest

from distill.errors import DistillError, UnknownNameError, nearest_match
from distill.registry import Registry


def test_get_returns_what_was_added_in_order():
    registry = Registry[int]("number")
    registry.add("two", 2)
    registry.add("one", 1)
    assert registry.get("one") == 1
    assert list(registry) == ["two", "one"]
    assert "three" not in registry


def test_unknown_name_says_what_came_what_is_known_and_the_nearest():
    registry = Registry[int]("teacher", remedy="or a directory")
    registry.add("r50-mocov2", 1)
    registry.add("r50-swav", 2)
    with pytest.raises(UnknownNameError) as caught:
        registry.get("r50-mocv2")
    assert str(caught.value) == (
        "unknown teacher 'r50-mocv2': did you mean 'r50-mocov2'? known: r50-mocov2, r50-swav; "
        "or a directory"
    )
    assert isinstance(caught.value, DistillError)
    assert isinstance(caught.value, ValueError)


def test_a_name_is_taken_once():
    registry = Registry[int]("number")
    registry.add("one", 1)
    with pytest.raises(AssertionError, match="twice"):
        registry.add("one", 1)


def test_nearest_match_ignores_case_and_gives_up_on_strangers():
    assert nearest_match("ALEXNTE", ["alexnet", "resnet18"]) == "alexnet"
    assert nearest_match("zzz", ["alexnet", "resnet18"]) is None
