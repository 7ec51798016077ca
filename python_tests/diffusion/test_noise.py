from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ddsm_ext.diffusion.noise import (
    as_seeds,
    generator,
    normal,
    philox4x32,
)

ALL_ONES = 0xFFFFFFFF

# Random123 1.14, tests/kat_vectors, the three lines "philox4x32 10".
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ALL_ONES,) * 4, (ALL_ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
words = st.integers(0, ALL_ONES)


def philox_by_python_integers(counter: tuple[int, ...], key: tuple[int, ...]) -> list[int]:
    """Salmon et al. 2011, section 3.3, with unbounded integers."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & ALL_ONES, (p0 >> 32) ^ c3 ^ k1, p0 & ALL_ONES
        k0, k1 = (k0 + 0x9E3779B9) & ALL_ONES, (k1 + 0xBB67AE85) & ALL_ONES
    return [c0, c1, c2, c3]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_known_answers(counter: tuple, key: tuple, expected: tuple) -> None:
    assert philox4x32(torch.tensor(counter), torch.tensor(key)).tolist() == list(expected)


@given(counter=st.tuples(words, words, words, words), key=st.tuples(words, words))
@settings(max_examples=200, deadline=None)
def test_any_counter_and_key(counter: tuple, key: tuple) -> None:
    got = philox4x32(torch.tensor(counter), torch.tensor(key)).tolist()
    assert got == philox_by_python_integers(counter, key)


def box_muller(words: list[int]) -> list[float]:
    """Two numbers of each pair of words, in float64."""
    unit = [(w + 0.5) / 2**32 for w in words]
    result = []
    for a, b in zip(unit[0::2], unit[1::2], strict=True):
        radius = math.sqrt(-2 * math.log(a))
        result += [radius * math.cos(2 * math.pi * b), radius * math.sin(2 * math.pi * b)]
    return result


def test_layout_of_counter_and_key() -> None:
    seed = (7 << 32) | 5
    got = normal([seed], 3, (6,), stream=2, dtype=torch.float64)[0].tolist()
    first = philox_by_python_integers((0, 3, 2, 0), (5, 7))
    second = philox_by_python_integers((1, 3, 2, 0), (5, 7))
    assert got == pytest.approx(box_muller(first + second)[:6], abs=1e-13)


def test_negative_seeds_are_their_64_bits() -> None:
    got = normal([-1], 0, (4,), dtype=torch.float64)[0].tolist()
    words = philox_by_python_integers((0, 0, 0, 0), (ALL_ONES, ALL_ONES))
    assert got == pytest.approx(box_muller(words), abs=1e-13)


def test_normal_is_box_muller_of_the_known_answer() -> None:
    expected = box_muller(list(KNOWN_ANSWERS[0][2]))
    got = normal([0], 0, (1, 2, 2), dtype=torch.float64)
    assert got.flatten().tolist() == pytest.approx(expected, abs=1e-13)
    assert normal([0], 0, (3,), dtype=torch.float64)[0].tolist() == pytest.approx(
        expected[:3], abs=1e-13
    )


def test_an_image_is_its_seed_in_any_batch() -> None:
    seeds = torch.tensor([3, 900, -5, 2**40, 0, 1, 2, 4])
    together = normal(seeds, 11, (3, 7, 5), stream=1)
    alone = torch.cat([normal(seeds[i : i + 1], 11, (3, 7, 5), stream=1) for i in range(8)])
    assert torch.equal(together, alone)
    assert torch.equal(normal(seeds.flip(0), 11, (3, 7, 5), stream=1), together.flip(0))


def test_one_step_per_seed() -> None:
    seeds, steps = torch.tensor([1, 2, 2]), torch.tensor([5, 5, 6])
    rows = [normal([s], k, (2, 3, 3)) for s, k in zip([1, 2, 2], [5, 5, 6], strict=True)]
    assert torch.equal(normal(seeds, steps, (2, 3, 3)), torch.cat(rows))


def test_seed_step_and_stream_give_different_numbers() -> None:
    shape = (1, 4, 4)
    draws = [normal([s], k, shape, stream=q) for s in (0, 1) for k in (0, 1) for q in (0, 1)]
    flat = torch.stack(draws).reshape(8, -1)
    assert len({tuple(row.tolist()) for row in flat}) == 8


def test_distribution() -> None:
    z = normal(range(64), 3, (3, 16, 16), dtype=torch.float64).numpy()  # 49,152 numbers
    assert stats.kstest(z.ravel(), "norm").pvalue > 1e-3
    correlation = np.corrcoef(z.reshape(64, -1))
    assert np.abs(correlation - np.eye(64)).max() < 6 / math.sqrt(768)


def test_empty() -> None:
    assert normal([], 0, (3, 4, 4)).shape == (0, 3, 4, 4)


def test_generators_depend_on_every_key() -> None:
    draws = {
        torch.rand(1, generator=generator(*keys)).item()
        for keys in [(0,), (1,), (0, 1), (0, 0), (0, 1, 2), (0, 12)]
    }
    assert len(draws) == 6
    assert torch.equal(
        torch.rand(4, generator=generator(5, 6)), torch.rand(4, generator=generator(5, 6))
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_the_same_image() -> None:
    seeds = torch.arange(8)
    here, there = normal(seeds, 3, (3, 32, 32)), normal(seeds, 3, (3, 32, 32), device="cuda")
    torch.testing.assert_close(there.cpu(), here, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: as_seeds([0.5]), TypeError, "need integers"),
        (lambda: as_seeds([True]), TypeError, "need integers"),
        (lambda: as_seeds(5), TypeError, "seeds: got 5; need integers, one per image"),
        (lambda: as_seeds(torch.zeros(3)), TypeError, "need an integer tensor"),
        (lambda: as_seeds(torch.zeros(3, 1, dtype=torch.int64)), ValueError, r"\(3, 1\)"),
        (lambda: normal([0], -1, (4,)), ValueError, "step is -1"),
        (lambda: normal([0], 2**32, (4,)), ValueError, "step is 4294967296"),
        (lambda: normal([0], 0, (4,), stream=-2), ValueError, "stream is -2"),
        (lambda: normal([0], torch.zeros(2, dtype=torch.int64), (4,)), ValueError, r"\[1\]"),
    ],
)
def test_bad_arguments(call, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()
