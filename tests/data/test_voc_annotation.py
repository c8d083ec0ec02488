"""Annotation files: what is read, and what is refused in one sentence that names the file."""

import numpy as np
import pytest

from distill.data.voc import read_annotation
from distill.errors import DistillError

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
