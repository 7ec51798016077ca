"""Weights in several files under other people's indices, and copied into a network's."""

from __future__ import annotations

import errno
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ddsm_ext.io.weights import copy_tensors, load_file, load_shards, tensor_places


def test_an_index_of_another_library_is_joined(tmp_path: Path) -> None:
    state = {f"layer.{i}": torch.randn(6, 5) for i in range(12)}
    parts = [list(state)[:5], list(state)[5:]]
    weight_map = {}
    for number, names in enumerate(parts, 1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: state[name].contiguous() for name in names}, tmp_path / file)
        weight_map |= dict.fromkeys(names, file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    joined, _ = load_shards(index)
    assert all(torch.equal(joined[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"weight_map": {"a": "../elsewhere.safetensors"}}, "names without a folder"),
        ({"weight_map": {"a": "/etc/passwd"}}, "names without a folder"),
        ({"weight_map": {"a": 3}}, "names without a folder"),
        ({"weight_map": {"a": ["x"]}}, "names without a folder"),
        ({"weight_map": []}, "no weight_map"),
        ([], "no weight_map"),
        ({"weight_map": {"a": "x"}, "metadata": ["x"]}, "metadata or its sha256 is no JSON"),
        ({"weight_map": {"a": "x"}, "metadata": {"sha256": 1}}, "metadata or its sha256 is no"),
    ],
)
def test_a_hostile_index_reads_no_other_file(
    tmp_path: Path, content: object, expected: str
) -> None:
    index = tmp_path / "x.safetensors.index.json"
    index.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=expected):
        load_shards(index)


def test_a_tensor_that_only_the_index_knows_is_named(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "f.safetensors")
    index = tmp_path / "x.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "f.safetensors", "b": "f.safetensors"}}))
    with pytest.raises(ValueError, match="b is in the index or in the files alone"):
        load_shards(index)


def test_copy_is_all_or_nothing() -> None:
    target = {"a": torch.zeros(2), "b": torch.zeros(3)}
    for source, message in (
        ({"a": torch.ones(2)}, "x lacks 'b'; need exactly the 2 names"),
        ({"a": torch.ones(2), "b": torch.ones(3), "c": torch.ones(1)}, "x has an unknown 'c'"),
        ({"a": torch.ones(2), "b": torch.ones(4)}, r"x: b has shape \[4\]; need \[3\]"),
    ):
        with pytest.raises(ValueError, match=message):
            copy_tensors(source, target, "x")
        assert target["a"].tolist() == [0, 0]
    copy_tensors({"b": torch.ones(3), "a": torch.ones(2)}, target, "x")
    assert target["a"].tolist() == [1, 1]


@pytest.mark.parametrize("name", ["net.pt", "net.safetensors"])
def test_a_file_on_a_failing_disk_names_itself(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    tensors = {"a": torch.zeros(4)}
    torch.save(tensors, tmp_path / "net.pt")
    save_file(tensors, tmp_path / "net.safetensors")

    class Failing(io.FileIO):
        def readinto(self, buffer: Any) -> int:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        def read(self, size: int = -1) -> bytes:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        readall = read

    monkeypatch.setattr("builtins.open", lambda path, *how, **more: Failing(path))
    with pytest.raises(
        OSError, match=r"Input/output error; need a file of weights that can be read"
    ) as no:
        load_file(tmp_path / name)
    assert (no.value.errno, no.value.filename) == (errno.EIO, str(tmp_path / name))


def test_tensors_come_from_the_file_that_the_index_names(tmp_path: Path) -> None:
    for name, value in (("a", 0.0), ("b", 1.0)):
        save_file(
            {"w": torch.full((2,), value), name: torch.zeros(1)}, tmp_path / f"{name}.safetensors"
        )
    index = tmp_path / "x.safetensors.index.json"
    files = {"w": "a.safetensors", "a": "a.safetensors", "b": "b.safetensors"}
    index.write_text(json.dumps({"weight_map": files}))
    with pytest.raises(ValueError, match=r"w is in .* the files alone; need both, for b\.saf"):
        load_shards(index)


@pytest.mark.parametrize("name", ["net.pt", "net.bin", "net.safetensors", "net.SAFETENSORS"])
def test_files_of_weights_are_known_by_content(name: str, tmp_path: Path) -> None:
    tensors = {"a": torch.arange(4.0)}
    save_file(tensors, tmp_path / name)
    assert load_file(tmp_path / name)["a"].equal(tensors["a"])
    for zipped in (True, False):
        torch.save(tensors, tmp_path / name, _use_new_zipfile_serialization=zipped)
        assert load_file(tmp_path / name)["a"].equal(tensors["a"])


def test_where_tensors_lie(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor([7], dtype=torch.int64)}
    save_file(tensors, path, {"note": "x"})
    data = path.read_bytes()
    places, metadata = tensor_places(io.BytesIO(data), "a")
    assert metadata == {"note": "x"}
    assert {name: (p.dtype, p.shape) for name, p in places.items()} == {
        "a": ("F32", (2, 3)), "b": ("I64", (1,)),
    }  # fmt: skip
    for name, place in places.items():
        assert data[place.start : place.stop] == tensors[name].numpy().tobytes()


@pytest.mark.parametrize(
    "header",
    [
        [],
        {"a": 1},
        {"a": {"dtype": "F32", "shape": [2]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [-4, 4]}},
        {"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}},
        {"a": {"dtype": "F32", "shape": [-1, -2], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F33", "shape": [2], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [10**9, 10**9], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": "2", "data_offsets": "08"}},
        {"__metadata__": 3},
    ],
)
def test_places_that_cannot_be_are_refused(header: Any) -> None:
    text = json.dumps(header).encode()
    data = len(text).to_bytes(8, "little") + text + bytes(8)
    with pytest.raises(ValueError, match="evil: its header is not that of its tensors"):
        tensor_places(io.BytesIO(data), "evil")
    for cut in (0, 3, 8, len(text) + 4):
        with pytest.raises(ValueError, match="evil"):
            tensor_places(io.BytesIO(data[:cut]), "evil")
