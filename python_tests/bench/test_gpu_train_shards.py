"""Weights in several files: sizes, joining, interruptions, damage."""

from __future__ import annotations

import json
from pathlib import Path

import bench.scripts  # noqa: F401  # makes gpu_train importable
import pytest
import torch
from gpu_train.shards import save_shards
from safetensors import safe_open

from ddsm_ext.io.weights import load_shards

MAX_BYTES = 140_000  # four of the larger tensors in bfloat16


def tensors(seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    state = {f"layer.{i}": torch.randn(60, 50, 3, generator=generator) for i in range(12)}
    conv = torch.randn(8, 4, 3, 3, generator=generator)
    state["conv"] = conv.to(memory_format=torch.channels_last)
    return {name: tensor.to(dtype) for name, tensor in state.items()}


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_what_was_split_is_joined_again(tmp_path: Path, dtype: torch.dtype) -> None:
    state = tensors(dtype=dtype)
    index = tmp_path / "ema.safetensors.index.json"
    assert save_shards(index, state, max_bytes=MAX_BYTES, about={"step": 7}) == index
    joined, about = load_shards(index)
    assert list(joined) == list(state)
    for name, tensor in state.items():
        assert joined[name].dtype == dtype
        assert torch.equal(joined[name], tensor)
    assert about["step"] == 7
    assert about["total_size"] == sum(t.numel() * t.element_size() for t in state.values())
    assert all(path.stat().st_size <= MAX_BYTES for path in tmp_path.glob("*.safetensors"))
    assert len(files(tmp_path)) >= 4


def test_the_index_has_the_form_of_other_libraries(tmp_path: Path) -> None:
    index = tmp_path / "ema.safetensors.index.json"
    save_shards(index, tensors(), max_bytes=MAX_BYTES)
    content = json.loads(index.read_text())
    assert content.keys() == {"metadata", "weight_map"}
    for name, file in content["weight_map"].items():
        with safe_open(tmp_path / file, "pt") as stored:
            assert name in stored.keys()  # noqa: SIM118


def test_new_files_replace_the_old_ones_and_no_others(tmp_path: Path) -> None:
    index = tmp_path / "ema.safetensors.index.json"
    save_shards(index, tensors(0), max_bytes=MAX_BYTES)
    beside = {"ema-notes.txt", "ema-big-12345678-00001-of-00002.safetensors"}
    for name in beside:
        (tmp_path / name).touch()
    before = files(tmp_path)
    save_shards(index, tensors(1), max_bytes=MAX_BYTES)
    after = files(tmp_path)
    assert len(after) == len(before)
    assert before & after == beside | {index.name}
    assert torch.equal(load_shards(index)[0]["layer.3"], tensors(1)["layer.3"])


@pytest.mark.parametrize("written", range(5))
def test_an_interruption_leaves_the_old_weights_or_the_new(tmp_path: Path, written: int) -> None:
    """Three files of weights, then the index."""
    index, elsewhere = tmp_path / "ema.safetensors.index.json", tmp_path / "elsewhere"
    save_shards(index, tensors(0), max_bytes=MAX_BYTES)
    save_shards(elsewhere / index.name, tensors(1), max_bytes=MAX_BYTES)
    shards = sorted(elsewhere.glob("*.safetensors"), key=lambda path: path.name.split("-")[2])
    assert len(shards) == 3
    if written < 3:
        (tmp_path / shards[written].name).mkdir()  # a file cannot take its place
    about = {"step": object() if written == 3 else 7}  # which is no JSON
    try:
        save_shards(index, tensors(1), max_bytes=MAX_BYTES, about=about)
        assert written == 4
        expected = tensors(1)
    except (OSError, TypeError):
        assert written < 4
        expected = tensors(0)
    for number, path in enumerate(shards):
        assert (tmp_path / path.name).is_file() == (number < written)
    joined, _ = load_shards(index)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in joined.items())


def test_refusals_in_one_sentence(tmp_path: Path) -> None:
    index = tmp_path / "ema.safetensors.index.json"
    with pytest.raises(ValueError, match="need a name that ends in"):
        save_shards(tmp_path / "ema.json", tensors(), max_bytes=MAX_BYTES)
    with pytest.raises(ValueError, match="no tensors"):
        save_shards(index, {}, max_bytes=MAX_BYTES)
    with pytest.raises(ValueError, match=r"layer.0 takes 18000 bytes; need max_bytes >= 83536"):
        save_shards(index, tensors(), max_bytes=80_000)
    with pytest.raises(FileNotFoundError):
        load_shards(index)
    save_shards(index, tensors(), max_bytes=MAX_BYTES)
    shard = sorted(tmp_path.glob("*.safetensors"))[0]
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ValueError, match="does not match its SHA-256"):
        load_shards(index)
    shard.unlink()
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_shards(index)
