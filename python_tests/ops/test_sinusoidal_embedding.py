"""Sinusoidal time embedding against its closed form."""

from __future__ import annotations

import math

import torch

from ddsm_ext.ops.sinusoidal_embedding import embed_time, sinusoidal_embedding


def test_closed_form() -> None:
    t = torch.tensor([0.0, 1.0, 3.75, 999.0], dtype=torch.float64)
    embedding = sinusoidal_embedding(t, 6, dtype=torch.float64)
    for row, value in enumerate(t.tolist()):
        for i in range(3):
            angle = value * 10000 ** (-2 * i / 6)
            assert math.isclose(embedding[row, 2 * i], math.sin(angle), abs_tol=1e-11)
            assert math.isclose(embedding[row, 2 * i + 1], math.cos(angle), abs_tol=1e-11)


def test_halves_in_closed_form() -> None:
    t = torch.tensor([0.0, 1.0, 3.75, 999.0], dtype=torch.float64)
    embedding = sinusoidal_embedding(t, 6, halves=True, dtype=torch.float64)
    assert embedding.shape == (4, 6)
    for row, value in enumerate(t.tolist()):
        for i in range(3):
            angle = value * 10000 ** (-i / 3)
            assert math.isclose(embedding[row, i], math.cos(angle), abs_tol=1e-11)
            assert math.isclose(embedding[row, 3 + i], math.sin(angle), abs_tol=1e-11)
    assert torch.equal(embed_time(t, 6, None, torch.float64, halves=True), embedding)
    low = embed_time(t, 6, None, torch.bfloat16, halves=True)
    assert torch.equal(low, sinusoidal_embedding(t, 6, halves=True).to(torch.bfloat16))


def test_table_rows_replace_whole_steps_only() -> None:
    table = torch.arange(8.0).view(4, 2)
    t = torch.tensor([0.0, 3.0, 2.5, 4.0, -1.0])
    embedding = embed_time(t, 2, table, torch.float32)
    assert torch.equal(embedding[:2], table[[0, 3]])
    assert torch.equal(embedding[2:], sinusoidal_embedding(t[2:], 2))
    assert torch.equal(embed_time(torch.tensor([1, 2]), 2, table, torch.float32), table[1:3])


def test_integer_and_float_steps_agree() -> None:
    t = torch.tensor([0, 17, 999])
    assert torch.equal(sinusoidal_embedding(t, 8), sinusoidal_embedding(t.float(), 8))
