"""Names of other datasets: the same names, numbers, files; what is not understood."""

import json

import numpy as np
import pytest

from distill.data.shifted import is_imagenet, match_classes, read_class_map
from distill.errors import DistillError

# As training folders come: in code-point order, which here is not the order of the numbers.
IMAGENET = ("n01440764", *(f"n{10000000 + i}" for i in range(1, 999)), "n15075141")


def labels(names, classes, class_map=None):
    accepted = match_classes(names, classes, class_map, what="the test")
    assert accepted.shape == (len(names), len(classes))
    return [np.flatnonzero(row).tolist() for row in accepted]


def test_names_are_training_classes():
    assert labels(["n3", "n1"], ["n1", "n2", "n3"]) == [[2], [0]]


def test_numbers_follow_the_order_of_the_wordnet_ids():
    # Code-point order would make "10" the third.
    assert labels(["0", "1", "10", "2", "999"], IMAGENET) == [[0], [1], [10], [2], [999]]
    shuffled = IMAGENET[500:] + IMAGENET[:500]  # labels need not be in the order of the ids
    assert labels(["0", "500"], shuffled) == [[500], [0]]


def test_numbers_that_are_class_names_are_these():
    assert labels(["10", "2"], ["10", "2", "7"]) == [[0], [1]]


def test_numbers_mean_nothing_without_all_classes():
    with pytest.raises(DistillError, match=r"'0' and 1 more; say with --class-map FILE"):
        labels(["0", "1"], IMAGENET[:999])
    with pytest.raises(DistillError, match="'1000'"):
        labels(["1000"], IMAGENET)


def test_a_map_may_name_several_classes_and_leave_names_out():
    class_map = {"chair": ["n1", "n3"], "spoon": ["n9"], "gone": ["n2"]}
    assert labels(["chair", "spoon", "hat"], ["n1", "n2", "n3"], class_map) == [[0, 2], [], []]


def test_unknown_names_are_named():
    with pytest.raises(DistillError, match=r"'tenchh', did you mean 'tench'\?; say with"):
        labels(["tenchh"], ["tench", "church"])
    with pytest.raises(DistillError, match="maps no class of the test to a training class"):
        labels(["hat"], ["n1"], {"spoon": ["n1"]})


def test_json_and_csv_say_the_same(tmp_path):
    expected = {"chair": ["n1", "n3"], "spoon": ["n2"]}
    (tmp_path / "a.json").write_text(json.dumps({"chair": ["n1", "n3"], "spoon": "n2"}))
    (tmp_path / "a.csv").write_text("\ufeffname,class\nchair,n1\nspoon, n2\n\nchair,n3\n")
    assert read_class_map(tmp_path / "a.json") == expected
    assert read_class_map(tmp_path / "a.csv") == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "{", "not understood"),
        ("a.json", "[]", "no object at its top"),
        ("a.json", '{"chair": 3}', "'chair' is mapped to 3"),
        ("a.json", '{"chair": ["n1", 3]}', "'chair' is mapped to"),
        ("a.csv", "chair,n1\n", "its first line is not name,class"),
        ("a.csv", "", "its first line is not name,class"),
        ("a.csv", "name,class\nchair,n1,n2\n", "line 2 has 3 columns"),
        ("a.txt", "", r"must be a \.json or a \.csv file"),
    ],
)
def test_other_files_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(DistillError, match=message):
        read_class_map(tmp_path / name)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(DistillError, match=r"cannot read the class map .*gone\.csv: No such file"):
        read_class_map(tmp_path / "gone.csv")


def test_imagenet_is_known_by_its_ids():
    assert is_imagenet(IMAGENET)
    assert is_imagenet(IMAGENET[::-1])
    assert not is_imagenet(tuple(f"class{i}" for i in range(1000)))
    assert not is_imagenet((*IMAGENET[:-1], "n16000000"))
    assert not is_imagenet(("n01000000", *IMAGENET[1:]))
