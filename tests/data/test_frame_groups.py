"""Groups of frames: offsets by order or by column, labels, what is not understood."""

import numpy as np
import pytest

from distill.data.shifted import read_frame_groups
from distill.errors import DistillError

CLASSES = ("cat", "dog", "fox")
LINES = ["b.jpg,a.jpg,cat", "b.jpg,b.jpg,cat", "b.jpg,c.jpg,cat;fox", "c.jpg,c.jpg,dog"]


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
    assert [found.images.path(i) for i in range(len(found.images))] == [
        str(tmp_path / name) for name in ("a.jpg", "b.jpg", "c.jpg")
    ]
    assert found.frame.tolist() == [0, 1, 2, 2]
    assert found.anchor.tolist() == [0, 0, 0, 1]
    assert found.offset.tolist() == [-1, 0, 1, 0]
    assert [np.flatnonzero(row).tolist() for row in found.accepted] == [[0], [0], [0, 2], [1]]


def test_rows_of_anchors_may_alternate(write):
    found = read_frame_groups(write(*(LINES[i] for i in (0, 3, 1, 2))), CLASSES, None)
    assert found.anchor.tolist() == [0, 1, 0, 0]
    assert found.offset.tolist() == [-1, 0, 0, 1]


def test_offsets_by_column(write):
    lines = [f"{line},{offset}" for line, offset in zip(LINES, (-7, 0, 30, 0), strict=True)]
    found = read_frame_groups(write(*lines, header="anchor,frame,label,offset"), CLASSES, None)
    assert found.offset.tolist() == [-7, 0, 30, 0]


def test_labels_by_a_map(write):
    class_map = {"cat": ["fox"], "fox": ["dog"]}
    found = read_frame_groups(write(*LINES), CLASSES, class_map)
    assert [np.flatnonzero(row).tolist() for row in found.accepted] == [[2], [2], [1, 2], []]


@pytest.mark.parametrize(
    ("lines", "header", "message"),
    [
        (LINES, "anchor,frame,class", "has no column 'label'"),
        ([], "anchor,frame,label", "lists no frames"),
        (["a.jpg,,cat"], "anchor,frame,label", "line 2 of .* lacks its anchor, frame or label"),
        (["a.jpg,a.jpg"], "anchor,frame,label", "line 2 of .* lacks its anchor, frame or label"),
        (["a.jpg,a.jpg,cow"], "anchor,frame,label", "'cow'"),
        (["a.jpg,b.jpg,cat"], "anchor,frame,label", "anchor a.jpg in .* is 0 times"),
        (["a.jpg,a.jpg,cat", "a.jpg,a.jpg,cat,0"], "anchor,frame,label,offset", "whole number"),
        (["a.jpg,a.jpg,cat,0", "a.jpg,b.jpg,cat,0"], "anchor,frame,label,offset", "is 2 times"),
        (["a.jpg,a.jpg,cat,1"], "anchor,frame,label,offset", "anchor a.jpg in .* is 0 times"),
    ],
)
def test_other_contents_are_refused(write, lines, header, message):
    with pytest.raises(DistillError, match=message):
        read_frame_groups(write(*lines, header=header), CLASSES, None)


def test_what_is_no_text(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(DistillError, match="is not a CSV file"):
        read_frame_groups(tmp_path / "a.csv", CLASSES, None)
    with pytest.raises(DistillError, match=r"cannot read the frames .*: No such file"):
        read_frame_groups(tmp_path / "gone.csv", CLASSES, None)
