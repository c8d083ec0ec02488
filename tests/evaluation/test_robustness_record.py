"""robustness.json: entries by settings, the newest last, in the standard order."""

import json

import pytest

from distill.errors import DistillError
from distill.evaluation.corruption import RobustnessRecord, read_robustness


def record(folder, network="student", **settings):
    return RobustnessRecord(folder, network, {"seed": 0, **settings})


def test_what_is_set_is_found_again_and_nothing_else(tmp_path):
    folder = tmp_path / "made"
    first = record(folder)
    assert first.clean_error is None
    first.set_clean(0.25)
    first.set("fog", 5, 0.75)
    first.set("snow", 3, 0.5)
    first.set("snow", 1, 0.375)
    again = record(folder)
    assert again.clean_error == 0.25
    assert again.errors == {"snow": {1: 0.375, 3: 0.5}, "fog": {5: 0.75}}
    assert [*again.errors, *again.errors["snow"]] == ["snow", "fog", 1, 3]  # as published
    assert again.has("snow", 3)
    assert not again.has("snow", 5)
    assert not again.has("frost", 3)


def test_other_settings_and_other_networks_are_other_entries(tmp_path):
    record(tmp_path).set_clean(0.1)
    for other in (record(tmp_path, seed=1), record(tmp_path, "teacher")):  # the same weights
        assert other.clean_error is None
        other.set_clean(0.2)
    assert record(tmp_path).clean_error == 0.1
    assert len(read_robustness(tmp_path)) == 3


def test_the_newest_entry_is_the_last(tmp_path):
    first, second = record(tmp_path), record(tmp_path, seed=1)
    first.set_clean(0.1)
    second.set_clean(0.2)  # knows nothing of the first, which stays
    first.set("fog", 1, 0.3)
    assert [entry["clean_error"] for entry in read_robustness(tmp_path).values()] == [0.2, 0.1]


def test_without_a_folder_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kept = record(None)
    kept.set("fog", 1, 0.5)
    assert kept.has("fog", 1)
    assert not list(tmp_path.iterdir())
    assert record(None).errors == {}


def test_a_damaged_file_is_named(tmp_path):
    entry = {"network": "student", "settings": {}, "clean_error": None, "errors": {}}
    damaged = [
        {"a": {**entry, "errors": by}} for by in ([], {"fog": {"1": "x"}}, {"fog": {"x": 1}})
    ]
    for content in ("{", json.dumps([]), *map(json.dumps, [{"a": 1}, {"a": {}}, *damaged])):
        (tmp_path / "robustness.json").write_text(content)
        with pytest.raises(DistillError, match=r"robustness\.json is damaged"):
            record(tmp_path)
