"""TensorFlow checkpoints: read as TensorFlow wrote them, refused when damaged."""

from pathlib import Path

import numpy as np
import pytest
import torch

from distill.errors import DistillError
from distill.models.checkpoints.open import open_checkpoint
from distill.models.checkpoints.tensorflow import (
    Bundle,
    MalformedError,
    _read_entries,
    bundle_prefix,
    is_bundle_file,
    read_fields,
    read_table,
    read_varint,
)


@pytest.fixture
def writer(tool):
    return tool("bundle_writer")


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    values = {f"layer_{i}/kernel": rng.standard_normal((3, i + 1), np.float32) for i in range(40)}
    for dtype in ("float64", "int32", "uint8", "int16", "int8", "int64", "bool", "float16"):
        values[f"of/{dtype}"] = rng.integers(0, 2, (2, 3)).astype(dtype)
    values["scalar"] = np.array(7, np.int64)
    values["empty"] = np.zeros((0, 3), np.float32)
    return values


@pytest.mark.parametrize(("num_shards", "keys_per_block"), [(1, 64), (3, 5), (2, 1)])
def test_what_was_written_is_read(tmp_path: Path, writer, num_shards, keys_per_block):
    written = arrays()
    writer.write_bundle(
        tmp_path / "model.ckpt-1",
        written.items(),
        num_shards=num_shards,
        keys_per_block=keys_per_block,
    )
    with open_checkpoint(tmp_path / "model.ckpt-1") as file:
        assert file.kind == "tensorflow"
        assert file.shapes == {name: value.shape for name, value in written.items()}
        for name, value in written.items():
            np.testing.assert_array_equal(file.read(name).numpy(), value)
            assert str(file.read(name).dtype) == f"torch.{value.dtype}"


@pytest.mark.parametrize("name", ["simclr_tf1", "csimclr_tf2", "cbyol_tf2"])
def test_what_tensorflow_wrote_is_read(oracles: Path, name: str):
    with open_checkpoint(oracles / name) as file:
        assert len(file.shapes) > 260
        assert all(torch.isfinite(file.read(n).float()).all() for n in file.shapes)
        step = next(n for n in file.shapes if n.startswith("global_step"))
        assert file.read(step).dtype == torch.int64
        assert "_CHECKPOINTABLE_OBJECT_GRAPH" not in file.shapes  # a string


def test_reading_one_variable_leaves_the_others_alone(tmp_path: Path, writer):
    written = arrays()
    writer.write_bundle(tmp_path / "c", written.items())
    data = tmp_path / "c.data-00000-of-00001"
    content = bytearray(data.read_bytes())
    content[-1] ^= 1  # of the last variable that has bytes
    data.write_bytes(content)
    with Bundle(tmp_path / "c") as file:
        np.testing.assert_array_equal(file.read("layer_3/kernel"), written["layer_3/kernel"])
        with pytest.raises(DistillError, match=r"the checksum of scalar .* is wrong.*fetch it"):
            file.read("scalar")


def changed(index: Path, writer, name: bytes, value: bytes, **options) -> None:
    entries = read_table(index.read_bytes())
    entries[name] = value
    index.write_bytes(writer.write_table(dict(sorted(entries.items())), **options))


def test_files_of_another_kind_are_named(tmp_path: Path, writer):
    one = np.ones((2, 2), np.float32)
    index = tmp_path / "c.index"

    def fresh() -> None:
        writer.write_bundle(tmp_path / "c", [("a", one)])

    fresh()
    header = writer.field(1, 1) + writer.field(2, 1)
    changed(index, writer, b"", header)
    with pytest.raises(DistillError, match="big-endian"):
        Bundle(tmp_path / "c")

    fresh()
    entries = read_table(index.read_bytes())
    index.write_bytes(writer.write_table(entries, compression=1))
    with pytest.raises(DistillError, match="compressed \\(Snappy\\)"):
        Bundle(tmp_path / "c")

    fresh()
    plain = writer.entry(one, shard=0, offset=0, crc=0)
    changed(index, writer, b"a", plain + writer.field(7, b""))
    with pytest.raises(DistillError, match=r"a in .* is partitioned"):
        Bundle(tmp_path / "c").read("a")

    changed(index, writer, b"a", plain.replace(writer.field(1, 1), writer.field(1, 20), 1))
    with pytest.raises(DistillError, match=r"dtype number 20; float32, .* are supported"):
        Bundle(tmp_path / "c").read("a")

    changed(index, writer, b"a", writer.entry(one, shard=2, offset=0, crc=0))
    with pytest.raises(DistillError, match="places a in file 2 of 1"):
        Bundle(tmp_path / "c")

    smaller = writer.field(1, 1) + writer.field(2, b"") + writer.field(5, 16)
    changed(index, writer, b"a", smaller)
    with pytest.raises(DistillError, match=r"has 16 bytes, which does not match its shape \(\)"):
        Bundle(tmp_path / "c").read("a")

    changed(index, writer, b"", b"")
    with pytest.raises(DistillError, match="header is missing or wrong"):
        Bundle(tmp_path / "c")


