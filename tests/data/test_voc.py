"""VOC folders and annotation files: what is read, and what is refused in one sentence."""

import shutil

import numpy as np
import pytest

from distill.data.voc import open_voc, read_annotation
from distill.errors import BadImageError, DistillError, UnknownNameError


def annotation(*objects):
    """One (name, difficult) an object."""
    box = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>3</xmax><ymax>4</ymax></bndbox>"
    inside = "".join(
        f"<object><name>{name}</name><difficult>{difficult}</difficult>{box}</object>"
        for name, difficult in objects
    )
    return f"<annotation>{inside}</annotation>"


@pytest.fixture
def voc(make_voc):
    return make_voc(num_train=4, num_test=3) / "VOC2007"


def test_every_name_of_the_folder_leads_to_it(voc):
    for folder in (voc, voc.parent, voc.parent.parent, str(voc)):
        data = open_voc(folder)
        assert (data.name, len(data.train), len(data.val)) == ("VOC2007", 4, 3)
    assert data.train.root == str(voc)
    assert data.train.name == "VOC2007/trainval"
    assert data.train.object_classes == data.val.object_classes == ("blue", "green", "red")


def test_images_come_in_the_order_of_the_list_with_their_objects(voc):
    (voc / "ImageSets/Main/few.txt").write_text("trainval002  1\n\n trainval000 -1\n")
    data = open_voc(voc, train_split="few", test_split="few")
    paths = [data.train.relative_path(i) for i in range(2)]
    assert paths == ["JPEGImages/trainval002.png", "JPEGImages/trainval000.png"]
    assert data.train.load(0).size == (96, 64)
    classes = [data.train.object_classes[i] for i in data.train.objects[0].classes]
    assert classes[0] == "red"
    x, y = data.train.objects[0].corners[0, :2].astype(int)
    assert data.train.load(0).getpixel((x - 1, y - 1)) == (240, 30, 30)


def test_an_image_shows_a_class_or_not_or_only_difficultly(voc):
    kinds = [
        [("cat", 0), ("cat", 1), ("dog", 1)],
        [("dog", 1), ("dog", 1)],
        [],
        [("emu", 1), ("dog", 1), ("dog", 0)],
    ]
    for i, objects in enumerate(kinds):
        (voc / f"Annotations/trainval{i:03d}.xml").write_text(annotation(*objects))
    data = open_voc(voc, test_split="trainval")
    assert data.train.object_classes == ("cat", "dog", "emu")
    expected = [[1, 0, -1], [-1, 0, -1], [-1, -1, -1], [-1, 1, 0]]
    np.testing.assert_array_equal(data.train.presence(), expected)
    assert data.train.objects[0].difficult.tolist() == [False, True, True]
    np.testing.assert_array_equal(data.train.objects[0].corners, [[1, 2, 3, 4]] * 3)
    assert data.train.labels is None


def test_a_devkit_of_several_years(voc):
    for year in ("VOC2005", "VOC2012"):
        shutil.copytree(voc, voc.parent / year)
    assert open_voc(voc.parent).name == "VOC2007"
    shutil.rmtree(voc.parent / "VOC2005")
    shutil.rmtree(voc)
    assert open_voc(voc.parent).name == "VOC2012"
    shutil.copytree(voc.parent / "VOC2012", voc.parent / "VOC2010")
    with pytest.raises(DistillError, match="holds VOC2010, VOC2012; name one of them"):
        open_voc(voc.parent)


def test_folders_that_are_not_voc(tmp_path, voc):
    with pytest.raises(DistillError, match=r"no folder at .*absent"):
        open_voc(tmp_path / "absent")
    shutil.rmtree(voc / "Annotations")
    with pytest.raises(DistillError, match="is not in VOC layout: it lacks Annotations; name"):
        open_voc(voc)
    with pytest.raises(DistillError, match="lacks JPEGImages, Annotations, ImageSets/Main"):
        open_voc(tmp_path)


def test_a_split_that_is_not_there(voc):
    (voc / "ImageSets/Main/cat_trainval.txt").write_text("trainval000 1\n")
    with pytest.raises(UnknownNameError, match=r"did you mean 'trainval'.* known: test, trainval;"):
        open_voc(voc, train_split="trainvel")
    of_one_class = open_voc(voc, train_split="cat_trainval", test_split="cat_trainval")
    assert len(of_one_class.train) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "trainval.txt lists no image"),
        (b" \n\n", "trainval.txt lists no image"),
        (b"trainval001\ntrainval000\ntrainval001\n", "lists trainval001 more than once"),
        (b"../../secret\n", "it must list names without folders"),
        (b"a" * 300, "it must list names without folders"),
        (b"\xff\xfe\x00", "trainval.txt cannot be read as a list"),
        (b"trainval000\nghost\n", r"JPEGImages/ghost.jpg is missing, which .*trainval.txt lists"),
    ],
)
def test_lists_that_are_refused(voc, content, message):
    (voc / "ImageSets/Main/trainval.txt").write_bytes(content)
    with pytest.raises(DistillError, match=message):
        open_voc(voc)


def test_missing_and_truncated_files(voc):
    path = voc / "Annotations/test001.xml"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DistillError, match=r"Annotations/test001.xml is no whole XML file"):
        open_voc(voc)
    path.unlink()
    with pytest.raises(DistillError, match=r"Annotations/test001.xml cannot be read"):
        open_voc(voc)
    path.write_text(annotation())
    (voc / "JPEGImages/test001.png").unlink()
    (voc / "JPEGImages/test001.txt").touch()
    with pytest.raises(DistillError, match=r"JPEGImages/test001.jpg is missing"):
        open_voc(voc)
    (voc / "JPEGImages/test001.JPG").write_bytes(b"no picture")
    with pytest.raises(BadImageError, match=r"test001.JPG"):
        open_voc(voc).val.load(1)


