"""Values given as text or JSON take the types of their fields, or are refused."""

from __future__ import annotations

import math

import pytest

from ddsm_ext.run.values import coerce, parse_value
from ddsm_ext.settings import shown


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", 1), ("0.5", 0.5), ("true", True), ("None", None), ("[1, 2]", [1, 2]), ("a b", "a b")],
)
def test_values_of_set(text: str, value: object) -> None:
    assert parse_value(text) == value


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        ("1,2,2", tuple[int, ...], (1, 2, 2)),
        ([1, 2], tuple[int, ...], (1, 2)),
        (0.5, tuple[float, ...], (0.5,)),
        (3.0, int, 3),
        (3, float, 3.0),
        (None, int | None, None),
        (4, int | None, 4),
        (7, str, "7"),
    ],
)
def test_values_take_their_fields_type(value: object, hint: object, expected: object) -> None:
    result = coerce(value, hint, "x")
    assert result == expected
    assert type(result) is type(expected)


@pytest.mark.parametrize(
    ("value", "hint"),
    [("x", int), (1.5, int), (True, int), ("x", float), (1, bool), (None, str), ({}, tuple[int]),
     (math.nan, int), (math.inf, int), (2**63, int), (-(2**63), int), (1e300, int),
     (10**400, float), (math.nan, float), (-math.inf, float), ([1, math.nan], tuple[float, ...]),
     (1.1, str), (True, str), ("a\0b", str), ([[[[[1]]]]], int), (10**5000, int),
     ("9" * 9999, int)],
    ids=shown,
)  # fmt: skip
def test_values_of_another_type_are_refused(value: object, hint: object) -> None:
    with pytest.raises(TypeError, match=r"^x is .{1,130}; need"):
        coerce(value, hint, "x")


@pytest.mark.parametrize(("value", "item"), [("1,0.5,", "''"), ("1,,2", "''"), ("1,x", "'x'")])
def test_the_item_of_a_list_that_is_wrong_is_named(value: str, item: str) -> None:
    with pytest.raises(TypeError) as caught:
        coerce(value, tuple[float, ...], "train.widths")
    expected = f"train.widths is '{value}', an item of which is {item}; need a number"
    assert str(caught.value) == expected


def test_lists_without_end_are_refused() -> None:
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_value("[" * 100_000)