def test_missing_and_short_files(tmp_path: Path, writer):
    writer.write_bundle(tmp_path / "c", [("a", np.ones(9, np.float32))])
    data = tmp_path / "c.data-00000-of-00001"
    whole = data.read_bytes()
    data.write_bytes(whole[:-1])
    with pytest.raises(DistillError, match="has 35 bytes and its index needs 36"):
        Bundle(tmp_path / "c")
    data.unlink()
    with pytest.raises(DistillError, match=r"data-00000-of-00001 is missing beside c\.index"):
        Bundle(tmp_path / "c")
    (tmp_path / "c.index").write_bytes(b"")
    with pytest.raises(DistillError, match="not a whole index"):
        Bundle(tmp_path / "c")
    with pytest.raises(DistillError, match="cannot be read"):
        Bundle(tmp_path / "absent")


@pytest.mark.parametrize("lengths", [(1, 1, 1), (0, 90, 1), (0, 1, 90)])
def test_entries_that_go_beyond_their_block(writer, lengths):
    entry = b"".join(map(writer.varint, lengths)) + b"kv"
    content = entry + (0).to_bytes(4, "little") + (1).to_bytes(4, "little")
    with pytest.raises(MalformedError, match="beyond its block"):
        _read_entries(content)


def test_numbers_and_fields():
    assert read_varint(bytes([0x96, 0x01]), 0) == (150, 2)  # the encoding guide's example
    assert read_varint(bytes([0xFF] * 9 + [0x01]), 0) == (2**64 - 1, 10)
    for data in (b"", b"\x80", bytes([0x80] * 10 + [0x01])):
        with pytest.raises(MalformedError, match="no end"):
            read_varint(data, 0)
    message = bytes(
        [0x08, 0x96, 0x01, 0x12, 0x02, 0x68, 0x69, 0x1D, 1, 0, 0, 0, 0x21, *[2] + [0] * 7]
    )
    assert list(read_fields(message)) == [(1, 150), (2, b"hi"), (3, 1), (4, 2)]
    for damaged in (message[:-1], message[:5], bytes([0x0B])):
        with pytest.raises(MalformedError):
            list(read_fields(damaged))


def test_finding_the_prefix(tmp_path: Path, writer):
    folder = tmp_path / "ResNet50_4x"
    (folder / "hub" / "variables").mkdir(parents=True)
    writer.write_bundle(folder / "model.ckpt-5", [])
    writer.write_bundle(folder / "hub" / "variables" / "variables", [])
    prefix = folder / "model.ckpt-5"
    for path in (
        *(tmp_path, folder, prefix, folder / "model.ckpt-5.index"),
        *(folder / "model.ckpt-5.data-00000-of-00001", folder / "model.ckpt-5.meta"),
    ):
        assert bundle_prefix(path) == prefix
    assert bundle_prefix(folder / "model.ckpt-6") is None
    assert bundle_prefix(folder / "hub") is None
    writer.write_bundle(folder / "model.ckpt-4", [])
    with pytest.raises(DistillError, match=r"several checkpoints \(.*model.ckpt-4, .*ckpt-5\)"):
        bundle_prefix(tmp_path)
    (folder / "checkpoint").write_text('model_checkpoint_path: "/somewhere/else/model.ckpt-4"\n')
    assert bundle_prefix(tmp_path) == folder / "model.ckpt-4"


def test_files_of_a_bundle_by_name():
    assert is_bundle_file("a/model.ckpt-5.index")
    assert is_bundle_file("a/model.ckpt-5.data-00000-of-00001")
    assert is_bundle_file("a/checkpoint")
    assert not is_bundle_file("a/model.ckpt-5.meta")
    assert not is_bundle_file("a/hub/variables/variables.index")
