"""Streaming moments against numpy's two-pass mean and covariance."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from eval.gloo_rank import gather_rank

from ddsm_ext.eval.distances import StreamingMoments, gather_moments


def rows(n: int = 1000, dim: int = 24, offset: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(7)
    return rng.standard_normal((n, dim)) @ rng.standard_normal((dim, dim)) + offset


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max() / np.abs(b).max())


def accumulated(parts: list[np.ndarray], dim: int) -> StreamingMoments:
    moments = StreamingMoments(dim)
    for part in parts:
        moments.update(part)
    return moments


@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("batches", [1, 3, 200])
def test_batches_agree_with_numpy(batches: int, offset: float) -> None:
    x = rows(offset=offset)
    moments = accumulated(np.array_split(x, batches), x.shape[1])
    assert moments.count == len(x)
    assert relative(moments.mean, x.mean(axis=0)) <= 1e-12
    assert relative(moments.covariance(), np.cov(x, rowvar=False)) <= 1e-9


@pytest.mark.parametrize("shards", [2, 5, 16])
def test_shards_agree_with_one_pass(shards: int) -> None:
    x = rows(offset=50.0)
    whole = accumulated([x], x.shape[1])
    merged = StreamingMoments(x.shape[1])
    for shard in range(shards):
        merged.merge(accumulated(np.array_split(x[shard::shards], 3), x.shape[1]))
    assert merged.count == whole.count
    assert relative(merged.mean, whole.mean) <= 1e-9
    assert relative(merged.covariance(), whole.covariance()) <= 1e-9


def test_low_precision_tensors_are_summed_in_fp64() -> None:
    x = torch.from_numpy(rows(offset=300.0))
    for dtype in (torch.float32, torch.bfloat16):
        moments = StreamingMoments(x.shape[1])
        moments.update(x.to(dtype))
        expected = np.cov(x.to(dtype).double().numpy(), rowvar=False)
        assert relative(moments.covariance(), expected) <= 1e-9


def test_without_a_process_group_gathering_changes_nothing() -> None:
    moments = accumulated([rows(10, 3)], 3)
    assert gather_moments(moments) is moments


@pytest.mark.slow
def test_ranks_agree_with_one_process(tmp_path) -> None:
    out = str(tmp_path / "rank")
    mp.spawn(gather_rank, args=(3, str(tmp_path / "store"), rows(101, 6), out), nprocs=3)
    expected = accumulated([rows(101, 6)], 6).to_vector()
    parts = [np.load(f"{out}{rank}.npy") for rank in range(3)]
    assert np.array_equal(parts[0], parts[1])
    assert np.array_equal(parts[0], parts[2])
    assert relative(parts[0], expected) <= 1e-9


@pytest.mark.parametrize(
    ("features", "error", "message"),
    [
        (np.zeros((3, 4)), ValueError, "4 features"),
        (np.zeros(5), ValueError, r"\[N, D\]"),
        (np.zeros((2, 5), dtype=np.int64), TypeError, "int64"),
        (torch.zeros(2, 5, dtype=torch.int32), TypeError, "int32"),
        ([[0.0] * 5], TypeError, "list"),
        (np.array([[0.0] * 5, [np.nan] * 5]), ValueError, "row 1"),
    ],
)
def test_wrong_rows_are_refused_and_change_nothing(features, error, message) -> None:
    moments = accumulated([rows(10, 5)], 5)
    before = moments.to_vector()
    with pytest.raises(error, match=message):
        moments.update(features)
    assert np.array_equal(moments.to_vector(), before)


def test_covariance_needs_two_rows() -> None:
    moments = accumulated([rows(1, 3), np.zeros((0, 3))], 3)
    with pytest.raises(ValueError, match="at least 2"):
        moments.covariance()
    with pytest.raises(ValueError, match="dim"):
        StreamingMoments(0)
    with pytest.raises(ValueError, match="same number"):
        moments.merge(StreamingMoments(4))
