"""EDM's augmentation against its table of transformations, on images that are easy to follow."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ddsm_ext.training.augment import augment
from ddsm_ext.training.config import AUGMENT_LABELS


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blob(n: int, side: int = 48) -> Tensor:
    """A smooth spot off the centre, twice as far to the right as down."""
    at = (torch.arange(side) + 0.5) / side * 2 - 1
    y, x = at[:, None], at[None, :]
    spot = torch.exp(-((x - 0.3) ** 2 + (y - 0.15) ** 2) / 0.02)
    return spot.expand(n, 1, side, side)


def brightness(images: Tensor, at: Tensor) -> Tensor:
    """What each image has [N] at a place [N, 2] (x, y) from -1 to 1."""
    return F.grid_sample(images, at[:, None, None, :], align_corners=False)[:, 0, 0, 0]


def test_nothing_but_flips_where_nothing_is_wanted() -> None:
    images = torch.randn(200, 3, 6, 6)
    found, told = augment(images, 0.0, stream(), flips=True)
    assert told.shape == (200, AUGMENT_LABELS)
    assert not told[:, 1:].any()
    flipped = told[:, 0] == 1
    assert abs(int(flipped.sum()) - 100) < 36
    assert torch.equal(found[flipped], images[flipped].flip(3))
    assert torch.equal(found[~flipped], images[~flipped])
    found, told = augment(images, 0.0, stream(), flips=False)
    assert torch.equal(found, images)
    assert not told.any()


def test_each_kind_comes_as_often_as_it_should() -> None:
    _, told = augment(torch.zeros(4000, 1, 4, 4), 0.12, stream(), flips=True)
    share = (told != 0).double().mean(0)
    expected = [0.5, 0.06, *[0.12] * 7]
    for found, wanted in zip(share.tolist(), expected, strict=True):
        assert abs(found - wanted) < 5 * math.sqrt(wanted * (1 - wanted) / 4000)
    turned = told[told[:, 4] != 0]
    torch.testing.assert_close((turned[:, 3] + 1) ** 2 + turned[:, 4] ** 2, torch.ones(len(turned)))
    for column in (2, 7, 8):  # standard normal where they are
        values = told[told[:, column] != 0, column]
        assert abs(values.mean().item()) < 0.25
        assert abs(values.std().item() - 1.0) < 0.2


@pytest.mark.parametrize("seed", range(3))
def test_the_spot_goes_where_the_network_is_told(seed: int) -> None:
    """Karras et al. 2022, table 6: turned by -a3, stretched along a4, scaled, moved by a / 8."""
    images = blob(400)
    found, told = augment(images, 0.5, stream(seed), flips=True)
    start = torch.tensor([0.3, 0.15])
    # (a5 cos a4, a5 sin a4) is the same for a5 < 0 and its opposite along the same line.
    expected = torch.stack(
        [torch.tensor([place(label, start, sign) for label in told.tolist()]) for sign in (1, -1)]
    )  # [2, N, 2]
    inside = (expected.abs() < 0.9).all(2).all(0)  # elsewhere it may be outside the image
    assert int(inside.sum()) > 200
    there = torch.stack([brightness(found, at) for at in expected]).amax(0)  # [N]
    assert float(there[inside].min()) > 0.8
    assert float(brightness(found, start.expand(400, 2)).median()) < 0.8  # most have moved


def place(label: list[float], start: Tensor, sign: int) -> tuple[float, float]:
    """Where a point goes."""
    a0, a1, a2, cos, sin, u, v, a6, a7 = label
    x, y = start.tolist()
    x, y = (1 - 2 * a0) * x, (1 - 2 * a1) * y
    cos += 1.0
    x, y = cos * x + sin * y, -sin * x + cos * y  # by -a3
    a5, a4 = sign * math.hypot(u, v), math.atan2(v, u)
    c, s, f = math.cos(a4), math.sin(a4), 2 ** (0.2 * a5)
    x, y = c * x + s * y, -s * x + c * y
    x, y = f * x, y / f
    x, y = c * x - s * y, s * x + c * y
    x, y = (2 ** (0.2 * a2) * value for value in (x, y))
    return x + a6 / 4, y + a7 / 4


def test_it_is_a_function_of_the_stream() -> None:
    images = torch.randn(5, 1, 8, 8)
    first, again, other = (augment(images, 0.5, stream(s), flips=True) for s in (1, 1, 2))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[1], other[1])
    assert first[0].dtype == torch.float32
