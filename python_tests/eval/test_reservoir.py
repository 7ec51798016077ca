"""A reservoir keeps every row with equal chance, whatever the batches."""

from __future__ import annotations

import numpy as np
import pytest

from ddsm_ext.eval.reservoir import Reservoir


def kept(count: int, size: int, seed: int, batch: int) -> list[int]:
    reservoir = Reservoir(size, 1, seed)
    rows = np.arange(count, dtype=np.float32)[:, None]
    for start in range(0, count, batch):
        reservoir.update(rows[start : start + batch])
    return reservoir.rows[:, 0].astype(int).tolist()


def test_batches_change_nothing() -> None:
    assert kept(1000, 50, 3, 1000) == kept(1000, 50, 3, 7) == kept(1000, 50, 3, 1)
    assert kept(1000, 50, 3, 7) != kept(1000, 50, 4, 7)


def test_rows_are_kept_once_and_all_of_them_where_there_is_room() -> None:
    assert len(set(kept(1000, 50, 0, 64))) == 50
    assert sorted(kept(30, 50, 0, 8)) == list(range(30))
    assert kept(30, 0, 0, 8) == []


def test_every_row_has_an_equal_chance_and_so_has_every_row_of_a_prefix() -> None:
    counts, first = np.zeros(20), np.zeros(20)
    for seed in range(2000):
        rows = kept(20, 5, seed, 6)
        counts[rows] += 1
        first[rows[0]] += 1
    # binomial: 2000 draws of chance 1/4 and 1/20, within 4.5 standard deviations
    assert np.abs(counts - 500).max() < 4.5 * np.sqrt(2000 * 0.25 * 0.75)
    assert np.abs(first - 100).max() < 4.5 * np.sqrt(2000 * 0.05 * 0.95)


@pytest.mark.parametrize("count", [10, 500])
def test_rows_come_in_random_order(count: int) -> None:
    rows = kept(count, 100, 0, 16)
    assert rows != sorted(rows)
