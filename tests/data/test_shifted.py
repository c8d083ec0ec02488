"""Images from elsewhere: what names of classes stand for, class folders, groups of frames."""

import json

import numpy as np
import pytest

from distill.data.shifted import (
    is_imagenet,
    match_classes,
    open_shifted,
    read_class_map,
    read_frame_groups,
)
from distill.errors import DistillError

# As training folders come: in code-point order, which here is not the order of the numbers.
IMAGENET = ("n01440764", *(f"n{10000000 + i}" for i in range(1, 999)), "n15075141")
CLASSES = ("cat", "dog", "fox")
LINES = ["b.jpg,a.jpg,cat", "b.jpg,b.jpg,cat", "b.jpg,c.jpg,cat;fox", "c.jpg,c.jpg,dog"]


def right(accepted):
    return [np.flatnonzero(row).tolist() for row in accepted]


def labels(names, classes, class_map=None):
    accepted = match_classes(names, classes, class_map, what="the test")
    assert accepted.shape == (len(names), len(classes))
    return right(accepted)


def test_names_are_training_classes():
    assert labels(["n3", "n1"], ["n1", "n2", "n3"]) == [[2], [0]]
    assert labels(["10", "2"], ["10", "2", "7"]) == [[0], [1]]


def test_numbers_follow_the_order_of_the_wordnet_ids():
    # Code-point order would make "10" the third.
    assert labels(["0", "1", "10", "2", "999"], IMAGENET) == [[0], [1], [10], [2], [999]]
    shuffled = IMAGENET[500:] + IMAGENET[:500]  # labels need not be in the order of the ids
    assert labels(["0", "500"], shuffled) == [[500], [0]]
    with pytest.raises(DistillError, match=r"'0' and 1 more; state with --class-map FILE"):
        labels(["0", "1"], IMAGENET[:999])
    with pytest.raises(DistillError, match="'1000'"):
        labels(["1000"], IMAGENET)


def test_imagenet_is_known_by_its_ids():
    assert is_imagenet(IMAGENET[::-1])
    assert not is_imagenet(tuple(f"class{i}" for i in range(1000)))
    assert not is_imagenet((*IMAGENET[:-1], "n16000000"))


def test_a_map_may_name_several_classes_and_leave_names_out():
    class_map = {"chair": ["n1", "n3"], "spoon": ["n9"], "gone": ["n2"]}
    assert labels(["chair", "spoon", "hat"], ["n1", "n2", "n3"], class_map) == [[0, 2], [], []]
    with pytest.raises(DistillError, match="maps no class of the test to a training class"):
        labels(["hat"], ["n1"], class_map)


def test_unknown_names_are_named():
    with pytest.raises(DistillError, match=r"'tenchh', did you mean 'tench'\?; state with"):
        labels(["tenchh"], ["tench", "church"])