def test_classes_that_cannot_be_learned(voc):
    (voc / "Annotations/test002.xml").write_text(annotation(("gnu", 0)))
    with pytest.raises(DistillError, match=r"test002.xml of test has a gnu, a class that no"):
        open_voc(voc)
    for i in range(4):
        (voc / f"Annotations/trainval{i:03d}.xml").write_text(annotation())
    with pytest.raises(DistillError, match="has no objects in the 4 images of trainval"):
        open_voc(voc)


BOX = "<bndbox><xmin>10</xmin><ymin>20</ymin><xmax>30.5</xmax><ymax>40</ymax></bndbox>"
CAT = f"<object><name> cat </name>{BOX}</object>"


@pytest.fixture
def write(tmp_path):
    def write(text, encoding="utf-8"):
        path = tmp_path / "000005.xml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
        return path

    return write


def test_an_annotation_as_the_challenge_writes_it(write):
    found = read_annotation(
        write(
            """<?xml version="1.0"?>
            <annotation><folder>VOC2007</folder><size><width>500</width></size>
              <object><name>person</name><pose>Left</pose><difficult>1</difficult>
                <part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax>
                  <ymax>2</ymax></bndbox></part>
                <bndbox><xmax>174</xmax><xmin>156</xmin><ymax>351</ymax><ymin>89</ymin></bndbox>
              </object>
              <object><name>cat</name><bndbox><xmin>10</xmin><ymin>20</ymin><xmax>30.5</xmax>
                <ymax>20</ymax></bndbox></object>
              <object><name>cat</name><difficult>0</difficult><bndbox><xmin>1</xmin><ymin>1</ymin>
                <xmax>1</xmax><ymax>1</ymax></bndbox></object>
            </annotation>"""
        )
    )
    assert found.names == ("person", "cat", "cat")
    expected = [[156, 89, 174, 351], [10, 20, 30.5, 20], [1, 1, 1, 1]]
    np.testing.assert_array_equal(found.corners, expected)
    assert found.difficult.tolist() == [True, False, False]


def test_an_image_without_objects(write):
    found = read_annotation(write("<annotation><folder/></annotation>"))
    assert (found.names, found.corners.shape, found.difficult.shape) == ((), (0, 4), (0,))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"<annotation>{CAT}", "is no whole XML file .* it may be truncated"),
        ("", "is no whole XML file"),
        (b"\xff\xd8\xff\xe0 JFIF", "is no whole XML file"),
        ('<?xml version="1.0" encoding="nothing"?><annotation/>', "is no whole XML file"),
        ("<html/>", "its root is <html>, it must be <annotation>"),
        ("<annotation><object><name/></object></annotation>", "an <object> has no <name>"),
        ("<annotation><object><name>cat</name></object></annotation>", "the cat has no <bndbox>"),
        (f"<annotation>{CAT.replace('30.5', '9.5')}</annotation>", "9.5, 40, which has no area"),
        (f"<annotation>{CAT.replace('40', '19')}</annotation>", "30.5, 19, which has no area"),
        (f"<annotation>{CAT.replace('30.5', 'inf')}</annotation>", "inf, 40, which has no area"),
        (f"<annotation>{CAT.replace('10', 'nan')}</annotation>", "nan, 20, .* has no area"),
        (f"<annotation>{CAT.replace('10', 'x')}</annotation>", "x, 20, 30.5, 40, not four numbers"),
        (f"<annotation>{CAT.replace('<xmin>10</xmin>', '')}</annotation>", "not four numbers"),
        (
            f"<annotation><object><name>cat</name><difficult>yes</difficult>{BOX}</object>"
            "</annotation>",
            "<difficult> of the cat is yes, not 0 or 1",
        ),
    ],
)
def test_files_that_are_refused(write, text, message):
    with pytest.raises(DistillError, match=message) as error:
        read_annotation(write(text))
    assert "000005.xml" in str(error.value)
    assert "\n" not in str(error.value)


BOMB = (
    '<?xml version="1.0"?><!DOCTYPE annotation [<!ENTITY a "cat"><!ENTITY b "&a;&a;&a;">]>'
    f"<annotation>{CAT.replace('cat', '&b;')}</annotation>"
)
OUTSIDE = (
    '<!DocType annotation [<!ENTITY a SYSTEM "file:///etc/passwd">]>'
    f"<annotation>{CAT.replace('cat', '&a;')}</annotation>"
)


@pytest.mark.parametrize("text", [BOMB, OUTSIDE])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_entities_are_not_expanded(write, text, encoding):
    with pytest.raises(DistillError, match="has a document type or zero bytes"):
        read_annotation(write(text, encoding))


def test_missing_and_endless_files(tmp_path, write):
    with pytest.raises(DistillError, match=r"absent.xml cannot be read .* needs an annotation"):
        read_annotation(tmp_path / "absent.xml")
    with pytest.raises(DistillError, match="is longer than 4 MiB"):
        read_annotation(write("<annotation>" + " " * (4 << 20) + "</annotation>"))
    deep = "<a>" * 200_000 + "</a>" * 200_000  # as deep as it may be long
    assert read_annotation(write(f"<annotation>{deep}</annotation>")).names == ()
