import json
from pathlib import Path

import pytest

from distill.errors import DistillError
from distill.exports.record import (
    CARD,
    RECORD,
    Artifact,
    Record,
    read_record,
    require_free,
    sha256,
)


def artifact(file: Path) -> Artifact:
    return Artifact(
        name=file.name,
        format="onnx",
        sha256=sha256(file),
        num_bytes=file.stat().st_size,
        l2_normalize=True,
        absolute_difference=1e-7,
        relative_difference=1e-6,
        milliseconds={"1": (2.0, 1.0)},
        versions={"torch": "2"},
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An export folder with a file, a card and a record."""
    path = tmp_path / "export"
    path.mkdir()
    (path / "a.onnx").write_text("a")
    (path / CARD).write_text("card")
    Record("w", (artifact(path / "a.onnx"),), card=sha256(path / CARD)).write(path)
    return path


def test_the_sha256_is_that_of_the_content(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256(tmp_path / "a") == expected


def test_a_record_is_read_as_it_was_written(folder: Path):
    record = read_record(folder)
    assert record is not None
    assert record.weights == "w"
    found = record.artifact("a.onnx")
    assert found is not None
    assert (found.format, found.l2_normalize, found.relative_difference) == ("onnx", True, 1e-6)
    assert record.artifact("b.onnx") is None
    assert read_record(folder / "absent") is None


def test_the_record_of_an_earlier_version_is_read(tmp_path: Path):
    (tmp_path / RECORD).write_text("""{
  "weights": "5d7f", "artifacts": [{
    "name": "student-plain.safetensors", "format": "safetensors-plain", "sha256": "7a81",
    "num_bytes": 2048, "l2_normalize": false, "absolute_difference": 0,
    "relative_difference": 0.0, "milliseconds": {"1": [2.25, 2], "32": [0.5, 0.5]},
    "versions": {"distill": "0.1.0", "torch": "2.10.0", "safetensors": "0.5.3"}
  }], "card": "90ab"
}""")
    record = read_record(tmp_path)
    assert record.weights == "5d7f"
    assert record.artifacts[0].milliseconds == {"1": [2.25, 2], "32": [0.5, 0.5]}


def test_an_earlier_export_is_replaced_when_asked_for(folder: Path):
    with pytest.raises(DistillError, match=r"a\.onnx is there from an earlier export.*--overwrite"):
        require_free(folder, ["a.onnx"], weights="w", overwrite=False)
    assert require_free(folder, ["a.onnx"], weights="w", overwrite=True).artifact("a.onnx")
    assert require_free(folder, ["b.pt2"], weights="w", overwrite=False).artifact("a.onnx")


def test_other_weights_files_and_changes_are_refused(folder: Path):
    overwrite = True
    with pytest.raises(DistillError, match="holds the export of other weights"):
        require_free(folder, ["a.onnx"], weights="v", overwrite=overwrite)
    (folder / "b.pt2").write_text("mine")
    with pytest.raises(DistillError, match=r"b\.pt2 was not written by an export of these"):
        require_free(folder, ["b.pt2"], weights="w", overwrite=overwrite)
    (folder / CARD).write_text("edited")
    with pytest.raises(DistillError, match=r"model-card\.md was not written by .* or was changed"):
        require_free(folder, ["c.onnx"], weights="w", overwrite=overwrite)
    (folder / CARD).unlink()
    require_free(folder, ["c.onnx"], weights="w", overwrite=overwrite)
    (folder / "a.onnx").write_text("edited")
    with pytest.raises(DistillError, match=r"a\.onnx was not written by .* or was changed since"):
        require_free(folder, ["a.onnx"], weights="w", overwrite=overwrite)


def test_places_without_a_record(tmp_path: Path):
    found = require_free(tmp_path / "export", ["a.onnx"], weights="w", overwrite=False)
    assert found == Record("w")
    assert not (tmp_path / "export").exists()
    (tmp_path / CARD).write_text("mine")
    with pytest.raises(DistillError, match=r"model-card\.md was not written by"):
        require_free(tmp_path, ["a.onnx"], weights="w", overwrite=True)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"weights": "w", "artifacts": [{"name": "a"}]}']
)
def test_a_damaged_record(folder: Path, content: str):
    (folder / RECORD).write_text(content)
    with pytest.raises(DistillError, match=r"export\.json is not a record of an export"):
        require_free(folder, ["b.pt2"], weights="w", overwrite=True)


def test_files_that_are_gone_or_changed_leave_the_record(folder: Path):
    record = read_record(folder)
    assert record is not None
    (folder / "b.pt2").write_text("b")
    both = record.with_artifacts([artifact(folder / "b.pt2")], folder)
    assert [each.name for each in both.artifacts] == ["a.onnx", "b.pt2"]
    again = both.with_artifacts([artifact(folder / "b.pt2")], folder)
    assert [each.name for each in again.artifacts] == ["a.onnx", "b.pt2"]
    (folder / "a.onnx").write_text("edited")
    assert [e.name for e in both.with_artifacts([], folder).artifacts] == ["b.pt2"]
    (folder / "b.pt2").unlink()
    assert both.with_artifacts([], folder).artifacts == ()


@pytest.mark.parametrize("name", ["../../secret", "a" * 300, "..", "\ud800"])
def test_a_record_that_names_other_files(folder: Path, name: str):
    content = json.loads((folder / RECORD).read_text())
    content["artifacts"][0]["name"] = name
    (folder / RECORD).write_text(json.dumps(content))
    with pytest.raises(DistillError, match=r"it names a file outside the folder|Invalid JSON"):
        read_record(folder)