def test_a_class_map_in_json_and_csv(tmp_path):
    expected = {"chair": ["n1", "n3"], "spoon": ["n2"]}
    (tmp_path / "a.json").write_text(json.dumps({"chair": ["n1", "n3"], "spoon": "n2"}))
    (tmp_path / "a.csv").write_text("\ufeffname,class\nchair,n1\nspoon, n2\n\nchair,n3\n")
    assert read_class_map(tmp_path / "a.json") == read_class_map(tmp_path / "a.csv") == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "{", "not understood"),
        ("a.json", "[]", "not understood .*dictionary"),
        ("a.json", '{"chair": ["n1", 3]}', "not understood .chair"),
        ("a.csv", "chair,n1\n", "it has no column 'name'"),
        ("a.csv", "", "it has no column 'name'"),
        ("a.csv", "name,class\nchair,\n", "line 2 lacks its class"),
        ("a.csv", "name,class\n\nchair,n1,n2\n", "line 3 has too many columns"),
        ("a.txt", "", r"must be a \.json or a \.csv file"),
        ("gone.csv", None, r"cannot read the class map .*gone\.csv: No such file"),
    ],
)
def test_class_maps_that_are_refused(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(DistillError, match=message):
        read_class_map(tmp_path / name)


def test_class_folders_of_some_training_classes(make_folder):
    folder = make_folder(num_val=4) / "val"
    classes = ("class0", "class1", "class2", "class3")
    found = open_shifted(folder, classes, None)
    assert (found.name, found.num_left_out) == ("val", 0)
    assert found.index.tolist() == list(range(12))
    assert found.present.tolist() == [0, 1, 2]
    mapped = open_shifted(folder, classes, {"class0": ["class2"], "class2": ["class2", "class1"]})
    assert mapped.index.tolist() == [0, 1, 2, 3, 8, 9, 10, 11]
    assert right(mapped.accepted) == [[2], [], [1, 2]]
    assert (mapped.present.tolist(), mapped.num_left_out) == ([1, 2], 1)


def test_class_folders_that_are_refused(make_folder, tmp_path):
    root = make_folder(num_train=1, num_val=1)
    with pytest.raises(DistillError, match=r"no such folder: .*gone; --shifted takes"):
        open_shifted(tmp_path / "gone", CLASSES, None)
    with pytest.raises(DistillError, match="holds no class folders"):
        open_shifted(root / "val" / "class0", CLASSES, None)
    with pytest.raises(DistillError, match="classes that the training images do not have: 'train'"):
        open_shifted(root, CLASSES, None)


@pytest.fixture
def write(tmp_path):
    def to_file(*lines: str, header: str = "anchor,frame,label"):
        file = tmp_path / "video.csv"
        file.write_text("\n".join([header, *lines]) + "\n")
        return file

    return to_file


def test_frames_in_the_order_of_time(write, tmp_path):
    found = read_frame_groups(write(*LINES), CLASSES, None)
    assert found.name == "video"
    paths = [found.images.path(i) for i in range(len(found.images))]
    assert paths == [str(tmp_path / name) for name in ("a.jpg", "b.jpg", "c.jpg")]
    assert found.frame.tolist() == [0, 1, 2, 2]
    assert found.anchor.tolist() == [0, 0, 0, 1]
    assert found.offset.tolist() == [-1, 0, 1, 0]
    assert right(found.accepted) == [[0], [0], [0, 2], [1]]
    mapped = read_frame_groups(write(*LINES), CLASSES, {"cat": ["fox"], "fox": ["dog"]})
    assert right(mapped.accepted) == [[2], [2], [1, 2], []]


def test_rows_of_anchors_may_alternate(write):
    found = read_frame_groups(write(*(LINES[i] for i in (0, 3, 1, 2))), CLASSES, None)
    assert found.anchor.tolist() == [0, 1, 0, 0]
    assert found.offset.tolist() == [-1, 0, 0, 1]


def test_offsets_by_column(write):
    lines = [f"{line},{offset}" for line, offset in zip(LINES, (-7, 0, 30, 0), strict=True)]
    found = read_frame_groups(write(*lines, header="anchor,frame,label,offset"), CLASSES, None)
    assert found.offset.tolist() == [-7, 0, 30, 0]


@pytest.mark.parametrize(
    ("lines", "header", "message"),
    [
        (LINES, "anchor,frame,class", "has no column 'label'"),
        ([], "anchor,frame,label", "it has no rows"),
        (["a.jpg,,cat"], "anchor,frame,label", "line 2 lacks its frame"),
        (["a.jpg,a.jpg"], "anchor,frame,label", "line 2 lacks its label"),
        (["a.jpg,a.jpg,cow"], "anchor,frame,label", "'cow'"),
        (["a.jpg,b.jpg,cat"], "anchor,frame,label", "anchor a.jpg in .* is 0 times"),
        (["a.jpg,a.jpg,cat", "a.jpg,a.jpg,cat,0"], "anchor,frame,label,offset", "is not a list"),
        (["a.jpg,a.jpg,cat,0", "a.jpg,b.jpg,cat,0"], "anchor,frame,label,offset", "is 2 times"),
        (["a.jpg,a.jpg,cat,1"], "anchor,frame,label,offset", "anchor a.jpg in .* is 0 times"),
    ],
)
def test_frames_that_are_refused(write, lines, header, message):
    with pytest.raises(DistillError, match=message):
        read_frame_groups(write(*lines, header=header), CLASSES, None)


def test_files_of_frames_that_cannot_be_read(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(DistillError, match=r"is not a list of frames .*utf-8"):
        read_frame_groups(tmp_path / "a.csv", CLASSES, None)
    with pytest.raises(DistillError, match=r"cannot read the frames .*: No such file"):
        read_frame_groups(tmp_path / "gone.csv", CLASSES, None)
