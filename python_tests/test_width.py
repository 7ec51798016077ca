"""The rounding rule: the reference's formula, its bounds, and refusals."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddsm_ext.width import active_channels, check_width, find_width, sorted_widths


@pytest.mark.parametrize(
    ("c_max", "width", "multiple", "expected"),
    [
        # Worked by hand from make_divisible: nearest multiple, one step up if > 10 % below.
        (128, 1.0, 8, 128),
        (128, 0.75, 8, 96),
        (128, 0.5, 8, 64),
        (128, 0.25, 8, 32),
        (128, 0.3, 8, 40),  # 38.4 -> 40
        (256, 0.3, 1, 77),  # 76.8 -> 77
        (512, 0.3, 16, 160),  # 153.6 -> 160
        (96, 0.125, 8, 16),  # 12 is half-way between 8 and 16: up
        (88, 0.125, 8, 16),  # 11 -> 8 would be 27 % below
        (64, 0.01, 8, 8),
        (12, 0.9, 8, 12),  # 10.8 -> 8 is 26 % below, 16 is above c_max
        (59, 1.0, 8, 59),
    ],
)
def test_by_hand(c_max: int, width: float, multiple: int, expected: int) -> None:
    assert active_channels(c_max, width, multiple) == expected


@given(
    st.integers(1, 2048),
    st.floats(0.0, 1.0, exclude_min=True, allow_subnormal=False),
    st.integers(1, 64),
)
def test_bounds(c_max: int, width: float, multiple: int) -> None:
    c = active_channels(c_max, width, multiple)
    assert 1 <= c <= c_max
    assert c % multiple == 0 or c == c_max
    assert c >= min(0.9 * c_max * width, c_max)


@pytest.mark.parametrize("width", [0, -0.5, 1.0001, 2, math.nan, math.inf])
def test_width_outside_range(width: float) -> None:
    with pytest.raises(ValueError, match=r"width is .*; need 0 < width <= 1"):
        check_width(width)


@pytest.mark.parametrize("width", [None, "0.5", True, [0.5], 1j])
def test_width_is_no_number(width: object) -> None:
    with pytest.raises(TypeError, match=r"width is .*; need a number"):
        check_width(width)  # type: ignore[arg-type]


def test_counts_below_one() -> None:
    with pytest.raises(ValueError, match="c_max is 0, multiple is 8"):
        active_channels(0, 0.5)


def test_widths_of_a_configuration_are_checked_and_sorted() -> None:
    assert sorted_widths("Some", [0.25, 1, 0.5]) == (1.0, 0.5, 0.25)
    for widths, message in [
        ((), r"^Some: widths is \(\); need at least one width$"),
        ((0.5, 0.5), r"^Some: widths is \(0.5, 0.5\); need each width once$"),
        ((1.0, 1.5), r"^Some: widths is \(1.0, 1.5\): width is 1.5; need 0 < width <= 1$"),
    ]:
        with pytest.raises(ValueError, match=message):
            sorted_widths("Some", widths)
    for wrong in ("1.0", 1.0, (1.0, None)):
        with pytest.raises(TypeError, match=r"^Some: widths is .*; need a"):
            sorted_widths("Some", wrong)  # type: ignore[arg-type]


def test_a_width_is_found_whatever_its_last_bits() -> None:
    widths = (1.0, 0.3, 0.1)
    assert find_width(widths, 0.1 + 0.2) == 1
    assert find_width(widths, 0.2) is None
    assert find_width(dict.fromkeys(widths), 1.0) == 0
